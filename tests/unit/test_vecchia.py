"""Compiled columns and sparse triangular algebra against dense matrices."""

import numpy as np
import pytest

from gpx.linalg import sparse_factor, vecchia
from gpx.linalg.orderings import earlier_neighbours, maximin, spatial

CORRELATIONS = {
    "matern12": lambda r: np.exp(-r),
    "matern32": lambda r: (1 + r) * np.exp(-r),
    "matern52": lambda r: (1 + r + r * r / 3) * np.exp(-r),
    "rbf": lambda r: np.exp(-0.5 * r * r),
}


def ordered(n, d=2, m=8, scale=4.0, seed=0):
    x = np.random.default_rng(seed).random((n, d)) * scale
    x = np.ascontiguousarray(x[maximin(x)])
    return x, earlier_neighbours(x, min(m, n - 1))


def covariance(x, profile, variance, diagonal):
    distance = np.sqrt(np.square(x[:, None] - x).sum(-1))
    return variance * CORRELATIONS[profile](distance) + np.diag(diagonal)


def dense(near, u):
    n, m = near.shape
    matrix = np.zeros((n, n))
    for i in range(n):
        seen = near[i] >= 0
        matrix[near[i, seen], i] = u[i, :m][seen]
        matrix[i, i] = u[i, m]
    return matrix


@pytest.mark.parametrize("profile", vecchia.PROFILES)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 2), (64, 2), (150, 2), (70, 7)])
def test_columns_solve_with_the_covariance_of_neighbours(profile, n, d):
    x, near = ordered(n, d)
    diagonal = 0.01 + 0.1 * np.random.default_rng(1).random(n)
    u = vecchia.columns(x, near, profile, 1.3, diagonal)
    K = covariance(x, profile, 1.3, diagonal)
    for i in range(n):
        rows = [*near[i][near[i] >= 0], i]
        expected = np.linalg.solve(K[np.ix_(rows, rows)], np.eye(len(rows))[-1])
        assert np.allclose(u[i, -len(rows) :], expected / np.sqrt(expected[-1]), rtol=1e-9, atol=1e-11)
        assert not u[i, : -len(rows)].any()


@pytest.mark.parametrize("profile", vecchia.PROFILES)
def test_gradients_of_columns_are_differences(profile):
    x, near = ordered(150)
    random = np.random.default_rng(2)
    diagonal, weights = 0.05 + 0.1 * random.random(150), random.standard_normal((150, 9))
    weights[:, :-1][near < 0] = 0.0

    def value(stretch=(0.0, 0.0), variance=1.3, extra=0.0):
        return float(
            (vecchia.columns(x * np.exp(-np.array(stretch)), near, profile, variance, diagonal + extra) * weights).sum()
        )

    u = vecchia.columns(x, near, profile, 1.3, diagonal)
    in_variance, in_lengths, in_diagonal = vecchia.columns_adjoint(x, near, profile, 1.3, diagonal, u, weights)
    h = 1e-5

    def slope(change):
        return (value(**change(h)) - value(**change(-h))) / (2 * h)

    assert in_variance == pytest.approx(slope(lambda h: {"variance": 1.3 + h}), rel=1e-5, abs=1e-5)
    assert in_lengths[0] == pytest.approx(slope(lambda h: {"stretch": (h, 0.0)}), rel=1e-5, abs=1e-5)
    assert in_lengths[1] == pytest.approx(slope(lambda h: {"stretch": (0.0, h)}), rel=1e-5, abs=1e-5)
    for row in (0, 20, 149):
        unit = np.eye(150)[row]
        assert in_diagonal[row] == pytest.approx(slope(lambda h, e=unit: {"extra": h * e}), rel=1e-5, abs=1e-5)


def test_the_kink_of_matern12_has_a_finite_gradient_at_equal_points():
    x = np.zeros((2, 1))
    near = np.array([[-1], [0]], np.int32)
    u = vecchia.columns(x, near, "matern12", 1.0, np.ones(2))
    found = vecchia.columns_adjoint(x, near, "matern12", 1.0, np.ones(2), u, np.ones((2, 2)))
    assert all(np.isfinite(part).all() for part in found)


def test_columns_of_the_last_points_alone_are_those_of_all():
    x, near = ordered(200)
    u = vecchia.columns(x, near, "matern32", 1.0, np.zeros(200))
    assert np.array_equal(u[150:], vecchia.columns(x, near[150:], "matern32", 1.0, np.zeros(200)))


def test_a_block_without_a_factor_is_named():
    x, near = ordered(100)
    x[70] = x[near[70, -1]]
    with pytest.raises(vecchia.NotPositiveDefinite) as error:
        vecchia.columns(x, near, "rbf", 1.0, np.zeros(100))
    assert error.value.index >= 70 or near[error.value.index].max() >= 70


def test_a_floor_makes_a_copy_of_a_point_depend_on_it_alone():
    x, near = ordered(50)
    whole = np.concatenate([x, x[10:11]])
    rows = np.sort(np.argsort(np.square(x - x[10]).sum(1))[:8])[None].astype(np.int32)
    u = vecchia.columns(whole, rows, "matern32", 1.0, np.zeros(51), floor=1e-14)
    weights = -u[0, :-1] / u[0, -1]
    assert np.allclose(weights, (rows[0] == 10).astype(float), atol=1e-6)


