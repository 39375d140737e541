"""Kernels that are non-negative combinations of fixed ones, ``k = sum_q w_q k_q``: what learning the weights alone needs of them.

Theory: docs/theory/multiple_kernel.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels import GridSpectralMixtureProduct
from gpx.kernels.dense import select


@dataclass(frozen=True)
class Components:
    """The components K_q at N inputs.

    parameter: the name of the kernel's value that has the weights [Q]; matrix: weights [Q] -> ``sum_q w_q K_q`` [N, N]; inner:
    a symmetric matrix M [N, N] and the numbers [C] of components -> ``tr(M K_q)`` [C].
    """

    parameter: str
    matrix: Callable[[Tensor], Tensor]
    inner: Callable[[Tensor, Tensor], Tensor]


@singledispatch
def components(kernel: Any, x: Tensor) -> Components:
    """The components of a kernel at inputs x [N, D].

    Raises: StructureError for a kernel that has other values to be learned than weights of fixed components.

    >>> parts = components(GridSpectralMixtureProduct(3).double(), torch.linspace(0, 9, 4, dtype=torch.float64)[:, None])
    >>> parts.inner(torch.eye(4, dtype=torch.float64), torch.arange(3)).tolist()
    [4.0, 4.0, 4.0]
    """
    raise StructureError(f"{type(kernel).__name__} is not known as a sum of fixed components with weights.")


@components.register
def _(kernel: GridSpectralMixtureProduct, x: Tensor) -> Components:
    """One envelope E for all, and waves F of two columns per sign and component: ``tr(M K_q) = sum f^T (M o E) f`` over the
    columns f of q. Cost: 2^(P + 1) C N^2 for C components; memory O(N^2), and a block of waves.
    """
    if kernel.batch_shape or kernel.raw_bandwidth.requires_grad or kernel.raw_max_frequency.requires_grad:
        raise StructureError(
            "GridSpectralMixtureProduct is one of fixed components if its grid and bandwidth are fixed."
        )
    x = select(kernel, x).detach()
    x = x - x.mean(0)
    envelope, frequencies = kernel.envelope(x, x).detach(), kernel.frequencies_in(x.shape[1]).detach()

    def waves(chosen: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(part, kernel.waves(frequencies[part], x)) for part in kernel.portions(chosen, len(x), x.shape[1])]

    def matrix(weights: Tensor) -> Tensor:
        total = torch.zeros_like(envelope)
        for part, F in waves(weights.nonzero().flatten()):
            total.addmm_(F * weights[part].repeat(F.shape[1] // len(part)), F.mT)
        return total.mul_(envelope)

    def inner(M: Tensor, chosen: Tensor) -> Tensor:
        inside = M * envelope
        parts = [(F * (inside @ F)).sum(0).reshape(-1, len(part)).sum(0) for part, F in waves(chosen)]
        return torch.cat(parts) if parts else M.new_zeros(0)

    return Components("weights", matrix, inner)
