"""Differential equations at scattered points: against dense algebra, known solutions, limits and the solver for grids."""

import math
import warnings

import numpy as np
import pytest
import torch

from gpx.errors import FitWarning, InputError, NumericalError, StructureError
from gpx.kernels import RBF, Matern
from gpx.pde import D, Interval, Points, Problem, exp, load, solve, u
from gpx.pde.gauss_newton import Measured
from gpx.pde.measurements import NUGGET, Block, condition, covariance, gram, values_at, variances
from gpx.pde.problems import elliptic_2d, laplacian, manufactured
from gpx.pde.sparse import condition_sparsely

SQUARE = [(-1.0, 1.0), (-1.0, 1.0)]
SHAPES = {
    "disc": lambda x: x.norm(dim=1) < 1,
    "L": lambda x: (x < 0).any(1),
    "annulus": lambda x: (x.norm(dim=1) < 1) & (x.norm(dim=1) > 0.4),
}


def smooth(x):
    return torch.sin(3 * x[:, 0] + 1) * torch.cos(4 * x[:, 1]) + x[:, 0]


def on(points, equation, exact=smooth):
    """The problem on these points whose solution is `exact`."""
    return manufactured("", points, equation, exact)


def quietly(problem, **settings):
    """Where the points are few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return solve(problem, **settings)


@pytest.mark.parametrize(("shape", "boundary"), [("disc", [1.0]), ("annulus", [0.4, 1.0])])
def test_points_lie_in_the_domain_and_on_its_boundary(shape, boundary):
    points = Points.within(SQUARE, SHAPES[shape], 400)
    assert len(points.all) == 400 and bool(SHAPES[shape](points.interior).all())
    away = (points.boundary.norm(dim=1)[:, None] - torch.tensor(boundary)).abs()
    assert float(away.amin(1).max()) < 1e-7 and len(torch.unique(away.argmin(1))) == len(boundary)
    gaps = torch.cdist(points.all, points.all).fill_diagonal_(9.0).amin(1)
    assert float(gaps.max() / gaps.min()) < 3


def test_covariances_of_derivatives_are_differences_of_the_kernel():
    kernels = [RBF(lengthscale=0.7), Matern(nu=3.5, lengthscale=0.9)]
    x, y = torch.tensor([[0.1, 0.4]]), torch.tensor([[0.5, -0.2]])
    step = 1e-3

    def second(function, x, axis):
        shift = torch.zeros(1, 2, dtype=torch.float64)
        shift[0, axis] = step
        return (function(x + shift) - 2 * function(x) + function(x - shift)) / step**2

    x, y = x.double(), y.double()
    plain = lambda a, b: covariance(kernels, values_at(a), values_at(b))  # noqa: E731
    assert float(covariance(kernels, values_at(x, (0, 0)), values_at(y))) == pytest.approx(
        float(second(lambda a: plain(a, y), x, 0)), rel=1e-5
    )
    expected = (plain(x, y + step * torch.eye(2)[1:]) - plain(x, y - step * torch.eye(2)[1:])) / (2 * step)
    assert float(covariance(kernels, values_at(x), values_at(y, (1,)))) == pytest.approx(float(expected), rel=1e-5)
    block = Block(x, {(): torch.tensor([2.0]).double(), (0, 1): torch.tensor([-1.0]).double()})
    assert float(variances(kernels, block)) == pytest.approx(float(covariance(kernels, block, block)), rel=1e-12)


def test_a_linear_problem_is_conditioned_as_dense_algebra_does():
    """The textbook formulas, with the kernel's derivatives by automatic differentiation of a Gaussian kernel."""
    points = Points.within(SQUARE, SHAPES["L"], 40)
    kernel = RBF(lengthscale=0.6)
    problem = on(points, laplacian(2) + 2 * D(u, 0) - u)
    solution = quietly(problem, kernel=kernel)

    def plain(x, y):
        return torch.exp(-((x - y) ** 2).sum() / (2 * 0.36))

    def applied(function, which):  # the operator in one argument
        def value(x, y):
            grad = lambda a, b: torch.func.grad(function, which)(a, b)  # noqa: E731
            hessian = torch.func.jacfwd(grad, which)(x, y)
            return hessian[0, 0] + hessian[1, 1] + 2 * grad(x, y)[0] - function(x, y)

        return value

    pair = lambda function, a, b: torch.func.vmap(  # noqa: E731
        lambda x: torch.func.vmap(lambda y: function(x, y))(b)
    )(a)
    xb, xi, right = points.boundary, points.interior, applied(plain, 1)
    matrix = torch.cat(
        [torch.cat([pair(plain, xb, xb), pair(right, xb, xi)], 1),
         torch.cat([pair(right, xb, xi).T, pair(applied(right, 0), xi, xi)], 1)]
    )  # fmt: skip
    matrix.diagonal().mul_(1 + NUGGET)
    data = torch.cat([problem.boundary(xb), problem.source(xi)])
    x = torch.tensor([[-0.5, -0.5], [0.5, -0.3], [-0.2, 0.7]], dtype=torch.float64)
    cross = torch.cat([pair(plain, x, xb), pair(right, x, xi)], 1)
    inverse = torch.linalg.inv(matrix)
    torch.testing.assert_close(solution(x), cross @ torch.linalg.solve(matrix, data), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gram([kernel] * 2, solution.posterior.blocks), matrix, rtol=1e-9, atol=1e-9)
    squares = (inverse @ data) ** 2 / inverse.diagonal()
    variance = max(squares[: len(xb)].mean(), squares[len(xb) :].mean())
    std = (variance * (1 - (cross @ inverse * cross).sum(1))).sqrt()
    torch.testing.assert_close(solution.posterior.std(values_at(x)), std, rtol=1e-4, atol=1e-7)
    logdet = torch.linalg.slogdet(matrix)[1]
    evidence = -20 * (1 + math.log(2 * math.pi * float(data @ inverse @ data) / 40)) - 0.5 * float(logdet)
    assert solution.posterior.evidence == pytest.approx(evidence, rel=1e-6)


