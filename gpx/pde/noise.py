"""Sources that are known up to noise: the posterior given residuals of a declared standard deviation.

With coefficients ``c = lift + H y``, ``y ~ N(0, s^2 I)`` the prior given the boundary values, and the residual at the nodes
linearised, ``f - F(c) = r - G y + noise``, everything follows from the singular values of G: the evidence, by which s^2 and the
kernel are chosen, the mean, and the covariance of y. See docs/theory/pde.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.linalg import qr, svd
from scipy.optimize import minimize_scalar
from torch import Tensor

from gpx.errors import InputError, NumericalError
from gpx.pde.axes import Axis
from gpx.pde.basis import trapezoid
from gpx.pde.expressions import Index, linearise
from gpx.pde.grids import Grid
from gpx.pde.problem import Problem

MAX_ENTRIES = 30_000_000  # of the matrix of residuals by functions
MAX_STEPS = 20
ACCURACY = 1e-8
DECADES = 12.0  # of s^2 around its scale


@dataclass(frozen=True)
class Posterior:
    """coefficients: the mean [r_1, ..., r_d]; evidence: log density of the source, nats; std [M_1, ..., M_d]: of u."""

    coefficients: np.ndarray
    evidence: float
    std: np.ndarray


def condition(problem: Problem, grid: Grid, source: Tensor, boundary: Sequence[np.ndarray]) -> Posterior:
    """The posterior of a problem whose source has noise, by Gauss-Newton steps where it is not linear.

    Raises: InputError if the grid has too many points for it; NumericalError if the steps do not get small.
    Cost: O(M n^2) per step, M points of the grid and n functions.
    """
    size = int(np.prod(grid.free))
    if size * len(grid.x) > MAX_ENTRIES:
        raise InputError(
            f"Noise in the source asks for a matrix of {len(grid.x)} points by {size} functions; give a coarser grid, or noise=0."
        )
    factors = [prior_factor(axis) for axis in grid.axes]
    coefficients, y = grid.lift(boundary), np.zeros(size)
    for _ in range(MAX_STEPS):
        value, slopes = linearise(problem.equation, grid.jet(coefficients, problem.jet), grid.x)
        matrix = _residual_matrix(grid, slopes, factors)
        target = (source - value).numpy() + matrix @ y
        left, values, right = svd(matrix, full_matrices=False, overwrite_a=True, check_finite=False)
        rotated = left.T @ target
        rest = max(float(target @ target - rotated @ rotated), 0.0)
        variance = _best_variance(values, rotated, rest, len(target), problem.noise**2)
        shrunk = variance * values / (variance * values**2 + problem.noise**2)
        step = right.T @ (shrunk * rotated) - y
        y = y + step
        coefficients = coefficients + _kron(factors, step).reshape(coefficients.shape)
        if problem.linear or np.linalg.norm(step) <= ACCURACY * np.linalg.norm(y):
            evidence = _evidence(variance, values, rotated, rest, len(target), problem.noise**2)
            spread = right.T * (problem.noise * np.sqrt(variance / (variance * values**2 + problem.noise**2)))
            at_nodes = [axis.derivatives[0] @ factor for axis, factor in zip(grid.axes, factors, strict=True)]
            std = np.linalg.norm(_kron(at_nodes, spread), axis=1).reshape(grid.shape)
            return Posterior(coefficients, evidence, std)
    raise NumericalError(
        f"Gauss-Newton steps did not get small in {MAX_STEPS} of them: give a smaller noise or more points (grid=)."
    )


def prior_factor(axis: Axis) -> np.ndarray:
    """``H`` [r, n]: coefficients ``H y``, ``y ~ N(0, I)``, have the prior of the axis given that its conditions are zero."""
    assert axis.basis is not None
    deviations = axis.basis.deviations / axis.basis.deviations[0]
    scaled = (axis.rows * deviations).T
    null = qr(scaled)[0][:, scaled.shape[1] :]  # pyright: ignore[reportOptionalSubscript]
    return deviations[:, None] * null


def _residual_matrix(grid: Grid, slopes: Mapping[Index, Tensor], factors: Sequence[np.ndarray]) -> np.ndarray:
    """G [M, n]: the linearised equation at all nodes, of all functions."""
    total = np.zeros((len(grid.x), int(np.prod([f.shape[1] for f in factors]))))
    for index, slope in slopes.items():
        parts = [
            axis.derivatives[index.count(d)] @ f for d, (axis, f) in enumerate(zip(grid.axes, factors, strict=True))
        ]
        total += slope.numpy()[:, None] * reduce(np.kron, parts)
    return total


def _kron(matrices: Sequence[np.ndarray], vectors: np.ndarray) -> np.ndarray:
    return reduce(np.kron, matrices) @ vectors


def _evidence(variance: float, values: np.ndarray, rotated: np.ndarray, rest: float, count: int, noise: float) -> float:
    """``log N(target | 0, variance G G^T + noise I)``, nats."""
    spectrum = variance * values**2 + noise
    quadratic = np.sum(rotated**2 / spectrum) + rest / noise
    return float(
        -0.5 * (np.log(spectrum).sum() + (count - len(values)) * np.log(noise) + quadratic + count * np.log(2 * np.pi))
    )


def _best_variance(values: np.ndarray, rotated: np.ndarray, rest: float, count: int, noise: float) -> float:
    """The s^2 of the largest evidence."""
    scale = np.log(max(float(rotated @ rotated), noise) / max(float(values @ values), 1e-300))
    width = DECADES * np.log(10)
    found = minimize_scalar(
        lambda t: -_evidence(np.exp(t), values, rotated, rest, count, noise),
        bounds=(scale - width, scale + width),
        method="bounded",
    )
    return float(np.exp(found.x))


def mean_square(values: np.ndarray, nodes: Sequence[np.ndarray]) -> float:
    """The integral mean of squares of values on a grid."""
    weights = [trapezoid(n) / np.ptp(n) for n in nodes]
    return float(reduce(lambda total, w: np.tensordot(w, total, 1), weights, values**2))
