"""Observations, unknown numbers and functions, and draws: against dense conditioning, and by z-tests over seeds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import gpx
from gpx.errors import FitWarning
from gpx.pde import (
    D,
    Dirichlet,
    Interval,
    Observations,
    Problem,
    Unknown,
    UnknownFunction,
    exp,
    load,
    problems,
    solve,
    u,
)
from gpx.pde.inverse import Inversion
from gpx.structure.derivatives import derivatives

LINE = Interval(0, 1)
FALSE_ALARM = 1e-4


def truth(x):
    return torch.sin(5 * x[:, 0]) + x[:, 0]


def observed(seed, count=30, noise=0.05, exact=truth, dims=1):
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(count, dims, dtype=torch.float64, generator=random)
    return Observations(x, exact(x) + noise * torch.randn(count, dtype=torch.float64, generator=random), noise)


def kernels_of(x, y, lengthscale, order=4):
    """k and its derivatives in the lag, [order + 1] of [n, m]."""
    jet = derivatives(gpx.kernels.RBF(lengthscale=lengthscale), order)
    return [jet(torch.from_numpy(np.subtract.outer(x, y)))[..., m].detach().numpy() for m in range(order + 1)]


def test_observations_enter_as_in_dense_conditioning():
    """u'' = f with noise, one boundary value missing, u observed: against the Gaussian formulas of the kernel matrix."""
    n, noise, data = 25, 0.5, observed(3, 6, 0.1)
    x, at = np.linspace(0, 1, n), data.x[:, 0].numpy()
    f = -25 * np.sin(5 * x)
    problem = Problem(LINE, D(u, 0, 2), torch.from_numpy(f), [Dirichlet((0, 0), 0.0)], noise=noise, observations=data)
    solution = solve(problem, grid=n, kernel=gpx.kernels.RBF(lengthscale=0.4))
    points = np.concatenate([[0.0], at])
    values = kernels_of(points, points, 0.4)
    crossed, among = kernels_of(points, x, 0.4), kernels_of(x, x, 0.4)

    def posterior(variance):
        joint = np.block([[values[0], crossed[2]], [crossed[2].T, among[4]]]) * variance
        joint += np.diag([1e-11, *data.noise.numpy() ** 2, *[noise**2] * n])
        cross = np.concatenate([crossed[0].T, among[2]], 1) * variance
        gain = np.linalg.solve(joint, cross.T).T
        mean = gain @ np.concatenate([[0.0], data.y.numpy(), f])
        return mean, np.sqrt(np.maximum(np.diag(among[0] * variance - gain @ cross.T), 0))

    variances = np.logspace(
        -2, 4, 600
    )  # the level was chosen by evidence: at the one whose mean agrees, deviations must
    gaps = [np.abs(posterior(v)[0] - solution.u.numpy()).max() for v in variances]
    mean, std = posterior(variances[int(np.argmin(gaps))])
    np.testing.assert_allclose(solution.u, mean, atol=1e-4)
    np.testing.assert_allclose(solution.std, std, rtol=0.02, atol=1e-5)


def test_a_source_is_found_as_in_dense_conditioning():
    """u'' = g, both Gaussian processes, u observed and zero at the ends: mean and deviation of g, at the shapes that were found."""
    n, noise, data = 25, 0.2, observed(4, 12, 0.02, lambda x: torch.sin(3 * torch.pi * x[:, 0]))
    x, at = np.linspace(0, 1, n), data.x[:, 0].numpy()
    problem = Problem(LINE, D(u, 0, 2), UnknownFunction("g"), 0.0, noise=noise, observations=data)
    solution = solve(problem, grid=n, kernel=gpx.kernels.RBF(lengthscale=0.3))
    block = solution.draws.components[0].blocks[1]
    of_g = block.design(None, ()) @ block.design(None, ()).T  # but for s^2, that of u
    points = np.concatenate([[0.0, 1.0], at])
    values, crossed, among = kernels_of(points, points, 0.3), kernels_of(points, x, 0.3), kernels_of(x, x, 0.3)

    def posterior(variance):
        joint = np.block([[values[0], crossed[2]], [crossed[2].T, among[4] + of_g]]) * variance
        joint += np.diag([1e-10, 1e-10, *data.noise.numpy() ** 2, *[noise**2] * n])
        cross = np.concatenate([np.zeros((n, len(points))), -of_g], 1) * variance
        gain = np.linalg.solve(joint, cross.T).T
        mean = gain @ np.concatenate([[0.0, 0.0], data.y.numpy(), np.zeros(n)])
        return mean, np.sqrt(np.diag(of_g * variance - gain @ cross.T))

    found = solution.unknowns["g"]
    # The dense formulas have the variance of u as it is; the state's is relative to the first function's.
    variances = np.logspace(-6, 6, 1200)
    gaps = [np.abs(posterior(v)[0] - found.value.numpy()).max() for v in variances]
    mean, std = posterior(variances[int(np.argmin(gaps))])
    scale = np.abs(mean).max()
    np.testing.assert_allclose(found.value, mean, atol=5e-3 * scale)
    np.testing.assert_allclose(found.std, std, rtol=0.05)
    torch.testing.assert_close(solution(x, UnknownFunction("g")), found.value, rtol=0, atol=1e-6 * scale)


def test_without_a_boundary_the_data_say_where_the_solution_is():
    """Of u'' = f two numbers are free: the mean is the least-squares line through what the data leave, deviations are the line's."""
    data = observed(5, 40, 0.005)  # little, so that the prior counts less still
    solution = solve(
        Problem(LINE, D(u, 0, 2), lambda x: -25 * torch.sin(5 * x[:, 0]), [], truth, 60, observations=data)
    )
    design = lambda x: torch.stack([torch.ones_like(x), x], 1)  # noqa: E731
    at, x = data.x[:, 0], solution.grid[0]
    rest = data.y - torch.sin(5 * at)
    line = torch.linalg.lstsq(design(at), rest[:, None]).solution[:, 0]
    covariance = torch.linalg.inv(design(at).T @ design(at)) * 0.005**2
    std = ((design(x) @ covariance) * design(x)).sum(1).sqrt()
    torch.testing.assert_close(solution.u, torch.sin(5 * x) + design(x) @ line, rtol=0, atol=0.2 * float(std.min()))
    torch.testing.assert_close(solution.std, std, rtol=0.05, atol=0)


