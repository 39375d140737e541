"""What a selection is."""

from __future__ import annotations

from typing import Protocol

import gpytorch
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


def check_request(X: Tensor, size: int) -> None:
    """Raise InputError unless X is [N, D] and size a positive integer."""
    if X.dim() != 2:
        raise InputError(f"X must be [N, D], got {list(X.shape)}.")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"size must be a positive integer, got {size!r}.")
