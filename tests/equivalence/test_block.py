"""The block-circulant engine and the scalar filters below it, against dense references. Theory: docs/theory/block.md."""

from __future__ import annotations

import gpytorch
import numpy as np
import pytest
import torch

import gpx
from gpx import InputError, StructureError, engines, likelihoods, structural_equation
from gpx.inputs import as_data
from gpx.kernels import RBF, BlockQuasiPeriodic, Periodic
from gpx.linalg.ar1 import Filter, NoiseFree, filtered_plainly, smooth, statistics
from gpx.linalg.circulant import eigenvalues, first_row, hartley
from gpx.posterior import make_generator
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.testing.assertions import close, copies, gradients, mean_is

DOUBLE = torch.float64


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def number(value):
    return torch.tensor(value, dtype=DOUBLE, requires_grad=True)


def test_hartley_diagonalises_circulants():
    """Section 2."""
    for p in (1, 2, 5, 6):
        half = random(p // 2 + 1)
        row = torch.cat([half, half[1 : (p + 1) // 2].flip(0)])
        row[0] += 9
        basis = hartley(torch.eye(p, dtype=DOUBLE))
        matrix = row[(torch.arange(p)[:, None] - torch.arange(p)) % p]
        close(basis @ basis, torch.eye(p), "its own inverse", atol=1e-14)
        close(basis @ torch.diag(eigenvalues(row)) @ basis, matrix, "eigenvalues", rtol=1e-14)
        close(first_row(eigenvalues(row)), row, "first row", rtol=1e-14)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("omega", [-0.6, 0.0, 0.9])
def test_the_filter_is_its_plain_form_and_so_is_its_adjoint(both, omega):
    """Section 4."""
    inputs = [random(6, 2, 5).requires_grad_(), (random(5).square() + 0.1).requires_grad_(), number(omega), number(0.3)]
    fast, plain = Filter.apply(*inputs, both), filtered_plainly(*inputs, both)
    weights = [random(*part.shape, seed=i) for i, part in enumerate(plain)]
    totals = [sum((w * part).sum() for w, part in zip(weights, parts, strict=True)) for parts in (fast, plain)]
    close(totals[0], totals[1], "filter", rtol=1e-13)
    for got, expected in zip(*(torch.autograd.grad(t, inputs) for t in totals), strict=True):
        close(got, expected, "adjoint of the filter", rtol=1e-11)
    gradients(lambda *args: Filter.apply(*args, both), inputs, "derivatives of the filter")


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_sufficient_statistics_give_the_filter_without_noise(steps):
    """Section 3."""
    z, spectrum, omega = random(steps, 2, 5), (random(5).square() + 0.1).requires_grad_(), number(-0.7)
    value = NoiseFree.apply(spectrum, omega, statistics(z), 2, steps)
    plain = filtered_plainly(z, spectrum, omega, torch.zeros((), dtype=DOUBLE), False)[0]
    close(value, plain, "noise-free log density", rtol=1e-12)
    pairs = (torch.autograd.grad(v, [spectrum, omega]) for v in (value, plain))
    for got, expected in zip(*pairs, strict=True):
        close(got, expected, "noise-free gradient", rtol=1e-10)


def test_smoothing_over_gaps():
    """Section 4: means, covariances and ``C^-1`` at seen, unseen and skipped steps."""
    steps, seen, p = torch.tensor([0, 1, 3, 4, 8, 9]), [True, False, True, True, True, False], 3
    spectrum, omega, noise, z = random(p).square() + 0.1, number(-0.6), number(0.3), random(6, 2, p)
    found = smooth(z, seen, steps.diff().tolist(), spectrum, omega, noise)
    rows = [i for i, known in enumerate(seen) if known]
    for j in range(p):
        prior = omega ** (steps[:, None] - steps).abs() * spectrum[j] / (1 - omega**2)
        inverse = torch.linalg.inv(prior[rows][:, rows] + noise * torch.eye(len(rows), dtype=DOUBLE))
        close(found.mean[:, :, j], prior[:, rows] @ inverse @ z[rows, :, j], "mean", rtol=1e-12)
        posterior = prior - prior[:, rows] @ inverse @ prior[rows]
        close(found.variance[:, j], posterior.diagonal(), "variance", rtol=1e-12)
        for i in range(6):
            close(found.covariance_with(i)[:, j], posterior[:, i], "covariance", atol=1e-13)
        close(found.alpha[rows][:, :, j], inverse @ z[rows, :, j], "alpha", rtol=1e-12)
        close(found.precision[rows, j], inverse.diagonal(), "precision", rtol=1e-12)


def posteriors(first, n, p, omega, precision=4.0, seed=0):
    """The same problem by both engines, with its leaves; steps in random order, two columns."""
    generator = torch.Generator().manual_seed(seed)
    x = (first + torch.randperm(n, generator=generator)).double()[:, None]
    kernel = BlockQuasiPeriodic(p, omega, within=Periodic(lengthscale=0.6, outputscale=1.3))
    nu, tau = (precision * random(n, 2, seed=n)).requires_grad_(), number(precision)
    prior, data = Prior(gpytorch.means.ZeroMean(), (kernel,)), as_data(x, nu.detach() / precision)
    leaves = [p for p in kernel.parameters() if p.requires_grad] + [tau, nu]
    found = []
    for engine in (engines.BlockCirculant(), engines.Exact()):
        found.append(engine.condition(prior, engine.plan(prior, data), {}, Sites(nu, tau.expand(n, 2))))
    return *found, leaves


def everything(posterior, leaves, x, along):
    """All that a posterior says, and gradients of what has some."""
    values = {"log density": posterior.log_density, "log partition": posterior.log_partition}
    values["slope"] = posterior.slope(along, 0.3)
    loo = posterior.leave_one_out()
    values["loo"] = (loo[0].square() + loo[1].log()).sum()
    for name, value in list(values.items()):
        wanted = leaves if name.startswith("log") else leaves[:-2]
        grads = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
        values |= {
            f"gradient {i} of {name}": torch.zeros_like(wanted[i]) if g is None else g for i, g in enumerate(grads)
        }
    marginals = posterior.site_marginals
    pairs = {
        "marginals": posterior.marginals(x), "joint": posterior.joint(x), "leave-one-out": loo,
        "site marginals": (marginals.mean, marginals.variance), "response": posterior.response(along),
    }  # fmt: skip
    return values | {f"{name} {i}": part for name, pair in pairs.items() for i, part in enumerate(pair)}


@pytest.mark.parametrize("p", [1, 2, 5])
@pytest.mark.parametrize("first", [0, -3, 7])
@pytest.mark.parametrize("n", [1, 2, 3, 13])
def test_the_engine_is_exact(p, first, n):
    """Complete and incomplete blocks at either end, none at all, unsorted steps, forecasts and hindcasts."""
    omega = 0.6 if n % 2 else -0.8
    block, exact, leaves = posteriors(first, n, p, omega)
    x = torch.tensor([first - 9, first - p, first, first + n // 2, first + n - 1, first + n + 2, first + n + 3 * p])
    along = Sites(random(n, 2, seed=1), random(n, 2, seed=2))
    got, expected = (everything(q, leaves, x.double()[:, None], along) for q in (block, exact))
    for name, value in expected.items():
        largest = max(1e-6, float(value.detach().abs().max()) if value.numel() else 0.0)
        close(got[name], value, f"{name} (p={p}, first={first}, n={n})", atol=1e-8 * largest)


def test_update_and_with_sites():
    block, _, leaves = posteriors(3, 17, 5, 0.4)
    x, sites = block.plan.x, Sites(*(v.detach() for v in (block.sites.nu, block.sites.tau)))
    rows = x[:, 0].argsort()
    first, second = rows[:11], rows[11:]
    engine, prior = engines.BlockCirculant(), block.prior
    start = engine.condition(prior, engine.plan(prior, as_data(x[first], sites.nu[first])), {}, _rows(sites, first))
    updated = start.update(x[second], _rows(sites, second))
    close(updated.log_density, block.log_density, "update", rtol=1e-12)
    close(updated.marginals(x)[0], block.marginals(x)[0], "update", rtol=1e-10)
    other = Sites(sites.nu + 1, 2 * sites.tau)
    fresh = engine.condition(prior, block.plan, {}, other)
    close(block.with_sites(other).log_partition, fresh.log_partition, "with_sites", rtol=1e-12)


def _rows(sites, index):
    return Sites(sites.nu[index], sites.tau[index])


def test_without_targets_the_posterior_is_the_prior():
    engine, kernel, x = engines.BlockCirculant(), BlockQuasiPeriodic(3, 0.5), torch.arange(8.0, dtype=DOUBLE)[:, None]
    prior, nothing = Prior(gpytorch.means.ZeroMean(), (kernel,)), torch.zeros(8, 1, dtype=DOUBLE)
    posterior = engine.condition(prior, engine.plan(prior, as_data(x, nothing)), {}, Sites(nothing, nothing))
    close(posterior.joint(x)[1][0], kernel.matrix(x), "prior covariance", rtol=1e-12)
    assert float(posterior.log_density) == float(posterior.log_partition) == 0.0


def test_paths_are_functions_with_the_posterior_as_their_law():
    block, _, _ = posteriors(2, 12, 4, -0.7, precision=2.0)
    x = torch.tensor([-6.0, 1.0, 2.0, 7.0, 13.0, 20.0], dtype=DOUBLE)[:, None]
    draw = block.paths(4000, make_generator(3))
    close(draw(x[2:4]), draw(x)[:, 2:4], "the same function", rtol=1e-12)
    draws, (mean, covariance) = draw(x)[..., 0], block.joint(x)
    mean_is(draws, mean[:, 0], "mean of paths")
    centred = draws - mean[:, 0].detach()
    mean_is(centred[:, :, None] * centred[:, None, :], covariance[0], "covariance of paths")


NOISELESS = 1e-20


def noiseless():
    return likelihoods.Gaussian(NOISELESS).set(noise=dict(fixed=True))


@pytest.mark.parametrize("n", [40, 47])
def test_without_noise_evidence_and_gradient_are_those_of_exact(n):
    """Sufficient statistics in place of filters, for a fixed noise that is negligible."""
    kernel = BlockQuasiPeriodic(10, 0.4, within=Periodic(lengthscale=0.3, outputscale=1.2))
    y, found = random(n).numpy(), []
    for engine in (engines.BlockCirculant(), engines.Exact()):
        gp = gpx.GP(kernel, noiseless(), mean="zero", engine=engine).condition(np.arange(n), y)
        problem = gp._fitted().anew()
        leaves = [p for p in problem.prior.kernels[0].parameters() if p.requires_grad]
        value = gp.objective_(problem)
        found.append((value, *torch.autograd.grad(value, leaves)))
    for got, expected in zip(*found, strict=True):
        close(got, expected, "noise-free evidence", rtol=1e-8)
    shifted = gpx.GP(kernel, noiseless(), mean="zero").condition(np.arange(n), y + 0.25)
    learned = gpx.GP(kernel, noiseless(), mean=_mean(-0.25)).condition(np.arange(n), y)
    assert learned.log_evidence() == pytest.approx(shifted.log_evidence(), rel=1e-10)


def _mean(value):
    mean = gpytorch.means.ConstantMean().double()
    mean.initialize(constant=value)
    return mean


def test_a_fit_takes_the_engine_and_finds_what_exact_finds():
    y = (
        gpx.GP(BlockQuasiPeriodic(6, 0.7, within=Periodic(lengthscale=0.8)))
        .condition([0], [0.0])
        .paths(1)(np.arange(63))[0]
    )
    y = y + 0.3 * random(63)
    fits = [gpx.GP(BlockQuasiPeriodic(6), engine=e).fit(np.arange(63), y) for e in ("auto", "Exact")]
    assert fits[0].engine_ == engines.BlockCirculant() and "circulant" in fits[0].engine_reason_
    assert fits[0].log_evidence() == pytest.approx(fits[1].log_evidence(), abs=1e-4)
    assert fits[0].loo().log_density.sum() == pytest.approx(fits[0].loo().log_density.sum())
    long = gpx.GP(BlockQuasiPeriodic(6)).fit(np.arange(900), random(900))
    assert long.engine_ == engines.BlockCirculant()


def test_single_precision():
    """In plain torch, and close to double precision."""
    x = torch.arange(43, dtype=torch.float32)
    gp, double = (
        gpx.GP(BlockQuasiPeriodic(9)).condition(x.to(t), torch.sin(0.7 * x).to(t)) for t in (torch.float32, DOUBLE)
    )
    assert gp.engine_ == engines.BlockCirculant() and gp.predict(x[:2]).mean.dtype == torch.float32
    assert gp.log_evidence() == pytest.approx(double.log_evidence(), rel=1e-4)
    close(gp.predict(x + 20).std, double.predict(x + 20).std, "standard deviations", rtol=1e-3)


X = np.arange(24)


@pytest.mark.parametrize(
    ("kernel", "x", "y", "likelihood", "advice"),
    [
        (RBF(), X, X, None, r"RBF has no block-circulant form: use kernels.BlockQuasiPeriodic, or engines.Exact\(\)"),
        (
            BlockQuasiPeriodic(4),
            X,
            np.where(X == 3, np.nan, X),
            None,
            r"1 of 24 are missing; use engines.StateSpace\(\) or engines.Exact\(\)",
        ),
        (
            BlockQuasiPeriodic(4),
            np.delete(X, 5),
            np.delete(X, 5),
            None,
            r"step 4 is followed by 6; use engines.StateSpace\(\) or engines.Exact\(\)",
        ),
        (
            BlockQuasiPeriodic(4),
            [0, 1, 1, 2],
            [0.0, 1, 2, 3],
            None,
            r"step 1 occurs more than once; use engines.StateSpace\(\) or engines.Exact\(\)",
        ),
        (
            BlockQuasiPeriodic(4),
            X,
            X,
            likelihoods.Gaussian(0.1 + X),
            r"same Gaussian noise at every step.*engines.StateSpace\(\) or engines.Exact\(\)",
        ),
        (
            BlockQuasiPeriodic(4),
            X,
            X,
            likelihoods.Poisson(),
            r"same Gaussian noise at every step.*engines.StateSpace\(\) or engines.Exact\(\)",
        ),
    ],
)
def test_what_the_engine_refuses(kernel, x, y, likelihood, advice):
    """With advice that works: `auto` follows it."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    with pytest.raises(StructureError, match=advice):
        gpx.GP(kernel, likelihood, engine=engines.BlockCirculant()).condition(x, y)
    assert gpx.GP(kernel, likelihood).condition(x, y).engine_ == engines.Exact()


def test_the_engine_is_settings_only():
    assert all(other == engines.BlockCirculant() for other in copies(engines.BlockCirculant()).values())


def test_the_lean_likelihood_is_that_of_the_model():
    y = random(40).numpy()
    for p in (1, 2, 5, 8):
        likelihood, at = structural_equation.Likelihood.of(y, p), np.array([0.4, 0.3, 1.2])
        value, gradient = likelihood(*at)
        kernel = BlockQuasiPeriodic(p, at[0], within=Periodic(p, at[1], at[2]))
        assert value == pytest.approx(
            gpx.GP(kernel, noiseless(), mean="zero").condition(np.arange(40), y).log_evidence()
        )
        steps = 1e-6 * np.eye(3)
        close(
            gradient,
            [(likelihood(*(at + e))[0] - likelihood(*(at - e))[0]) / 2e-6 for e in steps],
            "gradient",
            rtol=1e-6,
        )


def simulated(k, seed, p=10, omega=0.5):
    random_state = np.random.default_rng(seed)
    R = Periodic(p, 2**0.5 / 5).matrix(np.arange(p)).detach().numpy()
    z = random_state.standard_normal((k, p)) @ np.linalg.cholesky(R).T
    blocks = [z[0] / np.sqrt(1 - omega**2)]
    for innovation in z[1:]:
        blocks.append(omega * blocks[-1] + innovation)
    return np.concatenate(blocks)


def test_published_and_exact_estimators_agree_for_many_blocks():
    y = simulated(400, 0)
    found = {m: structural_equation.estimate(y, 10, m) for m in structural_equation.METHODS}
    for estimate in found.values():
        assert (
            abs(estimate.correlation - 0.5) < 0.07
            and abs(estimate.theta - 5) < 1
            and abs(estimate.outputscale - 1) < 0.15
        )
        assert estimate.log_likelihood <= found["exact"].log_likelihood
    gp = gpx.GP(found["exact"].kernel(), noiseless(), mean="zero").fit(np.arange(4000), y, priors=None)
    assert gp.log_evidence() == pytest.approx(found["exact"].log_likelihood, abs=1e-3)


@pytest.mark.parametrize("method", structural_equation.METHODS)
@pytest.mark.parametrize("unit", [1e6, 1e-3, 1e-6])
def test_estimates_do_not_depend_on_the_unit(method, unit):
    y = simulated(20, 0)
    one, other = (structural_equation.estimate(u * y, 10, method) for u in (1.0, unit))
    assert other.correlation == pytest.approx(one.correlation, rel=1e-5)
    assert other.lengthscale == pytest.approx(one.lengthscale, rel=1e-3)
    assert other.outputscale / unit**2 == pytest.approx(one.outputscale, rel=1e-3)
    assert other.log_likelihood + len(y) * np.log(unit) == pytest.approx(one.log_likelihood, abs=1e-3)


@pytest.mark.parametrize("seed", [57, 67])
def test_fits_do_not_stop_below_a_cliff(seed):
    """Without noise the evidence falls by many orders of magnitude where the innovations become smooth."""
    y = simulated(20, seed)
    best = structural_equation.estimate(y, 10).log_likelihood
    gp = gpx.GP(BlockQuasiPeriodic(10), noiseless(), mean="zero").fit(np.arange(200), y, priors=None)
    assert gp.log_evidence() > best - 0.05


@pytest.mark.parametrize(
    ("y", "period", "method", "advice"),
    [
        (np.zeros(9), 4, "exact", "complete blocks, got shape .* cut the rest off"),
        (np.zeros(8), 2.5, "exact", "integer period"),
        (np.full(8, np.nan), 4, "exact", r"8 missing value\(s\).*engines.Exact"),
        (np.ones(4), 4, "exact", "at least two blocks of 4 steps, got 1"),
        (np.ones(8), 4, "moments", "'exact', 'iterative'"),
        (np.tile(np.arange(4.0), 3), 4, "iterative", "multiples of each other.*method='exact', or another period"),
        (np.zeros(12), 4, "iterative-circulant", "multiples of each other.*method='exact', or another period"),
    ],
)
def test_what_the_lean_fit_refuses(y, period, method, advice):
    with pytest.raises(InputError, match=advice):
        structural_equation.estimate(y, period, method)


def test_the_period_is_chosen_by_evidence():
    y = simulated(12, 3, p=7, omega=0.9)
    table = structural_equation.select_period(np.arange(len(y)), y, range(5, 10))
    assert table.best == 7 and table.model is table.models[2] and "best: 7" in str(table)
    with pytest.raises(InputError, match=r"such as range\(2, 13\)"):
        structural_equation.select_period(np.arange(len(y)), y, [])


def test_bootstrap():
    y = simulated(12, 1)
    gp = gpx.GP(BlockQuasiPeriodic(10), noiseless(), mean="zero").fit(np.arange(120), y, priors=None)
    before = gp.log_evidence()
    found = gp.bootstrap(30, seed=0, verbose=False)
    assert found.names[0] == "kernel.correlation" and found.draws.shape == (30, 3)
    assert found.estimate[0] == pytest.approx(float(gp.kernel_.correlation.detach()))
    assert 0.04 < found.standard_errors[0] < 0.16 and gp.log_evidence() == before
    for method in ("percentile", "bias-corrected"):
        low, high = found.interval(0.9, method)[0]
        assert low < found.estimate[0] < high
    assert np.array_equal(gp.bootstrap(30, seed=0).draws, found.draws) and "kernel.correlation" in str(found)
    exact = gpx.GP("RBF", engine="Exact").fit(np.arange(9), np.sin(np.arange(9.0)))
    assert exact.bootstrap(3).draws.shape == (3, 4)


def test_what_a_bootstrap_refuses():
    gp = gpx.GP("RBF").condition([0, 1, 2], [0.0, 1.0, 0.0])
    with pytest.raises(InputError, match="n >= 2 data sets, got 1; 200"):
        gp.bootstrap(1)
    with pytest.raises(InputError, match="'percentile', 'bias-corrected'"):
        gp.bootstrap(2).interval(0.9, "studentised")
    with pytest.raises(InputError, match=r"write 0.95"):
        gp.bootstrap(2).interval(95)
    with pytest.raises(StructureError, match=r"not Poisson: use the standard errors of gp.parameters\(\)"):
        gpx.GP("RBF", likelihoods.Poisson()).condition([0, 1, 2], [0, 1, 0]).bootstrap(2)
