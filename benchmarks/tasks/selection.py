"""Selections of 100 inducing inputs: seconds, and the collapsed bound at fixed hyperparameters."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting, Task

SETS = ("elevators", "kin40k")
NAMES = ("greedy", "kmeans", "leverage", "dpp", "thinning")
SIZE, NOISE = 100, 0.1


def problem(name: str, quick: bool) -> tuple[Any, Any]:
    """X and y of a set, standardised, in random order; the quick version has 2,500 rows."""
    import torch

    from gpx import datasets

    data = datasets.load(name)
    order = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(0))[: 2_500 if quick else None]
    X, y = data.X[order], data.y[order]
    spread = X.std(0)
    return (X - X.mean(0)) / torch.where(spread > 0, spread, 1.0), (y - y.mean()) / y.std()


def measure(select: str, setting: Setting) -> dict[str, float]:
    """For every set: the selection of the sparse engine, and its bound. RBF of lengthscale sqrt(D), variance 1; noise 0.1."""
    import gpx
    from gpx.selection import SELECTIONS

    result = {}
    for name in SETS:
        X, y = problem(name, setting.quick)

        def chosen(kernel: Any, rows: Any, size: int, *, seed: int | None = 0, name: str = name) -> Any:
            found, result[f"{name} time"] = timed(lambda: SELECTIONS[select](kernel, rows, size, seed=setting.seed))
            return found

        engine = gpx.engines.SparseVariational(inducing=SIZE, select=chosen, refine=False)
        kernel = gpx.kernels.RBF(lengthscale=X.shape[1] ** 0.5)
        gp = gpx.GP(kernel, gpx.likelihoods.Gaussian(NOISE), mean="zero", engine=engine)
        result[f"{name} bound"] = gp.condition(X, y).log_evidence() / len(y)
    return result


TASK = Task(
    name="selection",
    description="100 inducing inputs from 10,000 rows of elevators and kin40k; fixed hyperparameters.",
    metrics=tuple(
        metric
        for name in SETS
        for metric in (Metric(f"{name} time", "s"), Metric(f"{name} bound", "nats/row", "difference"))
    ),
    models={name: partial(measure, name) for name in NAMES},
    reference="greedy",
)
