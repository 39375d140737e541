"""Files and pictures of solutions."""

import pytest
import torch

import gpx
from gpx.pde import D, Interval, Problem, load, problems, solve, u


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
