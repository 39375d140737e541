"""Kernels of one input as state-space models: sums of Matern processes, modulated by known functions of time.

A block is ``k(t, t') = kappa(rate |t - t'|) sum_j phi_j(t) phi_j(t')`` with ``kappa(x) = e^-x (c_0 + c_1 x + ... + c_p x^p)``: J
independent copies of one process, each times its factor phi_j. Cosines rotate (factors cos and sin, Hartikainen & Sarkka
2010), periodic kernels are sums of cosines (Solin & Sarkka 2014), polynomials multiply constants, RBF kernels have a
rational approximation with one pole. Such blocks are closed
under sums and products. Theory: docs/theory/state_space.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce, singledispatch
from typing import Any

import gpytorch
import numpy as np
import torch
from scipy.special import ive
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels import (
    RBF,
    BlockQuasiPeriodic,
    Constant,
    Cosine,
    HidaMatern,
    Linear,
    Matern,
    Periodic,
    QuasiPeriodic,
    Same,
    StudentMixture,
)
from gpx.kernels.walk import parts
from gpx.linalg.circulant import hartley
from gpx.linalg.derivatives import derivative
from gpx.linalg.layout import Layout
from gpx.structure.block_form import block_form
from gpx.structure.profiles import (
    GAUSSIAN_RATE,
    GAUSSIAN_SMOOTHNESS,
    gaussian_profile,
    matern_profile,
    spectral_factor,
)

HARMONICS = (
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
)  # numbers of those of a periodic kernel that code is compiled for
MAX_ORDER = 12  # of a block: the filter loses a digit with every order, and keeps eight at this one
LEAST_CORRELATION = 1e-9  # of neighbouring blocks: less is as good as none
# Of the variance of a periodic kernel, in harmonics that are left out: many data with little noise see all above rounding.
TRUNCATION, ROUNDING = 1e-17, 1e-14


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

    def __post_init__(self) -> None:
        if self.order > MAX_ORDER:
            raise StructureError(
                f"A state-space model of order {self.order} would lose its digits, {MAX_ORDER} is the limit: multiply fewer or"
                " rougher kernels (a product of RBF kernels is one RBF kernel), or use engines.Exact()."
            )

    @property
    def order(self) -> int:
        """p."""
        return len(self.profile) - 1

    @property
    def still(self) -> bool:
        """Whether the process is a constant, whatever the hyperparameters."""
        return self.order == 0 and not self.rate.requires_grad and float(self.rate) == 0

    def row(self) -> Tensor:
        """The weights of the observed coordinates of a Matern process of this order whose sum has the covariance kappa."""
        return spectral_factor(self.profile, self.order - self.smoothness)

    def derivative(self, times: Tensor, order: int, row: Tensor, width: int) -> Tensor:
        """Weights [n, J, width] of the coordinates in the derivative of ``phi_j row . z_j``, by Leibniz's rule: that of z_i is
        ``rate z_(i + 1)``.
        """
        total = times.new_zeros(len(times), 1, width)
        for k in range(1 if self.still else order + 1):
            shifted = torch.nn.functional.pad(row.to(times) * self.rate.reshape(()) ** k, (k, width - len(row) - k))
            factors = derivative(self.factors, times, order - k)
            total = total + math.comb(order, k) * factors[:, :, None] * shifted
        return total


Clock = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StateSpace:
    """A sum of blocks.

    error: a bound on the difference from the kernel, as a share of its variance; clock: times [n] -> the ascending times on
    which blocks decay, comparable by ==; None: time itself, or any where nothing decays; apart: whether series of different
    labels are independent.
    """

    blocks: tuple[Block, ...]
    error: float = 0.0
    clock: Clock | None = None
    apart: bool = False

    @property
    def exact(self) -> bool:
        """Whether the model is the kernel, up to rounding."""
        return self.error <= ROUNDING

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

    def derivatives(self, times: Tensor, highest: int) -> tuple[Layout, Tensor, list[Tensor]]:
        """A `free` layout, rates [B], and for every order 0, ..., highest the weights [n, R] of the derivative of f.

        Raises: StructureError for paths that cannot be differentiated that often.
        """
        self._require_smooth(highest)
        kept = [block.row() for block in self.blocks]
        widths = [len(row) + (0 if block.still else highest) for block, row in zip(self.blocks, kept, strict=True)]
        weights = [
            torch.cat(
                [b.derivative(times, n, *part).flatten(1) for b, *part in zip(self.blocks, kept, widths, strict=True)],
                1,
            )
            for n in range(highest + 1)
        ]
        layout, rates, _, _ = self.at(times)
        return replace(layout, widths=tuple(widths), free=True), rates, weights

    def _require_smooth(self, order: int) -> None:
        if order and self.clock is not None:
            raise StructureError("A function of steps (BlockQuasiPeriodic) has no derivative: use kernels of time.")
        smoothness = min((b.smoothness for b in self.blocks if not b.still), default=order)
        if smoothness < order:
            raise StructureError(
                f"Paths of this kernel can be differentiated {smoothness} time(s), asked for derivative={order}: use a smoother"
                f" kernel in every part, such as kernels.Matern(nu={order + 0.5}) or kernels.HidaMatern(order={order})."
            )

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernel matrix [N, M] that the model stands for, at times a [N] and b [M]."""
        total, n = a.new_zeros(len(a), len(b)), len(a)
        lag = (read(self.clock, a)[:, None] - read(self.clock, b)).abs()
        for block in self.blocks:
            x = block.rate * lag
            kappa = torch.exp(-x) * sum(c * x**k for k, c in enumerate(block.profile))
            phi = block.factors(torch.cat([a, b])).expand(n + len(b), -1)
            total = total + kappa * (phi[:n] @ phi[n:].mT)
        return total


