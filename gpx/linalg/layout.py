"""Matern processes in unit-free coordinates ``z_i = f^(i) / rate^i``, and the layout of a state made of them.

Transitions and noise of every order are constants and finite sums. Theory: docs/theory/state_space.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

TERMS = 60  # of the series for the incomplete gamma function


@dataclass(frozen=True)
class Layout:
    """What code is compiled for: of every block its order p, its number of copies, and how many of its p + 1 coordinates are
    observed (1: the function itself). free: these have weights of their own at every time, in place of a factor for every copy
    and a row for all times.

    >>> Layout(orders=(1, 0), copies=(1, 2), widths=(1, 1)).size
    4
    """

    orders: tuple[int, ...]
    copies: tuple[int, ...]
    widths: tuple[int, ...]
    free: bool = False

    @property
    def size(self) -> int:
        """The number S of states."""
        return sum((p + 1) * c for p, c in zip(self.orders, self.copies, strict=True))

    @property
    def block_of_copy(self) -> np.ndarray:
        """[J] the block of every copy."""
        return np.repeat(np.arange(len(self.orders)), self.copies)

    @property
    def stationary(self) -> np.ndarray:
        """The covariance [S, S] of the state before the first datum."""
        result, start = np.zeros((self.size, self.size)), 0
        for b in self.block_of_copy:
            limit = noise_terms(self.orders[b])[1]
            stop = start + len(limit)
            result[start:stop, start:stop], start = limit, stop
        return result


def companion(order: int) -> np.ndarray:
    """F [p + 1, p + 1] of ``dz = F z dx + noise``, x = rate t: the companion matrix of ``(s + 1)^(p + 1)``."""
    F = np.diag(np.ones(order), 1)
    F[order] = [-math.comb(order + 1, i) for i in range(order + 1)]
    return F


def transition_terms(order: int) -> np.ndarray:
    """``N^j / j!`` [p + 1, p + 1, p + 1], j first, of the nilpotent ``N = F + 1``: ``exp(F x) = e^-x sum_j x^j N^j / j!``."""
    N = companion(order) + np.eye(order + 1)
    return np.array([np.linalg.matrix_power(N, j) / math.factorial(j) for j in range(order + 1)])


def noise_terms(order: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients [p + 1, p + 1, 2p + 1] of ``gamma(k + 1, 2x)`` in the process noise Q(x), its limit [p + 1, p + 1], which is
    the stationary covariance, and the intensity q of the driving noise.
    """
    last, size = transition_terms(order)[:, :, order], order + 1
    weights = np.zeros((size, size, 2 * order + 1))
    for a in range(size):
        for b in range(size):
            weights[:, :, a + b] += np.outer(last[a], last[b]) / 2.0 ** (a + b + 1)
    limit = weights @ [math.factorial(k) for k in range(2 * order + 1)]
    intensity = 1 / limit[0, 0]
    return weights * intensity, limit * intensity, intensity


class Tables(NamedTuple):
    """What the loops know of a layout. By copy: blocks, starts (first state), dims; by observed coordinate: seen (its state),
    copy_of, row_of (its place in `rows`); by block: sizes, N, W, F, q (see above) and series of the incomplete gamma function.
    """

    blocks: np.ndarray
    starts: np.ndarray
    dims: np.ndarray
    seen: np.ndarray
    copy_of: np.ndarray
    row_of: np.ndarray
    sizes: np.ndarray
    N: np.ndarray
    W: np.ndarray
    F: np.ndarray
    q: np.ndarray
    series: np.ndarray
    inverses: np.ndarray
    root: np.ndarray  # of the stationary covariance
    S: int  # states
    J: int  # copies
    B: int  # blocks
    D: int  # largest dimension of a copy
    K: int  # largest number of gamma functions
    R: int  # observed coordinates
    even: bool  # whether most gaps are that before


@lru_cache(maxsize=64)
def tables(layout: Layout, even: bool = False) -> Tables:
    """The tables of a layout, for even times or not."""
    blocks, S = layout.block_of_copy, layout.size
    B, J, D, K = len(layout.orders), len(blocks), max(layout.orders) + 1, 2 * max(layout.orders) + 1
    sizes = np.array(layout.orders) + 1
    dims = sizes[blocks]
    starts = np.cumsum(dims) - dims
    first = np.cumsum(layout.widths) - layout.widths
    places = [(starts[c] + w, c, first[blocks[c]] + w) for c in range(J) for w in range(layout.widths[blocks[c]])]
    seen, copy_of, row_of = (np.array(column) for column in zip(*places, strict=True))
    if layout.free:
        copy_of, row_of = np.arange(len(seen)), np.zeros_like(row_of)
    N, W, F, q = np.zeros((B, D, D, D)), np.zeros((B, D, D, K)), np.zeros((B, D, D)), np.zeros(B)
    for b, p in enumerate(layout.orders):
        N[b, : p + 1, : p + 1, : p + 1], F[b, : p + 1, : p + 1] = transition_terms(p), companion(p)
        W[b, : p + 1, : p + 1, : 2 * p + 1], _, q[b] = noise_terms(p)
    # gamma(a, z) = z^a e^-z / a (1 + z / (a + 1) (1 + z / (a + 2) (...)))
    series = np.array([np.cumprod([1.0, *1 / (2 * p + 1 + np.arange(1.0, TERMS))]) for p in layout.orders])
    inverses, root = 1.0 / np.arange(1, K + 1), np.linalg.cholesky(layout.stationary)
    R = len(seen)
    return Tables(
        blocks, starts, dims, seen, copy_of, row_of, sizes, N, W, F, q, series, inverses, root, S, J, B, D, K, R, even
    )
