"""Integrals over Gaussians in one dimension by the trapezoidal rule, on nodes that crowd where the integrand bends.

The nodes are ``f = centre + width sinh(t)`` with evenly spaced t. On the whole line the trapezoidal rule converges
exponentially for analytic integrands; the substitution keeps the number of nodes small where a feature of size `width` meets a
Gaussian that is a thousand times wider. Nodes are constants: mean and variance enter through the density only, so that every
derivative of an integral is the integral of a derivative, to the same accuracy. Theory: docs/theory/sites.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gpx.errors import NumericalError

NODES = 160  # at most
COARSE, FINE = 0.12, 0.3  # largest steps: of t, and of f around the mean, in standard deviations
REACH = 9.0  # standard deviations; the density beyond is below 1e-17 of its height
ITERATIONS = 100
FLOOR = 1e-10  # of the squared width: added to variances, so that a variance of zero has derivatives
DEPTH, SIDE_NODES = 40.0, 48
SIDE_FLOOR = 1e-15  # likewise, of the squared distance 1 / rate, beside an end where the integrand jumps


def normal_log_density(f: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """``log N(f; mean, variance)``, elementwise."""
    return -0.5 * ((f - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def expectation(
    function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor, centre: Tensor, width: Tensor
) -> Tensor:
    """``E function(f)``, ``f ~ N(mean, variance)``, for a function that bends near `centre` over a distance `width`.

    Arguments: function: nodes [..., K] -> values [..., K]; the others [...]. Differentiable in mean and variance to any order,
    and in what the function depends on. Cost: 60 to 160 evaluations, by the widest Gaussian.

    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> print(f"{float(expectation(torch.square, zero, zero + 2.0, zero, zero + 1.0)):.6f}")
    2.000000
    """
    variance = variance + FLOOR * width.detach().square()
    f, weight = _nodes(mean, variance, centre, width)
    # Weights and exponentials are multiplied, not their logarithms added, and a constant is taken out of the function: the
    # derivatives in the variance divide rounding errors by it.
    sd = variance.sqrt().unsqueeze(-1)
    density = torch.exp(-0.5 * ((f - mean.unsqueeze(-1)) / sd).square()) * (weight / (math.sqrt(2 * math.pi) * sd))
    values = function(f)
    level = values[..., f.shape[-1] // 2].detach()
    return (density * (values - level.unsqueeze(-1))).sum(-1) + level


def log_expectation_at_mode(
    log_function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor, peak: Tensor | None = None
) -> Tensor:
    """``log E exp(log_function(f))`` on nodes around the modes of the integrand, however far they are from the mean.

    log_function: maps [..., K] to [..., K], twice differentiable. peak: about where it is largest, if it is not concave: the
    integrand may then have two modes, one uphill from the mean and one uphill from the peak.
    """
    m, v = mean.detach(), variance.detach()
    ways = [(m, m)] if peak is None else [(m, peak.detach()), (peak.detach(), m)]
    modes = [_mode(log_function, m, v, _uphill(log_function, m, v, *way)) for way in ways]
    (mode, width), (other, narrow) = modes[0], modes[-1]
    places, reach = torch.stack([m, mode, other]), REACH * v.sqrt()
    nodes = _around_both(mode, width, other, narrow, places.amin(0) - reach, places.amax(0) + reach)
    return _log_sum(log_function, mean, variance, *nodes)


def log_half_line(rate: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """``log int_0^inf exp(-rate u) N(u; mean, variance) du`` for a rate > 0: differentiable in all three to any order.

    By Gauss-Legendre's rule where the integrand is within `DEPTH` nats of its maximum: the exponential of a quadratic
    polynomial, without the cancellations that derivatives of the closed form have. Cost: SIDE_NODES evaluations.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> print(f"{float(log_half_line(one, 5 * one, 1e-4 * one)):.6f}")
    -4.999950
    """
    variance = variance + SIDE_FLOOR / rate.detach().square()
    with torch.no_grad():
        # Places are distances from the mean, which keep their digits where it is far.
        summit, end = -rate * variance, -mean
        top = torch.maximum(summit, end)
        reach = (2 * DEPTH * variance).sqrt()
        high = top + reach.square() / (torch.hypot(top - summit, reach) + top - summit)
        low = torch.maximum(summit - reach, end)
        node, weight = (torch.from_numpy(a).to(mean) for a in np.polynomial.legendre.leggauss(SIDE_NODES))
        half = 0.5 * (high - low).unsqueeze(-1)
        away, log_weight = 0.5 * (high + low).unsqueeze(-1) + half * node, (half * weight).log()
    moved = (mean - mean.detach()).unsqueeze(-1)
    log_density = normal_log_density(away, moved, variance.unsqueeze(-1))
    return torch.logsumexp(log_density + log_weight - rate.unsqueeze(-1) * (away + mean.detach().unsqueeze(-1)), -1)


def _log_sum(
    log_function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor, f: Tensor, weight: Tensor
) -> Tensor:
    log_density = normal_log_density(f, mean.unsqueeze(-1), variance.unsqueeze(-1)) + weight.log()
    return torch.logsumexp(log_density + log_function(f), -1)


@torch.no_grad()
def _nodes(mean: Tensor, variance: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes within `REACH` standard deviations of the mean. A feature beyond them bends the integrand no faster than over
    its distance: the centre moves to the nearest end, and the width grows by that distance.
    """
    reach = REACH * variance.sqrt()
    inside = torch.minimum(torch.maximum(centre, mean - reach), mean + reach)
    width = torch.hypot(width, centre - inside)
    low, high = (torch.asinh((end - inside) / width) for end in (mean - reach, mean + reach))
    # What the widest integrand needs is finer than need be where the feature is about as wide as the Gaussian.
    step = (FINE * variance.sqrt() / torch.hypot(width, mean - inside)).clamp_max(COARSE)
    needed = float(((high - low) / step).max()) if mean.numel() else 0.0
    if math.isnan(needed):
        raise NumericalError(
            "The marginals of the latent function, or the parameters of the likelihood, are not finite."
        )
    return _spread(inside, width, low, high, min(NODES, 1 + math.ceil(needed)))


