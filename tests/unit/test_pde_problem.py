"""Problems and their conditions: what is well posed, and what is refused."""

import re

import numpy as np
import pytest
import torch

import gpx
from gpx.pde import Box, D, Dirichlet, Interval, Neumann, Periodic, Points, Problem, Robin, Unknown, problems, u
from gpx.pde.boundary import complain_of_slopes

UNIT = Box([(0, 1), (0, 1)])
LAPLACE = D(u, 0, 2) + D(u, 1, 2)


def test_boxes_multiply():
    assert Interval(0, 1) * Box([(2, 3)]) == Box([(0, 1), (2, 3)])


@pytest.mark.parametrize("bounds", [[], [(1, 0)], [(0, 1)] * 4, [(0, float("inf"))], [0, 1], 3])
def test_boxes_need_intervals(bounds):
    with pytest.raises(gpx.InputError, match=r"Box needs .* got"):
        Box(bounds)


@pytest.mark.parametrize(("equation", "boundary", "kind", "advice"), [
    (D(u, 0) + D(u, 1), 0.0, "over", "remove 1"),
    (D(u, 1) - D(u, 0, 2), [Dirichlet((0, 0), 0.0), Dirichlet((0, 1), 0.0)], "under", "add 1"),
    (D(u, 0, 4) + D(u, 1, 2), 0.0, "under", "add 2"),
    (LAPLACE, [Periodic(0), Dirichlet((0, 0), 0.0), Dirichlet((1, 0), 0.0), Dirichlet((1, 1), 0.0)], "over", "remove 1"),
])  # fmt: skip
def test_conditions_are_counted(equation, boundary, kind, advice):
    with pytest.raises(gpx.InputError, match=f"{kind}-determined along axis .*{advice}"):
        Problem(UNIT, equation, 0.0, boundary)


@pytest.mark.parametrize(("boundary", "message"), [
    ([Neumann((d, end), 0.0) for d in (0, 1) for end in (0, 1)], "under-determined: .* u \\+ 1 solves it"),
    ([Periodic(0), Neumann((1, 0), 0.0), Neumann((1, 1), 0.0)], "give Dirichlet or Robin on a face, or observations="),
    ([Periodic(0), Dirichlet((1, 0), 0.0), Dirichlet((1, 0), 1.0)], r"over-determined: 2 conditions on face \(1, 0\)"),
])  # fmt: skip
def test_the_level_of_u_is_given_once(boundary, message):
    with pytest.raises(gpx.InputError, match=message):
        Problem(UNIT, LAPLACE, 0.0, boundary)
    if "under" in message:
        Problem(UNIT, LAPLACE - u, 0.0, boundary)


def test_boundary_values_must_agree_at_corners():
    values = [
        Dirichlet((0, 0), 0.0),
        Dirichlet((0, 1), lambda x: x[:, 1]),
        Dirichlet((1, 0), 0.0),
        Dirichlet((1, 1), 0.25),
    ]
    with pytest.raises(gpx.InputError, match=r"faces \(0, 0\) and \(1, 1\) disagree.*x = \[0\.0, 1\.0\] by 0\.25"):
        Problem(UNIT, LAPLACE, 0.0, values)


def test_values_may_be_given_by_robins_condition():
    Problem(UNIT, LAPLACE, 0.0, [Robin((0, 0), 2.0, 0.0, 4.0), *(Dirichlet(f, 2.0) for f in ((0, 1), (1, 0), (1, 1)))])
    with pytest.raises(gpx.InputError, match=r"x = \[0\.0, 0\.0\] by 1 "):
        Problem(
            UNIT, LAPLACE, 0.0, [Robin((0, 0), 2.0, 0.0, 2.0), *(Dirichlet(f, 2.0) for f in ((0, 1), (1, 0), (1, 1)))]
        )


def waves(x):
    return torch.sin(30 * x[:, 0]) * torch.exp(x[:, 1]) + 5


def outward(function, axis, end, a=0.0, b=1.0):
    return Robin(
        (axis, end), a, b, lambda x: a * function(x) + b * (2 * end - 1) * problems._along(function, x, (axis,))
    )


