"""Sampling in proportion to ridge leverage scores.

Theory: docs/theory/selection.md.
"""

from __future__ import annotations

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.selection.base import check_request, make_random
from gpx.selection.bless import bless


@torch.no_grad()
def leverage(kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, *, seed: int | None = 0) -> tuple[Tensor, Tensor]:
    """Rows sampled in proportion to their ridge leverage, at the ridge whose effective dimension is `size`.

    Leverage is estimated by `bless`. Sampling is systematic in random order: of fixed size, without repetition, row n with
    probability ``p_n = min(1, c l_n)``.

    Arguments: X: [N, D]; size: how many rows; seed: of the sampling.
    Returns: indices [M], M = min(size, N), or fewer if fewer rows have any leverage; weights [M]: 1 / p_n, so that weighted sums
    over the sample are unbiased for sums over all rows.
    Raises: InputError unless 0 < size. Cost: O(N (16 size)^2), in blocks of rows; what precedes that pass is independent of N.
    Source: Rudi, Calandriello, Carratino & Rosasco (2018), "On fast leverage score sampling and optimal learning".

    >>> import gpx
    >>> X = torch.linspace(0, 8, 100).double()[:, None]
    >>> indices, weights = leverage(gpx.kernels.RBF(), X, 5)
    >>> len(indices), bool((weights >= 1).all())
    (5, True)
    """
    check_request(X, size)
    random = make_random(seed)
    dictionary = bless(kernel, X, size, seed=int(random.integers(2**31)))
    probabilities = inclusion(dictionary.leverage(kernel, X).double().cpu().numpy(), size)
    indices = systematic(probabilities, random)
    return torch.as_tensor(indices, device=X.device), torch.as_tensor(1 / probabilities[indices]).to(X)


def inclusion(scores: np.ndarray, size: int) -> np.ndarray:
    """``min(1, c score)`` with c such that they sum to `size`, or to the number of positive scores if that is less."""
    positive = scores > 0
    if positive.sum() <= size:
        return positive.astype(float)
    ordered = np.sort(scores)[::-1]
    rest = np.cumsum(ordered[::-1])[::-1]
    room = size - np.arange(size)
    certain = int(np.argmax(ordered[:size] * room <= rest[:size]))
    return np.minimum(1, scores * room[certain] / rest[certain])


def systematic(probabilities: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Distinct indices, sorted, as many as the probabilities sum to; each index with its probability."""
    order = random.permutation(np.flatnonzero(probabilities))
    total = np.cumsum(probabilities[order])
    size = round(float(total[-1])) if len(total) else 0
    steps = (random.random() + np.arange(size)) * (total[-1] / size if size else 0)
    return np.sort(order[np.searchsorted(total, steps, side="right").clip(max=len(order) - 1)])