@torch.no_grad()
def _spread(centre: Tensor, width: Tensor, low: Tensor, high: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """So many nodes ``centre + width sinh(t)``, t from low to high, and their weights in the integral over f."""
    step = (high - low) / (count - 1)
    t = low.unsqueeze(-1) + step.unsqueeze(-1) * torch.arange(count, dtype=centre.dtype, device=centre.device)
    return centre.unsqueeze(-1) + width.unsqueeze(-1) * t.sinh(), (width * step).unsqueeze(-1) * t.cosh()


@torch.no_grad()
def _around_both(
    centre: Tensor, width: Tensor, other: Tensor, narrow: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Nodes between low and high that crowd around two centres, each over its own width: where

    ``t = asinh((f - centre) / width) + asinh((f - other) / narrow)`` is evenly spaced; and their weights. With
    ``a = (f - centre) / width`` the definition of t is a quadratic equation in a.
    """
    ends = [torch.asinh((f - centre) / width) + torch.asinh((f - other) / narrow) for f in (low, high)]
    step = (ends[1] - ends[0]) / (NODES - 1)
    index = torch.arange(NODES, dtype=centre.dtype, device=centre.device)
    t = ends[0].unsqueeze(-1) + step.unsqueeze(-1) * index
    centre, width, other, narrow = (v.unsqueeze(-1) for v in (centre, width, other, narrow))
    r, s = width / narrow, (centre - other) / narrow
    lead = r.square() + 2 * r * t.cosh() + 1
    f = centre + width * (t.sinh() * (s.square() + lead).sqrt() - s * (r + t.cosh())) / lead
    crowding = 1 / torch.hypot(width, f - centre) + 1 / torch.hypot(narrow, f - other)
    return f, step.unsqueeze(-1) / crowding


def _mode(
    log_function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """The mode of ``exp(log_function(f)) N(f; mean, variance)`` uphill from `start`, and the width
    ``(-second derivative)^-1/2`` there.

    Newton's method inside a bracket; a step that leaves the bracket is replaced by its midpoint.
    """

    def derivatives(f: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            f = f.detach().requires_grad_()
            value = log_function(f.unsqueeze(-1)).sum()
            (slope,) = torch.autograd.grad(value, f, create_graph=True)
            # A piecewise linear function has a slope that depends on nothing.
            curved = slope.requires_grad
            curvature = torch.autograd.grad(slope.sum(), f)[0] if curved else torch.zeros_like(slope)
        return slope.detach() - (f.detach() - mean) / variance, curvature - 1 / variance

    sd = variance.sqrt()
    rising, curvature = derivatives(start)
    # No further than twice Newton's step: a narrow mode near the start is not jumped over.
    stride = torch.minimum(torch.minimum(variance, 2 / curvature.abs()) * rising.abs(), sd)
    near, stride = start, stride * rising.sign()
    far = start + stride
    direction = rising.sign()
    for _ in range(ITERATIONS):
        short = derivatives(far)[0] * direction > 0
        if not bool(short.any()):
            break
        stride = torch.where(short, 2 * stride, stride)
        near, far = torch.where(short, far, near), torch.where(short, far + stride, far)
    mode = start
    for _ in range(ITERATIONS):
        target = mode - rising / curvature
        between = (target - near) * (target - far) <= 0
        target = torch.where(between & (curvature < 0), target, 0.5 * (near + far))
        moved, mode = (target - mode).abs(), target
        rising, curvature = derivatives(mode)
        before = rising * direction > 0
        near, far = torch.where(before, mode, near), torch.where(before, far, mode)
        if bool((moved <= 1e-2 * curvature.abs().rsqrt()).all()):
            break
    width = torch.maximum(-curvature, 1 / variance).rsqrt()
    return mode, torch.where(torch.isfinite(width) & (width > 0), width, sd)


@torch.no_grad()
def _uphill(
    log_function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor, start: Tensor, goal: Tensor
) -> Tensor:  # fmt: skip
    """The last of some points on the way from start to goal until which the integrand does not fall."""
    share = torch.linspace(0, 1, NODES // 2, dtype=mean.dtype, device=mean.device)
    f = start.unsqueeze(-1) + (goal - start).unsqueeze(-1) * share
    height = log_function(f) - 0.5 * (f - mean.unsqueeze(-1)).square() / variance.unsqueeze(-1)
    rises = (height[..., 1:] >= height[..., :-1]).long().cumprod(-1).sum(-1, keepdim=True)
    return f.gather(-1, rises).squeeze(-1)
