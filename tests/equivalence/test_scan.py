"""The scan in torch is the compiled chain, and both are the dense kernel: values, all gradients, responses, and the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gpx import GP, likelihoods, objectives
from gpx.engines import StateSpace, state_space
from gpx.kernels import HidaMatern, Linear, Matern, Periodic, QuasiPeriodic
from gpx.kernels.dense import dense
from gpx.linalg.chain import Chain
from gpx.linalg.layout import Layout
from gpx.linalg.scan import Scan
from gpx.structure.state_space import state_space as form_of
from gpx.testing import check_engine
from gpx.testing.assertions import close

INPUTS = ("rates", "rows", "factors", "nu", "tau")
LAYOUTS = {
    **{f"order-{p}": Layout((p,), (1,), (1,)) for p in range(7)},
    "copies": Layout((1,), (4,), (1,)),
    "products": Layout((3, 2), (1, 1), (2, 3)),
    "mixture": Layout((2, 0, 1), (1, 2, 2), (1, 1, 2)),
}


def random_chain(layout: Layout, n: int, seed: int, moving: bool = True) -> Chain:
    """Gaps from 1e-9 to 100, equal times, missing values, sites without precision, and three independent series."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(0.2, n)
    gaps[random.choice(n, n // 10, replace=False)] = 0.0
    gaps[random.choice(n, n // 20, replace=False)] = 1e-9
    gaps[random.choice(n, 2, replace=False)] = np.inf
    gaps[n // 2], gaps[0] = 100.0, 0.0
    tau = random.uniform(0.1, 30.0, n)
    tau[random.choice(n, n // 5, replace=False)] = 0.0
    nu = np.where(tau > 0, tau, 0.0) * random.standard_normal(n)
    nu[n // 3], tau[n // 3] = 0.7, 0.0
    rates, copies = random.uniform(0.5, 4.0, len(layout.orders)), sum(layout.copies)
    rows, factors = random.standard_normal(sum(layout.widths)), random.standard_normal((n if moving else 1, copies))
    return Chain(layout, gaps, rates, rows, factors, nu, tau)


def scan_of(chain: Chain) -> Scan:
    """The same, differentiable in everything."""
    tensors = {name: torch.tensor(getattr(chain, name), requires_grad=name in INPUTS) for name in ("gaps", *INPUTS)}
    return Scan(chain.layout, **tensors)


def gradients(scan: Scan, value: torch.Tensor, names: tuple[str, ...] = INPUTS) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, [getattr(scan, name) for name in names]))


def check_evidence(chain: Chain, name: str, place: int) -> None:
    scan, smoothed = scan_of(chain), chain.smoothed
    value = getattr(scan, name)()
    close(value.detach(), chain.evidence()[place], name, rtol=1e-10)
    sites = chain.site_gradients(float(place == 0), float(place == 1))
    expected = smoothed.rates, smoothed.rows, smoothed.factors, *sites
    for got, want, what in zip(gradients(scan, value), expected, INPUTS, strict=True):
        close(got, want, f"gradient of {name} in {what}", rtol=1e-8)


@pytest.mark.parametrize("moving", [True, False], ids=["moving", "constant"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_scan_is_chain(name, moving):
    """Values to 1e-10, gradients of log partition and density, the response, and the gradients of a slope to 1e-8."""
    chain = random_chain(LAYOUTS[name], 211, seed=len(name), moving=moving)
    scan, smoothed = scan_of(chain), chain.smoothed
    for moment in ("mean", "variance", "share"):
        close(getattr(scan.smoothed, moment), getattr(smoothed, moment), moment, rtol=1e-10)
    check_evidence(chain, "log_partition", 0)
    observed = replace(chain, nu=np.where(chain.tau > 0, chain.nu, 0.0))  # a density is one of sites with a precision
    check_evidence(observed, "log_density", 1)
    direction = np.random.default_rng(1).standard_normal((2, len(chain.nu)))
    dnu, dtau = map(torch.as_tensor, direction)
    moved = chain.along(*direction).smoothed.imag()
    for got, want in zip(scan.response(dnu, dtau), (moved.mean, moved.variance), strict=True):
        close(got, want, "response", rtol=1e-8)
    mean, variance = scan.moments()
    slope = (dnu * mean - 0.5 * dtau * (variance + mean.square())).sum()
    expected = moved.rates, moved.rows, moved.factors, moved.mean, -0.5 * moved.variance - smoothed.mean * moved.mean
    for got, want, what in zip(gradients(scan, slope), expected, INPUTS, strict=True):
        close(got, want, f"gradient of the slope in {what}", rtol=1e-8)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Matern(nu=6.5, lengthscale=0.8) + Matern(nu=0.5, lengthscale=3.0),
        lambda: Matern(nu=1.5) * Matern(nu=2.5, lengthscale=2.0) + Linear(0.3),
        lambda: HidaMatern(2, 0.9, 0.7) + HidaMatern(0, 3.0, 0.2),
        lambda: Matern(nu=4.5),
    ],
    ids=["orders", "product", "hida-matern", "smooth"],
)
def test_scan_is_dense(build):
    """Log partition, mean and variance to 1e-8, with precise and imprecise sites at clustered times."""
    random, kernel, n = np.random.default_rng(0), build(), 300
    times = torch.as_tensor(np.sort(random.uniform(0, 12, n)))
    times[5], times[8] = times[4], times[7] + 1e-9
    form = form_of(kernel)
    K = form.covariance(times, times).detach().numpy()
    close(K, dense(kernel, times[:, None], times[:, None]).detach(), "kernel", atol=1e-9)
    tau = 10 ** random.uniform(-2, 4, n)
    nu = random.standard_normal(n) * tau**0.5
    layout, *tensors = form.at(times)
    gaps = times.diff(prepend=times[:1])
    scan = Scan(layout, gaps, *(v.detach() for v in tensors), torch.as_tensor(nu), torch.as_tensor(tau))
    root = np.sqrt(tau)
    B = np.eye(n) + root[:, None] * K * root
    covariance = K - K @ (root[:, None] * np.linalg.solve(B, root[:, None] * K))
    value = 0.5 * nu @ covariance @ nu - 0.5 * np.linalg.slogdet(B)[1]
    close(scan.log_partition(), value, "log partition", rtol=1e-8)
    close(scan.smoothed.mean, covariance @ nu, "mean", rtol=1e-8)
    close(scan.smoothed.variance, np.diag(covariance), "variance", rtol=1e-8)


@pytest.mark.parametrize("precision", [1e6, 1e10])
def test_almost_without_noise(precision):
    """Elements hold precisions of what came before; variances of 1 / precision keep six digits and more."""
    n, random = 1000, np.random.default_rng(0)
    gaps = np.concatenate([[0.0], random.exponential(0.01, n - 1)])
    nu = precision * np.sin(np.cumsum(gaps))
    one = np.ones(1)
    chain = Chain(Layout((1,), (1,), (1,)), gaps, one, one, one[None], nu, np.full(n, precision))
    smoothed = scan_of(chain).smoothed
    close(smoothed.variance, chain.smoothed.variance, "variance", rtol=1e-6)
    close(smoothed.share, chain.smoothed.share, "share", atol=1e-6)
    close(scan_of(chain).log_density().detach(), chain.evidence()[1], "log density", rtol=1e-10)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_times(n):
    """No time, or fewer than states."""
    whole = random_chain(LAYOUTS["mixture"], 60, seed=1)
    chain = replace(whole, **{name: getattr(whole, name)[:n] for name in ("gaps", "factors", "nu", "tau")})
    scan = scan_of(chain)
    close(scan.log_partition().detach(), chain.evidence()[0], "log partition", rtol=1e-12)
    close(scan.smoothed.variance, chain.smoothed.variance, "variance", rtol=1e-12)
    assert scan.path(np.random.default_rng(0)).shape == (n,)


def test_prior_paths_have_the_covariance():
    """Second moments of 2,000 paths; each within 5 standard errors: false alarm 1e-4. Equal times have equal values."""
    kernel = Matern(nu=2.5, lengthscale=0.8) * Matern(nu=0.5) + HidaMatern(1, 2.0, 0.3)
    times = torch.as_tensor(np.sort(np.random.default_rng(0).uniform(0, 4, 10)))
    times[4] = times[5]
    times[7] = times[6] + 1e-9
    layout, *tensors = form_of(kernel).at(times)
    none = torch.zeros_like(times)
    scan = Scan(layout, times.diff(prepend=times[:1]), *(v.detach() for v in tensors), none, none)
    random = np.random.default_rng(3)
    paths = torch.stack([scan.path(random) for _ in range(2000)]).numpy()
    K = dense(kernel, times[:, None], times[:, None]).detach().numpy()
    error = np.sqrt((K**2 + np.outer(np.diag(K), np.diag(K))) / len(paths))
    assert np.all(np.abs(paths.T @ paths / len(paths) - K) < 5 * error)
    close(paths[:, 4], paths[:, 5], "equal times", atol=1e-12)


def test_no_device_is_assumed():
    """Constants follow the data: on the device `meta`, which refuses to be mixed with others, all that is computed stays there."""
    chain = random_chain(LAYOUTS["mixture"], 50, seed=2)
    tensors = {name: torch.tensor(getattr(chain, name), device="meta") for name in ("gaps", *INPUTS)}
    tensors["rates"].requires_grad_()
    scan = Scan(chain.layout, **tensors)
    results = [scan.log_partition(), scan.log_density(), *scan.moments(), scan.smoothed.share]
    results += [*scan.response(scan.nu, scan.tau), scan.path(np.random.default_rng(0))]
    results += torch.autograd.grad(sum(r.sum() for r in results[:4]), scan.rates)
    assert {r.device.type for r in results} == {"meta"}


def test_the_device_chooses():
    """Loops read the processor's memory; what is elsewhere stays there."""
    assert state_space.chain_of(torch.device("cpu")) is state_space.Compiled
    assert state_space.chain_of(torch.device("cuda")) is Scan


ENGINE = {
    "matern": lambda: [Matern(nu=1.5, lengthscale=0.8), Matern(nu=0.5) + Linear()],
    "product-of-materns": lambda: [Matern(nu=1.5) * Matern(nu=0.5, lengthscale=2.0)],
    "hida-matern": lambda: [HidaMatern(1, 0.8, 0.4)],
    "quasi-periodic": lambda: [QuasiPeriodic(period=1.7, lengthscale=1.2, decay=2.0)],
    "periodic": lambda: [Periodic(period=1.7)],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow, *([] if "periodic" in n else [pytest.mark.ci])]) for n in ENGINE]
)
def test_engine(name, monkeypatch):
    """All laws of an exact engine hold on the path that other devices take."""
    monkeypatch.setattr(state_space, "chain_of", lambda device: Scan)
    check_engine(StateSpace(), ENGINE[name]())


@pytest.mark.parametrize("objective", [objectives.ELBO(), objectives.EPEvidence()], ids=["elbo", "ep"])
def test_likelihoods(objective, monkeypatch):
    """Sites are found, and objective, gradient and predictions are those of the loops."""
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(0, 12, 60))
    y = random.poisson(np.exp(np.sin(x)))
    found = []
    for chain in (state_space.Compiled, Scan):
        monkeypatch.setattr(state_space, "chain_of", lambda device, chain=chain: chain)
        gp = GP(Matern(nu=1.5, lengthscale=2.0), likelihoods.Poisson(), engine="StateSpace", objective=objective)
        gp.condition(x, y)
        problem = gp._fitted().anew()
        raws = [p for p in problem.prior.kernels[0].parameters() if p.requires_grad]
        with torch.enable_grad():
            grads = torch.autograd.grad(gp.objective_(problem), raws)
        found.append(
            (gp.log_evidence(), *(g.reshape(-1) for g in grads), gp.predict(x + 0.1).mean, gp.loo().log_density)
        )
    for expected, got in zip(*found, strict=True):
        close(got, expected, "objective, gradients, predictions", rtol=1e-6)
