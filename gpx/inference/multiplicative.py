"""Multiplicative updates of non-negative weights: the evidence of ``C = sum_q w_q K_q + noise``, maximised without a step size.

``w_q <- w_q sqrt(a^T K_q a / tr(C^-1 K_q))``, ``a = C^-1 (y - mean)``, raises the evidence for all q at once, and the noise with
them; most weights end at zero. Larger steps are taken as long as the evidence rises. Theory: docs/theory/multiple_kernel.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from gpx.engines.exact import Exact
from gpx.errors import NumericalError, StructureError
from gpx.inference.adam import late
from gpx.inference.coordinates import Coordinate, Coordinates
from gpx.inference.objectives import Evidence
from gpx.likelihoods import Gaussian
from gpx.linalg.cholesky import Cholesky, factorise
from gpx.parallel import Team
from gpx.prior import ConstantMean, LinearMean
from gpx.structure.components import Components, components

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


@dataclass(frozen=True)
class Block:
    """The targets [n, c] of some rows that share a covariance, and the mean's derivatives [n, c, m] there. known: noise [n]."""

    rows: Tensor
    targets: Tensor
    design: Tensor
    known: Tensor | None

    def factorise(self, covariance: Tensor, noise: float) -> Cholesky:
        """Of the rows of a covariance [N, N] of all, plus noise. Raises: NumericalError."""
        whole = len(self.rows) == len(covariance)

        def build() -> Tensor:
            matrix = covariance.clone() if whole else covariance[self.rows][:, self.rows]
            matrix.diagonal().add_(noise if self.known is None else self.known)
            return matrix

        return factorise(build)

    def log_density(self, factor: Cholesky, alpha: Tensor, mean: Tensor) -> Tensor:
        """Of the targets. Not from sums of squares of these: the mean may be far from zero."""
        count, columns = self.targets.shape
        square = ((self.targets - self.design @ mean) * alpha).sum()
        return -0.5 * (square + columns * (factor.logdet() + count * math.log(2 * math.pi)))


@dataclass(frozen=True)
class Point:
    """Weights [Q] and noise, with the mean that is best for them: its coefficients [m] and the value reached (evidence plus log
    prior of the noise, nats). solved: by block, the factor of C and a [n, c].
    """

    weights: Tensor
    noise: float
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    value: float = -math.inf
    solved: tuple[tuple[Cholesky, Tensor], ...] = ()

    @property
    def total(self) -> float:
        """The variance of a datum."""
        return float(self.weights.sum()) + self.noise


@dataclass(frozen=True)
class Statistics:
    """``a^T K_q a`` and ``tr(C^-1 K_q)`` of some components, and of the noise (of ``K = I``)."""

    numerators: Tensor
    denominators: Tensor
    noise: tuple[float, float]

    @property
    def log_ratios(self) -> Tensor:
        """Logarithms of what the multiplicative update takes the root of; negative where a smaller weight is better."""
        tiny = torch.finfo(self.numerators.dtype).tiny
        return self.numerators.clamp_min(tiny).log() - self.denominators.clamp_min(tiny).log()

    def slopes(self, weights: Tensor) -> Tensor:
        """Derivatives of the log evidence in the logarithms of the weights, nats."""
        return 0.5 * weights * (self.numerators - self.denominators)


