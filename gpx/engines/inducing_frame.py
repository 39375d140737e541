"""Data seen through the values of f at inducing inputs. Theory: docs/theory/sparse.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import gpytorch
import torch
from torch import Tensor

from gpx.engines.projections import Frame, Gaussian, blocks
from gpx.errors import NumericalError
from gpx.kernels.dense import dense, diagonal
from gpx.structure.draws import Draws
from gpx.structure.feature_map import feature_map

# Of the mean prior variance: as if u were f(Z) with so much noise. The first that does is taken.
JITTER = {torch.float64: (1e-12, 1e-10, 1e-8, 1e-6), torch.float32: (1e-6, 1e-5, 1e-4)}
PATH_FEATURES = 2048


def root(kernel: gpytorch.kernels.Kernel, z: Tensor) -> Tensor:
    """L [M, M], differentiable. Raises: NumericalError if the kernel matrix has no factor."""
    matrix, identity = dense(kernel, z, z), torch.eye(len(z)).to(z)
    scale = matrix.detach().diagonal().mean()
    for jitter in JITTER[z.dtype]:
        lower, info = torch.linalg.cholesky_ex(matrix + jitter * scale * identity)
        if not int(info) and bool(torch.isfinite(lower.detach().diagonal()).all()):
            return lower
    raise NumericalError(
        "The kernel matrix of the inducing inputs is not positive definite; use fewer of them, or lower the outputscale."
    )


@dataclass(frozen=True, eq=False)
class InducingFrame(Frame):
    """A kernel and inducing inputs z [M, D]: ``K_ZZ = L L^T``, ``c = k(Z, x)``. Numbers are computed on first use."""

    complete: ClassVar[bool] = False

    kernel: gpytorch.kernels.Kernel
    z: Tensor

    @cached_property
    def root(self) -> Tensor:
        """L [M, M]."""
        with torch.no_grad():
            return root(self.kernel, self.z)

    @cached_property
    def inverse(self) -> Tensor:
        """L^-1 [M, M]: a product with it is faster than a solve, and as accurate."""
        identity = torch.eye(len(self.z)).to(self.z)
        return torch.linalg.solve_triangular(self.root, identity, upper=False)

    @property
    def size(self) -> int:
        return len(self.z)

    @property
    def tensors(self) -> list[Tensor]:
        """The inducing inputs, and what the kernel learns."""
        return [self.z, *(p for p in self.kernel.parameters() if p.requires_grad)]

    def factor(self) -> Tensor:
        return root(self.kernel, self.z)

    def cross(self, x: Tensor) -> Tensor:
        return dense(self.kernel, self.z, x)

    def prior(self, x: Tensor) -> Tensor:
        return diagonal(self.kernel, x)

    def covariance(self, x: Tensor) -> Tensor:
        return dense(self.kernel, x, x)

    def whitened(self, m: Tensor) -> Tensor:
        return self.inverse @ m

    def back(self, m: Tensor) -> Tensor:
        return self.inverse.mT @ m

    def predictor(self, q: Gaussian) -> tuple[Tensor, Tensor]:
        """What gives the mean, ``c . weights``, and the variance, ``k(x, x) - |lost c|^2``: where the precision of v is
        ``U p U^T``, ``|w|^2 - var g = |(1 - 1 / p)^(1/2) U^T w|^2``. One product per point, not two.
        """
        p, vectors = torch.linalg.eigh(q.spread @ q.spread.mT)
        return self.back(q.mean), ((1 - 1 / p.clamp_min(1)).sqrt() * vectors).mT @ self.inverse

    def predict(self, x: Tensor, weights: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        cross = self.cross(x)
        # Below the rounding error of the subtraction a variance is zero.
        return cross.mT @ weights, (self.prior(x) - (spread @ cross).square().sum(0)).clamp_min(0)

    def path(self, v: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Matheron's rule: a prior path of 2,048 random features (exact for kernels of finite dimension), corrected at the
        inducing inputs to a draw of u. Source: Wilson et al. (2021), "Pathwise conditioning of Gaussian processes", eq. 13.
        """
        features = feature_map(self.kernel, PATH_FEATURES, self.z.shape[1], Draws(generator))
        options: Any = {"generator": generator, "dtype": v.dtype, "device": v.device}
        weights = torch.randn(features.size, v.shape[1], **options)
        with torch.no_grad():
            correction = self.back(v - self.whitened(features(self.z) @ weights))

        def path(x: Tensor) -> Tensor:
            parts = [
                features(x[rows]) @ weights + dense(self.kernel, x[rows], self.z) @ correction
                for rows in blocks(len(x), max(len(self.z), features.size))
            ]
            return torch.cat(parts)

        return path
