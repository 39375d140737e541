"""A sparse model in service: predictions at 100,000 points, and updates with 1,000, through 500 inducing inputs."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting, Task

ROWS, NEW, POINTS, INDUCING = 20_000, 1_000, 100_000, 500


def measure(setting: Setting, likelihood: Any, outcome: Any) -> dict[str, float]:
    """The updates are timed one by one, each followed by a prediction, the first of which has to factorise."""
    import numpy as np
    import torch

    import gpx

    share = 0.05 if setting.quick else 1.0
    rows, new, count, inducing = (int(share * n) for n in (ROWS, NEW, POINTS, INDUCING))
    random = np.random.default_rng(setting.seed)
    X = random.uniform(0, 1, (rows + 5 * new, 8))
    f = np.sin(6 * X[:, 0]) + np.cos(5 * X[:, 1] * X[:, 2]) + X[:, 3]
    y = outcome(f, random)
    gp = gpx.GP(gpx.kernels.RBF(lengthscale=0.7), likelihood, engine=gpx.engines.SparseVariational(inducing))
    gp.condition(X[:rows], y[:rows])
    new_points = torch.as_tensor(random.uniform(0, 1, (count, 8)))
    gp.predict(new_points[:10])

    def predict(points: Any) -> float:
        prediction = gp.predict(points, of="f")
        return float(prediction.mean.sum() + prediction.variance.sum())

    _, seconds = timed(lambda: predict(new_points))
    parts = [slice(rows + k * new, rows + (k + 1) * new) for k in range(5)]
    updates, firsts = [], []
    for part in parts:
        updates.append(timed(lambda: gp.update(X[part], y[part]))[1])  # noqa: B023
        firsts.append(timed(lambda: predict(new_points[:10]))[1])
    return {"predictions": seconds, "update": 1e3 * float(np.median(updates)), "then": 1e3 * float(np.median(firsts))}


def run_gaussian(setting: Setting) -> dict[str, float]:
    import gpx

    return measure(setting, gpx.likelihoods.Gaussian(0.1), lambda f, random: f + 0.3 * random.standard_normal(len(f)))


def run_bernoulli(setting: Setting) -> dict[str, float]:
    import gpx

    return measure(
        setting, gpx.likelihoods.Bernoulli(), lambda f, random: 1.0 * (f + random.standard_normal(len(f)) > 1)
    )


TASK = Task(
    name="sparse-serving",
    description="100,000 predictions (mean and variance), and updates with 1,000 rows, through 500 inducing inputs.",
    metrics=(Metric("predictions", "s"), Metric("update", "ms"), Metric("then", "ms for 10 predictions")),
    models={"gaussian": run_gaussian, "bernoulli": run_bernoulli},
    reference="gaussian",
)
