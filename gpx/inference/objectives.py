"""Objectives: what is maximised over the hyperparameters. Sums over the data, in nats, without log priors.

All but two are one formula: the log partition of the sites plus a sum over the data of a function of site marginals and sites.
`profile` gives such a function its value and gradient at the fixed point of the rule. Theory: docs/theory/sites.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from gpx.errors import InputError, NumericalError, StructureError
from gpx.inference.problem import Problem
from gpx.inference.rules import (
    ExpectationPropagation,
    Laplace,
    Variational,
    cavities,
    elbo_terms,
    expected_log_prob,
    log_sites,
)
from gpx.inference.sitemap import SiteMap, direction
from gpx.parallel import Team
from gpx.posterior import Posterior
from gpx.sites import SiteMarginals, Sites

GRADIENTS = ("implicit", "fixed-sites")


class Objective(ABC):
    """A function of a problem, to be maximised, differentiable in the hyperparameters.

    needs_all_rows: whether some rows of the data are another problem: `fit` judges its starts on all, and processes cannot share
    them; flat: whether coefficients of the mean may have a flat prior; alternates: whether sites and hyperparameters are moved in
    turn.
    """

    needs_all_rows: ClassVar[bool] = False
    flat: ClassVar[bool] = True
    alternates: bool = False

    @abstractmethod
    def __call__(self, problem: Problem) -> Tensor:
        """The value, in nats."""

    def check(self, problem: Problem) -> None:  # noqa: B027
        """Raise StructureError for a problem that it is not defined for."""

    def prepared(self, problem: Problem) -> Objective:
        """Itself for many evaluations on the data of a problem, with what does not depend on the hyperparameters done once."""
        return self


@dataclass(frozen=True)
class Evidence(Objective):
    """The log marginal likelihood ``log p(y)``, summed over outputs; with `rules.Laplace`, its Laplace approximation.

    Through inducing inputs, less what the variances that these leave of the latent function cost the sites: the bound on the
    evidence of Laplace's pseudo-targets.
    Raises: StructureError for a likelihood that is not Gaussian with another rule. Source: Rasmussen & Williams (2006),
    eqs. 2.30 and 3.32.

    >>> Evidence()
    Evidence()
    """

    def check(self, problem: Problem) -> None:
        """Raise StructureError if it has no closed form."""
        if not problem.conjugate and not isinstance(problem.rule, Laplace):
            raise StructureError(
                f"The evidence of {type(problem.likelihood).__name__} has no closed form under"
                f" rules.{type(problem.rule).__name__}: use objectives.EPEvidence() or ELBO(), or rules.Laplace() with"
                " Evidence()."
            )

    def __call__(self, problem: Problem) -> Tensor:
        """``log p(y)``, in nats."""
        self.check(problem)
        if problem.conjugate:
            return problem.posterior().log_density

        def local(marginals: SiteMarginals, sites: Sites) -> Tensor:
            at_mean = problem.likelihood.log_prob(problem.data.filled, marginals.mean)
            lost = 0.5 * (sites.tau * marginals.extra).sum()  # Titsias (2009), eq. 9
            return torch.where(problem.data.observed, at_mean, 0.0).sum() - log_sites(marginals, sites) - lost

        return profile(problem, local)


@dataclass(frozen=True)
class ELBO(Objective):
    """The evidence lower bound ``E_q log p(y | f) - KL(q || p)`` at the sites of the rule.

    At the sites of `rules.Variational` it is stationary in them. Source: Khan & Lin (2017); Opper & Archambeau (2009).

    >>> ELBO()
    ELBO()
    """

    def __call__(self, problem: Problem) -> Tensor:
        """The bound, in nats."""
        return profile(
            problem,
            lambda marginals, sites: elbo_terms(problem.likelihood, problem.data, marginals, sites),
            stationary=isinstance(problem.rule, Variational),
        )


@dataclass(frozen=True)
class EPEvidence(Objective):
    """The evidence of (power) expectation propagation at the sites of the rule, as a function of the hyperparameters alone.

    ``log Z + sum_n [log Zhat_n - log int cavity_n t_n^power] / power``; power: that of the rule if it has one, else 1.

    Arguments: gradient: "implicit": the gradient of this function, by the implicit function theorem; "fixed-sites": the
    published alternation, which holds the sites while the hyperparameters move and stops when the evidence falls (its gradient
    is not that of any function; for comparison). At the sites of `rules.ExpectationPropagation` both agree. Through inducing
    inputs it needs these (rule="auto": power 1/2), for a Gaussian likelihood, too, and is no bound.
    Raises: InputError for another gradient; StructureError for several latent functions per datum, and for other sites through
    inducing inputs.
    Source: Li, John & Solin (2023), "Improving hyperparameter learning under approximate inference in Gaussian process
    models", eqs. 11-13; Rasmussen & Williams (2006), eq. 3.65; Bui, Yan & Turner (2017), "A unifying framework for Gaussian
    process pseudo-point approximations using power expectation propagation".

    >>> EPEvidence()
    EPEvidence(gradient='implicit')
    """

    gradient: str = "implicit"

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise InputError(f"EPEvidence needs gradient='implicit' or gradient='fixed-sites', got {self.gradient!r}.")

    @property
    def alternates(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """With fixed sites."""
        return self.gradient == "fixed-sites"

    def check(self, problem: Problem) -> None:
        """Raise StructureError for several latents, and for sites through inducing inputs that are not its own."""
        latents, rule = problem.likelihood.num_latents, problem.rule
        if latents > 1:
            raise StructureError(
                f"EPEvidence needs one latent function per datum, {type(problem.likelihood).__name__} has {latents}; use"
                " objectives.ELBO()."
            )
        if problem.engine.partial and not isinstance(rule, ExpectationPropagation):
            raise StructureError(
                f"EPEvidence at the sites of rules.{type(rule).__name__} is unbounded through inducing inputs: use"
                " rules.ExpectationPropagation(power=0.5), rule='auto', or objectives.ELBO()."
            )

    def __call__(self, problem: Problem) -> Tensor:
        """The approximate evidence, in nats."""
        self.check(problem)
        likelihood, data, power = problem.likelihood, problem.data, getattr(problem.rule, "power", 1.0)

        def local(marginals: SiteMarginals, sites: Sites) -> Tensor:
            mean, variance = cavities(marginals, sites, power)
            log_z = likelihood.tilted(data.filled, mean, variance + marginals.extra, power)
            centred, mean = sites.centred(marginals.centre), mean - marginals.centre
            nu, tau = power * centred.nu, power * centred.tau
            spread = 1 + tau * variance
            site = (nu * mean - 0.5 * tau * mean.square() + 0.5 * nu.square() * variance) / spread - 0.5 * spread.log()
            return torch.where(data.observed, log_z - site, torch.zeros_like(site)).sum() / power

        return profile(
            problem,
            local,
            stationary=isinstance(problem.rule, ExpectationPropagation),
            sites_move=not self.alternates,
        )


@dataclass(frozen=True)
class DataEmphasisedELBO(Objective):
    """``kappa E_q log p(y | f) - KL(q || p)`` at the sites of the rule: no bound on the evidence unless kappa <= 1.

    Arguments: kappa: positive; above 1 the hyperparameters follow the data more than the evidence would have them do. Only the
    hyperparameters are learned by it: the posterior stays that of the rule.
    Raises: InputError unless kappa is positive. Source: Harvey, Petrov & Hughes (2026), "Data-emphasized ELBo".

    >>> DataEmphasisedELBO(kappa=2.0)
    DataEmphasisedELBO(kappa=2.0)
    """

    kappa: float

    def __post_init__(self) -> None:
        if isinstance(self.kappa, bool) or not isinstance(self.kappa, Real) or not 0 < self.kappa < math.inf:
            raise InputError(f"DataEmphasisedELBO needs a number kappa > 0, got {self.kappa!r}.")

    def __call__(self, problem: Problem) -> Tensor:
        """The value, in nats."""

        def local(marginals: SiteMarginals, sites: Sites) -> Tensor:
            mean, variance = marginals.mean, marginals.variance + marginals.extra
            expected = expected_log_prob(problem.likelihood, problem.data, mean, variance).sum()
            return (self.kappa - 1) * expected + elbo_terms(problem.likelihood, problem.data, marginals, sites)

        return profile(problem, local)


@dataclass(frozen=True)
class LeaveOneOut(Objective):
    """The log pseudo-likelihood ``sum_n log p(y_n | y_without_n)``: less sensitive to a wrong prior than the evidence.

    Exact for Gaussian likelihoods; from the cavities of the sites for others. Cost: the evidence and two more products of
    N x N matrices. Source: Rasmussen & Williams (2006), eqs. 5.10-5.13.

    >>> LeaveOneOut()
    LeaveOneOut()
    """

    flat: ClassVar[bool] = False

    def __call__(self, problem: Problem) -> Tensor:
        """The sum of leave-one-out log densities, in nats."""
        likelihood, data = problem.likelihood, problem.data
        if problem.conjugate:
            return data.team.sum(torch.nansum(leave_one_out_density(data.y, *problem.posterior().leave_one_out())))
        if likelihood.num_latents > 1:
            raise StructureError(
                f"LeaveOneOut needs one latent function per datum, {type(likelihood).__name__} has"
                f" {likelihood.num_latents}; use objectives.ELBO()."
            )

        def local(marginals: SiteMarginals, sites: Sites) -> Tensor:
            mean, variance = cavities(marginals, sites)
            log_z = likelihood.tilted(data.filled, mean, variance + marginals.extra)
            return torch.where(data.observed, log_z, torch.zeros_like(log_z)).sum()

        return profile(problem, local, partition=0.0)


def profile(
    problem: Problem,
    local: Callable[[SiteMarginals, Sites], Tensor],
    *,
    partition: float = 1.0,
    stationary: bool = False,
    sites_move: bool = True,
) -> Tensor:
    """``partition log Z(theta, sites) + local(marginals(theta, sites), sites)`` at ``sites = T(theta, sites)``, with the
    gradient in the hyperparameters theta; log Z and what local has of the sites less these at the centre of the marginals.

    Arguments: local: a sum over the rows of this process, differentiable in marginals, sites and likelihood. stationary: whether
    the value does not depend on the sites and marginals to first order, by the rule's fixed point (it does where precisions were
    cut at zero); sites_move: whether the gradient follows the sites.
    Raises: NumericalError if the adjoint solve fails. Cost: an adjoint solve (O(N^2) per
    product for Exact) and 2 N^3, unless stationary.
    """
    posterior, team = problem.inferred.posterior, problem.data.team
    stationary = stationary and not problem.inferred.zero_precisions
    marginals, sites = posterior.site_marginals, posterior.sites
    if not torch.is_grad_enabled():
        return partition * posterior.centred_log_partition + team.sum(local(marginals, sites))
    mu = problem.prior.mean_at(problem.data.x, problem.columns)
    shift = mu - mu.detach()
    extra = marginals.extra.detach().clone().requires_grad_()
    if stationary:
        value = local(marginals.replaced(marginals.mean, marginals.variance, extra), sites)
        own = partition * (sites.nu - sites.tau * marginals.mean)
        value, spread = team.sum(value + (own * shift).sum()), _through(posterior, value, extra, team)
        return partition * posterior.centred_log_partition + value + spread

    leaves = [v.detach().clone().requires_grad_() for v in (marginals.mean, marginals.variance, sites.nu, sites.tau)]
    moving = marginals.replaced(*leaves[:2], extra), Sites(*leaves[2:])
    value = local(*moving)
    grads = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    mean, variance, nu, tau = (torch.zeros_like(v) if g is None else g for v, g in zip(leaves, grads, strict=True))
    if sites_move:
        site_map = SiteMap(problem, posterior)
        through = site_map.in_sites(mean, variance)
        away = marginals.mean - marginals.centre
        second = marginals.variance + away * (marginals.mean + marginals.centre)
        gradient = Sites(partition * away + nu + through.nu, -0.5 * partition * second + tau + through.tau)
        weights = site_map.adjoint(gradient)
        if weights is None:
            raise NumericalError("The implicit gradient was not found: the sites are not a stable fixed point here.")
        if bool(extra.any()) or any(p.requires_grad for p in problem.likelihood.parameters()):
            seen = marginals.replaced(marginals.mean, marginals.variance, extra)
            update = problem.rule.update(problem.likelihood, problem.data, seen, sites)
            push = (weights.nu * update.nu + weights.tau * update.tau).sum()
            value = value + (push - push.detach())
        mean, variance = (a + b for a, b in zip((mean, variance), site_map.pull(weights), strict=True))
    along = direction(marginals.mean, mean, variance)
    rest = along.nu - along.tau * marginals.mean
    in_mean = partition * (sites.nu - sites.tau * marginals.mean) + rest - sites.tau * posterior.response(along)[0]
    moved = posterior.slope(along, partition)
    spread = _through(posterior, value, extra, team)
    total = partition * posterior.centred_log_partition.detach() + team.sum(value + (in_mean * shift).sum())
    return total + spread + (moved - moved.detach())


def _through(posterior: Posterior, value: Tensor, extra: Tensor, team: Team) -> Tensor:
    """Zero, with the gradient that the values of all processes have in the hyperparameters through the extra variances."""
    nothing = torch.zeros_like(value)
    if not value.requires_grad or not team.any(bool(extra.any())):
        return nothing
    (weights,) = torch.autograd.grad(value, extra, retain_graph=True, allow_unused=True)
    if weights is None:
        return nothing
    spread = posterior.spread(weights)
    return spread - spread.detach()


def leave_one_out_density(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """``log N(y; mean, variance)`` [N, P]; NaN where y is missing."""
    missing = torch.isnan(y)
    one = torch.ones_like(variance)
    # Gradients through NaN entries would be NaN: they are replaced before the formula, not after.
    residual = torch.where(missing, torch.zeros_like(y), y - torch.where(missing, torch.zeros_like(mean), mean))
    variance = torch.where(missing, one, variance)
    density = -0.5 * (residual.square() / variance + variance.log() + math.log(2 * math.pi))
    return torch.where(missing, torch.full_like(density, math.nan), density)
