"""Sparse upper triangular matrices with one pattern: products, solves, an incomplete factor, and norms of solves.

Column i of a matrix has its entries [n, m + 1] in the rows ``near[i]`` (ascending, -1 for none, whose entry is 0) and, last, i.
Theory: docs/theory/sic.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from gpx.linalg.threads import in_runs

RUN = 1024  # columns that a thread takes at once
FIRST_SHIFT = 1e-6  # of the diagonal, where the incomplete factorisation breaks down; doubled until it does not
GROWTH = 4.0
BATCH = 16  # right-hand sides that are solved for at once
COMPILATION: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc"},
}


class Incomplete(NamedTuple):
    """v [n, m + 1] with ``V V^T`` equal to the matrix on the pattern; shift: of its diagonal, relative, that this took."""

    v: np.ndarray
    shift: float


@numba.njit(**COMPILATION)
def times(near, u, x):
    """``U x``."""
    n, m = near.shape
    result = np.zeros(n)
    for i in range(n):
        result[i] += u[i, m] * x[i]
        for r in range(m):
            if near[i, r] >= 0:
                result[near[i, r]] += u[i, r] * x[i]
    return result


@numba.njit(**COMPILATION)
def transposed_times(near, u, x):
    """``U^T x``."""
    n, m = near.shape
    result = np.empty(n)
    for i in range(n):
        total = u[i, m] * x[i]
        for r in range(m):
            total += u[i, r] * x[near[i, r]]  # the entry is 0 where there is no row
        result[i] = total
    return result


@numba.njit(**COMPILATION)
def add_outer(near, x, y, result):
    """Add ``x y^T``, where U has entries, to result [n, m + 1]."""
    n, m = near.shape
    for i in range(n):
        for r in range(m):
            if near[i, r] >= 0:
                result[i, r] += x[near[i, r]] * y[i]
        result[i, m] += x[i] * y[i]


@numba.njit(**COMPILATION)
def solve(near, v, b):
    """``V^-1 b``."""
    n, m = near.shape
    x = b.copy()
    for i in range(n - 1, -1, -1):
        x[i] /= v[i, m]
        for r in range(m):
            if near[i, r] >= 0:
                x[near[i, r]] -= v[i, r] * x[i]
    return x


@numba.njit(**COMPILATION)
def transposed_solve(near, v, b):
    """``V^-T b``."""
    n, m = near.shape
    x = b.copy()
    for i in range(n):
        total = x[i]
        for r in range(m):
            total -= v[i, r] * x[near[i, r]]
        x[i] = total / v[i, m]
    return x


def places(near: np.ndarray) -> np.ndarray:
    """For rows a < b of every column: where the row of a stands in the column of the row of b, m if nowhere; [n, m (m - 1) / 2],
    b-major.
    """
    m = near.shape[1]
    result = np.empty((len(near), m * (m - 1) // 2), np.uint8 if m < 256 else np.uint16)
    in_runs(lambda start, stop: _places(near, start, stop, result), len(near), RUN)
    return result


@numba.njit(**COMPILATION)
def _places(near, start, stop, result):
    m = near.shape[1]
    for i in range(start, stop):
        slot = 0
        for b in range(m):
            column, position = near[i, b], 0
            for a in range(b):
                row = near[i, a]
                result[i, slot] = m
                if row >= 0:
                    while position < m and near[column, position] < row:
                        position += 1
                    if position < m and near[column, position] == row:
                        result[i, slot] = position
                slot += 1


def incomplete_factor(near: np.ndarray, u: np.ndarray, tau: np.ndarray, where: np.ndarray) -> Incomplete:
    """The incomplete Cholesky factor of ``U U^T + diag(tau)`` on the pattern of U. where: `places` of the pattern.

    Where a pivot is not positive the diagonal is raised by a share of itself. Cost: O(n m^2).
    """
    shift = 0.0
    while True:
        v, done = _incomplete_factor(near, u, tau, where, shift)
        if done:
            return Incomplete(v, shift)
        shift = max(FIRST_SHIFT, GROWTH * shift)


@numba.njit(**COMPILATION)
def _incomplete_factor(near, u, tau, where, shift):
    n, m = near.shape
    v = np.zeros((n, m + 1))
    for i in range(n - 1, -1, -1):
        pivot = u[i, m] * u[i, m] + tau[i]
        diagonal = pivot * (1 + shift) + v[i, m]
        if not diagonal > 1e-14 * pivot:
            return v, False
        root = np.sqrt(diagonal)
        v[i, m] = root
        for r in range(m):
            v[i, r] = (u[i, r] * u[i, m] + v[i, r]) / root
        slot = 0
        for b in range(m):
            column = near[i, b]
            if column < 0:
                slot += b
                continue
            v[column, m] += u[i, b] * u[i, b] * (1 + shift) - v[i, b] * v[i, b]
            for a in range(b):
                place = where[i, slot]
                slot += 1
                if place < m:
                    v[column, place] += u[i, a] * u[i, b] - v[i, a] * v[i, b]
    return v, True


def conjugate_gradients(
    near: np.ndarray, u: np.ndarray, tau: np.ndarray, v: np.ndarray, b: np.ndarray, tolerance: float, limit: int = 500
) -> tuple[np.ndarray, int]:  # fmt: skip
    """``(U U^T + diag(tau))^-1 b``, preconditioned by V, and the number of iterations.

    Until the residual is `tolerance` of b, both in the norm of the preconditioner.
    """

    def preconditioned(r: np.ndarray) -> np.ndarray:
        return transposed_solve(near, v, solve(near, v, r))

    x, residual = np.zeros_like(b), b.copy()
    z = preconditioned(residual)
    direction, rho = z, float(residual @ z)
    goal = tolerance * tolerance * rho
    for iteration in range(limit):
        if rho <= goal or rho == 0:
            return x, iteration
        image = times(near, u, transposed_times(near, u, direction)) + tau * direction
        step = rho / float(direction @ image)
        x += step * direction
        residual -= step * image
        z = preconditioned(residual)
        previous, rho = rho, float(residual @ z)
        direction = z + (rho / previous) * direction
    return x, limit


def norms(near: np.ndarray, v: np.ndarray, rows: np.ndarray, values: np.ndarray, tolerance: float) -> np.ndarray:
    """``|V^-1 b|^2`` for vectors b with the entries values [k, r] in rows [k, r] (ascending; -1 for none).

    Solves follow only what exceeds a share `tolerance` of the largest entry so far: with 0 they are exact.
    Cost: O(k (rows followed) m). Vectors that are near each other should follow each other: they share memory.
    """
    result = np.empty(len(rows))
    in_runs(lambda start, stop: _norms(near, v, rows, values, tolerance, start, stop, result), len(rows), RUN)
    return result


def images(
    near: np.ndarray, v: np.ndarray, u: np.ndarray, order: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """For every column u_i: ``|V^-1 u_i|^2`` [n], and ``(V V^T)^-1 u_i`` in its own rows [n, m + 1].

    order: in which columns are taken; tolerance: as in `norms`.
    """
    squares, result = np.empty(len(u)), np.empty_like(u)
    in_runs(
        lambda start, stop: _images(near, v, u, order, tolerance, start, stop, squares, result), len(u), RUN
    )  # fmt: skip
    return squares, result


def pulls(near: np.ndarray, v: np.ndarray, rows: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    """``sum |V^-1 b|^2 / 2`` over vectors b as in `norms`, and its gradient [n, m + 1] in V: ``-(V^-T t) t^T``, ``t = V^-1 b``.

    Exact. Cost: O(k (ancestors) m).
    """
    parts = in_runs(lambda start, stop: _pulls(near, v, rows, values, start, stop), len(rows), RUN)
    return float(sum(value for value, _ in parts)), np.sum([gradient for _, gradient in parts], 0)


@numba.njit(inline="always", **COMPILATION)
def _mark(j, words, summary):
    words[j >> 6] |= np.uint64(1) << np.uint64(j & 63)
    summary[j >> 12] |= np.uint64(1) << np.uint64((j >> 6) & 63)


@numba.njit(inline="always", **COMPILATION)
def _highest(word):
    """Position of the highest bit of a word that is not 0."""
    position = 0
    for width in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(width):
            word = word >> np.uint64(width)
            position += width
    return position


@numba.njit(**COMPILATION)
def _descend(near, v, top, tolerance, w, words, summary, visited, total):
    """Solve ``V t = w`` for BATCH right-hand sides, from the marked rows of index `top` (a block of 4,096 rows) down; t is left
    in w, |t|^2 in `total`, and the rows met in `visited`, in descending order. Returns their number.
    """
    m, count, block = near.shape[1], 0, top
    largest, t = np.zeros(BATCH), np.empty(BATCH)
    total[:] = 0.0
    while block >= 0:
        if summary[block] == 0:
            block -= 1
            continue
        word = (block << 6) + _highest(summary[block])
        j = (word << 6) + _highest(words[word])
        words[word] &= ~(np.uint64(1) << np.uint64(j & 63))
        if words[word] == 0:
            summary[block] &= ~(np.uint64(1) << np.uint64(word & 63))
        visited[count] = j
        count += 1
        inverse, follow = 1 / v[j, m], False
        for lane in range(BATCH):
            t[lane] = w[j, lane] * inverse
            w[j, lane] = t[lane]
            total[lane] += t[lane] * t[lane]
            largest[lane] = max(largest[lane], abs(t[lane]))
            follow |= abs(t[lane]) > tolerance * largest[lane]
        if follow:
            for r in range(m):
                k = near[j, r]
                if k >= 0:
                    for lane in range(BATCH):
                        w[k, lane] -= v[j, r] * t[lane]
                    _mark(k, words, summary)
    return count


@numba.njit(**COMPILATION)
def _workspace(n):
    bits = np.zeros((n >> 6) + 1, np.uint64), np.zeros((n >> 12) + 1, np.uint64)
    return np.zeros((n, BATCH)), bits[0], bits[1], np.empty(n, np.int32), np.empty(BATCH)


@numba.njit(**COMPILATION)
def _norms(near, v, rows, values, tolerance, start, stop, result):
    w, words, summary, visited, total = _workspace(len(near))
    for first in range(start, stop, BATCH):
        lanes = min(BATCH, stop - first)
        top = _scatter(rows, values, first, lanes, w, words, summary)
        count = _descend(near, v, top, tolerance, w, words, summary, visited, total)
        for lane in range(lanes):
            result[first + lane] = total[lane]
        for k in range(count):
            w[visited[k], :] = 0.0


@numba.njit(**COMPILATION)
def _ascend(near, v, visited, count, w, z):
    """``z = V^-T w`` for BATCH right-hand sides in the rows that were visited, which are given in descending order."""
    m, sums = near.shape[1], np.empty(BATCH)
    for k in range(count - 1, -1, -1):
        j = visited[k]
        for lane in range(BATCH):
            sums[lane] = w[j, lane]
        for r in range(m):
            row = max(near[j, r], 0)  # the entry is 0 where there is no row
            for lane in range(BATCH):
                sums[lane] -= v[j, r] * z[row, lane]
        for lane in range(BATCH):
            z[j, lane] = sums[lane] / v[j, m]


@numba.njit(**COMPILATION)
def _scatter(rows, values, first, lanes, w, words, summary):
    """Right-hand sides into w, their rows marked; the highest block of these."""
    top = 0
    for lane in range(lanes):
        for r in range(rows.shape[1]):
            j = rows[first + lane, r]
            if j >= 0:
                w[j, lane] = values[first + lane, r]
                _mark(j, words, summary)
                top = max(top, j >> 12)
    return top


@numba.njit(**COMPILATION)
def _pulls(near, v, rows, values, start, stop):
    m = near.shape[1]
    w, words, summary, visited, total = _workspace(len(near))
    z, gradient, value = np.zeros((len(near), BATCH)), np.zeros(v.shape), 0.0
    for first in range(start, stop, BATCH):
        top = _scatter(rows, values, first, min(BATCH, stop - first), w, words, summary)
        count = _descend(near, v, top, 0.0, w, words, summary, visited, total)
        value += 0.5 * total.sum()
        _ascend(near, v, visited, count, w, z)
        for k in range(count):
            j = visited[k]
            for lane in range(BATCH):
                for r in range(m):
                    gradient[j, r] -= z[max(near[j, r], 0), lane] * w[j, lane] * (near[j, r] >= 0)
                gradient[j, m] -= z[j, lane] * w[j, lane]
        for k in range(count):
            w[visited[k], :] = 0.0
            z[visited[k], :] = 0.0
    return value, gradient


@numba.njit(**COMPILATION)
def _images(near, v, u, order, tolerance, start, stop, squares, result):
    m = near.shape[1]
    w, words, summary, visited, total = _workspace(len(near))
    z = np.zeros((len(near), BATCH))
    for first in range(start, stop, BATCH):
        top, lanes = 0, min(BATCH, stop - first)
        for lane in range(lanes):
            i = order[first + lane]
            for r in range(m + 1):
                j = near[i, r] if r < m else i
                if j >= 0:
                    w[j, lane] = u[i, r]
                    _mark(j, words, summary)
            top = max(top, i >> 12)
        count = _descend(near, v, top, tolerance, w, words, summary, visited, total)
        _ascend(near, v, visited, count, w, z)
        for lane in range(lanes):
            i = order[first + lane]
            squares[i] = total[lane]
            for r in range(m + 1):
                j = near[i, r] if r < m else i
                result[i, r] = z[j, lane] if j >= 0 else 0.0
        for k in range(count):
            w[visited[k], :] = 0.0
            z[visited[k], :] = 0.0
