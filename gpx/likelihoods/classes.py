"""Likelihoods of classes: two, ordered, or unordered."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.likelihoods.base import Likelihood, on_unit_scale
from gpx.likelihoods.predictive import Binary, Classes
from gpx.linalg.softmax import expected_logsumexp, log_expected_softmax
from gpx.parameters import Value

log_ndtr = torch.special.log_ndtr
TAIL = 40.0
END = 1e8  # stands for an infinite cut point: its normal tail is zero, with finite derivatives


class Bernoulli(Likelihood):
    """Two classes, ``p(y = 1 | f) = Phi(f)`` (probit) or ``1 / (1 + e^-f)`` (logit).

    Arguments: link: "probit" or "logit". Targets: {0, 1} or {-1, 1}; predictions are of the class, 0 or 1.
    Raises: InputError for another link; `fit` for other targets. Cost: O(N), 160 nodes per datum for the logit.
    Source: Rasmussen & Williams (2006), sections 3.3 and 3.9.

    >>> Bernoulli()
    Bernoulli(link='probit')
    """

    domain = "labels in {0, 1} or in {-1, 1}"

    def __init__(self, link: str = "probit"):
        super().__init__()
        if link not in ("probit", "logit"):
            raise InputError(f"Bernoulli needs link='probit' or link='logit', got {link!r}.")
        self.link = link

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [], {"link": self.link}

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        signed = torch.where(y > 0, f, -f)
        return log_ndtr(signed) if self.link == "probit" else torch.nn.functional.logsigmoid(signed)

    def landmark(self, y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(mean), torch.full_like(mean, 2.0)

    def tilted(self, y: Tensor, mean: Tensor, variance: Tensor, power: float = 1.0) -> Tensor:
        if self.link == "probit" and power == 1:
            return self.log_prob(y, mean / (1 + variance).sqrt())
        return super().tilted(y, mean, variance, power)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> Binary:
        self._refuse(noise)
        one = torch.ones_like(mean)
        return Binary(torch.stack([self.tilted(y, mean, variance) for y in (-one, one)], -1))

    def allows(self, y: Tensor) -> Tensor:
        low = -1.0 if bool((y == -1).any()) else 0.0
        return (y == low) | (y == 1)

    def outcome(self, y: Tensor) -> Tensor:
        return torch.where(y == -1, torch.zeros_like(y), y)

    def latent_data(self, data: Data) -> tuple[Data, ...]:
        share = (torch.nanmean((data.y > 0).to(data.y).where(data.observed, data.y), 0)).clamp(0.02, 0.98)
        level = torch.special.ndtri(share) if self.link == "probit" else torch.logit(share)
        return (on_unit_scale(data, math.sqrt(2) * torch.nan_to_num(level)),)


class Ordinal(Likelihood):
    """Ordered classes, ``p(y = k | f) = Phi(b_(k+1) - f) - Phi(b_k - f)`` with cut points ``b_1 < ... < b_(K-1)``.

    Arguments: num_classes: K >= 2; first_cut: b_1; gaps: the K - 2 distances between neighbouring cut points; both learned.
    Targets: 0, ..., K - 1. Raises: InputError for other targets. Cost: O(N), 160 nodes per datum.
    Source: Chu & Ghahramani (2005), "Gaussian processes for ordinal regression", eq. 5.

    >>> Ordinal(3)
    Ordinal(num_classes=3, first_cut=0, gaps=1)
    """

    first_cut = Value(0.0, positive=False)
    gaps = Value(1.0)

    def __init__(self, num_classes: int, first_cut: Any = None, gaps: Any = None):
        super().__init__()
        self.num_classes = _count(num_classes, "Ordinal")
        self.declare("first_cut", first_cut, ())
        self.declare("gaps", gaps, (self.num_classes - 2,))

    @property
    def domain(self) -> str:  # type: ignore[override]
        """The classes."""
        return f"whole numbers 0, ..., {self.num_classes - 1} (num_classes={self.num_classes})"

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [], {"num_classes": self.num_classes}

    @property
    def cuts(self) -> Tensor:
        """The cut points [K - 1]."""
        return self.first_cut + torch.cat([self.gaps.new_zeros(1), self.gaps.cumsum(0)])

    def _edges(self, y: Tensor) -> tuple[Tensor, Tensor]:
        cuts = self.cuts.to(y)
        ends = torch.cat([cuts.new_full((1,), -END), cuts, cuts.new_full((1,), END)])
        k = torch.nan_to_num(y).long().clamp(0, self.num_classes - 1)
        return ends[k], ends[k + 1]

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        low, high = self._edges(y)
        return _log_ndtr_difference(low - f, high - f)

    def landmark(self, y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            low, high = self._edges(y)
            low, high = torch.where(low == -END, high, low), torch.where(high == END, low, high)
        return 0.5 * (low + high), 0.5 * (high - low) + 1.5

    def tilted(self, y: Tensor, mean: Tensor, variance: Tensor, power: float = 1.0) -> Tensor:
        if power != 1:
            return super().tilted(y, mean, variance, power)
        low, high = self._edges(y)
        scale = (1 + variance).sqrt()
        return _log_ndtr_difference((low - mean) / scale, (high - mean) / scale)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> Classes:
        self._refuse(noise)
        classes = [self.tilted(torch.full_like(mean, k), mean, variance) for k in range(self.num_classes)]
        return Classes(torch.stack(classes, -1))

    def allows(self, y: Tensor) -> Tensor:
        return (y >= 0) & (y < self.num_classes) & (y == y.round())

    def latent_data(self, data: Data) -> tuple[Data, ...]:
        return (on_unit_scale(data, torch.zeros_like(data.y[0])),)

    def init_from(self, data: Data) -> None:
        y = data.y[data.observed]
        counts = torch.bincount(y.long(), minlength=self.num_classes) + 0.5
        share = (counts.cumsum(0) / counts.sum())[:-1]
        cuts = math.sqrt(2) * torch.special.ndtri(share.to(y))  # the prior of f adds as much variance as the link has
        self.start("first_cut", cuts[0])
        self.start("gaps", cuts.diff(), box=(1e-3, 1e3))


class Categorical(Likelihood):
    """Unordered classes, ``p(y = c | f) = e^(f_c) / sum_c' e^(f_c')``: one latent function per class.

    A kernel given once is one kernel, with the same hyperparameters for all classes; a list of C kernels gives each its own.

    Arguments: num_classes: C >= 2. Targets: 0, ..., C - 1. Integrals over the C latent functions are reduced to one dimension
    by Gumbel variables, without random points: accurate to 1e-6, to 1e-3 where their standard deviations are of sizes as
    different as 10 and 0.01. Raises: InputError for other targets.
    Cost: O(N C), about 140 exponentials and 4,700 products each.
    Source: Rasmussen & Williams (2006), section 3.5; docs/theory/sites.md.

    >>> Categorical(3).num_latents
    3
    """

    exchangeable = True

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = self.num_latents = _count(num_classes, "Categorical")

    @property
    def domain(self) -> str:  # type: ignore[override]
        """The classes."""
        return f"whole numbers 0, ..., {self.num_classes - 1} (num_classes={self.num_classes})"

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [], {"num_classes": self.num_classes}

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        return _pick(f, y) - torch.logsumexp(f, -1)

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return _pick(mean, y) - expected_logsumexp(mean, variance)

    def tilted(self, y: Tensor, mean: Tensor, variance: Tensor, power: float = 1.0) -> Tensor:
        if power != 1:
            return super().tilted(y, mean, variance, power)
        return _pick(log_expected_softmax(mean, variance), y)

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> Classes:
        self._refuse(noise)
        return Classes(torch.log_softmax(log_expected_softmax(mean, variance), -1))

    def allows(self, y: Tensor) -> Tensor:
        return (y >= 0) & (y < self.num_classes) & (y == y.round())

    def latent_data(self, data: Data) -> tuple[Data, ...]:
        classes = [(data.y == c).to(data.y).where(data.observed, data.y) for c in range(self.num_classes)]
        levels = [torch.nan_to_num(torch.nanmean(c, 0)).clamp_min(0.02).log() for c in classes]
        middle = sum(levels) / len(levels)
        return tuple(on_unit_scale(data.with_targets(c, 1.0), v - middle) for c, v in zip(classes, levels, strict=True))


def _count(value: Any, name: str) -> int:
    if not isinstance(value, Integral) or value < 2:
        raise InputError(f"{name} needs num_classes, a whole number >= 2, got {value!r}.")
    return int(value)


def _pick(f: Tensor, y: Tensor) -> Tensor:
    """f_y [...] from f [..., C] and y [...]."""
    index = torch.nan_to_num(y).long().clamp(0, f.shape[-1] - 1)
    return f.gather(-1, index.expand(f.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def _log_ndtr_difference(low: Tensor, high: Tensor) -> Tensor:
    """``log(Phi(high) - Phi(low))`` for low < high, accurate in both tails."""
    mirrored = low + high > 0
    small, large = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    top = log_ndtr(large)
    # Beyond, the lower tail is zero beside the upper one, and its derivatives would lose all digits.
    small = torch.maximum(small, large.clamp_max(0) - TAIL)
    # At least one unit of rounding apart, so that neighbouring cut points have a finite logarithm.
    return top + torch.log(-torch.expm1((log_ndtr(small) - top).clamp_max(-1e-15)))
