"""Engines that see the data through inducing inputs: what `SparseVariational` and `Coreset` share.

Theory: docs/theory/sparse.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gpx.engines.inducing_frame import InducingFrame
from gpx.engines.projected import ProjectedPlan, ProjectedPosterior, Projecting
from gpx.engines.projections import Frame
from gpx.errors import InputError
from gpx.inputs import Data
from gpx.prior import Prior
from gpx.selection import choose_selection
from gpx.selection.greedy import pivots
from gpx.structure.metric import require_metric

LITTLE = 0.01  # nats per target that too few inducing inputs may lose
SHARE = 0.2  # of what may be lost that is left when some are added: with more of them the noise falls, and that counts for more
FAR = 2.0  # times as much as the data lose: new data that do are far from the inducing inputs
CANDIDATES = (10_000, 10)  # rows that inducing inputs are chosen from: so many, or this multiple of their number


@dataclass(frozen=True)
class InducingPlan(ProjectedPlan):
    """With inducing inputs [M, D] for every kernel."""

    inducing: tuple[Tensor, ...]


class Inducing(Projecting):
    """An engine that sees the data through inducing inputs; a subclass has the fields ``select`` and ``refine``."""

    exact: ClassVar[bool] = False

    select: Any
    refine: bool

    @property
    @abstractmethod
    def size(self) -> int:
        """M."""

    @property
    def largest(self) -> int:
        """How many inducing inputs there may be after rounds of a fit."""
        return self.size

    def plan(self, prior: Prior, data: Data) -> InducingPlan:
        """Choose the inducing inputs among the rows with a target."""
        if self.refine:
            for kernel in prior.kernels:
                require_metric(kernel, f"engines.{type(self).__name__} with refine=True")
        rows = self._candidates(data)
        return self._agreed(data, lambda: [self._chosen(kernel, rows, self.size) for kernel in prior.kernels])

    def _candidates(self, data: Data) -> Tensor:
        """Rows of all processes that inducing inputs are chosen from."""
        few = data.draw(max(CANDIDATES[0], CANDIDATES[1] * self.size))
        return torch.cat(data.team.gather(data.x[few]))

    def _agreed(self, data: Data, choose: Callable[[], Sequence[Tensor]]) -> InducingPlan:
        """The plan with inducing inputs that one process chooses for all."""
        return self._planned(data, data.team.share(lambda: [z.detach().cpu() for z in choose()]))

    def _planned(self, data: Data, inducing: Sequence[Tensor]) -> InducingPlan:
        z = (z.to(data.x).clone() for z in inducing)
        return InducingPlan(data.x, data.team, tuple(torch.nn.Parameter(v) if self.refine else v for v in z))

    def _chosen(self, kernel: Any, rows: Tensor, size: int) -> Tensor:
        if not len(rows):
            return rows
        found, _ = choose_selection(self.select)(kernel, rows, min(size, len(rows)), seed=0)
        return found if found.is_floating_point() else rows[found]

    def replan(self, prior: Prior, data: Data, plan: InducingPlan, precision: float = 0.0) -> InducingPlan:
        """Keep inducing inputs that were refined, choose others anew; add some while they lose more than 0.01 nats per target."""
        rows = self._candidates(data)

        def chosen(kernel: Any, z: Tensor) -> Tensor:
            z = z if self.refine else self._chosen(kernel, rows, max(self.size, len(z)))
            return _extended(InducingFrame(kernel, z), rows, precision, LITTLE, self.largest)

        return self._agreed(data, lambda: list(map(chosen, prior.kernels, plan.inducing)))

    def revised(self, plan: InducingPlan, posterior: ProjectedPosterior, x: Tensor) -> InducingPlan:
        """Inducing inputs among x, where those that there are explain it less well than the data: at most as many again."""
        team, sites = plan.team, posterior.sites
        with torch.no_grad():
            lost = float(posterior.unexplained) / max(1, team.count(int(sites.present.sum())))
        little, rows = max(LITTLE, FAR * lost), torch.cat(team.gather(x))
        precision = float(team.mean(np.array([sites.mean_precision]))[0])
        frames = [p.frame for p in posterior.projections if isinstance(p.frame, InducingFrame)]
        found = team.share(lambda: [_extended(f, rows, precision, little, 2 * len(f.z)).detach().cpu() for f in frames])
        if all(len(z) == len(frame.z) for z, frame in zip(found, frames, strict=True)):
            return plan
        return replace(plan, inducing=tuple(z.to(x) for z in found))

    def state(self, plan: InducingPlan) -> dict[str, Tensor]:
        """The inducing inputs."""
        return {f"inducing {k}": z.detach() for k, z in enumerate(plan.inducing)}

    def restored(self, prior: Prior, data: Data, state: dict[str, Tensor]) -> InducingPlan:
        """With the same inducing inputs."""
        return self._planned(data, [state[f"inducing {k}"] for k in range(len(prior.kernels))])

    def fits(self, data: Data, state: dict[str, Tensor]) -> bool:
        """Whether there are as many inducing inputs as this engine takes."""
        return bool(state) and all(min(self.size, data.targets) <= len(z) <= self.largest for z in state.values())

    def rounds(self, rows: int, plan: Any = None) -> tuple[int, ...]:
        """3,000 rows, thrice as many, ..., and all of them: twice if inducing inputs are chosen anew for the final kernel, or may
        become more and could not before.
        """
        fewer = self.parts(rows)
        once = self.refine and (bool(fewer) or self.largest == self.size)
        return (*fewer, rows) if once else (*fewer, rows, rows)

    def parameters(self, prior: Prior, plan: InducingPlan) -> dict[str, Tensor]:
        """The inducing inputs, where they are refined."""
        return {f"inducing {k}": z for k, z in enumerate(plan.inducing)} if self.refine else {}

    @property
    def unbatched(self) -> Any:
        """The batches move the inducing inputs: before, they stay among the data."""
        return replace(super().unbatched, refine=False)

    def frames(self, prior: Prior, plan: InducingPlan) -> list[Frame]:
        """A frame of inducing inputs for every kernel."""
        return [InducingFrame(kernel, z) for kernel, z in zip(prior.kernels, plan.inducing, strict=True)]


@torch.no_grad()
def _extended(frame: InducingFrame, rows: Tensor, precision: float, little: float, largest: int) -> Tensor:
    """More inducing inputs among these rows, until the variance that is left costs little, in nats per target."""
    kernel, z = frame.kernel, frame.z
    if precision <= 0 or len(z) >= largest or not len(rows):
        return z
    (w, left), enough = frame.at(rows), 2 * little / precision
    if float(left.mean()) <= enough:
        return z
    return torch.cat([z, rows[pivots(kernel, rows, largest - len(z), w, SHARE * enough)]])


def check_select(engine: Any, size: Any, name: str) -> None:
    """Raise InputError for a number of inducing inputs or a selection that is none."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"{type(engine).__name__} needs {name}, a number of inputs >= 1, got {size!r}.")
    choose_selection(engine.select)
