"""Rules: how a likelihood becomes Gaussian sites. One pure step each; damping and convergence belong to `infer`.

Theory: docs/theory/sites.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from gpx.errors import InputError, StructureError
from gpx.inputs import Data
from gpx.likelihoods import Likelihood
from gpx.posterior import Shifted
from gpx.sites import SiteMarginals, Sites

FLOOR = 1e-10  # of the share of its variance that a datum owes to the others


class Rule(Protocol):
    """How new sites follow from the marginals under the present ones."""

    several_latents: bool  # whether likelihoods with several latent functions can be used
    first_step: float  # share of the update that is tried first
    is_newton: bool  # whether the update is itself a step of Newton's method

    def update(self, likelihood: Likelihood, data: Data, marginals: SiteMarginals, sites: Sites) -> Sites:
        """One undamped step; where gradients are enabled, differentiable in marginals, sites and likelihood."""
        ...

    def merit(self, likelihood: Likelihood, data: Data, posterior: Shifted, target: Sites) -> Tensor:
        """What must not fall from step to step; target: the update at this posterior."""
        ...

    def residual(self, marginals: SiteMarginals, sites: Sites, target: Sites) -> Tensor:
        """[N, C]: how far the sites are from their update, without a unit."""
        ...


@dataclass(frozen=True)
class Variational:
    """Conjugate-computation variational inference: the natural-gradient step of the ELBO with step size one.

    ``tau = -2 dE/dv``, ``nu = dE/dm + tau m``, where ``E(m, v) = E log p(y | f)`` for ``f ~ N(m, v)``. Negative precisions
    (a likelihood that is not log-concave) are set to zero. Cost: O(N). Source: Khan & Lin (2017).

    >>> Variational()
    Variational()
    """

    several_latents: ClassVar[bool] = True
    first_step: ClassVar[float] = 0.5
    is_newton: ClassVar[bool] = False

    def update(self, likelihood: Likelihood, data: Data, marginals: SiteMarginals, sites: Sites) -> Sites:
        """The sites whose natural parameters are the gradient of the expected log likelihood."""
        keep, (mean, variance) = torch.is_grad_enabled(), _variables(marginals.mean, marginals.variance)
        with torch.enable_grad():
            expected = expected_log_prob(likelihood, data, mean, variance + marginals.extra).sum()
            slope, curvature = torch.autograd.grad(expected, (mean, variance), create_graph=keep)
            return natural_sites(likelihood, data, mean, slope, curvature, keep)

    def merit(self, likelihood: Likelihood, data: Data, posterior: Shifted, target: Sites) -> Tensor:
        """The ELBO."""
        terms = elbo_terms(likelihood, data, posterior.site_marginals, posterior.sites)
        return posterior.rough_log_partition + data.team.sum(terms)

    def residual(self, marginals: SiteMarginals, sites: Sites, target: Sites) -> Tensor:
        """Changes of slopes and curvatures at the mean in units of the posterior standard deviation."""
        return _scaled_change(marginals, sites, target)


@dataclass(frozen=True)
class ExpectationPropagation:
    """(Power) expectation propagation, all sites at once: the moments of ``cavity x p^power`` are matched.

    Arguments: power: in (0, 1]; 1: EP; towards 0: the variational rule. Negative precisions are set to zero, and the mean is
    still matched. Raises: InputError for another power. Cost: O(N) and the tilted moments of the likelihood.
    Source: Minka (2001), "Expectation propagation for approximate Bayesian inference"; Minka (2004), "Power EP".

    >>> ExpectationPropagation()
    ExpectationPropagation(power=1.0)
    """

    power: float = 1.0
    several_latents: ClassVar[bool] = False
    first_step: ClassVar[float] = 0.5
    is_newton: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.power, bool) or not isinstance(self.power, Real) or not 0 < self.power <= 1:
            raise InputError(f"ExpectationPropagation needs 0 < power <= 1, got {self.power!r}.")

    def update(self, likelihood: Likelihood, data: Data, marginals: SiteMarginals, sites: Sites) -> Sites:
        """The sites that turn the cavities into Gaussians with the tilted moments."""
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            mean, variance = _variables(*cavities(marginals, sites, self.power))
            log_z = likelihood.tilted(data.filled, mean, variance + marginals.extra, self.power).sum()
            (slope,) = torch.autograd.grad(log_z, mean, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), mean, create_graph=keep)
            # The share of the cavity's variance that is left; curvature = (share - 1) / variance.
            share = (1 + variance * curvature).clamp_min(FLOOR)
            tau = (-curvature / share).clamp_min(0) / self.power
            nu = slope / self.power + tau * (mean + variance * slope)
            return _where_observed(likelihood, data, nu, tau, keep)

    def merit(self, likelihood: Likelihood, data: Data, posterior: Shifted, target: Sites) -> Tensor:
        """Minus the residual: EP climbs no function."""
        change = self.residual(posterior.site_marginals, posterior.sites, target)
        return -data.team.sum(change.square().sum()).sqrt()

    def residual(self, marginals: SiteMarginals, sites: Sites, target: Sites) -> Tensor:
        """Changes of slopes and curvatures at the mean in units of the posterior standard deviation."""
        return _scaled_change(marginals, sites, target)


@dataclass(frozen=True)
class Laplace:
    """Laplace's approximation: sites are the second-order expansion of ``log p(y | f)`` at the posterior mode.

    The iteration is Newton's method; precisions of a likelihood that is not log-concave are cut at zero. Cost: O(N).
    Raises: StructureError for a log density that is piecewise linear in f.
    Source: Rasmussen & Williams (2006), section 3.4.

    >>> Laplace()
    Laplace()
    """

    several_latents: ClassVar[bool] = False
    first_step: ClassVar[float] = 1.0
    is_newton: ClassVar[bool] = True

    def update(self, likelihood: Likelihood, data: Data, marginals: SiteMarginals, sites: Sites) -> Sites:
        """The expansion at the mean."""
        keep, (mean,) = torch.is_grad_enabled(), _variables(marginals.mean)
        with torch.enable_grad():
            slope, curvature = _expansion(likelihood, data, mean, keep)
            # Far from the data every curvature may underflow; at zero only a piecewise linear density has none.
            if not bool(curvature.any()) and not bool(_expansion(likelihood, data, 0 * mean, False)[1].any()):
                raise StructureError(
                    f"log p(y | f) of {type(likelihood).__name__} is piecewise linear in f, and rules.Laplace needs its second"
                    " derivative: use rules.Variational() or rules.ExpectationPropagation()."
                )
            tau = (-curvature).clamp_min(0)
            return _where_observed(likelihood, data, slope + tau * mean, tau, keep)

    def merit(self, likelihood: Likelihood, data: Data, posterior: Shifted, target: Sites) -> Tensor:
        """The log joint density at the posterior mean, up to a constant."""
        marginals, sites = posterior.site_marginals, posterior.sites
        mean = marginals.mean
        weights = sites.nu - sites.tau * mean  # K^-1 (mean - prior mean)
        log_prob = torch.where(data.observed, likelihood.log_prob(data.filled, mean), 0.0)
        return data.team.sum(log_prob.sum() - 0.5 * ((mean - marginals.centre) * weights).sum())

    def residual(self, marginals: SiteMarginals, sites: Sites, target: Sites) -> Tensor:
        """The gradient of the log joint density, and the changes of precisions, in units of the precisions."""
        change = target.tau - sites.tau
        gradient = target.nu - sites.nu - change * marginals.mean
        precision = target.tau.clamp_min(1e-6 * float(target.tau.max()) + torch.finfo(gradient.dtype).tiny)
        return torch.maximum((gradient / precision.sqrt()).abs(), (change / precision).abs())


def _expansion(likelihood: Likelihood, data: Data, latent: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Slopes and curvatures of ``log p(y | f)`` at f; keep: whether the curvatures shall have a derivative."""
    (slope,) = torch.autograd.grad(likelihood.log_prob(data.filled, latent).sum(), latent, create_graph=True)
    if not slope.requires_grad:
        return slope, torch.zeros_like(latent)
    return slope, torch.autograd.grad(slope.sum(), latent, create_graph=keep)[0]


