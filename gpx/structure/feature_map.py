"""Finite feature maps: ``k(x, x') ~ phi(x)^T phi(x')``, unbiased, for path samples.

Stationary kernels get random Fourier features (Rahimi & Recht 2007); a frequency of a product of stationary kernels is the
sum of frequencies of its factors. Kernels of finite dimension are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from gpytorch import kernels as gpytorch_kernels
from scipy.special import gammaincinv, ive
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels import (
    RBF,
    Constant,
    Cosine,
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

HARMONICS = 4096


@dataclass(frozen=True)
class FeatureMap:
    """``phi: [N, D] -> [N, size]``; exact: whether ``phi phi^T`` is the kernel itself."""

    size: int
    apply: Callable[[Tensor], Tensor]
    exact: bool

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x)


@singledispatch
def feature_map(kernel: Any, size: int, dims: int, generator: torch.Generator) -> FeatureMap:
    """Features of a kernel on `dims` input columns, about `size` of them where they are random.

    Raises: StructureError for a kernel that has none registered.
    """
    raise StructureError(
        f"{type(kernel).__name__} has no feature map, so no function can be drawn from it; draw values at given points with"
        " GP.sample(X, n), or register a rule with gpx.structure.feature_map.register."
    )


@singledispatch
def frequencies(kernel: Any, count: int, dims: int, generator: torch.Generator) -> Tensor | None:
    """Random angular frequencies [count, dims] whose law is the normalised spectral density; None if not stationary."""
    return None


def _stationary_features(kernel: Any, size: int, dims: int, generator: torch.Generator) -> FeatureMap:
    exact = isinstance(kernel, (Cosine, Constant))  # all frequencies are equal up to their sign: one is enough
    omega = frequencies(kernel, 1 if exact else size // 2, dims, generator)
    assert omega is not None
    amplitude = (_variance(kernel) / len(omega)).sqrt()

    def apply(x: Tensor) -> Tensor:
        phase = x @ omega.mT.to(x)
        return amplitude.to(x) * torch.cat([phase.cos(), phase.sin()], -1)

    return FeatureMap(2 * len(omega), apply, exact)


def _variance(kernel: Any) -> Tensor:
    """k(0) of a stationary kernel."""
    if isinstance(kernel, gpytorch_kernels.ProductKernel):
        return torch.stack([_variance(k) for k in kernel.kernels]).prod()
    return getattr(kernel, "outputscale", torch.ones(())).detach().double()


for _kind in (RBF, Matern, RationalQuadratic, Periodic, Cosine, HidaMatern, QuasiPeriodic, Constant, SpectralMixture,
              StudentMixture, gpytorch_kernels.RBFKernel, gpytorch_kernels.MaternKernel):  # fmt: skip
    feature_map.register(_kind, _stationary_features)


@feature_map.register
def _(kernel: Linear, size: int, dims: int, generator: torch.Generator) -> FeatureMap:
    slope, center = kernel.outputscale.detach().sqrt(), kernel.center.detach()

    def apply(x: Tensor) -> Tensor:
        x = select(kernel, x)
        return (x - center.to(x)) * slope.to(x)

    return FeatureMap(_width(kernel, dims), apply, exact=True)


@feature_map.register
def _(kernel: gpytorch_kernels.ScaleKernel, size: int, dims: int, generator: torch.Generator) -> FeatureMap:
    selects = kernel.base_kernel.active_dims is None  # else the base does: see `kernels.dense`
    base = feature_map(kernel.base_kernel, size, _width(kernel, dims) if selects else dims, generator)
    scale = kernel.outputscale.detach().sqrt()
    return FeatureMap(base.size, lambda x: scale.to(x) * base(select(kernel, x) if selects else x), base.exact)


@feature_map.register
def _(kernel: gpytorch_kernels.AdditiveKernel, size: int, dims: int, generator: torch.Generator) -> FeatureMap:
    parts = [feature_map(k, size, _width(kernel, dims), generator) for k in kernel.kernels]
    return FeatureMap(
        sum(p.size for p in parts),
        lambda x: torch.cat([p(select(kernel, x)) for p in parts], -1),
        all(p.exact for p in parts),
    )


@feature_map.register
def _(kernel: gpytorch_kernels.ProductKernel, size: int, dims: int, generator: torch.Generator) -> FeatureMap:
    if frequencies(kernel, 1, dims, generator) is not None:
        return _stationary_features(kernel, size, dims, generator)
    width = _width(kernel, dims)
    stationary = [k for k in kernel.kernels if frequencies(k, 1, width, generator) is not None]
    others = [k for k in kernel.kernels if frequencies(k, 1, width, generator) is None]
    joined = [gpytorch_kernels.ProductKernel(*stationary)] if stationary else []
    parts = [feature_map(k, size, width, generator) for k in [*joined, *others]]
    total = math.prod(p.size for p in parts)
    if total > 64 * size:
        raise StructureError(f"The product {kernel} has {total} features, too many for paths; use GP.sample(X, n).")

    def apply(x: Tensor) -> Tensor:
        x = select(kernel, x)
        result = parts[0](x)
        for part in parts[1:]:
            result = (result.unsqueeze(-1) * part(x).unsqueeze(-2)).flatten(-2)
        return result

    return FeatureMap(total, apply, all(p.exact for p in parts))


def _width(kernel: gpytorch_kernels.Kernel, dims: int) -> int:
    return dims if kernel.active_dims is None else len(kernel.active_dims)


def _embed(kernel: gpytorch_kernels.Kernel, omega: Tensor, dims: int) -> Tensor:
    """Frequencies of the selected columns as frequencies of all of them."""
    if kernel.active_dims is None:
        return omega
    full = omega.new_zeros(len(omega), dims)
    full[:, kernel.active_dims] = omega
    return full


def _gaussian(lengthscale: Tensor, count: int, columns: int, generator: torch.Generator) -> Tensor:
    """Standard normal frequencies [count, columns] over lengthscales [1 or count, 1 or columns]."""
    normal = torch.randn(count, columns, generator=generator, dtype=torch.float64, device=generator.device)
    return normal / lengthscale.detach().reshape(-1, lengthscale.shape[-1])


def _student(lengthscale: Tensor, freedom: int, count: int, columns: int, generator: torch.Generator) -> Tensor:
    """Frequencies [count, columns] of a Matern kernel: a multivariate Student t, freedom = 2 nu (an odd integer)."""
    square = torch.randn(count, freedom, generator=generator, dtype=torch.float64, device=generator.device).square()
    return _gaussian(lengthscale, count, columns, generator) / square.mean(1, keepdim=True).sqrt()


def _cosine(frequency: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Angular frequencies [count, D] of tones of frequencies [1 or count, D]: either sign is as likely."""
    sign = 2.0 * (_uniform(generator, count, 1) < 0.5) - 1
    return 2 * math.pi * frequency.detach().reshape(-1, frequency.shape[-1]) * sign


