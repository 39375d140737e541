"""A Gaussian process in plain numpy, written for clarity: what engines are compared with.

Every quantity is its textbook definition: solves and determinants of the dense covariance, and leave-one-out by leaving one
out. Nothing here is shared with `gpx.engines`. Source: Rasmussen & Williams (2006), sections 2.2 and 5.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class DenseGP:
    """``y = f + e``, ``f ~ N(mean, K)``, ``e ~ N(0, diag(noise))``.

    K: [N, N]; y: [N], NaN where missing; noise: [N] or a number; mean: [N] or a number.

    >>> gp = DenseGP(np.eye(2), np.zeros(2), noise=1.0)
    >>> print(f"{gp.log_evidence():.6f}")  # two normal densities of variance 2 at zero
    -2.531024
    """

    K: np.ndarray
    y: np.ndarray
    noise: ArrayLike
    mean: ArrayLike = 0.0

    @property
    def seen(self) -> np.ndarray:
        """[N] bool: where y is observed."""
        return ~np.isnan(self.y)

    @property
    def covariance(self) -> np.ndarray:
        """``C = K + diag(noise)`` of the observed targets [n, n]."""
        noise = np.broadcast_to(self.noise, self.y.shape)
        return (self.K + np.diag(noise))[np.ix_(self.seen, self.seen)]

    @property
    def residual(self) -> np.ndarray:
        """Observed targets minus their prior mean [n]."""
        return (self.y - np.broadcast_to(self.mean, self.y.shape))[self.seen]

    def log_evidence(self) -> float:
        """``log N(y; mean, C)``, in nats."""
        C, r = self.covariance, self.residual
        sign, logdet = np.linalg.slogdet(2 * np.pi * C)
        assert sign > 0
        return float(-0.5 * logdet - 0.5 * r @ np.linalg.solve(C, r))

    def evidence_gradient(self, dC: ArrayLike = 0.0, dmean: ArrayLike = 0.0) -> float:
        """The derivative of `log_evidence` along a change dC [N, N] of the covariance and dmean [N] of the mean.

        ``alpha^T dC alpha / 2 - tr(C^-1 dC) / 2 + alpha^T dmean``, ``alpha = C^-1 (y - mean)``.
        """
        C = self.covariance
        dC = np.broadcast_to(dC, self.K.shape)[np.ix_(self.seen, self.seen)]
        alpha = np.linalg.solve(C, self.residual)
        trace = np.trace(np.linalg.solve(C, dC))
        return float(0.5 * alpha @ dC @ alpha - 0.5 * trace + alpha @ np.broadcast_to(dmean, self.y.shape)[self.seen])

    def predict(self, cross: np.ndarray, prior: np.ndarray, mean: ArrayLike = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Mean [M] and covariance [M, M] of f at M points.

        cross: [M, N] prior covariance with the data; prior: [M, M] among the points; mean: their prior mean.
        """
        C, cross = self.covariance, cross[:, self.seen]
        gain = np.linalg.solve(C, cross.T).T
        return mean + gain @ self.residual, prior - gain @ cross.T

    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance [N] of each target (noise included) given all others; NaN where it is missing.

        By conditioning N times: O(N^4).
        """
        noise, prior_mean = (np.broadcast_to(v, self.y.shape) for v in (self.noise, self.mean))
        mean, variance = np.full(self.y.shape, np.nan), np.full(self.y.shape, np.nan)
        for i in np.flatnonzero(self.seen):
            others = replace(self, y=np.where(np.arange(len(self.y)) == i, np.nan, self.y))
            m, v = others.predict(self.K[[i]], self.K[[i]][:, [i]], prior_mean[i])
            mean[i], variance[i] = m[0], v[0, 0] + noise[i]
        return mean, variance

    def leave_one_out_density(self) -> float:
        """The sum of the leave-one-out log densities of the observed targets, in nats."""
        mean, variance = self.leave_one_out()
        return float(np.nansum(-0.5 * ((self.y - mean) ** 2 / variance + np.log(2 * np.pi * variance))))


def gaussian_integrals(
    log_prob: Callable[[np.ndarray], np.ndarray],
    slope: Callable[[np.ndarray], np.ndarray],
    mean: float,
    variance: float,
    features: Sequence[tuple[float, float]],
) -> np.ndarray:
    """Brute-force quadrature of ``g = log p(y | f)`` over ``f ~ N(mean, variance)``, with its derivatives.

    Arguments: log_prob, slope: g and dg/df at nodes [K]; features: centres and widths of what g does.
    Returns: [6]: ``E g``, ``log E e^g``, and the derivatives of both in the mean and in the variance.

    >>> square = gaussian_integrals(lambda f: f**2, lambda f: 2 * f, 1.0, 0.1, [])
    >>> print(f"{square[0]:.10f}")
    1.1000000000
    """
    sd, features = np.sqrt(variance), list(features)
    f, weight = _panels(mean, sd, features)
    inside = np.abs(f - mean) < 13 * sd * (1 + sd / 8)  # wide enough for e^f
    f, weight = f[inside], weight[inside]
    z = (f - mean) / sd
    density = weight * np.exp(-0.5 * z**2) / (np.sqrt(2 * np.pi) * sd)
    rise = slope(f)
    expected = [(density * log_prob(f)).sum(), (density * rise).sum(), (density * rise * z).sum() / (2 * sd)]
    height = lambda f: log_prob(f) - 0.5 * (f - mean) ** 2 / variance  # noqa: E731
    for _ in range(3):  # panels around the mode, wherever it is
        features.append((f[height(f).argmax()], sd))
        f, weight = _panels(mean, sd, features)
    top = height(f).max()
    bulk = weight * np.exp(height(f) - top)
    total = bulk.sum()
    log_z = top + np.log(total) - 0.5 * np.log(2 * np.pi * variance)
    first, second = (bulk * (f - mean)).sum() / total, (bulk * (f - mean) ** 2).sum() / total
    tilted = [log_z, first / variance, 0.5 * (second / variance**2 - 1 / variance)]
    return np.array([*expected, *tilted])


def _panels(mean: float, sd: float, features: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on intervals that crowd around the mean and the features."""
    ends = [mean + sd * np.arange(-14, 15) * (1 + sd / 8)]
    for centre, width in features:
        away = width * 2.0 ** np.arange(-8, 12)
        ends += [centre - away, [centre], centre + away]
    edge = np.unique(np.concatenate(ends))
    node, weight = np.polynomial.legendre.leggauss(20)
    middle, half = 0.5 * (edge[1:] + edge[:-1])[:, None], 0.5 * np.diff(edge)[:, None]
    return (middle + half * node).ravel(), (half * weight).ravel()
