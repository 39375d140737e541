"""Solutions at scattered points: the mean of a Gaussian process given the equation there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gpx.errors import FitWarning, InputError, StructureError
from gpx.pde.domains import called_at, whole
from gpx.pde.expressions import Expression, evaluate, expression, indices, require_known, u
from gpx.pde.gauss_newton import DENSE, Choice, Jets, Measured, by_chance, prior, solved
from gpx.pde.measurements import Combination, Posterior, values_at
from gpx.pde.points import Points
from gpx.pde.problem import Problem
from gpx.pde.sparse import SparsePosterior

DOUBTFUL = 0.01  # estimated errors that are worth a warning
TEST_POINTS = {1: 400, 2: 100, 3: 22}  # per axis


@dataclass(frozen=True, eq=False)
class PointPath:
    """A function drawn from what is known of a solution at points, called as that is."""

    domain: Points
    drawn: Posterior | SparsePosterior | Combination

    def __call__(self, X: Any, of: Expression | None = None) -> Tensor:
        """Values [n] at points X [n, d] ([n] where d = 1) of u, or of an expression in u and its derivatives.

        Raises: InputError for points of another dimension, not finite or outside the domain, or derivatives along other axes;
        StructureError for derivatives that the kernel does not have. Cost: O(n N).
        """
        x, what = called_at(X, self.domain.dims), u if of is None else expression(of)
        self.domain.check(x)
        require_known(what, self.domain.dims)
        return what.value({index: self.drawn.mean(values_at(x, index)) for index in sorted(indices(what))}, x)


@dataclass(frozen=True, eq=False)
class PointSolution:
    """A function that solves a `Problem` at the points of its domain, called at other points or with any expression.

    problem; posterior: the process that it is the mean of; jets: of the function around which the equation was linearised;
    choice: the kernel that was chosen, None where it was given.

    >>> from gpx.pde import D, Points, Problem, solve, u
    >>> disc = Points.within([(-1, 1), (-1, 1)], lambda x: x.norm(dim=1) < 1, 300)
    >>> solution = solve(Problem(disc, D(u, 0, 2) + D(u, 1, 2), -4.0, 0.0))
    >>> print(f"{float(solution([[0.0, 0.0]])[0]):.3f} {float(solution([[0.6, 0.0]], D(u, 0))[0]):.3f}")
    1.000 -1.200
    """

    problem: Problem
    posterior: Posterior | SparsePosterior
    jets: Jets
    choice: Choice | None = None

    @property
    def points(self) -> Tensor:
        """The points [N, d], those of the boundary first."""
        return self.problem.domain.all

    @cached_property
    def u(self) -> Tensor:
        """The values [N] at the points."""
        return self(self.points)

    @cached_property
    def std(self) -> Tensor:
        """Posterior standard deviations [N] of u at the points, with the variance of the kernel that predicts each measurement
        from all others best. Cost: O(N^3) for N points; beyond 5,000 they come from draws.
        """
        return self.posterior.std(values_at(self.points))

    @cached_property
    def error_estimate(self) -> float:
        """The estimated relative L2 error: the root mean square of `std` where the equation holds, over that of u."""
        inner = slice(len(self.problem.domain.boundary), None)
        return float(self.std[inner].norm() / self.u[inner].norm().clamp_min(1e-300))

    def __call__(self, X: Any, of: Expression | None = None) -> Tensor:
        """Values [n] at points X [n, d] ([n] where d = 1) of u, or of an expression in u and its derivatives.

        Raises: InputError for points of another dimension, not finite or outside the domain, or derivatives along other axes;
        StructureError for derivatives that the kernel
        does not have. Cost: O(n N).
        """
        return PointPath(self.problem.domain, self.posterior)(X, of)  # pyright: ignore[reportArgumentType]

    def paths(self, n: int, seed: int | None = 0) -> list[PointPath]:
        """n functions drawn from what is known of u, called as the solution is; the same ones for the same seed.

        Their means and deviations at the points are `u` and `std`; between them a draw is what its values at the points say.
        They meet the conditions and the equation, linearised where it is not linear, up to noise and to rounding, 1e-8 of u.
        Raises: InputError for n that is not positive; StructureError beyond 5,000 measurements. Cost: O(N^3) for N of them.
        """
        if not whole(n, 1):
            raise InputError(f"paths takes a number of draws >= 1, got {n!r}.")
        domain = self.problem.domain
        if isinstance(self.posterior, SparsePosterior):
            raise StructureError(f"paths takes a solution with at most {DENSE} measurements: give fewer points.")
        return [PointPath(domain, d) for d in self.posterior.draws(self.points, n, seed)]  # pyright: ignore

    def relative_error(self) -> float:
        """The relative L2 error against `problem.exact` on a uniform grid of 100 points per axis (1-D: 400, 3-D: 22), those
        inside; where the domain has no `inside`, at middles between its points.

        Raises: InputError if the problem has no exact solution.
        """
        if self.problem.exact is None:
            raise InputError("The problem has no exact solution (exact=None); error_estimate needs none.")
        x = self.problem.domain.between(TEST_POINTS[self.problem.domain.dims])
        truth = evaluate(self.problem.exact, x, "exact")
        return float((self.posterior.mean(values_at(x)) - truth).norm() / truth.norm())

    def plot(self, ax: Any = None) -> Any:
        """A picture of u: a line with a band of two standard deviations (one axis), or its values on the first two axes.

        Arguments: ax: matplotlib axes; None makes a figure. Returns: the axes. Raises: InputError without matplotlib.
        """
        from gpx.pde.picture import plot_points

        return plot_points(self, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the points and their weights to a file; `gpx.pde.load` reads it. The problem, being code, is not.

        Raises: InputError if the file cannot be written; StructureError for a solution with a kernel that was given to `solve`.
        """
        from gpx.pde.storage import save_at_points

        save_at_points(self, path)


