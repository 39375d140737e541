"""A sparse inverse Cholesky factor of the prior: every value given the nearest of those that come before it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from gpx.engines.base import Engine
from gpx.engines.sic_posterior import SICPosterior
from gpx.errors import InputError
from gpx.inputs import Data
from gpx.linalg.orderings import ORDERINGS, choose_ordering, earlier_neighbours, spatial
from gpx.linalg.sparse_factor import places
from gpx.prior import Prior
from gpx.selection.greedy import greedy
from gpx.sites import Sites
from gpx.structure.metric import metric

METHODS = ("sites", "dkl", "response")
FIRST_ROUND = 2_000  # rows
ROUGH = 2e-4  # nats per row and unit of a coordinate
CANDIDATES = 10_000  # rows that inducing inputs are chosen from
SMALL = 500  # points up to which variances are exact whatever the tolerance


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which values depend on which: x [n, D], distinct inputs in order; slots [N]: where each row of the data is among them;
    near [n, m]: the neighbours of each among those before it, -1 for none; weights [D]: of the columns, for distances;
    inducing [k, D]: inputs of the low-rank part.
    """

    x: Tensor
    slots: Tensor
    near: np.ndarray
    weights: Tensor
    inducing: Tensor

    @cached_property
    def scaled(self) -> np.ndarray:
        """[n, d]: coordinates in which neighbours are near."""
        return _scaled(self.x, self.weights)

    @cached_property
    def tree(self) -> cKDTree:
        """Of the scaled coordinates."""
        return cKDTree(self.scaled)

    @cached_property
    def places(self) -> np.ndarray:
        """Where pairs of neighbours meet again: see `linalg.sparse_factor.places`."""
        return places(self.near)

    @cached_property
    def curve(self) -> np.ndarray:
        """All points, along a curve on which neighbours in space follow each other."""
        return spatial(self.scaled)

    def along(self, x: Tensor) -> Tensor:
        """The order of other inputs along such a curve."""
        return torch.from_numpy(spatial(_scaled(x, self.weights))).to(x.device)

    def neighbours(self, x: Tensor, count: int) -> np.ndarray:
        """The nearest of its points for other inputs, ascending: [len(x), count], or all where there are fewer."""
        count = min(count, len(self.x))
        if not count or not len(x):
            return np.zeros((len(x), count), np.int32)
        near = self.tree.query(_scaled(x, self.weights), count, workers=torch.get_num_threads())[1]
        return np.sort(near.reshape(len(x), count), 1).astype(np.int32)

    def extended(self, x: Tensor, count: int) -> Pattern:
        """With more inputs, after those that are there; new where none has the same values."""
        groups = _groups(torch.cat([self.x, x]), self.weights)
        slots, first = _numbered(groups)
        whole = torch.cat([self.x, x])[first]
        count = min(count, max(len(whole) - 1, 0))
        near = earlier_neighbours(_scaled(whole, self.weights), count, len(self.x), torch.get_num_threads())
        size = max(self.near.shape[1], near.shape[1])
        near = np.concatenate([_padded(self.near, size), _padded(near, size)])
        return Pattern(whole, torch.cat([self.slots, slots[len(self.x) :]]), near, self.weights, self.inducing)


def pattern(kernel: Any, x: Tensor, count: int, ordering: str, inducing: int = 0) -> Pattern:
    """The pattern of a kernel for inputs x [N, D]: rows that it cannot tell apart are one point."""
    weights = metric(kernel, x)
    slots, first = _numbered(_groups(x, weights))
    scaled = _scaled(x[first], weights)
    order = choose_ordering(scaled, ordering)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    near = earlier_neighbours(scaled[order], min(count, max(len(order) - 1, 0)), 0, torch.get_num_threads())
    order = torch.from_numpy(order)
    some = x[first[torch.linspace(0, len(first) - 1, min(CANDIDATES, len(first))).long()]]
    z = some[greedy(kernel, some, inducing)[0]] if inducing and len(x) else some[:0]
    return Pattern(x[first][order.to(x.device)], torch.from_numpy(rank).to(x.device)[slots], near, weights, z)


def _scaled(x: Tensor, weights: Tensor) -> np.ndarray:
    """The columns that count, in units of their weights; one of zeros if none does."""
    kept = weights > 0
    return (x[:, kept] * weights[kept] if bool(kept.any()) else torch.zeros_like(x[:, :1])).cpu().double().numpy()


def _groups(x: Tensor, weights: Tensor) -> np.ndarray:
    """A number for each row of x, equal for rows that agree in the columns that count."""
    kept = x[:, weights > 0].cpu().numpy()
    if not kept.shape[1]:
        return np.zeros(len(x), np.int64)
    order = np.lexsort(kept.T)
    changes = (kept[order[1:]] != kept[order[:-1]]).any(1)
    groups = np.empty(len(x), np.int64)
    groups[order] = np.concatenate([[0], changes.cumsum()])[: len(x)]
    return groups


