"""What a selection is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import gpytorch
import numpy as np
from torch import Tensor

from gpx.errors import InputError


class Selection(Protocol):
    """``select(kernel, X, size, *, seed) -> (indices or points, weights)``.

    X: [N, D]; indices [M] into its rows, or points [M, D] of their own; weights [M]: how many rows each stands for, up to a
    factor.
    """

    def __call__(
        self, kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, *, seed: int | None = 0
    ) -> tuple[Tensor, Tensor]:
        """At most `size` of them."""
        ...


BLOCK = 1 << 22  # entries of a kernel matrix that are held at a time


def check_request(X: Tensor, size: int) -> None:
    """Raise InputError unless X is [N, D] with N > 0 and size a positive integer."""
    if X.dim() != 2 or not len(X):
        raise InputError(f"X must be [N, D] with at least one row, got {list(X.shape)}.")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"size must be a positive integer, got {size!r}.")


def make_random(seed: int | None) -> np.random.Generator:
    """A private source of random numbers; seed None takes entropy from the system."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise InputError(f"seed must be an integer >= 0, or None for a fresh one, got {seed!r}.")
    return np.random.default_rng(seed)


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows with about `BLOCK` entries each."""
    step = max(1, BLOCK // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
