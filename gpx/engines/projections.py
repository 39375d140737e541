"""Data seen through M standard normal variables, and the statistics that inference needs of them.

Statistics add over the data and are accumulated in blocks of rows, so that nothing of size N x M is held. In whitened coordinates
all of them are sums of squares. Theory: docs/theory/sparse.md, docs/theory/features.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from gpx.parallel import ALONE, Team

BLOCK = 1 << 18  # entries of a block: 2 MB, which processors hold near, and memory that is used again
TALL = 16  # a block has so many times fewer rows than M at least: the M x M sums that it is added to are read each time
PANEL = 512  # columns of symmetric sums that are added at a time, from the diagonal down
KEPT = 1 << 24  # entries of all blocks together up to which they are held: 128 MB


def blocks(rows: int, size: int) -> Iterator[slice]:
    """Slices of rows with about `BLOCK` entries each; at least one, if of no rows."""
    step = max(16, size // TALL, BLOCK // max(size, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step))


class Gaussian(Protocol):
    """q(v): mean [M, c] of the columns, and the Cholesky factor [M, M] of their precision."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def spread(self) -> Tensor: ...


class Frame(ABC):
    """What data are seen through: ``f(x) = w(x) . v + r(x)``, v [M] ~ N(0, 1), ``w = L^-1 c(x)``, and independent rests r of
    variance ``d = k(x, x) - |w|^2``.

    complete: whether nothing is left, d = 0. A frame holds a kernel at its present hyperparameters.
    """

    complete: ClassVar[bool]

    @property
    @abstractmethod
    def size(self) -> int:
        """M."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What c and k are differentiated in."""

    @abstractmethod
    def factor(self) -> Tensor | None:
        """L [M, M], differentiable; None: the identity."""

    @abstractmethod
    def cross(self, x: Tensor) -> Tensor:
        """c [M, n] at x [n, D], differentiable."""

    @abstractmethod
    def prior(self, x: Tensor) -> Tensor:
        """``k(x, x)`` [n], differentiable."""

    @abstractmethod
    def covariance(self, x: Tensor) -> Tensor:
        """The prior covariance [n, n] of f."""

    def whitened(self, m: Tensor) -> Tensor:
        """``L^-1 m``, as numbers."""
        return m

    def back(self, m: Tensor) -> Tensor:
        """``L^-T m``, as numbers."""
        return m

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """w [M, n] and d [n], at any inputs."""
        w = self.whitened(self.cross(x))
        return w, self.left(x, w)

    def traced(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same, differentiable."""
        factor, w = self.factor(), self.cross(x)
        w = w if factor is None else torch.linalg.solve_triangular(factor, w, upper=False)
        return w, self.left(x, w)

    def left(self, x: Tensor, w: Tensor) -> Tensor:
        """d [n], from w; below the rounding error of the subtraction it is zero."""
        return w.new_zeros(w.shape[1]) if self.complete else (self.prior(x) - w.square().sum(0)).clamp_min(0)

    @abstractmethod
    def predictor(self, q: Gaussian) -> tuple[Tensor, Tensor]:
        """What `predict` wants to know of q(v)."""

    @abstractmethod
    def predict(self, x: Tensor, weights: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Means [n, c] and variances [n] of f at x [n, D]."""

    @abstractmethod
    def path(self, v: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Functions x [n, D] -> [n, s] that go through the draws v [M, s]."""


@dataclass(frozen=True, eq=False)
class Projection:
    """The data x [N, D] in a frame; numbers, computed on first use. team: the processes that have the other rows."""

    frame: Frame
    x: Tensor
    team: Team = ALONE

    @property
    def size(self) -> int:
        """M."""
        return self.frame.size

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, and w and d there."""
        slices = blocks(len(self.x), self.size)
        if self.keeps:
            return ((rows, w, d) for rows, (w, d) in zip(slices, self._kept, strict=True))
        return ((rows, *self._block(rows)) for rows in slices)

    def crossed(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, w, and c there, differentiable."""
        for place, rows in enumerate(blocks(len(self.x), self.size)):
            with torch.enable_grad():
                cross = self.frame.cross(self.x[rows])
            yield rows, self._kept[place][0] if self.keeps else self.frame.whitened(cross.detach()), cross

    @property
    def keeps(self) -> bool:
        """Whether all blocks are held."""
        return len(self.x) * self.size <= KEPT

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
    """The statistics for weights [N, k] and nu [N, c], over the rows of all processes, differentiable in these and in what
    the frame holds.

    Cost: O(N M^2 k); with gradients three times that. Several processes: a message of M^2 k numbers, with gradients two.
    """
    if not torch.is_grad_enabled():
        return Statistics(*projection.team.sums(_accumulate(projection, weights, nu)))
    frame = projection.frame
    found = _Accumulate.apply(projection, frame.factor(), weights, nu, *frame.tensors)
    return Statistics(*projection.team.sums(found))


def _accumulate(projection: Projection, weights: Tensor, nu: Tensor) -> Statistics:
    size, k = projection.size, weights.shape[1]
    gram, target = nu.new_zeros(k, size, size), nu.new_zeros(size, nu.shape[1])
    spare = nu.new_zeros(k)
    for rows, w, d in projection.blocks():
        for total, t in zip(gram, weights[rows].T, strict=True):
            scaled = w * t
            for left in range(0, size, PANEL):
                total[left:, left : left + PANEL].addmm_(scaled[left:], w[left : left + PANEL].mT)
        target.addmm_(w, nu[rows])
        spare.add_(d @ weights[rows])
    return Statistics(gram.tril() + gram.tril(-1).mT, target, spare)


class _Accumulate(torch.autograd.Function):
    """The backward pass hands the gradient in c and k to the frame, block by block, and the gradient in L in one piece."""

    @staticmethod
    def forward(
        ctx: Any, projection: Projection, factor: Tensor | None, weights: Tensor, nu: Tensor, *tensors: Tensor
    ) -> Any:
        statistics = _accumulate(projection, weights, nu)
        ctx.projection, ctx.factored = projection, factor is not None
        ctx.save_for_backward(weights, nu, *statistics[:2], *tensors)
        return tuple(statistics)

    @staticmethod
    def backward(ctx: Any, grad_gram: Tensor, grad_target: Tensor, grad_spare: Tensor) -> Any:
        weights, nu, gram, target, *tensors = ctx.saved_tensors
        projection, frame = ctx.projection, ctx.projection.frame
        inner = 0.5 * (grad_gram + grad_gram.mT)
        if not frame.complete:
            inner.diagonal(dim1=1, dim2=2).sub_(grad_spare[:, None])
        onto, push = frame.back(inner.mul_(2)), frame.back(grad_target)
        grad_factor = None
        if ctx.factored:
            grad_factor = -frame.back((inner @ gram).sum(0) + grad_target @ target.mT).tril()
        inputs = [v for v in tensors if v.requires_grad]
        totals: list[Any] = [None] * len(inputs)
        grad_weights, grad_nu = torch.zeros_like(weights), torch.zeros_like(nu)
        for rows, w, cross in projection.crossed():
            outputs, grads = [], []
            with torch.enable_grad():
                prior = None if frame.complete else frame.prior(projection.x[rows])
            half = onto @ w  # [k, M, rows]
            if ctx.needs_input_grad[2]:
                grad_weights[rows] = 0.5 * (half * cross.detach()).sum(1).mT
                if prior is not None:
                    grad_weights[rows] += prior.detach()[:, None] * grad_spare
            if ctx.needs_input_grad[3]:
                grad_nu[rows] = w.mT @ grad_target
            if inputs and cross.requires_grad:
                outputs.append(cross)
                grads.append(torch.addmm((half * weights[rows].mT[:, None]).sum(0), push, nu[rows].mT))
            if inputs and prior is not None and prior.requires_grad:
                outputs.append(prior)
                grads.append(weights[rows] @ grad_spare)
            if outputs:
                found = torch.autograd.grad(outputs, inputs, grads, allow_unused=True)
                totals = [t if g is None else g if t is None else t + g for t, g in zip(totals, found, strict=True)]
        ordered = iter(totals)
        return None, grad_factor, grad_weights, grad_nu, *(next(ordered) if v.requires_grad else None for v in tensors)
