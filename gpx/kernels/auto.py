"""``kernel="auto"``: sensible kernels from the kind of input."""

from __future__ import annotations

from gpx.inputs import Data
from gpx.kernels.base import Kernel
from gpx.kernels.periodic import Periodic
from gpx.kernels.stationary import RBF, Matern
from gpx.linalg.periodogram import dominant_periods


def auto_kernel(data: Data) -> Kernel:
    """A kernel for these data.

    One input column with a significant period: a long trend, a season whose shape drifts, and short-term variation; one
    without: a trend and short-term variation; several columns: Matern-5/2 with one lengthscale per column.
    """
    if data.x.shape[1] != 1:
        return Matern(nu=2.5, ard=data.x.shape[1] > 1)
    if data.y.shape[1] == 1 and (periods := dominant_periods(data.x[:, 0], data.y[:, 0], limit=1)):
        return RBF() + RBF() * Periodic(period=periods[0]) + Matern(nu=1.5)
    return Matern(nu=2.5)
