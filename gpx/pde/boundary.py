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
from gpx.pde.expressions import Field, check_field, evaluate
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
    """Raises: InputError where the values of two Dirichlet conditions differ."""
    fixed = [c for c in conditions if isinstance(c, Dirichlet)]
    for i, first in enumerate(fixed):
        for second in fixed[:i]:
            if first.face[0] != second.face[0]:
                _check_edge(domain, first, second)


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
    axes = domain.axes([EDGE_POINTS] * domain.dims)
    for condition in (first, second):
        axes[condition.face[0]] = np.array([domain.end(condition.face)])
    x = points(axes)
    one, two = (evaluate(c.g, x, f"The boundary value on face {c.face}") for c in (first, second))
    gap = (one - two).abs()
    worst = int(gap.argmax())
    scale = max(1e-300, *(float(v.abs().max()) for v in _face_values(domain, (first, second))))
    if float(gap[worst]) > DISAGREEMENT * scale:
        raise InputError(
            f"The boundary values of faces {second.face} and {first.face} disagree where they meet: at x = {x[worst].tolist()}"
            f" by {float(gap[worst]):.3g} ({float(two[worst]):.6g} and {float(one[worst]):.6g}); make them agree there, or"
            " leave out the condition that the equation does not need."
        )


def _face_values(domain: Box, conditions: tuple[Robin, ...]) -> list[torch.Tensor]:
    found = []
    for condition in conditions:
        axes = domain.axes([EDGE_POINTS] * domain.dims)
        axes[condition.face[0]] = np.array([domain.end(condition.face)])
        found.append(evaluate(condition.g, points(axes), f"The boundary value on face {condition.face}"))
    return found
