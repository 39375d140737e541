"""Gaussian sites: what a likelihood contributes to a posterior."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sites:
    """``t_n(f) = exp(nu_n f - tau_n f^2 / 2)``; nu, tau: [N, C], C = outputs x latents; tau >= 0, and 0 where missing."""

    nu: Tensor
    tau: Tensor

    def centred(self, mean: Tensor) -> Sites:
        """The sites as functions of ``f - mean``."""
        return Sites(self.nu - self.tau * mean, self.tau)


@dataclass(frozen=True)
class SiteMarginals:
    """Posterior mean and variance [N, C] of the site variable g, and the extra variance with ``f = g + N(0, extra)``."""

    mean: Tensor
    variance: Tensor
    extra: Tensor
