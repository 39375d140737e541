"""Gaussian sites: what a likelihood contributes to a posterior."""

from __future__ import annotations

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

    def groups(self, latents: int) -> list[tuple[int, list[int]]]:
        """Index of the latent function and the columns, of those columns that share it, precisions and missing cells: they
        can share a factorisation.
        """
        groups: list[tuple[int, list[int]]] = []
        for column in range(self.tau.shape[1]):
            for latent, members in groups:
                same = torch.equal(self.tau[:, members[0]], self.tau[:, column])
                if latent == column % latents and same:
                    if torch.equal(self.present[:, members[0]], self.present[:, column]):
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
    None means 0.
    """

    def __init__(self, mean: Tensor, variance: Tensor | Callable[[], Tensor], extra: Tensor | None = None):
        self.mean, self._variance = mean, variance
        self.extra = torch.zeros_like(mean) if extra is None else extra

    @cached_property
    def variance(self) -> Tensor:
        """[N, C]."""
        return self._variance() if callable(self._variance) else self._variance