@pytest.mark.parametrize("noise", [pytest.param(0.0, marks=pytest.mark.slow), 10.0])
def test_unknown_numbers_are_found_within_their_standard_errors(noise):
    """2.5 u'' = f, 2.5 unknown: sum of squares of z over 8 seeds, chi2 at a false-alarm rate of 1e-4."""
    z = []
    for seed in range(8):
        x = torch.linspace(0, 1, 30, dtype=torch.float64)
        random = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + seed))
        source = -62.5 * torch.sin(5 * x) + noise * random if noise else lambda x: -62.5 * torch.sin(5 * x[:, 0])
        problem = Problem(
            LINE, Unknown("kappa", 1.0) * D(u, 0, 2), source, truth, grid=30, noise=noise, observations=observed(seed)
        )
        found = solve(problem, kernel=gpx.kernels.RBF(lengthscale=0.5)).unknowns["kappa"]
        assert 0.005 < found.std < 0.3
        z.append((found.value - 2.5) / found.std)
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], len(z))
    assert low < np.sum(np.square(z)) < high


@pytest.mark.slow
def test_two_unknowns_of_a_nonlinear_equation():
    """Logistic growth u' = r u (1 - u / K), nothing known of the initial value."""
    exact = lambda x: 2 / (1 + 9 * torch.exp(-8 * x[:, 0]))  # noqa: E731
    r, scale = Unknown("r", 4.0), Unknown("K", 1.0)
    problem = Problem(
        LINE, D(u, 0) - r * u * (1 - u / scale), 0.0, [], exact, 60, observations=observed(1, 40, 0.03, exact)
    )
    solution = solve(problem)
    for name, value in (("r", 8.0), ("K", 2.0)):
        assert abs(solution.unknowns[name].value - value) < 4 * solution.unknowns[name].std < 0.15 * value
    assert solution.relative_error() < 4 * solution.error_estimate < 0.1
    again = solution([0.5], D(u, 0) - r * u * (1 - u / scale))  # with the numbers that were found
    assert abs(float(again[0])) < 0.01 * float(solution([0.5], D(u, 0))[0])


