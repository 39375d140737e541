"""Memory of the exact engine: the evidence with its gradient, and prediction at many points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import extra_memory, timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

DIMENSIONS = 8
WARM_UP_ROWS = 64


def problem(n: int, seed: int) -> tuple[ndarray, ndarray]:
    """A smooth function with noise: X [n, 8] standard normal, y [n]."""
    import numpy as np

    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, DIMENSIONS))
    return X, np.sin(X.sum(1)) + 0.1 * generator.standard_normal(n)


def evidence_and_gradient(X: ndarray, y: ndarray) -> float:
    """One log evidence and its gradient in all hyperparameters, as in a step of fit; ARD Matern-5/2."""
    from gpx.engines.exact import Exact
    from gpx.inference.objectives import Evidence
    from gpx.inference.problem import Problem
    from gpx.inference.rules import Variational
    from gpx.inputs import as_data
    from gpx.kernels import Matern
    from gpx.likelihoods import Gaussian
    from gpx.means import as_mean
    from gpx.prior import Prior

    prior = Prior(as_mean("zero"), (Matern(nu=2.5, lengthscale=[3.0] * DIMENSIONS, ard=True),))
    problem = Problem.planned(prior, as_data(X, y), Gaussian(0.01), Exact(), Variational())
    evidence = Evidence()(problem)
    evidence.backward()
    return evidence.item()


def run_evidence(setting: Setting) -> dict[str, float]:
    """n = 10,000 (quick: 3,000); memory in multiples of one n x n matrix of float64."""
    n = 3_000 if setting.quick else 10_000
    X, y = problem(n, setting.seed)
    evidence_and_gradient(X[:WARM_UP_ROWS], y[:WARM_UP_ROWS])
    (_, seconds), memory = extra_memory(lambda: timed(lambda: evidence_and_gradient(X, y)))
    return {"time": seconds, "extra memory": memory / 2**20, "extra matrices": memory / (8 * n**2)}


def run_prediction(setting: Setting) -> dict[str, float]:
    """200,000 points (quick: 20,000) from n = 2,000 rows."""
    import gpx

    points = 20_000 if setting.quick else 200_000
    X, y = problem(2_000, setting.seed)
    X_new, _ = problem(points, setting.seed + 1)
    gp = gpx.GP(gpx.kernels.Matern(nu=2.5, lengthscale=[3.0] * DIMENSIONS, ard=True)).condition(X, y)
    gp.predict(X_new[:WARM_UP_ROWS])
    (_, seconds), memory = extra_memory(lambda: timed(lambda: gp.predict(X_new)))
    return {"time": seconds, "extra memory": memory / 2**20}


TASK = Task(
    name="memory",
    description="Memory of the exact engine: evidence + gradient, n = 10,000; prediction at 200,000 points.",
    metrics=(
        Metric("extra matrices", "n x n float64"),
        Metric("extra memory", "MiB"),
        Metric("peak memory", "MiB"),
        Metric("time", "s"),
    ),
    models={"evidence": run_evidence, "prediction": run_prediction},
    reference=None,
)
