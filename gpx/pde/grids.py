"""A grid of discretised axes: jets at its nodes, lifts of boundary values, and linear operators on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gpx.pde.axes import Axis, multiply
from gpx.pde.domains import points
from gpx.pde.fields import Index, evaluate
from gpx.pde.problem import Problem

# Steps may lead to where an equation is not finite: solvers see it in their residuals, and go another way.
NOT_FINITE = np.errstate(invalid="ignore", over="ignore")


@dataclass(frozen=True)
class Grid:
    """The product of axes: functions ``sum c_ij... b_i(x) b_j(y) ...`` with coefficients [r_1, ..., r_d]."""

    axes: tuple[Axis, ...]

    @cached_property
    def x(self) -> Tensor:
        """The nodes [M_1 ... M_d, d]."""
        return points([axis.nodes for axis in self.axes])

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of nodes along every axis."""
        return tuple(len(axis.nodes) for axis in self.axes)

    @property
    def free(self) -> tuple[int, ...]:
        """The number of functions along every axis that meet the boundary conditions."""
        return tuple(axis.null.shape[1] for axis in self.axes)

    def jet(self, coefficients: np.ndarray, indices: Sequence[Index]) -> dict[Index, Tensor]:
        """Derivatives [n] of a function at all nodes."""
        return {
            index: torch.from_numpy(
                multiply([axis.derivatives[index.count(d)] for d, axis in enumerate(self.axes)], coefficients).reshape(
                    -1
                )
            )
            for index in indices
        }

    def at(self, nodes: Sequence[np.ndarray]) -> Grid:
        """The same functions at other nodes: for jets and traces."""
        return Grid(tuple(axis.at(points) for axis, points in zip(self.axes, nodes, strict=True)))

    @NOT_FINITE
    def test(self, values: Tensor) -> np.ndarray:
        """A residual [n] at the nodes, tested by the functions that meet the conditions."""
        return multiply([axis.test for axis in self.axes], values.numpy().reshape(self.shape))

    def extend(self, free: np.ndarray) -> np.ndarray:
        """Coefficients of the function with zero boundary values that these numbers stand for."""
        return multiply([axis.null for axis in self.axes], free)

    def restrict(self, coefficients: np.ndarray) -> np.ndarray:
        """The numbers of the function with zero boundary values that is nearest."""
        return multiply([axis.null.T for axis in self.axes], coefficients)

    def lift(self, boundary: Sequence[np.ndarray]) -> np.ndarray:
        """Coefficients of a function with given values of the conditions: for every axis, at the nodes of the others."""
        sizes = tuple(len(axis.coefficients) for axis in self.axes)
        found = np.zeros(sizes)
        for d, axis in enumerate(self.axes):
            others = [None if k == d else other.coefficients for k, other in enumerate(self.axes)]
            here: list[np.ndarray | None] = [None] * len(self.axes)
            rows, lift = list(here), list(here)
            rows[d], lift[d] = axis.rows, axis.lift
            found += multiply(lift, multiply(others, boundary[d]) - multiply(rows, found))
        return found

    def traces(self, coefficients: np.ndarray) -> list[np.ndarray]:
        """For every axis, the values of its conditions at the nodes of the others."""
        return [
            multiply([axis.rows if k == d else axis.derivatives[0] for k, axis in enumerate(self.axes)], coefficients)
            for d in range(len(self.axes))
        ]


def boundary_values(problem: Problem, nodes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For every axis, the right sides of its conditions (along that axis of the array) at nodes of the other axes."""
    found = []
    for d in range(len(nodes)):
        shape = tuple(len(n) for n in nodes)
        parts = []
        for condition in problem.along(d):
            face = [np.array([problem.domain.end(condition.face)]) if k == d else n for k, n in enumerate(nodes)]
            values = evaluate(condition.g, points(face), f"The boundary value on face {condition.face}")
            parts.append(values.numpy().reshape(*shape[:d], 1, *shape[d + 1 :]))
        if problem.periodic(d):
            parts.append(np.zeros((*shape[:d], problem.orders[d], *shape[d + 1 :])))
        found.append(np.concatenate(parts, d) if parts else np.zeros((*shape[:d], 0, *shape[d + 1 :])))
    return found


@NOT_FINITE
def along_axes(slopes: Mapping[Index, Tensor], shape: tuple[int, ...]) -> list[dict[int, np.ndarray]]:
    """The part of a linear operator that is a sum over axes: for each, coefficients [M] by order of differentiation.

    slopes: coefficients at the nodes. They are averaged over the other axes, and that of u itself is split into functions of
    one axis each; what depends otherwise on x, and mixed derivatives, are left out.
    """
    found: list[dict[int, np.ndarray]] = [{} for _ in shape]
    for index, slope in slopes.items():
        values = slope.numpy().reshape(shape)
        for d in range(len(shape)):
            mean = values.mean(tuple(k for k in range(len(shape)) if k != d))
            if not index:
                found[d][0] = mean - values.mean() * (1 - 1 / len(shape))
            elif set(index) == {d}:
                found[d][len(index)] = mean
    return found
