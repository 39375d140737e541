"""Homogeneous equations at scattered points: zeros on the right say nothing of the size of a solution that was observed."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from scipy.special import jn_zeros, jv

from gpx.errors import FitWarning
from gpx.kernels import Matern
from gpx.pde import D, Dirichlet, Neumann, Observations, Points, Problem, solve, u
from gpx.pde.gauss_newton import Measured
from gpx.pde.measurements import condition, gram
from gpx.pde.problems import laplacian

KERNELS = (Matern(nu=3.5, lengthscale=0.5), Matern(nu=3.5, lengthscale=0.7))
DISC = Points.within([(-1.0, 1.0), (-1.0, 1.0)], lambda x: x.norm(dim=1) < 1, 150)
ROD = Points.within([(0.0, 1.0), (0.0, 0.5)], lambda x: x[:, 0] > 0, 150)  # space and time


def left(x):
    return x[:, 0] < 0


def quadratic(x):
    return x[:, 0] ** 2 - x[:, 1] ** 2 + x[:, 0]


def exponential(x):
    return torch.exp(3 * x[:, 0]) * torch.cos(3 * x[:, 1]) / 20


def wave(x):
    return torch.sin(2.4 * x[:, 0] + 3.2 * x[:, 1])


def decay(x):
    return torch.exp(-0.2 * math.pi**2 * x[:, 1]) * torch.sin(math.pi * x[:, 0]) + x[:, 0]


CASES = {
    "quadratic": (DISC, laplacian(2), quadratic, 0.1, []),
    "exponential": (DISC, laplacian(2), exponential, 0.02, []),
    "wave": (DISC, laplacian(2) + 16 * u, wave, 0.05, []),
    "decay": (ROD, D(u, 1) - 0.2 * D(u, 0, 2), decay, 0.05, []),
    "half of the boundary": (DISC, laplacian(2), quadratic, 0.1, [Dirichlet(left, quadratic)]),
}


def noisy(domain, equation, exact, noise, conditions, seed=0, count=40):
    """The problem with so many observations in the middle of the domain."""
    random = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(domain.bounds, dtype=torch.float64).T
    x = (low + high) / 2 + 0.35 * (high - low) * (2 * torch.rand(count, 2, dtype=torch.float64, generator=random) - 1)
    y = exact(x) + noise * torch.randn(count, dtype=torch.float64, generator=random)
    return Problem(domain, equation, 0.0, conditions, exact, observations=Observations(x, y, noise))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_observations_stand_for_conditions_of_homogeneous_equations(case):
    domain, _, exact, noise, _ = case
    inside = slice(len(domain.boundary), None)
    covered, squares = [], []
    for seed in range(3):
        solution = solve(noisy(*case, seed=seed))
        (seen,) = solution.problem.observations
        misfit = float(((solution(seen.x) - seen.y) / noise).square().mean().sqrt())
        assert 0.5 < misfit < 1.5
        gaps = (solution.u - exact(solution.points)).abs()[inside]
        covered.append(float((gaps <= 1.96 * solution.std[inside]).double().mean()))
        squares.append((solution.relative_error() ** 2, solution.error_estimate**2))
    errors, estimates = torch.tensor(squares).sum(0).sqrt().tolist()
    assert sum(covered) / 3 > 0.8 and 0.3 < errors / estimates < 2


def test_the_evidence_is_that_of_the_data_given_the_laws():
    problem = noisy(DISC.few(60), *CASES["half of the boundary"][1:])
    measured = Measured.of(problem, problem.domain)
    blocks, values = measured.linearised(measured.zero())
    found = condition(KERNELS, blocks, values)
    covariance, data = gram(KERNELS, blocks), torch.cat(values)
    errors = torch.cat([block.errors for block in blocks])
    law = torch.zeros(len(data), dtype=torch.bool)
    law[len(values[0]) : len(values[0]) + len(values[1])] = True  # the equation; conditions ask for numbers

    def density(rows, variance):
        every = variance * covariance + torch.diag(errors**2)
        mean = torch.zeros(int(rows.sum()), dtype=torch.float64)
        return float(torch.distributions.MultivariateNormal(mean, every[rows][:, rows]).log_prob(data[rows]))

    def conditional(variance):
        return density(law | ~law, variance) - density(law, variance)

    assert found.evidence == pytest.approx(conditional(found.variance), abs=1e-3)
    assert max(conditional(found.variance * f) for f in (0.5, 2.0)) < found.evidence


def test_laws_are_what_zero_satisfies_without_error():
    conditions = [Dirichlet(left, 0.0), Dirichlet(lambda x: ~left(x), 1.0)]
    homogeneous = noisy(DISC, D(u, 0, 2) - u**3 * D(u, 1), quadratic, 0.1, conditions)
    zero = left(DISC.boundary)
    for problem, equation in (
        (homogeneous, True), (replace(homogeneous, source=1.0), False), (replace(homogeneous, noise=0.1), False),
    ):  # fmt: skip
        measured = Measured.of(problem, DISC)
        jets = {index: torch.ones_like(jet) for index, jet in measured.zero().items()}  # wherever it is linearised
        values, rows, observed = measured.linearised(jets)[0]
        assert int(values.silent.sum()) == int(zero.sum()) and not observed.silent.any()
        assert bool((rows.silent == equation).all())


def test_solutions_of_homogeneous_equations_have_the_unit_of_what_was_observed():
    problem = noisy(*CASES["quadratic"])
    (seen,) = problem.observations
    large = replace(problem, observations=Observations(seen.x, 1000 * seen.y, 1000 * seen.noise))
    one, other = solve(problem), solve(large)
    assert one.choice is not None and other.choice is not None and one.choice.lengthscales == other.choice.lengthscales
    torch.testing.assert_close(other.u, 1000 * one.u, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(other.std, 1000 * one.std, rtol=1e-3, atol=1e-3)


def contradicted(case, shift, wrong):
    """The problem with conditions everywhere, and observations of which some are wrong by so many deviations of their noise."""
    domain, equation, exact, noise, _ = case
    problem = noisy(domain, equation, exact, noise, exact)
    (seen,) = problem.observations
    off = noise * shift * (torch.arange(len(seen.y)) < wrong)
    return replace(problem, observations=Observations(seen.x, seen.y + off, seen.noise))


@pytest.mark.parametrize(
    "case", [CASES[name] for name in ("quadratic", "wave", "decay")], ids=["quadratic", "wave", "decay"]
)
@pytest.mark.parametrize(("shift", "wrong"), [(3, 40), (5, 40), (30, 40), (15, 3)])
def test_observations_that_contradict_the_rest_are_warned_of_and_do_not_bend_the_solution(case, shift, wrong):
    with pytest.warns(FitWarning, match="misses observations by .* times their noise"):
        solution = solve(contradicted(case, shift, wrong))
    assert solution.relative_error() < 1e-4


@pytest.mark.parametrize("case", [CASES[name] for name in ("quadratic", "exponential", "wave", "decay")])
def test_conditions_that_determine_the_solution_choose_its_kernel(case):
    problem = contradicted(case, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution, alone = solve(problem), solve(replace(problem, observations=()))
    assert solution.choice is not None and alone.choice is not None and solution.relative_error() < 1e-4
    assert replace(solution.choice, variance=None) == alone.choice
    assert solution.choice.variance == pytest.approx(alone.posterior.variance)


@pytest.mark.parametrize("size", [1.0, 10.0])
@pytest.mark.parametrize("angle", [0.9, 3.0])
def test_observations_count_at_a_resonance_where_conditions_do_not_determine_the_solution(size, angle):
    root = float(jn_zeros(0, 1)[0])

    def exact(x):
        null = torch.from_numpy(jv(0, root * x.norm(dim=1).numpy()))
        return torch.sin(root * (math.cos(angle) * x[:, 0] + math.sin(angle) * x[:, 1])) + size * null

    solution = solve(noisy(DISC, laplacian(2) + root**2 * u, exact, 0.05, exact))
    assert solution.relative_error() < 0.05


def test_conditions_on_points_are_complete_where_every_point_of_the_boundary_has_one():
    whole = noisy(DISC, laplacian(2), quadratic, 0.1, quadratic)
    assert whole.complete and replace(whole, boundary=[Dirichlet(left, 1.0), Neumann(lambda x: ~left(x), 0.0)]).complete
    for some in ([], [Dirichlet(left, quadratic)], [Neumann(None, 0.0)]):  # slopes alone leave a constant
        assert not replace(whole, boundary=some).complete