@dataclass(frozen=True)
class Mixture:
    """The evidence of rows of this process, and of the others with blocks of their own, as a function of weights and noise.

    parts: components at all rows, of which there are `size`; noise_prior: mean and standard deviation of its logarithm;
    noise_range: bounds, equal if it is fixed.
    """

    parts: Components
    size: int
    blocks: tuple[Block, ...]
    noise_prior: tuple[float, float] | None
    noise_range: tuple[float, float]
    team: Team

    @torch.no_grad()
    def at(self, weights: Tensor, noise: float) -> Point:
        """Value and best mean. Cost: N^3 / 3 and the matrix."""
        covariance, size = self.parts.matrix(weights), self.blocks[0].design.shape[2]
        solved, gram, push = [], weights.new_zeros(size, size), weights.new_zeros(size)
        try:
            for block in self.blocks:
                factor = block.factorise(covariance, noise)
                count, columns, _ = block.design.shape
                both = factor.solve(torch.cat([block.targets, block.design.reshape(count, -1)], 1))
                scaled = both[:, columns:].reshape(block.design.shape)
                gram = gram + torch.einsum("ncm,nck->mk", block.design, scaled)
                push = push + torch.einsum("ncm,nc->m", scaled, block.targets)
                solved.append((factor, both[:, :columns], scaled))
        except NumericalError:
            solved = []
        if self.team.any(not solved):
            return Point(weights, noise)
        gram, push = self.team.sums([gram, push])
        mean = _least_norm(gram, push)
        solved = [(factor, alpha - scaled @ mean) for factor, alpha, scaled in solved]
        own = [block.log_density(*pair, mean) for block, pair in zip(self.blocks, solved, strict=True)]
        total = float(self.team.sum(torch.stack(own).sum())) + self._log_prior(noise)
        return Point(weights, noise, mean, total if math.isfinite(total) else -math.inf, tuple(solved))

    def _log_prior(self, noise: float) -> float:
        if self.noise_prior is None:
            return 0.0
        middle, spread = self.noise_prior
        return -0.5 * ((math.log(noise) - middle) / spread) ** 2

    @torch.no_grad()
    def statistics(self, point: Point, chosen: Tensor) -> Statistics:
        """Of the chosen components [C], summed over all processes. Cost: N^3 and 2^(P + 2) C N^2."""
        outer, inverse = point.weights.new_zeros(2, self.size, self.size)
        for block, (factor, alpha) in zip(self.blocks, point.solved, strict=True):
            lower, rows = factor.inverse(), block.rows
            full = (lower.tril() + lower.tril(-1).mT) * alpha.shape[1]
            if len(rows) == self.size:
                outer, inverse = outer + alpha @ alpha.mT, inverse + full
            else:
                outer[rows[:, None], rows] += alpha @ alpha.mT
                inverse[rows[:, None], rows] += full
        own = [self.parts.inner(matrix, chosen) for matrix in (outer, inverse)]
        sums = self.team.sums([*own, outer.trace(), inverse.trace()])
        return Statistics(sums[0], sums[1], (float(sums[2]), float(sums[3])))

    def best_noise(self, point: Point, statistics: Statistics) -> float:
        """The noise that minimises the majoriser ``noise_0^2 num / s + den s`` minus twice the log prior: convex in log s."""
        lower, upper = self.noise_range
        if lower >= upper:
            return point.noise
        rise, fall = point.noise**2 * statistics.noise[0], statistics.noise[1]
        if self.noise_prior is None:
            return min(max(math.sqrt(rise / fall), lower), upper)
        middle, spread = self.noise_prior
        u = math.log(point.noise)
        for _ in range(60):
            down, up = rise * math.exp(-u), fall * math.exp(u)
            move = (up - down + 2 * (u - middle) / spread**2) / (up + down + 2 / spread**2)
            u -= min(max(move, -1.0), 1.0)
            if abs(move) < 1e-13:
                break
        return min(max(math.exp(u), lower), upper)


def _least_norm(gram: Tensor, push: Tensor) -> Tensor:
    """The solution of normal equations; zero along what the data do not determine, such as the slope of a constant column."""
    scale = gram.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    inverse = torch.linalg.pinv(gram / scale / scale[:, None], hermitian=True, rtol=1e-12)
    return inverse @ (push / scale) / scale


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
        moved = _without(mixture, moved, small)
    return moved, pace


