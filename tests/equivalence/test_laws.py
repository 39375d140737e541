"""The laws of `gpx.testing`, for every member of every family."""

from __future__ import annotations

import pytest

from gpx.engines import Exact
from gpx.errors import StructureError
from gpx.likelihoods import Gaussian
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