def line(count, seed=0):
    """Points of (0, 1) at random distances."""
    x = torch.linspace(0, 1, count, dtype=torch.float64)[1:-1]
    shift = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5
    return Points((x + 0.5 / count * shift)[:, None], torch.tensor([[0.0], [1.0]], dtype=torch.float64))


@pytest.mark.parametrize("count", [15, 30])
@pytest.mark.parametrize("rate", [3.0, 7.0])
@pytest.mark.parametrize("equation", [D(u, 0, 2), D(u, 0, 2) + D(u, 0) - u**3], ids=["linear", "nonlinear"])
def test_errors_on_lines_are_estimated_within_a_factor_of_ten(count, rate, equation):
    """Where there are two boundary values, the nugget in them is not spread over many, and is no error of theirs."""
    solution = solve(on(line(count), equation, lambda x: torch.sin(rate * x[:, 0]) + torch.exp(x[:, 0])))
    assert 0.1 < solution.error_estimate / solution.relative_error() < 10
    assert float(solution.std[:2].max()) < 0.5 * float(solution.std.max())


def test_deviations_are_those_of_errors_in_draws_of_the_prior():
    """Well above rounding and where the nugget is nearly all of the error."""
    kernel, x = RBF(lengthscale=0.4), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)[:, None]
    random = torch.Generator().manual_seed(1)
    for count in (6, 30):
        points, found = line(count), []
        for _ in range(20):
            waves = torch.randn(100, generator=random, dtype=torch.float64) / 0.4
            phases = torch.rand(100, generator=random, dtype=torch.float64) * 2 * math.pi
            draw = lambda x: (torch.cos(x * waves + phases)).sum(1) * math.sqrt(2 / 100)  # noqa: E731, B023
            curve = lambda x: -(waves**2 * torch.cos(x * waves + phases)).sum(1) * math.sqrt(2 / 100)  # noqa: E731, B023
            blocks = [values_at(points.boundary), values_at(points.interior, (0, 0))]
            posterior = condition([kernel], blocks, [draw(points.boundary), curve(points.interior)])
            error = posterior.mean(values_at(x)) - draw(x)
            found.append(float(error.square().mean() / posterior.std(values_at(x)).square().mean()))
        assert 0.05 < np.mean(found) < 5


