"""Whittle likelihoods against exact maximum likelihood: an Ornstein-Uhlenbeck process with noise, sampled coarsely.

Rate times spacing is 1, so that much of the spectrum is aliased: naive Whittle takes that for noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

TRUTH = {"rate": 1.0, "variance": 1.0, "noise": 0.1}
LEAST_NOISE = 1e-6  # of the variance of the data, as in gpx


def series(n: int, seed: int) -> ndarray:
    """y [n] at unit spacing: stationary, of the `TRUTH`."""
    import numpy as np
    from scipy.signal import lfilter

    random = np.random.default_rng(seed)
    keep = math.exp(-TRUTH["rate"])
    shocks = random.standard_normal(n) * math.sqrt(TRUTH["variance"])
    shocks[1:] *= math.sqrt(1 - keep**2)
    return lfilter([1.0], [1.0, -keep], shocks) + math.sqrt(TRUTH["noise"]) * random.standard_normal(n)


@cache
def kalman() -> Callable[..., float]:
    """The negative log likelihood of (y, rate, variance, noise), by a scalar Kalman filter."""
    from numba import njit

    @njit
    def negative(y, rate, variance, noise):
        keep = math.exp(-rate)
        mean, spread, total = 0.0, variance, 0.0
        for value in y:
            scale = spread + noise
            error = value - mean
            total += 0.5 * (math.log(2 * math.pi * scale) + error * error / scale)
            gain = spread / scale
            mean = keep * (mean + gain * error)
            spread = keep * keep * (spread - gain * spread) + (1 - keep * keep) * variance
        return total

    return negative


def fit_exact(y: ndarray) -> dict[str, float]:
    """Exact maximum likelihood: L-BFGS-B in log parameters, from the truth and from twice the noise."""
    import numpy as np
    from scipy.optimize import minimize

    y = y - y.mean()
    negative = kalman()
    bounds = [(-7, 7), (-7, 7), (math.log(LEAST_NOISE * y.var()), 7)]
    first = np.log(list(TRUTH.values()))
    options = {"ftol": 1e-14, "gtol": 1e-6, "maxiter": 500}

    def run(start: Any) -> Any:
        return minimize(
            lambda z: negative(y, *np.exp(z)), start, jac="3-point", method="L-BFGS-B", bounds=bounds, options=options
        )

    best = min((run(first), run(first + [0.0, 0.0, 1.0])), key=lambda found: found.fun)
    return dict(zip(TRUTH, np.exp(best.x).tolist(), strict=True))


def fit_whittle(y: ndarray, debiased: bool) -> dict[str, float]:
    """gpx with `objectives.Whittle`, without priors."""
    import numpy as np

    import gpx

    objective = gpx.objectives.Whittle(debiased=debiased)
    gp = gpx.GP(gpx.kernels.Matern(nu=0.5), objective=objective).fit(np.arange(float(len(y))), y, priors=None)
    found = gp.parameters()
    return {
        "rate": 1 / found["kernel.lengthscale"].value,
        "variance": found["kernel.outputscale"].value,
        "noise": found["likelihood.noise"].value,
    }


def compare(setting: Setting, fit: Callable[[ndarray], dict[str, float]]) -> dict[str, float]:
    """Mean estimates of repetitions, and their distance from those of exact maximum likelihood on the same series.

    "off": the difference of the means in standard deviations of the exact estimate over the repetitions; "apart": the root
    mean square of the differences, likewise.
    """
    import numpy as np

    n, repetitions = (512, 4) if setting.quick else (2048, 30)
    data = [series(n, 1_000 * setting.seed + r) for r in range(repetitions)]
    fit(data[0][:64])
    exact = [fit_exact(y) for y in data]
    found, seconds = timed(lambda: [fit(y) for y in data])
    result = {"fit time": seconds / repetitions}
    for name in TRUTH:
        ours, theirs = (np.array([estimate[name] for estimate in estimates]) for estimates in (found, exact))
        spread = theirs.std(ddof=1)
        result[name] = float(ours.mean())
        result[f"{name} off"] = float(abs(ours.mean() - theirs.mean()) / spread)
        result[f"{name} apart"] = float(np.sqrt(((ours - theirs) ** 2).mean()) / spread)
    return result


TASK = Task(
    name="whittle",
    description="Whittle likelihoods on 30 Ornstein-Uhlenbeck series of 2,048: rate = variance = spacing = 1, noise 0.1.",
    metrics=(
        *(Metric(name, "mean estimate") for name in TRUTH),
        *(Metric(f"{name} off", "sd of exact ML", "difference") for name in TRUTH),
        *(Metric(f"{name} apart", "sd of exact ML", "difference") for name in TRUTH),
        Metric("fit time", "s"),
    ),
    models={
        "gpx": lambda setting: compare(setting, lambda y: fit_whittle(y, debiased=True)),
        "naive": lambda setting: compare(setting, lambda y: fit_whittle(y, debiased=False)),
        "exact": lambda setting: compare(setting, fit_exact),
    },
)
