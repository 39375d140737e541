"""Likelihoods of noise with heavy tails, and of noise that changes with the input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints
from torch.distributions import Laplace as TorchLaplace
from torch.distributions import StudentT as TorchStudentT

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.likelihoods.base import Likelihood, exp
from gpx.likelihoods.gaussian import NOISE_FLOOR
from gpx.likelihoods.predictive import Mixture
from gpx.likelihoods.special import student_cdf
from gpx.linalg.quadrature import expectation, log_expectation_at_mode, log_half_line, normal_log_density
from gpx.parameters import Value

log_ndtr = torch.special.log_ndtr


class StudentT(Likelihood):
    """Noise with heavy tails, ``y = f + scale t``, t of Student's distribution with df degrees of freedom.

    Arguments: df: positive (the variance is finite above 2, where `fit` keeps it unless it is given bounds); scale: positive,
    in target units; both learned. Not log-concave in f: precisions of outliers are cut at zero.
    Cost: O(N), 160 nodes per datum. Source: Jylanki, Vanhatalo & Vehtari (2011), "Robust Gaussian process regression with a
    Student-t likelihood", eq. 2.

    >>> StudentT(df=4.0)
    StudentT(df=4, scale=1)
    """

    df = Value(4.0)
    scale = Value(1.0)

    def __init__(self, df: Any = None, scale: Any = None):
        super().__init__()
        self.declare("df", df, ())
        self.declare("scale", scale, ())

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        df, scale = self.df.to(f), self.scale.to(f)
        norm = torch.lgamma(0.5 * (df + 1)) - torch.lgamma(0.5 * df) - 0.5 * (math.pi * df).log() - scale.log()
        return norm - 0.5 * (df + 1) * torch.log1p(((y - f) / scale).square() / df)

    def landmark(self, y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        width = (self.df.detach().sqrt() * self.scale.detach()).to(mean)
        return y.expand(mean.shape), width.expand(mean.shape)

    def peak(self, y: Tensor) -> Tensor:
        return y

    def conditional(self, f: Tensor) -> Distribution:
        return _StudentT(self.df.detach().to(f), f, self.scale.detach().to(f), validate_args=False)

    def init_from(self, data: Data) -> None:
        self.start("df", 4.0, box=(0.51, 25.0))
        self.keep_above("df", 2.04)
        _start_scale(self, 0.1, data)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> AroundMean:
        self._refuse(noise)
        return AroundMean(self, mean, variance)


class Laplace(Likelihood):
    """Noise with exponential tails, ``p(y | f) = e^(-|y - f| / scale) / (2 scale)``: medians instead of means.

    Arguments: scale: positive, in target units; learned. Cost: O(N); the tilted moments: 96 nodes per datum.
    Source: Kuss (2006), "Gaussian process models for robust regression, classification, and reinforcement learning", 5.2.

    >>> Laplace(scale=0.5)
    Laplace(scale=0.5)
    """

    scale = Value(1.0)

    def __init__(self, scale: Any = None):
        super().__init__()
        self.declare("scale", scale, ())

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        scale = self.scale.to(f)
        return -(y - f).abs() / scale - (2 * scale).log()

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale, (gap, s) = self.scale.to(mean), _gap(y, mean, variance)
        z = gap / s
        distance = gap * torch.erf(z / math.sqrt(2)) + s * math.sqrt(2 / math.pi) * torch.exp(-0.5 * z.square())
        return -distance / scale - (2 * scale).log()

    def tilted(self, y: Tensor, mean: Tensor, variance: Tensor, power: float = 1.0) -> Tensor:
        scale, gap = self.scale.to(mean), mean - y
        rate = (power / scale).expand(gap.shape)
        sides = torch.stack([log_half_line(rate, side, variance) for side in (gap, -gap)], -1)
        return torch.logsumexp(sides, -1) - power * (2 * scale).log()

    def conditional(self, f: Tensor) -> Distribution:
        return TorchLaplace(f, self.scale.detach().to(f), validate_args=False)

    def init_from(self, data: Data) -> None:
        _start_scale(self, 0.05, data)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> LaplaceMixture:
        self._refuse(noise)
        return LaplaceMixture(self, mean, variance)


class Heteroscedastic(Likelihood):
    """Gaussian noise whose variance is a second latent function, ``y ~ N(f_1, e^(f_2))``.

    f_1: the mean, in target units; f_2: the logarithm of the noise variance. The integrals that inference needs are in closed
    form. Arguments: floor: a variance, in squared target units, to which `fit` takes the targets to be known, 1e-6 of their
    variance if it is zero: ``log p(y | f)`` is averaged over ``N(y, floor)``, so that noise of no variance at all is not
    infinitely likely. Raises: InputError unless floor is >= 0 and finite. Cost: O(N).
    Source: Lazaro-Gredilla & Titsias (2011), "Variational heteroscedastic Gaussian process regression".

    >>> Heteroscedastic().num_latents
    2
    """

    num_latents = 2

    def __init__(self, floor: float = 0.0):
        super().__init__()
        if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor < math.inf:
            raise InputError(f"Heteroscedastic needs a variance floor >= 0, got {floor!r}.")
        self.floor = float(floor)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [], {"floor": self.floor} if self.floor else {}

    def init_from(self, data: Data) -> None:
        self.floor = self.floor or NOISE_FLOOR * data.variance

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        return normal_log_density(y, f[..., 0], exp(f[..., 1])) - 0.5 * self.floor * exp(-f[..., 1])

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        square = (y - mean[..., 0]).square() + variance[..., 0] + self.floor
        precision = exp(0.5 * variance[..., 1] - mean[..., 1])
        return -0.5 * (square * precision + mean[..., 1] + math.log(2 * math.pi))

    def tilted(self, y: Tensor, mean: Tensor, variance: Tensor, power: float = 1.0) -> Tensor:
        if power != 1:
            return super().tilted(y, mean, variance, power)
        m, v = mean[..., 0], variance[..., 0]

        def given(g: Tensor) -> Tensor:
            density = normal_log_density(y.unsqueeze(-1), m.unsqueeze(-1), v.unsqueeze(-1) + exp(g))
            return density - 0.5 * self.floor * exp(-g)

        # A target further from the mean than f_1 explains is likeliest where e^(f_2) makes up for the difference.
        missing = (y - m).detach().square() - v.detach()
        peak = torch.where(missing > 0, missing.clamp_min(torch.finfo(v.dtype).tiny).log(), mean[..., 1].detach())
        return log_expectation_at_mode(given, mean[..., 1], variance[..., 1], peak)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> HeteroscedasticMixture:
        self._refuse(noise)
        return HeteroscedasticMixture(Heteroscedastic(), mean, variance)  # a normalised density

    def latent_data(self, data: Data) -> tuple[Data, ...]:
        residual = (data.y - torch.nanmean(data.y, 0)).square().clamp_min(1e-6 * data.variance)
        level = math.log(0.1 * data.variance) + 0.0 * residual
        return data, replace(data, y=level, variance=1.0)


class AroundMean(Mixture):
    """A mixture of noise that is symmetric about f: the mean is that of f."""

    def bend(self, value: Tensor) -> tuple[Tensor, Tensor]:
        spread = self.conditional(self.latent_mean).scale
        return value, spread.expand(value.shape)

    @property
    def mean(self) -> Tensor:
        return self.latent_mean

    @property
    def variance(self) -> Tensor:
        return self.latent_variance + self.conditional(self.latent_mean).variance


class LaplaceMixture(AroundMean):
    """Laplace noise around a Gaussian: the distribution function in closed form, since it has a kink as a function of f."""

    def cdf(self, value: Tensor) -> Tensor:
        scale, (gap, s) = (
            self.conditional(self.latent_mean).scale,
            _gap(value, self.latent_mean, self.latent_variance),
        )
        z, reach = gap / s, s / scale
        above, below = (
            torch.exp(0.5 * reach.square() - sign * gap / scale + log_ndtr(sign * z - reach)) for sign in (1.0, -1.0)
        )
        return (torch.special.ndtr(-z) + 0.5 * (above - below)).clamp(0, 1)


class HeteroscedasticMixture(Mixture):
    """``N(f_1, e^(f_2))`` for Gaussian f_1 and f_2."""

    support = constraints.real  # type: ignore[assignment]
    is_discrete = False  # type: ignore[assignment]

    @property
    def mean(self) -> Tensor:
        return self.latent_mean[..., 0]

    @property
    def variance(self) -> Tensor:
        return self.latent_variance[..., 0] + exp(self.latent_mean[..., 1] + 0.5 * self.latent_variance[..., 1])

    def cdf(self, value: Tensor) -> Tensor:
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape)).unsqueeze(-1)
        (m, g), (v, w) = ((p[..., 0], p[..., 1]) for p in (self.latent_mean, self.latent_variance))

        def below(f: Tensor) -> Tensor:
            return Normal(m.unsqueeze(-1), (v.unsqueeze(-1) + exp(f)).sqrt(), validate_args=False).cdf(value)

        return expectation(below, g, w, g, w.sqrt().clamp_min(1e-3)).clamp(0, 1)


def _start_scale(likelihood: Likelihood, share: float, data: Data) -> None:
    """A scale whose square is a share of the target variance, and never below a thousandth of the target's spread."""
    start, floor = math.sqrt(share * data.variance), math.sqrt(NOISE_FLOOR * data.variance)
    likelihood.start("scale", start, box=(floor / start, 1e2))
    likelihood.keep_above("scale", floor)


def _gap(y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of the mean from the target, and a standard deviation that is never zero."""
    return mean - y, (variance + torch.finfo(variance.dtype).tiny).sqrt()


class _StudentT(TorchStudentT):
    def cdf(self, value: Tensor) -> Tensor:
        return student_cdf(self.df, (value - self.loc) / self.scale)
