"""The statements of docs/theory/pde.md, against dense algebra and direct sums."""

from pathlib import Path

import numpy as np
import pytest
import torch

import gpx
from gpx.pde import Box, D, Dirichlet, Interval, Neumann, Observations, Problem, u
from gpx.pde.axes import difference_matrices, galerkin, multiply
from gpx.pde.basis import REACH, kernel_basis, mixture, spectral_basis
from gpx.pde.grids import Grid, boundary_values
from gpx.pde.joint import Block, System, condition, measure, prior_factor

DOCUMENT = Path(__file__).parents[2] / "docs" / "theory" / "pde.md"
NODES = np.linspace(0, 1, 30)
TONES, WIDTHS = np.array([0.0, 3.3]), np.array([0.2, 0.3])


@pytest.mark.parametrize(
    "label",
    ["kernel", "basis", "conditions", "solver", "error", "noise", "observations", "unknowns", "limits", "points"],
)
def test_sections_exist(label):
    assert f"(pde-{label})=" in DOCUMENT.read_text()


def test_features_repeat_the_kernel():
    """pde-kernel: Poisson's sum, where no repetition is cut off by the Nyquist frequency."""
    basis = spectral_basis(TONES, WIDTHS, np.linspace(0, 1, 200))
    x = np.linspace(0, 1, 9)
    lags = torch.from_numpy(np.subtract.outer(x, x))
    period = 1 + REACH * WIDTHS.max()
    kernel = mixture(TONES, WIDTHS)
    expected = sum(
        gpx.kernels.matrix(kernel, (lags + n * period).reshape(-1, 1), torch.zeros(1, 1, dtype=torch.float64))
        .detach()
        .numpy()
        .reshape(9, 9)
        for n in range(-3, 4)
    )
    features = basis.features(x, 0)
    np.testing.assert_allclose(features @ features.T, expected, atol=1e-12)


def test_factors_keep_digits_that_the_matrix_loses():
    """pde-basis: u'' of exp(x), in the eigenfunctions of a long lengthscale."""
    long = np.array([2.0])
    errors = []
    for basis in (spectral_basis(np.zeros(1), long, NODES), kernel_basis(gpx.kernels.RBF(lengthscale=2.0), NODES, 2)):
        c = np.linalg.lstsq(basis.values, np.exp(NODES))[0]
        errors.append(np.abs(basis(NODES, 2) @ c - np.exp(NODES)).max())
    assert errors[0] < 1e-5 and errors[1] > 100 * errors[0]


@pytest.mark.parametrize("agree", [True, False])
def test_lifts_meet_all_conditions_if_they_agree(agree):
    """pde-conditions."""
    g = (lambda x: x[:, 0] + 2 * x[:, 1]) if agree else (lambda x: x[:, 0] * 0)
    conditions = [
        Dirichlet((0, 0), lambda x: x[:, 0] + 2 * x[:, 1]),
        Neumann((0, 1), 1.0),
        Dirichlet((1, 0), g),
        Neumann((1, 1), 2.0),
    ]
    if not agree:
        conditions[0] = Dirichlet((0, 0), lambda x: 2 * x[:, 1] + 1e-7)  # below what is refused
    problem = Problem(Box([(0, 1), (0, 1)]), D(u, 0, 2) + D(u, 1, 2), 0.0, conditions)
    grid = Grid(tuple(galerkin(problem, d, spectral_basis(np.zeros(1), np.ones(1), NODES), NODES) for d in (0, 1)))
    values = boundary_values(problem, [NODES, NODES])
    gap = max(np.abs(a - b).max() for a, b in zip(grid.traces(grid.lift(values)), values, strict=True))
    assert gap < 1e-9 if agree else gap > 0.9e-7


def test_lifts_are_conditional_means():
    """pde-conditions: ``H g = S^2 R^T (R S^2 R^T)^-1 g``, of the least norm under the prior."""
    problem = Problem(Interval(0, 1), D(u, 0, 2), 0.0, [Dirichlet((0, 0), 1.0), Neumann((0, 1), 0.5)])
    basis = spectral_basis(TONES, WIDTHS, NODES, 1e-5)
    axis = galerkin(problem, 0, basis, NODES)
    prior = np.diag(basis.deviations**2)
    np.testing.assert_allclose(
        axis.lift, prior @ axis.rows.T @ np.linalg.inv(axis.rows @ prior @ axis.rows.T), atol=1e-10
    )


