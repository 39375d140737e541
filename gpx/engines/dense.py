"""Exact posteriors by one dense Cholesky factorisation. Theory: docs/theory/exact.md.

Sites with equal precisions share a factor, so P outputs without missing values cost as much as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpx.engines.dense_gradients import Evidence, LogPartition, Precision, Slope, row_blocks, trainable
from gpx.errors import NumericalError
from gpx.kernels.dense import dense, diagonal
from gpx.linalg.cholesky import Cholesky, factorise
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import SiteMarginals, Sites
from gpx.structure.draws import Draws
from gpx.structure.feature_map import feature_map

CHUNK = 1 << 23  # entries of a prediction block: 64 MB of float64
PATH_FEATURES = 2048
TINY = 1e-100  # a precision below this, in units of the prior precision, is not divided by


def _conditioned(
    prior: Prior, x: Tensor, sites: Sites, covariances: dict[int, Tensor], before: Sequence[Solution] = ()
) -> ExactPosterior:
    """covariances: by kernel, the prior covariance [N, N] where it is known; before: solutions at x, whose factors are kept where
    precisions are the same.
    """
    solved = []
    for kernel_index, columns in sites.groups(len(prior.kernels)):
        seen = sites.present[:, columns[0]]
        nu, tau = sites.nu[:, columns], sites.tau[:, columns[0]]
        known, whole = covariances.get(kernel_index), bool(seen.all())
        if known is not None and not whole:
            known = known[seen][:, seen]
        x_seen, nu, tau = (x, nu, tau) if whole else (x[seen], nu[seen], tau[seen])
        kernel = prior.kernels[kernel_index]
        same = (s.factor for s in before if s.kernel is kernel and torch.equal(s.tau, tau) and torch.equal(s.x, x_seen))
        factor = next(same, None) or _factor(kernel, x_seen, tau, known)
        solved.append(Solution(kernel, tuple(columns), x_seen, nu, tau, factor, known))
    return ExactPosterior(prior, x, sites, tuple(solved), covariances)


def _factor(kernel: gpytorch.kernels.Kernel, x: Tensor, tau: Tensor, known: Tensor | None) -> Cholesky:
    root = tau.detach().sqrt()
    if known is None:
        return factorise(lambda: _scaled_matrix(kernel, x.detach(), root))
    return factorise(lambda: _scaled(known, root))


def _scaled(covariance: Tensor, root: Tensor) -> Tensor:
    """``B = I + root K root``."""
    matrix = covariance * root
    matrix.mul_(root[:, None])
    matrix.diagonal().add_(1)
    return matrix


@torch.no_grad()
def _scaled_matrix(kernel: gpytorch.kernels.Kernel, x: Tensor, root: Tensor) -> Tensor:
    """``B = I + root K root``, lower triangle only, in row blocks."""
    n = len(x)
    matrix = x.new_empty(n, n)
    for rows in row_blocks(n):
        left = slice(0, rows.stop)
        scale = root[rows, None] * root[left]
        torch.mul(dense(kernel, x[rows], x[left]), scale, out=matrix[rows, left])
    matrix.diagonal().add_(1)
    return matrix


@torch.no_grad()
def _covariance(kernel: gpytorch.kernels.Kernel, x: Tensor) -> Tensor:
    """K [N, N], in row blocks."""
    matrix = x.new_empty(len(x), len(x))
    for rows in row_blocks(len(x)):
        left = slice(0, rows.stop)
        block = dense(kernel, x[rows], x[left])
        matrix[rows, left] = block
        matrix[: rows.start, rows] = block[:, : rows.start].mT
    return matrix


@dataclass(frozen=True, eq=False)
class Solution:
    """The columns that share kernel and precisions: nu [n, c], tau [n]; factor: that of ``B = I + root K root``,
    ``root = sqrt(tau)``; known: K [n, n], where it is at hand.

    Numbers only, computed on first use; the autograd functions of `dense_gradients` read them.
    """

    kernel: gpytorch.kernels.Kernel
    columns: tuple[int, ...]
    x: Tensor
    nu: Tensor
    tau: Tensor
    factor: Cholesky
    known: Tensor | None = None

    @cached_property
    def root(self) -> Tensor:
        """Square roots of the precisions."""
        return self.tau.detach().sqrt()

    @cached_property
    def alpha(self) -> Tensor:
        """``nu - T m = C^-1 T^-1 nu`` [n, c], by the B-form: no precision is divided by, only its square root, and that
        only where it is not zero.
        """
        nu, root = self.nu.detach(), self.root[:, None]
        divide = self.root > TINY**0.5
        scaled = torch.where(divide[:, None], nu / torch.where(divide, self.root, 1.0)[:, None], 0.0)
        if bool(divide.all()):
            return root * self.factor.solve(scaled)
        rest = torch.where(divide[:, None], 0.0, nu)
        return root * self.factor.solve(scaled - root * (self.covariance @ rest)) + rest

    @cached_property
    def covariance(self) -> Tensor:
        """K [n, n]."""
        return _covariance(self.kernel, self.x.detach()) if self.known is None else self.known

    @cached_property
    def mean(self) -> Tensor:
        """Posterior means [n, c] at the sites."""
        return self.covariance @ self.alpha

    @cached_property
    def _half(self) -> Tensor:
        """``L^-1 root K`` [n, n]."""
        return self.factor.half_solve(self.root[:, None] * self.covariance)

    @cached_property
    def variance(self) -> Tensor:
        """Posterior variances [n] at the sites; below the rounding error of the subtraction a variance is zero."""
        return (self.covariance.diagonal() - torch.linalg.vector_norm(self._half, dim=0).square()).clamp_min(0)

    @cached_property
    def posterior_covariance(self) -> Tensor:
        """``K - K root B^-1 root K`` [n, n]."""
        return torch.addmm(self.covariance, self._half.mT, self._half, alpha=-1)

    def times_covariance(self, values: Tensor) -> Tensor:
        """The posterior covariance times values [n, c]."""
        if "posterior_covariance" in self.__dict__:
            return self.posterior_covariance @ values
        return self.covariance @ values - self._half.mT @ (self._half @ values)

    def response(self, dnu: Tensor, dtau: Tensor) -> tuple[Tensor, Tensor]:
        """Changes [n, c] of mean and variance with the sites: ``S (dnu - m dtau)`` and ``-(S o S) dtau``.

        Only columns with a factor of their own may change their precisions.
        """
        if not bool(dtau.any()):
            return self.times_covariance(dnu), torch.zeros_like(dnu)
        covariance = self.posterior_covariance
        return covariance @ (dnu - self.mean * dtau), -(covariance.square() @ dtau)

    def log_partition(self) -> Tensor:
        """``log int N(f; 0, K) prod_n t_n(f_n) df``, summed over columns."""
        nu = self.nu.detach()
        return 0.5 * (nu * self.mean).sum() - 0.5 * nu.shape[1] * self.factor.logdet()

    def density(self) -> tuple[Tensor, Tensor]:
        """The log density of the targets ``nu / tau`` and alpha [n, c], differentiable."""
        targets = self.nu / self.tau[:, None]
        return Evidence.apply(self.kernel, self.factor, self.x, targets, self.tau, *trainable(self.kernel))

    def half_solve(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """k(x, X) [m, n] and L^-1 root k(X, x) [n, m]."""
        cross = dense(self.kernel, x, self.x)
        return cross, self.factor.half_solve((cross * self.root).mT)

    def precision(self) -> Tensor:
        """The diagonal [n] of C^-1, differentiable."""
        return Precision.apply(self.kernel, self.factor, self.x, self.tau, *trainable(self.kernel))

    def rows(self, sites: Sites) -> Tensor:
        """The indices [n] of its data."""
        return sites.present[:, self.columns[0]].nonzero().flatten()

    def cells(self, sites: Sites) -> tuple[Tensor, Tensor]:
        """The indices of its entries [n, c] among all sites."""
        rows = self.rows(sites)
        return rows[:, None], torch.tensor(self.columns, device=rows.device)


@dataclass(frozen=True, eq=False)
class ExactPosterior(Posterior):
    """The posterior of `Exact`: one solution per group of columns, together covering all of them.

    covariances: by kernel, the prior covariance [N, N] where it is known.
    """

    prior: Prior
    x: Tensor
    sites: Sites
    solutions: tuple[Solution, ...]
    covariances: dict[int, Tensor]

    @staticmethod
    def of(prior: Prior, x: Tensor, sites: Sites) -> ExactPosterior:
        """The posterior at inputs x [N, D]: one factorisation per distinct pattern of precisions."""
        return _conditioned(prior, x, sites, {})

    @property
    def jitter(self) -> float:
        # The matrix that is factorised has the noise as its unit.
        return max((s.factor.jitter for s in self.solutions), default=0.0)

    @property
    def log_density(self) -> Tensor:
        return torch.stack([s.density()[0] for s in self.solutions]).sum()

    @property
    def log_partition(self) -> Tensor:
        total = self.sites.nu.new_zeros(())
        for s in self.solutions:
            total = total + LogPartition.apply(s, s.x, s.nu, s.tau, *trainable(s.kernel))
        return total

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        rows, means = ~self.sites.present.all(1), [s.mean for s in self.solutions]
        absent = self.marginals(self.x[rows]) if bool(rows.any()) else None
        mean = self._gather(means, rows, None if absent is None else absent[0])

        def variance() -> Tensor:
            parts = [s.variance[:, None].expand(-1, len(s.columns)) for s in self.solutions]
            return self._gather(parts, rows, None if absent is None else absent[1])

        return SiteMarginals(mean, variance)

    def _gather(self, parts: Sequence[Tensor], rows: Tensor, absent: Tensor | None) -> Tensor:
        """[N, C] from what the solutions have [n, c], and from `absent` in the rows where a site is missing."""
        result = torch.zeros_like(self.sites.nu.detach())
        if absent is not None:
            result[rows] = absent.detach()
        for s, part in zip(self.solutions, parts, strict=True):
            result[s.cells(self.sites)] = part
        return result

    def with_sites(self, sites: Sites) -> ExactPosterior:
        known = dict(self.covariances)
        for index, kernel in enumerate(self.prior.kernels):
            if index not in known:
                same = (s for s in self.solutions if s.kernel is kernel and len(s.x) == len(self.x))
                known[index] = next((s.covariance for s in same), None)
                if known[index] is None:
                    known[index] = _covariance(kernel, self.x)
        return _conditioned(self.prior, self.x, sites, known, self.solutions)

    def _covering(self, direction: Sites) -> ExactPosterior:
        """Itself, with next to nothing in place of absent sites that a direction moves: what is absent is left out of factors."""
        bare = direction.present & ~self.sites.present
        if not bool(bare.any()):
            return self
        least = torch.finfo(self.sites.nu.dtype).tiny
        return self.with_sites(Sites(torch.where(bare, least, self.sites.nu), self.sites.tau))

    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        covering = self._covering(direction)
        if covering is not self:
            return covering.response(direction)
        dm, dv = torch.zeros_like(self.sites.nu), torch.zeros_like(self.sites.nu)
        for s in self.solutions:
            cells = s.cells(self.sites)
            dm[cells], dv[cells] = s.response(direction.nu[cells], direction.tau[cells])
        return dm, dv

    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        covering = self._covering(direction)
        if covering is not self:
            return covering.slope(direction, share)
        total = self.sites.nu.new_zeros(())
        for s in self.solutions:
            cells = s.cells(self.sites)
            parts = self.sites.nu[cells], direction.nu[cells], direction.tau[cells]
            total = total + Slope.apply(s, share, s.x, *parts, *trainable(s.kernel))
        return total

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step = max(1, CHUNK // max(1, len(self.x)))
        chunks = [self._marginals(x[start : start + step]) for start in range(0, len(x), step)] or [self._marginals(x)]
        return torch.cat([m for m, _ in chunks]), torch.cat([v for _, v in chunks])

    def _marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = {}
        for s in self.solutions:
            cross, half = s.half_solve(x)
            means = cross @ s.alpha
            # Below the rounding error of the subtraction a variance is zero.
            variance = (diagonal(s.kernel, x) - half.square().sum(0)).clamp_min(0)
            parts.update({c: (means[:, i], variance) for i, c in enumerate(s.columns)})
        ordered = [parts[c] for c in range(len(parts))]
        return torch.stack([m for m, _ in ordered], 1), torch.stack([v for _, v in ordered], 1)

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = {}
        for s in self.solutions:
            cross, half = s.half_solve(x)
            covariance = dense(s.kernel, x, x) - half.mT @ half
            means = cross @ s.alpha
            parts.update({c: (means[:, i], covariance) for i, c in enumerate(s.columns)})
        ordered = [parts[c] for c in range(len(parts))]
        return torch.stack([m for m, _ in ordered], 1), torch.stack([v for _, v in ordered])

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        mean, variance = torch.full_like(self.sites.nu, math.nan), torch.full_like(self.sites.nu, math.nan)
        for s in self.solutions:
            precision, alpha = s.precision()[:, None], s.density()[1]
            targets, rows = s.nu / s.tau[:, None], s.rows(self.sites)
            for i, column in enumerate(s.columns):
                index = (rows, torch.full_like(rows, column))
                mean = mean.index_put(index, (targets - alpha / precision)[:, i])
                variance = variance.index_put(index, 1 / precision[:, 0])
        return mean, variance

    def update(self, x: Tensor, sites: Sites) -> ExactPosterior:
        """Extend the factors by a block: O(N^2 M + M^3) for M new points."""
        solved = []
        for s in self.solutions:
            for _, members in sites.columns(s.columns).groups(1):
                solved.append(_extend(s, members, x, sites))
        return ExactPosterior(self.prior, torch.cat([self.x, x]), self.sites.join(sites), tuple(solved), {})

    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Matheron's rule: a prior path plus the kernel-weighted correction of its misfit at the data.

        The prior path is exact for finite-dimensional kernels and made of 2,048 random features otherwise.
        Source: Wilson et al. (2021), "Pathwise conditioning of Gaussian processes", eq. 13.
        """
        draws = {}
        for s in self.solutions:
            features = feature_map(s.kernel, PATH_FEATURES, self.x.shape[1], Draws(generator))
            for i, column in enumerate(s.columns):
                draws[column] = _path(s, i, features, n, generator)
        return lambda x: torch.stack([draws[c](x) for c in range(len(draws))], -1)


