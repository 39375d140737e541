"""Posteriors, predictions and path samples: what comes out of conditioning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from gpx.errors import InputError, NumericalError, StructureError
from gpx.inputs import Points, as_like
from gpx.likelihoods.predictive import Mixture
from gpx.linalg.cholesky import factorise
from gpx.linalg.derivatives import derivative
from gpx.parallel import ALONE, Team
from gpx.sites import SiteMarginals, Sites


class Posterior(ABC):
    """``prior x sites``. It owns its factors, is never changed, and computes what was not asked for on first use only.

    Shapes: x [N*, D]; C = outputs x latents columns.
    """

    @property
    @abstractmethod
    def log_partition(self) -> Tensor:
        """``log int p(f) prod_n t_n(f_n) df``, in nats; differentiable in the hyperparameters and sites."""

    @property
    def centred_log_partition(self) -> Tensor:
        """`log_partition` less ``sum_n log t_n`` at the centre of `site_marginals`: free of any offset of the targets."""
        return self.log_partition

    @property
    def rough_log_partition(self) -> Tensor:
        """`centred_log_partition` up to an error that hardly changes from step to step of a search for sites; without a
        gradient.
        """
        return self.centred_log_partition

    @property
    @abstractmethod
    def log_density(self) -> Tensor:
        """``log N(nu / tau; mean, K + 1 / tau)`` over the sites with tau > 0: for a Gaussian likelihood, the log evidence.

        Up to the sites' own normalisers this is `log_partition`, but without the cancellation of large precisions.
        """

    @property
    def log_density_limit(self) -> Tensor:
        """An upper bound of the log density of the pseudo-targets under the prior itself, where `log_density` is a lower one;
        equal for exact engines.
        """
        return self.log_density

    @property
    def inducing(self) -> int:
        """How many inducing inputs it goes through; 0: none, it is exact."""
        return 0

    @property
    def unexplained(self) -> Tensor:
        """``sum_n tau_n extra_n / 2`` of the extra variances in `site_marginals`, nats: what `log_density` lost by them."""
        return torch.zeros(())

    @property
    def jitter(self) -> float:
        """By what share the noise variances were raised to make a factorisation succeed; 0: not at all."""
        return 0.0

    @property
    def log_determinant_error(self) -> float:
        """The standard error of `log_density`, nats, where a log determinant in it is estimated; 0: it is exact."""
        return 0.0

    @property
    def note(self) -> str:
        """What the user should know of an approximation, for a warning after a fit; empty: nothing."""
        return ""

    @property
    @abstractmethod
    def site_marginals(self) -> SiteMarginals:
        """Posterior marginals of the site variables: numbers; `slope` has their gradients."""

    @abstractmethod
    def with_sites(self, sites: Sites) -> Posterior:
        """The posterior of the same prior at the same inputs with other sites; what does not depend on them is kept."""

    @abstractmethod
    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        """The changes [N, C] of mean and variance in `site_marginals` along a direction of the sites; numbers."""

    @abstractmethod
    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        """The derivative of `log_partition` along a direction of the sites, ``sum dnu m - dtau (v + m^2) / 2``, and a share
        of `log_partition` itself: one pass over the kernel for both.

        Differentiable in the hyperparameters, the direction being constant: with it every function of the site marginals
        has a gradient.
        """

    def spread(self, weights: Tensor) -> Tensor:
        """``sum_n weights_n extra_n`` of the extra variances in `site_marginals` for weights [N, C], differentiable in the
        hyperparameters; 0 for exact engines.
        """
        return weights.new_zeros(())

    @abstractmethod
    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [N*, C] of f at x, in chunks: never N* x N*."""

    def derivative(self, x: Tensor, order: int, column: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and variance [N*, C] of the derivative of f of this order at x [N*, D], along the column that is time.

        Raises: StructureError for an engine that has none, or paths that cannot be differentiated.
        """
        raise StructureError("This engine has no derivatives: use engines.StateSpace().")

    @abstractmethod
    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [N*, C] and covariance [C, N*, N*] of f at x."""

    @abstractmethod
    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """n functions drawn from the posterior: x [N*, D] -> [n, N*, C]."""

    @abstractmethod
    def update(self, x: Tensor, sites: Sites) -> Posterior:
        """The posterior with more sites, at x [M, D]."""

    def given(self, x: Tensor) -> Posterior | None:
        """A posterior at x [M, D], with the sites that are here as part of its prior, and no sites of its own yet: from it those
        of more data are found in time that does not grow with N. None where the marginals of all sites are wanted for that.
        """
        return None

    @abstractmethod
    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """Mean and variance [N, C] of each pseudo-target nu / tau given all others; NaN where tau = 0."""

    @torch.no_grad()
    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Joint draws [n, N*, C] of f at x; not differentiable. Cost: O(N*^3)."""
        mean, covariance = self.joint(x)
        noise = torch.randn(len(covariance), len(x), n, generator=generator, dtype=x.dtype, device=x.device)
        draws = [_root(c) @ z for c, z in zip(covariance, noise, strict=True)]
        return mean + torch.stack(draws, -1).movedim(1, 0)


def _root(covariance: Tensor) -> Tensor:
    """A square root: Cholesky's, or where rounding has left a matrix that is not positive definite (the posterior of almost
    noiseless data is a difference of nearly equal matrices), that of its non-negative part.
    """
    try:
        return factorise(covariance.clone).lower.tril()
    except NumericalError:
        values, vectors = torch.linalg.eigh(covariance)
        return vectors * values.clamp_min(0).sqrt()


class Around(Posterior):
    """A posterior that is made of another one, whose approximations and notes are its own."""

    @property
    @abstractmethod
    def within(self) -> Posterior:
        """The other one."""

    @property
    def inducing(self) -> int:
        return self.within.inducing

    @property
    def unexplained(self) -> Tensor:
        return self.within.unexplained

    @property
    def jitter(self) -> float:
        return self.within.jitter

    @property
    def log_determinant_error(self) -> float:
        return self.within.log_determinant_error

    @property
    def note(self) -> str:
        return self.within.note

    def spread(self, weights: Tensor) -> Tensor:
        return self.within.spread(weights)


@dataclass(frozen=True)
class Shifted(Around):
    """A zero-mean posterior with the prior mean put back.

    centred: the engine's posterior of f - mean; sites: those of f; at_sites: the prior mean [N, C] at the data;
    mean: x -> [N*, C]; team: the processes that have the other data.
    """

    centred: Posterior
    sites: Sites
    at_sites: Tensor
    mean: Callable[[Tensor], Tensor]
    team: Team = ALONE

    @property
    def within(self) -> Posterior:
        return self.centred

    @property
    def log_partition(self) -> Tensor:
        return self.centred.log_partition + self._at_mean(self.sites.nu, self.sites.tau)

    @property
    def centred_log_partition(self) -> Tensor:
        return self.centred.centred_log_partition

    @property
    def rough_log_partition(self) -> Tensor:
        return self.centred.rough_log_partition

    def _at_mean(self, nu: Tensor, tau: Tensor) -> Tensor:
        mu = self.at_sites
        return self.team.sum((nu * mu - 0.5 * tau * mu.square()).sum())

    @property
    def log_density(self) -> Tensor:
        return self.centred.log_density

    @property
    def log_density_limit(self) -> Tensor:
        return self.centred.log_density_limit

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        inner, shift = self.centred.site_marginals, self.at_sites.detach()
        return SiteMarginals(inner.mean + shift, lambda: inner.variance, inner.extra, inner.centre + shift)

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = self.centred.marginals(x)
        return mean + self.mean(x), variance

    def derivative(self, x: Tensor, order: int, column: int = 0) -> tuple[Tensor, Tensor]:
        mean, variance = self.centred.derivative(x, order, column)
        return mean + derivative(self.mean, x, order, column), variance

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, covariance = self.centred.joint(x)
        return mean + self.mean(x), covariance

    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        inner = self.centred.paths(n, generator)
        return lambda x: inner(x) + self.mean(x)

    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return self.centred.sample(x, n, generator) + self.mean(x)

    def with_sites(self, sites: Sites) -> Shifted:
        return replace(self, centred=self.centred.with_sites(sites.centred(self.at_sites)), sites=sites)

    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        return self.centred.response(direction.centred(self.at_sites.detach()))

    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        nu, tau = direction.nu + share * self.sites.nu, direction.tau + share * self.sites.tau
        return self.centred.slope(direction.centred(self.at_sites), share) + self._at_mean(nu, tau)

    def update(self, x: Tensor, sites: Sites) -> Shifted:
        at_new = self.mean(x)
        inner = self.centred.update(x, sites.centred(at_new))
        return Shifted(inner, self.sites.join(sites), torch.cat([self.at_sites, at_new]), self.mean)

    def given(self, x: Tensor) -> Shifted | None:
        inner, at_new = self.centred.given(x), self.mean(x)
        none = torch.zeros_like(at_new)
        return None if inner is None else Shifted(inner, Sites(none, none), at_new, self.mean)

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        mean, variance = self.centred.leave_one_out()
        return mean + self.at_sites, variance


@dataclass(frozen=True)
class Prediction:
    """Predictive marginals at N* points: of the targets (``of="y"``), the latent function (``of="f"``) or a derivative of it
    (``of="f'"``, ...).

    distribution: a torch distribution of batch shape [N*] ([N*, P] for several outputs).

    >>> p = Prediction(Normal(torch.zeros(2), torch.ones(2)))
    >>> [round(float(v[0]), 2) for v in p.interval(0.95)]
    [-1.96, 1.96]
    """

    distribution: Distribution
    of: str = "y"

    @property
    def mean(self) -> Tensor:
        """Predictive mean, in target units."""
        return self.distribution.mean

    @property
    def variance(self) -> Tensor:
        """Predictive variance, in squared target units."""
        return self.distribution.variance

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation, in target units."""
        return self.distribution.variance.sqrt()

    @property
    def shape(self) -> torch.Size:
        """[N*], or [N*, P]."""
        return self.distribution.batch_shape

    @property
    def is_discrete(self) -> bool:
        """Whether the targets are counts or classes."""
        return bool(getattr(self.distribution.support, "is_discrete", False))

    @property
    def is_normal(self) -> bool:
        """Whether the predictive distribution is Gaussian."""
        return isinstance(self.distribution, Normal)

    def quantile(self, p: float) -> Tensor:
        """The p-quantile, 0 < p < 1, in target units."""
        if not isinstance(p, (int, float)) or not 0 < p < 1:
            raise InputError(f"A quantile needs a number 0 < p < 1, got {p!r}.")
        return self.distribution.icdf(torch.as_tensor(p, dtype=self.mean.dtype, device=self.mean.device))

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The central interval (lower, upper) of probability `level`: quantiles of the predictive distribution."""
        if not isinstance(level, (int, float)) or not 0 < level < 1:
            raise InputError(f"level must be between 0 and 1, got {level!r}; write 0.95 for a 95 % interval.")
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def log_prob(self, y: Any) -> Tensor:
        """Pointwise log predictive density of targets y, in nats; NaN where y is missing."""
        return self.distribution.log_prob(self._targets(y))

    def cdf(self, y: Any) -> Tensor:
        """Pointwise predictive probability of a target below y."""
        return self.distribution.cdf(self._targets(y))

    def sample(self, n: int, seed: int | None = 0) -> Tensor:
        """Independent marginal draws [n, N*]; for draws of whole functions see `GP.sample`."""
        generator = make_generator(seed, self.mean.device)
        uniform = torch.rand(
            draw_count(n), *self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        return self.distribution.icdf(uniform.clamp_min(torch.finfo(uniform.dtype).tiny))

    def _targets(self, y: Any) -> Tensor:
        distribution, shape = self.distribution, self.shape
        # The mean of a mixture is an integral over p(y | f), which need not have one.
        values = as_like(y, distribution.latent_mean if isinstance(distribution, Mixture) else distribution.mean, "y")
        if values.squeeze(-1).shape != torch.empty(shape).squeeze(-1).shape:  # [N, 1] is as good as [N]
            raise InputError(f"y has shape {list(values.shape)}, the prediction has {list(shape)}; they must match.")
        return values.reshape(shape)

    def __repr__(self) -> str:
        what = {"y": "y, noise included", "f": "f, the latent function"}.get(self.of, f"{self.of}, a derivative")
        return f"Prediction of {what}: {type(self.distribution).__name__}, shape {list(self.shape)}"


@dataclass(frozen=True)
class LeaveOneOutPrediction(Prediction):
    """Predictions of every target from all the others. log_density: [N], nats, NaN where the target is missing."""

    log_density: Tensor | None = None


@dataclass(frozen=True)
class Paths:
    """Functions drawn from the posterior of f, consistent over calls: ``paths(X) -> [n, N*]`` ([n, N*, C] if C > 1).

    Differentiable in X where X is a tensor that requires a gradient.
    """

    draw: Callable[[Tensor], Tensor]
    coerce: Callable[[Any], Points]
    shape: Callable[[Tensor], Tensor]

    def __call__(self, X: Any) -> Tensor:
        points = self.coerce(X)
        with torch.set_grad_enabled(points.x.requires_grad):
            return self.shape(points.arranged(self.draw(points.x), 1))


def draw_count(n: Any) -> int:
    """The number of draws, if it is one. Raises InputError otherwise."""
    if not isinstance(n, int) or n < 0:
        raise InputError(f"The number of draws n must be an integer >= 0, got {n!r}.")
    return n


def make_generator(seed: int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """A private source of random numbers; seed None takes entropy from the system. The global state is not touched."""
    if seed is not None and not isinstance(seed, int):
        raise InputError(f"seed must be an integer, or None for a fresh one, got {seed!r}.")
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
