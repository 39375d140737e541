"""Laws for your own kernels, structures, engines and likelihoods, and the plain reference that they are compared with.

>>> import gpx.testing
>>> gpx.testing.check_kernel(gpx.kernels.RBF(lengthscale=0.5))
"""

from gpx.testing.engines import check_conditioning, check_engine, check_fit
from gpx.testing.kernels import check_kernel
from gpx.testing.likelihoods import check_likelihood
from gpx.testing.reference import DenseGP
from gpx.testing.structures import check_derivatives, check_state_space, check_structure

__all__ = [
    "DenseGP",
    "check_conditioning",
    "check_derivatives",
    "check_engine",
    "check_fit",
    "check_kernel",
    "check_likelihood",
    "check_state_space",
    "check_structure",
]
