"""A problem: everything that an objective may ask for."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from gpx.engines.base import Engine
from gpx.flat import Flat
from gpx.inference.infer import MAX_STEPS, Inferred, infer
from gpx.inference.rules import ExpectationPropagation, Rule
from gpx.inference.sweeps import sweep
from gpx.inputs import Data
from gpx.likelihoods import Likelihood
from gpx.posterior import Shifted
from gpx.prior import Prior
from gpx.shards import pooled
from gpx.sites import SiteMarginals, Sites

START_VARIANCE = 1.0  # the first marginals of a rule are no wider
LOOSENESS = 1e-5  # of the sites of more data


@dataclass(frozen=True)
class Problem:
    """Prior, data and likelihood, and how to solve for the posterior.

    plan: made by the engine for these data; start: sites from which the rule sets out, None: the rule's own; max_steps: of
    the search for sites.
    """

    prior: Prior
    data: Data
    likelihood: Likelihood
    engine: Engine
    rule: Rule
    plan: Any
    start: Sites | None = None
    max_steps: int = MAX_STEPS

    @staticmethod
    def planned(
        prior: Prior, data: Data, likelihood: Likelihood, engine: Engine, rule: Rule, start: Sites | None = None
    ) -> Problem:  # fmt: skip
        """The problem with the engine's plan for it."""
        return Problem(prior, data, likelihood, engine, rule, engine.plan(prior, data), start)

    @property
    def columns(self) -> int:
        """Outputs times latents."""
        return self.data.y.shape[1] * self.likelihood.num_latents

    @property
    def conjugate(self) -> bool:
        """Whether sites need no search: those of a Gaussian likelihood, but for expectation propagation through inducing inputs,
        whose sites carry a share of what these leave unexplained.
        """
        sought = self.engine.partial and isinstance(self.rule, ExpectationPropagation)
        return self.likelihood.conjugate and not sought

    @property
    def exact_sites(self) -> Sites | None:
        """Sites that need no search."""
        return self.likelihood.exact_sites(self.data) if self.conjugate else None

    @property
    def responsive(self) -> bool:
        """Whether sites are sought by Newton's method."""
        return self.engine.responsive

    @property
    def looseness(self) -> float:
        """Changes of marginals, in standard deviations, below which sites are found."""
        return self.engine.looseness(self.data.count)

    def condition(self, sites: Sites) -> Shifted:
        """Prior x sites: the engine's zero-mean posterior with the prior mean put back."""
        prior, columns = self.prior, self.columns
        at_sites = prior.mean_at(self.data.x, columns)
        params = self.engine.parameters(prior, self.plan)
        centred = self.engine.condition(prior, self.plan, params, sites.centred(at_sites))
        if prior.basis is not None:
            centred = Flat(centred, sites.centred(at_sites), prior.basis(self.data.x), prior.basis)
        return Shifted(centred, sites, at_sites, partial(prior.mean_at, columns=columns), self.data.team)

    def first_marginals(self, prior: Shifted) -> SiteMarginals:
        """Where the rule sets out: at the targets as the latent functions see them, with variances of at most one."""
        seen = torch.stack([part.y for part in self.likelihood.latent_data(self.data)], -1).flatten(1)
        mean = torch.where(torch.isnan(seen), prior.at_sites, seen)
        if self.prior.basis is not None:  # a flat prior is wider than any
            return SiteMarginals(mean, torch.full_like(mean, START_VARIANCE))
        return SiteMarginals(mean, prior.site_marginals.variance.clamp_max(START_VARIANCE))

    def posterior(self) -> Shifted:
        """The posterior at the present hyperparameters: of a Gaussian likelihood, differentiable in all of them; of another
        one, with the sites of `inferred`, as numbers.
        """
        sites = self.exact_sites
        return self.inferred.posterior if sites is None else self.condition(sites)

    @cached_property
    def inferred(self) -> Inferred:
        """The sites that the rule converges to at the hyperparameters of the first call, as numbers.

        A problem is read at one value of the hyperparameters: `fit` makes a new one for every evaluation.
        """
        with torch.no_grad():
            return sweep(self) if self.engine.batched(self.plan) else infer(self)

    @property
    def found(self) -> Inferred | None:
        """What was inferred, if that was asked for."""
        return self.__dict__.get("inferred")

    def anew(self, start: Sites | None = None, max_steps: int = MAX_STEPS) -> Problem:
        """The same problem with nothing inferred, to be read at other hyperparameters."""
        return replace(self, start=start, max_steps=max_steps)


