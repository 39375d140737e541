"""Kernel halving: of every two points one goes to each side, such that both sides keep the mean embedding.

Theory: docs/theory/selection.md.
"""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.kernels.dense import dense
from gpx.selection.base import BLOCK


def halve(
    kernel: gpytorch.kernels.Kernel, X: Tensor, groups: np.ndarray, random: np.random.Generator, steps: int
) -> np.ndarray:
    """The two halves [B, 2, n // 2] of every group of rows [B, n]: a self-balancing walk of ``f_i = k(x_2i, .) - k(x_2i+1, .)``.

    steps: how many there are in the whole of an algorithm: with even odds none of them leaves the range of the walk.
    Cost: O(B n^2) kernel values, in blocks.
    """
    first, second = groups[:, 0::2][:, : groups.shape[1] // 2], groups[:, 1::2]
    count, pairs = first.shape
    signs, spread = np.ones((count, pairs)), np.zeros(count)
    step = max(1, BLOCK // max(count * pairs, 1))
    for start in range(0, pairs, step):
        stop = min(start + step, pairs)
        gram = _differences(
            kernel, X, (first[:, start:stop], second[:, start:stop]), (first[:, :stop], second[:, :stop])
        )
        for i in range(start, stop):
            norm, along = gram[:, i - start, i], np.einsum("bj,bj->b", gram[:, i - start, :i], signs[:, :i])
            reach = np.maximum(np.sqrt(2 * math.log(4 * steps) * norm * spread), norm)
            safe = np.where(reach > 0, reach, 1.0)  # equal points: any sign will do
            signs[random.random(count) < 0.5 * (1 + along / safe), i] = -1
            spread += norm * (1 + (norm - 2 * reach) * spread / safe**2).clip(min=0)
    kept = signs > 0
    return np.stack([np.where(kept, first, second), np.where(kept, second, first)], 1)


def _differences(
    kernel: gpytorch.kernels.Kernel,
    X: Tensor,
    here: tuple[np.ndarray, np.ndarray],
    there: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """``<f_i, f_j>`` [B, i, j] of pairs of rows."""
    a, b, c, d = (X[torch.as_tensor(rows, device=X.device)] for rows in (*here, *there))
    gram = dense(kernel, a, c) - dense(kernel, a, d) - dense(kernel, b, c) + dense(kernel, b, d)
    return gram.double().cpu().numpy()
