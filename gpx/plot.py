"""Plots of fitted models (needs matplotlib: the extra `plot`)."""

from __future__ import annotations

import importlib.util
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpx.errors import InputError

if TYPE_CHECKING:
    from gpx.gp import GP
    from gpx.posterior import Prediction

LEVEL = 0.95
GRID = 1500
INK, DATA, HELD_OUT, FUTURE = "#222222", "#4a4a4a", "#d1495b", "#8a6fb3"
COLOURS = ("#1f6f9f", "#d1495b", "#3a8f5c", "#b07a1e", "#7a5aa6", "#4a4a4a")


def plot_gp(gp: GP, ax: Any = None) -> Any:
    """A fitted model beside its data.

    One input column: data, predictive mean and 95 % predictive band (quantiles of y; of f if the noise is known at the data
    only). Several: leave-one-out predictions against targets, with 95 % error bars. Several outputs: one colour each.
    Arguments: ax: matplotlib axes; None makes a figure. Returns: the axes. Raises: InputError without matplotlib.
    """
    ax = _axes() if ax is None else ax
    data = gp._fitted().data
    x, y = data.x.detach().cpu().numpy(), data.y.detach().cpu().numpy()
    if x.shape[1] == 1:
        grid = _grid(x[:, 0])
        known = gp.likelihood_.bound_to_rows
        prediction = gp.predict(torch.from_numpy(grid).to(data.x), of="f" if known else "y")
        _curves(ax, x[:, 0], y, grid, prediction, "f" if known else "y")
        ax.set_xlabel(_input_name(gp) or "x")
        if gp.encoding is not None and gp.encoding.columns[0].kind == "date":
            _date_axis(ax)
    else:
        loo = gp.loo()
        _scatter(ax, y, *(_columns(v) for v in (loo.mean, *loo.interval(LEVEL))))
        ax.set_ylabel("leave-one-out prediction, 95 % interval")
    name = gp.encoding.target if gp.encoding is not None else "y"
    (ax.set_ylabel if x.shape[1] == 1 else ax.set_xlabel)(name)
    return _dress(ax)


@dataclass(frozen=True)
class Forecast:
    """What `plot_forecast` shows: a series whose end was held out.

    x, y: [N] all data; held_out: [N] bool; prediction: at `grid` [M], from the model that has not seen what was held out;
    future, outlook: inputs beyond the data and the prediction there from all of them, or None. xlabel, ylabel, title: texts;
    dates: whether x are days since 1970-01-01.
    """

    x: np.ndarray
    y: np.ndarray
    held_out: np.ndarray
    grid: np.ndarray
    prediction: Prediction
    future: np.ndarray | None = None
    outlook: Prediction | None = None
    xlabel: str = "x"
    ylabel: str = "y"
    title: str = ""
    subtitle: str = ""
    dates: bool = False


def plot_forecast(forecast: Forecast) -> Any:
    """A figure of a forecast: the whole series, and below it the held-out part enlarged.

    Returns: a matplotlib Figure, which belongs to no window; save it with ``figure.savefig(path)``.
    Raises: InputError without matplotlib.
    """
    zoomed = bool(forecast.held_out.any())
    figure = _figure((10.0, 7.6 if zoomed else 4.6))
    rows = figure.subplots(2 if zoomed else 1, 1, squeeze=False, height_ratios=(1.0, 1.0) if zoomed else None)[:, 0]
    for ax in rows:
        _forecast(ax, forecast)
    _limit(rows[0], forecast, -np.inf)
    if zoomed:
        _limit(rows[1], forecast, _zoom_start(forecast))
        rows[1].set_title("The end of it, enlarged", loc="left", fontsize=10, color=INK)
    rows[0].legend(loc="best", ncols=2, frameon=False)
    rows[-1].set_xlabel(forecast.xlabel)
    _entitle(figure, rows[0], forecast.title, forecast.subtitle)
    return figure


