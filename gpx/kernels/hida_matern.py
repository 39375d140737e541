"""The Hida-Matern kernel: a Matern kernel around a frequency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.kernels.base import Kernel, Value
from gpx.kernels.stationary import matern_profile
from gpx.linalg.periodogram import dominant_periods, nyquist
from gpx.parameters import Box


class HidaMatern(Kernel):
    """Hida-Matern kernel of one input, ``k = outputscale * M_nu(sqrt(2 nu) tau / lengthscale) cos(2 pi frequency tau)``.

    ``tau = |x - x'|``, ``nu = order + 1/2``, M_nu as in `Matern`: a tone whose amplitude and phase drift. Sums of them
    approximate every stationary kernel of one input; each is a Markov process of 2 (order + 1) states, order + 1 if
    the frequency is 0.

    Arguments: order: 0, 1, 2, ...; lengthscale: positive, in input units; frequency: in cycles per input unit, 0 or more.
    None starts at the strongest peak of the Lomb-Scargle periodogram (every term of a sum at another), and is kept below
    the Nyquist frequency of the median spacing; 0 stays 0 (no gradient leads away from it) unless ``set`` gives another
    one or frees it.
    outputscale: k(0), in squared target units.
    Raises: InputError for another order, a negative frequency, or more than one input column. Cost: O(N M order).
    Source: Dowling, Sokol & Park (2021), "Hida-Matern kernel", arXiv 2107.07098.

    >>> HidaMatern(order=1, lengthscale=3.0, frequency=0.25)
    HidaMatern(order=1, lengthscale=3, frequency=0.25, outputscale=1)
    """

    structure = ("order",)
    lengthscale = Value(1.0, length=True)  # pyright: ignore[reportAssignmentType]
    frequency = Value(0.0, positive=False, lower=0.0)
    outputscale = Value(1.0)

    def __init__(self, order: int = 1, lengthscale: Any = None, frequency: Any = None, outputscale: Any = None, *,
                 active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(active_dims, batch_shape)
        self.order = check_order(type(self).__name__, order)
        self.declare("lengthscale", lengthscale, (*self.batch_shape, 1, 1))
        self.declare("frequency", frequency, (*self.batch_shape, 1, 1))
        self.declare("outputscale", outputscale, tuple(self.batch_shape))
        self.fix("frequency", frequency is not None and self._is_zero())

    @property
    def is_stationary(self) -> bool:
        return True

    @property
    def tones(self) -> tuple[float, ...]:
        """Its periods, in input units."""
        return tuple(1 / f for f in self.frequency.detach().reshape(-1).tolist() if f)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        self.require_one_column(x1)
        if diag:
            return self.level(x1)
        tau = x1 - x2.mT
        envelope = matern_profile((2 * self.order + 1) * (tau / self.lengthscale).square(), self.order)
        return self.outputscale[..., None, None] * envelope * torch.cos(2 * math.pi * self.frequency * tau)

    def _is_zero(self) -> bool:
        return not bool(self.frequency.detach().any())

    def _set_one(self, name: str, choice: Mapping[str, Any]) -> None:
        super()._set_one(name, choice)
        if name == "frequency" and choice.get("fixed") is None and choice.get("init") is not None:
            self.fix("frequency", self._is_zero())

    def _init_from(self, data: Data) -> None:
        self.start("lengthscale", float(data.spread[0]) * data.resolution, box=data.length_box)
        self.start("outputscale", data.variance)
        if data.x.shape[1] == 1:
            self._start_frequency(data)

    def _start_frequency(self, data: Data) -> None:
        t, choice = data.x[:, 0], self.choices["frequency"]
        highest = nyquist(t)
        if highest is None:
            return
        span = float(t.max() - t.min())
        if not choice.bounded:
            given = float(self.frequency.detach().max())
            self.register_constraint("raw_frequency", Box(0.0, max(highest, given)))
        search = not choice.fixed and (self._is_zero() or not choice.given)
        found = dominant_periods(t, data.y[:, 0], limit=1, besides=data.taken) if search else []
        # Without a peak: half a cycle over the range, close to a Matern kernel, but with a gradient.
        begin = 1 / found[0] if found else 0.5 / span
        if choice.given and not choice.fixed and self._is_zero():
            self.assign("frequency", begin)
        # A frequency is seen to a fraction of a cycle over the range, wherever it lies: its unit is 1 / span.
        self.start("frequency", begin, scale=1 / span)


def check_order(owner: str, order: Any) -> int:
    """The order p of a Matern kernel of smoothness p + 1/2. Raises: InputError unless it is 0, 1, 2, ..."""
    if isinstance(order, bool) or not isinstance(order, Integral) or order < 0:
        raise InputError(
            f"{owner} needs an integer order >= 0 (its Matern factor has nu = order + 1/2), got {order!r}."
        )
    return int(order)
