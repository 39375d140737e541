"""General domains: scattered points inside and on the boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gpx.errors import InputError
from gpx.linalg.orderings import maximin
from gpx.pde.domains import MAX_DIMS, Box, numbers, whole

POOL, LEAST_POOL = 10, 4000  # points drawn for each that is kept
MARGIN = 0.05  # of the range, around the bounds, where points outside are drawn
HALVINGS = 60
NEARBY = 1e-5  # of the range: where the boundary is taken to be flat
NEAR = 1.0  # typical distances of boundary points: what is nearer to one is on the boundary

Inside = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Points:
    """A domain of any shape, given by points where the equation holds and points where the solution is known.

    Arguments: interior [n, d], boundary [m, d]: 1 to 3 axes; of an evolution in time, boundary has the first time and the walls,
    interior the last time also. inside: maps x [n, d] to booleans [n], true in the domain; None where that is not known: then
    only points outside the bounds of all others are refused. normals [m, d]: outward, of any length, at the boundary; they are
    needed where slopes are given there. `within` finds points and normals from `inside`.
    Raises: InputError for an empty set, for points that are not finite, repeated or, by inside, outside.

    >>> half_disc = Points.within([(-1, 1), (0, 1)], lambda x: x.norm(dim=1) < 1, 200)
    >>> bool((half_disc.interior.norm(dim=1) < 1).all()), half_disc.dims
    (True, 2)
    """

    interior: Tensor
    boundary: Tensor
    inside: Inside | None = None
    normals: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("interior", "boundary"):
            object.__setattr__(self, name, _checked(getattr(self, name), name))
        if self.interior.shape[1] != self.boundary.shape[1]:
            raise InputError(
                f"interior has {self.interior.shape[1]} columns and boundary {self.boundary.shape[1]}; both need one for"
                " each axis."
            )
        if self.normals is not None:
            normals = numbers(self.normals, "normals")
            sizes = normals.norm(dim=-1, keepdim=True)
            if normals.shape != self.boundary.shape or not bool((sizes > 0).all() and torch.isfinite(sizes).all()):
                raise InputError(
                    f"normals are finite vectors {list(self.boundary.shape)}, one for every boundary point and none of them zero;"
                    f" got {list(normals.shape)}."
                )
            object.__setattr__(self, "normals", normals / sizes)
        if self.inside is not None:
            outside = ~_asked(self.inside, self.interior)
            if bool(outside.any()):
                raise InputError(
                    f"{int(outside.sum())} of {len(outside)} interior points are outside the domain, the first at"
                    f" x = {self.interior[outside][0].tolist()}; leave them out, or correct inside."
                )
        both = len(self.all) - len(torch.unique(self.all, dim=0))
        if both:
            raise InputError(
                f"{both} points are both in interior and in boundary: leave them in boundary where the solution or its slope is"
                " known, in interior otherwise."
            )

    @classmethod
    def within(cls, bounds: Sequence[tuple[float, float]], inside: Inside, count: int) -> Points:
        """So many points spread evenly over the part of a box where `inside` is true, and over its boundary.

        Boundary points lie between points inside and outside, by bisection. Every point is the farthest from all that are chosen
        before it, out of ten times as many at random (always the same). The faces of the box bound the domain too.
        Raises: InputError if nothing is inside, or count is not an integer >= 10. Cost: O(count log count).
        """
        box = Box(bounds)
        if not whole(count, 10):
            raise InputError(f"Points.within needs an integer count >= 10, got {count!r}.")
        low, high = np.array(box.bounds).T
        random, size = np.random.default_rng(0), max(POOL * count, LEAST_POOL)

        def held(x: np.ndarray) -> np.ndarray:
            found = _asked(inside, torch.from_numpy(x)).numpy()
            return found & (x > low).all(1) & (x < high).all(1)

        drawn = low + (high - low) * random.random((size, box.dims))
        interior = drawn[held(drawn)]
        if not len(interior):
            raise InputError(f"inside is true at none of {size} random points in {box}; correct it, or the bounds.")
        around = low + (high - low) * ((1 + 2 * MARGIN) * random.random((size, box.dims)) - MARGIN)
        around = around[~held(around)]
        crossings = _bisected(held, interior[cKDTree(interior).query(around)[1]], around)
        chosen = maximin(np.concatenate([crossings, interior]))[:count]
        on = chosen < len(crossings)
        boundary = crossings[chosen[on]]
        normals = _normals(held, boundary, NEARBY * float((high - low).max())) if len(boundary) else boundary
        return cls(
            torch.from_numpy(interior[chosen[~on] - len(crossings)]), torch.from_numpy(boundary), inside,
            torch.from_numpy(normals),
        )  # fmt: skip

    def part(self, face: Any) -> Tensor:
        """Which boundary points [m] a condition is for: those where its face, a callable of x [n, d], is true; None: all."""
        if face is None:
            return torch.ones(len(self.boundary), dtype=torch.bool)
        return _asked(face, self.boundary, "The face of a condition on Points")

    @property
    def dims(self) -> int:
        """The number of axes."""
        return self.interior.shape[1]

    @cached_property
    def all(self) -> Tensor:
        """All points [m + n, d], those of the boundary first."""
        return torch.cat([self.boundary, self.interior])

    @cached_property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """(lower, upper) of all points along every axis."""
        return tuple(zip(self.all.amin(0).tolist(), self.all.amax(0).tolist(), strict=True))

    def few(self, count: int) -> Points:
        """At most so many of the points, spread evenly, some of the boundary among them."""
        if len(self.all) <= count:
            return self
        chosen = torch.from_numpy(maximin(self.all.numpy())[:count])
        on = chosen < len(self.boundary)
        kept = chosen[on] if bool(on.any()) else torch.zeros(1, dtype=torch.long)
        return replace(
            self, interior=self.interior[chosen[~on] - len(self.boundary)], boundary=self.boundary[kept],
            normals=None if self.normals is None else self.normals[kept],
        )  # fmt: skip

    def check(self, x: Tensor) -> None:
        """Raises: InputError for points that are not in the domain."""
        low, high = torch.tensor(self.bounds, dtype=torch.float64).T
        slack = 1e-9 * (high - low)
        held = ((x >= low - slack) & (x <= high + slack)).all(1)
        if self.inside is not None:
            close = torch.from_numpy(cKDTree(self.boundary.numpy()).query(x.numpy())[0]) <= NEAR * self.spacing
            held = _asked(self.inside, x) | (held & close)
        if not bool(held.all()):
            raise InputError(
                f"{int((~held).sum())} of {len(x)} points are outside the domain, the first at x = {x[~held][0].tolist()}."
            )

    @cached_property
    def spacing(self) -> float:
        """The median distance of a point to its nearest neighbour."""
        x = self.all.numpy()
        return float(np.median(cKDTree(x).query(x, 2)[0][:, 1]))

    def between(self, count: int) -> Tensor:
        """Points of the domain, other than the given ones: of a uniform grid with so many per axis those that are inside,
        or, where that is not known, the middles between interior points and their nearest neighbours.
        """
        if self.inside is None:
            x = self.interior.numpy()
            near = cKDTree(x).query(x, 2)[1][:, 1] if len(x) > 1 else np.zeros(1, int)
            return torch.from_numpy((x + x[near]) / 2)
        axes = [torch.linspace(low, high, count + 1, dtype=torch.float64)[1:] for low, high in self.bounds]
        grid = torch.cartesian_prod(*axes).reshape(-1, self.dims)
        return grid[_asked(self.inside, grid)]


def _checked(values: Any, name: str) -> Tensor:
    x = numbers(values, name)
    if x.dim() != 2 or not 1 <= x.shape[1] <= MAX_DIMS:
        raise InputError(f"{name} must be points [n, d] with 1 to {MAX_DIMS} axes, got shape {list(x.shape)}.")
    if not len(x):
        advice = "where the solution is known" if name == "boundary" else "where the equation holds"
        raise InputError(f"Points needs at least one {name} point, {advice}; got none.")
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"{name} has points that are not finite.")
    repeated = len(x) - len(torch.unique(x, dim=0))
    if repeated:
        raise InputError(f"{name} has {repeated} repeated points; give every point once (torch.unique(x, dim=0)).")
    return x


def _asked(inside: Inside, x: Tensor, name: str = "inside") -> Tensor:
    found = torch.as_tensor(inside(x)).detach()
    if found.shape != (len(x),) or found.dtype != torch.bool:
        raise InputError(
            f"{name} must map a tensor [n, d] to booleans [n], such as lambda x: x.norm(dim=1) < 1: for {list(x.shape)} it"
            f" returned {found.dtype} {list(found.shape)}."
        )
    return found


def _normals(held: Callable[[np.ndarray], np.ndarray], x: np.ndarray, radius: float) -> np.ndarray:
    """Outward normals [m, d] at boundary points: the way out of a small ball, then from slopes of the boundary across it.

    Errors: O(radius); at corners, a direction between those of the faces.
    """
    count, dims = x.shape
    ways = np.random.default_rng(0).standard_normal((64 * dims, dims))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    outside = ~held((x[:, None] + radius * ways).reshape(-1, dims)).reshape(count, -1)
    normals = (2.0 * outside - 1) @ ways
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    across = np.linalg.svd(normals[:, None, :])[2][:, 1:]  # [m, d - 1, d]
    for k in range(dims - 1):
        heights = []
        for sign in (1, -1):
            base = x + sign * radius * across[:, k]
            ends = base - 2 * radius * normals, base + 2 * radius * normals
            edge = _between(held, *ends)
            heights.append(((edge - x) * normals).sum(1))
        normals = normals - ((heights[0] - heights[1]) / (2 * radius))[:, None] * across[:, k]
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _bisected(held: Callable[[np.ndarray], np.ndarray], inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """For every pair of a point inside and one outside, a point between them on the boundary."""
    return np.unique(_between(held, inner, outer), axis=0)


def _between(held: Callable[[np.ndarray], np.ndarray], inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    inner, outer = inner.copy(), outer.copy()
    for _ in range(HALVINGS):
        middle = (inner + outer) / 2
        within = held(middle)[:, None]
        inner, outer = np.where(within, middle, inner), np.where(within, outer, middle)
    return outer
