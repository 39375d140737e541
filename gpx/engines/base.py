"""What an engine is: a frozen dataclass of settings with a few methods, and nothing stored on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

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


class Engine(ABC):
    """How the Gaussian algebra is done. Engines are zero-mean: the sites they receive act on f minus its prior mean.

    exact: whether its posterior is that of the prior and the sites, or an approximation; additive: whether all that it wants of
    the data are sums over the rows, so that several processes can share these; private: whether rows never leave their process,
    not even for starts or a model file; start_rows: on how many rows `fit` judges its
    starts; consecutive: whether these are neighbours of each other; responsive: whether marginals are the derivatives of the log
    partition, and `Posterior.response` costs so little that sites are sought by Newton's method; precision: change of an
    objective, relative to its gain over white noise, that is not worth another step; partial: whether sites are
    on a part of f, what inducing inputs explain, and the posterior is theirs; batch_size: how many rows a step of `fit` sees,
    None: all of them; minimiser: how `fit` optimises, "l-bfgs", "adam" or "admm".
    """

    exact: ClassVar[bool] = True
    additive: ClassVar[bool] = False
    private: ClassVar[bool] = False
    start_rows: ClassVar[int] = 500
    consecutive: ClassVar[bool] = False
    responsive: ClassVar[bool] = True
    precision: ClassVar[float] = 1e-8
    partial: ClassVar[bool] = False
    batch_size: int | None = None

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

    def faithful(self, prior: Prior) -> bool:
        """Whether it is, at these hyperparameters, what engine="auto" took it for."""
        return True

    def revised(self, plan: Any, posterior: Posterior, x: Tensor) -> Any:
        """The plan, changed where more data at x [M, D] are not seen well enough through it; posterior: of the data so far."""
        return plan

    def state(self, plan: Any) -> dict[str, Tensor]:
        """What of a plan cannot be made anew from data and hyperparameters; saved with a model."""
        return {}

    def restored(self, prior: Prior, data: Data, state: dict[str, Tensor]) -> Any:
        """The plan for data, with what was kept of another one."""
        return self.plan(prior, data)

    def fits(self, data: Data, state: dict[str, Tensor]) -> bool:
        """Whether a fit can go on with what was kept of another plan."""
        return True

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
        return data.draw(rows)

    def batched(self, plan: Any) -> bool:
        """Whether `fit` sees some rows at a time, and sites are found in passes over blocks of them."""
        return self.batch_size is not None

    def roughness(self, plan: Any, rows: int) -> float:
        """By how many nats per unit of a coordinate the gradient of an objective may be wrong; a search ends on such a slope."""
        return 0.0

    def looseness(self, rows: int) -> float:
        """Changes of marginals, in standard deviations, that are below their accuracy: sites that move no more are found."""
        return 0.0

    def early(self, left: int) -> Engine:
        """The engine for a round of `fit` when so many are left after it: a coarser one may do."""
        return self

    def rounds(self, rows: int, plan: Any = None) -> tuple[int, ...]:
        """On how many rows `fit` optimises, one round after the other, the plan being made anew for each; plan: of all rows."""
        return (rows,)
