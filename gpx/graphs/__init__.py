"""Graphs, spectra of their kernels, and the ways to evaluate these: by eigenvectors, polynomials and random walks."""

from gpx.graphs.backends import Backend, Eigen
from gpx.graphs.chebyshev import Chebyshev
from gpx.graphs.graph import Graph
from gpx.graphs.operator import Operator
from gpx.graphs.push import Push
from gpx.graphs.sampled import SparseBackend, Walks
from gpx.graphs.spectra import (
    Diffusion,
    InverseCosine,
    Matern,
    Neural,
    Polynomial,
    PStep,
    RegularisedLaplacian,
    Spectrum,
)

BACKENDS = {"eigen": Eigen(), "chebyshev": Chebyshev(), "walks": Walks()}

__all__ = [
    "BACKENDS", "Backend", "Chebyshev", "Diffusion", "Eigen", "Graph", "InverseCosine", "Matern", "Neural", "Operator", "PStep",
    "Polynomial", "Push", "RegularisedLaplacian", "SparseBackend", "Spectrum", "Walks",
]  # fmt: skip
