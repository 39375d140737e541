"""gpytorch's likelihoods of one latent function, as likelihoods of gpx."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from torch import Tensor
from torch.distributions import Beta as TorchBeta
from torch.distributions import Distribution, constraints

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.likelihoods.base import Likelihood
from gpx.likelihoods.classes import Bernoulli
from gpx.likelihoods.positive import BetaNumbers
from gpx.likelihoods.robust import Laplace, StudentT

START = 0.1  # of a noise, in target variances


class FromGPyTorch(Likelihood):
    """A one-dimensional likelihood of `gpytorch.likelihoods`: ``likelihood(f)`` is the distribution of y.

    Arguments: likelihood: its parameters, with their constraints and priors, are learned. `GP` wraps such likelihoods itself.
    Integrals are those of gpx's own likelihood where there is one (Student's t, Laplace, Bernoulli), else by quadrature that
    assumes one bulk. Raises: InputError for anything else, and for targets that its distribution does not have.

    >>> import gpytorch
    >>> FromGPyTorch(gpytorch.likelihoods.StudentTLikelihood())
    FromGPyTorch(StudentTLikelihood)
    """

    def __init__(self, likelihood: Any):
        super().__init__()
        one = gpytorch.likelihoods.likelihood._OneDimensionalLikelihood
        gaussian = gpytorch.likelihoods.gaussian_likelihood._GaussianLikelihoodBase
        if not isinstance(likelihood, one):
            advice = " For Gaussian noise use likelihoods.Gaussian()." if isinstance(likelihood, gaussian) else ""
            raise InputError(
                f"FromGPyTorch takes a one-dimensional gpytorch likelihood such as StudentTLikelihood(), got"
                f" {type(likelihood).__name__}.{advice}"
            )
        self.likelihood = likelihood

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [self.likelihood], {}

    @property
    def twin(self) -> Likelihood | None:
        """The same likelihood as gpx has it, at the present parameters and differentiable in them; None: it has none."""
        twin = TWINS.get(type(self.likelihood))
        return None if twin is None else twin(self.likelihood)

    @property
    def domain(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What targets are allowed, in words."""
        return self.twin.domain if self.twin else f"in the support of its distribution, {self._support}"

    @property
    def _support(self) -> Any:
        return self._given(torch.zeros(1)).support

    def allows(self, y: Tensor) -> Tensor:
        if self.twin:
            return self.twin.allows(y)
        inside = self._support.check(y) if isinstance(self._support, constraints.Constraint) else True
        dense = self._given(torch.zeros_like(y)).log_prob(y)  # at the ends of a support there may be no density
        return torch.isfinite(y) & inside & torch.isfinite(dense)

    def outcome(self, y: Tensor) -> Tensor:
        return (self.twin or super()).outcome(y)

    def latent_data(self, data: Data) -> tuple[Data, ...]:
        return (self.twin or super()).latent_data(data)

    def init_from(self, data: Data) -> None:
        """Start a noise that was left at gpytorch's start at a share of the target variance."""
        (self.twin or super()).init_from(data)

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        if self.twin:
            return self.twin.log_prob(y, f)
        return self._given(f).log_prob(y.expand(f.shape) if y.dim() <= f.dim() else y)

    def landmark(self, y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        # The links of gpytorch's, sigmoid and softplus, bend at zero.
        return torch.zeros_like(mean), torch.full_like(mean, 2.0)

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (self.twin or super()).expected_log_prob(y, mean, variance)

    def tilted(self, y: Tensor, mean: Tensor, variance: Tensor, power: float = 1.0) -> Tensor:
        return (self.twin or super()).tilted(y, mean, variance, power)

    def conditional(self, f: Tensor) -> Distribution:
        return self._given(f.detach())

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> Distribution:
        return (self.twin or super()).predict(mean, variance, noise)

    def _given(self, f: Tensor) -> Distribution:
        forward = self.likelihood.forward
        given = forward(f, data={}) if "data" in inspect.signature(forward).parameters else forward(f)
        if type(given) is TorchBeta:  # which has no cdf
            return BetaNumbers(given.concentration1, given.concentration0, validate_args=False)
        given._validate_args = False
        return given

    def __repr__(self) -> str:
        return f"FromGPyTorch({type(self.likelihood).__name__})"


class _Noise(Likelihood):
    """What gpx's noises of heavy tails have of gpytorch's: its parameters, their variance among them."""

    def __init__(self, theirs: Any):
        gpytorch.Module.__init__(self)
        self.theirs = theirs

    @property
    def scale(self) -> Tensor:
        return self.theirs.noise.squeeze().sqrt()

    def init_from(self, data: Data) -> None:
        if not bool(self.theirs.raw_noise.any()):  # gpytorch's own start, whatever the unit of the targets
            self.theirs.noise = START * data.variance


class _StudentT(_Noise, StudentT):
    @property
    def df(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.theirs.deg_free.squeeze()


class _Laplace(_Noise, Laplace):
    pass


TWINS: dict[type, Callable[[Any], Likelihood]] = {
    gpytorch.likelihoods.StudentTLikelihood: _StudentT,
    gpytorch.likelihoods.LaplaceLikelihood: _Laplace,
    gpytorch.likelihoods.BernoulliLikelihood: lambda _: Bernoulli(),
}
