"""Kronecker form of a kernel: a product of covariance functions, each of its own columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce, singledispatch
from typing import Any

import torch
from gpytorch import kernels as gpytorch_kernels
from torch import Tensor

from gpx.errors import StructureError
from gpx.grid import Axes
from gpx.kernels import RBF, Constant
from gpx.kernels.dense import dense, diagonal

Columns = tuple[int, ...]


@dataclass(frozen=True)
class Factor:
    """A factor of a kernel.

    covariance: (x1 [n, d], x2 [m, d]) -> [n, m], differentiable in its parameters, of the columns `inputs` of the data; columns:
    those on which it depends. separable: whether it is a product over these; it is then the same function of some of them,
    the others being equal, and scale [] its value where all are.
    """

    name: str
    covariance: Callable[[Tensor, Tensor], Tensor]
    inputs: Columns
    columns: Columns
    separable: bool = False
    scale: Callable[[], Tensor] | None = None


@singledispatch
def factors(kernel: Any, columns: Columns) -> tuple[Factor, ...]:
    """The factors of a kernel whose inputs are these columns of the data. Open to registration; a kernel is one factor of all
    columns that it selects unless it says otherwise.
    """
    used = _selected(kernel, columns)
    return (Factor(_name(kernel), lambda a, b: dense(kernel, a, b), columns, used),)


@factors.register
def _(kernel: gpytorch_kernels.ProductKernel, columns: Columns) -> tuple[Factor, ...]:
    inside = _selected(kernel, columns)
    return tuple(factor for part in kernel.kernels for factor in factors(part, inside))


@factors.register
def _(kernel: gpytorch_kernels.AdditiveKernel, columns: Columns) -> tuple[Factor, ...]:
    inside = _selected(kernel, columns)
    if len(kernel.kernels) == 1:
        return factors(kernel.kernels[0], inside)
    used = sorted({c for part in kernel.kernels for factor in factors(part, inside) for c in factor.columns})
    return (Factor(_name(kernel), lambda a, b: dense(kernel, a, b), columns, tuple(used)),)


@factors.register
def _(kernel: gpytorch_kernels.ScaleKernel, columns: Columns) -> tuple[Factor, ...]:
    base = kernel.base_kernel
    inside = (
        columns if base.active_dims is not None else _selected(kernel, columns)
    )  # applied once: see `kernels.dense`
    scale = Factor(
        "outputscale", lambda a, b: kernel.outputscale.reshape(()).expand(a.shape[-2], b.shape[-2]), columns, ()
    )
    return scale, *factors(base, inside)


@factors.register
def _(kernel: Constant, columns: Columns) -> tuple[Factor, ...]:
    return (Factor(_name(kernel), lambda a, b: dense(kernel, a, b), columns, ()),)


@factors.register(RBF)
@factors.register(gpytorch_kernels.RBFKernel)
def _(kernel: Any, columns: Columns) -> tuple[Factor, ...]:
    def scale() -> Tensor:
        return diagonal(kernel, torch.zeros(1, len(columns)).to(kernel.lengthscale))[0]

    used = _selected(kernel, columns)
    return (Factor(_name(kernel), lambda a, b: dense(kernel, a, b), columns, used, True, scale),)


def _selected(kernel: Any, columns: Columns) -> Columns:
    return columns if kernel.active_dims is None else tuple(columns[int(d)] for d in kernel.active_dims)


def _name(kernel: Any) -> str:
    return type(kernel).__name__


def atoms(kernel: Any, width: int) -> Axes:
    """The finest partition of so many columns into groups between which the kernel factors."""
    groups = [{c} for c in range(width)]
    for factor in factors(kernel, tuple(range(width))):
        joined = set() if factor.separable else set(factor.columns)
        met = [g for g in groups if g & joined]
        groups = [g for g in groups if not g & joined] + ([set().union(*met)] if met else [])
    return tuple(sorted(tuple(sorted(g)) for g in groups))


@dataclass(frozen=True)
class KroneckerForm:
    """``k(x, x') = prod_d k_d(x_d, x'_d)`` over axes d. axes: the columns of each; parts: its factors, and whether their scale is
    left to another axis. exact: always.
    """

    axes: Axes
    parts: tuple[tuple[tuple[Factor, bool], ...], ...]
    exact: bool = True

    def matrix(self, axis: int, x1: Tensor, x2: Tensor) -> Tensor:
        """k_d [n, m] of the values x1 [n, k] and x2 [m, k] on an axis of k columns; differentiable."""
        a, b = self._embedded(axis, x1), self._embedded(axis, x2)
        found = [_value(factor, shared, a, b) for factor, shared in self.parts[axis]]
        return reduce(torch.mul, found) if found else x1.new_ones(len(x1), len(x2))

    def diagonal(self, axis: int, x: Tensor) -> Tensor:
        """k_d(x, x) [n] of the values x [n, k] on an axis."""
        a = self._embedded(axis, x)[:, None]  # a batch of single places
        found = [_value(factor, shared, a, a).reshape(-1) for factor, shared in self.parts[axis]]
        return reduce(torch.mul, [part.expand(len(x)) for part in found]) if found else x.new_ones(len(x))

    def _embedded(self, axis: int, x: Tensor) -> Tensor:
        """All columns of the data, those of other axes being zero."""
        whole = x.new_zeros(len(x), sum(map(len, self.axes)))
        return whole.index_copy(1, torch.tensor(self.axes[axis], device=x.device), x)


def _value(factor: Factor, shared: bool, a: Tensor, b: Tensor) -> Tensor:
    index = torch.tensor(factor.inputs, dtype=torch.long, device=a.device)
    value = factor.covariance(a.index_select(-1, index), b.index_select(-1, index))
    return value / factor.scale() if shared and factor.scale is not None else value


def kronecker(kernel: Any, axes: Sequence[Sequence[int]]) -> KroneckerForm:
    """The Kronecker form of a kernel over axes, given by their columns.

    Raises: StructureError naming the factor that couples axes, and these. Cost: none; a matrix costs what the kernel's does.

    >>> from gpx.kernels import RBF, Matern
    >>> form = kronecker(RBF(active_dims=[0]) * Matern(active_dims=[1, 2]), [[0], [1, 2]])
    >>> [[factor.name for factor, _ in part] for part in form.parts]
    [['RBF'], ['Matern']]
    """
    parts: list[list[tuple[Factor, bool]]] = [[] for _ in axes]
    for factor in factors(kernel, tuple(range(sum(map(len, axes))))):
        touched = [d for d, axis in enumerate(axes) if set(axis) & set(factor.columns)]
        if len(touched) > 1 and not factor.separable:
            coupled = ", ".join(f"{d} (column {', '.join(map(str, axes[d]))})" for d in touched)
            raise StructureError(
                f"The kernel does not factor over the axes: its factor {factor.name} couples the axes {coupled}. Use a product of"
                " kernels with active_dims on separate axes, or one axis with the columns of all of these, or engines.Exact()."
            )
        for position, d in enumerate(touched or [0]):
            parts[d].append((factor, position > 0))
    return KroneckerForm(tuple(tuple(axis) for axis in axes), tuple(map(tuple, parts)))
