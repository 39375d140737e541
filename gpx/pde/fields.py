"""Functions of x that users give, and their derivatives by automatic differentiation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from gpx.errors import InputError

Index = tuple[int, ...]
Field = Callable[[Tensor], Tensor]


def check_field(value: Any, name: str) -> None:
    """Raises: InputError for what is neither a finite number nor a callable."""
    if not (isinstance(value, Real) or callable(value)):
        raise InputError(f"{name} is a number or a callable of x [n, d], got {type(value).__name__}: {value!r}.")
    if isinstance(value, Real) and not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value}; correct it, or restrict the domain.")


def evaluate(function: Field | float, x: Tensor, name: str) -> Tensor:
    """Values [n] of a number or of a user's function at x [n, d].

    Raises: InputError unless the function returns n finite real numbers.
    """
    check_field(function, name)
    if isinstance(function, Real):
        return torch.full((len(x),), float(function), dtype=torch.float64)
    return finite(_returned(function, x, name).detach(), x, name)


def differentiated(function: Field | float, x: Tensor, axis: int) -> Tensor | None:
    """The derivative [n] of a field along an axis at x [n, d]; None where automatic differentiation does not see through it."""
    if isinstance(function, Real):
        return torch.zeros(len(x), dtype=torch.float64)
    with differentiating():
        at = x.detach().clone().requires_grad_()
        try:
            value = torch.as_tensor(function(at))
        except RuntimeError:  # numpy refuses tensors that are differentiated
            return None
        return torch.autograd.grad(value.sum(), at)[0][:, axis] if value.requires_grad else None


@contextmanager
def differentiating() -> Iterator[None]:
    """Automatic differentiation, wherever the user has turned it off. Tensors from outside must be cloned."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def differentiate(function: Field, index: Index, x: Tensor) -> Tensor:
    """A derivative [n] of a coefficient at x [n, d] that requires its gradient.

    Raises: InputError where automatic differentiation does not see how the values vary.
    """
    if not index:
        try:
            return _returned(function, x, "A coefficient")
        except RuntimeError as error:
            if "numpy" not in str(error):
                raise
            raise InputError(_hidden(function)) from None
    value = differentiate(function, index[:-1], x)
    slopes = torch.zeros_like(x)
    if value.requires_grad:
        slopes = torch.autograd.grad(value.sum(), x, create_graph=True)[0]
    if bool((value != value[:1]).any()) and not bool(slopes.any()):
        raise InputError(_hidden(function))
    return slopes[:, index[-1]]


def finite(found: Tensor, x: Tensor, name: str) -> Tensor:
    """The values [n] at x [n, d]. Raises: InputError unless they are finite."""
    if not bool(torch.isfinite(found).all()):
        where = x[~torch.isfinite(found)][0].tolist()
        raise InputError(f"{name} is not finite at x = {where}; restrict the domain or correct the function.")
    return found


def _returned(function: Field, x: Tensor, name: str) -> Tensor:
    """What a user's function returns, as a tensor [n]. Raises: InputError unless it returns n real numbers."""
    value = function(x)
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{name} must map a tensor [n, d] to [n]: for {list(x.shape)} it returned {type(value).__name__}: {value!r}."
        ) from None
    if found.is_complex():
        raise InputError(
            f"{name} returned complex values ({found.dtype}), and solutions are real: give real values; of a linear equation with"
            " a complex source solve for the real and the imaginary part one after the other."
        )
    found = found[:, 0] if found.shape == (len(x), 1) else found
    if found.shape != (len(x),):
        raise InputError(
            f"{name} must map a tensor [n, d] to [n]: for {list(x.shape)} it returned {list(found.shape)}."
            " A constant is given as a number."
        )
    return found.to(torch.float64)


def _hidden(function: Field) -> str:
    name = getattr(function, "__name__", "f")
    return (
        f"The equation has a derivative of the coefficient {name}(x), whose values vary in a way that automatic differentiation"
        " does not see (numpy, detach, or a step, which has none): write it with torch's functions, or expand the product, as in"
        " a * D(u, 0, 2) + slope_of_a * D(u, 0), and give the derivative as a coefficient."
    )
