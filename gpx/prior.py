"""The prior that every engine receives: a mean function and one kernel per latent function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpx import stored
from gpx.errors import InputError
from gpx.inputs import Data
from gpx.parameters import Parameterised, Value, format_value


@dataclass(frozen=True)
class Prior:
    """``f_l ~ GP(mean, kernels[l])``, independent over the latent functions l and over the outputs.

    With P outputs and L latents there are C = P L columns, output-major: column c has kernel ``c % L``.
    """

    mean: gpytorch.means.Mean
    kernels: tuple[gpytorch.kernels.Kernel, ...]

    def mean_at(self, x: Tensor, columns: int) -> Tensor:
        """The prior mean [N, C] at x [N, D]."""
        blocks = stored.slices(len(x)) if x.dim() == 2 else [slice(None)]
        parts = [self.mean(x[rows]) for rows in blocks]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        value = value if value.dim() == x.dim() else value.unsqueeze(-1)
        return value.expand(*x.shape[:-1], columns).clone()  # not a view of a parameter that may move later


class _Mean(Parameterised, gpytorch.means.Mean):
    constant = Value(0.0, positive=False)

    def __init__(self) -> None:
        super().__init__()
        self.choices = {}
        self.columns: tuple[str, ...] = ()
        self.declare("constant", None, (1,))

    def bind(self, columns: tuple[str, ...], outputs: int) -> None:
        """Give every output its own constant."""
        self.columns = columns
        self._spread("constant", (outputs,))

    def _spread(self, name: str, shape: tuple[int, ...]) -> None:
        """Give a value its shape; one that has it keeps its numbers."""
        value = getattr(self, name).detach()
        if value.shape != shape:
            self.assign(name, value.reshape(-1)[:1].expand(shape).clone())

    def init_from(self, data: Data) -> None:
        """Start at the mean of the observed targets."""
        y = data.y
        self.start("constant", torch.nan_to_num(torch.nanmean(y, 0)), scale=data.variance**0.5)

    def __repr__(self) -> str:
        values = ", ".join(f"{n}={format_value(getattr(self, n))}" for n in self.choices)
        return f"{type(self).__name__}({values})"


class ConstantMean(_Mean):
    """``mean(x) = constant``, one constant per output, in target units."""

    def forward(self, x: Tensor) -> Tensor:
        return self.constant.expand(*x.shape[:-1], -1)


class LinearMean(_Mean):
    """``mean(x) = constant + slope^T (x - center)``; center: the mean of the inputs, fixed."""

    slope = Value(0.0, positive=False)
    center = Value(0.0, positive=False, fixed=True)

    def __init__(self) -> None:
        super().__init__()
        self.declare("slope", None, (1, 1))
        self.declare("center", None, (1,))

    def bind(self, columns: tuple[str, ...], outputs: int) -> None:
        super().bind(columns, outputs)
        self._spread("slope", (len(columns), outputs))
        self._spread("center", (len(columns),))

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


MEANS = {"constant": ConstantMean, "zero": gpytorch.means.ZeroMean, "linear": LinearMean}


def as_mean(mean: Any) -> gpytorch.means.Mean:
    """The mean function of a name, or the given gpytorch mean."""
    if isinstance(mean, gpytorch.means.Mean):
        return mean
    if isinstance(mean, str) and mean in MEANS:
        return MEANS[mean]()
    raise InputError(f"mean must be {', '.join(map(repr, MEANS))} or a gpytorch.means.Mean, got {mean!r}.")
