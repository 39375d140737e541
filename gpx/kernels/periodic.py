"""Kernels that repeat: Periodic and Cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpx.inputs import Data
from gpx.kernels.base import Kernel, Value
from gpx.linalg.distance import squared_distance
from gpx.linalg.periodogram import dominant_periods
from gpx.parameters import LogInterval

PEAKS = 6  # of the periodogram that are looked at


def is_harmonic(period: float, others: Sequence[float]) -> bool:
    """Whether a period is a fraction of another, up to a tenth of it: a multiple is not, as no day knows of the week.

    >>> is_harmonic(0.5, [7.0, 1.0]), is_harmonic(7.0, [0.5, 1.0])
    (True, False)
    """
    return any(p > 0.9 * period and math.isclose(p / period, round(p / period), abs_tol=0.1) for p in others)


def main_lobe(period: float, data: Data) -> tuple[float, float]:
    """The periods that a peak of the periodogram of a series stands for: those within a cycle over the range."""
    cycles = float(data.x.max() - data.x.min()) / period
    return period * cycles / (cycles + 1), period * cycles / (cycles - 1)


class Repeating(Kernel):
    """What kernels with a period share: it starts at the strongest peak of the periodogram that no other term explains."""

    overtones = 4  # that count; weaker ones are seldom peaks
    period = Value(1.0)
    outputscale = Value(1.0)

    @property
    def is_stationary(self) -> bool:
        return True

    @property
    def tones(self) -> tuple[float, ...]:
        """Its periods and the overtones that the shape of a period has, in input units."""
        return tuple(p / k for p in self.period.detach().reshape(-1).tolist() for k in range(1, 1 + self.overtones))

    def _init_from(self, data: Data) -> None:
        self.start("outputscale", data.variance)
        choice = self.choices["period"]
        search = not choice.given and data.x.shape[1] == 1
        peaks = dominant_periods(data.x[:, 0], data.y[:, 0], limit=PEAKS) if search else []
        found = [p for p in peaks if not is_harmonic(p, data.taken)]
        self.start("period", found[0] if found else float(data.spread[0]))
        period = self.period.detach()
        # The objective has an optimum at every harmonic and every side lobe: the fit refines a known period, and does not
        # leave it.
        if choice.given and not choice.bounded:
            self.register_constraint("raw_period", LogInterval(float(period.min()) / 1.4, float(period.max()) * 1.4))
        elif found and not choice.bounded:
            self.register_constraint("raw_period", LogInterval(*main_lobe(found[0], data)))


class Periodic(Repeating):
    """Periodic kernel, ``k = outputscale * exp(-2 sum_d sin^2(pi (x_d - x'_d) / period) / lengthscale^2)``.

    Arguments: period: in input units; lengthscale: dimensionless, the smoothness within a period; outputscale: k(0).
    Cost: O(N M D). Source: MacKay (1998), "Introduction to Gaussian processes", eq. 47.

    >>> Periodic(period=12.0)
    Periodic(period=12, lengthscale=1, outputscale=1)
    """

    lengthscale = Value(1.0)  # pyright: ignore[reportAssignmentType]

    def __init__(self, period: Any = None, lengthscale: Any = None, outputscale: Any = None, *,
                 active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(active_dims, batch_shape)
        self.declare("period", period, (*self.batch_shape, 1, 1))
        self.declare("lengthscale", lengthscale, (*self.batch_shape, 1, 1))
        self.declare("outputscale", outputscale, tuple(self.batch_shape))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if diag:
            return self.level(x1)
        # On the circle the kernel is an RBF: |u - u'|^2 = 4 sin^2(pi (x - x') / period).
        # Only differences matter: centring keeps the phases, and their gradient in the period, accurate far from zero.
        centre = x1.detach().mean(-2, keepdim=True)
        u1, u2 = (self._circle(x - centre) for x in (x1, x2))
        return self.outputscale[..., None, None] * torch.exp(-0.5 * squared_distance(u1, u2))

    def _circle(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi * x / self.period
        return torch.cat([angle.cos(), angle.sin()], -1) / self.lengthscale

    def _init_from(self, data: Data) -> None:
        super()._init_from(data)
        self.start("lengthscale", 1.0, box=(1e-2, 1e3))


class Cosine(Repeating):
    """Cosine kernel of one input, ``k = outputscale * cos(2 pi (x - x') / period)``: a pure tone of unknown phase.

    Arguments: period: in input units; outputscale: k(0). Raises: InputError for more than one input column.
    Cost: O(N M). Source: Wilson & Adams (2013), eq. 12 in the limit of zero width.

    >>> Cosine(period=0.5)
    Cosine(period=0.5, outputscale=1)
    """

    overtones = 1

    def __init__(self, period: Any = None, outputscale: Any = None, *, active_dims: Any = None, batch_shape: Any = ()):
        super().__init__(active_dims, batch_shape)
        self.declare("period", period, (*self.batch_shape, 1, 1))
        self.declare("outputscale", outputscale, tuple(self.batch_shape))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        self.require_one_column(x1)
        if diag:
            return self.level(x1)
        return self.outputscale[..., None, None] * torch.cos(2 * math.pi * (x1 - x2.mT) / self.period)
