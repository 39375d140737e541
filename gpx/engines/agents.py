"""Exact inference by several processes whose rows stay where they are: hyperparameters in common, a posterior each.

Theory: docs/theory/multiple_kernel.md, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gpx.engines.exact import Exact, ExactPlan, ExactPosterior
from gpx.errors import InputError
from gpx.inputs import Data
from gpx.parallel import ALONE, Team
from gpx.prior import Prior
from gpx.sites import Sites


@dataclass(frozen=True)
class QuantisedADMM:
    """Consensus of weights by the alternating direction method of multipliers, with what is sent rounded at random.

    It is one of amplitudes, the roots of weights and noise, for which agents agree on penalties by a few more bits: with weights
    themselves, and one penalty for all, agents end apart (docs/theory/multiple_kernel.md, section 5).

    Arguments: quantum: the step of the rounding, as a share of the accuracy ``penalty^-1/2`` of an amplitude. penalty: as a share
    of the curvature of what agents maximise. rounds: at most. updates: of every agent per round.
    Raises: InputError unless all are positive. Source: Suwandi et al. (2023), arXiv 2309.08201, section IV.

    >>> QuantisedADMM(quantum=1e-2)
    QuantisedADMM(quantum=0.01, penalty=1.0, rounds=300, updates=1)
    """

    quantum: float = 2e-3
    penalty: float = 1.0
    rounds: int = 300
    updates: int = 1

    def __post_init__(self) -> None:
        if not all(value > 0 for value in (self.quantum, self.penalty, self.rounds, self.updates)):
            raise InputError(f"QuantisedADMM needs positive settings, got {self}.")


@dataclass(frozen=True)
class Agents(Exact):
    """Exact inference where the rows of a process are independent of those of the others, given the hyperparameters.

    The evidence is the sum of those of the agents (the processes that torchrun started); gradients and the statistics of
    `kernels.GridSpectralMixtureProduct` are added up, and no row leaves its process. Predictions are from the agent's own rows.
    In one process it is `Exact`.

    Arguments: consensus: None: sums, which give what one machine would find from all agents' sums; a `QuantisedADMM`, for weights
    of fixed components only: the published scheme, for comparison.
    Cost: that of `Exact` for the rows of the largest agent.

    >>> Agents()
    Agents(consensus=None)
    """

    additive: ClassVar[bool] = True
    private: ClassVar[bool] = True
    consensus: QuantisedADMM | None = None

    @property
    def minimiser(self) -> str:
        return "l-bfgs" if self.consensus is None else "admm"

    def plan(self, prior: Prior, data: Data) -> AgentsPlan:
        """Keep the inputs, and who has the others."""
        return AgentsPlan(data.x, data.team)

    def condition(self, prior: Prior, plan: ExactPlan, params: dict[str, Tensor], sites: Sites) -> AgentsPosterior:
        """That of the own rows."""
        found = super().condition(prior, plan, params, sites)
        return _among(found, plan.team if isinstance(plan, AgentsPlan) else ALONE)


@dataclass(frozen=True)
class AgentsPlan(ExactPlan):
    """The inputs [N, D] of an agent, and the team."""

    team: Team = ALONE


@dataclass(frozen=True, eq=False)
class AgentsPosterior(ExactPosterior):
    """The posterior of the own rows, with the log densities of all agents."""

    team: Team = ALONE

    @property
    def log_density(self) -> Tensor:
        return self.team.sum(super().log_density)

    @property
    def log_partition(self) -> Tensor:
        return self.team.sum(super().log_partition)

    def with_sites(self, sites: Sites) -> AgentsPosterior:
        return _among(super().with_sites(sites), self.team)

    def update(self, x: Tensor, sites: Sites) -> AgentsPosterior:
        return _among(super().update(x, sites), self.team)


def _among(found: ExactPosterior, team: Team) -> AgentsPosterior:
    return AgentsPosterior(found.prior, found.x, found.sites, found.solutions, found.covariances, team)
