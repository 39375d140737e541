"""`engines.Features` against dense algebra and `Exact`. Theory: docs/theory/features.md."""

from __future__ import annotations

from dataclasses import replace

import gpytorch
import numpy as np
import pytest
import torch

import gpx
from gpx import GP, engines, kernels, likelihoods, objectives, rules
from gpx.assemble import assemble
from gpx.engines import Exact, Features
from gpx.errors import InputError, StructureError
from gpx.inputs import as_data
from gpx.kernels import RBF, Constant, Cosine, Linear, Matern, Periodic, QuasiPeriodic, RationalQuadratic
from gpx.structure import Draws, feature_map
from gpx.testing import DenseGP, check_engine
from gpx.testing.assertions import close, mean_is
from gpx.testing.cases import points, targets
from gpx.testing.structures import differences

X = points(40, 2)
Y = targets(X)


def rbf():
    return RBF(lengthscale=[0.8, 1.2], outputscale=1.3, ard=True)


FINITE = {
    "line": lambda: Linear(0.7, center=0.2) + Constant(0.4),
    "tones": lambda: Cosine(period=2.1, outputscale=0.9) + Cosine(period=0.7) + Constant(0.3),
    "season": lambda: Periodic(period=1.7, lengthscale=0.8, outputscale=1.3) * (Linear(0.5) + Constant(1.2)),
}


@pytest.mark.parametrize("name", FINITE)
def test_with_finitely_many_features_it_is_exact(name):
    check_engine(Features(64), [FINITE[name]()], tolerance=1e-7)


def model(engine, kernel=None, likelihood=None, **options):
    return GP(kernel or rbf(), likelihood or likelihoods.Gaussian(0.05), mean="zero", engine=engine, **options)


def phi_of(gp, x):
    """The features of a model at x, remade from what is saved with it."""
    engine, plan = gp.engine_, gp._solved.plan
    draws = Draws(torch.Generator(), kept=plan.draws[0])
    with torch.no_grad():
        return feature_map(gp._solved.prior.kernels[0], engine.num_features, x.shape[1], draws)(x)


@pytest.mark.parametrize("kind", ["iid", "orthogonal", "simplex"])
def test_it_is_exact_for_the_prior_of_its_features(kind):
    """The law "weights" of docs/theory/features.md: more features than rows, or fewer."""
    for count in (16, 100):
        gp, new = model(Features(count, kind)).condition(X, Y), points(5, 2, seed=3)
        phi, ahead = phi_of(gp, X), phi_of(gp, new)
        dense = DenseGP((phi @ phi.mT).numpy(), Y.numpy(), np.full(len(X), 0.05))
        close(gp.log_evidence(), dense.log_evidence(), "log evidence", rtol=1e-8)
        mean, covariance = dense.predict((ahead @ phi.mT).numpy(), (ahead @ ahead.mT).numpy())
        got = gp.posterior_.joint(new)
        close(got[0][:, 0], mean, "mean", atol=1e-8)
        close(got[1][0], covariance, "covariance", atol=1e-8)
        close(gp.predict(new, of="f").variance, np.diag(covariance), "variance", atol=1e-8)


@pytest.mark.slow
@pytest.mark.ci
def test_it_converges_to_the_kernel():
    """The evidence, at the rate of its features: four times as many have half the error (a mean over seeds)."""
    exact, errors = model(Exact()).condition(X, Y).log_evidence(), []
    for count in (64, 256, 1024):
        found = [model(Features(count, seed=s)).condition(X, Y).log_evidence() - exact for s in range(12)]
        errors.append(float(np.sqrt(np.mean(np.square(found)))))
    slope = np.polyfit(np.log([64, 256, 1024]), np.log(errors), 1)[0]
    assert slope < -0.35, errors
    mean, far = (model(e).condition(X, Y).predict(points(50, 2, seed=5)) for e in (Exact(), Features(4096)))
    close(far.mean, mean.mean, "mean", atol=0.05)
    close(far.variance, mean.variance, "variance", atol=0.01)


