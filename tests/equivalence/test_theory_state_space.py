"""Each derivation of docs/theory/state_space.md, against matrix exponentials, quadrature, dense algebra and differences."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path

import gpytorch
import mpmath
import numpy as np
import pytest
import torch
from scipy.linalg import expm

from gpx.engines import StateSpace
from gpx.errors import StructureError
from gpx.inputs import as_data
from gpx.kernels import RBF, BlockQuasiPeriodic, Constant, Cosine, HidaMatern, Linear, Matern, Periodic
from gpx.kernels.dense import dense
from gpx.linalg import chain as chains
from gpx.linalg import kalman, layout, steps
from gpx.linalg.chain import STEP, Chain
from gpx.linalg.derivatives import derivative
from gpx.linalg.scan import Element, Scan
from gpx.linalg.stretches import ProcessNoise, transition
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.structure import profiles
from gpx.structure.profiles import matern_profile, spectral_factor
from gpx.structure.state_space import periodic_weights, state_space
from gpx.testing.assertions import close
from gpx.testing.cases import points

DOCUMENT = Path(__file__).parents[2] / "docs" / "theory" / "state_space.md"
ORDERS = range(7)
N = 30


def setting(kernel=None, n=N, seed=0):
    """A chain, and the same as numpy arrays: times, covariance."""
    random = np.random.default_rng(seed)
    times = torch.as_tensor(np.sort(random.uniform(0, 4, n)))
    times[5], times[8] = times[4], times[7] + 1e-9
    kernel = kernel or Matern(nu=1.5, lengthscale=0.8) * Cosine(period=1.3) + Matern(nu=2.5) * Matern(nu=0.5)
    states, *form = state_space(kernel).at(times)
    tau = random.uniform(0.5, 9.0, n)
    tau[3] = 0.0
    nu = random.standard_normal(n) * tau
    K = dense(kernel, times[:, None], times[:, None]).detach().numpy()
    gaps = np.diff(times.numpy(), prepend=times[:1].numpy())
    return Chain(states, gaps, *(v.detach().numpy() for v in form), nu, tau), K


def posterior(K, nu, tau):
    """Log partition, mean and covariance by the B-form."""
    root = np.sqrt(tau)
    B = np.eye(len(K)) + root[:, None] * K * root
    covariance = K - K @ (root[:, None] * np.linalg.solve(B, root[:, None] * K))
    return 0.5 * nu @ covariance @ nu - 0.5 * np.linalg.slogdet(B)[1], covariance @ nu, covariance


def process(order, x):
    """A(x) and Q(x) as the loops compute them: from two times, without sites."""
    size, known = order + 1, layout.tables(layout.Layout((order,), (1,), (1,)))
    A, Q, gamma = np.zeros((size, size)), np.zeros((size, size)), np.empty(known.K)
    decay = steps.transition(x, known.N[0], size, A)
    steps.process_noise(x, decay, known.W[0], known.series[0], known.inverses, size, gamma, Q)
    return A, Q


@pytest.mark.parametrize("p", ORDERS)
def test_transition(p):
    """ss-matern: the finite sum is the matrix exponential, and the stationary covariance solves Lyapunov's equation."""
    F = layout.companion(p)
    for x in (1e-9, 0.3, 4.0, 30.0):
        close(process(p, x)[0], expm(F * x), "transition", atol=1e-11)
    _, limit, q = layout.noise_terms(p)
    close(F @ limit + limit @ F.T, -q * np.diag([0.0] * p + [1.0]), "Lyapunov", atol=1e-9)
    assert limit[0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize("p", ORDERS)
def test_process_noise(p):
    """ss-noise: the integral, entry by entry to 1e-10 relative, for gaps over nine orders of magnitude."""
    q, (nodes, weights) = layout.noise_terms(p)[2], np.polynomial.legendre.leggauss(100)
    for x in (1e-5, 1e-2, 0.4, 1.1 * (p + 1), 20.0):
        Q = process(p, x)[1]
        columns = np.array([process(p, 0.5 * x * (1 + node))[0][:, p] for node in nodes])
        exact = 0.5 * x * q * np.einsum("n,ni,nj->ij", weights, columns, columns)
        scale = np.sqrt(np.diag(exact))
        close(Q / np.outer(scale, scale), exact / np.outer(scale, scale), f"Q at {x}", atol=1e-10)


def test_modulation():
    """ss-factors: the model is the kernel; the weights of a periodic kernel sum to one, and what is left out to `error`."""
    times = torch.linspace(0, 5, 11, dtype=torch.float64)
    for kernel in (Cosine(period=1.3) * Matern(nu=0.5), Periodic(period=1.7, lengthscale=0.4), Linear(0.3, center=0.7)):
        form = state_space(kernel)
        close(
            form.covariance(times, times).detach(),
            dense(kernel, times[:, None], times[:, None]).detach(),
            "kernel",
            1e-9,
        )
    for lengthscale in (0.2, 1.0, 5.0):
        weights, error = periodic_weights(torch.tensor(lengthscale, dtype=torch.float64))
        assert float(weights.sum()) + error == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("one", "two"), [(0, 1), (1, 1), (2, 1), (3, 2), (0, 0)])
