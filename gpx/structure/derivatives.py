"""Derivatives of stationary kernels of one input, as functions of the signed lag ``z = x - x'``.

With ``k(x, x') = kappa(x - x')``: ``cov(f^(m)(x), f^(n)(x')) = (-1)^n kappa^(m + n)(x - x')``. Closed forms, since automatic
differentiation of a function of ``|z|`` is wrong at zero, where it matters most: kappa''(0) is the variance of f'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce, singledispatch
from typing import Any

import torch
from gpytorch import kernels as gpytorch_kernels
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels import (
    RBF,
    Constant,
    Cosine,
    HidaMatern,
    Matern,
    Periodic,
    QuasiPeriodic,
    RationalQuadratic,
    SpectralMixture,
    StudentMixture,
)

Jet = Callable[[Tensor], Tensor]
"""Lags [...] -> kappa and its derivatives [..., order + 1] there."""


@singledispatch
def derivatives(kernel: Any, order: int) -> Jet:
    """The derivatives of orders 0, ..., `order` of a stationary kernel of one input: a function of lags [...] with values
    [..., order + 1], in squared target units over input units to the order.

    Exact at every lag, zero included; differentiable in the hyperparameters (derivatives in the lag are the next order). Sums,
    products and scales of kernels that have them; open to registration.
    Raises: StructureError for a kernel that has none registered, that is not so often differentiable at zero (a Matern kernel
    2 nu - 1 times), or that acts on several columns. Cost: O(N order^2) per lag, Q times for mixtures.

    >>> from gpx.kernels import RBF
    >>> derivatives(RBF(lengthscale=0.5), 2)(torch.zeros(1))[..., 2].detach()
    tensor([-4.], dtype=torch.float64)
    """
    raise StructureError(
        f"{type(kernel).__name__} has no derivatives as functions of a lag, or none are registered: use SpectralMixture,"
        " StudentMixture, Matern, RBF or others of one input column, or gpx.structure.derivatives.register."
    )


@derivatives.register(RBF)
@derivatives.register(gpytorch_kernels.RBFKernel)
def _(kernel: Any, order: int) -> Jet:
    return _scaled(_gaussian(_one(kernel, "lengthscale"), order), _variance(kernel))


@derivatives.register(Matern)
@derivatives.register(gpytorch_kernels.MaternKernel)
def _(kernel: Any, order: int) -> Jet:
    return _scaled(_matern(kernel, float(kernel.nu), _one(kernel, "lengthscale"), order), _variance(kernel))


@derivatives.register
def _(kernel: RationalQuadratic, order: int) -> Jet:
    alpha, precision = _one(kernel, "alpha"), _one(kernel, "lengthscale") ** -2

    def apply(lag: Tensor) -> Tensor:
        # h f' + precision z f = 0, h = 1 + precision z^2 / (2 alpha), differentiated n times.
        slope = precision / alpha * lag
        base = 1 + 0.5 * slope * lag
        found = [base**-alpha]
        for n in range(order):
            rest = (n * slope + precision * lag) * found[n]
            if n:
                rest = rest + (math.comb(n, 2) / alpha + n) * precision * found[n - 1]
            found.append(-rest / base)
        return torch.stack(found, -1)

    return _scaled(apply, _variance(kernel))


@derivatives.register
def _(kernel: Cosine, order: int) -> Jet:
    return _scaled(_cosine(1 / _one(kernel, "period"), order), _variance(kernel))


@derivatives.register
def _(kernel: HidaMatern, order: int) -> Jet:
    envelope = _matern(kernel, kernel.order + 0.5, _one(kernel, "lengthscale"), order)
    return _scaled(_product([envelope, _cosine(_one(kernel, "frequency"), order)]), _variance(kernel))


@derivatives.register
def _(kernel: Periodic, order: int) -> Jet:
    return _scaled(_periodic(kernel, order), _variance(kernel))


@derivatives.register
def _(kernel: QuasiPeriodic, order: int) -> Jet:
    envelope = _matern(kernel, kernel.order + 0.5, _one(kernel, "decay"), order)
    return _scaled(_product([envelope, _periodic(kernel, order)]), _variance(kernel))


@derivatives.register
def _(kernel: SpectralMixture, order: int) -> Jet:
    return _mixture(kernel, lambda scale: _gaussian(1 / (2 * math.pi * scale), order), order)


@derivatives.register
def _(kernel: StudentMixture, order: int) -> Jet:
    return _mixture(kernel, lambda lengthscale: _matern(kernel, kernel.nu, lengthscale, order), order)


@derivatives.register
def _(kernel: Constant, order: int) -> Jet:
    unit = torch.eye(order + 1, dtype=torch.float64)[0]
    return _scaled(lambda lag: unit.to(lag).expand(*lag.shape, -1), _variance(kernel))


@derivatives.register
def _(kernel: gpytorch_kernels.ScaleKernel, order: int) -> Jet:
    return _scaled(derivatives(kernel.base_kernel, order), kernel.outputscale.reshape(()))


@derivatives.register
def _(kernel: gpytorch_kernels.AdditiveKernel, order: int) -> Jet:
    return _sum([derivatives(part, order) for part in kernel.kernels])


@derivatives.register
def _(kernel: gpytorch_kernels.ProductKernel, order: int) -> Jet:
    return _product([derivatives(part, order) for part in kernel.kernels])


def _gaussian(lengthscale: Tensor, order: int) -> Jet:
    """Of ``exp(-z^2 / (2 lengthscale^2))``: Hermite polynomials."""

    def apply(lag: Tensor) -> Tensor:
        precision = lengthscale**-2
        found = [torch.exp(-0.5 * precision * lag.square())]
        for n in range(order):
            found.append(-precision * (lag * found[n] + (n * found[n - 1] if n else 0.0)))
        return torch.stack(found, -1)

    return apply


def _cosine(frequency: Tensor, order: int) -> Jet:
    """Of ``cos(2 pi frequency z)``: a quarter of a turn per derivative."""
    omega = 2 * math.pi * frequency

    def apply(lag: Tensor) -> Tensor:
        cos, sin = torch.cos(omega * lag), torch.sin(omega * lag)
        return torch.stack([(cos, -sin, -cos, sin)[n % 4] * omega**n for n in range(order + 1)], -1)

    return apply


def _matern(kernel: Any, nu: float, lengthscale: Tensor, order: int) -> Jet:
    """Of the Matern correlation: ``P_n(x) e^-x`` times ``(rate sign z)^n``, ``x = rate |z|``, with ``P_(n+1) = P_n' - P_n``."""
    p, f = round(nu - 0.5), math.factorial
    if order > 2 * p:
        raise StructureError(
            f"{type(kernel).__name__} of smoothness nu = {nu:g} has {2 * p} derivative(s) at zero, asked for {order}: use"
            f" nu >= {math.ceil(order / 2) + 0.5:g}, or kernels.SpectralMixture or kernels.RBF, which have all."
        )
    terms = [Fraction(2**k * f(p) * f(2 * p - k), f(2 * p) * f(k) * f(p - k)) for k in range(p + 1)]
    polynomials = [terms]
    for _ in range(order):  # exact, so that odd ones are exactly zero at zero
        terms = [(k + 1) * above - c for k, (c, above) in enumerate(zip(terms, [*terms[1:], Fraction(0)], strict=True))]
        polynomials.append(terms)

    def apply(lag: Tensor) -> Tensor:
        rate = math.sqrt(2 * nu) / lengthscale
        x, signs = rate * lag.abs(), (torch.ones_like(lag), lag.sign())
        decay = torch.exp(-x)
        horner = (reduce(lambda total, c: total * x + float(c), reversed(terms), 0.0) for terms in polynomials)
        return torch.stack([signs[n % 2] * rate**n * value * decay for n, value in enumerate(horner)], -1)

    return apply


