"""Laws of the scores: closed form = integral, trivial predictor = 0, exact draws calibrated, NaN left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import gpx
from gpx import checking
from gpx.errors import InputError
from gpx.posterior import Prediction


@dataclass(frozen=True)
class Forecast:
    """A scipy distribution as a prediction; ``is_normal`` is a claim: both ways to the CRPS can be taken."""

    law: Any
    is_normal: bool

    @property
    def mean(self):
        return torch.as_tensor(self.law.mean())

    @property
    def std(self):
        return torch.as_tensor(self.law.std())

    def log_prob(self, y):
        assert not y.isnan().any(), "a missing target reached the likelihood"
        return torch.as_tensor(self.law.logpdf(y.numpy()))

    def cdf(self, y):
        return torch.as_tensor(self.law.cdf(y.numpy()))

    def quantile(self, p):
        return torch.as_tensor(self.law.ppf(p))


def normal(mean, std, claim=True):
    return Forecast(stats.norm(np.asarray(mean), np.asarray(std)), claim)


def draws(n, seed=0):
    """Means and standard deviations that differ, and exact draws."""
    generator = torch.Generator().manual_seed(seed)
    mean = 3 * torch.randn(n, generator=generator, dtype=torch.float64)
    std = 0.1 + torch.rand(n, generator=generator, dtype=torch.float64)
    return mean, std, mean + std * torch.randn(n, generator=generator, dtype=torch.float64)


def crps_by_definition(law, y):
    low, high = min(y, law.ppf(1e-9)), max(y, law.ppf(1 - 1e-9))
    below = integrate.quad(lambda t: law.cdf(t) ** 2, low, y, epsabs=1e-13, limit=200)[0]
    return below + integrate.quad(lambda t: law.sf(t) ** 2, y, high, epsabs=1e-13, limit=200)[0]


@pytest.mark.parametrize("y", [-4.0, -0.3, 0.0, 1.7, 6.0])
def test_crps_closed_form_is_the_integral(y):
    prediction = normal([0.5], [1.3])
    expected = crps_by_definition(stats.norm(0.5, 1.3), y)
    assert checking.crps(prediction, torch.tensor([y], dtype=torch.float64)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("norm", ()), ("gamma", (2.0,)), ("laplace", ()), ("t", (6.0,)), ("t", (2.1,)), ("beta", (0.2, 0.4))],
)
@pytest.mark.parametrize("y", [0.05, 1.0, 4.0, 60.0])
def test_crps_by_quantiles_is_the_integral(name, shape, y):
    family = getattr(stats, name)
    prediction = Forecast(family(*shape, loc=[0.0], scale=[1.3]), is_normal=False)
    expected = crps_by_definition(family(*shape, scale=1.3), y)
    assert checking.crps(prediction, torch.tensor([y])) == pytest.approx(expected, rel=1e-3)


def test_crps_asks_for_few_quantiles(monkeypatch):
    """Those of a mixture are found by bisection of integrals."""
    asked = []
    monkeypatch.setattr(Forecast, "quantile", lambda self, p: asked.append(p) or torch.as_tensor(self.law.ppf(p)))
    mean, std, y = draws(5)
    exact = checking.crps(normal(mean, std), y)
    assert checking.crps(normal(mean, std, claim=False), y) == pytest.approx(exact, rel=1e-4)
    assert len(asked) < 20


def test_crps_equals_scoringrules():
    scoringrules = pytest.importorskip("scoringrules")
    mean, std, y = draws(50)
    expected = scoringrules.crps_normal(y.numpy(), mean.numpy(), std.numpy()).mean()
    assert checking.crps(normal(mean, std), y) == pytest.approx(float(expected), rel=1e-12)


def test_crps_of_a_point_mass_is_the_absolute_error():
    point: Any = SimpleNamespace(mean=torch.tensor([1.0, 2.0]), std=torch.zeros(2), is_normal=True)
    assert checking.crps(point, torch.tensor([1.0, 5.0])) == 1.5


def test_crps_is_proper():
    """Neither shift nor scale of the true law improves the score (20,000 draws; over 10 standard errors)."""
    mean, std, y = draws(20_000)
    true = checking.crps(normal(mean, std), y)
    assert true < checking.crps(normal(mean + 0.3 * std, std), y)
    assert true < checking.crps(normal(mean, 1.5 * std), y)
    assert true < checking.crps(normal(mean, std / 1.5), y)


@pytest.mark.parametrize("shape", [(40,), (40, 3)])
def test_msll_of_the_trivial_predictor_is_zero(shape):
    y_train = 5 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = y_train[:10] + 1
    trivial = torch.distributions.Normal(y_train.mean(0), y_train.std(0, correction=0))
    assert checking.msll(trivial.log_prob(y), y, y_train) == pytest.approx(0.0, abs=1e-14)
    assert checking.msll(trivial.log_prob(y) + 0.7, y, y_train) == pytest.approx(-0.7)


def test_msll_is_free_of_the_units_of_y():
    mean, std, y = draws(30)
    scores = [
        checking.msll(normal(a * mean + 4, a * std).log_prob(a * y + 4), a * y + 4, a * y[:20] + 4) for a in (1.0, 1e3)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-9)


def test_msll_with_constant_training_targets_uses_unit_variance():
    y = torch.tensor([2.0, 3.0], dtype=torch.float64)
    log_prob = torch.distributions.Normal(2.0, 1.0).log_prob(y)
    assert checking.msll(log_prob, y, torch.full((5,), 2.0)) == pytest.approx(0.0, abs=1e-14)


def test_nlpd_and_rmse_are_their_formulas():
    mean, std, y = draws(25)
    expected = (0.5 * ((y - mean) / std) ** 2 + std.log() + 0.5 * math.log(2 * math.pi)).mean()
    assert checking.nlpd(normal(mean, std).log_prob(y)) == pytest.approx(float(expected), rel=1e-12)
    assert checking.rmse(mean, y) == pytest.approx(float(((y - mean) ** 2).mean() ** 0.5), rel=1e-14)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_coverage_of_exact_draws_is_nominal(level):
    """Inside 4.5 binomial standard errors: false alarm 7e-6 per level."""
    n = 20_000
    mean, std, y = draws(n)
    share = checking.coverage(normal(mean, std), y, level)
    assert abs(share - level) < 4.5 * math.sqrt(level * (1 - level) / n)


def test_coverage_sees_intervals_that_are_too_narrow():
    mean, std, y = draws(5_000)
    assert checking.coverage(normal(mean, std / 2), y, 0.9) < 0.7


def test_pit_of_exact_draws_is_uniform():
    """Kolmogorov-Smirnov at 1.95 / sqrt(n): false alarm 1e-3; bins inside 4.5 standard errors: 7e-5."""
    n = 20_000
    mean, std, y = draws(n)
    report = checking.calibration(normal(mean, std), y)
    assert report.ks < 1.95 / math.sqrt(n)
    assert sum(report.pit_counts) == n
    assert max(abs(count - n / 10) for count in report.pit_counts) < 4.5 * math.sqrt(n * 0.09)


def test_pit_of_counts_and_classes_is_uniform():
    """Kolmogorov-Smirnov at 1.95 / sqrt(n), false alarm 1e-3; without the draws it is above 0.1."""
    n, random = 4_000, np.random.default_rng(2)
    f = torch.as_tensor(random.normal(size=n))
    counts = torch.as_tensor(random.poisson(f.exp().numpy())).to(f)
    classes = torch.as_tensor(random.random(n) < stats.norm.cdf(f.numpy())).to(f)
    certain = torch.full_like(f, 1e-12)
    cases = [(gpx.likelihoods.Poisson(), counts), (gpx.likelihoods.Bernoulli(), classes)]
    for likelihood, y in cases:
        prediction = Prediction(likelihood.predict(f, certain))
        u = checking.pit(prediction, y)
        assert stats.kstest(u.numpy(), "uniform").statistic < 1.95 / math.sqrt(n)
        assert stats.kstest(prediction.cdf(y).numpy(), "uniform").statistic > 0.1


def test_ks_distance_equals_scipy():
    mean, std, y = draws(200, seed=3)
    report = checking.calibration(normal(mean, std), y)
    u = checking.pit(normal(mean, std), y)
    assert report.ks == pytest.approx(stats.kstest(u.numpy(), "uniform").statistic, rel=1e-12)


def test_missing_targets_are_left_out_of_every_score():
    mean, std, y = draws(30)
    y_train = y[::2]
    gaps = y.clone()
    gaps[[3, 17]] = math.nan
    keep = ~gaps.isnan()
    with_gaps = checking.calibration(normal(mean, std), gaps, torch.cat([y_train, gaps[[3]]]))
    without = checking.calibration(normal(mean[keep], std[keep]), y[keep], y_train)
    for name in ("n", "coverage", "coverage_se", "pit_counts", "ks"):
        assert getattr(with_gaps, name) == getattr(without, name), name
    for name in ("nlpd", "rmse", "crps", "msll"):
        assert getattr(with_gaps, name) == pytest.approx(getattr(without, name), rel=1e-12), name
    torch.testing.assert_close(with_gaps.residuals[keep], without.residuals)
    assert with_gaps.residuals[~keep].isnan().all()
    assert checking.pit(normal(mean, std), gaps).isnan().equal(~keep)
    log_prob = torch.where(keep, normal(mean, std).log_prob(y), math.nan)
    assert checking.nlpd(log_prob) == pytest.approx(without.nlpd, rel=1e-12)


def test_several_outputs_are_scored_per_cell():
    mean, std, y = draws(60)
    flat = checking.calibration(normal(mean, std), y)
    table = checking.calibration(normal(mean.reshape(20, 3), std.reshape(20, 3)), y.reshape(20, 3))
    assert (flat.n, flat.coverage, flat.pit_counts) == (table.n, table.coverage, table.pit_counts)
    assert flat.crps == pytest.approx(table.crps)


def test_an_output_without_targets_is_left_out_and_named():
    mean, std, y = draws(20)
    y = torch.stack([torch.full_like(y, math.nan), y], 1)
    both = normal(torch.stack([mean] * 2, 1), torch.stack([std] * 2, 1))
    report, alone = checking.calibration(both, y, y), checking.calibration(normal(mean, std), y[:, 1], y[:, 1])
    assert (report.n, report.coverage, report.pit_counts) == (alone.n, alone.coverage, alone.pit_counts)
    assert (report.msll, report.crps) == (pytest.approx(alone.msll), pytest.approx(alone.crps))
    assert "20 targets; output(s) 0 have none and are left out" in str(report)
    assert "left out" not in str(alone)
    with pytest.raises(InputError, match="y given to fit"):
        checking.msll(torch.zeros_like(y), y, y.flip(1))
    gp = gpx.GP(gpx.kernels.RBF()).condition(mean, y)
    assert math.isfinite(gp.check().msll)


def test_a_broken_density_at_an_observed_target_is_not_hidden():
    class Broken(Forecast):
        def log_prob(self, y):
            return torch.full_like(y, math.nan)

    report = checking.calibration(Broken(stats.norm([0.0, 0.0]), True), torch.tensor([0.1, 0.2]))
    assert math.isnan(report.nlpd)


def test_the_report_prints_every_score():
    mean, std, y = draws(200)
    text = str(checking.calibration(normal(mean, std), y, y))
    for word in (
        "200 targets",
        "NLPD",
        "MSLL",
        "RMSE",
        "CRPS",
        "50%",
        "95%",
        "PIT histogram",
        "residual RMS",
    ):
        assert word in text
    assert "MSLL            " in str(checking.calibration(normal(mean, std), y))


@pytest.mark.parametrize("level", [0, 1, 95, -0.1, math.nan])
def test_a_level_that_is_no_probability_is_refused(level):
    mean, std, y = draws(5)
    with pytest.raises(InputError, match=r"Pass 0\.95"):
        checking.coverage(normal(mean, std), y, level)


def test_shapes_that_differ_and_absent_targets_are_refused():
    mean, std, y = draws(5)
    prediction = normal(mean, std)
    with pytest.raises(InputError, match=r"\(4,\).*\(5,\).*Predict at"):
        checking.rmse(mean, y[:4])
    with pytest.raises(InputError, match="none observed"):
        checking.crps(prediction, torch.full_like(y, math.nan))
    with pytest.raises(InputError, match="y given to fit"):
        checking.msll(prediction.log_prob(y), y, torch.full((3,), math.nan))
    with pytest.raises(InputError, match="y given to fit"):
        checking.msll(prediction.log_prob(y), y, torch.zeros(3, 2))
    with pytest.raises(InputError, match="y given to fit"):
        checking.msll(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4, 3))
