"""Problems whose solution is determined by data with noise: the choice of kernels and unknown numbers, and the posterior.

Kernels, and the numbers that the measurements are not linear in (unknown numbers of the equation; of an unknown function its
lengthscale and its amplitude in that of u), are those of the largest evidence. What the noise hides of u depends on the kernel,
so that means and deviations are averaged over the kernels of u, by their evidence. See docs/theory/pde.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.special import softmax
from torch import Tensor

from gpx.errors import FitWarning, InputError, NumericalError
from gpx.pde.axes import unconditioned
from gpx.pde.basis import spectral_basis
from gpx.pde.climb import Loss, curvature, minimise
from gpx.pde.domains import points
from gpx.pde.draws import Component, Draws
from gpx.pde.expressions import indices, linearise, substitute
from gpx.pde.grids import Grid, boundary_values
from gpx.pde.joint import Block, Measurement, Posterior, System, condition, measure, observed_alone, prior_factor
from gpx.pde.problem import Problem
from gpx.pde.select import Setting, spectra

LADDER = (1.0, 0.5, 0.25, 0.12, 0.06)  # lengthscales, of the range
SLOW = (0.01, 1.0, 100.0)  # variances of what varies slowly, in those of tones: of each the source shows little
SPACINGS = 3.0  # of the grid, that a lengthscale is at least
KEPT = 1e-8  # deviations of functions, of the largest: data with noise say nothing of others
DISCRETE = (
    1e-6,
    1e-3,
    1.0,
)  # least, first and largest deviation of an equation without noise, of the size of its terms
LAWFUL = 0.01  # largest deviation of an equation that nothing else in it can be told from
MAX_ENTRIES = 30_000_000  # of the matrix of measurements by coordinates
MATCHES = 100  # evaluations of an equation while its numbers are matched to a curve
ROUNDS = 12  # of kernels, given the numbers, and of numbers, given the kernel
SETTLED = 0.01  # change of the numbers, that ends the rounds
RARE = 1e-3  # weights of kernels that are left out
START = 0.3  # lengthscale of an unknown function, of the range
BOUNDS = (0.03, 3.0)
SPREAD = 0.3  # steps of differences, of a standard error, or of a start
WIDEST = 1e3  # standard error of an unknown, of its start: it is not determined
EDGE = 1e-6  # a logarithm that is so near to its bound is there
WIDE = 12.0  # of the logarithm of an amplitude around its start


@dataclass(frozen=True)
class Inversion:
    """A problem with the values [M] of its source and those of its boundary at the nodes; size: of the equation's terms.

    The evidence is searched over a vector: unknown numbers in units of their starts, log lengthscale and log amplitude of every
    unknown function, and, of an equation without noise, the log deviation of what its discretisation leaves, in units of size.
    """

    problem: Problem
    nodes: tuple[np.ndarray, ...]
    source: Tensor
    boundary: list[np.ndarray]
    size: float

    @property
    def start(self) -> np.ndarray:
        """Where the search begins."""
        signs = [np.sign(n) for n in self.problem.unknown_numbers.values()]
        shapes = [np.log(START), 0.0] * len(self.problem.unknown_functions)
        return np.array([*signs, *shapes, *([] if self.problem.noise else [np.log(DISCRETE[1])])])

    @property
    def bounds(self) -> list[tuple[float | None, float | None]]:
        """Of the search."""
        numbers = [(None, None)] * len(self.scales)
        shapes = [tuple(np.log(BOUNDS)), (-WIDE, WIDE)] * len(self.problem.unknown_functions)
        largest = LAWFUL if self.law else DISCRETE[2]
        return [*numbers, *shapes, *([] if self.problem.noise else [(np.log(DISCRETE[0]), np.log(largest))])]

    @property
    def scales(self) -> np.ndarray:
        """The units of unknown numbers."""
        return np.array([abs(n) or 1.0 for n in self.problem.unknown_numbers.values()])

    @cached_property
    def law(self) -> bool:
        """Whether the equation is known to hold and zero solves it, or functions in it are unknown, too: then it says nothing of
        the sizes of functions.
        """
        if self.problem.noise:
            return False
        driven = bool((self.source - _slopes(self.problem, self.nodes)[0]).any()) or any(b.any() for b in self.boundary)
        return bool(self.problem.unknown_functions) or not driven

    def numbers(self, at: np.ndarray) -> dict[str, float]:
        """The unknown numbers."""
        values = at[: len(self.scales)] * self.scales
        return {name: float(v) for name, v in zip(self.problem.unknown_numbers, values, strict=True)}

    def noise(self, at: np.ndarray) -> float:
        """The standard deviation of the equation."""
        return self.problem.noise or float(np.exp(at[-1])) * self.size

    def system(self, grid: Grid, at: np.ndarray) -> System:
        """The joint prior and all measurements, u being of the functions of a grid."""
        u = Block("u", grid, grid.lift(self.boundary), tuple(prior_factor(axis) for axis in grid.axes))
        first = len(self.scales)
        shapes = at[first : first + 2 * len(self.problem.unknown_functions)].reshape(-1, 2)
        others = [
            self._function(name, np.exp(lengthscale), np.exp(amplitude))
            for name, (lengthscale, amplitude) in zip(self.problem.unknown_functions, shapes, strict=True)
        ]
        blocks = (u, *others)
        equation = measure(
            blocks, self.problem.equation, None, self.source.numpy(), np.full(len(self.source), self.noise(at))
        )
        return System(blocks, equation, tuple(self._observed(blocks)), self.law)

    def checked(self, grid: Grid) -> Grid:
        """Raises: InputError for a grid of too many points and functions."""
        size = int(np.prod(grid.free))
        if size * len(grid.x) > MAX_ENTRIES:
            raise InputError(
                f"Noise or observations ask for a matrix of {len(grid.x)} points by {size} functions; give a coarser grid"
                " (grid=)."
            )
        return grid

    def losses(self, grid: Grid, start: np.ndarray) -> list[tuple[Loss, slice]]:
        """What is minimised in turn for one kernel of u, and which of the numbers by it; start: a state to begin from.

        With noise in the source: minus the evidence. An equation without noise is a law, no measurement: it is as true for
        every value of the unknowns, whose loss is that of the observations given the equation.
        """

        def joint(at: np.ndarray) -> float:
            found = _posterior(self, grid, at, start)
            return -found.evidence if found else np.inf

        def given_equation(at: np.ndarray) -> float:
            found = _posterior(self, grid, at, start)
            return -found.conditional if found else np.inf

        count = len(self.start)
        if self.law:
            return [(given_equation, slice(0, count))]
        if self.problem.noise:
            return [(joint, slice(0, count))]
        return [(joint, slice(count - 1, count)), (given_equation, slice(0, count - 1))]

    def _observed(self, blocks: Sequence[Block]) -> list[Measurement]:
        return [
            measure(blocks, o.of, o.x, o.y.numpy(), o.noise.numpy())
            for o in self.problem.observations  # pyright: ignore[reportGeneralTypeIssues]
        ]

    def _function(self, name: str, lengthscale: float, amplitude: float) -> Block:
        """An unknown function: a Gaussian kernel of one lengthscale, in parts of the ranges; the amplitude in that of u, times
        the size of the equation's operator.
        """
        order = max((len(i) for e in self._expressions for i in indices(e, name)), default=0)
        axes = []
        for n in self.nodes:
            basis = spectral_basis(np.zeros(1), np.array([lengthscale * np.ptp(n)]), n)
            axes.append(unconditioned(basis, n, order))
        factors = [prior_factor(axis) for axis in axes]
        factors[0] = factors[0] * (amplitude * self.gain)
        return Block(name, Grid(tuple(axes)), np.zeros([f.shape[0] for f in factors]), tuple(factors))

    @property
    def _expressions(self) -> list[Any]:
        return [self.problem.equation, *(o.of for o in self.problem.observations)]  # pyright: ignore

    @cached_property
    def gain(self) -> float:
        """The size of the equation's terms for functions of size one that vary over the ranges."""
        return term_sizes(self.problem, self.nodes)


