"""The map from sites to their update, linearised: Newton's method for its fixed point, and implicit gradients.

With marginals ``(m, v)(sites)`` from the engine and ``T(m, v, sites)`` from the rule, the fixed point solves
``sites = T((m, v)(sites), sites)``. The engine's part is `Posterior.response`; the rule's part acts on each datum alone.
Theory: docs/theory/sites.md.
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
from gpx.sites import Sites

if TYPE_CHECKING:
    from gpx.inference.problem import Problem

NEWTON = (1e-3, 30)  # relative residual of the linear solve of a Newton step, and products with the map at most
ADJOINT = (1e-9, 200)  # likewise of an implicit gradient; no better than the engine's marginals


@dataclass(frozen=True, eq=False)
class SiteMap:
    """The linearised map at a posterior. Vectors are sites; slopes count in units of 1 / sd, precisions of 1 / variance."""

    problem: Problem
    posterior: Shifted

    @cached_property
    def _local(self) -> list[list[list[Tensor]]]:
        """Derivatives [N, P, L] of the update's nu and tau (first index), of every latent function (second), in
        (m, v, nu, tau) (third) of all L latent functions of the datum.
        """
        p, marginals, sites = self.problem, self.posterior.site_marginals, self.posterior.sites
        with torch.enable_grad():
            values = (marginals.mean, marginals.variance, sites.nu, sites.tau)
            inputs = [value.detach().clone().requires_grad_() for value in values]
            moving = marginals.replaced(*inputs[:2])
            update = p.rule.update(p.likelihood, p.data, moving, Sites(*inputs[2:]))
            return [
                [self._gradients(latent, inputs) for latent in self._split(part).unbind(-1)]
                for part in (update.nu, update.tau)
            ]

    def _gradients(self, value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        if not value.requires_grad:
            return [torch.zeros_like(self._split(v)) for v in inputs]
        grads = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
        return [
            self._split(torch.zeros_like(v) if g is None else torch.nan_to_num(g))
            for g, v in zip(grads, inputs, strict=True)
        ]

    def _split(self, values: Tensor) -> Tensor:
        """[N, C] as [N, P, L]."""
        return values.unflatten(-1, (-1, self.problem.likelihood.num_latents))

    def newton(self, target: Sites) -> Sites | None:
        """The sites that solve the linearised fixed-point equation; None if that fails."""
        sites = self.posterior.sites
        gap = Sites(target.nu - sites.nu, target.tau - sites.tau)
        change = self._solve(self._forward, gap, *NEWTON, transposed=False)
        if change is None:
            return None
        return Sites(sites.nu + change.nu, (sites.tau + change.tau).clamp_min(0))

    def adjoint(self, gradient: Sites) -> Sites | None:
        """``w`` with ``(1 - dT)^T w = gradient``; None if the solve fails."""
        # One step of Neumann's series: where the rule is Newton's method, the map is constant to first order, and this exact.
        through = self._backward(gradient)
        start = Sites(2 * gradient.nu - through.nu, 2 * gradient.tau - through.tau)
        tolerance = max(ADJOINT[0], self.problem.looseness)
        return self._solve(self._backward, gradient, tolerance, ADJOINT[1], transposed=True, start=start)

    def pull(self, weights: Sites) -> tuple[Tensor, Tensor]:
        """The gradient in (m, v) of ``weights . T``."""
        mean, variance, _, _ = self._weighted(weights)
        return mean, variance

    def _weighted(self, weights: Sites) -> list[Tensor]:
        """The gradient in (m, v, nu, tau) of ``weights . T``, at fixed marginals."""
        totals = [torch.zeros_like(self._split(weights.nu)) for _ in range(4)]
        for part, rows in zip((weights.nu, weights.tau), self._local, strict=True):
            for latent, row in zip(self._split(part).unbind(-1), rows, strict=True):
                totals = [t + latent.unsqueeze(-1) * d for t, d in zip(totals, row, strict=True)]
        return [t.flatten(1) for t in totals]

    def in_sites(self, mean: Tensor, variance: Tensor) -> Sites:
        """The gradient in the sites, through the engine, of ``mean . m + variance . v``: `response` is symmetric in the
        coordinates in which the log partition is differentiated.
        """
        m = self.posterior.site_marginals.mean
        dm, dv = self.posterior.response(direction(m, mean, variance))
        return Sites(dm, -0.5 * dv - m * dm)

    def _forward(self, change: Sites) -> Sites:
        moves = [self._split(v) for v in (*self.posterior.response(change), change.nu, change.tau)]
        nu, tau = (
            torch.stack([sum((d * v).sum(-1) for d, v in zip(row, moves, strict=True)) for row in rows], -1).flatten(1)
            for rows in self._local
        )
        return Sites(change.nu - nu, change.tau - tau)

    def _backward(self, weights: Sites) -> Sites:
        mean, variance, nu, tau = self._weighted(weights)
        through = self.in_sites(mean, variance)
        return Sites(weights.nu - through.nu - nu, weights.tau - through.tau - tau)

    def _solve(
        self,
        product: Callable[[Sites], Sites],
        right: Sites,
        tolerance: float,
        products: int,
        transposed: bool,
        start: Sites | None = None,
    ) -> Sites | None:
        """GMRES in scaled coordinates, by process 0 on the vectors of all."""
        shape, like, team = right.nu.shape, right.nu, self.problem.data.team
        numbers = team.collect(2 * right.nu.numel())
        own = slice(sum(numbers[: team.rank]), sum(numbers[: team.rank + 1]))
        mean, sd = self.posterior.site_marginals.mean, self.posterior.site_marginals.variance.sqrt()
        largest = team.max(float(sd.max()) if sd.numel() else 0.0)
        sd = sd.clamp_min(1e-8 * largest + torch.finfo(sd.dtype).tiny)
        # Changes of the slopes and curvatures of sites at the mean are measured in units of 1 / sd and 1 / sd^2; gradients, their
        # duals, in the inverse units.
        units = (1 / sd, 1 / sd.square()) if not transposed else (sd, sd.square())

        def pack(sites: Sites) -> np.ndarray:
            nu, tau = (
                (sites.nu, sites.tau + mean * sites.nu) if transposed else (sites.nu - mean * sites.tau, sites.tau)
            )
            part = torch.cat([p.reshape(-1) for p in (nu / units[0], tau / units[1])]).detach()
            return torch.cat(team.gather(part)).cpu().double().numpy()

        def unpack(vector: np.ndarray) -> Sites:
            nu, tau = torch.from_numpy(np.array(vector[own])).to(like).reshape(2, *shape)
            nu, tau = nu * units[0], tau * units[1]
            return Sites(nu, tau - mean * nu) if transposed else Sites(nu + mean * tau, tau)

        size, b = sum(numbers), pack(right)
        if not np.isfinite(b).all():
            return None
        first = None if start is None else pack(start)

        def run(matvec: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, bool]:
            operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
            solution, info = gmres(operator, b, x0=first, rtol=tolerance, restart=products, maxiter=1)
            return solution, bool(info) and np.linalg.norm(b - operator @ solution) > 1e-2 * np.linalg.norm(b)

        solution, worse = team.lead(run, lambda v: pack(product(unpack(v))))
        return None if worse or not np.isfinite(solution).all() else unpack(solution)


def direction(m: Tensor, mean: Tensor, variance: Tensor) -> Sites:
    """The direction of the sites along which the derivative of the log partition has the gradient (in the hyperparameters)
    of ``mean . m + variance . v``: the log partition's own derivatives in the sites are ``(m, -(v + m^2) / 2)``.
    """
    return Sites(mean - 2 * m * variance, -2 * variance)
