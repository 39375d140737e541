"""Spectral densities of stationary kernels of one input.

``k(tau) = int S(w) exp(i w tau) dw / (2 pi)`` over all angular frequencies w, so that S is even and ``k(0) = int S dw / (2 pi)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from gpytorch import kernels as gpytorch_kernels
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels import RBF, Constant, Cosine, HidaMatern, Matern, SpectralMixture, StudentMixture


@dataclass(frozen=True)
class SpectralDensity:
    """``S: [K] angular frequencies -> [K]``, in squared target units times input units; differentiable; exact: always so far."""

    apply: Callable[[Tensor], Tensor]
    exact: bool = True

    def __call__(self, omega: Tensor) -> Tensor:
        return self.apply(omega)


@singledispatch
def spectral_density(kernel: Any) -> SpectralDensity:
    """The spectral density of a kernel of one input.

    Sums and scales of kernels that have one, and products of one of them with Cosine and Constant.
    Raises: StructureError for a kernel that has none, or none registered. Cost: O(K).

    >>> from gpx.kernels import Matern
    >>> float(spectral_density(Matern(nu=0.5, lengthscale=3.0))(torch.zeros(1)).detach())
    6.0
    """
    raise StructureError(
        f"{type(kernel).__name__} has no spectral density that is a function of frequency, or none is registered; use what"
        " needs no density, such as objectives.Whittle(debiased=True), or gpx.structure.spectral_density.register."
    )


@spectral_density.register(RBF)
@spectral_density.register(gpytorch_kernels.RBFKernel)
def _(kernel: Any) -> SpectralDensity:
    return _gaussian(_one(kernel, "lengthscale"), _variance(kernel))


@spectral_density.register(Matern)
@spectral_density.register(gpytorch_kernels.MaternKernel)
def _(kernel: Any) -> SpectralDensity:
    return _matern(float(kernel.nu), _one(kernel, "lengthscale"), _variance(kernel))


@spectral_density.register
def _(kernel: HidaMatern) -> SpectralDensity:
    base = _matern(kernel.order + 0.5, _one(kernel, "lengthscale"), _variance(kernel))
    return _shifted(base, 2 * math.pi * _one(kernel, "frequency"))


@spectral_density.register
def _(kernel: SpectralMixture) -> SpectralDensity:
    parts = [
        _shifted(_gaussian(1 / (2 * math.pi * scale), weight), 2 * math.pi * mean)
        for weight, mean, scale in _mixtures(kernel)
    ]
    return _summed(parts)


@spectral_density.register
def _(kernel: StudentMixture) -> SpectralDensity:
    parts = [
        _shifted(_matern(kernel.nu, lengthscale, weight), 2 * math.pi * mean)
        for weight, mean, lengthscale in _mixtures(kernel)
    ]
    return _summed(parts)


def _mixtures(kernel: SpectralMixture | StudentMixture) -> Iterator[tuple[Tensor, ...]]:
    """Weight, frequency and width of every mixture."""
    values = [getattr(kernel, name) for name in kernel.per_dimension]
    if kernel.batch_shape or values[0].shape[-1] != 1:
        raise StructureError(
            f"A spectral density is of one input and one kernel, {type(kernel).__name__} has frequencies of shape"
            f" {list(values[0].shape)}; choose one column with active_dims=[i]."
        )
    return zip(kernel.mixture_weights, *(value.squeeze(-1) for value in values), strict=True)


@spectral_density.register
def _(kernel: gpytorch_kernels.ScaleKernel) -> SpectralDensity:
    base, scale = spectral_density(kernel.base_kernel), kernel.outputscale.reshape(())
    return SpectralDensity(lambda omega: scale * base(omega), base.exact)


@spectral_density.register
def _(kernel: gpytorch_kernels.AdditiveKernel) -> SpectralDensity:
    return _summed([spectral_density(k) for k in kernel.kernels])


@spectral_density.register
def _(kernel: gpytorch_kernels.ProductKernel) -> SpectralDensity:
    others = [k for k in kernel.kernels if not isinstance(k, (Cosine, Constant))]
    if len(others) != 1:
        raise StructureError(
            f"The spectral density of a product is known for one factor beside Cosine and Constant, got {len(others)} in"
            f" {kernel}; use objectives.Whittle(debiased=True), which needs none."
        )
    density = spectral_density(others[0])
    for part in kernel.kernels:
        if isinstance(part, Cosine):
            density = _shifted(density, 2 * math.pi / _one(part, "period"))
        if isinstance(part, (Cosine, Constant)):
            density = _scaled(density, _variance(part))
    return density


def _summed(parts: Sequence[SpectralDensity]) -> SpectralDensity:
    return SpectralDensity(lambda omega: torch.stack([p(omega) for p in parts]).sum(0), all(p.exact for p in parts))


def _gaussian(lengthscale: Tensor, variance: Tensor) -> SpectralDensity:
    height = variance * math.sqrt(2 * math.pi) * lengthscale
    return SpectralDensity(lambda omega: height * torch.exp(-0.5 * (omega * lengthscale).square()))


def _matern(nu: float, lengthscale: Tensor, variance: Tensor) -> SpectralDensity:
    """``variance 2 sqrt(pi) Gamma(nu + 1/2) / Gamma(nu) / rate (1 + (w / rate)^2)^-(nu + 1/2)``.

    rate = sqrt(2 nu) / lengthscale. Source: Rasmussen & Williams (2006), eq. 4.15 in one dimension.
    """
    rate = math.sqrt(2 * nu) / lengthscale
    height = 2 * math.sqrt(math.pi) * math.exp(math.lgamma(nu + 0.5) - math.lgamma(nu)) * variance / rate
    return SpectralDensity(lambda omega: height * torch.exp(-(nu + 0.5) * torch.log1p((omega / rate).square())))


def _shifted(base: SpectralDensity, omega0: Tensor) -> SpectralDensity:
    """Times cos(omega0 tau): half to either side."""
    return SpectralDensity(lambda omega: 0.5 * (base(omega - omega0) + base(omega + omega0)), base.exact)


def _scaled(base: SpectralDensity, factor: Tensor) -> SpectralDensity:
    return SpectralDensity(lambda omega: factor * base(omega), base.exact)


def _variance(kernel: Any) -> Tensor:
    """k(0); gpytorch's kernels have a ScaleKernel for it."""
    return _one(kernel, "outputscale") if hasattr(kernel, "outputscale") else torch.ones(())


def _one(kernel: Any, name: str) -> Tensor:
    value = getattr(kernel, name)
    if value.numel() != 1:
        raise StructureError(
            f"A spectral density is of one input and one kernel, {type(kernel).__name__} has {value.numel()} values of"
            f" {name}; choose one column with active_dims=[i]."
        )
    return value.reshape(())
