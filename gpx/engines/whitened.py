"""q(u) of whitened inducing values, from the statistics of their sites. Theory: docs/theory/sparse.md."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gpx.engines.projections import Statistics
from gpx.errors import NumericalError


@dataclass(frozen=True, eq=False)
class Solution:
    """q(u) of columns that share kernel and precisions, whitened: ``B = 1 + sum tau w w^T = R R^T``, ``c = R^-1 sum w nu``."""

    lower: Tensor  # R [M, M]
    c: Tensor  # [M, c]
    value: Tensor  # its log partition

    @property
    def spread(self) -> Tensor:
        """The Cholesky factor [M, M] of the precision."""
        return self.lower

    @cached_property
    def mean(self) -> Tensor:
        """[M, c]."""
        return torch.linalg.solve_triangular(self.lower.mT, self.c, upper=True)

    def log_partition(self) -> Tensor:
        """``E_q sum log t_n - KL(q || p)``, summed over columns; here, ``log int p(u) prod t_n(g_n) du``."""
        return self.value

    def explained(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Means [n, c] and variances [n] of g."""
        half = torch.linalg.solve_triangular(self.spread, w, upper=False)
        return w.mT @ self.mean, half.square().sum(0)

    def in_mean(self, push: Tensor) -> Tensor:
        """Changes [M, c] of the mean with those of ``sum w (nu - tau m)``."""
        return torch.cholesky_solve(push, self.lower)

    def in_covariance(self, gram: Tensor) -> Tensor:
        """Changes [c, M, M] of the covariance with those [c, M, M] of B."""
        covariance = torch.cholesky_inverse(self.lower)
        return -covariance @ gram @ covariance


class _LogPartition(torch.autograd.Function):
    """``|c|^2 / 2 - log |R|``: its gradients, ``-(B^-1 + m m^T) / 2`` and m, cost a third of those through the factor."""

    @staticmethod
    def forward(ctx: Any, gram: Tensor, target: Tensor, lower: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(lower, c)
        return 0.5 * c.square().sum() - c.shape[1] * lower.diagonal().log().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore
        lower, c = ctx.saved_tensors
        mean = torch.linalg.solve_triangular(lower.mT, c, upper=True)
        inverse = torch.cholesky_inverse(lower).mul_(-0.5 * c.shape[1] * grad)
        return inverse.addmm_(mean, mean.mT, alpha=-0.5 * float(grad)), grad * mean, None, None


def exact_solution(statistics: Statistics) -> Solution:
    """The best q(u) of all, from the statistics for the precisions."""
    gram, target, _ = statistics
    lower, info = torch.linalg.cholesky_ex(gram[0] + torch.eye(len(target)).to(target))
    if int(info):
        raise NumericalError(
            "The precision of the inducing values has no factor: a kernel value or site is not finite."
        )
    c = torch.linalg.solve_triangular(lower, target, upper=False)
    return Solution(lower, c, _LogPartition.apply(gram[0], target, lower.detach(), c.detach()))
