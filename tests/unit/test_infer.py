"""The search for sites, what stops it, and what it refuses."""

from __future__ import annotations

import warnings

import gpytorch
import numpy as np
import pytest
import torch

import gpx
from gpx import GP, FitWarning, InputError, StructureError, engines
from gpx.assemble import assemble
from gpx.inputs import as_data
from gpx.kernels import RBF, Matern
from gpx.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    Exponential,
    FromGPyTorch,
    Gamma,
    Heteroscedastic,
    Likelihood,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)  # fmt: skip
from gpx.objectives import ELBO, DataEmphasisedELBO, EPEvidence, Evidence, LeaveOneOut
from gpx.parameters import Choice
from gpx.rules import ExpectationPropagation, Laplace, Variational
from gpx.sites import SiteMarginals, Sites
from gpx.testing.assertions import close, gradients
from gpx.testing.cases import LIKELIHOODS, LikelihoodCase

RANDOM = np.random.default_rng(3)
X = np.sort(RANDOM.uniform(-3, 3, 40))
F = np.sin(2 * X)
LABELS = (F + 0.3 * RANDOM.normal(size=40) > 0).astype(float)
COUNTS = RANDOM.poisson(np.exp(F + 1)).astype(float)


def undamped(gp: GP, steps: int) -> float:
    """The residual after steps of size one from no sites."""
    problem = gp._solved
    with torch.no_grad():
        posterior = gpx.inference.infer.first_posterior(problem)
        for _ in range(steps):
            target = problem.rule.update(problem.likelihood, problem.data, posterior.site_marginals, posterior.sites)
            posterior = posterior.with_sites(target)
        target = problem.rule.update(problem.likelihood, problem.data, posterior.site_marginals, posterior.sites)
        return float(problem.rule.residual(posterior.site_marginals, posterior.sites, target).max())


@pytest.mark.data
@pytest.mark.parametrize(("lengthscale", "outputscale"), [(3.0, 50.0), (5.0, 400.0)])
def test_where_undamped_steps_oscillate(lengthscale, outputscale):
    data = gpx.datasets.load("parkinsons")
    x = (data.X - data.X.mean(0)) / data.X.std(0)
    gp = GP(Matern(2.5, lengthscale, outputscale), Bernoulli(), mean="zero").condition(x, data.y)
    assert gp._solved.solution.converged and gp._solved.solution.residual < 1e-8
    assert undamped(gp, 60) > 1e-4


@pytest.mark.slow
@pytest.mark.ci
def test_a_search_that_does_not_converge_is_reported(monkeypatch):
    monkeypatch.setattr("gpx.inference.infer.SMALLEST_STEP", 1.0)  # which ends it before its first step
    with pytest.warns(FitWarning, match="sites of the likelihood did not converge.*another rule, or bounds"):
        gp = GP(RBF(), Bernoulli()).fit(X, LABELS, max_iter=3)
    assert not gp.result_.sites_converged
    assert "did NOT converge" in str(gp.result_)


@pytest.mark.parametrize("likelihood", [Poisson(), StudentT()])
def test_a_search_that_ends_in_rounding_is_no_cause_for_alarm(likelihood):
    """Of counts or a scale that tell the latent function to eight digits."""
    y = np.round(1e8 * np.exp(F)) if isinstance(likelihood, Poisson) else F
    gp = GP(RBF(), likelihood).fit(X, y)
    assert gp.result_.site_residual < 1e-4 and ("NOT" in str(gp.result_)) != gp.result_.sites_converged


def test_cut_precisions_are_counted():
    """Outliers of a likelihood that is not log-concave."""
    y = F + 0.05 * RANDOM.normal(size=40)
    y[[5, 20, 33]] += (4.0, -5.0, 6.0)
    gp = GP(RBF(), StudentT()).fit(X, y)
    assert gp.result_.sites_converged and gp.result_.zero_precisions >= 3
    close(gp.predict(X, of="f").mean, F, "the outliers are ignored", atol=0.25)


