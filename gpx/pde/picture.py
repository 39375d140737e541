"""Pictures of solutions (need matplotlib: the extra `plot`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpx.errors import InputError
from gpx.pde.domains import points
from gpx.pde.fields import evaluate
from gpx.plot import COLOURS, INK, _axes, _dress

if TYPE_CHECKING:
    from gpx.pde.scattered import PointSolution
    from gpx.pde.solution import Solution

LINE, IMAGE = 1500, 240  # points per axis


def plot(solution: Solution, ax: Any = None) -> Any:
    """See `Solution.plot`."""
    ax = _given(ax)
    problem = solution.problem
    ax.set_title(f"{problem.name or 'Solution'}: estimated error {solution.error_estimate:.1e}", loc="left", color=INK)
    if problem.domain.dims == 1:
        return _line(solution, ax)
    axes = problem.domain.axes([IMAGE] * problem.domain.dims)
    axes[2:] = [np.array([np.mean(bounds)]) for bounds in problem.domain.bounds[2:]]
    values = solution.on(axes).reshape(IMAGE, IMAGE)
    extent = [*problem.domain.bounds[0], *problem.domain.bounds[1]]
    image = ax.imshow(values.T.numpy(), origin="lower", extent=extent, aspect="auto", cmap="RdBu_r")
    ax.figure.colorbar(image, ax=ax, label="u")
    ax.set_xlabel("axis 0")
    ax.set_ylabel("axis 1")
    return ax


def _line(solution: Solution, ax: Any) -> Any:
    x = solution.problem.domain.axes([LINE])
    nodes, std = solution.nodes[0], solution.std.numpy()
    if solution.problem.exact is not None:
        truth = evaluate(solution.problem.exact, points(x), "exact")
        ax.plot(x[0], torch.as_tensor(truth), color=COLOURS[1], lw=3, alpha=0.4, label="exact")
    mean = solution.u.numpy()
    ax.fill_between(
        nodes, mean - 2 * std, mean + 2 * std, color=COLOURS[0], alpha=0.2, lw=0, label="two standard deviations"
    )
    ax.plot(x[0], solution.on(x), color=COLOURS[0], lw=1.2, label="u")
    ax.set_xlabel("x")
    ax.legend(loc="best")
    return _dress(ax)


def _given(ax: Any) -> Any:
    """The axes, or new ones. Raises: InputError for what is none."""
    if ax is None:
        return _axes()
    if not hasattr(ax, "set_title"):
        raise InputError(
            f"ax is None or matplotlib axes, as plt.subplots()[1] makes them, got {type(ax).__name__}: {ax!r}."
        )
    return ax


def plot_points(solution: PointSolution, ax: Any = None) -> Any:
    """See `PointSolution.plot`."""
    from matplotlib.tri import Triangulation

    ax = _given(ax)
    problem, x, values = solution.problem, solution.points.numpy(), solution.u.numpy()
    ax.set_title(f"{problem.name or 'Solution'}: estimated error {solution.error_estimate:.1e}", loc="left", color=INK)
    if problem.domain.dims == 1:
        order, std = x[:, 0].argsort(), solution.std.numpy()
        low, high = (values - 2 * std)[order], (values + 2 * std)[order]
        ax.fill_between(x[order, 0], low, high, color=COLOURS[0], alpha=0.2, lw=0, label="two standard deviations")
        ax.plot(x[order, 0], values[order], color=COLOURS[0], lw=1.2, label="u")
        ax.set_xlabel("x")
        ax.legend(loc="best")
        return _dress(ax)
    mesh = Triangulation(x[:, 0], x[:, 1])
    middles = torch.from_numpy(x[mesh.triangles].mean(1))
    if problem.domain.inside is not None:
        mesh.set_mask(~torch.as_tensor(problem.domain.inside(middles)).numpy())
    image = ax.tripcolor(mesh, values, shading="gouraud", cmap="RdBu_r")
    ax.figure.colorbar(image, ax=ax, label="u")
    ax.set_xlabel("axis 0")
    ax.set_ylabel("axis 1")
    ax.set_aspect("equal")
    return ax