def _without(mixture: Mixture, point: Point, small: Tensor) -> Point:
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
    weights = _weights(problem) if exact else None
    if weights is None or not weights.requires_grad:
        return False
    known = [weights, getattr(likelihood, "raw_noise", None)]
    if isinstance(prior.mean, (ConstantMean, LinearMean)):
        known += [prior.mean.raw_constant, getattr(prior.mean, "raw_slope", None)]
    learned = {id(raw) for raw in known}
    return all(id(entry.raw) in learned and _is_plain(entry) for entry in coordinates.entries)


def _weights(problem: Problem) -> Tensor | None:
    kernel = problem.prior.kernels[0]
    try:
        return getattr(kernel, f"raw_{components(kernel, problem.data.x[:1]).parameter}")
    except StructureError:
        return None


def _is_plain(entry: Coordinate) -> bool:
    """Whether updates keep to the prior and the bounds of a value."""
    if entry.name == "noise":
        return entry.prior is None or isinstance(entry.prior, LogNormalPrior)
    lower, upper = entry.bounds().T
    return entry.prior is None and bool(np.isin(lower, (0.0, -math.inf)).all() and (upper == math.inf).all())


def mixture_of(problem: Problem) -> Mixture:
    """The evidence of a problem that `multiplies` as a function of weights and noise."""
    data, likelihood = problem.data, problem.likelihood
    sites = likelihood.exact_sites(data)
    assert sites is not None
    targets, design = _design(problem)
    variances = likelihood.variances(data.y).detach()
    known = likelihood.known_noise is not None
    blocks = []
    for _, columns in sites.groups(1):
        rows = sites.present[:, columns[0]].nonzero().flatten()
        cells = rows[:, None], torch.tensor(columns)
        noise = variances[rows, columns[0]] if known else None
        blocks.append(Block(rows, targets[cells], design[cells], noise))
    prior, limits = None, (1.0, 1.0)
    if not known and likelihood.raw_noise.requires_grad:
        bounds, found = likelihood.raw_noise_constraint, getattr(likelihood, "noise_prior", None)
        limits = max(float(bounds.lower_bound), 1e-12 * data.variance), float(bounds.upper_bound)
        prior = None if found is None else (float(found.loc), float(found.scale))
    parts = components(problem.prior.kernels[0], data.x)
    return Mixture(parts, len(data.x), tuple(blocks), prior, limits, data.team)


@torch.no_grad()
def _design(problem: Problem) -> tuple[Tensor, Tensor]:
    """Targets [N, P] less the mean without what of it is learned, and its derivatives [N, P, m]; it is linear."""
    data, learned = problem.data, _learned(problem)
    before = [raw.clone() for raw in learned]
    for raw in learned:
        raw.zero_()
    rest, columns = problem.prior.mean_at(data.x, problem.columns), []
    for raw in learned:
        for entry in range(raw.numel()):
            raw.view(-1)[entry] = 1.0
            columns.append(problem.prior.mean_at(data.x, problem.columns) - rest)
            raw.zero_()
    for raw, value in zip(learned, before, strict=True):
        raw.copy_(value)
    return data.filled - rest, torch.stack(columns, -1) if columns else rest.new_zeros(*rest.shape, 0)


def _learned(problem: Problem) -> list[Tensor]:
    return [raw for raw in problem.prior.mean.parameters() if raw.requires_grad]


def start_of(problem: Problem) -> Point:
    """The present weights and noise."""
    weights, likelihood = _weights(problem), problem.likelihood
    assert weights is not None
    noise = likelihood.known_noise if likelihood.known_noise is not None else likelihood.noise.detach()
    return Point(weights.detach().clone(), float(torch.nanmean(noise)))


@torch.no_grad()
def move(problem: Problem, point: Point) -> None:
    """The modules of a problem to a point."""
    weights = _weights(problem)
    assert weights is not None
    weights.copy_(point.weights)
    if problem.likelihood.known_noise is None:
        problem.likelihood.raw_noise.fill_(math.log(point.noise))
    learned = _learned(problem)
    for raw, part in zip(learned, point.mean.split([raw.numel() for raw in learned]), strict=True):
        raw.copy_(part.reshape(raw.shape))


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
