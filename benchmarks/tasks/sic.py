"""Sparse inverse Cholesky factors: seconds per evaluation and fit, against GPBoost's Vecchia approximation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

NEIGHBOURS, NOISE = 30, 0.09
SIZES = {"1e4": 10_000, "1e5": 100_000, "1e6": 1_000_000}


def field(n: int, d: int, seed: int, lengthscale: float = 0.1) -> tuple[ndarray, ndarray]:
    """Points in the unit cube and a draw of a Matern-3/2 process there, by 2,000 random frequencies."""
    import numpy as np

    random = np.random.default_rng(seed)
    x, count = random.random((n, d)), 2000
    omega = random.standard_normal((count, d)) * np.sqrt(3 / random.chisquare(3, (count, 1))) / lengthscale
    phase = random.random(count) * 2 * np.pi
    f = np.concatenate([np.cos(part @ omega.T + phase).sum(1) for part in np.array_split(x, max(1, n // 5000))])
    return x, f * np.sqrt(2 / count)


def size(name: str, setting: Setting) -> int:
    """The quick version has a fiftieth of the rows."""
    return SIZES[name] // (50 if setting.quick else 1)


def best(action: Any, repeats: int = 3) -> float:
    """Median seconds, after a first run."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def run_gpx(setting: Setting) -> dict[str, float]:
    """Value and all gradients of the Vecchia likelihood and of the bound; orders; fits with everything."""
    import warnings

    import numpy as np

    import gpx
    from gpx.linalg.orderings import maximin

    found: dict[str, float] = {}
    for label, d, length in (("1e4", 2, 0.1), ("1e5", 2, 0.1), ("1e5", 10, 1.0), ("1e6", 2, 0.1)):
        x, f = field(size(label, setting), d, setting.seed, length)
        y = f + NOISE**0.5 * np.random.default_rng(1).standard_normal(len(x))
        response = evaluation(x, y, length, "response")
        found[f"evaluation, n = {label}, d = {d}"] = best(response)
        if (label, d) == ("1e5", 2):
            found["bound, n = 1e5, d = 2"] = best(evaluation(x, y, length, "sites"), 1)
            found["maximin, n = 1e5"] = best(lambda points=x: maximin(points))
    x, f = field(size("1e5", setting), 2, setting.seed)
    random = np.random.default_rng(2)
    y = f + NOISE**0.5 * random.standard_normal(len(x))
    yes = (random.random(len(x)) < 1 / (1 + np.exp(-2 * f))).astype(float)
    models = {
        "Gaussian fit": (y, gpx.likelihoods.Gaussian(), "sites"),
        "Gaussian fit by response": (y, gpx.likelihoods.Gaussian(), "response"),
        "Bernoulli fit": (yes, gpx.likelihoods.Bernoulli(), "sites"),
    }
    for name, (targets, likelihood, method) in models.items():
        gp = gpx.GP(gpx.kernels.Matern(nu=1.5), likelihood, engine=gpx.engines.SIC(NEIGHBOURS, method=method))
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gpx.FitWarning)
            gp.fit(x, targets)
        found[f"{name}, n = 1e5"] = time.perf_counter() - began
        found[f"{name}: lengthscale"] = float(gp.kernel.lengthscale)
    return found


def evaluation(x: ndarray, y: ndarray, lengthscale: float, method: str) -> Any:
    """The objective with its gradient, as a function without arguments."""
    import gpytorch
    import torch

    import gpx
    from gpx.inputs import as_data
    from gpx.prior import Prior
    from gpx.sites import Sites

    kernel = gpx.kernels.Matern(nu=1.5, lengthscale=[lengthscale] * x.shape[1], ard=True).double()
    prior, data = Prior(gpytorch.means.ZeroMean(), (kernel,)), as_data(x, y)
    engine = gpx.engines.SIC(NEIGHBOURS, method=method)
    plan = engine.plan(prior, data)
    noise = torch.tensor(NOISE, dtype=torch.float64, requires_grad=True)

    def evaluate() -> None:
        tau = (1 / noise).expand(len(x), 1)
        engine.condition(prior, plan, {}, Sites(data.y * tau, tau)).log_density.backward()

    return evaluate


def run_gpboost(setting: Setting) -> dict[str, float]:
    """Its defaults but for the number of neighbours: the value of the likelihood alone, and fits."""
    import gpboost
    import numpy as np

    found: dict[str, float] = {}
    for label, d, length in (("1e4", 2, 0.1), ("1e5", 2, 0.1), ("1e5", 10, 1.0)):
        x, f = field(size(label, setting), d, setting.seed, length)
        y = f + NOISE**0.5 * np.random.default_rng(1).standard_normal(len(x))
        model = vecchia(gpboost, x, "gaussian", ard=d > 2)
        parameters = np.array([NOISE, 1.0, *[length] * (d if d > 2 else 1)])
        found[f"evaluation, n = {label}, d = {d}"] = best(lambda m=model, p=parameters, y=y: m.neg_log_likelihood(p, y))
    x, f = field(size("1e5", setting), 2, setting.seed)
    random = np.random.default_rng(2)
    y = f + NOISE**0.5 * random.standard_normal(len(x))
    began = time.perf_counter()
    model = vecchia(gpboost, x, "gaussian")
    model.fit(y=y)
    found["Gaussian fit, n = 1e5"] = found["Gaussian fit by response, n = 1e5"] = time.perf_counter() - began
    return found


def vecchia(gpboost: Any, x: ndarray, likelihood: str, ard: bool = False) -> Any:
    """GPBoost's model with a Matern-3/2 kernel."""
    return gpboost.GPModel(
        gp_coords=x,
        cov_function="matern_ard" if ard else "matern",
        cov_fct_shape=1.5,
        likelihood=likelihood,
        gp_approx="vecchia",
        num_neighbors=NEIGHBOURS,
        seed=0,
    )


TASK = Task(
    name="sic",
    description="Evaluations and fits with 30 neighbours, up to a million points, against GPBoost (evaluations: its value alone).",
    metrics=(
        *(
            Metric(f"evaluation, n = {label}, d = {d}", "s")
            for label, d in (("1e4", 2), ("1e5", 2), ("1e5", 10), ("1e6", 2))
        ),
        Metric("bound, n = 1e5, d = 2", "s"),
        Metric("maximin, n = 1e5", "s"),
        Metric("Gaussian fit, n = 1e5", "s"),
        Metric("Gaussian fit by response, n = 1e5", "s"),
        Metric("Bernoulli fit, n = 1e5", "s"),
        Metric("peak_rss", "MiB"),
    ),
    models={"gpx": run_gpx, "gpboost": run_gpboost},
)