def read(clock: Clock | None, times: Tensor) -> Tensor:
    """What a clock shows at times [n]."""
    return times if clock is None else clock(times)


@singledispatch
def state_space(kernel: Any) -> StateSpace:
    """The state-space model of a kernel of one input column.

    Raises: StructureError that names the part of the kernel that has none.
    """
    raise StructureError(
        f"{type(kernel).__name__} has no state-space form; use Matern, HidaMatern, StudentMixture, QuasiPeriodic, Periodic,"
        " Cosine, Linear, Constant or RBF (approximately), their sums and products, or engines.Exact(). Rules of your own:"
        " gpx.structure.state_space.register."
    )


def time_column(kernel: gpytorch.kernels.Kernel, dims: int) -> int:
    """The one of `dims` input columns that the kernel acts on, beside labels of series. Raises: StructureError if there are
    several.
    """
    leaves = list(_leaves(kernel, range(dims)))
    moving = [columns for part, columns in leaves if not isinstance(part, (Same, Constant))]
    columns = set().union(*(moving or (columns for _, columns in leaves)))
    if len(columns) != 1:
        raise StructureError(
            f"A state-space model needs one input column, the kernel acts on {len(columns)}: choose one with"
            " active_dims=[i], or use engines.Exact() or engine='auto'."
        )
    return columns.pop()


def label_columns(kernel: gpytorch.kernels.Kernel, dims: int) -> tuple[int, ...]:
    """Those of `dims` input columns that say which series a row belongs to."""
    return tuple(
        sorted({c for part, columns in _leaves(kernel, range(dims)) if isinstance(part, Same) for c in columns})
    )


def _leaves(
    kernel: gpytorch.kernels.Kernel, columns: Sequence[int]
) -> Iterator[tuple[gpytorch.kernels.Kernel, Sequence[int]]]:
    """The kernels that a kernel is made of in the end, with those of the columns that they act on."""
    scaled = isinstance(kernel, gpytorch.kernels.ScaleKernel) and kernel.base_kernel.active_dims is not None
    if kernel.active_dims is not None and not scaled:  # a ScaleKernel copies the selection of its base
        columns = [columns[d] for d in kernel.active_dims.tolist()]
    inner = list(parts(kernel))
    for part in inner:
        yield from _leaves(part, columns)
    if not inner:
        yield kernel, columns


