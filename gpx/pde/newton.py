"""Newton's method for the coefficients of a solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gpx.errors import NumericalError
from gpx.pde.expressions import Index, linearise
from gpx.pde.grids import Grid
from gpx.pde.linear import Solver, axis_matrices, kronecker_sum, solve_linear
from gpx.pde.problem import Problem

MAX_STEPS = 25
ACCURACY = 1e-13  # of the solution: steps below it end the search
ROUGH = 1e-6  # of the solution, or of the first residual: what is below it and gets no smaller is rounding
HALVINGS = 8
NATURAL = 5  # halvings that are judged by steps, which cost a linear solution each
NEAR = 1e-4  # of the first residual, from where Newton's method goes on
AWAY = 1e6  # times it, where steps towards there end
HUGE = 1e100
MAX_TIMES = 150  # such steps
FORCING = 1e-3  # relative tolerance of GMRES


@dataclass(frozen=True)
class State:
    """Where Newton's method ended.

    coefficients [r_1, ..., r_d]; slopes: those of the linearised operator at the nodes; residuals: norms of tested residuals.
    """

    coefficients: np.ndarray
    slopes: dict[Index, Tensor]
    residuals: tuple[float, ...]


def newton(
    problem: Problem, grid: Grid, source: Tensor, boundary: Sequence[np.ndarray], start: np.ndarray | None = None
) -> State:
    """Coefficients whose residual, tested, vanishes. For a linear problem: its solution and a step of refinement.

    Arguments: source [n] at the nodes; boundary: see `Grid.lift`; start: coefficients to begin from.
    Raises: NumericalError if the steps do not get small, with the residuals.
    """
    coefficients = grid.lift(boundary)
    if start is not None:
        coefficients = coefficients + grid.extend(grid.restrict(start - coefficients))
    residuals: list[float] = []
    previous = np.inf
    solver = None
    for _ in range(MAX_STEPS):
        value, slopes = linearise(problem.equation, grid.jet(coefficients, problem.jet), grid.x)
        tested = grid.test(value - source)
        residuals.append(float(np.linalg.norm(tested)))
        if solver is None or not problem.linear:
            solver = kronecker_sum(axis_matrices(grid, slopes))
        step = grid.extend(solve_linear(grid, slopes, -tested, FORCING, solver))
        size, norm = float(np.linalg.norm(step)), float(np.linalg.norm(coefficients + step))
        if not np.isfinite(size):
            break
        settled = size > 0.3 * previous or residuals[-1] > 0.3 * min(residuals[:-1], default=np.inf)
        if size <= ACCURACY * norm or (settled and min(size / norm, residuals[-1] / residuals[0]) < ROUGH):
            return State(coefficients + step if size < previous else coefficients, slopes, tuple(residuals))
        previous = size
        inverse = partial(solve_linear, grid, slopes, tolerance=FORCING, solver=solver)
        damping = _damping(problem, grid, source, coefficients, step, residuals[-1], inverse)
        if not damping:
            break
        coefficients = coefficients + damping * step
    raise NumericalError(
        f"Newton's method did not converge on a grid of {grid.shape}: norms of the residual"
        f" {', '.join(f'{r:.2g}' for r in (*residuals[:4], *residuals[-3:]))}; steps were halved up to {HALVINGS} times."
    )


def reached(problem: Problem, grid: Grid, source: Tensor, boundary: Sequence[np.ndarray]) -> State:
    """Where Newton's method ends, begun from the boundary values; if it does not converge, after Picard's steps; after steps in
    pseudo-time.

    Arguments: as of `newton`. Raises: NumericalError with the residuals of all that was tried.
    """
    failures = []
    for way in (None,) if problem.linear else (None, picard, pseudo_time):
        try:
            return newton(problem, grid, source, boundary, way and way(problem, grid, source, boundary))
        except (NumericalError, np.linalg.LinAlgError) as failure:
            failures.append(str(failure))
    raise NumericalError(
        " ".join(failures) + " Give more points (grid=), or a larger coefficient of the highest derivative (viscosity)."
    )


def picard(problem: Problem, grid: Grid, source: Tensor, boundary: Sequence[np.ndarray]) -> np.ndarray:
    """Coefficients near a solution, by steps that take terms in u itself, but for what is linear in it, from the step before: a
    way for Newton's method where the slopes of these terms mislead.

    Arguments: as of `newton`. Raises: NumericalError if the residual does not fall to NEAR of its first norm.
    """
    zero = torch.zeros(len(grid.x), dtype=torch.float64)
    slopes = linearise(problem.equation, dict.fromkeys(_with_values(problem), zero), grid.x)[1]
    frozen = torch.nan_to_num(slopes[()], 0.0, 0.0, 0.0)
    return _approached("Picard's steps", problem, grid, source, boundary, lambda slope, part: frozen)


def pseudo_time(problem: Problem, grid: Grid, source: Tensor, boundary: Sequence[np.ndarray]) -> np.ndarray:
    """Coefficients near a solution, by implicit steps of ``u_t = -+(F(u) - f)`` that grow as the residual falls: a way for
    Newton's method where its own steps are too long.

    Arguments: as of `newton`. Raises: NumericalError if the residual does not fall to NEAR of its first norm.
    Source: Kelley & Keyes (1998), SIAM Journal on Numerical Analysis 35 (switched evolution relaxation).
    """
    value, slopes = linearise(problem.equation, grid.jet(grid.lift(boundary), _with_values(problem)), grid.x)
    tested = grid.test(value - source)
    response = float(np.linalg.norm(solve_linear(grid, slopes, tested, FORCING)))
    sign = np.sign(sum(np.trace(matrix) / len(matrix) for matrix in axis_matrices(grid, slopes)))
    rate = sign * float(np.linalg.norm(tested)) / response
    return _approached("Steps in pseudo-time", problem, grid, source, boundary, lambda slope, part: slope + rate * part)


def _with_values(problem: Problem) -> list[Index]:
    """The derivatives in the equation, and u."""
    return sorted({(), *problem.jet})


def _approached(
    name: str, problem: Problem, grid: Grid, source: Tensor, boundary: Sequence[np.ndarray],
    coefficient: Callable[[Tensor, float], Tensor],
) -> np.ndarray:  # fmt: skip
    """Coefficients near a solution, by steps of Newton's method with another coefficient of u, from its own and the part of the
    first residual that is left.
    """
    coefficients, residuals = grid.lift(boundary), []
    for _ in range(MAX_TIMES):
        value, slopes = linearise(problem.equation, grid.jet(coefficients, _with_values(problem)), grid.x)
        size = float(value.abs().max())
        tested = grid.test(value - source) if size < HUGE else np.full(grid.free, np.inf)
        residuals.append(float(np.linalg.norm(tested)))
        if not NEAR * residuals[0] < residuals[-1] < AWAY * residuals[0]:
            break
        slopes[()] = coefficient(slopes[()], residuals[-1] / residuals[0])
        coefficients = coefficients + grid.extend(solve_linear(grid, slopes, -tested, FORCING))
    if not residuals[-1] <= NEAR * residuals[0]:
        raise NumericalError(
            f"{name} did not reach a solution on a grid of {grid.shape}: norms of the residual {residuals[0]:.2g}, at least"
            f" {min(residuals):.2g} after {len(residuals)} steps."
        )
    return coefficients


def _damping(
    problem: Problem,
    grid: Grid,
    source: Tensor,
    coefficients: np.ndarray,
    step: np.ndarray,
    residual: float,
    inverse: Solver,
) -> float:
    """The first of 1, 1/2, 1/4, ... that makes the residual smaller, or else, the step that is then asked for; 0 if none does.

    Along what the equation is soft to, such as the place of a layer, residuals are tiny far from a solution, and grow as soon as
    a step errs elsewhere by its square: steps, by the operator from before, count both alike.
    Source: Deuflhard (2004), Newton Methods for Nonlinear Problems, section 3.3 (natural monotonicity).
    """
    if problem.linear:
        return 1.0
    trials = []
    for halvings in range(HALVINGS + 1):
        jet = grid.jet(coefficients + 0.5**halvings * step, problem.jet)
        with torch.no_grad():
            trials.append(grid.test(problem.equation.value(jet, grid.x) - source))
        if np.linalg.norm(trials[-1]) < residual:
            return 0.5**halvings
    size = float(np.linalg.norm(step))
    for halvings, trial in enumerate(trials[:NATURAL]):
        if np.linalg.norm(grid.extend(inverse(trial))) < (1 - 0.5 ** (halvings + 1)) * size:
            return 0.5**halvings
    return 0.0
