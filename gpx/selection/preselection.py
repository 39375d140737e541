"""k-DPPs of many rows: a few are selected beforehand, in proportion to their chance, and accepted so that the law is exact.

Theory: docs/theory/selection.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.errors import NumericalError
from gpx.kernels.dense import dense, diagonal
from gpx.linalg.elementary import log_elementary, log_of_equal, log_without_each
from gpx.selection.base import blocks
from gpx.selection.k_dpp import KDPP, numerical_zero

DISTINCT = 1e-10  # of the largest eigenvalue: directions of the reference below it are left to the remainder
LARGEST = 20_000  # rows of which a kernel matrix is decomposed: 3.2 GB per array
ATTEMPTS = 100  # with one number of rows, before twice as many are selected


def enough(size: int) -> int:
    """Rows to select beforehand: t^3 exp(size^2 / 2t), cost times attempts, is least there."""
    return max(math.ceil(size**2 / 6), 4 * size)


@dataclass(frozen=True, eq=False)
class Preselection:
    """Bounds ``e_k(A) <= e_k(B) exp(tr G (A - B))``, ``G = d log e_k(B) / dB``, for sums A of weighted rows.

    chances [N]: ``tau_n = phi_n^T G phi_n``, those of the rows to be in the set if B is the sum of all;
    log_reference: ``log e_k(B)``.
    """

    kernel: gpytorch.kernels.Kernel
    X: Tensor
    size: int
    chances: np.ndarray
    log_reference: float

    @staticmethod
    def of(kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, points: Tensor) -> Preselection | None:
        """B is all rows projected on points [m, D] of rank r, and for the remainders, of variance d_n, ``sum d / (N - r)`` in all
        N - r directions that are left; None if r is less than `size`. Cost: O(N m^2).
        """
        root, gram, rest = _root(dense(kernel, points, points)), 0.0, 0.0
        for _, w, d in _features(kernel, X, points, root):
            gram, rest = gram + w @ w.mT, rest + float(d.sum())
        values, vectors = torch.linalg.eigh(gram)
        logs = values.clamp_min(np.finfo(float).tiny).log().cpu().numpy()
        left, log = len(X) - len(logs), math.log(max(rest, np.finfo(float).tiny) / max(len(X) - len(logs), 1))
        if len(logs) < size:
            return None
        table = log_elementary(logs, size, log_of_equal(log, left, size))[-1]
        slopes = np.exp(log_without_each(logs, size - 1, log_of_equal(log, left, size - 1)) - table[size])
        outside = log_elementary(logs, size - 1, log_of_equal(log, max(left - 1, 0), size - 1))[-1, -1] - table[size]
        chances, slopes = root.new_zeros(len(X)), torch.as_tensor(slopes).to(root)
        for rows, w, d in _features(kernel, X, points, root @ vectors):
            chances[rows] = slopes @ w.square() + math.exp(outside) * d
        return Preselection(kernel, X, size, chances.cpu().numpy(), float(table[size]))

    def draw(self, random: np.random.Generator) -> np.ndarray | None:
        """Indices [size] of one draw. Every attempt that succeeds has the law of the k-DPP, whatever the number of rows was."""
        expected = enough(self.size)
        while expected < len(self.X):
            if expected > LARGEST:
                raise NumericalError(
                    f"A k-DPP of {self.size} rows was not found among {LARGEST:,}; use select='greedy', or fewer points."
                )
            for _ in range(ATTEMPTS):
                if (found := self.attempt(expected, random)) is not None:
                    return found
            expected *= 2
        whole = KDPP.of(dense(self.kernel, self.X, self.X), self.size)
        return None if whole is None else whole.draw(random)

    def attempt(self, expected: float, random: np.random.Generator) -> np.ndarray | None:
        """Select about so many rows; draw from them, or refuse. Cost: O(expected^3)."""
        share = self.chances.sum() / expected
        cost = np.maximum(self.chances, share)  # weight times chance
        weights = cost / np.maximum(self.chances, np.finfo(float).tiny)
        selected = np.flatnonzero(random.random(len(cost)) * (1 + (weights - 1) * np.exp(-cost)) < 1)
        if len(selected) < self.size:
            return None
        index, roots = torch.as_tensor(selected, device=self.X.device), np.sqrt(weights[selected])
        scale = torch.as_tensor(roots, device=self.X.device)
        matrix = scale[:, None] * dense(self.kernel, self.X[index], self.X[index]).double() * scale
        values = torch.linalg.eigvalsh(matrix).cpu().numpy()
        logs = np.log(values[values > numerical_zero(values)])
        accept = log_elementary(logs, self.size)[-1, -1] - self.log_reference + self.size - cost[selected].sum()
        if np.log(random.random()) >= accept:
            return None
        process = KDPP.of(matrix, self.size)
        return None if process is None else selected[process.draw(random)]


def _root(matrix: Tensor) -> Tensor:
    """R [m, r] with ``R^T matrix R = 1``, without directions that rounding has spoiled."""
    values, vectors = torch.linalg.eigh(matrix.double())
    kept = values > DISTINCT * values[-1]
    return vectors[:, kept] / values[kept].sqrt()


def _features(
    kernel: gpytorch.kernels.Kernel, X: Tensor, points: Tensor, root: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of rows: which, their coordinates [r, n] in the span of the points, and the prior variances [n] beyond these."""
    for rows in blocks(len(X), len(points)):
        w = root.mT @ dense(kernel, points, X[rows]).double()
        yield rows, w, (diagonal(kernel, X[rows]).double() - w.square().sum(0)).clamp_min(0)
