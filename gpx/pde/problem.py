"""A differential equation on a box, with its source and boundary conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.pde.boundary import Condition, Dirichlet, Periodic, Robin, check_corners, check_parts
from gpx.pde.domains import Box
from gpx.pde.expressions import Expression, Jet, Unknown, expression, indices, leaves
from gpx.pde.fields import Field, Index, check_field
from gpx.pde.observations import Observations
from gpx.pde.points import Points

DEFAULT_GRID = {1: 400, 2: 100, 3: 40}  # points per axis
DEFAULT_UNCERTAIN = {1: 400, 2: 30, 3: 12}  # where data with noise determine the solution, which costs more


@dataclass(frozen=True, eq=False)
class Problem:
    """``equation = source`` in a box, with conditions on its faces.

    Arguments: domain: a `Box` of d axes, or `Points` of a domain of any shape. equation: an expression in u, D(u, axis, order),
    numbers and callables. source, boundary, exact: numbers or callables of torch float64 x [n, d] with values [n]; boundary: one
    of these (Dirichlet on every face), or a list of `Dirichlet`, `Neumann`, `Robin` and, for a box, `Periodic`, as many along
    every axis as the equation has derivatives along it. exact: the solution where it is known: read by `Solution.relative_error`
    and plots alone. grid: points per axis that `solve` uses by default, a number or one for each. noise: standard deviation of
    independent noise in the values of the source on the grid, in its units; 0: none. With noise, source may also be an array of
    these values [M_1, ..., M_d] (on `Points`: [n], inside). name: for plots. observations: `Observations`, or a list of these;
    with them conditions may be missing, and, on a box, the equation, or the source as an expression, may have an `Unknown` or an
    `UnknownFunction`.
    Raises: InputError for an equation without derivatives or with other axes than the box, conditions that are too many or
    too few, or boundary values that disagree where faces meet.

    >>> from gpx.pde import D, Interval, u
    >>> Problem(Interval(0, 1), D(u, 0, 2), -1.0, 0.0).orders
    (2,)
    """

    domain: Any  # Box or Points
    equation: Expression
    source: Field | float | Tensor | np.ndarray
    boundary: Any
    exact: Field | None = None
    grid: int | Sequence[int] | None = None
    noise: float = 0.0
    name: str = ""
    observations: Observations | Sequence[Observations] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.domain, (Box, Points)):
            raise InputError(
                f"Problem needs a Box, an Interval or Points as its domain, got {type(self.domain).__name__}."
            )
        if not (self.exact is None or callable(self.exact)):
            raise InputError(f"exact is None or a callable of x [n, d], got {type(self.exact).__name__}.")
        if not (isinstance(self.noise, Real) and 0 <= self.noise < np.inf):
            raise InputError(f"noise is a finite standard deviation >= 0, 0 for an exact source; got {self.noise!r}.")
        given = self.observations
        given = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if not all(isinstance(each, Observations) for each in given):
            raise InputError("observations= takes Observations(X, y, noise), or a list of these.")
        object.__setattr__(self, "observations", given)
        object.__setattr__(self, "equation", expression(self.equation))
        if isinstance(self.source, Expression):
            object.__setattr__(self, "equation", self.equation - self.source)
            object.__setattr__(self, "source", 0.0)
        self._check_source()
        highest = max((axis for index in self.jet for axis in index), default=-1)
        if highest < 0:
            raise InputError(f"The equation {self.equation!r} has no derivative of u; write it with D(u, axis, order).")
        if highest >= self.domain.dims:
            raise InputError(f"The equation has D(u, {highest}), the domain has axes 0..{self.domain.dims - 1}.")
        if isinstance(self.domain, Points):
            self._check_points()
            self._check_level()
        else:
            self._check_unknowns()
            self._check_conditions()
            self._check_level()
            check_corners(self.domain, self.conditions)

    @property
    def jet(self) -> tuple[Index, ...]:
        """The derivatives of u that the equation has, ascending."""
        return tuple(sorted(indices(self.equation)))

    @property
    def orders(self) -> tuple[int, ...]:
        """The highest derivative along every axis."""
        return tuple(max(index.count(axis) for index in self.jet) for axis in range(self.domain.dims))

    @property
    def linear(self) -> bool:
        """Whether the equation is affine in u."""
        return self.equation.degree() <= 1

    @property
    def unknown_numbers(self) -> dict[str, float]:
        """The names of unknown numbers, with their starts."""
        return {leaf.name: float(leaf.start) for leaf in self._leaves() if isinstance(leaf, Unknown)}

    @property
    def unknown_functions(self) -> tuple[str, ...]:
        """The names of unknown functions beside u."""
        return tuple(sorted({leaf.name for leaf in self._leaves() if isinstance(leaf, Jet)} - {"u"}))

    def prior(self, name: str) -> Expression:
        """The mean of an unknown function."""
        jets = (leaf for leaf in self._leaves() if isinstance(leaf, Jet) and leaf.name == name)
        return next((jet.mean for jet in jets if jet.mean is not None), expression(0.0))

    @property
    def uncertain(self) -> bool:
        """Whether data with noise determine the solution."""
        return bool(self.noise or self.observations)

    @property
    def complete(self) -> bool:
        """Whether conditions are as many as a problem without observations has: on points, one everywhere on the boundary."""
        if isinstance(self.domain, Points):
            parts = [self.domain.part(c.face) for c in self.conditions]
            return not self._floats and bool(parts) and bool(torch.stack(parts).any(0).all())
        return not self._floats and all(
            len(self.along(axis)) + order * self.periodic(axis) == order for axis, order in enumerate(self.orders)
        )

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The boundary conditions, one by one."""
        if callable(self.boundary) or isinstance(self.boundary, Real):
            if isinstance(self.domain, Points):
                return (Dirichlet(None, self.boundary),)
            return tuple(Dirichlet((axis, end), self.boundary) for axis in range(self.domain.dims) for end in (0, 1))
        given = self.boundary if isinstance(self.boundary, (list, tuple)) else [self.boundary]
        if not all(isinstance(each, Condition) for each in given):
            raise InputError(
                "boundary is a number, a callable of x [n, d], or a list of Dirichlet, Neumann, Robin and Periodic conditions,"
                f" got {self.boundary!r}."
            )
        return tuple(given)

    def along(self, axis: int) -> list[Robin]:
        """The conditions on the two faces of an axis."""
        return [c for c in self.conditions if isinstance(c, Robin) and c.face[0] == axis]

    def periodic(self, axis: int) -> bool:
        """Whether both faces of an axis are one."""
        return any(isinstance(c, Periodic) and c.axis == axis for c in self.conditions)

    def counts(self, grid: int | Sequence[int] | None = None) -> tuple[int, ...]:
        """Points per axis. Raises: InputError unless they are integers of at least 4, one or one for each axis."""
        usual = (DEFAULT_UNCERTAIN if self.uncertain else DEFAULT_GRID)[self.domain.dims]
        given = next((g for g in (grid, self.grid) if g is not None), usual)
        counts = tuple(given) if isinstance(given, (Sequence, np.ndarray)) else (given,) * self.domain.dims
        if len(counts) != self.domain.dims or not all(isinstance(n, Integral) and int(n) >= 4 for n in counts):
            raise InputError(
                f"grid is a number of points >= 4, or one for each of {self.domain.dims} axes, got {given!r}."
            )
        return tuple(map(int, counts))

    def _leaves(self) -> Iterator[Expression]:
        for each in (self.equation, *(given.of for given in self.observations)):  # pyright: ignore[reportGeneralTypeIssues]
            yield from leaves(each)

    def _check_source(self) -> None:
        if not isinstance(self.source, (Tensor, np.ndarray)):
            check_field(self.source, "The source of a Problem")
            return
        if not self.noise:
            raise InputError(
                "A source that is given by values on the grid needs its noise: write noise=, the standard deviation of errors in"
                " them, or give a callable, which is also looked at between the points of the grid."
            )
        values = torch.as_tensor(self.source)
        lost = int((~torch.isfinite(values)).sum())
        if values.is_complex() or lost:
            what = f"{lost} of {values.numel()} that are not finite" if lost else f"values of {values.dtype}"
            raise InputError(
                f"A source that is given by values has finite real ones, got {what}; correct them, or give what was measured as"
                " observations=Observations(X, y, noise, of=equation) at the points where it is known."
            )

    def _check_unknowns(self) -> None:
        numbers, functions = self.unknown_numbers, self.unknown_functions
        if set(numbers) & {*functions, "u"}:
            raise InputError(f"The unknowns {[*numbers]} and the functions {['u', *functions]} need different names.")
        if (numbers or functions) and not self.observations:
            raise InputError(
                f"The equation has unknowns ({', '.join([*numbers, *functions])}), which nothing determines: give"
                " observations=Observations(X, y, noise) of u."
            )
        for each in self.observations:  # pyright: ignore[reportGeneralTypeIssues]
            each.check(self.domain)

    def _check_points(self) -> None:
        if not (callable(self.boundary) or isinstance(self.boundary, (int, float, list, tuple))):
            raise InputError(
                "On Points the boundary of a Problem is a number or a callable of x [n, d], the values of u there, or a list of"
                f" Dirichlet, Neumann and Robin, got {type(self.boundary).__name__}."
            )
        if self.grid is not None or self.unknown_numbers or self.unknown_functions:
            raise InputError("A Problem on Points has no grid= or unknowns; take a Box for these.")
        if isinstance(self.source, (Tensor, np.ndarray)) and tuple(self.source.shape) != (len(self.domain.interior),):
            raise InputError(
                f"The source has values of shape {list(self.source.shape)}, and the domain {len(self.domain.interior)} interior"
                " points: give one for each."
            )
        for each in self.observations:  # pyright: ignore[reportGeneralTypeIssues]
            each.check(self.domain)
        check_parts(self.domain, self.conditions, bool(self.observations))

    def _check_conditions(self) -> None:
        for condition in self.conditions:
            if not isinstance(condition, (Robin, Periodic)):
                raise InputError(
                    "boundary is one callable or a list of Dirichlet, Neumann, Robin and Periodic, got"
                    f" {type(condition).__name__} in it."
                )
            self.domain.check_face((condition.axis, 0) if isinstance(condition, Periodic) else condition.face)
        periodic = [c.axis for c in self.conditions if isinstance(c, Periodic)]
        for axis, order in enumerate(self.orders):
            if periodic.count(axis) > 1 or (periodic.count(axis) and self.along(axis)):
                raise InputError(
                    f"The problem is over-determined along axis {axis}: Periodic({axis}) makes one of both faces; remove"
                    f" {periodic.count(axis) - 1 + len(self.along(axis))} condition(s), the others of this axis."
                )
            count = len(self.along(axis)) + order * self.periodic(axis)
            if count > order or (count < order and not self.observations):
                kind, advice = ("under", "add") if count < order else ("over", "remove")
                raise InputError(
                    f"The problem is {kind}-determined along axis {axis}: the equation has {order} derivative(s) along it, the"
                    f" boundary {count} condition(s); {advice} {abs(count - order)}, giving boundary as a list of Dirichlet,"
                    f" Neumann, Robin or Periodic (an initial condition is Dirichlet(({axis}, 0), g); none belongs on the face"
                    " where a first-order equation flows out), or observations= of u in their place."
                )
        for axis, end in product(range(self.domain.dims), (0, 1)):
            here = [c for c in self.along(axis) if c.face[1] == end]
            # Conditions on different faces ask for different numbers; those on one for combinations of u and its slope.
            rank = int(np.linalg.matrix_rank([np.array([c.a, c.b]) / np.hypot(c.a, c.b) for c in here])) if here else 0
            if rank < len(here):
                raise InputError(
                    f"The problem is over-determined: {len(here)} conditions on face {(axis, end)} give {rank} independent"
                    f" one(s) of u and its slope there, {', '.join(map(repr, here))}; move {len(here) - rank} to another face."
                )

    @property
    def _floats(self) -> bool:
        """Whether u + 1 solves the problem as well as u."""
        return () not in self.jet and all(isinstance(c, Periodic) or c.a == 0 for c in self.conditions)

    def _check_level(self) -> None:
        if self._floats and not self.observations:
            raise InputError(
                "The problem is under-determined: neither the equation nor a condition has u itself, so that u + 1 solves it as"
                " well as u; give Dirichlet or Robin on a face, or observations= of u."
            )