def _periodic(kernel: Any, order: int) -> Jet:
    """Of ``f = exp((cos(w z) - 1) / lengthscale^2)``: ``f' = -w sin(w z) f / lengthscale^2``, by Leibniz's rule."""
    frequency, lengthscale = 1 / _one(kernel, "period"), _one(kernel, "lengthscale")
    wave = _cosine(frequency, order)

    def apply(lag: Tensor) -> Tensor:
        exponent = wave(lag) / lengthscale**2
        half = torch.sin(math.pi * frequency * lag) / lengthscale
        found = [torch.exp(-2 * half.square())]
        for n in range(order):
            found.append(sum(math.comb(n, k) * exponent[..., k + 1] * found[n - k] for k in range(n + 1)))  # pyright: ignore
        return torch.stack(found, -1)

    return apply


def _mixture(kernel: SpectralMixture | StudentMixture, envelope: Callable[[Tensor], Jet], order: int) -> Jet:
    if kernel.batch_shape or kernel.mixture_means.shape[-1] != 1:
        raise StructureError(_one_column(kernel, "mixture_means", list(kernel.mixture_means.shape)))
    means, widths = (getattr(kernel, name).squeeze(-1) for name in kernel.per_dimension)
    parts = (
        _scaled(_product([envelope(width), _cosine(mean, order)]), weight)
        for weight, mean, width in zip(kernel.mixture_weights, means, widths, strict=True)
    )
    return _sum(list(parts))


def _sum(parts: Sequence[Jet]) -> Jet:
    return lambda lag: reduce(torch.add, (part(lag) for part in parts))


def _scaled(base: Jet, scale: Tensor) -> Jet:
    return lambda lag: scale * base(lag.to(scale.dtype))


def _product(parts: Sequence[Jet]) -> Jet:
    return lambda lag: reduce(_leibniz, (part(lag) for part in parts))


def _leibniz(a: Tensor, b: Tensor) -> Tensor:
    """``(a b)^(n) = sum_k C(n, k) a^(k) b^(n - k)``."""
    terms = (
        sum(math.comb(n, k) * a[..., k] * b[..., n - k] for k in range(n + 1))  # pyright: ignore[reportArgumentType]
        for n in range(a.shape[-1])
    )
    return torch.stack(list(terms), -1)  # pyright: ignore[reportArgumentType]


def _variance(kernel: Any) -> Tensor:
    return _one(kernel, "outputscale") if hasattr(kernel, "outputscale") else torch.ones((), dtype=torch.float64)


def _one(kernel: Any, name: str) -> Tensor:
    value = getattr(kernel, name)
    if value.numel() != 1:
        raise StructureError(_one_column(kernel, name, list(value.shape)))
    return value.reshape(())


def _one_column(kernel: Any, name: str, shape: list[int]) -> str:
    return (
        f"Derivatives in the lag are those of one input and one kernel, {type(kernel).__name__} has {name} of shape {shape};"
        " choose one column with active_dims=[i]."
    )
