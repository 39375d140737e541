"""Linear operators on a grid: the direct solver of sums over axes, and iterations on it for all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lu_factor, lu_solve, schur
from scipy.linalg.lapack import ztrsyl
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from gpx.pde.axes import multiply
from gpx.pde.expressions import Index
from gpx.pde.grids import Grid, along_axes

RESTART = 40  # of GMRES

Solver = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class KroneckerSum:
    """``A_i + A_j (+ A_k)``, each along its axis: Schur's forms along the axes i, j, whose eigenvectors are the most nearly
    dependent (those of first-order operators are), and eigenvectors along the third.
    """

    axes: tuple[int, ...]  # i, j and, of three, k
    triangles: tuple[np.ndarray, np.ndarray]
    values: np.ndarray  # eigenvalues along axis k, 0 where there is none
    forward: tuple[np.ndarray, ...]  # into these coordinates, by axis
    backward: tuple[np.ndarray, ...]

    def __call__(self, right: np.ndarray) -> np.ndarray:
        """The solution of the same shape. Cost: O(n sum_d n_d) for n numbers."""
        rotated = np.transpose(multiply(self.forward, right), self.axes)
        flat = rotated.reshape(*rotated.shape[:2], -1)
        found = np.empty(flat.shape, complex)
        one, two = self.triangles
        for k, value in enumerate(self.values):
            solution = ztrsyl(one + value * np.eye(len(one)), two, flat[..., k], tranb="C")
            found[..., k] = solution[0] / solution[1]
        return multiply(self.backward, np.transpose(found.reshape(rotated.shape), np.argsort(self.axes))).real


def kronecker_sum(matrices: Sequence[np.ndarray]) -> Solver:
    """A solver of ``sum_d A_d x_d Z = R``. Cost: O(sum_d n_d^3).

    Source: Bartels & Stewart (1972), Communications of the ACM 15.
    """
    if len(matrices) == 1:
        factor = lu_factor(matrices[0], check_finite=False)
        return lambda right: lu_solve(factor, right, check_finite=False)
    axes, values = tuple(range(len(matrices))), np.zeros(1)
    if len(matrices) > 2:
        conditions = [np.linalg.cond(np.linalg.eig(matrix)[1]) for matrix in matrices]
        axes = tuple(int(d) for d in np.argsort(conditions)[::-1])
    forward: list[np.ndarray] = [np.zeros(0)] * len(matrices)
    backward, triangles = list(forward), []
    for place, d in enumerate(axes):
        if place < 2:
            # The second axis is multiplied from the right, by the conjugate transpose of a triangle.
            triangle, rotation = schur(matrices[d].astype(complex), output="complex", check_finite=False)  # pyright: ignore
            triangles.append(triangle if place == 0 else triangle.conj())
            forward[d], backward[d] = rotation.conj().T, rotation
        else:
            values, backward[d] = np.linalg.eig(matrices[d])
            forward[d] = np.linalg.inv(backward[d])
    return KroneckerSum(axes, (triangles[0], triangles[1]), values, tuple(forward), tuple(backward))


def axis_matrices(grid: Grid, slopes: Mapping[Index, Tensor]) -> list[np.ndarray]:
    """For every axis, the part [n_d, n_d] of an operator that acts along it, on functions that meet the boundary conditions."""
    found = []
    for axis, parts in zip(grid.axes, along_axes(slopes, grid.shape), strict=True):
        matrix = sum(coefficient[:, None] * axis.derivatives[order] for order, coefficient in parts.items())
        found.append(axis.test @ matrix @ axis.null if parts else np.zeros((axis.null.shape[1],) * 2))
    return found


def solve_linear(
    grid: Grid, slopes: Mapping[Index, Tensor], right: np.ndarray, tolerance: float, solver: Solver | None = None
) -> np.ndarray:
    """The free numbers whose function, under the operator with these coefficients, has the tested residual `right`.

    Arguments: solver: of the part that is a sum over axes, None makes it; GMRES solves what that leaves. tolerance: relative.
    """
    base = kronecker_sum(axis_matrices(grid, slopes)) if solver is None else solver
    shape = right.shape

    def forward(free: np.ndarray) -> np.ndarray:
        jet = grid.jet(grid.extend(free.reshape(shape)), tuple(slopes))
        return base(grid.test(sum(slopes[index] * jet[index] for index in slopes))).reshape(-1)  # pyright: ignore

    size = right.size
    start = base(right).reshape(-1)
    if not np.isfinite(start).all():
        return start.reshape(shape)
    operator = LinearOperator((size, size), matvec=forward, dtype=float)  # pyright: ignore[reportCallIssue]
    found, _ = gmres(operator, start, x0=start, rtol=tolerance, restart=min(RESTART, size), maxiter=1)
    return found.reshape(shape)
