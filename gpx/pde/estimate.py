"""How far a solution is from the true one: its residual elsewhere, weighted by the inverse of a finite-difference operator.

With the residual r and the boundary mismatch m of an approximate solution, on another, mostly finer grid, its error e solves
``J e = r`` and ``R e = m`` up to squares of e. Finite differences are rough but see what the solver's functions cannot, and of an
error estimate one digit is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from gpx.pde.axes import differences
from gpx.pde.basis import trapezoid
from gpx.pde.expressions import linearise
from gpx.pde.fields import evaluate
from gpx.pde.grids import Grid, boundary_values
from gpx.pde.linear import Solver, axis_matrices, kronecker_sum, solve_linear
from gpx.pde.newton import State
from gpx.pde.problem import Problem
from gpx.pde.resonance import require_determined, softest

FINER = 2  # times as many points per axis
LIMITS = {1: 1000, 2: 240, 3: 64}  # points per axis
NEAR, COARSER = 1.2, 0.75  # times as many: on nodes that nearly coincide residuals are too small, on those not
TOLERANCE = 0.1  # of GMRES


@dataclass(frozen=True)
class Judge:
    """A grid of finite differences, with what the problem asks there; solver: of its operator, None where that varies."""

    problem: Problem
    grid: Grid
    source: Tensor
    boundary: list[np.ndarray]
    solver: Solver | None

    def error(self, grid: Grid, state: State) -> float:
        """The estimated relative L2 error of a solution; infinite where it is not finite."""
        here = grid.at([axis.nodes for axis in self.grid.axes])
        jet = here.jet(state.coefficients, sorted({(), *self.problem.jet}))
        value, slopes = linearise(self.problem.equation, jet, self.grid.x)
        if not bool(torch.isfinite(value).all()):
            return float("inf")
        mismatch = [a - b for a, b in zip(here.traces(state.coefficients), self.boundary, strict=True)]
        lift = self.grid.lift(mismatch)
        lifted = self.grid.jet(lift, tuple(slopes))
        rest = value - self.source - sum(slopes[index] * lifted[index] for index in slopes)
        free = solve_linear(self.grid, slopes, self.grid.test(rest), TOLERANCE, self.solver)
        error = self.grid.jet(lift + self.grid.extend(free), [()])[()]
        truth = float((jet[()] - error).norm())
        found = float(error.norm()) / truth if truth else 0.0
        return found if np.isfinite(found) else float("inf")

    def resonance(self, grid: Grid, state: State) -> float:
        """The part of the relative error that answers to the residual in the way to which the equation is softest.

        Near a resonance it is nearly all of the error, and finite differences, whose resonances lie a little elsewhere, miss it.
        Raises: NumericalError if the equation, with its conditions, is singular.
        """
        push, answer = softest(grid, state.slopes)
        require_determined(self.problem, grid, state.slopes, answer)
        here = grid.at([axis.nodes for axis in self.grid.axes])
        residual = self.problem.equation.value(here.jet(state.coefficients, self.problem.jet), here.x) - self.source
        weights = reduce(np.multiply.outer, [trapezoid(axis.nodes) for axis in here.axes]).reshape(-1)
        pushed = float((weights * (here.jet(grid.extend(push), [()])[()] * residual).numpy()).sum())
        found = abs(pushed) * float(np.linalg.norm(answer)) / max(float(np.linalg.norm(state.coefficients)), 1e-300)
        return found if np.isfinite(found) else float("inf")


def judge(problem: Problem, counts: tuple[int, ...]) -> Judge:
    """The judge of solutions on grids of so many points per axis."""
    limit = LIMITS[problem.domain.dims]
    nodes = problem.domain.axes([_other(n, limit) + 1 for n in counts])
    grid = Grid(tuple(differences(problem, axis, points) for axis, points in enumerate(nodes)))
    source = evaluate(problem.source, grid.x, "The source")
    solver = None
    if problem.linear:
        zero = {index: torch.zeros(len(grid.x), dtype=torch.float64) for index in problem.jet}
        solver = kronecker_sum(axis_matrices(grid, linearise(problem.equation, zero, grid.x)[1]))
    return Judge(problem, grid, source, boundary_values(problem, nodes), solver)


def _other(count: int, limit: int) -> int:
    """Intervals of the judge's axis beside one of so many points."""
    found = min(FINER * count, max(limit, count // 2))
    return round(COARSER * count) if 1 / NEAR < found / count < NEAR else found
