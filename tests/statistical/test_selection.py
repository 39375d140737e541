"""Selections at random have the law that they state. Theory: docs/theory/selection.md. Every test states its false-alarm rate."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from gpx import kernels
from gpx.kernels.dense import dense
from gpx.selection import leverage, thinning
from gpx.selection.k_dpp import KDPP
from gpx.selection.leverage import inclusion, systematic
from gpx.selection.preselection import Preselection
from gpx.testing.cases import points

FALSE_ALARM = 1e-4
X, SIZE = points(12, 2), 4
SETS = list(itertools.combinations(range(len(X)), SIZE))


def matern():
    return kernels.Matern(nu=1.5, lengthscale=0.7)


def p_value(draws, chances):
    """Of a chi-square test; outcomes that are expected less than five times are one."""
    expected = len(draws) * chances
    counts = np.bincount(draws, minlength=len(chances))
    often = expected >= 5
    counts, expected = (np.append(a[often], a[~often].sum()) for a in (counts, expected))
    some = expected > 0
    return stats.chi2.sf(((counts - expected)[some] ** 2 / expected[some]).sum(), some.sum() - 1)


def enumerated():
    K = dense(matern(), X, X).detach().numpy()
    dets = np.array([np.linalg.det(K[np.ix_(s, s)]) for s in SETS])
    return dets / dets.sum()


def by_decomposition():
    process = KDPP.of(dense(matern(), X, X).detach(), SIZE)
    return process.draw


def by_preselection(m):
    reference = Preselection.of(matern(), X, SIZE, X[:m])

    def draw(random):
        while (found := reference.attempt(8, random)) is None:
            pass
        return found

    return draw


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("way", ["decomposition", 12, 8])
def test_k_dpps_have_the_law_of_enumeration(way):
    """All 495 sets of 4 out of 12, and the marginals: rate 1e-4 each. The law must hold for a poor reference, too."""
    with torch.no_grad():
        draw, random = by_decomposition() if way == "decomposition" else by_preselection(way), np.random.default_rng(0)
        found = [tuple(sorted(draw(random))) for _ in range(4_000)]
    chances = enumerated()
    index = {s: i for i, s in enumerate(SETS)}
    assert p_value(np.array([index[s] for s in found]), chances) > FALSE_ALARM
    inside = np.array([[n in s for s in SETS] for n in range(len(X))])
    marginals, counts = inside @ chances, np.bincount(np.ravel(found), minlength=len(X))
    # Negatively correlated counts of sum 4 x 4,000: the covariance is that of the enumeration.
    covariance = len(found) * ((inside * chances) @ inside.T - np.outer(marginals, marginals))
    gap = counts - len(found) * marginals
    assert stats.chi2.sf(gap @ np.linalg.pinv(covariance, rcond=1e-8) @ gap, len(X) - 1) > FALSE_ALARM


def test_systematic_sampling_has_its_inclusion_probabilities():
    """Binomial counts of 20 rows, each at rate 1e-4 / 20."""
    random, size, n = np.random.default_rng(0), 6, 4_000
    p = inclusion(np.random.default_rng(1).random(20) ** 3, size)
    samples = [systematic(p, random) for _ in range(n)]
    assert all(len(set(s)) == size for s in samples)
    counts = np.bincount(np.concatenate(samples), minlength=20)
    assert (counts[p == 1] == n).all()
    z = (counts - n * p)[p < 1] / np.sqrt(n * p * (1 - p))[p < 1]
    assert abs(z).max() < stats.norm.isf(FALSE_ALARM / 40)


def test_weighted_sums_of_a_leverage_sample_are_unbiased():
    """A z-test at rate 1e-4."""
    x, kernel = points(200, 1), kernels.RBF(lengthscale=0.2)
    h = torch.cos(3 * x[:, 0]) + x[:, 0].square()
    sums = []
    for seed in range(200):
        indices, weights = leverage(kernel, x, 15, seed=seed)
        sums.append(float(weights @ h[indices]))
    z = (np.mean(sums) - float(h.sum())) / (np.std(sums) / np.sqrt(len(sums)))
    assert abs(z) < stats.norm.isf(FALSE_ALARM / 2)


@torch.no_grad()
def embedding(kernel, x):
    return torch.cat([dense(kernel, part, x).mean(1) for part in x.split(500)])


@torch.no_grad()
def squared_discrepancy(kernel, x, mean, rows):
    return float(dense(kernel, x[rows], x[rows]).mean() - 2 * mean[rows].mean() + mean.mean())


def slopes(exponents, n):
    """Log-log slopes against size of the discrepancies of thinning, and of independent rows (root mean square of 10 sets)."""
    x, kernel, random = (
        torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).double(),
        kernels.RBF(),
        np.random.default_rng(0),
    )
    mean, sizes = embedding(kernel, x), [4**e for e in exponents]
    thinned, independent = [], []
    for size in sizes:
        thinned.append(squared_discrepancy(kernel, x, mean, thinning(kernel, x, size)[0]))
        sets = [torch.as_tensor(random.integers(n, size=size)) for _ in range(10)]
        independent.append(np.mean([squared_discrepancy(kernel, x, mean, rows) for rows in sets]))
    return tuple(0.5 * np.polyfit(np.log(sizes), np.log(found), 1)[0] for found in (thinned, independent))


@pytest.mark.slow
def test_discrepancies_fall_faster_than_those_of_independent_rows():
    thinned, independent = slopes((3, 4, 5, 6), 4**7)
    assert thinned <= -0.7
    assert abs(independent + 0.5) <= 0.1


@pytest.mark.slow
@pytest.mark.ci
def test_thinning_small_sets_from_many():
    thinned, _ = slopes((1, 2, 3), 4**6)
    assert thinned <= -0.7
