"""Gaussian sites: what a likelihood contributes to a posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sites:
    """``t_n(f) = exp(nu_n f - tau_n f^2 / 2)``; nu, tau: [N, C], C = outputs x latents; tau >= 0; both 0 where missing."""

    nu: Tensor
    tau: Tensor

    @property
    def present(self) -> Tensor:
        """[N, C] bool: where there is a site."""
        return (self.tau.detach() > 0) | (self.nu.detach() != 0)

    @property
    def log_heights(self) -> Tensor:
        """``sum log N(z; f, 1 / tau) - log t(f)`` over the sites with tau > 0, ``z = nu / tau``: what makes them densities."""
        seen = self.tau > 0
        tau, nu = torch.where(seen, self.tau, 1.0), torch.where(seen, self.nu, 0.0)
        return 0.5 * torch.where(seen, (tau / (2 * math.pi)).log() - nu.square() / tau, 0.0).sum()

    def leave_one_out(self, mean: Tensor, variance: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [N, C] of each pseudo-target ``nu / tau`` given all others, from the marginals of the site variables
        with the site of the datum taken out; NaN where tau = 0.
        """
        # A datum that says all there is to know of its own g leaves rounding error of it to the others.
        seen, share = self.tau > 0, (1 - self.tau * variance).clamp_min(torch.finfo(self.tau.dtype).eps)
        nothing = torch.full_like(self.nu, math.nan)
        mean = torch.where(seen, (mean - variance * self.nu) / share, nothing)
        return mean, torch.where(seen, variance / share + extra + 1 / torch.where(seen, self.tau, 1.0), nothing)

    @property
    def mean_precision(self) -> float:
        """Of those that are present; 0 where none is."""
        return float(self.tau.detach().sum() / self.present.sum().clamp_min(1))

    def centred(self, mean: Tensor) -> Sites:
        """The sites as functions of ``f - mean``."""
        return Sites(torch.addcmul(self.nu, self.tau, mean, value=-1), self.tau)

    def towards(self, other: Sites, step: float) -> Sites:
        """The sites a share `step` of the way to others."""
        return Sites(torch.lerp(self.nu, other.nu, step), torch.lerp(self.tau, other.tau, step))

    def join(self, other: Sites) -> Sites:
        """Those of other data added below."""
        return Sites(torch.cat([self.nu, other.nu]), torch.cat([self.tau, other.tau]))

    def groups(self, latents: int, agreed: Callable[[bool], bool] = bool) -> list[tuple[int, list[int]]]:
        """Index of the latent function and the columns, of those columns that share it, precisions and missing cells: they
        can share a factorisation. agreed: whether others, with other rows, see it so, too.
        """
        groups: list[tuple[int, list[int]]] = []
        for column in range(self.tau.shape[1]):
            for latent, members in groups:
                if latent != column % latents:
                    continue
                parts = (self.tau, self.present)
                if agreed(all(torch.equal(part[:, members[0]], part[:, column]) for part in parts)):
                    members.append(column)
                    break
            else:
                groups.append((column % latents, [column]))
        return groups

    def columns(self, index: Sequence[int]) -> Sites:
        """Some of the columns."""
        return Sites(self.nu[:, list(index)], self.tau[:, list(index)])


class SiteMarginals:
    """Posterior mean and variance [N, C] of the site variable g, and the extra variance with ``f = g + N(0, extra)``.

    Arguments: mean; variance: a tensor, or a function that computes it on first use (it costs more than the mean); extra:
    None means 0; centre: numbers [N, C] near the mean, such as the prior mean, from which terms of sites are counted: in terms
    of g itself the squares of an offset of the targets would drown them. None means 0.
    """

    def __init__(
        self,
        mean: Tensor,
        variance: Tensor | Callable[[], Tensor],
        extra: Tensor | None = None,
        centre: Tensor | None = None,
    ):
        self.mean, self._variance = mean, variance
        self.extra = torch.zeros_like(mean) if extra is None else extra
        self.centre = torch.zeros_like(mean.detach()) if centre is None else centre

    def replaced(self, mean: Tensor, variance: Tensor, extra: Tensor | None = None) -> SiteMarginals:
        """Others around the same centre; extra: None keeps it."""
        return SiteMarginals(mean, variance, self.extra if extra is None else extra, self.centre)

    @cached_property
    def variance(self) -> Tensor:
        """[N, C]."""
        return self._variance() if callable(self._variance) else self._variance
