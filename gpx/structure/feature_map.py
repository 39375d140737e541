"""Finite feature maps: ``k(x, x') ~ phi(x)^T phi(x')``, unbiased, for path samples and `engines.Features`.

Stationary kernels get random Fourier features (Rahimi & Recht 2007); a frequency of a product of stationary kernels is the
sum of frequencies of its factors. Kernels of finite dimension are exact. Theory: docs/theory/features.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from gpytorch import kernels as gpytorch_kernels
from torch import Tensor

from gpx.errors import StructureError
from gpx.graphs import SparseBackend
from gpx.kernels import (
    RBF,
    Constant,
    Cosine,
    Graph,
    GridSpectralMixtureProduct,
    HidaMatern,
    Linear,
    Matern,
    Periodic,
    QuasiPeriodic,
    RationalQuadratic,
    SpectralMixture,
    StudentMixture,
)
from gpx.kernels.dense import select
from gpx.structure.draws import Draws
from gpx.structure.frequencies import frequencies, harmonic_weights, is_stationary, width

TRUNCATED = 1e-12  # of the variance of a series, below which it counts as whole


@dataclass(frozen=True)
class FeatureMap:
    """``phi: [N, D] -> [N, size]`` at the present hyperparameters of its kernel, differentiable in these and in x; exact:
    whether ``phi phi^T`` is the kernel itself.
    """

    size: int
    apply: Callable[[Tensor], Tensor]
    exact: bool
    combine: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x)

    def times(self, x: Tensor, weights: Tensor) -> Tensor:
        """``phi(x) weights`` [N, n], by `combine` where features are sparse."""
        return self.apply(x) @ weights if self.combine is None else self.combine(x, weights)


@singledispatch
def feature_map(kernel: Any, size: int, dims: int, draws: Draws) -> FeatureMap:
    """Features of a kernel on `dims` input columns, about `size` of them (of every term of a sum) where they are random.

    Raises: StructureError for a kernel that has none registered.
    """
    raise StructureError(
        f"{type(kernel).__name__} has no feature map, so no function can be drawn from it, and engines.Features cannot use it;"
        " stationary kernels such as kernels.RBF and kernels.Matern, Linear, Constant, and their sums and products have one."
        " Draw values at given points with GP.sample(X, n), or register a rule with gpx.structure.feature_map.register."
    )


def _stationary_features(kernel: Any, size: int, dims: int, draws: Draws) -> FeatureMap:
    exact = isinstance(kernel, (Cosine, Constant))  # all frequencies are equal up to their sign: one is enough
    count = 1 if exact else size // 2
    at = frequencies(kernel, count, dims, draws)
    assert at is not None

    def apply(x: Tensor) -> Tensor:
        omega, weight = at()
        return _waves(x, omega, variance(kernel) * weight / count)

    return FeatureMap(2 * count, apply, exact)


def _waves(x: Tensor, omega: Tensor, power: Tensor) -> Tensor:
    """Cosines and sines [N, 2 m] at frequencies [m, D] with powers [m]."""
    phase, amplitude = x @ omega.mT.to(x), power.clamp_min(torch.finfo(power.dtype).tiny).sqrt().to(x)
    return torch.cat([amplitude * phase.cos(), amplitude * phase.sin()], -1)


def variance(kernel: Any) -> Tensor:
    """k(0) of a stationary kernel."""
    if isinstance(kernel, gpytorch_kernels.ProductKernel):
        return torch.stack([variance(k).reshape(()) for k in kernel.kernels]).prod()
    scale = getattr(kernel, "outputscale", None)
    return torch.ones((), dtype=torch.float64) if scale is None else scale


for _kind in (RBF, Matern, RationalQuadratic, Cosine, HidaMatern, QuasiPeriodic, Constant, SpectralMixture, StudentMixture,
              GridSpectralMixtureProduct, gpytorch_kernels.RBFKernel, gpytorch_kernels.MaternKernel):  # fmt: skip
    feature_map.register(_kind, _stationary_features)


@feature_map.register
def _(kernel: Periodic, size: int, dims: int, draws: Draws) -> FeatureMap:
    """Of one column: its first harmonics, without chance."""
    if width(kernel, dims) > 1:
        return _stationary_features(kernel, size, dims, draws)
    harmonic = torch.arange(size // 2, dtype=torch.float64)[:, None]

    def apply(x: Tensor) -> Tensor:
        omega = 2 * math.pi * harmonic.to(x) / kernel.period.reshape(()).to(x)
        return _waves(
            select(kernel, x), omega, kernel.outputscale * harmonic_weights(kernel.lengthscale, len(harmonic))
        )

    missing = 1 - float(harmonic_weights(kernel.lengthscale.detach().double(), len(harmonic)).sum())
    return FeatureMap(2 * len(harmonic), apply, missing < TRUNCATED)


@feature_map.register
def _(kernel: Linear, size: int, dims: int, draws: Draws) -> FeatureMap:
    def apply(x: Tensor) -> Tensor:
        return (select(kernel, x) - kernel.center.to(x)) * kernel.outputscale.sqrt().to(x)

    return FeatureMap(width(kernel, dims), apply, exact=True)


@feature_map.register
def _(kernel: gpytorch_kernels.ScaleKernel, size: int, dims: int, draws: Draws) -> FeatureMap:
    selects = kernel.base_kernel.active_dims is None  # else the base does: see `kernels.dense`
    base = feature_map(kernel.base_kernel, size, width(kernel, dims) if selects else dims, draws)

    def apply(x: Tensor) -> Tensor:
        return kernel.outputscale.sqrt().to(x) * base(select(kernel, x) if selects else x)

    return FeatureMap(base.size, apply, base.exact)


@feature_map.register
def _(kernel: gpytorch_kernels.AdditiveKernel, size: int, dims: int, draws: Draws) -> FeatureMap:
    parts = [feature_map(k, size, width(kernel, dims), draws) for k in kernel.kernels]

    def apply(x: Tensor) -> Tensor:
        x = select(kernel, x)
        return torch.cat([p(x) for p in parts], -1)

    return FeatureMap(sum(p.size for p in parts), apply, all(p.exact for p in parts))


@feature_map.register
def _(kernel: Graph, size: int, dims: int, draws: Draws) -> FeatureMap:
    def apply(x: Tensor) -> Tensor:
        nodes = kernel.nodes(select(kernel, x))
        phi = kernel.backend.features(kernel.operator, kernel.spectrum, nodes)
        return kernel.outputscale.sqrt().to(x) * phi.to(x)

    def combine(x: Tensor, weights: Tensor) -> Tensor:
        found = backend.combined(kernel.operator, kernel.spectrum, kernel.nodes(select(kernel, x)), weights)
        return kernel.outputscale.sqrt().to(x) * found.to(x)

    backend = kernel.backend
    if isinstance(backend, SparseBackend):
        return FeatureMap(kernel.graph.num_nodes, apply, True, combine)
    apply(torch.zeros(1, dims, dtype=torch.float64))  # says at once if there are none
    return FeatureMap(kernel.graph.num_nodes, apply, exact=True)


@feature_map.register
def _(kernel: gpytorch_kernels.ProductKernel, size: int, dims: int, draws: Draws) -> FeatureMap:
    if is_stationary(kernel, dims):
        return _stationary_features(kernel, size, dims, draws)
    columns = width(kernel, dims)
    stationary = [k for k in kernel.kernels if is_stationary(k, columns)]
    others = [k for k in kernel.kernels if not is_stationary(k, columns)]
    joined = stationary if len(stationary) < 2 else [gpytorch_kernels.ProductKernel(*stationary)]
    parts = [feature_map(k, size, columns, draws) for k in [*joined, *others]]
    total = math.prod(p.size for p in parts)
    if total > 64 * size:
        raise StructureError(f"The product {kernel} has {total} features, too many for paths; use GP.sample(X, n).")

    def apply(x: Tensor) -> Tensor:
        x = select(kernel, x)
        result = parts[0](x)
        for part in parts[1:]:  # products of every two features
            result = (result.unsqueeze(-1) * part(x).unsqueeze(-2)).flatten(-2)
        return result

    return FeatureMap(total, apply, all(p.exact for p in parts))
