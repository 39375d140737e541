"""Laws of a likelihood."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx import rules
from gpx.errors import StructureError
from gpx.inputs import as_data
from gpx.likelihoods import Likelihood
from gpx.likelihoods.predictive import Classes
from gpx.sites import SiteMarginals, Sites
from gpx.testing.assertions import close, copies, finite, gradients
from gpx.testing.reference import gaussian_integrals

MEANS = (-8.0, -2.5, 0.0, 3.0, 8.0)
POWERS = (1.0, 0.5)
VARIANCES = (1e-4, 1e-2, 0.7, 10.0, 100.0)
GRID = 60_000  # points of a product of grids

Features = Callable[[float], Sequence[tuple[float, float]]]


def check_likelihood(
    likelihood: Likelihood,
    y: Sequence[float] = (-0.7, 0.4, 1.9),
    *,
    features: Features = lambda y: [(y, 1.0), (0.0, 1.0)],
    tolerance: float = 1e-8,
) -> None:
    """Check the laws of a likelihood; the likelihood itself is left as it is.

    - `expected_log_prob` and `tilted` (of powers 1 and 1/2) and their derivatives in mean and variance are integrals over f by
      brute force, for means up to 8 and standard deviations from 0.01 to 10; the derivatives in its own parameters are central
      differences;
    - both have finite first and second derivatives in single precision;
    - the density that `predict` returns is the exponential of `tilted`, sums or integrates to one, has the stated mean and
      variance, and `icdf` is the inverse of `cdf`, in single precision and for large f too;
    - numbers that the likelihood does not allow have the log density -inf, and `cdf` there is a probability;
    - a Gaussian likelihood (one with exact sites): every rule returns the exact sites in one step, from any marginals;
    - deep copies and pickles are equal.

    Arguments: y: targets that the likelihood allows. features: for a target, where its log density bends as a function of f
    and over what distance, for the reference. tolerance: of the integrals, relative to their size, but to no less than 1.
    Raises: AssertionError that names the law.

    >>> from gpx.likelihoods import Gaussian
    >>> check_likelihood(Gaussian(noise=0.3))
    """
    likelihood = copy.deepcopy(likelihood).double()
    targets, shape = torch.tensor(list(y), dtype=torch.float64), (len(y),)
    mean = torch.linspace(-0.8, 1.1, len(targets), dtype=torch.float64)
    variance = torch.linspace(0.3, 0.9, len(targets), dtype=torch.float64)
    if likelihood.num_latents > 1:
        shape = (*shape, likelihood.num_latents)
        shift = 0.3 * torch.arange(likelihood.num_latents, dtype=torch.float64)
        mean, variance = mean[:, None] - shift, variance[:, None] + shift
        _products(likelihood, targets, mean, variance, tolerance)
    else:
        _integrals(likelihood, targets, features, tolerance)
    _derivatives(likelihood, targets, mean, variance)
    _single_precision(likelihood, targets)
    _predictions(likelihood, targets, mean, variance)
    _exact_sites(likelihood, targets)
    for how, other in copies(likelihood).items():
        assert repr(other) == repr(likelihood), f"{how} gives the same repr: {other!r} is not {likelihood!r}."
        close(
            other.log_prob(targets, mean), likelihood.log_prob(targets, mean), f"{how} gives the same density", rtol=0.0
        )


def _integrals(likelihood: Likelihood, y: Tensor, features: Features, tolerance: float) -> None:
    names = [
        f"{what}{of}" for what in ("expected_log_prob", "tilted") for of in ("", ", in the mean", ", in the variance")
    ]
    names.append("tilted, twice in the mean")
    for m, v, power in itertools.product(MEANS, VARIANCES, POWERS):
        if power < 1 and v not in VARIANCES[::2]:
            continue
        mean, variance = (torch.full_like(y, value).requires_grad_() for value in (m, v))
        columns = []
        for value in (
            power * likelihood.expected_log_prob(y, mean, variance),
            likelihood.tilted(y, mean, variance, power),
        ):
            grads = torch.autograd.grad(value.sum(), (mean, variance), allow_unused=True, create_graph=True)
            columns += [value, *(torch.zeros_like(y) if g is None else g for g in grads)]
        columns.append(torch.autograd.grad(columns[4].sum(), mean)[0])
        for row, target in enumerate(y.tolist()):
            expected = gaussian_integrals(*_density(likelihood, y, row, power), m, v, features(target))
            twice = 2 * expected[5] - expected[4] ** 2  # by the heat equation
            for name, column, value in zip(names, columns, [*expected, twice], strict=True):
                law = f"{name} is its integral, y = {target:g}, f ~ N({m:g}, {v:g}), power {power:g}"
                size = max(1 / v, expected[4] ** 2) if name is names[-1] else abs(value)
                close(column[row], value, law, atol=tolerance * max(1.0, size))


def _density(likelihood: Likelihood, y: Tensor, row: int, power: float) -> tuple[Callable, Callable]:
    """``power log p(y_row | f)`` and its derivative as functions of nodes [K]."""

    def log_prob(f: Tensor) -> Tensor:
        return power * likelihood.log_prob(y[:, None], f.expand(len(y), -1))[row]

    def value(f: np.ndarray) -> np.ndarray:
        return log_prob(torch.from_numpy(f)).detach().numpy()

    def slope(f: np.ndarray) -> np.ndarray:
        node = torch.from_numpy(f).requires_grad_()
        return torch.autograd.grad(log_prob(node).sum(), node)[0].numpy()

    return value, slope


def _products(likelihood: Likelihood, y: Tensor, mean: Tensor, variance: Tensor, tolerance: float) -> None:
    """Several latent functions: against the trapezoidal rule on a product of grids."""
    latents = likelihood.num_latents
    node = torch.linspace(-8, 8, round(GRID ** (1 / latents)), dtype=torch.float64)
    grid = torch.cartesian_prod(*[node] * latents).unsqueeze(1)
    weight = torch.exp(-0.5 * grid.square().sum(-1))
    weight = weight / weight.sum()
    for scale in (0.01, 1.0):
        inputs = [mean.clone().requires_grad_(), (scale * variance).requires_grad_()]
        log_prob = likelihood.log_prob(y.expand(len(grid), -1), inputs[0] + inputs[1].sqrt() * grid)
        finite(log_prob, "log_prob")
        expected, evidence = (log_prob * weight).sum(0), torch.logsumexp(log_prob + weight.log(), 0)
        for name, reference in (("expected_log_prob", expected), ("tilted", evidence)):
            value = getattr(likelihood, name)(y, *inputs)
            close(value, reference, f"{name} is its integral", tolerance)
            grads, references = (torch.autograd.grad(v.sum(), inputs, retain_graph=True) for v in (value, reference))
            for grad, other, of in zip(grads, references, ("mean", "variance"), strict=True):
                close(grad, other, f"{name} is its integral, in the {of}", tolerance)


def _derivatives(likelihood: Likelihood, y: Tensor, mean: Tensor, variance: Tensor) -> None:
    learned = [p for p in likelihood.parameters() if p.requires_grad]
    inputs = [mean.clone().requires_grad_(), variance.clone().requires_grad_(), *learned]
    for name in ("expected_log_prob", "tilted"):
        method = getattr(likelihood, name)
        gradients(lambda m, v, *_, f=method: f(y, m, v), inputs, f"derivatives of {name}")
    gradients(lambda m, *_: likelihood.log_prob(y, m), [inputs[0], *learned], "derivatives of log_prob")


def _single_precision(likelihood: Likelihood, y: Tensor) -> None:
    likelihood, y = copy.deepcopy(likelihood).float(), y.float()
    ones = torch.ones(len(y), likelihood.num_latents).squeeze(-1)
    for m, v in itertools.product(MEANS, VARIANCES):
        mean, variance = ((value * ones).requires_grad_() for value in (m, v))
        for method in (likelihood.expected_log_prob, likelihood.tilted):
            value = method(y, mean, variance)
            first = torch.autograd.grad(value.sum(), (mean, variance), create_graph=True)
            second = torch.autograd.grad(first[0].sum(), mean)[0] if first[0].requires_grad else None
            finite([value, *first, second], f"{method.__name__} in single precision, f ~ N({m:g}, {v:g})")


def _predictions(likelihood: Likelihood, y: Tensor, mean: Tensor, variance: Tensor) -> None:
    known = getattr(likelihood, "known_noise", None)
    with torch.no_grad():
        p = likelihood.predict(mean, variance) if known is None else likelihood.predict(mean, variance, known)
        close(p.log_prob(y), likelihood.tilted(y, mean, variance), "predict is the density of tilted", 1e-9)
        if isinstance(p, Classes):
            _sums(p, p.values)
        elif getattr(p, "is_discrete", False):
            _sums(p, torch.arange(float(p.icdf(torch.tensor(1 - 1e-12)).max()) + 2, dtype=torch.float64))
        else:
            _integrates(p)
        if known is None:
            _outside(likelihood, p)
            _extremes(likelihood, mean, variance)


def _outside(likelihood: Likelihood, p: Any) -> None:
    """Numbers that are no targets have no density, and the distribution function goes from 0 to 1."""
    for value in (-1e3, -1.5, -1.0, -0.0, 0.5, 1.0, 1.5, 1e3):
        y = torch.full_like(p.mean, value)
        allowed = likelihood.allows(y)
        density = p.log_prob(y)
        assert bool((torch.isfinite(density) == allowed).all() and (density[~allowed] == -torch.inf).all()), (
            f"log_prob is -inf where no target can be, y = {value:g}: {density}."
        )
        try:
            mass = p.cdf(y)
        except StructureError:  # no distribution function
            return
        finite(mass, f"cdf, y = {value:g}")
        assert bool(((mass >= 0) & (mass <= 1)).all()), f"cdf is a probability, y = {value:g}: {mass}."


def _extremes(likelihood: Likelihood, mean: Tensor, variance: Tensor) -> None:
    """Quantiles of f about 45, where a count is no whole number of the arithmetic, and in single precision."""
    for dtype, level in ((torch.float64, 45.0), (torch.float32, 20.0)):
        given = copy.deepcopy(likelihood).to(dtype)
        try:
            p = given.predict((mean + level).to(dtype), variance.to(dtype))
            low, high = (p.icdf(torch.tensor(q, dtype=dtype)) for q in (0.1, 0.9))
        except StructureError:  # no distribution function
            return
        finite(low, "icdf")
        finite(high, "icdf")
        assert bool((low <= high).all()), "quantiles ascend"


def _sums(p: Any, values: Tensor) -> None:
    """A distribution on whole numbers."""
    mass = p.log_prob(values[:, None]).exp()
    close(mass.sum(0), torch.ones_like(p.mean), "predict sums to one", 1e-9)
    close((mass * values[:, None]).sum(0), p.mean, "predict has its mean", 1e-6)
    close((mass * (values[:, None] - p.mean).square()).sum(0), p.variance, "predict has its variance", 1e-5)
    close(p.cdf(values[:, None]), mass.cumsum(0), "cdf sums the density", atol=1e-6)
    for level in (0.01, 0.5, 0.99):
        found = p.icdf(torch.tensor(level, dtype=torch.float64))
        assert bool((p.cdf(found) >= level).all() and (p.cdf(found - 1) < level).all()), "icdf is the inverse of cdf."


def _integrates(p: Any) -> None:
    """A distribution on an interval, by its quantiles: ``dp`` is the density times ``dy``."""
    levels = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    for level in levels:
        close(p.cdf(p.icdf(level)), level.expand(p.mean.shape), "cdf(icdf(p)) is p", atol=1e-9)
    grid = torch.stack([p.icdf(level) for level in torch.linspace(0.02, 0.98, 25, dtype=torch.float64)])
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(12))
    middle, half = 0.5 * (grid[1:] + grid[:-1]), 0.5 * grid.diff(dim=0)
    inner = middle + half * node[:, None, None]
    mass = (p.log_prob(inner.flatten(0, 1)).exp().reshape(inner.shape) * weight[:, None, None]).sum(0) * half
    close(mass, torch.full_like(mass, 0.04), "the density integrates to the distribution function", 1e-6)
    levels, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(160))
    angle = 0.25 * torch.pi * (levels + 1)  # levels that crowd towards 0 and 1, where quantiles run away
    quantiles = torch.stack([p.icdf(q) for q in angle.sin().square()])
    weights = (weights * 0.25 * torch.pi * (2 * angle).sin())[:, None]
    close((quantiles * weights).sum(0), p.mean, "predict has its mean", 1e-4)
    spread = ((quantiles - p.mean).square() * weights).sum(0)
    if bool((p.variance < 50 * (quantiles[80] - quantiles[40]).square().max()).all()):
        close(spread, p.variance, "predict has its variance", 4e-2)


def _exact_sites(likelihood: Likelihood, y: Tensor) -> None:
    """Every rule, from marginals that have nothing to do with the data."""
    missing = torch.cat([y[:-1], torch.full_like(y[:1], torch.nan)])
    data = as_data(torch.arange(len(y)), missing)
    exact = likelihood.exact_sites(data)
    if exact is None:
        return
    nothing = Sites(torch.zeros_like(exact.nu), torch.zeros_like(exact.tau))
    start = SiteMarginals(torch.ones_like(data.y), torch.full_like(data.y, 0.5))
    for rule in _rules():
        with torch.no_grad():
            sites = rule.update(likelihood, data, start, nothing)
        name = type(rule).__name__
        close(sites.tau, exact.tau, f"{name} gives the exact precisions in one step", rtol=1e-9)
        close(sites.nu, exact.nu, f"{name} gives the exact sites in one step", rtol=1e-9)
        assert bool((exact.tau >= 0).all()) and not exact.tau[-1].any(), "tau >= 0, and 0 where the target is missing."


def _rules() -> list[Any]:
    classes = [c for c in vars(rules).values() if inspect.isclass(c) and not getattr(c, "_is_protocol", False)]
    return [c() for c in classes]
