"""Laws of a likelihood."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx import rules
from gpx.inputs import as_data
from gpx.likelihoods import Likelihood
from gpx.sites import SiteMarginals
from gpx.testing.assertions import close, copies, finite, gradients

GRID = 2001
REACH = 12.0  # standard deviations of f that the grid covers


def check_likelihood(likelihood: Likelihood, y: Sequence[float] = (-0.7, 0.4, 1.9), *, tolerance: float = 1e-7) -> None:
    """Check the laws of a likelihood with one latent function; the likelihood itself is left as it is.

    - `expected_log_prob` and `tilted` are their integrals over f, computed on a fine grid, with right derivatives;
    - the density that `predict` returns is the exponential of `tilted`, integrates to one where y is continuous, has the
      stated mean and variance, and `icdf` is the inverse of `cdf`;
    - a Gaussian likelihood (one with exact sites): every rule returns the exact sites in one step, from any marginals;
    - deep copies and pickles are equal.

    Arguments: y: targets that the likelihood allows. tolerance: of the integrals, relative to their largest value.
    Raises: AssertionError that names the law.

    >>> from gpx.likelihoods import Gaussian
    >>> check_likelihood(Gaussian(noise=0.3))
    """
    likelihood = copy.deepcopy(likelihood).double()
    targets = torch.tensor(list(y), dtype=torch.float64)
    mean = torch.linspace(-0.8, 1.1, len(targets), dtype=torch.float64)
    variance = torch.linspace(0.3, 0.9, len(targets), dtype=torch.float64)
    _integrals(likelihood, targets, mean, variance, tolerance)
    _derivatives(likelihood, targets, mean, variance)
    _predictions(likelihood, targets, mean, variance, tolerance)
    _exact_sites(likelihood, targets)
    for how, other in copies(likelihood).items():
        assert repr(other) == repr(likelihood), f"{how} gives the same repr: {other!r} is not {likelihood!r}."
        close(
            other.log_prob(targets, mean), likelihood.log_prob(targets, mean), f"{how} gives the same density", rtol=0.0
        )


def _integrals(likelihood: Likelihood, y: Tensor, mean: Tensor, variance: Tensor, tolerance: float) -> None:
    # The trapezoidal rule converges faster than any power for functions that vanish at both ends.
    node = torch.linspace(-REACH, REACH, GRID, dtype=torch.float64)
    weight = torch.exp(-0.5 * node.square())
    weight = weight / weight.sum()
    f = mean[:, None] + variance.sqrt()[:, None] * node
    log_prob = torch.stack([likelihood.log_prob(y, column) for column in f.mT], 1)
    finite(log_prob, "log_prob")
    expected = (log_prob * weight).sum(1)
    close(likelihood.expected_log_prob(y, mean, variance), expected, "expected_log_prob is its integral", tolerance)
    evidence = torch.logsumexp(log_prob + weight.log(), 1)
    close(likelihood.tilted(y, mean, variance), evidence, "tilted is its integral", tolerance)


def _derivatives(likelihood: Likelihood, y: Tensor, mean: Tensor, variance: Tensor) -> None:
    learned = [p for p in likelihood.parameters() if p.requires_grad]
    inputs = [mean.clone().requires_grad_(), variance.clone().requires_grad_(), *learned]
    for name in ("expected_log_prob", "tilted"):
        method = getattr(likelihood, name)
        gradients(lambda m, v, *_, f=method: f(y, m, v), inputs, f"derivatives of {name}")
    gradients(lambda m, *_: likelihood.log_prob(y, m), [inputs[0], *learned], "derivatives of log_prob")


def _predictions(likelihood: Likelihood, y: Tensor, mean: Tensor, variance: Tensor, tolerance: float) -> None:
    known = getattr(likelihood, "known_noise", None)
    with torch.no_grad():
        prediction = likelihood.predict(mean, variance) if known is None else likelihood.predict(mean, variance, known)
        close(
            prediction.log_prob(y), likelihood.tilted(y, mean, variance), "predict is the density of tilted", tolerance
        )
        if bool(getattr(prediction.support, "is_discrete", False)):
            return
        levels = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
        for p in levels:
            close(prediction.cdf(prediction.icdf(p)), p.expand(y.shape), "cdf(icdf(p)) is p", atol=1e-9)
        low, high = (float(prediction.icdf(torch.tensor(p, dtype=torch.float64)).mean()) for p in (1e-12, 1 - 1e-12))
        grid = torch.linspace(2 * low - high, 2 * high - low, 20 * GRID, dtype=torch.float64)
        density, grid = prediction.log_prob(grid[:, None]).exp().mT.numpy(), grid.numpy()
        for what, power, expected in (("one", 0, torch.ones_like(mean)), ("its mean", 1, prediction.mean)):
            close(np.trapezoid(density * grid**power, grid), expected, f"predict integrates to {what}", tolerance)
        square = np.trapezoid(density * (grid - prediction.mean[:, None].numpy()) ** 2, grid)
        close(square, prediction.variance, "predict has its variance", tolerance)


def _exact_sites(likelihood: Likelihood, y: Tensor) -> None:
    """Every rule, from marginals that have nothing to do with the data."""
    missing = torch.cat([y[:-1], torch.full_like(y[:1], torch.nan)])
    data = as_data(torch.arange(len(y)), missing)
    exact = likelihood.exact_sites(data)
    if exact is None:
        return
    start = SiteMarginals(torch.ones_like(data.y), torch.full_like(data.y, 0.5), torch.zeros_like(data.y))
    for rule in _rules():
        sites = rule.update(likelihood, data, start, exact)
        name = type(rule).__name__
        close(sites.tau, exact.tau, f"{name} gives the exact precisions in one step", rtol=1e-12)
        close(sites.nu, exact.nu, f"{name} gives the exact sites in one step", rtol=1e-12)
        assert bool((exact.tau >= 0).all()) and not exact.tau[-1].any(), "tau >= 0, and 0 where the target is missing."


def _rules() -> list[Any]:
    classes = [c for c in vars(rules).values() if inspect.isclass(c) and not getattr(c, "_is_protocol", False)]
    return [c() for c in classes]
