"""Posteriors of many data through many more sparse features: conjugate gradients and stochastic Lanczos quadrature.

With ``A = T^1/2 Phi`` and ``b = T^-1/2 nu``, everything is asked of ``B = I + A A^T``, of which only products with vectors are
taken. A sparse factor of its inverse (`linalg.local_factor`) preconditions it and has most of the log determinant; random
vectors see the rest. Theory: docs/theory/features.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import StructureError
from gpx.graphs.loads import Pattern
from gpx.linalg.lanczos import conjugate_gradients
from gpx.linalg.local_factor import LocalFactor, neighbours
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import SiteMarginals, Sites
from gpx.structure.sparse_features import SparseFeatures, sparse_features

PROBES = 4  # random vectors
NEAR = 24  # rows that a row of the preconditioner goes back to
AROUND = 64  # data that a predicted variance is conditioned on
TOLERANCE, LOOSE = 1e-8, 1e-4  # of solves for the data, and for random vectors
LIMIT = 2_000  # steps of conjugate gradients
COLUMNS = 64  # right-hand sides at a time


@dataclass(frozen=True, eq=False)
class WideFeatures:
    """Of one kernel at the data: where its features have entries; near [N, m]: the rows before a row, in `order`, that have most
    to do with it.
    """

    features: SparseFeatures
    pattern: Pattern
    near: np.ndarray
    order: np.ndarray

    @staticmethod
    @torch.no_grad()
    def of(kernel: Any, x: Tensor) -> WideFeatures:
        """Chosen at the present hyperparameters, which they do not depend on much."""
        features = sparse_features(kernel, x)
        pattern = Pattern(features.indptr, features.columns, (len(x), features.size))
        order = np.random.default_rng(0).permutation(len(x))
        rank, rows = np.argsort(order), pattern.matrix(features.values(kernel))
        near = neighbours(rows, rows, NEAR, rank, rank, np.full(len(x), -1))
        return WideFeatures(features, pattern, near, order)


@dataclass(frozen=True, eq=False)
class WidePlan:
    """The inputs [N, D], and the features of every kernel there."""

    x: Tensor
    parts: tuple[WideFeatures, ...]

    def stale(self, prior: Prior) -> bool:
        """Never: `fit` makes the plan anew between its rounds."""
        return False

    @staticmethod
    def of(prior: Prior, x: Tensor) -> WidePlan:
        """With the features of every kernel. Raises: StructureError for a kernel that has no sparse ones."""
        return WidePlan(x, tuple(WideFeatures.of(kernel, x) for kernel in prior.kernels))


@dataclass(frozen=True, eq=False)
class System:
    """``B = I + A A^T`` with its preconditioner; numbers. matrix: A [N, M]."""

    matrix: Any
    factor: LocalFactor
    order: np.ndarray

    @cached_property
    def root(self) -> Any:
        """W with ``W B W^T`` near the identity."""
        return self.factor.matrix()

    def times(self, v: Tensor) -> Tensor:
        """``B v`` for v [N, k]."""
        return v + torch.from_numpy(self.matrix @ (self.matrix.T @ v.numpy()))

    def near(self, v: Tensor) -> Tensor:
        """``P^-1 v = W^T W v``."""
        return torch.from_numpy(self.root.T @ (self.root @ v.numpy()))

    def solve(self, v: Tensor) -> Tensor:
        """``B^-1 v`` for v [N, k], some columns at a time."""
        parts = []
        for some in v.split(COLUMNS, 1):
            tolerance = torch.full((some.shape[1],), TOLERANCE, dtype=v.dtype)
            parts.append(conjugate_gradients(self.times, self.near, some, tolerance, LIMIT).solution)
        return torch.cat(parts, 1) if parts else torch.zeros_like(v)

    @cached_property
    def probed(self) -> tuple[Tensor, Tensor, Tensor]:
        """``b = W^-1 z`` and ``B^-1 b`` [N, s] for fixed random signs z, and of each the share of the log determinant that
        W leaves.

        The first order of the logarithm, ``z^T (W B W^T - I) z``, has the expectation 0 and is taken off.
        """
        generator = torch.Generator().manual_seed(0)
        z = torch.randint(0, 2, (self.matrix.shape[0], PROBES), generator=generator).double() * 2 - 1
        b = torch.from_numpy(self.factor.colour(z.numpy(), self.order))
        found = conjugate_gradients(self.times, self.near, b, torch.full((PROBES,), LOOSE).double(), LIMIT)
        return b, found.solution, found.logarithm - (found.product - z.square().sum(0))

    @property
    def logdet(self) -> float:
        """Of B: an estimate."""
        return self.factor.logdet() + float(self.probed[2].mean())

    @property
    def logdet_error(self) -> float:
        """Its standard error."""
        return float(self.probed[2].std()) / PROBES**0.5


class _Evidence(torch.autograd.Function):
    """``-(b^T B^-1 b + c log det B) / 2`` for the entries of A and b [N, c]; the gradient of the log determinant is exact for
    the preconditioner, ``2 P^-1 A``, and of the rest, ``tr (B^-1 - P^-1) dB``, the random vectors' estimate.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, b: Tensor, pattern: Pattern, system: System) -> Tensor:
        solved = system.solve(b)
        ctx.save_for_backward(solved)
        ctx.pattern, ctx.system = pattern, system
        return -0.5 * ((b * solved).sum() + b.shape[1] * system.logdet)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (alpha,), system, count = ctx.saved_tensors, ctx.system, ctx.saved_tensors[0].shape[1]
        b, inverse, _ = system.probed
        near = system.near(b)
        rest, share = (inverse - near).numpy(), -0.5 * count / PROBES
        u, w, A = rest, near.numpy(), system.matrix
        left = np.concatenate([alpha.numpy(), share * u, share * w], 1)
        right = np.concatenate([A.T @ side for side in (alpha.numpy(), w, u)], 1)
        of_values = ctx.pattern.sampled(left, right) - 0.5 * count * system.factor.slope(A)
        return grad * torch.from_numpy(of_values), -grad * alpha, None, None


