"""Data drawn from the model: coverage is nominal, hyperparameters are recovered, standard errors are right.

Every test states its false-alarm rate: the probability that it fails although the law is true, over the draw of its seeds. The
seeds are fixed, so that a test which passes once passes always.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gpx import GP, checking
from gpx.kernels import RBF, Linear, Matern, Periodic
from gpx.likelihoods import Gaussian
from gpx.testing.cases import points

FALSE_ALARM = 1e-6


def draw(kernel, X, noise, seed, columns=1):
    """Targets [N, columns] from the prior with noise."""
    generator = torch.Generator().manual_seed(seed)
    K = kernel.matrix(X).detach()
    root = torch.linalg.cholesky(K + 1e-10 * torch.eye(len(X), dtype=torch.float64))
    f = root @ torch.randn(len(X), columns, generator=generator, dtype=torch.float64)
    noise = torch.as_tensor(noise, dtype=torch.float64).reshape(-1, 1)
    return f, f + noise.sqrt() * torch.randn(len(X), columns, generator=generator, dtype=torch.float64)


def assert_share(hits, level, what):
    """The number of hits is binomial: inside its two-sided band."""
    hits = np.asarray(hits).reshape(-1)
    low, high = stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], len(hits), level)
    assert low <= hits.sum() <= high, f"{what}: {hits.mean():.4f} of {len(hits)} at level {level}, band {low}..{high}"


TRUTHS = {
    "Matern": (Matern(nu=1.5, lengthscale=0.6, outputscale=1.5), 0.1),
    "sum": (RBF(lengthscale=1.0) + Matern(nu=0.5, outputscale=0.3), 0.05),
    "product": (RBF(lengthscale=2.0) * Periodic(period=1.2), 0.2),
    "linear": (Linear(outputscale=0.5), 0.3),
    "known noise": (RBF(lengthscale=0.8), torch.linspace(0.01, 0.6, 13)),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_coverage_of_the_true_model(name):
    """4,000 independent data sets (columns that share the inputs), one new point each: exactly binomial.

    Six shares with false alarms of 1e-6 each; and the PIT is uniform by Kolmogorov and Smirnov, 1e-6.
    """
    kernel, noise = TRUTHS[name]
    X = points(13)
    f, y = draw(kernel, X, noise, seed=1, columns=4000)
    per_point = isinstance(noise, torch.Tensor)
    gp = GP(kernel, Gaussian(noise[:12] if per_point else noise), mean="zero").condition(X[:12], y[:12])
    new = dict(noise=noise[12:].double()) if per_point else {}
    p, latent = gp.predict(X[12:], **new), gp.predict(X[12:], of="f")
    for level in (0.1, 0.5, 0.9, 0.99):
        low, high = p.interval(level)
        assert_share((y[12:] >= low) & (y[12:] <= high), level, f"y, {name}")
    low, high = latent.interval(0.9)
    assert_share((f[12:] >= low) & (f[12:] <= high), 0.9, f"f, {name}")
    assert stats.kstest(p.cdf(y[12:]).reshape(-1), "uniform").pvalue > FALSE_ALARM
    loo = gp.loo()
    assert_share(loo.cdf(y[:12])[5] < 0.3, 0.3, "leave-one-out")


def test_scores_of_the_true_model():
    """The expected log density of a normal is -log(2 pi e v) / 2; by Student's t, false alarms 1e-6."""
    kernel, noise = TRUTHS["Matern"]
    X = points(13)
    _, y = draw(kernel, X, noise, seed=2, columns=4000)
    p = GP(kernel, Gaussian(noise), mean="zero").condition(X[:12], y[:12]).predict(X[12:])
    expected = -0.5 * torch.log(2 * math.pi * math.e * p.variance)
    difference = (p.log_prob(y[12:]) - expected).reshape(-1).numpy()
    assert stats.ttest_1samp(difference, 0).pvalue > FALSE_ALARM
    squares = ((y[12:] - p.mean) ** 2 / p.variance).reshape(-1).numpy()
    assert stats.ttest_1samp(squares, 1).pvalue > FALSE_ALARM
    assert checking.coverage(p, y[12:], 0.5) == pytest.approx(0.5, abs=0.05)


def test_a_wrong_model_is_found():
    """The same test fails for 20 % less variance: it has power."""
    kernel, noise = TRUTHS["Matern"]
    X = points(13)
    _, y = draw(kernel, X, noise, seed=1, columns=4000)
    wrong = Matern(nu=1.5, lengthscale=0.6, outputscale=1.2)
    p = GP(wrong, Gaussian(0.8 * noise), mean="zero").condition(X[:12], y[:12]).predict(X[12:])
    low, high = p.interval(0.9)
    with pytest.raises(AssertionError, match="too small a prior"):
        assert_share((y[12:] >= low) & (y[12:] <= high), 0.9, "too small a prior")


def test_fits_recover_the_truth():
    """30 fits to independent draws of one truth.

    Estimates: the mean of the logarithms is within 10 % plus 5 standard errors of the truth (maximum likelihood is biased by
    O(1/N)). Standard errors: the sum of squared standardised errors is chi-squared of 30 degrees, inside its band (1e-6) for
    errors that are 25 % smaller or larger than stated (a Laplace approximation). Coverage: within 4 % of nominal, by Student's t
    over the data sets (1e-4): plug-in hyperparameters make intervals a little short.
    """
    truth = {"kernel.lengthscale": 0.25, "kernel.outputscale": 1.5, "likelihood.noise": 0.05}
    kernel = Matern(nu=1.5, lengthscale=0.25, outputscale=1.5)
    x = 2 * points(190, 1, seed=11)
    logs, errors, shares = [], [], []
    for seed in range(30):
        _, y = draw(kernel, x, 0.05, seed=100 + seed)
        gp = GP(Matern(nu=1.5)).fit(x[:160], y[:160, 0], priors=None)
        assert gp.result_.converged
        table, p = gp.parameters(), gp.predict(x[160:])
        logs.append([math.log(table[n].value / t) for n, t in truth.items()])
        errors.append([table[n].standard_error / table[n].value for n in truth])
        low, high = p.interval(0.9)
        shares.append(float(((y[160:, 0] >= low) & (y[160:, 0] <= high)).double().mean()))
    logs, errors, shares = map(np.array, (logs, errors, shares))
    count = len(logs)
    assert (np.abs(logs.mean(0)) < 0.1 + 5 * logs.std(0, ddof=1) / math.sqrt(count)).all(), logs.mean(0)
    assert (logs.std(0) < 1).all()
    total = ((logs / errors) ** 2).sum(0)
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], count)
    assert (low / 1.25**2 < total).all() and (total < high * 1.25**2).all(), total
    error = shares.std(ddof=1) / math.sqrt(count)
    assert abs(shares.mean() - 0.9) < 0.04 + stats.t.isf(5e-5, count - 1) * error


def test_leave_one_out_residuals_of_a_fit_are_standard():
    """`gp.check()` on data of the model: root mean square near 1, coverage near nominal."""
    x = points(300, 1, seed=3) * 3
    _, y = draw(Matern(nu=1.5, lengthscale=0.5), x, 0.1, seed=7)
    report = GP(Matern(nu=1.5)).fit(x, y[:, 0]).check()
    assert float(report.residuals.square().mean().sqrt()) == pytest.approx(1, abs=0.15)
    for share, level, error in zip(report.coverage, report.levels, report.coverage_se, strict=True):
        assert abs(share - level) < 5 * error
    assert report.ks < 2.5 / math.sqrt(300)
