"""Hand-written gradients of dense Gaussian algebra: what is asked of the kernel is always ``sum_ij W_ij dk(x_i, x_j)``.

Each autograd function below has numbers in its forward pass (they come from a factorisation that is already there) and hands a
matrix W to the kernel in its backward pass, in row blocks. Theory: docs/theory/exact.md and docs/theory/sites.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gpytorch
import torch
from torch import Tensor

from gpx.kernels.dense import dense
from gpx.linalg.cholesky import Cholesky

if TYPE_CHECKING:
    from gpx.engines.dense import Solution

BLOCK = 1 << 18  # entries of a kernel block: its temporaries stay near the cache


def row_blocks(n: int) -> Iterator[slice]:
    """Slices of rows whose kernel blocks have about `BLOCK` entries."""
    step = max(16, BLOCK // max(n, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def trainable(kernel: gpytorch.kernels.Kernel) -> list[Tensor]:
    """The parameters that want a gradient."""
    return [p for p in kernel.parameters() if p.requires_grad]


class Evidence(torch.autograd.Function):
    """``log N(targets; 0, C)`` summed over columns and ``alpha = C^-1 targets``, ``C = K + 1 / tau``.

    The backward pass hands ``W = g (alpha alpha^T - c C^-1) / 2 - sym(C^-1 a alpha^T)`` (g, a: the incoming gradients of
    the two outputs; c columns) to the kernel.
    """

    @staticmethod
    def forward(
        ctx: Any, kernel: Any, factor: Cholesky, x: Tensor, targets: Tensor, tau: Tensor, *params: Tensor
    ) -> Any:
        root = tau.sqrt()[:, None]
        scaled = root * targets
        alpha = root * factor.solve(scaled)
        count = targets.shape[1]
        constant = 0.5 * (tau.log().sum() - len(x) * math.log(2 * math.pi)) - 0.5 * factor.logdet()
        log_density = count * constant - 0.5 * (targets * alpha).sum()
        ctx.kernel, ctx.factor = kernel, factor
        ctx.save_for_backward(x, targets, tau, alpha, *params)
        ctx.set_materialize_grads(False)
        return log_density, alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_alpha: Tensor | None) -> Any:
        x, targets, tau, alpha, *params = ctx.saved_tensors
        root = tau.sqrt()
        count, grad = targets.shape[1], torch.zeros_like(tau[:0].sum()) if grad is None else grad
        inverse = ctx.factor.inverse()
        grad_targets, half = -grad * alpha, None
        if grad_alpha is not None:
            half = root[:, None] * ctx.factor.solve(root[:, None] * grad_alpha)
            grad_targets = grad_targets + half

        def weights(rows: slice, left: slice) -> Tensor:
            w = _evidence_weights(inverse, root, alpha, grad, rows, left)
            if half is not None:
                w.sub_(0.5 * (half[rows] @ alpha[left].mT + alpha[rows] @ half[left].mT))
            return w

        grad_variance = 0.5 * grad * (alpha.square().sum(1) - count * tau * inverse.diagonal())
        if half is not None:
            grad_variance = grad_variance - (half * alpha).sum(1)
        grads = _kernel_gradients(ctx.kernel, x, ctx.needs_input_grad[2], weights, params)
        return None, None, grads[0], grad_targets, -grad_variance / tau.square(), *grads[1:]


class LogPartition(torch.autograd.Function):
    """``log int N(f; 0, K) prod_n t_n(f_n) df`` summed over columns.

    Its gradient in the sites is ``(m, -(v + m^2) / 2)``; in the kernel, ``W = (alpha alpha^T - c C^-1) / 2``.
    """

    @staticmethod
    def forward(ctx: Any, solution: Solution, x: Tensor, nu: Tensor, tau: Tensor, *params: Tensor) -> Tensor:
        ctx.solution = solution
        ctx.save_for_backward(x, tau, *params)
        return solution.log_partition()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, tau, *params = ctx.saved_tensors
        s, root = ctx.solution, tau.sqrt()
        grad_nu = grad * s.mean if ctx.needs_input_grad[2] else None
        grad_tau = -0.5 * grad * (s.variance[:, None] + s.mean.square()).sum(1) if ctx.needs_input_grad[3] else None
        if not params and not ctx.needs_input_grad[1]:
            return None, None, grad_nu, grad_tau
        inverse = s.factor.inverse()

        def weights(rows: slice, left: slice) -> Tensor:
            return _evidence_weights(inverse, root, s.alpha, grad, rows, left)

        grads = _kernel_gradients(s.kernel, x, ctx.needs_input_grad[1], weights, params)
        return None, grads[0], grad_nu, grad_tau, *grads[1:]


class Slope(torch.autograd.Function):
    """``share log Z`` and the derivative of log Z along a direction of the sites, ``sum dnu m - dtau (v + m^2) / 2``.

    With ``D = I - S T`` (S: posterior covariance, T: diag tau) a change dK of the prior changes m by ``D dK alpha`` and S by
    ``D dK D^T``. Differentiable in the kernel, nu and dnu; the precisions are constants.
    """

    @staticmethod
    def forward(
        ctx: Any, solution: Solution, share: float, x: Tensor, nu: Tensor, dnu: Tensor, dtau: Tensor, *params: Tensor
    ) -> Tensor:
        ctx.solution, ctx.share = solution, share
        ctx.save_for_backward(x, dnu, dtau, *params)
        second = solution.variance[:, None] + solution.mean.square()
        slope = (dnu * solution.mean).sum() - 0.5 * (dtau * second).sum()
        return slope + share * solution.log_partition() if share else slope

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, dnu, dtau, *params = ctx.saved_tensors
        s, share = ctx.solution, ctx.share
        tau, root, alpha = s.tau, s.root, s.alpha
        push = grad * (dnu - dtau * s.mean)
        push = push - tau[:, None] * s.times_covariance(push)  # D^T push
        pull = -0.5 * grad * dtau.sum(1)
        spread, inverse = bool(pull.any()), s.factor.inverse() if share else None
        if spread:
            covariance = s.posterior_covariance
            inner = (covariance * pull) @ covariance

        def weights(rows: slice, left: slice) -> Tensor:
            w = 0.5 * (push[rows] @ alpha[left].mT + alpha[rows] @ push[left].mT)
            if inverse is not None:
                w.add_(_evidence_weights(inverse, root, alpha, share * grad, rows, left))
            if spread:
                block = covariance[rows, left]
                w.add_(tau[rows, None] * inner[rows, left] * tau[left])
                w.sub_(tau[rows, None] * block * pull[left]).sub_(pull[rows, None] * block * tau[left])
                w.diagonal(offset=rows.start).add_(pull[rows])
            return w

        grads = _kernel_gradients(s.kernel, x, ctx.needs_input_grad[2], weights, params)
        grad_nu = grad * (s.response(dnu, dtau)[0] + share * s.mean)
        return None, None, grads[0], grad_nu, grad * s.mean, None, *grads[1:]


class Precision(torch.autograd.Function):
    """The diagonal of C^-1; backward: ``W = -C^-1 diag(g) C^-1``."""

    @staticmethod
    def forward(ctx: Any, kernel: Any, factor: Cholesky, x: Tensor, tau: Tensor, *params: Tensor) -> Tensor:
        inverse = factor.inverse()
        ctx.kernel = kernel
        ctx.save_for_backward(x, tau, inverse, *params)
        return tau * inverse.diagonal()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, tau, lower, *params = ctx.saved_tensors
        root = tau.sqrt()
        inverse = lower.tril() + lower.tril(-1).mT
        inverse.mul_(root[:, None]).mul_(root)
        full = -(inverse * grad) @ inverse
        weights = lambda rows, left: full[rows, left].clone()  # noqa: E731
        grads = _kernel_gradients(ctx.kernel, x, ctx.needs_input_grad[2], weights, params)
        return None, None, grads[0], -full.diagonal() / tau.square(), *grads[1:]


def _evidence_weights(
    inverse: Tensor, root: Tensor, alpha: Tensor, grad: Tensor, rows: slice, left: slice
) -> Tensor:  # fmt: skip
    """A block of ``grad (alpha alpha^T - c root inverse root) / 2``; inverse: that of B, lower triangle."""
    w = torch.mul(inverse[rows, left], (-0.5 * alpha.shape[1] * grad * root[rows])[:, None])
    return w.mul_(root[left]).addmm_(0.5 * grad * alpha[rows], alpha[left].mT)


def _kernel_gradients(
    kernel: gpytorch.kernels.Kernel,
    x: Tensor,
    wanted: bool,
    weights: Callable[[slice, slice], Tensor],
    params: Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients in x (None unless `wanted`) and the kernel's parameters."""
    leaf = x.detach().requires_grad_(wanted)
    inputs = ([leaf] if wanted else []) + list(params)
    grads = _contract(kernel, leaf, weights, inputs) if inputs else []
    return grads if wanted else [None, *grads]


def _contract(
    kernel: gpytorch.kernels.Kernel, x: Tensor, weights: Callable[[slice, slice], Tensor], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradient of ``sum_ij W_ij k(x_i, x_j)`` in `inputs`, for a symmetric W, from lower-triangular row blocks."""
    totals: list[Tensor | None] = [None] * len(inputs)
    for rows in row_blocks(len(x)):
        left = slice(0, rows.stop)
        block_weights = weights(rows, left)
        block_weights[:, : rows.start].mul_(2)
        corner = block_weights[:, rows]
        corner.copy_(2 * corner.tril(-1) + corner.diagonal().diag())
        with torch.enable_grad():
            block = dense(kernel, x[rows], x[left])
        if not block.requires_grad:
            return totals
        grads = torch.autograd.grad(block, inputs, block_weights, allow_unused=True)
        totals = [t if g is None else g if t is None else t + g for t, g in zip(totals, grads, strict=True)]
    return totals
