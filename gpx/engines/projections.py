"""Data seen through inducing inputs: ``w_n = L^-1 k(Z, x_n)``, ``K_ZZ = L L^T``, and the statistics that inference needs of them.

Statistics add over the data and are accumulated in blocks of rows, so that nothing of size N x M is held. In whitened coordinates
all of them are sums of squares. Theory: docs/theory/sparse.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import gpytorch
import torch
from torch import Tensor

from gpx.errors import NumericalError
from gpx.kernels.dense import dense, diagonal

BLOCK = 1 << 20  # entries of a block
KEPT = 1 << 24  # entries of all blocks together up to which they are held: 128 MB
# Of the mean prior variance: as if u were f(Z) with so much noise. The first that does is taken.
JITTER = {torch.float64: (1e-12, 1e-10, 1e-8, 1e-6), torch.float32: (1e-6, 1e-5, 1e-4)}


def root(kernel: gpytorch.kernels.Kernel, z: Tensor) -> Tensor:
    """L [M, M], differentiable. Raises: NumericalError if the kernel matrix has no factor."""
    matrix, identity = dense(kernel, z, z), torch.eye(len(z)).to(z)
    scale = matrix.detach().diagonal().mean()
    for jitter in JITTER[z.dtype]:
        lower, info = torch.linalg.cholesky_ex(matrix + jitter * scale * identity)
        if not int(info) and bool(torch.isfinite(lower.detach().diagonal()).all()):
            return lower
    raise NumericalError(
        "The kernel matrix of the inducing inputs is not positive definite; use fewer of them, or lower the outputscale."
    )


def blocks(rows: int, size: int) -> Iterator[slice]:
    """Slices of rows with about `BLOCK` entries each; an empty one where there are no rows."""
    step = max(16, BLOCK // max(size, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step))


@dataclass(frozen=True, eq=False)
class Frame:
    """A kernel and inducing inputs z [M, D]; numbers, computed on first use."""

    kernel: gpytorch.kernels.Kernel
    z: Tensor

    @cached_property
    def root(self) -> Tensor:
        """L [M, M]."""
        with torch.no_grad():
            return root(self.kernel, self.z)

    @cached_property
    def inverse(self) -> Tensor:
        """L^-1 [M, M]: a product with it is faster than a solve, and as accurate."""
        identity = torch.eye(len(self.z)).to(self.z)
        return torch.linalg.solve_triangular(self.root, identity, upper=False)

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """w [M, N*] and the variance d [N*] of f that u does not explain, at any inputs."""
        w = self.inverse @ dense(self.kernel, self.z, x)
        return w, (diagonal(self.kernel, x) - w.square().sum(0)).clamp_min(0)


@dataclass(frozen=True, eq=False)
class Projection:
    """The data x [N, D] in a frame; numbers, computed on first use."""

    frame: Frame
    x: Tensor

    @property
    def size(self) -> int:
        """M."""
        return len(self.frame.z)

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, and w and d there."""
        slices = blocks(len(self.x), self.size)
        if len(self.x) * self.size <= KEPT:
            return ((rows, w, d) for rows, (w, d) in zip(slices, self._kept, strict=True))
        return ((rows, *self._block(rows)) for rows in slices)

    @cached_property
    def _kept(self) -> list[tuple[Tensor, Tensor]]:
        return [self._block(rows) for rows in blocks(len(self.x), self.size)]

    @torch.no_grad()
    def _block(self, rows: slice) -> tuple[Tensor, Tensor]:
        return self.frame.at(self.x[rows])


class Statistics(NamedTuple):
    """gram [k, M, M]: ``sum_n t_n w_n w_n^T`` for k weights t of every datum; target [M, c]: ``sum_n w_n nu_n``; spare [k]:
    ``sum_n t_n d_n``. Those of data taken together are sums.
    """

    gram: Tensor
    target: Tensor
    spare: Tensor

    def plus(self, other: Statistics) -> Statistics:
        """Those of both."""
        return Statistics(*(a + b for a, b in zip(self, other, strict=True)))


