"""Grids: seconds per evaluation (log evidence and all gradients) and fit, against dense algebra and GPyTorch's grid kernels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

SIZES = {"400 x 400": (400, 400), "100 x 100 x 100": (100, 100, 100), "1000 x 1000": (1000, 1000), "60 x 60": (60, 60)}
TASKS = (400, 10)  # inputs and tasks
NOISE, LENGTHSCALE = 0.1, 0.2
CURVES, STEPS, COLUMNS, MISSING = 2_000, 52, 7, 0.3
SCALES = (0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)
COUNTS = 100


def shape(name: str, setting: Setting) -> tuple[int, ...]:
    """The quick version has a fifth of every axis."""
    return tuple(n // 5 if setting.quick and name != "60 x 60" else n for n in SIZES[name])


def targets(sizes: Sequence[int], seed: int) -> ndarray:
    """White noise: times do not depend on the values."""
    import numpy as np

    return np.random.default_rng(seed).standard_normal(sizes)


def median(action: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds, after a first run."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def evaluation(sizes: Sequence[int], seed: int, engine: Any) -> Callable[[], float]:
    """The log evidence, its gradient being computed too, as a function without arguments."""
    import gpytorch
    import torch

    import gpx
    from gpx.inputs import as_data
    from gpx.prior import Prior
    from gpx.sites import Sites

    grid = gpx.Grid([torch.linspace(0, 1, n, dtype=torch.float64) for n in sizes])
    kernel = gpx.kernels.RBF(lengthscale=[LENGTHSCALE] * len(sizes), ard=True).double()
    prior, data = Prior(gpytorch.means.ZeroMean(), (kernel,)), as_data(grid, targets(sizes, seed))
    plan, noise = engine.plan(prior, data), torch.tensor(NOISE, dtype=torch.float64, requires_grad=True)

    def evaluate() -> float:
        tau = (1 / noise).expand(data.y.shape)
        value = engine.condition(prior, plan, {}, Sites(data.y * tau, tau)).log_density
        value.backward()
        return float(value.detach())

    return evaluate


def curves(setting: Setting) -> tuple[ndarray, ndarray, ndarray]:
    """Settings [n, 7], steps [52] and curves [n, 52]: draws of RBF x Matern-5/2 with noise 0.01, 30 % of the cells missing."""
    import numpy as np

    random, n = np.random.default_rng(setting.seed), CURVES // (10 if setting.quick else 1)
    x, steps = random.random((n, COLUMNS)), np.arange(STEPS) / (STEPS - 1)
    square = (((x[:, None] - x) / SCALES) ** 2).sum(-1)
    r = math.sqrt(5) * np.abs(steps[:, None] - steps) / 0.3
    halves = []
    for matrix in (np.exp(-0.5 * square), (1 + r + r**2 / 3) * np.exp(-r)):
        values, vectors = np.linalg.eigh(matrix)
        halves.append(vectors * np.sqrt(values.clip(0)))
    f = halves[0] @ random.standard_normal((n, STEPS)) @ halves[1].T
    y = f + 0.1 * random.standard_normal(f.shape)
    return x, steps, np.where(random.random(f.shape) < MISSING, np.nan, y)


def counts(setting: Setting) -> tuple[ndarray, ndarray]:
    """Places on an axis, and Poisson counts [n, n] of a log rate with lengthscales of 0.15."""
    import numpy as np

    random, n = np.random.default_rng(setting.seed), COUNTS // (2 if setting.quick else 1)
    x = np.linspace(0, 1, n)
    values, vectors = np.linalg.eigh(np.exp(-0.5 * ((x[:, None] - x) / 0.15) ** 2))
    half = vectors * np.sqrt(values.clip(0))
    return x, random.poisson(np.exp(half @ random.standard_normal((n, n)) @ half.T + 1))


def run_gpx(setting: Setting) -> dict[str, float]:
    """Evaluations of complete grids, the fit of curves with holes, and that of counts."""
    import gpx

    found: dict[str, float] = {}
    for name in SIZES:
        evaluate = evaluation(shape(name, setting), setting.seed, gpx.engines.Kronecker())
        found[f"evaluation, {name}"] = median(evaluate)
    found["evaluation, tasks"] = median(evaluation(TASKS, setting.seed, gpx.engines.Kronecker()))
    x, steps, y = curves(setting)
    kernel = gpx.kernels.RBF(ard=True, active_dims=range(COLUMNS)) * gpx.kernels.Matern(nu=2.5, active_dims=[COLUMNS])
    began = time.perf_counter()
    gp = gpx.GP(kernel, engine=gpx.engines.Kronecker()).fit(gpx.Grid([x, steps]), y)
    found["fit, 2000 x 52 with holes"] = time.perf_counter() - began
    found["noise, 2000 x 52 with holes"] = float(gp.likelihood_.noise)
    place, y = counts(setting)
    kernel = gpx.kernels.RBF(active_dims=[0]) * gpx.kernels.RBF(active_dims=[1])
    began = time.perf_counter()
    gp = gpx.GP(kernel, gpx.likelihoods.Poisson(), engine=gpx.engines.Kronecker()).fit(gpx.Grid([place, place]), y)
    found["fit, counts 100 x 100"] = time.perf_counter() - began
    found["lengthscale, counts 100 x 100"] = float(gp.kernel_.kernels[0].lengthscale)
    return found


def run_dense(setting: Setting) -> dict[str, float]:
    """One factorisation of all cells, for grids that it can take."""
    import gpx

    evaluate = evaluation(shape("60 x 60", setting), setting.seed, gpx.engines.Exact())
    tasks = evaluation(TASKS, setting.seed, gpx.engines.Exact())
    return {"evaluation, 60 x 60": median(evaluate, 1), "evaluation, tasks": median(tasks, 1)}


def run_gpytorch(setting: Setting) -> dict[str, float]:
    """GridKernel (one kernel for all axes), and the Kronecker form of several tasks; defaults, double precision."""
    import gpytorch
    import torch

    class GridModel(gpytorch.models.ExactGP):
        def __init__(self, x: Any, y: Any, likelihood: Any, grid: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            base = gpytorch.kernels.RBFKernel()
            base.lengthscale = LENGTHSCALE
            self.covar_module = gpytorch.kernels.GridKernel(base, grid=grid)

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    class TaskModel(gpytorch.models.ExactGP):
        def __init__(self, x: Any, y: Any, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ZeroMean(), num_tasks=TASKS[1])
            base = gpytorch.kernels.RBFKernel()
            base.lengthscale = LENGTHSCALE
            self.covar_module = gpytorch.kernels.MultitaskKernel(base, num_tasks=TASKS[1], rank=TASKS[1])

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))

    def evaluate(model: Any, likelihood: Any, x: Any, y: Any) -> Callable[[], None]:
        model.double().train()
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        return lambda: (-mll(model(x), y)).backward()

    found: dict[str, float] = {}
    for name in ("60 x 60", "400 x 400"):
        n, dims = shape(name, setting)[0], 2
        likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        likelihood.noise = NOISE
        grid = [torch.linspace(0, 1, n, dtype=torch.float64) for _ in range(dims)]
        x = gpytorch.utils.grid.create_data_from_grid(grid)
        y = torch.from_numpy(targets((n, n), setting.seed).reshape(-1))
        found[f"evaluation, {name}"] = median(evaluate(GridModel(x, y, likelihood, grid), likelihood, x, y))
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=TASKS[1], has_task_noise=False).double()
    x, y = torch.linspace(0, 1, TASKS[0], dtype=torch.float64), torch.from_numpy(targets(TASKS, setting.seed))
    found["evaluation, tasks"] = median(evaluate(TaskModel(x, y, likelihood), likelihood, x, y))
    return found


TASK = Task(
    name="grids",
    description="Evaluations (log evidence and all gradients) on complete grids, and fits on grids with holes and of counts.",
    metrics=(
        *(Metric(f"evaluation, {name}", "s") for name in SIZES),
        Metric("evaluation, tasks", "s"),
        Metric("fit, 2000 x 52 with holes", "s"),
        Metric("fit, counts 100 x 100", "s"),
        Metric("peak_rss", "MiB"),
    ),
    models={"gpx": run_gpx, "dense": run_dense, "gpytorch": run_gpytorch},
)