def split(likelihood: Likelihood, values: Tensor) -> Tensor:
    """[N, C] as the likelihood takes it: [N, P], or [N, P, L] with L > 1 latent functions."""
    latents = likelihood.num_latents
    return values if latents == 1 else values.unflatten(-1, (-1, latents))


def expected_log_prob(likelihood: Likelihood, data: Data, mean: Tensor, variance: Tensor) -> Tensor:
    """``E log p(y | f)`` [N, P] for marginals [N, C]; 0 where the target is missing."""
    expected = likelihood.expected_log_prob(data.filled, split(likelihood, mean), split(likelihood, variance))
    return torch.where(data.observed, expected, torch.zeros_like(expected))


def elbo_terms(likelihood: Likelihood, data: Data, marginals: SiteMarginals, sites: Sites) -> Tensor:
    """``sum_n E log p(y_n | f_n) - E log t_n(g_n)`` over the rows of this process: what the ELBO adds to the log partition, both
    centred.
    """
    expected = expected_log_prob(likelihood, data, marginals.mean, marginals.variance + marginals.extra)
    return expected.sum() - expected_log_sites(marginals, sites)


def expected_log_sites(marginals: SiteMarginals, sites: Sites) -> Tensor:
    """``sum_n E log t_n(g_n) - log t_n(c_n)``, c the centre of the marginals."""
    return log_sites(marginals, sites) - 0.5 * (sites.tau * marginals.variance).sum()


