"""Boxes, their faces and grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError

Face = tuple[int, int]
MAX_DIMS = 3


@dataclass(frozen=True)
class Box:
    """A product of intervals; ``Box * Box`` is the product of both, space and time.

    Arguments: bounds: (lower, upper) for each of 1 to 3 axes. Raises: InputError for others.

    >>> Interval(0, 1) * Interval(0, 2)
    Box(bounds=((0.0, 1.0), (0.0, 2.0)))
    """

    bounds: tuple[tuple[float, float], ...]

    def __init__(self, bounds: Sequence[tuple[float, float]]):
        try:
            pairs = tuple((float(low), float(high)) for low, high in bounds)
        except (TypeError, ValueError):
            raise InputError(f"Box needs a list of pairs (lower, upper), one for each axis, got {bounds!r}.") from None
        if not 1 <= len(pairs) <= MAX_DIMS or not all(np.isfinite(pair).all() and pair[0] < pair[1] for pair in pairs):
            raise InputError(f"Box needs 1 to {MAX_DIMS} pairs lower < upper of finite numbers, got {bounds!r}.")
        object.__setattr__(self, "bounds", pairs)

    def __mul__(self, other: Box) -> Box:
        if not isinstance(other, Box):
            raise InputError(
                f"A Box is multiplied by a Box, such as Interval(0, 1), got {type(other).__name__}: {other!r}."
            )
        return Box(self.bounds + other.bounds)

    @property
    def dims(self) -> int:
        """The number of axes."""
        return len(self.bounds)

    def axes(self, counts: Sequence[int]) -> list[np.ndarray]:
        """For every axis, so many uniform points, ends included."""
        return [np.linspace(low, high, n) for (low, high), n in zip(self.bounds, counts, strict=True)]

    def end(self, face: Face) -> float:
        """The coordinate of a face along its axis."""
        return self.bounds[face[0]][face[1]]

    def check(self, axis: int, x: Tensor) -> None:
        """Raises: InputError for coordinates [n] that are outside along an axis."""
        low, high = self.bounds[axis]
        slack = 1e-9 * (high - low)
        outside = int(((x < low - slack) | (x > high + slack)).sum())
        if outside:
            raise InputError(
                f"{outside} of {len(x)} points are outside the domain along axis {axis}: {low:g} to {high:g}."
            )

    def check_face(self, face: Any) -> Face:
        """Raises: InputError unless it is (axis, 0 | 1)."""
        if isinstance(face, tuple) and len(face) == 2 and face[0] in range(self.dims) and face[1] in (0, 1):
            return int(face[0]), int(face[1])
        raise InputError(
            f"A face is (axis, 0) for the lower or (axis, 1) for the upper one, axis in 0..{self.dims - 1}; got {face!r}."
        )


def Interval(lower: float, upper: float) -> Box:
    """The box of one axis."""
    return Box([(lower, upper)])


def numbers(values: Any, name: str) -> Tensor:
    """Numbers of any kind and shape, as float64. Raises: InputError unless they are real numbers that make an array."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if array.dtype.kind in "USc":
            raise ValueError(f"it has {array.dtype}")
        return torch.from_numpy(array.astype(float))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of real numbers, got {type(values).__name__} ({error}).") from None


def whole(value: Any, least: int) -> bool:
    """Whether a value is an integer, of Python or numpy, of at least so much."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def called_at(X: Any, dims: int) -> Tensor:
    """The points [n, d] that a solution is called at ([n] where d = 1). Raises: InputError for others, or not finite ones."""
    x = numbers(X, "Points")
    x = x[:, None] if x.dim() == 1 and dims == 1 else x
    if x.dim() != 2 or x.shape[1] != dims:
        raise InputError(f"A solution of {dims} axes is called at points [n, {dims}], got {list(x.shape)}.")
    lost = int((~torch.isfinite(x)).any(1).sum())
    if lost:
        raise InputError(f"{lost} of {len(x)} points are not finite; leave them out.")
    return x


def points(axes: Sequence[np.ndarray]) -> Tensor:
    """The points [n, d] of a grid, the last axis running fastest."""
    return torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)))
