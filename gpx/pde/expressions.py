"""Differential equations as expressions in an unknown function u: ``D(u, 0, 2) + u**3 - u``.

An expression is a function of x and of the *jet* of u: its values and derivatives at x. A derivative is named by the axes along
which it is taken, ascending: ``()`` is u, ``(0, 0)`` is u_xx, ``(0, 1)`` is u_xy.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial, reduce
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.pde.domains import whole
from gpx.pde.fields import Field, Index, check_field, differentiate, differentiating, evaluate, finite

Key = Index | tuple[str, Index]

FUNCTIONS = "pde.exp, pde.sin, pde.cos, or powers with numbers"
ARITHMETIC = {np.add: operator.add, np.subtract: operator.sub, np.multiply: operator.mul, np.divide: operator.truediv}


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
        if exponent < 0 and isinstance(self, Constant) and not self.number:
            raise InputError(f"An expression divides by zero: 0**{exponent:g}; correct the equation.")
        return Power(self, float(exponent))

    def __rpow__(self, base: Any) -> Expression:
        raise InputError(f"{base!r}**u has u in the exponent: write pde.exp(math.log({base!r}) * u).")

    def __abs__(self) -> Expression:
        raise InputError(
            "abs of an expression is not differentiable: write (u**2) ** 0.5 where u has no zeros, or a smooth function by"
            f" {FUNCTIONS}."
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Expression:
        """What numpy does with expressions: arithmetic of its numbers, and nothing else."""
        if ufunc in ARITHMETIC:
            return ARITHMETIC[ufunc](*map(expression, inputs))
        raise InputError(f"numpy's {ufunc.__name__} takes numbers, and u is an expression: write {FUNCTIONS}.")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch does with expressions: nothing."""
        name = getattr(func, "__name__", func)
        raise InputError(
            f"torch's {name} takes tensors, and u is an expression: write {FUNCTIONS}; functions of x are given as callables."
        )

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
    """A derivative of u, or of an unknown function with another name: then of a process around its mean."""

    index: Index = ()
    name: str = "u"
    mean: Expression | None = None

    @property
    def key(self) -> Key:
        """Where its values are in a jet."""
        return self.index if self.name == "u" else (self.name, self.index)

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return jet[self.key] if self.mean is None else self.prior.value(jet, x) + jet[self.key]

    @property
    def prior(self) -> Expression:
        """The derivative of the mean."""
        mean = Constant(0.0) if self.mean is None else self.mean
        return reduce(lambda e, axis: e.derivative(axis), self.index, mean)

    def derivative(self, axis: int) -> Expression:
        return replace(self, index=tuple(sorted((*self.index, axis))))

    def degree(self) -> float:
        return 1.0

    def __repr__(self) -> str:
        process = self.name + ("_" + "".join(map(str, self.index)) if self.index else "")
        return process if self.mean is None else f"({self.prior!r} + {process})"


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
        if not self.index:
            return evaluate(self.function, x, "A coefficient")
        with differentiating():
            found = differentiate(self.function, self.index, x.detach().clone().requires_grad_()).detach()
        return finite(found, x, "The derivative of a coefficient")

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
    """A function of an expression: function(order, values) is its derivative of that order."""

    name: str
    function: Callable[[int, Tensor], Tensor]
    argument: Expression
    order: int = 0

    def parts(self) -> tuple[Expression, ...]:
        return (self.argument,)

    def value(self, jet: Mapping[Any, Tensor], x: Tensor) -> Tensor:
        return self.function(self.order, self.argument.value(jet, x))

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
    key in `Solution.unknowns`, whose values have the mean; mean: a number or a callable of x [n, d]. Raises: InputError for the
    name u.

    >>> D(u, 0, 2) + UnknownFunction("g") * u
    (u_00 + g * u)
    """
    if not isinstance(name, str) or name in ("", "u"):
        raise InputError(f"An unknown function needs a name other than u, got {name!r}.")
    return Jet((), name, None if isinstance(mean, Real) and not mean else expression(mean))


def D(of: Any, axis: int, order: int = 1) -> Expression:
    """The derivative ``d^order / dx_axis^order`` of u or of any expression; products and functions by their rules.

    Raises: InputError for an axis that is not an integer >= 0 or an order that is not one >= 1.

    >>> D(u, 0, 2) + D(u * D(u, 1), 1)
    (u_00 + (u_1 * u_1 + u * u_11))
    """
    if not (whole(axis, 0) and whole(order, 1)):
        raise InputError(
            f"D(u, axis, order) needs an integer axis >= 0 and order >= 1, got axis={axis!r}, order={order!r}."
        )
    return reduce(lambda e, _: e.derivative(int(axis)), range(order), expression(of))


def sin(of: Any) -> Expression:
    """The sine of an expression."""
    return Apply("sin", _sin, expression(of))


def cos(of: Any) -> Expression:
    """The cosine of an expression."""
    return Apply("cos", _cos, expression(of))


def exp(of: Any) -> Expression:
    """The exponential of an expression."""
    return Apply("exp", _exp, expression(of))


def _sin(order: int, values: Tensor) -> Tensor:
    return torch.sin(values + order * torch.pi / 2)


def _cos(order: int, values: Tensor) -> Tensor:
    return torch.cos(values + order * torch.pi / 2)


def _exp(order: int, values: Tensor) -> Tensor:
    return torch.exp(values)


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


def require_known(of: Expression, dims: int, names: Collection[str] = ()) -> None:
    """Raises: InputError for derivatives along axes that a solution of so many does not have, and unknowns but these."""
    jets = [leaf for leaf in leaves(of) if isinstance(leaf, Jet)]
    highest = max((axis for jet in jets for axis in jet.index), default=-1)
    if highest >= dims:
        raise InputError(f"The expression has D(u, {highest}), the solution has axes 0..{dims - 1}.")
    unknown = {leaf.name for leaf in leaves(of) if isinstance(leaf, (Jet, Unknown))} - {"u", *names}
    if unknown:
        raise InputError(
            f"The expression has unknowns ({', '.join(sorted(unknown))}) that are not in the solution's equation, which has"
            f" {', '.join(names) or 'none'}: write it with u, these, and numbers."
        )


def substitute(
    of: Expression,
    numbers: Mapping[str, float],
    functions: Mapping[str, Callable[[Tensor, Index], Tensor]] | None = None,
) -> Expression:
    """The expression with numbers for the unknown ones, and functions of x and a derivative for unknown functions."""
    if isinstance(of, Unknown) and of.name in numbers:
        return Constant(numbers[of.name])
    if isinstance(of, Jet) and functions and of.name in functions:
        return of.prior + Coefficient(partial(functions[of.name], index=of.index))
    parts = {f.name: getattr(of, f.name) for f in fields(of) if isinstance(getattr(of, f.name), Expression)}
    return replace(of, **{name: substitute(part, numbers, functions) for name, part in parts.items()}) if parts else of


def linearise(of: Expression, jet: Mapping[Any, Tensor], x: Tensor) -> tuple[Tensor, dict[Any, Tensor]]:
    """Values [n], and their derivatives [n] by each member of the jet: the coefficients of the linearised operator."""
    with differentiating():
        variables = {index: value.detach().clone().requires_grad_() for index, value in jet.items()}
        value = of.value(variables, x.clone())
        if not value.requires_grad:
            return value.detach(), {index: torch.zeros_like(value) for index in jet}
        slopes = torch.autograd.grad(value.sum(), list(variables.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(variables, slopes, strict=True))