def test_differences_damp_waves_as_stated():
    """pde-error."""
    for points in (4, 8, 16):
        x = np.arange(0, 64.0)
        wave = np.cos(2 * np.pi * x / points + 0.3)
        ratio = (difference_matrices(x, 2)[2] @ wave)[20] / (-((2 * np.pi / points) ** 2) * wave[20])
        assert ratio == pytest.approx((np.sin(np.pi / points) / (np.pi / points)) ** 2)


def test_evidence_and_posterior_are_those_of_dense_algebra():
    """pde-noise."""
    noise = 0.3
    problem = Problem(
        Interval(0, 1), D(u, 0, 2) - u, torch.cos(torch.linspace(0, 9, 30, dtype=torch.float64)), 0.2, noise=noise
    )
    grid = Grid((galerkin(problem, 0, spectral_basis(TONES, WIDTHS, NODES, 1e-4), NODES),))
    boundary = boundary_values(problem, [NODES])
    factor = prior_factor(grid.axes[0])
    lift = grid.lift(boundary)
    block = Block("u", grid, lift, (factor,))
    equation = measure([block], problem.equation, None, problem.source.numpy(), np.full(30, noise))
    found = condition(System((block,), equation), {})
    matrix = (grid.axes[0].derivatives[2] - grid.axes[0].derivatives[0]) @ factor
    start = grid.jet(lift, [(), (0, 0)])
    target = (problem.source - start[(0, 0)] + start[()]).numpy()

    def evidence(variance):
        spectrum, vectors = np.linalg.eigh(variance * matrix @ matrix.T + noise**2 * np.eye(30))
        return -0.5 * np.sum(np.log(2 * np.pi * spectrum) + (vectors.T @ target) ** 2 / spectrum)

    variances = np.logspace(-8, 1, 300)
    values = [evidence(v) for v in variances]
    assert max(values) == pytest.approx(found.evidence, abs=0.01) and found.evidence > max(values) - 1e-6
    # The variance that was chosen is the one whose evidence is the largest; its posterior, densely:
    variance = variances[int(np.argmax(values))]
    precision = matrix.T @ matrix / noise**2 + np.eye(matrix.shape[1]) / variance
    mean = lift + factor @ np.linalg.solve(precision, matrix.T @ target / noise**2)
    at_nodes = grid.axes[0].derivatives[0] @ factor
    std = np.sqrt(np.einsum("ij,ij->i", at_nodes, np.linalg.solve(precision, at_nodes.T).T))
    np.testing.assert_allclose(block.function(found.state).coefficients, mean, atol=0.02 * np.abs(mean).max())
    np.testing.assert_allclose(np.linalg.norm(at_nodes @ found.spread, axis=1), std, rtol=0.05, atol=1e-9)


def test_observations_enter_by_woodburys_formula():
    """pde-observations: mean, covariance and log density of the linear-Gaussian system, densely."""
    problem = Problem(
        Interval(0, 1), D(u, 0, 2), 1.0, [Dirichlet((0, 0), 0.3)], observations=Observations([0.5], [0.2], 0.1)
    )
    grid = Grid((galerkin(problem, 0, spectral_basis(TONES, WIDTHS, NODES, 1e-3), NODES),))
    block = Block("u", grid, grid.lift(boundary_values(problem, [NODES])), (prior_factor(grid.axes[0]),))
    x, y, noise = (
        torch.tensor([[0.2], [0.5], [0.9]], dtype=torch.float64),
        np.array([0.3, 0.1, -0.4]),
        np.array([0.1, 0.2, 0.1]),
    )
    equation = measure([block], problem.equation, None, np.ones(30), np.full(30, 0.5))
    observed = measure([block], u + 2 * D(u, 0), x, y, noise)
    found = condition(System((block,), equation, (observed,)), {})
    parts = [each.linearised(np.zeros(block.size), {}) for each in (equation, observed)]
    target, matrix = np.concatenate([r for r, _ in parts]), np.concatenate([m for _, m in parts])

    def density(variance, rows):
        covariance = variance * matrix[rows] @ matrix[rows].T + np.eye(len(target[rows]))
        return -0.5 * (
            np.linalg.slogdet(2 * np.pi * covariance)[1] + target[rows] @ np.linalg.solve(covariance, target[rows])
        )

    every, first = slice(0, 33), slice(0, 30)
    variance = max(np.logspace(-6, 4, 2000), key=lambda v: density(v, every))
    scales = np.log(noise).sum()
    assert found.evidence == pytest.approx(density(variance, every) - scales - 30 * np.log(0.5), abs=1e-3)
    assert found.conditional == pytest.approx(density(variance, every) - density(variance, first) - scales, abs=0.02)
    covariance = np.linalg.inv(matrix.T @ matrix + np.eye(block.size) / variance)
    at = grid.axes[0].derivatives[0] @ block.factors[0]
    np.testing.assert_allclose(at @ found.state, at @ covariance @ matrix.T @ target, atol=1e-3)
    np.testing.assert_allclose(at @ found.spread @ found.spread.T @ at.T, at @ covariance @ at.T, rtol=0.02, atol=1e-6)


