"""Gaussian algebra on a grid, for the columns that share a kernel and precisions. Theory: docs/theory/kronecker.md.

With ``K = Q Lambda Q^T`` (a Kronecker product, and so are Q and Lambda), ``Phi = Q Lambda^1/2``, ``f = Phi w`` and precisions T
of the cells, everything follows from ``C = I + Phi^T T Phi``. If T is a multiple of the identity, C is diagonal (`Even`); see
`grid_holes` for a few missing cells, `grid_uneven` for more of them and other precisions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gpx.linalg import kron

NEGLIGIBLE = 1e-10  # prior variance of a mode over that of the noise: what it says is nothing


@dataclass(frozen=True, eq=False)
class Basis:
    """The covariance matrices [n_d, n_d] of the axes, their eigenvalues (descending) and eigenvectors; numbers."""

    matrices: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]

    @staticmethod
    def of(matrices: Sequence[Tensor]) -> Basis:
        """Cost: O(sum n_d^3)."""
        found = [kron.eigen(matrix) for matrix in matrices]
        return Basis(tuple(matrices), tuple(v for v, _ in found), tuple(q for _, q in found))

    def scaled(self, roots: Sequence[Tensor]) -> Basis:
        """That of ``diag(root) K diag(root)`` on every axis."""
        return Basis.of([root[:, None] * k * root for root, k in zip(roots, self.matrices, strict=True)])

    def kept(self, precision: float) -> list[int]:
        """How many modes of each axis have more prior variance than what is negligible beside noise of this precision."""
        largest = [float(v[0]) for v in self.values]
        total = math.prod(largest) * precision
        return [
            max(1, int((v * total > NEGLIGIBLE * m).sum())) if m > 0 else 1
            for v, m in zip(self.values, largest, strict=True)
        ]


class Solution(ABC):
    """nu [n_1, ..., n_D, c], tau [n_1, ..., n_D]: the sites of the cells. Values on cells are tensors of these shapes."""

    basis: Basis
    nu: Tensor
    tau: Tensor

    @property
    def dims(self) -> int:
        """The number of axes."""
        return self.tau.dim()

    @property
    def exact(self) -> bool:
        """Whether log determinant and variances are."""
        return True

    @property
    def error(self) -> float:
        """The standard error of the log determinant."""
        return 0.0

    @property
    def width(self) -> int:
        """How many entries `reduction` has for a place, row by row, beside those of a few axes."""
        return 1

    @property
    @abstractmethod
    def logdet(self) -> Tensor:
        """``log |C|``."""

    @property
    @abstractmethod
    def alpha(self) -> Tensor:
        """``nu - T m`` [..., c]."""

    @property
    @abstractmethod
    def spectral_alpha(self) -> Tensor:
        """alpha in the eigenvectors of the basis."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Posterior means."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Posterior variances of the cells [n_1, ..., n_D]."""

    @property
    def trace_variance(self) -> Tensor:
        """Variances whose sums over many cells are those that belong to the log determinant."""
        return self.variance

    @abstractmethod
    def times_covariance(self, nu: Tensor) -> Tensor:
        """The posterior covariance times values on cells [..., k]."""

    def alpha_of(self, nu: Tensor) -> Tensor:
        """``(I + T K)^-1 nu``, which is alpha for other values of the sites."""
        return nu - self.tau.unsqueeze(-1) * self.times_covariance(nu)

    @property
    @abstractmethod
    def energy(self) -> Tensor:
        """``w^T w``, the squared norm of the mean in the prior's metric."""

    def log_partition(self) -> Tensor:
        """``log int N(f; 0, K) prod_n t_n(f_n) df``, summed over columns: ``nu^T m - m^T T m / 2 - w^T w / 2 - c log|C| / 2``.

        Its error is of second order in that of the mean.
        """
        fit = (self.nu * self.mean).sum() - 0.5 * (self.tau.unsqueeze(-1) * self.mean.square()).sum()
        return fit - 0.5 * self.energy - 0.5 * self.nu.shape[-1] * self.logdet

    def log_density(self) -> Tensor:
        """Of the targets ``z = nu / tau`` of cells with tau > 0: ``-(z - m)^T T (z - m) / 2 - w^T w / 2 - ...``."""
        seen = self.tau > 0
        tau = torch.where(seen, self.tau, 1.0)
        misfit = (torch.where(seen.unsqueeze(-1), self.alpha, 0.0).square() / tau.unsqueeze(-1)).sum()
        heights = torch.where(seen, tau / (2 * math.pi), 1.0).log().sum() - self.logdet
        return 0.5 * (self.nu.shape[-1] * heights - misfit - self.energy)

    def weights(self) -> list[Tensor]:
        """The gradients [n_d, n_d] of both in the matrices of the basis."""
        alpha, count, result = self.spectral_alpha, self.nu.shape[-1], []
        for d, inner in enumerate(self.traces()):
            spread = kron.spread(self.basis.values, d).unsqueeze(-1)
            q, data = self.basis.vectors[d], kron.gram(alpha * spread, alpha, d)
            result.append(0.5 * q @ (data - count * inner) @ q.mT)
        return result

    @abstractmethod
    def traces(self) -> list[Tensor]:
        """For every axis, in its eigenvectors, the matrix [n_d, n_d] of the derivatives of ``log |C|`` in the covariance."""

    @abstractmethod
    def reduction(self, features: Sequence[Tensor], by_rows: bool) -> Tensor:
        """By how much the sites lower the variance of places: of all combinations of places on the axes, or row by row.

        features: their covariances k_d(x, X_d) [m_d, n_d] with the values on the axes.
        """

    @property
    @abstractmethod
    def phi(self) -> list[Tensor]:
        """The factors of Phi."""

    def draws(self, n: int, generator: torch.Generator) -> Tensor:
        """Joint draws [n_1, ..., n_D, c, n] of all cells, by Matheron's rule: of the prior, and the answer of the mean to their
        misfit.
        """
        count, phi = self.nu.shape[-1], self.phi
        prior = kron.times(phi, self._normal([*(p.shape[1] for p in phi), count * n], generator))
        noise = self._normal([*self.tau.shape, count * n], generator)
        misfit = self.tau.unsqueeze(-1) * prior + self.tau.sqrt().unsqueeze(-1) * noise
        change = prior - self.times_covariance(misfit)
        return self.mean.unsqueeze(-1) + change.unflatten(-1, (count, n))

    def _normal(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=self.nu.dtype, device=self.nu.device)