def accumulate(projection: Projection, weights: Tensor, nu: Tensor) -> Statistics:
    """The statistics for weights [N, k] and nu [N, c], differentiable in these, the inducing inputs and the kernel.

    Cost: O(N M^2 k); with gradients three times that.
    """
    if not torch.is_grad_enabled():
        return _accumulate(projection, weights, nu)
    params = [p for p in projection.frame.kernel.parameters() if p.requires_grad]
    lower = root(projection.frame.kernel, projection.frame.z)
    return Statistics(*_Accumulate.apply(projection, lower, projection.frame.z, weights, nu, *params))


def _accumulate(projection: Projection, weights: Tensor, nu: Tensor) -> Statistics:
    size, k = projection.size, weights.shape[1]
    gram, target = nu.new_zeros(k, size, size), nu.new_zeros(size, nu.shape[1])
    spare = nu.new_zeros(k)
    for rows, w, d in projection.blocks():
        for total, t in zip(gram, weights[rows].T, strict=True):
            total.addmm_(w * t, w.mT)
        target.addmm_(w, nu[rows])
        spare.add_(d @ weights[rows])
    return Statistics(gram, target, spare)


class _Accumulate(torch.autograd.Function):
    """The backward pass hands ``sum_nm W_mn dk(z_m, x_n)`` to the kernel, block by block, and the gradient in L in one piece."""

    @staticmethod
    def forward(
        ctx: Any, projection: Projection, lower: Tensor, z: Tensor, weights: Tensor, nu: Tensor, *params: Tensor
    ) -> Any:
        statistics = _accumulate(projection, weights, nu)
        ctx.projection = projection
        ctx.save_for_backward(z, weights, nu, *statistics[:2], *params)
        return tuple(statistics)

    @staticmethod
    def backward(ctx: Any, grad_gram: Tensor, grad_target: Tensor, grad_spare: Tensor) -> Any:
        z, weights, nu, gram, target, *params = ctx.saved_tensors
        projection, kernel, inverse = ctx.projection, ctx.projection.frame.kernel, ctx.projection.frame.inverse
        inner = 0.5 * (grad_gram + grad_gram.mT) - grad_spare[:, None, None] * torch.eye(len(z)).to(z)
        onto, push = 2 * inverse.mT @ inner, inverse.mT @ grad_target
        both = 2 * (inner @ gram).sum(0) + grad_target @ target.mT
        grad_root = -(inverse.mT @ both).tril()
        leaf = z.detach().requires_grad_(ctx.needs_input_grad[2])
        inputs = [v for v in (leaf, *params) if v.requires_grad]
        totals: list[Any] = [None] * len(inputs)
        grad_weights, grad_nu = torch.zeros_like(weights), torch.zeros_like(nu)
        for rows, w, _ in projection.blocks():
            with torch.enable_grad():
                cross = dense(kernel, leaf, projection.x[rows])
                prior = diagonal(kernel, projection.x[rows])
            half = onto @ w  # [k, M, rows]
            if ctx.needs_input_grad[3]:
                grad_weights[rows] = 0.5 * (half * cross.detach()).sum(1).mT + prior.detach()[:, None] * grad_spare
            if ctx.needs_input_grad[4]:
                grad_nu[rows] = w.mT @ grad_target
            outputs = [(v, g) for v, g in ((cross, None), (prior, weights[rows] @ grad_spare)) if v.requires_grad]
            if not inputs or not outputs:
                continue
            in_cross = torch.addmm((half * weights[rows].mT[:, None]).sum(0), push, nu[rows].mT)
            found = torch.autograd.grad(
                [v for v, _ in outputs], inputs, [in_cross if v is cross else g for v, g in outputs], allow_unused=True
            )
            totals = [t if g is None else g if t is None else t + g for t, g in zip(totals, found, strict=True)]
        grad_z = totals.pop(0) if leaf.requires_grad else None
        return None, grad_root, grad_z, grad_weights, grad_nu, *totals
