"""The choice of frequencies and lengthscales, by the estimated error alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from gpx.errors import NumericalError
from gpx.pde.axes import galerkin, multiply
from gpx.pde.basis import Basis, spectral_basis
from gpx.pde.estimate import Judge
from gpx.pde.grids import Grid
from gpx.pde.newton import State, newton, reached
from gpx.pde.problem import Problem
from gpx.pde.spectrum import resolved, tones_of_values

LADDER = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.02, 0.012)  # lengthscales, of the range
KEPT = (1e-12, 1e-5)  # deviations, of the largest: functions of less are left out
BANDS = (0.25, 0.5, 0.7)  # of the Nyquist frequency, filled with bumps of lengthscale half the range
GOOD = 1e-10  # estimated errors below which nothing better is looked for
FAIR = 1e-8  # above which other spectra are tried
HOPELESS = 30.0  # times the least error: where a ladder ends
NEARBY = 0.5  # estimated errors below which a solution is worth starting from
STRETCHES = (2.0, 0.5, 1.4, 0.7)
WORTHWHILE = 0.8  # of the error: what is no better is not followed
CUTS = (30.0, 1 / 30)


@dataclass(frozen=True)
class Setting:
    """A kernel for every axis: frequencies in cycles per unit, zero the first of them, lengthscales as parts of the range, the
    deviations kept, of the largest; smooth: lengthscale of the first bump, in those of the others; slow: its weight (a
    variance) in theirs.
    """

    frequencies: tuple[tuple[float, ...], ...]
    lengthscales: tuple[float, ...]
    kept: float = KEPT[0]
    smooth: float = 1.0
    slow: float = 1.0


@dataclass(frozen=True)
class Candidate:
    """A grid of functions with the solution in them, and the estimate of its error; setting: None for a kernel that was given."""

    setting: Setting | None
    grid: Grid
    state: State
    error: float


@dataclass(frozen=True)
class Search:
    """What all candidates share: the problem, its values at the nodes of the grid, and the judge of errors; guess: values of u at
    the nodes [M_1, ..., M_d] to begin from, None: those of the boundary, continued.
    """

    problem: Problem
    nodes: tuple[np.ndarray, ...]
    source: Tensor
    boundary: list[np.ndarray]
    judge: Judge | None
    guess: np.ndarray | None = None

    def candidate(self, setting: Setting, start: Candidate | None = None) -> Candidate | None:
        """The solution for a setting; None if Newton's method does not converge."""
        try:
            grid = self.grid(setting)
            begin = _transferred(start, grid)
            if begin is None and self.guess is not None:
                begin = multiply([axis.coefficients for axis in grid.axes], self.guess)
            return self._judged(grid, newton(self.problem, grid, self.source, self.boundary, begin), setting)
        except (NumericalError, np.linalg.LinAlgError):
            return None

    def grid(self, setting: Setting) -> Grid:
        """The functions of a setting."""
        bases = []
        for frequencies, part, nodes in zip(setting.frequencies, setting.lengthscales, self.nodes, strict=True):
            found = np.array(frequencies)
            lengthscales = part * float(np.ptp(nodes)) * np.append(setting.smooth, np.ones(len(found) - 1))
            bases.append(spectral_basis(found, lengthscales, nodes, setting.kept, setting.slow))
        return self.of(bases)

    def of(self, bases: Sequence[Basis]) -> Grid:
        """Functions of every axis, with the boundary conditions of the problem."""
        return Grid(
            tuple(galerkin(self.problem, d, b, n) for d, (b, n) in enumerate(zip(bases, self.nodes, strict=True)))
        )

    def solved(self, grid: Grid, setting: Setting | None = None) -> Candidate:
        """The solution in these functions, by all ways to one. Raises: NumericalError if none leads there."""
        return self._judged(grid, reached(self.problem, grid, self.source, self.boundary), setting)

    def _judged(self, grid: Grid, state: State, setting: Setting | None) -> Candidate:
        return Candidate(setting, grid, state, self.judge.error(grid, state) if self.judge else np.nan)


def select(search: Search, frequencies: Sequence[np.ndarray]) -> Candidate:
    """The candidate of least estimated error: down ladders of lengthscales, then step by step around the best.

    Where Newton's method converges for none, other ways find the first. Raises: NumericalError if no candidate has a solution.
    """
    best = _best_of(search, frequencies, None) or _best_of(search, frequencies, _first(search, frequencies))
    assert best is not None
    return _refreshed(search, _refined(search, best))


def _first(search: Search, frequencies: Sequence[np.ndarray]) -> Candidate:
    """The first solution down a ladder, by all ways. Raises: NumericalError with what the longest lengthscale met."""
    failures = []
    for setting in next(iter(_ladders(search, frequencies))).settings:
        try:
            return search.solved(search.grid(setting), setting)
        except (NumericalError, np.linalg.LinAlgError) as failure:
            failures.append(str(failure))
    raise NumericalError(
        f"No solution was found for lengthscales from {LADDER[0]:g} to {LADDER[-1]:g} of the range. With the first: {failures[0]}"
    )


