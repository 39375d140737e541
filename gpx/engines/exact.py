"""Exact inference by one dense Cholesky factorisation: the reference of every other engine.

Theory: docs/theory/exact.md. Sites with equal precisions share a factor, so P outputs without missing values cost as much
as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpx.errors import NumericalError
from gpx.inputs import Data
from gpx.kernels.dense import dense, diagonal
from gpx.linalg.cholesky import Cholesky, factorise
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import SiteMarginals, Sites
from gpx.structure.feature_map import feature_map

BLOCK = 1 << 18  # entries of a kernel block: its temporaries stay near the cache
CHUNK = 1 << 23  # entries of a prediction block: 64 MB of float64
PATH_FEATURES = 2048


@dataclass(frozen=True)
class ExactPlan:
    """The inputs [N, D]; nothing to sort."""

    x: Tensor

    def stale(self, prior: Prior) -> bool:
        """Never: the plan does not depend on the hyperparameters."""
        return False


@dataclass(frozen=True)
class Exact:
    """Exact Gaussian-process inference, for any kernel.

    Cost: N^3 / 3 for the evidence, N^3 for its gradient, O(N^2) per predicted point for variances; memory: one N x N array,
    two with gradients. Source: Rasmussen & Williams (2006), algorithm 2.1 and section 5.4.

    >>> Exact()
    Exact()
    """

    def plan(self, prior: Prior, data: Data) -> ExactPlan:
        """Keep the inputs."""
        return ExactPlan(data.x)

    def parameters(self, prior: Prior, plan: ExactPlan) -> dict[str, Tensor]:
        """None."""
        return {}

    def condition(self, prior: Prior, plan: ExactPlan, params: dict[str, Tensor], sites: Sites) -> ExactPosterior:
        """One factorisation per distinct pattern of precisions."""
        solved = []
        for kernel_index, columns in _groups(prior, sites.tau):
            seen = sites.tau[:, columns[0]].detach() > 0
            nu, tau = sites.nu[seen][:, columns], sites.tau[seen][:, columns[0]]
            solved.append(_solve(prior.kernels[kernel_index], plan.x[seen], nu, tau, tuple(columns)))
        return ExactPosterior(prior, plan.x, sites, tuple(solved))


@dataclass(frozen=True)
class _Solution:
    """The columns that share kernel and precisions tau [n]: targets [n, c], alpha = C^-1 targets, where C = K + 1 / tau and
    factor is that of B = root C root, root = sqrt(tau).
    """

    kernel: gpytorch.kernels.Kernel
    columns: tuple[int, ...]
    x: Tensor
    targets: Tensor
    tau: Tensor
    factor: Cholesky
    log_density: Tensor
    alpha: Tensor

    @property
    def root(self) -> Tensor:
        return self.tau.detach().sqrt()

    def half_solve(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """k(x, X) [m, n] and L^-1 root k(X, x) [n, m]."""
        cross = dense(self.kernel, x, self.x)
        return cross, self.factor.half_solve((cross * self.root).mT)

    def precision(self) -> Tensor:
        """The diagonal [n] of C^-1."""
        return _Precision.apply(self.kernel, self.factor, self.x, self.tau, *_trainable(self.kernel))


def _groups(prior: Prior, tau: Tensor) -> Iterator[tuple[int, list[int]]]:
    """Kernel index and columns of the sites that can share a factor."""
    latents = len(prior.kernels)
    groups: list[tuple[int, list[int]]] = []
    for column in range(tau.shape[1]):
        for kernel_index, members in groups:
            if kernel_index == column % latents and torch.equal(tau[:, members[0]], tau[:, column]):
                members.append(column)
                break
        else:
            groups.append((column % latents, [column]))
    return iter(groups)


def _solve(kernel: gpytorch.kernels.Kernel, x: Tensor, nu: Tensor, tau: Tensor, columns: tuple[int, ...]) -> _Solution:
    root = tau.detach().sqrt()
    factor = factorise(lambda: _scaled_matrix(kernel, x.detach(), root))
    return _finish(kernel, x, nu / tau[:, None], tau, factor, columns)


def _finish(
    kernel: gpytorch.kernels.Kernel, x: Tensor, targets: Tensor, tau: Tensor, factor: Cholesky, columns: tuple[int, ...]
) -> _Solution:
    log_density, alpha = _Evidence.apply(kernel, factor, x, targets, tau, *_trainable(kernel))
    return _Solution(kernel, columns, x, targets, tau, factor, log_density, alpha)


@torch.no_grad()
def _scaled_matrix(kernel: gpytorch.kernels.Kernel, x: Tensor, root: Tensor) -> Tensor:
    """``B = I + root K root``, lower triangle only, in row blocks."""
    n = len(x)
    matrix = x.new_empty(n, n)
    for rows in _row_blocks(n):
        left = slice(0, rows.stop)
        scale = root[rows, None] * root[left]
        torch.mul(dense(kernel, x[rows], x[left]), scale, out=matrix[rows, left])
    matrix.diagonal().add_(1)
    return matrix


def _row_blocks(n: int) -> Iterator[slice]:
    step = max(16, BLOCK // max(n, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _trainable(kernel: gpytorch.kernels.Kernel) -> list[Tensor]:
    return [p for p in kernel.parameters() if p.requires_grad]


def _contract(
    kernel: gpytorch.kernels.Kernel, x: Tensor, weights: Callable[[slice, slice], Tensor], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradient of ``sum_ij W_ij k(x_i, x_j)`` in `inputs`, for a symmetric W, from lower-triangular row blocks."""
    totals: list[Tensor | None] = [None] * len(inputs)
    for rows in _row_blocks(len(x)):
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


