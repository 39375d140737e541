"""Solutions at scattered points that are rough at corners of the domain: against series, finite differences, and limits."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.sparse import diags, kron
from scipy.sparse.linalg import spsolve

from gpx.errors import FitWarning, NumericalError
from gpx.kernels import RBF
from gpx.pde import Points, Problem, solve, u
from gpx.pde.gauss_newton import LONGEST, NOMINAL, Measured, merit
from gpx.pde.measurements import NUGGET, condition, values_at
from gpx.pde.problems import laplacian

SQUARE = [(-1.0, 1.0), (-1.0, 1.0)]


def turned(x):
    """Angles in [0, 2 pi)."""
    return torch.atan2(x[:, 1], x[:, 0]).remainder(2 * math.pi)


def L(x):
    return (x < 0).any(1)


def sector(angle):
    return lambda x: (x.norm(dim=1) < 1) & (turned(x) < angle)


def membrane_over_sector(angle):
    """Of ``-laplace u = 1``, zero on the boundary of the sector of the unit disc: the sum of its sines in the angle."""

    def value(x):
        r, total = x.norm(dim=1), torch.zeros(len(x), dtype=torch.float64)
        for n in range(1, 200, 2):
            rate = n * math.pi / angle
            resonant = abs(rate - 2) < 1e-9
            radial = -(r**2) * r.clamp_min(1e-300).log() / 4 if resonant else (r**rate - r**2) / (4 - rate**2)
            total += 4 / (n * math.pi) * radial * torch.sin(rate * turned(x))
        return total

    return value


def membrane_over_L():
    """By finite differences, of step 1/64: to a few thousandths."""
    n = 128
    axis = torch.linspace(-1, 1, n + 1, dtype=torch.float64)
    free = L(torch.cartesian_prod(axis[1:-1], axis[1:-1]) + 1e-9).numpy()
    second = diags([1.0, -2.0, 1.0], [-1, 0, 1], shape=(n - 1, n - 1)) * (n / 2) ** 2  # pyright: ignore
    one = diags([1.0], [0], shape=(n - 1, n - 1))  # pyright: ignore
    matrix = -(kron(second, one) + kron(one, second)).tocsc()[free][:, free]
    values = np.zeros((n + 1, n + 1))
    inner = np.zeros((n - 1) ** 2)
    inner[free] = spsolve(matrix, np.ones(int(free.sum())))
    values[1:-1, 1:-1] = inner.reshape(n - 1, n - 1)
    found = RegularGridInterpolator((axis.numpy(), axis.numpy()), values)
    return lambda x: torch.from_numpy(found(x.numpy()))


def harmonic(x):
    """``r^(2/3) sin(2 t / 3)``, t the angle from one edge of the notch of the L."""
    t = (turned(x) - math.pi / 2).remainder(2 * math.pi).clamp_max(1.5 * math.pi)
    return x.norm(dim=1) ** (2 / 3) * torch.sin(2 * t / 3)


def quietly(problem, **settings):
    """Where corners leave errors that are worth a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return solve(problem, **settings)


def membrane(inside, count, exact=None):
    return Problem(Points.within(SQUARE, inside, count), laplacian(2), -1.0, 0.0, exact=exact)


def test_references_solve_their_equations():
    exact = membrane_over_sector(1.5 * math.pi)
    x, step = torch.tensor([[-0.3, 0.4], [0.2, 0.5], [-0.2, -0.6]], dtype=torch.float64), 1e-3
    for function, source in ((exact, -1.0), (harmonic, 0.0)):
        around = [x + sign * step * torch.eye(2, dtype=torch.float64)[d] for d in (0, 1) for sign in (1, -1)]
        curve = (sum(function(y) for y in around) - 4 * function(x)) / step**2
        torch.testing.assert_close(curve, torch.full_like(curve, source), atol=0.02, rtol=0)
    assert 3 * float(membrane_over_L()(membrane(L, 100).domain.between(80)).mean()) == pytest.approx(0.2141, rel=0.02)


