"""Sparse features of nodes: counts of walks, weighted by a modulation that may change, and products with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from gpx.graphs.walks import COMPILATION, Counts
from gpx.linalg.threads import in_runs

RUN = 1 << 16  # entries that a thread takes at once


@dataclass(frozen=True, eq=False)
class Loads:
    """Rows [n, N] of a sparse matrix Phi whose entries are linear in a modulation f: ``values = V f``.

    counts: visits of the walks from each row; scale [nnz]: of each entry, so that ``V = scale visits / survival`` has the
    expectation S^l in its l-th column.
    """

    counts: Counts
    scale: np.ndarray
    survival: np.ndarray
    size: int

    def values(self, f: Tensor) -> Tensor:
        """The entries [nnz] of Phi, differentiable in f [L]. Cost: O(nnz L)."""
        weights = f / torch.from_numpy(self.survival).to(f)
        return _Weighted.apply(weights, self.counts.visits) * torch.from_numpy(self.scale).to(f)

    def rows(self) -> np.ndarray:
        """The row of each entry."""
        return np.repeat(np.arange(len(self.counts.rows)), np.diff(self.counts.indptr))


class _Weighted(torch.autograd.Function):
    """``visits @ weights`` for integer visits [nnz, L], without a copy of them in floating point."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, visits: np.ndarray) -> Tensor:
        ctx.visits = visits
        w, out = weights.detach().double().numpy(), np.empty(len(visits))
        in_runs(lambda start, stop: _weigh(visits, w, start, stop, out), len(visits), RUN)
        return torch.from_numpy(out).to(weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        g = grad.detach().double().contiguous().numpy()
        parts = in_runs(lambda start, stop: _collect(ctx.visits, g, start, stop), len(g), RUN)
        return torch.from_numpy(np.sum(parts, 0) if parts else np.zeros(ctx.visits.shape[1])).to(grad), None


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where a sparse matrix [n, m] has entries, in compressed rows."""

    indptr: np.ndarray
    columns: np.ndarray
    shape: tuple[int, int]

    def matrix(self, values: Tensor) -> Any:
        """A SciPy array with these entries."""
        return sparse.csr_array((values.detach().double().numpy(), self.columns, self.indptr), self.shape)

    def sampled(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """``left right^T`` at the entries, for left [n, k] and right [m, k]. Cost: O(nnz k)."""
        out, step = np.empty(len(self.columns)), max(1, RUN * self.shape[0] // max(1, len(self.columns)))
        work = lambda start, stop: _sampled(self.indptr, self.columns, left, right, start, stop, out)  # noqa: E731
        in_runs(work, self.shape[0], step)
        return out


class _Product(torch.autograd.Function):
    """``A X``, or ``A^T X``, for sparse A and dense X [m, k]; the gradient in the entries of A is taken where they are."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, X: Tensor, pattern: Pattern, transposed: bool) -> Tensor:
        ctx.save_for_backward(values, X)
        ctx.pattern, ctx.transposed = pattern, transposed
        A = pattern.matrix(values)
        return torch.from_numpy(np.ascontiguousarray((A.T if transposed else A) @ X.detach().double().numpy())).to(X)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, X = ctx.saved_tensors
        of_values, of_X = None, None
        A, G = ctx.pattern.matrix(values), grad.detach().double().contiguous().numpy()
        if ctx.needs_input_grad[1]:
            of_X = torch.from_numpy(np.ascontiguousarray((A if ctx.transposed else A.T) @ G)).to(X)
        if ctx.needs_input_grad[0]:
            dense = X.detach().double().contiguous().numpy()
            left, right = (dense, G) if ctx.transposed else (G, dense)
            of_values = torch.from_numpy(ctx.pattern.sampled(left, right)).to(values)
        return of_values, of_X, None, None


def product(pattern: Pattern, values: Tensor, X: Tensor, transposed: bool = False) -> Tensor:
    """``A X`` or ``A^T X`` for the sparse matrix A of a pattern and its entries, differentiable in both. Cost: O(nnz k)."""
    return _Product.apply(values, X, pattern, transposed)


class _Inner(torch.autograd.Function):
    """``A B^T`` for sparse A and B with the same columns, dense; gradients are taken where entries are."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, at_left: Pattern, at_right: Pattern) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.patterns = at_left, at_right
        return torch.from_numpy((at_left.matrix(left) @ at_right.matrix(right).T).toarray()).to(left)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        G = grad.detach().double().contiguous().numpy()
        at, values = ctx.patterns, ctx.saved_tensors
        found = [
            torch.from_numpy(_weighted(at[i], G if i == 0 else G.T, at[1 - i].matrix(values[1 - i]))).to(values[i])
            if ctx.needs_input_grad[i] else None
            for i in (0, 1)
        ]  # fmt: skip
        return found[0], found[1], None, None


def inner(at_left: Pattern, left: Tensor, at_right: Pattern, right: Tensor) -> Tensor:
    """``A B^T`` [n, m] for sparse A [n, q] and B [m, q], differentiable in their entries. Cost: that of the sparse product."""
    return _Inner.apply(left, right, at_left, at_right)


def _weighted(pattern: Pattern, weights: np.ndarray, other: Any) -> np.ndarray:
    """``weights B`` at the entries of a pattern."""
    columns, out = other.tocsc(), np.empty(len(pattern.columns))
    indptr, members = columns.indptr.astype(np.int64), columns.indices
    step = max(1, RUN * pattern.shape[0] // max(1, len(pattern.columns)))
    in_runs(
        lambda start, stop: _gather(
            pattern.indptr, pattern.columns, weights, indptr, members, columns.data, start, stop, out
        ),
        pattern.shape[0],
        step,
    )
    return out


@numba.njit(**COMPILATION)
def _gather(indptr, columns, weights, tops, members, entries, start, stop, out):
    for r in range(start, stop):
        for e in range(indptr[r], indptr[r + 1]):
            total = 0.0
            for k in range(tops[columns[e]], tops[columns[e] + 1]):
                total += weights[r, members[k]] * entries[k]
            out[e] = total


@numba.njit(**COMPILATION)
def _weigh(visits, weights, start, stop, out):
    for e in range(start, stop):
        total = 0.0
        for k in range(visits.shape[1]):
            total += visits[e, k] * weights[k]
        out[e] = total


@numba.njit(**COMPILATION)
def _collect(visits, grad, start, stop):
    total = np.zeros(visits.shape[1])
    for e in range(start, stop):
        for k in range(visits.shape[1]):
            total[k] += visits[e, k] * grad[e]
    return total


@numba.njit(**COMPILATION)
def _sampled(indptr, columns, left, right, start, stop, out):
    for r in range(start, stop):
        for e in range(indptr[r], indptr[r + 1]):
            total = 0.0
            for k in range(left.shape[1]):
                total += left[r, k] * right[columns[e], k]
            out[e] = total
