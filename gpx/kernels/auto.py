"""``kernel="auto"``: sensible kernels from the kind of input."""

from __future__ import annotations

import math

from gpx.inputs import Data
from gpx.kernels.algebra import Sum
from gpx.kernels.base import Kernel
from gpx.kernels.periodic import Periodic
from gpx.kernels.simple import Linear
from gpx.kernels.stationary import Matern
from gpx.linalg.periodogram import dominant_periods

MAX_PERIODS = 2
RULES = {  # what `auto_kernel` builds, for explanations
    "one input column, with a period": "Linear + Matern(nu=2.5) + Matern(nu=1.5) * Periodic + Matern(nu=1.5) + Matern(nu=1.5)",
    "one input column, without": "Matern(nu=2.5)",
    "several input columns": "Matern(nu=2.5, ard=True)",
}


def auto_kernel(data: Data) -> Kernel:
    """A kernel for these data.

    One input column (a series): a straight line, a trend that bends slowly (over half of the range or more), a season of
    drifting shape for up to two significant periods, and variation in the medium and short term. Without a significant
    period: a Matern-5/2. Several columns: Matern-5/2 with one lengthscale per column.
    """
    if data.x.shape[1] != 1:
        return Matern(nu=2.5, ard=True)
    periods = _periods(data)
    if not periods:
        return Matern(nu=2.5)
    span = float(data.x.max() - data.x.min())
    # Without the bound the trend takes over what the shorter terms are for, and extrapolates it.
    trend = Matern(nu=2.5).set(lengthscale=dict(bounds=(0.5 * span, 1e3 * span)))
    seasons = [Matern(nu=1.5) * Periodic(period=p) for p in periods]
    return Sum(Linear(), trend, *seasons, Matern(nu=1.5), Matern(nu=1.5))


def _periods(data: Data) -> list[float]:
    """Significant periods seen at least three times, without the harmonics of stronger ones."""
    if data.y.shape[1] != 1:
        return []
    span = float(data.x.max() - data.x.min())
    chosen: list[float] = []
    for period in dominant_periods(data.x[:, 0], data.y[:, 0], limit=6):
        ratios = [max(period, p) / min(period, p) for p in chosen]
        harmonic = any(math.isclose(r, round(r), abs_tol=0.1) for r in ratios)
        if 3 * period < span and not harmonic:
            chosen.append(period)
    return chosen[:MAX_PERIODS]