def _extend(s: Solution, members: list[int], x: Tensor, sites: Sites) -> Solution:
    """The solution of some columns of s with more sites."""
    columns = tuple(s.columns[m] for m in members)
    seen = sites.present[:, columns[0]]
    x_new, tau_new, nu_new = x[seen], sites.tau[seen, columns[0]], sites.nu[seen][:, list(columns)]
    root = tau_new.sqrt()
    nu, tau, x_all = torch.cat([s.nu[:, members], nu_new]), torch.cat([s.tau, tau_new]), torch.cat([s.x, x_new])
    try:
        with torch.no_grad():
            cross = dense(s.kernel, x_new, s.x) * root[:, None] * s.root
            factor = s.factor.extend(cross, lambda: _scaled_matrix(s.kernel, x_new, root))
    except NumericalError:
        # The new points need more jitter than the old factor has.
        return Solution(s.kernel, columns, x_all, nu, tau, _factor(s.kernel, x_all, tau, None))
    return Solution(s.kernel, columns, x_all, nu, tau, factor)


def _path(s: Solution, column: int, features: Any, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    options: Any = {"generator": generator, "dtype": s.x.dtype, "device": s.x.device}
    weights = torch.randn(features.size, n, **options)
    with torch.no_grad():
        # Pseudo-targets nu / tau with noise of variance 1 / tau, both times root: no precision is divided by.
        root, noise = s.root[:, None], torch.randn(len(s.x), n, **options)
        correction = s.alpha[:, column : column + 1] - root * s.factor.solve(
            root * features.times(s.x, weights) + noise
        )

    def draw(x: Tensor) -> Tensor:
        rows = max(1, CHUNK // max(len(s.x), 1 if features.combine else features.size))
        parts = [features.times(b, weights) + dense(s.kernel, b, s.x) @ correction for b in x.split(rows)]
        return torch.cat(parts).mT

    return draw
