"""Two classes: six sets in five folds each, isotropic Matern-5/2, probit; how well each way of learning predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

RANDOM_STATES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 42)  # of the folds, by repeat
SETS = ("ionosphere", "parkinsons", "monks-2", "sonar", "breast_cancer", "usps")
FEWER_REPEATS = {"usps": 2}  # the largest set is left out of later repeats
FOLDS = 5
QUICK_ROWS = 40
QUICK_SETS = 2
WARM_UP_ROWS = 30
WORST = 2.0  # a larger NLPD counts as divergence: a constant 1/2 has 0.69


@dataclass(frozen=True)
class Fold:
    """Training and test rows, standardised by the training rows; y in {0, 1}."""

    X: ndarray
    y: ndarray
    X_test: ndarray
    y_test: ndarray


def rows(name: str, quick: bool = False) -> tuple[ndarray, ndarray]:
    """X [N, D] and y [N] in {0, 1}; the quick version is 40 rows, drawn at random."""
    import numpy as np

    if name == "breast_cancer":
        from sklearn.datasets import load_breast_cancer

        X, y = (np.asarray(part, dtype=float) for part in load_breast_cancer(return_X_y=True))
    else:
        from gpx import datasets

        data = datasets.load(name)
        X, y = data.X.numpy(), data.y.numpy()
    used = np.random.default_rng(0).permutation(len(y))[:QUICK_ROWS] if quick else slice(None)
    return X[used], y[used]


def folds(name: str, seed: int, quick: bool = False) -> Iterator[Fold]:
    """``KFold(5, shuffle=True, random_state=RANDOM_STATES[seed])``; the quick version has the first only."""
    import numpy as np
    from sklearn.model_selection import KFold

    X, y = rows(name, quick)
    splits = list(KFold(FOLDS, shuffle=True, random_state=RANDOM_STATES[seed % len(RANDOM_STATES)]).split(X))
    for train, test in splits[: 1 if quick else FOLDS]:
        centre = X[train].mean(0)
        scale = np.where(np.ptp(X[train], axis=0) == 0, 1.0, X[train].std(0))
        yield Fold((X[train] - centre) / scale, y[train], (X[test] - centre) / scale, y[test])


def nlpd(gp: Any, fold: Fold) -> float:
    """Mean negative log predictive density of the test rows under a fitted gpx.GP."""
    return -float(gp.predict(fold.X_test).log_prob(fold.y_test).mean())


def attempt(make: Callable[[], Any], fold: Fold) -> tuple[float, float, bool]:
    """NLPD, seconds of the fit, and whether it converged; a fit that fails has an infinite NLPD."""
    from gpx.errors import NumericalError

    def fit() -> Any:
        try:
            return make().fit(fold.X, fold.y)
        except NumericalError:
            return None

    gp, seconds = timed(fit)
    if gp is None:
        return math.inf, seconds, False
    return nlpd(gp, fold), seconds, gp.result_.converged and gp.result_.sites_converged


def run(setting: Setting, objective: str | dict[str, str], rule: str) -> dict[str, float]:
    """gpx with an objective and a rule by name (the objective with its options), otherwise as a user has it."""
    import gpx

    name, options = (objective, {}) if isinstance(objective, str) else ("EPEvidence", objective)

    def make() -> Any:
        return gpx.GP(
            gpx.kernels.Matern(nu=2.5),
            gpx.likelihoods.Bernoulli(),
            mean="zero",
            objective=getattr(gpx.objectives, name)(**options),
            rule=getattr(gpx.rules, rule)(),
        )

    first = next(folds(SETS[0], setting.seed, setting.quick))
    make().fit(first.X[:WARM_UP_ROWS], first.y[:WARM_UP_ROWS])
    found: dict[str, float] = {}
    for data in SETS[:QUICK_SETS] if setting.quick else SETS:
        if setting.seed >= FEWER_REPEATS.get(data, math.inf):
            continue
        scores, times, converged = zip(
            *(attempt(make, fold) for fold in folds(data, setting.seed, setting.quick)), strict=True
        )
        found |= {
            f"{data}: test NLPD": mean(scores),
            f"{data}: fit time per fold": median(times),
            f"{data}: diverged folds": float(sum(not score <= WORST for score in scores)),
            f"{data}: longest fit": max(times),
            f"{data}: unconverged folds": float(converged.count(False)),
        }
    return found


TASK = Task(
    name="classification",
    description=(
        "Probit classification in 5 folds, isotropic Matern-5/2, zero mean; "
        f"folds with a test NLPD above {WORST:g} count as diverged."
    ),
    metrics=tuple(
        metric
        for data in SETS
        for metric in (
            Metric(f"{data}: test NLPD", "nats", "difference"),
            Metric(f"{data}: fit time per fold", "s"),
            Metric(f"{data}: diverged folds", "", "difference"),
        )
    ),
    models={
        "gpx": lambda setting: run(setting, "EPEvidence", "Variational"),
        "gpx-elbo": lambda setting: run(setting, "ELBO", "Variational"),
        "gpx-ep": lambda setting: run(setting, "EPEvidence", "ExpectationPropagation"),
        "gpx-fixed-sites": lambda setting: run(setting, {"gradient": "fixed-sites"}, "Variational"),
        "gpx-laplace": lambda setting: run(setting, "Evidence", "Laplace"),
    },
)
