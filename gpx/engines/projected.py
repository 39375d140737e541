"""Posteriors of data that are seen through M standard normal variables, with one Gaussian site per datum.

Sites act on ``g_n = w_n . v``, the part of f(x_n) that these variables explain; the rest has the variance d_n. Theory:
docs/theory/sparse.md, docs/theory/features.md.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from gpx.engines.base import Engine
from gpx.engines.projections import Frame, Projection, Statistics, accumulate, blocks
from gpx.engines.whitened import Solution, exact_solution
from gpx.parallel import Team
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import SiteMarginals, Sites

FIRST_ROUND = 3_000  # rows
E = TypeVar("E", bound="Projecting")


@dataclass(frozen=True)
class ProjectedPlan:
    """The inputs [N, D]; team: the processes that have the other inputs."""

    x: Tensor
    team: Team

    def stale(self, prior: Prior) -> bool:
        """Never: `fit` makes the plan anew between its rounds."""
        return False


class Projecting(Engine):
    """An engine that sees the data through a frame for every latent function."""

    additive: ClassVar[bool] = True

    @abstractmethod
    def frames(self, prior: Prior, plan: Any) -> list[Frame]:
        """One for every kernel, at the present hyperparameters."""

    @property
    def unbatched(self: E) -> E:
        """The same, for all rows at a time."""
        return replace(self, batch_size=None)  # pyright: ignore

    def parts(self, rows: int) -> tuple[int, ...]:
        """On how many of the rows `fit` optimises before it sees all: 3,000, thrice as many, ..."""
        return tuple(FIRST_ROUND * 3**k for k in range(20) if FIRST_ROUND * 3**k <= rows / 2)

    def solve(self, statistics: Statistics, frame: Frame) -> Solution:
        """q(v) from the statistics of the sites: the best."""
        return exact_solution(statistics)

    def note(self, posterior: ProjectedPosterior) -> str:
        """What the user should know of a posterior; see `Posterior.note`."""
        return ""

    def condition(self, prior: Prior, plan: Any, params: dict[str, Tensor], sites: Sites) -> ProjectedPosterior:
        """Nothing is computed before it is asked for."""
        projections = tuple(Projection(frame, plan.x, plan.team) for frame in self.frames(prior, plan))
        return ProjectedPosterior(self, prior, sites, projections)


@dataclass(frozen=True, eq=False)
class ProjectedPosterior(Posterior):
    """known: statistics of groups of columns that are at hand; base: those of other sites, column by column, that are part of the
    prior.
    """

    engine: Projecting
    prior: Prior
    sites: Sites
    projections: tuple[Projection, ...]
    known: dict[tuple[int, ...], Statistics] = field(default_factory=dict)
    base: tuple[Statistics, ...] = ()

    @cached_property
    def groups(self) -> list[tuple[Projection, list[int]]]:
        """Columns that share a kernel and precisions, and the data as these see them."""
        if self.base:
            return [(self.projections[c % len(self.projections)], [c]) for c in range(len(self.base))]
        found = self.sites.groups(len(self.projections), lambda same: not self.team.any(not same))
        return [(self.projections[latent], columns) for latent, columns in found]

    @property
    def team(self) -> Team:
        """The processes that have the other data."""
        return self.projections[0].team

    @cached_property
    def rows(self) -> int:
        """How many data all processes have."""
        return self.team.count(len(self.sites.nu))

    def _statistics(self, projection: Projection, columns: list[int]) -> Statistics:
        """Of the sites; differentiable where gradients are enabled."""
        if not torch.is_grad_enabled():
            if tuple(columns) not in self.known:
                self.known[tuple(columns)] = self._accumulated(projection, columns)
            return self.known[tuple(columns)]
        return self._accumulated(projection, columns)

    def _accumulated(self, projection: Projection, columns: list[int]) -> Statistics:
        present = self.sites.present[:, columns]
        tau, nu = (torch.where(present, part[:, columns], 0.0) for part in (self.sites.tau, self.sites.nu))
        found = accumulate(projection, tau[:, :1], nu)
        return found.plus(self.base[columns[0]]) if self.base else found

    @cached_property
    def solved(self) -> list[Solution]:
        """q(u) of every group; numbers."""
        with torch.no_grad():
            return [self._solve(*group) for group in self.groups]

    def _solve(self, projection: Projection, columns: list[int]) -> Solution:
        return self.engine.solve(self._statistics(projection, columns), projection.frame)

    @property
    def note(self) -> str:
        return self.engine.note(self)

    @property
    def inducing(self) -> int:
        return max((p.size for p in self.projections if not p.frame.complete), default=0)

    @property
    def unexplained(self) -> Tensor:
        """The trace term, ``sum tau d / 2``."""
        return torch.stack([0.5 * len(c) * self._statistics(p, c).spare[0] for p, c in self.groups]).sum()

    @property
    def log_partition(self) -> Tensor:
        return torch.stack([self._solve(*group).log_partition() for group in self.groups]).sum()

    @property
    def log_density(self) -> Tensor:
        """Of the targets under ``Q + 1 / tau``, less ``sum tau d / 2``: the collapsed bound."""
        total = self.sites.nu.new_zeros(())
        for projection, columns in self.groups:
            statistics, (height, misfit) = self._statistics(projection, columns), self._white_noise(columns)
            partition = self.engine.solve(statistics, projection.frame).log_partition()
            total = total + height - 0.5 * misfit + partition - 0.5 * len(columns) * statistics.spare[0]
        return total

    def _white_noise(self, columns: list[int]) -> tuple[Tensor, Tensor]:
        """``sum log N(0; 0, 1 / tau)`` and ``sum nu^2 / tau`` over some columns of the same precisions, where these are not 0."""
        seen = self.sites.tau[:, columns[0]] > 0
        tau, nu = self.sites.tau[seen, columns[0]], self.sites.nu[seen][:, columns]
        height = 0.5 * len(columns) * (tau.log().sum() - len(tau) * math.log(2 * math.pi))
        height, misfit = self.team.sums([height, (nu.square() / tau[:, None]).sum()])
        return height, misfit

    @property
    def log_density_limit(self) -> Tensor:
        """With ``t = sum tau d``, which no eigenvalue of ``T^1/2 (K - Q) T^1/2`` exceeds: the determinant of Q, and the quadratic
        form of ``Q + (1 + t) / tau``. Source: Titsias (2014), "Variational inference for Gaussian and determinantal point
        processes".
        """
        total = self.sites.nu.new_zeros(())
        for projection, columns in self.groups:
            gram, target, spare = self._statistics(projection, columns)
            (height, misfit), level = self._white_noise(columns), 1 + spare[0]
            identity = torch.eye(len(target)).to(target)
            best, wide = (torch.linalg.cholesky(gram[0] + a * identity) for a in (1.0, level))
            half = torch.linalg.solve_triangular(wide, target, upper=False)
            logdet = 2 * len(columns) * best.diagonal().log().sum()
            total = total + height - 0.5 * (logdet + (misfit - half.square().sum()) / level)
        return total

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        with torch.no_grad():
            mean, variance, extra = self._moments(lambda projection: projection.blocks())
        return SiteMarginals(mean, variance, extra)

    def _moments(
        self, walk: Callable[[Projection], Any], solved: list[Solution] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of g and the variance d, [n, C], over blocks of rows (rows, w, d)."""
        columns: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for (projection, members), solution in zip(self.groups, solved or self.solved, strict=True):
            parts = []
            for _, w, d in walk(projection):
                parts.append((*solution.explained(w), d))
            mean, variance, extra = (torch.cat(part) for part in zip(*parts, strict=True))
            columns |= {c: (mean[:, i], variance, extra) for i, c in enumerate(members)}
        ordered = zip(*(columns[c] for c in range(len(columns))), strict=True)
        mean, variance, extra = (torch.stack(part, 1) for part in ordered)
        return mean, variance, extra

    def with_sites(self, sites: Sites) -> ProjectedPosterior:
        return replace(self, sites=sites, known={})

    def spread(self, weights: Tensor) -> Tensor:
        total = self.sites.nu.new_zeros(())
        for latent, projection in enumerate(self.projections):
            if projection.frame.complete:
                continue
            columns = range(latent, weights.shape[1], len(self.projections))
            whole = weights[:, list(columns)].sum(1, keepdim=True)
            total = total + accumulate(projection, whole, whole[:, :0]).spare[0]
        return total

    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        dm, dv = torch.zeros_like(self.sites.nu), torch.zeros_like(self.sites.nu)
        with torch.no_grad():
            for (projection, columns), solution in zip(self.groups, self.solved, strict=True):
                dnu, dtau = direction.nu[:, columns], direction.tau[:, columns]
                size, count = projection.size, len(columns)
                push, gram = dnu.new_zeros(size, count), dnu.new_zeros(count, size, size)
                for rows, w, _ in projection.blocks():
                    push += w @ (dnu[rows] - (w.mT @ solution.mean) * dtau[rows])
                    for total, t in zip(gram, dtau[rows].T, strict=True):
                        total.addmm_(w * t, w.mT)
                push, gram = self.team.sums([push, gram])
                moved, spread = solution.in_mean(push), solution.in_covariance(gram)
                for rows, w, _ in projection.blocks():
                    dm[rows][:, columns] = w.mT @ moved
                    dv[rows][:, columns] = (w * (spread @ w)).sum(1).mT
        return dm, dv

    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        total = self.sites.nu.new_zeros(())
        for projection, columns in self.groups:
            weights = torch.cat([self.sites.tau[:, [columns[0]]], direction.tau[:, columns]], 1)
            nu = torch.cat([self.sites.nu[:, columns], direction.nu[:, columns]], 1)
            gram, target, spare = accumulate(projection, weights, nu)
            here, moved = target.chunk(2, 1)
            solution = self.engine.solve(Statistics(gram, here, spare), projection.frame)
            covariance = torch.cholesky_inverse(solution.spread)
            for m, change, along in zip(solution.mean.mT, gram[1:], moved.mT, strict=True):
                total = total + m @ along - 0.5 * m @ change @ m - 0.5 * (covariance * change).sum()
            total = total + share * solution.log_partition()
        return total

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        columns: dict[int, tuple[Tensor, Tensor]] = {}
        slices = list(blocks(len(x), max(p.size for p in self.projections)))
        for (projection, members), known in zip(self.groups, self._predictors, strict=True):
            parts = (projection.frame.predict(x[rows], *known) for rows in slices)
            mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
            columns |= {c: (mean[:, i], variance) for i, c in enumerate(members)}
        means, variances = zip(*(columns[c] for c in range(len(columns))), strict=True)
        return torch.stack(means, 1), torch.stack(variances, 1)

    @cached_property
    def _predictors(self) -> list[tuple[Tensor, Tensor]]:
        """What the frame of every group predicts from."""
        with torch.no_grad():
            return [p.frame.predictor(solution) for (p, _), solution in zip(self.groups, self.solved, strict=True)]

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = {}
        for (projection, columns), solution in zip(self.groups, self.solved, strict=True):
            w, _ = projection.frame.at(x)
            half = torch.linalg.solve_triangular(solution.spread, w, upper=False)
            mean, covariance = w.mT @ solution.mean, projection.frame.covariance(x) - w.mT @ w + half.mT @ half
            parts |= {c: (mean[:, i], covariance) for i, c in enumerate(columns)}
        means, covariances = zip(*(parts[c] for c in range(len(parts))), strict=True)
        return torch.stack(means, 1), torch.stack(covariances)

    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Functions through draws from q(v)."""
        draws = {}
        for (projection, columns), solution in zip(self.groups, self.solved, strict=True):
            for i, column in enumerate(columns):
                mean, spread = solution.mean[:, [i]], solution.spread
                noise = torch.randn(len(mean), n, generator=generator, dtype=mean.dtype, device=mean.device)
                draw = mean + torch.linalg.solve_triangular(spread.mT, noise, upper=True)
                draws[column] = projection.frame.path(draw, generator)
        return lambda x: torch.stack([draws[c](x).mT for c in range(len(draws))], -1)

    def update(self, x: Tensor, sites: Sites) -> ProjectedPosterior:
        """The statistics of the new sites are added to those that are there: O(N* M^2) for N* new points."""
        new = tuple(replace(p, x=x) for p in self.projections)
        added = replace(self, sites=sites, projections=new, known={})
        projections = tuple(replace(p, x=torch.cat([p.x, x])) for p in self.projections)
        whole = replace(self, sites=self.sites.join(sites), projections=projections, known={})
        with torch.no_grad():
            for projection, columns in self.groups:
                if columns in [members for _, members in whole.groups]:
                    statistics = self._statistics(projection, columns)
                    latent = columns[0] % len(new)
                    whole.known[tuple(columns)] = statistics.plus(added._accumulated(new[latent], columns))
        return whole

    def given(self, x: Tensor) -> ProjectedPosterior:
        base: dict[int, Statistics] = {}
        with torch.no_grad():
            for projection, columns in self.groups:
                gram, target, spare = self._statistics(projection, columns)
                base |= {c: Statistics(gram, target[:, [i]], spare) for i, c in enumerate(columns)}
        none = x.new_zeros(len(x), len(base))
        new = tuple(replace(p, x=x) for p in self.projections)
        ordered = tuple(base[c] for c in range(len(base)))
        return replace(self, sites=Sites(none, none), projections=new, known={}, base=ordered)

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """From the posterior with one site taken out; the frame, and what it explains, are kept."""
        if torch.is_grad_enabled():
            solved = [self._solve(*group) for group in self.groups]
            mean, variance, extra = self._moments(_traced, solved)
        else:
            marginals = self.site_marginals
            mean, variance, extra = marginals.mean, marginals.variance, marginals.extra
        return self.sites.leave_one_out(mean, variance, extra)


def _traced(projection: Projection) -> list[tuple[slice, Tensor, Tensor]]:
    """All data as one block, differentiable in the kernel."""
    return [(slice(0, len(projection.x)), *projection.frame.traced(projection.x))]
