"""Gaussian measurements of u and of unknown functions: one posterior for sources with noise, observations and unknowns.

The state y has, for every function, coefficients ``c = lift + a H y``, ``y ~ N(0, s^2 I)``: the prior given the conditions on the
faces. The equation at the nodes and the observations are measurements of it, linearised where they are not linear, with
independent errors. Divided by its deviations the equation is ``r = B y + N(0, I)``: in the singular vectors of B the posterior
given the equation is diagonal, for every s^2. The observations, which are few, enter by Woodbury's formula. See
docs/theory/pde.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_solve, qr, solve_triangular, svd
from scipy.optimize import minimize_scalar
from torch import Tensor

from gpx.errors import NumericalError
from gpx.pde.axes import Axis, multiply
from gpx.pde.basis import trapezoid
from gpx.pde.expressions import Expression, Index, indices, linearise, substitute
from gpx.pde.functions import Function
from gpx.pde.grids import Grid

MAX_STEPS = 50
ACCURACY = 1e-7  # of the state: steps below it end the search
ENOUGH = 1e-7  # nats that are worth another step
HALVINGS = 8
DECADES = 14.0  # of s^2 around its scale


@dataclass(frozen=True)
class Block:
    """One function of the state: name; grid: its functions of every axis; lift: coefficients [r_1, ..., r_d] at y = 0; factors H
    [r, n] of every axis.
    """

    name: str
    grid: Grid
    lift: np.ndarray
    factors: tuple[np.ndarray, ...]

    @property
    def size(self) -> int:
        """The number of its coordinates."""
        return int(np.prod([f.shape[1] for f in self.factors]))

    def key(self, index: Index) -> Any:
        """Where a derivative of it is in a jet."""
        return index if self.name == "u" else (self.name, index)

    def function(self, y: np.ndarray) -> Function:
        """The function of a state."""
        free = y.reshape([f.shape[1] for f in self.factors])
        bases = tuple(axis.basis for axis in self.grid.axes)
        return Function(bases, self.lift + multiply(self.factors, free))  # pyright: ignore[reportArgumentType]

    def design(self, x: Tensor | None, index: Index) -> np.ndarray:
        """A derivative [n, size] of all its coordinates, at points [n, d] or (None) at all nodes."""
        if x is None:
            orders = [axis.derivatives[index.count(d)] for d, axis in enumerate(self.grid.axes)]
            return reduce(np.kron, [rows @ f for rows, f in zip(orders, self.factors, strict=True)])
        rows = [
            axis.basis(x[:, d].numpy(), index.count(d)) @ f  # pyright: ignore[reportOptionalCall]
            for d, (axis, f) in enumerate(zip(self.grid.axes, self.factors, strict=True))
        ]
        return reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1), rows)


@dataclass(frozen=True)
class Measurement:
    """Values y [n] of an expression at points x [n, d], with deviations noise [n].

    start: the jet at state zero; design: for every member of the jet, its part of the state and the matrix from there.
    """

    of: Expression
    x: Tensor
    y: np.ndarray
    noise: np.ndarray
    start: dict[Any, Tensor]
    design: dict[Any, tuple[slice, np.ndarray]]

    def jet(self, state: np.ndarray) -> dict[Any, Tensor]:
        """The jet at a state."""
        return {
            key: self.start[key] + torch.from_numpy(matrix @ state[part]) for key, (part, matrix) in self.design.items()
        }

    def residual(self, state: np.ndarray, numbers: Mapping[str, float]) -> np.ndarray:
        """(y - of) / noise."""
        with torch.no_grad():
            value = substitute(self.of, numbers).value(self.jet(state), self.x)
        return (self.y - value.numpy()) / self.noise

    def linearised(self, state: np.ndarray, numbers: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """(y - of) / noise [n], and the derivative [n, N] of of / noise by the state."""
        value, slopes = linearise(substitute(self.of, numbers), self.jet(state), self.x)
        matrix = np.zeros((len(self.y), len(state)))
        for key, (part, design) in self.design.items():
            matrix[:, part] += (slopes[key].numpy() / self.noise)[:, None] * design
        return (self.y - value.numpy()) / self.noise, matrix


@dataclass(frozen=True)
class System:
    """The functions of a state, the equation at the nodes, and what was observed of them; law: whether s^2 is that of the
    observations given the equation, not of all.
    """

    blocks: tuple[Block, ...]
    equation: Measurement
    observed: tuple[Measurement, ...] = ()
    law: bool = False

    @property
    def size(self) -> int:
        """The number of coordinates of the state."""
        return sum(block.size for block in self.blocks)

    @property
    def linear(self) -> bool:
        """Whether all measurements are affine in the state."""
        return all(each.of.degree() <= 1 for each in (self.equation, *self.observed))


@dataclass(frozen=True)
class Posterior:
    """state [N]: the mean; spread [N, N]: state = mean + spread N(0, I); evidence: log density of all measurements, nats;
    conditional: that of the observations given the equation; misfit: half the squares of the errors of the equation, in its
    deviations.
    """

    state: np.ndarray
    spread: np.ndarray
    evidence: float
    conditional: float
    misfit: float


def measure(blocks: Sequence[Block], of: Expression, x: Tensor | None, y: np.ndarray, noise: np.ndarray) -> Measurement:
    """The measurement of an expression at points, or (None) at all nodes."""
    start, design, first = {}, {}, 0
    points = blocks[0].grid.x if x is None else x
    for block in blocks:
        zero = block.function(np.zeros(block.size))
        for index in sorted(indices(of, block.name)):
            start[block.key(index)] = (
                block.grid.jet(zero.coefficients, [index])[index] if x is None else zero.derivative(x, index)
            )
            design[block.key(index)] = slice(first, first + block.size), block.design(x, index)
        first += block.size
    return Measurement(of, points, y, noise, start, design)


def condition(system: System, numbers: Mapping[str, float], start: np.ndarray | None = None) -> Posterior:
    """The posterior of a state, by damped Gauss-Newton steps where the measurements are not linear in it.

    Arguments: numbers: those of the unknown numbers; start: a state to begin from. Raises: NumericalError if the steps do not
    get small. Cost: O(M N^2 + m N^2) per step: M nodes, m observations, N coordinates.
    """
    state = _fitted(system, numbers) if start is None else start
    for _ in range(MAX_STEPS):
        update = _update(system, numbers, state)
        step = update.mean - state
        damping, gain = (1.0, 0.0) if system.linear else _damping(system, numbers, state, step, update.variance)
        state = state + damping * step
        if not np.isfinite(state).all():
            break
        if damping == 1 and (gain < ENOUGH or np.linalg.norm(step) <= ACCURACY * np.linalg.norm(state)):
            both = [
                -np.log(m.noise).sum() - 0.5 * len(m.y) * np.log(2 * np.pi) for m in (system.equation, *system.observed)
            ]
            conditional = update.terms[1] + sum(both[1:])
            evidence = float(update.terms[0] + both[0] + conditional)
            misfit = 0.5 * float(np.sum(system.equation.residual(state, numbers) ** 2))
            return Posterior(state, update.spread(), evidence, float(conditional), misfit)
    raise NumericalError(
        f"Gauss-Newton steps did not get small in {MAX_STEPS} of them: give a smaller noise, more points (grid=), or better"
        " starts of the unknowns."
    )


@dataclass(frozen=True)
class Update:
    """A linearised system: ``rotated = values z + N(0, I)`` and ``target = matrix z + N(0, I)``, ``z ~ N(0, variance I)``, the
    state being ``right^T z``; rest: squares of the equation that no state explains.
    """

    values: np.ndarray
    rotated: np.ndarray
    rest: float
    right: np.ndarray
    matrix: np.ndarray
    target: np.ndarray
    variance: float

    @cached_property
    def deviations(self) -> np.ndarray:
        """Of z given the equation."""
        return np.sqrt(self.variance / (1 + self.variance * self.values**2))

    @cached_property
    def _factor(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the observations given the equation, ``I + W^T W``, ``W = deviations matrix^T``; and what they differ by."""
        weighted = self.matrix * self.deviations
        rest = self.target - self.matrix @ (self.deviations**2 * self.values * self.rotated)
        return np.linalg.cholesky(np.eye(len(rest)) + weighted @ weighted.T), rest

    @cached_property
    def terms(self) -> tuple[float, float]:
        """Log densities but for constants: of the equation; of the observations given it."""
        spectrum = 1 + self.variance * self.values**2
        equation = np.log(spectrum).sum() + np.sum(self.rotated**2 / spectrum) + self.rest
        root, rest = self._factor
        observed = 2 * np.log(np.diag(root)).sum() + np.sum(solve_triangular(root, rest, lower=True) ** 2)
        return -0.5 * float(equation), -0.5 * float(observed)

    @property
    def mean(self) -> np.ndarray:
        """Of the state, given everything."""
        root, rest = self._factor
        z = self.deviations**2 * (self.values * self.rotated + self.matrix.T @ cho_solve((root, True), rest))
        return self.right.T @ z

    def spread(self) -> np.ndarray:
        """[N, N]: the state is its mean and this times N(0, I). With ``W = P S Q^T`` it has ``(I + W W^T)^-1/2``."""
        left, values, _ = svd((self.matrix * self.deviations).T, full_matrices=False, check_finite=False)
        root = np.eye(len(self.values)) - (left * (1 - 1 / np.sqrt(1 + values**2))) @ left.T
        return (self.right.T * self.deviations) @ root