def decaying(n):
    """u' = -2 u, nothing known of the initial value."""
    exact = lambda x: torch.exp(-2 * x[:, 0])  # noqa: E731
    data = observed(n, 12, 0.03, exact)
    return Problem(LINE, D(u, 0) + Unknown("k", 1.0) * u, 0.0, [], exact, 60, observations=data), "k", 2.0


def swinging(n):
    """u'' = -36 u, from a start whose waves are out of step with the observations."""
    exact = lambda x: torch.sin(6 * x[:, 0] + 1)  # noqa: E731
    data = observed(n, 15, 0.05, exact)
    return Problem(LINE, D(u, 0, 2) + Unknown("w", 16.0) * u, 0.0, [], exact, 60, observations=data), "w", 36.0


def drifting(n):
    """u_t = -0.8 u_x, without conditions."""
    exact = lambda x: torch.sin(6 * (x[:, 0] - 0.8 * x[:, 1]))  # noqa: E731
    square, random = LINE * LINE, np.random.default_rng(n)
    X = random.uniform(0, 1, (40, 2))
    y = exact(torch.tensor(X)).numpy() + 0.02 * random.standard_normal(40)
    equation = D(u, 1) + Unknown("c", 0.4) * D(u, 0)
    return Problem(square, equation, 0.0, [], exact, 16, observations=Observations(X, y, 0.02)), "c", 0.8


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("make", [decaying, swinging, drifting], ids=lambda make: make.__name__)
def test_laws_that_zero_solves(make, seed):
    """The size of u is that of the observations; the unknown is within 4 standard errors (false alarms: 4e-4 in all)."""
    problem, name, value = make(seed)
    solution = solve(problem)
    found = solution.unknowns[name]
    assert abs(found.value - value) < 4 * found.std < 0.5 * value
    assert solution.relative_error() < 4 * solution.error_estimate < 1


def test_numbers_that_nothing_determines():
    """A solution of zero has every rate: that is said, and all that is returned is finite."""
    data = Observations(np.linspace(0.1, 0.9, 9), np.zeros(9), 0.05)
    with pytest.warns(FitWarning, match="do not determine the unknowns k"):
        solution = solve(Problem(LINE, D(u, 0) + Unknown("k") * u, 0.0, [], observations=data))
    assert solution.unknowns["k"].std > 100 and bool(torch.isfinite(solution.std).all())


@pytest.mark.slow
def test_an_unknown_coefficient_is_a_function():
    """-(exp(a) u')' = 1: a where u' is not zero."""
    log_a = lambda x: 0.8 * torch.sin(3 * x[:, 0])  # noqa: E731
    fine = torch.linspace(0, 1, 2001, dtype=torch.float64)
    inverse = torch.exp(-log_a(fine[:, None]))
    once, twice = torch.cumulative_trapezoid(inverse, fine), torch.cumulative_trapezoid(inverse * fine, fine)

    def exact(x):
        return torch.from_numpy(np.interp(x[:, 0], fine[1:], once * twice[-1] / once[-1] - twice, left=0.0))

    data = observed(2, 60, 0.001, exact)
    solution = solve(Problem(LINE, -D(exp(UnknownFunction("a")) * D(u, 0), 0), 1.0, 0.0, exact, 40, observations=data))
    found, x = solution.unknowns["a"], solution.grid[0]
    z = (found.value - log_a(x[:, None])) / found.std
    assert solution.relative_error() < 0.02
    assert float(z.square().mean().sqrt()) < 2.5 and float(found.std.median()) < 0.4


