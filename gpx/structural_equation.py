"""The structural-equation family as published (periodic innovations, no noise, complete blocks); choice of its period.

`estimate` is a lean fit for simulations: maximum likelihood in microseconds per evaluation, or the published iteration. For
noise, other innovations, predictions and a bootstrap: ``gpx.GP(kernels.BlockQuasiPeriodic(period))``, the same likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from gpx.errors import InputError
from gpx.gp import GP
from gpx.inputs import as_data
from gpx.kernels import BlockQuasiPeriodic, Periodic
from gpx.kernels.block import as_period
from gpx.linalg.ar1 import noise_free, statistics
from gpx.linalg.circulant import hartley

METHODS = ("exact", "iterative", "iterative-circulant")
LIMIT = 0.9999  # |correlation| of a fit
TOLERANCE, STEPS = 1e-10, 100  # of the published iteration
STARTS = (0.3, 1.0)  # lengthscales that a fit sets out from


@dataclass(frozen=True)
class Estimate:
    """``F_i = correlation F_(i-1) + Z_i`` with ``cov Z = outputscale exp(-2 sin^2(pi d / period) / lengthscale^2)``.

    log_likelihood: exact, of all blocks, in nats; iterations: of the search, or of the published iteration.
    """

    period: int
    correlation: float
    lengthscale: float
    outputscale: float
    log_likelihood: float
    iterations: int

    @property
    def theta(self) -> float:
        """The published parameter, ``exp(-theta^2 sin^2(pi d / period))``: sqrt(2) / lengthscale."""
        return math.sqrt(2) / self.lengthscale

    def kernel(self) -> BlockQuasiPeriodic:
        """The kernel with these values."""
        within = Periodic(self.period, self.lengthscale, self.outputscale)
        return BlockQuasiPeriodic(self.period, self.correlation, within)


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The log likelihood of complete blocks of a series with mean zero, from sufficient statistics [p] in the Hartley basis.

    >>> likelihood = Likelihood.of([1.0, 0.5, -1.0, 0.8, 0.4, -0.7], period=3)
    >>> value, gradient = likelihood(0.9, 0.5, 1.0)
    >>> print(f"{value:.4f}", gradient.shape)
    -8.2452 (3,)
    """

    period: int
    steps: int
    statistics: tuple[np.ndarray, ...]
    squares: np.ndarray

    @staticmethod
    def of(y: Any, period: int) -> Likelihood:
        """From a series [n] of complete blocks. Cost: O(n log p), once."""
        z = hartley(torch.from_numpy(_blocks(y, period)))
        stats = tuple(s.numpy() for s in statistics(z[:, None]))
        return Likelihood(as_period(period), len(z), stats, np.sin(np.pi * np.arange(as_period(period)) / period) ** 2)

    def __call__(self, correlation: float, lengthscale: float, outputscale: float) -> tuple[float, np.ndarray]:
        """The value in nats and its gradient [3] in the arguments. Cost: O(p log p), two Fourier transforms."""
        row = np.exp(-2 / lengthscale**2 * self.squares)
        raw = outputscale * _spectrum(row)
        floor = np.finfo(float).eps * raw.max()
        value, gradient, slope = noise_free(np.maximum(raw, floor), correlation, *self.statistics, 1, self.steps)
        gradient[raw < floor] = 0.0
        # The transform is symmetric: it takes the gradient in the eigenvalues to that in the row.
        in_row = _spectrum(gradient)
        in_lengthscale = outputscale * 4 / lengthscale**3 * (in_row @ (self.squares * row))
        return value, np.array([slope, in_lengthscale, in_row @ row])


