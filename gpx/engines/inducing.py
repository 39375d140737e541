"""Posteriors through inducing inputs, with one Gaussian site per datum: what `SparseVariational` and `Coreset` share.

Sites act on ``g_n = E[f(x_n) | u] = k_n^T K_ZZ^-1 u``, the part of f(x_n) that the values u at the inducing inputs explain; the
rest has the variance d_n. Theory: docs/theory/sparse.md.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gpx.engines.base import Engine
from gpx.engines.projections import Frame, Projection, Statistics, accumulate, blocks, root
from gpx.engines.whitened import Solution
from gpx.errors import InputError
from gpx.inputs import Data
from gpx.kernels.dense import dense, diagonal
from gpx.parallel import ALONE, Team
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.selection import choose_selection
from gpx.selection.greedy import pivots
from gpx.sites import SiteMarginals, Sites
from gpx.structure.feature_map import feature_map
from gpx.structure.metric import require_metric

PATH_FEATURES = 2048
FIRST_ROUND = 3_000  # rows
LITTLE = 0.01  # nats per target that too few inducing inputs may lose
SHARE = 0.2  # of what may be lost that is left when some are added: with more of them the noise falls, and that counts for more
FAR = 2.0  # times as much as the data lose: new data that do are far from the inducing inputs
CANDIDATES = (10_000, 10)  # rows that inducing inputs are chosen from: so many, or this multiple of their number


@dataclass(frozen=True)
class InducingPlan:
    """The inputs [N, D] and, for every kernel, inducing inputs [M, D]; team: the processes that have the other inputs."""

    x: Tensor
    inducing: tuple[Tensor, ...]
    team: Team = ALONE

    def stale(self, prior: Prior) -> bool:
        """Never: `fit` makes the plan anew between its rounds."""
        return False


class Inducing(Engine):
    """An engine that sees the data through inducing inputs; a subclass has the fields ``select`` and ``refine``."""

    exact: ClassVar[bool] = False
    additive: ClassVar[bool] = True

    select: Any
    refine: bool

    @property
    @abstractmethod
    def size(self) -> int:
        """M."""

    @property
    def largest(self) -> int:
        """How many inducing inputs there may be after rounds of a fit."""
        return self.size

    @abstractmethod
    def solve(self, statistics: Statistics, frame: Frame) -> Solution:
        """q(u) from the statistics of the sites."""

    def note(self, posterior: InducingPosterior) -> str:
        """What the user should know of a posterior; see `Posterior.note`."""
        return ""

    def plan(self, prior: Prior, data: Data) -> InducingPlan:
        """Choose the inducing inputs among the rows with a target."""
        if self.refine:
            for kernel in prior.kernels:
                require_metric(kernel, f"engines.{type(self).__name__} with refine=True")
        rows = self._candidates(data)
        return self._agreed(data, lambda: [self._chosen(kernel, rows, self.size) for kernel in prior.kernels])

    def _candidates(self, data: Data) -> Tensor:
        """Rows of all processes that inducing inputs are chosen from."""
        few = data.draw(max(CANDIDATES[0], CANDIDATES[1] * self.size))
        return torch.cat(data.team.gather(data.x[few]))

    def _agreed(self, data: Data, choose: Callable[[], Sequence[Tensor]]) -> InducingPlan:
        """The plan with inducing inputs that one process chooses for all."""
        return self._planned(data, data.team.share(lambda: [z.detach().cpu() for z in choose()]))

    def _planned(self, data: Data, inducing: Sequence[Tensor]) -> InducingPlan:
        z = (z.to(data.x).clone() for z in inducing)
        return InducingPlan(data.x, tuple(torch.nn.Parameter(v) if self.refine else v for v in z), data.team)

    def _chosen(self, kernel: Any, rows: Tensor, size: int) -> Tensor:
        if not len(rows):
            return rows
        found, _ = choose_selection(self.select)(kernel, rows, min(size, len(rows)), seed=0)
        return found if found.is_floating_point() else rows[found]

    def replan(self, prior: Prior, data: Data, plan: InducingPlan, precision: float = 0.0) -> InducingPlan:
        """Keep inducing inputs that were refined, choose others anew; add some while they lose more than 0.01 nats per target."""
        rows = self._candidates(data)

        def chosen(kernel: Any, z: Tensor) -> Tensor:
            z = z if self.refine else self._chosen(kernel, rows, max(self.size, len(z)))
            return _extended(Frame(kernel, z), rows, precision, LITTLE, self.largest)

        return self._agreed(data, lambda: list(map(chosen, prior.kernels, plan.inducing)))

    def revised(self, plan: InducingPlan, posterior: InducingPosterior, x: Tensor) -> InducingPlan:
        """Inducing inputs among x, where those that there are explain it less well than the data: at most as many again."""
        team, sites = plan.team, posterior.sites
        with torch.no_grad():
            lost = float(posterior.unexplained) / max(1, team.count(int(sites.present.sum())))
        little, rows = max(LITTLE, FAR * lost), torch.cat(team.gather(x))
        precision = float(team.mean(np.array([sites.mean_precision]))[0])
        frames = [projection.frame for projection in posterior.projections]
        found = team.share(lambda: [_extended(f, rows, precision, little, 2 * len(f.z)).detach().cpu() for f in frames])
        if all(len(z) == len(frame.z) for z, frame in zip(found, frames, strict=True)):
            return plan
        return replace(plan, inducing=tuple(z.to(x) for z in found))

    def state(self, plan: InducingPlan) -> dict[str, Tensor]:
        """The inducing inputs."""
        return {f"inducing {k}": z.detach() for k, z in enumerate(plan.inducing)}

    def restored(self, prior: Prior, data: Data, state: dict[str, Tensor]) -> InducingPlan:
        """With the same inducing inputs."""
        return self._planned(data, [state[f"inducing {k}"] for k in range(len(prior.kernels))])

    def fits(self, data: Data, state: dict[str, Tensor]) -> bool:
        """Whether there are as many inducing inputs as this engine takes."""
        return bool(state) and all(min(self.size, data.targets) <= len(z) <= self.largest for z in state.values())

    def rounds(self, rows: int) -> tuple[int, ...]:
        """3,000 rows, thrice as many, ..., and all of them: twice if inducing inputs are chosen anew for the final kernel, or may
        become more and could not before.
        """
        fewer = [FIRST_ROUND * 3**k for k in range(20) if FIRST_ROUND * 3**k <= rows / 2]
        once = self.refine and (bool(fewer) or self.largest == self.size)
        return (*fewer, rows) if once else (*fewer, rows, rows)

    def parameters(self, prior: Prior, plan: InducingPlan) -> dict[str, Tensor]:
        """The inducing inputs, where they are refined."""
        return {f"inducing {k}": z for k, z in enumerate(plan.inducing)} if self.refine else {}

    def condition(
        self, prior: Prior, plan: InducingPlan, params: dict[str, Tensor], sites: Sites
    ) -> InducingPosterior:  # fmt: skip
        """Nothing is computed before it is asked for."""
        projections = tuple(Projection(frame, plan.x, plan.team) for frame in self._frames(prior, plan))
        return InducingPosterior(self, prior, sites, projections)

    def _frames(self, prior: Prior, plan: InducingPlan) -> list[Frame]:
        return [Frame(kernel, z) for kernel, z in zip(prior.kernels, plan.inducing, strict=True)]


@torch.no_grad()
def _extended(frame: Frame, rows: Tensor, precision: float, little: float, largest: int) -> Tensor:
    """More inducing inputs among these rows, until the variance that is left costs little, in nats per target."""
    kernel, z = frame.kernel, frame.z
    if precision <= 0 or len(z) >= largest or not len(rows):
        return z
    (w, left), enough = frame.at(rows), 2 * little / precision
    if float(left.mean()) <= enough:
        return z
    return torch.cat([z, rows[pivots(kernel, rows, largest - len(z), w, SHARE * enough)]])


def check_select(engine: Any, size: Any, name: str) -> None:
    """Raise InputError for a number of inducing inputs or a selection that is none."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"{type(engine).__name__} needs {name}, a number of inputs >= 1, got {size!r}.")
    choose_selection(engine.select)


