"""The base of likelihoods: only ``log_prob`` is required, quadrature does the rest."""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor
from torch.distributions import Distribution

from gpx.errors import InputError, StructureError
from gpx.inputs import Data
from gpx.likelihoods.predictive import Mixture
from gpx.linalg.quadrature import expectation, log_expectation_at_mode
from gpx.parameters import Parameterised, format_value
from gpx.sites import Sites


class Likelihood(Parameterised, gpytorch.Module):
    """``p(y | f)``, independent over data. A subclass gives ``log_prob(y, f)`` and, for predictions, ``conditional(f)``.

    Shapes: y is [...]; f, mean and variance are [...], or [..., L] for a likelihood with L > 1 latent functions.
    """

    num_latents = 1
    exchangeable = (
        False  # whether its latent functions play the same part: a kernel given once is then one for all of them
    )
    conjugate = False  # whether it has exact sites
    bound_to_rows = False  # whether it knows something of every row of the data, in their order
    domain = "finite numbers"  # what targets are allowed, in words

    def __init__(self) -> None:
        super().__init__()
        self.choices = {}

    def log_prob(self, y: Tensor, f: Tensor) -> Tensor:
        """``log p(y | f)`` [...], in nats."""
        raise NotImplementedError(f"{type(self).__name__} must define log_prob(y, f).")

    def landmark(self, y: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Where ``log p(y | f)`` bends as a function of f, and over what distance: quadrature nodes crowd there."""
        return mean, variance.sqrt()

    def peak(self, y: Tensor) -> Tensor | None:
        """About where ``log p(y | f)`` is largest as a function of f [...], if it is not concave: a product with a Gaussian
        then has a mode of its own near there.
        """
        return None

    def expected_log_prob(self, y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """``E log p(y | f)`` [...] for ``f ~ N(mean, variance)``, by quadrature."""
        self._require_one_latent("expected_log_prob")
        return expectation(
            lambda f: self.log_prob(y.unsqueeze(-1), f), mean, variance, *self.landmark(y, mean, variance)
        )

    def tilted(self, y: Tensor, mean: Tensor, variance: Tensor, power: float = 1.0) -> Tensor:
        """``log E p(y | f)^power`` [...] for ``f ~ N(mean, variance)``, by quadrature."""
        self._require_one_latent("tilted")
        return log_expectation_at_mode(
            lambda f: power * self.log_prob(y.unsqueeze(-1), f), mean, variance, self.peak(y)
        )

    def conditional(self, f: Tensor) -> Distribution:
        """The distribution ``p(y | f)``: with mean, variance and cdf."""
        raise StructureError(f"{type(self).__name__} must define conditional(f) for predictions of y; of='f' works.")

    def predict(self, mean: Tensor, variance: Tensor, noise: Any = None) -> Distribution:
        """The distribution of y for ``f ~ N(mean, variance)``: with mean, variance, log_prob, cdf and icdf."""
        self._refuse(noise)
        return Mixture(self, mean, variance)

    def exact_sites(self, data: Data) -> Sites | None:
        """The sites of a Gaussian likelihood; None where a rule has to find them."""
        return None

    def allows(self, y: Tensor) -> Tensor:
        """[...] bool: whether a target is inside the domain."""
        return torch.isfinite(y)

    def outcome(self, y: Tensor) -> Tensor:
        """Targets as predictions count them: what their mean is compared with."""
        return y

    def check(self, data: Data) -> None:
        """Raise InputError, with values and rows, if a target is outside the domain."""
        bad = data.observed & ~self.allows(data.y)
        if bool(bad.any()):
            rows = bad.any(1).nonzero().flatten().tolist()
            values = sorted(set(data.y[bad].tolist()))
            raise InputError(
                f"{type(self).__name__} needs targets that are {self.domain}; got {_few(values)} in row(s) {_few(rows)}."
                " Correct them, or choose another likelihood."
            )

    def latent_data(self, data: Data) -> tuple[Data, ...]:
        """The data as each latent function sees them, roughly: what means and kernels start from."""
        return (data,) * self.num_latents

    def extended(self, new: Data, noise: Any) -> tuple[Likelihood, Likelihood]:
        """The likelihood of new data, and that of all; noise: variances of the new targets, where such are known."""
        if noise is not None:
            raise InputError("update(X, y, noise=...) is for noise that was known per point in the fit; leave it out.")
        return self, self

    def init_from(self, data: Data) -> None:
        """Start what the user left open from the data, with weak priors."""

    def _require_one_latent(self, method: str) -> None:
        if self.num_latents > 1:
            raise StructureError(f"{type(self).__name__} has {self.num_latents} latent functions and no {method}.")

    def _refuse(self, noise: Any) -> None:
        if noise is not None:
            raise InputError(f"predict(X, noise=...) is for Gaussian noise; {type(self).__name__} has none.")

    def __repr__(self) -> str:
        values = [f"{n}={format_value(getattr(self, n))}" for n in self.choices]
        return f"{type(self).__name__}({', '.join([*self._settings(), *values])})"

    def _settings(self) -> list[str]:
        """Constructor arguments that are not values, as they stand in a repr."""
        return [f"{name}={value!r}" for name, value in self.arguments()[1].items()]


def on_unit_scale(data: Data, level: Tensor, variance: float = 1.0) -> Data:
    """The data with targets of mean `level` [P] and unit spread, for a latent function whose scale the link decides."""
    y = data.y
    centred = y - torch.nanmean(y, 0)
    spread = torch.nanmean(centred.square(), 0).sqrt()
    unit = centred / torch.where(spread > 0, spread, torch.ones_like(spread))
    return data.with_targets(level + math.sqrt(variance) * unit, variance)


def exp(f: Tensor) -> Tensor:
    """``e^f`` for f cut to +-500 (+-60 in single precision): finite, even after multiplication."""
    end = 0.7 * math.log(torch.finfo(f.dtype).max)
    return f.clamp(-end, end).exp()


def _few(values: list[Any], limit: int = 5) -> str:
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values[:limit])
    return f"{shown} and {len(values) - limit} more" if len(values) > limit else shown
