"""The laws of `gpx.testing`, for every member of every family."""

from __future__ import annotations

import gpytorch
import pytest
import torch

import gpx
from gpx import engines
from gpx.engines import Exact, StateSpace
from gpx.errors import StructureError
from gpx.inputs import as_data
from gpx.kernels import (
    RBF,
    BlockQuasiPeriodic,
    Constant,
    Cosine,
    GridSpectralMixtureProduct,
    HidaMatern,
    Linear,
    Matern,
    Periodic,
    QuasiPeriodic,
    StudentMixture,
)
from gpx.likelihoods import Gaussian
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.structure import state_space
from gpx.testing import check_engine, check_fit, check_kernel, check_likelihood, check_state_space, check_structure
from gpx.testing.assertions import close
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


@pytest.mark.parametrize("kind", ["orthogonal", "simplex", "simplex+"])
@pytest.mark.parametrize("name", ["RBF-ard", "Matern12", "RationalQuadratic", "active_dims", "product"])
def test_structure_of_coupled_directions(name, kind):
    check_structure(KERNELS[name](), kind=kind)


@pytest.mark.parametrize("name", NO_FEATURES)
def test_no_feature_map(name):
    with pytest.raises(StructureError, match=f"{NO_FEATURES[name]} has no feature map.*GP.sample"):
        check_structure(KERNELS[name]())


@pytest.mark.parametrize("name", KERNELS)
def test_exact_engine(name):
    check_engine(Exact(), [KERNELS[name]()], points(8), tolerance=1e-9)


