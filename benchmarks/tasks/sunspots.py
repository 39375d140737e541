"""Annual sunspot numbers one year ahead: the first 289 years of statsmodels' series, of which the first 230 are for training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting

if TYPE_CHECKING:
    from numpy import ndarray

YEARS, TRAIN, QUICK_STEPS = 289, 230, 3
AR_ORDER = 9
PUBLISHED = 24.6  # RMSE of the structural-equation model of Nigam et al. (2025), as replicated from their code
RMSE = Metric("sunspots: one-step RMSE")
SECONDS = Metric("sunspots: seconds", "s")


def _series(setting: Setting) -> tuple[ndarray, ndarray, int]:
    """Years, numbers, and the end of the years that are predicted."""
    from statsmodels.datasets import sunspots

    table: Any = sunspots.load_pandas().data
    rows = table[:YEARS]
    end = TRAIN + QUICK_STEPS if setting.quick else YEARS
    return rows["YEAR"].to_numpy(), rows["SUNACTIVITY"].to_numpy(), end


def _scored(setting: Setting, predict: Callable[[ndarray, ndarray, int], ndarray]) -> dict[str, float]:
    """predict(years, numbers, end) gives one-step predictions of the rows from TRAIN to end."""
    import numpy as np

    year, number, end = _series(setting)
    found, seconds = timed(lambda: predict(year, number, end))
    return {RMSE.name: float(np.sqrt(np.mean((found - number[TRAIN:end]) ** 2))), SECONDS.name: seconds}


def persistence(setting: Setting) -> dict[str, float]:
    """The number of the year before."""
    return _scored(setting, lambda year, number, end: number[TRAIN - 1 : end - 1])


def autoregression(setting: Setting) -> dict[str, float]:
    """statsmodels' AutoReg of order 9, its coefficients from the training years."""

    def predict(year: ndarray, number: ndarray, end: int) -> ndarray:
        import numpy as np
        from statsmodels.tsa.ar_model import AutoReg

        weights = AutoReg(number[:TRAIN], lags=AR_ORDER).fit().params
        return np.array([weights[0] + weights[1:] @ number[n - AR_ORDER : n][::-1] for n in range(TRAIN, end)])

    return _scored(setting, predict)


def _candidates() -> dict[str, Any]:
    """The kernels of which the evidence chooses, fixed in advance."""
    from gpx.kernels import HidaMatern, Matern, QuasiPeriodic

    pairs = {f"HM({p}) + HM({q})": HidaMatern(p) + HidaMatern(q) for p in range(3) for q in range(p, 3)}
    return {
        **pairs,
        "HM(0) + HM(0) + HM(0)": HidaMatern(0) + HidaMatern(0) + HidaMatern(0),
        "QuasiPeriodic + Matern-1/2": QuasiPeriodic(order=0) + Matern(nu=0.5),
        "auto": "auto",
    }


def _ahead(gp: Any, year: ndarray, z: ndarray, end: int) -> ndarray:
    """Medians of a fitted model, each from all years before."""
    import numpy as np

    found = []
    for n in range(TRAIN, end):
        found.append(float(gp.predict(year[n : n + 1]).mean))
        gp.update(year[n : n + 1], z[n : n + 1])
    return np.array(found)


def pair(setting: Setting, roots: bool) -> dict[str, float]:
    """HM(0) + HM(0) and noise; on square roots the median is mapped back."""
    import gpx

    def predict(year: ndarray, number: ndarray, end: int) -> ndarray:
        import numpy as np

        z = np.sqrt(number) if roots else number
        gp = gpx.GP(gpx.kernels.HidaMatern(0) + gpx.kernels.HidaMatern(0), engine="StateSpace")
        found = _ahead(gp.fit(year[:TRAIN], z[:TRAIN]), year, z, end)
        return np.maximum(found, 0.0) ** 2 if roots else found

    return _scored(setting, predict)


def by_evidence(setting: Setting, roots: bool) -> dict[str, float]:
    """The candidate of the best BIC on the training years."""
    import gpx

    chosen: list[int] = []

    def predict(year: ndarray, number: ndarray, end: int) -> ndarray:
        import numpy as np

        z = np.sqrt(number) if roots else number
        candidates = list(_candidates().values())[: 2 if setting.quick else None]
        fits = [gpx.GP(k, engine="StateSpace").fit(year[:TRAIN], z[:TRAIN]) for k in candidates]
        scores = [bic(gp) for gp in fits]
        chosen.append(int(np.argmax(scores)))
        found = _ahead(fits[chosen[0]], year, z, end)
        return np.maximum(found, 0.0) ** 2 if roots else found

    return _scored(setting, predict) | {"sunspots: chosen kernel": float(chosen[0])}


def bic(gp: Any) -> float:
    """Log evidence less half the logarithm of the number of data for every value that was learned (BIC)."""
    return gp.log_evidence() - 0.5 * len(gp.result_.starts) * math.log(TRAIN)


MODELS: dict[str, Callable[[Setting], dict[str, float]]] = {
    "persistence": persistence,
    f"AR({AR_ORDER})": autoregression,
    "QPGP (published)": lambda setting: {RMSE.name: PUBLISHED},
    "HM(0) + HM(0)": lambda setting: pair(setting, roots=False),
    "HM(0) + HM(0) on roots": lambda setting: pair(setting, roots=True),
    "by evidence": lambda setting: by_evidence(setting, roots=False),
    "by evidence on roots": lambda setting: by_evidence(setting, roots=True),
}
