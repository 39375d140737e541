"""The evidence of ``C = sum_q w_q K_q + noise`` as a function of the weights and the noise, with the best linear mean.

Theory: docs/theory/multiple_kernel.md, sections 1, 4 and 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpx.errors import NumericalError, StructureError
from gpx.linalg.cholesky import Cholesky, factorise
from gpx.parallel import Team
from gpx.structure.components import Components, components

if TYPE_CHECKING:
    from gpx.inference.problem import Problem


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

    @property
    def is_noise_fixed(self) -> bool:
        """Whether the noise stays as it is, or is known for every row."""
        return self.noise_range[0] >= self.noise_range[1]

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
        if self.is_noise_fixed:
            return point.noise
        lower, upper = self.noise_range
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


def raw_weights(problem: Problem) -> Tensor | None:
    """The weights [Q] of fixed components that a problem has, None if it has none."""
    kernel = problem.prior.kernels[0]
    try:
        return getattr(kernel, f"raw_{components(kernel, problem.data.x[:1]).parameter}")
    except StructureError:
        return None


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
    weights, likelihood = raw_weights(problem), problem.likelihood
    assert weights is not None
    noise = likelihood.known_noise if likelihood.known_noise is not None else likelihood.noise.detach()
    return Point(weights.detach().clone(), float(torch.nanmean(noise)))


@torch.no_grad()
def move(problem: Problem, point: Point) -> None:
    """The modules of a problem to a point."""
    weights = raw_weights(problem)
    assert weights is not None
    weights.copy_(point.weights)
    if problem.likelihood.known_noise is None:
        problem.likelihood.raw_noise.fill_(math.log(point.noise))
    learned = _learned(problem)
    for raw, part in zip(learned, point.mean.split([raw.numel() for raw in learned]), strict=True):
        raw.copy_(part.reshape(raw.shape))
