"""Columns of the sparse inverse Cholesky factor of any kernel, differentiable: by compiled loops where the kernel is isotropic,
else by blocks of kernel matrices in torch. Theory: docs/theory/sic.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.engines.dense_gradients import trainable
from gpx.errors import NumericalError, StructureError
from gpx.kernels.dense import dense
from gpx.linalg import vecchia
from gpx.structure.isotropic import Isotropic, isotropic

BLOCK = 1 << 22  # entries of the kernel blocks that are held at once: 32 MB


def columns(
    kernel: gpytorch.kernels.Kernel, x: Tensor, near: np.ndarray, diagonal: Tensor, phi: Tensor, *, floor: float = 0.0,
    known: np.ndarray | None = None,
) -> Tensor:  # fmt: skip
    """``u = K^-1 e / sqrt(e^T K^-1 e)`` [j, m + 1] of the last j rows of x [n, D], K being the covariance of a row and its
    neighbours under ``k(x, x') - phi . phi'``; the row itself comes last.

    Arguments: near [j, m]: earlier rows, -1 for none; diagonal [n]: added to the variances; phi [n, k]: of every row, k may be 0;
    floor: what the variance of a row given its neighbours is raised to (0: it must be positive); known: the result, where only
    its gradient is wanted.
    Result: differentiable in the kernel, the diagonal and phi where floor is 0. Raises: NotPositiveDefinite.
    Cost: O(j m^3 + j m^2 k), and with gradients twice that.
    """
    form = None if phi.shape[1] else _compiled_form(kernel, x)
    if form is None:
        return _Blocks.apply(kernel, x, near, diagonal, phi, floor, known, *trainable(kernel))
    return _Compiled.apply(form.columns(x), near, form.profile, floor, known, form.lengthscale, form.variance, diagonal)


def explained(error: vecchia.NotPositiveDefinite, x: Tensor, near: np.ndarray) -> NumericalError:
    """What to do about a block that has no factor."""
    rows = near[error.index][near[error.index] >= 0]
    nearest = f", such as {x[int(rows[-1])].tolist()}," if len(rows) else ""
    return NumericalError(
        f"The kernel matrix of the input {x[len(x) - len(near) + error.index].tolist()} and its {len(rows)} neighbours{nearest}"
        " is not positive definite: the kernel is not a covariance there, or lengthscales are far too long for such close points;"
        " use another kernel, fewer neighbours, or bounds on the lengthscale."
    )


def _compiled_form(kernel: gpytorch.kernels.Kernel, x: Tensor) -> Isotropic | None:
    """Where the loops can be used: on the processor, in double precision."""
    if x.device.type != "cpu" or x.dtype != torch.float64:
        return None
    try:
        return isotropic(kernel)
    except StructureError:
        return None


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, near: np.ndarray, profile: str, floor: float, known: np.ndarray | None,
        lengthscale: Tensor, variance: Tensor, spare: Tensor,
    ) -> Tensor:  # fmt: skip
        scaled = np.ascontiguousarray((x / lengthscale).numpy())
        settings = scaled, near, profile, float(variance), spare.numpy()
        u = vecchia.columns(*settings, floor) if known is None else known
        ctx.settings, ctx.lengthscale, ctx.u = settings, lengthscale, u
        return torch.from_numpy(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        in_variance, in_logs, in_spare = vecchia.columns_adjoint(*ctx.settings, ctx.u, grad.contiguous().numpy())
        logs = torch.from_numpy(in_logs)
        in_lengthscale = (logs if len(ctx.lengthscale) > 1 else logs.sum()) / ctx.lengthscale
        return None, None, None, None, None, in_lengthscale, grad.new_tensor(in_variance), torch.from_numpy(in_spare)


class _Blocks(torch.autograd.Function):
    """The same for any kernel. The backward pass hands ``sum W dK`` to the kernel, block by block."""

    @staticmethod
    def forward(
        ctx: Any, kernel: gpytorch.kernels.Kernel, x: Tensor, near: np.ndarray, spare: Tensor, phi: Tensor, floor: float,
        known: np.ndarray | None, *params: Tensor,
    ) -> Tensor:  # fmt: skip
        u = _by_blocks(kernel, x, near, spare, phi, floor) if known is None else torch.from_numpy(known).to(x)
        ctx.kernel, ctx.near = kernel, near
        ctx.save_for_backward(x, spare, phi, u, *params)
        return u

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, spare, phi, u, *params = ctx.saved_tensors
        in_spare, in_phi, totals = torch.zeros_like(spare), torch.zeros_like(phi), [torch.zeros_like(p) for p in params]
        for start, rows, present in _blocks(x, ctx.near):
            own, of_u = grad[start : start + len(rows)] * present, u[start : start + len(rows)]
            with torch.enable_grad():
                covariance = dense(ctx.kernel, x[rows], x[rows])
            matrix = _matrix(covariance.detach(), spare[rows], phi[rows], present)
            lower = torch.linalg.cholesky(matrix)
            a = torch.cholesky_solve(own[..., None], lower)[..., 0]
            b = 0.5 * (own * of_u).sum(-1, keepdim=True) * of_u - a
            weights = 0.5 * (b[:, :, None] * of_u[:, None] + of_u[:, :, None] * b[:, None])
            in_spare.index_add_(0, rows.flatten(), (b * of_u).flatten())
            in_phi.index_add_(0, rows.flatten(), (-2 * weights @ phi[rows]).flatten(0, 1))
            if covariance.requires_grad:
                found = torch.autograd.grad(covariance, params, weights, allow_unused=True)
                totals = [t if g is None else t + g for t, g in zip(totals, found, strict=True)]
        return None, None, None, in_spare, in_phi, None, None, *totals


def _by_blocks(
    kernel: gpytorch.kernels.Kernel, x: Tensor, near: np.ndarray, spare: Tensor, phi: Tensor, floor: float
) -> Tensor:
    parts = []
    for start, rows, present in _blocks(x, near):
        matrix = _matrix(dense(kernel, x[rows], x[rows]), spare[rows], phi[rows], present)
        lower, info = _with_floor(matrix, floor) if floor else torch.linalg.cholesky_ex(matrix)
        if bool(info.any()):
            raise vecchia.NotPositiveDefinite(start + int(info.nonzero()[0, 0]))
        last = torch.zeros_like(lower[..., :1])
        last[:, -1] = 1.0
        parts.append(torch.linalg.solve_triangular(lower.mT, last, upper=True)[..., 0])
    return torch.cat(parts) if parts else x.new_zeros(0, near.shape[1] + 1)


def _blocks(x: Tensor, near: np.ndarray) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Blocks of points: where one starts, the rows [b, m + 1] of its points and their neighbours, and which are there."""
    size, shift = near.shape[1] + 1, len(x) - len(near)
    step = max(1, BLOCK // size**2)
    for start in range(0, len(near), step):
        earlier = torch.from_numpy(near[start : start + step].astype(np.int64)).to(x.device)
        own = torch.arange(start, start + len(earlier), device=x.device)[:, None] + shift
        present = torch.cat([earlier >= 0, torch.ones_like(own, dtype=torch.bool)], 1)
        yield start, torch.cat([earlier.clamp_min(0), own], 1), present


def _matrix(covariance: Tensor, spare: Tensor, phi: Tensor, present: Tensor) -> Tensor:
    """The covariance of neighbours, with unit rows for those that are not there."""
    covariance = torch.baddbmm(covariance, phi, phi.mT, alpha=-1)
    pairs = present[:, :, None] & present[:, None]
    identity = torch.eye(present.shape[1]).to(covariance)
    return torch.where(pairs, covariance, identity) + torch.diag_embed(torch.where(present, spare, 0.0))


def _with_floor(matrix: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The Cholesky factor, with the last pivot raised to the floor."""
    first, info = torch.linalg.cholesky_ex(matrix[:, :-1, :-1])
    row = torch.linalg.solve_triangular(first, matrix[:, :-1, -1:], upper=False)
    pivot = (matrix[:, -1, -1] - row.square().sum((1, 2))).clamp_min(floor)
    lower = torch.zeros_like(matrix)
    lower[:, :-1, :-1], lower[:, -1, :-1], lower[:, -1, -1] = first, row[..., 0], pivot.sqrt()
    return lower, info