def _refreshed(search: Search, best: Candidate) -> Candidate:
    """Of an equation that is not linear, with the frequencies of the solution itself: those of the source need not be all."""
    if search.problem.linear or best.error <= FAIR or best.setting is None:
        return best
    values = best.grid.jet(best.state.coefficients, [()])[()]
    left = tones_of_values(search.problem, search.nodes, values)
    own = spectra([resolved(found, n) for found, n in zip(left, search.nodes, strict=True)])[0]
    if own == best.setting.frequencies:
        return best
    settings = tuple(Setting(own, (ratio,) * len(own)) for ratio in LADDER)
    found = _descended(search, settings, best)
    return _refined(search, found) if found is not None and found.error < WORTHWHILE * best.error else best


def _best_of(search: Search, frequencies: Sequence[np.ndarray], best: Candidate | None) -> Candidate | None:
    """The best of all ladders and of what was there before."""
    for ladder in _ladders(search, frequencies):
        if best is None or best.error > (FAIR if ladder.late else GOOD):
            best = _descended(search, ladder.settings, best)
    return best


@dataclass(frozen=True)
class Ladder:
    """Settings in order; late: for solutions that are not fair yet."""

    settings: tuple[Setting, ...]
    late: bool = False


def spectra(frequencies: Sequence[np.ndarray]) -> list[tuple[tuple[float, ...], ...]]:
    """For every axis, with these frequencies beside zero, and with zero alone."""
    tones = tuple((0.0, *map(float, f)) for f in frequencies)
    return list(dict.fromkeys((tones, tuple((0.0,) for _ in frequencies))))


def _ladders(search: Search, frequencies: Sequence[np.ndarray]) -> Iterator[Ladder]:
    """With the frequencies of the source, without, without and few functions, with all frequencies of a band."""
    dims = len(frequencies)
    smooth = spectra(frequencies)[-1]
    for chosen in spectra(frequencies):
        yield Ladder(tuple(Setting(chosen, (ratio,) * dims) for ratio in LADDER))
    yield Ladder(tuple(Setting(smooth, (ratio,) * dims, KEPT[1]) for ratio in LADDER), late=True)
    bands = tuple(
        Setting(tuple(tuple(np.arange(0, part * len(n) / 2) / np.ptp(n)) for n in search.nodes), (0.5,) * dims)
        for part in BANDS
    )
    yield Ladder(bands, late=True)


def _descended(search: Search, settings: Sequence[Setting], best: Candidate | None) -> Candidate | None:
    """The best of a ladder and before it; the ladder ends where errors grow."""
    least = np.inf
    for setting in settings:
        found = search.candidate(setting, best)
        if found is None:
            continue
        least = min(least, found.error)
        if best is None or found.error < best.error:
            best = found
        if best.error <= GOOD or found.error > HOPELESS * least:
            break
    return best


def _refined(search: Search, best: Candidate) -> Candidate:
    """Longer and shorter lengthscales, one axis at a time, and more and fewer functions; what helped is done again."""
    assert best.setting is not None
    tried = {best.setting}
    moves = _moves(len(best.setting.lengthscales))
    failed = 0
    while failed < len(moves) and best.error > GOOD:
        setting = moves[0](best.setting)  # pyright: ignore[reportArgumentType]
        found = None if setting in tried or not KEPT[0] <= setting.kept <= 0.1 else search.candidate(setting, best)
        tried.add(setting)
        if found is not None and found.error < WORTHWHILE * best.error:
            best, failed = found, 0
        else:
            moves, failed = [*moves[1:], moves[0]], failed + 1
    return best


def _moves(dims: int) -> list[Callable[[Setting], Setting]]:
    """What is tried around a setting."""

    def stretched(setting: Setting, axis: int, by: float) -> Setting:
        lengths = [round(v * by, 6) if d == axis else v for d, v in enumerate(setting.lengthscales)]
        return replace(setting, lengthscales=tuple(lengths))

    stretches = [partial(stretched, axis=axis, by=by) for by in STRETCHES for axis in range(dims)]
    cuts = [lambda setting, by=by: replace(setting, kept=float(f"{setting.kept * by:.1g}")) for by in CUTS]
    return [*stretches, *cuts]


def _transferred(start: Candidate | None, grid: Grid) -> np.ndarray | None:
    """The coefficients of a solution in other functions of the same nodes."""
    if start is None or start.error > NEARBY:
        return None
    return multiply(
        [new.coefficients @ old.derivatives[0] for new, old in zip(grid.axes, start.grid.axes, strict=True)],
        start.state.coefficients,
    )