def log_sites(marginals: SiteMarginals, sites: Sites) -> Tensor:
    """``sum_n log t_n(m_n) - log t_n(c_n)`` at the means, c the centre of the marginals."""
    sites, away = sites.centred(marginals.centre), marginals.mean - marginals.centre
    return (sites.nu * away - 0.5 * sites.tau * away.square()).sum()


def natural_sites(
    likelihood: Likelihood, data: Data, mean: Tensor, slope: Tensor, curvature: Tensor, keep: bool = False
) -> Sites:
    """The sites whose natural parameters are the gradient of ``E log p(y | f)``: of slope in the mean, curvature in the variance.

    keep: whether they are part of a graph.
    """
    tau = (-2 * curvature).clamp_min(0)
    return _where_observed(likelihood, data, slope + tau * mean, tau, keep)


def cavities(marginals: SiteMarginals, sites: Sites, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and variance [N, C] of the site variables with `power` of their own site taken out."""
    share = (1 - power * sites.tau * marginals.variance).clamp_min(FLOOR)
    variance = marginals.variance / share
    # mean - power variance nu, over the share: without the cancellation of what an offset of the targets adds to both.
    return marginals.mean - power * variance * (sites.nu - sites.tau * marginals.mean), variance


def _variables(*values: Tensor) -> tuple[Tensor, ...]:
    """What is differentiated in: the tensors themselves if they are part of a graph, else new leaves."""
    graph = torch.is_grad_enabled()
    return tuple(v if graph and v.requires_grad else v.detach().requires_grad_() for v in values)


def _where_observed(likelihood: Likelihood, data: Data, nu: Tensor, tau: Tensor, keep: bool) -> Sites:
    seen = data.observed.repeat_interleave(likelihood.num_latents, 1)
    nu, tau = (torch.where(seen, part, torch.zeros_like(part)) for part in (nu, tau))
    return Sites(nu, tau) if keep else Sites(nu.detach(), tau.detach())


def _scaled_change(marginals: SiteMarginals, sites: Sites, target: Sites) -> Tensor:
    # Of slopes and curvatures of log sites at the mean, which do not depend on where f is counted from.
    change = target.tau - sites.tau
    slope = target.nu - sites.nu - change * marginals.mean
    return torch.maximum((slope * marginals.variance.sqrt()).abs(), (change * marginals.variance).abs())
