"""A posterior that is that of M weighted pseudo-observations, which one can look at. Theory: docs/theory/sparse.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpx.engines.inducing import Inducing, InducingPosterior, Solution, check_select, exact_solution
from gpx.engines.projections import Frame, Statistics, root
from gpx.errors import InputError, NumericalError, StructureError
from gpx.posterior import Posterior, Shifted

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
    a full covariance before that is used instead; None: never.
    Raises: InputError for another value. Cost: as for `SparseVariational`, and some tens of M^3.
    Source: Ketenci et al. (2025), "Accurate and scalable stochastic Gaussian process regression via learnable coreset-based
    variational inference" (the family; the optimum is derived in docs/theory/sparse.md).

    >>> Coreset(size=64)
    Coreset(size=64, select='greedy', refine=True, max_gap=None)
    """

    size: int = 128  # pyright: ignore[reportIncompatibleMethodOverride]
    select: Any = "greedy"
    refine: bool = True
    max_gap: float | None = None

    def __post_init__(self) -> None:
        check_select(self, self.size, "size")
        if self.max_gap is not None and not self.max_gap >= 0:
            raise InputError(f"Coreset needs max_gap >= 0, nats, or None, got {self.max_gap!r}.")

    def solve(self, statistics: Statistics, frame: Frame) -> Solution:
        """The best q(u) of the family, differentiable where gradients are enabled."""
        best = exact_solution(statistics)
        factor = root(frame.kernel, frame.z) if torch.is_grad_enabled() else frame.root
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
        added = inverse.mT @ statistics.gram[0] @ inverse
        found = DiagonalSolution(best.lower, best.c, factor, statistics.gram[0], added)
        return best if self.max_gap is not None and float(found.gap.detach()) > self.max_gap else found

    def note(self, posterior: InducingPosterior) -> str:
        """That much is lost by a diagonal precision, where it is."""
        gaps = [float(s.gap) for s in posterior.solved if isinstance(s, DiagonalSolution)]
        lost = max(gaps, default=0.0) / max(1, posterior.rows)
        if lost <= LARGE_GAP:
            return ""
        return (
            f"the bound of the coreset is {lost:.3g} nats per datum below that of a full covariance on the same points: use a"
            " larger size, or max_gap=... to take the full covariance"
        )


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
    free = b > 2 * SMALLEST * b.max()
    scatter = torch.eye(len(b)).to(b)[:, free]
    return scatter @ torch.linalg.solve(jacobian[free][:, free], right[free])


def _jacobian(covariance: Tensor, added: Tensor, b: Tensor) -> Tensor:
    """Minus the derivative in b of `_residual`."""
    rest = covariance @ (added - b.diag()) @ covariance
    return covariance.square() + 2 * covariance * rest


def _fixed_point(factor: Tensor, added: Tensor) -> Tensor:
    """b > 0 with ``(S o S) b = diag(S A S)``, or none needed where that would be negative; by steps of one half."""
    b = added.diagonal().clone()
    floor = SMALLEST * float(b.max()) if len(b) else 0.0
    b.clamp_min_(floor)
    for _ in range(STEPS):
        covariance = _covariance(factor, b)
        square, residual = covariance.square(), _residual(covariance, added, b)
        free = (b > floor) | (residual > 0)
        step = torch.zeros_like(b)
        step[free] = torch.linalg.solve(square[free][:, free], residual[free])
        new = (b + 0.5 * step).clamp_min(floor)
        change, b = float((new - b).abs().max()) if len(b) else 0.0, new
        if change <= SETTLED * float(b.max()) if len(b) else True:
            break
    return b


@torch.no_grad()
def pseudo_data(posterior: Posterior) -> list[PseudoData]:
    """The pseudo-observations behind a posterior of `Coreset`, one set per column. Raises: StructureError for another."""
    centred = posterior.centred if isinstance(posterior, Shifted) else posterior
    if not isinstance(centred, InducingPosterior) or not isinstance(centred.engine, Coreset):
        raise StructureError("There are pseudo-observations only with engine=engines.Coreset(size).")
    found: dict[int, PseudoData] = {}
    for (projection, columns), solution in zip(centred.groups, centred.solved, strict=True):
        if not isinstance(solution, DiagonalSolution):
            raise StructureError(
                f"The gap is above max_gap={centred.engine.max_gap:g} nats, and a full covariance was used: there are no"
                " pseudo-observations; use max_gap=None or a larger size."
            )
        points = projection.frame.z.detach()
        for i, column in enumerate(columns):
            targets = solution.targets()[:, i]
            if isinstance(posterior, Shifted):
                targets = targets + posterior.mean(points)[:, column]
            found[column] = PseudoData(points, targets, solution.precisions, float(solution.gap))
    return [found[c] for c in range(len(found))]
