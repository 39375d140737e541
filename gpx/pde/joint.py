"""Gaussian measurements of u and of unknown functions: one posterior for sources with noise, observations and unknowns.

The state y has, for every function, coefficients ``c = lift + a H y``, ``y ~ N(0, s^2 I)``: the prior given the conditions on the
faces. The equation at the nodes and the observations are measurements of it, linearised where they are not linear, with
independent errors. Divided by their deviations they are ``r = B y + N(0, I)``, and the singular values of B have everything: the
evidence, by which s^2 and the kernels are chosen, the mean, and the covariance of y. See docs/theory/pde.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from scipy.linalg import qr, svd
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
DECADES = 12.0  # of s^2 around its scale


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
    """The functions of a state, and what was measured of them."""

    blocks: tuple[Block, ...]
    measurements: tuple[Measurement, ...]

    @property
    def size(self) -> int:
        """The number of coordinates of the state."""
        return sum(block.size for block in self.blocks)

    @property
    def parts(self) -> list[slice]:
        """Where every function is in the state."""
        ends = np.cumsum([block.size for block in self.blocks])
        return [slice(int(end) - block.size, int(end)) for block, end in zip(self.blocks, ends, strict=True)]

    @property
    def linear(self) -> bool:
        """Whether all measurements are affine in the state."""
        return all(each.of.degree() <= 1 for each in self.measurements)


@dataclass(frozen=True)
class Posterior:
    """state [N]: the mean; evidence: log density of all measurements, nats; spread [N, k]: state = mean + spread N(0, I)."""

    state: np.ndarray
    evidence: float
    spread: np.ndarray


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

    Arguments: numbers: those of the unknown numbers; start: a state to begin from.
    Raises: NumericalError if the steps do not get small. Cost: O(M N^2) per step, M measurements and N coordinates.
    """
    state = _fitted(system, numbers) if start is None else start
    for _ in range(MAX_STEPS):
        parts = [each.linearised(state, numbers) for each in system.measurements]
        residual, matrix = np.concatenate([r for r, _ in parts]), np.concatenate([m for _, m in parts])
        target = residual + matrix @ state
        short = max(system.size - len(target), 0)
        left, values, right = svd(np.pad(matrix, ((0, short), (0, 0))), full_matrices=False, check_finite=False)
        left = left[: len(target)]
        rotated = left.T @ target
        rest = float(np.sum((target - left @ rotated) ** 2))
        variance = _best_variance(values, rotated)
        step = right.T @ (variance * values * rotated / (variance * values**2 + 1)) - state
        damping, gain = (1.0, 0.0) if system.linear else _damping(system, numbers, state, step, variance)
        state = state + damping * step
        if not np.isfinite(state).all():
            break
        if damping == 1 and (gain < ENOUGH or np.linalg.norm(step) <= ACCURACY * np.linalg.norm(state)):
            constants = len(target) * np.log(2 * np.pi) + sum(2 * np.log(m.noise).sum() for m in system.measurements)
            evidence = _evidence(variance, values, rotated) - 0.5 * (rest + constants)
            return Posterior(state, float(evidence), right.T * np.sqrt(variance / (variance * values**2 + 1)))
    raise NumericalError(
        f"Gauss-Newton steps did not get small in {MAX_STEPS} of them: give a smaller noise, more points (grid=), or better"
        " starts of the unknowns."
    )


def prior_factor(axis: Axis) -> np.ndarray:
    """``H`` [r, n]: coefficients ``H y``, ``y ~ N(0, I)``, have the prior of the axis given that its conditions are zero."""
    assert axis.basis is not None
    deviations = axis.basis.deviations / axis.basis.deviations[0]
    scaled = (axis.rows * deviations).T
    null = qr(scaled)[0][:, scaled.shape[1] :]  # pyright: ignore[reportOptionalSubscript]
    return deviations[:, None] * null


def _fitted(system: System, numbers: Mapping[str, float]) -> np.ndarray:
    """Where to begin: at zero, or where the measurements say that are linear, if others are not."""
    linear = tuple(each for each in system.measurements if each.of.degree() <= 1)
    if system.linear or not linear:
        return np.zeros(system.size)
    return condition(System(system.blocks, linear), numbers).state


def _damping(
    system: System, numbers: Mapping[str, float], state: np.ndarray, step: np.ndarray, variance: float
) -> tuple[float, float]:
    """The first of 1, 1/2, 1/4, ... that makes the posterior density larger (the last of them if none does), by how many nats."""

    def loss(at: np.ndarray) -> float:
        squares = sum(float(np.sum(m.residual(at, numbers) ** 2)) for m in system.measurements)
        return 0.5 * (squares + float(at @ at) / variance)

    here, damping, gain = loss(state), 1.0, 0.0
    for _ in range(HALVINGS):
        gain = here - loss(state + damping * step)
        if gain >= -ENOUGH:
            break
        damping /= 2
    return damping, gain


def _evidence(variance: float, values: np.ndarray, rotated: np.ndarray) -> float:
    """``log N(rotated | 0, variance values^2 + 1)`` but for constants, nats."""
    spectrum = variance * values**2 + 1
    return float(-0.5 * (np.log(spectrum).sum() + np.sum(rotated**2 / spectrum)))


def _best_variance(values: np.ndarray, rotated: np.ndarray) -> float:
    """The s^2 of the largest evidence."""
    scale = np.log(max(float(rotated @ rotated), 1.0) / max(float(values @ values), 1e-300))
    width = DECADES * np.log(10)
    found = minimize_scalar(
        lambda t: -_evidence(np.exp(t), values, rotated), bounds=(scale - width, scale + width), method="bounded",
        options={"xatol": 1e-7},
    )  # fmt: skip
    return float(np.exp(found.x))


def mean_square(values: np.ndarray, nodes: Sequence[np.ndarray]) -> float:
    """The integral mean of squares of values on a grid."""
    weights = [trapezoid(n) / np.ptp(n) for n in nodes]
    return float(reduce(lambda total, w: np.tensordot(w, total, 1), weights, values**2))