@dataclass(frozen=True, eq=False)
class Level(Solution):
    """precision: the same for all cells, or for all that are not missing."""

    basis: Basis
    nu: Tensor
    tau: Tensor
    precision: float

    @cached_property
    def prior(self) -> Tensor:
        """Lambda."""
        return kron.outer(self.basis.values)

    @cached_property
    def share(self) -> Tensor:
        """``1 / C`` of the complete grid."""
        return 1 / (1 + self.precision * self.prior)


@dataclass(frozen=True, eq=False)
class Even(Level):
    """The same precision everywhere, or an outer product over the axes: exact. Such are made equal by scaling f.

    roots: f was multiplied by the outer product of these [n_d]; None: by nothing. precision: of all cells, after that; the basis
    is that of the scaled covariance.
    """

    roots: tuple[Tensor, ...] | None = None

    @cached_property
    def scale(self) -> Tensor:
        """By which f was multiplied."""
        return self.nu.new_ones(()) if self.roots is None else kron.outer(self.roots)

    def _pull(self, values: Tensor) -> Tensor:
        """Values of sites in the eigenvectors."""
        return kron.times(kron.transposed(self.basis.vectors), values / self.scale.unsqueeze(-1))

    @cached_property
    def pulled(self) -> Tensor:
        """nu in the eigenvectors."""
        return self._pull(self.nu)

    @cached_property
    def logdet(self) -> Tensor:
        return torch.log1p(self.precision * self.prior).sum()

    @cached_property
    def alpha(self) -> Tensor:
        return self.alpha_of(self.nu)

    @property
    def spectral_alpha(self) -> Tensor:
        return self.share.unsqueeze(-1) * self.pulled

    @cached_property
    def mean(self) -> Tensor:
        return self.times_covariance(self.nu)

    @cached_property
    def _squares(self) -> list[Tensor]:
        return [q.square() for q in self.basis.vectors]

    @cached_property
    def variance(self) -> Tensor:
        return kron.times(self._squares, self.prior * self.share) / self.scale.square()

    @property
    def energy(self) -> Tensor:
        return (self.prior.unsqueeze(-1) * self.spectral_alpha.square()).sum()

    def times_covariance(self, nu: Tensor) -> Tensor:
        pulled = self.pulled if nu is self.nu else self._pull(nu)
        return kron.times(self.basis.vectors, (self.prior * self.share).unsqueeze(-1) * pulled) / self.scale.unsqueeze(
            -1
        )

    def alpha_of(self, nu: Tensor) -> Tensor:
        pulled = self.pulled if nu is self.nu else self._pull(nu)
        return kron.times(self.basis.vectors, self.share.unsqueeze(-1) * pulled) * self.scale.unsqueeze(-1)

    def weights(self) -> list[Tensor]:
        scaled = super().weights()
        if self.roots is None:
            return scaled
        return [root[:, None] * w * root for root, w in zip(self.roots, scaled, strict=True)]

    def traces(self) -> list[Tensor]:
        precision = self.precision * self.share
        spread = (kron.spread(self.basis.values, d) for d in range(self.dims))
        return [kron.others(precision * s, d, self.dims).diag() for d, s in enumerate(spread)]

    def reduction(self, features: Sequence[Tensor], by_rows: bool) -> Tensor:
        roots = [None] * self.dims if self.roots is None else self.roots
        scaled = [f if r is None else f * r for f, r in zip(features, roots, strict=True)]
        squares = [(f @ q).square() for f, q in zip(scaled, self.basis.vectors, strict=True)]
        return (kron.rows if by_rows else kron.times)(squares, self.precision * self.share)

    @property
    def phi(self) -> list[Tensor]:
        roots = [1.0] * self.dims if self.roots is None else [1 / root[:, None] for root in self.roots]
        return [r * q * v.sqrt() for r, q, v in zip(roots, self.basis.vectors, self.basis.values, strict=True)]


