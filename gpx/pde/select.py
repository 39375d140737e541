"""The choice of frequencies and lengthscales, by the estimated error alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from gpx.errors import NumericalError
from gpx.pde.axes import galerkin, multiply
from gpx.pde.basis import spectral_basis
from gpx.pde.estimate import Judge
from gpx.pde.grids import Grid
from gpx.pde.newton import State, newton
from gpx.pde.problem import Problem

LADDER = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015)  # lengthscales, of the range
GOOD = 1e-10  # estimated errors below which nothing better is looked for
HOPELESS = 30.0  # times the least error: where a ladder ends
NEARBY = 0.3  # estimated errors below which a solution is worth starting from
STRETCHES = (2.0, 0.5, 1.4, 0.7)


@dataclass(frozen=True)
class Setting:
    """A kernel for every axis: frequencies in cycles per unit, zero among them, and lengthscales as parts of the range."""

    frequencies: tuple[tuple[float, ...], ...]
    lengthscales: tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """A setting with the solution that it gives, and the estimate of its error."""

    setting: Setting
    grid: Grid
    state: State
    error: float


@dataclass(frozen=True)
class Search:
    """What all candidates share: the problem, its values at the nodes of the grid, and the judge of errors."""

    problem: Problem
    nodes: tuple[np.ndarray, ...]
    source: Tensor
    boundary: list[np.ndarray]
    judge: Judge

    def candidate(self, setting: Setting, start: Candidate | None = None) -> Candidate | None:
        """The solution for a setting; None if Newton's method does not converge."""
        axes = []
        for d, points in enumerate(self.nodes):
            span = float(np.ptp(points))
            basis = spectral_basis(np.array(setting.frequencies[d]), setting.lengthscales[d] * span, points)
            axes.append(galerkin(self.problem, d, basis, points))
        grid = Grid(tuple(axes))
        try:
            state = newton(self.problem, grid, self.source, self.boundary, _transferred(start, grid))
        except (NumericalError, np.linalg.LinAlgError):
            return None
        return Candidate(setting, grid, state, self.judge.error(grid, state))


def select(search: Search, frequencies: Sequence[np.ndarray]) -> Candidate:
    """The candidate of least estimated error: down the ladder of lengthscales, with the frequencies and without, then axis by
    axis around the best.

    Raises: NumericalError if no candidate has a solution.
    """
    best: Candidate | None = None
    smooth = tuple((0.0,) for _ in frequencies)
    tones = tuple((0.0, *map(float, f)) for f in frequencies)
    for chosen in dict.fromkeys((tones, smooth)):
        for ratio in LADDER:
            found = search.candidate(Setting(chosen, (ratio,) * len(frequencies)), best)
            if found is not None and (best is None or found.error < best.error):
                best = found
            if best is not None and (best.error <= GOOD or (found is not None and found.error > HOPELESS * best.error)):
                break
        if best is not None and best.error <= GOOD:
            return best
    if best is None:
        raise NumericalError(
            f"Newton's method converged for no lengthscale from {LADDER[0]:g} to {LADDER[-1]:g} of the range, from zero with line"
            " search: give more points (grid=), or a larger coefficient of the highest derivative (viscosity) and its solution"
            " as start=."
        )
    return _refined(search, best) if len(frequencies) > 1 else best


def _refined(search: Search, best: Candidate) -> Candidate:
    """One axis at a time, longer and shorter lengthscales while they help."""
    tried = {best.setting}
    improved = True
    while improved and best.error > GOOD:
        improved = False
        for setting in _neighbours(best.setting):
            if setting not in tried:
                tried.add(setting)
                found = search.candidate(setting, best)
                if found is not None and found.error < 0.7 * best.error:
                    best, improved = found, True
                    break
    return best


def _neighbours(setting: Setting) -> Iterator[Setting]:
    for stretch in STRETCHES:
        for d, length in enumerate(setting.lengthscales):
            lengths = (*setting.lengthscales[:d], length * stretch, *setting.lengthscales[d + 1 :])
            yield replace(setting, lengthscales=lengths)


def _transferred(start: Candidate | None, grid: Grid) -> np.ndarray | None:
    """The coefficients of a solution in other functions of the same nodes."""
    if start is None or start.error > NEARBY:
        return None
    return multiply(
        [new.coefficients @ old.derivatives[0] for new, old in zip(grid.axes, start.grid.axes, strict=True)],
        start.state.coefficients,
    )
