"""Slopes on the boundary, noise and observations at scattered points: against dense algebra, limits, and the truth."""

import warnings
from dataclasses import replace

import pytest
import torch

from gpx.errors import FitWarning, InputError
from gpx.kernels import Matern
from gpx.pde import D, Dirichlet, Interval, Neumann, Observations, Periodic, Points, Problem, Robin, load, solve, u
from gpx.pde.gauss_newton import Measured
from gpx.pde.measurements import condition, gram, values_at, variances
from gpx.pde.problems import laplacian, manufactured
from gpx.pde.sparse import condition_sparsely

SQUARE = [(-1.0, 1.0), (-1.0, 1.0)]
KERNELS = (Matern(nu=3.5, lengthscale=0.5), Matern(nu=3.5, lengthscale=0.7))


def ring(x):
    return (x.norm(dim=1) < 1) & (x.norm(dim=1) > 0.4)


def inner(x):
    return x.norm(dim=1) < 0.7


def outer(x):
    return ~inner(x)


def smooth(x):
    return torch.sin(2 * x[:, 0] + 1) * torch.cos(3 * x[:, 1]) + x[:, 0]


def slope(x):
    """The outward slope of `smooth` on the circles of the ring."""
    gradient = torch.stack(
        [2 * torch.cos(2 * x[:, 0] + 1) * torch.cos(3 * x[:, 1]) + 1,
         -3 * torch.sin(2 * x[:, 0] + 1) * torch.sin(3 * x[:, 1])], 1
    )  # fmt: skip
    sign = torch.where(inner(x), -1.0, 1.0).double()
    return sign * (gradient * x).sum(1) / x.norm(dim=1)


def problem(count, conditions, equation=None, **settings):
    equation = laplacian(2) - u if equation is None else equation
    made = manufactured("", Points.within(SQUARE, ring, count), equation, smooth, boundary=lambda exact: conditions)
    return replace(made, **settings)


