"""What inputs and data tell a kernel and the kernels that it is made of, whether these are ours or gpytorch's.

One walk, open to registration: `parts` for another container, `init_from` for another way to start one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import singledispatch
from typing import Any

import torch
from gpytorch import kernels as gpytorch_kernels

from gpx.errors import InputError, StructureError
from gpx.inputs import Data

Resolved = list[tuple[gpytorch_kernels.Kernel, tuple[str, ...]]]


@singledispatch
def parts(kernel: Any) -> Iterable[gpytorch_kernels.Kernel]:
    """The kernels that a kernel is made of; they see the columns that it selects."""
    named = [type(m).__name__ for m in kernel.modules() if m is not kernel and _names(m) is not None]
    if named:  # they would be ignored, and the part would act on all columns
        raise StructureError(
            f"{type(kernel).__name__} holds {named[0]} with column names in active_dims, but its parts are unknown: use"
            " indices, or register them with gpx.kernels.walk.parts.register."
        )
    return ()


@parts.register(gpytorch_kernels.AdditiveKernel)
@parts.register(gpytorch_kernels.ProductKernel)
def _(kernel: Any) -> Iterable[gpytorch_kernels.Kernel]:
    return kernel.kernels


@parts.register
def _(kernel: gpytorch_kernels.ScaleKernel) -> Iterable[gpytorch_kernels.Kernel]:
    return (kernel.base_kernel,)


@singledispatch
def resolve(kernel: Any, columns: tuple[str, ...]) -> Resolved:
    """Turn named active_dims into indices of `columns`, and check the range of all.

    Returns: the kernel and all its parts, each with the names of the columns that it acts on.
    Raises: InputError for an unknown name or an index out of range.
    """
    own = _resolve_own(kernel, columns)
    return [(kernel, own), *(pair for part in parts(kernel) for pair in resolve(part, own))]


@resolve.register
def _(kernel: gpytorch_kernels.ScaleKernel, columns: tuple[str, ...]) -> Resolved:
    if not _selects(kernel.base_kernel):
        return resolve.dispatch(object)(kernel, columns)
    inner = resolve(kernel.base_kernel, columns)
    # As gpytorch's constructor does with indices: they are applied once, by the base (see `dense`).
    kernel.active_dims = kernel.base_kernel.active_dims
    return [(kernel, inner[0][1]), *inner]


def _resolve_own(kernel: Any, columns: tuple[str, ...]) -> tuple[str, ...]:
    if (names := _names(kernel)) is not None:
        missing = [n for n in names if n not in columns]
        if missing:
            have = ", ".join(c for c in columns if c) or f"{len(columns)} unnamed column(s)"
            raise InputError(f"active_dims names unknown column(s) {', '.join(missing)}; the inputs have {have}.")
        kernel.active_dims = torch.tensor([columns.index(n) for n in names], device=kernel.device)
    if kernel.active_dims is None:
        return columns
    dims = kernel.active_dims.tolist()
    outside = [d for d in dims if not 0 <= d < len(columns)]
    if outside:
        raise InputError(f"active_dims {outside} are out of range: the inputs have {len(columns)} column(s).")
    return tuple(columns[d] for d in dims)


def _names(kernel: Any) -> tuple[str, ...] | None:
    return getattr(kernel, "named_dims", None)


def _selects(kernel: Any) -> bool:
    """Whether the kernel, or a part that lends a ScaleKernel its columns, has active_dims."""
    scaled = isinstance(kernel, gpytorch_kernels.ScaleKernel) and _selects(kernel.base_kernel)
    return scaled or _names(kernel) is not None or kernel.active_dims is not None


@singledispatch
def init_from(module: Any, data: Data) -> None:
    """Start what the user left open in a kernel and its parts (or in a mean or likelihood) from the data."""
    if hasattr(module, "init_from"):
        module.init_from(data)


@init_from.register
def _(kernel: gpytorch_kernels.AdditiveKernel, data: Data) -> None:
    data = data.select(kernel.active_dims)
    # Equal starts would have equal gradients, and the parts would never separate: each starts at a finer scale, or another
    # peak of the periodogram.
    taken: dict[tuple[int, ...], tuple[float, ...]] = {}
    for position, part in enumerate(kernel.kernels):
        share = data.component(data.variance / len(kernel.kernels), 0.3**position)
        dims = () if part.active_dims is None else tuple(part.active_dims.tolist())
        init_from(part, replace(share, taken=data.taken + taken.get(dims, ())))
        taken[dims] = taken.get(dims, ()) + _tones(part)


@init_from.register
def _(kernel: gpytorch_kernels.ProductKernel, data: Data) -> None:
    data = data.select(kernel.active_dims)
    leader = _leader(kernel)
    for part in kernel.kernels:
        init_from(part, data if part is leader else data.component(1.0))
        if part is not leader:
            fix_outputscale(part)


@init_from.register
def _(kernel: gpytorch_kernels.ScaleKernel, data: Data) -> None:
    # gpytorch's outputscale is as the user left it; its base starts so that the whole has the variance of the data.
    base = kernel.base_kernel
    inside = data if _selects(base) else data.select(kernel.active_dims)
    init_from(base, inside.component(data.variance / float(kernel.outputscale.detach().mean())))
    if kernel.raw_outputscale.requires_grad:
        fix_outputscale(base)


def _tones(kernel: Any) -> tuple[float, ...]:
    """The periods of a kernel and its parts."""
    return tuple(period for module in kernel.modules() for period in getattr(module, "tones", ()))


@singledispatch
def fix_outputscale(kernel: Any) -> None:
    """Make the scale of a factor a constant, unless the user gave it: of a product only one scale is learned."""
    choices = getattr(kernel, "choices", {})
    if "outputscale" in choices and not choices["outputscale"].given:
        kernel.fix("outputscale")


@fix_outputscale.register
def _(kernel: gpytorch_kernels.AdditiveKernel) -> None:
    if _has_scale(kernel):  # the ratios of the parts stay free: fixing one of them is enough
        fix_outputscale(kernel.kernels[0])


@fix_outputscale.register
def _(kernel: gpytorch_kernels.ProductKernel) -> None:
    fix_outputscale(_leader(kernel))


def _leader(kernel: gpytorch_kernels.ProductKernel) -> Any:
    """The factor whose scale is that of the product: the first that has one."""
    return next(filter(_has_scale, kernel.kernels), kernel.kernels[0])


def _has_scale(kernel: Any) -> bool:
    """Whether some value multiplies the whole kernel."""
    if isinstance(kernel, gpytorch_kernels.AdditiveKernel):
        return all(map(_has_scale, kernel.kernels))
    if isinstance(kernel, gpytorch_kernels.ProductKernel):
        return any(map(_has_scale, kernel.kernels))
    return hasattr(kernel, "outputscale")
