"""Gaussian algebra on a grid with even precisions but for a few missing cells: exact, from the complete grid. Theory:
docs/theory/kronecker.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gpx.engines.grid_solution import Level
from gpx.linalg import kron
from gpx.linalg.cholesky import Cholesky, factorise

FEW = 2_000  # missing cells
CHUNK = 1 << 24  # entries
ENTRIES = 40_000_000  # of an array of all cells for each missing one


@dataclass(frozen=True, eq=False)
class Holes(Level):
    """A few missing cells."""

    @cached_property
    def missing(self) -> Tensor:
        """The missing cells in the eigenvectors [n_1, ..., n_D, h]."""
        index = (self.tau == 0).nonzero().T
        result = self.basis.vectors[0][index[0]].mT
        for q, i in zip(self.basis.vectors[1:], index[1:], strict=True):
            result = result.unsqueeze(-2) * q[i].mT
        return result

    @cached_property
    def _factor(self) -> Cholesky:
        """Of the missing cells' block of ``(I + t K)^-1`` on the complete grid."""
        flat = self.missing.flatten(0, -2)
        return factorise(lambda: flat.mT @ (self.share.reshape(-1, 1) * flat))

    @cached_property
    def correction(self) -> Tensor:
        """Y [n_1, ..., n_D, h] with ``T - T S T = Q (t / C - Y Y^T) Q^T``."""
        flat = self.missing.flatten(0, -2) * self.share.reshape(-1, 1)
        return (math.sqrt(self.precision) * self._factor.half_solve(flat.mT).mT).reshape(self.missing.shape)

    @cached_property
    def logdet(self) -> Tensor:
        return torch.log1p(self.precision * self.prior).sum() + self._factor.logdet()

    def _spectral(self, nu: Tensor) -> Tensor:
        """Alpha for other values of the sites, in the eigenvectors."""
        pulled = kron.times(kron.transposed(self.basis.vectors), nu)
        flat = self.correction.flatten(0, -2)
        lowered = flat @ (flat.mT @ pulled.flatten(0, -2)) / self.precision
        return self.share.unsqueeze(-1) * pulled - lowered.reshape(pulled.shape)

    @cached_property
    def spectral_alpha(self) -> Tensor:
        return self._spectral(self.nu)

    @cached_property
    def alpha(self) -> Tensor:
        return kron.times(self.basis.vectors, self.spectral_alpha)

    @cached_property
    def mean(self) -> Tensor:
        return kron.times(self.basis.vectors, self.prior.unsqueeze(-1) * self.spectral_alpha)

    def times_covariance(self, nu: Tensor) -> Tensor:
        return kron.times(self.basis.vectors, self.prior.unsqueeze(-1) * self._spectral(nu))

    @property
    def energy(self) -> Tensor:
        return (self.prior.unsqueeze(-1) * self.spectral_alpha.square()).sum()

    @cached_property
    def variance(self) -> Tensor:
        squares = [q.square() for q in self.basis.vectors]
        added = kron.times(self.basis.vectors, self.prior.unsqueeze(-1) * self.correction).square().sum(-1)
        return kron.times(squares, self.prior * self.share) + added

    def traces(self) -> list[Tensor]:
        result = []
        for d in range(self.dims):
            spread = kron.spread(self.basis.values, d)
            whole = kron.others(self.precision * self.share * spread, d, self.dims).diag()
            result.append(whole - kron.gram(self.correction * spread.unsqueeze(-1), self.correction, d))
        return result

    def reduction(self, features: Sequence[Tensor], by_rows: bool) -> Tensor:
        apply = kron.rows if by_rows else kron.times
        scaled = [f @ q for f, q in zip(features, self.basis.vectors, strict=True)]
        complete = apply([f.square() for f in scaled], self.precision * self.share)
        largest = max(complete.numel(), len(features[-1]) * self.tau[0].numel() if by_rows else 0)
        parts = self.correction.split(max(1, CHUNK // largest), -1)
        return complete - torch.stack([apply(scaled, part).square().sum(-1) for part in parts]).sum(0)

    @property
    def phi(self) -> list[Tensor]:
        return [q * v.sqrt() for q, v in zip(self.basis.vectors, self.basis.values, strict=True)]


def few_holes(tau: Tensor) -> bool:
    """Whether precisions are equal but for a few missing cells."""
    seen = tau[tau > 0]
    holes = tau.numel() - len(seen)
    return holes <= FEW and holes * tau.numel() <= ENTRIES and bool((seen == seen[0]).all())
