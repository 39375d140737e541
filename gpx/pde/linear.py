"""Linear operators on a grid: the direct solver of sums over axes, and iterations on it for all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.linalg import schur
from scipy.linalg.lapack import dgetrf, dgetrs, ztrsyl
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from gpx.pde.axes import multiply
from gpx.pde.expressions import Index
from gpx.pde.grids import Grid, along_axes

RESTART = 40  # of GMRES

Solver = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class KroneckerSum:
    """``A_1 + A_2 (+ A_3)``, each along its axis, by Schur's forms: triangles and rotations of every axis. Unlike eigenvectors,
    they are as good for first-order operators, whose eigenvectors are nearly dependent.
    """

    triangles: tuple[np.ndarray, ...]
    rotations: tuple[np.ndarray, ...]

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def __call__(self, right: np.ndarray) -> np.ndarray:
        """The solution of the same shape; not finite where the sum is singular. Cost: O(n sum_d n_d) for n numbers."""
        rotated = multiply([rotation.conj().T for rotation in self.rotations], right)
        one, two, last = (*self.triangles, np.zeros((1, 1)))[:3]
        rest = np.moveaxis(rotated.reshape(*rotated.shape[:2], -1), 2, 0)
        found = np.empty(rest.shape, complex)
        for k in range(len(last))[::-1]:
            # Of the last axis, from the end: what was found there goes to the right side.
            right = rest[k] - (last[k, k + 1 :] @ found[k + 1 :].reshape(-1, rest[k].size)).reshape(rest[k].shape)
            solution = ztrsyl(one + last[k, k] * np.eye(len(one)), two, right, tranb="C")
            found[k] = solution[0] / solution[1]
        return multiply(self.rotations, np.moveaxis(found, 0, 2).reshape(rotated.shape)).real


def kronecker_sum(matrices: Sequence[np.ndarray]) -> Solver:
    """A solver of ``sum_d A_d x_d Z = R``. Cost: O(sum_d n_d^3).

    Source: Bartels & Stewart (1972), Communications of the ACM 15.
    """
    if not all(matrix.size for matrix in matrices):
        return lambda right: right  # of size 0: the conditions leave no function free
    if len(matrices) == 1:
        triangles, pivots, _ = dgetrf(matrices[0])
        return partial(_back, triangles, pivots)
    triangles, rotations = [], []
    for d, matrix in enumerate(matrices):
        triangle, rotation, *_ = schur(matrix.astype(complex), output="complex", check_finite=False)
        # The second axis is multiplied from the right, by the conjugate transpose of a triangle.
        triangles.append(triangle.conj() if d == 1 else triangle)
        rotations.append(rotation)
    return KroneckerSum(tuple(triangles), tuple(rotations))


def _back(triangles: np.ndarray, pivots: np.ndarray, right: np.ndarray) -> np.ndarray:
    return dgetrs(triangles, pivots, right)[0]


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
    """The free numbers whose function, under the operator with these coefficients, has the tested residual `right`; NaN where
    that is singular.

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
        return np.full(shape, np.nan)
    operator = LinearOperator((size, size), matvec=forward, dtype=float)  # pyright: ignore[reportCallIssue]
    found, _ = gmres(operator, start, x0=start, rtol=tolerance, restart=min(RESTART, size), maxiter=1)
    return found.reshape(shape)
