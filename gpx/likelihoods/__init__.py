"""Likelihoods: how the data depend on the latent function."""

from gpx.likelihoods.adapter import FromGPyTorch
from gpx.likelihoods.base import Likelihood
from gpx.likelihoods.classes import Bernoulli, Categorical, Ordinal
from gpx.likelihoods.counts import NegativeBinomial, Poisson
from gpx.likelihoods.gaussian import Gaussian
from gpx.likelihoods.positive import Beta, Exponential, Gamma
from gpx.likelihoods.robust import Heteroscedastic, Laplace, StudentT

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Exponential",
    "FromGPyTorch",
    "Gamma",
    "Gaussian",
    "Heteroscedastic",
    "Laplace",
    "Likelihood",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "StudentT",
]
