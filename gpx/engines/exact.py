"""Exact inference by one dense Cholesky factorisation: the reference of every other engine.

Theory: docs/theory/exact.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gpx.engines.base import Engine
from gpx.engines.dense import ExactPosterior
from gpx.inputs import Data
from gpx.prior import Prior
from gpx.sites import Sites


@dataclass(frozen=True)
class ExactPlan:
    """The inputs [N, D]; nothing to sort."""

    x: Tensor

    def stale(self, prior: Prior) -> bool:
        """Never: the plan does not depend on the hyperparameters."""
        return False


@dataclass(frozen=True)
class Exact(Engine):
    """Exact Gaussian-process inference, for any kernel.

    Cost: N^3 / 3 for the evidence, N^3 for its gradient, O(N^2) per predicted point for variances; memory: one N x N array,
    two with gradients; four where a likelihood that is not Gaussian has its sites found. Source: Rasmussen & Williams (2006),
    algorithm 2.1 and section 5.4.

    >>> Exact()
    Exact()
    """

    def plan(self, prior: Prior, data: Data) -> ExactPlan:
        """Keep the inputs."""
        return ExactPlan(data.x)

    def condition(self, prior: Prior, plan: ExactPlan, params: dict[str, Tensor], sites: Sites) -> ExactPosterior:
        """One factorisation per distinct pattern of precisions."""
        return ExactPosterior.of(prior, plan.x, sites)