def plot_test(
    prediction: Prediction, y: np.ndarray, shown: np.ndarray, *, target: str = "y", title: str = "", subtitle: str = ""
) -> Any:
    """A figure of predictions against targets y [N] in the rows `shown` [N], with 95 % error bars and the diagonal."""
    figure = _figure((8.4, 6.4))
    ax = figure.subplots()
    mean, lower, upper = (_columns(v)[shown] for v in (prediction.mean, *prediction.interval(LEVEL)))
    _scatter(ax, y[shown, None], mean, lower, upper)
    ax.set_xlabel(f"{target}, held out")
    ax.set_ylabel("prediction, 95 % interval")
    _entitle(figure, ax, title, subtitle)
    _dress(ax)
    return figure


def grid_between(low: float, high: float, stamps: np.ndarray) -> np.ndarray:
    """Inputs for a smooth line from low to high that also passes through the stamps."""
    inside = stamps[(stamps >= low) & (stamps <= high)]
    return np.unique(np.concatenate([np.linspace(low, high, GRID), inside]))


def is_available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise InputError('Plots need matplotlib; install it with: pip install "gpx-torch[plot]".') from error
    return matplotlib


def _axes() -> Any:
    _matplotlib()
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(8.0, 4.5), layout="constrained")[1]


def _figure(size: tuple[float, float]) -> Any:
    return _matplotlib().figure.Figure(figsize=size, dpi=150, layout="constrained")


def _input_name(gp: GP) -> str:
    return gp.encoding.names[0] if gp.encoding is not None else gp._fitted().data.columns[0]


def _grid(x: np.ndarray) -> np.ndarray:
    """From a little before the first input to a little beyond the last."""
    margin = 0.04 * (np.ptp(x) or 1.0)
    return grid_between(x.min() - margin, x.max() + margin, x)


def _curves(ax: Any, x: np.ndarray, y: np.ndarray, grid: np.ndarray, prediction: Prediction, of: str) -> None:
    """Points, mean and band of every output."""
    several = y.shape[1] > 1
    mean, lower, upper = (_columns(v) for v in (prediction.mean, *prediction.interval(LEVEL)))
    for p in range(y.shape[1]):
        colour = COLOURS[p % len(COLOURS)]
        prefix = f"output {p}: " if several else ""
        ax.fill_between(grid, lower[:, p], upper[:, p], color=colour, alpha=0.18, lw=0, label=f"{prefix}95 % of {of}")
        ax.plot(grid, mean[:, p], color=colour, lw=1.6, label=f"{prefix}mean")
        ax.plot(x, y[:, p], ls="", color=colour if several else DATA, label=f"{prefix}data", **_dots(len(x)))
    ax.set_xlim(grid[0], grid[-1])
    ax.legend(loc="best", ncols=2 if several else 1)


def _forecast(ax: Any, f: Forecast) -> None:
    train = ~f.held_out
    _band(ax, f.grid, f.prediction, COLOURS[0], "mean and 95 % interval")
    if f.future is not None and f.outlook is not None and len(f.future):
        _band(ax, f.future, f.outlook, FUTURE, "with all data: what comes next")
    ax.plot(f.x[train], f.y[train], ls="", color=DATA, label="training data", zorder=3, **_dots(len(f.x)))
    if f.held_out.any():
        ax.plot(f.x[f.held_out], f.y[f.held_out], ls="", color=HELD_OUT, label="held out", zorder=4, **_dots(len(f.x)))
        ax.axvline(f.x[f.held_out].min(), color=INK, lw=0.9, ls=(0, (4, 3)))
    ax.set_ylabel(f.ylabel)
    if f.dates:
        _date_axis(ax)
    else:
        ax.locator_params(axis="x", nbins=9, steps=[1, 2, 5, 10])
    _dress(ax, legend=False)


def _band(ax: Any, x: np.ndarray, prediction: Prediction, colour: str, label: str) -> None:
    mean, lower, upper = (_columns(v)[:, 0] for v in (prediction.mean, *prediction.interval(LEVEL)))
    ax.fill_between(x, lower, upper, color=colour, alpha=0.2, lw=0)
    ax.plot(x, mean, color=colour, lw=1.3, label=label)


