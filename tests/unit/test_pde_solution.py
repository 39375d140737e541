"""Files and pictures of solutions."""

import pickle

import numpy as np
import pytest
import torch

import gpx
from gpx.pde import (
    Box,
    D,
    Interval,
    Observations,
    Points,
    Problem,
    Unknown,
    UnknownFunction,
    exp,
    load,
    problems,
    sin,
    solve,
    u,
)


@pytest.fixture(scope="module")
def heat():
    return solve(problems.heat(), grid=40)


def test_what_is_loaded_equals_what_was_saved(heat, tmp_path):
    heat.save(tmp_path / "heat.gpx")
    found = load(tmp_path / "heat.gpx", problems.heat())
    x = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.u, heat.u) and torch.equal(found(x, D(u, 0, 2)), heat(x, D(u, 0, 2)))
    assert torch.equal(found.std, heat.std)
    assert (found.setting, found.error_estimate, found.relative_error()) == (
        heat.setting,
        heat.error_estimate,
        heat.relative_error(),
    )


def test_noise_is_saved_too(tmp_path):
    problem = Problem(Interval(0, 1), D(u, 0, 2), torch.linspace(0, 1, 30, dtype=torch.float64), 0.0, noise=0.1)
    solution = solve(problem, grid=30)
    solution.save(tmp_path / "noisy.gpx")
    assert torch.equal(load(tmp_path / "noisy.gpx", problem).std, solution.std)


def test_files_of_other_things_are_refused(heat, tmp_path):
    heat.save(tmp_path / "heat.gpx")
    with pytest.raises(gpx.InputError, match=r"problem with bounds \[\[0.0, 1.0\], \[0.0, 1.0\]\], this one has"):
        load(tmp_path / "heat.gpx", problems.poisson_1d_p1())
    with pytest.raises(gpx.InputError, match="problem with equation .* this one has"):
        load(tmp_path / "heat.gpx", problems.heat(0.1))
    with pytest.raises(gpx.InputError, match="Cannot write"):
        heat.save(tmp_path / "nowhere" / "heat.gpx")
    gpx.GP(gpx.kernels.RBF()).condition([0.0, 1.0], [0.0, 1.0]).save(tmp_path / "gp.gpx")
    with pytest.raises(gpx.InputError, match=r"read models with gpx\.load"):
        load(tmp_path / "gp.gpx", problems.heat())


def test_solutions_with_a_given_kernel_are_saved(tmp_path):
    given = solve(problems.heat(), grid=16, kernel=gpx.kernels.RBF(lengthscale=0.3))
    given.save(tmp_path / "given.gpx")
    found, x = load(tmp_path / "given.gpx", problems.heat()), torch.rand(9, 2, dtype=torch.float64)
    assert torch.equal(found.u, given.u) and torch.equal(found(x, D(u, 0)), given(x, D(u, 0)))


