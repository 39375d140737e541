"""What complete blocks say of any block, and dense conditioning on the steps of incomplete ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpx.linalg.ar1 import Smoothed
from gpx.linalg.cholesky import factorise
from gpx.linalg.circulant import first_row, hartley

CHUNK = 1 << 22  # entries of the weights of the edges that are held at a time


@dataclass(frozen=True, eq=False)
class Edge:
    """Observed steps of an incomplete block: its number, their positions in it [q], and their rows by step."""

    block: int
    positions: Tensor
    rows: slice


def edge_density(
    edges: Sequence[Edge], start: int, z: Tensor, ends: Sequence[Tensor], noise: Tensor
) -> Tensor:  # fmt: skip
    """The log density of the targets of the edges, given complete blocks.

    z: [N, c], all targets by step; ends: mean [c, p] after the last complete block and before the first, which has the
    number `start`, in the Hartley basis, the variance [p] of either, and their covariance [p]. Cost: O(q^3) for q steps,
    q < 2 p.
    """
    if not edges:
        return z.new_zeros(())
    after, before, variance, cross = ends
    means = [hartley(before if e.block < start else after)[:, e.positions] for e in edges]
    own, other = first_row(variance), first_row(cross)
    rows = [torch.cat([_gather(own if a is b else other, a, b) for b in edges], 1) for a in edges]
    lower = _cholesky(torch.cat(rows), noise)
    residual = torch.cat([z[e.rows] for e in edges]) - torch.cat(means, 1).mT
    half = torch.linalg.solve_triangular(lower, residual, upper=False)
    logdet = 2 * lower.diagonal().log().sum() + len(residual) * math.log(2 * math.pi)
    return -0.5 * (half.square().sum() + residual.shape[1] * logdet)


def _gather(row: Tensor, a: Edge, b: Edge) -> Tensor:
    """The block [qa, qb] of a circulant with this first row [p]."""
    return row[(a.positions[:, None] - b.positions) % len(row)]


def _cholesky(covariance: Tensor, noise: Tensor) -> Tensor:
    """The differentiable factor of ``covariance + noise I``."""
    matrix = covariance + noise * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    jitter = factorise(matrix.detach().clone).jitter
    if jitter:
        matrix = matrix + jitter * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.cholesky(matrix)


@dataclass(frozen=True, eq=False)
class EdgeFactor:
    """The posterior of a chain of B blocks, given complete blocks and edges.

    smoothed: given complete blocks; mean: [B, c, p], back in the basis of positions; covariances: for every edge the
    first rows [B, p] of its covariances with all blocks; lower: [q, q], the Cholesky factor of the covariance of the
    targets of the edges; residual: [q, c], these minus their means.
    """

    smoothed: Smoothed
    edges: tuple[Edge, ...]
    mean: Tensor
    covariances: tuple[Tensor, ...]
    lower: Tensor
    residual: Tensor

    @property
    def size(self) -> int:
        """q."""
        return len(self.lower)

    def _half(self, place: Tensor, position: Tensor) -> Tensor:
        """``L^-1`` times the covariances of the edges with points, [q, M]."""
        period = self.mean.shape[-1]
        parts = [
            rows[place[:, None], (position[:, None] - e.positions) % period]
            for rows, e in zip(self.covariances, self.edges, strict=True)
        ]
        cross = torch.cat(parts, 1) if parts else self.lower.new_zeros(len(place), 0)
        return torch.linalg.solve_triangular(self.lower, cross.mT, upper=False)

    def marginals(self, place: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [M, c] and variance [M] at positions [M] in the blocks that stand at these places [M] of the chain."""
        half = self._half(place, position)
        mean = self.mean[place, :, position] + half.mT @ self._scaled_residual()
        variance = self.smoothed.variance.mean(-1)[place] - half.square().sum(0)
        return mean, variance.clamp_min(0)

    def _scaled_residual(self) -> Tensor:
        return torch.linalg.solve_triangular(self.lower, self.residual, upper=False)

    def covariance(self, place: Tensor, position: Tensor) -> Tensor:
        """[M, M]."""
        period = self.mean.shape[-1]
        rows: list[Tensor] = []
        order: list[Tensor] = []
        for number in place.unique().tolist():
            members = (place == number).nonzero().flatten()
            spectra = first_row(self.smoothed.covariance_with(number))
            rows.append(spectra[place, (position[members, None] - position) % period])
            order.append(members)
        if not rows:
            return self.mean.new_zeros(0, 0)
        half = self._half(place, position)
        return torch.cat(rows)[torch.cat(order).argsort()] - half.mT @ half

    def weights(self, inside: slice, start: int, complete: slice, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``C^-1 z`` [N, c] and the diagonal [N] of ``C^-1`` by step, C the covariance of all targets.

        inside: places of the complete blocks, which all but the first and last are; start, complete: the number of the
        first, and their rows.
        """
        period, columns = self.mean.shape[-1], self.mean.shape[1]
        inverse = torch.linalg.solve_triangular(self.lower, torch.eye(self.size).to(self.lower), upper=False)
        alpha_edges = inverse.mT @ self._scaled_residual()
        precision_edges = inverse.square().sum(0)
        alpha = hartley(self.smoothed.alpha[inside]).mT.reshape(-1, columns)
        precision = self.smoothed.precision[inside].mean(-1).repeat_interleave(period)
        if self.size and len(alpha):
            alpha, precision = self._with_edges(alpha, precision, inverse, alpha_edges, inside, start, noise)
        total, diagonal = [], []
        first = len(self.edges[0].positions) if complete.start else 0
        for part, whole in ((alpha, alpha_edges), (precision, precision_edges)):
            (total if part is alpha else diagonal).extend([whole[:first], part, whole[first:]])
        return torch.cat(total), torch.cat(diagonal)

    def _with_edges(
        self, alpha: Tensor, precision: Tensor, inverse: Tensor, alpha_edges: Tensor, inside: slice, start: int,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What changes for complete blocks: with G the weights of their targets in the means of the edges,
        ``- G^T alpha_e`` and the diagonal of ``G^T C_e^-1 G``.
        """
        period = self.mean.shape[-1]
        after = self.smoothed.covariance_with(len(self.mean) - 1)[inside] / noise
        # The chain looks the same in both directions.
        rows = [first_row(after.flip(0) if e.block < start else after) for e in self.edges]
        alphas, precisions = [], []
        step = max(1, CHUNK // (period * self.size))
        place = torch.arange(period, device=alpha.device)[:, None]
        for first in range(0, len(after), step):
            parts = [
                r[first : first + step][:, (place - e.positions) % period]
                for r, e in zip(rows, self.edges, strict=True)
            ]  # fmt: skip
            gains = torch.cat(parts, -1).flatten(0, 1)
            alphas.append(gains @ alpha_edges)
            precisions.append((gains @ inverse.mT).square().sum(1))
        return alpha - torch.cat(alphas), precision + torch.cat(precisions)


def conditioned(
    smoothed: Smoothed, edges: Sequence[Edge], places: Sequence[int], z: Tensor, noise: Tensor
) -> EdgeFactor:  # fmt: skip
    """The posterior of a chain given the targets z [N, c] of edges, whose blocks stand at these places."""
    mean = hartley(smoothed.mean)
    covariances = tuple(first_row(smoothed.covariance_with(place)) for place in places)
    if not edges:
        return EdgeFactor(smoothed, (), mean, (), z.new_zeros(0, 0), z.new_zeros(0, z.shape[1]))
    rows = [
        torch.cat([_gather(own[place], a, b) for b, place in zip(edges, places, strict=True)], 1)
        for a, own in zip(edges, covariances, strict=True)
    ]
    lower = _cholesky(torch.cat(rows), noise)
    means = torch.cat([mean[place, :, e.positions] for e, place in zip(edges, places, strict=True)], 1)
    residual = torch.cat([z[e.rows] for e in edges]) - means.mT
    return EdgeFactor(smoothed, tuple(edges), mean, covariances, lower, residual)
