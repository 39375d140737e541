"""The quasi-periodic kernel: a period whose shape drifts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gpx.inputs import Data
from gpx.kernels.base import Value
from gpx.kernels.hida_matern import check_order
from gpx.kernels.periodic import Repeating
from gpx.kernels.stationary import matern_profile


class QuasiPeriodic(Repeating):
    """Quasi-periodic kernel of one input, ``Periodic(period, lengthscale) x Matern(order + 1/2, lengthscale=decay)``.

    ``k = outputscale * exp(-2 sin^2(pi tau / period) / lengthscale^2) M_nu(sqrt(2 nu) tau / decay)``, ``nu = order + 1/2``,
    ``tau = |x - x'|``, M_nu as in `Matern`.

    Arguments: period: in input units; lengthscale: dimensionless, the smoothness within a period; decay: in input units,
    the time over which the shape of a period is forgotten; order: 0, 1, 2, ..., its smoothness; outputscale: k(0).
    Raises: InputError for another order or more than one input column. Cost: O(N M order).
    Source: Rasmussen & Williams (2006), section 5.4.3; Solin & Sarkka (2014), "Explicit link between periodic covariance
    functions and state space models".

    >>> QuasiPeriodic(period=12.0, decay=60.0)
    QuasiPeriodic(order=1, period=12, lengthscale=1, decay=60, outputscale=1)
    """

    structure = ("order",)
    lengthscale = Value(1.0)  # pyright: ignore[reportAssignmentType]
    decay = Value(1.0, length=True)

    def __init__(self, period: Any = None, lengthscale: Any = None, decay: Any = None, order: int = 1,
                 outputscale: Any = None, *, active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(active_dims, batch_shape)
        self.order = check_order(type(self).__name__, order)
        self.declare("period", period, (*self.batch_shape, 1, 1))
        self.declare("lengthscale", lengthscale, (*self.batch_shape, 1, 1))
        self.declare("decay", decay, (*self.batch_shape, 1, 1))
        self.declare("outputscale", outputscale, tuple(self.batch_shape))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        self.require_one_column(x1)
        if diag:
            return self.level(x1)
        tau = x1 - x2.mT
        chord = torch.sin(math.pi * tau / self.period) / self.lengthscale
        envelope = matern_profile((2 * self.order + 1) * (tau / self.decay).square(), self.order)
        return self.outputscale[..., None, None] * torch.exp(-2 * chord.square()) * envelope

    def _init_from(self, data: Data) -> None:
        super()._init_from(data)
        self.start("lengthscale", 1.0, box=(1e-2, 1e3))
        self.start("decay", float(data.spread[0]) * data.resolution, box=data.length_box)
