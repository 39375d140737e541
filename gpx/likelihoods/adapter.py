"""gpytorch's likelihoods of one latent function, as likelihoods of gpx."""

from __future__ import annotations

import inspect
from typing import Any

import gpytorch
from torch import Tensor
from torch.distributions import Distribution

from gpx.errors import InputError
from gpx.likelihoods.base import Likelihood


class FromGPyTorch(Likelihood):
    """A one-dimensional likelihood of `gpytorch.likelihoods`: ``likelihood(f)`` is the distribution of y.

    Arguments: likelihood: its parameters, with their constraints and priors, are learned. `GP` wraps such likelihoods itself.
    All integrals are by quadrature; the tilted moments assume one bulk. Raises: InputError for anything else.

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

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        given = self.conditional(f)
        return given.log_prob(y.expand(f.shape) if y.dim() <= f.dim() else y)

    def conditional(self, f: Tensor) -> Distribution:
        forward = self.likelihood.forward
        given = forward(f, data={}) if "data" in inspect.signature(forward).parameters else forward(f)
        given._validate_args = False
        return given

    def __repr__(self) -> str:
        return f"FromGPyTorch({type(self.likelihood).__name__})"