def _differentiable(ctx: Any, x: Tensor) -> Tensor:
    """The inputs as a leaf of their own graph, if their gradient is wanted."""
    return x.detach().requires_grad_(ctx.needs_input_grad[2])


def _kernel_gradients(
    ctx: Any, x: Tensor, weights: Callable[[slice, slice], Tensor], params: Any
) -> list[Tensor | None]:
    """Gradients in x and the kernel's parameters."""
    leaf = _differentiable(ctx, x)
    inputs = ([leaf] if leaf.requires_grad else []) + list(params)
    grads = _contract(ctx.kernel, leaf, weights, inputs) if inputs else []
    return grads if leaf.requires_grad else [None, *grads]


class _Evidence(torch.autograd.Function):
    """``log N(targets; 0, C)`` summed over columns and ``alpha = C^-1 targets``, ``C = K + 1 / tau``.

    The backward pass hands ``W = g (alpha alpha^T - c C^-1) / 2 - sym(C^-1 a alpha^T)`` (g, a: the incoming gradients of
    the two outputs; c columns) to the kernel, block by block.
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
            w = torch.mul(inverse[rows, left], (-0.5 * count * grad * root[rows])[:, None])
            w.mul_(root[left]).addmm_(0.5 * grad * alpha[rows], alpha[left].mT)
            if half is not None:
                w.sub_(0.5 * (half[rows] @ alpha[left].mT + alpha[rows] @ half[left].mT))
            return w

        grad_variance = 0.5 * grad * (alpha.square().sum(1) - count * tau * inverse.diagonal())
        if half is not None:
            grad_variance = grad_variance - (half * alpha).sum(1)
        grads = _kernel_gradients(ctx, x, weights, params)
        return None, None, grads[0], grad_targets, -grad_variance / tau.square(), *grads[1:]


class _Precision(torch.autograd.Function):
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
        grads = _kernel_gradients(ctx, x, lambda rows, left: full[rows, left].clone(), params)
        return None, None, grads[0], -full.diagonal() / tau.square(), *grads[1:]


@dataclass(frozen=True)
class ExactPosterior(Posterior):
    """The posterior of `Exact`: one solution per group of columns, together covering all of them."""

    prior: Prior
    x: Tensor
    sites: Sites
    solutions: tuple[_Solution, ...]

    @property
    def jitter(self) -> float:
        # The matrix that is factorised has the noise as its unit.
        return max((s.factor.jitter for s in self.solutions), default=0.0)

    @property
    def log_density(self) -> Tensor:
        return torch.stack([s.log_density for s in self.solutions]).sum()

    @cached_property
    def log_partition(self) -> Tensor:
        tau = self.sites.tau
        present = tau > 0
        safe = torch.where(present, tau, torch.ones_like(tau))
        heights = 0.5 * (self.sites.nu.square() / safe - (safe / (2 * math.pi)).log())
        return self.log_density + torch.where(present, heights, torch.zeros_like(heights)).sum()

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        mean, variance = self.marginals(self.x)
        return SiteMarginals(mean, variance, torch.zeros_like(variance))

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step = max(1, CHUNK // max(1, len(self.x)))
        chunks = [self._marginals(x[start : start + step]) for start in range(0, len(x), step)] or [self._marginals(x)]
        return torch.cat([m for m, _ in chunks]), torch.cat([v for _, v in chunks])

    def _marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = {}
        for s in self.solutions:
            cross, half = s.half_solve(x)
            means = cross @ s.alpha
            # Below the rounding error of the subtraction a variance is zero.
            variance = (diagonal(s.kernel, x) - half.square().sum(0)).clamp_min(0)
            parts.update({c: (means[:, i], variance) for i, c in enumerate(s.columns)})
        ordered = [parts[c] for c in range(len(parts))]
        return torch.stack([m for m, _ in ordered], 1), torch.stack([v for _, v in ordered], 1)

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = {}
        for s in self.solutions:
            cross, half = s.half_solve(x)
            covariance = dense(s.kernel, x, x) - half.mT @ half
            means = cross @ s.alpha
            parts.update({c: (means[:, i], covariance) for i, c in enumerate(s.columns)})
        ordered = [parts[c] for c in range(len(parts))]
        return torch.stack([m for m, _ in ordered], 1), torch.stack([v for _, v in ordered])

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        mean, variance = torch.full_like(self.sites.nu, math.nan), torch.full_like(self.sites.nu, math.nan)
        for s in self.solutions:
            precision = s.precision()[:, None]
            for i, column in enumerate(s.columns):
                rows = (self.sites.tau[:, column].detach() > 0).nonzero().flatten()
                index = (rows, torch.full_like(rows, column))
                mean = mean.index_put(index, (s.targets - s.alpha / precision)[:, i])
                variance = variance.index_put(index, 1 / precision[:, 0])
        return mean, variance

    def update(self, x: Tensor, sites: Sites) -> ExactPosterior:
        """Extend the factors by a block: O(N^2 M + M^3) for M new points."""
        joined = Sites(torch.cat([self.sites.nu, sites.nu]), torch.cat([self.sites.tau, sites.tau]))
        solved = []
        for s in self.solutions:
            for _, members in _groups(Prior(self.prior.mean, (s.kernel,)), sites.tau[:, list(s.columns)]):
                solved.append(_extend(s, members, x, sites))
        return ExactPosterior(self.prior, torch.cat([self.x, x]), joined, tuple(solved))

    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Matheron's rule: a prior path plus the kernel-weighted correction of its misfit at the data.

        The prior path is exact for finite-dimensional kernels and made of 2,048 random features otherwise.
        Source: Wilson et al. (2021), "Pathwise conditioning of Gaussian processes", eq. 13.
        """
        draws = {}
        for s in self.solutions:
            features = feature_map(s.kernel, PATH_FEATURES, self.x.shape[1], generator)
            for i, column in enumerate(s.columns):
                draws[column] = _path(s, i, features, n, generator)
        return lambda x: torch.stack([draws[c](x) for c in range(len(draws))], -1)


