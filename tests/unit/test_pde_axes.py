"""The parts of the solver: bases, conditions, sums over axes, finite differences."""

from functools import partial

import numpy as np
import pytest
import torch

import gpx
from gpx.pde import Box, D, Dirichlet, Interval, Neumann, Periodic, Problem, Robin, u
from gpx.pde.axes import difference_matrices, differences, galerkin, multiply
from gpx.pde.basis import kernel_basis, mixture, spectral_basis, trapezoid
from gpx.pde.grids import Grid, along_axes, boundary_values
from gpx.pde.linear import kronecker_sum, solve_linear

NODES = np.linspace(-1.0, 2.0, 41)
TONE, WIDE = np.array([0.0, 1.7]), np.array([1.0, 1.0])
BASES = {
    "spectral": lambda: spectral_basis(TONE, WIDE, NODES),
    "few": lambda: spectral_basis(TONE, 0.5 * WIDE, NODES, 1e-4),
    "Matern": lambda: kernel_basis(gpx.kernels.Matern(nu=4.5, lengthscale=1.0), NODES, 2),
}


@pytest.fixture(params=BASES)
def basis(request):
    return BASES[request.param]()


def test_functions_are_orthonormal_at_the_nodes(basis):
    gram = basis.values.T @ (trapezoid(NODES)[:, None] * basis.values)
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)
    large = basis.deviations > 3e-3 * basis.deviations[0]
    np.testing.assert_allclose(basis(NODES)[:, large], basis.values[:, large], atol=1e-8)


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_are_those_of_finite_differences(basis, order):
    large = basis.deviations > 1e-2 * basis.deviations[0]
    x, step = np.linspace(-0.9, 1.9, 13), 1e-5
    numeric = (basis(x + step, order - 1) - basis(x - step, order - 1)) / (2 * step)
    exact = basis(x, order)
    np.testing.assert_allclose(exact[:, large], numeric[:, large], atol=3e-6 * np.abs(exact[:, large]).max())


def test_deviations_give_the_kernel_back():
    """``sum_j s_j^2 b_j(x) b_j(x')`` is the kernel, but for its repetition with the period of the sums."""
    basis = spectral_basis(TONE, 0.3 * WIDE, NODES)
    kernel = gpx.kernels.matrix(mixture(TONE, 0.3 * WIDE), torch.from_numpy(NODES)).detach().numpy()
    np.testing.assert_allclose((basis.values * basis.deviations**2) @ basis.values.T, kernel, atol=1e-6)


def test_matern_deviations_give_the_kernel_back():
    kernel = gpx.kernels.Matern(nu=2.5, lengthscale=0.4)
    basis = kernel_basis(kernel, NODES, 1)
    expected = gpx.kernels.matrix(kernel, torch.from_numpy(NODES)).detach().numpy()
    np.testing.assert_allclose((basis.values * basis.deviations**2) @ basis.values.T, expected, atol=1e-10)


def test_kernels_that_are_too_rough_are_refused():
    with pytest.raises(gpx.StructureError, match=r"nu = 2.5 has 4 derivative\(s\) at zero, asked for 8: use nu >= 4.5"):
        kernel_basis(gpx.kernels.Matern(nu=2.5), NODES, 4)


CONDITIONS = {
    "Dirichlet": [Dirichlet((0, 0), 0.5), Dirichlet((0, 1), 2.0)],
    "mixed": [Neumann((0, 0), 1.5), Robin((0, 1), 2.0, 0.5, 1.0)],
    "both below": [Dirichlet((0, 0), 0.5), Neumann((0, 0), 0.1)],
    "periodic": [Periodic(0)],
}


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("kind", ["functions", "differences"])
def test_lifts_and_free_functions_meet_the_conditions(name, kind):
    problem = Problem(Interval(-1, 2), D(u, 0, 2) - u, 0.0, CONDITIONS[name])
    if kind == "functions":
        axis = galerkin(problem, 0, spectral_basis(TONE, WIDE, NODES), NODES)
    else:
        axis = differences(problem, 0, NODES)
    np.testing.assert_allclose(axis.rows @ axis.lift, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(axis.rows @ axis.null, 0, atol=1e-9 * np.abs(axis.rows).max())
    np.testing.assert_allclose(axis.test @ axis.derivatives[0] @ axis.null, np.eye(axis.null.shape[1]), atol=1e-9)
    values = boundary_values(problem, [NODES])[0]
    np.testing.assert_allclose(values, [getattr(c, "g", 0.0) for c in problem.along(0)] or [0, 0])


def test_outward_normals_point_outward():
    problem = Problem(Interval(-1, 2), D(u, 0, 2), 0.0, [Neumann((0, 0), 0.0), Robin((0, 1), 3.0, 1.0, 0.0)])
    axis = galerkin(problem, 0, spectral_basis(np.zeros(1), np.array([2.0]), NODES), NODES)
    np.testing.assert_allclose(axis.rows @ axis.coefficients @ NODES**2, [2.0, 3 * 4 + 4], atol=1e-7)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_differences_converge_in_the_interior(order):
    errors = []
    for count in (41, 81):
        x = np.linspace(0, 2, count)
        inner = slice(5, -5)
        expected = (np.sin, np.cos)[order % 2](x) * (1, 1, -1, -1)[order % 4]
        errors.append(np.abs(difference_matrices(x, order)[order] @ np.sin(x) - expected)[inner].max())
    assert 3.4 < errors[0] / errors[1] < 4.6


@pytest.mark.parametrize("wind", [1, -1])
def test_upwind_differences_look_one_way(wind):
    x = np.linspace(0, 1, 11)
    first = difference_matrices(x, 1, wind)[1]
    np.testing.assert_allclose(first @ (3 * x), 3)
    assert np.all(np.triu(first, 1)[1:] == 0) if wind > 0 else np.all(np.tril(first, -1)[:-1] == 0)
    inner = slice(2, None) if wind > 0 else slice(None, -2)
    np.testing.assert_allclose((difference_matrices(x, 2, wind)[2] @ x**2)[inner], 2)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (5, 3, 4)])
