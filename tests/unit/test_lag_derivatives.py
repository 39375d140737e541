"""Derivatives of kernels in the lag: against mpmath in 60 digits, at zero too."""

from __future__ import annotations

import gpytorch
import mpmath
import pytest
import torch

from gpx.errors import StructureError
from gpx.kernels import (
    RBF,
    Constant,
    Cosine,
    HidaMatern,
    Linear,
    Matern,
    Periodic,
    QuasiPeriodic,
    RationalQuadratic,
    SpectralMixture,
    StudentMixture,
)
from gpx.kernels.dense import dense
from gpx.structure import derivatives
from gpx.testing.assertions import close, gradients

mp = mpmath.mp.clone()
mp.dps = 60
LAGS = (0.0, 1e-9, -1e-3, 0.07, -0.4, 1.3, -2.9)


def gaussian(scale):
    return lambda z: mp.exp(-2 * (mp.pi * mp.mpf(scale) * z) ** 2)


def matern(p, lengthscale):
    """On z >= 0, where it is smooth."""
    f = mp.factorial

    def value(z):
        x = mp.sqrt(2 * p + 1) * z / mp.mpf(lengthscale)
        total = sum(f(p + i) / (f(i) * f(p - i)) * (2 * x) ** (p - i) for i in range(p + 1))
        return mp.exp(-x) * f(p) / f(2 * p) * total

    return value


def cosine(frequency):
    return lambda z: mp.cos(2 * mp.pi * mp.mpf(frequency) * z)


def periodic(period, lengthscale):
    return lambda z: mp.exp(-2 * (mp.sin(mp.pi * z / mp.mpf(period)) / mp.mpf(lengthscale)) ** 2)


def mixture(weights, means, envelopes):
    return lambda z: sum(mp.mpf(w) * e(z) * cosine(m)(z) for w, m, e in zip(weights, means, envelopes, strict=True))


W, MU, V = [0.7, 1.6, 0.4], [0.0, 0.9, 2.3], [0.3, 0.05, 0.6]
CASES = {
    "SpectralMixture": (lambda: SpectralMixture(3, W, MU, V), mixture(W, MU, [gaussian(v) for v in V])),
    "StudentMixture": (lambda: StudentMixture(3, 2.5, W, MU, V), mixture(W, MU, [matern(2, v) for v in V])),
    "StudentMixture-smooth": (lambda: StudentMixture(3, 4.5, W, MU, V), mixture(W, MU, [matern(4, v) for v in V])),
    "RBF": (lambda: RBF(0.8, 1.3), lambda z: mp.mpf(1.3) * mp.exp(-((z / mp.mpf(0.8)) ** 2) / 2)),
    "Matern52": (lambda: Matern(2.5, 0.7), matern(2, 0.7)),
    "Matern72": (lambda: Matern(3.5, 0.7), matern(3, 0.7)),
    "RationalQuadratic": (
        lambda: RationalQuadratic(0.7, 0.9),
        lambda z: (1 + z**2 / (2 * mp.mpf(0.7) * mp.mpf(0.9) ** 2)) ** -mp.mpf(0.7),
    ),
    "Cosine": (lambda: Cosine(period=0.8), lambda z: mp.cos(2 * mp.pi * z / mp.mpf(0.8))),
    "HidaMatern": (
        lambda: HidaMatern(2, 1.1, 0.6, 0.9),
        lambda z: mp.mpf(0.9) * matern(2, 1.1)(z) * cosine(0.6)(z),
    ),
    "Periodic": (lambda: Periodic(1.7, 0.6, 1.2), lambda z: mp.mpf(1.2) * periodic(1.7, 0.6)(z)),
    "QuasiPeriodic": (
        lambda: QuasiPeriodic(1.7, 0.6, decay=2.0, order=3),
        lambda z: periodic(1.7, 0.6)(z) * matern(3, 2.0)(z),
    ),
    "sum of products": (
        lambda: RBF(0.8) * Cosine(period=1.5) * Periodic(1.7, 0.6) + Constant(0.3),
        lambda z: mp.exp(-((z / mp.mpf(0.8)) ** 2) / 2) * mp.cos(2 * mp.pi * z / 1.5) * periodic(1.7, 0.6)(z) + mp.mpf(0.3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_mpmath(name):
    build, reference = CASES[name]
    found = derivatives(build(), 4)(torch.tensor(LAGS, dtype=torch.float64)).detach()
    # A series at |z| from the right: an even function, smooth on either side of zero.
    series = [mp.taylor(reference, abs(mp.mpf(z)), 4, direction=1, h=mp.mpf(10) ** -14) for z in LAGS]
    signed = [
        [float((-1 if z < 0 else 1) ** n * mp.factorial(n) * c) for n, c in enumerate(s)]
        for z, s in zip(LAGS, series, strict=True)
    ]
    expected = torch.tensor(signed, dtype=torch.float64)
    for n in range(5):
        close(found[:, n], expected[:, n], f"derivative {n} of {name}", rtol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_order_zero_is_the_kernel(name):
    kernel = CASES[name][0]()
    x = torch.tensor(LAGS, dtype=torch.float64)[:, None]
    lag = x - x.mT
    close(derivatives(kernel, 0)(lag)[..., 0], dense(kernel, x, x), "order 0", rtol=1e-13)


@pytest.mark.parametrize("name", ["SpectralMixture", "StudentMixture", "HidaMatern", "Periodic", "RationalQuadratic"])
def test_they_are_differentiable_in_hyperparameters(name):
    kernel = CASES[name][0]()
    lag = torch.tensor(LAGS, dtype=torch.float64)
    gradients(
        lambda *_: derivatives(kernel, 4)(lag), list(kernel.parameters()), "derivatives in hyperparameters", atol=1e-5
    )


def test_the_variance_of_a_derivative():
    """The worked number of automatic differentiation gone wrong: -k''(0) of one tone in a Matern-5/2 envelope."""
    kernel = StudentMixture(1, 2.5, 1.0, 3.0, 0.9)
    second = derivatives(kernel, 2)(torch.zeros((), dtype=torch.float64))[2]
    close(second, -(5 / 3 / 0.81 + (2 * torch.pi * 3) ** 2), "k''(0) = -(5/3) / rho^2 - (2 pi mu)^2", rtol=1e-14)


def test_gpytorch_kernels():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5) + gpytorch.kernels.RBFKernel()).double()
    lag, scale = torch.tensor(LAGS, dtype=torch.float64), float(kernel.outputscale.detach())
    length = float(kernel.base_kernel.kernels[0].lengthscale.detach())
    expected = derivatives(Matern(2.5, length, scale) + RBF(length, scale), 4)(lag)
    close(derivatives(kernel, 4)(lag), expected, "gpytorch", rtol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "order", "advice"),
    [
        (Matern(1.5), 4, r"nu = 1.5 has 2 derivative\(s\) at zero, asked for 4: use nu >= 2.5"),
        (HidaMatern(0), 1, r"0 derivative\(s\).*use nu >= 1.5"),
        (Linear(), 2, "Linear has no derivatives.*register"),
        (RBF([1.0, 2.0], ard=True), 2, r"lengthscale of shape \[1, 2\].*active_dims"),
        (SpectralMixture(1, mixture_means=[[1.0, 2.0]]), 2, r"mixture_means of shape \[1, 2\].*active_dims"),
    ],
)
def test_errors(kernel, order, advice):
    with pytest.raises(StructureError, match=advice):
        derivatives(kernel, order)