def test_results_do_not_depend_on_the_start():
    cold = GP(Matern(2.5, 0.7, 4.0), Poisson()).condition(X, COUNTS)
    problem = cold._solved
    far = problem.anew(gpx.sites.Sites(5 * problem.start.nu, 2 * problem.start.tau + 1))
    close(far.inferred.posterior.sites.nu, cold.posterior_.sites.nu, "sites", 1e-6)


def test_wide_priors():
    """A prior variance of 1e6 for the logarithm of a rate."""
    gp = GP(RBF(0.8, 1e6), Poisson()).condition(X, COUNTS)
    assert gp._solved.solution.converged and gp.predict(X).mean.isfinite().all()


def test_the_published_alternation_stops_when_the_evidence_falls():
    gp = GP(Matern(2.5), Bernoulli(), mean="zero", objective=EPEvidence("fixed-sites"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # of max_iter
        gp.fit(X, LABELS, max_iter=8)
    assert gp.result_.reason in ("the approximate evidence fell", "the hyperparameters settled", "max_iter=8 reached")
    implicit = GP(Matern(2.5), Bernoulli(), mean="zero").fit(X, LABELS)
    assert implicit.log_evidence() > gp.log_evidence() - 0.5


def test_the_published_alternation_ends_in_time():
    with pytest.warns(FitWarning, match="max_seconds is up"):
        gp = GP(Matern(2.5), Bernoulli(), objective=EPEvidence("fixed-sites")).fit(X, LABELS, max_seconds=0)
    assert gp.result_.iterations == 1 and gp.result_.evaluations < 50


@pytest.mark.parametrize("rule", [Variational(), ExpectationPropagation(), Laplace()], ids=repr)
def test_three_lines_for_labels(rule):
    gp = GP(RBF(), Bernoulli(), rule=rule).fit(X, LABELS)
    prediction = gp.predict(X)
    assert ((prediction.mean > 0.5) == torch.from_numpy(LABELS > 0)).double().mean() > 0.8
    assert set(prediction.interval(0.9)[0].tolist()) <= {0.0, 1.0}
    close(prediction.distribution.probabilities.sum(-1), np.ones(40), "probabilities")
    assert "Calibration on 40 targets" in str(gp.check())
    assert "kernel.lengthscale" in gp.summary()


def test_labels_may_be_signs():
    a, b = (GP(RBF(), Bernoulli()).fit(X, y) for y in (LABELS, 2 * LABELS - 1))
    close(a.predict(X).mean, b.predict(X).mean, "predictions", 1e-9)
    close(a.check().residuals, b.check().residuals, "residuals", 1e-9)
    assert a.check().rmse == pytest.approx(b.check().rmse, abs=1e-9) and a.check().ks == pytest.approx(
        b.check().ks, abs=1e-9
    )
    close(a.predict(X).log_prob(LABELS), b.predict(X).log_prob(2 * LABELS - 1), "log densities", 1e-9)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("scale", [1e-6, 1e10])
def test_changing_noise_in_any_unit(scale):
    y = F + 0.1 * (1.2 + np.sin(X)) * np.random.default_rng(0).normal(size=40)
    a, b = (GP(RBF(), Heteroscedastic()).fit(X, c * y) for c in (1.0, scale))
    assert b.result_.objective + 40 * np.log(scale) == pytest.approx(a.result_.objective, abs=1e-5)
    close(b.predict(X).mean / scale, a.predict(X).mean, "means", 1e-4)
    close(b.predict(X).std / scale, a.predict(X).std, "standard deviations", 1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e10])
def test_changing_noise_that_is_none(scale, tmp_path):
    """Its variance ends near 1e-6 of that of the targets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the resolution of the arithmetic
        gp = GP(RBF(), Heteroscedastic()).fit(X, scale * F, max_iter=4)
    noise = gp.predict(X).std / (scale * F.std())
    assert gp.result_.objective + 40 * np.log(scale) < 40 * 7 and bool(((noise > 5e-4) & (noise < 1e-2)).all())
    gp.save(tmp_path / "model.gpx")
    assert gpx.load(tmp_path / "model.gpx").log_evidence() == pytest.approx(gp.log_evidence(), abs=1e-2)
    with pytest.raises(InputError, match="a variance floor >= 0, got -1"):
        Heteroscedastic(-1)


def test_a_likelihood_of_gpytorch_is_wrapped():
    theirs = gpytorch.likelihoods.StudentTLikelihood().double()
    theirs.deg_free, theirs.noise = 5.0, 0.04
    y = F + 0.1 * RANDOM.normal(size=40)
    a = GP(RBF(0.8), theirs, mean="zero").condition(X, y)
    b = GP(RBF(0.8), StudentT(5.0, 0.2), mean="zero").condition(X, y)
    assert isinstance(a.likelihood_, FromGPyTorch)
    assert a.log_evidence() == pytest.approx(b.log_evidence(), abs=1e-6)
    close(a.predict(X).variance, b.predict(X).variance, "variances", 1e-6)
    close(a.predict(X).interval()[1], b.predict(X).interval()[1], "quantiles", 1e-6)
    fitted = GP(RBF(), theirs).fit(X, y)
    assert float(fitted.likelihood_.likelihood.noise.detach()) != pytest.approx(0.04)
    with pytest.raises(InputError, match=r"likelihoods.Gaussian\(\)"):
        GP(RBF(), gpytorch.likelihoods.GaussianLikelihood())


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_likelihoods_of_gpytorch_in_any_unit(scale):
    y = F + 0.1 * RANDOM.standard_t(3, size=40)
    one, other = (GP(RBF(), gpytorch.likelihoods.StudentTLikelihood()).fit(X, unit * (y + 50)) for unit in (1.0, scale))
    assert other.log_evidence() + 40 * np.log(scale) == pytest.approx(one.log_evidence(), abs=0.01)


def test_likelihoods_of_gpytorch_know_their_targets_and_quantiles():
    rate = np.exp(F)
    counts = GP(RBF(0.8), gpytorch.likelihoods.PoissonLikelihood()).condition(X, np.round(rate))
    with pytest.raises(StructureError, match="has no cdf, which quantiles and intervals need; mean"):
        counts.predict(X).interval()
    shares = GP(RBF(0.8), gpytorch.likelihoods.BetaLikelihood()).condition(X, rate / (1 + rate))
    low, high = shares.predict(X).interval()
    close(shares.predict(X).cdf(low), np.full(len(X), 0.025), "quantile", 1e-6)
    assert bool((high > low).all() and (low > 0).all() and (high < 1).all())
    for theirs, y, message in (
        (gpytorch.likelihoods.BernoulliLikelihood(), rate, r"labels in \{0, 1\}"),
        (gpytorch.likelihoods.PoissonLikelihood(), -rate, "in the support of its distribution, IntegerGreaterThan"),
        (gpytorch.likelihoods.BetaLikelihood(), 1 + rate, "in the support of its distribution, Interval"),
    ):
        with pytest.raises(InputError, match=f"FromGPyTorch needs targets that are {message}"):
            GP(RBF(), theirs).fit(X, y)


@pytest.mark.slow
@pytest.mark.ci
def test_own_parameters_are_learned():
    cases = {
        "df": (StudentT(), F + 0.2 * RANDOM.standard_t(3, 40)), "dispersion": (NegativeBinomial(), COUNTS), "shape": (Gamma(), COUNTS + 0.5),
        "precision": (Beta(), 1 / (1 + np.exp(-F - 0.3 * RANDOM.normal(size=40)))),
        "gaps": (Ordinal(3), np.digitize(F + 0.3 * RANDOM.normal(size=40), [-0.4, 0.5])),
    }  # fmt: skip
    for name, (likelihood, y) in cases.items():
        gp = GP(RBF(0.8), likelihood).fit(X, y + 0.0)
        value = getattr(gp.likelihood_, name).detach()
        assert not torch.equal(value, getattr(likelihood, name).detach()), name
        assert any(name in row.name for row in gp.parameters()), name


@pytest.mark.parametrize(
    ("likelihood", "y", "message"),
    [
        (Bernoulli(), [0, 1, 2, 1], r"labels in \{0, 1\} or in \{-1, 1\}; got 2 in row\(s\) 2"),
        (Bernoulli(), [-1, 0, 1, 1], r"got 0 in row\(s\) 1"),
        (Poisson(), [1, 2.5, -1, 3], r"whole numbers >= 0; got -1, 2.5 in row\(s\) 1, 2"),
        (NegativeBinomial(), [1, 2, 3, 0.5], r"got 0.5 in row\(s\) 3"),
        (Gamma(), [1, 0.0, 2, 3], r"positive numbers; got 0 in row\(s\) 1"),
        (Exponential(), [1, -2, 2, 3], r"positive numbers; got -2 in row\(s\) 1"),
        (Beta(), [0.5, 1.0, 0.2, 0.3], r"strictly between 0 and 1; got 1 in row\(s\) 1"),
        (Ordinal(3), [0, 1, 2, 3], r"whole numbers 0, ..., 2 \(num_classes=3\); got 3 in row\(s\) 3"),
        (Categorical(3), [0, 1, 1.5, 2], r"got 1.5 in row\(s\) 2"),
    ],
)
def test_targets_outside_the_domain(likelihood, y, message):
    for call in (GP(RBF(), likelihood).fit, GP(RBF(), likelihood).condition):
        with pytest.raises(InputError, match=message + ".*another likelihood"):
            call([0.0, 1.0, 2.0, 3.0], y)
    gp = GP(RBF(), Poisson()).condition(X, COUNTS)
    with pytest.raises(InputError, match="whole numbers"):
        gp.update([0.0], [0.5])


@pytest.mark.parametrize("classes", [1, 0, 2.0, "3"])
def test_numbers_of_classes(classes):
    for likelihood in (Ordinal, Categorical):
        with pytest.raises(InputError, match="num_classes, a whole number >= 2, got"):
            likelihood(classes)
        assert repr(likelihood(np.int64(3))) == repr(likelihood(3))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_can_be_fitted(name):
    """With what it learns started from the data."""
    case = LIKELIHOODS[name]
    likelihood = case.build()
    for key in likelihood.choices:  # as if not given
        likelihood.choices[key] = Choice()
    gp = few(case, likelihood)
    assert gp.result_.sites_converged and np.isfinite(gp.result_.objective)
    assert "objective" in gp.summary()


@pytest.mark.parametrize("name", [n for n in LIKELIHOODS if n != "Laplace-sharp"])  # its precisions have five digits
def test_single_precision(name):
    """The search for sites ends at the resolution of the arithmetic."""
    case = LIKELIHOODS[name]
    x = torch.from_numpy(X[::4])
    y = torch.from_numpy(np.sort(np.resize(np.array(case.y[:3], dtype=float), 10)))
    gp, other = (GP(RBF(0.5), case.build()).condition(x.to(d), y.to(d)) for d in (torch.float32, torch.float64))
    assert gp._solved.solution.converged and gp._solved.solution.steps < 60
    close(gp.predict(x, of="f").mean, other.predict(x, of="f").mean, "means", 1e-2)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_predictions_are_numbers(name):
    """The hyperparameters are not differentiated in; inputs that require a gradient are."""
    case = LIKELIHOODS[name]
    gp = few(case, case.build())
    y = torch.tensor(np.resize(np.array(case.y, dtype=float), 3))
    for p, at in ((gp.predict([-1.0, 0.1, 2.0]), y), (gp.loo(), torch.from_numpy(np.resize(case.y, 10)).double())):
        for value in (p.mean, p.variance, p.std, p.log_prob(at), p.cdf(at), p.quantile(0.3), p.sample(2)):
            assert not value.requires_grad and value.numpy().dtype == np.float64
    x = torch.tensor([-1.0, 0.1, 2.0], dtype=torch.float64)
    own = list(gp._solved.likelihood.parameters())
    gradients(lambda x: gp.predict(x).log_prob(y), [x.clone().requires_grad_()], "derivatives in the inputs")
    gp.predict(x.clone().requires_grad_()).log_prob(y).sum().backward()
    assert all(p.grad is None for p in own)


def test_predictions_of_a_wrapped_likelihood_are_numbers():
    p = GP(RBF(), gpytorch.likelihoods.StudentTLikelihood()).condition(X, F).predict([1.0])
    assert not any(v.requires_grad for v in (p.mean, p.std, p.log_prob([1.0])))


def test_densities_where_no_target_can_be():
    for likelihood, y in (
        (Exponential(), -1.0),
        (Gamma(), 0.0),
        (Poisson(), 0.5),
        (NegativeBinomial(), -1.0),
        (Beta(), 1.0),
    ):
        p = GP(RBF(), likelihood).condition(X, np.full(40, 1.0 if y < 1 else 0.5)).predict([0.0, 1.0])
        close(p.log_prob([y, np.nan]), [-np.inf, np.nan], repr(likelihood))


def few(case: LikelihoodCase, likelihood: Likelihood) -> GP:
    """A short fit on 10 rows that hold each target of the case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # of max_iter
        return GP(RBF(0.5), likelihood).fit(X[::4], np.resize(np.array(case.y, dtype=float), 10), max_iter=1)


def test_lists_of_kernels():
    with pytest.raises(
        InputError, match=r"has 2 latent function\(s\), but 3 kernels.*one kernel for all of them, or a list"
    ):
        GP([RBF()] * 3, Heteroscedastic()).fit(X, F)
    gp = GP([RBF(), Matern(1.5)], Heteroscedastic()).fit(X, F + 0.1 * RANDOM.normal(size=40))
    assert [type(k).__name__ for k in gp.kernel_] == ["RBF", "Matern"]
    assert gp.predict(X, of="f").mean.shape == (40, 2) and gp.predict(X).mean.shape == (40,)
    shared = GP([RBF()] * 2, Heteroscedastic()).condition(X, F)
    assert shared.kernel_[0] is not shared.kernel_[1]


@pytest.mark.parametrize("rule", [ExpectationPropagation(), Laplace()], ids=repr)
@pytest.mark.parametrize("likelihood", [Heteroscedastic(), Categorical(2)], ids=repr)
def test_rules_for_one_latent_function(rule, likelihood):
    with pytest.raises(StructureError, match=r"one latent function per datum.*has 2; use rules.Variational\(\)"):
        GP(RBF(), likelihood, rule=rule).fit(X, LABELS)


def test_laplace_where_every_curvature_underflows():
    """A search may try means of +-1,000, where a logit link is as good as linear: that is a state, not a wrong likelihood."""
    X = np.linspace(-2, 2, 8)
    gp = GP(RBF(), Bernoulli("logit"), mean="zero", rule=Laplace())
    problem, _, _ = assemble(gp, as_data(X, X > 0))
    far = torch.linspace(-2, 2, 8).double().sign()[:, None] * 1_000
    marginals = SiteMarginals(far, torch.ones_like(far))
    sites = Laplace().update(problem.likelihood, problem.data, marginals, Sites(0 * far, 0 * far))
    assert float(sites.tau.detach().abs().max()) == 0
    assert bool(torch.isfinite(sites.nu).all())


def test_combinations_without_meaning():
    with pytest.raises(StructureError, match=r"no closed form under rules.Variational.*EPEvidence\(\) or ELBO\(\)"):
        GP(RBF(), Bernoulli(), objective=Evidence()).fit(X, LABELS)
    with pytest.raises(StructureError, match=r"no closed form under rules.Variational"):
        GP(RBF(), Bernoulli(), objective=Evidence()).condition(X, LABELS)
    with pytest.raises(StructureError, match=r"Laplace is piecewise linear in f.*use rules.Variational\(\)"):
        GP(RBF(), gpx.likelihoods.Laplace(), rule=Laplace()).fit(X, F)
    with pytest.raises(InputError, match=r"gaps has shape \[3\], expected \[2\]; give one number, or 2 of them"):
        Ordinal(4, gaps=[1.0, 2.0, 3.0])
    for objective in (EPEvidence(), LeaveOneOut()):
        with pytest.raises(StructureError, match=r"one latent function.*use objectives.ELBO\(\)"):
            GP(RBF(), Heteroscedastic(), objective=objective).fit(X, F)
    for bad in ("explicit", None):
        with pytest.raises(InputError, match="gradient='implicit' or gradient='fixed-sites'"):
            EPEvidence(bad)
    for kappa in (0, -1.0, "2", float("inf"), True):
        with pytest.raises(InputError, match="a number kappa > 0"):
            DataEmphasisedELBO(kappa)
    for power in (0, 1.5, "1", True):
        with pytest.raises(InputError, match="0 < power <= 1"):
            ExpectationPropagation(power)
    with pytest.raises(InputError, match=r"rules.Variational\(\)"):
        GP(RBF(), rule=Variational).fit(X, F)
    with pytest.raises(InputError, match=r"objectives.Evidence\(\)"):
        GP(RBF(), objective="evidence").fit(X, F)
    with pytest.raises(InputError, match="link='probit' or link='logit'"):
        Bernoulli("cauchit")
    with pytest.raises(InputError, match="Poisson has none"):
        GP(RBF(), Poisson()).condition(X, COUNTS).predict(X, noise=0.1)


def test_what_is_chosen_by_auto():
    for likelihood, rule, objective in (
        (None, "auto", Evidence()), (Poisson(), "auto", EPEvidence()), (Categorical(2), "auto", ELBO()),
        (Bernoulli(), Laplace(), Evidence()), (Bernoulli(), ExpectationPropagation(), EPEvidence()),
    ):  # fmt: skip
        gp = GP(RBF(), likelihood, rule=rule).condition(X, LABELS)
        assert gp.objective_ == objective
    for engine in (engines.SparseVariational(5), engines.Coreset(5)):  # not exact: a bound
        for likelihood, rule, objective in (
            (None, "auto", Evidence()), (Bernoulli(), "auto", ELBO()), (Poisson(), ExpectationPropagation(), ELBO()),
            (Bernoulli(), Laplace(), Evidence()),
        ):  # fmt: skip
            assert GP(RBF(), likelihood, rule=rule, engine=engine).condition(X, LABELS).objective_ == objective


@pytest.mark.parametrize("name", ["Bernoulli", "StudentT", "Ordinal", "Categorical", "Laplace"])
def test_save_and_load(tmp_path, name):
    likelihoods = {
        "Bernoulli": (Bernoulli("logit"), LABELS), "StudentT": (StudentT(), F), "Laplace": (gpx.likelihoods.Laplace(), F),
        "Ordinal": (Ordinal(3), np.digitize(F, [-0.4, 0.5])), "Categorical": (Categorical(2), LABELS),
    }  # fmt: skip
    likelihood, y = likelihoods[name]
    gp = GP(RBF(0.8), likelihood, rule=Laplace() if name == "Bernoulli" else "auto").condition(X, y + 0.0)
    gp.save(tmp_path / "model.gpx")
    other = gpx.load(tmp_path / "model.gpx")
    assert torch.equal(other.predict(X).mean, gp.predict(X).mean)
    assert torch.equal(other.predict(X, of="f").variance, gp.predict(X, of="f").variance)
    assert other.log_evidence() == pytest.approx(gp.log_evidence(), abs=1e-9)
    other.update(X[:2] + 0.01, y[:2] + 0.0)
