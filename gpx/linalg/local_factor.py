"""Sparse factors of the inverse of ``B = I + A A^T`` for sparse A, from what each row says of a few others. Compiled loops.

Row i of the factor W is that of the inverse Cholesky factor of B among row i and the m earlier rows that have most to do with
it: ``W B W^T`` has a unit diagonal and is near the identity; with all earlier rows it is the identity. Theory:
docs/theory/features.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from scipy import sparse

from gpx.linalg.threads import in_runs

COMPILATION: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
RUN = 1 << 11  # rows that a thread takes at once
SHARES = 4  # runs at most where each has results for all rows
LONGEST = 512  # entries of a column, above which it tells no rows apart, and is not searched for neighbours
TINY = 1e-14  # share of a variance below which its rest is rounding


def neighbours(targets: Any, rows: Any, count: int, limit: np.ndarray, rank: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Of rows A [n, M] those j that have the largest ``|<target_i, a_j>|``, [targets, count], -1 where there are fewer; for
    target i among those with ``rank[j] < limit[i]`` and ``j != own[i]``.

    Cost: that of the sparse product ``targets A^T``.
    """
    columns = rows.T.tocsr()
    parts = in_runs(
        lambda start, stop: _nearest(start, stop, *_arrays(targets), *_arrays(columns), count, limit, rank, own),
        targets.shape[0],
        RUN,
    )
    return np.concatenate(parts) if parts else np.zeros((0, count), np.int32)


