"""Simulations 1 and 2 of Cao et al. (2023): five inputs, Matern-3/2 with a lengthscale per column, three likelihoods."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

LENGTHSCALES = (0.25, 0.5, 0.75, 1.0, 1.25)
NOISE, LIKELIHOODS = 0.01, ("Gaussian", "StudentT", "Bernoulli")


def draw(train: int, test: int, seed: int) -> tuple[ndarray, ndarray]:
    """Inputs in the unit cube and an exact draw of f, nugget 1e-4."""
    import numpy as np

    random = np.random.default_rng(seed)
    x = random.random((train + test, len(LENGTHSCALES)))
    scaled = x / np.array(LENGTHSCALES)
    square = np.square(scaled).sum(1)
    r = np.sqrt(np.maximum(3 * (square[:, None] + square - 2 * scaled @ scaled.T), 0.0))
    root = np.linalg.cholesky((1 + r) * np.exp(-r) + 1e-4 * np.eye(len(x)))
    return x, root @ random.standard_normal(len(x))


def targets(f: ndarray, likelihood: str, seed: int) -> ndarray:
    """Normal noise of variance .01; Student's, 2 degrees of freedom, scale .1; labels with probability 1 / (1 + exp(-f))."""
    import numpy as np

    random = np.random.default_rng(1000 + seed)
    if likelihood == "Gaussian":
        return f + NOISE**0.5 * random.standard_normal(len(f))
    if likelihood == "StudentT":
        return f + 0.1 * random.standard_t(2, len(f))
    return (random.random(len(f)) < 1 / (1 + np.exp(-f))).astype(float)


def gpx_likelihood(name: str) -> Any:
    """As the data were made; everything about it is learned."""
    from gpx import likelihoods

    return {
        "Gaussian": likelihoods.Gaussian,
        "StudentT": likelihoods.StudentT,
        "Bernoulli": lambda: likelihoods.Bernoulli("logit"),
    }[name]()


def run(engine: str, sizes: tuple[int, int], names: tuple[str, ...] = LIKELIHOODS) -> Any:
    """A model that fits gpx with that engine to training rows and is asked about f at the others."""

    def model(setting: Setting) -> dict[str, float]:
        import warnings

        import numpy as np

        import gpx

        train, test = (n // 10 for n in sizes) if setting.quick else sizes
        x, f = draw(train, test, setting.seed)
        found: dict[str, float] = {}
        for name in names:
            y = targets(f, name, setting.seed)
            began = time.perf_counter()
            gp = gpx.GP(gpx.kernels.Matern(nu=1.5, ard=True), gpx_likelihood(name), engine=engine)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", gpx.FitWarning)
                gp.fit(x[:train], y[:train])
            seconds = time.perf_counter() - began
            p = gp.predict(x[train:], of="f")
            mean, variance, truth = p.mean.numpy(), p.variance.numpy() + 1e-4, f[train:]
            density = -0.5 * (np.log(2 * np.pi * variance) + (truth - mean) ** 2 / variance)
            found |= {
                f"{name}: RMSE": float(((mean - truth) ** 2).mean() ** 0.5),
                f"{name}: NLPD": -float(density.mean()),
                f"{name}: seconds": seconds,
            }
        return found

    return model


TASK = Task(
    name="sic-simulations",
    description="Five inputs, 8,000 rows (small: 2,000), three likelihoods: f at others, by neighbours, inducing inputs, exactly.",
    metrics=tuple(
        Metric(f"{name}: {what}", unit, compare)
        for name in LIKELIHOODS
        for what, unit, compare in (("RMSE", "", "ratio"), ("NLPD", "nats", "difference"), ("seconds", "s", "ratio"))
    ),
    models={
        "gpx": run("SIC", (8000, 2000)),
        "gpx-sparse": run("SparseVariational(inducing=1024)", (8000, 2000)),
        "small": run("SIC", (2000, 500)),
        "small-dkl": run("SIC(method='dkl')", (2000, 500), ("Gaussian",)),
        "small-exact": run("Exact", (2000, 500), ("Gaussian",)),
    },
)
