"""Exact inference in linear time for kernels of one input that are state-space models.

Theory: docs/theory/state_space.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gpx.engines.base import Engine
from gpx.engines.compiled import Compiled, chain_of
from gpx.errors import StructureError
from gpx.inputs import Data
from gpx.linalg.layout import Layout
from gpx.linalg.scan import Scan
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import SiteMarginals, Sites
from gpx.structure.draws import Draws
from gpx.structure.feature_map import feature_map
from gpx.structure.state_space import Clock, label_columns, read, state_space, time_column
from gpx.structure.state_space import StateSpace as Form

PATH_FEATURES = 2048
NOTICEABLE = 0.01  # share of a kernel's variance that its state-space form may leave out before a fit warns of it


@dataclass(frozen=True)
class Line:
    """The times [N] of an input column in ascending order, series by series, the labels [N, L] of these, the gaps [N] between
    times by the kernel's clock, infinite from series to series, and the rows [N] of the data that they belong to; None where
    that is the order of the rows.
    """

    column: int
    label: tuple[int, ...]
    clock: Clock | None
    times: Tensor
    labels: Tensor
    gaps: Tensor
    order: Tensor | None

    @staticmethod
    def of(column: int, label: tuple[int, ...], clock: Clock | None, x: Tensor) -> Line:
        """The line through a column of x [N, D]; equal times keep the order of their rows."""
        x = x.detach().double()
        times, labels, order = x[:, column].contiguous(), x[:, list(label)], None
        back = (times.diff() < 0) & ~_new_series(labels)[1:]
        if bool(back.any()) or bool((labels.diff(dim=0) < 0).any()) or len(label) > 1:
            order = torch.argsort(times, stable=True)
            for key in reversed(labels.unbind(1)):
                order = order[torch.argsort(key[order], stable=True)]
            times, labels = times[order], labels[order]
        return Line(column, label, clock, times, labels, _gaps(read(clock, times), _new_series(labels)), order)

    def sort(self, values: Tensor) -> Tensor:
        """Values [N] of the rows, by time."""
        return values if self.order is None else values[self.order]

    @property
    def places(self) -> Tensor:
        """Where the rows are [N]."""
        return self.unsort(torch.arange(len(self.times)).to(self.times.device))

    def unsort(self, values: Tensor) -> Tensor:
        """Values [N] by time, of the rows."""
        return values if self.order is None else torch.empty_like(values).index_copy(0, self.order, values)


@dataclass(frozen=True)
class StateSpacePlan:
    """The inputs [N, D] and, for every kernel, their order."""

    x: Tensor
    lines: tuple[Line, ...]

    def stale(self, prior: Prior) -> bool:
        """Never: the plan does not depend on the hyperparameters."""
        return False

    def extended(self, x: Tensor) -> StateSpacePlan:
        """With more inputs."""
        x = torch.cat([self.x, x])
        return StateSpacePlan(x, tuple(Line.of(line.column, line.label, line.clock, x) for line in self.lines))


@dataclass(frozen=True)
class StateSpace(Engine):
    """Exact inference by a Kalman filter and smoother, for kernels of one input with a state-space form; with a form that is
    approximate (`RBF`), exact for the kernel that this stands for: see `structure.state_space` and `gpx.explain`.

    Times may be irregular, unsorted and repeated. Cost: O(N S^2 (p + 1)) for the evidence and its gradient, and
    O((N + M) S^2 (p + 1)) for means and variances at M new inputs, S the number of states (2 for a Matern-3/2 kernel); memory
    O(N S^2), or that of sqrt(N) times where this would be more than 256 MB.
    Source: Hartikainen & Sarkka (2010), "Kalman filtering and smoothing solutions to temporal Gaussian process regression
    models"; de Jong (1989), "Smoothing and interpolation with the state-space model".

    >>> StateSpace()
    StateSpace()
    """

    start_rows: ClassVar[int] = 20_000
    consecutive: ClassVar[bool] = True

    def faithful(self, prior: Prior) -> bool:
        """Whether the state-space forms are the kernels: one of few harmonics is not that of a short lengthscale."""
        return all(state_space(kernel).exact for kernel in prior.kernels)

    def plan(self, prior: Prior, data: Data) -> StateSpacePlan:
        """Sort. Raises: StructureError for a kernel of several inputs, or without a state-space form."""
        dims = data.x.shape[1]
        lines = (
            Line.of(time_column(k, dims), label_columns(k, dims), state_space(k).clock, data.x) for k in prior.kernels
        )
        return StateSpacePlan(data.x, tuple(lines))

    def few(self, data: Data, plan: StateSpacePlan, rows: int) -> Tensor:
        """Neighbouring times around the middle."""
        line, first = plan.lines[0], max(0, (len(plan.x) - rows) // 2)
        kept = torch.arange(first, min(first + rows, len(plan.x)), device=plan.x.device)
        return kept if line.order is None else line.order[kept]

    def condition(
        self, prior: Prior, plan: StateSpacePlan, params: dict[str, Tensor], sites: Sites
    ) -> StateSpacePosterior:
        """Nothing is computed before it is asked for."""
        return StateSpacePosterior(prior, plan, sites)


@dataclass(frozen=True, eq=False)
class StateSpacePosterior(Posterior):
    """The posterior of `StateSpace`: a chain per column of the sites."""

    prior: Prior
    plan: StateSpacePlan
    sites: Sites

    @property
    def note(self) -> str:
        lost = max(state_space(kernel).error for kernel in self.prior.kernels)
        if lost <= NOTICEABLE:
            return ""
        return (
            f"the state-space form leaves out a share of {lost:.2g} of the variance of its kernel, which varies too fast for it:"
            " use engine='Exact', or bounds on the lengthscale"
        )

    def _latent(self, column: int) -> int:
        return column % len(self.prior.kernels)

    @property
    def _columns(self) -> range:
        return range(self.sites.nu.shape[1])

    def latent_kernel(self, column: int) -> Any:
        """The kernel of a column."""
        return self.prior.kernels[self._latent(column)]

    def _line(self, column: int) -> Line:
        return self.plan.lines[self._latent(column)]

    def _chain(self, column: int) -> Compiled | Scan:
        """The chain of a column, differentiable where gradients are enabled."""
        line = self._line(column)
        layout, *form = state_space(self.latent_kernel(column)).at(line.times)
        sites = (line.sort(part[:, column]) for part in (self.sites.nu, self.sites.tau))
        return chain_of(line.times.device)(layout, line.gaps, *form, *sites)

    @cached_property
    def _chains(self) -> tuple[Compiled | Scan, ...]:
        with torch.no_grad():
            return tuple(self._chain(c) for c in self._columns)

    def _stacked(self, values: Callable[[int], Any]) -> Tensor:
        """[N, C] from the values [N] of every column by time."""
        rows = [self._line(c).unsort(torch.as_tensor(values(c)).to(self.sites.nu)) for c in self._columns]
        return torch.stack(rows, 1)

    @property
    def log_partition(self) -> Tensor:
        return torch.stack([self._chain(c).log_partition() for c in self._columns]).sum()

    @property
    def log_density(self) -> Tensor:
        return torch.stack([self._chain(c).log_density() for c in self._columns]).sum()

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        smoothed = [chain.smoothed for chain in self._chains]
        return SiteMarginals(self._stacked(lambda c: smoothed[c].mean), self._stacked(lambda c: smoothed[c].variance))

    def with_sites(self, sites: Sites) -> StateSpacePosterior:
        return replace(self, sites=sites)

    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        along = [[self._line(c).sort(part[:, c]) for part in (direction.nu, direction.tau)] for c in self._columns]
        moved = [chain.response(*sites) for chain, sites in zip(self._chains, along, strict=True)]
        return self._stacked(lambda c: moved[c][0]), self._stacked(lambda c: moved[c][1])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance [N, C] of f at the data, differentiable in hyperparameters and sites."""
        parts = [self._chain(c).moments() for c in self._columns]
        return self._stacked(lambda c: parts[c][0]), self._stacked(lambda c: parts[c][1])

    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        mean, variance = self.moments()
        slope = (direction.nu * mean - 0.5 * direction.tau * (variance + mean.square())).sum()
        return slope + share * self.log_partition if share else slope

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.derivative(x, 0)

    def derivative(self, x: Tensor, order: int, column: int = 0) -> tuple[Tensor, Tensor]:
        parts = [self._merged(c, x, order) for c in self._columns]
        moments = [(chain.smoothed.mean[places], chain.smoothed.variance[places]) for chain, places in parts]
        mean, variance = (torch.stack(values, 1).to(x) for values in zip(*moments, strict=True))
        # Below the rounding error of the recursion a variance is zero.
        return mean, variance.clamp_min(0)

    def _merged(self, column: int, x: Tensor, order: int = 0) -> tuple[Compiled | Scan, Tensor]:
        """The chain with inputs x as times without a site, and the places [N*] of these in it, where the derivative of f of this
        order is looked at.
        """
        if x.requires_grad:
            raise StructureError(
                "StateSpace has no gradients in the inputs of predictions; use engines.Exact() for them."
            )
        line = self._line(column)
        rows = x.new_zeros(len(line.times) + len(x), x.shape[1], dtype=torch.double)
        rows[: len(line.times), line.column], rows[: len(line.times), list(line.label)] = line.times, line.labels
        rows[len(line.times) :] = x.detach().double()
        merged = Line.of(line.column, line.label, line.clock, rows)
        times, place = merged.times, merged.places
        chain, count = self._chains[column], len(line.times)
        with torch.no_grad():
            form = state_space(self.latent_kernel(column))
            layout, *parts = form.at(times) if order == 0 else _differentiated(form, times, place[count:], order)
        sites = (v.detach().to(times) for v in (chain.nu, chain.tau))
        nu, tau = (times.new_zeros(len(times)).index_copy(0, place[:count], v) for v in sites)
        return type(chain)(layout, merged.gaps, *parts, nu, tau), place[count:]

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        means, covariances = [], []
        for column in self._columns:
            chain, places = self._merged(column, x)
            means.append(chain.smoothed.mean[places])
            covariance = means[0].new_empty(len(places), len(places))
            for row, place in enumerate(places):
                unit = torch.zeros_like(chain.nu).index_fill(0, place, 1.0)
                covariance[row] = replace(chain, nu=unit).smoothed.mean[places]
            covariances.append(0.5 * (covariance + covariance.mT))
        return torch.stack(means, 1).to(x), torch.stack(covariances).to(x)

    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Joint draws [n, N*, C] of f at x by Matheron's rule on prior paths. Cost: O(n (N + N*) S^2 (p + 1))."""
        random = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
        draws = x.new_empty(n, len(x), len(self._columns))
        for column in self._columns:
            chain, places = self._merged(column, x)
            for draw in range(n):
                draws[draw, :, column] = _posterior_path(chain, random)[places].to(x)
        return draws

    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Matheron's rule: a prior path of 2,048 random features (exact for kernels of finite dimension), plus the posterior mean
        of its misfit at the data. Source: Wilson et al. (2021), "Pathwise conditioning of Gaussian processes", eq. 13.
        """
        draws = [self._column_paths(c, n, generator) for c in self._columns]
        return lambda x: torch.stack([draw(x) for draw in draws], -1)

    def _column_paths(self, column: int, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        options: Any = {"generator": generator, "dtype": self.sites.nu.dtype, "device": self.sites.nu.device}
        features = feature_map(self.latent_kernel(column), PATH_FEATURES, self.plan.x.shape[1], Draws(generator))
        weights, noise = torch.randn(features.size, n, **options), torch.randn(len(self.plan.x), n, **options)
        line, tau = self._line(column), self.sites.tau[:, [column]]
        with torch.no_grad():
            misfit = self.sites.nu[:, [column]] - tau * (features(self.plan.x) @ weights) - tau.sqrt() * noise
        misfits = line.sort(misfit).mT

        def draw(x: Tensor) -> Tensor:
            chain, places = self._merged(column, x)
            data = torch.ones_like(chain.nu, dtype=torch.bool).index_fill(0, places, False)
            pseudo = [torch.zeros_like(chain.nu).masked_scatter(data, values) for values in misfits]
            means = [replace(chain, nu=nu).smoothed.mean[places] for nu in pseudo]
            drawn = (features(x) @ weights).mT
            return drawn + torch.stack(means) if means else drawn

        return draw

    def update(self, x: Tensor, sites: Sites) -> StateSpacePosterior:
        return StateSpacePosterior(self.prior, self.plan.extended(x), self.sites.join(sites))

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        nu, tau, (mean, variance) = self.sites.nu, self.sites.tau, self.moments()
        share = 1 - tau * variance
        exact = self._stacked(lambda c: self._chains[c].smoothed.share)
        share = share + (exact - share).detach()  # the same number, without the cancellation
        seen, one = tau > 0, torch.ones_like(tau)
        precision = torch.where(seen, tau * share, one)
        targets = nu / torch.where(seen, tau, one)
        nothing = torch.full_like(nu, math.nan)
        residual = (nu - tau * mean) / precision
        return torch.where(seen, targets - residual, nothing), torch.where(seen, 1 / precision, nothing)


def _differentiated(form: Form, times: Tensor, places: Tensor, order: int) -> tuple[Layout, Tensor, Tensor, Tensor]:
    """`Form.at`, for the derivative of f at the places and f elsewhere."""
    layout, rates, weights = form.derivatives(times, order)
    chosen = weights[0].clone()
    chosen[places] = weights[order][places]
    return layout, rates, times.new_ones(1), chosen


def _new_series(labels: Tensor) -> Tensor:
    """Whether a row [N] of the labels [N, L] differs from the one before."""
    return torch.nn.functional.pad((labels.diff(dim=0) != 0).any(1), (1, 0))[: len(labels)]


def _gaps(times: Tensor, new: Tensor) -> Tensor:
    """Differences [n] of ordered times, 0 first and infinite where a series is new. Where these are a grid, with or without
    holes, up to the rounding of both times of each gap, the gaps are exact multiples of its step: a transition is then computed
    once and not at every time.
    """
    gaps = times.diff(prepend=times[:1]).masked_fill(new, 0.0)
    if bool((gaps > 0).any()):
        steps = (gaps / gaps[gaps > 0].median()).round()
        even = steps * (gaps.sum() / steps.sum().clamp_min(1.0))
        largest = torch.maximum(times.abs(), torch.cat([times[:1], times[:-1]]).abs())
        gaps = even if bool(((even - gaps).abs() <= 4 * torch.finfo(times.dtype).eps * largest).all()) else gaps
    return gaps.masked_fill(new, math.inf)


def _posterior_path(chain: Compiled | Scan, random: np.random.Generator) -> Tensor:
    """A draw of f at the times of a chain: a prior path plus the posterior mean of its misfit to the sites."""
    path = chain.path(random)
    noise = torch.as_tensor(random.standard_normal(len(path))).to(path)
    return path + replace(chain, nu=chain.nu - chain.tau * path - chain.tau.sqrt() * noise).smoothed.mean