def infer(
    problem: Problem, nodes: tuple[np.ndarray, ...], source: Tensor, choices: Sequence[tuple[Setting | None, Any]]
) -> tuple[Draws, Setting | None]:
    """The posterior, and the kernel of u of the largest evidence.

    Arguments: source [M] at the nodes; choices: settings, with functions that make their grids. Raises: NumericalError where
    no kernel has a posterior. Cost: that of `condition` for every kernel and some tens of times more for each unknown.
    """
    boundary = boundary_values(problem, nodes)
    inversion = Inversion(problem, nodes, source, boundary, _size(problem, nodes, source, boundary))
    grids = [inversion.checked(make()) for _, make in choices]
    at, best = _approached(inversion, grids), 0
    for _ in range(ROUNDS):
        previous, before = best, at
        best, chosen, _ = _chosen(inversion, grids, at)
        for loss, free in inversion.losses(grids[best], chosen.state):
            at = _along(loss, at, free, inversion.bounds)
        if best == previous and np.abs(at - before).max(initial=0.0) < SETTLED:
            break
    best, chosen, found = _chosen(inversion, grids, at)
    covariance = _covariance(inversion, grids[best], chosen, at)
    weights = softmax([_worth(inversion, p) if p else -np.inf for p in found])
    kept = [k for k in np.argsort(weights)[::-1] if weights[k] >= RARE]
    total = sum(weights[k] for k in kept)
    components = tuple(_component(inversion, grids[k], at, found[k], covariance, weights[k] / total) for k in kept)
    return Draws(problem.domain, components), choices[best][0]