class Value(torch.autograd.Function):
    """The log partition or the log density of a solution, as a function of the cells' nu [..., c] and tau [...], and of the axes'
    covariance matrices.
    """

    @staticmethod
    def forward(ctx: Any, solved: Solution, density: bool, nu: Tensor, tau: Tensor, *matrices: Tensor) -> Tensor:
        ctx.solved, ctx.density = solved, density
        return solved.log_density() if density else solved.log_partition()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        s, density = ctx.solved, ctx.density
        in_nu = in_tau = None
        seen = s.tau > 0
        tau = torch.where(seen, s.tau, 1.0).unsqueeze(-1)
        if ctx.needs_input_grad[2]:
            in_nu = torch.where(seen.unsqueeze(-1), -s.alpha / tau, 0.0) if density else s.mean
        if ctx.needs_input_grad[3]:
            variance = s.trace_variance.unsqueeze(-1)
            in_tau = -0.5 * (variance + s.mean.square())
            if density:
                square = s.alpha / tau * (s.nu / tau + s.mean)  # z^2 - m^2
                in_tau = torch.where(seen.unsqueeze(-1), 0.5 * (1 / tau - variance + square), 0.0)
            in_tau = in_tau.sum(-1)
        wanted = any(ctx.needs_input_grad[4:])
        in_matrices = s.weights() if wanted else [None] * (len(ctx.needs_input_grad) - 4)
        scaled = (g if g is None else grad * g for g in (in_nu, in_tau, *in_matrices))
        return None, None, *scaled
