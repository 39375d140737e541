"""StateSpace is Exact in linear time: evidence, gradients, predictions, and every likelihood, on awkward stamps."""

from __future__ import annotations

import gpytorch
import numpy as np
import pytest
import torch

import gpx
from gpx import GP, likelihoods, objectives
from gpx.errors import StructureError
from gpx.kernels import BlockQuasiPeriodic, Constant, Cosine, HidaMatern, Linear, Matern, Periodic, QuasiPeriodic, Same
from gpx.testing.assertions import close

KERNELS = {
    **{f"order-{p}": lambda p=p: Matern(nu=p + 0.5, lengthscale=3.0, outputscale=1.3) for p in range(7)},
    "mixture": lambda: (
        HidaMatern(0, 2.0, 0.1) + HidaMatern(1, 5.0, 0.3, 0.5) + HidaMatern(2, 30.0, 0.02, 2.0)
    ),
    "sum": lambda: Matern(nu=2.5, lengthscale=20.0) + Matern(nu=0.5, lengthscale=0.7) + Linear(0.01, 3.0) + Constant(2.0),
    "product": lambda: Matern(nu=1.5, lengthscale=4.0) * Matern(nu=2.5, lengthscale=9.0) * Cosine(period=5.0),
    "quasi-periodic": lambda: QuasiPeriodic(period=6.0, lengthscale=1.5, decay=20.0),
    "seasonal": lambda: Periodic(period=6.0, lengthscale=2.0) * Matern(nu=0.5, lengthscale=30.0) + Matern(nu=1.5),
}  # fmt: skip


