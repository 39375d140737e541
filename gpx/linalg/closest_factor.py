"""The sparse factor whose Gaussian is closest to a posterior: what the incomplete factor stands in for."""

from __future__ import annotations

import numpy as np

from gpx.linalg.sparse_factor import pulls
from gpx.linalg.threads import lbfgs

STEPS = 500
FLAT = (
    1e-14  # relative change of the divergence that is not worth another step: the sites converge only as far as V does
)


def closest_factor(near: np.ndarray, u: np.ndarray, tau: np.ndarray, start: np.ndarray) -> np.ndarray:
    """V [n, m + 1] on the pattern of U with the smallest ``KL(N(m, (V V^T)^-1) || N(m, P^-1))``, ``P = U U^T + diag(tau)``: the
    smallest ``tr(V^-1 P V^-T) / 2 + sum log V_ii``, by L-BFGS from `start`.

    The coordinates are the logarithms of the diagonal and the columns in units of it, so that they have no scale.
    Cost: O(n (ancestors) m) for each of up to 500 steps. Source: Cao et al. (2023), "Variational sparse inverse Cholesky
    approximation", eq. 7, without its stochastic search.
    """
    rows = np.concatenate([near, np.arange(len(near), dtype=near.dtype)[:, None]], 1)
    sites = np.concatenate([np.full_like(near, -1), rows[:, -1:]], 1)
    weights = np.zeros_like(u)
    weights[:, -1] = np.sqrt(np.maximum(tau, 0.0))
    seen, shape = rows >= 0, u.shape

    def factor(z: np.ndarray) -> np.ndarray:
        z = z.reshape(shape)
        scale = np.exp(z[:, -1:])
        return np.concatenate([z[:, :-1] * scale, scale], 1)

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        v = factor(z)
        of_prior, of_sites = pulls(near, v, rows, u), pulls(near, v, sites, weights)
        gradient = of_prior[1] + of_sites[1]
        in_logs = (gradient * v).sum(1, keepdims=True) + 1.0
        found = np.concatenate([gradient[:, :-1] * v[:, -1:], in_logs], 1)
        return of_prior[0] + of_sites[0] + float(z.reshape(shape)[:, -1].sum()), np.where(seen, found, 0.0).ravel()

    first = np.concatenate([start[:, :-1] / start[:, -1:], np.log(start[:, -1:])], 1)
    options = {"maxiter": STEPS, "maxcor": 30, "ftol": FLAT, "gtol": 0.0}
    return factor(lbfgs(loss, first.ravel(), options=options).x)
