"""``kernel="auto"``: sensible kernels from the kind of input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpx.inputs import Data
from gpx.kernels.algebra import Sum
from gpx.kernels.base import Kernel
from gpx.kernels.hida_matern import HidaMatern
from gpx.kernels.periodic import PEAKS, is_harmonic, main_lobe
from gpx.kernels.quasi_periodic import QuasiPeriodic
from gpx.kernels.simple import Linear
from gpx.kernels.stationary import Matern
from gpx.linalg.periodogram import dominant_periods

MAX_PERIODS = 2
MIN_CYCLES = 5  # within the range: slower peaks are seldom told from red noise
MIN_TIMES = 9  # fewer are no series
TREND = 2.0  # times the range: the least lengthscale of a trend, which does not return within what was seen
MINOR = 0.1  # share of the variance about the trend at which the terms between seasons and noise start
RULES = {  # what `auto_kernel` builds, for explanations
    "one input column, with a period": "Linear + Matern(nu=2.5) + QuasiPeriodic(order=1) + Matern(nu=1.5) + HidaMatern(order=1)",
    "one input column, without": "Linear + Matern(nu=2.5) + Matern(nu=1.5) + HidaMatern(order=1)",
    "one input column, fewer than 9 values": "Matern(nu=2.5)",
    "several input columns": "Matern(nu=2.5, ard=True)",
}


def auto_kernel(data: Data) -> Kernel:
    """A kernel for these data.

    One input column (a series): a straight line; a trend that bends over twice the range or more; a season of drifting
    shape for up to two significant periods; variation in the medium term (from a period to half the range); and, in the
    short term (below a period), a cycle that loses its phase. Their ranges are disjoint, so that no term can take the
    place of another; without a period the last two meet at the geometric mean of spacing and range. They start at shares
    of the variance about a quadratic trend. Several columns: Matern-5/2 with one lengthscale per column.
    """
    if data.x.shape[1] != 1:
        return Matern(nu=2.5, ard=True)
    data = data.seen()
    gaps = torch.diff(torch.unique(data.x[:, 0].detach().double()))
    if len(gaps) < MIN_TIMES - 1:
        return Matern(nu=2.5)
    span, gap, periods = float(gaps.sum()), float(gaps.median()), _periods(data)
    rest = _about_trend(data)
    minor = MINOR * rest if periods else 0.5 * rest
    middle = min(periods, default=math.sqrt(gap * span))
    trend = _term(Matern(nu=2.5), (TREND * span, 1e3 * span), 2 * TREND * span, data.variance)
    seasons = [_season(period, data, rest / len(periods)) for period in periods]
    return Sum(
        Linear(),
        trend,
        *seasons,
        _term(Matern(nu=1.5), (middle, 0.5 * span), math.sqrt(middle * 0.5 * span), minor),
        _term(HidaMatern(order=1), (0.1 * gap, middle), math.sqrt(0.1 * gap * middle), minor),
    )


def _term(kernel: Kernel, bounds: tuple[float, float], lengthscale: float, variance: float) -> Kernel:
    kernel.settle("lengthscale", lengthscale, box=(bounds[0] / lengthscale, bounds[1] / lengthscale))
    kernel.settle("outputscale", variance)
    return kernel


def _season(period: float, data: Data, variance: float) -> Kernel:
    span = float(data.x.max() - data.x.min())
    kernel = QuasiPeriodic()
    kernel.set(period=dict(init=period, bounds=main_lobe(period, data)))
    # Without a scale of its own the shape within a period would be as rough as the noise.
    kernel.settle("lengthscale", 1.0, spread=1.0, box=(1e-2, 1e3))
    kernel.settle("decay", span, box=(period / span, 1e3))
    kernel.settle("outputscale", variance)
    return kernel


def _about_trend(data: Data) -> float:
    """The part of the variance of the targets that is about a quadratic trend."""
    shares = [_share(data.x[:, 0].double(), y.double()) for y in data.y.T]
    return data.variance * max(1e-6, sum(shares) / len(shares))


def _share(t: Tensor, y: Tensor) -> float:
    seen = ~torch.isnan(y)
    unit, y = 2 * (t[seen] - t.min()) / (t.max() - t.min()) - 1, y[seen]
    if len(y) < 4 or not bool((y != y[0]).any()):
        return 1.0
    design = torch.stack([torch.ones_like(unit), unit, unit.square()], 1)
    residual = y - design @ torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    return float(residual.square().mean() / y.var(correction=0))


def _periods(data: Data) -> list[float]:
    """Significant periods seen often enough, without the harmonics of stronger ones."""
    if data.y.shape[1] != 1:
        return []
    span = float(data.x.max() - data.x.min())
    chosen: list[float] = []
    for period in dominant_periods(data.x[:, 0], data.y[:, 0], limit=PEAKS):
        if MIN_CYCLES * period < span and not is_harmonic(period, chosen):
            chosen.append(period)
    return chosen[:MAX_PERIODS]
