"""The map from sites to their update, linearised: Newton's method for its fixed point, and implicit gradients.

With marginals ``(m, v)(sites)`` from the engine and ``T(m, v, sites)`` from the rule, the fixed point solves
``sites = T((m, v)(sites), sites)``. The engine's part is `Posterior.response`, the rule's part is diagonal. Theory:
docs/theory/sites.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from gpx.posterior import Shifted
from gpx.sites import SiteMarginals, Sites

if TYPE_CHECKING:
    from gpx.inference.problem import Problem

NEWTON_TOLERANCE = 1e-3  # relative residual of the linear solve of a Newton step
ADJOINT_TOLERANCE = 1e-9
MAX_PRODUCTS = 200


@dataclass(frozen=True, eq=False)
class SiteMap:
    """The linearised map at a posterior. Vectors are sites; nu counts in units of 1 / sd, tau of 1 / variance."""

    problem: Problem
    posterior: Shifted

    @property
    def has_newton(self) -> bool:
        """Whether the rule's part is diagonal: not with several latent functions per datum."""
        return self.problem.likelihood.num_latents == 1

    @cached_property
    def _local(self) -> list[list[Tensor]]:
        """Derivatives [N, C] of the update's (nu, tau) in (m, v, nu, tau)."""
        p, marginals, sites = self.problem, self.posterior.site_marginals, self.posterior.sites
        with torch.enable_grad():
            values = (marginals.mean, marginals.variance, sites.nu, sites.tau)
            inputs = [value.detach().clone().requires_grad_() for value in values]
            update = p.rule.update(
                p.likelihood, p.data, SiteMarginals(*inputs[:2], marginals.extra), Sites(*inputs[2:])
            )
            rows = []
            for part in (update.nu, update.tau):
                if not part.requires_grad:
                    rows.append([torch.zeros_like(v) for v in inputs])
                    continue
                grads = torch.autograd.grad(part.sum(), inputs, retain_graph=True, allow_unused=True)
                rows.append([
                    torch.zeros_like(v) if g is None else torch.nan_to_num(g)
                    for g, v in zip(grads, inputs, strict=True)
                ])  # fmt: skip
        return rows

    def newton(self, target: Sites) -> Sites | None:
        """The sites that solve the linearised fixed-point equation; None if that fails."""
        sites = self.posterior.sites
        gap = Sites(target.nu - sites.nu, target.tau - sites.tau)
        change = self._solve(self._forward, gap, NEWTON_TOLERANCE, transposed=False)
        if change is None:
            return None
        return Sites(sites.nu + change.nu, (sites.tau + change.tau).clamp_min(0))

    def adjoint(self, gradient: Sites) -> Sites | None:
        """``w`` with ``(1 - dT)^T w = gradient``; None if the solve fails."""
        return self._solve(self._backward, gradient, ADJOINT_TOLERANCE, transposed=True)

    def pull(self, weights: Sites) -> tuple[Tensor, Tensor]:
        """The gradient in (m, v) of ``weights . T``."""
        (a, b, *_), (c, d, *_) = self._local
        return a * weights.nu + c * weights.tau, b * weights.nu + d * weights.tau

    def in_sites(self, mean: Tensor, variance: Tensor) -> Sites:
        """The gradient in the sites, through the engine, of ``mean . m + variance . v``: `response` is symmetric in the
        coordinates in which the log partition is differentiated.
        """
        m = self.posterior.site_marginals.mean
        dm, dv = self.posterior.response(direction(m, mean, variance))
        return Sites(dm, -0.5 * dv - m * dm)

    def _forward(self, change: Sites) -> Sites:
        dm, dv = self.posterior.response(change)
        rows = [
            row[0] * dm + row[1] * dv + row[2] * change.nu + row[3] * change.tau
            for row in self._local
        ]  # fmt: skip
        return Sites(change.nu - rows[0], change.tau - rows[1])

    def _backward(self, weights: Sites) -> Sites:
        through, (own, other) = self.in_sites(*self.pull(weights)), self._local
        nu = own[2] * weights.nu + other[2] * weights.tau
        tau = own[3] * weights.nu + other[3] * weights.tau
        return Sites(weights.nu - through.nu - nu, weights.tau - through.tau - tau)

    def _solve(
        self, product: Callable[[Sites], Sites], right: Sites, tolerance: float, transposed: bool
    ) -> Sites | None:
        """GMRES in scaled coordinates."""
        shape, like = right.nu.shape, right.nu
        sd = self.posterior.site_marginals.variance.sqrt()
        sd = sd.clamp_min(1e-8 * float(sd.max()) + torch.finfo(sd.dtype).tiny)
        # Site changes are measured in units of 1 / sd and 1 / sd^2; gradients, their duals, in the inverse units.
        units = (1 / sd, 1 / sd.square()) if not transposed else (sd, sd.square())

        def pack(sites: Sites) -> np.ndarray:
            parts = (sites.nu / units[0], sites.tau / units[1])
            return torch.cat([p.reshape(-1) for p in parts]).detach().cpu().double().numpy()

        def unpack(vector: np.ndarray) -> Sites:
            nu, tau = torch.from_numpy(np.array(vector)).to(like).reshape(2, *shape)
            return Sites(nu * units[0], tau * units[1])

        size, b = 2 * right.nu.numel(), pack(right)
        if not np.isfinite(b).all():
            return None
        operator = LinearOperator((size, size), matvec=lambda v: pack(product(unpack(v))), dtype=np.float64)
        solution, info = gmres(operator, b, rtol=tolerance, restart=MAX_PRODUCTS, maxiter=1)
        worse = np.linalg.norm(b - operator @ solution) > 1e-2 * np.linalg.norm(b) if info else False
        return None if worse or not np.isfinite(solution).all() else unpack(solution)


def direction(m: Tensor, mean: Tensor, variance: Tensor) -> Sites:
    """The direction of the sites along which the derivative of the log partition has the gradient (in the hyperparameters)
    of ``mean . m + variance . v``: the log partition's own derivatives in the sites are ``(m, -(v + m^2) / 2)``.
    """
    return Sites(mean - 2 * m * variance, -2 * variance)
