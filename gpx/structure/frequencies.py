"""Random frequencies of stationary kernels: fixed draws, moved by the hyperparameters. Theory: docs/theory/features.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from gpytorch import kernels as gpytorch_kernels
from scipy.special import gammaincinv
from torch import Tensor

from gpx.kernels import (
    RBF,
    Constant,
    Cosine,
    GridSpectralMixtureProduct,
    HidaMatern,
    Matern,
    Periodic,
    QuasiPeriodic,
    RationalQuadratic,
    SpectralMixture,
    StudentMixture,
)
from gpx.structure.draws import Draws

HARMONICS = 4096
FAINT = 1e-13  # a weight below has no digits
DECAY = 1.5  # of the law by which harmonics are drawn, a power: near enough to those of smooth and of sharp periods
STENCIL = 1e-3  # of alpha: five points are exact to its fourth power

# Angular frequencies [count, dims] at the present hyperparameters, and weights [count] with a mean of one.
Frequencies = Callable[[], tuple[Tensor, Tensor]]


@singledispatch
def frequencies(kernel: Any, count: int, dims: int, draws: Draws) -> Frequencies | None:
    """Frequencies and weights with ``E [weight exp(i omega . x)] = k(x) / k(0)``; differentiable in the hyperparameters, the
    draws being fixed. None if the kernel is not stationary.
    """
    return None


def is_stationary(kernel: Any, dims: int) -> bool:
    """Whether a kernel has frequencies."""
    return frequencies(kernel, 1, dims, Draws(torch.Generator())) is not None


def width(kernel: gpytorch_kernels.Kernel, dims: int) -> int:
    """How many of `dims` columns a kernel acts on."""
    return dims if kernel.active_dims is None else len(kernel.active_dims)


def _embed(kernel: gpytorch_kernels.Kernel, omega: Tensor, dims: int) -> Tensor:
    """Frequencies of the selected columns as frequencies of all of them."""
    if kernel.active_dims is None:
        return omega
    return omega.new_zeros(len(omega), dims).index_copy(1, kernel.active_dims.to(omega.device), omega)


def _even(omega: Tensor) -> tuple[Tensor, Tensor]:
    """All with the weight 1."""
    return omega, torch.ones(len(omega)).to(omega)


def _over(base: Tensor, lengthscale: Tensor) -> Tensor:
    return base.to(lengthscale) / lengthscale.reshape(1, -1)


@frequencies.register(RBF)
@frequencies.register(gpytorch_kernels.RBFKernel)
def _(kernel: Any, count: int, dims: int, draws: Draws) -> Frequencies:
    base = draws.normal(count, width(kernel, dims))
    return lambda: _even(_embed(kernel, _over(base, kernel.lengthscale), dims))


def _student(freedom: int, count: int, columns: int, draws: Draws) -> Tensor:
    """A multivariate Student t [count, columns] with freedom = 2 nu, an odd integer: a Matern kernel of unit lengthscale."""
    return draws.normal(count, columns) / draws.chi_squared(count, freedom).sqrt()


@frequencies.register(Matern)
@frequencies.register(gpytorch_kernels.MaternKernel)
def _(kernel: Any, count: int, dims: int, draws: Draws) -> Frequencies:
    base = _student(round(2 * kernel.nu), count, width(kernel, dims), draws)
    return lambda: _even(_embed(kernel, _over(base, kernel.lengthscale), dims))


@frequencies.register
def _(kernel: RationalQuadratic, count: int, dims: int, draws: Draws) -> Frequencies:
    # A mixture of RBF kernels over precisions s ~ Gamma(alpha, rate alpha).
    base, level = draws.normal(count, width(kernel, dims)), draws.uniform(count, 1)

    def at() -> tuple[Tensor, Tensor]:
        root = _GammaQuantile.apply(kernel.alpha.reshape(()), level.to(kernel.alpha)).sqrt()
        return _even(_embed(kernel, _over(base, kernel.lengthscale) * root, dims))

    return at


class _GammaQuantile(torch.autograd.Function):
    """Quantiles of Gamma(alpha, rate alpha) as functions of alpha."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, level: Tensor) -> Tensor:
        ctx.save_for_backward(alpha, level)
        return _gamma_quantile(float(alpha), level)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        alpha, level = ctx.saved_tensors
        a = float(alpha)
        near, far = (
            (_gamma_quantile(a + h * a, level) - _gamma_quantile(a - h * a, level)) / (2 * h * a)
            for h in (STENCIL, 2 * STENCIL)
        )
        return (grad * (4 * near - far) / 3).sum(), None


def _gamma_quantile(alpha: float, level: Tensor) -> Tensor:
    return torch.from_numpy(gammaincinv(alpha, level.cpu().numpy().astype(np.float64)) / alpha).to(level)


def harmonic_weights(lengthscale: Tensor, count: int) -> Tensor:
    """Weights [count] of the harmonics j = 0, 1, ... of ``exp(-(1 - cos a) / l^2)``: ``e^-z I_j(z)``, ``z = 1 / l^2``, twice
    for j > 0. Differentiable: the periodic function is seen at so many points that its sums are exact.
    """
    angle = torch.arange(4 * count).to(lengthscale) * (2 * math.pi / (4 * count))
    values = torch.exp((angle.cos() - 1) / lengthscale.reshape(()).square())
    weights = torch.fft.rfft(values).real[:count] / len(values)
    twice = torch.where(torch.arange(count, device=weights.device) > 0, 2.0, 1.0)
    return torch.where(weights > FAINT, twice * weights, 0.0)