@dataclass(frozen=True, eq=False)
class InducingPosterior(Posterior):
    """known: statistics of groups of columns that are at hand; base: those of other sites, column by column, that are part of the
    prior.
    """

    engine: Inducing
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
        return max(p.size for p in self.projections)

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

    def with_sites(self, sites: Sites) -> InducingPosterior:
        return replace(self, sites=sites, known={})

    def spread(self, weights: Tensor) -> Tensor:
        total = self.sites.nu.new_zeros(())
        for latent, projection in enumerate(self.projections):
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
        for (projection, members), (weights, lost) in zip(self.groups, self._predictors, strict=True):
            kernel, z = projection.frame.kernel, projection.frame.z
            parts = []
            for rows in slices:
                cross = dense(kernel, z, x[rows])
                # Below the rounding error of the subtraction a variance is zero.
                variance = (diagonal(kernel, x[rows]) - (lost @ cross).square().sum(0)).clamp_min(0)
                parts.append((cross.mT @ weights, variance))
            mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
            columns |= {c: (mean[:, i], variance) for i, c in enumerate(members)}
        means, variances = zip(*(columns[c] for c in range(len(columns))), strict=True)
        return torch.stack(means, 1), torch.stack(variances, 1)

    @cached_property
    def _predictors(self) -> list[tuple[Tensor, Tensor]]:
        """Of every group what gives the mean, ``k . weights``, and the variance, ``k(x, x) - |lost k|^2``: where the precision of
        the whitened u is ``U p U^T``, ``|w|^2 - var g = |(1 - 1 / p)^(1/2) U^T w|^2``. One product per point, not two.
        """
        found = []
        with torch.no_grad():
            for (projection, _), solution in zip(self.groups, self.solved, strict=True):
                inverse = projection.frame.inverse
                p, vectors = torch.linalg.eigh(solution.spread @ solution.spread.mT)
                found.append((inverse.mT @ solution.mean, ((1 - 1 / p.clamp_min(1)).sqrt() * vectors).mT @ inverse))
        return found

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = {}
        for (projection, columns), solution in zip(self.groups, self.solved, strict=True):
            w, _ = projection.frame.at(x)
            half = torch.linalg.solve_triangular(solution.spread, w, upper=False)
            mean, covariance = w.mT @ solution.mean, dense(projection.frame.kernel, x, x) - w.mT @ w + half.mT @ half
            parts |= {c: (mean[:, i], covariance) for i, c in enumerate(columns)}
        means, covariances = zip(*(parts[c] for c in range(len(parts))), strict=True)
        return torch.stack(means, 1), torch.stack(covariances)

    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Matheron's rule: a prior path of 2,048 random features (exact for kernels of finite dimension), corrected at the
        inducing inputs to a draw of u. Source: Wilson et al. (2021), "Pathwise conditioning of Gaussian processes", eq. 13.
        """
        draws = {}
        for (projection, columns), solution in zip(self.groups, self.solved, strict=True):
            for i, column in enumerate(columns):
                draws[column] = _path(projection, solution, i, n, generator)
        return lambda x: torch.stack([draws[c](x) for c in range(len(draws))], -1)

    def update(self, x: Tensor, sites: Sites) -> InducingPosterior:
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

    def given(self, x: Tensor) -> InducingPosterior:
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
        """From the posterior with one site taken out; the inducing inputs and what they explain are kept."""
        if torch.is_grad_enabled():
            solved = [self._solve(*group) for group in self.groups]
            mean, variance, extra = self._moments(_differentiable, solved)
        else:
            marginals = self.site_marginals
            mean, variance, extra = marginals.mean, marginals.variance, marginals.extra
        return self.sites.leave_one_out(mean, variance, extra)


def _differentiable(projection: Projection) -> Any:
    """All data as one block, differentiable in the kernel."""
    (kernel, z), x = (projection.frame.kernel, projection.frame.z), projection.x
    w = torch.linalg.solve_triangular(root(kernel, z), dense(kernel, z, x), upper=False)
    return [(slice(0, len(x)), w, (diagonal(kernel, x) - w.square().sum(0)).clamp_min(0))]


def _path(
    projection: Projection, solution: Solution, column: int, n: int, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    kernel, z, inverse = projection.frame.kernel, projection.frame.z, projection.frame.inverse
    options: Any = {"generator": generator, "dtype": z.dtype, "device": z.device}
    features = feature_map(kernel, PATH_FEATURES, z.shape[1], generator)
    weights, noise = torch.randn(features.size, n, **options), torch.randn(len(z), n, **options)
    with torch.no_grad():
        draw = solution.mean[:, [column]] + torch.linalg.solve_triangular(solution.spread.mT, noise, upper=True)
        correction = inverse.mT @ (draw - inverse @ (features(z) @ weights))

    def path(x: Tensor) -> Tensor:
        parts = [
            features(x[rows]) @ weights + dense(kernel, x[rows], z) @ correction
            for rows in blocks(len(x), max(len(z), features.size))
        ]
        return torch.cat(parts).mT

    return path
