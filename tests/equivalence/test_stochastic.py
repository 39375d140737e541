"""Fits in batches: what a batch estimates is what all rows say, wherever the rows are. Theory: docs/theory/sparse.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpx import GP, engines, errors, kernels, likelihoods, objectives, rules
from gpx.assemble import assemble
from gpx.engines import SparseVariational
from gpx.inference import stochastic
from gpx.inference.coordinates import Coordinates, trainable_modules
from gpx.inference.rules import elbo_terms
from gpx.inference.stochastic import batches, estimate
from gpx.inference.sweeps import Belief, gathered, lowers_of, once, unseen
from gpx.inputs import as_data
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets

X = points(300, 2)
NOISE = torch.randn(300, generator=torch.Generator().manual_seed(5)).double()

CASES = {
    "Gaussian": (lambda: likelihoods.Gaussian(0.05), lambda f: f + 0.2 * NOISE),
    "Bernoulli": (likelihoods.Bernoulli, lambda f: (f + NOISE > 0).double()),
    "Poisson, with missing targets": (
        likelihoods.Poisson,
        lambda f: torch.where(NOISE.abs() < 1.5, f.exp().round(), torch.nan),
    ),
    "StudentT": (likelihoods.StudentT, lambda f: f + 0.2 * NOISE),
    "Heteroscedastic": (likelihoods.Heteroscedastic, lambda f: f + 0.2 * NOISE),
    "Gaussian, two outputs": (
        lambda: likelihoods.Gaussian(0.05),
        lambda f: torch.stack([f, torch.where(NOISE > 1, torch.nan, f)], 1),
    ),
}


def rbf():
    return kernels.RBF(lengthscale=[0.8, 1.2], outputscale=1.3, ard=True)


def solved(case, **settings):
    """A model whose sites were found by passes over all rows."""
    likelihood, of = CASES[case]
    engine = SparseVariational(12, batch_size=64, **settings)
    return GP(rbf(), likelihood(), engine=engine, objective=objectives.ELBO()).condition(X, of(targets(X)))


@pytest.mark.parametrize("case", CASES)
def test_the_objective_of_batches_is_unbiased(case):
    """Law "unbiased": the mean over the batches of an epoch is the value for all rows, and so are gradient and statistics."""
    gp = solved(case)
    problem = gp._solved.anew()
    modules = trainable_modules(problem.prior.mean, problem.prior.kernels, problem.likelihood)
    raws = Coordinates(modules).raws
    belief = gathered(problem, gp.posterior_.sites)
    count = -(-len(X) // 64)
    found = []
    for _, rows in zip(range(count), batches(len(X), 64, seed=3), strict=False):
        with torch.enable_grad():
            value, statistics = estimate(belief.moved(), rows, count)
            found.append((value.detach(), torch.autograd.grad(value, raws), statistics))
    values, gradients, parts = zip(*found, strict=True)
    close(torch.stack(values).mean(), gp.log_evidence(), "objective", rtol=1e-8)
    whole = once(belief)
    close(whole.value, gp.log_evidence(), "a pass over all rows", rtol=1e-8)
    for column, expected in enumerate(whole.statistics):
        for k, name in enumerate(("gram", "target")):
            mean = torch.stack([p[column][k] for p in parts]).mean(0)
            close(mean, expected[k], f"{name} of column {column}", rtol=1e-8)
    with torch.enable_grad():
        full, _ = estimate(belief.moved(), torch.arange(len(X)), 1)
        for gradient, expected in zip(zip(*gradients, strict=True), torch.autograd.grad(full, raws), strict=True):
            close(torch.stack(gradient).mean(0), expected, "gradient", rtol=1e-8, atol=1e-8 * len(X))


def test_at_the_best_sites_the_gradient_is_that_of_the_profile():
    """Law "envelope": natural parameters that are held fixed do not bias the gradient where the ELBO is stationary in them."""
    gp = solved("Bernoulli")
    problem = gp._solved.anew()
    raws = list(problem.prior.kernels[0].parameters())
    with torch.enable_grad():
        value, _ = estimate(gathered(problem, gp.posterior_.sites).moved(), torch.arange(len(X)), 1)
        plain = objectives.ELBO()(problem)
        for got, expected in zip(torch.autograd.grad(value, raws), torch.autograd.grad(plain, raws), strict=True):
            close(got, expected, "gradient", atol=2e-3 * len(X) ** 0.5)


def test_the_gradient_of_a_batch_is_that_of_its_value():
    gp = solved("Poisson, with missing targets")
    problem, rows = gp._solved.anew(), torch.arange(0, 300, 7)
    belief = gathered(problem, gp.posterior_.sites)
    z = torch.nn.Parameter(problem.plan.inducing[0].detach().clone())
    object.__setattr__(problem.plan, "inducing", (z,))
    raws = [*problem.prior.kernels[0].parameters(), z]
    with torch.enable_grad():
        grads = torch.autograd.grad(estimate(belief.moved(), rows, 6)[0], raws)
    for raw, grad in zip(raws, grads, strict=True):
        flat, step, sides = raw.data.view(-1), 1e-5, []
        start = float(flat[0])
        for sign in (1, -1):
            flat[0] = start + sign * step
            with torch.no_grad():
                sides.append(float(estimate(belief.moved(), rows, 6)[0]))
        flat[0] = start
        close(grad.reshape(-1)[0], (sides[0] - sides[1]) / (2 * step), "gradient", rtol=1e-4, atol=1e-4)


def test_a_belief_keeps_its_sites_when_the_kernel_moves():
    """``exp(lambda . u - u . Lambda u / 2)`` stays: a new outputscale is as if all sites had been gathered under it."""
    gp = solved("Bernoulli")
    problem = gp._solved.anew()
    belief = gathered(problem, gp.posterior_.sites)
    problem.prior.kernels[0].outputscale = 2.9
    with torch.no_grad():
        moved = belief.moved()
        fresh = gathered(problem, gp.posterior_.sites)
    for name in ("gram", "target"):
        got, expected = (getattr(b.statistics[0], name) for b in (moved, fresh))
        close(got, expected, name, rtol=1e-8)


def test_a_pass_under_the_prior_has_its_elbo():
    gp = solved("Bernoulli")
    problem = gp._solved.anew()
    nothing = unseen(problem)
    assert isinstance(nothing, Belief) and len(lowers_of(problem)) == 1
    expected = likelihoods.Bernoulli().expected_log_prob(
        problem.data.y, problem.prior.mean_at(X, 1).detach(), problem.prior.kernels[0].diagonal(X).detach()[:, None]
    )
    close(once(nothing).value, float(expected.sum()), "ELBO of the prior", rtol=1e-8)
    assert float(nothing.divergence()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_passes_find_the_sites_that_the_search_finds(case):
    likelihood, of = CASES[case]
    y, gps = of(targets(X)), []
    for size in (64, None):
        engine = SparseVariational(12, batch_size=size)
        gps.append(GP(rbf(), likelihood(), engine=engine, objective=objectives.ELBO()).condition(X, y))
    passes, search = gps
    assert passes._solved.solution.converged
    assert abs(passes.log_evidence() - search.log_evidence()) < 1e-4 * len(X)
    close(passes.predict(points(9, 2, 1), of="f").mean, search.predict(points(9, 2, 1), of="f").mean, "mean", atol=0.02)
    posterior, problem = passes.posterior_, passes._solved
    with torch.no_grad():  # the statistics at hand are those of the sites
        terms = elbo_terms(problem.likelihood, problem.data, posterior.site_marginals, posterior.sites)
        again = problem.condition(posterior.sites).log_partition + terms
    close(again, passes.log_evidence(), "ELBO", rtol=1e-9)


def test_every_epoch_visits_every_row_once():
    stream = batches(1003, 100, seed=0)
    epochs = [[next(stream) for _ in range(11)] for _ in range(2)]
    for epoch in epochs:
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(1003))
        assert {len(b) for b in epoch} == {91, 92}
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(next(batches(1003, 100, seed=0)), epochs[0][0])


def labels(x, seed=1):
    f = torch.sin(3 * x[:, 0]) + 1.5 * x[:, 1]
    return (f + torch.randn(len(x), generator=torch.Generator().manual_seed(seed)).double() > 0).double()


def test_a_batch_of_all_rows_is_the_plain_fit():
    y, fits = labels(X), []
    for size in (len(X), 10_000, None):
        fits.append(GP(rbf(), likelihoods.Bernoulli(), engine=SparseVariational(8, batch_size=size)).fit(X, y))
    for gp in fits[:2]:
        assert gp.engine_.batch_size in (300, 10_000)
        assert gp.result_.objective == fits[2].result_.objective
        close(gp.log_evidence(), fits[2].log_evidence(), "objective", rtol=1e-6)


@pytest.mark.slow
def test_batches_end_where_all_rows_end():
    x = points(5_000, 2)
    y, found = labels(x), []
    for size in (500, None):
        gp = GP(kernels.RBF(ard=True), likelihoods.Bernoulli(), engine=SparseVariational(40, batch_size=size))
        found.append(gp.fit(x, y))
    batched, plain = found
    assert batched.result_.converged and batched.result_.sites_converged
    close(batched.result_.objective, batched.log_evidence(), "the bound is that of all rows", rtol=1e-9)
    assert batched.log_evidence() > plain.log_evidence() - 0.01 * len(x)


@pytest.mark.parametrize("refine", [True, False])
def test_regression_in_batches(refine):
    x = points(4_000, 2)
    y = torch.sin(3 * x[:, 0]) + 0.3 * torch.randn(4_000, generator=torch.Generator().manual_seed(0)).double()
    gps = [
        GP(kernels.RBF(ard=True), engine=SparseVariational(30, refine=refine, batch_size=size)).fit(x, y)
        for size in (400, None)
    ]
    batched, plain = gps
    assert batched.log_evidence() > plain.log_evidence() - 0.01 * len(x)
    close(batched.likelihood_.noise.detach(), plain.likelihood_.noise.detach(), "noise", rtol=0.03)
    lower, upper = batched.result_.evidence_bounds
    assert lower == pytest.approx(batched.result_.objective) and lower < upper


@pytest.mark.parametrize("failing", [{5}, {0}, set(range(5, 40))])
@pytest.mark.filterwarnings("ignore::gpx.errors.FitWarning")
def test_a_batch_that_cannot_be_computed_is_left_out(failing, monkeypatch):
    calls, real = [], stochastic.estimate

    def sometimes(*arguments):
        calls.append(None)
        if len(calls) - 1 in failing:
            raise errors.NumericalError("no factor")
        return real(*arguments)

    monkeypatch.setattr(stochastic, "estimate", sometimes)
    gp, y = GP(rbf(), likelihoods.Bernoulli(), engine=SparseVariational(8, batch_size=100)), labels(X)
    if failing == {5}:
        gp.fit(X, y, max_iter=4)
        close(gp.result_.objective, gp.log_evidence(), "objective", rtol=1e-9)
    else:
        with pytest.raises(errors.NumericalError, match="no factor"):
            gp.fit(X, y, max_iter=4)


@pytest.mark.filterwarnings("ignore::gpx.errors.FitWarning")  # few epochs
def test_the_same_seed_gives_the_same_fit():
    y, state = labels(X), torch.random.get_rng_state()
    fits = [
        GP(rbf(), likelihoods.Bernoulli(), engine=SparseVariational(8, batch_size=100)).fit(X, y, max_iter=5, seed=s)
        for s in (0, 0, 1)
    ]  # fmt: skip
    assert fits[0].result_.objective == fits[1].result_.objective != fits[2].result_.objective
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_fit_that_runs_out_of_time_has_all_rows():
    y = labels(X)
    with pytest.warns(errors.FitWarning, match="max_seconds"):
        gp = GP(rbf(), likelihoods.Bernoulli(), engine=SparseVariational(8, batch_size=100)).fit(X, y, max_seconds=0)
    assert len(gp.posterior_.sites.nu) == len(X)
    close(gp.result_.objective, gp.log_evidence(), "objective", rtol=1e-9)


def test_models_are_updated_and_saved(tmp_path):
    import gpx

    y = labels(X)
    gp = GP(rbf(), likelihoods.Bernoulli(), engine=SparseVariational(8, batch_size=100)).condition(X[:250], y[:250])
    gp.update(X[250:], y[250:])
    assert gp._solved.solution.converged
    gp.save(tmp_path / "model.gpx")
    again = gpx.load(tmp_path / "model.gpx")
    assert again.engine_ == gp.engine_
    close(again.predict(X[:5]).mean, gp.predict(X[:5]).mean, "mean")


REFUSED = {
    "known noise": (likelihoods.Gaussian(torch.ones(300)), {}, "cannot be mini-batched.*bound to the rows"),
    "EP objective": (
        likelihoods.Bernoulli(), dict(objective=objectives.EPEvidence()), r"EPEvidence.*use objectives.ELBO\(\)",
    ),
    "leave-one-out": (likelihoods.Gaussian(), dict(objective=objectives.LeaveOneOut()), "LeaveOneOut.*leave batch_size out"),
    "rule": (
        likelihoods.Bernoulli(), dict(objective=objectives.ELBO(), rule=rules.ExpectationPropagation()), r"rules.Variational\(\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_mini_batched_is_refused(case):
    likelihood, parts, message = REFUSED[case]
    with pytest.raises(errors.StructureError, match=message):
        GP(rbf(), likelihood, engine=SparseVariational(8, batch_size=100), **parts).fit(X, labels(X))


def test_passes_refuse_other_rules():
    engine = SparseVariational(8, batch_size=100)
    with pytest.raises(errors.StructureError, match=r"Laplace.*rules.Variational\(\)"):
        GP(rbf(), likelihoods.Bernoulli(), rule=rules.Laplace(), engine=engine).condition(X, labels(X))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "all"])
def test_batch_sizes_are_checked(size):
    with pytest.raises(errors.InputError, match="batch_size"):
        engines.SparseVariational(batch_size=size)


def test_more_inducing_inputs_than_rows_are_reduced():
    gp = GP(rbf(), engine=SparseVariational(500)).condition(X[:20], targets(X[:20]))
    assert len(gp._solved.plan.inducing[0]) == 20
    assert "500 inducing inputs are reduced to 20" in gp.engine_reason_
    assert "reduced" not in GP(rbf(), engine=SparseVariational(5)).condition(X[:20], targets(X[:20])).engine_reason_
    y = targets(X[:20])
    reduced, exact = (GP(rbf(), engine=e).condition(X[:20], y).log_evidence() for e in (gp.engine, engines.Exact()))
    close(reduced, exact, "an inducing input per row", rtol=1e-6)


def test_very_many_rows_are_seen_in_batches(monkeypatch):
    monkeypatch.setattr("gpx.engines.auto.BATCHED", (100, 4_096))
    y = targets(X)
    data = as_data(X, y)
    of = lambda likelihood: assemble(GP(rbf(), likelihood), data)[0].engine.batch_size  # noqa: E731
    assert of(likelihoods.Gaussian()) == 4_096
    assert of(likelihoods.Gaussian(torch.linspace(0.1, 1, 300))) is None


@pytest.mark.filterwarnings("ignore::gpx.errors.FitWarning")
def test_a_map_of_a_file_and_memory_are_the_same(tmp_path):
    np.save(tmp_path / "X.npy", X.numpy())
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    y, fits = labels(X), []
    for x in (X, mapped):
        engine = SparseVariational(8, batch_size=100)
        fits.append(GP(kernels.RBF(ard=True), likelihoods.Bernoulli(), engine=engine).fit(x, y, max_iter=4))
    close(fits[1].result_.objective, fits[0].result_.objective, "objective", rtol=1e-12)
    close(fits[1].predict(mapped).mean, fits[0].predict(X).mean, "predictions", rtol=1e-12)
    data = assemble(fits[1], as_data(mapped, y))[0].data
    assert data.x.data_ptr() == mapped.ctypes.data, "the file was copied"