def _update(system: System, numbers: Mapping[str, float], state: np.ndarray) -> Update:
    """At a state, with the s^2 of the largest evidence."""
    residual, matrix = system.equation.linearised(state, numbers)
    target = residual + matrix @ state
    short = max(system.size - len(target), 0)
    left, values, right = svd(np.pad(matrix, ((0, short), (0, 0))), full_matrices=False, check_finite=False)
    left = left[: len(target)]
    rotated = left.T @ target
    parts = [each.linearised(state, numbers) for each in system.observed]
    rows = np.concatenate([m for _, m in parts]) if parts else np.zeros((0, system.size))
    seen = np.concatenate([r for r, _ in parts]) if parts else np.zeros(0)
    rest = float(np.sum((target - left @ rotated) ** 2))
    update = Update(values, rotated, rest, right, rows @ right.T, seen + rows @ state, 1.0)
    squares = float(rotated @ rotated + update.target @ update.target)
    scale = np.log(max(squares, 1.0) / max(float(values @ values + (update.matrix**2).sum()), 1e-300))
    width = DECADES * np.log(10)

    def loss(log_variance: float) -> float:
        return -sum(replace(update, variance=np.exp(log_variance)).terms[system.law :])

    found = minimize_scalar(loss, bounds=(scale - width, scale + width), method="bounded", options={"xatol": 1e-7})
    return replace(update, variance=float(np.exp(found.x)))


