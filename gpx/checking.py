"""Scores of probabilistic predictions, and the report that gathers them.

Every score is a pure function of tensors. A NaN target is a missing value and is left out of every average.
The ``prediction`` of a function is any object of the :class:`Predictive` protocol, so that forecasts from
elsewhere can be scored by the same code. Log densities are in nats; CRPS and RMSE are in the units of y.

Sources: Gneiting and Raftery (2007), *Strictly proper scoring rules, prediction, and estimation*, JASA 102;
Gneiting, Balabdaoui and Raftery (2007), *Probabilistic forecasts, calibration and sharpness*, JRSS B 69;
Rasmussen and Williams (2006), *Gaussian Processes for Machine Learning*.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from gpx.errors import InputError

__all__ = ["Calibration", "Predictive", "calibration", "coverage", "crps", "msll", "nlpd", "pit", "rmse"]

LEVELS = (0.5, 0.8, 0.9, 0.95)
_BINS = 10
_NODES = 200


class Predictive(Protocol):
    """Marginal predictive distributions of N (or N x P) targets."""

    @property
    def mean(self) -> torch.Tensor: ...
    @property
    def std(self) -> torch.Tensor: ...
    @property
    def is_normal(self) -> bool: ...
    def log_prob(self, y: Any) -> torch.Tensor: ...
    def cdf(self, y: Any) -> torch.Tensor: ...
    def quantile(self, p: float) -> torch.Tensor: ...


# ----------------------------------------------------------------------------------------------------- scores


def rmse(mean: torch.Tensor, y: torch.Tensor) -> float:
    """Root mean squared error, ``sqrt(mean_n (y_n - mean_n)^2)``, in the units of y.

    Parameters
    ----------
    mean, y : [N] or [N, P]; NaN in y is left out.

    Raises
    ------
    InputError : shapes differ, or no target is observed.

    Examples
    --------
    >>> import torch
    >>> rmse(torch.tensor([0.0, 0.0, 0.0]), torch.tensor([3.0, -3.0, float("nan")]))
    3.0
    """
    y, observed = _observed(mean, y)
    return (y - mean)[observed].square().mean().sqrt().item()


def nlpd(log_prob: torch.Tensor) -> float:
    """Mean negative log predictive density, ``-mean_n log p(y_n)``, in nats per datum.

    Parameters
    ----------
    log_prob : [N] or [N, P], pointwise log densities; NaN (a missing target) is left out.

    Raises
    ------
    InputError : every entry is NaN.

    Source: Gneiting and Raftery (2007), section 4.1, the logarithmic score.

    Examples
    --------
    >>> import torch
    >>> nlpd(torch.tensor([-1.0, -2.0, float("nan")]))
    1.5
    """
    log_prob, observed = _observed(log_prob, log_prob)
    return -log_prob[observed].mean().item()


def msll(log_prob: torch.Tensor, y: torch.Tensor, y_train: torch.Tensor) -> float:
    """Mean standardised log loss: the NLPD minus that of the trivial predictor, in nats per datum.

    ``mean_n [log N(y_n; m, v) - log p(y_n)]``, m and v the mean and variance (1/M) of the training targets,
    v = 1 if they are constant. Zero is the score of the trivial predictor N(m, v); lower is better.

    Parameters
    ----------
    log_prob : [N] or [N, P], pointwise log densities of y.
    y : like log_prob; NaN is left out.
    y_train : [M] or [M, P], targets that the model was fitted to; NaN is left out.

    Raises
    ------
    InputError : shapes differ, or no target is observed in y, or in y_train for a column that has some in y.

    Source: Rasmussen and Williams (2006), eq. 2.34 and the text after it.

    Examples
    --------
    >>> import math, torch
    >>> y_train = torch.tensor([-1.0, 1.0])
    >>> trivial = torch.distributions.Normal(0.0, 1.0)
    >>> y = torch.tensor([0.3, -0.7])
    >>> msll(trivial.log_prob(y), y, y_train)
    0.0
    """
    y, observed = _observed(log_prob, y)
    y_train = torch.as_tensor(y_train, dtype=y.dtype, device=y.device)
    # An output without any target in y has no score, and needs none in y_train.
    if y_train.shape[1:] != y.shape[1:] or bool((y_train.isnan().all(0) & observed.any(0)).any()):
        raise InputError(
            f"y_train has shape {tuple(y_train.shape)} and y {tuple(y.shape)}; expected training targets "
            "with as many columns as y and an observed value in each. Pass the y given to fit."
        )
    mean = y_train.nanmean(0)
    variance = (y_train - mean).square().nanmean(0)
    variance = torch.where(variance > 0, variance, torch.ones_like(variance))
    trivial = -0.5 * ((y - mean).square() / variance + torch.log(2 * math.pi * variance))
    return (trivial - log_prob)[observed].mean().item()


def crps(prediction: Predictive, y: torch.Tensor) -> float:
    """Continuous ranked probability score, ``mean_n int (F_n(t) - 1{t >= y_n})^2 dt``, in the units of y.

    For a Normal it is ``s [z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)]`` with ``z = (y - m) / s``. Counts and
    classes are integrated over their quantiles, ``2 int_0^1 (p - 1{y < q(p)}) (y - q(p)) dp`` (twice the
    pinball loss), by 200 nodes that crowd towards p = 0 and 1. For any other prediction the integral over t is
    by Gauss-Legendre's rule between the target and 11 quantiles, since a quantile costs many values of F; the
    relative error on a Normal is below 1e-4.

    Parameters
    ----------
    prediction : marginal predictions of y.
    y : [N] or [N, P]; NaN is left out.

    Raises
    ------
    InputError : shapes differ, or no target is observed.

    Source: Gneiting and Raftery (2007), eq. 20 and 21; Laio and Tamea (2007) for the quantile form.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> standard = SimpleNamespace(mean=torch.zeros(1), std=torch.ones(1), is_normal=True)
    >>> round(crps(standard, torch.zeros(1)), 4)
    0.2337
    """
    y, observed = _observed(prediction.mean, y)
    discrete = getattr(prediction, "is_discrete", False)
    score = _normal_crps if prediction.is_normal else _pinball if discrete else _squared_distance
    return score(prediction, y)[observed].mean().item()


def pit(prediction: Predictive, y: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Probability integral transform, ``u_n = F_n(y_n)``: uniform on [0, 1] where predictions are calibrated.

    For counts and classes, where F has steps, u_n is drawn evenly from ``[F_n(y_n - 1), F_n(y_n)]``.

    Parameters
    ----------
    prediction : marginal predictions of y.
    y : [N] or [N, P].
    seed : of those draws.

    Returns
    -------
    Tensor like y; NaN where y is NaN.

    Raises
    ------
    InputError : shapes differ, or no target is observed.

    Source: Gneiting, Balabdaoui and Raftery (2007), section 3.1; Czado, Gneiting and Held (2009) for counts.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> standard = SimpleNamespace(mean=torch.zeros(2), cdf=torch.special.ndtr)
    >>> pit(standard, torch.tensor([0.0, float("nan")]))
    tensor([0.5000,    nan])
    """
    y, observed = _observed(prediction.mean, y)
    y = _filled(y, observed)
    u = prediction.cdf(y)
    if getattr(prediction, "is_discrete", False):
        draws = np.random.default_rng(seed).random(y.shape)
        u = u - torch.as_tensor(draws).to(u) * prediction.log_prob(y).exp()
    return _missing(u, observed)


