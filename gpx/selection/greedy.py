"""Greedy conditional variance: a pivoted Cholesky factorisation of the kernel matrix."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from gpx.kernels.dense import dense, diagonal
from gpx.selection.base import check_request

EXHAUSTED = 1e-10  # of the largest prior variance: what is left of it then is rounding


@torch.no_grad()
def greedy(kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, *, seed: int | None = 0) -> tuple[Tensor, Tensor]:
    """The points of largest variance given those chosen before: ``argmax_n k_nn - k_n^T K_cc^-1 k_n``, again and again.

    Arguments: X: [N, D] candidates; size: how many; seed: not used, the choice is deterministic.
    Returns: indices [M] in the order of choice, M <= size: fewer where no variance is left; weights [M]: one each.
    Raises: InputError unless 0 < size. Cost: O(N M^2) time, N x M memory.
    Source: Burt, Rasmussen & van der Wilk (2020), "Convergence of sparse variational inference in Gaussian processes
    regression", section 4.

    >>> import gpx
    >>> greedy(gpx.kernels.RBF(), torch.tensor([[0.0], [0.1], [5.0]]).double(), 2)[0].tolist()
    [0, 2]
    """
    check_request(X, size)
    left = diagonal(kernel, X).clone()
    floor = EXHAUSTED * float(left.max())
    rows, chosen = left.new_empty(min(size, len(X)), len(X)), []
    for m in range(len(rows)):
        pivot = int(left.argmax())
        if float(left[pivot]) <= floor:
            break
        row = dense(kernel, X[pivot : pivot + 1], X)[0] - rows[:m, pivot] @ rows[:m]
        rows[m] = row / left[pivot].sqrt()
        left = (left - rows[m].square()).clamp_min(0)
        left[pivot] = 0
        chosen.append(pivot)
    indices = torch.tensor(chosen, dtype=torch.long, device=X.device)
    return indices, torch.ones(len(chosen)).to(X)