def prior_factor(axis: Axis) -> np.ndarray:
    """``H`` [r, n]: coefficients ``H y``, ``y ~ N(0, I)``, have the prior of the axis given that its conditions are zero."""
    assert axis.basis is not None
    deviations = axis.basis.deviations / axis.basis.deviations[0]
    scaled = (axis.rows * deviations).T
    null = qr(scaled)[0][:, scaled.shape[1] :]  # pyright: ignore[reportOptionalSubscript]
    return deviations[:, None] * null


def _fitted(system: System, numbers: Mapping[str, float]) -> np.ndarray:
    """Where to begin: at zero; if the equation is not linear, where the observations say that are."""
    found = None if system.equation.of.degree() <= 1 else observed_alone(system, numbers)
    return np.zeros(system.size) if found is None else found.state


def observed_alone(system: System, numbers: Mapping[str, float]) -> Posterior | None:
    """The posterior given the observations that are linear in the state, without the equation; None if there are none."""
    linear = [each for each in system.observed if each.of.degree() <= 1]
    return condition(System(system.blocks, linear[0], tuple(linear[1:])), numbers) if linear else None


def _damping(
    system: System, numbers: Mapping[str, float], state: np.ndarray, step: np.ndarray, variance: float
) -> tuple[float, float]:
    """The first of 1, 1/2, 1/4, ... that makes the posterior density larger (the last of them if none does), by how many nats."""

    def loss(at: np.ndarray) -> float:
        squares = sum(float(np.sum(m.residual(at, numbers) ** 2)) for m in (system.equation, *system.observed))
        return 0.5 * (squares + float(at @ at) / variance)

    here, damping, gain = loss(state), 1.0, 0.0
    for _ in range(HALVINGS):
        gain = here - loss(state + damping * step)
        if gain >= -ENOUGH:
            break
        damping /= 2
    return damping, gain


def mean_square(values: np.ndarray, nodes: Sequence[np.ndarray]) -> float:
    """The integral mean of squares of values on a grid."""
    weights = [trapezoid(n) / np.ptp(n) for n in nodes]
    return float(reduce(lambda total, w: np.tensordot(w, total, 1), weights, values**2))