@dataclass(frozen=True, eq=False)
class LocalFactor:
    """near [n, m]: rows of A, -1 for none; weights [n, m + 1]: their entries of W, and last that of the row itself."""

    near: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(targets: Any, rows: Any, near: np.ndarray, nugget: float) -> LocalFactor:
        """For targets with the variance ``|target|^2 + nugget``, from neighbours with ``|a|^2 + 1``. Cost: O(n m^2 (nnz + m))."""
        parts = in_runs(
            lambda start, stop: _factor(start, stop, *_arrays(targets), *_arrays(rows), rows.shape[1], near, nugget),
            targets.shape[0],
            RUN,
        )
        return LocalFactor(near, np.concatenate(parts) if parts else np.zeros((0, near.shape[1] + 1)))

    @property
    def variance(self) -> np.ndarray:
        """Of each target given its neighbours, [n]."""
        return self.weights[:, -1] ** -2.0

    def matrix(self) -> Any:
        """W [n, n] of A itself, a SciPy array."""
        n = len(self.near)
        at = np.concatenate([self.near, np.arange(n, dtype=np.int32)[:, None]], 1)
        seen = at >= 0
        indptr = np.concatenate([[0], np.cumsum(seen.sum(1))])
        return sparse.csr_array((self.weights[seen], at[seen], indptr), (n, n))

    def logdet(self) -> float:
        """Of ``P = (W^T W)^-1``, which B is near to."""
        return -2 * float(np.log(self.weights[:, -1]).sum())

    def colour(self, z: np.ndarray, order: np.ndarray) -> np.ndarray:
        """``W^-1 z`` for z [n, k]; order: of the rows, such that neighbours are earlier."""
        return _substitute(order, self.near, self.weights, z)

    def slope(self, rows: Any) -> np.ndarray:
        """``2 P^-1 A`` at the entries of A: the derivative of the log determinant of P. Cost: O(n m nnz)."""
        settings, n = (*_arrays(rows), rows.shape[1], self.near, self.weights), len(self.near)
        parts = in_runs(lambda start, stop: _slope(start, stop, *settings), n, max(RUN, -(-n // SHARES)))
        return np.sum(parts, 0) if parts else np.zeros(0)


def _arrays(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return matrix.indptr.astype(np.int64), matrix.indices, matrix.data


@numba.njit(**COMPILATION)
def _nearest(start, stop, indptr, columns, values, tops, members, entries, count, limit, rank, own):
    n = len(rank)
    found, total, seen = np.empty(n, np.int64), np.zeros(n), np.zeros(n, np.bool_)
    out = np.full((stop - start, count), -1, np.int32)
    for r in range(start, stop):
        some = 0
        for e in range(indptr[r], indptr[r + 1]):
            begin, end = tops[columns[e]], tops[columns[e] + 1]
            if end - begin > LONGEST:
                continue
            for k in range(begin, end):
                j = members[k]
                if rank[j] >= limit[r] or j == own[r]:
                    continue
                if not seen[j]:
                    seen[j] = True
                    found[some] = j
                    some += 1
                total[j] += values[e] * entries[k]
        if some <= count:
            out[r - start, :some] = np.sort(found[:some])
        else:
            size = np.empty(some)
            for k in range(some):
                size[k] = -abs(total[found[k]])
            out[r - start] = np.sort(found[np.argsort(size, kind="mergesort")[:count]])
        for k in range(some):
            seen[found[k]], total[found[k]] = False, 0.0
    return out


@numba.njit(**COMPILATION)
def _factor(start, stop, indptr, columns, values, tops, members, entries, size, near, nugget):
    m = near.shape[1]
    dense, L, w = np.zeros(size), np.zeros((m + 1, m + 1)), np.zeros((stop - start, m + 1))
    for r in range(start, stop):
        k = 0
        while k < m and near[r, k] >= 0:
            k += 1
        for i in range(k + 1):  # the covariances of row i with those before it
            last = i == k
            here = (columns, values, indptr, r) if last else (members, entries, tops, np.int64(near[r, i]))
            at, numbers, ends, row = here
            own = nugget if last else 1.0
            for e in range(ends[row], ends[row + 1]):
                dense[at[e]] = numbers[e]
                own += numbers[e] * numbers[e]
            for j in range(i):
                total = 0.0
                for e in range(tops[near[r, j]], tops[near[r, j] + 1]):
                    total += entries[e] * dense[members[e]]
                for q in range(j):
                    total -= L[i, q] * L[j, q]
                L[i, j] = total / L[j, j]
            for e in range(ends[row], ends[row + 1]):
                dense[at[e]] = 0.0
            rest = own
            for q in range(i):
                rest -= L[i, q] * L[i, q]
            L[i, i] = np.sqrt(max(rest, TINY * own + 1e-300))
        w[r - start, m] = 1 / L[k, k]
        for i in range(k - 1, -1, -1):
            total = L[k, i] * w[r - start, m]
            for q in range(i + 1, k):
                total += L[q, i] * w[r - start, q]
            w[r - start, i] = -total / L[i, i]
    return w


@numba.njit(**COMPILATION)
def _substitute(order, near, weights, z):
    m, out = near.shape[1], np.empty_like(z)
    for r in order:
        for c in range(z.shape[1]):
            total = z[r, c]
            for k in range(m):
                if near[r, k] < 0:
                    break
                total -= weights[r, k] * out[near[r, k], c]
            out[r, c] = total / weights[r, m]
    return out


@numba.njit(**COMPILATION)
def _slope(start, stop, indptr, columns, values, size, near, weights):
    m, dense, out = near.shape[1], np.zeros(size), np.zeros(len(values))
    for r in range(start, stop):
        for k in range(m + 1):
            row = r if k == m else near[r, k]
            if row < 0:
                continue
            for e in range(indptr[row], indptr[row + 1]):
                dense[columns[e]] += weights[r, k] * values[e]
        for k in range(m + 1):
            row = r if k == m else near[r, k]
            if row < 0:
                continue
            for e in range(indptr[row], indptr[row + 1]):
                out[e] += 2 * weights[r, k] * dense[columns[e]]
        for k in range(m + 1):
            row = r if k == m else near[r, k]
            if row < 0:
                continue
            for e in range(indptr[row], indptr[row + 1]):
                dense[columns[e]] = 0.0
    return out
