"""A chain: Matern processes observed at ordered times, filtered and smoothed in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gpx.linalg.kalman import Loops, loops, site_gradients
from gpx.linalg.layout import Layout

MEMORY = 1 << 25  # numbers of predicted moments that are held: 256 MB
STEP = 1e-100  # of complex steps: its square is nothing


@dataclass(frozen=True)
class Smoothed:
    """Moments of f at the times [n], ``share = 1 - tau variance`` without cancellation, and the gradients of the log partition
    in rates [B], rows and factors; complex for a chain of complex sites.
    """

    mean: np.ndarray
    variance: np.ndarray
    share: np.ndarray
    rates: np.ndarray
    rows: np.ndarray
    factors: np.ndarray

    def imag(self) -> Smoothed:
        """The derivatives along the complex direction of the sites."""
        return Smoothed(*(getattr(self, name).imag / STEP for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class Filtered:
    """evidence: see `Chain.evidence`; bounds: of stretches of time; starts: the state before each of them; moments: predicted
    ones of the last stretch.
    """

    evidence: np.ndarray
    bounds: tuple[tuple[int, int], ...]
    starts: tuple[tuple[np.ndarray, ...], ...]
    moments: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Chain:
    """``f(t) = sum_j factors_j(t) rows . z_j(t)`` with sites ``exp(nu f - tau f^2 / 2)`` at n ordered times.

    gaps [n]: to the time before, 0 for the first; rates [B]; rows: weights of observed coordinates, block by block; factors
    [n, J], or [1, J] where they are constant; of a layout that is `free`, rows are ones [1] and factors the weights [n, R]; nu,
    tau [n], real or complex. Cost: O(n S^2 (p + 1)) for either pass; memory: the predicted moments, or those of sqrt(n) times
    where they would be more than 256 MB.
    """

    layout: Layout
    gaps: np.ndarray
    rates: np.ndarray
    rows: np.ndarray
    factors: np.ndarray
    nu: np.ndarray
    tau: np.ndarray

    @cached_property
    def _loops(self) -> Loops:
        return loops(self.layout, self.gaps)

    @property
    def _kind(self) -> Any:
        return np.result_type(self.nu, self.tau)

    @property
    def _inputs(self) -> tuple[np.ndarray, ...]:
        nu, tau = (part.astype(self._kind, copy=False) for part in (self.nu, self.tau))
        return self.gaps, self.rates, self.rows, self.factors, nu, tau

    def _zeros(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, self._kind)

    def _moments(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        size = self.layout.size
        return np.empty((count, size), self._kind), np.empty((count, size * (size + 1) // 2), self._kind)

    def _filter(
        self, state: tuple[np.ndarray, ...], start: int, stop: int, moments: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        return np.array(self._loops.filter(*self._inputs, *state, start, stop, *moments))

    def _start(self) -> tuple[np.ndarray, np.ndarray]:
        return self._zeros(self.layout.size), self.layout.stationary.astype(self._kind)

    @cached_property
    def filtered(self) -> Filtered:
        """The filter's pass, with what the smoother needs."""
        n, width = len(self.gaps), self.layout.size * (self.layout.size + 3) // 2
        length = max(1, n if n * width <= MEMORY else math.isqrt(n))
        state, starts, moments = self._start(), [], self._moments(min(length, n))
        bounds = tuple((start, min(start + length, n)) for start in range(0, n, length))
        total = self._zeros(2)
        # Of every stretch but the last only the state at its start is kept; its moments are computed again.
        for start, stop in bounds:
            starts.append(tuple(part.copy() for part in state))
            total += self._filter(state, start, stop, moments if stop == n else self._moments(0))
        return Filtered(total, bounds, tuple(starts), moments)

    def evidence(self) -> np.ndarray:
        """The log partition, and the log density of nu / tau where tau > 0."""
        if "filtered" in self.__dict__:
            return self.filtered.evidence
        return self._filter(self._start(), 0, len(self.gaps), self._moments(0)) if len(self.gaps) else self._zeros(2)

    @cached_property
    def smoothed(self) -> Smoothed:
        """The smoother's pass."""
        n, size, f = len(self.gaps), self.layout.size, self.filtered
        parts = [self._zeros(n) for _ in range(3)] + [
            self._zeros(*v.shape) for v in (self.rates, self.rows, self.factors)
        ]
        rho, M = self._zeros(size), self._zeros(size, size)
        for (start, stop), state in zip(reversed(f.bounds), reversed(f.starts), strict=True):
            if stop < n:
                self._filter(tuple(part.copy() for part in state), start, stop, f.moments)
            self._loops.smoother(*self._inputs, start, stop, *f.moments, rho, M, *parts)
        return Smoothed(*parts)

    def site_gradients(self, partition: float, density: float) -> tuple[np.ndarray, np.ndarray]:
        """Those in nu and tau of ``partition log Z + density log N``, the two of `evidence`."""
        grads = np.empty_like(self.nu), np.empty_like(self.tau)
        site_gradients(partition, density, self.smoothed.mean, self.smoothed.variance, self.nu, self.tau, *grads)
        return grads

    def along(self, nu: np.ndarray, tau: np.ndarray) -> Chain:
        """The chain with its sites moved by a complex step in a direction."""
        return replace(self, nu=self.nu + 1j * STEP * nu, tau=self.tau + 1j * STEP * tau)

    def path(self, random: np.random.Generator) -> np.ndarray:
        """A draw [n] of f from the prior."""
        f, noise = np.empty(len(self.gaps)), random.standard_normal((len(self.gaps), self.layout.size))
        if len(f):
            self._loops.simulate(*self._inputs[:4], noise, f)
        return f