@dataclass(frozen=True)
class Added(Problem):
    """A problem of more data alone. before: the posterior of the data so far, as `Posterior.given` has it."""

    before: Shifted | None = None

    @property
    def responsive(self) -> bool:
        """No: the data so far hold the marginals, and a few passes do."""
        return False

    @property
    def looseness(self) -> float:
        """At least that of an approximation that keeps earlier sites."""
        return max(super().looseness, LOOSENESS)

    def condition(self, sites: Sites) -> Shifted:
        """With the sites of the data so far kept."""
        assert self.before is not None
        return self.before.with_sites(sites)

    def first_marginals(self, prior: Shifted) -> SiteMarginals:
        """What the data so far predict."""
        return prior.site_marginals


@dataclass(frozen=True)
class Solved(Problem):
    """A problem with its posterior at hyperparameters that no longer change."""

    solution: Inferred | None = None

    @staticmethod
    def of(problem: Problem, solution: Inferred) -> Solved:
        """`problem`, solved."""
        fields = {name: getattr(problem, name) for name in Problem.__dataclass_fields__}
        return Solved(**{**fields, "start": solution.posterior.sites}, solution=solution)

    def posterior(self) -> Shifted:
        """The posterior that was computed once."""
        return self.inferred.posterior

    @cached_property
    def settled(self) -> Likelihood:
        """The likelihood with its own parameters as numbers: predictions are not differentiated in them."""
        return copy.deepcopy(self.likelihood).requires_grad_(False)

    @property
    def inferred(self) -> Inferred:  # type: ignore[override]
        """The solution."""
        assert self.solution is not None
        return self.solution

    def anew(self, start: Sites | None = None, max_steps: int = MAX_STEPS) -> Problem:
        """A problem that is not solved, from the sites of this one."""
        fields = {name: getattr(self, name) for name in Problem.__dataclass_fields__}
        return Problem(**{**fields, "start": self.start if start is None else start, "max_steps": max_steps})


def extend(problem: Solved, new: Data, new_likelihood: Likelihood, likelihood: Likelihood) -> tuple[Inferred, Problem]:
    """More data, at the same hyperparameters; likelihood: of all data, new_likelihood: of the new ones.

    Sites are added: known, or found with those that are there kept, or (where the engine cannot) all of them anew.
    Returns: the solution, and the problem that it solves.
    """
    engine, posterior = problem.engine, problem.inferred.posterior
    plan = engine.revised(problem.plan, posterior.centred, new.x)
    if plan is not problem.plan:
        posterior = replace(problem, plan=plan).condition(posterior.sites)
    data = pooled(problem.data.join(new))
    plan = engine.restored(problem.prior, data, engine.state(plan))
    whole = Problem(problem.prior, data, likelihood, engine, problem.rule, plan)
    sites = new_likelihood.exact_sites(new) if problem.conjugate else None
    if sites is not None:
        return Inferred(posterior.update(new.x, sites)), whole
    given = posterior.given(new.x)
    if given is None:
        empty = torch.zeros(len(new.x), problem.columns).to(new.x)
        return replace(whole, start=posterior.sites.join(Sites(empty, empty))).inferred, whole
    found = Added(problem.prior, new, new_likelihood, engine, problem.rule, plan, before=given).inferred
    return replace(found, posterior=posterior.update(new.x, found.posterior.sites)), whole
