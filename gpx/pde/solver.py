"""`solve`: one configuration for all problems."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from gpx.errors import FitWarning
from gpx.pde.domains import points
from gpx.pde.estimate import judge
from gpx.pde.expressions import evaluate
from gpx.pde.grids import boundary_values
from gpx.pde.problem import Problem
from gpx.pde.select import Search, select
from gpx.pde.solution import Solution
from gpx.pde.spectrum import frequencies

DOUBTFUL = 0.01  # estimated errors that are worth a warning


def solve(problem: Problem, grid: int | Sequence[int] | None = None) -> Solution:
    """The solution of a differential equation, as the mean of a Gaussian process that satisfies it on a uniform grid.

    The process is a product over axes of spectral mixtures: bumps at the frequencies of the source and of the boundary values,
    and at zero. In the eigenfunctions of its kernel, truncated where they are lost in rounding, the equation, tested by those
    that meet the boundary conditions, is solved by Newton's method: directly where it is linear and a sum over axes, otherwise
    with GMRES, preconditioned by the nearest such sum. Lengthscales are those of least estimated error. Nothing reads
    `problem.exact`.

    Arguments: grid: points per axis, a number or one for each; None: the problem's. Result: a `Solution`.
    Raises: InputError for grids too small; NumericalError if Newton's method does not converge.
    Warns: FitWarning where the grid is too coarse for the source, or the estimated error is above 1 %.
    Cost: per candidate, O(sum_d M_d r_d^2 + sum_d r_d^3 + M sum_d r_d) time, r_d functions per axis; O(M) memory.
    Source: kernel and collocation of Fang et al. (2024), "Solving high frequency and multi-scale PDEs with Gaussian processes"; the rest is
    in docs/theory/pde.md.

    >>> from gpx.pde import problems
    >>> solve(problems.poisson_1d_p1()).relative_error() < 1e-9
    True
    """
    counts = problem.counts(grid)
    tones = frequencies(problem, counts)
    nodes = tuple(problem.domain.axes(counts))
    source = evaluate(problem.source, points(nodes), "The source")
    search = Search(problem, nodes, source, boundary_values(problem, nodes), judge(problem, counts))
    best = select(search, tones)
    if best.error > DOUBTFUL:
        warnings.warn(
            f"The estimated relative error of the solution is {best.error:.2g}: give more points than grid={counts}, or a domain"
            " in which the solution is smoother.",
            FitWarning,
        )
    spans = [float(np.ptp(n)) for n in nodes]
    return Solution(
        problem, nodes, tuple(axis.basis for axis in best.grid.axes), best.state.coefficients, best.error,  # pyright: ignore
        best.setting.frequencies, tuple(part * span for part, span in zip(best.setting.lengthscales, spans, strict=True)),
    )  # fmt: skip
