"""Kernels of a series in blocks of one period: the structural-equation family."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import Interval
from torch import Tensor

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.kernels.base import Kernel, Value
from gpx.kernels.dense import dense, diagonal
from gpx.kernels.periodic import Periodic
from gpx.kernels.walk import fix_outputscale, init_from, parts
from gpx.parameters import LogInterval, as_value

LIMIT = 1 - 1e-6  # |correlation| of a fit: at 1 the variance is infinite
UNCORRELATED = 1e-3  # correlation of neighbouring innovations that is as good as none


class BlockQuasiPeriodic(Kernel):
    """Blocks of one period that follow each other as an autoregression: ``F_i = correlation F_(i-1) + Z_i``.

    ``k(x, x') = correlation^|i - i'| / (1 - correlation^2) within(s, s')`` with block ``i = floor(x / period)`` and position
    ``s = x mod period``; `within` is the covariance R of the innovations Z_i, so that k(0) = R(0) / (1 - correlation^2).
    Stationary from block to block, not from step to step.

    Arguments: period: an integer >= 1, in steps; correlation: of a block with the next, in (-1, 1); within: a kernel of the
    position in the block, None: `Periodic` (its period is fixed at that of the blocks, as is that of any `Periodic` or
    `Cosine` in it). `engines.BlockCirculant` needs one that is stationary and repeats after `period` steps. X: one
    column of integers, the number of the step.
    Raises: InputError for a period or an X that is not an integer, a correlation outside (-1, 1), or several columns.
    Cost: O(N M). Source: Nigam, Srivastava, Marzbanrad & Burke (2025), arXiv 2511.01151. Theory: docs/theory/block.md.

    >>> BlockQuasiPeriodic(period=12, correlation=0.9)
    BlockQuasiPeriodic(period=12, within=Periodic(period=12, lengthscale=1, outputscale=1), correlation=0.9)
    """

    structure = ("period", "within")
    correlation = Value(0.5, positive=False)

    def __init__(self, period: int, correlation: Any = None, within: Any = None, *,
                 active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(active_dims, batch_shape)
        self.period = as_period(period)
        if not (within is None or isinstance(within, gpytorch.kernels.Kernel)):
            raise InputError(f"within must be a kernel such as kernels.Periodic(), got {within!r}.")
        self.within = Periodic() if within is None else within
        _fix_periods(self.within, self.period)
        self.declare("correlation", correlation, tuple(self.batch_shape))
        _check_correlation(self.correlation)
        self.register_constraint("raw_correlation", Interval(-LIMIT, LIMIT, transform=None))

    def assign(self, name: str, value: Any) -> None:
        if name == "correlation":
            _check_correlation(as_value(type(self).__name__, name, value))
        super().assign(name, value)

    def _set_bounds(self, name: str, bounds: Any) -> None:
        super()._set_bounds(name, bounds)
        lower, upper = map(float, bounds)
        if not -1 < lower < upper < 1:
            raise InputError(f"Bounds of correlation must lie inside (-1, 1), got {lower, upper}.")

    def blocks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the block and position in it, both [..., N], of steps x [..., N, 1] (columns as `forward` gets them).

        Raises: InputError for several columns, or steps that are not integers.
        """
        if x.shape[-1] != 1:
            raise InputError(
                f"BlockQuasiPeriodic acts on one input column, got {x.shape[-1]}; choose one with active_dims=[i]."
            )
        step = x.detach()[..., 0]
        if bool((wrong := step != step.round()).any()):
            raise InputError(
                f"BlockQuasiPeriodic needs integer steps 0, 1, 2, ... as its input, got {float(step[wrong][0]):g}: number"
                " the observations by their position in a regular grid of times."
            )
        block = torch.div(step, self.period, rounding_mode="floor")
        return block, step - self.period * block

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        (block1, s1), (block2, s2) = self.blocks(x1), self.blocks(x2)
        w = self.correlation
        if diag:
            return diagonal(self.within, s1[..., None]) / (1 - w.square())[..., None]
        w = w[..., None, None]
        lag = (block1[..., :, None] - block2[..., None, :]).abs()
        return w.pow(lag) / (1 - w.square()) * dense(self.within, s1[..., None], s2[..., None])

    def _init_from(self, data: Data) -> None:
        _, position = self.blocks(data.x)
        self.start("correlation", _lag_correlation(data, self.period))
        innovations = data.component(data.variance * (1 - float(self.correlation.detach().square().mean())))
        init_from(self.within, replace(innovations, x=position[:, None]))
        for part in self.within.modules():
            if isinstance(part, Periodic):
                _keep_correlated(part)


@parts.register
def _(kernel: BlockQuasiPeriodic) -> Any:
    return (kernel.within,)


@fix_outputscale.register
def _(kernel: BlockQuasiPeriodic) -> None:
    fix_outputscale(kernel.within)


def as_period(period: Any) -> int:
    """The number of steps, if it is one. Raises InputError otherwise."""
    number = getattr(period, "item", lambda: period)()
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number < 1 or not float(number).is_integer():
        raise InputError(
            f"BlockQuasiPeriodic needs an integer period >= 1, in steps, got {period!r}; for another period use"
            " kernels.Matern() * kernels.Periodic(period=...)."
        )
    return int(number)


def _check_correlation(value: Tensor) -> None:
    if not bool((value.detach().abs() < 1).all()):
        raise InputError(
            f"BlockQuasiPeriodic: correlation must lie inside (-1, 1), got {value.detach().tolist()}; for blocks that repeat"
            " for ever use kernels.Periodic."
        )


def _fix_periods(within: gpytorch.kernels.Kernel, period: int) -> None:
    """Periods of the parts of `within` are constants; one that was not given is that of the blocks."""
    for part in within.modules():
        choice = getattr(part, "choices", {}).get("period")
        if choice is not None:
            if not choice.given:
                part.set(period=float(period))
            part.fix("period")


def _keep_correlated(part: Periodic) -> None:
    """Keep a lengthscale that the data decide where neighbours are correlated: below, likelihoods do not depend on it."""
    choice = part.choices["lengthscale"]
    lower = math.sqrt(-2 / math.log(UNCORRELATED)) * abs(math.sin(math.pi / float(part.period.detach().mean())))
    if not (choice.given or choice.bounded) and lower > 1e-9:
        part.assign("lengthscale", part.lengthscale.detach().clamp_min(lower))
        upper = float(part.raw_lengthscale_constraint.upper_bound)
        part.register_constraint("raw_lengthscale", LogInterval(lower, upper))


def _lag_correlation(data: Data, period: int) -> float:
    """The share of the variance that comes back one period later: ``sum y_t y_(t + period) / sum y_t^2``, inside 0.95."""
    order = data.x[:, 0].argsort()
    step, y = data.x[order, 0], data.y[order]
    y = torch.nan_to_num(y - torch.nanmean(y, 0))
    later = torch.searchsorted(step, step + period)
    found = later < len(step)
    found[found.clone()] = step[later[found]] == step[found] + period
    square = float(y.square().sum())
    if not square or not bool(found.any()):
        return 0.5
    share = float((y[found] * y[later[found]]).sum()) / square * len(y) / int(found.sum())
    return min(max(share, -0.95), 0.95)