CASES = {
    "Gaussian": (likelihoods.Gaussian, lambda f: f, objectives.Evidence(), "auto"),
    "Gaussian-loo": (likelihoods.Gaussian, lambda f: f, objectives.LeaveOneOut(), "auto"),
    "Bernoulli": (likelihoods.Bernoulli, lambda f: (f > 0.3).double(), objectives.ELBO(), "auto"),
    "Bernoulli-power": (likelihoods.Bernoulli, lambda f: (f > 0.3).double(), objectives.EPEvidence(), rules.ExpectationPropagation(0.5)),
    "Poisson-laplace": (likelihoods.Poisson, lambda f: f.exp().round(), objectives.Evidence(), rules.Laplace()),
    "StudentT": (likelihoods.StudentT, lambda f: f, objectives.ELBO(), "auto"),
    "Heteroscedastic": (likelihoods.Heteroscedastic, lambda f: f, objectives.ELBO(), "auto"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_objectives(name):
    likelihood, of, objective, rule = CASES[name]
    same_gradients(GP(rbf(), likelihood(), engine=Features(12), objective=objective, rule=rule), of(Y), X)


@pytest.mark.parametrize("kernel", [
    RationalQuadratic(alpha=0.7, lengthscale=0.9),
    Matern(nu=0.5, lengthscale=1.3) + Linear(0.4),
    QuasiPeriodic(1.2, lengthscale=0.8, decay=2.1, active_dims=[0]),
    Matern(nu=1.5) * Linear(0.3) * Periodic(period=1.4, lengthscale=0.7),
], ids=repr)  # fmt: skip
def test_gradients_in_hyperparameters(kernel):
    same_gradients(GP(kernel, engine=Features(12)), Y, X)


def same_gradients(gp, y, x):
    problem, objective, _ = assemble(gp, as_data(x, y))
    modules = (problem.prior.mean, *problem.prior.kernels, problem.likelihood)
    raws = [p for m in modules for p in m.parameters() if p.requires_grad]
    grads = torch.autograd.grad(objective(problem.anew()), raws, allow_unused=True)
    for raw, grad in zip(raws, grads, strict=True):
        got = torch.zeros_like(raw) if grad is None else grad
        expected = differences(raw, lambda: objective(problem.anew()), 1e-4)
        close(got.reshape(-1), expected, "gradient of the objective", atol=3e-5)


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Poisson"])
def test_other_likelihoods_are_near_exact(likelihood):
    """With the exact features of a season: the ELBO, and what is predicted."""
    y = {"Bernoulli": (Y > 0.3).double(), "Poisson": Y.exp().round()}[likelihood]
    found = [
        GP(FINITE["tones"](), getattr(likelihoods, likelihood)(), engine=e).condition(X[:, :1], y)
        for e in (Exact(), Features(8))
    ]
    close(found[1].log_evidence(), found[0].log_evidence(), "ELBO", rtol=1e-8)
    pair = [gp.predict(X[:7, :1] + 0.1, of="f") for gp in found]
    close(pair[1].mean, pair[0].mean, "mean", atol=1e-6)
    close(pair[1].variance, pair[0].variance, "variance", atol=1e-6)


def test_blocks_of_rows_add_up(monkeypatch):
    gp = model(Features(12))
    problem, objective, _ = assemble(gp, as_data(X, Y))
    raws = [p for p in problem.prior.kernels[0].parameters() if p.requires_grad]
    value = lambda: objective(problem.anew())  # noqa: E731
    whole = value(), torch.autograd.grad(value(), raws)
    for name, entries in (("BLOCK", 16), ("KEPT", 0)):
        monkeypatch.setattr(f"gpx.engines.projections.{name}", entries)
        close(value(), whole[0], name)
        for got, expected in zip(torch.autograd.grad(value(), raws), whole[1], strict=True):
            close(got, expected, f"gradient: {name}", atol=1e-9)


def test_paths_have_the_moments_of_the_posterior():
    gp, new = model(Features(64)).condition(X, Y), torch.cat([points(3, 2, seed=6), X[:2]])
    mean, covariance = gp.posterior_.joint(new)
    draws = torch.stack([gp.paths(100, seed=seed)(new) for seed in range(50)])
    centred = draws - mean[:, 0]
    mean_is(draws.mean(1), mean[:, 0], "mean of the paths")
    mean_is(centred.mT @ centred / 100, covariance[0], "covariance of the paths")


# ------------------------------------------------------------------------------------------------ as a user has it


@pytest.fixture(scope="module")
def fitted():
    return GP(kernels.Matern(nu=1.5), engine=Features(128)).fit(X, Y)


def test_a_fit_finds_what_an_exact_one_does(fitted):
    exact = GP(kernels.Matern(nu=1.5), engine="Exact").fit(X, Y)
    many = GP(kernels.Matern(nu=1.5), engine=Features(1024)).fit(X, Y)
    assert fitted.result_.converged and many.result_.converged
    close(many.log_evidence(), exact.log_evidence(), "evidence", atol=1.0)
    close(many.predict(X).mean, exact.predict(X).mean, "mean", atol=0.15)


def test_random_numbers_are_those_of_the_seed_and_saved_with_the_model(fitted, tmp_path):
    again = GP(kernels.Matern(nu=1.5), engine=Features(128)).fit(X, Y)
    other = GP(kernels.Matern(nu=1.5), engine=Features(128, seed=1)).fit(X, Y)
    new = points(7, 2, seed=4)
    assert torch.equal(again.predict(new).mean, fitted.predict(new).mean)
    assert not torch.equal(other.predict(new).mean, fitted.predict(new).mean)
    fitted.save(tmp_path / "model.gpx")
    loaded = gpx.load(tmp_path / "model.gpx")
    assert torch.equal(loaded.predict(new).mean, fitted.predict(new).mean)
    assert torch.equal(loaded.predict(new).variance, fitted.predict(new).variance)
    draws = [gp._solved.plan.draws[0] for gp in (fitted, loaded)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def test_an_update_is_conditioning_on_everything(fitted):
    new, y = points(9, 2, seed=8), targets(points(9, 2, seed=8))
    kernel, noise = fitted.kernel_, fitted.likelihood_
    updated = GP(kernel, noise, engine=Features(128)).condition(X, Y).update(new, y)
    whole = GP(kernel, noise, engine=Features(128)).condition(torch.cat([X, new]), torch.cat([Y, y]))
    close(updated.predict(X).mean, whole.predict(X).mean, "mean", atol=1e-8)
    close(updated.log_evidence(), whole.log_evidence(), "evidence", atol=1e-7)


def test_a_fit_begins_with_few_features_on_few_rows():
    engine = Features(4096)
    assert Features(512).rounds(5_000) == (5_000,) and Features(1024).rounds(1_000) == (1_000,)
    rounds = engine.rounds(15_000)
    assert rounds == (3_000, 15_000, 15_000, 15_000)
    sizes = [engine.early(len(rounds) - 1 - k).num_features for k in range(len(rounds))]
    assert sizes == [256, 256, 1024, 4096] and engine.early(0) == engine
    assert Features(10).early(3) == Features(10)


@pytest.mark.slow
def test_rounds_reach_the_optimum_of_all_features(monkeypatch):
    x, once = points(6_100, 1), Features(512)
    y = torch.sin(6 * x[:, 0]) + 0.1 * torch.randn(len(x), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    assert once.rounds(len(x)) == (6_100,)
    single = GP(RBF(), engine=once).fit(x, y)
    monkeypatch.setattr("gpx.engines.features.QUICK", 0)
    assert once.rounds(len(x)) == (3_000, 6_100, 6_100)
    several = GP(RBF(), engine=once).fit(x, y)
    assert several._solved.plan.draws[0][0].shape == (256, 1)
    close(several.log_evidence(), single.log_evidence(), "evidence", atol=0.05)


@pytest.mark.parametrize(("likelihood", "of"), [
    (likelihoods.Gaussian, lambda f: f),
    (likelihoods.Bernoulli, lambda f: (f > 0.3).double()),
])  # fmt: skip
def test_batches_find_what_all_rows_do(likelihood, of):
    x = points(600, 1)
    y, found = of(targets(x)), []
    for engine in (Features(32), Features(32, batch_size=200)):
        objective = "auto" if likelihood is likelihoods.Gaussian else objectives.ELBO()
        gp = GP(RBF(lengthscale=0.7), likelihood(), engine=engine, objective=objective, rule=rules.Variational())
        found.append(gp.fit(x, y).log_evidence())
    close(found[1], found[0], "objective", atol=0.01 * len(x))


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(num_features=7), "num_features, an even number >= 2 .*got 7"),
    (dict(num_features=0), "num_features, an even number >= 2 .*got 0"),
    (dict(num_features=64.0), "num_features, an even number"),
    (dict(kind="sobol"), "kind, one of 'iid', 'orthogonal', 'simplex', 'simplex\\+', got 'sobol'"),
    (dict(seed=None), "seed, an integer, got None"),
    (dict(batch_size=0), "batch_size, a number of rows >= 1"),
])  # fmt: skip
def test_settings_are_checked(arguments, message):
    with pytest.raises(InputError, match=message):
        Features(**arguments)


def test_a_kernel_without_features_is_refused():
    with pytest.raises(StructureError, match="RQKernel has no feature map.*kernels.RBF and kernels.Matern, Linear"):
        GP(gpytorch.kernels.RQKernel(), engine=Features(8)).condition(X, Y)


def test_too_many_features_for_the_memory():
    with pytest.raises(InputError, match="features needs .* GB of memory.*use fewer: engines.Features"):
        model(Features(2_000_000)).condition(X, Y)


def test_it_is_known_by_name():
    gp = GP(rbf(), engine="Features(num_features=64, kind='iid')").condition(X, Y)
    assert gp.engine_ == engines.Features(64, "iid") and replace(gp.engine_, kind="orthogonal").kind == "orthogonal"
    notes = {f.name: f for f in gpx.explain("Matern + Linear").findings}
    assert notes["engine Features"].supported and "without chance" not in notes["engine Features"].note
    assert "without chance" in {f.name: f for f in gpx.explain("Linear").findings}["engine Features"].note
