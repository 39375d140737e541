"""The algebra of one posterior of `SIC` in numbers, and the gradient of its log partition. Theory: docs/theory/sic.md.

Values are ``f = Phi w + r``: a low-rank part with ``w ~ N(0, 1)``, which may have no columns, and a rest with prior precision
``U U^T``. Given w, r has the precision ``P = U U^T + T``, ``T = diag(tau)``, for which V is an incomplete factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpx.linalg import sparse_factor
from gpx.linalg.closest_factor import closest_factor
from gpx.linalg.threads import in_runs

if TYPE_CHECKING:
    from gpx.engines.sic import Pattern

PROBES = 8  # random signs from which a trace is estimated
SOLVED = 1e-9  # residual of the means, relative, in the norm of the preconditioner


@dataclass(frozen=True, eq=False)
class Factor:
    """The prior in numbers. u: columns [n, m + 1] of the factor of the rest; phi [n, k]: the low-rank part; nugget: the share of
    the prior variance that is added to the diagonal.
    """

    u: np.ndarray
    phi: np.ndarray
    nugget: float


@dataclass(frozen=True, eq=False)
class Solution:
    """Columns that share kernel and precisions; numbers, computed on first use.

    tau [n] and nu [n, c]: the sites of each point, those of equal inputs added up; tolerance: see `SIC`; closest: whether V is
    the best factor on the pattern, not the incomplete one.
    """

    pattern: Pattern
    prior: Factor
    tau: np.ndarray
    nu: np.ndarray
    tolerance: float
    closest: bool

    @property
    def u(self) -> np.ndarray:
        """[n, m + 1]."""
        return self.prior.u

    @cached_property
    def incomplete(self) -> sparse_factor.Incomplete:
        """V, and the shift that it took."""
        return sparse_factor.incomplete_factor(self.pattern.near, self.u, self.tau, self.pattern.places)

    @cached_property
    def v(self) -> np.ndarray:
        """[n, m + 1]."""
        if not self.closest:
            return self.incomplete.v
        return closest_factor(self.pattern.near, self.u, self.tau, self.incomplete.v)

    def _solve(self, b: np.ndarray) -> np.ndarray:
        """``P^-1 b`` for b [n, c]."""
        near, columns = self.pattern.near, np.ascontiguousarray(b.T)

        def solved(start: int, stop: int) -> list[np.ndarray]:
            return [
                sparse_factor.conjugate_gradients(near, self.u, self.tau, self.v, columns[c], SOLVED)[0]
                for c in range(start, stop)
            ]

        parts = [column for run in in_runs(solved, len(columns), 1) for column in run]
        return np.stack(parts, 1) if parts else np.zeros_like(b)

    @cached_property
    def moved(self) -> np.ndarray:
        """``Z = P^-1 T Phi`` [n, k]: the mean of r falls by ``Z w`` with w."""
        return self._solve(self.tau[:, None] * self.prior.phi)

    @cached_property
    def seen(self) -> np.ndarray:
        """``Phi - Z`` [n, k]: what f keeps of w where the sites are."""
        return self.prior.phi - self.moved

    @cached_property
    def root(self) -> np.ndarray:
        """R [k, k], ``R R^T`` being the covariance of w: the inverse of ``1 + Phi^T T (Phi - Z)``."""
        gram = self.prior.phi.T @ (self.tau[:, None] * self.seen)
        lower = np.linalg.cholesky(np.eye(len(gram)) + 0.5 * (gram + gram.T))
        return np.linalg.solve(lower, np.eye(len(gram))).T

    def times_covariance(self, b: np.ndarray) -> np.ndarray:
        """The posterior covariance of f times b [n, c]."""
        return self._solve(b) + self.seen @ self.weights(b)

    def weights(self, b: np.ndarray) -> np.ndarray:
        """The mean of w [k, c] for sites with nu = b."""
        return self.root @ (self.root.T @ (self.seen.T @ b))

    @cached_property
    def mean(self) -> np.ndarray:
        """Of f: [n, c]."""
        return self.rest + self.prior.phi @ self.level

    @cached_property
    def level(self) -> np.ndarray:
        """The mean of w: [k, c]."""
        return self.weights(self.nu)

    @cached_property
    def rest(self) -> np.ndarray:
        """The mean of r: [n, c]."""
        return self._solve(self.nu) - self.moved @ self.level

    @cached_property
    def conditional(self) -> np.ndarray:
        """The variance [n] of f given w: ``|V^-1 e_i|^2``."""
        curve = self.pattern.curve
        result = np.empty(len(curve))
        ones = np.ones((len(curve), 1))
        result[curve] = sparse_factor.norms(
            self.pattern.near, self.v, curve[:, None].astype(np.int32), ones, self.tolerance
        )
        return result

    @cached_property
    def variance(self) -> np.ndarray:
        """Of f: [n]."""
        return self.conditional + np.square(self.seen @ self.root).sum(1)

    @cached_property
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """``|V^-1 u_i|^2`` [n] and ``(V V^T)^-1 u_i`` in its own rows [n, m + 1]."""
        return sparse_factor.images(self.pattern.near, self.v, self.u, self.pattern.curve, self.tolerance)

    def log_partition(self) -> float:
        """``E_q sum log t_n - KL(q || p)``, summed over columns: with m the mean of f,
        ``nu^T m / 2 - [tr(V^-1 P V^-T) - n] / 2 - sum log V_ii + sum log U_ii + log |R|``.
        """
        return self._log_partition(self.tau @ self.conditional + self.images[0].sum())

    def rough_log_partition(self) -> float:
        """With the trace from a few vectors of random signs, always the same: ``V^-1 P V^-T`` is nearly the identity."""
        if not self.tolerance:
            return self.log_partition()
        near, v = self.pattern.near, self.v
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (PROBES, len(self.tau)))
        probes = [sparse_factor.transposed_solve(near, v, z) for z in signs]
        squares = [np.square(sparse_factor.transposed_times(near, self.u, x)).sum() + self.tau @ x**2 for x in probes]
        return self._log_partition(float(np.mean(squares)))

    def _log_partition(self, trace: float) -> float:
        logs = np.log(self.u[:, -1]).sum() - np.log(self.v[:, -1]).sum() + np.log(np.diagonal(self.root)).sum()
        return float(0.5 * (self.nu * self.mean).sum() + self.nu.shape[1] * (logs - 0.5 * (trace - len(self.tau))))

    def in_columns(self) -> np.ndarray:
        """The gradient [n, m + 1] of the log partition in U, V and the means being where it is largest, or nearly."""
        near, count = self.pattern.near, self.nu.shape[1]
        result = -count * self.images[1]
        result[:, -1] += count / self.u[:, -1]
        moments = np.concatenate([self.rest, count**0.5 * self.moved @ self.root], 1)
        for moment in np.ascontiguousarray(moments.T):
            sparse_factor.add_outer(near, moment, -sparse_factor.transposed_times(near, self.u, moment), result)
        return result

    def in_low_rank(self) -> np.ndarray:
        """Likewise in Phi: [n, k]."""
        spread = self.nu.shape[1] * self.tau[:, None] * (self.seen @ self.root @ self.root.T)
        return (self.nu - self.tau[:, None] * self.mean) @ self.level.T - spread


class LogPartition(torch.autograd.Function):
    """The log partition as a function of u, phi, nu [n, c] and tau [n, c], whose columns are equal; by the envelope theorem."""

    @staticmethod
    def forward(ctx: Any, solution: Solution, u: Tensor, phi: Tensor, nu: Tensor, tau: Tensor) -> Tensor:
        ctx.solution, ctx.like = solution, nu
        return nu.new_tensor(solution.log_partition())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        s, like = ctx.solution, ctx.like
        in_u = grad * tensor(s.in_columns(), like) if ctx.needs_input_grad[1] else None
        in_phi = grad * tensor(s.in_low_rank(), like) if ctx.needs_input_grad[2] else None
        in_tau = -0.5 * (s.variance[:, None] + s.mean**2)
        return None, in_u, in_phi, grad * tensor(s.mean, like), grad * tensor(in_tau, like)


def tensor(values: np.ndarray, like: Tensor) -> Tensor:
    """An array as a tensor beside another."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(like)


def numbers(values: Tensor) -> np.ndarray:
    """A tensor as an array of doubles."""
    return np.ascontiguousarray(values.detach().double().cpu().numpy())
