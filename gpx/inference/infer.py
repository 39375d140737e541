"""From a likelihood to its sites: the fixed point of a rule, by damped steps and Newton's method.

Theory: docs/theory/sites.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpx.errors import NumericalError
from gpx.inference.sitemap import SiteMap
from gpx.posterior import Shifted
from gpx.sites import SiteMarginals, Sites

if TYPE_CHECKING:
    from gpx.inference.problem import Problem

MAX_STEPS = 200
TOLERANCE = 2.0 / 3  # of the residual, which has no unit, in roots of the rounding error: 1e-8 in double precision
GROWTH = 1.3
SMALLEST_STEP = 1e-4
ROUNDING = 0.06  # a merit may fall by this share of itself, or of a nat, in roots of the rounding error: 1e-9 in double precision
ASTRAY = 0.01  # residual of a search that ended nowhere
NEWTON_BELOW = 3.0  # residual below which Newton's method is tried
NOISE = 0.01  # nats per target of a merit whose marginals are off by a standard deviation
MEMORY = 4  # earlier steps that are mixed where there is no Newton's method


@dataclass(frozen=True, eq=False)
class Inferred:
    """A posterior whose sites are the fixed point of a rule.

    converged: whether the residual fell below 1e-8 (2e-4 in single precision); steps: factorisations; residual: largest change
    that another step of the rule would make, without a unit; zero_precisions: observed targets whose precision was cut at
    zero.
    """

    posterior: Shifted
    converged: bool = True
    steps: int = 1
    residual: float = 0.0
    zero_precisions: int = 0


def infer(problem: Problem) -> Inferred:
    """The sites of the likelihood: exact where these are known, else the fixed point of the problem's rule.

    A damped step is taken if the rule's merit does not fall (the step grows by 1.3, to at most 1), else it is halved. Newton's
    method on the fixed-point equation is tried first, and kept if the merit does not fall and either rises by a percent or the
    residual halves; for engines without a response, Anderson's mixture of the last steps instead (Walker & Ni 2011).
    Raises: NumericalError if there is no finite start. Cost: a factorisation per step; `max_steps` of the problem at most.
    """
    exact = problem.exact_sites
    if exact is not None:
        return Inferred(problem.condition(exact))
    state = _State(problem, first_posterior(problem))
    if not state.finite and problem.start is not None:
        state = _State(problem, first_posterior(problem.anew()))
    if not state.finite:
        _ = state.residual, state.merit  # raises what stands in the way, if anything does
        raise NumericalError("The sites of the likelihood have no finite start; lower the outputscale of the kernel.")
    step, steps = problem.rule.first_step, 1
    while not state.settled and steps < problem.max_steps and step > SMALLEST_STEP:
        trial = state.newton() if problem.responsive else state.mixed()
        if trial is not None:
            steps += 1
            if trial.finite and trial.no_worse_than(state) and trial.advances(state):
                state = trial
                continue
        trial, steps = state.damped(step), steps + 1
        if trial.finite and trial.no_worse_than(state):
            state, step = trial, min(1.0, GROWTH * step)
        else:
            step *= 0.5
    if problem.prior.basis is not None and not state.residual < ASTRAY:
        raise NumericalError(
            "The search for the sites runs away: the targets do not determine the trend, whose coefficients have a flat prior"
            " (inputs may tell the classes apart without error). Use mean='linear' or mean='constant', which are learned."
        )
    return state.result(steps)


def first_posterior(problem: Problem) -> Shifted:
    """The posterior at the start of the problem, or else at the sites that the rule makes of its first marginals."""
    none = problem.data.x.new_zeros(len(problem.data.x), problem.columns)
    prior = problem.condition(Sites(none, none))
    if problem.start is not None:
        return prior.with_sites(problem.start)
    marginals = problem.first_marginals(prior)
    return prior.with_sites(problem.rule.update(problem.likelihood, problem.data, marginals, prior.sites))


@dataclass(frozen=True, eq=False)
class _State:
    """A posterior on the way, and what is known of it; before: the states that led to it."""

    problem: Problem
    posterior: Shifted
    before: tuple[_State, ...] = ()

    @cached_property
    def target(self) -> Sites:
        """The rule's undamped step."""
        p = self.problem
        return p.rule.update(p.likelihood, p.data, self.posterior.site_marginals, self.posterior.sites)

    @cached_property
    def merit(self) -> float:
        p = self.problem
        return p.data.team.max(float(p.rule.merit(p.likelihood, p.data, self.posterior, self.target)))

    @cached_property
    def residual(self) -> float:
        change = self.problem.rule.residual(self.posterior.site_marginals, self.posterior.sites, self.target)
        return self.problem.data.team.max(float(change.abs().max()) if change.numel() else 0.0)

    @property
    def finite(self) -> bool:
        """Whether there is such a posterior, as far as arithmetic goes."""
        try:
            return math.isfinite(self.residual) and math.isfinite(self.merit)
        except NumericalError:
            return False

    def no_worse_than(self, other: _State) -> bool:
        # Where precisions are cut, or marginals are no derivatives, the rule's fixed point is near the maximum, not at it.
        slack = other.residual if other.cut or not self.problem.responsive else 0.0
        slack += NOISE * self.problem.looseness * self.problem.data.targets
        return self.merit >= other.merit - ROUNDING * self.root * max(1.0, abs(other.merit)) - slack

    @property
    def root(self) -> float:
        """The square root of the rounding error of the arithmetic."""
        return math.sqrt(torch.finfo(self.posterior.sites.nu.dtype).eps)

    @property
    def settled(self) -> bool:
        """Whether another step of the rule would change nothing."""
        return self.residual <= max(TOLERANCE * self.root, self.problem.looseness)

    @cached_property
    def cut(self) -> int:
        """Observed targets to which the rule gives no precision; damped steps may have left them some."""
        observed = self.problem.data.observed.repeat_interleave(self.problem.likelihood.num_latents, 1)
        return self.problem.data.team.count(int((observed & (self.target.tau == 0)).sum()))

    def advances(self, other: _State) -> bool:
        """Whether the residual has halved or the merit risen by a percent."""
        return self.residual <= 0.5 * other.residual or self.merit >= other.merit + 0.01 * abs(other.merit)

    def damped(self, step: float) -> _State:
        return self._at(self.posterior.sites.towards(self.target, step))

    def newton(self) -> _State | None:
        """Newton's step for ``target(sites) = sites``; None where it is not worth trying."""
        if self.problem.rule.is_newton or self.residual > NEWTON_BELOW:
            return None
        sites = self.site_map.newton(self.target)
        return None if sites is None else self._at(sites)

    def mixed(self) -> _State | None:
        """Anderson's step: the combination of the last updates whose changes of the sites cancel best."""
        states = (*self.before, self)
        if len(states) < 2:
            return None
        changes = [state.change(self.posterior.site_marginals) for state in states]
        last, steps = changes[-1], torch.stack([b - a for a, b in pairwise(changes)], 1)
        weights = torch.linalg.lstsq(steps, last[:, None], driver="gelsd").solution[:, 0]
        nu, tau = self.target.nu, self.target.tau
        for weight, (a, b) in zip(weights, pairwise(states), strict=True):
            nu = nu - weight * (b.target.nu - a.target.nu)
            tau = tau - weight * (b.target.tau - a.target.tau)
        return self._at(Sites(nu, tau.clamp_min(0)))

    def change(self, marginals: SiteMarginals) -> Tensor:
        """[2 N C]: what the rule would change, in units of these marginals."""
        scale = marginals.variance.sqrt()
        nu, tau = self.target.nu - self.posterior.sites.nu, self.target.tau - self.posterior.sites.tau
        return torch.cat([((nu - tau * marginals.mean) * scale).flatten(), (tau * scale.square()).flatten()])

    @cached_property
    def site_map(self) -> SiteMap:
        return SiteMap(self.problem, self.posterior)

    def _at(self, sites: Sites) -> _State:
        before = () if self.problem.responsive else (*self.before, self)[-MEMORY:]
        return _State(self.problem, self.posterior.with_sites(sites), before)

    def result(self, steps: int) -> Inferred:
        return Inferred(self.posterior, self.settled, steps, self.residual, self.cut)
