"""A chain: Matern processes observed at ordered times, filtered and smoothed in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gpx.linalg.kalman import Layout, compiled

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
class Chain:
    """``f(t) = sum_j factors_j(t) rows . z_j(t)`` with sites ``exp(nu f - tau f^2 / 2)`` at n ordered times.

    times [n]: ascending; rates [B]; rows: weights of observed coordinates, block by block; factors [n, J], or [1, J] where
    they are constant; nu, tau [n], real or complex. Cost: O(n S^2 (p + 1)) for either pass; memory: the predicted moments, or
    those of sqrt(n) times where they would be more than 256 MB.
    """

    layout: Layout
    times: np.ndarray
    rates: np.ndarray
    rows: np.ndarray
    factors: np.ndarray
    nu: np.ndarray
    tau: np.ndarray

    @property
    def _kind(self) -> Any:
        return np.result_type(self.nu, self.tau)

    @cached_property
    def _inputs(self) -> tuple[np.ndarray, ...]:
        gaps = np.diff(self.times, prepend=self.times[:1])
        return gaps, self.rates, self.rows, self.factors, self.nu.astype(self._kind), self.tau.astype(self._kind)

    def _start(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(self.layout.size, self._kind), self.layout.stationary.astype(self._kind)

    def _moments(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        size = self.layout.size
        return np.empty((count, size), self._kind), np.empty((count, size * (size + 1) // 2), self._kind)

    def evidence(self) -> tuple[Any, Any]:
        """The log partition, and the log density of ``nu / tau`` without ``sum log(tau / 2 pi) / 2``."""
        nothing = self._moments(0)
        if not len(self.times):
            return 0.0, 0.0
        return compiled(self.layout).filter(*self._inputs, *self._start(), 0, len(self.times), *nothing)

    @cached_property
    def smoothed(self) -> Smoothed:
        """The smoother's pass, after the filter's."""
        loops, n = compiled(self.layout), len(self.times)
        zeros = lambda shape: np.zeros(shape, self._kind)  # noqa: E731
        result = Smoothed(
            *(zeros(n) for _ in range(3)), *(zeros(v.shape) for v in (self.rates, self.rows, self.factors))
        )
        width = self.layout.size * (self.layout.size + 3) // 2
        length = max(1, n if n * width <= MEMORY else math.isqrt(n))
        bounds = [(start, min(start + length, n)) for start in range(0, n, length)]
        # Of every stretch but the last only the state at its start is kept; its moments are computed again.
        state, starts, moments = self._start(), [], self._moments(min(length, n))
        for start, stop in bounds:
            starts.append(tuple(part.copy() for part in state))
            loops.filter(*self._inputs, *state, start, stop, *(moments if stop == n else self._moments(0)))
        rho, M = zeros(self.layout.size), zeros((self.layout.size, self.layout.size))
        for (start, stop), state in zip(reversed(bounds), reversed(starts), strict=True):
            if stop < n:
                loops.filter(*self._inputs, *state, start, stop, *moments)
            loops.smoother(*self._inputs, start, stop, *moments, rho, M, *(getattr(result, f) for f in FIELDS))
        return result

    def along(self, nu: np.ndarray, tau: np.ndarray) -> Chain:
        """The chain with its sites moved by a complex step in a direction."""
        return replace(self, nu=self.nu + 1j * STEP * nu, tau=self.tau + 1j * STEP * tau)

    def path(self, random: np.random.Generator) -> np.ndarray:
        """A draw [n] of f from the prior."""
        f, noise = np.empty(len(self.times)), random.standard_normal((len(self.times), self.layout.size))
        if len(f):
            compiled(self.layout).simulate(*self._inputs[:4], noise, f)
        return f


FIELDS = tuple(Smoothed.__dataclass_fields__)
