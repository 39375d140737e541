"""Equations with null functions or nearly so: refused, or known to fewer digits, which the estimate tells."""

import math
import warnings

import numpy as np
import pytest
import torch

import gpx
from gpx.pde import Box, D, Dirichlet, Interval, Neumann, Periodic, Problem, Robin, problems, solve, u
from gpx.pde.axes import galerkin
from gpx.pde.basis import spectral_basis
from gpx.pde.expressions import linearise
from gpx.pde.grids import Grid
from gpx.pde.linear import kronecker_sum
from gpx.pde.problems import laplacian, manufactured
from gpx.pde.resonance import require_conditions, softest

LINE, UNIT = Interval(0, 1), Box([(0, 1), (0, 1)])


def wave(x):
    return torch.sin(7 * x[:, 0]) + torch.exp(x[:, 0])


def permeability(x):
    return 1 + x[:, 0]


def sided(lower, upper, g=0.0):
    """a u + b du/dn at both ends of the first axis."""
    return [Robin((0, 0), *lower, g), Robin((0, 1), *upper, 0.0)]


SINGULAR = {
    "x + 1": (LINE, D(u, 0, 2), sided((1, 1), (1, -2))),
    "x + 1, wide": (Interval(0, 100), D(u, 0, 2), sided((1, 1), (1, -101))),
    "exp x": (LINE, D(u, 0, 2) - u, sided((1, 1), (1, -1))),
    "x + 1, square": (UNIT, laplacian(2), [*sided((1, 1), (1, -2)), Neumann((1, 0), 0.0), Neumann((1, 1), 0.0)]),
    "1 + log(1 + x)": (LINE, D(permeability * D(u, 0), 0), sided((1, 1), (1, -2 * (1 + math.log(2))))),
    "1": (LINE, D(u, 0) + 0 * u, [Periodic(0)]),
    "sin pi x": (LINE, D(u, 0, 2) + math.pi**2 * u, 0.0),
    "sin 12 pi x": (LINE, D(u, 0, 2) + (12 * math.pi) ** 2 * u, 0.0),
    "sin 2 pi x": (LINE, D(u, 0, 2) + (2 * math.pi) ** 2 * u, [Periodic(0)]),
    "sin pi x sin pi y": (UNIT, laplacian(2) + 2 * math.pi**2 * u, 0.0),
}


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("source", [0.0, wave])
def test_null_functions_are_refused_whether_the_source_excites_them_or_not(name, source):
    domain, equation, boundary = SINGULAR[name]
    kind = "Periodic" if "Periodic" in repr(boundary) else "Dirichlet" if boundary == 0.0 else "Robin"
    with pytest.raises(
        gpx.NumericalError, match=rf"u_0.* with the conditions {kind}\(.*singular.*Change a condition .* observations="
    ):
        solve(Problem(domain, equation, source, boundary), grid=30)


def test_observations_choose_among_solutions():
    domain, equation, boundary = SINGULAR["x + 1"]
    seen = gpx.pde.Observations([0.5], [3.0], 1e-3)
    solution = solve(Problem(domain, equation, 0.0, boundary, observations=seen), grid=20)
    torch.testing.assert_close(solution.u, 2 + 2 * solution.grid[0], rtol=0, atol=0.02)


NAMES = [
    n
    for n, p in vars(problems).items()
    if getattr(p, "__annotations__", {}).get("return") == "Problem" and n not in ("manufactured", "_poisson_1d")
]


@pytest.mark.parametrize("name", NAMES)
def test_the_problems_are_determined(name):
    require_conditions(getattr(problems, name)())