def moments(solution, count=400):
    """z of means and of mean squares of draws at 3 nodes."""
    places = [len(solution.grid[0]) // 5, len(solution.grid[0]) // 2, -5]
    x = solution.grid[0][places]
    draws = torch.stack([path(x) for path in solution.paths(count, seed=1)])
    mean, std = solution.u[places], solution.std[places]
    z = (draws.mean(0) - mean) / std * count**0.5
    return torch.cat([z, ((draws - mean).square().mean(0) / std**2 - 1) * (count / 2) ** 0.5])


@pytest.mark.parametrize("case", ["noise", "unknown", "exact"])
def test_draws_have_the_moments_of_the_posterior(case):
    """|z| < 5 for means and mean squares (the tails of mixtures, and the 64 draws behind a deviation, are allowed for)."""
    x = torch.linspace(0, 1, 50, dtype=torch.float64)
    random = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = lambda x: -25 * torch.sin(5 * x[:, 0])  # noqa: E731
    problem = {
        "noise": Problem(LINE, D(u, 0, 2), -25 * torch.sin(5 * x) + random, truth, noise=1.0, grid=50),
        "unknown": Problem(LINE, Unknown("k", 1.0) * D(u, 0, 2), smooth, truth, grid=50, observations=observed(0)),
        "exact": Problem(LINE, D(u, 0, 2) - u**3, smooth, truth, grid=20),
    }[case]
    solution = solve(problem)
    assert float(moments(solution).abs().max()) < (5 if case != "exact" else 8)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for path in solution.paths(3, seed=2):
        torch.testing.assert_close(path(ends), truth(ends[:, None]), rtol=0, atol=1e-7)
    if case == "noise":  # residuals at the nodes have the size of the noise
        residual = torch.stack([path(x, D(u, 0, 2)) - problem.source for path in solution.paths(50, seed=3)])
        assert 0.8 < float(residual.square().mean().sqrt()) < 1.25
    if case == "unknown":
        numbers = np.array([path.numbers["k"] for path in solution.paths(400, seed=4)])
        found = solution.unknowns["k"]
        assert abs(numbers.mean() - found.value) < 5 * found.std / 20 and 0.8 < numbers.std() / found.std < 1.25


def test_paths_are_counted_and_reproducible(tmp_path):
    problem = Problem(LINE, D(u, 0, 2), torch.zeros(30, dtype=torch.float64), 1.0, noise=0.1)
    solution = solve(problem, grid=30)
    one, two = solution.paths(2, seed=5), solution.paths(2, seed=5)
    assert len(one) == 2 and torch.equal(one[1]([0.3]), two[1]([0.3])) and not torch.equal(one[0]([0.3]), one[1]([0.3]))
    with pytest.raises(gpx.InputError, match="draws >= 1, got 0"):
        solution.paths(0)
    solution.save(tmp_path / "noisy.gpx")
    again = load(tmp_path / "noisy.gpx", problem).paths(2, seed=5)
    assert all(torch.equal(a(x), b(x)) for a, b in zip(again, one, strict=True) for x in ([0.3], [0.7]))


def test_unknowns_are_saved(tmp_path):
    equation = Unknown("k", 1.0) * D(u, 0, 2) + UnknownFunction("g")
    problem = Problem(LINE, equation, -25.0, truth, grid=40, noise=1.0, observations=[observed(0), Observations([0.5], [-25.0], 1.0, equation)])  # fmt: skip
    with np.errstate(all="ignore"):
        solution = solve(problem, kernel=gpx.kernels.RBF(lengthscale=0.5))
    solution.save(tmp_path / "unknowns.gpx")
    found = load(tmp_path / "unknowns.gpx", problem)
    assert found.unknowns["k"] == solution.unknowns["k"]
    assert torch.equal(found.unknowns["g"].std, solution.unknowns["g"].std)
    assert torch.equal(found([0.2, 0.3], equation), solution([0.2, 0.3], equation))
    paths = [each.paths(1, seed=3)[0] for each in (found, solution)]
    assert paths[0].numbers == paths[1].numbers and torch.equal(*(path([0.2, 0.3], equation) for path in paths))


@pytest.mark.parametrize("mean", [3.0, lambda x: 2 + x[:, 0]])
def test_unknown_functions_have_their_mean(mean):
    """u'' = -g: what the solution says of g is its mean and the process, on the grid, at points and in the equation."""
    g = UnknownFunction("g", mean)
    problem = Problem(
        LINE, D(u, 0, 2) + g, 0.0, 0.0, grid=30, observations=observed(1, 15, 0.01, lambda x: x[:, 0] * (1 - x[:, 0]))
    )
    solution = solve(problem, kernel=gpx.kernels.RBF(lengthscale=0.5))
    x = solution.grid[0]
    torch.testing.assert_close(solution.unknowns["g"].value, solution(x, g), rtol=0, atol=1e-9)
    torch.testing.assert_close(solution.unknowns["g"].value, -solution(x, D(u, 0, 2)), rtol=0, atol=0.2)
    assert float((solution.unknowns["g"].value[5:-5] - 2).abs().max()) < 0.5
    slope = solution(x, D(g, 0)) - solution(x, D(UnknownFunction("g"), 0))
    torch.testing.assert_close(slope, torch.full_like(x, 0.0 if isinstance(mean, float) else 1.0), rtol=0, atol=1e-9)


def test_the_size_of_an_equation_scales_with_its_data():
    """An equation without noise has a level in units of its own terms: twice the data, twice the solution."""
    data = observed(7)
    twice = Observations(data.x, 2 * data.y, 0.1)
    one = Problem(LINE, D(u, 0, 2) + u, 0.0, [], grid=40, observations=data)
    assert Inversion(one, (np.linspace(0, 1, 40),), torch.zeros(40), [np.zeros(0)], 1.0).noise(
        np.array([np.log(1e-3)])
    ) == pytest.approx(1e-3)
    torch.testing.assert_close(
        solve(replace(one, observations=twice)).u, 2 * solve(one).u, rtol=1e-3, atol=1e-3 * float(data.y.abs().max())
    )


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Observations([[0.1, 0.2]], [1.0, 2.0], 0.1), r"X \[n, d\] and values y \[n\], got \[1, 2\] and \[2\]"),
    (lambda: Observations([0.1], [1.0], 0.0), "standard deviation > 0"),
    (lambda: Observations([0.1], [float("nan")], 0.1), "finite"),
    (lambda: Problem(LINE, D(u, 0, 2), 0.0, 0.0, observations=Observations([1.1], [0.0], 1.0)), "1 of 1 observations are outside"),
    (lambda: Problem(LINE, D(u, 0, 2), 0.0, 0.0, observations=Observations([[0.1, 0.1]], [0.0], 1.0)), r"X \[n, 1\]"),
    (lambda: Problem(LINE, D(u, 0, 2), 0.0, 0.0, observations=3.0), "takes Observations"),
    (lambda: Problem(LINE, Unknown("k") * D(u, 0, 2), 0.0, 0.0), r"unknowns \(k\), which nothing determines"),
    (lambda: Unknown("k", start="one"), "a finite number to start from"),
    (lambda: UnknownFunction("u"), "a name other than u"),
])  # fmt: skip
def test_what_cannot_be_inferred_is_named(make, message):
    with pytest.raises(gpx.InputError, match=message):
        make()


@pytest.mark.slow
def test_bands_of_an_unknown_source_cover():
    """5 seeds, a few degrees of freedom each: coverage of 0.6 or less has a chance below 1e-3."""
    covered = []
    for seed in range(60, 65):
        problem = Problem(LINE, D(u, 0, 2), UnknownFunction("f"), truth, grid=40, observations=observed(seed))
        solution = solve(problem)
        found, x = solution.unknowns["f"], solution.grid[0]
        covered.append(float(((found.value + 25 * torch.sin(5 * x)).abs() <= 1.96 * found.std).double().mean()))
    assert np.mean(covered) > 0.6


@pytest.mark.slow
def test_unknown_diffusivity_in_two_dimensions():
    """The heat equation, observed at 40 points in space and time."""
    heat = problems.heat(0.05)
    data = observed(0, 40, 0.05, heat.exact, 2)
    equation = D(u, 1) - Unknown("diffusivity", 0.2) * D(u, 0, 2)
    solution = solve(replace(heat, equation=equation, observations=data, grid=24))
    found = solution.unknowns["diffusivity"]
    assert abs(found.value - 0.05) < 5 * found.std + 1e-6 and solution.relative_error() < 1e-3