@pytest.mark.parametrize(
    ("problem", "bound"),
    [
        (lambda: membrane(L, 200, membrane_over_L()), 0.12),
        (lambda: membrane(L, 800, membrane_over_L()), 0.04),
        (lambda: membrane(sector(math.pi), 400, membrane_over_sector(math.pi)), 2e-3),
        (lambda: membrane(sector(1.5 * math.pi), 500, membrane_over_sector(1.5 * math.pi)), 0.12),
        (lambda: Problem(Points.within(SQUARE, L, 600), u**3 - laplacian(2), lambda x: harmonic(x) ** 3, harmonic, exact=harmonic), 0.03),
    ],
    ids=["L of 200", "L of 800", "half disc", "three quarters of a disc", "nonlinear"],
)  # fmt: skip
def test_errors_at_corners_are_small_and_estimated_within_a_factor_of_ten(problem, bound):
    solution = quietly(problem())
    error = solution.relative_error()
    assert error < bound and 0.1 < solution.error_estimate / error < 10
    assert max(solution.choice.lengthscales) <= LONGEST and solution.posterior.nominal < NOMINAL


@pytest.mark.slow
@pytest.mark.ci
def test_more_points_than_the_kernel_is_chosen_with_tell_more_of_a_corner():
    exact = membrane_over_L()
    errors = [quietly(membrane(L, count, exact)).relative_error() for count in (200, 1500)]
    assert errors[1] < errors[0] / 3


def test_kernels_with_the_nugget_for_errors_of_the_data_are_not_taken():
    problem = membrane(L, 200)
    measured = Measured.of(problem, problem.domain)
    blocks, values = measured.linearised(measured.zero())
    long, short = (condition([RBF(lengthscale=v)] * 2, blocks, values) for v in (4.0, 0.2))
    for posterior in (long, short):
        left = torch.cat(values) - torch.cat([posterior.mean(block) for block in blocks])
        form = float(posterior.data @ (posterior.weights * posterior.scale))
        share = float((left / posterior.scale).square().sum()) / (NUGGET + posterior.factor.jitter) / form
        assert posterior.nominal == pytest.approx(share, rel=0.05, abs=1e-3)
    assert long.nominal > 0.5 > NOMINAL > short.nominal
    assert long.evidence > short.evidence and merit(measured, long) < merit(measured, short)


def test_data_with_errors_choose_by_evidence():
    problem = Problem(Points.within(SQUARE, L, 60), laplacian(2), -1.0, 0.0, noise=0.1)
    measured = Measured.of(problem, problem.domain)
    posterior = condition([RBF(lengthscale=1.0)] * 2, *measured.linearised(measured.zero()))
    assert merit(measured, posterior) == posterior.evidence


def test_variances_cover_the_block_that_is_predicted_worst():
    problem = membrane(sector(math.pi), 200)
    measured = Measured.of(problem, problem.domain)
    blocks, values = measured.linearised(measured.zero())
    posterior = condition([RBF(lengthscale=0.3)] * 2, blocks, values)
    inverse = posterior.factor.inverse().diagonal()
    squares = (posterior.weights * posterior.scale).square() / inverse
    means = [float(part.mean()) for part in squares.split([len(block.x) for block in blocks])]
    assert posterior.variance == pytest.approx(max(means), rel=1e-12) and means[0] > means[1]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constants_are_found(value):
    """The boundary alone makes them: no lengthscale is too long for them, and none without bound is taken."""
    solution = solve(Problem(Points.within(SQUARE, L, 150), laplacian(2), 0.0, value))
    torch.testing.assert_close(solution.u, torch.full_like(solution.u, value), atol=1e-7, rtol=0)
    assert max(solution.choice.lengthscales) <= LONGEST


def test_values_that_contradict_each_other_are_refused_with_advice():
    t = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    twice = torch.cat([t[[0]], t[[0]] + 1e-12, t[[-1]]])
    problem = Problem(Points(t[1:-1], twice), laplacian(1), 0.0, lambda x: (x[:, 0] == 0).double())
    with pytest.raises(NumericalError, match=r"too near each other, or values contradict each other; .* \(noise=\)"):
        solve(problem)


def test_warnings_name_corners_and_the_kernel():
    with pytest.warns(
        FitWarning, match=r"more points than 200, at corners of the domain above all.* or kernel= with a"
    ):
        solution = solve(membrane(L, 200))
    assert float(solution.posterior.mean(values_at(solution.points)).max()) > 0.1
