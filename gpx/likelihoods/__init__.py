"""Likelihoods: how the data depend on the latent function."""

from gpx.likelihoods.base import Likelihood
from gpx.likelihoods.gaussian import Gaussian

__all__ = ["Gaussian", "Likelihood"]
