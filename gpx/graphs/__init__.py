"""Graphs, spectra of their kernels, and the ways to evaluate these: by eigenvectors, polynomials and random walks."""

from gpx.graphs.backends import Backend, Eigen
from gpx.graphs.graph import Graph
from gpx.graphs.operator import Operator
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

BACKENDS = {"eigen": Eigen()}

__all__ = [
    "BACKENDS", "Backend", "Diffusion", "Eigen", "Graph", "InverseCosine", "Matern", "Neural", "Operator", "PStep", "Polynomial",
    "RegularisedLaplacian", "Spectrum",
]  # fmt: skip
