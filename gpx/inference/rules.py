"""Rules: how a likelihood becomes Gaussian sites. One pure step each; damping and convergence belong to `infer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from gpx.inputs import Data
from gpx.likelihoods import Likelihood
from gpx.sites import SiteMarginals, Sites


class Rule(Protocol):
    """How new sites follow from the marginals under the present ones."""

    def update(self, likelihood: Likelihood, data: Data, marginals: SiteMarginals, sites: Sites) -> Sites:
        """One undamped step."""
        ...


@dataclass(frozen=True)
class Variational:
    """Conjugate-computation variational inference: the natural-gradient step of the ELBO with step size one.

    ``tau = -2 dE/dv``, ``nu = dE/dm + tau m``, where ``E(m, v) = E log p(y | f)`` for ``f ~ N(m, v)``. Negative precisions
    (a likelihood that is not log-concave) are set to zero. Cost: O(N). Source: Khan & Lin (2017).

    >>> Variational()
    Variational()
    """

    def update(self, likelihood: Likelihood, data: Data, marginals: SiteMarginals, sites: Sites) -> Sites:
        """The sites whose natural parameters are the gradient of the expected log likelihood."""
        mean = marginals.mean.detach().requires_grad_()
        variance = marginals.variance.detach().requires_grad_()
        with torch.enable_grad():
            expected = likelihood.expected_log_prob(torch.nan_to_num(data.y), mean, variance)
            expected = torch.where(data.observed, expected, torch.zeros_like(expected)).sum()
        slope, curvature = torch.autograd.grad(expected, (mean, variance))
        tau = (-2 * curvature).clamp_min(0)
        return Sites(slope + tau * mean.detach(), tau)
