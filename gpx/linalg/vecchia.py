"""Columns of a sparse inverse Cholesky factor and their gradient: compiled loops for isotropic kernels, numbers in and out.

Column i belongs to point i and the points before it that it depends on: with ``K = C C^T`` their covariance, i last,
``u = C^-T e`` for the last unit vector e. LANES columns are worked on side by side, so that the compiler vectorises over them.
Theory: docs/theory/sic.md.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from gpx.linalg.threads import in_runs

LANES = 64
RUN = 64 * LANES  # columns that a thread takes at once
PROFILES = ("matern12", "matern32", "matern52", "rbf")
NOWHERE = 1e7  # the spacing of points that stand for missing neighbours: no kernel reaches so far
COMPILATION: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract", "nnan"}}
EXACT: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
SHIFT = 1.5 * 2**52  # added to a number, it leaves the nearest integer in the last bits
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10


class NotPositiveDefinite(ValueError):
    """The covariance of a point and its neighbours has no Cholesky factor; index: of the first such point."""

    def __init__(self, index: int):
        super().__init__(f"The covariance matrix of point {index} and its neighbours is not positive definite.")
        self.index = index


def columns(
    x: np.ndarray, near: np.ndarray, profile: str, variance: float, diagonal: np.ndarray, floor: float = 0.0
) -> np.ndarray:
    """u [k, m + 1] of the last k points under ``k(x_i, x_j) = variance profile(|x_i - x_j|) + delta_ij diagonal_i``.

    Arguments: x [n, d], divided by lengthscales; near [k, m]: earlier rows, -1 for none (its entry is 0), while the point itself
    comes last; profile: one of PROFILES at distances without unit (Matern's with sqrt(2 nu) inside); diagonal [n];
    floor: what the variance of a point given its neighbours is raised to, where it is an error if not positive.
    Raises: NotPositiveDefinite. Cost: O(k m^3), on as many threads as torch uses.
    """
    out = np.empty((len(near), near.shape[1] + 1))
    settings = PROFILES.index(profile), variance, diagonal, floor

    def work(start: int, stop: int) -> int:
        return _columns(x, near, *settings, start, stop, out)

    for index in in_runs(work, len(near), RUN):
        if index >= 0:
            raise NotPositiveDefinite(index)
    return out


def columns_adjoint(
    x: np.ndarray, near: np.ndarray, profile: str, variance: float, diagonal: np.ndarray, u: np.ndarray, grad: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:  # fmt: skip
    """The gradient of a function of u, given its gradient [n, m + 1] in u: in the variance; in the logarithms of lengthscales
    [d]; and in the diagonal [n].

    ``dK = -sym(K^-1 grad u^T) + (grad . u) u u^T / 2`` per column; factors are computed anew rather than kept.
    Cost: as `columns`.
    """
    at_diagonal, settings = np.empty_like(u), (PROFILES.index(profile), variance, diagonal)

    def work(start: int, stop: int) -> tuple[float, np.ndarray]:
        return _columns_adjoint(x, near, *settings, u, grad, start, stop, at_diagonal)

    parts = in_runs(work, len(near), RUN)
    in_diagonal = _summed(near, at_diagonal, len(x))
    in_lengths = np.sum([lengths for _, lengths in parts], 0) if parts else np.zeros(x.shape[1])
    return float(sum(value for value, _ in parts)) / variance, in_lengths, in_diagonal


@numba.njit(**EXACT)
def _summed(near, values, size):
    """By row of x, the sum of what is there at it: a boolean selection would copy everything twice."""
    shift, m = size - len(near), near.shape[1]
    result = np.zeros(size)
    for i in range(len(near)):
        result[shift + i] += values[i, m]
        for r in range(m):
            if near[i, r] >= 0:
                result[near[i, r]] += values[i, r]
    return result


@numba.njit(**EXACT)
def _exp(values, whole, power):
    """exp of LANES numbers in [-700, 0], in place, by a polynomial and a power of two: the library's is not vectorised."""
    bits = power.view(np.int64)
    for lane in range(LANES):
        t = values[lane] * LOG2E + SHIFT
        power[lane] = t
        whole[lane] = t - SHIFT
    for lane in range(LANES):
        bits[lane] = (bits[lane] << 52) + (1023 << 52)
    for lane in range(LANES):
        r = (values[lane] - whole[lane] * LN2_HIGH) - whole[lane] * LN2_LOW
        p = 1.6059043836821613e-10
        p = p * r + 2.08767569878681e-09
        p = p * r + 2.505210838544172e-08
        p = p * r + 2.755731922398589e-07
        p = p * r + 2.7557319223985893e-06
        p = p * r + 2.48015873015873e-05
        p = p * r + 0.0001984126984126984
        p = p * r + 0.001388888888888889
        p = p * r + 0.008333333333333333
        p = p * r + 0.041666666666666664
        p = p * r + 0.16666666666666666
        p = p * r + 0.5
        p = p * r + 1.0
        p = p * r + 1.0
        values[lane] = p * power[lane]


@numba.njit(inline="always", **COMPILATION)
def _gather(x, near, start, stop, points):
    """Coordinates [m + 1, d, LANES] of the points of LANES columns; those beyond the end repeat the last."""
    m, d, shift = near.shape[1], x.shape[1], len(x) - len(near)
    for lane in range(LANES):
        i = min(start + lane, stop - 1)
        for r in range(m):
            j = near[i, r]
            for k in range(d):
                points[r, k, lane] = x[j, k] if j >= 0 else NOWHERE * (r + 1)
        for k in range(d):
            points[m, k, lane] = x[shift + i, k]


@numba.njit(inline="always", **COMPILATION)
def _entries(points, r, s, kind, square, value, slope, whole, power):
    """For LANES pairs of points: the profile at their distance, and its derivative in the squared distance."""
    for lane in range(LANES):
        square[lane] = 0.0
    for k in range(points.shape[1]):
        for lane in range(LANES):
            away = points[r, k, lane] - points[s, k, lane]
            square[lane] += away * away
    if kind == 3:
        for lane in range(LANES):
            value[lane] = max(-0.5 * square[lane], -700.0)
        _exp(value, whole, power)
        for lane in range(LANES):
            slope[lane] = -0.5 * value[lane]
    else:
        for lane in range(LANES):
            square[lane] = np.sqrt(square[lane])
            value[lane] = max(-square[lane], -700.0)
        _exp(value, whole, power)
        if kind == 0:  # a kink at zero: coincident points get the slope zero
            for lane in range(LANES):
                slope[lane] = -0.5 * value[lane] / square[lane] if square[lane] > 0 else 0.0
        elif kind == 1:
            for lane in range(LANES):
                slope[lane] = -0.5 * value[lane]
                value[lane] = value[lane] * (1 + square[lane])
        else:
            for lane in range(LANES):
                slope[lane] = -value[lane] * (1 + square[lane]) / 6
                value[lane] = value[lane] * (1 + square[lane] + square[lane] * square[lane] / 3)


@numba.njit(**COMPILATION)
def _factor(x, near, kind, variance, diagonal, floor, start, stop, points, lower, slopes, u, work):
    """The factor C (packed rows; reciprocals on its diagonal), the slopes of the entries, and u; the first bad lane or -1."""
    m, shift = near.shape[1], len(x) - len(near)
    value, slope, square, whole, power = work[0], work[1], work[2], work[3], work[4]
    _gather(x, near, start, stop, points)
    bad = -1
    for r in range(m + 1):
        row = r * (r + 1) // 2
        for s in range(r):
            _entries(points, r, s, kind, square, value, slope, whole, power)
            for lane in range(LANES):
                lower[row + s, lane] = variance * value[lane]
                slopes[row + s, lane] = slope[lane]
        for lane in range(LANES):
            i = min(start + lane, stop - 1)
            j = near[i, r] if r < m else shift + i
            lower[row + r, lane] = variance + (diagonal[j] if j >= 0 else 0.0)
        for s in range(r + 1):
            column = s * (s + 1) // 2
            for t in range(s):
                for lane in range(LANES):
                    lower[row + s, lane] -= lower[row + t, lane] * lower[column + t, lane]
            if s < r:
                for lane in range(LANES):
                    lower[row + s, lane] *= lower[column + s, lane]
        for lane in range(LANES):
            if r == m:
                lower[row + r, lane] = max(lower[row + r, lane], floor)
            if not lower[row + r, lane] > 0 and bad < 0 and start + lane < stop:
                bad = lane
            lower[row + r, lane] = 1 / np.sqrt(lower[row + r, lane])
    for lane in range(LANES):
        u[m, lane] = 1.0
    for s in range(m):
        u[s, :] = 0.0
    _solve_back(lower, u, m)
    return bad


@numba.njit(inline="always", **COMPILATION)
def _solve_back(lower, b, m):
    """``C^-T b``, in place."""
    for r in range(m, -1, -1):
        row = r * (r + 1) // 2
        for lane in range(LANES):
            b[r, lane] *= lower[row + r, lane]
        for s in range(r):
            for lane in range(LANES):
                b[s, lane] -= lower[row + s, lane] * b[r, lane]


@numba.njit(inline="always", **COMPILATION)
def _solve(lower, b, m):
    """``C^-1 b``, in place."""
    for r in range(m + 1):
        row = r * (r + 1) // 2
        for s in range(r):
            for lane in range(LANES):
                b[r, lane] -= lower[row + s, lane] * b[s, lane]
        for lane in range(LANES):
            b[r, lane] *= lower[row + r, lane]


@numba.njit(**COMPILATION)
def _columns(x, near, kind, variance, diagonal, floor, start, stop, out):
    m, d = near.shape[1], x.shape[1]
    size = (m + 1) * (m + 2) // 2
    points, work = np.empty((m + 1, d, LANES)), np.empty((5, LANES))
    lower, slopes, u = np.empty((size, LANES)), np.empty((size, LANES)), np.empty((m + 1, LANES))
    for first in range(start, stop, LANES):
        bad = _factor(x, near, kind, variance, diagonal, floor, first, stop, points, lower, slopes, u, work)
        if bad >= 0:
            return first + bad
        for lane in range(min(LANES, stop - first)):
            for r in range(m + 1):
                j = near[first + lane, r] if r < m else 0
                out[first + lane, r] = u[r, lane] if j >= 0 else 0.0
    return -1


@numba.njit(**COMPILATION)
def _columns_adjoint(x, near, kind, variance, diagonal, u, grad, start, stop, at_diagonal):
    """`variance` times the gradient in the variance, that in the logarithms of lengthscales; written: in each diagonal."""
    m, d = near.shape[1], x.shape[1]
    size = (m + 1) * (m + 2) // 2
    points, work = np.empty((m + 1, d, LANES)), np.empty((5, LANES))
    lower, slopes = np.empty((size, LANES)), np.empty((size, LANES))
    v, b, half, weight = np.empty((m + 1, LANES)), np.empty((m + 1, LANES)), np.empty(LANES), np.empty(LANES)
    total, lengths = 0.0, np.zeros((d, LANES))
    for first in range(start, stop, LANES):
        _factor(x, near, kind, variance, diagonal, 0.0, first, stop, points, lower, slopes, v, work)
        half[:] = 0.0
        for r in range(m + 1):
            for lane in range(LANES):
                inside = first + lane < stop and (r == m or near[min(first + lane, stop - 1), r] >= 0)
                b[r, lane] = grad[first + lane, r] if inside else 0.0
                v[r, lane] = u[first + lane, r] if inside else 0.0
                half[lane] += 0.5 * b[r, lane] * v[r, lane]
        _solve(lower, b, m)
        _solve_back(lower, b, m)
        for r in range(m + 1):
            for lane in range(LANES):  # dK = (b v^T + v b^T) / 2
                b[r, lane] = half[lane] * v[r, lane] - b[r, lane]
            for lane in range(min(LANES, stop - first)):
                at_diagonal[first + lane, r] = b[r, lane] * v[r, lane]
                j = near[first + lane, r] if r < m else first + lane
                if j >= 0:
                    total -= at_diagonal[first + lane, r] * diagonal[j]
        for lane in range(min(LANES, stop - first)):  # K of this scale gives u of its root
            total -= half[lane]
        for r in range(m + 1):
            row = r * (r + 1) // 2
            for s in range(r):
                for lane in range(LANES):
                    weight[lane] = (b[r, lane] * v[s, lane] + v[r, lane] * b[s, lane]) * slopes[row + s, lane]
                for k in range(d):
                    for lane in range(LANES):
                        away = points[r, k, lane] - points[s, k, lane]
                        lengths[k, lane] -= weight[lane] * away * away
    return total, 2 * variance * lengths.sum(1)