def heavy(*values):
    """A case for the slow tests, of which continuous integration runs it."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.ci])


TEMPORAL = {
    "default": None,
    "product-of-materns": lambda: [Matern(nu=1.5) * Matern(nu=0.5, lengthscale=2.0), Matern(nu=2.5) * Matern(nu=2.5)],
    "trend": lambda: [Linear(0.3) * Matern(nu=1.5) + Constant(0.4), Linear(0.5, center=0.2)],
    "periodic": lambda: [Periodic(period=1.7), Cosine(period=2.1) * Matern(nu=0.5)],
    "orders": lambda: [Matern(nu=6.5), Matern(nu=4.5) + Matern(nu=0.5, lengthscale=0.3)],
    "hida-matern": lambda: [HidaMatern(2, 0.9, 0.7, 1.3), HidaMatern(0, frequency=0.0) + HidaMatern(1, 0.8, 0.4)],
    "student-mixture": lambda: [StudentMixture(2, 1.5, [0.8, 0.5], [0.0, 0.7], [0.9, 1.4])],
    "quasi-periodic": lambda: [QuasiPeriodic(period=1.7, lengthscale=1.2, decay=2.0)],
    "gpytorch": lambda: [_scaled_matern()],
}
BLOCKS = {
    "blocks": lambda: [
        BlockQuasiPeriodic(4, 0.7, Periodic(lengthscale=0.8, outputscale=1.3)),
        BlockQuasiPeriodic(1, 0.4),
    ],
    "blocks-that-alternate": lambda: [
        BlockQuasiPeriodic(5, -0.6) + Constant(0.3),
        BlockQuasiPeriodic(2, -0.3) * Cosine(3.0),
    ],
}
APPROXIMATE = {
    "RBF": lambda: [RBF(lengthscale=0.8, outputscale=1.7), gpytorch.kernels.RBFKernel()],
    "products-with-RBF": lambda: [
        RBF(lengthscale=0.8) * Matern(nu=2.5),
        RBF() * HidaMatern(0, frequency=0.4) + Linear(),
    ],
}
STEPS = torch.tensor([3.0, -2.0, 0.0, 11.0, 5.0, 4.0, 1.0, 7.0, 6.0])[:, None]


def _scaled_matern():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5))
    kernel.outputscale = 1.3
    return kernel


@pytest.mark.parametrize("name", [heavy(n) if n == "default" else n for n in TEMPORAL])
def test_state_space_engine(name):
    build = TEMPORAL[name]
    check_engine(StateSpace(), build and build())


@pytest.mark.parametrize("name", BLOCKS)
def test_state_space_engine_on_blocks(name):
    """With missing, skipped and unsorted steps."""
    check_engine(StateSpace(), BLOCKS[name](), STEPS)


class OnePole(RBF):
    """The kernel that the state-space form of RBF stands for."""

    def forward(self, x1, x2, diag=False, **params):
        value = state_space(self).covariance(x1[:, 0], x2[:, 0])
        return value.diagonal() if diag else value


def test_state_space_engine_on_an_approximate_form():
    """It is exact for what the form stands for, gradients included."""
    check_engine(StateSpace(), [OnePole(lengthscale=0.8, outputscale=1.7), OnePole() * Matern(nu=1.5, lengthscale=2.0)])


# Engine, kernel and inputs of a fit of every engine that there is.
FITS = {
    "Agents": lambda: (engines.Agents(), None, None),
    "BlockCirculant": lambda: (engines.BlockCirculant(), BlockQuasiPeriodic(4, 0.5), torch.arange(24.0)[:, None]),
    "Coreset": lambda: (engines.Coreset(), RBF(lengthscale=0.8, outputscale=1.0), None),
    "Exact": lambda: (Exact(), None, None),
    "Exact, weights": lambda: (Exact(), GridSpectralMixtureProduct(20, 0.05, max_frequency=2.0, bandwidth=0.3), None),
    "Features": lambda: (engines.Features(32), None, None),
    "Kronecker": lambda: (
        engines.Kronecker(),
        RBF(lengthscale=0.8, active_dims=[0]) * Matern(nu=1.5, active_dims=[1]),
        torch.cartesian_prod(torch.linspace(-1, 2, 6), torch.linspace(-1, 2, 4)),
    ),
    "SIC": lambda: (engines.SIC(), None, points(24, 2)),
    "SparseVariational": lambda: (engines.SparseVariational(8), None, None),
    "StateSpace": lambda: (StateSpace(), None, None),
}


@pytest.mark.parametrize("name", FITS)
def test_fit(name):
    check_fit(*FITS[name]())


def test_every_engine_is_fitted():
    there = {c for c in vars(engines).values() if isinstance(c, type) and issubclass(c, engines.Engine)}
    assert there - {engines.Engine} == {type(build()[0]) for build in FITS.values()}


def test_blocks_without_correlation():
    """Whose logarithm is not finite: value and gradient are those of a correlation of 1e-9."""
    kernel, data = BlockQuasiPeriodic(3, 0.0).double(), as_data(STEPS.double(), torch.sin(STEPS[:, 0]).double())
    prior = Prior(gpytorch.means.ZeroMean(), (kernel,))
    sites, params, found = Sites(9 * data.y, 0 * data.y + 9), [p for p in kernel.parameters() if p.requires_grad], []
    for engine in (StateSpace(), Exact()):
        density = engine.condition(prior, engine.plan(prior, data), {}, sites).log_density
        found.append([density.item(), *(g.item() for g in torch.autograd.grad(density, params))])
    close(found[0], found[1], "log density and its gradient", rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in TEMPORAL if TEMPORAL[n]] + [*APPROXIMATE])
def test_structure_of_a_line(name):
    for kernel in {**TEMPORAL, **APPROXIMATE}[name]():
        check_state_space(kernel, points(6, 1))
        check_structure(kernel, points(6, 1))


@pytest.mark.parametrize("name", BLOCKS)
def test_structure_of_blocks(name):
    for kernel in BLOCKS[name]():
        check_state_space(kernel, STEPS)


def test_approximate_forms_are_within_their_error():
    """The posterior of `Exact`, to a small multiple of the error over the noise."""
    x, kernel = points(40, 1), RBF(lengthscale=0.8)
    y, grid = torch.sin(3 * x[:, 0]), points(30, 1, seed=1)
    exact, near = (
        gpx.GP(kernel, Gaussian(0.01), mean="zero", engine=engine).condition(x, y).predict(grid)
        for engine in ("Exact", "StateSpace")
    )
    error = state_space(kernel).error
    assert 0 < error < 2e-4 and not state_space(kernel).exact
    close(near.mean, exact.mean, "mean", atol=error / 0.01, rtol=0.0)
    close(near.variance, exact.variance, "variance", atol=error / 0.01, rtol=0.0)


@pytest.mark.parametrize("noise", [None, 0.01, 30.0, [0.1, 2.0, 0.5]], ids=str)
def test_gaussian_likelihood(noise):
    check_likelihood(Gaussian(noise))


def test_fixed_noise():
    likelihood = Gaussian(0.2)
    likelihood.set(noise=dict(fixed=True))
    check_likelihood(likelihood)


LONG = ("Beta", "StudentT", "StudentT-heavy", "StudentT-light", "Gamma", "Exponential", "NegativeBinomial")


@pytest.mark.parametrize("name", [heavy(n) if n in LONG else n for n in LIKELIHOODS])
def test_likelihood(name):
    case = LIKELIHOODS[name]
    check_likelihood(case.build(), case.y, features=case.features, tolerance=case.tolerance)