def test_products(one, two):
    """ss-products: the factor's process has the product's covariance; the dimension is p_1 + p_2 + 1; gradcheck."""
    kernel = Matern(nu=one + 0.5, lengthscale=0.7) * Matern(nu=two + 0.5, lengthscale=1.9)
    chain, K = setting(kernel)
    assert chain.layout.size == one + two + 1
    close(chain.evidence()[0], posterior(K, chain.nu, chain.tau)[0], "log partition", rtol=1e-9)
    profile = state_space(kernel).blocks[0].profile.detach().requires_grad_()
    degree = max(one, two)
    if degree:
        assert torch.autograd.gradcheck(lambda c: spectral_factor(c, degree), profile, eps=1e-6, atol=1e-5)
    close(matern_profile(one)[0], 1.0, "profile at zero")


def test_filter():
    """ss-filter: the log partition of dense algebra, with a site of precision zero."""
    chain, K = setting()
    close(chain.evidence()[0], posterior(K, chain.nu, chain.tau)[0], "log partition", rtol=1e-10)


def test_smoother():
    """ss-smoother: the moments of dense algebra; the share equals its definition."""
    chain, K = setting()
    _, mean, covariance = posterior(K, chain.nu, chain.tau)
    close(chain.smoothed.mean, mean, "mean", atol=1e-10)
    close(chain.smoothed.variance, np.diag(covariance), "variance", atol=1e-10)
    close(chain.smoothed.share, 1 - chain.tau * np.diag(covariance), "share", atol=1e-10)


def test_gradients():
    """ss-gradients: central differences in rates, rows and factors."""
    chain, _ = setting()
    for name in ("rates", "rows", "factors"):
        values, grad = getattr(chain, name), getattr(chain.smoothed, name)
        for place in list(np.ndindex(values.shape))[:6]:
            step = np.zeros_like(values)
            step[place] = 1e-6
            up, down = (replace(chain, **{name: values + s}).evidence()[0] for s in (step, -step))
            close(grad[place], (up - down) / 2e-6, f"gradient in {name}", atol=1e-6 * max(1.0, abs(grad).max()))


def test_settled_covariances():
    """ss-filter: on a grid only means move in the end; one pass is the sum of short ones, which never get there."""
    kernel = Matern(nu=1.5, lengthscale=0.4) + Matern(nu=0.5, lengthscale=2.0)
    n, random = 600, np.random.default_rng(1)
    times = 0.1 * torch.arange(n).double()
    states, *form = state_space(kernel).at(times)
    tau = np.where(np.arange(n) < 400, 5.0, 9.0)
    tau[200:203] = 0.0
    gaps, nu = np.diff(times.numpy(), prepend=0.0), tau * random.standard_normal(n)
    chain = Chain(states, gaps, *(v.detach().numpy() for v in form), nu, tau)
    value, mean, covariance = posterior(dense(kernel, times[:, None], times[:, None]).detach().numpy(), nu, tau)
    close(chain.evidence()[0], value, "log partition", atol=1e-9)
    close(chain.smoothed.mean, mean, "mean", atol=1e-10)
    close(chain.smoothed.variance, np.diag(covariance), "variance", atol=1e-10)
    state, total = chain._start(), np.zeros(2)
    for s in range(0, n, 2):
        total += chain._filter(state, s, s + 2, chain._moments(0))
    close(chain.evidence(), total, "sum of short passes", atol=1e-10)


