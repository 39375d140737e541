"""A posterior that is that of M weighted pseudo-observations, which one can look at. Theory: docs/theory/sparse.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpx.engines.inducing import Inducing, InducingPlan, check_select
from gpx.engines.inducing_frame import InducingFrame, root
from gpx.engines.projected import ProjectedPosterior
from gpx.engines.projections import Frame, Statistics
from gpx.engines.whitened import Solution, exact_solution
from gpx.errors import InputError, NumericalError, StructureError
from gpx.inputs import Data
from gpx.posterior import Posterior, Shifted
from gpx.prior import Prior
from gpx.sites import Sites

METHODS = ("optimum", "adam")
START_NOISE = 0.1  # of the target's variance: that of a datum, where the precisions are searched for
STEPS = 200  # of the fixed point for the precisions
SETTLED = 1e-10  # relative change of the precisions
LARGE_GAP = 0.01  # nats per datum
SMALLEST = 1e-10  # of the largest precision: none is negative


class PseudoData(NamedTuple):
    """Weighted pseudo-observations: points [M, D], targets [M] of f, the precision [M] of each, in inverse squared target
    units, and the gap, nats by which the bound is lower than with the best q(u) on these points.
    """

    points: Tensor
    targets: Tensor
    precisions: Tensor
    gap: float


@dataclass(frozen=True)
class Coreset(Inducing):
    """Variational inference with the posterior of M pseudo-observations: ``q(u) ~ p(u) prod_m N(y_m | u_m, 1 / b_m)``.

    The pseudo-targets have a closed form, and with them q has the mean of `SparseVariational`; the precisions b solve
    ``(S o S) b = diag(S A S)``, S the covariance of q(u) and A what the data add to its best precision. The bound is that of
    `SparseVariational` less ``KL(q || best q)``: see `max_gap`.

    Arguments: size: how many, M; select, refine: as for `SparseVariational`; max_gap: nats that the bound may be lower than with
    a full covariance before that is used instead; None: never; method: "optimum": targets and precisions that are best for the
    hyperparameters at hand; "adam": the published search, all of them coordinates beside the hyperparameters and moved by Adam,
    for comparison (one target column; 20 steps per iteration of `fit`).
    Raises: InputError for another value. Cost: as for `SparseVariational`, and some tens of M^3.
    Source: Ketenci et al. (2025), "Accurate and scalable stochastic Gaussian process regression via learnable coreset-based
    variational inference" (the family; the optimum is derived in docs/theory/sparse.md).

    >>> Coreset(size=64)
    Coreset(size=64, select='greedy', refine=True, max_gap=None, method='optimum')
    """

    size: int = 128  # pyright: ignore[reportIncompatibleMethodOverride]
    select: Any = "greedy"
    refine: bool = True
    max_gap: float | None = None
    method: str = "optimum"

    def __post_init__(self) -> None:
        check_select(self, self.size, "size")
        if self.max_gap is not None and not self.max_gap >= 0:
            raise InputError(f"Coreset needs max_gap >= 0, nats, or None, got {self.max_gap!r}.")
        if self.method not in METHODS:
            raise InputError(f"Coreset needs method='optimum' or method='adam', got {self.method!r}.")

    @property
    def minimiser(self) -> str:
        return "l-bfgs" if self.method == "optimum" else "adam"

    def plan(self, prior: Prior, data: Data) -> InducingPlan:
        """With pseudo-observations to start from, where they are searched for."""
        plan = super().plan(prior, data)
        return plan if self.method == "optimum" else _searched(plan, prior, data)

    def condition(
        self, prior: Prior, plan: InducingPlan, params: dict[str, Tensor], sites: Sites
    ) -> ProjectedPosterior:
        """Raises: InputError where the pseudo-observations of one column would serve several."""
        if isinstance(plan, PseudoPlan) and sites.nu.shape[1] > 1:
            raise InputError(
                "Coreset(method='adam') takes one target column and latent function: use method='optimum'."
            )
        return super().condition(prior, plan, params, sites)

    def parameters(self, prior: Prior, plan: InducingPlan) -> dict[str, Tensor]:
        """The inducing inputs, where they are refined, and the pseudo-observations, where they are searched for."""
        return super().parameters(prior, plan) | (plan.searched if isinstance(plan, PseudoPlan) else {})

    def state(self, plan: InducingPlan) -> dict[str, Tensor]:
        """The inducing inputs and the pseudo-observations that were searched for."""
        if not isinstance(plan, PseudoPlan):
            return super().state(plan)
        searched = {name: value.detach() for name, value in plan.searched.items()}
        return super().state(plan) | searched | {"unit": plan.x.new_tensor(plan.unit)}

    def restored(self, prior: Prior, data: Data, state: dict[str, Tensor]) -> InducingPlan:
        """With the same inducing inputs and pseudo-observations."""
        plan = super().restored(prior, data, state)
        if self.method == "optimum":
            return plan
        targets, precisions = (state[name].to(data.x) for name in PSEUDO)
        unit = float(state["unit"])
        return PseudoPlan(plan.x, plan.team, plan.inducing, targets=targets, precisions=precisions, unit=unit)

    def revised(self, plan: InducingPlan, posterior: ProjectedPosterior, x: Tensor) -> InducingPlan:
        """Raises: StructureError where pseudo-observations were searched for."""
        if isinstance(plan, PseudoPlan):
            raise StructureError(
                "The pseudo-observations of Coreset(method='adam') are those of the data of the fit: fit again with all data, or"
                " use method='optimum', which can be updated."
            )
        return super().revised(plan, posterior, x)

    def few(self, data: Data, plan: InducingPlan, rows: int) -> Tensor | None:
        """None where pseudo-observations are searched for: they are those of all rows."""
        return super().few(data, plan, rows) if self.method == "optimum" else None

    def rounds(self, rows: int, plan: Any = None) -> tuple[int, ...]:
        """As for other inducing inputs; one where pseudo-observations are searched for."""
        return super().rounds(rows, plan) if self.method == "optimum" else (rows,)

    def frames(self, prior: Prior, plan: InducingPlan) -> list[Frame]:
        frames = super().frames(prior, plan)
        if not isinstance(plan, PseudoPlan):
            return frames
        return [PseudoFrame(kernel, z, plan) for kernel, z in zip(prior.kernels, plan.inducing, strict=True)]

    def solve(self, statistics: Statistics, frame: Frame) -> Solution:
        """The best q(u) of the family, or that of given pseudo-observations; differentiable where gradients are enabled."""
        best = exact_solution(statistics)
        assert isinstance(frame, InducingFrame)
        factor = root(frame.kernel, frame.z) if torch.is_grad_enabled() else frame.root
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
        added = inverse.mT @ statistics.gram[0] @ inverse
        found = DiagonalSolution(best.lower, best.c, best.value, factor, statistics.gram[0], added)
        if isinstance(frame, PseudoFrame):
            parts = (getattr(found, field.name) for field in fields(found))
            return GivenSolution(*parts, pseudo_targets=frame.targets, given=frame.precisions)
        return best if self.max_gap is not None and float(found.gap.detach()) > self.max_gap else found

    def note(self, posterior: ProjectedPosterior) -> str:
        """That much is lost by a diagonal precision, where it is."""
        gaps = [float(s.gap) for s in posterior.solved if isinstance(s, DiagonalSolution)]
        lost = max(gaps, default=0.0) / max(1, posterior.rows)
        if lost <= LARGE_GAP:
            return ""
        advice = (
            "a larger size, or max_gap=... to take the full covariance"
            if self.method == "optimum"
            else "method='optimum'"
        )
        return (
            f"the bound of the coreset is {lost:.3g} nats per datum below that of a full covariance on the same points: use"
            f" {advice}"
        )


PSEUDO = ("pseudo-targets", "log precisions")


@dataclass(frozen=True, kw_only=True)
class PseudoPlan(InducingPlan):
    """With pseudo-observations: targets [M] in this unit, and log precisions [M] in its inverse square."""

    targets: Tensor
    precisions: Tensor
    unit: float

    @property
    def searched(self) -> dict[str, Tensor]:
        """What is searched for, by name."""
        return dict(zip(PSEUDO, (self.targets, self.precisions), strict=True))


@dataclass(frozen=True, eq=False)
class PseudoFrame(InducingFrame):
    """With pseudo-observations at the inducing inputs, read when they are asked for: gradients follow those that move."""

    plan: PseudoPlan

    @property
    def targets(self) -> Tensor:
        """[M]."""
        return self.plan.unit * self.plan.targets

    @property
    def precisions(self) -> Tensor:
        """[M]."""
        return self.plan.precisions.exp() / self.plan.unit**2


def _searched(plan: InducingPlan, prior: Prior, data: Data) -> PseudoPlan:
    """Each starts as the datum next to it, and stands for as many as all others."""
    if data.team.size > 1:
        raise StructureError("Coreset(method='adam') is fitted by one process: use method='optimum' in several.")
    seen, z, unit = data.observed[:, 0], plan.inducing[0].detach(), data.variance**0.5
    x, mean = data.x[seen], prior.mean(data.x[seen]).detach().reshape(int(seen.sum()), -1)[:, 0]
    x, y = x / data.spread, data.y[seen, 0] - mean
    nearest = torch.cdist(z / data.spread, x).argmin(1) if len(x) else torch.zeros(0, dtype=torch.long)
    weight = math.log(len(x) / max(1, len(z)) / START_NOISE) if len(x) else 0.0
    targets, precisions = map(torch.nn.Parameter, (y[nearest] / unit, torch.full_like(z[:, 0], weight)))
    return PseudoPlan(plan.x, plan.team, plan.inducing, targets=targets, precisions=precisions, unit=unit)


@dataclass(frozen=True, eq=False)
class DiagonalSolution(Solution):
    """q(u) with the mean of the best one and the precision ``K^-1 + diag b``. root: L; gram: ``sum tau w w^T``; added: the
    same for u, ``A = L^-T gram L^-1``.
    """

    root: Tensor
    gram: Tensor
    added: Tensor

    @cached_property
    def precisions(self) -> Tensor:
        """b [M]: a damped fixed point, as numbers, and one Newton step at it, which carries the gradient."""
        with torch.no_grad():
            b = _fixed_point(self.root, self.added)
            jacobian = _jacobian(_covariance(self.root, b), self.added, b)
        if not torch.is_grad_enabled():
            return b
        residual = _residual(_covariance(self.root, b), self.added, b)
        return b + _solve_free(jacobian, residual - residual.detach(), b)

    @cached_property
    def spread(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The Cholesky factor of ``1 + L^T diag(b) L``."""
        return _precision_root(self.root, self.precisions)

    @property
    def gap(self) -> Tensor:
        """``KL(q || best q)``: what the bound loses, in nats."""
        covariance = torch.cholesky_inverse(self.spread)
        trace = covariance.diagonal().sum() + (covariance * self.gram).sum()
        logdets = self.lower.diagonal().log().sum() - self.spread.diagonal().log().sum()
        return 0.5 * (trace - len(covariance)) - logdets

    def log_partition(self) -> Tensor:
        return super().log_partition() - self.c.shape[1] * self.gap

    def in_covariance(self, gram: Tensor) -> Tensor:
        """Through the precisions: ``[(S o S) + 2 S o (S E S)] db = diag(S dA S)``, E = A - diag b."""
        b, inverse = (
            self.precisions,
            torch.linalg.solve_triangular(self.root, torch.eye(len(self.root)).to(gram), upper=False),
        )
        covariance = _covariance(self.root, b)
        moved = ((covariance @ (inverse.mT @ gram @ inverse)) * covariance).sum(-1)
        db = torch.stack([_solve_free(_jacobian(covariance, self.added, b), m, b) for m in moved])
        half = inverse @ covariance
        return -(half * db[:, None]) @ half.mT

    def targets(self) -> Tensor:
        """[M, c]: those of which q has its mean, ``m + K^-1 m / b``."""
        scaled = torch.linalg.solve_triangular(self.root.mT, self.mean, upper=True)
        return self.root @ self.mean + scaled / self.precisions[:, None]


