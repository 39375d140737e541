"""The automatic kernel: which parts it has for which inputs, and that its forecasts are better than a constant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gpx
from gpx.cli import _structure
from gpx.inputs import as_data
from gpx.kernels import HidaMatern, Linear, Matern, QuasiPeriodic, Sum
from gpx.kernels.auto import RULES, auto_kernel

T = np.linspace(0.0, 20.0, 241)
NOISE = 0.1 * np.random.default_rng(0).standard_normal(len(T))


def _periods(kernel):
    return [float(m.period.detach()) for m in kernel.modules() if isinstance(m, QuasiPeriodic)]


def test_several_columns_get_one_lengthscale_each():
    kernel = auto_kernel(as_data(np.stack([T, T**2], 1), T))
    assert isinstance(kernel, Matern) and kernel.ard


def test_noise_shows_no_period():
    kernel = auto_kernel(as_data(T, NOISE))
    assert not _periods(kernel)


def test_a_season_is_found_beside_a_trend():
    kernel = auto_kernel(as_data(T, 3 * T + np.sin(2 * np.pi * T) + NOISE))
    assert isinstance(kernel, Sum) and isinstance(kernel.kernels[0], Linear)
    assert any(isinstance(k, QuasiPeriodic) for k in kernel.kernels)
    assert _periods(kernel) == pytest.approx([1.0], rel=0.02)


def test_the_explanation_says_what_is_built():
    """`RULES`, part by part; the values in the kernel are those of the data."""
    season = as_data(T, 3 * T + np.sin(2 * np.pi * T) + NOISE)
    inputs = (season, as_data(T, NOISE), as_data(T[:8], NOISE[:8]), as_data(np.stack([T, T**2], 1), T))
    for data, rule in zip(inputs, RULES.values(), strict=True):
        assert _structure(auto_kernel(data)) == rule
    text = str(gpx.explain("auto"))
    for part in (
        *RULES,
        *RULES.values(),
        "up to 2 periods",
        "engine Exact              yes",
        "engine StateSpace         yes",
    ):
        assert part in text


def test_harmonics_are_left_to_the_shape_of_the_season():
    y = np.sin(2 * np.pi * T) + 0.7 * np.sin(4 * np.pi * T) + NOISE
    assert _periods(auto_kernel(as_data(T, y))) == pytest.approx([1.0], rel=0.02)


def test_two_seasons_are_told_apart():
    y = np.sin(2 * np.pi * T) + np.sin(2 * np.pi * T / 3.5) + NOISE
    assert sorted(_periods(auto_kernel(as_data(T, y)))) == pytest.approx([1.0, 3.5], rel=0.05)


@pytest.mark.parametrize(("a", "b", "c", "d"), [(1e-3, 5.0, 1e4, -7.0), (1e4, -20.0, 1e-3, 0.1)])
def test_the_choice_does_not_depend_on_units(a, b, c, d):
    y = np.sin(2 * np.pi * T) + T + NOISE
    plain, scaled = (auto_kernel(as_data(*data)) for data in ((T, y), (a * T + b, c * y + d)))
    assert len(plain.kernels) == len(scaled.kernels)
    assert _periods(scaled) == pytest.approx([a * p for p in _periods(plain)], rel=1e-6)


def test_the_terms_of_a_series_cannot_take_each_other_s_place():
    """Trend, medium and short term have disjoint ranges of lengthscales, which meet at the period, and start inside."""
    kernel = auto_kernel(as_data(T, np.sin(2 * np.pi * T) + NOISE))
    terms = [k for k in kernel.kernels if isinstance(k, (Matern, HidaMatern))]
    bounds = [(c.lower_bound, k.lengthscale, c.upper_bound) for k in terms for c in [k.raw_lengthscale_constraint]]
    trend, medium, short = [tuple(float(torch.as_tensor(v).detach()) for v in b) for b in bounds]
    for lower, start, upper in (trend, medium, short):
        assert lower < start < upper
    span, spacing = T[-1] - T[0], T[1] - T[0]
    assert trend[0] == pytest.approx(2 * span) and medium[2] == pytest.approx(span / 2)
    assert medium[0] == pytest.approx(short[2]) == pytest.approx(1.0, rel=0.02) and short[0] == pytest.approx(
        0.1 * spacing
    )


def test_a_steep_trend_hides_no_season():
    """Terms start at the variance about the trend, not at that of the data, which is 7,000 times as much here."""
    y = 10 * T + np.sin(2 * np.pi * T) + NOISE
    trends = [auto_kernel(as_data(T, z)).kernels[2] for z in (y, y - 10 * T)]
    steep, plain = (float(season.outputscale.detach()) for season in trends)
    assert steep == pytest.approx(plain, rel=1e-6)
    ahead = gpx.GP("auto").fit(T[:192], y[:192]).predict(T[192:])
    assert gpx.checking.rmse(ahead.mean, torch.from_numpy(y[192:])) < 0.3


def test_missing_and_several_targets():
    y = np.stack([3 * T + np.sin(2 * np.pi * T), T], 1) + NOISE[:, None]
    y[3, 0] = np.nan
    single = auto_kernel(as_data(T, y[:, 0]))
    assert _periods(single) == pytest.approx([1.0], rel=0.02)
    assert _structure(auto_kernel(as_data(T, y))) == RULES["one input column, without"]


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_few_points(n):
    assert auto_kernel(as_data(T[:n], NOISE[:n])).matrix(torch.zeros(2, 1, dtype=torch.float64)).shape == (2, 2)


def test_a_trend_with_a_season_is_extrapolated():
    y = 3 * T + 5 * np.sin(2 * np.pi * T) + NOISE
    gp = gpx.GP("auto").fit(T[:192], y[:192])
    ahead = gp.predict(T[192:])
    assert gpx.checking.rmse(ahead.mean, torch.from_numpy(y[192:])) < 0.5
    assert gpx.checking.coverage(ahead, torch.from_numpy(y[192:]), 0.95) > 0.8


@pytest.mark.slow
@pytest.mark.ci
def test_co2_is_forecast():
    data = gpx.datasets.load("co2")
    n = round(0.8 * len(data.y))
    gp = gpx.GP("auto").fit(data.X[:n], data.y[:n])
    ahead, y = gp.predict(data.X[n:]), data.y[n:]
    assert gp.log_evidence() > -145
    assert gpx.checking.rmse(ahead.mean, y) < 6.0
    assert gpx.checking.nlpd(ahead.log_prob(y)) < 3.0
