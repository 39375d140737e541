"""Quantised consensus of weights by ADMM: the published distributed scheme, for comparison with exact sums.

Theory: docs/theory/multiple_kernel.md, section 5.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from gpx.inference.adam import late
from gpx.inference.multiplicative import Mixture, Point, Reached, finish, mixture_of, start_of
from gpx.parallel import ALONE

if TYPE_CHECKING:
    from gpx.engines.agents import QuantisedADMM

BALANCE, FACTOR = 10.0, 2.0  # the penalty changes by the factor where one residual is so many times the other
TOLERANCE = 1e-3  # of both residuals, relative
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


def proximal(point: Tensor, numerators: Tensor, slopes: Tensor, penalty: float) -> Tensor:
    """The minimum over z > 0 of ``point^2 numerators / (2 z) + slopes z + penalty z^2 / 2``, the root of a cubic."""
    rise = 0.5 * point.square() * numerators
    low, high = torch.full_like(point, -700.0), torch.full_like(point, 300.0)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        z = middle.exp()
        falling = slopes + penalty * z < rise / z.square().clamp_min(torch.finfo(z.dtype).tiny)
        low, high = torch.where(falling, middle, low), torch.where(falling, high, middle)
    return torch.where(point > 0, high.exp(), 0.0)


def common_noise(mean: float, penalty: float, prior: tuple[float, float] | None, limits: tuple[float, float]) -> float:
    """The noise between limits that agrees best with the agents' mean and a normal prior of its logarithm."""
    at_least = min(max(mean, limits[0]), limits[1])
    if prior is None:
        return at_least
    middle, spread = prior

    def cost(log: float) -> float:
        return 0.5 * (penalty * (math.exp(log) - mean) ** 2 + ((log - middle) / spread) ** 2)

    between = sorted((math.log(at_least), middle))
    found = minimize_scalar(cost, bounds=between, method="bounded", options={"xatol": 1e-10})
    return min(max(math.exp(found.x), limits[0]), limits[1])


def admm(search: Any, start: np.ndarray, bounds: np.ndarray, options: Any, bar: Any) -> tuple[bool, str, int]:
    """Rounds of a few updates by every agent, a quantised message of each, and the consensus of all.

    Arguments: search: the objective as a function of coordinates, whose best point becomes the consensus, and which is told the
    bits that all agents sent. Returns: whether the residuals are small, why it stopped, and after how many rounds.
    """
    problem, team = search.problem, search.problem.data.team
    settings: QuantisedADMM = problem.engine.consensus
    search.coordinates.assign(start)
    whole = mixture_of(problem)
    own = replace(whole, team=ALONE, noise_prior=None)
    unit = problem.data.variance
    quantum, penalty = settings.quantum * unit, settings.penalty / unit**2
    generator = torch.Generator().manual_seed((options.seed or 0) * team.size + team.rank)
    first = start_of(problem)
    consensus = torch.cat([first.weights, first.weights.new_tensor([first.noise])])
    weights, duals, sent, ended, settled = consensus.clone(), torch.zeros_like(consensus), 0, "", False
    number = 0
    for number in range(1, settings.rounds + 1):  # noqa: B007
        mean = whole.at(consensus[:-1], float(consensus[-1])).mean
        held = _with_mean(own, mean)
        for _ in range(settings.updates):
            weights = _local(held, weights, duals - penalty * consensus, penalty)
        message = quantise(weights + duals / penalty, quantum, generator)
        sent += team.count(bits(message, quantum))
        before, total = consensus, team.sum(message) / team.size
        noise = common_noise(float(total[-1]), team.size * penalty, whole.noise_prior, whole.noise_range)
        consensus = torch.cat([total[:-1].clamp_min(0.0), total.new_tensor([noise])])
        duals = duals + penalty * (weights - consensus)
        apart = team.sum((weights - consensus).square().sum()).sqrt()
        moved = penalty * math.sqrt(team.size) * (consensus - before).norm()
        scale, force = math.sqrt(team.size) * consensus.norm(), team.sum(duals.square().sum()).sqrt()
        bar.update()
        settled = bool(apart <= TOLERANCE * scale) and bool(moved <= TOLERANCE * force)
        if settled or late(search):
            ended = "both residuals are small" if settled else "max_seconds is up"
            break
        if float(apart / scale) > BALANCE * float(moved / force.clamp_min(1e-300)):
            penalty *= FACTOR
        elif float(moved / force.clamp_min(1e-300)) > BALANCE * float(apart / scale):
            penalty /= FACTOR
    point = whole.at(torch.where(consensus[:-1] < quantum, 0.0, consensus[:-1]), float(consensus[-1]))
    search.told["bits_sent"] = sent
    return finish(search, whole, Reached(point, settled), ended or f"rounds={settings.rounds} reached", number)


def _with_mean(mixture: Mixture, mean: Tensor) -> Mixture:
    """With the mean held: nothing of it is learned."""
    blocks = (replace(b, targets=b.targets - b.design @ mean, design=b.design[..., :0]) for b in mixture.blocks)
    return replace(mixture, blocks=tuple(blocks))


def _local(mixture: Mixture, weights: Tensor, slopes: Tensor, penalty: float) -> Tensor:
    """One update of an agent's weights and noise, with the linear and quadratic terms of the consensus added to the majoriser."""
    point: Point = mixture.at(weights[:-1], float(weights[-1]))
    found = mixture.statistics(point, torch.arange(len(weights) - 1))
    numerators = torch.cat([found.numerators, weights.new_tensor([found.noise[0]])])
    denominators = torch.cat([found.denominators, weights.new_tensor([found.noise[1]])])
    return proximal(weights, numerators, 0.5 * denominators + slopes, penalty)
