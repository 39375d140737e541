"""Differential equations as expressions in an unknown function u: ``D(u, 0, 2) + u**3 - u``.

An expression is a function of x and of the *jet* of u: its values and derivatives at x. A derivative is named by the axes along
which it is taken, ascending: ``()`` is u, ``(0, 0)`` is u_xx, ``(0, 1)`` is u_xy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from gpx.errors import InputError

Index = tuple[int, ...]
Key = Index | tuple[str, Index]
Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Expression(ABC):
    """A function of x and of the jet of u; adds, multiplies, divides and takes powers."""

    def __add__(self, other: Any) -> Expression:
        return Sum(self, expression(other))

    def __radd__(self, other: Any) -> Expression:
        return Sum(expression(other), self)

    def __mul__(self, other: Any) -> Expression:
        return Product(self, expression(other))

    def __rmul__(self, other: Any) -> Expression:
        return Product(expression(other), self)

    def __neg__(self) -> Expression:
        return -1.0 * self

    def __sub__(self, other: Any) -> Expression:
        return self + -expression(other)

    def __rsub__(self, other: Any) -> Expression:
        return other + -self

    def __truediv__(self, other: Any) -> Expression:
        return self * expression(other) ** -1

    def __rtruediv__(self, other: Any) -> Expression:
        return other * self**-1

    def __pow__(self, exponent: float) -> Expression:
        if not isinstance(exponent, Real):
            raise InputError(f"The exponent of a power must be a number, got {exponent!r}; use pde.exp for others.")
        return Power(self, float(exponent))

    @abstractmethod
    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        """Values [n] at x [n, d], where the jet has the values [n] there."""

    def parts(self) -> tuple[Expression, ...]:
        """The expressions that it is made of."""
        return ()

    @abstractmethod
    def derivative(self, axis: int) -> Expression:
        """The total derivative along an axis."""

    def degree(self) -> float:
        """0: free of u; 1: affine in u; inf: nonlinear."""
        return max((part.degree() for part in self.parts()), default=0.0)


@dataclass(frozen=True, eq=False)
class Jet(Expression):
    """A derivative of u, or of an unknown function with another name."""

    index: Index = ()
    name: str = "u"

    @property
    def key(self) -> Key:
        """Where its values are in a jet."""
        return self.index if self.name == "u" else (self.name, self.index)

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return jet[self.key]

    def derivative(self, axis: int) -> Expression:
        return Jet(tuple(sorted((*self.index, axis))), self.name)

    def degree(self) -> float:
        return 1.0

    def __repr__(self) -> str:
        return self.name + ("_" + "".join(map(str, self.index)) if self.index else "")


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """A number."""

    number: float

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return torch.full((len(x),), self.number, dtype=x.dtype)

    def derivative(self, axis: int) -> Expression:
        return Constant(0.0)

    def __repr__(self) -> str:
        return f"{self.number:g}"


@dataclass(frozen=True, eq=False)
class Coefficient(Expression):
    """A function of x, or a derivative of one (by automatic differentiation)."""

    function: Field
    index: Index = ()

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return _derivative(self.function, self.index)(x).detach()

    def derivative(self, axis: int) -> Expression:
        return Coefficient(self.function, (*self.index, axis))

    def __repr__(self) -> str:
        return f"{getattr(self.function, '__name__', 'f')}(x)" + (
            "_" + "".join(map(str, self.index)) if self.index else ""
        )


@dataclass(frozen=True, eq=False)
class Sum(Expression):
    """left + right."""

    left: Expression
    right: Expression

    def parts(self) -> tuple[Expression, ...]:
        return self.left, self.right

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return self.left.value(jet, x) + self.right.value(jet, x)

    def derivative(self, axis: int) -> Expression:
        return self.left.derivative(axis) + self.right.derivative(axis)

    def __repr__(self) -> str:
        return f"({self.left!r} + {self.right!r})"


@dataclass(frozen=True, eq=False)
class Product(Expression):
    """left * right."""

    left: Expression
    right: Expression

    def parts(self) -> tuple[Expression, ...]:
        return self.left, self.right

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return self.left.value(jet, x) * self.right.value(jet, x)

    def derivative(self, axis: int) -> Expression:
        if isinstance(self.left, Constant):
            return self.left * self.right.derivative(axis)
        return self.left.derivative(axis) * self.right + self.left * self.right.derivative(axis)

    def degree(self) -> float:
        total = self.left.degree() + self.right.degree()
        return total if total <= 1 else float("inf")

    def __repr__(self) -> str:
        return f"{self.left!r} * {self.right!r}"


@dataclass(frozen=True, eq=False)
class Power(Expression):
    """base ** exponent."""

    base: Expression
    exponent: float

    def parts(self) -> tuple[Expression, ...]:
        return (self.base,)

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return self.base.value(jet, x) ** self.exponent

    def derivative(self, axis: int) -> Expression:
        return self.exponent * self.base ** (self.exponent - 1) * self.base.derivative(axis)

    def degree(self) -> float:
        return self.base.degree() if self.exponent == 1 or not self.base.degree() else float("inf")

    def __repr__(self) -> str:
        return f"{self.base!r}**{self.exponent:g}"


@dataclass(frozen=True, eq=False)
class Apply(Expression):
    """A function of an expression: function(order) is its derivative of that order, a function of tensors."""

    name: str
    function: Callable[[int], Callable[[Tensor], Tensor]]
    argument: Expression
    order: int = 0

    def parts(self) -> tuple[Expression, ...]:
        return (self.argument,)

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return self.function(self.order)(self.argument.value(jet, x))

    def derivative(self, axis: int) -> Expression:
        return Apply(self.name, self.function, self.argument, self.order + 1) * self.argument.derivative(axis)

    def degree(self) -> float:
        return float("inf") if self.argument.degree() else 0.0

    def __repr__(self) -> str:
        return f"{self.name}{chr(39) * self.order}({self.argument!r})"


@dataclass(frozen=True, eq=False)
class Unknown(Expression):
    """A number to be learned from observations of u: ``Unknown("kappa", start=1.0) * D(u, 0, 2)``.

    Arguments: name: its key in `Solution.unknowns`; start: where the search for it begins; its size sets the scale of the
    search. Raises: InputError for a start that is not a number.
    """

    name: str
    start: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.start, Real) and math.isfinite(self.start)):
            raise InputError(f"Unknown({self.name!r}) needs a finite number to start from, got {self.start!r}.")

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return torch.full((len(x),), float(self.start), dtype=x.dtype)

    def derivative(self, axis: int) -> Expression:
        return Constant(0.0)

    def __repr__(self) -> str:
        return self.name


u: Expression = Jet()
"""The unknown function."""


def UnknownFunction(name: str, mean: Field | float = 0.0) -> Expression:
    """A function of x to be learned from observations of u, anywhere in an equation: ``D(u, 0, 2) - UnknownFunction("f")``.

    A Gaussian process around the mean, whose lengthscale and amplitude are those of the largest evidence. Arguments: name: its
    key in `Solution.unknowns`; mean: a number or a callable of x [n, d]. Raises: InputError for the name u.

    >>> D(u, 0, 2) + UnknownFunction("g") * u
    (u_00 + g * u)
    """
    if not isinstance(name, str) or name in ("", "u"):
        raise InputError(f"An unknown function needs a name other than u, got {name!r}.")
    process = Jet((), name)
    return process if isinstance(mean, Real) and not mean else expression(mean) + process


def D(of: Any, axis: int, order: int = 1) -> Expression:
    """The derivative ``d^order / dx_axis^order`` of u or of any expression; products and functions by their rules.

    Raises: InputError for an axis that is not an integer >= 0 or an order that is not one >= 1.

    >>> D(u, 0, 2) + D(u * D(u, 1), 1)
    (u_00 + (u_1 * u_1 + u * u_11))
    """
    if not isinstance(axis, int) or axis < 0 or not isinstance(order, int) or order < 1:
        raise InputError(
            f"D(u, axis, order) needs an integer axis >= 0 and order >= 1, got axis={axis!r}, order={order!r}."
        )
    return reduce(lambda e, _: e.derivative(axis), range(order), expression(of))


def sin(of: Any) -> Expression:
    """The sine of an expression."""
    return Apply("sin", lambda n: lambda v: torch.sin(v + n * torch.pi / 2), expression(of))


def cos(of: Any) -> Expression:
    """The cosine of an expression."""
    return Apply("cos", lambda n: lambda v: torch.cos(v + n * torch.pi / 2), expression(of))


def exp(of: Any) -> Expression:
    """The exponential of an expression."""
    return Apply("exp", lambda n: torch.exp, expression(of))


def expression(value: Any) -> Expression:
    """Numbers are constants, callables coefficients. Raises: InputError for anything else."""
    if isinstance(value, Expression):
        return value
    if isinstance(value, Real):
        check_field(value, "A number of an equation")
        return Constant(float(value))
    if callable(value):
        return Coefficient(value)
    raise InputError(
        f"An equation is made of u, D(u, axis, order), numbers and callables of x [n, d], got {type(value).__name__}: {value!r}."
    )


def leaves(of: Expression) -> Iterator[Expression]:
    """The expressions without parts that it is made of."""
    parts = of.parts()
    for part in parts:
        yield from leaves(part)
    if not parts:
        yield of


def indices(of: Expression, name: str = "u") -> frozenset[Index]:
    """The derivatives of u, or of the unknown function of that name, that an expression has."""
    return frozenset(leaf.index for leaf in leaves(of) if isinstance(leaf, Jet) and leaf.name == name)


def substitute(
    of: Expression,
    numbers: Mapping[str, float],
    functions: Mapping[str, Callable[[Tensor, Index], Tensor]] | None = None,
) -> Expression:
    """The expression with numbers for the unknown ones, and functions of x and a derivative for unknown functions."""
    if isinstance(of, Unknown) and of.name in numbers:
        return Constant(numbers[of.name])
    if isinstance(of, Jet) and functions and of.name in functions:
        return Coefficient(partial(functions[of.name], index=of.index))
    parts = {f.name: getattr(of, f.name) for f in fields(of) if isinstance(getattr(of, f.name), Expression)}
    return replace(of, **{name: substitute(part, numbers, functions) for name, part in parts.items()}) if parts else of


def linearise(of: Expression, jet: Mapping[Any, Tensor], x: Tensor) -> tuple[Tensor, dict[Any, Tensor]]:
    """Values [n], and their derivatives [n] by each member of the jet: the coefficients of the linearised operator."""
    variables = {index: value.detach().requires_grad_() for index, value in jet.items()}
    value = of.value(variables, x)
    if not value.requires_grad:
        return value.detach(), {index: torch.zeros_like(value) for index in jet}
    slopes = torch.autograd.grad(value.sum(), list(variables.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(variables, slopes, strict=True))


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
    found = _real(torch.as_tensor(function(x)), name).detach().to(torch.float64)
    if found.shape == (len(x), 1):
        found = found[:, 0]
    if found.shape != (len(x),):
        raise InputError(
            f"{name} must map a tensor [n, d] to [n]: for {list(x.shape)} it returned {list(found.shape)}."
        )
    if not bool(torch.isfinite(found).all()):
        where = x[~torch.isfinite(found)][0].tolist()
        raise InputError(f"{name} is not finite at x = {where}; restrict the domain or correct the function.")
    return found


def differentiated(function: Field | float, x: Tensor, axis: int) -> Tensor | None:
    """The derivative [n] of a field along an axis at x [n, d]; None where automatic differentiation does not see through it."""
    if isinstance(function, Real):
        return torch.zeros(len(x), dtype=torch.float64)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        try:
            value = torch.as_tensor(function(at))
        except RuntimeError:  # numpy refuses tensors that are differentiated
            return None
        return torch.autograd.grad(value.sum(), at)[0][:, axis] if value.requires_grad else None


def _real(found: Tensor, name: str) -> Tensor:
    if found.is_complex():
        raise InputError(
            f"{name} returned complex values ({found.dtype}), and solutions are real: give real values; of a linear equation with"
            " a complex source solve for the real and the imaginary part one after the other."
        )
    return found


def _derivative(function: Field, index: Index) -> Field:
    if not index:
        name = "A coefficient"
        return lambda x: evaluate(function, x, name) if not x.requires_grad else _real(function(x), name)

    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            value = _derivative(function, index[:-1])(at)
            if not value.requires_grad:
                return torch.zeros_like(x[:, 0])
            return torch.autograd.grad(value.sum(), at, create_graph=True)[0][:, index[-1]]

    return slope