def _constant(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda times: weight.reshape(1, 1).to(times)


def _static(factors: Callable[[Tensor], Tensor]) -> StateSpace:
    """A block without decay."""
    return StateSpace((Block(torch.ones(1).double(), torch.zeros(()).double(), factors, 0),))


def _rotating(weights: Tensor, frequencies: Tensor) -> Callable[[Tensor], Tensor]:
    """Factors of ``sum_j weights_j cos(frequencies_j (t - t'))``; angular frequencies [J] > 0."""

    def factors(times: Tensor) -> Tensor:
        # Only differences matter: phases from the first time on keep their digits.
        phase = (times - times[:1].detach())[:, None] * frequencies.to(times)
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


@state_space.register(RBF)
@state_space.register(gpytorch.kernels.RBFKernel)
def _(kernel: Any) -> StateSpace:
    profile, error = gaussian_profile()
    scale = getattr(kernel, "outputscale", torch.ones((), dtype=torch.float64))
    rate = GAUSSIAN_RATE / kernel.lengthscale
    profile = torch.tensor(profile, dtype=torch.float64)
    return StateSpace((Block(profile, rate, _constant(scale.sqrt()), GAUSSIAN_SMOOTHNESS),), error)


@state_space.register
def _(kernel: Constant) -> StateSpace:
    return _static(_constant(kernel.outputscale.sqrt()))


@state_space.register
def _(kernel: Same) -> StateSpace:
    return replace(_static(_constant(torch.ones((), dtype=torch.float64))), apart=True)


@state_space.register
def _(kernel: Linear) -> StateSpace:
    if kernel.outputscale.numel() > 1:
        raise StructureError(
            f"A state-space model needs one input column, {kernel} acts on {kernel.outputscale.numel()}."
        )
    slope, center = kernel.outputscale.sqrt().reshape(1, 1), kernel.center.reshape(1, 1)
    return _static(lambda times: (times[:, None] - center.to(times)) * slope.to(times))


@state_space.register
def _(kernel: gpytorch.kernels.LinearKernel) -> StateSpace:
    if kernel.variance.shape[-1] > 1:
        raise StructureError(
            f"A state-space model needs one input column, this LinearKernel acts on {kernel.variance.shape[-1]}."
        )
    return _static(lambda times: times[:, None] * kernel.variance.sqrt().reshape(1, 1).to(times))


@state_space.register
def _(kernel: Cosine) -> StateSpace:
    return _static(_rotating(kernel.outputscale.reshape(1), (2 * math.pi / kernel.period).reshape(1)))


@state_space.register
def _(kernel: HidaMatern) -> StateSpace:
    learned = kernel.raw_frequency.requires_grad
    return _tone(kernel.order, kernel.outputscale, kernel.frequency, kernel.lengthscale, learned)


@state_space.register
def _(kernel: StudentMixture) -> StateSpace:
    if kernel.mixture_means.shape[-1] != 1:
        raise StructureError(
            f"A state-space model needs one input column, this StudentMixture acts on {kernel.mixture_means.shape[-1]}: choose"
            " one with active_dims=[i]."
        )
    values = zip(kernel.mixture_weights, kernel.mixture_means, kernel.mixture_lengthscales, strict=True)
    learned = kernel.raw_mixture_means.requires_grad
    return _sum([_tone(round(kernel.nu - 0.5), *value, learned) for value in values])


def _tone(order: int, variance: Tensor, frequency: Tensor, lengthscale: Tensor, learned: bool) -> StateSpace:
    """A Matern kernel times a cosine, which is left out where its frequency is zero and stays so."""
    wave = _rotating(variance.reshape(1), 2 * math.pi * frequency.reshape(1))
    still = not learned and not bool(frequency.any())
    return _matern(order, lengthscale, _constant(variance.sqrt()) if still else wave)


@state_space.register
def _(kernel: Periodic) -> StateSpace:
    return _repeating(kernel)


@state_space.register
def _(kernel: QuasiPeriodic) -> StateSpace:
    one = torch.ones((), dtype=torch.float64)
    return _product(_repeating(kernel), _matern(kernel.order, kernel.decay, _constant(one)))


@dataclass(frozen=True)
class BlockClock:
    """Counts blocks of `period` steps: it stands still within a block."""

    period: int

    def __call__(self, times: Tensor) -> Tensor:
        return torch.div(times, self.period, rounding_mode="floor")


@state_space.register
def _(kernel: BlockQuasiPeriodic) -> StateSpace:
    form, clock = block_form(kernel), BlockClock(kernel.period)
    sign = -1.0 if float(form.correlation.detach()) < 0 else 1.0
    size = sign * form.correlation
    # Its logarithm stays finite, and its gradient passes.
    size = size + (LEAST_CORRELATION - size.detach()).clamp_min(0)

    def factors(times: Tensor) -> Tensor:
        block, position = kernel.blocks(times[:, None])
        waves = hartley(torch.eye(form.period).to(times))[position.long()]
        alternating = (sign ** (block % 2))[:, None]
        return alternating * waves * (form.spectrum / (1 - form.correlation.square())).sqrt().to(times)

    return StateSpace((Block(torch.ones(1).double(), -size.log(), factors, 0),), clock=clock)


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
    return _sum([state_space(k) for k in kernel.kernels])


@state_space.register
def _(kernel: gpytorch.kernels.ProductKernel) -> StateSpace:
    return reduce(_product, (state_space(k) for k in kernel.kernels))


def _sum(forms: Sequence[StateSpace]) -> StateSpace:
    if len({form.apart for form in forms}) > 1:
        raise StructureError(
            "Some parts of this kernel are of one series each (Same), others are shared by all: a state-space model has either."
            " Multiply the whole sum by Same, or use engines.Exact()."
        )
    error = max(f.error for f in forms)
    return StateSpace(tuple(b for f in forms for b in f.blocks), error, _common_clock(forms), forms[0].apart)


def _product(a: StateSpace, b: StateSpace) -> StateSpace:
    blocks = tuple(_times(x, y) for x in a.blocks for y in b.blocks)
    return StateSpace(blocks, a.error + b.error, _common_clock([a, b]), a.apart or b.apart)


def _common_clock(forms: Sequence[StateSpace]) -> Clock | None:
    """The clock of the forms that decay."""
    clocks = [form.clock for form in forms if not all(block.still for block in form.blocks)]
    if any(clock != clocks[0] for clock in clocks):
        raise StructureError(
            "A state-space model has one clock, but parts of this kernel decay from block to block (BlockQuasiPeriodic) and"
            " others with time, or with blocks of another period: use parts that agree, or engines.Exact()."
        )
    return clocks[0] if clocks else None


def _times(a: Block, b: Block) -> Block:
    """Factors multiply, rates add, profiles are convolved: order p_a + p_b, not the product of the dimensions."""

    def factors(times: Tensor) -> Tensor:
        return (a.factors(times).unsqueeze(-1) * b.factors(times).unsqueeze(-2)).flatten(-2)

    if a.order == 0 and b.order == 0:
        return Block(a.profile, a.rate.reshape(()) + b.rate.reshape(()), factors, 0)
    for one, other in ((a, b), (b, a)):
        if one.still:
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
        # The next ones, which have digits where the difference from 1 has none; that has all of them.
        rest = float(2 * ive(np.arange(count + 1, 2 * count + 1), z).sum())
        rest = max(rest, 1.0 - ROUNDING - float(ive(0, z) + 2 * ive(np.arange(1, count + 1), z).sum()))
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
