"""A small physics-informed network: what equations are solved with where nothing better is at hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Function = Callable[[Tensor], Tensor]

WIDTH, LAYERS = 64, 4  # of hidden layers
RATE = 1e-3  # of Adam
INSIDE, FACE = {1: 1000, 2: 1000, 3: 1000}, 100  # points
WEIGHT = 100.0  # of the conditions
BY_ADAM = 0.6  # of the seconds; L-BFGS has the rest
TEST_POINTS = {1: 3000, 2: 150, 3: 30}  # per axis


def error(problem: Any, seconds: float, seed: int) -> float:
    """The relative error against the exact solution, after training for so many seconds.

    Loss: mean squares of the equation's residual and, weighted, of those of the conditions, in units of the source and of the
    boundary values, at random points; Adam, then L-BFGS. Source: Raissi, Perdikaris & Karniadakis (2019), Journal of Computational
    Physics 378.
    """
    import torch

    from gpx.pde.domains import points

    torch.manual_seed(seed)
    network, loss = perceptron(problem.domain.bounds), squares(problem)
    train(network, lambda: loss(network), seconds)
    x = points(problem.domain.axes([TEST_POINTS[problem.domain.dims]] * problem.domain.dims))
    with torch.no_grad():
        gap, truth = network(x) - problem.exact(x), problem.exact(x)
    return float(gap.norm() / truth.norm())


def perceptron(bounds: Any) -> Any:
    """A network from x [n, d] to [n], of tanh units; inputs are scaled to (-1, 1)."""
    import torch

    low, high = torch.tensor(bounds, dtype=torch.float64).T
    sizes = [len(bounds), *[WIDTH] * LAYERS, 1]
    layers: list[Any] = []
    for width, following in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(width, following), torch.nn.Tanh()]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(*layers[:-1]).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(2 * (x - low) / (high - low) - 1)[:, 0]

    return Network()


def squares(problem: Any) -> Callable[[Function], Tensor]:
    """The loss of a function of x."""
    import torch

    from gpx.pde.expressions import evaluate

    low, high = torch.tensor(problem.domain.bounds, dtype=torch.float64).T
    inside = low + (high - low) * torch.rand(INSIDE[problem.domain.dims], problem.domain.dims, dtype=torch.float64)
    source = evaluate(problem.source, inside, "The source")
    conditions = [faced(problem, condition, low, high) for condition in problem.conditions]
    size = max([float(values.square().mean()) for _, values in conditions], default=0.0) or 1.0

    def loss(function: Function) -> Tensor:
        residual = problem.equation.value(jets(function, inside, problem.jet), inside) - source
        total = residual.square().mean() / (float(source.square().mean()) or 1.0)
        for of, values in conditions:
            total = total + WEIGHT * (of(function) - values).square().mean() / size
        return total

    return loss


def jets(function: Function, x: Tensor, indices: Any) -> dict[tuple[int, ...], Tensor]:
    """Derivatives [n] of a function, and its values."""
    import torch

    at = x.detach().requires_grad_()
    found = {(): function(at)}
    for index in sorted({full[:n] for full in indices for n in range(1, len(full) + 1)}, key=len):
        of = found[index[:-1]]
        found[index] = torch.autograd.grad(of.sum(), at, create_graph=True)[0][:, index[-1]]
    return found


def faced(problem: Any, condition: Any, low: Tensor, high: Tensor) -> tuple[Callable[[Function], Tensor], Tensor]:
    """What a condition asks of a function, at points of its face, and the values."""
    import torch

    from gpx.pde import Periodic
    from gpx.pde.expressions import evaluate

    x = low + (high - low) * torch.rand(FACE if len(low) > 1 else 1, len(low), dtype=torch.float64)
    if isinstance(condition, Periodic):
        axis, ends = condition.axis, (x.clone(), x)
        for end, at in zip(ends, problem.domain.bounds[axis], strict=True):
            end[:, axis] = at
        orders = [(axis,) * n for n in range(problem.orders[axis])]

        def gaps(function: Function) -> Tensor:
            first, last = (jets(function, end, orders) for end in ends)
            return torch.stack([last[index] - first[index] for index in orders])

        return gaps, torch.zeros((), dtype=torch.float64)
    axis, side = condition.face
    x[:, axis] = problem.domain.end(condition.face)

    def robin(function: Function) -> Tensor:
        found = jets(function, x, [(axis,)] if condition.b else [])
        slope = condition.b * (2 * side - 1) * found[(axis,)] if condition.b else 0.0
        return condition.a * found[()] + slope

    return robin, evaluate(condition.g, x, "A boundary value")


def train(network: Any, loss: Callable[[], Tensor], seconds: float) -> None:
    """Adam, then L-BFGS, at least one step of each, until its share of the time is over."""
    import torch

    began = time.perf_counter()

    def closure() -> Tensor:
        network.zero_grad()
        value = loss()
        value.backward()
        return value

    adam = torch.optim.Adam(network.parameters(), RATE)
    newton = torch.optim.LBFGS(network.parameters(), max_iter=1, history_size=50, line_search_fn="strong_wolfe")
    for optimiser, until in ((adam, BY_ADAM * seconds), (newton, seconds)):
        optimiser.step(closure)  # pyright: ignore[reportArgumentType]
        while time.perf_counter() - began < until:
            optimiser.step(closure)  # pyright: ignore[reportArgumentType]
