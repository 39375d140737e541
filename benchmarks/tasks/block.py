"""The structural-equation family: estimates from few blocks, the cost of an evaluation, bootstrap intervals, sunspots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

PERIOD, THETA, OMEGA = 10, 5.0, 0.5  # of the published simulation, with sigma^2 = 1
BLOCKS = (10, 20)
SERIES, QUICK_SERIES = 2000, 20
COVERED, DRAWS, QUICK_COVERED, QUICK_DRAWS = 200, 100, 3, 10  # series with a bootstrap each, and its size
LONG_PERIOD, LONG_BLOCKS, EVALUATIONS = 1000, 10, 300
SUNSPOTS, TRAIN, PERIODS = 289, 230, range(2, 13)


def series(blocks: int, count: int, seed: int) -> Iterator[ndarray]:
    """Draws of the published model, `blocks` periods each."""
    import numpy as np

    random = np.random.default_rng([seed, blocks])
    squares = np.sin(np.pi * np.subtract.outer(np.arange(PERIOD), np.arange(PERIOD)) / PERIOD) ** 2
    root = np.linalg.cholesky(np.exp(-(THETA**2) * squares) + 1e-12 * np.eye(PERIOD))
    for _ in range(count):
        innovations = random.standard_normal((blocks, PERIOD)) @ root.T
        path = [innovations[0] / math.sqrt(1 - OMEGA**2)]
        for innovation in innovations[1:]:
            path.append(OMEGA * path[-1] + innovation)
        yield np.concatenate(path)


def estimates(setting: Setting, fit: Callable[[ndarray], tuple[float, float]]) -> dict[str, float]:
    """Errors of `fit`: y -> (omega, theta), over all series, and its time."""
    import numpy as np

    count, found = QUICK_SERIES if setting.quick else SERIES, {}
    for blocks in BLOCKS:
        fit(next(series(blocks, 1, 1000)))  # compilation
        results, seconds = timed(lambda b=blocks: [fit(y) for y in series(b, count, setting.seed)])
        omega, theta = (
            abs(np.array(column) - truth)
            for column, truth in zip(zip(*results, strict=True), (OMEGA, THETA), strict=True)
        )
        found |= {
            f"RMSE of omega, {blocks} blocks": float(np.sqrt((omega**2).mean())),
            f"median error of omega, {blocks} blocks": float(np.median(omega)),
            f"median error of theta, {blocks} blocks": float(np.median(theta)),
            f"time per fit, {blocks} blocks": 1e3 * seconds / count,
        }
    return found


def run_lean(setting: Setting, method: str) -> dict[str, float]:
    """`structural_equation.estimate`."""
    from gpx.structural_equation import estimate

    def fit(y: ndarray) -> tuple[float, float]:
        found = estimate(y, PERIOD, method)
        return found.correlation, found.theta

    found = estimates(setting, fit)
    if method == "exact":
        return found | evaluation_times()
    return found | {"sunspot RMSE": one_step_error(lambda x, y: _published(y, method))}


def noiseless() -> Any:
    """Noise that changes nothing, fixed."""
    from gpx.likelihoods import Gaussian

    return Gaussian(1e-20).set(noise=dict(fixed=True))


def run_gp(setting: Setting) -> dict[str, float]:
    """`gpx.GP` with the kernel of the family: the same likelihood, and a bootstrap."""
    import numpy as np

    import gpx
    from gpx.kernels import BlockQuasiPeriodic

    def fitted(y: ndarray) -> Any:
        return gpx.GP(BlockQuasiPeriodic(PERIOD), noiseless(), mean="zero").fit(np.arange(len(y)), y, priors=None)

    def fit(y: ndarray) -> tuple[float, float]:
        kernel = fitted(y).kernel_
        return float(kernel.correlation.detach()), math.sqrt(2) / float(kernel.within.lengthscale.detach())

    count, draws = (QUICK_COVERED, QUICK_DRAWS) if setting.quick else (COVERED, DRAWS)
    inside: dict[str, list[bool]] = {"percentile": [], "bias-corrected": []}
    for number, y in enumerate(series(BLOCKS[-1], count, setting.seed + 500)):
        intervals = fitted(y).bootstrap(draws, seed=number, verbose=False)
        for method, hits in inside.items():
            low, high = intervals.interval(0.95, method)[intervals.names.index("kernel.correlation")]
            hits.append(bool(low <= OMEGA <= high))
    coverage = {f"coverage of omega, {method}": sum(hits) / count for method, hits in inside.items()}
    return estimates(setting, fit) | coverage | sunspots(PERIODS[-3:] if setting.quick else PERIODS)


def evaluation_times() -> dict[str, float]:
    """Value and gradient of the noise-free likelihood at p = 1,000, in microseconds: from the eigenvalues of the innovations,
    from the parameters of the kernel, and as the objective of a GP.
    """
    import numpy as np
    import torch

    import gpx
    from gpx.kernels import BlockQuasiPeriodic, Periodic
    from gpx.linalg.ar1 import noise_free
    from gpx.structural_equation import Likelihood

    y = np.random.default_rng(0).standard_normal(LONG_PERIOD * LONG_BLOCKS)
    likelihood, spectrum = Likelihood.of(y, LONG_PERIOD), np.ones(LONG_PERIOD)
    lengthscale = 1e-3  # innovations that are close to white, as these data are
    kernel = BlockQuasiPeriodic(LONG_PERIOD, 0.1, within=Periodic(LONG_PERIOD, lengthscale))
    gp = gpx.GP(kernel, noiseless(), mean="zero").condition(np.arange(len(y)), y)
    problem = gp._fitted().anew()
    leaves = [p for p in problem.prior.kernels[0].parameters() if p.requires_grad]
    ways = {
        "evaluation, from eigenvalues": lambda: noise_free(spectrum, 0.1, *likelihood.statistics, 1, LONG_BLOCKS),
        "evaluation, from parameters": lambda: likelihood(0.1, lengthscale, 1.0),
        "evaluation, objective of a GP": lambda: torch.autograd.grad(gp.objective_(problem), leaves),
    }
    found = {}
    for name, way in ways.items():
        way()
        found[name] = 1e6 * median(timed(way)[1] for _ in range(EVALUATIONS))
    return found


def sunspot_numbers() -> ndarray:
    """Yearly sunspot numbers, 1700-1988."""
    from statsmodels.datasets import sunspots as source

    return source.load_pandas().data["SUNACTIVITY"].to_numpy(dtype=float)[:SUNSPOTS]


def one_step_error(build: Callable[[ndarray, ndarray], Any]) -> float:
    """RMSE of predictions of each of the last 59 years from all years before, parameters from the first 230."""
    import numpy as np

    x, y = np.arange(SUNSPOTS), sunspot_numbers()
    centre, errors = y[:TRAIN].mean(), []
    gp = build(x[:TRAIN], y[:TRAIN] - centre)
    for t in range(TRAIN, SUNSPOTS):
        errors.append(float(gp.predict(x[t : t + 1]).mean[0]) + centre - y[t])
        gp.update(x[t : t + 1], y[t : t + 1] - centre)
    return float(np.sqrt(np.mean(np.square(errors))))


def sunspots(periods: Any) -> dict[str, float]:
    """The period by evidence, and the error of its model."""
    from gpx.structural_equation import select_period

    chosen = []

    def build(x: ndarray, y: ndarray) -> Any:
        table = select_period(x, y, periods)
        chosen.append(table.best)
        return table.model

    return {"sunspot RMSE": one_step_error(build), "sunspot period": float(chosen[0])}


def _published(y: ndarray, method: str) -> Any:
    """The published estimate at its period, 11, without noise."""
    import numpy as np

    import gpx
    from gpx.structural_equation import estimate

    used = len(y) // 11 * 11
    kernel = estimate(y[:used], 11, method).kernel()
    return gpx.GP(kernel, noiseless(), mean="zero").condition(np.arange(len(y)), y)


def run_persistence(setting: Setting) -> dict[str, float]:
    """Next year as this year."""
    import numpy as np

    y = sunspot_numbers()
    return {"sunspot RMSE": float(np.sqrt(np.mean((y[TRAIN:] - y[TRAIN - 1 : -1]) ** 2)))}


def run_autoregression(setting: Setting) -> dict[str, float]:
    """AR(9) with a constant, by least squares on the first 230 years."""
    import numpy as np

    y, order = sunspot_numbers(), 9
    design = np.stack([np.ones(SUNSPOTS - order), *(y[order - lag : SUNSPOTS - lag] for lag in range(1, order + 1))], 1)
    weights = np.linalg.lstsq(design[: TRAIN - order], y[order:TRAIN], rcond=None)[0]
    return {"sunspot RMSE": float(np.sqrt(np.mean((design[TRAIN - order :] @ weights - y[TRAIN:]) ** 2)))}


TASK = Task(
    name="block",
    description="Structural-equation family: p = 10, theta = 5, omega = 0.5, sigma = 1; evaluations at p = 1,000; sunspots.",
    metrics=(
        *(
            Metric(f"{what}, {blocks} blocks", unit)
            for what, unit in (
                ("RMSE of omega", ""), ("median error of omega", ""), ("median error of theta", ""), ("time per fit", "ms"),
            )
            for blocks in BLOCKS
        ),
        Metric("evaluation, from eigenvalues", "us"),
        Metric("evaluation, from parameters", "us"),
        Metric("evaluation, objective of a GP", "us"),
        Metric("coverage of omega, percentile"),
        Metric("coverage of omega, bias-corrected"),
        Metric("sunspot RMSE"),
        Metric("sunspot period", "years"),
    ),
    models={
        "gpx": run_gp,
        "gpx-lean": lambda setting: run_lean(setting, "exact"),
        "published": lambda setting: run_lean(setting, "iterative"),
        "published-circulant": lambda setting: run_lean(setting, "iterative-circulant"),
        "persistence": run_persistence,
        "AR(9)": run_autoregression,
    },
)  # fmt: skip
