"""Multiplicative updates of non-negative weights: the evidence of ``C = sum_q w_q K_q + noise``, maximised without a step size.

``w_q <- w_q sqrt(a^T K_q a / tr(C^-1 K_q))``, ``a = C^-1 (y - mean)``, raises the evidence for all q at once, and the noise with
them; most weights end at zero. Larger steps are taken as long as the evidence rises. Theory: docs/theory/multiple_kernel.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from gpx.engines.exact import Exact
from gpx.inference.adam import late
from gpx.inference.coordinates import Coordinate, Coordinates
from gpx.inference.objectives import Evidence
from gpx.inference.weights import Mixture, Point, mixture_of, move, raw_weights, start_of
from gpx.likelihoods import Gaussian
from gpx.means import ConstantMean, LinearMean

if TYPE_CHECKING:
    from gpx.inference.problem import Problem

UPDATES = 10  # that count as one iteration of a fit
SHARE = 1e-6  # of the whole variance: a weight below it is set to zero where its slope is negative, and enters with it
KKT = 1e-2  # by which a'K_q a / tr(C^-1 K_q) of a weight that is zero may be above 1: it could gain 3e-5 nats
GAIN = 1e-5  # nats per update, over the last few of them, that are worth going on
FIRST_GAIN = 1.0  # with it the zeros are rechecked for the first time, then with a tenth of it
FORGET = 0.7  # of the gains of updates before
GROW, SHRINK, FALL = 1.3, 0.5, 0.3  # of the exponent of a weight: if it goes on as before, turns, or the evidence fell
LONGEST = 1e4  # exponent
DOWN, UP = -5.0, 2.0  # logarithms of factors in one update
DROP_EVERY = 5  # updates


def update(mixture: Mixture, point: Point) -> Point:
    """One multiplicative update of all weights that are not zero, and of the noise: the evidence does not fall.

    Source: docs/theory/multiple_kernel.md, section 2.
    """
    chosen = point.weights.nonzero().flatten()
    found = mixture.statistics(point, chosen)
    weights = point.weights.index_put((chosen,), point.weights[chosen] * (0.5 * found.log_ratios).exp())
    return mixture.at(weights, mixture.best_noise(point, found))


@dataclass(frozen=True)
class Pace:
    """exponents [Q]: multiples of the root that are taken; before [Q]: log ratios of the update before."""

    exponents: Tensor
    before: Tensor

    def next(self, log_ratios: Tensor) -> Pace:
        """Larger exponents where the direction stays, smaller ones where it turns."""
        agreed = log_ratios * self.before
        longer = (GROW * self.exponents).clamp_max(LONGEST)
        shorter = (SHRINK * self.exponents).clamp_min(1.0)
        exponents = torch.where(agreed > 0, longer, torch.where(agreed < 0, shorter, self.exponents))
        return Pace(exponents, log_ratios)


def stride(mixture: Mixture, point: Point, pace: Pace, drop: bool) -> tuple[Point, Pace]:
    """An update with an exponent of its own for every weight, smaller ones if the evidence falls, in the end those of `update`.

    drop: whether weights that are a small share, and would be better still smaller, are set to zero if the evidence allows.
    """
    live = point.weights != 0
    chosen = live.nonzero().flatten()
    found = mixture.statistics(point, chosen)
    log_ratios = torch.zeros_like(point.weights).index_put((chosen,), found.log_ratios)
    noise, pace = mixture.best_noise(point, found), pace.next(log_ratios)
    while True:
        factors = (0.5 * pace.exponents * log_ratios).clamp(DOWN, UP).exp()
        moved = mixture.at(torch.where(live, point.weights * factors, 0.0), noise)
        if moved.value >= point.value:
            break
        if bool((pace.exponents <= 1).all()):
            return point, pace  # at the resolution of the arithmetic
        pace = replace(pace, exponents=(FALL * pace.exponents - 0.1).clamp_min(1.0))
    if drop:
        small = live & (moved.weights < SHARE * moved.total) & (log_ratios < 0)
        moved = without(mixture, moved, small)
    return moved, pace


def without(mixture: Mixture, point: Point, small: Tensor) -> Point:
    """With weights set to zero, all that are small or the smallest quarter of them, if the evidence does not fall."""
    for _ in range(2):
        if not bool(small.any()):
            return point
        left = mixture.at(torch.where(small, 0.0, point.weights), point.noise)
        if left.value >= point.value:
            return left
        small = small & (point.weights <= point.weights[small].quantile(0.25))
    return point


def violators(mixture: Mixture, point: Point) -> tuple[Tensor, float]:
    """Which weights [Q] are zero and should not be, and the largest ratio ``a^T K_q a / tr(C^-1 K_q)`` of those that are zero."""
    zero = (point.weights == 0).nonzero().flatten()
    ratios = mixture.statistics(point, zero).log_ratios.exp()
    wrong = torch.zeros_like(point.weights, dtype=torch.bool).index_put((zero,), ratios > 1 + KKT)
    return wrong, float(ratios.max()) if len(zero) else 0.0


def _entered(mixture: Mixture, point: Point, wrong: Tensor) -> Point:
    """With small weights for those that should not be zero: so small that the evidence rises."""
    weight = SHARE * point.total
    for _ in range(40):
        moved = mixture.at(torch.where(wrong, weight, point.weights), point.noise)
        if moved.value > point.value:
            return moved
        weight *= FALL
    return point


@dataclass(frozen=True)
class Reached:
    """Where `ascend` is; settled: whether the conditions of an optimum hold; ratio: the largest of the zero weights."""

    point: Point
    settled: bool = False
    ratio: float = math.nan


def ascend(mixture: Mixture, point: Point) -> Iterator[Reached]:
    """Points whose values never fall, one per update; ends where the Karush-Kuhn-Tucker conditions hold."""
    pace = Pace(torch.ones_like(point.weights), torch.zeros_like(point.weights))
    worth, recent, count = FIRST_GAIN, math.inf, 0
    while True:
        count += 1
        moved, pace = stride(mixture, point, pace, drop=count % DROP_EVERY == 0)
        gain, point = moved.value - point.value, moved
        recent = gain if math.isinf(recent) else max(gain, FORGET * recent)
        if recent > worth:
            yield Reached(point)
            continue
        wrong, ratio = violators(mixture, point)
        entered = _entered(mixture, point, wrong) if bool(wrong.any()) else point
        if entered is point and worth <= GAIN:
            yield Reached(point, not bool(wrong.any()), ratio)
            return
        if entered is not point:
            one = torch.ones_like(point.weights)
            pace = Pace(torch.where(wrong, one, pace.exponents), torch.where(wrong, 0 * one, pace.before))
            recent = math.inf
        point, worth = entered, max(0.1 * worth, GAIN)
        yield Reached(point)


def multiplies(problem: Problem, objective: Any, coordinates: Coordinates) -> bool:
    """Whether all that is learned are the weights of fixed components, the noise and a linear mean, by the exact evidence."""
    prior, likelihood = problem.prior, problem.likelihood
    exact = isinstance(objective, Evidence) and isinstance(problem.engine, Exact) and isinstance(likelihood, Gaussian)
    weights = raw_weights(problem) if exact else None
    if weights is None or not weights.requires_grad:
        return False
    known = [weights, getattr(likelihood, "raw_noise", None)]
    if isinstance(prior.mean, (ConstantMean, LinearMean)):
        known += [prior.mean.raw_constant, getattr(prior.mean, "raw_slope", None)]
    learned = {id(raw) for raw in known}
    return all(id(entry.raw) in learned and _is_plain(entry) for entry in coordinates.entries)


def _is_plain(entry: Coordinate) -> bool:
    """Whether updates keep to the prior and the bounds of a value."""
    if entry.name == "noise":
        return entry.prior is None or isinstance(entry.prior, LogNormalPrior)
    lower, upper = entry.bounds().T
    return entry.prior is None and bool(np.isin(lower, (0.0, -math.inf)).all() and (upper == math.inf).all())


def multiplicative(search: Any, start: np.ndarray, bounds: np.ndarray, options: Any, bar: Any) -> tuple[bool, str, int]:
    """Updates until the Karush-Kuhn-Tucker conditions hold; 10 of them are an iteration.

    Arguments: search: the objective as a function of coordinates, whose best point becomes the last one, and which is told how
    many weights are left. Returns: whether the conditions hold, why it stopped, and after how many iterations.
    """
    problem = search.problem
    search.coordinates.assign(start)
    mixture = mixture_of(problem)
    first = start_of(problem)
    first = mixture.at(first.weights, first.noise)
    reached, number, ended = Reached(first), 0, ""
    for number, reached in enumerate(ascend(mixture, first), 1):
        if number % UPDATES == 0:
            _record(search, reached.point)
            bar.update()
        if late(search):
            ended = "max_seconds is up"
        elif number >= UPDATES * options.max_iter:
            ended = f"max_iter={options.max_iter} reached"
        if ended:
            break
    return finish(search, mixture, reached, ended, math.ceil(number / UPDATES))


def finish(search: Any, mixture: Mixture, reached: Reached, ended: str, iterations: int) -> tuple[bool, str, int]:
    """Leave the search at what was reached, with the gradient there."""
    ratio = violators(mixture, reached.point)[1]
    _record(search, reached.point)
    loss, gradient = search.evaluate(search.problem.anew(), search.best_z)
    # A weight that is left is as near to its optimum as the slope in its logarithm is to zero, whatever its unit.
    names = np.repeat(
        [entry.name for entry in search.coordinates.entries], [raw.numel() for raw in search.coordinates.raws]
    )
    search.best, search.best_gradient = loss, np.where(names == mixture.parts.parameter, search.best_z, 1.0) * gradient
    search.told |= {
        "components": len(reached.point.weights),
        "components_left": int((reached.point.weights != 0).sum()),
        "largest_ratio": ratio,
    }
    return reached.settled, ended or "the Karush-Kuhn-Tucker conditions hold", iterations


def _record(search: Any, point: Point) -> None:
    """The search at a point, whose value is no less than those before."""
    move(search.problem, point)
    z = search.coordinates.read()
    search.evaluations += UPDATES
    search.record(search.baseline - point.value, z, np.zeros_like(z), None)
    search.note()
