"""Series to be interpolated and extrapolated: the problems of the time-series task, and how predictions are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.measure import timed
from benchmarks.registry import Setting

if TYPE_CHECKING:
    from numpy import ndarray

SERIES = ("airline", "solar", "mauna", "gas", "internet", "temperature", "co2")
KINDS = ("interpolation", "extrapolation")
HELD_OUT = 0.2  # of an extrapolation: the last rows
QUICK_SERIES = 1
QUICK_ROWS = 60


@dataclass(frozen=True)
class Problem:
    """Training rows t, y and test rows t_test, y_test of a named series, times ascending, in the units of the data."""

    name: str
    kind: str
    t: ndarray
    y: ndarray
    t_test: ndarray
    y_test: ndarray


def problem(name: str, kind: str, quick: bool = False) -> Problem:
    """Interpolation: the half that is stored with the series (CO2 has none: one drawn at random); extrapolation: the last
    fifth. The quick version has the first 60 rows.
    """
    import numpy as np

    from gpx import datasets

    data = datasets.load(name)
    rows = QUICK_ROWS if quick else len(data.y)
    t, y = data.X[:rows, 0].numpy(), data.y[:rows].numpy()
    if kind == "extrapolation":
        test = np.arange(rows) >= rows - math.ceil(HELD_OUT * rows)
    elif data.folds is not None:
        test = data.folds[:rows, 0].numpy()
    else:
        test = np.random.default_rng(0).permutation(rows) < rows // 2
    return Problem(name, kind, t[~test], y[~test], t[test], y[test])


def problems(quick: bool, series: Sequence[str] = SERIES) -> Iterator[Problem]:
    """All of some series, or the few of the quick version."""
    for kind in KINDS:
        for name in series[:QUICK_SERIES] if quick else series:
            yield problem(name, kind, quick)


Predictor = Callable[[Problem], "tuple[Any, Any] | None"]
"""Means and variances of the targets at t_test; None where a model does not apply."""


def score(predict: Predictor, setting: Setting, series: Sequence[str] = SERIES) -> dict[str, float]:
    """NLPD per test point (nats, original units), RMSE and seconds of every problem that the model applies to."""
    import numpy as np

    found: dict[str, float] = {}
    for task in problems(setting.quick, series):
        outcome, seconds = timed(lambda task=task: predict(task))
        if outcome is None:
            continue
        mean, variance = outcome
        error = task.y_test - mean
        nlpd = 0.5 * np.mean(np.log(2 * np.pi * variance) + error**2 / variance)
        name = f"{task.kind}, {task.name}"
        rmse = float(np.sqrt(np.mean(error**2)))
        found |= {f"{name}: NLPD": float(nlpd), f"{name}: RMSE": rmse, f"{name}: seconds": seconds}
        found[f"{name}: RMSE / std"] = rmse / float(np.std(task.y))
    return found | _means(found, len(series))


def _means(found: dict[str, float], count: int) -> dict[str, float]:
    """The means over the series, of models that apply to all of them."""
    means = {}
    for kind in KINDS:
        for what in ("NLPD", "RMSE / std", "seconds"):
            values = [v for name, v in found.items() if name.startswith(kind) and name.endswith(f": {what}")]
            complete = len(values) == count or len(values) == QUICK_SERIES
            if complete:
                means[f"{kind}: mean {what}"] = sum(values) / len(values)
    return means