@pytest.mark.parametrize(("equation", "boundary"), [
    (laplacian(2), 0.0),
    (D(u, 0, 2) - D(u, 1, 2), [Dirichlet((0, 0), 0.0), Dirichlet((0, 1), 0.0), Dirichlet((1, 0), 0.0), Neumann((1, 0), 0.0)]),
    (1e-6 * laplacian(2) - D(u, 0), 0.0),
    (D(u, 0, 4) + 1e-3 * D(u, 1, 2), [Dirichlet((0, 0), 0.0), Neumann((0, 0), 0.0), Dirichlet((0, 1), 0.0), Neumann((0, 1), 0.0),
                               Dirichlet((1, 0), 0.0), Dirichlet((1, 1), 0.0)]),
    (D(u, 0) - D(u, 1), [Dirichlet((0, 1), 0.0), Dirichlet((1, 0), 0.0)]),
    (-D(u, 0) - D(u, 1), [Dirichlet((0, 0), 0.0), Dirichlet((1, 0), 0.0)]),
    (D(u, 0) + D(u, 1), [Dirichlet((0, 1), 0.0), Dirichlet((1, 1), 0.0)]),
    ((lambda x: x[:, 0] - 0.5) * D(u, 0) + D(u, 1) + u, [Dirichlet((0, 1), 0.0), Dirichlet((1, 0), 0.0)]),
])  # fmt: skip
def test_equations_without_null_functions_are_taken(equation, boundary):
    """Hyperbolic, stiff, of fourth order; backwards, and with a flow of both signs."""
    for scale in (1e-9, 1.0, 1e9):
        require_conditions(Problem(UNIT, scale * equation, 0.0, boundary))


@pytest.mark.parametrize("speed", [1.0, 200.0])
def test_conditions_where_it_flows_out_are_refused(speed):
    boundary = [Dirichlet((0, 1), 0.0), Dirichlet((1, 0), 0.0)]
    message = (
        r"conditions on \[\(1, 0\)\], where u flows in, and on \[\(0, 1\)\].* move one or the other to the opposite"
    )
    with pytest.raises(gpx.NumericalError, match=message):
        solve(Problem(UNIT, speed * D(u, 0) + D(u, 1), wave, boundary), grid=20)


def test_ill_posed_problems_are_told_that_more_points_may_not_help():
    """Heat from its last state, which no function is null under, but many nearly are."""
    boundary = [
        Dirichlet((0, 0), 0.0),
        Dirichlet((0, 1), 0.0),
        Dirichlet((1, 1), lambda x: torch.sin(math.pi * x[:, 0])),
    ]
    with pytest.warns(
        gpx.FitWarning, match="more points .* If that does not help, the conditions hardly determine the solution"
    ):
        solve(Problem(UNIT, D(u, 1) - D(u, 0, 2), 0.0, boundary), grid=20)


@pytest.mark.parametrize("k", [math.pi, 3 * math.pi])
@pytest.mark.parametrize("away", [1e-3, 1e-5, 1e-7, 1e-9])
def test_estimates_count_what_resonances_amplify(k, away):
    solution = solve(manufactured("", LINE, D(u, 0, 2) + (k * (1 + away)) ** 2 * u, wave, grid=60))
    error = solution.relative_error()
    assert error > 1e-14 / away and 0.1 < solution.error_estimate / error < 10


def test_estimates_near_resonances_count_what_is_not_resolved():
    steep = manufactured(
        "", LINE, D(u, 0, 2) + (12 * math.pi * 1.0001) ** 2 * u, lambda x: torch.atan(20 * (x[:, 0] - 0.4)), grid=60
    )
    with pytest.warns(gpx.FitWarning, match="estimated relative error"):
        solution = solve(steep)
    assert 0.1 < solution.error_estimate / solution.relative_error() < 10


def test_estimates_near_resonances_in_two_axes():
    field = lambda x: torch.sin(3 * x[:, 0] + x[:, 1])  # noqa: E731
    solution = solve(manufactured("", UNIT, laplacian(2) + 2 * math.pi**2 * (1 + 1e-6) * u, field, grid=30))
    assert 0.1 < solution.error_estimate / solution.relative_error() < 10


