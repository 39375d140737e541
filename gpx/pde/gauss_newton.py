"""The Gauss-Newton method at scattered points: linearise the equation, condition on it, repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gpx.errors import NumericalError
from gpx.kernels import RBF, Matern
from gpx.pde.expressions import Expression, Index, evaluate, indices, linearise
from gpx.pde.measurements import Block, Posterior, condition, stacked, values_at, variances
from gpx.pde.problem import Problem
from gpx.pde.sparse import SparsePosterior, condition_sparsely

DENSE = 5000  # measurements up to which the kernel matrix is factorised
CHOICE = 800  # points that the kernel is chosen with
LADDER = (1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.085, 0.06, 0.042, 0.03)  # lengthscales, of the range
START = 0.25  # that of the kernel with which a nonlinear equation is first linearised
STRETCHES = (2.0, 0.5, 1.4, 0.7)
LONGEST = 4.0  # lengthscales, of the range: a kernel that is longer is a polynomial to rounding
NOMINAL = 0.05  # share of the nugget in the data's norm from which it, and not the kernel, explains them
SEEN = 100  # points at which the error of a kernel is estimated
SHORTEST = 0.5  # of the mean distance of neighbours: a kernel that is shorter says nothing of what is between them
RESOLVED = 2.0  # the same, where an equation is a law: evidence does not tell that shorter ones evade it between points
UNDETERMINED = 0.1  # of the prior deviation: conditions that leave more do not determine u
MISSED = 1.5  # root mean squares of errors, over their deviations, that are not explained
CHANCE = 3.0  # what chance adds to that, over the root of the number of observations
WORTHWHILE = 1.0  # nats: what is no better is not followed
GAIN = 10.0  # nats that a unit of the logarithm of an estimated error is worth
ROUNDS = 2  # choices of the kernel, for nonlinear equations, each around the solution of the one before
MAX_STEPS = 30
ACCURACY = 1e-11  # of the solution: steps below it end the search
ROUGH = 1e-5  # of the solution, or of the largest residual: what is below it and gets no smaller is rounding
HALVINGS = 10

Jets = dict[Index, Tensor]


@dataclass(frozen=True)
class Choice:
    """A product of kernels: Matern of smoothness nu, infinite: Gaussian; lengthscales: as parts of the range of every axis;
    variance: of the kernel, None where data have no noise.
    """

    nu: float
    lengthscales: tuple[float, ...]
    variance: float | None = None

    def kernels(self, bounds: Sequence[tuple[float, float]]) -> list[Any]:
        """One for every axis."""
        lengths = [part * (high - low) for part, (low, high) in zip(self.lengthscales, bounds, strict=True)]
        return [RBF(lengthscale=v) if np.isinf(self.nu) else Matern(nu=self.nu, lengthscale=v) for v in lengths]


@dataclass(frozen=True)
class Measured:
    """A problem at points: x [n + m, d] where the equation holds, and after these where u was observed; source [n];
    conditions: on values, and on slopes, with what is asked of both.
    """

    problem: Problem
    x: Tensor
    source: Tensor
    conditions: tuple[tuple[Block, Tensor], tuple[Block, Tensor]]

    @classmethod
    def of(cls, problem: Problem, points: Any) -> Measured:
        """The values of a problem at its points, or at some of them."""
        source = problem.source
        if isinstance(source, (Tensor, np.ndarray)):
            places = cKDTree(problem.domain.interior.numpy()).query(points.interior.numpy())[1]
            values = torch.as_tensor(source, dtype=torch.float64)[places]
        else:
            values = evaluate(source, points.interior, "The source")
        observed = [each.x for each in problem.observations]  # pyright: ignore[reportGeneralTypeIssues]
        return cls(problem, torch.cat([points.interior, *observed]), values, _conditions(problem, points))

    @property
    def linear(self) -> bool:
        """Whether the equation and all that was observed are affine in u."""
        observed = self.problem.observations
        return self.problem.linear and all(each.of.degree() <= 1 for each in observed)  # pyright: ignore

    @cached_property
    def law(self) -> Tensor:
        """Where [n] the equation is known to hold for u = 0: there its zeros say nothing of the size of u."""
        if self.problem.noise:
            return torch.zeros(len(self.source), dtype=torch.bool)
        nothing = {index: torch.zeros_like(self.source) for index in self.problem.jet}
        return self.source == self.problem.equation.value(nothing, self.x[: len(self.source)])

    @property
    def indices(self) -> list[Index]:
        """The derivatives that are looked at, u among them."""
        observed = [indices(each.of) for each in self.problem.observations]  # pyright: ignore[reportGeneralTypeIssues]
        return sorted({(), *self.problem.jet}.union(*observed))

    def zero(self) -> Jets:
        """The jets at x of the function 0."""
        return {index: torch.zeros(len(self.x), dtype=torch.float64) for index in self.indices}

    def linearised(self, jets: Jets) -> tuple[tuple[Block, ...], tuple[Tensor, ...]]:
        """The measurements that are linear in u: conditions on values; conditions on slopes, and the equation; observations.
        And their values.
        """
        (values, given), (slopes, asked) = self.conditions
        noise = torch.full_like(self.source, self.problem.noise) if self.problem.noise else None
        count = len(self.source)
        equation, right = self._linear(self.problem.equation, slice(0, count), self.source, noise, jets)
        equation = replace(equation, law=self.law)
        blocks, found = (
            [values, stacked([slopes, equation]) if len(slopes.x) else equation],
            [given, torch.cat([asked, right])],
        )
        for each in self.problem.observations:  # pyright: ignore[reportGeneralTypeIssues]
            part = slice(count, count + len(each.x))
            block, right = self._linear(each.of, part, each.y, each.noise, jets)
            blocks, found, count = [*blocks, block], [*found, right], part.stop
        return tuple(blocks), tuple(found)

    def _linear(
        self, of: Expression, part: slice, values: Tensor, noise: Tensor | None, jets: Jets
    ) -> tuple[Block, Tensor]:
        """An expression at some of x, linearised at the jets, and its values."""
        here = {index: jet[part] for index, jet in jets.items()}
        value, slopes = linearise(of, here, self.x[part])
        right = values - value + sum(slopes[index] * here[index] for index in slopes)
        asked = {index: slope for index, slope in slopes.items() if bool(slope.any())}
        return Block(self.x[part], asked or {(): torch.zeros_like(value)}, noise), right

    def residual(self, jets: Jets) -> float:
        """The norm of what is left of the equation and of observations that are not linear, each in units of its values."""
        count, found = len(self.source), []
        asked = [(self.problem.equation, self.source)]
        asked += [(each.of, each.y) for each in self.problem.observations]  # pyright: ignore[reportGeneralTypeIssues]
        for k, (of, values) in enumerate(asked):
            part = slice(0, count) if k == 0 else slice(count, count + len(values))
            count = part.stop
            if k == 0 or of.degree() > 1:
                value = of.value({index: jet[part] for index, jet in jets.items()}, self.x[part])
                found.append((value - values) / (values.norm() or 1.0))
        return float(torch.cat(found).norm())


def _conditions(problem: Problem, points: Any) -> tuple[tuple[Block, Tensor], tuple[Block, Tensor]]:
    """What is asked on the boundary, of values and of slopes."""
    found: tuple[list[tuple[Block, Tensor]], ...] = ([], [])
    for c in problem.conditions:
        on = points.part(c.face)
        x, ones = points.boundary[on], torch.ones(int(on.sum()), dtype=torch.float64)
        slopes = {(): c.a * ones}
        if c.b:
            slopes |= {(d,): c.b * points.normals[on, d] for d in range(points.dims)}
        given = evaluate(c.g, x, "A boundary value")
        found[bool(c.b)].append((Block(x, slopes, law=given == 0), given))
    none = values_at(points.boundary[:0]), points.boundary[:0, 0]
    first, second = (
        (stacked([b for b, _ in each]), torch.cat([g for _, g in each])) if each else none for each in found
    )
    return first, second


def conditioned(
    measured: Measured, kernels: Sequence[Any], jets: Jets, variance: float | None = None
) -> Posterior | SparsePosterior:
    """The process given the equation linearised at these jets: dense, or, where there are many points, sparse."""
    blocks, values = measured.linearised(jets)
    dense = sum(len(v) for v in values) <= DENSE
    return (condition if dense else condition_sparsely)(kernels, blocks, values, variance)


def solved(
    measured: Measured, kernels: Sequence[Any], variance: float | None = None
) -> tuple[Posterior | SparsePosterior, Jets]:
    """The process given the equation linearised at its own mean, and the jets of that.

    Each step conditions on the equation linearised at the last jets; steps are halved until the residual decreases.
    Arguments: variance: see `condition`.
    Raises: NumericalError if the steps do not get small, with the residuals. Cost: that of `condition` for every step.
    """
    jets, residuals, previous = measured.zero(), [], np.inf
    for step in range(MAX_STEPS):
        posterior = conditioned(measured, kernels, jets, variance)
        if measured.linear:
            return posterior, jets
        found = {index: posterior.mean(values_at(measured.x, index)) for index in measured.indices}
        residuals.append(measured.residual(jets))
        change = float((found[()] - jets[()]).norm()) / max(float(found[()].norm()), 1e-300)
        stalled = residuals[-1] > 0.3 * min(residuals[:-1], default=np.inf)
        settled = (change > 0.3 * previous and change < ROUGH) or (stalled and residuals[-1] < ROUGH * max(residuals))
        if change <= ACCURACY or settled:
            return posterior, jets
        previous = change
        jets = _damped(measured, jets, found, np.inf if step == 0 else residuals[-1])
    raise NumericalError(
        f"The Gauss-Newton method did not converge at {len(measured.source)} points: norms of the residual"
        f" {', '.join(f'{r:.2g}' for r in (*residuals[:4], *residuals[-3:]))}; steps were halved up to {HALVINGS} times."
        " Give more points, or a kernel= with a lengthscale that they resolve."
    )


def _damped(measured: Measured, jets: Jets, found: Jets, residual: float) -> Jets:
    """The first of the whole way, half, a quarter ... whose residual is less; the whole way if none is: then it is rounding."""
    for halving in range(HALVINGS):
        trial = {index: jets[index] + 0.5**halving * (found[index] - jets[index]) for index in found}
        if measured.residual(trial) < residual:
            return trial
    return found


def prior(problem: Problem, given: Sequence[Any] | None = None) -> tuple[Choice | None, Sequence[Any], float | None]:
    """The choice of the kernels, unless these are given, the kernels, and, where data have errors, their variance.

    Raises: NumericalError if no kernel explains the values, or the Gauss-Newton method does not converge.
    """
    found = _prior_without_observations(problem, given) if problem.observations else None
    if found is not None:
        return found
    choice = choose(problem) if given is None else None
    kernels = choice.kernels(problem.domain.bounds) if choice else given
    assert kernels is not None
    if choice is None and problem.uncertain:
        return None, kernels, _at_few(problem, kernels).variance
    return choice, kernels, choice and choice.variance


def _prior_without_observations(
    problem: Problem, given: Sequence[Any] | None
) -> tuple[Choice | None, Sequence[Any], float] | None:
    """What the conditions and the equation choose, if they tell what was observed better than observations do.

    Observations that contradict the conditions have the most evidence under rougher kernels, whose functions meet both. Where
    a kernel that is no rougher explains what else is missed, it is the conditions that leave something open: a resonance.
    """
    if problem.noise or not problem.complete:
        return None
    rest = replace(problem, observations=())
    try:
        choice, kernels, _ = prior(rest, given)
        posterior = _at_few(rest, kernels)
    except NumericalError:
        return None
    observed, gaps = _foretold(posterior, problem)
    if not _determines(posterior, observed):
        return None
    misses = gaps / (posterior.std(observed).square() + observed.errors.square()).sqrt()
    if choice and not by_chance(misses) and _explained(problem, choice):
        return None
    return choice and replace(choice, variance=posterior.variance), kernels, posterior.variance


def _foretold(posterior: Posterior | SparsePosterior, problem: Problem) -> tuple[Block, Tensor]:
    """What was observed, linearised at the mean, and how far from the mean the values are."""
    measured = Measured.of(problem, problem.domain.few(CHOICE))
    jets = {index: posterior.mean(values_at(measured.x, index)) for index in measured.indices}
    blocks, values = measured.linearised(jets)
    observed = stacked(blocks[2:])
    return observed, torch.cat(values[2:]) - posterior.mean(observed)


def _determines(posterior: Posterior | SparsePosterior, observed: Block) -> bool:
    """Whether what was observed is known better than by its observations, and far better than under the prior.

    Zeros alone, which say nothing of the size of u, determine nothing.
    """
    before = posterior.variance * variances(posterior.kernels, observed) / observed.errors.square()
    left = (posterior.std(observed) / observed.errors).square()
    return float(left.mean()) < min(1.0, UNDETERMINED**2 * float(before.mean()))


def by_chance(misses: Tensor) -> bool:
    """Whether errors over their deviations are no more than chance, and deviations that are roughly right, explain."""
    return float(misses.square().mean().sqrt()) <= MISSED + CHANCE / len(misses) ** 0.5


def _explained(problem: Problem, alone: Choice) -> bool:
    """Whether the kernel of the most evidence explains the observations, and is no rougher than that of all else."""
    choice = choose(problem)
    if _rougher(choice, alone):
        return False
    kernels = choice.kernels(problem.domain.bounds)
    observed, gaps = _foretold(_at_few(problem, kernels, choice.variance), problem)
    return by_chance(gaps / observed.errors)


def _rougher(one: Choice, other: Choice) -> bool:
    """Whether the functions of a kernel are rougher: they have fewer derivatives, or vary on shorter lengths."""
    return (one.nu, min(one.lengthscales)) < (other.nu, min(other.lengthscales))


def _at_few(problem: Problem, kernels: Sequence[Any], variance: float | None = None) -> Posterior | SparsePosterior:
    """The process given what the kernel is chosen by."""
    return solved(Measured.of(problem, problem.domain.few(CHOICE)), kernels, variance)[0]


def choose(problem: Problem) -> Choice:
    """The kernel of the largest `merit`, with some of the points: of a ladder of lengthscales, then step by step.

    The equation is linearised around the solution that a fixed kernel, then the one chosen, has. Nothing reads `problem.exact`.
    Raises: NumericalError if no kernel explains the values.
    """
    points = problem.domain.few(CHOICE)
    measured, bounds = Measured.of(problem, points), problem.domain.bounds
    dims, order = points.dims, max(len(index) for index in problem.jet)
    # Sparse factors want kernels that are rougher: dependence on what is far away is then through what is near.
    smoothness = (order + 1.5, order + 2.5 if len(problem.domain.all) > DENSE else np.inf)
    tried = [Choice(nu, (part,) * dims) for nu in smoothness for part in LADDER]
    best, jets = Choice(smoothness[0], (START,) * dims), measured.zero()
    for _ in range(1 if measured.linear else ROUNDS):
        if not measured.linear:
            jets = solved(measured, best.kernels(bounds))[1]
        best = _climbed(_scored(measured, jets), tried)
        tried = [best]
    if problem.uncertain:
        return replace(best, variance=conditioned(measured, best.kernels(bounds), jets).level)
    return _resized(best, measured, jets) if CHOICE < len(problem.domain.all) <= DENSE else best


def _resized(best: Choice, measured: Measured, jets: Jets) -> Choice:
    """With all points in place of some: the choice, or what has as many of them to a lengthscale, whichever has more merit.

    Where a solution is smooth its lengthscales are the same for more points, at corners they are a few distances of points.
    """
    domain = measured.problem.domain
    every, bounds = Measured.of(measured.problem, domain), domain.bounds
    rough = conditioned(measured, best.kernels(bounds), jets)
    score = _scored(every, {index: rough.mean(values_at(every.x, index)) for index in every.indices})
    ratio = (len(measured.x) / len(every.x)) ** (1 / domain.dims)
    return max(best, _stretched(best, ratio, range(domain.dims)), key=score)


def _scored(measured: Measured, jets: Jets) -> Callable[[Choice], float]:
    """The merit of kernels, those of any use, around these jets."""
    blocks, values = measured.linearised(jets)
    bounds, shortest = measured.problem.domain.bounds, _shortest(measured, sum(len(v) for v in values))

    def score(choice: Choice) -> float:
        if min(choice.lengthscales) < shortest or max(choice.lengthscales) > LONGEST:
            return -np.inf
        try:
            return merit(measured, condition(choice.kernels(bounds), blocks, values))
        except NumericalError:
            return -np.inf

    return score


def _shortest(measured: Measured, count: int) -> float:
    """The least lengthscale, of the range, with so many measurements."""
    dims = measured.x.shape[1]
    if measured.problem.uncertain and bool(measured.law.any()):
        return min(LADDER[0], RESOLVED * len(measured.source) ** (-1 / dims))
    return SHORTEST * count ** (-1 / dims)


def merit(measured: Measured, posterior: Posterior) -> float:
    """What a kernel is chosen by: its evidence where data have errors, else how small an error it estimates for itself.

    Without errors evidence misleads: at corners all kernels are wrong, and a long one with the nugget for an error of the
    boundary's values finds constant sources worth any number of nats. Kernels whose nugget explains the data are not taken.
    """
    if measured.problem.uncertain:
        assert posterior.evidence is not None
        return posterior.evidence
    if posterior.nominal > NOMINAL:
        return -np.inf
    count = len(measured.source)
    inside = values_at(measured.x[: count : -(-count // SEEN)])
    error = float(posterior.std(inside).norm() / posterior.mean(inside).norm().clamp_min(1e-300))
    return -GAIN * np.log(max(error, 1e-300))


def _climbed(score: Callable[[Choice], float], ladder: Sequence[Choice]) -> Choice:
    """The best of a ladder, from there on the first better one around the best, until there is none.

    Raises: NumericalError if none has any merit.
    """
    tried = {choice: score(choice) for choice in ladder}
    best = max(tried, key=lambda choice: tried[choice])
    if not np.isfinite(tried[best]):
        raise NumericalError(
            "No kernel explains the values at the points: some points are too near each other, or values contradict each other;"
            " leave them out, or say how large their errors are (noise=)."
        )
    moves = _around(best)
    while moves:
        choice, *moves = moves
        if choice not in tried:
            tried[choice] = score(choice)
        if tried[choice] > tried[best] + WORTHWHILE:
            best, moves = choice, _around(choice)
    return best


def _around(choice: Choice) -> list[Choice]:
    dims = len(choice.lengthscales)
    groups = [tuple(range(dims)), *((d,) for d in range(dims))] if dims > 1 else [(0,)]
    return [_stretched(choice, by, group) for by in STRETCHES for group in groups]


def _stretched(choice: Choice, by: float, axes: Sequence[int]) -> Choice:
    parts = tuple(round(v * by, 6) if d in axes else v for d, v in enumerate(choice.lengthscales))
    return replace(choice, lengthscales=parts)
