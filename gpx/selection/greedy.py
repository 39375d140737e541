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
    indices = pivots(kernel, X, size, X.new_empty(0, len(X)))
    return indices, torch.ones(len(indices)).to(X)


@torch.no_grad()
def pivots(kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, explained: Tensor, enough: float = 0.0) -> Tensor:
    """Go on from points chosen before: those of largest variance given them, until the mean of what is left is `enough`.

    Arguments: explained: ``w = L^-1 k(Z, X)`` [M, N] for points Z chosen before, ``L L^T = k(Z, Z)``; enough: a variance.
    Returns: indices [m] in the order of choice, m <= size. Cost: O(N (M + m)^2) time, N x (M + m) memory.
    """
    prior, known = diagonal(kernel, X), len(explained)
    floor, left = EXHAUSTED * float(prior.max()), (prior - explained.square().sum(0)).clamp_min(0)
    rows, chosen = torch.cat([explained, left.new_empty(min(size, len(X)), len(X))]), []
    for m in range(known, len(rows)):
        pivot = int(left.argmax())
        if float(left[pivot]) <= floor or float(left.mean()) <= enough:
            break
        row = dense(kernel, X[pivot : pivot + 1], X)[0] - rows[:m, pivot] @ rows[:m]
        rows[m] = row / left[pivot].sqrt()
        left = (left - rows[m].square()).clamp_min(0)
        left[pivot] = 0
        chosen.append(pivot)
    return torch.tensor(chosen, dtype=torch.long, device=X.device)
