"""Sparse spectra on a grid: extrapolation of series, components that are left, and seconds, against kernels that name a season.

The end of every series is held out: the published split of CO2 (481 months, the next 20 held out), and for the others the last fifth
after sorting by time. Nothing is chosen by what is held out.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

SERIES = ("co2", "airline", "solar", "internet", "temperature", "gas")
ROLLING = (341, 381, 421, 441, 461, 481)  # ends of what is seen of CO2; 20 months from each are predicted
MOST = 800  # rows of a series, its last ones


def splits(setting: Setting) -> dict[str, tuple[ndarray, ndarray, ndarray, ndarray]]:
    """Inputs and targets, seen and held out, by name."""
    import numpy as np

    from gpx import datasets

    found = {}
    for name in SERIES[: 2 if setting.quick else None]:
        data = datasets.load(name)
        x, y = np.asarray(data.X).reshape(-1), np.asarray(data.y)
        order = np.argsort(x)[-MOST:]
        x, y = x[order], y[order]
        if name == "co2":
            for end in ROLLING[-1:] if setting.quick else ROLLING:
                label = name if end == ROLLING[-1] else f"{name} to month {end}"
                found[label] = x[:end], y[:end], x[end : end + 20], y[end : end + 20]
            continue
        end = len(x) - len(x) // 5
        found[name] = x[:end], y[:end], x[end:], y[end:]
    return found


def run(setting: Setting, build: Any, restarts: int) -> dict[str, float]:
    """Mean squared errors, mean negative log densities and seconds by series."""
    import gpx

    found: dict[str, float] = {}
    for name, (x, y, x_new, y_new) in splits(setting).items():
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gpx.FitWarning)
            gp = build(gpx).fit(x, y, restarts=restarts)
        found[f"{name}: seconds"] = time.perf_counter() - began
        prediction = gp.predict(x_new)
        found[f"{name}: MSE"] = float(((prediction.mean.numpy() - y_new) ** 2).mean())
        found[f"{name}: NLPD"] = -float(prediction.log_prob(y_new).mean())
        if gp.result_.components:
            found[f"{name}: weights at zero"] = 1 - gp.result_.components_left / gp.result_.components
            found[f"{name}: largest ratio of zeros"] = gp.result_.largest_ratio
    return found


def run_grid(setting: Setting) -> dict[str, float]:
    """500 components, nothing else said."""
    return run(
        setting,
        lambda gpx: gpx.GP(gpx.kernels.GridSpectralMixtureProduct(), engine=gpx.engines.Exact(), mean="linear"),
        0,
    )


def run_named(setting: Setting) -> dict[str, float]:
    """RBF + Periodic + Linear, five restarts."""
    return run(
        setting, lambda gpx: gpx.GP("RBF + Periodic + Linear", engine=gpx.engines.Exact()), 1 if setting.quick else 5
    )


TASK = Task(
    name="gsmp",
    description="Extrapolation by 500 spectral components on a grid, of which few are left, against RBF + Periodic + Linear.",
    metrics=(
        *(Metric(f"{name}: MSE") for name in SERIES),
        *(Metric(f"co2 to month {end}: MSE") for end in ROLLING[:-1]),
        *(Metric(f"{name}: NLPD", "nats", "difference") for name in SERIES),
        *(Metric(f"{name}: weights at zero") for name in SERIES),
        *(Metric(f"{name}: seconds", "s") for name in SERIES),
    ),
    models={"gpx": run_grid, "gpx-named": run_named},
)