def solve_at_points(problem: Problem, kernel: Any = None) -> PointSolution:
    """The solution of a problem whose domain is `Points`; see `gpx.pde.solve`.

    Raises: NumericalError if the Gauss-Newton method does not converge; StructureError for a kernel that is not smooth enough.
    Cost: dense, O(N^3) time and O(N^2) memory per step; beyond 5,000 points, see
    `sparse.condition_sparsely`.
    Source: Chen, Hosseini, Owhadi & Stuart (2021), "Solving and learning nonlinear PDEs with Gaussian processes"; Chen, Owhadi &
    Schaefer (2025), "Sparse Cholesky factorization for solving nonlinear PDEs via Gaussian processes".
    """
    choice, kernels, variance = prior(problem, None if kernel is None else _given(kernel, problem.domain.dims))
    posterior, jets = solved(Measured.of(problem, problem.domain), kernels, variance)
    solution = PointSolution(problem, posterior, jets, choice)
    if not problem.uncertain and solution.error_estimate > DOUBTFUL:
        warnings.warn(
            f"The estimated relative error of the solution is {solution.error_estimate:.2g}: give more points than"
            f" {len(solution.points)}, at corners of the domain above all, where solutions are rough, or kernel= with a"
            " lengthscale of a few distances of points.",
            FitWarning,
        )
    _warn_of_missed(solution)
    return solution


def _warn_of_missed(solution: PointSolution) -> None:
    """Warns: FitWarning where observations differ from the solution by far more than their noise."""
    observed = solution.problem.observations
    misses = [(o.y - solution(o.x, o.of)) / o.noise for o in observed]  # pyright: ignore[reportGeneralTypeIssues]
    if not misses:
        return
    missed = torch.cat(misses)
    size = float(missed.square().mean().sqrt())
    if not by_chance(missed):
        warnings.warn(
            f"The solution misses observations by {size:.2g} times their noise (root mean square of {len(missed)}): the equation,"
            " the conditions and the observations contradict each other; correct one of them, give a larger noise, or, if they"
            " are right, more points, or kernel= with another lengthscale.",
            FitWarning,
        )


def _given(kernel: Any, dims: int) -> Sequence[Any]:
    kernels = list(kernel) if isinstance(kernel, (list, tuple)) else [kernel] * dims
    if len(kernels) != dims:
        raise InputError(f"kernel is one kernel or a list of one for each of {dims} axes, got {len(kernels)}.")
    return kernels
