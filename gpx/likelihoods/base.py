"""The base of likelihoods: only ``log_prob`` is required, quadrature does the rest."""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from torch import Tensor
from torch.distributions import Distribution

from gpx.inputs import Data
from gpx.linalg.quadrature import normal_nodes
from gpx.parameters import Parameterised, format_value
from gpx.sites import Sites


class Likelihood(Parameterised, gpytorch.Module):
    """``p(y | f)``, independent over data. A subclass gives ``log_prob(y, f)`` and, for predictions, ``predict``."""

    num_latents = 1

    def __init__(self) -> None:
        super().__init__()
        self.choices = {}

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        """``log p(y | f)``, elementwise, in nats."""
        raise NotImplementedError(f"{type(self).__name__} must define log_prob(y, f).")

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """``E log p(y | f)`` for ``f ~ N(mean, variance)``, elementwise, by Gauss-Hermite quadrature."""
        nodes, weights = normal_nodes(mean)
        f = mean.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * nodes
        return (self.log_prob(y.unsqueeze(-1), f) * weights).sum(-1)

    def tilted(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """``log E p(y | f)`` for ``f ~ N(mean, variance)``, elementwise, by Gauss-Hermite quadrature."""
        nodes, weights = normal_nodes(mean)
        f = mean.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * nodes
        return torch.logsumexp(self.log_prob(y.unsqueeze(-1), f) + weights.log(), -1)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> Distribution:
        """The distribution of y for ``f ~ N(mean, variance)``: with mean, variance, log_prob, cdf and icdf."""
        raise NotImplementedError(f"{type(self).__name__} must define predict(mean, variance).")

    def exact_sites(self, data: Data) -> Sites | None:
        """The sites of a Gaussian likelihood; None where a rule has to find them."""
        return None

    def init_from(self, data: Data) -> None:
        """Start what the user left open from the data, with weak priors."""

    def __repr__(self) -> str:
        values = ", ".join(f"{n}={format_value(getattr(self, n))}" for n in self.choices)
        return f"{type(self).__name__}({values})"
