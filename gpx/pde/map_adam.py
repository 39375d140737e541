"""The published training of GP-HM, for comparison: values at the nodes, kernels and precisions together, by Adam.

Source: Fang, Cooley, Long, Li, Kirby & Zhe (2024), "Solving high frequency and multi-scale PDEs with Gaussian processes", ICLR,
sections 3 and 4. `gpx.pde.solve` needs seconds for what this needs hours for, and nothing of it is used there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError, NumericalError
from gpx.kernels import SpectralMixture
from gpx.pde import newton
from gpx.pde.axes import galerkin
from gpx.pde.basis import Basis, Lags, trapezoid
from gpx.pde.boundary import Dirichlet
from gpx.pde.domains import points
from gpx.pde.estimate import judge
from gpx.pde.fields import Index, differentiating, evaluate
from gpx.pde.functions import Function, Functions
from gpx.pde.grids import Grid
from gpx.pde.problem import Problem
from gpx.pde.solution import Solution
from gpx.pde.spectrum import nyquist

JITTER = 1e-6
COMPONENTS = 30  # of the spectrum, per axis
BOUNDARY = 200.0  # weight of the boundary's likelihood
RATE = 0.01  # of Adam
EPOCHS = 2000  # published: 1e5 to 3e6


@dataclass(frozen=True)
class State:
    """What is trained: values u [M_1, ..., M_d]; logarithms of the precisions of boundary and equation; and for every axis the
    mixture's log weights [Q], logarithms of 2 pi^2 s_q^2 [Q] (s_q the width of a bump, cycles per unit) and frequencies [Q].
    """

    u: Tensor
    log_boundary: Tensor
    log_equation: Tensor
    log_weights: Tensor
    log_widths: Tensor
    frequencies: Tensor

    def parts(self) -> list[Tensor]:
        """All tensors."""
        return [getattr(self, name) for name in self.__dataclass_fields__]


@dataclass(frozen=True)
class Data:
    """The nodes of every axis, all of them [M, d], the source there, and the places and values of the boundary."""

    problem: Problem
    nodes: tuple[Tensor, ...]
    x: Tensor
    source: Tensor
    places: Tensor
    values: Tensor


def data_of(problem: Problem, nodes: Sequence[np.ndarray]) -> Data:
    """What the objective reads.

    Raises: InputError unless all conditions are Dirichlet's, no derivative is above the second, nothing is noisy or unknown.
    """
    dirichlet = all(isinstance(c, Dirichlet) for c in problem.conditions)
    if problem.uncertain or not dirichlet or max(problem.orders) > 2:
        raise InputError(
            'method="map-adam" is for equations of second order with Dirichlet conditions, without noise or observations; use'
            " the default method."
        )
    x, places, values = points(nodes), [], []
    numbers = torch.arange(len(x)).reshape([len(n) for n in nodes])
    for c in problem.conditions:
        here = numbers.select(c.face[0], -c.face[1]).reshape(-1)  # pyright: ignore[reportAttributeAccessIssue]
        places.append(here)
        values.append(evaluate(c.g, x[here], "A boundary value"))  # pyright: ignore[reportAttributeAccessIssue]
    source = evaluate(problem.source, x, "The source")  # pyright: ignore[reportArgumentType]
    return Data(problem, tuple(map(torch.from_numpy, nodes)), x, source, torch.cat(places), torch.cat(values))


def start(data: Data, highest: Sequence[float]) -> State:
    """As published: u = 0, equal weights, unit widths, frequencies even from 0 to the highest of every axis."""
    even = torch.stack([torch.linspace(0, h, COMPONENTS, dtype=torch.float64) for h in highest])
    zero = torch.zeros((), dtype=torch.float64)
    shape = tuple(len(n) for n in data.nodes)
    return State(
        torch.zeros(shape, dtype=torch.float64), zero, zero.clone(), torch.full_like(even, -math.log(COMPONENTS)),
        torch.zeros_like(even), even,
    )  # fmt: skip


def lag_kernel(lags: Tensor, log_weights: Tensor, log_widths: Tensor, frequencies: Tensor) -> list[Tensor]:
    """``k(t) = sum_q w_q exp(-b_q t^2) cos(2 pi mu_q t)``, ``b_q = exp(log_widths)``, and its first two derivatives."""
    t, b, m = lags[..., None], log_widths.exp(), 2 * math.pi * frequencies
    envelope, cosine, sine = log_weights.exp() * (-b * t**2).exp(), (m * t).cos(), (m * t).sin()
    slope, bend = -2 * b * t, 4 * b**2 * t**2 - 2 * b
    first = envelope * (slope * cosine - m * sine)
    second = envelope * ((bend - m**2) * cosine - 2 * slope * m * sine)
    return [(envelope * cosine).sum(-1), first.sum(-1), second.sum(-1)]


def objective(state: State, data: Data) -> Tensor:
    """Minus the log joint density, as published, but for constants.

    ``log N(vec u | 0, kron_d C_d) + w (N_b/2 log tau - tau/2 |u_b - g|^2) + M/2 log v - v/2 |F(u) - f|^2``, derivatives of u
    being its conditional means under the prior, w = BOUNDARY. Flat in the logarithms of weights: Jeffreys' prior of each.
    """
    kernels = []
    for axis, nodes in enumerate(data.nodes):
        shape = (part[axis] for part in (state.log_weights, state.log_widths, state.frequencies))
        kernels.append(lag_kernel(nodes[:, None] - nodes, *shape))
    factors = [torch.linalg.cholesky(k[0] + JITTER * torch.eye(len(k[0]), dtype=torch.float64)) for k in kernels]
    total, white = state.u.numel(), state.u
    determinant = torch.zeros((), dtype=torch.float64)
    for axis, factor in enumerate(factors):
        determinant = determinant + 2 * factor.diagonal().log().sum() * (total / len(factor))
        white = _along(white, axis, lambda v, L=factor: torch.linalg.solve_triangular(L, v, upper=False))
    prior = -0.5 * (determinant + white.square().sum())
    residual = _residual(state.u, data, kernels, factors)
    gap = state.u.reshape(-1)[data.places] - data.values
    boundary = 0.5 * (len(gap) * state.log_boundary - state.log_boundary.exp() * gap.square().sum())
    equation = 0.5 * (total * state.log_equation - state.log_equation.exp() * residual.square().sum())
    return -(prior + BOUNDARY * boundary + equation)


def train(state: State, data: Data, epochs: int, watch: Callable[[int, float], None] | None = None) -> State:
    """Adam on everything, with one rate. Cost per epoch: O(sum_d M_d^3 + M sum_d M_d).

    Raises: NumericalError if a kernel matrix cannot be factorised.
    """
    parts = [part.detach().clone().requires_grad_() for part in state.parts()]
    optimiser = torch.optim.Adam(parts, RATE)
    for epoch in range(epochs):
        optimiser.zero_grad()
        try:
            loss = objective(State(*parts), data)
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            raise NumericalError(
                f"Adam came to a kernel matrix without a Cholesky factor in epoch {epoch}; use fewer epochs, or the default"
                " method."
            ) from None
        loss.backward()
        optimiser.step()
        if watch is not None:
            watch(epoch, float(loss.detach()))
    return State(*(part.detach() for part in parts))


@differentiating()
def solved(problem: Problem, counts: tuple[int, ...], nodes: tuple[np.ndarray, ...]) -> Solution:
    """The solution after so many epochs, from frequencies up to that of Nyquist; off the nodes, its conditional mean."""
    data = data_of(problem, nodes)
    trained = train(start(data, [nyquist(n) for n in nodes]), data, EPOCHS)
    bases = tuple(_cardinal(trained, axis, n) for axis, n in enumerate(nodes))
    grid = Grid(tuple(galerkin(problem, d, b, n) for d, (b, n) in enumerate(zip(bases, nodes, strict=True))))
    values = trained.u.numpy()
    error = judge(problem, counts).error(grid, newton.State(values, {}, ()))
    return Solution(problem, nodes, Functions(problem.domain, Function(bases, values)), error)


def _cardinal(state: State, axis: int, nodes: np.ndarray) -> Basis:
    """The functions ``k(x, nodes) C^-1`` of an axis, whose coefficients are values at the nodes."""
    weights, widths = state.log_weights[axis].exp(), state.log_widths[axis].exp()
    scales = (widths / 2).sqrt() / math.pi
    kernel = SpectralMixture(COMPONENTS, weights.tolist(), state.frequencies[axis].abs().tolist(), scales.tolist())
    features = Lags(kernel, nodes, 4)
    root = np.sqrt(trapezoid(nodes))
    matrix = features(nodes, 0) / root
    transform = np.linalg.inv(matrix + JITTER * np.eye(len(nodes))) / root[:, None]
    return Basis(features, transform, np.ones(len(nodes)), matrix * root @ transform)


def _residual(u: Tensor, data: Data, kernels: list[list[Tensor]], factors: list[Tensor]) -> Tensor:
    """F(u) - f [M]."""
    jet: dict[Index, Tensor] = {}
    for index in data.problem.jet:
        value = u
        for axis in sorted(set(index)):
            derivative = kernels[axis][index.count(axis)]
            value = _along(value, axis, lambda v, K=derivative, L=factors[axis]: K @ torch.cholesky_solve(v, L))
        jet[index] = value.reshape(-1)
    return data.problem.equation.value(jet, data.x) - data.source


def _along(tensor: Tensor, axis: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of matrices [M, *] on one axis of a tensor."""
    moved = tensor.movedim(axis, 0)
    return function(moved.reshape(len(moved), -1)).reshape(moved.shape).movedim(0, axis)
