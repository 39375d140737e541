"""Debiased Whittle against exact maximum likelihood, where the naive form is biased."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.registry import Setting
from benchmarks.tasks.whittle import TRUTH, compare, fit_exact, fit_whittle, kalman, series
from gpx import GP
from gpx.engines import Exact
from gpx.inference.problem import Problem
from gpx.inference.rules import Variational
from gpx.inputs import as_data
from gpx.kernels import Matern
from gpx.likelihoods import Gaussian
from gpx.means import as_mean
from gpx.objectives import Whittle
from gpx.prior import Prior


def test_the_filter_of_the_reference_is_right():
    y = series(60, 0)
    gp = GP(Matern(0.5, lengthscale=1 / 0.7, outputscale=1.2), Gaussian(0.1), mean="zero")
    exact = gp.condition(np.arange(60.0), y).log_evidence()
    assert exact == pytest.approx(-kalman()(y, 0.7, 1.2, 0.1), rel=1e-10)


def test_estimates_are_nearly_as_likely_as_the_best():
    """The log likelihood lost is a small share of a nat; a confidence region of 68 % spans 1.75 (three parameters)."""
    for seed in (1, 3):
        y = series(512, seed)
        best, found = fit_exact(y), fit_whittle(y, debiased=True)
        y = y - y.mean()
        assert kalman()(y, *found.values()) - kalman()(y, *best.values()) < 0.1


@pytest.mark.slow
def test_acceptance():
    """30 series of 2,048: within 0.1 standard deviation of exact ML on average, and the naive form finds noise 0.38."""
    setting = Setting(seed=0, quick=False)
    ours = compare(setting, lambda y: fit_whittle(y, debiased=True))
    naive = compare(setting, lambda y: fit_whittle(y, debiased=False))
    assert all(ours[f"{name} off"] < 0.1 and ours[f"{name} apart"] < 0.1 for name in TRUTH), ours
    assert naive["noise"] == pytest.approx(0.38, abs=0.03) and naive["noise off"] > 2


def scores(debiased):
    """Gradients of the objective at the truth [300, 3], of series of 200 cells in which a block and random cells are missing."""
    t = torch.arange(200, dtype=torch.float64)
    lost = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.3
    lost[90:120] = True
    result = []
    for seed in range(300):
        y = torch.from_numpy(series(200, seed))
        y[lost] = math.nan
        kernel, likelihood = Matern(0.5), Gaussian(0.1)
        prior = Prior(as_mean("zero"), (kernel,))
        problem = Problem.planned(prior, as_data(t, y), likelihood, Exact(), Variational())
        raws = [kernel.raw_lengthscale, kernel.raw_outputscale, likelihood.raw_noise]
        found = torch.autograd.grad(Whittle(debiased)(problem), raws)
        result.append([float(g) for g in found])
    return np.array(result)


def test_the_score_at_the_truth_has_mean_zero():
    """Also with gaps; false alarms: 1e-6 for each of three. The naive form fails by far."""
    limit = stats.t.ppf(1 - 5e-7, 299)
    z = {debiased: stats.ttest_1samp(scores(debiased), 0.0).statistic for debiased in (True, False)}
    assert np.abs(z[True]).max() < limit < 2 * limit < np.abs(z[False]).max(), z
