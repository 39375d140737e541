"""Where a fit is: what it takes to go on from there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from gpx.inference.coordinates import Coordinates
from gpx.inference.problem import Problem
from gpx.parallel import Team


@dataclass(frozen=True)
class Reached:
    """points [S, P]: coordinates to go on from, the best of them first; left: how many rounds are left, that of the points
    included; state: what hyperparameters do not determine of the plan; drawn: whether random starts are among the points.
    """

    points: np.ndarray
    left: int = 1
    state: dict[str, Tensor] = field(default_factory=dict)
    drawn: bool = False

    def plan(self, problem: Problem) -> Any:
        """The plan with this state, None where there is none, or the engine takes another."""
        engine = problem.engine
        if not self.state or not engine.fits(problem.data, self.state):
            return None
        return engine.restored(problem.prior, problem.data, self.state)


Keep = Callable[[Reached], None]


@dataclass
class Trace:
    """The way through the starts of one round.

    keep: is handed what is reached; coordinates: of the problem, the engine's tensors included, which the starts leave out;
    left: how many rounds are left, this one included.
    """

    keep: Keep
    problem: Problem
    coordinates: Coordinates
    starts: list[np.ndarray]
    left: int
    begun: int = 1
    best: float = math.inf
    best_z: np.ndarray | None = None
    owner: int = 0

    def __post_init__(self) -> None:
        self._keep(self.starts)

    def note(self, loss: float, z: np.ndarray | None) -> None:
        """The best point so far of the present search. The modules are moved to the best of all."""
        if z is not None and loss < self.best:
            self.best, self.best_z, self.owner = loss, z, self.begun
        if self.best_z is None:
            return
        self.coordinates.assign(self.best_z)
        # A search that has found nothing better is begun anew.
        waiting = self.starts[self.begun if self.owner == self.begun else self.begun - 1 :]
        self._keep([self.best_z[: len(self.starts[0])], *waiting])

    def _keep(self, points: list[np.ndarray]) -> None:
        state = self.problem.engine.state(self.problem.plan)
        state = {name: value.detach().clone() for name, value in state.items()}
        self.keep(Reached(np.array(points), self.left, state, drawn=True))

    def next(self) -> None:
        """The present search has ended."""
        self.begun += 1


def late(deadline: float, team: Team) -> bool:
    """Whether the time of one of the processes is up."""
    return math.isfinite(deadline) and team.any(time.monotonic() > deadline)
