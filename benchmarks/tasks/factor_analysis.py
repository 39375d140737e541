"""Poisson factor analysis without dynamics, in numpy: ``y_tn ~ Poisson(exp(c_n . x_t + d_n))``, ``x_t ~ N(0, I)`` for every bin."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from numpy import ndarray

STEPS, SITE_TOLERANCE = 100, 1e-6  # of a bin; nats
ROUNDS, TOLERANCE = 300, 1e-6  # of the whole fit; nats per datum
WINDOW = 3.0


class Factors(NamedTuple):
    """loading [N, L], offset [N]; bound: the evidence lower bound of the counts of the fit, nats."""

    loading: ndarray
    offset: ndarray
    bound: float = float("nan")


def fit(counts: ndarray, start: Factors) -> Factors:
    """Variational EM on counts [T, N]: full covariances per bin, then loadings and offsets by L-BFGS, until the bound stays."""
    import numpy as np

    loading, offset, before = start.loading, start.offset, -np.inf
    moments = None
    for _ in range(ROUNDS):
        bound, *moments = infer(counts, Factors(loading, offset), moments)
        if bound - before < TOLERANCE * counts.size:
            break
        before = bound
        loading, offset = _readout(counts, loading, offset, *moments)
    return Factors(loading, offset, bound)


def infer(counts: ndarray, model: Factors, start: list[ndarray] | None = None) -> tuple[float, ndarray, ndarray]:
    """Bound in all, means [T, L] and covariances [T, L, L] of the Gaussians that maximise it; NaN counts are missing.

    A step is Newton's in the mean, and the fixed point of the covariance; where the bound of a bin falls it is halved.
    """
    import numpy as np

    T, L = len(counts), model.loading.shape[1]
    mean, cov = start or (np.zeros((T, L)), np.tile(np.eye(L), (T, 1, 1)))
    seen = ~np.isnan(counts)
    y = np.where(seen, counts, 0.0)

    def rates(mean: ndarray, cov: ndarray) -> ndarray:
        return np.where(seen, predicted(model, mean, cov), 0.0)

    def bounds(mean: ndarray, cov: ndarray) -> ndarray:
        from scipy.special import gammaln

        with np.errstate(over="ignore"):
            expected = (y * (mean @ model.loading.T + np.where(seen, model.offset, 0.0)) - rates(mean, cov)).sum(1)
        expected -= gammaln(y + 1).sum(1)
        return expected - 0.5 * ((mean**2).sum(1) + np.trace(cov, axis1=1, axis2=2) - L - np.linalg.slogdet(cov)[1])

    value = bounds(mean, cov)
    for _ in range(STEPS):
        rate = rates(mean, cov)
        precision = np.eye(L) + np.einsum("tn,nk,nl->tkl", rate, model.loading, model.loading)
        target = np.linalg.inv(precision)
        move = np.einsum("tkl,tl->tk", target, (y - rate) @ model.loading - mean)
        old, step = np.linalg.inv(cov), np.ones(T)
        for _ in range(30):
            new_mean = mean + step[:, None] * move
            new_cov = np.linalg.inv(old + step[:, None, None] * (precision - old))
            new = bounds(new_mean, new_cov)
            worse = ~(new >= value - 1e-12 * np.abs(value))
            if not worse.any():
                break
            step[worse] *= 0.5
        gain = np.where(worse, 0.0, new - value)
        mean, cov = np.where(worse[:, None], mean, new_mean), np.where(worse[:, None, None], cov, new_cov)
        value = np.where(worse, value, new)
        if gain.max() < SITE_TOLERANCE:
            break
    return float(value.sum()), mean, cov


def predicted(model: Factors, mean: ndarray, cov: ndarray) -> ndarray:
    """Expected counts [T, N]."""
    import numpy as np

    spread = np.einsum("nk,tkl,nl->tn", model.loading, cov, model.loading)
    return np.exp(mean @ model.loading.T + model.offset + 0.5 * spread)


def principal_start(trials: list[ndarray], latents: int) -> Factors:
    """Principal components of the logarithms of smoothed counts, as `LatentTrajectories` starts."""
    import numpy as np
    from scipy.ndimage import gaussian_filter1d

    smooth = np.concatenate([gaussian_filter1d(y.astype(float), WINDOW, axis=0) for y in trials])
    level = smooth.mean(0)
    signal = np.log(smooth + 0.1 * level + 1e-3)
    _, singular, axes = np.linalg.svd(signal - signal.mean(0), full_matrices=False)
    loading = axes[:latents].T * singular[:latents] / len(signal) ** 0.5
    return Factors(loading, np.log(level + 1e-3) - 0.5 * (loading**2).sum(1))


def _readout(
    counts: ndarray, loading: ndarray, offset: ndarray, mean: ndarray, cov: ndarray
) -> tuple[ndarray, ndarray]:
    """Loadings and offsets that maximise the expected log likelihood at fixed moments."""
    import numpy as np
    from scipy.optimize import minimize

    N, L = loading.shape
    first, total = counts.T @ mean, counts.sum(0)

    def loss(z: ndarray) -> tuple[float, ndarray]:
        C, d = z[: N * L].reshape(N, L), z[N * L :]
        rate = predicted(Factors(C, d), mean, cov)
        value = (first * C).sum() + total @ d - rate.sum()
        pull = rate.T @ mean + np.einsum("tn,tkl,nl->nk", rate, cov, C)
        return -value, -np.concatenate([(first - pull).ravel(), total - rate.sum(0)])

    found = minimize(
        loss, np.concatenate([loading.ravel(), offset]), jac=True, method="L-BFGS-B", options={"maxiter": 15}
    )
    return found.x[: N * L].reshape(N, L), found.x[N * L :]
