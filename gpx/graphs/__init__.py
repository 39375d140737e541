"""Graphs, spectra of their kernels, and the ways to evaluate these: by eigenvectors, polynomials and random walks."""

from gpx.graphs.backends import Backend, Eigen
from gpx.graphs.graph import Graph
from gpx.graphs.operator import Operator
from gpx.graphs.sampled import Walks
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

BACKENDS = {"eigen": Eigen(), "walks": Walks()}

__all__ = [
    "BACKENDS", "Backend", "Diffusion", "Eigen", "Graph", "InverseCosine", "Matern", "Neural", "Operator", "PStep", "Polynomial",
    "RegularisedLaplacian", "Spectrum", "Walks",
]  # fmt: skip
