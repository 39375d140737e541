"""The laws of `gpx.testing`, for every member of every family."""

from __future__ import annotations

import gpytorch
import pytest

from gpx.engines import Exact, StateSpace
from gpx.errors import StructureError
from gpx.kernels import Constant, Cosine, HidaMatern, Linear, Matern, Periodic, QuasiPeriodic
from gpx.likelihoods import Gaussian
from gpx.structure import state_space
from gpx.testing import check_engine, check_kernel, check_likelihood, check_structure
from gpx.testing.cases import KERNELS, LIKELIHOODS, OWN, points

# gpytorch kernels without a feature map: functions cannot be drawn from them, and the error says so.
NO_FEATURES = {
    "gpytorch-rq": "RQKernel",
    "gpytorch-periodic": "PeriodicKernel",
    "gpytorch-linear": "LinearKernel",
    "gpytorch-polynomial": "PolynomialKernel",
    "gpytorch-product": "PeriodicKernel",
    "mixed-product": "RQKernel",
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel(name):
    check_kernel(KERNELS[name]())


@pytest.mark.parametrize(
    "name", [n for n in OWN if "active" not in n and "columns" not in n and "Cosine" not in n and "ard" not in n]
)
def test_kernel_of_one_column(name):
    check_kernel(OWN[name](), points(8, 1))


@pytest.mark.parametrize("name", [n for n in KERNELS if n not in NO_FEATURES])
def test_structure(name):
    check_structure(KERNELS[name]())


@pytest.mark.parametrize("name", NO_FEATURES)
def test_no_feature_map(name):
    with pytest.raises(StructureError, match=f"{NO_FEATURES[name]} has no feature map.*GP.sample"):
        check_structure(KERNELS[name]())


@pytest.mark.parametrize("name", KERNELS)
def test_exact_engine(name):
    check_engine(Exact(), [KERNELS[name]()], points(8), tolerance=1e-9)


TEMPORAL = {
    "default": None,
    "product-of-materns": lambda: [Matern(nu=1.5) * Matern(nu=0.5, lengthscale=2.0), Matern(nu=2.5) * Matern(nu=2.5)],
    "trend": lambda: [Linear(0.3) * Matern(nu=1.5) + Constant(0.4), Linear(0.5, center=0.2)],
    "periodic": lambda: [Periodic(period=1.7), Cosine(period=2.1) * Matern(nu=0.5)],
    "orders": lambda: [Matern(nu=6.5), Matern(nu=4.5) + Matern(nu=0.5, lengthscale=0.3)],
    "hida-matern": lambda: [HidaMatern(2, 0.9, 0.7, 1.3), HidaMatern(0, frequency=0.0) + HidaMatern(1, 0.8, 0.4)],
    "quasi-periodic": lambda: [QuasiPeriodic(period=1.7, lengthscale=1.2, decay=2.0)],
    "gpytorch": lambda: [_scaled_matern()],
}


def _scaled_matern():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5))
    kernel.outputscale = 1.3
    return kernel


@pytest.mark.parametrize("name", TEMPORAL)
def test_state_space_engine(name):
    build = TEMPORAL[name]
    check_engine(StateSpace(), build and build())


@pytest.mark.parametrize("name", [n for n in TEMPORAL if TEMPORAL[n]])
def test_state_space_form(name):
    for kernel in TEMPORAL[name]():
        state_space(kernel)
        check_structure(kernel, points(6, 1))


@pytest.mark.parametrize("noise", [None, 0.01, 30.0, [0.1, 2.0, 0.5]], ids=str)
def test_gaussian_likelihood(noise):
    check_likelihood(Gaussian(noise))


def test_fixed_noise():
    likelihood = Gaussian(0.2)
    likelihood.set(noise=dict(fixed=True))
    check_likelihood(likelihood)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood(name):
    case = LIKELIHOODS[name]
    check_likelihood(case.build(), case.y, features=case.features, tolerance=case.tolerance)
