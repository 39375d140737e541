"""Derivatives of functions of a line, by forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def derivative(
    function: Callable[[Tensor], Tensor], times: Tensor, order: int = 1, column: int | None = None
) -> Tensor:
    """The derivative of a function whose n-th row depends on the n-th of the times alone; order 0: its value; column: of rows
    [N, D], that is time.

    >>> derivative(lambda t: t**3, torch.tensor([1.0, 2.0]), 2)
    tensor([ 6., 12.])
    """
    if order == 0:
        return function(times)
    along = torch.ones_like(times)
    if column is not None:
        along = torch.zeros_like(times).index_fill(1, torch.tensor(column, device=times.device), 1.0)
    return torch.func.jvp(lambda t: derivative(function, t, order - 1, column), (times,), (along,))[1]
