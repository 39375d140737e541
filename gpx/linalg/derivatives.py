"""Derivatives of functions of a line, by forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def derivative(function: Callable[[Tensor], Tensor], times: Tensor, order: int = 1) -> Tensor:
    """The derivative of a function whose n-th row depends on the n-th of the times alone; order 0: its value.

    >>> derivative(lambda t: t**3, torch.tensor([1.0, 2.0]), 2)
    tensor([ 6., 12.])
    """
    if order == 0:
        return function(times)
    return torch.func.jvp(lambda t: derivative(function, t, order - 1), (times,), (torch.ones_like(times),))[1]
