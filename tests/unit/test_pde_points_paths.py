"""Draws from what is known of solutions at scattered points: moments, conditions, the equation, and consistency."""

import pytest
import torch

from gpx.errors import InputError
from gpx.pde import D, Observations, Points, Problem, solve, u
from gpx.pde.measurements import values_at
from gpx.pde.problems import laplacian

COUNT = 200
DISC = Points.within([(-1.0, 1.0), (-1.0, 1.0)], lambda x: x.norm(dim=1) < 1, 150)


def wavy(x):
    return torch.cos(4 * x[:, 0]) * torch.exp(x[:, 1])


def harmonic(x):
    return x[:, 0] ** 2 - x[:, 1] ** 2 + x[:, 0]


def observed():
    random = torch.Generator().manual_seed(0)
    x = 1.4 * torch.rand(30, 2, dtype=torch.float64, generator=random) - 0.7
    y = harmonic(x) + 0.1 * torch.randn(30, dtype=torch.float64, generator=random)
    return Problem(DISC, laplacian(2), 0.0, [], harmonic, observations=Observations(x, y, 0.1))


def exact():
    return Problem(DISC, laplacian(2), lambda x: -15 * wavy(x), wavy)


def noisy():
    values = -15 * wavy(DISC.interior)
    errors = torch.randn(len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Problem(DISC, laplacian(2), values + errors, wavy, noise=1.0)


@pytest.mark.parametrize("make", [observed, exact, noisy])
def test_means_and_deviations_of_paths_are_those_of_the_solution(make):
    solution = solve(make())
    paths = solution.paths(COUNT, seed=1)
    x = DISC.between(12)  # between the points, where their values say all but little
    for at, std, slack in (
        (solution.points, solution.std, 0.02),
        (x, solution.posterior.std(values_at(x)), 0.1),
    ):
        draws = torch.stack([path(at) for path in paths]) - solution(at)
        free = std > 0.1 * std.max()  # near boundary values rounding is left
        z = draws.mean(0)[free] / std[free] * COUNT**0.5
        assert float(z.abs().max()) < 4.5
        gaps = (draws.std(0)[free] / std[free] - 1) * (2 * COUNT) ** 0.5
        assert float(gaps.median().abs()) < 3 + slack * COUNT**0.5 and float(gaps.abs().max()) < 5 + slack * COUNT**0.5


def test_paths_meet_what_is_known():
    solution = solve(observed())
    first, second = solution.paths(2, seed=1)
    equation = solution.problem.equation
    size = float(solution(DISC.interior, D(u, 0, 2)).abs().max())
    assert float(first(DISC.interior, equation).abs().max()) < 1e-4 * size
    assert float((first(DISC.interior) - second(DISC.interior)).abs().max()) > 1e-2
    clean = solve(exact())
    (path,) = clean.paths(1)
    torch.testing.assert_close(path(DISC.boundary), wavy(DISC.boundary), atol=1e-5, rtol=0)


def test_paths_are_functions_and_reproducible():
    solution = solve(observed())
    one, two = solution.paths(3, seed=5)[2], solution.paths(3, seed=5)[2]
    x, step = 0.5 * DISC.interior[:20], torch.tensor([1e-4, 0.0], dtype=torch.float64)
    assert torch.equal(one(x), two(x))
    torch.testing.assert_close(one(x)[3:7], one(x[3:7]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one(x, D(u, 0)), (one(x + step) - one(x - step)) / 2e-4, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="number of draws >= 1"):
        solution.paths(0)
    with pytest.raises(InputError, match="outside the domain"):
        one([[2.0, 0.0]])
