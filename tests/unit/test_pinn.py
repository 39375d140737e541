"""The loss of the physics-informed network among the benchmarks."""

import math

import pytest
import torch

from benchmarks.tasks import pinn
from gpx.pde import Box, D, Dirichlet, Interval, Neumann, Periodic, Problem, Robin, problems, u
from gpx.pde.problems import laplacian, manufactured

WAVE = manufactured(
    "", Box([(0, 1), (0, 2)]), laplacian(2) - u, lambda x: torch.sin(2 * math.pi * x[:, 0]) * torch.exp(x[:, 1]),
    boundary=lambda exact: [
        Periodic(0), Neumann((1, 0), lambda x: -exact(x)), Robin((1, 1), 2.0, 1.0, lambda x: 3 * exact(x)),
    ],
)  # fmt: skip


@pytest.mark.parametrize("problem", [WAVE, problems.advection(), problems.darcy(), problems.allen_cahn_1d_p2()])
def test_the_loss_is_zero_at_the_solution_and_only_there(problem):
    loss = pinn.squares(problem)
    assert loss(problem.exact) < 1e-18
    nothing = float(loss(lambda x: 0.0 * problem.exact(x)).detach())
    assert loss(lambda x: problem.exact(x) + x[:, 0] ** 2) > 1e-6 * nothing


def test_a_network_trains_on_it():
    problem = Problem(Interval(0, 1), D(u, 0, 2), -1.0, [Dirichlet((0, 0), 0.0), Neumann((0, 1), 0.0)])
    torch.manual_seed(0)
    network, loss = pinn.perceptron(problem.domain.bounds), pinn.squares(problem)
    before = float(loss(network).detach())
    pinn.train(network, lambda: loss(network), 0.5)
    assert float(loss(network).detach()) < before
