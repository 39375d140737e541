"""Conditions on the faces of a box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from gpx.errors import InputError
from gpx.pde.domains import Box, points
from gpx.pde.fields import Field, check_field, differentiated, evaluate
from gpx.pde.points import Points

EDGE_POINTS = 5  # per axis along an edge where faces meet
DISAGREEMENT = 1e-6  # of the largest boundary value


@dataclass(frozen=True)
class Robin:
    """``a u + b du/dn = g`` on a face, n being the outward normal; g is a number or maps x [n, d] to [n].

    face: (axis, 0 | 1) of a box; on `Points`, what maps x [n, d] to booleans [n], true on this part; None: everywhere.
    Raises: InputError for a and b that are not finite numbers or both zero, or another g.
    """

    face: Any
    a: float
    b: float
    g: Field | float

    def __post_init__(self) -> None:
        if not all(isinstance(v, Real) and math.isfinite(v) for v in (self.a, self.b)):
            raise InputError(
                f"{self!r} needs finite numbers a and b: where they vary along the face, divide the condition by b if a / b does"
                " not, or, on Points, give one Robin for each part of the boundary on which they hardly do."
            )
        if not (self.a or self.b):
            raise InputError(f"{self!r} asks nothing of u: make a or b nonzero, or leave it out.")
        check_field(self.g, f"g of {self!r}")


class Dirichlet(Robin):
    """``u = g`` on a face; on the lower face of a time axis, an initial condition."""

    def __init__(self, face: Any, g: Field | float):
        super().__init__(face, 1.0, 0.0, g)


class Neumann(Robin):
    """``du/dn = g`` on a face, n being the outward normal."""

    def __init__(self, face: Any, g: Field | float):
        super().__init__(face, 0.0, 1.0, g)


@dataclass(frozen=True)
class Periodic:
    """u and its derivatives, below the order of the equation, agree on both faces of an axis."""

    axis: int


Condition = Robin | Periodic


def check_corners(domain: Box, conditions: tuple[Condition, ...]) -> None:
    """Raises: InputError where values of u that are given on two faces differ."""
    fixed = [c for c in conditions if isinstance(c, Robin) and not c.b]
    for i, first in enumerate(fixed):
        for second in fixed[:i]:
            if first.face[0] != second.face[0]:
                _check_edge(domain, first, second)


def complain_of_slopes(domain: Box, conditions: tuple[Condition, ...]) -> str:
    """Where a slope that a condition asks for at an edge is not that of the values given on the face beside it; empty: nowhere.

    Not an error, as values that disagree are: with such slopes there is a solution. It is continuous and, where faces meet, has a
    weak singularity (r log r, or sqrt(t) after the first time), in which grids converge slowly.
    """
    fixed = [c for c in conditions if isinstance(c, Robin) and not c.b]
    sloped = [c for c in conditions if isinstance(c, Robin) and c.b]
    found = [_slope_gap(domain, one, two) for one in fixed for two in sloped if one.face[0] != two.face[0]]
    return next(filter(None, found), "")


def check_parts(points: Points, conditions: tuple[Condition, ...], enough: bool) -> None:
    """Raises: InputError for conditions that are not on parts of the boundary, or two of a kind at one point; unless there is
    enough else, for points of the boundary without one; without normals, for slopes.
    """
    seen: dict[bool, torch.Tensor] = {}
    for c in conditions:
        if not isinstance(c, Robin) or not (c.face is None or callable(c.face)):
            raise InputError(
                "On Points conditions are Dirichlet, Neumann and Robin, on a face that maps x [n, d] to booleans [n] (None:"
                f" everywhere), got {c!r}."
            )
        if c.b and points.normals is None:
            raise InputError(
                "Neumann and Robin conditions need Points(..., normals=), or Points.within, which finds them."
            )
        on, kind = points.part(c.face), bool(c.b)
        if not bool(on.any()):
            raise InputError(f"No point of the boundary is on the face of {c!r}; correct it, or give points there.")
        twice = on & seen.get(kind, torch.zeros_like(on))
        if bool(twice.any()):
            what = "slopes" if kind else "values"
            raise InputError(
                f"Two conditions give {what} at {int(twice.sum())} points of the boundary, the first at"
                f" x = {points.boundary[twice][0].tolist()}; restrict the face of one."
            )
        seen[kind] = on | seen.get(kind, torch.zeros_like(on))
    free = ~torch.stack(list(seen.values())).any(0) if seen else torch.ones(len(points.boundary), dtype=torch.bool)
    if bool(free.any()) and not enough:
        raise InputError(
            f"{int(free.sum())} boundary points have no condition, the first at x = {points.boundary[free][0].tolist()}: give"
            " one, or observations= of u, or move them to the interior, where the equation holds."
        )


def _check_edge(domain: Box, first: Robin, second: Robin) -> None:
    x = _meeting(domain, first, second)
    one, two = (_given(c, x) / c.a for c in (first, second))
    gap = (one - two).abs()
    worst = int(gap.argmax())
    scale = max(float((_given(c, _meeting(domain, c)) / c.a).abs().max()) for c in (first, second))
    if float(gap[worst]) > DISAGREEMENT * scale:
        raise InputError(
            f"The boundary values of faces {second.face} and {first.face} disagree where they meet: at x = {x[worst].tolist()}"
            f" by {float(gap[worst]):.3g} ({float(two[worst]):.6g} and {float(one[worst]):.6g}); make them agree there, or"
            " leave out the condition that the equation does not need."
        )


def _slope_gap(domain: Box, values: Robin, slopes: Robin) -> str:
    x = _meeting(domain, values, slopes)
    along = _implied(domain, values, slopes, x)
    if along is None:
        return ""
    gap = torch.nan_to_num((along - _given(slopes, x)).abs(), nan=0.0)
    worst = int(gap.argmax())
    face = _meeting(domain, values)
    # Values over the range are of the size of slopes too: rounding in constant ones is no slope.
    flat = _given(values, face) * slopes.b / values.a / float(np.ptp(domain.bounds[slopes.face[0]]))
    sizes = [_implied(domain, values, slopes, face), _given(slopes, _meeting(domain, slopes)), flat]
    if float(gap[worst]) <= DISAGREEMENT * max(float(v.abs().max()) for v in sizes if v is not None):
        return ""
    return (
        f"The slopes that face {slopes.face} asks for are not those of the values on face {values.face} where they meet: at"
        f" x = {x[worst].tolist()} {_given(slopes, x)[worst]:.6g} and {along[worst]:.6g}, {gap[worst]:.3g} apart. The solution is"
        " singular there and known to fewer digits; make them agree, unless it is meant."
    )


def _implied(domain: Box, values: Robin, slopes: Robin, x: torch.Tensor) -> torch.Tensor | None:
    """What the values of one face say of the right side [n] of the condition on another; None where they have no derivative."""
    axis, end = slopes.face
    along = differentiated(values.g, x, axis)
    outward = slopes.b * (2 * end - 1)
    return None if along is None else (slopes.a * _given(values, x) + outward * along) / values.a


def _meeting(domain: Box, *conditions: Robin) -> torch.Tensor:
    """Points [n, d] that the faces of conditions have in common."""
    axes = domain.axes([EDGE_POINTS] * domain.dims)
    for condition in conditions:
        axes[condition.face[0]] = np.array([domain.end(condition.face)])
    return points(axes)


def _given(condition: Robin, x: torch.Tensor) -> torch.Tensor:
    return evaluate(condition.g, x, f"The boundary value on face {condition.face}")
