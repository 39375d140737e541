"""q(u) by its natural parameters, for data that are seen in blocks of rows; passes over all rows for the best of them.

A pass sees every block once: the marginals under the present q(u), the sites that the rule makes of them, and what these add to
the statistics of the next q(u). Theory: docs/theory/sparse.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpx.engines.projected import ProjectedPosterior
from gpx.engines.projections import Frame, Statistics, blocks
from gpx.engines.whitened import Solution, exact_solution
from gpx.errors import StructureError
from gpx.inference.infer import GROWTH, ROUNDING, SMALLEST_STEP, Inferred
from gpx.inference.rules import Variational, expected_log_prob, natural_sites
from gpx.inputs import Data
from gpx.posterior import Shifted
from gpx.sites import SiteMarginals, Sites

if TYPE_CHECKING:
    from gpx.inference.problem import Problem

SETTLED = 1e-5  # nats per target that another pass would gain
MAX_PASSES = 50


@dataclass(frozen=True, eq=False)
class Belief:
    """q(v) of every column, at the present hyperparameters: ``q(v) ~ N(v; 0, 1) exp(h . v - v . G v / 2)``; with inducing inputs
    ``u = L v``.

    lowers: of every latent function the factor L [M, M] of its frame; statistics: of every column G and h. Differentiable in the
    hyperparameters where gradients were enabled.
    """

    problem: Problem
    lowers: tuple[Tensor | None, ...]
    statistics: tuple[Statistics, ...]

    @cached_property
    def solutions(self) -> list[Solution]:
        """Of every column."""
        return [exact_solution(s) for s in self.statistics]

    @cached_property
    def frames(self) -> list[Frame]:
        """Of every latent function."""
        return frames_of(self.problem)

    @cached_property
    def inverses(self) -> list[Tensor | None]:
        """L^-1 [M, M] of every latent function, as numbers."""
        return [None if lower is None else inverted(lower.detach()) for lower in self.lowers]

    @cached_property
    def halves(self) -> list[Tensor]:
        """R^-1 [M, M] of every column, as numbers: ``var g = |R^-1 w|^2``. A product with it is faster than a solve."""
        return [inverted(solution.lower.detach()) for solution in self.solutions]

    def seen(self, x: Tensor) -> tuple[SiteMarginals, list[Tensor]]:
        """The marginals of f at x [n, D], the prior mean included, and what they were made of: ``w = L^-1 c(x)`` [M, n] of every
        latent function; numbers.
        """
        means = [solution.mean for solution in self.solutions]  # first: they are kept, with their graph
        with torch.no_grad():
            return self._seen(x, means)

    def _seen(self, x: Tensor, means: list[Tensor]) -> tuple[SiteMarginals, list[Tensor]]:
        ws, columns = [], []
        for frame, inverse in zip(self.frames, self.inverses, strict=True):
            cross = frame.cross(x)
            ws.append(cross if inverse is None else inverse @ cross)
        extras = [frame.left(x, w) for frame, w in zip(self.frames, ws, strict=True)]
        for column, (mean, half) in enumerate(zip(means, self.halves, strict=True)):
            w, extra = ws[column % len(ws)], extras[column % len(ws)]
            columns.append(((w.mT @ mean)[:, 0], (half @ w).square().sum(0), extra))
        mean, variance, extra = (torch.stack(part, 1) for part in zip(*columns, strict=True))
        shift = self.problem.prior.mean_at(x, len(columns))
        return SiteMarginals(mean + shift, variance, extra, shift.detach()), ws

    def push(self, x: Tensor, ws: Sequence[Tensor], slope: Tensor, curvature: Tensor) -> Tensor:
        """A function of the hyperparameters that has the gradient of ``sum slope m + curvature v`` in them, for the means m and
        variances v of f at x [n, D] and constant weights [n, C]: linear in what it is differentiated in.

        With ``v = k(x, x) - w . H w``, ``H = 1 - (1 + G)^-1`` and ``dw = L^-1 (dc - dL w)``; in a complete frame ``k = |w|^2``
        and ``H = -(1 + G)^-1``. ws: as `seen` found them.
        """
        total = (slope * self.problem.prior.mean_at(x, slope.shape[1])).sum()
        kept = list(zip(self.solutions, slope.mT, curvature.mT, strict=True))
        for latent, (frame, w) in enumerate(zip(self.frames, ws, strict=True)):
            weights = torch.zeros_like(w)
            for solution, s, c in kept[latent :: len(ws)]:
                spread = -torch.cholesky_inverse(solution.lower)
                if not frame.complete:
                    spread = spread + torch.eye(len(w)).to(w)
                mean = solution.mean[:, 0]
                with torch.no_grad():
                    weights += torch.outer(mean, s) - 2 * c * (spread @ w)
                total = total + mean @ (w @ s) - (spread * ((w * c) @ w.mT)).sum()
            lower, inverse = self.lowers[latent], self.inverses[latent]
            onto = weights if inverse is None else inverse.mT @ weights
            total = total + (onto * frame.cross(x)).sum()
            if not frame.complete:
                total = total + (curvature[:, latent :: len(ws)].sum(1) * frame.prior(x)).sum()
            if lower is not None:
                total = total - (lower * (onto @ w.mT)).sum()
        return total

    def divergence(self) -> Tensor:
        """``KL(q || p)``, summed over columns."""
        total = self.statistics[0].target.new_zeros(())
        for s in self.solutions:
            inverse = inverted(s.lower)
            trace = inverse.square().sum() - len(inverse) + s.mean.square().sum()
            total = total + s.lower.diagonal().log().sum() + 0.5 * trace
        return total

    def moved(self) -> Belief:
        """The belief at hyperparameters that have changed since: with the same sites on ``K_ZZ^-1 u``, differentiable in them.

        ``exp(lambda . u - u . Lambda u / 2)`` is kept, and ``G = L^T Lambda L``.
        """
        lowers = lowers_of(self.problem)
        turns = [
            None if old is None or new is None else torch.linalg.solve_triangular(old, new, upper=False)
            for old, new in zip(self.lowers, lowers, strict=True)
        ]
        parts = []
        for column, statistics in enumerate(self.statistics):
            gram, target, spare = statistics
            turn = turns[column % len(turns)]
            turned = statistics if turn is None else Statistics(turn.mT @ gram @ turn, turn.mT @ target, spare)
            parts.append(turned)
        return Belief(self.problem, lowers, tuple(parts))

    def numbers(self) -> Belief:
        """Without a graph."""
        parts = tuple(Statistics(*(part.detach() for part in s)) for s in self.statistics)
        lowers = tuple(None if lower is None else lower.detach() for lower in self.lowers)
        return Belief(self.problem, lowers, parts)

    def towards(self, other: Sequence[Statistics], step: float) -> Belief:
        """With the statistics a share `step` of the way to others."""
        pairs = zip(self.statistics, other, strict=True)
        parts = (Statistics(*(torch.lerp(a, b, step) for a, b in zip(*pair, strict=True))) for pair in pairs)
        return replace(self, statistics=tuple(parts))


def inverted(lower: Tensor) -> Tensor:
    """The inverse [M, M] of a lower triangular matrix."""
    return torch.linalg.solve_triangular(lower, torch.eye(len(lower)).to(lower), upper=False)


def frames_of(problem: Problem) -> list[Frame]:
    """The frames of an engine that has some, at the present hyperparameters."""
    engine: Any = problem.engine
    return engine.frames(problem.prior, problem.plan)


def lowers_of(problem: Problem) -> tuple[Tensor | None, ...]:
    """The factors L [M, M] of the frames, differentiable in the hyperparameters."""
    return tuple(frame.factor() for frame in frames_of(problem))


@torch.no_grad()
def unseen(problem: Problem) -> Belief:
    """The prior."""
    frames, x = frames_of(problem), problem.data.x
    parts = []
    for column in range(problem.columns):
        size = frames[column % len(frames)].size
        parts.append(Statistics(x.new_zeros(1, size, size), x.new_zeros(size, 1), x.new_zeros(1)))
    return Belief(problem, tuple(frame.factor() for frame in frames), tuple(parts))


def added(ws: Sequence[Tensor], sites: Sites, extra: Tensor) -> tuple[Statistics, ...]:
    """What rows add to the statistics of every column, for zero-mean sites [n, C]."""
    parts = []
    for column, (nu, tau, d) in enumerate(zip(sites.nu.mT, sites.tau.mT, extra.mT, strict=True)):
        w = ws[column % len(ws)]
        parts.append(Statistics(((w * tau) @ w.mT)[None], (w @ nu)[:, None], (tau @ d)[None]))
    return tuple(parts)


@torch.no_grad()
def gathered(problem: Problem, sites: Sites) -> Belief:
    """The belief that all sites together make."""
    nothing = unseen(problem)
    total = nothing.statistics
    for rows in blocks(len(problem.data.x), nothing.frames[0].size):
        x = problem.data.x[rows]
        marginals, ws = nothing.seen(x)
        part = Sites(sites.nu[rows], sites.tau[rows]).centred(problem.prior.mean_at(x, problem.columns))
        total = _sum(total, added(ws, part, marginals.extra))
    return replace(nothing, statistics=total)


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass over all rows finds under a belief: its ELBO, the sites that the rule makes of its marginals, their
    statistics, and how far the sites were from those, without a unit.
    """

    value: float
    target: Sites
    statistics: tuple[Statistics, ...]
    residual: float


