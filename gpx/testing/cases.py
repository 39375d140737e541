"""Kernels, one of each kind, for tests that hold for all of them; every call builds new ones.

All act on `DIMS` input columns. Add a kernel here, and every law is checked for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from gpx import graphs, likelihoods
from gpx.kernels import (
    RBF,
    Constant,
    Cosine,
    Graph,
    GridSpectralMixtureProduct,
    HidaMatern,
    Kernel,
    Linear,
    Matern,
    Periodic,
    Product,
    QuasiPeriodic,
    RationalQuadratic,
    SpectralMixture,
    SpectralMixtureProduct,
    StudentMixture,
    Sum,
)

DIMS = 3

OWN: dict[str, Callable[[], Kernel]] = {
    "RBF": lambda: RBF(lengthscale=0.8, outputscale=1.7),
    "RBF-ard": lambda: RBF(lengthscale=[0.5, 1.0, 2.0], ard=True),
    "Matern12": lambda: Matern(nu=0.5, lengthscale=1.3),
    "Matern32": lambda: Matern(nu=1.5, lengthscale=0.7, outputscale=0.4),
    "Matern52-ard": lambda: Matern(nu=2.5, lengthscale=[1.2, 0.6, 0.9], ard=True),
    "Matern92": lambda: Matern(nu=4.5, lengthscale=1.1),
    "RationalQuadratic": lambda: RationalQuadratic(alpha=0.7, lengthscale=0.9, outputscale=2.0),
    "Periodic": lambda: Periodic(period=1.7, lengthscale=0.8, outputscale=1.2),
    "Cosine": lambda: Cosine(period=2.1, outputscale=0.9, active_dims=[1]),
    "HidaMatern-active": lambda: HidaMatern(order=1, lengthscale=0.9, frequency=0.6, outputscale=1.3, active_dims=[1]),
    "HidaMatern-active-zero": lambda: HidaMatern(order=3, lengthscale=1.4, frequency=0.0, active_dims=[2]),
    "SpectralMixture-ard": lambda: SpectralMixture(
        2, [0.7, 1.6], [[0.2, -0.5, 0.1], [0.0, 0.3, 0.4]], [[0.1, 0.2, 0.15], [0.25, 0.12, 0.3]]
    ),
    "SpectralMixture-active": lambda: SpectralMixture(3, [1.0, 0.5, 0.2], [0.0, 0.4, 0.9], [0.1, 0.05, 0.2], active_dims=[2]),
    "StudentMixture-ard": lambda: StudentMixture(
        2, 1.5, [0.7, 1.6], [[0.2, -0.5, 0.1], [0.0, 0.3, 0.4]], [[1.0, 2.0, 1.5], [2.0, 1.2, 0.8]]
    ),
    "StudentMixture-active": lambda: StudentMixture(2, 2.5, [1.0, 0.5], [0.0, 0.4], [2.0, 3.0], active_dims=[1]),
    "SpectralMixtureProduct-ard": lambda: SpectralMixtureProduct(
        2, 3, [[0.7, 1.0, 0.3], [0.5, 0.2, 0.9]], [[0.0, 0.3, 0.1], [0.4, 0.6, 0.2]], [[0.1, 0.2, 0.3], [0.2, 0.1, 0.15]]
    ),
    "QuasiPeriodic-active": lambda: QuasiPeriodic(1.2, lengthscale=0.8, decay=2.1, order=2, outputscale=0.7, active_dims=[0]),
    "GridSpectralMixtureProduct": lambda: GridSpectralMixtureProduct(
        5, weights=[0.3, 0.0, 0.9, 0.2, 0.4], max_frequency=0.7, bandwidth=0.12
    ),
    "GridSpectralMixtureProduct-ard": lambda: GridSpectralMixtureProduct(
        6, weights=0.2, max_frequency=[0.8, 0.5, 0.6], bandwidth=[0.1, 0.2, 0.05]
    ),
    "GridSpectralMixtureProduct-active": lambda: GridSpectralMixtureProduct(
        7, weights={1: 0.7, 4: 0.4}, max_frequency=1.2, bandwidth=[0.2], active_dims=[1]
    ),
    "Linear": lambda: Linear(outputscale=0.6, center=0.3),
    "Linear-ard": lambda: Linear(outputscale=[0.2, 0.5, 1.1], center=[0.1, -0.2, 0.3], ard=True),
    "Constant": lambda: Constant(outputscale=1.4),
    "active_dims": lambda: Matern(nu=1.5, lengthscale=[0.7, 1.1], ard=True, active_dims=[2, 0]),
    "sum": lambda: RBF(lengthscale=0.9) + Matern(nu=0.5, lengthscale=2.0) + Linear(outputscale=0.3),
    "product": lambda: RBF(lengthscale=2.0, outputscale=1.5) * Periodic(period=1.3, lengthscale=1.2),
    "product-of-sum": lambda: (Constant(0.5) + Linear(outputscale=0.2)) * Matern(nu=2.5, lengthscale=1.1),
    "parts-on-columns": lambda: RBF(lengthscale=0.8, active_dims=[0]) + Matern(active_dims=[1, 2]) * Linear(active_dims=[0]),
    "nested-columns": lambda: Sum(
        Product(RBF(lengthscale=0.6, active_dims=[1]), Cosine(period=1.9, active_dims=[0]), active_dims=[1, 0]),
        Matern(nu=1.5, active_dims=[0]),
        active_dims=[2, 0],
    ),
}  # fmt: skip


def small_graph() -> graphs.Graph:
    """A weighted graph of 12 nodes: a ring with chords, a pair of its own, and a node without edges."""
    edges = [*([i, (i + 1) % 9] for i in range(9)), [0, 4], [2, 7], [9, 10]]
    return graphs.Graph.from_edges(edges, [0.5 + 0.3 * (i % 4) for i in range(12)], num_nodes=12)


SPECTRA: dict[str, Callable[[], graphs.Spectrum]] = {
    "Diffusion": lambda: graphs.Diffusion(beta=1.3),
    "Matern": lambda: graphs.Matern(nu=1.5, kappa=1.7).set(nu=dict(fixed=False)),  # type: ignore[dict-item]
    "RegularisedLaplacian": lambda: graphs.RegularisedLaplacian(power=2.0, scale=0.8),
    "PStep": lambda: graphs.PStep(steps=3, shift=2.5),
    "InverseCosine": lambda: graphs.InverseCosine(scale=0.3),
    "Polynomial": lambda: graphs.Polynomial([0.7, 0.5, -0.2, 0.1]),
    "Neural": lambda: graphs.Neural(lengths=5, hidden=3),
}

GRAPHS: dict[str, Callable[[], Kernel]] = {  # on nodes [N, 1] of `small_graph`, or these beside two columns of numbers
    **{name: lambda name=name: Graph(small_graph(), SPECTRA[name](), outputscale=0.7) for name in SPECTRA},
    "unnormalised": lambda: Graph(small_graph(), graphs.Matern(kappa=0.9), "unnormalised"),
    "sum": lambda: Graph(small_graph(), active_dims=[0]) + RBF(active_dims=[1, 2]),
    "product": lambda: (
        Graph(small_graph(), graphs.Diffusion(2.0), active_dims=[0]) * Matern(nu=1.5, active_dims=[1])
        + Linear(active_dims=[2])
    ),
}


def nodes(n: int, dims: int = 1, seed: int = 0) -> Tensor:
    """n different nodes of `small_graph`, in a column before dims - 1 columns of numbers."""
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:n, None]
    return torch.cat([order.double(), points(n, dims - 1, seed)], 1)


def _gpytorch_scaled(active_dims: tuple[int, ...] | None = None) -> gpytorch.kernels.Kernel:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(active_dims=active_dims))
    kernel.outputscale, kernel.base_kernel.lengthscale = 1.3, 0.9
    return kernel


def _gpytorch_matern() -> gpytorch.kernels.Kernel:
    kernel = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=DIMS)
    kernel.lengthscale = torch.tensor([[0.8, 1.2, 1.5]])
    return kernel


THEIRS: dict[str, Callable[[], gpytorch.kernels.Kernel]] = {
    "gpytorch-scaled-rbf": _gpytorch_scaled,
    "gpytorch-scaled-columns": lambda: _gpytorch_scaled((2, 1)),
    "gpytorch-scale-selects": lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(), active_dims=(1,)),
    "gpytorch-matern-ard": _gpytorch_matern,
    "gpytorch-rq": gpytorch.kernels.RQKernel,
    "gpytorch-periodic": gpytorch.kernels.PeriodicKernel,
    "gpytorch-linear": gpytorch.kernels.LinearKernel,
    "gpytorch-polynomial": lambda: gpytorch.kernels.PolynomialKernel(power=2),
    "gpytorch-sum": lambda: _gpytorch_scaled((0,)) + gpytorch.kernels.MaternKernel(nu=2.5, active_dims=(1, 2)),
    "gpytorch-product": lambda: _gpytorch_scaled() * gpytorch.kernels.PeriodicKernel(active_dims=(0,)),
    "mixed-sum": lambda: RBF(lengthscale=0.7, active_dims=[0]) + _gpytorch_scaled((1,)),
    "mixed-product": lambda: Matern(nu=1.5, lengthscale=0.9) * gpytorch.kernels.RQKernel(active_dims=(2,)),
}

KERNELS: dict[str, Callable[[], gpytorch.kernels.Kernel]] = {**OWN, **THEIRS}


@dataclass(frozen=True)
class LikelihoodCase:
    """A likelihood, targets that it allows, where its log density bends, and the accuracy of its integrals."""

    build: Callable[[], likelihoods.Likelihood]
    y: tuple[float, ...]
    features: Callable[[float], list[tuple[float, float]]] = lambda y: [(0.0, 1.0)]
    tolerance: float = 1e-8


def _log(width: float) -> Callable[[float], list[tuple[float, float]]]:
    return lambda y: [(math.log(y + 0.1), width / math.sqrt(y + 1)), (0.0, 1.0)]


LIKELIHOODS: dict[str, LikelihoodCase] = {
    "Bernoulli-probit": LikelihoodCase(lambda: likelihoods.Bernoulli(), (0, 1, 1)),
    "Bernoulli-logit": LikelihoodCase(lambda: likelihoods.Bernoulli("logit"), (-1, 1, -1)),
    "Poisson": LikelihoodCase(lambda: likelihoods.Poisson(), (0, 1, 7, 300), _log(1.0)),
    "NegativeBinomial": LikelihoodCase(lambda: likelihoods.NegativeBinomial(0.3), (0, 2, 40), _log(1.0)),
    "StudentT": LikelihoodCase(lambda: likelihoods.StudentT(4.0, 0.3), (-5.0, 0.3, 8.0), lambda y: [(y, 0.3)]),
    "StudentT-heavy": LikelihoodCase(lambda: likelihoods.StudentT(2.1, 0.05), (-1.0, 0.3), lambda y: [(y, 0.05)]),
    "StudentT-light": LikelihoodCase(lambda: likelihoods.StudentT(25.0, 0.1), (-5.0, 0.3, 3.0), lambda y: [(y, 0.1)]),
    "StudentT-normal": LikelihoodCase(lambda: likelihoods.StudentT(100.0, 0.5), (-5.0, 3.0), lambda y: [(y, 0.5)]),
    "Laplace": LikelihoodCase(lambda: likelihoods.Laplace(0.5), (-5.0, 0.3, 8.0), lambda y: [(y, 0.5)]),
    "Laplace-sharp": LikelihoodCase(lambda: likelihoods.Laplace(0.01), (-5.0, 0.3, 3.0), lambda y: [(y, 0.01)]),
    "Ordinal": LikelihoodCase(lambda: likelihoods.Ordinal(4, -1.0, [0.5, 2.0]), (0, 1, 2, 3)),
    "Ordinal-two": LikelihoodCase(lambda: likelihoods.Ordinal(2, 0.4), (0, 1, 1)),
    "Beta": LikelihoodCase(
        lambda: likelihoods.Beta(8.0), (0.02, 0.4, 0.97, 0.999), lambda y: [(math.log(y / (1 - y)), 0.5)]
    ),
    "Gamma": LikelihoodCase(lambda: likelihoods.Gamma(2.0), (0.05, 1.0, 50.0), lambda y: [(math.log(y), 0.5)]),
    "Exponential": LikelihoodCase(lambda: likelihoods.Exponential(), (0.05, 1.0, 50.0), lambda y: [(math.log(y), 1.0)]),
    "gpytorch-StudentT": LikelihoodCase(
        lambda: likelihoods.FromGPyTorch(gpytorch.likelihoods.StudentTLikelihood()),
        (-5.0, 0.3, 8.0),
        lambda y: [(y, 0.8)],
    ),
    "gpytorch-Laplace": LikelihoodCase(
        lambda: likelihoods.FromGPyTorch(gpytorch.likelihoods.LaplaceLikelihood()),
        (-5.0, 0.3, 8.0),
        lambda y: [(y, 0.8)],
    ),
    "gpytorch-Bernoulli": LikelihoodCase(
        lambda: likelihoods.FromGPyTorch(gpytorch.likelihoods.BernoulliLikelihood()), (0, 1, 1)
    ),
    "gpytorch-Beta": LikelihoodCase(
        lambda: likelihoods.FromGPyTorch(gpytorch.likelihoods.BetaLikelihood()), (0.02, 0.4, 0.97)
    ),
    "Heteroscedastic": LikelihoodCase(lambda: likelihoods.Heteroscedastic(), (-1.0, 0.3, 2.0), tolerance=1e-6),
    "Categorical": LikelihoodCase(lambda: likelihoods.Categorical(3), (0, 1, 2), tolerance=1e-3),
}


def points(n: int, dims: int = DIMS, seed: int = 0) -> Tensor:
    """n input points [n, dims], uniform on [-1, 2]^dims."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(n, dims, generator=generator, dtype=torch.float64) - 1


def targets(x: Tensor, columns: int | None = None, seed: int = 0) -> Tensor:
    """Smooth functions of x [N, D] with noise of standard deviation 0.1: [N], or [N, columns]."""
    generator = torch.Generator().manual_seed(seed + 1)
    phases = torch.arange(1.0, 2.0 + (columns or 1) - 1, dtype=x.dtype)
    clean = torch.sin(x.sum(1, keepdim=True) * phases) + 0.5 * x[:, :1].square()
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=x.dtype)
    return noisy if columns else noisy.squeeze(1)