@dataclass(frozen=True, eq=False)
class Group:
    """Columns that share a kernel and precisions: tau [N], nu [N, c]."""

    columns: list[int]
    part: WideFeatures
    kernel: Any
    tau: Tensor
    nu: Tensor

    def scaled(self) -> tuple[Tensor, Tensor]:
        """The entries of A and b [N, c], differentiable; a row without a site is zero in both."""
        seen = self.tau > 0
        root = torch.where(seen, self.tau, 1.0).sqrt()
        sizes = torch.from_numpy(np.diff(self.part.features.indptr))
        values = self.part.features.values(self.kernel) * torch.where(seen, root, 0.0).repeat_interleave(sizes)
        return values, torch.where(seen[:, None], self.nu / root[:, None], 0.0)

    @cached_property
    @torch.no_grad()
    def b(self) -> Tensor:
        """``T^-1/2 nu`` [N, c]."""
        return self.scaled()[1]

    @cached_property
    @torch.no_grad()
    def system(self) -> System:
        """At the present values."""
        A = self.part.pattern.matrix(self.scaled()[0])
        return System(A, LocalFactor.of(A, A, self.part.near, 1.0), self.part.order)

    def evidence(self) -> Tensor:
        """``-(b^T B^-1 b + c log det B) / 2``, differentiable."""
        values, b = self.scaled()
        return _Evidence.apply(values, b, self.part.pattern, self.system)

    @cached_property
    def alpha(self) -> Tensor:
        """``B^-1 b`` [N, c]."""
        return self.system.solve(self.b)

    def weights(self, solved: Tensor) -> Tensor:
        """``A^T`` times solved: weights of the features [M, c]."""
        return torch.from_numpy(self.system.matrix.T @ solved.numpy())

    @torch.no_grad()
    def features(self, x: Tensor) -> Any:
        """Phi [n, M] at x, a SciPy array."""
        found = sparse_features(self.kernel, x)
        return Pattern(found.indptr, found.columns, (len(x), found.size)).matrix(found.values(self.kernel))

    def variance(self, phi: Any, own: np.ndarray, nugget: float = 0.0) -> Tensor:
        """Of f, and a nugget, at features phi [n, M], given the `AROUND` data, without `own`, that have most to do with it: at
        least that given all of them.
        """
        A, n = self.system.matrix, phi.shape[0]
        near = neighbours(phi, A, AROUND, np.full(n, A.shape[0]), np.arange(A.shape[0]), own)
        return torch.from_numpy(LocalFactor.of(phi, A, near, nugget).variance)