def _numbered(groups: np.ndarray) -> tuple[Tensor, Tensor]:
    """Slots [N], in the order of their first appearance, and the first row of each."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return torch.from_numpy(rank[inverse.reshape(-1)]), torch.from_numpy(first[order])


def _padded(near: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([np.full((len(near), size - near.shape[1]), -1, np.int32), near], 1)


@dataclass(frozen=True)
class SICPlan:
    """The data's inputs [N, D] and, for every kernel, a pattern."""

    x: Tensor
    patterns: tuple[Pattern, ...]

    def stale(self, prior: Prior) -> bool:
        """Never: `fit` makes the plan anew between its rounds."""
        return False


@dataclass(frozen=True)
class SIC(Engine):
    """Sparse inverse Cholesky (Vecchia): ``K^-1 ~ U U^T``, column i of U being the best with entries for its nearest earlier
    neighbours, ``u = K_SS^-1 e / sqrt(e^T K_SS^-1 e)``; the posterior precision is an incomplete factor of ``U U^T + diag(tau)``.

    Arguments: neighbours: how many, m; ordering: "maximin" (coarse to fine; random above five dimensions), "random" or
    "coordinate"; method: "sites" (a lower bound of the evidence of this prior, any likelihood), "dkl" (the largest
    such bound: the factor of the posterior is searched for, for comparison) or "response" (hyperparameters by
    the Vecchia likelihood of noisy targets: faster; for other likelihoods than the Gaussian as "sites"); tolerance: share below
    which solves for variances stop following entries (0: exact); inducing: k inputs chosen greedily, whose values explain a part
    of the kernel exactly, while neighbours are for the rest (for smooth kernels, and more than five dimensions).
    Raises: InputError for another value. Cost: O(N m^3) time, O(N m^2) memory; nothing grows faster with N but ``N log N`` for
    neighbours. With inducing inputs, O(N m^2 k) more. Source: Schaefer, Katzfuss & Owhadi (2021), "Sparse Cholesky factorization
    by Kullback-Leibler minimization", eq. 3; Cao et al. (2023), "Variational sparse inverse Cholesky approximation", section 3;
    Gyger, Furrer & Sigrist (2025), "Vecchia-inducing-points full-scale approximations for Gaussian processes", for the low-rank
    part.

    >>> SIC(neighbours=20)
    SIC(neighbours=20, ordering='maximin', method='sites', tolerance=0.001, inducing=0)
    """

    neighbours: int = 30  # pyright: ignore[reportIncompatibleVariableOverride]
    ordering: str = "maximin"
    method: str = "sites"
    tolerance: float = 1e-3
    inducing: int = 0
    exact: ClassVar[bool] = False
    responsive: ClassVar[bool] = False
    precision: ClassVar[float] = 1e-7

    def __post_init__(self) -> None:
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, int) or self.neighbours < 1:
            raise InputError(f"SIC needs neighbours, a number >= 1, got {self.neighbours!r}.")
        if self.ordering not in ORDERINGS:
            raise InputError(
                f"SIC needs ordering to be one of {', '.join(map(repr, ORDERINGS))}, got {self.ordering!r}."
            )
        if self.method not in METHODS:
            raise InputError(f"SIC needs method to be one of {', '.join(map(repr, METHODS))}, got {self.method!r}.")
        if not isinstance(self.tolerance, (int, float)) or not 0 <= self.tolerance < 1:
            raise InputError(f"SIC needs a tolerance, 0 <= tolerance < 1, got {self.tolerance!r}.")
        if isinstance(self.inducing, bool) or not isinstance(self.inducing, int) or self.inducing < 0:
            raise InputError(f"SIC needs inducing, a number of inputs >= 0, got {self.inducing!r}.")

    def plan(self, prior: Prior, data: Data) -> SICPlan:
        """Order the inputs and find their neighbours, at the present lengthscales."""
        settings = self.neighbours, self.ordering, self.inducing
        return SICPlan(data.x, tuple(pattern(kernel, data.x, *settings) for kernel in prior.kernels))

    def rounds(self, rows: int, plan: Any = None) -> tuple[int, ...]:
        """2,000 rows, four times as many, ..., and all; neighbours are found anew for each."""
        fewer = [FIRST_ROUND * 4**k for k in range(20) if FIRST_ROUND * 4**k <= rows / 2]
        return (*fewer, rows) if fewer else (rows, rows)

    def roughness(self, plan: Any, rows: int) -> float:
        """A few thousandths of the standard error of what is learned best: the gradient takes V for optimal."""
        return ROUGH * rows

    def looseness(self, rows: int) -> float:
        """Above 500 rows variances have an error of their own, by `tolerance`."""
        return self.tolerance if rows > SMALL else 0.0

    def condition(self, prior: Prior, plan: SICPlan, params: dict[str, Tensor], sites: Sites) -> SICPosterior:
        """Nothing is computed before it is asked for."""
        return SICPosterior(self, prior, plan, sites)

    def precisely(self, size: int) -> tuple[float, bool]:
        """The tolerance for so many points, and whether V is searched for."""
        return 0.0 if size <= SMALL or self.method == "dkl" else self.tolerance, self.method == "dkl"
