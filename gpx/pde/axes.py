"""One axis of a grid, discretised: derivatives at the nodes, conditions at the ends, and the functions that meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from scipy.linalg import qr

from gpx.pde.basis import Basis, trapezoid
from gpx.pde.problem import Problem


@dataclass(frozen=True)
class Axis:
    """Functions ``sum_j c_j b_j`` of one axis and what is asked of them.

    nodes [M]; derivatives: for orders 0, 1, ..., [M, r]; coefficients [r, M]: from values at the nodes; rows [b, r]: the
    conditions at both ends, whose values are given; lift [r, b]: coefficients that meet them, ``rows @ lift = 1``; null [r, n]: a
    basis of ``rows @ c = 0``, n = r - b; test [n, M]: what a residual at the nodes is reduced by. basis: the functions, None for
    collocation.
    """

    nodes: np.ndarray
    derivatives: tuple[np.ndarray, ...]
    coefficients: np.ndarray
    rows: np.ndarray
    lift: np.ndarray
    null: np.ndarray
    test: np.ndarray
    basis: Basis | None = None

    def at(self, nodes: np.ndarray) -> Axis:
        """The derivatives at other nodes."""
        assert self.basis is not None
        return replace(self, nodes=nodes, derivatives=tuple(self.basis(nodes, n) for n in range(len(self.derivatives))))


def galerkin(problem: Problem, axis: int, basis: Basis, nodes: np.ndarray) -> Axis:
    """The axis by a basis of functions: residuals are tested by the functions that meet the conditions."""
    order = problem.orders[axis]
    ends = np.array(problem.domain.bounds[axis])
    rows = _rows(problem, axis, [basis(ends, n) for n in range(max(order, 2))])
    coefficients = basis.values.T * trapezoid(nodes)
    whitened = rows * basis.deviations
    lift = basis.deviations[:, None] * np.linalg.pinv(whitened)  # the least norm under the prior
    null = qr(rows.T)[0][:, len(rows) :]  # pyright: ignore[reportOptionalSubscript]
    derivatives = (basis.values, *(basis(nodes, n) for n in range(1, order + 1)))
    return Axis(nodes, derivatives, coefficients, rows, lift, null, null.T @ coefficients, basis)


def unconditioned(basis: Basis, nodes: np.ndarray, order: int) -> Axis:
    """The axis of a function of which nothing is asked at the ends, with derivatives up to an order."""
    count, coefficients = basis.values.shape[1], basis.values.T * trapezoid(nodes)
    derivatives = (basis.values, *(basis(nodes, n) for n in range(1, order + 1)))
    none = np.zeros((0, count))
    return Axis(nodes, derivatives, coefficients, none, none.T, np.eye(count), coefficients, basis)


def differences(problem: Problem, axis: int, nodes: np.ndarray) -> Axis:
    """The axis by finite differences: of second order, or of first order and upwind where one end has all conditions."""
    if problem.periodic(axis) and problem.orders[axis] % 2:
        return periodic_differences(problem, axis, nodes)
    wind = _wind(problem, axis)
    found = collocation(problem, axis, nodes, difference_matrices(nodes, max(problem.orders[axis], 2), wind))
    bound = ~found.test.any(0)
    if wind and not found.null[bound].any():
        # What pushes at the first nodes pushes all that follow: it counts with the first equation.
        found.test[0 if wind > 0 else -1, bound] = 1.0
        for matrix in found.derivatives[1:]:
            matrix[bound] = 0.0
    return found


def periodic_differences(problem: Problem, axis: int, nodes: np.ndarray) -> Axis:
    """The axis by central differences across its ends, of a periodic function, by its values at all nodes but the last, and a
    polynomial that has the jumps between both ends.

    For odd orders: one-sided differences at the ends would make waves that travel around grow.
    """
    count, order = len(nodes) - 1, problem.orders[axis]
    step, same = nodes[1] - nodes[0], np.eye(count)
    ahead, behind = np.roll(same, 1, 1), np.roll(same, -1, 1)
    around = _repeated((ahead - behind) / (2 * step), (ahead - 2 * same + behind) / step**2, order)
    powers = [np.polynomial.Polynomial(np.append(np.zeros(k), 1.0)) for k in range(1, order + 1)]
    jumping = [np.stack([power.deriv(n)(nodes - nodes[0]) for power in powers], 1) for n in range(order + 1)]
    derivatives = [np.hstack([np.vstack([a, a[:1]]), j]) for a, j in zip(around, jumping, strict=True)]
    rows = _rows(problem, axis, [matrix[[0, -1]] for matrix in derivatives])
    lift = np.vstack([np.zeros((count, order)), np.linalg.inv(rows[:, count:])])
    values = np.vstack([np.eye(count, count + 1), np.zeros((order, count + 1))])
    return Axis(nodes, tuple(derivatives), values, rows, lift, np.eye(count + order, count), np.eye(count, count + 1))


def collocation(problem: Problem, axis: int, nodes: np.ndarray, matrices: Sequence[np.ndarray]) -> Axis:
    """The axis by values at its nodes, ascending, whose derivatives [M, M] of orders 0, 1, ... are given; the equation holds at
    all nodes but the outermost, one for every condition.
    """
    count, order = len(nodes), problem.orders[axis]
    rows = _rows(problem, axis, [matrix[[0, -1]] for matrix in matrices])
    lower = sum(c.face[1] == 0 for c in problem.along(axis)) if not problem.periodic(axis) else order // 2
    bound = np.append(np.arange(lower), np.arange(count - order + lower, count))
    free = np.setdiff1d(np.arange(count), bound)
    lift, null = np.zeros((count, len(rows))), np.zeros((count, len(free)))
    inverse = np.linalg.inv(rows[:, bound])
    lift[bound] = inverse
    null[free, np.arange(len(free))] = 1.0
    null[bound] = -inverse @ rows[:, free]
    identity = np.eye(count)
    return Axis(nodes, tuple(matrices[: order + 1]), identity, rows, lift, null, identity[free])


def difference_matrices(nodes: np.ndarray, order: int, wind: int = 0) -> list[np.ndarray]:
    """[M, M] for orders 0, ..., `order`: central, one-sided at the ends; wind: +1 or -1 for powers of first differences from
    below or above.
    """
    count, step = len(nodes), nodes[1] - nodes[0]
    shift = [np.eye(count, k=k) for k in (-1, 0, 1)]
    if wind:
        first = (shift[1] - shift[1 - wind]) * wind / step
        first[0 if wind > 0 else -1] = first[1 if wind > 0 else -2]
        return [np.linalg.matrix_power(first, n) for n in range(order + 1)]
    first = (shift[2] - shift[0]) / (2 * step)
    first[0, :3] = np.array([-1.5, 2, -0.5]) / step
    first[-1, -3:] = np.array([0.5, -2, 1.5]) / step
    second = (shift[0] - 2 * shift[1] + shift[2]) / step**2
    second[0], second[-1] = second[1], second[-2]
    return _repeated(first, second, order)


def _repeated(first: np.ndarray, second: np.ndarray, order: int) -> list[np.ndarray]:
    """Differences of orders 0, ..., `order` from the first two."""
    found = [np.eye(len(first)), first, second]
    while len(found) <= order:
        found.append(second @ found[-2])
    return found[: order + 1]


def _wind(problem: Problem, axis: int) -> int:
    """+1 or -1 where all conditions are at the lower or the upper end, 0 otherwise."""
    ends = {c.face[1] for c in problem.along(axis)}
    return 0 if len(ends) != 1 or problem.periodic(axis) else 1 - 2 * ends.pop()


def _rows(problem: Problem, axis: int, ends: Sequence[np.ndarray]) -> np.ndarray:
    """The conditions [b, r] from the derivatives [2, r] at both ends."""
    if problem.periodic(axis):
        return np.stack([ends[n][1] - ends[n][0] for n in range(problem.orders[axis])])
    rows = [c.a * ends[0][c.face[1]] + c.b * (2 * c.face[1] - 1) * ends[1][c.face[1]] for c in problem.along(axis)]
    return np.stack(rows) if rows else np.zeros((0, ends[0].shape[1]))


def multiply(matrices: Sequence[np.ndarray | None], tensor: np.ndarray) -> np.ndarray:
    """The tensor with every axis multiplied by its matrix; None leaves it alone."""

    def along(tensor: np.ndarray, axis: int) -> np.ndarray:
        matrix = matrices[axis]
        return tensor if matrix is None else np.moveaxis(np.tensordot(matrix, tensor, (1, axis)), 0, axis)

    return reduce(along, range(len(matrices)), tensor)
