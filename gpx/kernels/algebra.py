"""Sums and products of kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import gpytorch
import torch
from torch import Tensor
from torch.nn import ModuleList

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.kernels.base import Kernel
from gpx.kernels.dense import dense, diagonal
from gpx.kernels.simple import Constant
from gpx.kernels.walk import init_from


class _Composite(Kernel):
    """What Sum and Product share: children that select their own columns of what this kernel selects."""

    combine: Callable[[Tensor, Tensor], Tensor]
    symbol: str

    def __init__(self, *kernels: gpytorch.kernels.Kernel, active_dims: Any = None):
        if not kernels:
            raise InputError(f"{type(self).__name__} needs at least one kernel.")
        for kernel in kernels:
            if not isinstance(kernel, gpytorch.kernels.Kernel):
                raise InputError(f"{type(self).__name__} combines kernels, got {type(kernel).__name__}.")
        Kernel.__init__(self, active_dims)
        self.kernels = ModuleList(kernels)

    @property
    def is_stationary(self) -> bool:
        return all(k.is_stationary for k in self.kernels)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return list(self.kernels), super().arguments()[1]

    def init_from(self, data: Data) -> None:
        init_from(self, data)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        parts = (diagonal(k, x1) if diag else dense(k, x1, x2) for k in self.kernels)
        return reduce(type(self).combine, parts)

    def set(self, **choices: Any) -> Kernel:
        raise InputError(
            f"A {type(self).__name__} has no parameters of its own; set those of a part: kernel.kernels[0].set(...)."
        )

    def __repr__(self) -> str:
        wrap = isinstance(self, Product)
        parts = [f"({k!r})" if wrap and isinstance(k, Sum) else repr(k) for k in self.kernels]
        text = self.symbol.join(parts)
        dims = self.named_dims if self.active_dims is None or self.named_dims else self.active_dims.tolist()
        return text if dims is None else f"{type(self).__name__}({', '.join(parts)}, active_dims={list(dims)})"


class Sum(_Composite, gpytorch.kernels.AdditiveKernel):
    """``k = k_1 + k_2 + ...``: independent components add.

    >>> from gpx.kernels import RBF
    >>> RBF() + Constant()
    RBF(lengthscale=1, outputscale=1) + Constant(outputscale=1)
    """

    combine = staticmethod(torch.add)
    symbol = " + "


class Product(_Composite, gpytorch.kernels.ProductKernel):
    """``k = k_1 k_2 ...``; of the outputscales only the first is learned, unless a later one is given.

    >>> from gpx.kernels import RBF, Periodic
    >>> RBF() * Periodic(period=1.0)
    RBF(lengthscale=1, outputscale=1) * Periodic(period=1, lengthscale=1, outputscale=1)
    """

    combine = staticmethod(torch.mul)
    symbol = " * "


def add(left: Any, right: Any) -> Kernel:
    """`left + right`; a number counts as a constant kernel, nested sums are flattened."""
    return Sum(*_parts(left, Sum), *_parts(right, Sum))


def multiply(left: Any, right: Any) -> Kernel:
    """`left * right`; a number counts as a constant kernel, nested products are flattened."""
    return Product(*_parts(left, Product), *_parts(right, Product))


def _parts(kernel: Any, kind: type[_Composite]) -> list[gpytorch.kernels.Kernel]:
    if isinstance(kernel, (int, float)):
        kernel = Constant(float(kernel))
    if isinstance(kernel, kind) and kernel.active_dims is None and kernel.named_dims is None:
        return list(kernel.kernels)
    if isinstance(kernel, gpytorch.kernels.Kernel):
        return [kernel]
    raise InputError(f"Kernels combine with kernels and positive numbers, got {type(kernel).__name__}.")