def test_complex_steps():
    """ss-complex: the response of dense algebra, ``S (dnu - m dtau)`` and ``-(S o S) dtau``, to 1e-10."""
    chain, K = setting()
    _, mean, covariance = posterior(K, chain.nu, chain.tau)
    dnu, dtau = np.random.default_rng(1).standard_normal((2, N))
    moved = chain.along(dnu, dtau)
    close(moved.smoothed.imag().mean, covariance @ (dnu - mean * dtau), "change of the mean", atol=1e-9)
    close(moved.smoothed.imag().variance, -(covariance**2) @ dtau, "change of the variance", atol=1e-9)
    slope = dnu @ mean - 0.5 * dtau @ (mean**2 + np.diag(covariance))
    close(moved.evidence()[0].imag / STEP, slope, "slope of the log partition", rtol=1e-9)


def test_scan():
    """ss-scan: elements multiply associatively, and give what the filter does; derivatives are moments and shares; gradgradcheck of Q."""
    random = np.random.default_rng(0)
    roots = torch.as_tensor(random.standard_normal((2, 3, 4, 4)))
    roots[:, 1, :, 2:] = 0.0  # singular
    C, J = roots @ roots.mT
    others = torch.as_tensor(random.standard_normal((2, 3, 4, 5)))
    one, two, three = (
        Element(ahead, c, torch.cat([-j, back[:, 4:]], -1))
        for ahead, c, j, back in zip(others[0], C, J, others[1], strict=True)
    )
    for left, right in zip(one.then(two).then(three), one.then(two.then(three)), strict=True):
        close(left, right, "associativity", rtol=1e-9)
    chain, K = setting()
    inputs = (torch.as_tensor(getattr(chain, name)) for name in ("gaps", "rates", "rows", "factors", "nu", "tau"))
    scan, (value, mean, covariance) = Scan(chain.layout, *inputs), posterior(K, chain.nu, chain.tau)
    close(scan.log_partition(), value, "log partition", rtol=1e-10)
    close(scan.smoothed.mean, mean, "mean", atol=1e-10)
    close(scan.smoothed.variance, np.diag(covariance), "variance", atol=1e-10)
    close(scan.smoothed.share, 1 - chain.tau * np.diag(covariance), "share", atol=1e-10)
    x = torch.tensor([[0.3, 2.0]], dtype=torch.float64, requires_grad=True)
    known = layout.tables(layout.Layout((2,), (1,), (1,)))
    assert torch.autograd.gradcheck(lambda x: ProcessNoise.apply(x, known.N[0], known.W[0], known.q[0]), x)
    assert torch.autograd.gradgradcheck(lambda x: ProcessNoise.apply(x, known.N[0], known.W[0], known.q[0]), x)


@pytest.mark.parametrize("p", ORDERS)
def test_process_noise_in_torch(p):
    """ss-noise: the tensors are the loops' numbers, entry by entry."""
    gaps = torch.tensor([[0.0, 1e-9, 1e-5, 0.4, 1.1 * (p + 1), 20.0, 700.0]], dtype=torch.float64)
    known = layout.tables(layout.Layout((p,), (1,), (1,)))
    A, Q = transition(gaps, known.N[0]), ProcessNoise.apply(gaps, known.N[0], known.W[0], known.q[0])
    for k, x in enumerate(gaps[0].tolist()):
        expected = process(p, x)
        close(A[0, ..., k], expected[0], f"A at {x}", rtol=1e-12)
        scale = np.sqrt(np.diag(expected[1])) if x else np.ones(p + 1)
        close(
            Q[0, ..., k].numpy() / np.outer(scale, scale), expected[1] / np.outer(scale, scale), f"Q at {x}", atol=1e-11
        )


