"""Kalman filter and smoother of sums of Matern processes with modulated observations: compiled loops, numbers in and out.

The state is a list of copies of Matern-(p + 1/2) processes in unit-free coordinates ``z_i = f^(i) / rate^i``; the observed
function is ``f(t) = h(t) . z(t)``. Times are visited in order (a gap of infinity starts
an independent series); every time has a site ``exp(nu f - tau f^2 / 2)``, and
nu = tau = 0 where nothing was observed. Theory: docs/theory/state_space.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numba
import numpy as np

from gpx.linalg.layout import Layout, tables
from gpx.linalg.steps import COMPILATION, LONGEST, array, copy, process_noise, scaled, transition

MANY = 50_000  # times from which compiling for a layout pays, and of which it is asked whether they are even
LARGE = 1e150  # products of innovation variances are turned into logarithms beyond
SETTLED = 1e-15  # relative change of a covariance from one time to the next, at equal gaps and sites, that is rounding


@numba.njit(inline="always", **COMPILATION)
def _settled(matrix, before, S):
    """Whether a covariance is what it was; keeps it in before."""
    close = True
    for i in range(S):
        for j in range(i + 1):
            change = abs(matrix[i, j] - before[i, j])
            close &= change * change <= SETTLED * SETTLED * abs(matrix[i, i] * matrix[j, j])
    for i in range(S):
        for j in range(S):
            before[i, j] = matrix[i, j]
    return close


@numba.njit(inline="always", **COMPILATION)
def _pack(P, S, row):
    """Write the lower triangle."""
    k = 0
    for i in range(S):
        for j in range(i + 1):
            row[k] = P[i, j]
            k += 1


@numba.njit(inline="always", **COMPILATION)
def _move(A, m, blocks, starts, dims, J, S, y):
    """``m <- A m``."""
    for c in range(J):
        o, d, b = starts[c], dims[c], blocks[c]
        for i in range(d):
            value = A[b, i, 0] * m[o]
            for k in range(1, d):
                value += A[b, i, k] * m[o + k]
            y[o + i] = value
    for i in range(S):
        m[i] = y[i]


@numba.njit(inline="always", **COMPILATION)
def _weigh(s, factors, rows, seen, copy_of, row_of, R, h):
    """h at a time: the weights of the state in f."""
    for k in range(R):
        h[seen[k]] = factors[s, copy_of[k]] * rows[row_of[k]]


@numba.njit(inline="always", **COMPILATION)
def _look(m, P, h, seen, R, S, zero, g):
    """``g = P h``; returns mean and variance of f."""
    f, v = zero, zero
    for i in range(S):
        value = zero
        for k in range(R):
            value += P[i, seen[k]] * h[seen[k]]
        g[i] = value
    for k in range(R):
        f += m[seen[k]] * h[seen[k]]
        v += g[seen[k]] * h[seen[k]]
    return f, v


@numba.njit(inline="always", **COMPILATION)
def _step(A, m, P, blocks, starts, dims, J, S, y, T, V):
    """``m <- A m``, ``P <- A P A^T``: rows of P, then rows of (A P)^T, so that inner loops are over neighbours in memory."""
    for c in range(J):
        o, d, b = starts[c], dims[c], blocks[c]
        for i in range(d):
            value = A[b, i, 0] * m[o]
            for k in range(1, d):
                value += A[b, i, k] * m[o + k]
            y[o + i] = value
            for j in range(S):
                T[o + i, j] = A[b, i, 0] * P[o, j]
            for k in range(1, d):
                for j in range(S):
                    T[o + i, j] += A[b, i, k] * P[o + k, j]
    for i in range(S):
        m[i] = y[i]
    for c in range(J):
        o, d, b = starts[c], dims[c], blocks[c]
        for k in range(d):
            for j in range(S):
                V[k, j] = T[j, o + k]
        for i in range(d):
            for j in range(S):
                P[o + i, j] = A[b, i, 0] * V[0, j]
            for k in range(1, d):
                for j in range(S):
                    P[o + i, j] += A[b, i, k] * V[k, j]


def _filter(tables, gaps, rates, rows, factors, nu, tau, mean, covariance, start, stop, means, covariances):
    """Filter from start to stop, from the state (mean [S], covariance [S, S]), which is moved. Predicted moments are written to
    means [k, S] and covariances [k, S (S + 1) / 2], unless these have fewer than stop - start rows.

    At even times a covariance may settle, and then only means move.
    Returns: log partition, and the sum of ``log N(nu / tau; f, v + 1 / tau)`` where tau > 0.
    """
    blocks, starts, dims, seen, copy_of, row_of, sizes, N, W, series, inverses, S, J, B, D, K, R = (
        tables.blocks,
        tables.starts,
        tables.dims,
        tables.seen,
        tables.copy_of,
        tables.row_of,
        tables.sizes,
        tables.N,
        tables.W,
        tables.series,
        tables.inverses,
        tables.S,
        tables.J,
        tables.B,
        tables.D,
        tables.K,
        tables.R,
    )
    zero = mean[0] * 0
    A, Q, gamma, h = array(0.0, (B, D, D)), array(0.0, (B, D, D)), array(0.0, (K,)), array(0.0, (S,))
    m, g, P, T, V, E = (
        array(zero, (S,)),
        array(zero, (S,)),
        array(zero, (S, S)),
        array(zero, (S, S)),
        array(zero, (D, S)),
        array(zero, (S, S)),
    )
    copy(mean, covariance, S, m, P)
    for i in range(S):
        h[i] = 0.0
    store, moving = len(means) >= stop - start, len(factors) > 1
    may_settle = tables.even and not moving and not np.iscomplexobj(nu)
    partition, density, last = zero, zero, -1.0
    spreads, noises, t, v = zero + 1, zero + 1, zero, zero
    _weigh(0, factors, rows, seen, copy_of, row_of, R, h)
    s = start
    while s < stop:
        gap = gaps[s]
        if gap != last:
            for b in range(B):
                x = scaled(rates[b], gap)
                decay = transition(x, N[b], sizes[b], A[b])
                process_noise(x, decay, W[b], series[b], inverses, sizes[b], gamma, Q[b])
        repeated = may_settle and gap == last and tau[s] == t
        last, t, before = gap, tau[s], v
        _step(A, m, P, blocks, starts, dims, J, S, g, T, V)
        for c in range(J):
            o, b = starts[c], blocks[c]
            for i in range(dims[c]):
                for j in range(dims[c]):
                    P[o + i, o + j] += Q[b, i, j]
        if store:
            for i in range(S):
                means[s - start, i] = m[i]
            _pack(P, S, covariances[s - start])
        if moving:
            _weigh(s, factors, rows, seen, copy_of, row_of, R, h)
        # Times the site.
        n = nu[s]
        f, v = _look(m, P, h, seen, R, S, zero, g)
        settled = repeated and abs(v - before) <= SETTLED * abs(v) and _settled(P, E, S)
        spread = 1 + t * v
        inverse, e = 1 / spread, n - t * f
        partition += (n * f + 0.5 * n * n * v - 0.5 * t * f * f) * inverse
        spreads *= spread
        noise = zero
        if t.real > 0:
            noise = 1 / t
            density -= 0.5 * e * e * inverse * noise
            noises *= 2 * math.pi * spread * noise
            if not 1 / LARGE < noises.real < LARGE:
                density -= 0.5 * np.log(noises)
                noises = zero + 1
        if spreads.real > LARGE:
            partition -= 0.5 * np.log(spreads)
            spreads = zero + 1
        a, r = e * inverse, t * inverse
        for i in range(S):
            m[i] += g[i] * a
            for j in range(S):
                P[i, j] -= g[i] * g[j] * r
        s += 1
        if settled:  # Only means move until the gap or the site's precision does.
            first, linear, squares, misfit = s, zero, zero, zero
            while s < stop and gaps[s] == last and tau[s] == t:
                _move(A, m, blocks, starts, dims, J, S, T[0])
                if store:
                    for i in range(S):
                        means[s - start, i] = m[i]
                    _pack(E, S, covariances[s - start])
                n, f = nu[s], zero
                for k in range(R):
                    f += m[seen[k]] * h[seen[k]]
                e = n - t * f
                linear += (n + e) * f
                squares += n * n
                misfit += e * e
                for i in range(S):
                    m[i] += g[i] * (e * inverse)
                s += 1
            partition += 0.5 * (linear + squares * v) * inverse - 0.5 * (s - first) * np.log(spread)
            if t.real > 0:
                density -= 0.5 * (misfit * inverse * noise + (s - first) * np.log(2 * math.pi * spread * noise))
    copy(m, P, S, mean, covariance)
    return partition - 0.5 * np.log(spreads), density - 0.5 * np.log(noises)


def _smoother(
    tables, gaps, rates, rows, factors, nu, tau, start, stop, means, covariances, slope, curvature, mean, variance, share,
    grad_rates, grad_rows, grad_factors,
):  # fmt: skip
    """From stop back to start. slope [S], curvature [S, S]: the gradient in the state, and minus the Hessian, of the log
    density of all that comes later; they are moved. Written: mean, variance of f and ``share = 1 - tau variance`` [n]; added: the
    gradients of the log partition in rates, rows and factors.
    """
    blocks, starts, dims, seen, copy_of, row_of, sizes, N, F, q, S, J, B, D, R = (
        tables.blocks,
        tables.starts,
        tables.dims,
        tables.seen,
        tables.copy_of,
        tables.row_of,
        tables.sizes,
        tables.N,
        tables.F,
        tables.q,
        tables.S,
        tables.J,
        tables.B,
        tables.D,
        tables.R,
    )
    zero = slope[0] * 0
    A, h = array(0.0, (B, D, D)), array(0.0, (S,))
    g, u, y, m, rho = array(zero, (S,)), array(zero, (S,)), array(zero, (S,)), array(zero, (S,)), array(zero, (S,))
    M, P, T, V = array(zero, (S, S)), array(zero, (S, S)), array(zero, (S, S)), array(zero, (D, S))
    copy(slope, curvature, S, rho, M)
    for i in range(S):
        h[i] = 0.0
    moving, last = len(factors) > 1, -1.0
    _weigh(0, factors, rows, seen, copy_of, row_of, R, h)
    for s in range(stop - 1, start - 1, -1):
        gap = gaps[s]
        if gap != last:
            last = gap
            for b in range(B):
                transition(scaled(rates[b], gap), N[b], sizes[b], A[b])
                for i in range(sizes[b]):  # transposed: back in time
                    for j in range(i):
                        A[b, i, j], A[b, j, i] = A[b, j, i], A[b, i, j]
        if moving:
            _weigh(s, factors, rows, seen, copy_of, row_of, R, h)
        k = 0
        for i in range(S):
            m[i] = means[s - start, i]
            for j in range(i + 1):
                P[i, j] = covariances[s - start, k]
                P[j, i] = P[i, j]
                k += 1
        n, t = nu[s], tau[s]
        f, v = _look(m, P, h, seen, R, S, zero, g)
        inverse, e = 1 / (1 + t * v), n - t * f
        r, later, push = t * inverse, zero, zero
        for i in range(S):
            value = zero
            for j in range(S):
                value += M[i, j] * g[j]
            u[i] = value
            later += g[i] * value
            push += g[i] * rho[i]
        mean[s] = f + (push + v * e) * inverse
        variance[s] = (v - later * inverse) * inverse
        share[s] = (1 + r * later) * inverse
        # To before the site.
        a, twice = e * inverse - r * push, r * r * later + r
        for i in range(S):
            rho[i] += a * h[i]
            for j in range(S):
                M[i, j] += h[i] * (twice * h[j] - r * u[j]) - r * u[i] * h[j]
        # Gradients in h: the mean of (nu - tau f) z over the posterior.
        away = n - t * mean[s]
        for i in range(S):
            y[i] = away * rho[i] + t * (u[i] * inverse + h[i] * r * (v - later * inverse))
        column = s if moving else 0
        for k in range(R):
            i = seen[k]
            value = away * m[i] - t * g[i]
            for j in range(S):
                value += P[i, j] * y[j]
            grad_factors[column, copy_of[k]] += value * rows[row_of[k]]
            grad_rows[row_of[k]] += value * factors[column, copy_of[k]]
        # Gradients in the rates: P moves by F P + P F^T + q e e^T, and the gradient in P is (rho rho^T - M) / 2.
        for c in range(J):
            o, d, b = starts[c], dims[c], blocks[c]
            if 0 < rates[b] * gap < LONGEST:
                top = o + d - 1
                total = 0.5 * q[b] * (rho[top] * rho[top] - M[top, top])
                for i in range(d):
                    for k in range(d):
                        if F[b, i, k] != 0:
                            value = rho[o + i] * m[o + k]
                            for j in range(S):
                                value += (rho[o + i] * rho[j] - M[o + i, j]) * P[o + k, j]
                            total += F[b, i, k] * value
                grad_rates[b] += total * gap
        # To before the step.
        _step(A, rho, M, blocks, starts, dims, J, S, y, T, V)
    copy(rho, M, S, slope, curvature)


def _simulate(tables, gaps, rates, rows, factors, noise, f):
    """A path f [n] of the prior from standard normal noise [n, S]."""
    blocks, starts, dims, seen, copy_of, row_of, N, W, series, inverses, root, S, J, D, K, R = (
        tables.blocks,
        tables.starts,
        tables.dims,
        tables.seen,
        tables.copy_of,
        tables.row_of,
        tables.N,
        tables.W,
        tables.series,
        tables.inverses,
        tables.root,
        tables.S,
        tables.J,
        tables.D,
        tables.K,
        tables.R,
    )
    A, Q, L, gamma = np.zeros((D, D)), np.zeros((D, D)), np.zeros((D, D)), np.empty(K)
    z, y, scale = np.zeros(S), np.zeros(D), np.zeros(D)
    moving = len(factors) > 1
    for i in range(S):
        for j in range(i + 1):
            z[i] += root[i, j] * noise[0, j]
    for s in range(len(gaps)):
        for c in range(J):
            o, d, b = starts[c], dims[c], blocks[c]
            x = scaled(rates[b], gaps[s])
            if x > 0:
                decay = transition(x, N[b], d, A)
                process_noise(x, decay, W[b], series[b], inverses, d, gamma, Q)
                # Scaled so, the factorisation keeps its digits for any x.
                for i in range(d):
                    scale[i] = min(x, 1.0) ** (d - i - 0.5)
                for i in range(d):
                    for j in range(i + 1):
                        value = Q[i, j] / (scale[i] * scale[j])
                        for k in range(j):
                            value -= L[i, k] * L[j, k]
                        L[i, j] = math.sqrt(max(value, 0.0)) if i == j else (value / L[j, j] if L[j, j] > 0 else 0.0)
                for i in range(d):
                    y[i] = 0.0
                    for k in range(d):
                        y[i] += A[i, k] * z[o + k]
                    for k in range(i + 1):
                        y[i] += scale[i] * L[i, k] * noise[s, o + k]
                for i in range(d):
                    z[o + i] = y[i]
        f[s] = 0.0
        for k in range(R):
            f[s] += factors[s if moving else 0, copy_of[k]] * rows[row_of[k]] * z[seen[k]]


@numba.njit(**COMPILATION)
def site_gradients(partition, density, mean, variance, nu, tau, grad_nu, grad_tau):
    """Write the gradients in the sites [n] of ``partition log Z + density log N(nu / tau; f, v + 1 / tau)``, the latter summed
    where tau > 0, from the posterior mean and variance of f.
    """
    for s in range(len(nu)):
        m, second = mean[s], variance[s] + mean[s] * mean[s]
        grad_nu[s], grad_tau[s] = partition * m, -0.5 * partition * second
        if tau[s] > 0:
            target = nu[s] / tau[s]
            grad_nu[s] += density * (m - target)
            grad_tau[s] += 0.5 * density * (1 / tau[s] + target * target - second)


@dataclass(frozen=True)
class Loops:
    """`_filter`, `_smoother` and `_simulate` for a layout, without their first argument."""

    filter: Callable[..., Any]
    smoother: Callable[..., Any]
    simulate: Callable[..., Any]


_ANY = tuple(numba.njit(**COMPILATION)(f) for f in (_filter, _smoother, _simulate))
_INLINED = tuple(numba.njit(inline="always", **COMPILATION)(f) for f in (_filter, _smoother))


def loops(layout: Layout, gaps: np.ndarray) -> Loops:
    """The loops for a layout and gaps [n]: compiled for that layout where that pays, for any layout otherwise."""
    first = gaps[:MANY]
    even = 2 * int((first[1:] == first[:-1]).sum()) > len(first)
    if len(gaps) >= MANY:
        return Loops(_special_filter(layout, even), _special_smoother(layout), partial(_ANY[2], tables(layout)))
    known = tables(layout, even)
    return Loops(*(partial(f, known) for f in _ANY))


@lru_cache(maxsize=64)
def _special_filter(layout: Layout, even: bool) -> Callable[..., Any]:
    """A loop that has the tables as constants, so that the compiler unrolls it; compiled code is kept on disk."""
    known, inlined_filter = tables(layout, even), _INLINED[0]

    @numba.njit(**COMPILATION)
    def filter(gaps, rates, rows, factors, nu, tau, m, P, start, stop, means, covariances):
        return inlined_filter(known, gaps, rates, rows, factors, nu, tau, m, P, start, stop, means, covariances)

    return filter


@lru_cache(maxsize=64)
def _special_smoother(layout: Layout) -> Callable[..., Any]:
    """Likewise."""
    known, inlined_smoother = tables(layout), _INLINED[1]

    @numba.njit(**COMPILATION)
    def smoother(
        gaps, rates, rows, factors, nu, tau, start, stop, means, covariances, rho, M, mean, variance, share,
        grad_rates, grad_rows, grad_factors,
    ):  # fmt: skip
        inlined_smoother(
            known, gaps, rates, rows, factors, nu, tau, start, stop, means, covariances, rho, M, mean, variance, share,
            grad_rates, grad_rows, grad_factors,
        )  # fmt: skip

    return smoother