def _zoom_start(f: Forecast) -> float:
    """A little before the split: a fifth of the length of what was held out."""
    split, end = f.x[f.held_out].min(), f.x.max()
    return split - 0.2 * (end - split)


def _limit(ax: Any, f: Forecast, start: float) -> None:
    """Show inputs from `start` on, and the range of values that data and bands have there."""
    parts = [(f.x, f.y, f.y), (f.grid, *(_columns(v)[:, 0] for v in f.prediction.interval(LEVEL)))]
    if f.future is not None and f.outlook is not None and len(f.future):
        parts.append((f.future, *(_columns(v)[:, 0] for v in f.outlook.interval(LEVEL))))
    x = np.concatenate([p[0] for p in parts])
    low, high = (np.concatenate([p[i] for p in parts])[x >= start] for i in (1, 2))
    x = x[x >= start]
    bottom, top = np.nanmin(low), np.nanmax(high)
    margin = 0.04 * (top - bottom or 1.0)
    if x.max() > x.min():
        ax.set_xlim(x.min(), x.max())
    ax.set_ylim(bottom - margin, top + margin)


def _scatter(ax: Any, y: np.ndarray, mean: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    """Predictions against targets, all [N, P], with error bars and the diagonal; one output: misses in another colour."""
    low, high = (float(f(y[~np.isnan(y)])) for f in (np.min, np.max))
    margin = 0.04 * (high - low or 1.0)
    ends = (low - margin, high + margin)
    ax.plot(ends, ends, color=INK, lw=1.0, ls=(0, (4, 3)), zorder=1)
    several = y.shape[1] > 1
    for p in range(y.shape[1]):
        columns = (y[:, p], mean[:, p], lower[:, p], upper[:, p])
        if several:
            _bars(ax, columns, ~np.isnan(y[:, p]), COLOURS[p % len(COLOURS)], f"output {p}")
        else:
            inside = (y[:, p] >= lower[:, p]) & (y[:, p] <= upper[:, p])
            _bars(ax, columns, inside, COLOURS[0], "target inside the interval")
            _bars(ax, columns, ~inside & ~np.isnan(y[:, p]), HELD_OUT, "outside")
    ax.set_xlim(ends)
    ax.legend(loc="upper left")


def _bars(ax: Any, columns: tuple[np.ndarray, ...], rows: np.ndarray, colour: str, label: str) -> None:
    """Points and error bars of some rows of (target, mean, lower, upper), if there are any."""
    y, mean, lower, upper = (c[rows] for c in columns)
    if len(y):
        ax.vlines(y, lower, upper, color=colour, lw=1.0, alpha=0.35 if len(columns[0]) <= 500 else 0.12, zorder=2)
        ax.plot(y, mean, ls="", color=colour, zorder=3, label=label, **_dots(len(columns[0])))


def _columns(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy().reshape(len(values), -1)


def _dots(count: int) -> dict[str, Any]:
    """Markers that stay legible from ten points to ten thousand."""
    size = float(np.clip(60 / np.sqrt(max(count, 1)), 1.6, 5.0))
    return {"marker": "o", "ms": size, "mew": 0}


def _date_axis(ax: Any) -> None:
    from matplotlib import dates

    locator = dates.AutoDateLocator()  # counts days from 1970-01-01, as gpx does
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _entitle(figure: Any, ax: Any, title: str, subtitle: str) -> None:
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    wrapped = [textwrap.fill(line, int(11 * figure.get_figwidth())) for line in subtitle.splitlines()]
    ax.set_title("\n".join(wrapped), loc="left", fontsize=10, color=INK)


def _dress(ax: Any, legend: bool = True) -> Any:
    """Quiet axes: no box, a faint grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#888888")
    ax.tick_params(colors=INK, labelsize=9.5)
    ax.grid(color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    found = ax.get_legend() if legend else None
    if found is not None:
        found.set_frame_on(False)
    return ax
