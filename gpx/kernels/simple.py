"""Kernels of a line, of a constant and of labels that are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpx.inputs import Data
from gpx.kernels.base import Kernel, Value


class Linear(Kernel):
    """Linear kernel, ``k = sum_d outputscale_d (x_d - center_d) (x'_d - center_d)``: straight lines through `center`.

    Arguments: outputscale: the variance of the slope, in squared target units per squared input unit; center: where all
    lines cross, in input units (fixed; `fit` puts it at the mean of the inputs; free it with
    ``set(center=dict(fixed=False))``); ard: one slope variance per dimension.
    Cost: O(N M D). Source: Rasmussen & Williams (2006), section 4.2.2.

    >>> Linear()
    Linear(outputscale=1, center=0)
    """

    structure = ("ard",)
    per_dimension = ("outputscale", "center")
    outputscale = Value(1.0)
    center = Value(0.0, positive=False, fixed=True)

    def __init__(self, outputscale: Any = None, center: Any = None, ard: bool = False, *,
                 active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(active_dims, batch_shape)
        self.ard = bool(ard)
        self.declare_per_column("outputscale", outputscale)
        self.declare_per_column("center", center)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        x1, x2 = x1 - self.center, x2 - self.center
        if diag:
            return (x1 * self.outputscale * x2).sum(-1)
        return (x1 * self.outputscale) @ x2.mT

    def _init_from(self, data: Data) -> None:
        square = data.spread.square()
        slope = data.variance / (square * len(square) if self.ard else square.sum())
        self.start("outputscale", slope.reshape(1, -1).expand(*self.batch_shape, 1, -1))
        if len(data.x):
            self.start("center", data.x.mean(0).reshape(1, -1).expand(*self.batch_shape, 1, -1))


class Constant(Kernel):
    """Constant kernel, ``k = outputscale``: an unknown offset; as a factor, a scale.

    >>> Constant(2.0)
    Constant(outputscale=2)
    """

    outputscale = Value(1.0)

    def __init__(self, outputscale: Any = None, *, active_dims: Any = None, batch_shape: Any = ()):
        super().__init__(active_dims, batch_shape)
        self.declare("outputscale", outputscale, tuple(self.batch_shape))

    @property
    def is_stationary(self) -> bool:
        return True

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        rows = (x1.shape[-2],) if diag else (x1.shape[-2], x2.shape[-2])
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2], self.batch_shape)
        return self.outputscale.reshape(*self.batch_shape, *(1,) * len(rows)).expand(*batch, *rows)


class Same(Kernel):
    """1 where two rows have the same label, else 0: as a factor, an independent function for every label, all with the same
    hyperparameters, such as series of different lengths one below the other.

    X: numbers that label the rows, in one column or several (all must agree). `engines.StateSpace` takes the series one after
    the other, in linear time. Cost: O(N M).

    >>> from gpx.kernels import Matern
    >>> Matern(nu=1.5, active_dims=["time"]) * Same(active_dims=["series"])
    Matern(nu=1.5, lengthscale=1, outputscale=1, active_dims=['time']) * Same(active_dims=['series'])
    """

    labels = True

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        same = x1 == x2 if diag else x1.unsqueeze(-2) == x2.unsqueeze(-3)
        return same.all(-1).to(x1)