def awkward(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unsorted irregular stamps with duplicates and gaps of 1e-9, and noisy targets, some of them missing."""
    random = np.random.default_rng(seed)
    x = random.uniform(0, n / 20, n)
    x[10:20] = x[:10]
    x[20:30] = x[:10] + 1e-9
    y = np.sin(x) + 0.1 * x**0.5 + 0.3 * random.standard_normal(n)
    y[40:45] = np.nan
    return x, y


def pair(kernel, likelihood, x, y, **options):
    return [GP(kernel, likelihood, engine=e, **options).condition(x, y) for e in ("Exact", "StateSpace")]


def gradient(gp) -> torch.Tensor:
    """Of the objective, in all raw hyperparameters."""
    problem = gp._fitted().anew()
    modules = (*problem.prior.kernels, problem.likelihood, problem.prior.mean)
    raws = [p for m in modules for p in m.parameters() if p.requires_grad]
    with torch.enable_grad():
        grads = torch.autograd.grad(gp.objective_(problem), raws, allow_unused=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.reshape(-1) for g, p in zip(grads, raws, strict=True)])


def check_equal(build, x, y, new) -> None:
    exact, fast = pair(build(), likelihoods.Gaussian(0.1), x, y)
    close(fast.log_evidence(), exact.log_evidence(), "log evidence", rtol=1e-8)
    for of in ("f", "y"):
        a, b = (gp.predict(new, of=of) for gp in (exact, fast))
        scale = float(a.mean.abs().max()), float(a.variance.max())
        close(b.mean, a.mean, "means", atol=1e-8 * scale[0], rtol=0.0)
        close(b.variance, a.variance, "variances", atol=1e-8 * scale[1], rtol=0.0)
    a, b = gradient(exact), gradient(fast)
    close(b, a, "gradient", atol=1e-7 * float(a.abs().max()), rtol=0.0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("n", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_equal_to_exact(n, name):
    x, y = awkward(n)
    check_equal(KERNELS[name], x, y, np.concatenate([np.linspace(-5, n / 20 + 5, 50), x[:5]]))


def gappy_steps(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Unsorted steps, some of them left out, one of them twice, and targets, some of them missing."""
    random = np.random.default_rng(0)
    x = random.choice(np.arange(-20.0, 1.3 * n), n, replace=False)
    y = np.sin(2 * np.pi * x / 6) + 0.3 * random.standard_normal(n)
    x[1], y[7:13] = x[0], np.nan
    return x, y


@pytest.mark.parametrize("correlation", [0.9, -0.6])
def test_blocks_equal_to_exact(correlation):
    x, y = gappy_steps(200)
    check_equal(lambda: BlockQuasiPeriodic(6, correlation) + Constant(0.5), x, y, np.arange(-30, 280))


TARGETS = {
    "Poisson": (likelihoods.Poisson, lambda f, random: random.poisson(np.exp(f))),
    "Bernoulli": (likelihoods.Bernoulli, lambda f, random: (f + random.standard_normal(len(f)) > 0).astype(float)),
    "StudentT": (lambda: likelihoods.StudentT(4.0, 0.3), lambda f, random: f + 0.3 * random.standard_t(4, len(f))),
}


@pytest.mark.parametrize("objective", ["ELBO", "EPEvidence"])
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("blocks", [False, True])
def test_likelihoods(blocks, name, objective):
    """The objective to 1e-6 and its gradient, which is that of Exact and hence of finite differences, to 1e-5."""
    random = np.random.default_rng(1)
    x, kernel = random.uniform(0, 20, 150), Matern(nu=1.5, lengthscale=2.0) + Linear(0.01)
    if blocks:
        x, kernel = gappy_steps(150)[0], BlockQuasiPeriodic(5, 0.7)
    build, draw = TARGETS[name]
    y = draw(np.sin(x), random)
    exact, fast = pair(kernel, build(), x, y, objective=getattr(objectives, objective)())
    close(fast.log_evidence(), exact.log_evidence(), objective, atol=1e-6, rtol=0.0)
    a, b = gradient(exact), gradient(fast)
    close(b, a, "gradient", atol=1e-5 * float(a.abs().max()), rtol=0.0)
    for p, q in zip(
        *((gp.predict(x[:9] + (1.0 if blocks else 0.1)).mean, gp.loo().log_density[:9]) for gp in (exact, fast)),
        strict=True,
    ):
        close(q, p, "predictions", atol=1e-6)


def test_the_implicit_gradient_is_that_of_the_solved_objective():
    random = np.random.default_rng(2)
    x = random.uniform(0, 20, 80)
    y = random.poisson(np.exp(np.sin(x)))
    step, values = 1e-5, []
    for lengthscale in (2.0 * np.exp(step), 2.0 * np.exp(-step)):
        gp = GP(Matern(nu=1.5, lengthscale=lengthscale), likelihoods.Poisson(), engine="StateSpace").condition(x, y)
        values.append(gp.log_evidence())
    gp = GP(Matern(nu=1.5, lengthscale=2.0), likelihoods.Poisson(), engine="StateSpace").condition(x, y)
    raw = gp._fitted().prior.kernels[0].raw_lengthscale
    problem = gp._fitted().anew()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(gp.objective_(problem), raw)
        lengthscale = gp._fitted().prior.kernels[0].lengthscale
        (chain,) = torch.autograd.grad(lengthscale.sum(), raw)
    assert float(slope / chain * 2.0) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_regular_grids():
    """Where the covariance of the filter settles, before a hole and after it."""
    x = 0.1 * np.arange(500)
    y = np.sin(x) + 0.3 * np.random.default_rng(0).standard_normal(500)
    y[300:304] = np.nan
    check_equal(
        lambda: Matern(nu=1.5, lengthscale=0.7) + Matern(nu=0.5, lengthscale=3.0), x, y, np.linspace(-1, 51, 23)
    )


def ragged(lengths=(60, 7, 90, 1), seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Series of different lengths in one shuffled table: times and labels, and targets, one of them missing."""
    random = np.random.default_rng(seed)
    x = np.concatenate([np.c_[random.uniform(0, 5, n), np.full(n, k)] for k, n in enumerate(lengths)])
    y = np.sin(x[:, 0] + x[:, 1]) + 0.1 * random.standard_normal(len(x))
    y[3] = np.nan
    order = random.permutation(len(x))
    return x[order], y[order]


def test_ragged_series():
    """A label as a factor: independent series of different lengths in one call, as Exact has them."""
    (x, y), new = ragged(), np.c_[np.linspace(-1, 6, 12), np.arange(12) % 6]
    times = {"active_dims": [0]}
    part = lambda: Matern(nu=1.5, **times) + Linear(0.3, **times) * Cosine(period=3.0, **times) + 0.5  # noqa: E731
    check_equal(lambda: part() * Same(active_dims=[1]), x, y, new)
    noise, options = likelihoods.Gaussian(0.1), {"engine": "StateSpace", "mean": "zero"}
    together = GP(part() * Same(active_dims=[1]), noise, **options).condition(x, y)
    total = 0.0
    for label in range(4):
        rows, at = x[:, 1] == label, new[:, 1] == label
        alone = GP(part(), noise, **options).condition(x[rows], y[rows])
        total += float(alone.log_evidence())
        close(together.predict(new[at]).mean, alone.predict(new[at]).mean, "mean", atol=1e-10)
    close(together.log_evidence(), total, "sum of evidences", rtol=1e-10)
    exact = GP(part() * Same(active_dims=[1]), noise, engine="Exact", mean="zero").condition(x, y)
    points = torch.as_tensor(new)
    for a, b in zip(together.posterior_.joint(points), exact.posterior_.joint(points), strict=True):
        close(a, b, "joint", atol=1e-8)


@pytest.mark.parametrize("engine", ["StateSpace", "Exact"])
@pytest.mark.parametrize("mean", ["linear", gpx.means.Trend(2)], ids=str)
def test_slopes_of_ragged_series(engine, mean):
    """Along the column of times, the labels kept: the limits of differences, means included."""
    (x, y), new = ragged(), np.c_[np.linspace(0.3, 4.7, 9), np.arange(9) % 4]
    kernel = Matern(nu=2.5, active_dims=[0]) * Same(active_dims=[1])
    gp = GP(kernel, likelihoods.Gaussian(0.1), mean=mean, engine=engine).condition(x, y)
    ends = [gp.predict(new + [h, 0], "f").mean for h in (1e-5, -1e-5)]
    close(gp.predict(new, derivative=1).mean, (ends[0] - ends[1]) / 2e-5, "slopes", rtol=1e-4)


def test_gpytorch_lines():
    """A line of gpytorch's, with a proper prior."""
    check_equal(
        lambda: gpytorch.kernels.LinearKernel().double() + Matern(nu=1.5), *awkward(300), np.linspace(-1.0, 20.0, 9)
    )


def test_parts_shared_by_series():
    x, y = ragged()
    with pytest.raises(StructureError, match="shared by all"):
        GP(Matern(active_dims=[0]) * Same(active_dims=[1]) + Matern(active_dims=[0]), engine="StateSpace").condition(
            x, y
        )