def test_few_points_do_not_make_kernels_that_see_nothing():
    """A membrane over a ring of radii 0.4 and 1 from 100 points: the kernel is no shorter than their distance."""
    ring = Points.within(SQUARE, lambda x: (x.norm(dim=1) < 1) & (x.norm(dim=1) > 0.4), 100)
    solution = quietly(Problem(ring, laplacian(2), -1.0, 0.0))
    r = torch.tensor([0.5, 0.6, 0.7, 0.8], dtype=torch.float64)
    exact = (1 - r**2) / 4 + (1 - 0.4**2) / 4 / math.log(1 / 0.4) * r.log()
    error = float((solution(torch.stack([r, 0 * r], 1)) - exact).norm() / exact.norm())
    assert error < 0.15 and solution.error_estimate < 10 * error


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["disc", pytest.param("L", marks=pytest.mark.ci)])
@pytest.mark.parametrize("equation", [laplacian(2), u**3 - laplacian(2)], ids=["Poisson", "nonlinear"])
def test_smooth_solutions_converge(shape, equation):
    errors = []
    for count in (100, 300):
        solution = quietly(on(Points.within(SQUARE, SHAPES[shape], count), equation))
        errors.append(solution.relative_error())
        assert 0.1 < solution.error_estimate / errors[-1] < 10
    assert errors[1] < 2e-6 and errors[1] < errors[0] / 30


