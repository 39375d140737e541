"""Generalised kernel thinning and Compress++: few rows with the mean embedding of all.

Theory: docs/theory/selection.md.
"""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.kernels.dense import dense, diagonal
from gpx.selection.base import blocks, check_request, make_random
from gpx.selection.halving import halve

SMALL = 4_096  # rows up to which all are compared with all
OVERSAMPLING = 8  # rows that Compress leaves to kernel thinning, for each that is wanted


@torch.no_grad()
def thinning(kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, *, seed: int | None = 0) -> tuple[Tensor, Tensor]:
    """Rows whose equally weighted mean embedding is close to that of all: the maximum mean discrepancy falls almost as 1 / size.

    Kernel thinning halves the rows again and again, takes the best of what comes out, adds rows where `size` is not N / 2^m, and
    exchanges each for the one that lowers the discrepancy most. Above 4,096 rows it starts from the 8 to 16 size rows that
    Compress leaves: quarters are compressed, joined, and halved.

    Arguments: X: [N, D]; size: how many rows; seed: of order and halving.
    Returns: indices [M], distinct, M = min(size, N); weights [M]: N / M each.
    Raises: InputError unless 0 < size. Cost: O(n^2 log N) kernel values, n = min(N, max(16 size, sqrt(N), 4096)), in blocks.
    Source: Dwivedi & Mackey (2022), "Generalized kernel thinning" (the kernel splits, too); Shetty, Dwivedi & Mackey (2022),
    "Distribution compression in near-linear time".

    >>> import gpx
    >>> indices, weights = thinning(gpx.kernels.RBF(), torch.linspace(0, 8, 64).double()[:, None], 4)
    >>> weights.tolist()
    [16.0, 16.0, 16.0, 16.0]
    """
    check_request(X, size)
    random, size = make_random(seed), min(size, len(X))
    rows = compress(kernel, X, OVERSAMPLING * size, random)
    chosen = rows[thin(kernel, X[torch.as_tensor(rows, device=X.device)], size, random)]
    indices = torch.as_tensor(np.sort(chosen), device=X.device)
    return indices, torch.full((len(indices),), len(X) / size).to(X)


def compress(kernel: gpytorch.kernels.Kernel, X: Tensor, least: int, random: np.random.Generator) -> np.ndarray:
    """Indices of at least so many rows, in random order: all of N <= 4,096, else fewer than twice as many as `least`."""
    order = random.permutation(len(X))
    if len(X) <= max(SMALL, least):
        return order
    levels = min(int(math.log2(len(X) / least)), int(math.log(len(X), 4)))
    groups = order[: len(X) >> 2 * levels << 2 * levels].reshape(4**levels, -1)
    for _ in range(levels):
        groups = halve(kernel, X, groups.reshape(len(groups) // 4, -1), random, len(X) * levels)[:, 0]
    return groups[0]


def thin(kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, random: np.random.Generator) -> np.ndarray:
    """Indices [size] into X, whose rows are in random order."""
    target = torch.cat([dense(kernel, X[rows], X).double().mean(1) for rows in blocks(len(X), len(X))])
    rounds = math.ceil(math.log2(len(X) / size))
    base = len(X) >> rounds
    groups = np.arange(base << rounds).reshape(1, -1)
    for _ in range(rounds):
        groups = halve(kernel, X, groups, random, len(X) * rounds).reshape(2 * len(groups), -1)
    candidates = [np.arange(base), *groups]
    best = min(candidates, key=lambda rows: _discrepancy(kernel, X, target, torch.as_tensor(rows, device=X.device)))
    return _exchanged(kernel, X, target, best, size)


def _discrepancy(kernel: gpytorch.kernels.Kernel, X: Tensor, target: Tensor, rows: Tensor) -> float:
    """The squared maximum mean discrepancy of some rows to all, less a constant."""
    return float(dense(kernel, X[rows], X[rows]).mean() - 2 * target[rows].mean()) if len(rows) else 0.0


def _exchanged(kernel: gpytorch.kernels.Kernel, X: Tensor, target: Tensor, chosen: np.ndarray, size: int) -> np.ndarray:
    """Filled up to `size`, and every row in turn exchanged for the one that leaves the least discrepancy."""

    def column(row: int) -> np.ndarray:
        return dense(kernel, X[row : row + 1], X)[0].double().cpu().numpy()

    result = list(chosen)
    half, mean = 0.5 * diagonal(kernel, X).double().cpu().numpy(), target.cpu().numpy()
    total, taken = np.zeros(len(X)), np.zeros(len(X), bool)
    for row in result:
        total += column(row)
    taken[result] = True
    for m in range(len(result), size + size):
        if m >= size:
            old = result.pop(0)
            total -= column(old)
            taken[old] = False
        new = int(np.where(taken, np.inf, total + half - (len(result) + 1) * mean).argmin())
        result.append(new)
        total += column(new)
        taken[new] = True
    return np.array(result, dtype=int)
