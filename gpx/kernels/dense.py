"""Eager kernel matrices of any gpytorch kernel: `dense` and `diagonal`, open to registration.

gpytorch applies `active_dims` in ``Kernel.__call__``, which builds lazy objects; here the columns are selected once,
``forward`` is called, and a tensor comes back.
"""

from __future__ import annotations

from functools import reduce, singledispatch
from typing import Any

import torch
from gpytorch import kernels as gpytorch_kernels
from linear_operator import to_dense
from torch import Tensor

from gpx.errors import StructureError


def select(kernel: gpytorch_kernels.Kernel, x: Tensor) -> Tensor:
    """The columns of x that the kernel acts on."""
    return x if kernel.active_dims is None else x.index_select(-1, kernel.active_dims)


@singledispatch
def dense(kernel: Any, x1: Tensor, x2: Tensor) -> Tensor:
    """The kernel matrix [..., N, M] of x1 [..., N, D] and x2 [..., M, D], as a tensor."""
    raise StructureError(f"Expected a gpytorch kernel, got {type(kernel).__name__}.")


@singledispatch
def diagonal(kernel: Any, x: Tensor) -> Tensor:
    """The prior variances [..., N] at x [..., N, D]."""
    raise StructureError(f"Expected a gpytorch kernel, got {type(kernel).__name__}.")


@dense.register
def _(kernel: gpytorch_kernels.Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    return to_dense(kernel.forward(select(kernel, x1), select(kernel, x2)))


@diagonal.register
def _(kernel: gpytorch_kernels.Kernel, x: Tensor) -> Tensor:
    x = select(kernel, x)
    result = kernel.forward(x, x, diag=True)
    # Some gpytorch kernels ignore diag=True.
    batch = torch.broadcast_shapes(x.shape[:-2], kernel.batch_shape)
    return result if result.dim() == len(batch) + 1 else to_dense(result).diagonal(dim1=-1, dim2=-2)


@dense.register
def _(kernel: gpytorch_kernels.AdditiveKernel, x1: Tensor, x2: Tensor) -> Tensor:
    x1, x2 = select(kernel, x1), select(kernel, x2)
    return reduce(torch.add, (dense(k, x1, x2) for k in kernel.kernels))


@diagonal.register
def _(kernel: gpytorch_kernels.AdditiveKernel, x: Tensor) -> Tensor:
    x = select(kernel, x)
    return reduce(torch.add, (diagonal(k, x) for k in kernel.kernels))


@dense.register
def _(kernel: gpytorch_kernels.ProductKernel, x1: Tensor, x2: Tensor) -> Tensor:
    x1, x2 = select(kernel, x1), select(kernel, x2)
    return reduce(torch.mul, (dense(k, x1, x2) for k in kernel.kernels))


@diagonal.register
def _(kernel: gpytorch_kernels.ProductKernel, x: Tensor) -> Tensor:
    x = select(kernel, x)
    return reduce(torch.mul, (diagonal(k, x) for k in kernel.kernels))


@dense.register
def _(kernel: gpytorch_kernels.ScaleKernel, x1: Tensor, x2: Tensor) -> Tensor:
    return kernel.outputscale[..., None, None] * dense(kernel.base_kernel, _to_base(kernel, x1), _to_base(kernel, x2))


@diagonal.register
def _(kernel: gpytorch_kernels.ScaleKernel, x: Tensor) -> Tensor:
    return kernel.outputscale[..., None] * diagonal(kernel.base_kernel, _to_base(kernel, x))


def _to_base(kernel: gpytorch_kernels.ScaleKernel, x: Tensor) -> Tensor:
    # ScaleKernel copies the active_dims of a base kernel that has some, and applies them once: here the base does.
    return x if kernel.base_kernel.active_dims is not None else select(kernel, x)
