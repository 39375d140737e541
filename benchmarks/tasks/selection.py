"""Selections of 100 inducing inputs: seconds, and the collapsed bound at hyperparameters that are the same for all."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting, Task

SETS = ("elevators", "kin40k")
NAMES = ("greedy", "kmeans", "leverage", "dpp", "thinning")
SIZE, TRAINED_ON = 100, 500


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
    """For every set: hyperparameters of an exact fit to 500 rows, then a selection for the sparse engine and its bound."""
    import gpx
    from gpx.selection import SELECTIONS

    result = {}
    for name in SETS:
        X, y = problem(name, setting.quick)
        fitted = gpx.GP(gpx.kernels.RBF(ard=True), engine=gpx.engines.Exact()).fit(
            X[:TRAINED_ON], y[:TRAINED_ON], seed=0
        )

        def chosen(kernel: Any, rows: Any, size: int, *, seed: int | None = 0, name: str = name) -> Any:
            found, result[f"{name} time"] = timed(lambda: SELECTIONS[select](kernel, rows, size, seed=setting.seed))
            return found

        engine = gpx.engines.SparseVariational(inducing=SIZE, select=chosen, refine=False)
        likelihood = gpx.likelihoods.Gaussian(float(fitted.likelihood_.noise))
        gp = gpx.GP(fitted.kernel_, likelihood, mean="zero", engine=engine).condition(X, y)
        result[f"{name} bound"] = gp.log_evidence() / len(y)
    return result


TASK = Task(
    name="selection",
    description="100 inducing inputs from 10,000 rows of elevators and kin40k; hyperparameters of an exact fit to 500 rows.",
    metrics=tuple(
        metric
        for name in SETS
        for metric in (Metric(f"{name} time", "s"), Metric(f"{name} bound", "nats/row", "difference"))
    ),
    models={name: partial(measure, name) for name in NAMES},
    reference="greedy",
)