@dataclass(frozen=True, eq=False)
class WidePosterior(Posterior):
    """The posterior of Gaussian sites, computed in float64 whatever theirs are. Means, paths and joint moments are exact to the
    tolerance of the solves; marginal variances are those given the 64 data next to a point, which is at least the posterior
    variance.
    """

    prior: Prior
    plan: WidePlan
    sites: Sites

    @cached_property
    def groups(self) -> list[Group]:
        """All columns."""
        found = []
        for latent, columns in self.sites.groups(len(self.prior.kernels)):
            tau, nu = self.sites.tau[:, columns[0]].double(), self.sites.nu[:, columns].double()
            found.append(Group(columns, self.plan.parts[latent], self.prior.kernels[latent], tau, nu))
        return found

    @property
    def log_density(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for group in self.groups:
            tau = group.tau[group.tau > 0]
            height = 0.5 * (tau.log().sum() - len(tau) * math.log(2 * math.pi))
            total = total + len(group.columns) * height + group.evidence()
        return total.to(self.sites.nu)

    @property
    def log_partition(self) -> Tensor:
        parts = [g.evidence() + 0.5 * g.scaled()[1].square().sum() for g in self.groups]
        return torch.stack(parts).sum().to(self.sites.nu)

    @property
    def log_determinant_error(self) -> float:
        return sum((0.5 * len(g.columns) * g.system.logdet_error) ** 2 for g in self.groups) ** 0.5

    def _by_columns(self, parts: list[Tensor]) -> Tensor:
        """What groups have for their columns [n, c], in the order of the columns."""
        order = torch.tensor([c for group in self.groups for c in group.columns]).argsort()
        return torch.cat(parts, 1)[:, order].to(self.sites.nu)

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        with torch.no_grad():
            mean = self._means(self.plan.x)
        return SiteMarginals(mean, lambda: self.marginals(self.plan.x)[1])

    def _means(self, x: Tensor) -> Tensor:
        found = [torch.from_numpy(g.features(x) @ g.weights(g.alpha).numpy()) for g in self.groups]
        return self._by_columns(found)

    @torch.no_grad()
    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        none = np.full(len(x), -1)
        variances = [g.variance(g.features(x), none)[:, None].expand(-1, len(g.columns)) for g in self.groups]
        return self._means(x), self._by_columns(variances)

    @torch.no_grad()
    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts: dict[int, Tensor] = {}
        for g in self.groups:
            phi = g.features(x)
            cross = torch.from_numpy((g.system.matrix @ phi.T).toarray())
            covariance = torch.from_numpy((phi @ phi.T).toarray()) - cross.mT @ g.system.solve(cross)
            parts |= dict.fromkeys(g.columns, 0.5 * (covariance + covariance.mT))
        return self._means(x), torch.stack([parts[c] for c in range(len(parts))]).to(self.sites.nu)

    @torch.no_grad()
    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Matheron's rule in the space of the weights: a prior draw, and ``A^T B^-1`` times its misfit.

        Source: Wilson et al. (2021), "Pathwise conditioning of Gaussian processes", eq. 13.
        """
        drawn: list[tuple[Group, Tensor]] = []
        for g in self.groups:
            A = g.system.matrix
            for column in range(len(g.columns)):
                w = torch.randn(A.shape[1], n, generator=generator, dtype=torch.float64)
                noise = torch.randn(A.shape[0], n, generator=generator, dtype=torch.float64)
                misfit = g.b[:, [column]] - torch.from_numpy(A @ w.numpy()) - noise
                drawn.append((g, w + g.weights(g.system.solve(misfit))))
        order = torch.tensor([c for g in self.groups for c in g.columns]).argsort()

        def draw(x: Tensor) -> Tensor:
            values = [torch.from_numpy(g.features(x) @ w.numpy()).mT for g, w in drawn]
            return torch.stack(values, -1)[..., order].to(self.sites.nu)

        return draw

    def with_sites(self, sites: Sites) -> WidePosterior:
        return replace(self, sites=sites)

    def update(self, x: Tensor, sites: Sites) -> WidePosterior:
        """All is made anew, but walks from nodes met before are known."""
        plan = WidePlan.of(self.prior, torch.cat([self.plan.x, x]))
        return replace(self, plan=plan, sites=self.sites.join(sites))

    @torch.no_grad()
    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """Variances are those given the 64 other data next to each."""
        means, variances = [], []
        for g in self.groups:
            seen, index = (g.tau > 0)[:, None], np.arange(len(g.tau))
            variance = g.variance(g.system.matrix, index, 1.0)[:, None].expand(-1, len(g.columns))
            tau = torch.where(g.tau > 0, g.tau, 1.0)[:, None]
            mean = (g.b - g.alpha * variance) / tau.sqrt()
            means.append(torch.where(seen, mean, math.nan))
            variances.append(torch.where(seen, variance / tau, math.nan))
        return self._by_columns(means), self._by_columns(variances)

    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        raise StructureError(GAUSSIAN)

    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        raise StructureError(GAUSSIAN)


GAUSSIAN = (
    "engines.Features on so many rows with sparse features needs a Gaussian likelihood, whose sites are fixed: use"
    " engines.SparseVariational(refine=False) for others, or at most 4,000 rows."
)
