"""What the comparisons of classifiers have in common: sets, folds and measurements."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from statistics import mean
from typing import TYPE_CHECKING, Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting
from benchmarks.tasks.classification import QUICK_SETS, WARM_UP_ROWS, Fold, folds, nlpd

if TYPE_CHECKING:
    from numpy import ndarray

SETS = ("ionosphere", "parkinsons", "monks-2", "breast_cancer")
FOLDS = 2


def metrics(objective: str) -> tuple[Metric, ...]:
    """Rows of the table; objective: what the models maximise."""
    return tuple(
        metric
        for data in SETS
        for metric in (
            Metric(f"{data}: fit time per fold", "s"),
            Metric(f"{data}: {objective}", "nats", "difference"),
            Metric(f"{data}: test NLPD", "nats", "difference"),
        )
    )


def measure(
    setting: Setting,
    objective: str,
    fit: Callable[[ndarray, ndarray], Any],
    value: Callable[[Any], float],
    score: Callable[[Any, Fold], float] = nlpd,
) -> dict[str, float]:
    """Means over the first two folds of every set; quick: the first fold of two sets.

    A fit of another size comes first, so that compilation is not timed.

    Parameters
    ----------
    objective : its name; ``value`` gives it for a fitted model.
    score : (model, fold) -> test NLPD.
    """
    first = next(folds(SETS[0], setting.seed, setting.quick))
    fit(first.X[:WARM_UP_ROWS], first.y[:WARM_UP_ROWS])
    found: dict[str, float] = {}
    for data in SETS[:QUICK_SETS] if setting.quick else SETS:
        used = list(islice(folds(data, setting.seed, setting.quick), FOLDS))
        models, times = zip(*(timed(lambda fold=fold: fit(fold.X, fold.y)) for fold in used), strict=True)
        found |= {
            f"{data}: fit time per fold": mean(times),
            f"{data}: {objective}": mean(map(value, models)),
            f"{data}: test NLPD": mean(map(score, models, used)),
        }
    return found
