"""Likelihoods of counts, ``E[y | f] = e^f``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions import Poisson as TorchPoisson

from gpx.inputs import Data
from gpx.likelihoods.base import Likelihood, exp
from gpx.likelihoods.predictive import Mixture
from gpx.likelihoods.special import betainc
from gpx.parameters import Value


class _Count(Likelihood):
    domain = "whole numbers >= 0"

    def allows(self, y: Tensor) -> Tensor:
        return torch.isfinite(y) & (y >= 0) & (y == y.round())

    def latent_data(self, data: Data) -> tuple[Data, ...]:
        return (log_data(data, 0.5),)


class Poisson(_Count):
    """Counts, ``y ~ Poisson(e^f)``.

    Raises: InputError for targets that are not whole numbers >= 0. Cost: O(N); the tilted moments: 160 nodes per datum.
    Source: McCullagh & Nelder (1989), chapter 6.

    >>> Poisson()
    Poisson()
    """

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        return y * f - exp(f) - torch.lgamma(y + 1)

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return y * mean - exp(mean + 0.5 * variance) - torch.lgamma(y + 1)

    def conditional(self, f: Tensor) -> Distribution:
        return _Poisson(exp(f), validate_args=False)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> LogLinkMixture:
        self._refuse(noise)
        return LogLinkMixture(self, mean, variance, 1.0, 0.0)


class NegativeBinomial(_Count):
    """Overdispersed counts: mean ``e^f``, variance ``e^f + dispersion e^(2f)``.

    Arguments: dispersion: positive; learned. The limit zero is the Poisson likelihood.
    Raises: InputError for targets that are not whole numbers >= 0. Cost: O(N), 160 nodes per datum.
    Source: Hilbe (2011), "Negative binomial regression", the NB2 form.

    >>> NegativeBinomial()
    NegativeBinomial(dispersion=1)
    """

    dispersion = Value(1.0)

    def __init__(self, dispersion: Any = None):
        super().__init__()
        self.declare("dispersion", dispersion, ())

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        r = 1 / self.dispersion.to(f)
        norm = torch.lgamma(y + r) - torch.lgamma(r) - torch.lgamma(y + 1)
        odds = f - r.log()
        return norm - r * torch.nn.functional.softplus(odds) + y * torch.nn.functional.logsigmoid(odds)

    def landmark(self, y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        turn = -self.dispersion.detach().to(mean).log()
        return turn.expand(mean.shape), torch.full_like(mean, 2.0)

    def conditional(self, f: Tensor) -> Distribution:
        return _NegativeBinomial(exp(f), self.dispersion.detach().to(f))

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> LogLinkMixture:
        self._refuse(noise)
        return LogLinkMixture(self, mean, variance, 1.0, float(self.dispersion.detach()))

    def init_from(self, data: Data) -> None:
        self.start("dispersion", 0.3, box=(1e-4, 1e3))


class LogLinkMixture(Mixture):
    """A mixture with ``E[y | f] = e^f`` and ``Var[y | f] = linear e^f + square e^(2f)``: its moments are those of a
    log-normal variable, in closed form.
    """

    def __init__(self, likelihood: Likelihood, mean: Tensor, variance: Tensor, linear: float, square: float):
        super().__init__(likelihood, mean, variance)
        self.linear, self.square = linear, square

    def bend(self, value: Tensor) -> tuple[Tensor, Tensor]:
        middle = value.clamp_min(0) + 0.5 * self.linear + 1e-300
        return middle.log(), (self.linear / middle + self.square).sqrt()

    @property
    def mean(self) -> Tensor:
        return exp(self.latent_mean + 0.5 * self.latent_variance)

    @property
    def variance(self) -> Tensor:
        mean, spread = self.mean, torch.expm1(self.latent_variance.clamp_max(500.0))
        return self.linear * mean + (self.square * (1 + spread) + spread) * mean.square()


def log_data(data: Data, offset: float) -> Data:
    """Logarithms of the targets."""
    y = (data.y + offset).clamp_min(1e-300).log()
    variance = float(torch.nan_to_num((y - torch.nanmean(y, 0)).square()).sum() / max(1, int(data.observed.sum())))
    return data.with_targets(y, max(variance, 0.1))


class _Poisson(TorchPoisson):
    def cdf(self, value: Tensor) -> Tensor:
        count = value.floor()
        below = torch.special.gammaincc(count.clamp_min(0) + 1, self.rate)
        return torch.where(count >= 0, below, torch.zeros_like(below))


class _NegativeBinomial(Distribution):
    """Mean and dispersion; scipy has the distribution function."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.nonnegative_integer  # type: ignore[assignment]

    def __init__(self, mean: Tensor, dispersion: Tensor):
        super().__init__(mean.shape, validate_args=False)
        self._mean, self.dispersion = mean, dispersion

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> Tensor:
        return self._mean + self.dispersion * self._mean.square()

    def cdf(self, value: Tensor) -> Tensor:
        count, r = value.floor(), 1 / self.dispersion
        below = betainc(r, count.clamp_min(0) + 1, r / (r + self._mean))
        return torch.where(count >= 0, below, torch.zeros_like(below))
