"""Plots: what is drawn and how it is labelled, without looking at it."""

from __future__ import annotations

import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import gpx
from gpx import plot
from gpx.encoding import Encoding
from gpx.errors import InputError

mpl.use("Agg")
from matplotlib import pyplot

X = np.linspace(0.0, 10.0, 20)
Y = np.sin(X)


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def _labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_one_column_shows_data_mean_and_band():
    gp = gpx.GP(gpx.kernels.RBF()).condition(pd.DataFrame({"depth": X}), Y)
    ax = gp.plot()
    assert ax.get_xlabel() == "depth" and ax.get_ylabel() == "y"
    assert _labels(ax) == ["95 % of y", "mean", "data"]
    points = ax.get_lines()[1]
    np.testing.assert_array_equal(points.get_xdata(), X)
    grid, mean = ax.get_lines()[0].get_data()
    np.testing.assert_allclose(mean, gp.predict(grid).mean.numpy())
    assert np.isin(X, grid).all() and grid.min() < 0 and grid.max() > 10


def test_the_axes_given_are_used():
    ax = pyplot.subplots()[1]
    assert gpx.GP(gpx.kernels.RBF()).condition(X, Y).plot(ax) is ax


def test_every_output_has_its_colour():
    gp = gpx.GP(gpx.kernels.RBF()).condition(X, np.stack([Y, -Y], 1))
    ax = gp.plot()
    assert len({line.get_color() for line in ax.get_lines()}) == 2
    assert "output 1: mean" in _labels(ax)


def test_known_noise_shows_the_latent_function():
    gp = gpx.GP(gpx.kernels.RBF(), gpx.likelihoods.Gaussian(noise=np.full(20, 0.01))).condition(X, Y)
    assert _labels(gp.plot())[0] == "95 % of f"


def test_several_columns_show_leave_one_out_against_targets():
    y = Y.copy()
    y[3] = np.nan
    gp = gpx.GP(gpx.kernels.RBF()).condition(np.stack([X, X**2], 1), y)
    ax = gp.plot()
    assert "leave-one-out" in ax.get_ylabel() and ax.get_xlabel() == "y"
    diagonal, *points = ax.get_lines()
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    drawn = np.sort(np.concatenate([p.get_ydata() for p in points]))
    np.testing.assert_allclose(drawn, np.sort(gp.loo().mean.numpy()[~np.isnan(y)]))


def test_dates_on_the_axis():
    frame = {"day": np.arange("2020-01-01", "2020-01-21", dtype="datetime64[D]"), "low": Y}
    encoding = Encoding.fit(frame, "low")
    gp = gpx.GP(gpx.kernels.RBF()).condition(encoding.transform(frame), Y)
    gp.encoding = encoding
    ax = gp.plot()
    ax.figure.canvas.draw()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("day", "low")
    assert "Jan" in "".join(t.get_text() for t in ax.get_xticklabels())


@pytest.mark.parametrize("held", [0, 4])
def test_a_forecast_shows_the_split(held, tmp_path):
    held_out = np.arange(20) >= 20 - held
    gp = gpx.GP(gpx.kernels.RBF()).condition(X[~held_out], Y[~held_out])
    grid = plot.grid_between(0.0, 10.0, X)
    future = np.array([10.5, 11.0])
    figure = plot.plot_forecast(
        plot.Forecast(X, Y, held_out, grid, gp.predict(grid), future, gp.predict(future), title="t", subtitle="s " * 99)
    )
    assert len(figure.axes) == (2 if held else 1)
    dashed = [line for line in figure.axes[0].get_lines() if list(line.get_xdata()) == [X[~held_out].max() + X[1]] * 2]
    assert len(dashed) == (1 if held else 0)
    figure.savefig(tmp_path / "f.png")
    assert not pyplot.get_fignums(), "a figure for a file belongs to no window"


def test_constant_targets_and_single_points_can_be_drawn(tmp_path):
    gp = gpx.GP(gpx.kernels.RBF()).fit([1.0], [2.0])
    gp.plot().figure.savefig(tmp_path / "one.png")
    flat = gpx.GP(gpx.kernels.RBF()).condition(np.stack([X, X], 1), np.ones(20))
    flat.plot().figure.savefig(tmp_path / "flat.png")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    gp = gpx.GP(gpx.kernels.RBF()).condition(X, Y)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install \"gpx-torch\[plot\]\""):
        gp.plot()
