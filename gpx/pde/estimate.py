"""How far a solution is from the true one: its residual elsewhere, weighted by the inverse of a finite-difference operator.

With the residual r and the boundary mismatch m of an approximate solution, on another, mostly finer grid, its error e solves
``J e = r`` and ``R e = m`` up to squares of e. Finite differences are rough but see what the solver's functions cannot, and of an
error estimate one digit is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpx.pde.axes import differences
from gpx.pde.expressions import Index, linearise
from gpx.pde.fields import evaluate
from gpx.pde.grids import Grid, boundary_values
from gpx.pde.linear import Solver, axis_matrices, kronecker_sum, solve_linear
from gpx.pde.newton import State
from gpx.pde.problem import Problem
from gpx.pde.resonance import distance, require_determined, softest

FINER = 2  # times as many points per axis
LIMITS = {1: 1000, 2: 240, 3: 64}  # points per axis
NEAR, COARSER = 1.2, 0.75  # times as many: on nodes that nearly coincide residuals are too small, on those not
FIRM = 1e-2  # of the size of their terms: where operators answer with more, their differences do too
UNRESOLVED = 10.0  # of the residual that a soft function should have
TOLERANCE = 0.1  # of GMRES

Jet = dict[Index, Tensor]
"""Values [n] at all nodes, of derivatives or of their coefficients in the equation."""


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
        jet, _, error = self._linear(grid, state)
        return _relative(float(error[()].norm()), jet[()] - error[()])

    def resonance(self, grid: Grid, state: State) -> float:
        """The estimated relative error, corrected along the function to which the equation is softest, and with its squares.

        Near a resonance that is nearly all of the error, and finite differences, whose resonances lie a little elsewhere, answer
        too little of it: as little as they do of that function, known, to its own residual. Where an equation is not linear, what
        the error leaves of it, its squares, counts too, and so does how little is known of that function.
        0 where no function is soft. Raises: NumericalError if a linear equation, with its conditions, is singular.
        Source: Broyden (1965), Mathematics of Computation 19 (the secant update of an inverse).
        """
        push, soft = softest(grid, state.slopes)
        if self.problem.linear:
            require_determined(self.problem, grid, state.slopes, soft)
        if distance(grid, state.slopes, soft) > FIRM:
            return 0.0
        jet, slopes, error = self._linear(grid, state)
        if not bool(torch.isfinite(error[()]).all()):
            return float("inf")
        here = grid.at([axis.nodes for axis in self.grid.axes])
        known, pushed = here.jet(grid.extend(soft), sorted(jet)), here.jet(grid.extend(push), [()])[()]
        response = _applied(slopes, known)
        correct = _secant(known, self._answer(slopes, response))
        error = correct(error)
        size = float(error[()].norm())
        if not self.problem.linear:
            changes = self._value(jet) - self._value({index: jet[index] - error[index] for index in jet})
            size += float(correct(self._answer(slopes, _applied(slopes, error) - changes))[()].norm())
            size = max(size, _unknown(self._value(jet) - self.source, known[()], response, pushed))
        return _relative(size, jet[()] - error[()])

    def _linear(self, grid: Grid, state: State) -> tuple[Jet, Jet, Jet]:
        """At the nodes: the jet of a solution, the slopes of the equation there, and the jet of the error to first order."""
        here = grid.at([axis.nodes for axis in self.grid.axes])
        jet = here.jet(state.coefficients, sorted({(), *self.problem.jet}))
        value, slopes = linearise(self.problem.equation, jet, self.grid.x)
        if not bool(torch.isfinite(value).all()):
            return jet, slopes, dict.fromkeys(jet, torch.full_like(value, torch.inf))
        mismatch = [a - b for a, b in zip(here.traces(state.coefficients), self.boundary, strict=True)]
        return jet, slopes, self._answer(slopes, value - self.source, self.grid.lift(mismatch))

    def _answer(self, slopes: Jet, residual: Tensor, lift: np.ndarray | None = None) -> Jet:
        """The jet of the function with this residual, and with the boundary values of the lift, None for zero."""
        indices = sorted({(), *slopes})
        if lift is not None:
            residual = residual - _applied(slopes, self.grid.jet(lift, indices))
        free = solve_linear(self.grid, slopes, self.grid.test(residual), TOLERANCE, self.solver)
        coefficients = self.grid.extend(free)
        return self.grid.jet(coefficients if lift is None else lift + coefficients, indices)

    def _value(self, jet: Jet) -> Tensor:
        return self.problem.equation.value(jet, self.grid.x)


def _applied(slopes: Jet, jet: Jet) -> Tensor:
    """The linearised operator."""
    return sum(slopes[index] * jet[index] for index in slopes)  # pyright: ignore[reportReturnType]


def _secant(known: Jet, answer: Jet) -> Callable[[Jet], Jet]:
    """The correction of answers that makes this one what is known."""
    size = max(float(answer[()] @ answer[()]), 1e-300)

    def correct(jet: Jet) -> Jet:
        share = float(jet[()] @ answer[()]) / size
        return {index: jet[index] + share * (known[index] - answer[index]) for index in jet}

    return correct


def _unknown(residual: Tensor, soft: Tensor, response: Tensor, pushed: Tensor) -> float:
    """The size of the error where the residual of the softest function is not, between the solver's points, what it should be; 0
    where it is.

    That function and its softness are then the discretisation's own, as those of a layer that it pins, and so is the solution:
    all of the residual may push along it, and the equation may be softer by as much as the function leaves too much of it.
    """
    excess = float((response - pushed).norm() / pushed.norm())
    return excess * float(residual.norm() * soft.norm() / pushed.norm()) if excess > UNRESOLVED else 0.0


def _relative(size: float, truth: Tensor) -> float:
    """Of the truth; 0 where that is zero, infinite where it is not finite."""
    level = float(truth.norm())
    found = size / level if level else 0.0
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