def _extend(s: _Solution, members: list[int], x: Tensor, sites: Sites) -> _Solution:
    """The solution of some columns of s with more sites."""
    columns = tuple(s.columns[m] for m in members)
    new_tau = sites.tau[:, columns[0]]
    seen = new_tau > 0
    x_new, tau_new, nu_new = x[seen], new_tau[seen], sites.nu[seen][:, list(columns)]
    root = tau_new.sqrt()
    targets = torch.cat([s.targets[:, members], nu_new / tau_new[:, None]])
    x_all, tau = torch.cat([s.x, x_new]), torch.cat([s.tau, tau_new])
    try:
        with torch.no_grad():
            cross = dense(s.kernel, x_new, s.x) * root[:, None] * s.root
            factor = s.factor.extend(cross, lambda: _scaled_matrix(s.kernel, x_new, root))
    except NumericalError:
        # The new points need more jitter than the old factor has.
        return _solve(s.kernel, x_all, targets * tau[:, None], tau, columns)
    return _finish(s.kernel, x_all, targets, tau, factor, columns)


def _path(s: _Solution, column: int, features: Any, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    options: Any = {"generator": generator, "dtype": s.x.dtype, "device": s.x.device}
    weights = torch.randn(features.size, n, **options)
    noise = torch.randn(len(s.x), n, **options) / s.root[:, None]
    with torch.no_grad():
        misfit = s.targets[:, column : column + 1] - features(s.x) @ weights - noise
        root = s.root[:, None]
        correction = root * s.factor.solve(root * misfit)

    def draw(x: Tensor) -> Tensor:
        rows = max(1, CHUNK // max(len(s.x), features.size))
        parts = [features(b) @ weights + dense(s.kernel, b, s.x) @ correction for b in x.split(rows)]
        return torch.cat(parts).mT

    return draw
