"""Kernels: ordinary gpytorch kernels with values on their natural scale, starts from the data, and eager matrices."""

from gpx.kernels.algebra import Product, Sum
from gpx.kernels.base import Kernel, matrix
from gpx.kernels.block import BlockQuasiPeriodic
from gpx.kernels.expressions import parse
from gpx.kernels.graph import Graph
from gpx.kernels.grid_spectral import GridSpectralMixtureProduct
from gpx.kernels.hida_matern import HidaMatern
from gpx.kernels.periodic import Cosine, Periodic
from gpx.kernels.quasi_periodic import QuasiPeriodic
from gpx.kernels.simple import Constant, Linear, Same
from gpx.kernels.spectral_mixture import SpectralMixture, SpectralMixtureProduct
from gpx.kernels.stationary import RBF, Matern, RationalQuadratic
from gpx.kernels.student_mixture import StudentMixture

__all__ = [
    "RBF", "BlockQuasiPeriodic", "Constant", "Cosine", "Graph", "GridSpectralMixtureProduct", "HidaMatern", "Kernel", "Linear",
    "Matern", "Periodic", "Product", "QuasiPeriodic", "RationalQuadratic", "Same", "SpectralMixture", "SpectralMixtureProduct",
    "StudentMixture", "Sum", "matrix", "parse",
]  # fmt: skip
