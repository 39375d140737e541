"""Problems with known solutions: functions that return a `Problem`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gpx.pde.boundary import Dirichlet
from gpx.pde.domains import Box, Interval
from gpx.pde.expressions import D, Expression, indices, u
from gpx.pde.fields import Field, differentiating
from gpx.pde.points import Points
from gpx.pde.problem import Problem

TURN = 2 * math.pi


def manufactured(
    name: str, domain: Box | Points, equation: Expression, exact: Field, *, boundary: Callable[[Field], object] | None = None,
    grid: int | tuple[int, ...] | None = None,
) -> Problem:  # fmt: skip
    """A problem whose source is the equation at a solution that was chosen, by automatic differentiation.

    Arguments: exact: [n, d] -> [n], of torch's differentiable functions; boundary: from exact to the boundary of `Problem`, None:
    exact on every face.
    """

    def source(x: Tensor) -> Tensor:
        jet = {index: _along(exact, x, index) for index in indices(equation)}
        return equation.value(jet, x.detach())

    return Problem(domain, equation, source, exact if boundary is None else boundary(exact), exact, grid, name=name)


def _along(function: Field, x: Tensor, index: tuple[int, ...]) -> Tensor:
    with differentiating():
        at = x.detach().clone().requires_grad_()
        value = function(at)
        for axis in index:
            value = (
                torch.autograd.grad(value.sum(), at, create_graph=True)[0][:, axis]
                if value.requires_grad
                else 0 * at[:, 0]
            )
    return value.detach()


def _poisson_1d(name: str, upper: float, exact: Callable[[Tensor], Tensor], points: int) -> Problem:
    return manufactured(name, Interval(0, upper), D(u, 0, 2), lambda x: exact(x[:, 0]), grid=points)


def poisson_1d_p1() -> Problem:
    """u'' = f on (0, 2 pi), u = sin 100x."""
    return _poisson_1d("Poisson 1-D, P1", TURN, lambda x: torch.sin(100 * x), 400)


def poisson_1d_p2() -> Problem:
    """u'' = f on (0, 1), u = sin x + 0.1 sin 20x + 0.05 sin 100x."""
    return _poisson_1d(
        "Poisson 1-D, P2", 1, lambda x: torch.sin(x) + 0.1 * torch.sin(20 * x) + 0.05 * torch.sin(100 * x), 900
    )


def poisson_1d_p3() -> Problem:
    """u'' = f on (0, 2 pi), u = sin 6x cos 100x."""
    return _poisson_1d("Poisson 1-D, P3", TURN, lambda x: torch.sin(6 * x) * torch.cos(100 * x), 400)


def poisson_1d_p4() -> Problem:
    """u'' = f on (0, 2 pi), u = x sin 200x."""
    return _poisson_1d("Poisson 1-D, P4", TURN, lambda x: x * torch.sin(200 * x), 900)


def poisson_1d_p5() -> Problem:
    """u'' = f on (0, 1), u = sin 500x - 2 (x - 1/2)^2."""
    return _poisson_1d("Poisson 1-D, P5", 1, lambda x: torch.sin(500 * x) - 2 * (x - 0.5) ** 2, 400)


def poisson_2d_sines() -> Problem:
    """Laplace's operator on (0, 2 pi)^2, u = sin 100x sin 100y."""
    return manufactured(
        "Poisson 2-D, sines", Box([(0, TURN)] * 2), laplacian(2), lambda x: torch.sin(100 * x).prod(1), grid=400
    )


def poisson_2d_sum() -> Problem:
    """Laplace's operator on (0, 2 pi)^2, u = sin 6x cos 20x + sin 6y cos 20y."""
    return manufactured(
        "Poisson 2-D, sum", Box([(0, TURN)] * 2), laplacian(2), lambda x: (torch.sin(6 * x) * torch.cos(20 * x)).sum(1),
        grid=200,
    )  # fmt: skip


def poisson_3d(frequency: float = 30.0, points: int = 64) -> Problem:
    """Laplace's operator on (0, 1)^3, u = sin wx sin wy sin wz."""
    return manufactured(
        "Poisson 3-D", Box([(0, 1)] * 3), laplacian(3), lambda x: torch.sin(frequency * x).prod(1), grid=points
    )


def allen_cahn_1d_p1() -> Problem:
    """u'' + u (u^2 - 1) = f on (0, 2 pi), u = sin 100x."""
    return manufactured(
        "Allen-Cahn 1-D, P1", Interval(0, TURN), D(u, 0, 2) + u**3 - u, lambda x: torch.sin(100 * x[:, 0]), grid=400
    )


def allen_cahn_1d_p2() -> Problem:
    """u'' + u (u^2 - 1) = f on (0, 2 pi), u = sin 6x cos 100x."""
    return manufactured(
        "Allen-Cahn 1-D, P2", Interval(0, TURN), D(u, 0, 2) + u**3 - u,
        lambda x: torch.sin(6 * x[:, 0]) * torch.cos(100 * x[:, 0]), grid=400,
    )  # fmt: skip


def allen_cahn_2d() -> Problem:
    """Laplace's operator + u (u^2 - 1) = f on (0, 1)^2, u a product of sin x + 0.1 sin 20x + cos 100x."""
    return manufactured(
        "Allen-Cahn 2-D", Box([(0, 1)] * 2), laplacian(2) + u**3 - u,
        lambda x: (torch.sin(x) + 0.1 * torch.sin(20 * x) + torch.cos(100 * x)).prod(1), grid=400,
    )  # fmt: skip