def test_layers_are_known_to_the_nyquist_frequency():
    """pde-limits: the band-limited interpolant of a layer's slope errs by ``exp(-pi rho / h)``, up to factors of a few."""
    rho, fine = np.pi * 0.02, np.linspace(-0.5, 0.5, 1000)
    for count in (50, 70, 140):
        x = np.linspace(-1, 1, count)
        step = x[1] - x[0]
        fit = np.sinc((fine[:, None] - x) / step) @ (1 / np.cosh(x / 0.04) ** 2)
        error = np.abs(fit - 1 / np.cosh(fine / 0.04) ** 2).max()
        assert 1 < error / np.exp(-np.pi * rho / step) < 40
    assert np.exp(-np.pi * rho * 69 / 2) == pytest.approx(1e-3, rel=0.2) and np.exp(
        -np.pi * rho * 139 / 2
    ) == pytest.approx(1e-6, rel=0.2)


def test_where_points_are_decides_what_they_know_of_a_layer():
    """pde-limits: 70 Chebyshev points, as they are and moved by ``rho sinh(a xi)``, on the slope of a layer."""
    rho, fine = np.pi * 0.02, np.linspace(-1, 1, 2001)
    stretch = np.arcsinh(1 / rho)
    nodes = np.cos(np.pi * np.arange(70) / 69)
    slope = lambda x: 1 / np.cosh(x / 0.04) ** 2  # noqa: E731
    plain = np.polynomial.chebyshev.chebfit(nodes, slope(nodes), 69)
    moved = np.polynomial.chebyshev.chebfit(nodes, slope(rho * np.sinh(stretch * nodes)), 69)
    errors = [
        np.abs(np.polynomial.chebyshev.chebval(at, c) - slope(fine)).max()
        for c, at in ((plain, fine), (moved, np.arcsinh(fine / rho) / stretch))
    ]
    assert 1 < errors[0] / (rho + np.sqrt(1 + rho**2)) ** -69 < 40 and errors[1] < 1e-6


def test_uniform_nodes_leave_the_second_derivative_open_at_the_ends():
    """pde-limits: a broadband solution, in functions of a band and 400 uniform nodes."""
    nodes, fine = np.linspace(0, 1, 400), np.linspace(0, 1, 2001)
    k = np.arange(1, 200)
    amplitudes = np.random.default_rng(0).standard_normal(199) / k**2
    exact = lambda x: np.sin(np.pi * np.multiply.outer(x, k)) @ amplitudes  # noqa: E731
    second = -np.sin(np.pi * np.multiply.outer(fine, k)) @ (amplitudes * (np.pi * k) ** 2)
    basis = spectral_basis(np.arange(0, 100.0), np.full(100, 0.35), nodes)
    functions = basis(fine)
    best = np.linalg.lstsq(functions, exact(fine), rcond=1e-14)[0]
    found = np.linalg.lstsq(basis.values, exact(nodes))[0]

    def relative(a, b):
        return np.linalg.norm(a - b) / np.linalg.norm(b)

    of_best, of_found = (relative(functions @ c, exact(fine)) for c in (best, found))
    error = np.abs(basis(fine, 2) @ found - second) / np.abs(second).max()
    assert of_best < 1e-11 and of_found > 10 * of_best
    assert error[(fine > 0.1) & (fine < 0.9)].max() < 1e-8 and error.max() > 1e-6


def test_multiplication_along_all_axes():
    """pde-solver: the notation ``x_d``."""
    random = np.random.default_rng(0)
    t, a, b, c = random.standard_normal((2, 3, 4)), *(random.standard_normal((5, n)) for n in (2, 3, 4))
    np.testing.assert_allclose(multiply([a, b, c], t), np.einsum("ijk,ai,bj,ck->abc", t, a, b, c))
