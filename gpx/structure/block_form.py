"""The block-circulant form of a kernel: blocks of p steps whose frequencies are independent scalar autoregressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from gpytorch import kernels as gpytorch_kernels
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels.block import BlockQuasiPeriodic
from gpx.kernels.dense import dense, select
from gpx.linalg.circulant import eigenvalues

ROUNDING = 1e3  # units of rounding error of R(0): how far the innovation covariance may be from a circulant matrix


@dataclass(frozen=True)
class BlockForm:
    """``k(x, x') = w^|i - i'| / (1 - w^2) R[s, s']`` with a circulant R = H diag(spectrum) H, H the Hartley matrix.

    period: p; correlation: w, a number; spectrum: [p], eigenvalues of R; locate: x [N, D] -> block [N], position [N], as
    integers. exact: always.
    """

    period: int
    correlation: Tensor
    spectrum: Tensor
    locate: Callable[[Tensor], tuple[Tensor, Tensor]]
    exact: bool = True


@singledispatch
def block_form(kernel: Any) -> BlockForm:
    """The block-circulant form of a kernel. Cost: O(p log p).

    Raises: StructureError for a kernel that has none registered, or innovations whose covariance is not circulant.

    >>> block_form(BlockQuasiPeriodic(4)).period
    4
    """
    raise StructureError(
        f"{type(kernel).__name__} has no block-circulant form: use kernels.BlockQuasiPeriodic, or engines.Exact()."
    )


@block_form.register
def _(kernel: BlockQuasiPeriodic) -> BlockForm:
    if len(kernel.batch_shape):
        raise StructureError("A batch of kernels has no block-circulant form: use one kernel, or engines.Exact().")
    position = torch.arange(kernel.period, dtype=kernel.correlation.dtype, device=kernel.correlation.device)[:, None]
    row = dense(kernel.within, position[:1], position)[0]
    with torch.no_grad():
        _require_circulant(kernel, row)

    def locate(x: Tensor) -> tuple[Tensor, Tensor]:
        block, inside = kernel.blocks(select(kernel, x))
        return block.long(), inside.long()

    return BlockForm(kernel.period, kernel.correlation, eigenvalues(row), locate)


def _require_circulant(kernel: BlockQuasiPeriodic, row: Tensor) -> None:
    gap = (row[1:] - row[1:].flip(0)).abs()
    if not kernel.within.is_stationary or bool((gap > ROUNDING * torch.finfo(row.dtype).eps * row[0].abs()).any()):
        raise StructureError(
            f"within={kernel.within!r} is not stationary with the period {kernel.period}, so that blocks are"
            f" not circulant: use kernels.Periodic(period={kernel.period}), or engines.Exact()."
        )


@block_form.register
def _(kernel: gpytorch_kernels.ScaleKernel) -> BlockForm:
    form = block_form(kernel.base_kernel)
    selects = kernel.base_kernel.active_dims is None  # else the base does: see `kernels.dense`
    locate = (lambda x: form.locate(select(kernel, x))) if selects else form.locate
    return BlockForm(form.period, form.correlation, kernel.outputscale * form.spectrum, locate)
