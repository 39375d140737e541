"""Adam on all coordinates: what published methods run, for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpx.inference import stage

if TYPE_CHECKING:
    from gpx.inference.problem import Problem

STEPS, RATE = 20, 0.01  # steps in a row, of which an iteration consists
PATIENCE, UNCHANGED = 10, 1e-6  # iterations that have to gain this share of the gain so far


def adam(search: Any, start: np.ndarray, bounds: np.ndarray, options: Any, bar: Any) -> tuple[bool, str, int]:
    """Steps of rate 0.01, 20 per iteration, until ten iterations in a row gain nothing.

    Arguments: search: the objective as a function of coordinates, which remembers the best point.
    Returns: whether it settled, why it stopped, and after how many iterations.
    """
    point = torch.from_numpy(start.copy()).requires_grad_()
    optimiser, history = torch.optim.Adam([point], lr=RATE), []
    for number in range(options.max_iter):
        descend(search, search.problem, optimiser, point, bounds)
        z = point.detach().numpy()
        loss, gradient = search.evaluate(search.problem.anew(), z)
        search.evaluations += 1
        search.record(loss, z, gradient, None)
        search.note()
        bar.update()
        history.append(search.best)
        if late(search):
            return False, "max_seconds is up", number + 1
        if number >= PATIENCE and history[-1 - PATIENCE] - history[-1] <= UNCHANGED * abs(history[-1]):
            return True, "objective no longer changes", number + 1
    return False, f"max_iter={options.max_iter} reached", options.max_iter


def descend(search: Any, problem: Problem, optimiser: torch.optim.Adam, point: Tensor, bounds: np.ndarray) -> None:
    """Some steps from a point [P], which is moved, inside the bounds."""
    for _ in range(STEPS):
        if late(search):
            return
        _, gradient = search.evaluate(problem.anew(problem.start), point.detach().numpy())
        search.evaluations += 1
        point.grad = torch.from_numpy(np.nan_to_num(gradient))
        optimiser.step()
        with torch.no_grad():
            point.clamp_(torch.from_numpy(bounds[:, 0]), torch.from_numpy(bounds[:, 1]))


def late(search: Any) -> bool:
    """Whether the time is up and there is a point to end at."""
    return search.best_z is not None and stage.late(search.deadline, search.problem.data.team)
