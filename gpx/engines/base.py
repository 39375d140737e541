"""What an engine is: a frozen dataclass of settings with a few methods, and nothing stored on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gpx.inputs import Data
from gpx.posterior import Posterior, make_generator
from gpx.prior import Prior
from gpx.sites import Sites


class Plan(Protocol):
    """The integer and combinatorial work of an engine for one data set."""

    def stale(self, prior: Prior) -> bool:
        """Whether the hyperparameters have moved so far that the plan should be made anew."""
        ...


class Engine(ABC):
    """How the Gaussian algebra is done. Engines are zero-mean: the sites they receive act on f minus its prior mean.

    start_rows: on how many rows `fit` judges its starts; neighbours: whether these are neighbours of each other; minimiser: how
    `fit` optimises, "l-bfgs" or "adam".
    """

    start_rows: ClassVar[int] = 500
    neighbours: ClassVar[bool] = False

    @property
    def minimiser(self) -> str:
        return "l-bfgs"

    @abstractmethod
    def plan(self, prior: Prior, data: Data) -> Any:
        """Work without gradients: sorting, orders, neighbours."""

    def replan(self, prior: Prior, data: Data, plan: Any, precision: float = 0.0) -> Any:
        """The plan for more data, with hyperparameters nearer to the optimum, from that of a round before; precision: the mean of
        its sites', 0 where the plan should not become larger.
        """
        return self.plan(prior, data)

    def revised(self, plan: Any, posterior: Posterior, x: Tensor) -> Any:
        """The plan, changed where more data at x [M, D] are not seen well enough through it; posterior: of the data so far."""
        return plan

    def state(self, plan: Any) -> dict[str, Tensor]:
        """What of a plan cannot be made anew from data and hyperparameters; saved with a model."""
        return {}

    def restored(self, prior: Prior, data: Data, state: dict[str, Tensor]) -> Any:
        """The plan for data, with what was kept of another one."""
        return self.plan(prior, data)

    def parameters(self, prior: Prior, plan: Any) -> dict[str, Tensor]:
        """Extra trainables, such as inducing inputs; empty for most engines."""
        return {}

    @abstractmethod
    def condition(self, prior: Prior, plan: Any, params: dict[str, Tensor], sites: Sites) -> Posterior:
        """The posterior ``prior x sites``, a pure function of its arguments."""

    def few(self, data: Data, plan: Any, rows: int) -> Tensor | None:
        """At most so many rows that are a smaller problem of the same kind: here, drawn evenly at random by a fixed seed; None
        where only all rows will do.
        """
        seen = data.observed.any(1).nonzero().flatten()
        order = torch.randperm(len(seen), generator=make_generator(0))[:rows].sort().values
        return seen[order.to(seen.device)]

    def rounds(self, rows: int) -> tuple[int, ...]:
        """On how many rows `fit` optimises, one round after the other, the plan being made anew for each."""
        return (rows,)