def quietly(problem, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return solve(problem, **settings)


MIXED = [Dirichlet(outer, smooth), Robin(inner, 2.0, 1.0, lambda x: 2 * smooth(x) + slope(x))]


def test_normals_point_outward():
    points = Points.within(SQUARE, ring, 300)
    x = points.boundary
    expected = torch.where(inner(x), -1.0, 1.0).double()[:, None] * x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(points.normals, expected, atol=1e-4, rtol=0)
    cube = Points.within([(0, 1)] * 3, lambda x: x[:, 0] < 0.5, 200)
    largest = cube.normals.abs().amax(1)
    at_faces = ((cube.boundary[:, :, None] - torch.tensor([0.0, 0.5, 1.0])).abs() < 0.02).any(2).sum(1) == 1
    assert bool(at_faces.any()) and float(largest[at_faces].min()) > 1 - 1e-6
    assert Points.within([(0, 1)], lambda x: x[:, 0] > 0.3, 20).normals.reshape(-1).sort().values.tolist() == [
        -1.0,
        1.0,
    ]


@pytest.mark.parametrize(
    ("conditions", "equation"),
    [
        ([Dirichlet(outer, smooth), Neumann(inner, slope)], laplacian(2)),
        ([Neumann(None, slope)], laplacian(2) - u),
        (MIXED, laplacian(2) - u**3),
    ],
    ids=["Neumann inside", "Neumann everywhere", "Robin, nonlinear"],
)
def test_slopes_on_the_boundary(conditions, equation):
    solution = quietly(problem(300, conditions, equation))
    error = solution.relative_error()
    assert error < 1e-2 and 0.1 < solution.error_estimate / error < 10
    points = solution.problem.domain
    x, normals = points.boundary[inner(points.boundary)], points.normals[inner(points.boundary)]
    found = (torch.stack([solution(x, D(u, d)) for d in (0, 1)], 1) * normals).sum(1)
    expected = slope(x) if conditions is not MIXED else 2 * smooth(x) + slope(x) - 2 * solution(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def observed(noise=0.1):
    x = torch.tensor([[0.6, 0.1], [-0.5, 0.4], [0.2, -0.8]], dtype=torch.float64)
    return Observations(x, smooth(x), noise)


def test_data_with_errors_are_conditioned_on_as_dense_algebra_does():
    noisy = problem(60, MIXED, noise=2.0, observations=observed())
    measured = Measured.of(noisy, noisy.domain)
    blocks, values = measured.linearised(measured.zero())
    found = condition(KERNELS, blocks, values)
    errors = torch.cat([torch.zeros(len(b.x)).double() if b.noise is None else b.noise for b in blocks])
    assert [float(errors.max()), int((errors == 0).sum())] == [2.0, len(noisy.domain.boundary)]
    covariance = found.variance * gram(KERNELS, blocks) + torch.diag(errors**2)
    data, x = torch.cat(values), noisy.domain.interior[:5]
    cross = found.variance * gram(KERNELS, (values_at(x), *blocks))[:5, 5:]
    torch.testing.assert_close(
        found.mean(values_at(x)), cross @ torch.linalg.solve(covariance, data), rtol=1e-5, atol=1e-7
    )
    prior = found.variance * variances(KERNELS, values_at(x))
    std = (prior - (cross @ torch.linalg.inv(covariance) * cross).sum(1)).sqrt()
    torch.testing.assert_close(found.std(values_at(x)), std, rtol=1e-4, atol=1e-7)
    normal = lambda v: torch.distributions.MultivariateNormal(  # noqa: E731
        torch.zeros_like(data), v / found.variance * (covariance - torch.diag(errors**2)) + torch.diag(errors**2)
    ).log_prob(data)
    assert found.evidence == pytest.approx(float(normal(found.variance)), rel=1e-6)
    assert max(float(normal(found.variance * f)) for f in (0.5, 2.0)) < found.evidence


def test_with_all_neighbours_the_sparse_posterior_is_the_dense_one():
    noisy = problem(80, MIXED, noise=2.0, observations=observed())
    measured = Measured.of(noisy, noisy.domain)
    blocks, values = measured.linearised(measured.zero())
    dense = condition(KERNELS, blocks, values)
    sparse = condition_sparsely(KERNELS, blocks, values, dense.variance, neighbours=10_000)
    inside = values_at(noisy.domain.interior)
    torch.testing.assert_close(sparse.mean(inside), dense.mean(inside), rtol=1e-4, atol=1e-4)
    precision = torch.from_numpy((sparse.root @ sparse.root.T).toarray())
    deviations = (dense.variance * precision.inverse().diagonal()).sqrt()[-len(noisy.domain.interior) :]
    torch.testing.assert_close(deviations, dense.std(inside), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_bands_cover_where_the_source_has_noise(noise):
    covered = []
    for seed in range(3):
        clean = problem(150, [Dirichlet(None, smooth)])
        random = torch.randn(
            len(clean.domain.interior), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        values = clean.source(clean.domain.interior) + noise * random
        solution = solve(replace(clean, source=values, noise=noise))
        gaps = (solution.u - smooth(solution.points)).abs()[len(clean.domain.boundary) :]
        covered.append(float((gaps <= 1.96 * solution.std[len(clean.domain.boundary) :]).double().mean()))
        assert solution.relative_error() < 0.05 * noise
    assert sum(covered) / 3 > 0.8


def test_observations_stand_for_missing_conditions(tmp_path):
    """Nothing is known on the boundary; the less noise what was measured inside has, the better the solution is known."""
    whole = problem(150, [Dirichlet(None, smooth)])
    x = whole.domain.interior[:40]
    random = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solutions = [
        solve(replace(whole, boundary=[], observations=Observations(x, smooth(x) + noise * random, noise)))
        for noise in (0.1, 0.001)
    ]
    errors = [solution.relative_error() for solution in solutions]
    assert errors[1] < 0.1 * errors[0] and errors[1] < 1e-2
    solutions[0].save(tmp_path / "ring.gpx")
    again = load(tmp_path / "ring.gpx", solutions[0].problem)
    assert torch.equal(again.u, solutions[0].u) and torch.equal(again.std, solutions[0].std)


def test_flows_and_nonlinear_functions_can_be_observed():
    flux = u * D(u, 0)
    x = torch.tensor([[0.3], [0.6], [0.9]], dtype=torch.float64)
    t = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    exact = lambda x: 1 + torch.sin(2 * x[:, 0])  # noqa: E731
    made = manufactured("", Points(t[1:], t[:1]), D(u, 0, 2) - u, exact)
    seen = Observations(x, exact(x) * 2 * torch.cos(2 * x[:, 0]), 1e-4, of=flux)
    solution = solve(replace(made, observations=seen))
    assert solution.relative_error() < 1e-3
    torch.testing.assert_close(solution(x, flux), seen.y, atol=1e-3, rtol=0)


def test_intervals_with_slopes_by_points_are_those_of_the_grid():
    t = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    points = Points(t[1:-1], t[[0, -1]], normals=torch.tensor([[-2.0], [3.0]]))
    low, high = (lambda x: x[:, 0] < 0.5), (lambda x: x[:, 0] > 0.5)
    by_points = solve(Problem(points, D(u, 0, 2) - u, -1.0, [Dirichlet(low, 0.0), Neumann(high, 2.0)]))
    by_grid = solve(
        Problem(Interval(0, 1), D(u, 0, 2) - u, -1.0, [Dirichlet((0, 0), 0.0), Neumann((0, 1), 2.0)]), grid=30
    )
    torch.testing.assert_close(by_points(t), by_grid(t), atol=1e-6, rtol=0)


PLAIN = Points(torch.tensor([[0.0, 0.1], [0.2, 0.3]]), torch.tensor([[1.0, 1.1], [1.2, 1.3]]))


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: Points(PLAIN.interior, PLAIN.boundary, normals=torch.zeros(2, 2)), "one for every boundary point and none"),
        (lambda: Problem(PLAIN, laplacian(2), 0.0, [Neumann(None, 0.0)]), r"need Points\(..., normals=\), or Points.within"),
        (lambda: Problem(PLAIN, laplacian(2), 0.0, [Periodic(0)]), "Dirichlet, Neumann and Robin, on a face that maps"),
        (lambda: Problem(PLAIN, laplacian(2), 0.0, [Dirichlet((0, 1), 0.0)]), "on a face that maps"),
        (lambda: Problem(PLAIN, laplacian(2), 0.0, [Dirichlet(lambda x: x[:, 0], 0.0)]), "The face of a condition .* booleans"),
        (lambda: Problem(PLAIN, laplacian(2), 0.0, [Dirichlet(inner, 0.0)]), "No point of the boundary is on the face"),
        (lambda: Problem(PLAIN, laplacian(2), 0.0, []), "2 boundary points have no condition, the first at"),
        (lambda: Problem(PLAIN, laplacian(2), 0.0, [Dirichlet(None, 0.0), Dirichlet(outer, 1.0)]), "Two conditions give values at 2"),
        (lambda: Problem(PLAIN, laplacian(2), torch.zeros(3), 0.0, noise=1.0), r"shape \[3\], and the domain 2 interior points"),
        (lambda: Problem(PLAIN, laplacian(2), 0.0, 0.0, observations=Observations([[9.0, 9.0]], [1.0], 0.1)), "1 of 1 points are outside"),
    ],
)  # fmt: skip
def test_bad_input_has_advice(make, advice):
    with pytest.raises(InputError, match=advice):
        make()