def _chosen(
    inversion: Inversion, grids: Sequence[Grid], at: np.ndarray
) -> tuple[int, Posterior, list[Posterior | None]]:
    """The kernel that the numbers make the best of, its posterior, and those of all. Raises: NumericalError if there is none."""
    found = [_posterior(inversion, grid, at) for grid in grids]
    best = max(range(len(grids)), key=lambda k: _worth(inversion, p) if (p := found[k]) else -np.inf)
    chosen = found[best]
    if chosen is None:
        chosen = condition(inversion.system(grids[best], at), inversion.numbers(at))  # raises what all of them did
    return best, chosen, found


def _approached(inversion: Inversion, grids: Sequence[Grid]) -> np.ndarray:
    """Where the search begins: at the given numbers, or at those with which the equation fits a curve through the observations
    best, where these explain more. The evidence has many maxima in the numbers, of which the start finds the nearest.
    """
    at, count = inversion.start, len(inversion.scales)
    systems = [inversion.system(grid, at) for grid in grids] if count else []
    curves = [c for system in systems if (c := _curve(system, inversion.numbers(at))) is not None]
    if not curves:
        return at
    system, curve = max(curves, key=lambda pair: pair[1].evidence)

    def residual(numbers: np.ndarray) -> np.ndarray:
        return system.equation.residual(curve.state, inversion.numbers(numbers))

    matched = np.concatenate([least_squares(residual, at[:count], max_nfev=MATCHES).x, at[count:]])
    try:
        return max((at, matched), key=lambda start: _chosen(inversion, grids, start)[1].conditional)
    except NumericalError:
        return at


def _curve(system: System, numbers: dict[str, float]) -> tuple[System, Posterior] | None:
    """A system, and what those observations say that are linear; None if there is none, or they say nothing."""
    try:
        found = observed_alone(system, numbers)
    except NumericalError:
        return None
    return None if found is None else (system, found)


def settings(frequencies: Sequence[np.ndarray], counts: Sequence[int]) -> list[Setting]:
    """Lengthscales for the bumps of the tones, and apart from them lengthscale and (one axis) weight of the first, at zero; with
    the tones and without. On one axis without tones, of two bumps at zero: what is local has something slow below it.
    """
    with_tones, *without = spectra(frequencies)
    ladder, dims = [part for part in LADDER if part * (min(counts) - 1) >= SPACINGS], len(counts)
    slow = [(other, weight) for other in ladder for weight in (SLOW if dims == 1 else (1.0,))]

    def pairs(chosen: tuple[tuple[float, ...], ...], longer: bool) -> list[Setting]:
        return [
            Setting(chosen, (part,) * dims, KEPT, other / part, weight)
            for part in ladder
            for other, weight in slow
            if other > part or not longer
        ]

    found = pairs(with_tones, False) if without else pairs(((0.0, 0.0),), True) if dims == 1 else []
    return found + [Setting(chosen, (part,) * dims, KEPT) for chosen in without or [with_tones] for part in ladder]


def term_sizes(problem: Problem, nodes: Sequence[np.ndarray]) -> float:
    """The size of the equation's terms in u for functions of size one that vary over the ranges, at u = 0."""
    slopes = _slopes(problem, nodes)[1]
    ranges = [np.ptp(n) for n in nodes]
    sizes = [
        float(slope.square().mean().sqrt()) / np.prod([ranges[axis] for axis in index])
        for index, slope in slopes.items()
        if not index or isinstance(index[0], int)
    ]
    return sum(sizes) or 1.0


def _slopes(problem: Problem, nodes: Sequence[np.ndarray]) -> tuple[Tensor, dict[Any, Tensor]]:
    x = points(nodes)
    keys = [*problem.jet, *((n, i) for n in problem.unknown_functions for i in indices(problem.equation, n))]
    return linearise(
        substitute(problem.equation, problem.unknown_numbers), {k: torch.zeros_like(x[:, 0]) for k in keys}, x
    )


