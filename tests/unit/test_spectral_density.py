"""A spectral density is the Fourier transform of its kernel."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pytest
import torch
from scipy.integrate import quad

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
    SpectralMixture,
    StudentMixture,
)
from gpx.kernels.dense import dense
from gpx.structure import spectral_density
from gpx.testing.assertions import close

KERNELS = {
    "RBF": RBF(0.7, 1.3),
    **{f"Matern {p}": Matern(p + 0.5, lengthscale=0.9, outputscale=1.4) for p in range(5)},
    "HidaMatern": HidaMatern(1, lengthscale=0.8, frequency=0.6, outputscale=0.7),
    "zero frequency": HidaMatern(2, lengthscale=0.8, frequency=0.0),
    "SpectralMixture": SpectralMixture(2, [0.8, 0.5], [0.0, 0.7], [0.15, 0.1]),
    "StudentMixture": StudentMixture(2, 1.5, [0.8, 0.5], [0.0, 0.7], [0.9, 1.2]),
    "sum": HidaMatern(0, 1.2, 0.3) + RBF(0.4) + Matern(1.5),
    "tones": Cosine(period=1.7, outputscale=1.2) * Matern(1.5, 0.9, 0.8) * Constant(0.5) * Cosine(period=0.6),
    "scaled": 2 * (RBF(0.5) + HidaMatern(1, 1.0, 0.5)),
    "gpytorch": gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5) + gpytorch.kernels.RBFKernel()),
}


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_the_fourier_transform(name):
    kernel = KERNELS[name].double()
    omega = torch.tensor([0.0, 0.4, 2.0, -7.0], dtype=torch.float64)
    k = lambda tau: float(dense(kernel, torch.zeros(1, 1).double(), torch.full((1, 1), tau).double()).detach())  # noqa: E731
    expected = [2 * quad(k, 0, 30, weight="cos", wvar=abs(float(w)), limit=400)[0] for w in omega]
    density = spectral_density(kernel)
    close(density(omega), expected, "the Fourier integral", atol=1e-6)
    assert density.exact and bool((density(100 * omega) >= 0).all())


@pytest.mark.parametrize("order", range(4))
def test_hida_matern_is_two_matern_densities(order):
    omega = torch.linspace(-9, 9, 31, dtype=torch.float64)
    around = spectral_density(Matern(order + 0.5, 0.8, 1.3))
    shift = 2 * math.pi * 0.45
    expected = 0.5 * (around(omega - shift) + around(omega + shift))
    close(spectral_density(HidaMatern(order, 0.8, 0.45, 1.3))(omega), expected, "two sides", 1e-13)
    close(spectral_density(Cosine(1 / 0.45, 1.3) * Matern(order + 0.5, 0.8))(omega), expected, "as a product", 1e-13)


def test_it_integrates_to_the_variance():
    grid = torch.linspace(-400, 400, 400_001, dtype=torch.float64)
    total = np.trapezoid(spectral_density(HidaMatern(2, 0.8, 0.6, 1.7))(grid).detach(), grid)
    assert total / (2 * math.pi) == pytest.approx(1.7, rel=1e-8)


def test_it_is_differentiable():
    kernel = HidaMatern(1, 0.8, 0.6, 1.7)
    value = spectral_density(kernel)(torch.tensor([1.0, 2.0], dtype=torch.float64)).sum()
    assert all(bool(g.abs().sum() > 0) for g in torch.autograd.grad(value, list(kernel.parameters())))


@pytest.mark.parametrize(("kernel", "what"), [
    (Periodic(), "Periodic has no spectral density"),
    (Cosine(), "Cosine has no spectral density"),
    (Linear(), "Linear has no spectral density"),
    (QuasiPeriodic(), "QuasiPeriodic has no spectral density"),
    (RBF() + Linear(), "Linear has no spectral density"),
    (RBF() * Matern(), "one factor beside Cosine and Constant, got 2"),
    (RBF([0.1, 0.2], ard=True), "RBF has 2 values of lengthscale"),
    ("RBF", "str has no spectral density"),
], ids=str)  # fmt: skip
def test_kernels_without_one(kernel, what):
    with pytest.raises(StructureError, match=f"{what}.*(debiased=True|active_dims)"):
        spectral_density(kernel)
