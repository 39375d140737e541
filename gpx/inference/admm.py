"""Quantised consensus of weights by ADMM: the published distributed scheme, on amplitudes, for comparison with exact sums.

Theory: docs/theory/multiple_kernel.md, section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from gpx.inference.adam import late
from gpx.inference.multiplicative import SHARE, Reached, finish, without
from gpx.inference.weights import Mixture, Point, mixture_of, start_of
from gpx.parallel import ALONE

if TYPE_CHECKING:
    from gpx.engines.agents import QuantisedADMM
    from gpx.parallel import Team

TOLERANCE = (
    1e-3  # of both residuals: root mean squares of what amplitudes are apart and have moved, in units of penalty^-1/2
)
REFRESH = 10  # rounds with the same penalties
HALVINGS = 80  # of an interval of logarithms


def quantise(values: Tensor, quantum: float, generator: torch.Generator) -> Tensor:
    """``quantum floor(x / quantum)`` plus a quantum with the probability of the rest: unbiased.

    >>> quantise(torch.tensor([0.0, 2.0]), 0.5, torch.Generator()).tolist()
    [0.0, 2.0]
    """
    whole = (values / quantum).floor()
    up = torch.rand(values.shape, generator=generator, dtype=values.dtype) < values / quantum - whole
    return quantum * (whole + up.to(values))


def bits(values: Tensor, quantum: float) -> int:
    """Of a message of quantised values: the same number for each, enough for the largest, with its sign."""
    largest = float(values.abs().max()) / quantum
    return len(values) * (1 + math.ceil(math.log2(largest + 1)))


def proximal(rises: Tensor, slopes: Tensor, curvatures: Tensor) -> Tensor:
    """The minimum over s > 0 of ``rises / (2 s^2) + slopes s + curvatures s^2 / 2``, the root of a quartic (or a line)."""
    low, high = torch.full_like(rises, -350.0), torch.full_like(rises, 150.0)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        s = middle.exp()
        falling = (slopes + curvatures * s) * s.pow(3) < rises
        low, high = torch.where(falling, middle, low), torch.where(falling, high, middle)
    return torch.where(rises > 0, high.exp(), (-slopes / curvatures).clamp_min(0.0))


def common_deviation(
    mean: float, penalty: float, prior: tuple[float, float] | None, limits: tuple[float, float]
) -> float:
    """The noise's standard deviation that agrees best with the agents' mean and a normal prior of the logarithm of its square,
    which is between limits.
    """
    lowest, highest = (math.sqrt(limit) for limit in limits)
    at_least = min(max(mean, lowest), highest)
    if prior is None:
        return at_least
    middle, spread = prior

    def cost(log: float) -> float:
        return 0.5 * (penalty * (math.exp(0.5 * log) - mean) ** 2 + ((log - middle) / spread) ** 2)

    between = sorted((2 * math.log(at_least), middle))
    found = minimize_scalar(cost, bounds=between, method="bounded", options={"xatol": 1e-10})
    return min(max(math.exp(0.5 * found.x), lowest), highest)


@dataclass(frozen=True)
class Agent:
    """What an agent has of its own. amplitudes [Q + 1]: roots of its weights and noise; duals [Q + 1]: of their agreement."""

    mixture: Mixture
    amplitudes: Tensor
    duals: Tensor
    generator: torch.Generator

    def terms(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Numerators and denominators [Q + 1] of weights and noise at its amplitudes, for a mean that is held."""
        held = _with_mean(self.mixture, mean)
        found = held.statistics(_at(held, self.amplitudes), torch.arange(len(self.amplitudes) - 1))
        pairs = zip((found.numerators, found.denominators), found.noise, strict=True)
        return tuple(torch.cat([own, own.new_tensor([noise])]) for own, noise in pairs)  # pyright: ignore[reportReturnType]

    def stepped(self, mean: Tensor, consensus: Tensor, penalty: Tensor) -> Agent:
        """After an update, with the linear and quadratic terms of the consensus added to the majoriser."""
        numerators, denominators = self.terms(mean)
        rises = self.amplitudes.pow(4) * numerators
        amplitudes = proximal(rises, self.duals - penalty * consensus, denominators + penalty)
        if self.mixture.is_noise_fixed:
            amplitudes[-1] = self.amplitudes[-1]
        return replace(self, amplitudes=amplitudes)


