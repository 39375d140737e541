"""Likelihoods of positive numbers and of shares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta as TorchBeta
from torch.distributions import Distribution
from torch.distributions import Gamma as TorchGamma

from gpx.inputs import Data
from gpx.likelihoods.base import Likelihood, exp
from gpx.likelihoods.counts import LogLinkMixture, log_data
from gpx.likelihoods.predictive import Mixture
from gpx.likelihoods.special import betainc
from gpx.parameters import Value


class _Positive(Likelihood):
    domain = "positive numbers"

    def allows(self, y: Tensor) -> Tensor:
        return torch.isfinite(y) & (y > 0)

    def latent_data(self, data: Data) -> tuple[Data, ...]:
        return (log_data(data, 0.0),)


class Gamma(_Positive):
    """Positive numbers of mean ``e^f`` and variance ``e^(2f) / shape``.

    Arguments: shape: positive; learned. Raises: InputError for targets that are not positive.
    Cost: O(N); the tilted moments: 160 nodes per datum. Source: McCullagh & Nelder (1989), chapter 8.

    >>> Gamma(shape=2.0)
    Gamma(shape=2)
    """

    shape = Value(1.0)

    def __init__(self, shape: Any = None):
        super().__init__()
        self.declare("shape", shape, ())

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        return self._density(y, f, exp(-f))

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return self._density(y, mean, exp(0.5 * variance - mean))

    def _density(self, y: Tensor, f: Tensor, inverse: Tensor) -> Tensor:
        a = self.shape.to(f)
        return a * (a.log() - f - y * inverse) + (a - 1) * y.log() - torch.lgamma(a)

    def conditional(self, f: Tensor) -> Distribution:
        a = self.shape.detach().to(f).expand(f.shape)
        return TorchGamma(a, a * exp(-f), validate_args=False)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> LogLinkMixture:
        self._refuse(noise)
        return LogLinkMixture(self, mean, variance, 0.0, 1 / float(self.shape.detach()))

    def init_from(self, data: Data) -> None:
        self.start("shape", 3.0, box=(1e-3, 1e4))


class Exponential(_Positive):
    """Positive numbers, exponentially distributed with mean ``e^f``: `Gamma` with shape 1.

    Raises: InputError for targets that are not positive. Cost: O(N); the tilted moments: 160 nodes per datum.
    Source: McCullagh & Nelder (1989), chapter 8.

    >>> Exponential()
    Exponential()
    """

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        return -f - y * exp(-f)

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return -mean - y * exp(0.5 * variance - mean)

    def conditional(self, f: Tensor) -> Distribution:
        return TorchGamma(torch.ones_like(f), exp(-f), validate_args=False)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> LogLinkMixture:
        self._refuse(noise)
        return LogLinkMixture(self, mean, variance, 0.0, 1.0)


class Beta(Likelihood):
    """Shares in (0, 1): a beta distribution of mean ``m = 1 / (1 + e^-f)`` and variance ``m (1 - m) / (1 + precision)``.

    Arguments: precision: positive; learned. Raises: InputError for targets outside (0, 1).
    Cost: O(N), 160 nodes per datum. Source: Ferrari & Cribari-Neto (2004), "Beta regression", eqs. 4 and 5.

    >>> Beta()
    Beta(precision=10)
    """

    domain = "strictly between 0 and 1"
    precision = Value(10.0)

    def __init__(self, precision: Any = None):
        super().__init__()
        self.declare("precision", precision, ())

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        s = self.precision.to(f)
        a, b = (s * torch.nn.functional.logsigmoid(sign * f.clamp(-500.0, 500.0)).exp() for sign in (1, -1))
        norm = torch.lgamma(s) - torch.lgamma(a) - torch.lgamma(b)
        return norm + (a - 1) * y.log() + (b - 1) * torch.log1p(-y)

    def landmark(self, y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(mean), torch.full_like(mean, 2.0)

    def peak(self, y: Tensor) -> Tensor:
        return torch.logit(y)

    def conditional(self, f: Tensor) -> Distribution:
        s = self.precision.detach().to(f)
        return BetaNumbers(s * torch.sigmoid(f), s * torch.sigmoid(-f), validate_args=False)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> Mixture:
        self._refuse(noise)
        return _Shares(self, mean, variance)

    def allows(self, y: Tensor) -> Tensor:
        return (y > 0) & (y < 1)

    def latent_data(self, data: Data) -> tuple[Data, ...]:
        y = torch.logit(data.y)
        variance = float(torch.nan_to_num((y - torch.nanmean(y, 0)).square()).sum() / max(1, int(data.observed.sum())))
        return (data.with_targets(y, max(variance, 0.1)),)

    def init_from(self, data: Data) -> None:
        self.start("precision", 10.0, box=(1e-3, 1e4))


class _Shares(Mixture):
    """A mixture of beta distributions: ``P(y <= value | f)`` falls where their mean is the value, over their deviation there."""

    def bend(self, value: Tensor) -> tuple[Tensor, Tensor]:
        inside = value.clamp(1e-12, 1 - 1e-12)
        precision = self.likelihood.precision.detach().to(value)  # type: ignore[attr-defined]
        return torch.logit(inside), ((1 + precision) * inside * (1 - inside)).rsqrt()


class BetaNumbers(TorchBeta):
    """A beta distribution with a cdf, which torch's has not."""

    def cdf(self, value: Tensor) -> Tensor:
        return betainc(self.concentration1, self.concentration0, value.clamp(0, 1))
