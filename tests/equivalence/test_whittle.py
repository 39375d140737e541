"""The debiased Whittle likelihood against dense matrices: docs/theory/whittle.md.

A test cites the section that it checks by its label; the last test sees to it that every label is cited.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpx.engines import Exact
from gpx.inference.problem import Problem
from gpx.inference.rules import Variational
from gpx.inputs import as_data
from gpx.kernels import RBF, Constant, HidaMatern, Matern, Periodic, QuasiPeriodic, RationalQuadratic
from gpx.likelihoods import Gaussian
from gpx.linalg.spectrum import expected_periodogram, periodogram, window
from gpx.means import as_mean
from gpx.objectives import Whittle
from gpx.prior import Prior
from gpx.structure import spectral_density
from gpx.testing.assertions import close

DOCUMENT = Path(__file__).parents[2] / "docs" / "theory" / "whittle.md"
KERNELS = {
    "Matern12": Matern(0.5, lengthscale=1.3, outputscale=1.4),
    "Matern52": Matern(2.5, lengthscale=6.0),
    "RBF": RBF(lengthscale=3.0, outputscale=0.7),
    "RationalQuadratic": RationalQuadratic(0.7, lengthscale=4.0),
    "tones": HidaMatern(0, 5.0, 0.2, 1.3) + HidaMatern(2, 9.0, 0.31, 0.4),
    "season": Periodic(7.0) * Matern(1.5, 20.0) + Constant(3.0),
    "QuasiPeriodic": QuasiPeriodic(6.5, 0.8, 15.0, 0),
}
MASKS = {
    "complete": lambda n: torch.ones(n),
    "block": lambda n: ((torch.arange(n) < n // 3) | (torch.arange(n) > n // 2)).double(),
    "random": lambda n: (torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5).double(),
    "every other": lambda n: (torch.arange(n) % 2 == 0).double(),
    "three": lambda n: torch.isin(torch.arange(n), torch.tensor([0, 3, n - 1])).double(),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(C, mask):
    """The expected periodogram [n // 2] of y ~ N(0, C) less its observed mean: a quadratic form for every frequency."""
    n, m = len(mask), mask.sum()
    take = np.diag(mask) - np.outer(mask, mask) / m
    waves = np.exp(-2j * np.pi * np.outer(np.arange(1, n // 2 + 1), np.arange(n)) / n) @ take
    return np.einsum("kt,ts,ks->k", waves, C, waves.conj()).real / m


def problem(kernel, noise, x, y, mean="zero"):
    data = as_data(x, y)
    mean = as_mean(mean)
    if hasattr(mean, "bind"):
        mean.bind(data, data.y.shape[1])
        mean.init_from(data)
    likelihood = noise if isinstance(noise, Gaussian) else Gaussian(noise)
    return Problem.planned(Prior(mean, (kernel,)), data, likelihood, Exact(), Variational())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("n", [30, 31])
@pytest.mark.parametrize("kernel", KERNELS)
def test_expected_periodogram(kernel, n, mask):
    """whittle-expected, whittle-gaps: it is the brute-force expectation under the dense covariance, to 1e-10."""
    t = 0.7 * torch.arange(n, dtype=torch.float64)
    K = KERNELS[kernel].matrix(0.7 * torch.arange(n).double(), t).detach()
    observed = MASKS[mask](n).double()
    for noise in (torch.full((1, n), 0.3, dtype=torch.float64), 0.05 + normal(1, n).square()):
        got = expected_periodogram(K[0], noise, window(observed[None]))
        expected = brute_force((K + torch.diag(noise[0])).numpy(), observed.numpy())
        close(got[0], expected, "E I", atol=1e-10 * float(K[0, 0] + noise.max()))


def test_expected_periodogram_is_that_of_draws():
    """whittle-unbiased: the mean of periodograms of draws, in a z-test (false alarms: 1e-6)."""
    n, draws = 24, 20_000
    mask = MASKS["random"](n)
    kernel = KERNELS["tones"]
    t = torch.arange(n, dtype=torch.float64)
    C = kernel.matrix(t).detach() + 0.2 * torch.eye(n, dtype=torch.float64)
    y = 5.0 + normal(draws, n) @ torch.linalg.cholesky(C).mT
    cells = window(mask[None].double())
    found = periodogram(y, cells)
    expected = expected_periodogram(kernel.matrix(t)[0].detach(), torch.full((1, n), 0.2).double(), cells)
    z = (found.mean(0) - expected[0]) / (found.std(0) / math.sqrt(draws))
    assert float(z.abs().max()) < 5.5


def test_the_score_has_mean_zero():
    """whittle-unbiased: replacing I by its expectation, the gradient vanishes at the true values."""
    n = 40
    cells = window(MASKS["block"](n)[None].double())
    kernel = Matern(0.5, lengthscale=2.0).double()
    t = torch.arange(n, dtype=torch.float64)
    expected = expected_periodogram(kernel.matrix(t)[0], torch.full((1, n), 0.1).double(), cells)
    value = -(expected.log() + expected.detach() / expected).sum()
    for gradient in torch.autograd.grad(value, list(kernel.parameters())):
        assert float(gradient.abs().max()) < 1e-12


def test_periodogram():
    """whittle-periodogram: a loop over frequencies; a constant changes nothing, nor do cells that are not observed."""
    for n in (12, 13):
        mask = MASKS["random"](n)
        y = normal(2, n)
        cells = window(mask[None].double())
        seen = mask.bool().numpy()
        expected = []
        for row in y.numpy():
            centred = row[seen] - row[seen].mean()
            wave = lambda k, n=n, seen=seen: np.exp(-2j * np.pi * k * np.arange(n)[seen] / n)  # noqa: E731
            expected.append([abs((centred * wave(k)).sum()) ** 2 / seen.sum() for k in range(1, n // 2 + 1)])
        close(periodogram(y, cells), expected, "I", 1e-12)
        close(periodogram(y + 1e3, cells), expected, "a constant is taken off", 1e-9)
        close(periodogram(torch.where(mask.bool(), y, torch.full_like(y, 7.0)), cells), expected, "unobserved", 1e-12)


@pytest.mark.parametrize("n", [40, 41])
def test_white_noise(n):
    """whittle-scale: without gaps and correlation the value is the log density of y less its mean."""
    y = 1.5 * normal(n) + 3.0
    value = Whittle()(problem(RBF(lengthscale=1e-3, outputscale=0.4), 0.9, torch.arange(n, dtype=torch.float64), y))
    square = (y - y.mean()).square().sum()
    expected = -0.5 * (n - 1) * math.log(2 * math.pi * 1.3) - 0.5 * square / 1.3
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-12)


def test_value():
    """whittle-scale, whittle-gaps: outputs with gaps of their own, stamps in any order, a mean that is a line."""
    n = 26
    kernel = KERNELS["tones"]
    x = 3.0 + 0.5 * torch.arange(n, dtype=torch.float64)
    y = normal(n, 3)
    y[4:9, 0] = y[20, 1] = math.nan
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    posed = problem(kernel, 0.2, x[order], y[order], "linear")
    total = 0.0
    mean = posed.prior.mean_at(x[:, None], 3).detach()
    C = (kernel.matrix(x).detach() + 0.2 * torch.eye(n, dtype=torch.float64)).numpy()
    for column, line in zip(y.T, mean.T, strict=True):
        mask = (~torch.isnan(column)).double()
        S = brute_force(C, mask.numpy())
        found = periodogram(torch.nan_to_num(column - line)[None], window(mask[None]))[0].numpy()
        terms = np.log(2 * np.pi * S) + found / S
        terms[-1] *= 0.5
        total -= terms.sum() * float(mask.sum() - 1) / (n - 1)
    assert float(Whittle()(posed).detach()) == pytest.approx(total, rel=1e-11)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("gaps", [True, False])
def test_gradient(debiased, gaps):
    """Central differences in every hyperparameter, those of a line included."""
    n = 60
    x = torch.arange(float(n), dtype=torch.float64)
    y = normal(n, 2).cumsum(0)
    if gaps:
        y[10:20, 0] = math.nan
        y[::7, 1] = math.nan
    kernel = (HidaMatern(1, 5.0, 0.13, 1.4) + Matern(0.5, 2.0, 0.6)).double()
    posed = problem(kernel, 0.3, x, y, "linear")
    objective = Whittle(debiased=debiased)
    modules = (kernel, posed.likelihood, posed.prior.mean)
    raws = [p for m in modules for n, p in m.named_parameters() if p.requires_grad and "constant" not in n]
    gradients = torch.autograd.grad(objective(posed), raws)
    for raw, gradient in zip(raws, gradients, strict=True):
        for i in range(raw.numel()):
            step, values = 1e-5 * max(1.0, float(raw.detach().abs().max())), []
            for sign in (1, -1):
                with torch.no_grad():
                    raw.view(-1)[i] += sign * step
                    values.append(float(objective(posed)))
                    raw.view(-1)[i] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            assert float(gradient.reshape(-1)[i]) == pytest.approx(slope, rel=2e-5, abs=1e-4), (raw, i)


def test_naive_is_the_limit_for_smooth_kernels_only():
    """whittle-naive: the expectation tends to the aliased density; for a smooth kernel that is the density itself."""
    gaps = {}
    for n in (512, 4096):
        t = 0.5 * torch.arange(n, dtype=torch.float64)
        omega = 2 * math.pi * torch.arange(1, n // 2 + 1, dtype=torch.float64) / n
        noise = torch.full((1, n), 0.05, dtype=torch.float64)
        for name, kernel in (("smooth", Matern(4.5, 4.0)), ("rough", Matern(0.5, 0.7))):
            expected = expected_periodogram(
                kernel.matrix(t[:1], t)[0].detach(), noise, window(torch.ones(1, n).double())
            )
            density = spectral_density(kernel)
            folds = range(-2000, 2001) if name == "rough" else range(-2, 3)
            aliased = sum(density((omega + 2 * math.pi * k) / 0.5) / 0.5 for k in folds) + 0.05
            naive = density(omega / 0.5) / 0.5 + 0.05
            for form, S in (("aliased", aliased), ("naive", naive)):
                gaps[n, name, form] = float((S.detach() / expected[0] - 1).abs().max())
    for name in ("smooth", "rough"):
        assert gaps[4096, name, "aliased"] < 0.2 * gaps[512, name, "aliased"] < 0.05, "like 1 / n"
    assert gaps[4096, "smooth", "naive"] < 0.03 and gaps[4096, "rough", "naive"] > 0.3


def test_every_derivation_is_cited():
    labels = set(re.findall(r"^\((whittle-[a-z]+)\)=", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    here = [f for n, f in inspect.getmembers(sys.modules[__name__], inspect.isfunction) if n.startswith("test_")]
    cited = {label for f in here for label in re.findall(r"whittle-[a-z]+", f.__doc__ or "")}
    assert labels == cited
