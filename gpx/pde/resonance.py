"""Equations that, with their conditions, have null functions or nearly so: what they answer is then not determined.

Theory: docs/theory/pde.md, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gpx.errors import NumericalError
from gpx.pde.axes import galerkin
from gpx.pde.basis import spectral_basis
from gpx.pde.domains import Face
from gpx.pde.expressions import Index, linearise
from gpx.pde.grids import Grid
from gpx.pde.linear import solve_linear
from gpx.pde.problem import Problem

STEPS = 2  # of inverse iteration: a function that stands out does so at once
SINGULAR = 3e-10  # of the size of its terms: what is left of a null function's, by rounding and by what functions lack
TRIED = {1: 200, 2: 60, 3: 24}  # points per axis
LENGTHSCALES = (1.0, 0.12)  # of the range: for null functions that are smooth, and that oscillate
TOLERANCE = 1e-3  # of GMRES


def softest(grid: Grid, slopes: Mapping[Index, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """A unit residual, tested, to which the operator with these coefficients answers most, and the answer (free numbers).

    By inverse iteration from noise, of two steps: of the right size, and near the extreme where there is a null function nearby.
    Cost: that of two linear solutions.
    """
    answer = push = np.random.default_rng(0).standard_normal(grid.free)
    for _ in range(STEPS):
        push = answer / np.linalg.norm(answer)
        answer = solve_linear(grid, slopes, push, TOLERANCE)
    return push, answer


def distance(grid: Grid, slopes: Mapping[Index, Tensor], answer: np.ndarray) -> float:
    """How far a function that the operator maps to a unit residual is from a null function: 1 over the size of the terms.

    Derivatives count at least as those of a function that varies over the whole range, so that a null function without any, such
    as a line under a second derivative, is told from others.
    """
    if not np.isfinite(answer).all():
        return 0.0
    jet = grid.jet(grid.extend(answer), sorted({(), *slopes}))
    level = float(jet[()].square().mean().sqrt())
    lengths = [float(np.ptp(axis.nodes)) for axis in grid.axes]
    terms = sum(
        slope.abs() * (jet[index].abs() + level / np.prod([lengths[d] for d in index]))
        for index, slope in slopes.items()
    )
    return 1.0 / max(float(np.linalg.norm(grid.test(terms))), 1e-300)  # pyright: ignore[reportArgumentType]


def require_determined(problem: Problem, grid: Grid, slopes: Mapping[Index, Tensor], answer: np.ndarray) -> None:
    """Raises: NumericalError if the operator has a null function that meets the homogeneous conditions."""
    if distance(grid, slopes, answer) < SINGULAR:
        raise NumericalError(undetermined(problem))


def require_conditions(problem: Problem) -> None:
    """Raises: NumericalError if a linear problem has a null function that is smooth or has a few oscillations, or one of first
    order has conditions where it flows out.

    Cost: that of a few solutions on a small grid, whatever the problem's.
    """
    nodes = problem.domain.axes([TRIED[problem.domain.dims]] * problem.domain.dims)
    for part in LENGTHSCALES if problem.linear else ():
        bases = [spectral_basis(np.zeros(1), np.array([part * np.ptp(n)]), n) for n in nodes]
        grid = Grid(
            tuple(galerkin(problem, d, basis, n) for d, (basis, n) in enumerate(zip(bases, nodes, strict=True)))
        )
        zero = {index: torch.zeros(len(grid.x), dtype=torch.float64) for index in problem.jet}
        slopes = linearise(problem.equation, zero, grid.x)[1]
        _require_inflow(problem, slopes)
        require_determined(problem, grid, slopes, softest(grid, slopes)[1])


def _require_inflow(problem: Problem, slopes: Mapping[Index, Tensor]) -> None:
    """In several axes what flows in where nothing is asked is free, though no smooth function shows it."""
    if max(problem.orders) > 1:
        return
    sides: dict[float, list[Face]] = {1.0: [], -1.0: []}
    for axis in range(problem.domain.dims):
        for condition in problem.along(axis):
            inward = (slopes[(axis,)] * (1 - 2 * condition.face[1])).sign()
            if bool((inward == inward[0]).all()) and inward[0]:
                sides[float(inward[0])].append(condition.face)
    into, out = sides.values()
    if into and out:
        raise NumericalError(
            f"The first-order equation {problem.equation!r} has conditions on {into}, where u flows in, and on {out}, where it"
            " flows out (or the other way round, if its sign is changed): what flows in elsewhere is not determined; move one or"
            " the other to the opposite faces."
        )


def undetermined(problem: Problem) -> str:
    """What is wrong, and what to do."""
    return (
        f"The equation {problem.equation!r} with the conditions {', '.join(map(repr, problem.conditions))} is singular, or nearly"
        " so: some function meets both with zeros on the right, and can be added to a solution, if there is one. Change a"
        " condition (those of a first-order equation belong where it flows in) or a coefficient (away from a resonance), or give"
        " observations= of u, which choose among the solutions."
    )
