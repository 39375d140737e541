"""The process given many measurements, by a sparse inverse Cholesky factor of their covariance.

Beside the measurements that are given, the values of u at all points are unknown ones: values come first, from coarse to
fine, the equation, made of derivatives, last. Each depends on the nearest of those before it alone, so that the precision
matrix of the unknown values is sparse. Theory: docs/theory/pde.md, section 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import SuperLU, splu
from scipy.spatial import cKDTree
from torch import Tensor

from gpx.errors import NumericalError, StructureError
from gpx.kernels import Matern
from gpx.linalg.orderings import earlier_neighbours, maximin
from gpx.linalg.threads import in_runs
from gpx.pde.expressions import Index
from gpx.pde.measurements import NUGGET, Block, values_at, variances
from gpx.structure.derivatives import derivatives

NEIGHBOURS = 60
RUN = 256  # rows that a thread takes at once
DRAWS = 32
COMPILATION: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract", "nnan"}}


class Tables(NamedTuple):
    """Products of Matern kernels as numbers: rates [d], and coefficients [d, orders, terms] of the polynomials in
    ``r = rate |x - x'|`` that, times ``e^-r``, are their derivatives for positive lags.
    """

    rates: np.ndarray
    polynomials: np.ndarray


class Functionals(NamedTuple):
    """Measurements of all blocks: x [n, d]; slopes [n, A] of the derivatives whose orders are [A, d]."""

    x: np.ndarray
    slopes: np.ndarray
    orders: np.ndarray


def tabulated(kernels: Sequence[Any], order: int) -> Tables:
    """The tables of Matern kernels, with derivatives up to an order, as far as they have them.

    Raises: StructureError for kernels that are not Matern ones.
    """
    rates, polynomials = [], []
    for kernel in kernels:
        if type(kernel) is not Matern:
            raise StructureError(
                f"Beyond 5,000 points the kernels are Matern ones, got {type(kernel).__name__}: give fewer points, or"
                " kernel=kernels.Matern(nu=4.5)."
            )
        rate, degree = math.sqrt(2 * kernel.nu) / kernel.lengthscale.item(), round(kernel.nu - 0.5)
        # Values at as many points as a polynomial has coefficients, away from 0 where odd derivatives have two limits.
        r = torch.linspace(1.0, 3.0, degree + 1, dtype=torch.float64)
        with torch.no_grad():
            values = derivatives(kernel, order)(r / rate) * torch.exp(r)[:, None]
        polynomials.append(np.linalg.solve(np.vander(r.numpy(), increasing=True), values.numpy()).T)
        rates.append(rate)
    size = max(p.shape[1] for p in polynomials)
    return Tables(np.array(rates), np.stack([np.pad(p, ((0, 0), (0, size - p.shape[1]))) for p in polynomials]))


def functionals(blocks: Sequence[Block]) -> Functionals:
    """Blocks as arrays, one after the other."""
    indices: list[Index] = sorted({index for block in blocks for index in block.slopes})
    x = np.concatenate([block.x.numpy() for block in blocks])
    zeros = [torch.zeros(len(block.x), dtype=torch.float64) for block in blocks]
    slopes = [
        np.concatenate([b.slopes.get(index, zero).numpy() for b, zero in zip(blocks, zeros, strict=True)])
        for index in indices
    ]
    orders = [[index.count(d) for d in range(x.shape[1])] for index in indices]
    return Functionals(np.ascontiguousarray(x), np.stack(slopes, 1), np.array(orders))


@numba.njit(inline="always", **COMPILATION)
def _entry(x, y, s, t, left, right, rates, polynomials, table):
    """The covariance of two measurements; table [d, orders]: room for the derivatives of the kernels."""
    dims, orders, size = polynomials.shape
    exponent = 0.0
    for d in range(dims):
        z = rates[d] * (x[d] - y[d])
        r, sign = abs(z), 1.0 if z >= 0 else -1.0
        exponent -= r
        factor = 1.0
        for n in range(orders):
            value = polynomials[d, n, size - 1]
            for k in range(size - 2, -1, -1):
                value = value * r + polynomials[d, n, k]
            table[d, n] = value * factor
            factor *= sign
    total = 0.0
    for a in range(len(s)):
        if s[a] != 0.0:
            for b in range(len(t)):
                if t[b] != 0.0:
                    product, order = s[a] * t[b], 0
                    for d in range(dims):
                        product *= table[d, left[a, d] + right[b, d]]
                        order += right[b, d]
                    total += product if order % 2 == 0 else -product
    return total * math.exp(exponent)


@numba.njit(**COMPILATION)
def _columns(x, s, orders, rates, polynomials, scale, near, nugget, start, stop, out):
    """Rows of out: ``C^-T e``, C the Cholesky factor of the correlations of a measurement, last, and its neighbours."""
    m = near.shape[1]
    table, factor = np.empty(polynomials.shape[:2]), np.empty((m + 1, m + 1))
    for i in range(start, stop):
        first = 0
        while first < m and near[i, first] < 0:
            first += 1
        for a in range(first, m + 1):
            p = near[i, a] if a < m else i
            for b in range(first, a + 1):
                q = near[i, b] if b < m else i
                value = _entry(x[p], x[q], s[p], s[q], orders, orders, rates, polynomials, table) / (
                    scale[p] * scale[q]
                )
                value += nugget[p] if a == b else 0.0
                for k in range(first, b):
                    value -= factor[a, k] * factor[b, k]
                factor[a, b] = value / factor[b, b] if b < a else math.sqrt(max(value, nugget[p]))
        for a in range(m, first - 1, -1):
            value = 1.0 if a == m else 0.0
            for k in range(a + 1, m + 1):
                value -= factor[k, a] * out[i, k]
            out[i, a] = value / factor[a, a]
    return 0


@numba.njit(**COMPILATION)
def _local(x, s, orders, y, t, right, rates, polynomials, scale, near, nugget, values, start, stop, mean, variance):
    """Of measurements t at y, the mean [n, c] given `values` of the near ones and the prior variance that these explain."""
    m = near.shape[1]
    table, factor = np.empty(polynomials.shape[:2]), np.empty((m, m))
    cross = np.empty(m)
    for i in range(start, stop):
        for a in range(m):
            p = near[i, a]
            for b in range(a + 1):
                q = near[i, b]
                value = _entry(x[p], x[q], s[p], s[q], orders, orders, rates, polynomials, table) / (
                    scale[p] * scale[q]
                )
                value += nugget[p] if a == b else 0.0
                for k in range(b):
                    value -= factor[a, k] * factor[b, k]
                factor[a, b] = value / factor[b, b] if b < a else math.sqrt(max(value, nugget[p]))
            value = _entry(y[i], x[p], t[i], s[p], right, orders, rates, polynomials, table) / scale[p]
            for k in range(a):
                value -= factor[a, k] * cross[k]
            cross[a] = value / factor[a, a]
            variance[i] += cross[a] * cross[a]
        for a in range(m - 1, -1, -1):
            value = cross[a]
            for k in range(a + 1, m):
                value -= factor[k, a] * cross[k]
            cross[a] = value / factor[a, a]
        for a in range(m):
            for c in range(values.shape[1]):
                mean[i, c] += cross[a] * values[near[i, a], c]
    return 0


@dataclass(frozen=True)
class SparsePosterior:
    """The process given the values of measurements; see `measurements.Posterior`.

    kernels; blocks: values at the boundary, values inside, the equation there, observations; values [N] of all of them, over
    their prior standard deviations scale [N], those inside being posterior means. root: U_z [n, N]; the precision matrix of the
    values inside is U_z U_z^T, of which factor is the factorisation. variance: of the kernel. nugget [N]: squares of errors, in
    its units.
    """

    kernels: tuple[Any, ...]
    blocks: tuple[Block, ...]
    values: np.ndarray
    scale: np.ndarray
    root: csr_matrix
    factor: SuperLU
    variance: float
    nugget: np.ndarray

    @cached_property
    def measured(self) -> Functionals:
        """The measurements as arrays."""
        return functionals(self.blocks)

    def mean(self, block: Block) -> Tensor:
        """Posterior means [n] of measurements, given what is near them. Cost: O(n m^3)."""
        return self._given(block, self.values[:, None])[0][:, 0]

    def std(self, block: Block) -> Tensor:
        """Posterior standard deviations [n] of measurements, each right to an eighth: from 32 draws of the values inside."""
        inside = slice(len(self.blocks[0].x), len(self.blocks[0].x) + len(self.blocks[1].x))
        white = np.random.default_rng(0).standard_normal((len(self.values), DRAWS))
        draws = np.zeros((len(self.values), DRAWS))
        draws[inside] = self.factor.solve(np.asarray(self.root @ white))
        mean, explained = self._given(block, draws)
        prior = variances(self.kernels, block)
        return (self.variance * ((prior - explained).clamp_min(NUGGET * prior) + mean.square().mean(1))).sqrt()

    def _given(self, block: Block, values: np.ndarray) -> tuple[Tensor, Tensor]:
        here, measured = functionals([block]), self.measured
        tables = tabulated(self.kernels, int(max(here.orders.max(), measured.orders.max()) + measured.orders.max()))
        near = cKDTree(measured.x).query(here.x, min(NEIGHBOURS, len(measured.x)))[1]
        near = np.sort(np.reshape(near, (len(here.x), -1)), 1).astype(np.int32)
        mean, explained = np.zeros((len(here.x), values.shape[1])), np.zeros(len(here.x))
        values = np.ascontiguousarray(values)

        def work(start: int, stop: int) -> int:
            return _local(
                *measured, *here, *tables, self.scale, near, self.nugget, values, start, stop, mean, explained
            )

        in_runs(work, len(mean), RUN)
        return torch.from_numpy(mean), torch.from_numpy(explained)


def condition_sparsely(
    kernels: Sequence[Any], blocks: Sequence[Block], values: Sequence[Tensor], variance: float | None = None,
    neighbours: int = NEIGHBOURS,
) -> SparsePosterior:  # fmt: skip
    """The process given values [n] of blocks: of u at the boundary, of the equation inside (and of slopes), and of what else was
    observed.

    With the factor ``U U^T`` of the precision matrix of all, and rows z of the values inside, k of those given: the mean solves
    ``U_z U_z^T v_z = -U_z U_k^T v_k``. What measurements far away would tell is left out: deviations are larger for it.
    Arguments: variance: of the kernel, where measurements have errors.
    Raises: StructureError for kernels that are not Matern ones; NumericalError if the precision matrix is singular.
    Cost: O(N m^3) time and O(N m) memory, m neighbours; the sparse factorisation, on the plane, m^3 N^1.5 and m^2 N log N.
    Source: Chen, Owhadi & Schaefer (2025), "Sparse Cholesky factorization for solving nonlinear PDEs via Gaussian processes".
    """
    boundary, equation, *observed = blocks
    every = (boundary, values_at(equation.x), equation, *observed)
    first, count = len(boundary.x), len(equation.x)
    scale = torch.cat([variances(kernels, block) for block in every]).sqrt().numpy()
    nugget = NUGGET + np.square(torch.cat([block.errors for block in every]).numpy() / scale) / (variance or 1.0)
    root = _factor(kernels, functionals(every), scale, nugget, (first, count), neighbours)
    found = np.concatenate([values[0].numpy(), np.zeros(count), *(v.numpy() for v in values[1:])]) / scale
    unknown = root[first : first + count]
    try:
        factor = splu(
            (unknown @ unknown.T).tocsc(),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
    except RuntimeError as error:
        raise NumericalError(
            "The precision matrix of the values inside is singular: some points are too near."
        ) from error
    for _ in range(2):  # the second is a step of refinement
        found[first : first + count] -= factor.solve(np.asarray(unknown @ (root.T @ found)))
    if not np.isfinite(found).all():
        raise NumericalError("The values of the measurements, or of the solution, are not finite.")
    white = root.T @ found  # independent and of unit variance, for a kernel of unit variance
    level = float(white @ white) / (len(found) - count) if variance is None else variance
    return SparsePosterior(tuple(kernels), every, found, scale, unknown, factor, level, nugget)


def _factor(
    kernels: Sequence[Any], measured: Functionals, scale: np.ndarray, nugget: np.ndarray, sizes: tuple[int, int],
    neighbours: int,
) -> csr_matrix:  # fmt: skip
    """U [N, N] with ``U U^T`` close to the inverse of the correlations, rows and columns in the order of `measured`."""
    first, count = sizes
    inside = first + maximin(measured.x[first : first + count])
    outer = maximin(measured.x[:first]) if first else np.zeros(0, int)
    order = np.concatenate([outer, inside, inside + count, np.arange(first + 2 * count, len(scale))])
    x, s, deviations, errors = (np.ascontiguousarray(v[order]) for v in (measured.x, measured.slopes, scale, nugget))
    near = earlier_neighbours(x, min(neighbours, len(x) - 1))
    u = np.zeros((len(x), near.shape[1] + 1))
    tables = tabulated(kernels, 2 * int(measured.orders.max()))

    def work(start: int, stop: int) -> int:
        return _columns(x, s, measured.orders, *tables, deviations, near, errors, start, stop, u)

    in_runs(work, len(x), RUN)
    rows = np.concatenate([near, np.arange(len(x))[:, None]], 1)
    columns = np.broadcast_to(np.arange(len(x))[:, None], rows.shape)
    seen = rows >= 0
    return csr_matrix((u[seen], (order[rows[seen]], order[columns[seen]])), shape=(len(x), len(x)))
