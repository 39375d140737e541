"""Ridge leverage scores: how much each row adds to what the others say.

Theory: docs/theory/selection.md.
"""

from __future__ import annotations

from typing import NamedTuple

import gpytorch
import torch
from torch import Tensor

from gpx.kernels.dense import dense, diagonal
from gpx.linalg.cholesky import factorise
from gpx.selection.base import blocks

OVERSAMPLING = 16  # points of a dictionary per unit of effective dimension
FLOOR = 1e-8  # of the largest prior variance: a smaller ridge drowns in rounding


class Dictionary(NamedTuple):
    """Weighted points [m, D] that stand for many rows where leverage at this ridge is concerned; weights [m]."""

    points: Tensor
    weights: Tensor
    ridge: float

    @torch.no_grad()
    def leverage(self, kernel: gpytorch.kernels.Kernel, X: Tensor) -> Tensor:
        """Estimates [N], within 0 and 1, of ``[K (K + ridge)^-1]_nn`` of the rows that the dictionary stands for.

        ``(k_nn - k_n^T S (S K S + ridge)^-1 S k_n) / ridge``, S^2 = diag(weights). Cost: O(N m^2), in blocks of rows.
        """
        result, roots = diagonal(kernel, X).clone(), self.weights.sqrt()
        if len(self.points):
            factor = factorise(lambda: self._regularised(kernel, roots))
            for rows in blocks(len(X), len(self.points)):
                half = factor.half_solve(roots[:, None] * dense(kernel, self.points, X[rows]))
                result[rows] -= half.square().sum(0)
        # Differences: below zero by rounding alone.
        return (result / self.ridge).clamp(0, 1)

    def _regularised(self, kernel: gpytorch.kernels.Kernel, roots: Tensor) -> Tensor:
        matrix = roots[:, None] * dense(kernel, self.points, self.points) * roots
        matrix.diagonal().add_(self.ridge)
        return matrix


@torch.no_grad()
def ridge_leverage(kernel: gpytorch.kernels.Kernel, X: Tensor, ridge: float) -> Tensor:
    """``[K (K + ridge)^-1]_nn`` for all rows, exactly.

    Arguments: X: [N, D]; ridge: > 0, in the units of the kernel (the noise variance of a regression).
    Returns: [N], within 0 and 1; the sum is the effective dimension. Cost: O(N^3) time, N x N memory.
    Source: Alaoui & Mahoney (2015), "Fast randomized kernel ridge regression with statistical guarantees".

    >>> import gpx
    >>> ridge_leverage(gpx.kernels.RBF(), torch.tensor([[0.0], [0.0], [9.0]]).double(), 1.0)
    tensor([0.3333, 0.3333, 0.5000], dtype=torch.float64)
    """
    return Dictionary(X, torch.ones(len(X)).to(X), ridge).leverage(kernel, X)
