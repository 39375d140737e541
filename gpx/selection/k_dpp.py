"""k-DPPs of a given kernel matrix, by its eigendecomposition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.linalg import eigh

from gpx.linalg.elementary import log_elementary


@dataclass(frozen=True, eq=False)
class KDPP:
    """Sets S of `size` rows with probability ``det K_SS / e_size(values)``. values [r], vectors [N, r]: eigenpairs of K.

    Cost: O(N r size) per draw. Theory: docs/theory/selection.md.
    """

    values: np.ndarray
    vectors: np.ndarray
    size: int

    @staticmethod
    def of(matrix: Tensor, size: int) -> KDPP | None:
        """That of a kernel matrix [N, N], or None if its numerical rank is less than `size`. Cost: O(N^3)."""
        values, vectors = (part.cpu().numpy() for part in eigh(matrix.double()))
        kept = values > numerical_zero(values)
        return KDPP(values[kept], vectors[:, kept], size) if kept.sum() >= size else None

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Indices [size], in the order in which they were drawn."""
        basis = self.vectors[:, self._eigenvectors(random)]
        left, rows, chosen = np.square(basis).sum(1), np.zeros((self.size, len(basis))), []
        for m in range(self.size):
            pivot = int(random.choice(len(left), p=left / left.sum()))
            row = basis @ basis[pivot] - rows[:m, pivot] @ rows[:m]
            rows[m] = row / np.sqrt(left[pivot])
            left = (left - np.square(rows[m])).clip(min=0)
            left[pivot] = 0
            chosen.append(pivot)
        return np.array(chosen, dtype=int)

    def _eigenvectors(self, random: np.random.Generator) -> list[int]:
        """A set J of `size` with probability proportional to the product of its values, from the last value to the first."""
        logs, wanted, chosen = np.log(self.values), self.size, []
        table = log_elementary(logs, self.size)
        for n in range(len(logs) - 1, -1, -1):
            if wanted and np.log(random.random()) < logs[n] + table[n, wanted - 1] - table[n + 1, wanted]:
                chosen.append(n)
                wanted -= 1
        return chosen


def numerical_zero(values: np.ndarray) -> float:
    """What rounding leaves of an eigenvalue zero."""
    return len(values) * np.finfo(float).eps * float(values.max(initial=0.0))