@pytest.mark.parametrize("kind", ["any", "symmetric", "Jordan"])
def test_sums_over_axes_are_solved(shape, kind):
    random = np.random.default_rng(0)
    matrices = [random.standard_normal((n, n)) + 4 * np.eye(n) for n in shape]
    if kind == "symmetric":
        matrices = [m @ m.T for m in matrices]
    if kind == "Jordan":  # what upwind differences are: not diagonalisable
        matrices = [np.eye(n) - np.eye(n, k=-1) for n in shape]
    expected = random.standard_normal(shape)
    right = sum(multiply([m if k == d else None for k in range(len(shape))], expected) for d, m in enumerate(matrices))
    np.testing.assert_allclose(kronecker_sum(matrices)(right), expected, atol=1e-9)


def test_multiplying_is_a_kronecker_product():
    random = np.random.default_rng(1)
    a, b, t = (random.standard_normal(s) for s in ((4, 2), (5, 3), (2, 3)))
    np.testing.assert_allclose(multiply([a, b], t).reshape(-1), np.kron(a, b) @ t.reshape(-1))


def operator(grid, slopes, free):
    jet = grid.jet(grid.extend(free), tuple(slopes))
    return grid.test(sum(slopes[i] * jet[i] for i in slopes))


@pytest.mark.parametrize("separable", [True, False])
def test_linear_operators_are_inverted(separable):
    problem = Problem(Box([(0, 1), (0, 2)]), D(u, 0, 2) + D(u, 1, 2) + D(u, 0) - u, 0.0, 0.0)
    nodes = problem.domain.axes((12, 15))
    grid = Grid(tuple(galerkin(problem, d, spectral_basis(np.zeros(1), np.ones(1), n), n) for d, n in enumerate(nodes)))
    slopes = {
        i: torch.full((180,), c, dtype=torch.float64)
        for i, c in {(): -1.0, (0,): 1.0, (0, 0): 1.0, (1, 1): 1.0}.items()
    }
    if not separable:
        slopes[()] = slopes[()] - grid.x[:, 0] * grid.x[:, 1]
        slopes[(0, 0)] = 1 + 0.5 * grid.x[:, 1]
    expected = np.random.default_rng(0).standard_normal(grid.free)
    found = solve_linear(grid, slopes, operator(grid, slopes, expected), 1e-11)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_what_depends_on_one_axis_each_is_kept_exactly():
    x = torch.rand(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, two = torch.arange(3.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)[None]
    slopes = {(): (one + two**2).reshape(-1), (0, 0): (1 + one + 0 * two).reshape(-1), (0, 1): x[..., 0].reshape(-1)}
    parts = along_axes(slopes, (3, 4))
    np.testing.assert_allclose(parts[0][0][:, None] + parts[1][0][None], slopes[()].reshape(3, 4))
    np.testing.assert_allclose(parts[0][2], [1, 2, 3])
    assert set(parts[0]) == {0, 2} and set(parts[1]) == {0}


def test_boundary_values_of_two_axes():
    g = partial(lambda x: x[:, 0] + 10 * x[:, 1])
    problem = Problem(Box([(0, 1), (0, 2)]), D(u, 0, 2) + D(u, 1, 2), 0.0, g)
    nodes = problem.domain.axes((5, 6))
    first, second = boundary_values(problem, nodes)
    np.testing.assert_allclose(first, np.array([[0], [1]]) + 10 * nodes[1])
    np.testing.assert_allclose(second, nodes[0][:, None] + 10 * np.array([0, 2]))
