"""Gaussian observation noise: learned, fixed, or known per point."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from gpx.errors import InputError
from gpx.inputs import Data, as_like
from gpx.likelihoods.base import Likelihood
from gpx.parameters import Value, format_value
from gpx.sites import Sites

NOISE_FLOOR = 1e-6  # of the target variance
START = 0.1  # share of the target variance that a fit first takes for noise


class Gaussian(Likelihood):
    """``y = f(x) + N(0, noise)``.

    Arguments: noise: a variance, in squared target units. None: learned (0.1 until then); a number: where learning starts
    (fix it with ``set(noise=dict(fixed=True))``); an array [N]: known variances of the training points, not learned, NaN
    where the target is missing.
    Raises: InputError unless positive and finite, or NaN beside a target that is observed. Cost: O(N).

    >>> Gaussian(noise=0.01)
    Gaussian(noise=0.01)
    """

    conjugate = True
    noise = Value(0.1)

    def __init__(self, noise: Any = None):
        super().__init__()
        known = (
            None
            if noise is None or _is_number(noise)
            else as_like(noise, torch.zeros((), dtype=torch.float64), "noise")
        )
        if known is None:
            self.declare("noise", noise)
        elif bool((wrong := (known <= 0) | torch.isinf(known)).any()):
            raise InputError(
                f"Known noise variances must be positive and finite (NaN only where the target is missing); look at row(s)"
                f" {_rows(wrong)}."
            )
        self.register_buffer("known_noise", known)

    @property
    def bound_to_rows(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.known_noise is not None

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [], {} if self.known_noise is None else {"noise": self.known_noise}

    def variances(self, y: Tensor) -> Tensor:
        """The noise variances [N, P] of training targets y [N, P]."""
        if self.known_noise is None:
            return self.noise.to(y).expand(y.shape)
        noise = _per_row(self.known_noise.to(y), y)
        return torch.where(
            torch.isnan(noise), torch.ones_like(noise), noise
        )  # beside missing targets only: see `check`

    def check(self, data: Data) -> None:
        if self.known_noise is None:
            return
        unknown = torch.isnan(_per_row(self.known_noise.to(data.y), data.y)) & data.observed
        if bool(unknown.any()):
            raise InputError(
                f"The noise variance is NaN beside an observed target in row(s) {_rows(unknown)}; give it a value, or drop"
                " the target (NaN) too."
            )

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        return _normal_log_density(y - f, self.variances(y))

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        noise = self.variances(y)
        return _normal_log_density(y - mean, noise) - 0.5 * variance / noise

    def tilted(self, y: Tensor, mean: Tensor, variance: Tensor, power: float = 1.0) -> Tensor:
        noise = self.variances(y)
        height = 0.5 * (1 - power) * (2 * math.pi * noise).log() - 0.5 * math.log(power)
        return _normal_log_density(y - mean, variance + noise / power) + height

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> Normal:
        """``N(mean, variance + noise)``; noise: variances at the new points, needed where they are known per point."""
        if noise is None and self.known_noise is not None:
            raise InputError("The noise is known per training point only: pass predict(X, noise=variances), or of='f'.")
        added = self.noise.to(mean) if noise is None else as_like(noise, mean, "noise")
        added = _per_row(added, mean)
        if not bool((added >= 0).all()):
            raise InputError(
                f"noise must be one variance >= 0, or one per row ({mean.shape[0]}), got {added.tolist()}."
            )
        return Normal(mean, (variance + added).sqrt(), validate_args=False)

    def exact_sites(self, data: Data) -> Sites:
        tau = (
            (1 / self.noise).to(data.y).expand(data.y.shape) if self.known_noise is None else 1 / self.variances(data.y)
        )
        tau = tau if data.complete else torch.where(data.observed, tau, 0.0)
        return Sites(data.filled * tau, tau)

    def init_from(self, data: Data) -> None:
        if self.known_noise is not None:
            return
        self.start("noise", START * data.variance, box=(NOISE_FLOOR / START, 1e2))
        self.keep_above("noise", NOISE_FLOOR * data.variance)

    def extended(self, new: Data, noise: Any) -> tuple[Gaussian, Gaussian]:
        if self.known_noise is None:
            return super().extended(new, noise)
        if noise is None:
            raise InputError(
                f"The noise variances are known for the {len(self.known_noise)} points of the fit only: pass"
                " update(X, y, noise=variances) for the new ones."
            )
        added = _per_row(as_like(noise, new.y, "noise"), new.y)
        known = _per_row(self.known_noise.to(new.y), new.y.new_empty(len(self.known_noise), new.y.shape[1]))
        return Gaussian(added), Gaussian(torch.cat([known, added]))

    def __repr__(self) -> str:
        noise = f"{len(self.known_noise)} known variances" if self.known_noise is not None else format_value(self.noise)
        return f"Gaussian(noise={noise})"


def _per_row(noise: Tensor, like: Tensor) -> Tensor:
    """Variances (one number, [N], or those of `like`) in the shape [N] or [N, P] of `like`."""
    rows = noise.unsqueeze(-1) if noise.dim() == 1 and like.dim() == 2 else noise
    if rows.dim() and tuple(rows.shape) not in (tuple(like.shape), (len(like), 1)[: like.dim()]):
        raise InputError(
            f"noise has shape {list(noise.shape)}, the targets {list(like.shape)}; give one variance per row."
        )
    return rows.expand(like.shape)


def _rows(wrong: Tensor, limit: int = 5) -> str:
    rows = wrong.reshape(len(wrong), -1).any(1).nonzero().flatten().tolist()
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return ", ".join(map(str, rows[:limit])) + more


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0


def _normal_log_density(residual: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (residual.square() / variance + variance.log() + math.log(2 * math.pi))
