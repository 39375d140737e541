"""Predictive distributions of targets that are not Gaussian: mixtures over the latent function, and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from gpx.errors import StructureError
from gpx.linalg.quadrature import expectation

if TYPE_CHECKING:
    from gpx.likelihoods.base import Likelihood

HALVINGS = 200
ROWS = 4096  # rows of a quadrature at a time


class Mixture(Distribution):
    """``p(y) = int p(y | f) N(f; mean, variance) df``: mean, variance, log_prob, cdf and quantiles by quadrature over f."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, likelihood: Likelihood, mean: Tensor, variance: Tensor):
        shape = mean.shape if likelihood.num_latents == 1 else mean.shape[:-1]
        super().__init__(shape, validate_args=False)
        self.likelihood, self.latent_mean, self.latent_variance = likelihood, mean, variance
        self.conditional = likelihood.conditional

    @property
    def support(self) -> Any:
        """That of ``p(y | f)``."""
        return self.conditional(self.latent_mean).support

    @property
    def is_discrete(self) -> bool:
        """Whether y is a count."""
        return bool(getattr(self.support, "is_discrete", False))

    @property
    def mean(self) -> Tensor:
        return self.over_f(lambda f: self.conditional(f).mean)

    @property
    def variance(self) -> Tensor:
        centre = self.mean.unsqueeze(-1)

        def second_moment(f: Tensor) -> Tensor:
            given = self.conditional(f)
            return given.variance + (given.mean - centre).square()

        return self.over_f(second_moment)

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        allowed = self.likelihood.allows(value)
        # What is not allowed is replaced before the formula, by a number at which all are finite, not only after it.
        inside = torch.where(allowed, value, torch.full_like(value, 0.5))
        log_prob = self.likelihood.tilted(inside, *self.latents(value))
        log_prob = torch.where(allowed, log_prob, torch.full_like(log_prob, -torch.inf))
        return torch.where(torch.isnan(value), torch.full_like(log_prob, torch.nan), log_prob)

    def cdf(self, value: Tensor) -> Tensor:
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        ends = (getattr(self.support, name, None) for name in ("lower_bound", "upper_bound"))
        inside = value if self.is_discrete else _clamped(value, *ends)

        def below(f: Tensor) -> Tensor:
            given = self.conditional(f)
            try:
                return given.cdf(inside.unsqueeze(-1))
            except NotImplementedError as error:
                raise StructureError(
                    f"{type(given).__name__}, the distribution of y given f in {self.likelihood}, has no cdf, which quantiles"
                    " and intervals need; mean, variance and log_prob work."
                ) from error

        return expectation(below, *self.latents(value), *self.bend(inside)).clamp(0, 1)

    def bend(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Where ``P(y <= value | f)`` falls from 1 to 0 as a function of f, and over what distance."""
        mean, variance = self.latents(value)
        return mean, variance.sqrt().clamp_min(1e-10)

    def latents(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the latent functions for targets [..., N]."""
        own = self.latent_mean.shape[len(self.batch_shape) :]
        mean, variance = (p.expand(*value.shape, *own) for p in (self.latent_mean, self.latent_variance))
        return mean, variance

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile: the smallest y with ``cdf(y) >= value``, by bisection."""
        value = torch.as_tensor(value, dtype=self.latent_mean.dtype).expand(
            torch.broadcast_shapes(value.shape, self.batch_shape)
        )
        return self._counts(value) if self.is_discrete else self._reals(value)

    def over_f(self, function: Any) -> Tensor:
        """``E function(f)`` over the latent function; function: [..., K] -> [..., K]."""
        mean, variance = self.latent_mean, self.latent_variance
        return expectation(function, mean, variance, mean, variance.sqrt().clamp_min(1e-10))

    def _counts(self, value: Tensor) -> Tensor:
        low = torch.full_like(value, -1.0)
        high = torch.ones_like(value)
        for _ in range(HALVINGS):
            short = self.cdf(high) < value
            if not bool(short.any()):
                break
            low, high = torch.where(short, high, low), torch.where(short, 2 * high, high)
        while True:
            middle = (0.5 * low + 0.5 * high).floor()
            # Neighbouring counts, or beyond 2^53 (2^24 in single precision) neighbouring numbers, enclose no other.
            between = (middle > low) & (middle < high)
            if not bool(between.any()):
                return high
            below = self.cdf(middle) < value
            low, high = torch.where(between & below, middle, low), torch.where(between & ~below, middle, high)

    def _reals(self, value: Tensor) -> Tensor:
        to_real = torch.distributions.biject_to(self.support)
        middle = to_real.inv(self._inner(self.mean)).expand(value.shape)
        low, high, step = middle - 1, middle + 1, torch.ones_like(middle)
        for _ in range(HALVINGS):
            over, under = self.cdf(to_real(low)) > value, self.cdf(to_real(high)) < value
            if not bool((over | under).any()):
                break
            step = 2 * step
            low, high = torch.where(over, low - step, low), torch.where(under, high + step, high)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            below = self.cdf(to_real(middle)) < value
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            if bool((high - low <= 4e-16 * (low.abs() + high.abs())).all()):
                break
        return to_real(0.5 * (low + high))

    def _inner(self, value: Tensor) -> Tensor:
        """A finite number inside the support near `value`."""
        if self.support is constraints.unit_interval:
            return value.clamp(1e-12, 1 - 1e-12)
        if self.support in (constraints.positive, constraints.nonnegative):
            return value.clamp_min(1e-300)
        return torch.nan_to_num(value)


def _clamped(value: Tensor, low: Any, high: Any) -> Tensor:
    return value if low is None and high is None else value.clamp(low, high)


class Classes(Distribution):
    """Classes 0, 1, ..., K - 1 of given log probabilities [..., K]; mean and variance are those of the class number."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, log_probabilities: Tensor):
        super().__init__(log_probabilities.shape[:-1], validate_args=False)
        self.log_probabilities = log_probabilities

    @property
    def support(self) -> Any:
        return constraints.integer_interval(0, self.log_probabilities.shape[-1] - 1)

    @property
    def probabilities(self) -> Tensor:
        """[..., K], summing to one."""
        return self.log_probabilities.exp()

    @property
    def values(self) -> Tensor:
        """[K] the class numbers."""
        return torch.arange(self.log_probabilities.shape[-1]).to(self.log_probabilities)

    @property
    def mean(self) -> Tensor:
        return (self.probabilities * self.values).sum(-1)

    @property
    def variance(self) -> Tensor:
        return (self.probabilities * (self.values - self.mean.unsqueeze(-1)).square()).sum(-1)

    @property
    def mode(self) -> Tensor:
        """The most probable class."""
        return self.log_probabilities.argmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape))
        table = self.log_probabilities.expand(*value.shape, -1)
        last = table.shape[-1] - 1
        chosen = table.gather(-1, torch.nan_to_num(value).clamp(0, last).long().unsqueeze(-1)).squeeze(-1)
        outside = (value < 0) | (value > last) | (value != value.round())
        log = torch.where(outside, torch.full_like(chosen, -torch.inf), chosen)
        return torch.where(torch.isnan(value), torch.full_like(log, torch.nan), log)

    def cdf(self, value: Tensor) -> Tensor:
        return (self.probabilities * (self.values <= value.unsqueeze(-1))).sum(-1).clamp(0, 1)

    def icdf(self, value: Tensor) -> Tensor:
        value = torch.as_tensor(value).to(self.log_probabilities)
        below = self.probabilities.cumsum(-1)[..., :-1] < value.unsqueeze(-1)
        return below.sum(-1).to(self.log_probabilities)


class Binary(Classes):
    """The two classes of labels {0, 1}, or of {-1, 1} where -1 counts as class 0."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(torch.where(value == -1, torch.zeros_like(value), value))