def _harmonics(
    kernel: Periodic | QuasiPeriodic, count: int, columns: int, draws: Draws
) -> Frequencies:  # fmt: skip
    """Angular frequencies of a periodic correlation: harmonics are drawn by one law, and weighted to that of the lengthscale."""
    law = (1 + torch.arange(HARMONICS, dtype=torch.float64)) ** -DECAY
    law = (law / law.sum()).to(draws.generator.device)
    harmonic = torch.searchsorted(law.cumsum(0), draws.uniform(count, columns)).clamp_max(HARMONICS - 1)
    signed = harmonic * torch.cat([draws.sign(count) for _ in range(columns)], 1)

    def at() -> tuple[Tensor, Tensor]:
        ratio = harmonic_weights(kernel.lengthscale, HARMONICS) / law.to(kernel.lengthscale)
        omega = 2 * math.pi * signed.to(kernel.period) / kernel.period.reshape(())
        return omega, ratio[harmonic.to(ratio.device)].prod(1)

    return at


def _tone(frequency: Callable[[], Tensor], count: int, draws: Draws) -> Callable[[], Tensor]:
    """Angular frequencies [count, 1] of a tone: either sign is as likely."""
    sign = draws.sign(count)
    return lambda: 2 * math.pi * frequency().reshape(1, 1) * sign.to(frequency())


@frequencies.register
def _(kernel: Periodic, count: int, dims: int, draws: Draws) -> Frequencies:
    inner = _harmonics(kernel, count, width(kernel, dims), draws)

    def at() -> tuple[Tensor, Tensor]:
        omega, weight = inner()
        return _embed(kernel, omega, dims), weight

    return at


@frequencies.register
def _(kernel: Cosine, count: int, dims: int, draws: Draws) -> Frequencies:
    tone = _tone(lambda: 1 / kernel.period, count, draws)
    return lambda: _even(_embed(kernel, tone(), dims))


@frequencies.register
def _(kernel: HidaMatern, count: int, dims: int, draws: Draws) -> Frequencies:
    base = _student(2 * kernel.order + 1, count, 1, draws)
    tone = _tone(lambda: kernel.frequency, count, draws)
    return lambda: _even(_embed(kernel, _over(base, kernel.lengthscale) + tone(), dims))


@frequencies.register
def _(kernel: QuasiPeriodic, count: int, dims: int, draws: Draws) -> Frequencies:
    base, inner = _student(2 * kernel.order + 1, count, 1, draws), _harmonics(kernel, count, 1, draws)

    def at() -> tuple[Tensor, Tensor]:
        omega, weight = inner()
        return _embed(kernel, _over(base, kernel.decay) + omega, dims), weight

    return at


def _shared(weights: Tensor, chosen: Tensor) -> Tensor:
    """Of frequencies that are shared out evenly among mixtures: [count]."""
    return (weights * len(weights) / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny))[chosen]


def _mixture(count: int, mixtures: int, draws: Draws) -> Tensor:
    """To which mixture each frequency belongs: [count]."""
    return (draws.uniform(count, 1)[:, 0] * mixtures).long()


@frequencies.register(SpectralMixture)
@frequencies.register(StudentMixture)
def _(kernel: SpectralMixture | StudentMixture, count: int, dims: int, draws: Draws) -> Frequencies:
    columns, chosen = width(kernel, dims), _mixture(count, kernel.num_mixtures, draws)
    student = isinstance(kernel, StudentMixture)
    base = _student(round(2 * kernel.nu), count, columns, draws) if student else draws.normal(count, columns)
    sign = draws.sign(count)

    def at() -> tuple[Tensor, Tensor]:
        means = kernel.mixture_means
        scale = 1 / kernel.mixture_lengthscales if student else 2 * math.pi * kernel.mixture_scales
        omega = 2 * math.pi * sign.to(means) * means[chosen] + base.to(scale) * scale[chosen]
        return _embed(kernel, omega, dims), _shared(kernel.mixture_weights, chosen)

    return at


@frequencies.register
def _(kernel: GridSpectralMixtureProduct, count: int, dims: int, draws: Draws) -> Frequencies:
    columns = width(kernel, dims)
    chosen = _mixture(count, len(kernel.frequencies_in(columns)), draws)
    base, sign = draws.normal(count, columns), torch.cat([draws.sign(count) for _ in range(columns)], 1)

    def at() -> tuple[Tensor, Tensor]:
        grid, bandwidth = kernel.frequencies_in(columns), kernel.bandwidth.reshape(1, -1)
        omega = 2 * math.pi * (sign.to(grid) * grid[chosen] + bandwidth * base.to(grid))
        return _embed(kernel, omega, dims), _shared(kernel.weights_in(columns), chosen)

    return at


@frequencies.register
def _(kernel: Constant, count: int, dims: int, draws: Draws) -> Frequencies:
    return lambda: _even(kernel.outputscale.new_zeros(count, dims))


@frequencies.register
def _(kernel: gpytorch_kernels.ProductKernel, count: int, dims: int, draws: Draws) -> Frequencies | None:
    columns = width(kernel, dims)
    if not all(is_stationary(k, columns) for k in kernel.kernels):
        return None
    parts = [frequencies(k, count, columns, draws) for k in kernel.kernels]

    def at() -> tuple[Tensor, Tensor]:
        omegas, weights = zip(*(part() for part in parts if part is not None), strict=True)
        return _embed(kernel, torch.stack(omegas).sum(0), dims), torch.stack(weights).prod(0)

    return at
