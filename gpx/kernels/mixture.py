"""What kernels have in common whose spectral density is a sum of bumps, one for every frequency that the data have."""

from __future__ import annotations

import math
from functools import reduce
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.kernels.base import Kernel, Value
from gpx.kernels.spectral_start import Start, bearings, spectral_starts
from gpx.parameters import Box, as_value


class Mixture(Kernel):
    """``k(t) = sum_q w_q envelope_q(t) cos(2 pi mu_q . t)``: a subclass declares the values, and gives the envelopes."""

    structure = ("num_mixtures",)
    ard = True
    width: str  # the name of the values that the envelopes have
    mixture_weights = Value(1.0)
    mixture_means = Value(0.0, positive=False)

    def __init__(self, num_mixtures: int, weights: Any, means: Any, widths: Any, active_dims: Any, batch_shape: Any):
        super().__init__(active_dims, batch_shape)
        self.num_mixtures = check_positive(type(self).__name__, "num_mixtures", num_mixtures)
        self.declare("mixture_weights", weights, (*self.batch_shape, self.num_mixtures))
        for name, value in (("mixture_means", means), (self.width, widths)):
            rows = None if value is None else self._rows(name, value)
            columns = 1 if rows is None else rows.shape[-1]
            self.declare(name, rows, (*self.batch_shape, self.num_mixtures, columns))

    def _rows(self, name: str, value: Any) -> Tensor:
        """A value with one row per mixture: a list is one of Q numbers, or of D where there is one mixture."""
        given = as_value(type(self).__name__, name, value)
        if given.dim() == 0:
            return given.reshape(1, 1)
        if given.dim() == 1:
            given = given.reshape(-1, 1) if len(given) == self.num_mixtures else given.reshape(1, -1)
        if given.shape[-2] != self.num_mixtures:
            raise InputError(
                f"{type(self).__name__}: {name} has shape {list(as_value('', name, value).shape)}, expected"
                f" [{self.num_mixtures}] or [{self.num_mixtures}, D]: a row for each of num_mixtures={self.num_mixtures}."
            )
        return given

    @property
    def is_stationary(self) -> bool:
        return True

    @property
    def outputscale(self) -> Tensor:
        """k(0), the sum of the weights."""
        return self.mixture_weights.sum(-1)

    @property
    def tones(self) -> tuple[float, ...]:
        """The periods of its mixtures on one input column, in input units."""
        means = self.mixture_means.detach()
        return tuple(1 / abs(f) for f in means.reshape(-1).tolist() if f) if means.shape[-1] == 1 else ()

    @property
    def least_points(self) -> int:
        """How many targets `init_from` needs."""
        return self.num_mixtures

    def widths(self, lengthscales: Tensor) -> Tensor:
        """The widths of envelopes of these lengthscales."""
        raise NotImplementedError(f"{type(self).__name__} must define widths(lengthscales).")

    def envelope(self, x1: Tensor, x2: Tensor, width: Tensor) -> Tensor:
        """The envelope [..., N, M] of one mixture of widths [..., 1, D]."""
        raise NotImplementedError(f"{type(self).__name__} must define envelope(x1, x2, width).")

    def _init_from(self, data: Data) -> None:
        starts = [self._values(start) for start in spectral_starts(type(self).__name__, data, self.num_mixtures)]
        ranges = bearings(data)
        spans = torch.from_numpy(ranges.spans)
        # A frequency is seen to a fraction of a cycle over the range, wherever it lies: its unit is 1 / span.
        self.start("mixture_means", starts[0]["mixture_means"], scale=1 / spans)
        # Priors are those of any mixture, so that no start is favoured, whatever the order of its mixtures.
        medians = {"mixture_weights": data.variance / self.num_mixtures, self.width: self.widths(spans)}
        for name, median in medians.items():
            self.start(name, starts[0][name], median=median)
        if not self.choices["mixture_means"].bounded:
            present = self.mixture_means.detach().cpu().abs().reshape(-1, len(ranges.highest)).amax(0)
            highest = torch.maximum(torch.from_numpy(ranges.highest), present)
            self.register_constraint("raw_mixture_means", Box(-highest, highest))
        self.alternatives = tuple(starts[1:])

    def _values(self, start: Start) -> dict[str, Tensor]:
        values = (torch.from_numpy(v) for v in (start.weights, start.means, start.lengthscales))
        weights, means, lengthscales = (v.expand(*self.batch_shape, *v.shape) for v in values)
        return {"mixture_weights": weights, "mixture_means": means, self.width: self.widths(lengthscales)}

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if diag:
            return self.level(x1)
        # Only differences matter: centring keeps phases, and gradients in frequencies, accurate far from zero.
        centre = x1.detach().mean(-2, keepdim=True)
        x1, x2 = x1 - centre, x2 - centre
        columns = x1.shape[-1]
        means, widths = (getattr(self, n).expand(*self.batch_shape, -1, columns) for n in ("mixture_means", self.width))
        # One mixture at a time, forward and backward: what autograd would keep of each is computed again instead.
        parts = (
            checkpoint(self._component, x1, x2, *values, use_reentrant=False, preserve_rng_state=False)
            for values in zip(self.mixture_weights.unbind(-1), means.unbind(-2), widths.unbind(-2), strict=True)
        )
        return reduce(torch.add, parts)

    def _component(self, x1: Tensor, x2: Tensor, weight: Tensor, mean: Tensor, width: Tensor) -> Tensor:
        phases = (2 * math.pi * (x * mean.unsqueeze(-2)).sum(-1, keepdim=True) for x in (x1, x2))
        waves = [torch.cat([p.cos(), p.sin()], -1) for p in phases]
        cosine = waves[0] @ (weight[..., None, None] * waves[1]).mT  # cos(a - b) = cos a cos b + sin a sin b
        return self.envelope(x1, x2, width.unsqueeze(-2)) * cosine


def check_positive(owner: str, name: str, value: Any) -> int:
    """A number of things. Raises: InputError unless it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{owner} needs an integer {name} >= 1, got {value!r}.")
    return int(value)