def admm(search: Any, start: np.ndarray, bounds: np.ndarray, options: Any, bar: Any) -> tuple[bool, str, int]:
    """Rounds of a few updates by every agent, a quantised message of each, and the consensus of all.

    Arguments: search: the objective as a function of coordinates, whose best point becomes the consensus, and which is told the
    bits that all agents sent. Returns: whether the residuals are small, why it stopped, and after how many rounds.
    """
    problem, team = search.problem, search.problem.data.team
    settings: QuantisedADMM = problem.engine.consensus
    search.coordinates.assign(start)
    whole, first = mixture_of(problem), start_of(problem)
    generator = torch.Generator().manual_seed((options.seed or 0) * team.size + team.rank)
    consensus = torch.cat([first.weights, first.weights.new_tensor([first.noise])]).sqrt()
    own = replace(whole, team=ALONE, noise_prior=None)
    agent = Agent(own, consensus, torch.zeros_like(consensus), generator)
    penalty, sent, number, ended, settled = torch.ones_like(consensus), 0, 0, "", False
    for number in range(1, settings.rounds + 1):
        mean = _at(whole, consensus).mean
        if number % REFRESH == 1:
            penalty, cost = _penalties(agent, mean, team, settings.penalty)
            sent += cost
        for _ in range(settings.updates):
            agent = agent.stepped(mean, consensus, penalty)
        unit = penalty.rsqrt()
        message = quantise(agent.amplitudes / unit + agent.duals * unit, settings.quantum, generator)
        sent += team.count(bits(message, settings.quantum))
        before, consensus = consensus, (unit * team.sum(message) / team.size).clamp_min(0.0)
        if whole.is_noise_fixed:
            consensus[-1] = before[-1]
        else:
            strength = team.size * float(penalty[-1])
            consensus[-1] = common_deviation(float(consensus[-1]), strength, whole.noise_prior, whole.noise_range)
        agent = replace(agent, duals=agent.duals + penalty * (agent.amplitudes - consensus))
        apart = float(team.sum((penalty * (agent.amplitudes - consensus).square()).mean()) / team.size) ** 0.5
        moved = float((penalty * (consensus - before).square()).mean()) ** 0.5
        bar.update()
        settled = max(apart, moved) <= TOLERANCE
        if settled or late(search):
            ended = "both residuals are small" if settled else "max_seconds is up"
            break
    search.told["bits_sent"] = sent
    point = _sparse(whole, _at(whole, consensus))
    return finish(search, whole, Reached(point, settled), ended or f"rounds={settings.rounds} reached", number)


def _penalties(agent: Agent, mean: Tensor, team: Team, share: float) -> tuple[Tensor, int]:
    """A share of the agents' curvatures ``tr(C^-1 K_q)`` in amplitudes, their geometric mean by messages rounded to powers of
    two; and the bits of these. The same in every agent, and positive even where a weight is zero.
    """
    denominators = agent.terms(mean)[1]
    message = quantise(denominators.clamp_min(torch.finfo(denominators.dtype).tiny).log2(), 1.0, agent.generator)
    return share * torch.exp2(team.sum(message) / team.size), team.count(bits(message, 1.0))


def _at(mixture: Mixture, amplitudes: Tensor) -> Point:
    squares = amplitudes.square()
    return mixture.at(squares[:-1], float(squares[-1]))


def _sparse(whole: Mixture, point: Point) -> Point:
    """Without weights that are a small share of the variance, and would be better still smaller."""
    small = (point.weights > 0) & (point.weights < SHARE * point.total)
    chosen = small.nonzero().flatten()
    falling = whole.statistics(point, chosen).log_ratios < 0
    return without(whole, point, small.index_put((chosen,), falling))


def _with_mean(mixture: Mixture, mean: Tensor) -> Mixture:
    """With the mean held: nothing of it is learned."""
    blocks = (replace(b, targets=b.targets - b.design @ mean, design=b.design[..., :0]) for b in mixture.blocks)
    return replace(mixture, blocks=tuple(blocks))
