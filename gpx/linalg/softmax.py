"""Expectations of log-sum-exp and softmax of independent Gaussians, as integrals over one variable.

With independent standard Gumbel variables G_c, ``f_c + G_c`` is largest with probability ``softmax(f)_c``, and its maximum has
the mean ``logsumexp(f) + gamma``. So with ``F_c(x) = P(f_c + G_c <= x)`` for Gaussian f_c,

    E logsumexp(f) = top - int^top prod_c F_c(x) dx - gamma,    E softmax(f)_y = int F_y'(x) prod_(c != y) F_c(x) dx.

Theory: docs/theory/sites.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

OUTER, INNER = 72, 24
GUMBEL = (-3.6, 17.4)  # all but 3e-8 of the distribution
BROAD = 0.6  # standard deviation from which on the Gumbel variable is integrated over, not the Gaussian
REACH = 5.5
BLOCK = 1 << 21  # numbers that are held at a time
EULER = 0.5772156649015329


def expected_logsumexp(mean: Tensor, variance: Tensor) -> Tensor:
    """``E logsumexp(f)`` [...] for independent ``f_c ~ N(mean_c, variance_c)`` [..., C]; differentiable.

    Cost: 72 x 36 evaluations per Gaussian. Accuracy: 1e-5 where the standard deviations are of one size, 1e-3 where one is 10
    and another 0.01.

    >>> value = expected_logsumexp(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64))
    >>> print(f"{float(value.exp()):.5f}")
    3.00000
    """
    x, step = _grid(mean, variance)
    below = _distribution(x, mean, variance).prod(-1)
    area = step * (below.sum(0) - 0.5 * (below[0] + below[-1]))
    return x[-1] - area - EULER


def log_expected_softmax(mean: Tensor, variance: Tensor) -> Tensor:
    """``log E softmax(f)`` [..., C], at least its lower bound ``E log softmax(f)``."""
    x, step = _grid(mean, variance)
    below, density = _distribution(x, mean, variance), _density(x, mean, variance)
    share = density / below.clamp_min(torch.finfo(below.dtype).tiny) * below.prod(-1, keepdim=True)
    value = (step.unsqueeze(-1) * share.sum(0)).clamp_min(torch.finfo(below.dtype).tiny).log()
    return torch.maximum(value, mean - expected_logsumexp(mean, variance).unsqueeze(-1))


@torch.no_grad()
def _grid(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes [T, ...] between which the maximum lies, and their distance [...]."""
    sd = variance.sqrt()
    low = (mean - REACH * sd + GUMBEL[0]).amax(-1)
    high = (mean + REACH * sd + GUMBEL[1]).amax(-1)
    step = (high - low) / (OUTER - 1)
    index = torch.arange(OUTER, dtype=mean.dtype, device=mean.device).reshape(-1, *(1,) * low.dim())
    return low + step * index, step


def _distribution(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """``P(f_c + G_c <= x)`` [T, ..., C]."""
    return _mixed(
        x.unsqueeze(-1) - mean,
        variance,
        lambda gap, sd: torch.special.ndtr(gap / sd),
        lambda rate: torch.exp(-rate),
    )


def _density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """The density of ``f_c + G_c`` at x [T, ..., C]."""
    return _mixed(
        x.unsqueeze(-1) - mean,
        variance,
        lambda gap, sd: torch.exp(-0.5 * (gap / sd).square()) / (math.sqrt(2 * math.pi) * sd),
        lambda rate: rate * torch.exp(-rate),
    )


def _mixed(
    gap: Tensor,
    variance: Tensor,
    given_gumbel: Callable[[Tensor, Tensor], Tensor],
    given_normal: Callable[[Tensor], Tensor],
) -> Tensor:
    """A mean over the Gumbel variable of a function of gap and standard deviation where that is broad, and over the Gaussian of
    a function of ``e^(f - x)`` where it is narrow.
    """
    sd = (variance + 1e-12).sqrt()
    broad = sd.detach() > BROAD
    wide = torch.where(broad, sd, torch.ones_like(sd))
    narrow = torch.where(broad, torch.full_like(sd, 0.1), sd)
    g = torch.linspace(*GUMBEL, INNER).to(gap)
    z = torch.arange(-REACH, REACH + 0.5).to(gap)
    over_gumbel = _mean(
        lambda node: given_gumbel(gap.unsqueeze(-1) - node, wide.unsqueeze(-1)), gap, g, -g - torch.exp(-g)
    )
    rate = lambda node: torch.exp((narrow.unsqueeze(-1) * node - gap.unsqueeze(-1)).clamp(-500.0, 500.0))  # noqa: E731
    over_normal = _mean(lambda node: given_normal(rate(node)), gap, z, -0.5 * z.square())
    return torch.where(broad, over_gumbel, over_normal)


def _mean(function: Callable[[Tensor], Tensor], like: Tensor, nodes: Tensor, log_weights: Tensor) -> Tensor:
    """The weighted mean of ``function(nodes)`` [..., K], a few nodes at a time where `like` [...] is large."""
    step = max(1, BLOCK // max(1, like.numel()))
    parts = zip(nodes.split(step), torch.softmax(log_weights, 0).split(step), strict=True)
    return reduce(torch.add, ((function(node) * weight).sum(-1) for node, weight in parts))
