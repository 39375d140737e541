"""A solution: values, derivatives, estimated error, plots and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.pde.axes import galerkin, multiply
from gpx.pde.basis import Basis
from gpx.pde.domains import numbers, points, whole
from gpx.pde.draws import Draws, Estimate
from gpx.pde.expressions import Expression, linearise
from gpx.pde.fields import evaluate
from gpx.pde.functions import Function, Functions
from gpx.pde.grids import Grid
from gpx.pde.joint import mean_square
from gpx.pde.linear import Solver, axis_matrices, kronecker_sum, solve_linear
from gpx.pde.problem import Problem
from gpx.pde.select import Setting

TEST_POINTS = {1: 300, 2: 300, 3: 80}  # per axis
DRAWS = 64


@dataclass(frozen=True, eq=False)
class Solution:
    """A function ``u(x) = sum c_ij... b_i(x_1) b_j(x_2) ...`` that solves a `Problem`, called at points or any expression.

    problem; nodes: points of the grid along every axis; mean: u, with the unknown functions and numbers of the equation;
    error_estimate: estimated relative L2 error; where data have noise, the larger of the posterior's deviation and what the mean
    leaves of the equation between the nodes, seen through its inverse (0 where that is not known: the source is an array, or
    conditions do not determine the solution); setting: the frequencies and lengthscales that were chosen, None where the kernel
    was given; posterior_std: standard deviations at the nodes, where data have noise; unknowns: what they say of the unknown
    numbers and functions of the equation, by their names; draws: the posterior given such data.

    >>> import gpx
    >>> from gpx.pde import D, Interval, Problem, solve, u
    >>> solution = solve(Problem(Interval(0, 1), D(u, 0, 2), -2.0, 0.0), grid=20)
    >>> print(f"{float(solution(torch.tensor([0.5]))[0]):.6f} {float(solution([0.0], D(u, 0))[0]):.6f}")
    0.250000 1.000000
    """

    problem: Problem
    nodes: tuple[np.ndarray, ...]
    mean: Functions
    error_estimate: float
    setting: Setting | None = None
    posterior_std: np.ndarray | None = None
    unknowns: Mapping[str, Estimate] = field(default_factory=dict)
    draws: Draws | None = None

    @property
    def bases(self) -> tuple[Basis, ...]:
        """The functions b of every axis."""
        return self.mean.u.bases

    @property
    def coefficients(self) -> np.ndarray:
        """c [r_1, ..., r_d]."""
        return self.mean.u.coefficients

    @property
    def grid(self) -> list[Tensor]:
        """The points of the grid along every axis."""
        return [torch.from_numpy(n) for n in self.nodes]

    @cached_property
    def u(self) -> Tensor:
        """The values [M_1, ..., M_d] on the grid."""
        return self.on(self.nodes)

    @cached_property
    def std(self) -> Tensor:
        """Standard deviations [M_1, ..., M_d] of u on the grid.

        Those of the posterior where the source has noise. Otherwise those of white residuals at the nodes, seen through the
        inverse of the linearised operator, with the level that makes their mean square that of the estimated error; by 64 draws.
        """
        if self.posterior_std is not None:
            return torch.from_numpy(self.posterior_std)
        return torch.from_numpy(self._white_level * np.sqrt(self._white[1]))

    def paths(self, n: int, seed: int | None = 0) -> list[Functions]:
        """n functions drawn from what is known of u (and of the unknowns), called as the solution is.

        Their means and deviations are `u` and `std`. They meet the conditions; the equation, up to noise in the source, or
        without noise up to residuals that explain the estimated error. Raises: InputError for n that is not positive.
        """
        if not whole(n, 1):
            raise InputError(f"paths takes a number of draws >= 1, got {n!r}.")
        if self.draws is not None:
            return self.draws.draw(n, seed)
        random = np.random.default_rng(seed)
        return [
            replace(self.mean, u=Function(self.bases, self.coefficients + self._white_level * self._drawn(random)))
            for _ in range(n)
        ]

    @cached_property
    def _operator(self) -> tuple[Grid, dict[Any, Tensor], Solver]:
        """The grid, the linearised operator there, and a solver of the nearest sum over axes."""
        grid = Grid(
            tuple(galerkin(self.problem, d, b, n) for d, (b, n) in enumerate(zip(self.bases, self.nodes, strict=True)))
        )
        slopes = linearise(self.problem.equation, grid.jet(self.coefficients, self.problem.jet), grid.x)[1]
        return grid, slopes, kronecker_sum(axis_matrices(grid, slopes))

    def _drawn(self, random: np.random.Generator) -> np.ndarray:
        """Coefficients of the response to white residuals at the nodes."""
        grid, slopes, solver = self._operator
        white = grid.test(torch.from_numpy(random.standard_normal(len(grid.x))))
        return grid.extend(solve_linear(grid, slopes, white, 0.03, solver))

    @cached_property
    def _white(self) -> tuple[float, np.ndarray]:
        """The mean square over the domain, and at the nodes, of responses to white residuals."""
        random, axes = np.random.default_rng(0), self._operator[0].axes
        values = [multiply([axis.derivatives[0] for axis in axes], self._drawn(random)) for _ in range(DRAWS)]
        squares = np.mean(np.square(values), 0)
        return mean_square(np.sqrt(squares), self.nodes), squares

    @cached_property
    def _white_level(self) -> float:
        """Of the residuals whose responses have the size of the estimated error."""
        return self.error_estimate * float(np.sqrt(mean_square(self.u.numpy(), self.nodes) / self._white[0]))

    def on(self, axes: Sequence[Any]) -> Tensor:
        """The values [n_1, ..., n_d] on any grid, given by its points along every axis.

        Raises: InputError for other numbers of axes, and points outside the domain. Cost: that of d thin matrix products.
        """
        domain = self.problem.domain
        listed = axes if isinstance(axes, (Sequence, np.ndarray, Tensor)) else [axes]
        found = [numbers(x, f"The points along axis {axis}") for axis, x in enumerate(listed)]
        if len(found) != domain.dims or any(x.dim() != 1 or not torch.isfinite(x).all() for x in found):
            raise InputError(
                f"on takes finite points [n] along each of {domain.dims} axes, got shapes {[list(x.shape) for x in found]}; at"
                " scattered points call the solution."
            )
        for axis, x in enumerate(found):
            domain.check(axis, x)
        return self.mean.u.on(found)

    def __call__(self, X: Any, of: Expression | None = None) -> Tensor:
        """Values [n] at points X [n, d] ([n] where d = 1) of u, or of an expression in u and unknown functions.

        Raises: InputError for points of another dimension, not finite or outside the domain, derivatives along axes or unknown
        functions that the solution does not have. Cost: O(n r^d).
        """
        return self.mean(X, of)

    def relative_error(self) -> float:
        """The relative L2 error against `problem.exact` on a uniform test grid of 300 points per axis (80 in three dimensions).

        Raises: InputError if the problem has no exact solution.
        """
        exact = self.problem.exact
        if exact is None:
            raise InputError("The problem has no exact solution (exact=None); error_estimate needs none.")
        axes = self.problem.domain.axes([TEST_POINTS[len(self.nodes)]] * len(self.nodes))
        truth = evaluate(exact, points(axes), "exact")
        return float((self.on(axes).reshape(-1) - truth).norm() / truth.norm())

    def plot(self, ax: Any = None) -> Any:
        """A picture of u: a line with a band of two standard deviations (one axis), or its values on two axes (of three: in the
        middle of the third), with the exact solution where it is known.

        Arguments: ax: matplotlib axes; None makes a figure. Returns: the axes. Raises: InputError without matplotlib.
        """
        from gpx.pde.picture import plot

        return plot(self, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the functions and their coefficients to a file; `gpx.pde.load` reads it. The problem, being code, is not.

        Raises: InputError if the file cannot be written.
        """
        from gpx.pde.storage import save

        save(self, path)