@pytest.mark.parametrize("name", ["poisson_1d_p2", "heat", "poisson_3d"])
def test_pictures_show_the_solution(name):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    problem = getattr(problems, name)()
    solution = solve(problem, grid={1: 200, 2: 40, 3: 24}[problem.domain.dims])
    ax = solution.plot()
    assert problem.name in ax.get_title(loc="left")
    if problem.domain.dims == 1:
        line = ax.get_lines()[-1]
        torch.testing.assert_close(
            torch.tensor(line.get_ydata()), problem.exact(torch.tensor(line.get_xdata())[:, None]), rtol=0, atol=1e-5
        )
    else:
        x = torch.tensor([[0.25] + [0.5] * (problem.domain.dims - 1)], dtype=torch.float64)
        image = ax.get_images()[0].get_array()
        assert abs(float(image[image.shape[0] // 2, image.shape[1] // 4]) - float(problem.exact(x))) < 0.1
    matplotlib.pyplot.close("all")


@pytest.fixture(scope="module")
def disc():
    points = Points.within([(-1, 1), (-1, 1)], lambda x: x.norm(dim=1) < 1, 100)
    return solve(Problem(points, D(u, 0, 2) + D(u, 1, 2), -4.0, 0.0))


@pytest.mark.parametrize(("X", "of", "message"), [
    ([[float("nan"), 0.5]], u, "1 of 1 points are not finite; leave them out"), ([[0.5j, 0.5]], u, "array of real numbers"),
    ("abc", u, "array of real numbers, got str"), ([[0.5, 0.5], [0.1]], u, "array of real numbers, got list"),
    ([[0.1, 0.1]], UnknownFunction("g"), r"unknowns \(g\) that are not in .* write it with u"),
    ([[0.1, 0.1]], Unknown("k") * u, r"unknowns \(k\) that are not in"), ([[0.1, 0.1]], D(u, 4), r"has D\(u, 4\), .* axes 0\.\.1"),
])  # fmt: skip
def test_calls_are_checked(heat, disc, X, of, message):
    for solution in (heat, disc):
        with pytest.raises(gpx.InputError, match=message):
            solution(X, of)


@pytest.mark.parametrize(("axes", "message"), [
    ([[0.5]], r"each of 2 axes, got shapes \[\[1\]\]"), ([[0.5], [2.0]], "outside the domain along axis 1: 0 to 1"), (3, "each of 2 axes"),
    ([[0.5], [[0.5]]], "at scattered points call the solution"), ([[0.5], [float("nan")]], "on takes finite points"),
])  # fmt: skip
def test_grids_are_of_the_domain(heat, axes, message):
    with pytest.raises(gpx.InputError, match=message):
        heat.on(axes)
    assert heat.on([[0.5], torch.tensor([0.2, 1.0])]).shape == (1, 2)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Observations([], [], 0.1), "must be one at least"), (lambda: Observations(["a"], [1.0], 0.1), "X of Observations must be an"),
    (lambda: Points("a", "b"), "interior must be an array of real numbers"), (lambda: Interval(0, 1) * 2, r"by a Box, such as Interval"),
    (lambda: Points([[0.1], [0.5]], [[0.0], [0.5]]), "1 points are both in interior and in boundary: leave them in boundary"),
    (lambda: load("nowhere.gpx", None), "load needs the Problem whose solution was saved"),
])  # fmt: skip
def test_what_is_none_is_named(make, message):
    with pytest.raises(gpx.InputError, match=message):
        make()


def test_pictures_are_drawn_on_axes(heat, disc):
    for solution in (heat, disc):
        with pytest.raises(gpx.InputError, match=r"matplotlib axes, as plt\.subplots\(\)\[1\] makes them, got int"):
            solution.plot(3)


def flux(x):
    return 1 + x[:, 0] ** 2


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("domain", "grid"), [
    (lambda: Box([(0, 1), (0, 1)]), 12), (lambda: Points.within([(0, 1), (0, 1)], lambda x: x.sum(1) < 1.5, 60), None),
])  # fmt: skip
def test_solutions_are_the_same_where_gradients_are_off(without, domain, grid):
    def solution():
        return solve(
            Problem(domain(), D(flux * D(u, 0), 0) + D(u, 1, 2) - u**3, -1.0, 0.0),
            grid,
            kernel=gpx.kernels.RBF(lengthscale=0.5),
        )

    here = solution()
    with without():
        there = solution()
        assert torch.equal(here.u, there.u) and torch.equal(here.std, there.std)


@pytest.mark.parametrize("equation", [D(u, 0, 2), D(u, 0, 2) - exp(-u) + sin(u)])
def test_solutions_can_be_pickled(equation):
    solution = solve(Problem(Interval(0, 1), equation, -2.0, 0.0), grid=20)
    solution.paths(np.int64(1))
    assert torch.equal(pickle.loads(pickle.dumps(solution)).u, solution.u)
