"""A problem: everything that an objective may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from gpx.engines.base import Engine
from gpx.errors import StructureError
from gpx.inference.rules import Rule
from gpx.inputs import Data
from gpx.likelihoods import Likelihood
from gpx.posterior import Shifted
from gpx.prior import Prior
from gpx.sites import Sites


@dataclass(frozen=True)
class Problem:
    """Prior, data and likelihood, and how to solve for the posterior. plan: made by the engine for these data."""

    prior: Prior
    data: Data
    likelihood: Likelihood
    engine: Engine
    rule: Rule
    plan: Any

    @staticmethod
    def planned(prior: Prior, data: Data, likelihood: Likelihood, engine: Engine, rule: Rule) -> Problem:
        """The problem with the engine's plan for it."""
        return Problem(prior, data, likelihood, engine, rule, engine.plan(prior, data))

    @property
    def columns(self) -> int:
        """Outputs times latents."""
        return self.data.y.shape[1] * self.likelihood.num_latents

    def posterior(self) -> Shifted:
        """The posterior at the present hyperparameters, differentiable in them."""
        return condition(self, infer(self))


@dataclass(frozen=True)
class Solved(Problem):
    """A problem with its posterior at hyperparameters that no longer change."""

    solution: Shifted

    def posterior(self) -> Shifted:
        """The posterior that was computed once."""
        return self.solution


def infer(problem: Problem) -> Sites:
    """The sites of the likelihood: exact for a Gaussian one."""
    sites = problem.likelihood.exact_sites(problem.data)
    if sites is None:
        raise StructureError(
            f"{type(problem.likelihood).__name__} has no exact Gaussian sites; this version infers Gaussian likelihoods only."
        )
    return sites


def condition(problem: Problem, sites: Sites) -> Shifted:
    """Prior x sites: the engine's zero-mean posterior with the prior mean put back."""
    prior, columns = problem.prior, problem.columns
    at_sites = prior.mean_at(problem.data.x, columns)
    params = problem.engine.parameters(prior, problem.plan)
    centred = problem.engine.condition(prior, problem.plan, params, sites.centred(at_sites))
    return Shifted(centred, sites, at_sites, partial(prior.mean_at, columns=columns))
