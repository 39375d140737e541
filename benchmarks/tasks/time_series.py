"""Series of the Time Series Data Library and CO2, interpolated and extrapolated, and annual sunspots one year ahead.

One recipe for all series: ``gpx.GP("auto")``, whose kernel is built from the training rows (see gpx.kernels.auto).
GPyTorch gets the same kernel of its own classes, statsmodels the natural period of every series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task
from benchmarks.report import Record, table
from benchmarks.tasks import sunspots
from benchmarks.tasks.series import KINDS, SERIES, Problem, score
from benchmarks.tasks.time_series_peers import (
    ADAM_STEPS,
    QUICK_STEPS,
    gpytorch_exact,
    simple,
    unobserved_components,
)

if TYPE_CHECKING:
    from numpy import ndarray

CLOSE = 0.05  # nats: within this of the best counts as best


def predict(task: Problem) -> tuple[ndarray, ndarray]:
    """As a user has it."""
    import gpx

    made = gpx.GP("auto").fit(task.t, task.y).predict(task.t_test)
    return made.mean.numpy(), made.variance.numpy()


def run_gpx(setting: Setting) -> dict[str, float]:
    """The automatic kernel, after a fit that compiles what is compiled once per machine."""
    from benchmarks.tasks.series import problem

    predict(problem(SERIES[0], KINDS[0], quick=True))
    return score(predict, setting)


def run_gpytorch(setting: Setting) -> dict[str, float]:
    """The kernel of gpx's recipe, GPyTorch's classes, starts and optimiser."""
    from gpx.inputs import as_data
    from gpx.kernels.auto import auto_kernel

    steps = QUICK_STEPS if setting.quick else ADAM_STEPS

    def predict(task: Problem) -> tuple[ndarray, ndarray]:
        data = as_data(task.t, task.y)
        kernel = auto_kernel(data)
        kernel.init_from(data)  # for the starts of periods and frequencies
        return gpytorch_exact(task, kernel, steps)

    return score(predict, setting)


def closing(records: Sequence[Record]) -> str:
    """One table per measure, a row per series, and how often gpx is the best."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for name, value in record.get("metrics", {}).items():
            values.setdefault(record["model"], {}).setdefault(name, []).append(value)
    medians = {model: {name: median(found) for name, found in rows.items()} for model, rows in values.items()}
    models = [model for model in TABULATED if model in medians]
    parts = [_comparison(medians, models, measure) for measure in ("NLPD", "RMSE", "seconds")]
    return "\n\n".join([*parts, _count(medians, models)])


def _comparison(medians: dict[str, dict[str, float]], models: Sequence[str], measure: str) -> str:
    rows = [
        [kind, name, *(_cell(medians[model].get(f"{kind}, {name}: {measure}")) for model in models)]
        for kind in KINDS
        for name in SERIES
        if any(f"{kind}, {name}: {measure}" in medians[model] for model in models)
    ]
    return f"{measure}:\n\n" + table([["", "series", *models], *rows])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _count(medians: dict[str, dict[str, float]], models: Sequence[str]) -> str:
    """On how many problems the NLPD of gpx is within CLOSE of the best."""
    names = [f"{kind}, {name}: NLPD" for kind in KINDS for name in SERIES]
    names = [name for name in names if name in medians.get("gpx", {})]
    best = {name: min(medians[model].get(name, math.inf) for model in models) for name in names}
    good = [name for name in names if medians["gpx"][name] <= best[name] + CLOSE]
    return f"gpx is best in NLPD, or within {CLOSE} nat of the best, on {len(good)} of {len(names)} problems."


TABULATED: dict[str, Any] = {
    "gpx": run_gpx,
    "gpytorch": run_gpytorch,
    "linear / Fourier": lambda setting: score(simple, setting),
    "UnobservedComponents": lambda setting: score(unobserved_components, setting),
}

TASK = Task(
    name="time-series",
    description=(
        "Seven series, half of each interpolated and the last fifth extrapolated, with one recipe for all (means over the"
        " series; NLPD in nats per point, original units); annual sunspots one year ahead."
    ),
    metrics=(
        *(Metric(f"{kind}: mean NLPD", "nats", "difference") for kind in KINDS),
        *(Metric(f"{kind}: mean RMSE / std") for kind in KINDS),
        *(Metric(f"{kind}: mean seconds", "s") for kind in KINDS),
        sunspots.RMSE,
        sunspots.SECONDS,
    ),
    models={**TABULATED, **sunspots.MODELS},
    closing=closing,
)
