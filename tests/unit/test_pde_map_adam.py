"""The published objective of GP-HM: against dense algebra and differences, and what its training does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import gpx
from gpx.pde import Box, D, Interval, Neumann, Problem, problems, solve, u
from gpx.pde import map_adam as hm

BOX = Box([(0, 1), (0, 2)])
PROBLEM = Problem(BOX, D(u, 0, 2) + D(u, 1, 2) + u**3, lambda x: x[:, 0] - x[:, 1], lambda x: x[:, 0] * x[:, 1])


@pytest.fixture(name="case")
def made():
    data = hm.data_of(PROBLEM, BOX.axes([5, 4]))
    random = torch.Generator().manual_seed(0)
    state = hm.start(data, [2.0, 1.0])
    drawn = [part + 0.3 * torch.randn(part.shape, dtype=torch.float64, generator=random) for part in state.parts()]
    return hm.State(*drawn), data


def test_the_objective_is_that_of_dense_algebra(case):
    """Kronecker matrices of all nodes, a multivariate normal density, and conditional means of u_xx and u_yy."""
    state, data = case
    kernels = [
        hm.lag_kernel(n[:, None] - n, state.log_weights[d], state.log_widths[d], state.frequencies[d])
        for d, n in enumerate(data.nodes)
    ]
    own = [k[0] + hm.JITTER * torch.eye(len(k[0]), dtype=torch.float64) for k in kernels]
    covariance, flat = torch.kron(*own), state.u.reshape(-1)
    log_prior = torch.distributions.MultivariateNormal(torch.zeros(20, dtype=torch.float64), covariance).log_prob(flat)
    solved = torch.linalg.solve(covariance, flat)
    bend = (torch.kron(kernels[0][2], own[1]) + torch.kron(own[0], kernels[1][2])) @ solved
    v, tau = state.log_equation.exp(), state.log_boundary.exp()
    residual = bend + flat**3 - (data.x[:, 0] - data.x[:, 1])
    equation = 10 * v.log() - v / 2 * residual.square().sum()
    boundary = torch.zeros((), dtype=torch.float64)
    for axis, size in ((0, 1.0), (1, 2.0)):
        for end in (0.0, size):
            on = data.x[:, axis] == end
            gap = flat[on] - data.x[on].prod(1)
            boundary = boundary + int(on.sum()) / 2 * tau.log() - tau / 2 * gap.square().sum()
    expected = -(log_prior + 10 * np.log(2 * np.pi) + hm.BOUNDARY * boundary + equation)
    torch.testing.assert_close(hm.objective(state, data), expected, rtol=1e-7, atol=0)


def test_its_gradient_is_that_of_differences(case):
    state, data = case
    for name in state.__dataclass_fields__:
        part = getattr(state, name).clone().requires_grad_()
        (slope,) = torch.autograd.grad(hm.objective(replace(state, **{name: part}), data), part)
        way = torch.randn(part.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        ahead, behind = (
            float(hm.objective(replace(state, **{name: part.detach() + h * way}), data)) for h in (1e-6, -1e-6)
        )
        assert float((slope * way).sum()) == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-3)


def test_derivatives_of_the_kernel_include_lag_zero():
    lags = torch.tensor([0.0, 0.3], dtype=torch.float64)
    parts = [torch.tensor([v], dtype=torch.float64) for v in (0.2, -0.4, 1.3)]
    k, first, second = hm.lag_kernel(lags, *parts)
    h = 1e-4
    ahead, behind = hm.lag_kernel(lags + h, *parts)[0], hm.lag_kernel(lags - h, *parts)[0]
    torch.testing.assert_close(first, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(second, (ahead + behind - 2 * k) / h**2, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_training_is_the_same_where_gradients_are_off(monkeypatch, without):
    monkeypatch.setattr(hm, "EPOCHS", 3)
    problem = problems.poisson_1d_p1()
    here = solve(problem, grid=30, method="map-adam")
    with without():
        assert torch.equal(solve(problem, grid=30, method="map-adam").u, here.u)


def test_training_decreases_the_objective_and_nears_the_solution(monkeypatch):
    monkeypatch.setattr(hm, "EPOCHS", 400)
    problem = problems.manufactured("", Interval(0, 1), D(u, 0, 2), lambda x: torch.sin(6 * x[:, 0]), grid=20)
    data, losses = hm.data_of(problem, problem.domain.axes([20])), []
    hm.train(hm.start(data, [9.5]), data, 400, lambda epoch, loss: losses.append(loss))
    smooth = np.array(losses).reshape(8, 50).mean(1)
    assert (np.diff(smooth) < 0).all()
    trained, direct = solve(problem, method="map-adam"), solve(problem)
    assert direct.relative_error() < 1e-3 * trained.relative_error()
    assert trained.relative_error() < 0.95  # u = 0, where it starts, has 1


@pytest.mark.parametrize(("problem", "arguments", "message"), [
    (PROBLEM, {"method": "adam"}, '"direct" or "map-adam"'),
    (PROBLEM, {"method": "map-adam", "kernel": gpx.kernels.RBF()}, "its own kernel"),
    (Problem(Interval(0, 1), D(u, 0, 2), 0.0, 0.0, noise=1.0), {"method": "map-adam"}, "use the default method"),
    (Problem(Interval(0, 1), D(u, 0, 2) - u, 0.0, [Neumann((0, 0), 0.0), Neumann((0, 1), 0.0)]), {"method": "map-adam"}, "Dirichlet"),
])  # fmt: skip
def test_what_it_is_not_for(problem, arguments, message):
    with pytest.raises(gpx.InputError, match=message):
        solve(problem, **arguments)