def test_derivatives_and_expressions_of_a_solution():
    solution = solve(on(Points.within(SQUARE, SHAPES["annulus"], 300), laplacian(2)))
    x = solution.problem.domain.interior[:50]
    slope = 3 * torch.cos(3 * x[:, 0] + 1) * torch.cos(4 * x[:, 1]) + 1
    torch.testing.assert_close(solution(x, D(u, 0)), slope, atol=1e-4, rtol=0)
    torch.testing.assert_close(solution(x, laplacian(2)), solution.problem.source(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(solution.u, smooth(solution.points), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.ci
def test_a_box_by_points_and_by_a_grid():
    problem = elliptic_2d()
    by_grid = solve(problem, grid=40)
    points = Points.within([(0, 1), (0, 1)], lambda x: torch.ones(len(x), dtype=torch.bool), 500)
    by_points = solve(Problem(points, problem.equation, problem.source, 0.0))
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gap = (by_points(x) - by_grid(x)).norm() / by_grid(x).norm()
    assert float(gap) < 5 * by_points.error_estimate + 5 * by_grid.error_estimate < 1e-2


def test_evolution_in_time_and_one_axis():
    """The heat equation from its walls and the first time; a nonlinear one on an interval, of points that are all given."""
    t = torch.linspace(0, 1, 15, dtype=torch.float64)
    grid = torch.cartesian_prod(t, t)
    walls = (grid[:, 0] == 0) | (grid[:, 0] == 1) | (grid[:, 1] == 0)
    exact = lambda x: torch.exp(-0.5 * x[:, 1]) * torch.sin(3 * x[:, 0])  # noqa: E731
    heat = solve(on(Points(grid[~walls], grid[walls]), D(u, 1) - 0.1 * D(u, 0, 2), exact))
    assert heat.relative_error() < 1e-6
    line = Points(t[1:-1, None], t[[0, -1], None])
    bent = solve(on(line, D(u, 0, 2) - exp(u), lambda x: torch.sin(2 * x[:, 0])))
    assert bent.relative_error() < 1e-7


def test_nothing_reads_the_exact_solution():
    problem = on(Points.within(SQUARE, SHAPES["disc"], 80), u**3 - laplacian(2))
    without = Problem(problem.domain, problem.equation, problem.source, problem.boundary)
    assert torch.equal(quietly(problem).u, quietly(without).u)


def test_deviations_are_calibrated():
    """Of processes drawn from the prior, standardised errors have unit mean square: 40 draws of 60 measurements, 5 sd of it."""
    points = Points.within(SQUARE, SHAPES["disc"], 60)
    kernels = [Matern(nu=3.5, lengthscale=0.8)] * 2
    x = points.between(8)
    blocks = [values_at(points.boundary), Block(points.interior, {
        (0, 0): torch.ones(len(points.interior)).double(), (1, 1): torch.ones(len(points.interior)).double()
    }), values_at(x)]  # fmt: skip
    joint = gram(kernels, blocks)
    root = torch.linalg.cholesky(joint + 1e-10 * joint.diagonal().diag())
    draws = root @ torch.randn(len(joint), 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    squares = []
    for values in draws.T:
        given, held = values[: -len(x)], values[-len(x) :]
        posterior = condition(kernels, blocks[:2], given.split([len(points.boundary), len(points.interior)]))
        squares.append(float(((posterior.mean(blocks[2]) - held) / posterior.std(blocks[2])).square().mean()))
    assert abs(np.mean(squares) - 1) < 5 * np.std(squares) / math.sqrt(40) and np.std(squares) < 1


class TestSparse:
    POINTS = Points.within(SQUARE, SHAPES["L"], 100)
    KERNELS = (Matern(nu=3.5, lengthscale=0.5), Matern(nu=3.5, lengthscale=0.7))

    def measured(self, points):
        problem = on(points, laplacian(2) + 2 * D(u, 0) - u)
        measured = Measured.of(problem, points)
        return measured.linearised(measured.zero())

    def test_with_all_neighbours_it_is_the_dense_posterior(self):
        blocks, values = self.measured(self.POINTS)
        dense = condition(self.KERNELS, blocks, values)
        sparse = condition_sparsely(self.KERNELS, blocks, values, neighbours=10_000)
        inside = values_at(self.POINTS.interior)
        torch.testing.assert_close(sparse.mean(inside), dense.mean(inside), rtol=1e-4, atol=1e-5)
        form = float(dense.data @ (dense.weights * dense.scale)) / 100
        assert sparse.variance == pytest.approx(form, rel=1e-5)
        precision = torch.from_numpy((sparse.root @ sparse.root.T).toarray())
        deviations = (dense.variance * precision.inverse().diagonal()).sqrt()
        torch.testing.assert_close(deviations, dense.std(inside), rtol=1e-3, atol=1e-7)

    def test_more_neighbours_come_nearer_to_the_dense_posterior(self):
        blocks, values = self.measured(self.POINTS)
        inside = values_at(self.POINTS.interior)
        dense = condition(self.KERNELS, blocks, values).mean(inside)
        gaps = [
            float((condition_sparsely(self.KERNELS, blocks, values, neighbours=m).mean(inside) - dense).norm())
            for m in (15, 60)
        ]
        assert gaps[1] < gaps[0] / 3

    @pytest.mark.slow
    @pytest.mark.ci
    def test_many_points(self):
        """Beyond 5,000 points: the error falls with more of them, and its estimate is within a factor of ten."""
        for equation in (laplacian(2) + u, u**3 - laplacian(2)):
            solution = solve(
                on(Points.within(SQUARE, SHAPES["L"], 5500), equation), kernel=Matern(nu=4.5, lengthscale=0.7)
            )
            error = solution.relative_error()
            assert error < 1e-5 and 0.1 < solution.error_estimate / error < 10
            x = solution.problem.domain.interior[:20]
            slope = 3 * torch.cos(3 * x[:, 0] + 1) * torch.cos(4 * x[:, 1]) + 1
            torch.testing.assert_close(solution(x, D(u, 0)), slope, atol=1e-3, rtol=0)

    def test_other_kernels_are_refused_with_advice(self):
        blocks, values = self.measured(self.POINTS)
        with pytest.raises(StructureError, match=r"Matern ones, got RBF: give fewer points, or kernel=kernels.Matern"):
            condition_sparsely([RBF(), RBF()], blocks, values)


def test_files(tmp_path):
    problem = on(Points.within(SQUARE, SHAPES["disc"], 60), u**3 - laplacian(2))
    solution = quietly(problem)
    solution.save(tmp_path / "disc.gpx")
    again = load(tmp_path / "disc.gpx", problem)
    assert torch.equal(again.u, solution.u) and again.error_estimate == solution.error_estimate
    with pytest.raises(InputError, match="at other points"):
        load(tmp_path / "disc.gpx", on(Points.within(SQUARE, SHAPES["disc"], 61), problem.equation))
    with pytest.raises(InputError, match="this problem is"):
        load(tmp_path / "disc.gpx", on(problem.domain, laplacian(2)))
    with pytest.raises(StructureError, match="solve again"):
        quietly(problem, kernel=RBF()).save(tmp_path / "given.gpx")


@pytest.mark.parametrize("shape", ["disc", "L"])
def test_pictures(shape):
    axes = quietly(on(Points.within(SQUARE, SHAPES[shape], 80), laplacian(2))).plot()
    assert "estimated error" in axes.get_title("left")


INSIDE = torch.tensor([[0.0, 0.1], [0.2, 0.3]])


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: Points(INSIDE, torch.zeros(0, 2)), "at least one boundary point, where the solution is known"),
        (lambda: Points(torch.zeros(0, 2), INSIDE), "at least one interior point"),
        (lambda: Points(INSIDE, torch.zeros(1, 1)), "interior has 2 columns and boundary 1"),
        (lambda: Points(torch.zeros(3), INSIDE), r"points \[n, d\] with 1 to 3 axes, got shape \[3\]"),
        (lambda: Points(torch.zeros(2, 2), INSIDE), "interior has 1 repeated points"),
        (lambda: Points(INSIDE * math.inf, INSIDE), "not finite"),
        (lambda: Points(2 + INSIDE, INSIDE, SHAPES["disc"]), r"2 of 2 interior points are outside the domain, .* \[2.0"),
        (lambda: Points(INSIDE, INSIDE, lambda x: x[:, 0]), "booleans"),
        (lambda: Points.within(SQUARE, lambda x: x[:, 0] > 2, 20), "true at none of 4000 random points"),
        (lambda: Points.within(SQUARE, SHAPES["disc"], 3), "count >= 10, got 3"),
        (lambda: Problem(Points(INSIDE, 1 + INSIDE), D(u, 0, 2), 0.0, "0"), "boundary of a Problem is a number or a callable"),
        (lambda: Problem(Points(INSIDE, 1 + INSIDE), D(u, 2), 0.0, 0.0), r"the domain has axes 0..1"),
        (lambda: Problem(Points(INSIDE, 1 + INSIDE), D(u, 0), 0.0, 0.0, grid=9), "no grid= or unknowns; take a Box"),
        (lambda: Problem("disc", D(u, 0), 0.0, 0.0), "a Box, an Interval or Points"),
        (lambda: solve(on(Points.within(SQUARE, SHAPES["disc"], 30), laplacian(2)), grid=9), "grid= and method= are for boxes"),
    ],
)  # fmt: skip
def test_bad_input_has_advice(make, advice):
    with pytest.raises(InputError, match=advice):
        make()


def test_calls_outside_the_domain_are_refused():
    solution = solve(on(Points.within(SQUARE, SHAPES["annulus"], 200), laplacian(2)))
    with pytest.raises(InputError, match=r"1 of 2 points are outside the domain, the first at x = \[0.0, 0.0\]"):
        solution(torch.tensor([[0.0, 0.7], [0.0, 0.0]]))
    with pytest.raises(InputError, match=r"called at points \[n, 2\], got \[3\]"):
        solution(torch.zeros(3))
    assert torch.isfinite(solution(solution.problem.domain.boundary)).all()


def test_kernels_that_are_not_smooth_enough_are_refused():
    points = Points.within(SQUARE, SHAPES["disc"], 60)
    biharmonic = D(u, 0, 4) + 2 * D(D(u, 0, 2), 1, 2) + D(u, 1, 4)
    with pytest.raises(StructureError, match="asked for 8: use nu >= 4.5"):
        solve(on(points, biharmonic), kernel=Matern(nu=2.5))
    with pytest.raises(InputError, match="one for each of 2 axes, got 1"):
        solve(on(points, laplacian(2)), kernel=[RBF()])


def test_what_does_not_converge_says_so():
    """Bratu's problem has no solution beyond 3.5 in place of 30."""
    t = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    problem = Problem(Points(t[1:-1], t[[0, -1]]), D(u, 0, 2) + 30 * exp(u), 0.0, 0.0)
    with pytest.raises(NumericalError, match=r"did not converge|not finite|NaN"):
        solve(problem)


def test_unresolved_solutions_warn():
    points = Points.within(SQUARE, SHAPES["disc"], 60)
    with pytest.warns(FitWarning, match="estimated relative error of the solution is .* give more points than 60"):
        solve(on(points, laplacian(2), lambda x: torch.sin(25 * x[:, 0])))


def test_intervals_by_points_are_those_of_the_grid():
    t = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    by_points = solve(Problem(Points(t[1:-1], t[[0, -1]]), D(u, 0, 2) - u, -1.0, 0.0))
    by_grid = solve(Problem(Interval(0, 1), D(u, 0, 2) - u, -1.0, 0.0), grid=30)
    torch.testing.assert_close(by_points(t), by_grid(t), atol=1e-7, rtol=0)