def mixed(function):
    return [
        Dirichlet((0, 0), function),
        outward(function, 0, 1),
        outward(function, 1, 0, 2.0, 3.0),
        Dirichlet((1, 1), function),
    ]


@pytest.mark.parametrize(
    "function", [waves, lambda x: 3.0 + torch.sin(x[:, 0]) ** 2 + torch.cos(x[:, 0]) ** 2 + 1e-3 * x[:, 1]]
)
def test_slopes_of_one_function_agree(function):
    assert complain_of_slopes(UNIT, tuple(mixed(function))) == ""
    cube = Box([(0, 1), (0, 2), (-1, 1)])
    conditions = (outward(waves, 2, 1), Dirichlet((0, 0), waves), Dirichlet((1, 1), waves))
    assert complain_of_slopes(cube, conditions) == ""


@pytest.mark.parametrize(("values", "slopes", "where"), [
    (Dirichlet((1, 0), 1.0), Neumann((0, 1), 0.25), r"x = \[1\.0, 0\.0\] 0\.25 and 0, 0\.25 apart"),
    (Dirichlet((1, 0), waves), Neumann((0, 0), 0.0), r"x = \[0\.0, 0\.0\] 0 and -30, 30 apart"),
    (Robin((1, 1), 2.0, 0.0, lambda x: x[:, 0]), Robin((0, 1), 1.0, 4.0, 2.0), r"x = \[1\.0, 1\.0\] 2 and 2\.5, 0\.5 apart"),
    (Dirichlet((0, 0), lambda x: x[:, 1] ** 2), Neumann((1, 0), 1.0), r"x = \[0\.0, 0\.0\] 1 and -?0, 1 apart"),
])  # fmt: skip
def test_slopes_that_values_contradict_are_told(values, slopes, where):
    said = complain_of_slopes(UNIT, (slopes, values))
    assert re.search(
        f"face .* asks for are not those of the values on face .* {where}.* make them agree, unless it is meant", said
    )


def test_values_that_cannot_be_differentiated_are_taken():
    hidden = Dirichlet((1, 0), lambda x: torch.from_numpy(np.sin(x.numpy()[:, 0])))
    assert complain_of_slopes(UNIT, (hidden, Neumann((0, 0), 7.0))) == ""


@pytest.mark.parametrize(("arguments", "message"), [
    ((UNIT, u**2, 0.0, 0.0), "no derivative of u"),
    ((Interval(0, 1), LAPLACE, 0.0, 0.0), r"has D\(u, 1\), the domain has axes 0\.\.0"),
    (((0, 1), LAPLACE, 0.0, 0.0), "needs a Box"),
    ((UNIT, LAPLACE, "f", 0.0), "source of a Problem is a number or a callable"),
    ((UNIT, LAPLACE, 0.0, [0.0]), "list of Dirichlet"),
    ((UNIT, LAPLACE, 0.0, [Dirichlet((2, 0), 0.0)]), r"axis in 0\.\.1; got \(2, 0\)"),
])  # fmt: skip
def test_what_is_no_problem_is_named(arguments, message):
    with pytest.raises(gpx.InputError, match=message):
        Problem(*arguments)


@pytest.mark.parametrize("grid", [3, (10,), (10, 2), 7.5, (10, 10, 10)])
def test_grids_are_checked(grid):
    with pytest.raises(gpx.InputError, match="number of points >= 4"):
        Problem(UNIT, LAPLACE, 0.0, 0.0).counts(grid)