@pytest.mark.parametrize("memory", [1, 10**9])
def test_memory(memory, monkeypatch):
    """ss-memory: stretches give what one pass gives."""
    chain, _ = setting()
    whole = chain.smoothed
    monkeypatch.setattr(chains, "MEMORY", memory)
    parts = replace(chain).smoothed
    for name in ("mean", "variance", "rates", "rows", "factors"):
        close(getattr(parts, name), getattr(whole, name), name, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.ci
def test_long_series_have_loops_of_their_own(monkeypatch):
    """Compiled for the layout or for any: the same numbers."""
    chain, _ = setting(Matern(nu=1.5))
    monkeypatch.setattr(kalman, "MANY", 1)
    special = replace(chain)
    close(special.evidence(), chain.evidence(), "evidence", rtol=1e-12)
    close(special.smoothed.variance, chain.smoothed.variance, "variance", rtol=1e-10)
    close(special.smoothed.rates, chain.smoothed.rates, "gradient", rtol=1e-10)


def test_infinite_gaps_start_anew():
    """Independent parts, also of what does not decay."""
    chain, _ = setting(Matern(nu=2.5) + Constant(0.5))
    apart = chain.gaps.copy()
    apart[N // 2] = np.inf
    halves = [
        replace(chain, gaps=np.concatenate([[0.0], chain.gaps[part][1:]]), nu=chain.nu[part], tau=chain.tau[part])
        for part in (slice(0, N // 2), slice(N // 2, N))
    ]
    total = sum(half.evidence()[0] for half in halves)
    close(replace(chain, gaps=apart).evidence()[0], total, "independent parts", rtol=1e-12)


def test_prior_paths_have_the_covariance():
    """Second moments of 4,000 paths at five times; each within 5 standard errors: false alarm 1e-5."""
    kernel = Matern(nu=2.5, lengthscale=0.8) + Cosine(period=1.3)
    chain, K = setting(kernel, n=12)
    random = np.random.default_rng(3)
    paths = np.array([chain.path(random) for _ in range(4000)])
    error = np.sqrt((K**2 + np.outer(np.diag(K), np.diag(K))) / len(paths))
    assert np.all(np.abs(paths.T @ paths / len(paths) - K) < 5 * error)


def test_gaussian():
    """ss-rbf: the error is what is stated, at lags of its own; the spectrum is positive."""
    (profile, error), d = profiles.gaussian_profile(), np.random.default_rng(0).uniform(0, 12, 5000)
    c, x = np.array(profile), profiles.GAUSSIAN_RATE * d
    difference = np.abs(np.exp(-x) * np.polynomial.polynomial.polyval(x, c) - np.exp(-0.5 * d**2)).max()
    assert 0.9 * error < difference <= error < 1.2e-4 and c[0] == pytest.approx(1.0, abs=1e-14)
    top = (profiles.numerator(len(c) - 1).numpy() @ c)[: len(c) - profiles.GAUSSIAN_SMOOTHNESS]
    w2 = np.tan(np.linspace(0, 1.57, 10001)) ** 2
    floor = 0.9 * profiles.GAUSSIAN_FLOOR * (1 + w2) ** (len(top) - 1)
    assert np.all(np.polynomial.polynomial.polyval(w2, top) >= floor)


@pytest.mark.parametrize("order", [8, 10, 12])
def test_high_orders(order):
    """ss-rbf: to the highest order eight digits are left; more is refused."""
    chain, K = setting(Matern(nu=order + 0.5))
    _, mean, covariance = posterior(K, chain.nu, chain.tau)
    close(chain.smoothed.mean, mean, "mean", rtol=1e-8)
    close(chain.smoothed.variance, np.diag(covariance), "variance", rtol=1e-8)
    with pytest.raises(StructureError, match=r"order 16 would lose its digits.*engines.Exact\(\)"):
        state_space(RBF() * RBF())


@pytest.mark.parametrize("omega", [0.7, -0.7])
def test_blocks(omega):
    """ss-clock: the kernel, by factors on a clock of blocks; clocks that differ are refused."""
    kernel, steps = BlockQuasiPeriodic(3, omega), torch.arange(-4.0, 9.0).double()
    form = state_space(kernel)
    assert form.clock(steps).tolist() == [-2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    close(form.covariance(steps, steps).detach(), dense(kernel, *(2 * [steps[:, None]])).detach(), "kernel", 1e-12)
    assert state_space(kernel + Constant() * Cosine(period=7.0)).clock == form.clock
    for other in (Matern(), BlockQuasiPeriodic(4)):
        for together in (kernel + other, kernel * other):
            with pytest.raises(StructureError, match=r"has one clock.*engines.Exact\(\)"):
                state_space(together)


def test_derivatives_of_f():
    """ss-derivatives: dense algebra with the derivatives of the kernel, to 1e-9; the second with differences of the first."""
    ell, frequency, scale, slope = 0.9, 0.4, 1.3, 0.3
    kernel = HidaMatern(2, ell, frequency, scale) + Linear(slope)
    form, x = state_space(kernel), torch.linspace(-0.95, 1.95, 7).double()[:, None]
    data = as_data(points(12, 1), torch.zeros(12).double())
    z, tau = torch.sin(5 * data.x), torch.full((12, 1), 40.0).double()
    prior, engine = Prior(gpytorch.means.ZeroMean(), (kernel.double(),)), StateSpace()
    got = engine.condition(prior, engine.plan(prior, data), {}, Sites(z * tau, tau))
    mean, variance = got.derivative(x, 1)

    with torch.no_grad():
        K = form.covariance(data.x[:, 0], data.x[:, 0]) + torch.eye(12).double() / 40
        cross = derivative(lambda t: form.covariance(t, data.x[:, 0]), x[:, 0])
        start = scale * (5 / (3 * ell**2) + (2 * np.pi * frequency) ** 2) + slope
        close(mean, cross @ torch.linalg.solve(K, z), "mean")
        close(variance[:, 0], start - (cross * torch.linalg.solve(K, cross.mT).mT).sum(1), "variance")
    ends = [got.derivative(x + h, 1)[0] for h in (1e-5, -1e-5)]
    close(got.derivative(x, 2)[0], (ends[0] - ends[1]) / 2e-5, "second derivative", rtol=1e-4)
    with pytest.raises(StructureError, match="can be differentiated 2 time"):
        got.derivative(x, 3)


@pytest.mark.parametrize(("ratio", "digits"), [(1.0, 12), (1e8, 8), (1e12, 4)])
def test_vague_trends(ratio, digits):
    """ss-vague: against 50 digits; a ratio of variances of 1e8 leaves eight digits, one of 1e12 four or more."""
    noise, n, random = 0.01, 20, np.random.default_rng(0)
    times = np.sort(random.uniform(0, 10, n))
    y = np.sin(times) + 3 * times + 100 + 0.1 * random.standard_normal(n)
    kernel = Matern(nu=0.5, lengthscale=2.0) + Linear(ratio * noise, 5.0) + Constant(ratio * noise)
    states, *form = state_space(kernel.double()).at(torch.as_tensor(times))
    tau = np.full(n, 1 / noise)
    chain = Chain(states, np.diff(times, prepend=times[0]), *(v.detach().numpy() for v in form), tau * y, tau)

    with mpmath.workdps(50):
        t, scale, part = [mpmath.mpf(v) for v in times.tolist()], mpmath.mpf(ratio * noise), mpmath.mpf(noise)
        K = mpmath.matrix([[mpmath.exp(-abs(a - b) / 2) + scale * (1 + (a - 5) * (b - 5)) for a in t] for b in t])
        C, data = K + part * mpmath.eye(n), mpmath.matrix(y.tolist())
        solved = mpmath.lu_solve(C, data)
        density = float(-(data.T * solved)[0] / 2 - mpmath.log(mpmath.det(2 * mpmath.pi * C)) / 2)
        mean, inverse = K * solved, C**-1
        variance = [float(part - part**2 * inverse[i, i]) for i in range(n)]
    close(chain.evidence()[1], density, "log density", rtol=10.0**-digits)
    close(chain.smoothed.mean, [float(v) for v in mean], "mean", rtol=10.0**-digits)
    close(chain.smoothed.variance, variance, "variance", rtol=10.0**-digits)


def test_every_section_is_cited():
    labels = set(re.findall(r"^\(([a-z-]+)\)=$", DOCUMENT.read_text(), re.MULTILINE))
    docs = [inspect.getdoc(f) or "" for name, f in vars(sys.modules[__name__]).items() if name.startswith("test_")]
    cited = {label for label in labels if any(f"{label}:" in text for text in docs)}
    assert labels == cited, f"not cited: {labels - cited}"