def _spectrum(row: np.ndarray) -> np.ndarray:
    """Eigenvalues [p] of the symmetric circulant with this first row [p]."""
    half = np.fft.rfft(row).real
    return np.concatenate([half, half[1 : (len(row) + 1) // 2][::-1]])


def estimate(y: Any, period: int, method: str = "exact") -> Estimate:
    """Fit the published model to a series of complete blocks, with mean zero and without noise.

    Arguments: y: [n], n a multiple of the period, at least two blocks, none missing. method: "exact": maximum likelihood;
    "iterative": the published estimator, which alternates between an unstructured innovation covariance and the
    correlation, and fits the kernel to that covariance by least squares; "iterative-circulant": the same with the
    covariance inverted as the circulant of its first row (the two published programs differ in this).
    The published iteration does not keep the correlation between -1 and 1.
    Raises: InputError for a period that is not an integer, incomplete blocks, missing values, or another method, and for
    blocks that leave the published iteration no innovations.
    Source: Nigam, Srivastava, Marzbanrad & Burke (2025), arXiv 2511.01151.

    >>> import numpy as np
    >>> noise = np.random.default_rng(0).standard_normal(40)
    >>> estimate(noise, period=4).period
    4
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")
    likelihood = Likelihood.of(y, period)
    blocks = _blocks(y, period)
    if len(blocks) < 2:
        raise InputError(f"estimate needs at least two blocks of {period} steps, got {len(blocks)}.")
    if method == "exact":
        return _maximise(likelihood)
    return _iterate(blocks, likelihood, circulant=method == "iterative-circulant")


def _blocks(y: Any, period: int) -> np.ndarray:
    period, values = as_period(period), as_data(np.arange(len(y)), y).y.double().numpy()
    if values.shape[1] != 1 or len(values) % period or not len(values):
        raise InputError(
            f"The published model takes one series of complete blocks, got shape {list(values.shape)} for the period"
            f" {period}: cut the rest off, or use gpx.GP(kernels.BlockQuasiPeriodic(period))."
        )
    if np.isnan(values).any():
        raise InputError(
            f"y has {int(np.isnan(values).sum())} missing value(s): use gpx.GP(kernels.BlockQuasiPeriodic(period),"
            " engine=engines.Exact())."
        )
    return np.ascontiguousarray(values.reshape(-1, period))


def _maximise(likelihood: Likelihood) -> Estimate:
    """L-BFGS-B in (correlation, log lengthscale, log outputscale), from a few lengthscales."""
    square, cross, _ = (float(s.sum()) for s in likelihood.statistics)
    size = likelihood.steps * likelihood.period  # per step, so that the first move is a moderate one
    scale = square / size or 1.0
    correlation = min(max(cross / square if square else 0.0, -0.9), 0.9)

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = likelihood(z[0], math.exp(z[1]), math.exp(z[2]))
        return -value / size, -gradient / size * np.array([1.0, math.exp(z[1]), math.exp(z[2])])

    starts = [np.array([correlation, math.log(r), math.log(scale * (1 - correlation**2))]) for r in STARTS]
    centre = starts[0][2]
    bounds = [(-LIMIT, LIMIT), (math.log(1e-2), math.log(1e3)), (centre - 12, centre + 12)]
    options = {"ftol": 1e-13, "gtol": 1e-7}
    runs = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for start in starts]
    found: Any = min(runs, key=lambda run: run.fun)
    w, lengthscale, outputscale = float(found.x[0]), math.exp(found.x[1]), math.exp(found.x[2])
    return Estimate(likelihood.period, w, lengthscale, outputscale, -size * float(found.fun), int(found.nit))


def _iterate(blocks: np.ndarray, likelihood: Likelihood, circulant: bool) -> Estimate:
    """The published estimator: the first block is conditioned on; circulant: invert R as the circulant of its first row.

    In units of the series, as its tolerances are numbers.
    """
    unit = float(blocks.std()) or 1.0
    before, after = blocks[:-1] / unit, blocks[1:] / unit
    correlation = float((before * after).sum() / (before**2).sum()) if before.any() else 0.0
    innovation, previous, iterations = np.eye(likelihood.period), math.inf, 1
    for iterations in range(2, STEPS + 1):  # noqa: B007
        rest = after - correlation * before
        innovation = rest.T @ rest / len(rest)
        if np.abs(innovation).max() <= np.finfo(float).eps:
            raise InputError(
                f"The blocks of {likelihood.period} steps are multiples of each other: the published iteration has no innovations"
                " to work with. Use method='exact', or another period."
            )
        inverse, logdet = _circulant_inverse(innovation[0]) if circulant else _inverse(innovation)
        correlation = float(((before @ inverse) * after).sum() / ((before @ inverse) * before).sum())
        rest = after - correlation * before
        # Without the factor 1/2 of the quadratic form, as published: it decides only when to stop.
        value = 0.5 * len(rest) * logdet + ((rest @ inverse) * rest).sum()
        if abs(value - previous) < TOLERANCE:
            break
        previous = value
    lengthscale, outputscale = _least_squares(_projected(innovation), likelihood)
    outputscale *= unit**2
    value = likelihood(min(max(correlation, -LIMIT), LIMIT), lengthscale, outputscale)[0]
    return Estimate(likelihood.period, correlation, lengthscale, outputscale, value, iterations)


def _inverse(matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """Inverse and log determinant, by eigenvalues: as published, those of a singular matrix are rounding errors."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.where(values == 0, np.finfo(float).tiny, values)
    return (vectors / values) @ vectors.T, float(np.log(abs(values)).sum())


def _circulant_inverse(row: np.ndarray) -> tuple[np.ndarray, float]:
    """The real part of the inverse of a circulant by its first row, which need not be symmetric, and its log determinant."""
    values = np.fft.fft(row)
    values = np.where(values == 0, np.finfo(float).tiny, values)
    inverse = np.fft.ifft(1 / values).real
    place = np.arange(len(row))
    return inverse[np.subtract.outer(place, place) % len(row)], float(np.log(abs(values)).sum())


def _projected(innovation: np.ndarray) -> np.ndarray:
    """The nearest Toeplitz matrix, its negative eigenvalues cut."""
    p = len(innovation)
    means = np.array([np.diagonal(innovation, d).mean() for d in range(p)])
    values, vectors = np.linalg.eigh(means[abs(np.subtract.outer(np.arange(p), np.arange(p)))])
    return (vectors * values.clip(min=0)) @ vectors.T


def _least_squares(target: np.ndarray, likelihood: Likelihood) -> tuple[float, float]:
    """Lengthscale and outputscale by Frobenius distance, from theta = sigma = 1."""
    p = likelihood.period
    squares = likelihood.squares[abs(np.subtract.outer(np.arange(p), np.arange(p)))]

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        theta, sigma = z
        kernel = np.exp(-(theta**2) * squares)
        rest = sigma**2 * kernel - target
        in_theta = 2 * (rest * sigma**2 * kernel * -2 * theta * squares).sum()
        return (rest**2).sum(), np.array([in_theta, 2 * (rest * 2 * sigma * kernel).sum()])

    bounds = [(1e-3, 1e2), (1e-6, None)]
    theta, sigma = minimize(loss, np.ones(2), jac=True, method="L-BFGS-B", bounds=bounds).x
    return math.sqrt(2) / float(theta), float(sigma) ** 2


@dataclass(frozen=True)
class PeriodTable:
    """Models of one series with different periods, and their log evidences; prints as a table."""

    periods: tuple[int, ...]
    evidences: tuple[float, ...]
    models: tuple[GP, ...]

    @property
    def best(self) -> int:
        """The period with the largest evidence."""
        return self.periods[int(np.argmax(self.evidences))]

    @property
    def model(self) -> GP:
        """Its model."""
        return self.models[int(np.argmax(self.evidences))]

    def __str__(self) -> str:
        top = max(self.evidences)
        rows = [
            f"{p:>6}  {e:>12.3f}  {e - top:>10.3f}" for p, e in zip(self.periods, self.evidences, strict=True)
        ]  # fmt: skip
        return "\n".join([f"{'period':>6}  {'evidence':>12}  {'difference':>10}", *rows, f"best: {self.best}"])

    __repr__ = __str__


def select_period(
    X: Any, y: Any, periods: Iterable[int], build: Callable[[int], GP] | None = None, **options: Any
) -> PeriodTable:  # fmt: skip
    """Fit a model for every candidate period to the same data, and compare their evidences.

    Arguments: X, y, options: as in `GP.fit`; periods: candidates, integers; build: period -> model, None: a
    ``GP(BlockQuasiPeriodic(period))``. Raises: InputError without candidates, or for one that is not an integer.
    """
    candidates: Sequence[int] = tuple(as_period(p) for p in periods)
    if not candidates:
        raise InputError("select_period needs at least one candidate period, such as range(2, 13).")
    build = (lambda period: GP(BlockQuasiPeriodic(period))) if build is None else build
    models = tuple(build(p).fit(X, y, **options) for p in candidates)
    return PeriodTable(tuple(candidates), tuple(m.log_evidence() for m in models), models)
