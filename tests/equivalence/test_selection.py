"""Selections against dense algebra and enumeration. Theory: docs/theory/selection.md."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import lapack

from gpx import kernels
from gpx.kernels.dense import dense
from gpx.linalg.elementary import log_elementary, log_of_equal, log_without_each
from gpx.selection import bless, greedy, ridge_leverage, squeak, thinning
from gpx.selection.leverage import inclusion
from gpx.selection.preselection import Preselection
from gpx.selection.scores import Dictionary
from gpx.testing.assertions import close
from gpx.testing.cases import points

X = points(12, 2)
FACTOR = 2.0


def matern():
    return kernels.Matern(nu=1.5, lengthscale=0.7, outputscale=1.3)


def matrix(kernel, x):
    return dense(kernel, x, x).detach()


def test_greedy_is_pivoted_cholesky():
    x = points(40, 3)
    _, pivots, _, _ = lapack.dpstrf(matrix(matern(), x).numpy())
    assert greedy(matern(), x, 20)[0].tolist() == (pivots[:20] - 1).tolist()


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 50.0])
def test_ridge_leverage_is_the_diagonal_of_the_smoother(ridge):
    K = matrix(matern(), X)
    smoother = torch.linalg.solve(K + ridge * torch.eye(len(X)).double(), K)
    close(ridge_leverage(matern(), X, ridge), smoother.diagonal(), "leverage", rtol=1e-9)


def deviation(K, weights, ridge):
    """``|(A + ridge)^-1/2 (A_hat - A) (A + ridge)^-1/2|`` from a root of the kernel matrix: columns are feature vectors."""
    values, vectors = torch.linalg.eigh(K)
    features = (vectors * values.clamp_min(0).sqrt()).mT
    half = (values + ridge).rsqrt()
    inner = half[:, None] * (features * (weights - 1)) @ features.mT * half
    return float(torch.linalg.matrix_norm(inner, 2))


def test_estimates_are_within_the_factor_of_the_deviation_of_their_dictionary():
    """The law "factor" of docs/theory/selection.md."""
    x, ridge, random = points(80, 2), 0.5, np.random.default_rng(0)
    exact, K = ridge_leverage(matern(), x, ridge), matrix(matern(), x)
    for share in (0.5, 0.7, 0.9):
        weights = torch.as_tensor((random.random(80) < share) / share)
        kept = weights > 0
        ratio = Dictionary(x[kept], weights[kept], ridge).leverage(matern(), x) / exact
        epsilon = deviation(K, weights, ridge)
        assert float(ratio.min()) >= 1 / (1 + epsilon) - 1e-9
        assert epsilon >= 1 or float(ratio.max()) <= 1 / (1 - epsilon) + 1e-9


@pytest.mark.parametrize("size", [10, 50])
@pytest.mark.parametrize(("columns", "lengthscale"), [(1, 0.1), (3, 0.8)])
def test_bless_and_squeak_are_within_their_stated_factor(size, columns, lengthscale):
    x, kernel = points(1_000, columns), kernels.RBF(lengthscale=lengthscale)
    for seed in range(2):
        path = bless(kernel, x, size, seed=seed)
        exact = ridge_leverage(kernel, x, path.ridge)
        for dictionary in (path, squeak(kernel, x.split(200), path.ridge, seed=seed)):
            ratio = dictionary.leverage(kernel, x) / exact
            assert float(ratio.min()) > 1 / FACTOR and float(ratio.max()) < FACTOR
            assert len(dictionary.points) < 20 * float(exact.sum())


def test_the_path_of_ridges_ends_at_the_wanted_dimension():
    x, kernel = points(1_000, 2), kernels.RBF(lengthscale=0.3)
    for size in (5, 20, 80):
        dimension = float(ridge_leverage(kernel, x, bless(kernel, x, size).ridge).sum())
        assert size / FACTOR < dimension < FACTOR * size + 1


def test_inclusion_probabilities():
    """The law "inclusion" of docs/theory/selection.md."""
    random = np.random.default_rng(0)
    for size in (1, 5, 19):
        scores = random.random(20) ** 4
        p = inclusion(scores, size)
        assert p.sum() == pytest.approx(size)
        free = p < 1
        assert p[free] / scores[free] == pytest.approx(np.full(free.sum(), (p[free] / scores[free])[0]))
        assert scores[~free].min(initial=np.inf) >= scores[free].max()
    assert inclusion(np.array([0.0, 0.1, 0.2]), 3).tolist() == [0.0, 1.0, 1.0]


def test_elementary_symmetric_polynomials_are_sums_over_subsets():
    values = np.exp(np.linspace(-3, 2, 7))
    repeated = np.concatenate([values, np.full(4, 0.3)])
    for order in range(8):
        direct = sum(np.prod(part) for part in itertools.combinations(repeated, order))
        start = log_of_equal(np.log(0.3), 4, order)
        assert log_elementary(np.log(values), order, start)[-1, order] == pytest.approx(np.log(direct))
        without = [sum(np.prod(p) for p in itertools.combinations(np.delete(repeated, j), order)) for j in range(7)]
        assert log_without_each(np.log(values), order, start) == pytest.approx(np.log(without))


def test_with_all_rows_as_reference_chances_are_the_marginals():
    """The law "chances" of docs/theory/selection.md."""
    K, size = matrix(matern(), X).numpy(), 4
    sets = list(itertools.combinations(range(len(X)), size))
    p = np.array([np.linalg.det(K[np.ix_(s, s)]) for s in sets])
    marginals = [p[[n in s for s in sets]].sum() / p.sum() for n in range(len(X))]
    with torch.no_grad():
        chances = Preselection.of(matern(), X, size, X).chances
    assert chances == pytest.approx(marginals)


def test_acceptance_never_exceeds_one():
    """Concavity of log e_k, for references of every quality."""
    K, size, random = matrix(matern(), X).numpy(), 4, np.random.default_rng(0)
    for m in (4, 6, 9, 12):
        with torch.no_grad():
            reference = Preselection.of(matern(), X, size, X[:m])
        assert reference.chances.sum() == pytest.approx(size)
        for _ in range(200):
            weights = random.exponential(size=len(X)) ** 2 * (random.random(len(X)) < 0.7)
            roots = np.sqrt(weights)
            logs = np.log(np.linalg.eigvalsh(roots[:, None] * K * roots).clip(min=1e-300))
            value = log_elementary(logs, size)[-1, -1]
            assert value - reference.log_reference + size - weights @ reference.chances <= 1e-9


def test_polynomials_agree_with_dppy():
    peer = pytest.importorskip("dppy.exact_sampling").elementary_symmetric_polynomials
    values = np.linalg.eigvalsh(matrix(matern(), X).numpy())
    ours = np.exp(log_elementary(np.log(values), 5))
    np.testing.assert_allclose(ours.T, peer(values, 5), rtol=1e-9)


def test_thinning_is_as_good_as_goodpoints():
    """Discrepancies over five seeds, 1,024 rows to 32: their means within 20 %."""
    kt = pytest.importorskip("goodpoints.kt")
    x, kernel = points(1_024, 2), kernels.RBF(lengthscale=0.5)
    K, a = matrix(kernel, x).numpy(), x.numpy()

    def gauss(y, rows):
        return np.exp(-0.5 * np.square((rows - y) / 0.5).sum(-1))

    def discrepancy(rows):
        return np.sqrt(K[np.ix_(rows, rows)].mean() - 2 * K[rows].mean() + K.mean())

    ours = [discrepancy(thinning(kernel, x, 32, seed=s)[0].numpy()) for s in range(5)]
    theirs = [discrepancy(kt.thin(a, 5, gauss, gauss, seed=s)) for s in range(5)]
    assert np.mean(ours) < 1.2 * np.mean(theirs)
