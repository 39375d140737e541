"""Prior means."""

from __future__ import annotations

from itertools import combinations_with_replacement
from numbers import Integral
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpx import stored
from gpx.errors import InputError
from gpx.inputs import Data
from gpx.parameters import Parameterised, Value, format_value

HIGHEST = 3  # degree of a trend


class _Mean(Parameterised, gpytorch.means.Mean):
    def __init__(self) -> None:
        super().__init__()
        self.choices = {}
        self.columns: tuple[str, ...] = ()

    def _spread(self, name: str, shape: tuple[int, ...]) -> None:
        """Give a value its shape: one that has it keeps its numbers; a single number is for all, one per latent function for
        those of every output.
        """
        value = getattr(self, name).detach()
        if value.shape == shape:
            return
        if value.numel() == 1:
            spread = value.reshape(-1).expand(shape).clone()
        elif value.shape[:-1] == shape[:-1] and shape[-1] % value.shape[-1] == 0:
            spread = value.repeat(*[1] * (value.dim() - 1), shape[-1] // value.shape[-1])
        else:
            raise InputError(
                f"The {name} of {type(self).__name__} has shape {list(value.shape)}, the model needs {list(shape)}: its last axis"
                " is that of outputs and their latent functions. Give one number, or a new mean such as mean='constant'."
            )
        self.assign(name, spread)


class _Learned(_Mean):
    constant = Value(0.0, positive=False)

    def __init__(self) -> None:
        super().__init__()
        self.declare("constant", None, (1,))

    def bind(self, data: Data, outputs: int) -> None:
        """Give every output its own constant."""
        self.columns = data.columns
        self._spread("constant", (outputs,))

    def init_from(self, data: Data) -> None:
        """Start at the mean of the observed targets."""
        y = data.y
        self.start("constant", torch.nan_to_num(torch.nanmean(y, 0)), scale=data.variance**0.5)

    def __repr__(self) -> str:
        values = ", ".join(f"{n}={format_value(getattr(self, n))}" for n in self.choices)
        return f"{type(self).__name__}({values})"


class ConstantMean(_Learned):
    """``mean(x) = constant``, one constant per output, in target units."""

    def forward(self, x: Tensor) -> Tensor:
        return self.constant.expand(*x.shape[:-1], -1)


class LinearMean(_Learned):
    """``mean(x) = constant + slope^T (x - center)``; center: the mean of the inputs, fixed."""

    slope = Value(0.0, positive=False)
    center = Value(0.0, positive=False, fixed=True)

    def __init__(self) -> None:
        super().__init__()
        self.declare("slope", None, (1, 1))
        self.declare("center", None, (1,))

    def bind(self, data: Data, outputs: int) -> None:
        super().bind(data, outputs)
        self._spread("slope", (len(data.columns), outputs))
        self._spread("center", (len(data.columns),))

    def init_from(self, data: Data) -> None:
        """Start at the least-squares plane through the observed targets."""
        center = data.x.mean(0)
        planes = []
        for column, seen in zip(data.y.T, data.observed.T, strict=True):
            # Ridge by a tiny amount: constant or collinear columns get slope zero, not an error.
            gram, push = 1e-9 * max(1, int(seen.sum())) * torch.eye(1 + len(center)).to(center), 0.0
            for rows in stored.slices(len(data.x)):
                x = data.x[rows][seen[rows]]
                design = torch.cat([torch.ones_like(x[:, :1]), (x - center) / data.spread], 1)
                gram, push = gram + design.mT @ design, push + design.mT @ column[rows][seen[rows]]
            planes.append(torch.linalg.solve(gram, push))
        plane = torch.stack(planes, 1)
        target = data.variance**0.5
        self.start("center", center)
        self.start("constant", plane[0], scale=target)
        self.start("slope", plane[1:] / data.spread[:, None], scale=target / float(data.spread.mean()))

    def forward(self, x: Tensor) -> Tensor:
        return self.constant + (x - self.center) @ self.slope


class Trend(_Mean):
    """A polynomial of the inputs whose coefficients have a flat prior: ``sum_j b_j prod_d ((x_d - center_d) / scale_d)^j_d`` over
    all powers j with ``sum_d j_d <= degree``; center and scale: mean and standard deviation of the inputs, fixed. Columns that
    are constant in the first data are left out: their scale is 0.

    Nothing is learned: the coefficients are integrated over, so that predictions know how uncertain they are, hyperparameters are
    those of restricted maximum likelihood, and far from the data the trend goes on. The evidence is the limit of that of a prior
    N(0, s) on every coefficient plus ``log(2 pi s) / 2`` for each; it compares kernels, but not trends of different degree.

    Arguments: degree: 0 (an unknown constant, as in ordinary kriging) to 3. Raises: InputError for another one. Cost: see
    `gpx.flat.Flat`. Source: Rasmussen & Williams (2006), section 2.7.

    >>> Trend(1)
    Trend(degree=1)
    """

    center = Value(0.0, positive=False, fixed=True)
    scale = Value(0.0, positive=False, fixed=True)  # 0 before any data

    def __init__(self, degree: int = 1) -> None:
        super().__init__()
        if isinstance(degree, bool) or not isinstance(degree, Integral) or not 0 <= degree <= HIGHEST:
            raise InputError(f"Trend needs an integer degree from 0 (a constant) to {HIGHEST}, got {degree!r}.")
        self.degree = int(degree)
        self.declare("center", None, (1,))
        self.declare("scale", None, (1,))

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [], {"degree": self.degree}

    def bind(self, data: Data, outputs: int) -> None:
        """Center and scale by the first data."""
        self.columns = data.columns
        if not bool(self.scale.any()):
            constant = (data.x == data.x[:1]).all(0)
            self.assign("center", data.x.mean(0))
            self.assign("scale", data.spread.masked_fill(constant, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., 0])

    def basis(self, x: Tensor) -> Tensor:
        """The functions [N, q] at x [N, D]."""
        scale = self.scale.detach()
        unit = (x - self.center.detach()) / torch.where(scale > 0, scale, 1.0)
        moving = scale.nonzero().flatten().tolist()
        chosen = [c for n in range(self.degree + 1) for c in combinations_with_replacement(moving, n)]
        return torch.stack([unit[:, list(c)].prod(1) for c in chosen], 1)

    def __repr__(self) -> str:
        return f"Trend(degree={self.degree})"


MEANS = {"constant": ConstantMean, "zero": gpytorch.means.ZeroMean, "linear": LinearMean, "trend": Trend}


def as_mean(mean: Any) -> gpytorch.means.Mean:
    """The mean function of a name, or the given gpytorch mean."""
    if isinstance(mean, gpytorch.means.Mean):
        return mean
    if isinstance(mean, str) and mean in MEANS:
        return MEANS[mean]()
    raise InputError(
        f"mean must be {', '.join(map(repr, MEANS))}, means.Trend(degree) or a gpytorch.means.Mean, got {mean!r}."
    )