def advection() -> Problem:
    """u_t + 200 u_x = 0 for x, t in (0, 1), u = sin(x - 200 t); inflow and initial values alone."""
    return manufactured(
        "Advection", Box([(0, 1)] * 2), 200 * D(u, 0) + D(u, 1), lambda x: torch.sin(x[:, 0] - 200 * x[:, 1]), grid=200,
        boundary=lambda exact: [Dirichlet((0, 0), exact), Dirichlet((1, 0), exact)],
    )  # fmt: skip


def elliptic_2d() -> Problem:
    """-Laplace u + u^3 = f on (0, 1)^2, u = sin pi x sin pi y + 2 sin 4 pi x sin 4 pi y (Chen et al. 2021, section 4.1)."""
    return manufactured(
        "Nonlinear elliptic 2-D", Box([(0, 1)] * 2), u**3 - laplacian(2),
        lambda x: torch.sin(math.pi * x).prod(1) + 2 * torch.sin(4 * math.pi * x).prod(1), grid=50,
    )  # fmt: skip


def burgers(viscosity: float = 0.02) -> Problem:
    """u_t + u u_x = viscosity u_xx for x in (-1, 1), t in (0, 1), u = -sin pi x at first, 0 at the ends.

    exact: the Cole-Hopf integral, by Gauss-Hermite quadrature.
    """
    return Problem(
        Box([(-1, 1), (0, 1)]), D(u, 1) + u * D(u, 0) - viscosity * D(u, 0, 2), 0.0,
        [Dirichlet((0, 0), 0.0), Dirichlet((0, 1), 0.0), Dirichlet((1, 0), lambda x: -torch.sin(math.pi * x[:, 0]))],
        lambda x: cole_hopf(x, viscosity), (140, 35), name="Burgers",
    )  # fmt: skip


def cole_hopf(x: Tensor, viscosity: float, nodes: int = 200) -> Tensor:
    """The solution [n] of Burgers' equation from -sin pi x, at (x, t) [n, 2].

    ``u = -int sin(pi y) h(y) w(y) dy / int h w``, ``h = exp(-cos(pi y) / (2 pi viscosity))``, ``y = x - sqrt(4 viscosity t) s``,
    w the weight of Gauss-Hermite quadrature in s. Source: Basdevant et al. (1986), Computers & Fluids 14.
    """
    from numpy.polynomial.hermite import hermgauss

    s, w = (torch.from_numpy(v) for v in hermgauss(nodes))
    y = x[:, :1] - torch.sqrt(4 * viscosity * x[:, 1:]) * s
    weight = w * torch.exp((-torch.cos(math.pi * y) - 1) / (TURN * viscosity))
    return -(torch.sin(math.pi * y) * weight).sum(1) / weight.sum(1)


def eikonal(viscosity: float = 0.1) -> Problem:
    """``|grad u|^2 - viscosity Laplace u = f`` on (0, 1)^2 (Chen et al. 2021, section 4.3), with
    ``u = -viscosity log(1 + sin pi x sin pi y)``, for which the source is closed: 0 on the boundary.
    """
    return manufactured(
        "Eikonal", Box([(0, 1)] * 2), D(u, 0) ** 2 + D(u, 1) ** 2 - viscosity * laplacian(2),
        lambda x: -viscosity * torch.log(1 + torch.sin(math.pi * x).prod(1)), grid=50,
    )  # fmt: skip


def darcy() -> Problem:
    """-div(a grad u) = f on (0, 1)^2, a = exp(sin pi x + sin pi y) (1 + x y), u = sin pi x sin 2 pi y."""

    def permeability(x: Tensor) -> Tensor:
        return torch.exp(torch.sin(math.pi * x).sum(1)) * (1 + x[:, 0] * x[:, 1])

    flux = sum(D(permeability * D(u, axis), axis) for axis in (0, 1))
    return manufactured(
        "Darcy", Box([(0, 1)] * 2), -flux,  # pyright: ignore[reportOperatorIssue]
        lambda x: torch.sin(math.pi * x[:, 0]) * torch.sin(TURN * x[:, 1]), grid=50,
    )  # fmt: skip


def helmholtz(wavenumber: float = 40.0) -> Problem:
    """Laplace u + wavenumber^2 u = f on (0, 1)^2, u = sin(k (0.6 x + 0.8 y)) + x y: a plane wave beside a smooth part."""
    return manufactured(
        "Helmholtz", Box([(0, 1)] * 2), laplacian(2) + wavenumber**2 * u,
        lambda x: torch.sin(wavenumber * (0.6 * x[:, 0] + 0.8 * x[:, 1])) + x[:, 0] * x[:, 1], grid=80,
    )  # fmt: skip


def heat(diffusivity: float = 0.05) -> Problem:
    """u_t = diffusivity u_xx + f for x, t in (0, 1), u = exp(-diffusivity pi^2 t) sin pi x + sin 20x cos 5t."""
    return manufactured(
        "Heat", Box([(0, 1)] * 2), D(u, 1) - diffusivity * D(u, 0, 2),
        lambda x: torch.exp(-diffusivity * math.pi**2 * x[:, 1]) * torch.sin(math.pi * x[:, 0])
        + torch.sin(20 * x[:, 0]) * torch.cos(5 * x[:, 1]),
        boundary=lambda exact: [Dirichlet((0, 0), exact), Dirichlet((0, 1), exact), Dirichlet((1, 0), exact)], grid=80,
    )  # fmt: skip


def laplacian(dims: int) -> Expression:
    """The sum of the second derivatives along all axes."""
    return sum((D(u, axis, 2) for axis in range(1, dims)), D(u, 0, 2))