def _size(problem: Problem, nodes: Sequence[np.ndarray], source: Tensor, boundary: Sequence[np.ndarray]) -> float:
    """Of the equation: that of its source, or of its terms for functions of the size of the data."""
    data = [float(np.abs(b).max(initial=0.0)) for b in boundary] + [
        float(o.y.abs().max()) for o in problem.observations
    ]  # pyright: ignore
    rest = float((source - _slopes(problem, nodes)[0]).abs().max())
    return max(rest, term_sizes(problem, nodes) * max(data, default=0.0)) or 1.0


def _worth(inversion: Inversion, found: Posterior) -> float:
    """What kernels of u are compared by: the evidence; of a law, that of the observations given it, less what its errors cost."""
    return found.conditional - found.misfit if inversion.law else found.evidence


def _posterior(inversion: Inversion, grid: Grid, at: np.ndarray, start: np.ndarray | None = None) -> Posterior | None:
    """None where the Gauss-Newton steps do not get small; start: a state to begin from, unless the functions are now others."""
    system = inversion.system(grid, at)
    try:
        return condition(
            system, inversion.numbers(at), start if start is not None and len(start) == system.size else None
        )
    except (NumericalError, np.linalg.LinAlgError):
        return None


def _along(loss: Loss, at: np.ndarray, free: slice, bounds: Sequence[tuple[float | None, float | None]]) -> np.ndarray:
    """The numbers with some of them moved to where a loss is least."""

    def partial_loss(part: np.ndarray) -> float:
        return loss(np.concatenate([at[: free.start], part, at[free.stop :]]))

    found = minimise(partial_loss, at[free], bounds[free]) if free.stop > free.start else at[free]
    return np.concatenate([at[: free.start], found, at[free.stop :]])


def _covariance(inversion: Inversion, grid: Grid, found: Posterior, at: np.ndarray) -> np.ndarray:
    """Of the unknown numbers [p, p]: from the curvature of the loss, the shapes of unknown functions being optimal too.

    Warns: FitWarning where the loss has no minimum.
    """
    count, scale = len(inversion.scales), inversion.scales
    if not count:
        return np.zeros((0, 0))
    loss, free = inversion.losses(grid, found.state)[-1]
    bent = curvature(lambda part: loss(np.concatenate([part, at[free.stop :]])), at[free])[1]
    bent = np.nan_to_num(bent, nan=0.0, posinf=0.0, neginf=0.0)
    inside = [_inside(value, pair) for value, pair in zip(at[free], inversion.bounds[free], strict=True)]
    kept = [i for i in range(len(bent)) if i < count or (inside[i] and bent[i, i] > 0)]
    values, vectors = np.linalg.eigh(bent[np.ix_(kept, kept)])
    if values.min() <= 0:  # shapes that are at no optimum say nothing of the numbers
        values, vectors = np.linalg.eigh(bent[:count, :count])
    certain = np.maximum(np.abs(values), WIDEST**-2)
    covariance = ((vectors / certain) @ vectors.T)[:count, :count]
    if values.min() <= 0 or covariance.diagonal().max() > 0.9 * WIDEST**2:
        warnings.warn(
            f"The observations do not determine the unknowns {', '.join(inversion.problem.unknown_numbers)}: their standard"
            " errors are wrong. Give more observations, or a number for one of them.",
            FitWarning,
        )
    return covariance * np.outer(scale, scale)


def _inside(value: float, pair: tuple[float | None, float | None]) -> bool:
    """Whether a number is at neither of its bounds."""
    return not any(end is not None and abs(value - end) < EDGE for end in pair)


def _component(
    inversion: Inversion, grid: Grid, at: np.ndarray, found: Posterior, covariance: np.ndarray, weight: float
) -> Component:
    """With the uncertainty of the unknown numbers, to first order."""
    names = tuple(inversion.problem.unknown_numbers)
    count = len(names)
    root = np.linalg.cholesky(covariance) if count else covariance
    columns = []
    for place in range(count):
        step = np.zeros(len(at))
        step[place] = SPREAD * min(1.0, np.sqrt(covariance[place, place]) / inversion.scales[place])
        sides = [_posterior(inversion, grid, at + sign * step, found.state) for sign in (1, -1)]
        states = [side.state if side else found.state for side in sides]
        columns.append((states[0] - states[1]) / (2 * step[place] * inversion.scales[place]))
    slope = np.stack(columns, 1) @ root if count else np.zeros((len(found.state), 0))
    numbers = np.array([inversion.numbers(at)[name] for name in names])
    spread = np.concatenate([np.zeros((count, found.spread.shape[1])), root], 1)
    system = inversion.system(grid, at)
    return Component(
        weight, system.blocks, found.state, np.concatenate([found.spread, slope], 1), names, numbers, spread
    )