def _drawn(
    kernel: SpectralMixture | StudentMixture, count: int, columns: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Frequencies and widths [count, columns] of mixtures that are drawn by their weights."""
    weights = kernel.mixture_weights.detach().double()
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    values = (getattr(kernel, name).detach().double() for name in kernel.per_dimension)
    return tuple(value.expand(-1, columns)[chosen] for value in values)


def _harmonics(kernel: Periodic | QuasiPeriodic, count: int, columns: int, generator: torch.Generator) -> Tensor:
    """Angular frequencies [count, columns] of a periodic correlation.

    exp(-(1 - cos a) / l^2) is a cosine series with weights exp(-1/l^2) I_j(1/l^2), j = 0, +-1, +-2, ...
    """
    weights = ive(range(HARMONICS), 1 / float(kernel.lengthscale.detach()) ** 2)
    weights[1:] *= 2
    law = torch.from_numpy(weights).to(generator.device).cumsum(0)
    harmonic = torch.searchsorted(law / law[-1], _uniform(generator, count, columns))
    sign = 2.0 * (_uniform(generator, *harmonic.shape) < 0.5) - 1
    return 2 * math.pi * harmonic.double() * sign / kernel.period.detach().reshape(())


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64, device=generator.device)


@frequencies.register(RBF)
@frequencies.register(gpytorch_kernels.RBFKernel)
def _(kernel: Any, count: int, dims: int, generator: torch.Generator) -> Tensor:
    return _embed(kernel, _gaussian(kernel.lengthscale, count, _width(kernel, dims), generator), dims)


@frequencies.register(Matern)
@frequencies.register(gpytorch_kernels.MaternKernel)
def _(kernel: Any, count: int, dims: int, generator: torch.Generator) -> Tensor:
    omega = _student(kernel.lengthscale, round(2 * kernel.nu), count, _width(kernel, dims), generator)
    return _embed(kernel, omega, dims)


@frequencies.register
def _(kernel: RationalQuadratic, count: int, dims: int, generator: torch.Generator) -> Tensor:
    # A mixture of RBF kernels over precisions s ~ Gamma(alpha, rate alpha).
    alpha = float(kernel.alpha.detach())
    precision = gammaincinv(alpha, _uniform(generator, count, 1).cpu().numpy()) / alpha
    root = torch.from_numpy(precision).to(generator.device).sqrt()
    return _embed(kernel, _gaussian(kernel.lengthscale, count, _width(kernel, dims), generator) * root, dims)


@frequencies.register
def _(kernel: Periodic, count: int, dims: int, generator: torch.Generator) -> Tensor:
    return _embed(kernel, _harmonics(kernel, count, _width(kernel, dims), generator), dims)


@frequencies.register
def _(kernel: Cosine, count: int, dims: int, generator: torch.Generator) -> Tensor:
    return _embed(kernel, _cosine(1 / kernel.period.reshape(1, 1), count, generator), dims)


@frequencies.register
def _(kernel: HidaMatern, count: int, dims: int, generator: torch.Generator) -> Tensor:
    omega = _student(kernel.lengthscale, 2 * kernel.order + 1, count, 1, generator)
    return _embed(kernel, omega + _cosine(kernel.frequency.reshape(1, 1), count, generator), dims)


@frequencies.register
def _(kernel: SpectralMixture, count: int, dims: int, generator: torch.Generator) -> Tensor:
    means, scales = _drawn(kernel, count, width := _width(kernel, dims), generator)
    omega = _gaussian(1 / (2 * math.pi * scales), count, width, generator)
    return _embed(kernel, omega + _cosine(means, count, generator), dims)


@frequencies.register
def _(kernel: StudentMixture, count: int, dims: int, generator: torch.Generator) -> Tensor:
    means, lengthscales = _drawn(kernel, count, width := _width(kernel, dims), generator)
    omega = _student(lengthscales, round(2 * kernel.nu), count, width, generator)
    return _embed(kernel, omega + _cosine(means, count, generator), dims)


@frequencies.register
def _(kernel: QuasiPeriodic, count: int, dims: int, generator: torch.Generator) -> Tensor:
    omega = _student(kernel.decay, 2 * kernel.order + 1, count, 1, generator)
    return _embed(kernel, omega + _harmonics(kernel, count, 1, generator), dims)


@frequencies.register
def _(kernel: Constant, count: int, dims: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(count, dims, dtype=torch.float64, device=generator.device)


@frequencies.register
def _(kernel: gpytorch_kernels.ProductKernel, count: int, dims: int, generator: torch.Generator) -> Tensor | None:
    width = _width(kernel, dims)
    parts = [frequencies(k, count, width, generator) for k in kernel.kernels]
    if any(p is None for p in parts):
        return None
    return _embed(kernel, torch.stack([p for p in parts if p is not None]).sum(0), dims)