@dataclass(frozen=True, eq=False)
class GivenSolution(DiagonalSolution):
    """q(u) of pseudo-observations that do not depend on the sites."""

    pseudo_targets: Tensor
    given: Tensor

    @property
    def precisions(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[M]."""
        return self.given

    @cached_property
    def mean(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``(1 + L^T b L)^-1 L^T b y`` [M, 1]."""
        return torch.cholesky_solve(self.root.mT @ (self.given * self.pseudo_targets)[:, None], self.spread)

    @property
    def gap(self) -> Tensor:
        """``KL(q || best q)``, of the mean, too."""
        best = torch.linalg.solve_triangular(self.lower.mT, self.c, upper=True)
        return super().gap + 0.5 * (self.lower.mT @ (self.mean - best)).square().sum()

    def in_mean(self, push: Tensor) -> Tensor:
        """None."""
        return torch.zeros_like(push)

    def in_covariance(self, gram: Tensor) -> Tensor:
        """None."""
        return torch.zeros_like(gram)

    def targets(self) -> Tensor:
        """[M, 1]."""
        return self.pseudo_targets[:, None]


def _precision_root(factor: Tensor, b: Tensor) -> Tensor:
    lower, info = torch.linalg.cholesky_ex(torch.eye(len(b)).to(b) + (factor.mT * b) @ factor)
    if int(info):
        raise NumericalError(
            "The precision of the pseudo-observations has no factor: a kernel value or site is not finite."
        )
    return lower


def _covariance(factor: Tensor, b: Tensor) -> Tensor:
    """``(K^-1 + diag b)^-1``."""
    half = torch.linalg.solve_triangular(_precision_root(factor, b), factor.mT, upper=False)
    return half.mT @ half


def _residual(covariance: Tensor, added: Tensor, b: Tensor) -> Tensor:
    """``diag(S (A - diag b) S)``, the gradient in b of minus twice the gap."""
    return ((covariance @ added) * covariance).sum(1) - covariance.square() @ b


def _solve_free(jacobian: Tensor, right: Tensor, b: Tensor) -> Tensor:
    """The solution for those b that may move, 0 for the others."""
    if not len(b):
        return right
    free = b > 2 * SMALLEST * b.max()
    scatter = torch.eye(len(b)).to(b)[:, free]
    return scatter @ torch.linalg.solve(jacobian[free][:, free], right[free])


def _jacobian(covariance: Tensor, added: Tensor, b: Tensor) -> Tensor:
    """Minus the derivative in b of `_residual`."""
    rest = covariance @ (added - b.diag()) @ covariance
    return covariance.square() + 2 * covariance * rest


def _fixed_point(factor: Tensor, added: Tensor) -> Tensor:
    """b > 0 with ``(S o S) b = diag(S A S)``, or none needed where that would be negative: by Newton's method, and where that
    does not shrink the residual, by steps of one half of the fixed point.
    """
    b = added.diagonal().clone()
    if not len(b):
        return b
    floor = SMALLEST * float(b.max())
    b.clamp_min_(floor)
    covariance = _covariance(factor, b)
    residual = _residual(covariance, added, b)
    for _ in range(STEPS):
        free = (b > floor) | (residual > 0)
        if not bool(free.any()):
            break
        ahead = (b + _free_step(_jacobian(covariance, added, b), residual, free)).clamp_min(floor)
        spread = _covariance(factor, ahead)
        left = _residual(spread, added, ahead)
        if not float(left[free].abs().max()) <= 0.5 * float(residual[free].abs().max()):
            ahead = (b + 0.5 * _free_step(covariance.square(), residual, free)).clamp_min(floor)
            spread = _covariance(factor, ahead)
            left = _residual(spread, added, ahead)
        change = float((ahead - b).abs().max())
        b, covariance, residual = ahead, spread, left
        if change <= SETTLED * float(b.max()):
            break
    return b


def _free_step(matrix: Tensor, residual: Tensor, free: Tensor) -> Tensor:
    step = torch.zeros_like(residual)
    step[free] = torch.linalg.solve_ex(matrix[free][:, free], residual[free])[0]
    return step


@torch.no_grad()
def pseudo_data(posterior: Posterior) -> list[PseudoData]:
    """The pseudo-observations behind a posterior of `Coreset`, one set per column. Raises: StructureError for another."""
    centred = posterior.centred if isinstance(posterior, Shifted) else posterior
    if not isinstance(centred, ProjectedPosterior) or not isinstance(centred.engine, Coreset):
        raise StructureError("There are pseudo-observations only with engine=engines.Coreset(size).")
    found: dict[int, PseudoData] = {}
    for (projection, columns), solution in zip(centred.groups, centred.solved, strict=True):
        if not isinstance(solution, DiagonalSolution):
            raise StructureError(
                f"The gap is above max_gap={centred.engine.max_gap:g} nats, and a full covariance was used: there are no"
                " pseudo-observations; use max_gap=None or a larger size."
            )
        assert isinstance(projection.frame, InducingFrame)
        points = projection.frame.z.detach()
        for i, column in enumerate(columns):
            targets = solution.targets()[:, i]
            if isinstance(posterior, Shifted):
                targets = targets + posterior.mean(points)[:, column]
            found[column] = PseudoData(points, targets, solution.precisions, float(solution.gap))
    return [found[c] for c in range(len(found))]
