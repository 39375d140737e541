"""A solution: values, derivatives, estimated error, plots and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.pde.axes import galerkin, multiply
from gpx.pde.basis import Basis
from gpx.pde.domains import points
from gpx.pde.expressions import Expression, Index, expression, indices, linearise, u
from gpx.pde.grids import Grid
from gpx.pde.linear import axis_matrices, kronecker_sum, solve_linear
from gpx.pde.noise import mean_square
from gpx.pde.problem import Problem
from gpx.pde.select import Setting

TEST_POINTS = {1: 300, 2: 300, 3: 80}  # per axis
CHUNK = 20_000  # points
DRAWS = 64


@dataclass(frozen=True, eq=False)
class Solution:
    """A function ``u(x) = sum c_ij... b_i(x_1) b_j(x_2) ...`` that solves a `Problem`, called at points or any expression.

    problem; nodes: points of the grid along every axis; bases: the functions b of every axis; coefficients c [r_1, ..., r_d];
    error_estimate: estimated relative L2 error; setting: the frequencies and lengthscales that were chosen, None where the kernel
    was given; posterior_std: standard deviations at the nodes, where the source has noise.

    >>> import gpx
    >>> from gpx.pde import D, Interval, Problem, solve, u
    >>> solution = solve(Problem(Interval(0, 1), D(u, 0, 2), -2.0, 0.0), grid=20)
    >>> print(f"{float(solution(torch.tensor([0.5]))[0]):.6f} {float(solution([0.0], D(u, 0))[0]):.6f}")
    0.250000 1.000000
    """

    problem: Problem
    nodes: tuple[np.ndarray, ...]
    bases: tuple[Basis, ...]
    coefficients: np.ndarray
    error_estimate: float
    setting: Setting | None = None
    posterior_std: np.ndarray | None = None

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
        grid = Grid(
            tuple(galerkin(self.problem, d, b, n) for d, (b, n) in enumerate(zip(self.bases, self.nodes, strict=True)))
        )
        slopes = linearise(self.problem.equation, grid.jet(self.coefficients, self.problem.jet), grid.x)[1]
        solver = kronecker_sum(axis_matrices(grid, slopes))
        random, squares = np.random.default_rng(0), 0.0
        for _ in range(DRAWS):
            white = grid.test(torch.from_numpy(random.standard_normal(len(grid.x))))
            drawn = grid.extend(solve_linear(grid, slopes, white, 0.03, solver))
            squares = squares + multiply([axis.derivatives[0] for axis in grid.axes], drawn) ** 2
        level = (
            self.error_estimate**2 * mean_square(self.u.numpy(), self.nodes) / mean_square(np.sqrt(squares), self.nodes)
        )
        return torch.from_numpy(np.sqrt(level * squares))

    def on(self, axes: Sequence[Any]) -> Tensor:
        """The values [n_1, ..., n_d] on any grid, given by its points along every axis. Cost: that of d thin matrix products."""
        matrices = [basis(np.asarray(x, dtype=float)) for basis, x in zip(self.bases, axes, strict=True)]
        return torch.from_numpy(multiply(matrices, self.coefficients))

    def __call__(self, X: Any, of: Expression | None = None) -> Tensor:
        """Values [n] at points X [n, d] ([n] where d = 1) of u, or of an expression in u and its derivatives.

        Raises: InputError for points of another dimension or outside the domain. Cost: O(n r^d).
        """
        x, what = self._points(X), u if of is None else expression(of)
        asked = sorted(indices(what))
        parts = [what.value(self._jet(part, asked), part) for part in x.split(CHUNK)]
        return torch.cat(parts) if parts else x.new_zeros(0)

    def relative_error(self) -> float:
        """The relative L2 error against `problem.exact` on a uniform test grid of 300 points per axis (80 in three dimensions).

        Raises: InputError if the problem has no exact solution.
        """
        exact = self.problem.exact
        if exact is None:
            raise InputError("The problem has no exact solution (exact=None); error_estimate needs none.")
        axes = self.problem.domain.axes([TEST_POINTS[len(self.nodes)]] * len(self.nodes))
        truth = exact(points(axes))
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

    def _points(self, X: Any) -> Tensor:
        x = torch.as_tensor(np.asarray(X, dtype=float)) if not isinstance(X, Tensor) else X.detach().double()
        x = x[:, None] if x.dim() == 1 and len(self.nodes) == 1 else x
        if x.dim() != 2 or x.shape[1] != len(self.nodes):
            raise InputError(
                f"A solution of {len(self.nodes)} axes is called at points [n, {len(self.nodes)}], got {list(x.shape)}."
            )
        for axis, (low, high) in enumerate(self.problem.domain.bounds):
            slack = 1e-9 * (high - low)
            outside = (x[:, axis] < low - slack) | (x[:, axis] > high + slack)
            if bool(outside.any()):
                raise InputError(
                    f"{int(outside.sum())} of {len(x)} points are outside the domain along axis {axis}: {low:g} to {high:g}."
                )
        return x

    def _jet(self, x: Tensor, asked: Sequence[Index]) -> dict[Index, Tensor]:
        found = {}
        for index in asked:
            rows = [basis(x[:, d].numpy(), index.count(d)) for d, basis in enumerate(self.bases)]
            value = np.tensordot(rows[0], self.coefficients, 1)
            for row in rows[1:]:
                value = np.einsum("nj,nj...->n...", row, value)
            found[index] = torch.from_numpy(np.ascontiguousarray(value))
        return found