def once(belief: Belief, sites: Sites | None = None) -> Pass:
    """A pass over all rows; sites: those of the belief, where they are known."""
    problem, total = belief.problem, unseen(belief.problem).statistics
    value, residual, parts = -float(belief.divergence()), 0.0, []
    for rows in blocks(len(problem.data.x), belief.frames[0].size):
        data = problem.data.rows(rows)
        marginals, ws = belief.seen(data.x)
        expected, slope, curvature = expected_gradient(problem, data, marginals)
        target = natural_sites(problem.likelihood, data, marginals.mean, slope, curvature)
        value += float(expected.detach())
        if sites is not None:
            before = Sites(sites.nu[rows], sites.tau[rows])
            change = problem.rule.residual(marginals, before, target).abs()
            residual = max(residual, float(change.max()))
        centred = target.centred(problem.prior.mean_at(data.x, problem.columns))
        total = _sum(total, added(ws, centred, marginals.extra))
        parts.append(target)
    target = Sites(torch.cat([p.nu for p in parts]), torch.cat([p.tau for p in parts]))
    return Pass(value, target, total, residual)


def expected_gradient(problem: Problem, data: Data, marginals: SiteMarginals) -> tuple[Tensor, Tensor, Tensor]:
    """``sum E log p(y | f)``, differentiable in the likelihood alone where gradients are enabled, and its derivatives [n, C] in
    means and variances.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        mean = marginals.mean.detach().requires_grad_()
        variance = (marginals.variance + marginals.extra).detach().requires_grad_()
        expected = expected_log_prob(problem.likelihood, data, mean, variance).sum()
        slope, curvature = torch.autograd.grad(expected, (mean, variance), retain_graph=keep)
    return expected, slope, curvature


@torch.no_grad()
def sweep(problem: Problem, start: Belief | None = None) -> Inferred:
    """The sites of the likelihood, by passes over all rows: see `swept`."""
    return swept(problem, start)[0]


@torch.no_grad()
def swept(problem: Problem, start: Belief | None = None) -> tuple[Inferred, float]:
    """The sites of the likelihood by natural-gradient steps, each of one pass over all rows, and the ELBO there.

    A step is halved where the ELBO fell; the search ends where one gains less than 1e-5 nats per target.
    Arguments: start: from which the first pass sets out; None: the sites of the problem, else the prior.
    Raises: StructureError for another rule than the variational one. Cost: O(N M^2) per pass.
    """
    exact = problem.exact_sites
    if exact is not None:
        posterior = problem.condition(exact)
        return Inferred(posterior), float(posterior.log_density)
    if not isinstance(problem.rule, Variational):
        raise StructureError(
            f"rules.{type(problem.rule).__name__} cannot be mini-batched: use rules.Variational(), or leave batch_size out."
        )
    sites = problem.start
    if start is None:
        start = unseen(problem) if sites is None else gathered(problem, sites)
        if sites is None:
            nothing = problem.data.y.new_zeros(len(problem.data.x), problem.columns)
            sites = Sites(nothing, nothing)
    belief, enough = start, SETTLED * max(1, int(problem.data.observed.sum()))
    here, step, passes, converged = once(belief, sites), 1.0, 1, False
    while passes < MAX_PASSES and step > SMALLEST_STEP and not converged:
        # The sites of a belief that was found in batches are not known: what the rule makes of it takes their place.
        moved = sites is None or step == 1.0
        trial = belief.towards(here.statistics, 1.0 if moved else step)
        trial_sites = here.target if sites is None or moved else sites.towards(here.target, step)
        there, passes = once(trial, trial_sites), passes + 1
        if sites is not None and there.value < here.value - ROUNDING * 1e-8 * abs(here.value):
            step *= 0.5
            continue
        converged = abs(there.value - here.value) <= enough and step == 1.0
        belief, sites, here = trial, trial_sites, there
        step = min(1.0, GROWTH * step)
    assert sites is not None
    posterior = _posterior(problem, belief, sites)
    observed = problem.data.observed.repeat_interleave(problem.likelihood.num_latents, 1)
    cut = int((observed & (sites.tau == 0)).sum())
    return Inferred(posterior, converged, passes, here.residual, cut), here.value


def _posterior(problem: Problem, belief: Belief, sites: Sites) -> Shifted:
    """Conditioned on the sites, with the statistics that are at hand."""
    posterior = problem.condition(sites)
    centred: Any = posterior.centred
    assert isinstance(centred, ProjectedPosterior)
    for _, columns in centred.groups:
        parts = [belief.statistics[c] for c in columns]
        target = torch.cat([p.target for p in parts], 1)
        centred.known[tuple(columns)] = Statistics(parts[0].gram, target, parts[0].spare)
    return posterior


def _sum(a: Sequence[Statistics], b: Sequence[Statistics]) -> tuple[Statistics, ...]:
    return tuple(x.plus(y) for x, y in zip(a, b, strict=True))