@pytest.fixture(scope="module")
def system():
    """Pattern, U, precisions, V, and their dense forms."""
    x, near = ordered(300)
    random = np.random.default_rng(3)
    u, tau = vecchia.columns(x, near, "matern32", 1.0, np.zeros(300)), 200 * random.random(300)
    tau[::5] = 0.0
    v = sparse_factor.incomplete_factor(near, u, tau, sparse_factor.places(near)).v
    U = dense(near, u)
    return x, near, u, tau, v, U, U @ U.T + np.diag(tau), dense(near, v)


def test_products_and_solves_are_those_of_the_matrix(system):
    _, near, u, _, _, U, _, _ = system
    b = np.random.default_rng(4).standard_normal(300)
    assert np.allclose(sparse_factor.times(near, u, b), U @ b)
    assert np.allclose(sparse_factor.transposed_times(near, u, b), U.T @ b)
    assert np.allclose(U @ sparse_factor.solve(near, u, b), b)
    assert np.allclose(U.T @ sparse_factor.transposed_solve(near, u, b), b)


def test_the_incomplete_factor_is_right_on_the_pattern_and_exact_on_a_full_one(system):
    _, near, u, tau, _, U, P, V = system
    on_pattern = dense(near, np.ones_like(u)) != 0
    assert np.allclose((V @ V.T)[on_pattern], P[on_pattern], rtol=1e-9, atol=1e-9 * np.abs(P).max())
    x, full = ordered(40, m=39)
    u = vecchia.columns(x, full, "matern52", 1.0, np.zeros(40))
    exact = sparse_factor.incomplete_factor(full, u, tau[:40], sparse_factor.places(full))
    V, U = dense(full, exact.v), dense(full, u)
    assert exact.shift == 0
    assert np.allclose(V @ V.T, U @ U.T + np.diag(tau[:40]), rtol=1e-8)


def test_a_breakdown_is_mended_by_a_shift_that_is_reported():
    near = np.array([[-1], [0]], np.int32)
    u = np.array([[0.0, 1.0], [-1.0, 1.0]])
    broken = sparse_factor.incomplete_factor(near, u, np.array([-1.2, 0.0]), sparse_factor.places(near))
    assert broken.shift > 0
    assert np.isfinite(broken.v).all()
    assert (broken.v[:, -1] > 0).all()


def test_conjugate_gradients_solve_in_few_iterations(system):
    _, near, u, tau, v, _, P, _ = system
    b = np.random.default_rng(5).standard_normal(300)
    solution, iterations = sparse_factor.conjugate_gradients(near, u, tau, v, b, 1e-10)
    assert np.allclose(P @ solution, b, atol=1e-7 * np.abs(b).max())
    assert iterations <= 20
    nothing, none = sparse_factor.conjugate_gradients(near, u, tau, v, np.zeros(300), 1e-10)
    assert none == 0
    assert not nothing.any()


def test_norms_and_images_are_exact_without_a_tolerance(system):
    x, near, u, _, v, U, _, V = system
    inverse = np.linalg.inv(V @ V.T)
    each = np.arange(300, dtype=np.int32)[:, None]
    assert np.allclose(sparse_factor.norms(near, v, each, np.ones((300, 1)), 0.0), np.diag(inverse))
    pairs, weights = np.array([[3, 7], [-1, 250], [-1, -1]], np.int32), np.array([[1.0, -2.0], [0.0, 0.5], [0.0, 0.0]])
    b = np.zeros((300, 3))
    b[[3, 7], 0], b[250, 1] = [1.0, -2.0], 0.5
    assert np.allclose(sparse_factor.norms(near, v, pairs, weights, 0.0), np.square(np.linalg.solve(V, b)).sum(0))
    squares, images = sparse_factor.images(near, v, u, spatial(x), 0.0)
    assert np.allclose(squares, np.square(np.linalg.solve(V, U)).sum(0))
    whole = inverse @ U
    expected = np.where(near >= 0, whole[near, np.arange(300)[:, None]], 0.0)
    assert np.allclose(images, np.concatenate([expected, whole.diagonal()[:, None]], 1))


def test_a_tolerance_costs_little_accuracy():
    """Solves that follow what exceeds a thousandth: variances to 1 % at worst and 1e-4 on average."""
    x, near = ordered(3000, m=30, scale=6.0)
    u = vecchia.columns(x, near, "matern32", 1.0, np.zeros(3000))
    v = sparse_factor.incomplete_factor(near, u, np.full(3000, 100.0), sparse_factor.places(near)).v
    curve = spatial(x).astype(np.int32)[:, None]
    exact, fast = (sparse_factor.norms(near, v, curve, np.ones((3000, 1)), t) for t in (0.0, 1e-3))
    error = np.abs(fast / exact - 1)
    assert error.max() < 1e-2
    assert error.mean() < 1e-4
    assert error.max() > 0  # the tolerance does something