def layer(viscosity, place):
    """Burgers' equation; what the boundary values lack of 1 tells the place, which the equation is soft to."""
    exact = lambda x: -torch.tanh((x[:, 0] - place) / (2 * viscosity))  # noqa: E731
    return Problem(Interval(-1, 1), u * D(u, 0) - viscosity * D(u, 0, 2), 0.0, exact, exact)


@pytest.mark.parametrize(("viscosity", "place"), [
    (0.1, 0.1), (0.07, 0.1), (0.06, 0.0), (0.05, 0.0), (0.05, 0.2), pytest.param(0.06, 0.1, marks=[pytest.mark.slow, pytest.mark.ci]),
])  # fmt: skip
def test_inner_layers_are_moved_to_their_place(viscosity, place):
    solution = solve(layer(viscosity, place))
    error = solution.relative_error()
    assert error < 1e-5 and 0.1 < solution.error_estimate / error < 10


@pytest.mark.parametrize(("viscosity", "place"), [(0.04, 0.2), (0.03, 0.0), (0.03, 0.1), (0.02, 0.1)])
def test_inner_layers_that_nothing_keeps_in_place_are_warned_of(viscosity, place):
    with pytest.warns(gpx.FitWarning, match="the conditions hardly determine the solution"):
        solution = solve(layer(viscosity, place))
    assert solution.error_estimate > solution.relative_error()


def test_estimates_with_a_given_kernel_count_resonances():
    near = manufactured("", LINE, D(u, 0, 2) + (math.pi * (1 + 1e-4)) ** 2 * u, wave, grid=60)
    solution = solve(near, kernel=gpx.kernels.RBF(lengthscale=0.5))
    assert 0.1 < solution.error_estimate / solution.relative_error() < 10


def test_null_functions_at_the_frequencies_of_the_source_are_refused():
    """They oscillate more than what every problem is tried with."""
    fast = Problem(LINE, D(u, 0, 2) + (60 * math.pi) ** 2 * u, lambda x: torch.sin(60 * math.pi * x[:, 0]), 0.0)
    require_conditions(fast)
    with pytest.raises(gpx.NumericalError, match="singular"):
        solve(fast, grid=400)


def test_what_answers_most_is_the_softest_direction():
    """Against singular values of the dense operator, where one stands out."""
    problem = Problem(LINE, D(u, 0, 2) + (math.pi * 1.001) ** 2 * u, 0.0, 0.0)
    nodes = np.linspace(0, 1, 40)
    grid = Grid((galerkin(problem, 0, spectral_basis(np.zeros(1), np.ones(1), nodes), nodes),))
    zero = {index: torch.zeros(40, dtype=torch.float64) for index in problem.jet}
    slopes = linearise(problem.equation, zero, grid.x)[1]
    axis = grid.axes[0]
    dense = axis.test @ (axis.derivatives[2] + (math.pi * 1.001) ** 2 * axis.derivatives[0]) @ axis.null
    push, answer = softest(grid, slopes)
    assert np.linalg.norm(push) == pytest.approx(1.0)
    assert 1 / np.linalg.norm(answer) == pytest.approx(np.linalg.svd(dense, compute_uv=False)[-1], rel=1e-3)


@pytest.mark.parametrize("grid", [4, 5, 6])
def test_grids_whose_conditions_leave_no_function_free_are_taken(grid):
    clamped = [*(Dirichlet((0, end), 0.0) for end in (0, 1)), *(Neumann((0, end), 0.0) for end in (0, 1))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gpx.FitWarning)
        assert 0.0 < solve(Problem(LINE, D(u, 0, 4), wave, clamped), grid=grid).error_estimate <= 1.0


@pytest.mark.parametrize("matrices", [[np.diag([1.0, 0.0])], [np.diag([1.0, 2.0]), np.diag([-1.0, 3.0])]])
def test_singular_sums_answer_without_bound_and_without_a_warning(matrices):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not (np.abs(kronecker_sum(matrices)(np.ones([2] * len(matrices)))) < 1e12).all()