NAMES = [name for name, value in vars(problems).items()
         if getattr(value, "__module__", "") == problems.__name__ and name not in ("manufactured", "laplacian", "cole_hopf") and name[0] != "_"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_solution_solves_the_problem(name):
    """By automatic differentiation at random points of the interior, and on the faces."""
    problem = getattr(problems, name)()
    low, high = torch.tensor(problem.domain.bounds, dtype=torch.float64).T
    x = low + (
        0.05 + 0.9 * torch.rand(20, len(low), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ) * (high - low)
    jet = {index: problems._along(problem.exact, x, index) for index in problem.jet}
    value = problem.equation.value(jet, x)
    source = problem.source(x) if callable(problem.source) else torch.full((20,), problem.source, dtype=torch.float64)
    torch.testing.assert_close(value, source, rtol=1e-7, atol=1e-7 * float(max(v.abs().max() for v in jet.values())))
    for condition in problem.conditions:
        x[:, condition.face[0]] = problem.domain.end(condition.face)
        given = condition.g(x) if callable(condition.g) else torch.full((20,), float(condition.g), dtype=torch.float64)
        torch.testing.assert_close(problem.exact(x), given, atol=1e-9, rtol=0)


def test_the_contract_names_these_problems():
    expected = {
        *(f"poisson_1d_p{i}" for i in range(1, 6)),
        "poisson_2d_sines",
        "poisson_2d_sum",
        "allen_cahn_1d_p1",
        "allen_cahn_1d_p2",
    }
    assert expected | {
        "allen_cahn_2d",
        "advection",
        "elliptic_2d",
        "burgers",
        "eikonal",
        "darcy",
        "helmholtz",
        "heat",
        "poisson_3d",
    } == set(NAMES)


@pytest.mark.parametrize("boundary", [Dirichlet((0, 0), 0.0), None, [0.0, 0.0], "zero"])
def test_conditions_are_a_list(boundary):
    if isinstance(boundary, Dirichlet):
        assert Problem(Interval(0, 1), D(u, 0, 1), 1.0, boundary).conditions == (boundary,)
        return
    with pytest.raises(gpx.InputError, match="boundary is a number, a callable .* or a list of Dirichlet"):
        Problem(Interval(0, 1), D(u, 0, 1), 1.0, boundary)


def test_numbers_are_finite():
    with pytest.raises(gpx.InputError, match="must be finite, got nan"):
        gpx.pde.solve(Problem(Interval(0, 1), D(u, 0, 2), float("nan"), 0.0), 10)


SLOPE = lambda x: x[:, 0]  # noqa: E731


@pytest.mark.parametrize(("condition", "message"), [
    (lambda: Robin((0, 0), 0, 0, 1.0), "asks nothing of u: make a or b nonzero"),
    (lambda: Robin((0, 0), SLOPE, 1.0, 0.0), "finite numbers a and b: where they vary .* divide the condition by b"),
    (lambda: Robin((0, 0), 1.0, float("inf"), 0.0), "finite numbers a and b"),
    (lambda: Dirichlet((0, 0), None), r"g of Dirichlet\(face=\(0, 0\).* number or a callable of x \[n, d\], got NoneType"),
    (lambda: Neumann((0, 0), "one"), "number or a callable .* got str: 'one'"),
    (lambda: Dirichlet((0, 0), float("nan")), "must be finite, got nan; correct it"),
    (lambda: D(u, 0, 2) + float("inf") * u, "number of an equation must be finite, got inf"),
    (lambda: Unknown("k", float("nan")), "needs a finite number to start from, got nan"),
])  # fmt: skip
def test_what_is_no_condition_is_named(condition, message):
    with pytest.raises(gpx.InputError, match=message):
        condition()


@pytest.mark.parametrize(("order", "boundary", "message"), [
    (3, [Dirichlet((0, 0), 0.0), Neumann((0, 0), 0.0), Robin((0, 0), 1.0, 2.0, 0.0)],
     r"3 conditions on face \(0, 0\) give 2 independent .* move 1 to another face"),
    (2, [Robin((0, 1), 0.1, 0.3, 0.0), Robin((0, 1), 0.2, 0.6, 1.0)], "2 conditions on face .* give 1 independent"),
    (2, [Periodic(0), Periodic(0)], r"over-determined along axis 0: Periodic\(0\) makes one of both faces; remove 1"),
    (2, [Periodic(0), Robin((0, 0), 1.0, 1.0, 0.0), Dirichlet((0, 1), 0.0)], r"makes one of both faces; remove 2"),
])  # fmt: skip
def test_conditions_are_independent(order, boundary, message):
    with pytest.raises(gpx.InputError, match=message):
        Problem(Interval(0, 1), D(u, 0, order), 0.0, boundary)


@pytest.mark.parametrize("seed", range(5))
def test_conditions_of_a_face_are_dependent_if_and_only_if_parallel(seed):
    """Whatever their units."""
    random = np.random.default_rng(seed)
    (a, b), turn, scale = random.normal(size=2), random.uniform(0.1, 3.0), 10.0 ** random.uniform(-6, 6)
    one = Robin((0, 0), a, b, 0.0)
    other = Robin(
        (0, 0), scale * (a * np.cos(turn) - b * np.sin(turn)), scale * (a * np.sin(turn) + b * np.cos(turn)), 0.0
    )
    Problem(Interval(0, 1), D(u, 0, 2) - u, 0.0, [one, other])
    with pytest.raises(gpx.InputError, match="independent"):
        Problem(Interval(0, 1), D(u, 0, 2) - u, 0.0, [one, Robin((0, 0), scale * a, scale * b, 0.0)])


@pytest.mark.parametrize("noise", [-1.0, float("inf"), float("nan"), "a", None])
def test_noise_is_a_deviation(noise):
    with pytest.raises(gpx.InputError, match="finite standard deviation >= 0, 0 for an exact source"):
        Problem(UNIT, LAPLACE, 0.0, 0.0, noise=noise)


@pytest.mark.parametrize("bad", [float("nan"), 1j])
def test_values_of_a_source_are_finite_and_real(bad):
    values = torch.zeros(20, dtype=torch.float64) + torch.where(torch.arange(20) == 7, bad, 0.0)
    with pytest.raises(
        gpx.InputError, match=r"finite real ones, got .* observations=Observations\(X, y, noise, of=equation\)"
    ):
        Problem(Interval(0, 1), D(u, 0, 2), values, 0.0, noise=0.1)


@pytest.mark.parametrize("equation", [
    lambda f: Problem(Interval(0, 1), D(u, 0, 2), f, 0.0),
    lambda f: Problem(Interval(0, 1), D(u, 0, 2) + f * u, 1.0, 0.0),
    lambda f: Problem(Interval(0, 1), D(f * D(u, 0), 0), 1.0, 0.0),
    lambda f: Problem(Interval(0, 1), D(u, 0, 2), 1.0, f),
])  # fmt: skip
def test_complex_values_are_refused(equation):
    with pytest.raises(gpx.InputError, match="complex values .* real and the imaginary part one after the other"):
        gpx.pde.solve(equation(lambda x: torch.exp(1j * x[:, 0])), 20)


@pytest.mark.parametrize("grid", [np.int64(30), [np.int32(30)], np.array([30])])
def test_grids_of_numpys_integers_are_taken(grid):
    assert Problem(Interval(0, 1), D(u, 0, 2), 0.0, 0.0).counts(grid) == (30,)


def test_solve_needs_a_problem_and_a_method():
    with pytest.raises(gpx.InputError, match=r"needs a Problem\(domain, equation, source, boundary\), got int"):
        gpx.pde.solve(3)  # pyright: ignore[reportArgumentType]
    ends = Points(torch.tensor([[0.3], [0.6]]), torch.tensor([[0.0], [1.0]]))
    for domain in (Interval(0, 1), ends):
        with pytest.raises(gpx.InputError, match='method is "direct" or "map-adam", got \'xx\''):
            gpx.pde.solve(Problem(domain, D(u, 0, 2), 0.0, 0.0), method="xx")


def test_exact_solutions_may_be_columns_and_derivatives_have_an_axis():
    problem = Problem(Interval(0, 1), D(u, 0, 2), -2.0, 0.0, exact=lambda x: x * (1 - x))
    solution = gpx.pde.solve(problem, 20)
    assert solution.relative_error() < 1e-9
    with pytest.raises(gpx.InputError, match=r"has D\(u, 1\), the solution has axes 0..0"):
        solution([0.5], D(u, 1))
