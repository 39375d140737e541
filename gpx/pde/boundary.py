"""Conditions on the faces of a box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gpx.errors import InputError
from gpx.pde.domains import Box, Face, points
from gpx.pde.expressions import Field, evaluate

EDGE_POINTS = 5  # per axis along an edge where faces meet
DISAGREEMENT = 1e-6  # of the largest boundary value


@dataclass(frozen=True)
class Robin:
    """``a u + b du/dn = g`` on a face (axis, 0 | 1), n being the outward normal; g is a number or maps x [n, d] to [n]."""

    face: Face
    a: float
    b: float
    g: Field | float


class Dirichlet(Robin):
    """``u = g`` on a face; on the lower face of a time axis, an initial condition."""

    def __init__(self, face: Face, g: Field | float):
        super().__init__(face, 1.0, 0.0, g)


class Neumann(Robin):
    """``du/dn = g`` on a face, n being the outward normal."""

    def __init__(self, face: Face, g: Field | float):
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
