"""The published alternation of sites and hyperparameters, for comparison: what `EPEvidence(gradient="fixed-sites")` runs.

Source: Li, John & Solin (2023), "Improving hyperparameter learning under approximate inference in Gaussian process models",
algorithm 1, with the settings of its classification experiments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpx.inference.adam import RATE, descend, late
from gpx.inference.infer import first_posterior
from gpx.inputs import Data
from gpx.likelihoods import Likelihood
from gpx.posterior import Shifted
from gpx.sites import SiteMarginals, Sites

if TYPE_CHECKING:
    from gpx.inference.problem import Problem

SITE_STEPS, SITE_STEP = 20, 0.1
UNCHANGED = 1e-4  # change of the coordinates in a round


@dataclass(frozen=True)
class Held:
    """The rule that leaves the sites as they are."""

    several_latents = True
    first_step = 1.0
    is_newton = True

    def update(self, likelihood: Likelihood, data: Data, marginals: SiteMarginals, sites: Sites) -> Sites:
        """The same sites."""
        return sites

    def merit(self, likelihood: Likelihood, data: Data, posterior: Shifted, target: Sites) -> Tensor:
        """Nothing changes."""
        return posterior.sites.nu.new_zeros(())

    def residual(self, marginals: SiteMarginals, sites: Sites, target: Sites) -> Tensor:
        """Zero."""
        return torch.zeros_like(sites.nu)


def alternate(search: Any, start: np.ndarray, bounds: np.ndarray, options: Any, bar: Any) -> tuple[bool, str, int]:
    """Rounds of 20 steps of size 0.1 of the rule and 20 Adam steps of rate 0.01 with the sites held, until the value at the end
    of a round falls (the round before is kept) or the coordinates settle.

    Arguments: search: the objective as a function of coordinates; its best point becomes the last round kept.
    Returns: whether it settled, why it stopped, and after how many rounds.
    """
    z, sites = start.copy(), None
    for number in range(options.max_iter):
        search.coordinates.assign(z)
        sites = _damped(search.problem.anew(sites))
        held = replace(search.problem, rule=Held())
        before, z = z, _adam(search, held.anew(sites), z, bounds)
        loss, gradient = search.evaluate(held.anew(sites), z)
        search.evaluations += 1
        bar.update()
        if not search.record(loss, z, gradient, sites):
            return True, "the approximate evidence fell", number + 1
        search.note()
        if late(search):
            return False, "max_seconds is up", number + 1
        if np.abs(z - before).max() < UNCHANGED:
            return True, "the hyperparameters settled", number + 1
    return False, f"max_iter={options.max_iter} reached", options.max_iter


@torch.no_grad()
def _damped(problem: Problem) -> Sites:
    """A fixed number of small steps of the rule: the published alternation does not wait for their fixed point."""
    posterior = first_posterior(problem)
    for _ in range(SITE_STEPS):
        marginals, sites = posterior.site_marginals, posterior.sites
        target = problem.rule.update(problem.likelihood, problem.data, marginals, sites)
        posterior = posterior.with_sites(sites.towards(target, SITE_STEP))
    return posterior.sites


def _adam(search: Any, problem: Problem, z: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    point = torch.from_numpy(z.copy()).requires_grad_()
    descend(search, problem, torch.optim.Adam([point], lr=RATE), point, bounds)
    return point.detach().numpy().copy()
