"""The prior that every engine receives: a mean function and one kernel per latent function, or one for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from gpx import stored


@dataclass(frozen=True)
class Prior:
    """``f_l ~ GP(mean, kernels[l])``, independent over the latent functions l and over the outputs.

    With P outputs and L latents there are C = P L columns, output-major: column c has kernel ``c % len(kernels)``. Outputs share
    the kernels; so do latent functions that play the same part, where one kernel was given for all.
    """

    mean: gpytorch.means.Mean
    kernels: tuple[gpytorch.kernels.Kernel, ...]

    def mean_at(self, x: Tensor, columns: int) -> Tensor:
        """The prior mean [N, C] at x [N, D]."""
        blocks = stored.slices(len(x)) if x.dim() == 2 else [slice(None)]
        parts = [self.mean(x[rows]) for rows in blocks]
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        value = value if value.dim() == x.dim() else value.unsqueeze(-1)
        return value.expand(*x.shape[:-1], columns).clone()  # not a view of a parameter that may move later

    @property
    def basis(self) -> Callable[[Tensor], Tensor] | None:
        """Functions x [N, D] -> [N, q] whose coefficients have a flat prior; None: there are none."""
        return getattr(self.mean, "basis", None)