def coverage(prediction: Predictive, y: torch.Tensor, level: float) -> float:
    """Share of the targets inside the central interval of probability ``level``.

    The interval is ``[q((1 - level) / 2), q((1 + level) / 2)]``. Where predictions are calibrated and
    independent, the share has mean ``level`` and standard error ``sqrt(level (1 - level) / N)``.

    Parameters
    ----------
    prediction : marginal predictions of y.
    y : [N] or [N, P]; NaN is left out.
    level : probability, strictly between 0 and 1.

    Raises
    ------
    InputError : level is no such probability, shapes differ, or no target is observed.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> quantile = lambda p: torch.special.ndtri(torch.tensor([p, p]))
    >>> standard = SimpleNamespace(mean=torch.zeros(2), quantile=quantile)
    >>> coverage(standard, torch.tensor([0.0, 3.0]), 0.95)
    0.5
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level!r}; expected a probability strictly between 0 and 1. Pass 0.95 for 95 %.")
    y, observed = _observed(prediction.mean, y)
    inside = (y >= prediction.quantile((1 - level) / 2)) & (y <= prediction.quantile((1 + level) / 2))
    return inside[observed].double().mean().item()


def _normal_crps(prediction: Predictive, y: torch.Tensor) -> torch.Tensor:
    mean, std = prediction.mean, prediction.std
    z = (y - mean) / std
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    score = std * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    return torch.where(std > 0, score, (y - mean).abs())  # the limit: a point mass scores the absolute error


def _pinball(prediction: Predictive, y: torch.Tensor) -> torch.Tensor:
    score = torch.zeros_like(y)
    for node in range(_NODES):
        angle = math.pi * (node + 0.5) / _NODES
        p, weight = math.sin(angle / 2) ** 2, math.pi / 2 * math.sin(angle) / _NODES
        error = y - prediction.quantile(p)
        score = score + 2 * weight * torch.maximum(p * error, (p - 1) * error)
    return score


def _squared_distance(prediction: Predictive, y: torch.Tensor) -> torch.Tensor:
    low = [1e-5, 1e-3, 0.02, 0.1, 0.3]
    levels = [*low, 0.5, *(1 - p for p in reversed(low))]
    edges = torch.stack([*(prediction.quantile(p) for p in levels), y.nan_to_num()]).sort(0).values
    nodes, weights = np.polynomial.legendre.leggauss(5)
    score = torch.zeros_like(y)
    for left, right in itertools.pairwise(edges):
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            t = 0.5 * (left + right) + 0.5 * node * (right - left)
            step = (t >= y).to(t)
            score = score + 0.5 * weight * (right - left) * (prediction.cdf(t) - step).square()
    return score


def _observed(like: torch.Tensor, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """y as a tensor of the same kind as ``like``, and the mask of the values that are not missing."""
    y = torch.as_tensor(y, dtype=like.dtype, device=like.device)
    if y.shape != like.shape:
        raise InputError(
            f"y has shape {tuple(y.shape)} and the prediction {tuple(like.shape)}; expected equal shapes. "
            "Predict at the inputs of y."
        )
    observed = ~y.isnan()
    if not bool(observed.any()):
        raise InputError(f"{y.numel()} targets, none observed; expected one that is not NaN. Pass observed targets.")
    return y, observed


def _filled(y: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    # Missing targets take the value of an observed one, which is valid for every likelihood, counts included.
    return torch.where(observed, y, y[observed][0])


def _missing(values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    return torch.where(observed, values, torch.full_like(values, math.nan))


# ----------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True, eq=False)
class Calibration:
    """How well predictions match their targets: a printable report, made by :func:`calibration`.

    Attributes
    ----------
    n : number of observed targets.
    levels, coverage, coverage_se : nominal probability of the central intervals, share of targets inside, and
        binomial standard error of that share if the nominal one is true, ``sqrt(level (1 - level) / n)``.
    pit_counts : counts of the PIT in 10 equal bins; n / 10 each where calibrated. A hump in the middle:
        predictions too wide. A valley: too narrow. A slope: biased.
    ks : Kolmogorov-Smirnov distance of the PIT from uniform, ``sup_u |F_n(u) - u|``; where calibrated and
        independent it exceeds ``1.36 / sqrt(n)`` with probability 5 % (large n).
    nlpd, rmse, crps, msll : the scores of this module; msll is None without training targets.
    residuals : Tensor like y, ``(y - mean) / std``; NaN where y is missing.
    """

    n: int
    levels: tuple[float, ...]
    coverage: tuple[float, ...]
    coverage_se: tuple[float, ...]
    pit_counts: tuple[int, ...]
    ks: float
    nlpd: float
    rmse: float
    crps: float
    msll: float | None
    residuals: torch.Tensor

    def __str__(self) -> str:
        observed = self.residuals[~self.residuals.isnan()]
        rows = [
            ("NLPD", f"{self.nlpd:.4g}", "nats per target"),
            (
                "MSLL",
                "-" if self.msll is None else f"{self.msll:.4g}",
                "nats per target; trivial predictor: 0",
            ),
            ("RMSE", f"{self.rmse:.4g}", "units of y"),
            ("CRPS", f"{self.crps:.4g}", "units of y"),
        ]
        for level, share, error in zip(self.levels, self.coverage, self.coverage_se, strict=True):
            rows.append((f"coverage of {level:.0%}", f"{share:.1%}", f"standard error {error:.1%}"))
        rows += [
            ("PIT distance", f"{self.ks:.4f}", f"5 % point {1.36 / math.sqrt(self.n):.4f}"),
            ("residual mean", f"{float(observed.mean()):.3f}", "calibrated: 0"),
            ("residual RMS", f"{float(observed.square().mean().sqrt()):.3f}", "calibrated: 1"),
        ]
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        lines = [f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {note}" for name, value, note in rows]
        counts = " ".join(map(str, self.pit_counts))
        histogram = f"  PIT histogram  {counts}  (calibrated: {self.n / len(self.pit_counts):.1f} each)"
        return "\n".join([f"Calibration on {self.n} targets{self._left_out()}", *lines, histogram])

    def _left_out(self) -> str:
        """The outputs that have no target at all, if there are any."""
        empty = torch.atleast_1d(self.residuals.isnan().all(0)).nonzero().flatten().tolist()
        return f"; output(s) {', '.join(map(str, empty))} have none and are left out" if empty else ""


def calibration(prediction: Predictive, y: torch.Tensor, y_train: torch.Tensor | None = None) -> Calibration:
    """Every score of predictions against their targets in one report.

    Parameters
    ----------
    prediction : marginal predictions of y.
    y : [N] or [N, P]; NaN is left out.
    y_train : [M] or [M, P]; targets of the fit, for the MSLL. None: no MSLL.

    Raises
    ------
    InputError : shapes differ, or no target is observed.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> normal = torch.distributions.Normal(torch.zeros(1000), torch.ones(1000))
    >>> standard = SimpleNamespace(
    ...     mean=normal.mean, std=normal.stddev, is_normal=True, cdf=normal.cdf, log_prob=normal.log_prob,
    ...     quantile=lambda p: normal.icdf(torch.tensor(p)),
    ... )
    >>> y = torch.special.ndtri((torch.arange(1000) + 0.5) / 1000)
    >>> report = calibration(standard, y)
    >>> print(", ".join(f"{share:.2f}" for share in report.coverage))
    0.50, 0.80, 0.90, 0.95
    """
    target, observed = _observed(prediction.mean, y)
    n = int(observed.sum())
    log_prob = prediction.log_prob(_filled(target, observed))
    u = pit(prediction, target)[observed]
    return Calibration(
        n=n,
        levels=LEVELS,
        coverage=tuple(coverage(prediction, target, level) for level in LEVELS),
        coverage_se=tuple(math.sqrt(level * (1 - level) / n) for level in LEVELS),
        pit_counts=_histogram(u),
        ks=_distance_from_uniform(u),
        nlpd=-log_prob[observed].mean().item(),
        rmse=rmse(prediction.mean, target),
        crps=crps(prediction, target),
        msll=None if y_train is None else msll(log_prob, target, y_train),
        residuals=((target - prediction.mean) / prediction.std).detach(),
    )


def _histogram(u: torch.Tensor) -> tuple[int, ...]:
    bins = (u * _BINS).long().clamp(0, _BINS - 1)
    return tuple(torch.bincount(bins, minlength=_BINS).tolist())


def _distance_from_uniform(u: torch.Tensor) -> float:
    """``sup_t |F_n(t) - t|`` over the steps of the empirical distribution, from above and from below."""
    u = u.sort().values
    above = torch.arange(1, len(u) + 1, dtype=u.dtype, device=u.device) / len(u)
    return torch.maximum(above - u, u - above + 1 / len(u)).max().item()
