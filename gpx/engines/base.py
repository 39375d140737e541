"""What an engine is: a frozen dataclass of settings with three methods, and nothing stored on it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from gpx.inputs import Data
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import Sites


class Plan(Protocol):
    """The integer and combinatorial work of an engine for one data set."""

    def stale(self, prior: Prior) -> bool:
        """Whether the hyperparameters have moved so far that the plan should be made anew."""
        ...


class Engine(Protocol):
    """How the Gaussian algebra is done. Engines are zero-mean: the sites they receive act on f minus its prior mean."""

    def plan(self, prior: Prior, data: Data) -> Any:
        """Work without gradients: sorting, orders, neighbours."""
        ...

    def parameters(self, prior: Prior, plan: Any) -> dict[str, Tensor]:
        """Extra trainables, such as inducing inputs; empty for most engines."""
        ...

    def condition(self, prior: Prior, plan: Any, params: dict[str, Tensor], sites: Sites) -> Posterior:
        """The posterior ``prior x sites``, a pure function of its arguments."""
        ...
