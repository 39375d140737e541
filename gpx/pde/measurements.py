"""Linear measurements of a Gaussian process at scattered points, and the process given their values.

A measurement is ``u -> sum_a s_a (d^a u)(x)``. Under a product of stationary kernels of one input their covariances are closed:
``cov(d^a u(x), d^b u(x')) = prod_d (-1)^(b_d) k_d^(a_d + b_d)(x_d - x'_d)``. Theory: docs/theory/pde.md, section 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from gpx.errors import NumericalError
from gpx.linalg.cholesky import Cholesky, factorise
from gpx.pde.expressions import Index
from gpx.structure.derivatives import derivatives

NUGGET = 1e-13  # of the variance of each measurement: rounding in the kernel matrix is below it
ROUNDING = 1e-14  # of a prior variance: posterior ones below it are not seen
BELOW, ABOVE = 5.0, 20.0  # of the logarithm of a variance, around the data's: functions that a law leaves may be rare
KEPT = 1e-10  # of the largest eigenvalue of a posterior covariance: draws do without smaller ones
CHUNK = 100_000  # entries of a matrix that are worked on at once


@dataclass(frozen=True)
class Block:
    """Measurements at x [n, d]; slopes: s [n] for every derivative; noise: deviations [n] of their errors, None: none; law [n]:
    which of them hold for u = 0, without error, so that they say nothing of the size of u, None: none.
    """

    x: Tensor
    slopes: dict[Index, Tensor]
    noise: Tensor | None = None
    law: Tensor | None = None

    def order(self, axis: int) -> int:
        """Of the highest derivative along an axis."""
        return max(index.count(axis) for index in self.slopes)

    @property
    def errors(self) -> Tensor:
        """Standard deviations [n] of errors."""
        return torch.zeros(len(self.x), dtype=torch.float64) if self.noise is None else self.noise

    @property
    def silent(self) -> Tensor:
        """Booleans [n]: `law`."""
        return torch.zeros(len(self.x), dtype=torch.bool) if self.law is None else self.law

    def split(self, rows: int) -> Iterator[Block]:
        """Blocks of so many rows."""
        parts = {index: slope.split(rows) for index, slope in self.slopes.items()}
        for i, x in enumerate(self.x.split(rows)):
            yield Block(x, {index: slopes[i] for index, slopes in parts.items()})


def values_at(x: Tensor, index: Index = ()) -> Block:
    """The measurements of one derivative."""
    return Block(x, {index: torch.ones(len(x), dtype=torch.float64)})


def stacked(blocks: Sequence[Block]) -> Block:
    """The measurements of several blocks as one."""
    zeros = [torch.zeros(len(block.x), dtype=torch.float64) for block in blocks]
    slopes = {
        index: torch.cat([block.slopes.get(index, zero) for block, zero in zip(blocks, zeros, strict=True)])
        for index in sorted({index for block in blocks for index in block.slopes})
    }
    noise = None if all(b.noise is None for b in blocks) else torch.cat([b.errors for b in blocks])
    return Block(torch.cat([b.x for b in blocks]), slopes, noise, torch.cat([b.silent for b in blocks]))


def covariance(kernels: Sequence[Any], left: Block, right: Block) -> Tensor:
    """The covariances [n, m] of two blocks, the kernel being a product with one factor for every axis.

    Raises: StructureError for a kernel that is not smooth enough. Cost: O(n m A B d), A and B derivatives in the blocks.
    """
    jets = [derivatives(kernel, left.order(d) + right.order(d)) for d, kernel in enumerate(kernels)]
    found = torch.empty(len(left.x), len(right.x), dtype=torch.float64)
    rows = max(1, CHUNK // max(1, len(right.x)))
    with torch.no_grad():
        for part, out in zip(left.split(rows), found.split(rows), strict=True):
            tables = [jet(part.x[:, d, None] - right.x[:, d]).movedim(-1, 0).contiguous() for d, jet in enumerate(jets)]
            out.copy_(_combined(tables, part, right))
    return found


def _combined(tables: Sequence[Tensor], left: Block, right: Block) -> Tensor:
    total = torch.zeros(len(left.x), len(right.x), dtype=torch.float64)
    for a, s in left.slopes.items():
        inner = torch.zeros_like(total)
        for b, t in right.slopes.items():
            product = tables[0][a.count(0) + b.count(0)]
            for d, table in enumerate(tables[1:], 1):
                product = product * table[a.count(d) + b.count(d)]
            inner.addcmul_(product, (-1) ** len(b) * t)
        total.addcmul_(inner, s[:, None])
    return total


def variances(kernels: Sequence[Any], block: Block) -> Tensor:
    """The prior variances [n] of measurements."""
    zero = torch.zeros(1, dtype=torch.float64)
    jets = [derivatives(kernel, 2 * block.order(d))(zero).detach()[0] for d, kernel in enumerate(kernels)]
    total = torch.zeros(len(block.x), dtype=torch.float64)
    for a, s in block.slopes.items():
        for b, t in block.slopes.items():
            moment = (-1.0) ** len(b)
            for d, jet in enumerate(jets):
                moment = moment * float(jet[a.count(d) + b.count(d)])
            total += moment * s * t
    return total


@dataclass(frozen=True)
class Combination:
    """The function ``cov(., blocks) @ weights``, kernels being one for every axis."""

    kernels: tuple[Any, ...]
    blocks: tuple[Block, ...]
    weights: Tensor

    def mean(self, block: Block) -> Tensor:
        """Its measurements [n]. Cost: that of the covariances, in pieces."""
        return _mean(self.kernels, self.blocks, self.weights, block)


@dataclass(frozen=True)
class Posterior:
    """The process given the values of measurements.

    kernels: one for every axis; blocks: of the measurements; weights [n]: its mean is ``cov(., blocks) @ weights``; scale [n]:
    prior standard deviations of the measurements; factor: of their correlations, errors included; data [n]: values over scale;
    level: variance of the kernel beside which errors count, None where there are none; evidence: log density of the values (with
    errors, given those that are laws) under the likeliest variance of the kernel, None where that was given.
    """

    kernels: tuple[Any, ...]
    blocks: tuple[Block, ...]
    weights: Tensor
    scale: Tensor
    factor: Cholesky
    data: Tensor
    level: float | None = None
    evidence: float | None = None

    def mean(self, block: Block) -> Tensor:
        """Posterior means [n] of measurements. Cost: that of the covariances, in pieces."""
        return _mean(self.kernels, self.blocks, self.weights, block)

    def std(self, block: Block) -> Tensor:
        """Posterior standard deviations [n] of measurements, at the variance of the kernel that `variance` has.

        Those of the error of `mean`: the nugget, which it has and the data do not, counts by what it leaves of each given value.
        Cost: O(n N^2) for N given measurements.
        """
        found, nugget = [], NUGGET + self.factor.jitter
        left = nugget * self.weights * self.scale
        for part in block.split(max(1, CHUNK // 100)):
            cross = torch.cat([covariance(self.kernels, b, part) for b in self.blocks]) / self.scale[:, None]
            prior, gain = variances(self.kernels, part), self.factor.solve(cross)
            free = prior - self.factor.half_solve(cross).square().sum(0) - nugget * gain.square().sum(0)
            seen = free.where(free > ROUNDING * prior, 0.0)
            found.append(self.variance * seen + (gain * left[:, None]).square().sum(0))
        return torch.cat(found).sqrt()

    def draws(self, x: Tensor, count: int, seed: int | None) -> list[Combination]:
        """Functions drawn from the process; at x [n, d] their deviations are those that `std` has, elsewhere what u at x says.

        With the covariance ``Q Lambda Q^T`` of the errors of the mean at x, and that of those with it, ``k(., x)``, a draw is
        ``mean + k(., x) Q Lambda^-1/2 N(0, I)``: the extension of Nystrom, of what is above rounding.
        Cost: O((n + N)^3) for N given measurements.
        """
        at, nugget = values_at(x), NUGGET + self.factor.jitter
        cross = torch.cat([covariance(self.kernels, b, at) for b in self.blocks]) / self.scale[:, None]
        half, gain = self.factor.half_solve(cross), self.factor.solve(cross)
        # The terms of `std`: of the kernel, of the nugget, and of what it leaves of each given value.
        left = (nugget * self.weights * self.scale).square()[:, None] * gain
        free = covariance(self.kernels, at, at) - half.mT @ half - nugget * (gain.mT @ gain)
        values, vectors = torch.linalg.eigh(self.variance * free + gain.mT @ left)
        seen = values > max(
            KEPT * float(values[-1]), ROUNDING * self.variance * float(variances(self.kernels, at).max())
        )
        random = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, int(seen.sum())))).T
        inner = (vectors[:, seen] / values[seen].sqrt()) @ random
        given = self.factor.solve((left - self.variance * (cross + nugget * gain)) @ inner) / self.scale[:, None]
        return [
            Combination(self.kernels, (*self.blocks, at), torch.cat([self.weights + w, self.variance * v]))
            for w, v in zip(given.T, inner.T, strict=True)
        ]

    @cached_property
    def variance(self) -> float:
        """The variance of the kernel: with errors, the likeliest; without, by leaving one out: errors in predicting each value
        from all others have unit variance, or less, in every block. At corners only the values on the boundary tell.

        Cost: O(N^3).
        """
        if self.level is not None:
            return self.level
        inverse, alpha = self.factor.inverse().diagonal(), self.weights * self.scale
        squares = (alpha.square() / inverse).split([len(block.x) for block in self.blocks])
        return max(float(part.mean()) for part in squares if len(part))

    @property
    def nominal(self) -> float:
        """The share in ``y^T C^-1 y`` of the nugget: near one, the process has the data as errors that they do not have."""
        alpha = self.weights * self.scale
        form = float(self.data @ alpha)
        return (NUGGET + self.factor.jitter) * float(alpha @ alpha) / form if form > 0 else 0.0


def condition(
    kernels: Sequence[Any], blocks: Sequence[Block], values: Sequence[Tensor], variance: float | None = None
) -> Posterior:
    """The process given values [n] of blocks of measurements, by a Cholesky factor of their correlations.

    Arguments: variance: of the kernel, where measurements have errors; None: the likeliest, given the laws.
    Raises: NumericalError if the correlations are not positive definite; StructureError for a kernel that is not smooth enough.
    Cost: O(N^3) time, O(N^2) memory; some ten times more to find the variance.
    """
    scale = torch.cat([variances(kernels, block) for block in blocks]).sqrt()
    idle = scale == 0  # what is linearised where it has no slope says nothing
    scale = scale.where(~idle, 1.0)
    correlations = gram(kernels, blocks) / scale / scale[:, None]
    correlations.diagonal()[idle] = 1.0
    errors = torch.cat([block.errors for block in blocks]) / scale
    data = (torch.cat(list(values)) / scale).masked_fill(idle, 0.0)
    level = evidence = None
    if bool(errors.any()):
        level = variance
        if level is None:
            told = ~torch.cat([block.silent for block in blocks])
            level, density = likeliest(*_given(correlations, data, told), errors[told])
            evidence = density - float(scale[told].log().sum())
    factor = _factor(correlations, errors, level)
    weights = factor.solve(data[:, None])[:, 0] / scale
    if not bool(torch.isfinite(weights).all()):
        raise NumericalError("The values of the measurements, or their weights, are not finite.")
    if level is None:
        evidence = _profiled(factor, data) - float(scale.log().sum())
    return Posterior(tuple(kernels), tuple(blocks), weights, scale, factor, data, level, evidence)


def _given(correlations: Tensor, data: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """The correlations and the data of some measurements given the others: as these have no errors, whatever the variance."""
    if bool(told.all()):
        return correlations, data
    factor = _factor(correlations[~told][:, ~told], torch.zeros(1, dtype=torch.float64), None)
    root = factor.half_solve(torch.cat([correlations[~told][:, told], data[~told, None]], 1))
    explained = root[:, :-1].mT @ root
    return correlations[told][:, told] - explained[:, :-1], data[told] - explained[:, -1]


def likeliest(correlations: Tensor, data: Tensor, errors: Tensor) -> tuple[float, float]:
    """The variance v of the largest evidence of data from N(0, v correlations + diag(errors^2)), and the evidence."""

    def loss(log: float) -> float:
        try:
            factor = _factor(correlations, errors, math.exp(log))
        except NumericalError:
            return math.inf
        form = float(data @ factor.solve(data[:, None])[:, 0])
        return 0.5 * (len(data) * (log + math.log(2 * math.pi)) + form * math.exp(-log) + float(factor.logdet()))

    prior = max(float(correlations.diagonal().mean()), NUGGET)
    centre = math.log(float(data.square().mean()) / prior or 1.0)
    found = minimize_scalar(loss, bounds=(centre - BELOW, centre + ABOVE), method="bounded", options={"xatol": 0.1})
    return math.exp(found.x), -float(found.fun)  # pyright: ignore[reportAttributeAccessIssue]


def _profiled(factor: Cholesky, data: Tensor) -> float:
    """The evidence of data without errors, from the factor of their correlations, under the likeliest variance."""
    level = float(data @ factor.solve(data[:, None])[:, 0]) / len(data)
    if not level > 0:  # nothing but zeros
        return math.inf
    return -0.5 * (len(data) * (math.log(2 * math.pi * level) + 1) + float(factor.logdet()))


def _factor(correlations: Tensor, errors: Tensor, level: float | None) -> Cholesky:
    matrix = correlations.clone()
    matrix.diagonal().add_(NUGGET + (errors.square() / level if level else 0.0))
    return factorise(matrix.clone)


def gram(kernels: Sequence[Any], blocks: Sequence[Block]) -> Tensor:
    """The covariances [N, N] of all measurements."""
    sizes = [len(block.x) for block in blocks]
    found = torch.empty(sum(sizes), sum(sizes), dtype=torch.float64)
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    for i, left in enumerate(blocks):
        for j, right in enumerate(blocks[: i + 1]):
            part = covariance(kernels, left, right)
            found[starts[i] : starts[i + 1], starts[j] : starts[j + 1]] = part
            found[starts[j] : starts[j + 1], starts[i] : starts[i + 1]] = part.T
    return found


def _mean(kernels: Sequence[Any], blocks: Sequence[Block], weights: Tensor, block: Block) -> Tensor:
    sizes = [len(b.x) for b in blocks]
    found = []
    for part in block.split(max(1, CHUNK // 100)):
        parts = zip(blocks, weights.split(sizes), strict=True)
        found.append(sum(covariance(kernels, part, b) @ w for b, w in parts))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)  # pyright: ignore
