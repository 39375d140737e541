"""Kernels of one input as state-space models: sums of Matern processes, modulated by known functions of time.

A block is ``k(t, t') = kappa(rate |t - t'|) sum_j phi_j(t) phi_j(t')`` with ``kappa(x) = e^-x (c_0 + c_1 x + ... + c_p x^p)``: J
independent copies of one process, each times its factor phi_j. Cosines rotate (factors cos and sin, Hartikainen & Sarkka
2010), periodic kernels are sums of cosines (Solin & Sarkka 2014), polynomials multiply constants. Such blocks are closed
under sums and products. Theory: docs/theory/state_space.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce, singledispatch
from typing import Any

import gpytorch
import numpy as np
import torch
from numpy.polynomial import Polynomial
from scipy.special import ive
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels import Constant, Cosine, HidaMatern, Linear, Matern, Periodic, QuasiPeriodic
from gpx.kernels.walk import parts
from gpx.linalg.layout import Layout, noise_terms

HARMONICS = (2, 4, 8, 16, 32, 64, 128)  # numbers of harmonics of a periodic kernel that code is compiled for
TRUNCATION = 1e-10  # of the variance of a periodic kernel, in harmonics that are left out


@dataclass(frozen=True)
class Block:
    """profile [p + 1]: the c_k above, ``c_0 = 1``; rate: scalar, in inverse time units, 0 where p = 0 and nothing decays;
    factors: times [n] -> [n, J], or [1, J] where they are constant; smoothness: how often a path can be differentiated: p for a
    Matern kernel, less for a product.
    """

    profile: Tensor
    rate: Tensor
    factors: Callable[[Tensor], Tensor]
    smoothness: int

    @property
    def order(self) -> int:
        """p."""
        return len(self.profile) - 1

    def row(self) -> Tensor:
        """The weights of the observed coordinates of a Matern process of this order whose sum has the covariance kappa."""
        return spectral_factor(self.profile, self.order - self.smoothness)


@dataclass(frozen=True)
class StateSpace:
    """A sum of blocks; error: a bound on the difference from the kernel, as a share of its variance."""

    blocks: tuple[Block, ...]
    error: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether the model is the kernel, up to rounding."""
        return self.error <= TRUNCATION

    def at(self, times: Tensor) -> tuple[Layout, Tensor, Tensor, Tensor]:
        """Layout, rates [B], rows and factors ([n, J] or [1, J]) at times [n]."""
        rows = [block.row().to(times) for block in self.blocks]
        factors = [block.factors(times) for block in self.blocks]
        longest = len(times) if any(len(f) != 1 for f in factors) else 1
        layout = Layout(
            tuple(b.order for b in self.blocks), tuple(f.shape[1] for f in factors), tuple(len(row) for row in rows)
        )  # fmt: skip
        rates = torch.stack([b.rate.reshape(()).to(times) for b in self.blocks])
        return layout, rates, torch.cat(rows), torch.cat([f.expand(longest, -1) for f in factors], 1)

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernel matrix [N, M] that the model stands for, at times a [N] and b [M]."""
        total, n = a.new_zeros(len(a), len(b)), len(a)
        for block in self.blocks:
            x = block.rate * (a[:, None] - b).abs()
            kappa = torch.exp(-x) * sum(c * x**k for k, c in enumerate(block.profile))
            phi = block.factors(torch.cat([a, b])).expand(n + len(b), -1)
            total = total + kappa * (phi[:n] @ phi[n:].mT)
        return total


@singledispatch
def state_space(kernel: Any) -> StateSpace:
    """The state-space model of a kernel of one input column.

    Raises: StructureError that names the part of the kernel that has none.
    """
    raise StructureError(
        f"{type(kernel).__name__} has no state-space form; use Matern, HidaMatern, QuasiPeriodic, Periodic, Cosine, Linear or"
        " Constant, their sums and products, or engines.Exact(). Rules of your own: gpx.structure.state_space.register."
    )


def time_column(kernel: gpytorch.kernels.Kernel, dims: int) -> int:
    """The one of `dims` input columns that the kernel acts on. Raises: StructureError if there are several."""
    columns = _columns(kernel, range(dims))
    if len(columns) != 1:
        raise StructureError(
            f"A state-space model needs one input column, the kernel acts on {len(columns)}: choose one with"
            " active_dims=[i], or use engines.Exact() or engine='auto'."
        )
    return columns.pop()


def _columns(kernel: gpytorch.kernels.Kernel, columns: Sequence[int]) -> set[int]:
    """Those of the columns that the kernel acts on."""
    scaled = isinstance(kernel, gpytorch.kernels.ScaleKernel) and kernel.base_kernel.active_dims is not None
    if kernel.active_dims is not None and not scaled:  # a ScaleKernel copies the selection of its base
        columns = [columns[d] for d in kernel.active_dims.tolist()]
    inner = [_columns(part, columns) for part in parts(kernel)]
    return set().union(*inner) if inner else set(columns)


def matern_profile(order: int) -> Tensor:
    """The profile of the Matern kernel of smoothness order + 1/2: ``c_k = 2^k p! (2p - k)! / ((2p)! k! (p - k)!)``."""
    p, f = order, math.factorial
    terms = [2.0**k * f(p) * f(2 * p - k) / (f(2 * p) * f(k) * f(p - k)) for k in range(p + 1)]
    return torch.tensor(terms, dtype=torch.float64)


def spectral_factor(profile: Tensor, degree: int) -> Tensor:
    """b [degree + 1] such that ``sum_i b_i z_i`` of a Matern process of order p has the covariance ``e^-x sum_k c_k x^k``.

    Its spectral density is ``|b(i w)|^2 q / (1 + w^2)^(p + 1)``: b is the factor of a polynomial of that degree in w^2, without
    roots in the right half-plane. Differentiable in the profile.
    """
    if degree == 0:
        return profile.new_ones(1)
    numerator = (_numerator(len(profile) - 1).to(profile) @ profile)[: degree + 1]
    factor = _stable_factor(numerator.detach().cpu().numpy())
    # The factor solves "square = numerator"; one Newton step at the solution carries the gradient.
    size = degree + 1
    square, jacobian = np.zeros(size), np.zeros((size, size))
    for i in range(size):
        for j in range(i % 2, size, 2):
            sign, m = (-1.0) ** ((i - j) // 2), (i + j) // 2
            square[m] += sign * factor[i] * factor[j]
            jacobian[m, i] += 2 * sign * factor[j]
    step = torch.as_tensor(np.linalg.inv(jacobian)).to(profile) @ (numerator - torch.as_tensor(square).to(profile))
    return torch.as_tensor(factor).to(profile) + step


def _numerator(order: int) -> Tensor:
    """[p + 1, p + 1]: coefficients of w^0, w^2, ... (rows) in ``2 Re k! / (1 + i w)^(k + 1) (1 + w^2)^(p + 1) / q``."""
    result = np.zeros((order + 1, order + 1))
    for k in range(order + 1):
        conjugate, rest = Polynomial([1.0, -1j]) ** (k + 1), Polynomial([1.0, 0.0, 1.0]) ** (order - k)
        even = (2 * math.factorial(k) * (conjugate * rest).coef.real / noise_terms(order)[2])[: 2 * order + 1 : 2]
        result[: len(even), k] = even
    return torch.as_tensor(result)


def _stable_factor(numerator: np.ndarray) -> np.ndarray:
    """b with ``|b(i w)|^2 = sum_m numerator_m w^2m`` and no roots in the right half-plane."""
    poles = np.sqrt(-np.roots(numerator[::-1]).astype(complex))
    poles = np.where(poles.real > 0, -poles, poles)
    return np.real(np.poly(poles))[::-1] * math.sqrt(numerator[-1])


def _constant(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda times: weight.reshape(1, 1).to(times)


def _static(factors: Callable[[Tensor], Tensor]) -> StateSpace:
    """A block without decay."""
    return StateSpace((Block(torch.ones(1).double(), torch.zeros(()).double(), factors, 0),))


def _rotating(weights: Tensor, frequencies: Tensor) -> Callable[[Tensor], Tensor]:
    """Factors of ``sum_j weights_j cos(frequencies_j (t - t'))``; angular frequencies [J] > 0."""

    def factors(times: Tensor) -> Tensor:
        # Only differences matter: phases from the first time on keep their digits.
        phase = (times - times[:1])[:, None] * frequencies.to(times)
        amplitude = weights.to(times).sqrt()
        return torch.cat([amplitude * phase.cos(), amplitude * phase.sin()], 1)

    return factors


@state_space.register(Matern)
@state_space.register(gpytorch.kernels.MaternKernel)
def _(kernel: Any) -> StateSpace:
    scale = getattr(kernel, "outputscale", torch.ones((), dtype=torch.float64))
    return _matern(round(kernel.nu - 0.5), kernel.lengthscale, _constant(scale.sqrt()))


def _matern(order: int, lengthscale: Tensor, factors: Callable[[Tensor], Tensor]) -> StateSpace:
    return StateSpace((Block(matern_profile(order), math.sqrt(2 * order + 1) / lengthscale, factors, order),))


@state_space.register
def _(kernel: Constant) -> StateSpace:
    return _static(_constant(kernel.outputscale.sqrt()))


@state_space.register
def _(kernel: Linear) -> StateSpace:
    if kernel.outputscale.numel() > 1:
        raise StructureError(
            f"A state-space model needs one input column, {kernel} acts on {kernel.outputscale.numel()}."
        )
    slope, center = kernel.outputscale.sqrt().reshape(1, 1), kernel.center.reshape(1, 1)
    return _static(lambda times: (times[:, None] - center.to(times)) * slope.to(times))


@state_space.register
def _(kernel: Cosine) -> StateSpace:
    return _static(_rotating(kernel.outputscale.reshape(1), (2 * math.pi / kernel.period).reshape(1)))


@state_space.register
def _(kernel: HidaMatern) -> StateSpace:
    frequency, still = (
        kernel.frequency.reshape(1),
        not kernel.raw_frequency.requires_grad and not bool(kernel.frequency.any()),
    )
    wave = _rotating(kernel.outputscale.reshape(1), 2 * math.pi * frequency)
    return _matern(kernel.order, kernel.lengthscale, _constant(kernel.outputscale.sqrt()) if still else wave)


@state_space.register
def _(kernel: Periodic) -> StateSpace:
    return _repeating(kernel)


@state_space.register
def _(kernel: QuasiPeriodic) -> StateSpace:
    one = torch.ones((), dtype=torch.float64)
    return _product(_repeating(kernel), _matern(kernel.order, kernel.decay, _constant(one)))


def _repeating(kernel: Any) -> StateSpace:
    """The periodic kernel with a period, lengthscale and outputscale."""
    weights, error = periodic_weights(kernel.lengthscale.reshape(()))
    waves = _rotating(
        kernel.outputscale * weights[1:],
        (2 * math.pi / kernel.period).reshape(()) * torch.arange(1, len(weights)).to(kernel.period),
    )
    level = _constant((kernel.outputscale * weights[0]).sqrt())
    form = _static(lambda times: torch.cat([level(times).expand(len(times), 1), waves(times)], 1))
    return StateSpace(form.blocks, error)


@state_space.register
def _(kernel: gpytorch.kernels.ScaleKernel) -> StateSpace:
    return _product(_static(_constant(kernel.outputscale.sqrt())), state_space(kernel.base_kernel))


@state_space.register
def _(kernel: gpytorch.kernels.AdditiveKernel) -> StateSpace:
    forms = [state_space(k) for k in kernel.kernels]
    return StateSpace(tuple(b for f in forms for b in f.blocks), max(f.error for f in forms))


@state_space.register
def _(kernel: gpytorch.kernels.ProductKernel) -> StateSpace:
    return reduce(_product, (state_space(k) for k in kernel.kernels))


def _product(a: StateSpace, b: StateSpace) -> StateSpace:
    return StateSpace(tuple(_times(x, y) for x in a.blocks for y in b.blocks), a.error + b.error)


def _times(a: Block, b: Block) -> Block:
    """Factors multiply, rates add, profiles are convolved: order p_a + p_b, not the product of the dimensions."""

    def factors(times: Tensor) -> Tensor:
        return (a.factors(times).unsqueeze(-1) * b.factors(times).unsqueeze(-2)).flatten(-2)

    if a.order == 0 and b.order == 0:
        return Block(a.profile, a.rate.reshape(()) + b.rate.reshape(()), factors, 0)
    for one, other in ((a, b), (b, a)):
        if one.order == 0 and not one.rate.requires_grad and float(one.rate) == 0:
            return replace(other, factors=factors)
    rate = a.rate.reshape(()) + b.rate.reshape(())
    scaled = [x.profile.to(rate) * (x.rate.reshape(()) / rate) ** torch.arange(x.order + 1).to(rate) for x in (a, b)]
    profile = torch.stack([
        sum(scaled[0][i] * scaled[1][k - i] for i in range(a.order + 1) if 0 <= k - i <= b.order)
        for k in range(a.order + b.order + 1)
    ])  # fmt: skip
    return Block(profile, rate, factors, min(a.smoothness, b.smoothness))


def periodic_weights(lengthscale: Tensor) -> tuple[Tensor, float]:
    """``exp(-2 sin^2(a / 2) / lengthscale^2) = sum_j q_j cos(j a)``: q [J + 1], and the sum of those that are left out.

    ``q_0 = e^-z I_0(z)``, ``q_j = 2 e^-z I_j(z)``, z = 1 / lengthscale^2. Source: Solin & Sarkka (2014), with exact Bessel
    functions in place of Taylor series.
    """
    z = float(lengthscale.detach()) ** -2
    for count in HARMONICS:
        rest = max(0.0, 1.0 - float(ive(0, z) + 2 * ive(np.arange(1, count + 1), z).sum()))
        if rest <= TRUNCATION:
            break
    return _BesselWeights.apply(lengthscale, count), rest


class _BesselWeights(torch.autograd.Function):
    """q_0, ..., q_J as functions of the lengthscale; ``d(e^-z I_j)/dz = e^-z ((I_(j-1) + I_(j+1)) / 2 - I_j)``."""

    @staticmethod
    def forward(ctx: Any, lengthscale: Tensor, count: int) -> Tensor:
        z = float(lengthscale.detach()) ** -2
        values = ive(np.arange(-1, count + 2), z)
        twice = np.where(np.arange(count + 1) > 0, 2.0, 1.0)
        ctx.slope = torch.as_tensor(twice * (0.5 * (values[:-2] + values[2:]) - values[1:-1]) * -2 * z**1.5).to(
            lengthscale
        )
        return torch.as_tensor(twice * values[1:-1]).to(lengthscale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (grad * ctx.slope).sum(), None
