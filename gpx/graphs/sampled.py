"""Backends with sparse features of nodes; random walks, whose features' products are estimates of F(L)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.graphs.backends import Backend
from gpx.graphs.loads import Loads, Pattern, inner, product
from gpx.graphs.operator import Operator
from gpx.graphs.spectra import Spectrum
from gpx.graphs.walks import COUPLINGS, Counts, Law, Transitions, walk

LONGEST = 512  # steps, beyond which walks are no way to evaluate a spectrum
TAIL = 1e-4  # share of the modulation beyond the longest walk
KEPT = 16  # samples of a graph, which take memory: of stitches, added walks and different settings
LEAST = 0.01  # survival probability, so that a modulation that is learned cannot make loads unbounded
PILOT = (64, 100)  # rows of the pilot: at least so many, and one in so many


class SparseBackend(Backend):
    """A backend with sparse features: rows of Phi, or of the first of several factors, that are linear in the modulation."""

    stitches: int = 1
    survival: tuple[float, ...] | None

    @abstractmethod
    def loads(self, operator: Operator, nodes: np.ndarray, stitch: int = 0) -> Loads:
        """Loads of nodes [n], any of which may come up again; stitch: of which factor."""

    @property
    def settled_survival(self) -> tuple[float, ...]:
        """Raises: InputError before `settled`."""
        if self.survival is None:
            raise InputError(f"{self!r} is not settled: call settled(operator, spectrum) first.")
        return self.survival

    def _modulation(self, operator: Operator, spectrum: Spectrum) -> Tensor:
        return spectrum.series(len(self.settled_survival), operator.rate, 0.5 / self.stitches)

    def covariance(self, operator: Operator, spectrum: Spectrum, left: Tensor, right: Tensor) -> Tensor:
        if len(left) < len(right):
            return self.covariance(operator, spectrum, right, left).mT
        f = self._modulation(operator, spectrum)
        ends = [self.loads(operator, nodes.cpu().numpy()) for nodes in (left, right)]
        placed = [Pattern(e.counts.indptr, e.counts.columns, (len(e.counts.rows), e.size)) for e in ends]
        (at_left, of_left), (at_right, of_right) = ((p, load.values(f)) for p, load in zip(placed, ends, strict=True))
        if self.stitches == 1:
            return inner(at_left, of_left, at_right, of_right)
        X = product(at_right, of_right, torch.eye(len(right), dtype=f.dtype), transposed=True)
        return product(at_left, of_left, self._inner(operator, f, X))

    def _inner(self, operator: Operator, f: Tensor, X: Tensor) -> Tensor:
        """X times the factors after the first and their transposes."""
        factors = [self._factor(operator, f, stitch) for stitch in range(1, self.stitches)]
        for pattern, values in factors:
            X = product(pattern, values, X, transposed=True)
        for pattern, values in factors[::-1]:
            X = product(pattern, values, X)
        return X

    def _factor(self, operator: Operator, f: Tensor, stitch: int) -> tuple[Pattern, Tensor]:
        size = operator.graph.num_nodes
        loads = self.loads(operator, np.arange(size), stitch)
        return Pattern(loads.counts.indptr, loads.counts.columns, (size, size)), loads.values(f)

    def diagonal(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        f = self._modulation(operator, spectrum)
        if self.stitches > 1:
            return self.features(operator, spectrum, nodes).square().sum(1)
        loads = self.loads(operator, nodes.cpu().numpy())
        total = torch.zeros(len(nodes), dtype=f.dtype)
        return total.index_add(0, torch.from_numpy(loads.rows()), loads.values(f).square())

    def multiply(self, operator: Operator, spectrum: Spectrum, v: Tensor) -> Tensor:
        f = self._modulation(operator, spectrum)
        pattern, values = self._factor(operator, f, 0)
        return product(pattern, values, self._inner(operator, f, product(pattern, values, v, transposed=True)))

    def features(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        f, size = self._modulation(operator, spectrum), operator.graph.num_nodes
        loads = self.loads(operator, nodes.cpu().numpy())
        first = Pattern(loads.counts.indptr, loads.counts.columns, (len(nodes), size))
        X = product(first, loads.values(f), torch.eye(len(nodes), dtype=f.dtype), transposed=True)
        for stitch in range(1, self.stitches):
            X = product(*self._factor(operator, f, stitch), X, transposed=True)
        return X.mT


@dataclass(frozen=True)
class Walks(SparseBackend):
    """Graph random features: row i of Phi is the mean of walks from node i, ``Phi_iu = sum_l f_l V_iul``, E V_l = S^l, so that
    ``E (Phi Phi^T)_ij = F(L)_ij`` for i != j; on the diagonal it is larger by O(1 / walks). ``Phi Phi^T`` is a covariance for any
    draw, and the draw is a function of the seed: it is the same for training and test, and for every step of an optimiser.

    Arguments: walks: per node; lengths: how many powers of S, None: until 1e-4 of the modulation is left; halting: "matched":
    a walk survives in proportion to the modulation at the start of a fit; "fixed": all have the same length; a
    number p in (0, 1): each step is the last with this probability; coupling: of the halting times of a node's walks,
    directions: of the steps of walkers that are at one node: "iid", "antithetic" (pairs), "repelling" (as many as there are
    choices) or "systematic" (all together); stitches: F is a product of so many independent samples of shorter
    walks, multiplied only with vectors; memory: GB that the counts of one sample may take.
    Raises: InputError for other values, a modulation that does not decay, or too little memory, with what would fit.
    Cost: O(walks length) time and memory per node, independent of N. Source: Reid et al. (2024), "General graph random features";
    Reid et al. (2023), "Repelling random walks"; Choromanski et al. (2025), arXiv 2510.07716 (stitching). Theory:
    docs/theory/graphs.md.

    >>> Walks(walks=100, halting=0.1)
    Walks(walks=100, lengths=None, halting=0.1, coupling='systematic', directions='systematic', stitches=1, seed=0, memory=4.0)
    """

    walks: int = 256
    lengths: int | None = None
    halting: str | float = "matched"
    coupling: str = "systematic"
    directions: str = "systematic"
    stitches: int = 1
    seed: int = 0
    memory: float = 4.0
    added: tuple[int, ...] = field(default=(), repr=False)
    survival: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("walks", "stitches", *(["lengths"] if self.lengths is not None else [])):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
                raise InputError(f"Walks needs {name}, an integer >= 1, got {value!r}.")
        for name in ("coupling", "directions"):
            if getattr(self, name) not in COUPLINGS:
                raise InputError(f"Walks needs {name} to be one of {COUPLINGS}, got {getattr(self, name)!r}.")
        geometric = isinstance(self.halting, float) and 0 < self.halting < 1
        if not geometric and self.halting not in ("matched", "fixed"):
            raise InputError(
                f"Walks needs halting='matched', 'fixed' or a probability in (0, 1), got {self.halting!r}."
            )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"Walks needs a seed, an integer >= 0, got {self.seed!r}.")
        if isinstance(self.memory, bool) or not isinstance(self.memory, (int, float)) or not self.memory > 0:
            raise InputError(f"Walks needs memory > 0, in GB, got {self.memory!r}.")
        for name in ("added", "survival"):
            if isinstance(value := getattr(self, name), list):  # from a file
                object.__setattr__(self, name, tuple(value))

    def settled(self, operator: Operator, spectrum: Spectrum, anew: bool = False) -> Walks:
        if self.survival is not None and not anew:
            return self
        length = self.lengths or enough(operator, spectrum, self.stitches)
        with torch.no_grad():
            f = spectrum.series(length, operator.rate, 0.5 / self.stitches).abs().double().numpy()
        if self.halting == "matched":
            reach = np.maximum.accumulate(f[::-1])[::-1]
            survival = np.maximum(reach / reach[0], LEAST)
        else:
            survival = np.ones(length) if self.halting == "fixed" else (1 - float(self.halting)) ** np.arange(length)
        return replace(self, survival=tuple(survival.tolist()))

    def more(self, walks: int) -> Walks:
        """These walks and so many more from every node: those that were drawn are kept. Raises: InputError unless walks >= 1."""
        if isinstance(walks, bool) or not isinstance(walks, int) or not 1 <= walks < 2**31:
            raise InputError(f"Walks.more needs walks, an integer >= 1, got {walks!r}.")
        return replace(self, added=(*self.added, walks))

    def loads(self, operator: Operator, nodes: np.ndarray, stitch: int = 0) -> Loads:
        """Loads of nodes [n], any of which may come up again. The walks are kept with the operator."""
        counts = self._counts(operator, nodes, stitch, self.walks, 0)
        total = self.walks
        for walks in self.added:
            counts = counts.joined(self._counts(operator, nodes, stitch, walks, total))
            total += walks
        root = np.sqrt(operator.stationary)
        start = np.repeat(root[nodes], np.diff(counts.indptr))
        survival = np.array(self.settled_survival)
        return Loads(counts, start / root[counts.columns] / total, survival, operator.graph.num_nodes)

    def _counts(self, operator: Operator, nodes: np.ndarray, stitch: int, walks: int, first: int) -> Counts:
        """The counts of nodes, of which those not drawn before are drawn."""
        law = Law(self.settled_survival, self.coupling, self.directions)
        seed = self.seed * 0x10001 + stitch
        key = (law, seed, walks, first)
        kept = operator.drawn.get(key)
        known = np.zeros(0, np.int64) if kept is None else kept.rows
        missing = np.setdiff1d(nodes, known)
        if len(missing) or kept is None:
            transitions = Transitions.of(operator)
            self._check_memory(transitions, missing, law, len(known))
            new = walk(transitions, missing, walks, law, seed % 2**64, first)
            kept = new if kept is None else kept.followed(new)
            operator.drawn[key] = kept
            for old in list(operator.drawn)[:-KEPT]:
                del operator.drawn[old]
        return kept.of(nodes)

    def _check_memory(self, transitions: Transitions, rows: np.ndarray, law: Law, known: int) -> None:
        """Estimate the memory by a pilot of few rows."""
        pilot = rows[:: max(1, min(PILOT[1], len(rows) // PILOT[0]))]
        if len(pilot) * PILOT[1] // 2 > len(rows) or len(rows) < PILOT[0] * PILOT[1]:
            return  # the pilot would be as long as the walks
        needed, walks, count = self._needed(transitions, pilot, law, self.walks), self.walks, len(rows) + known
        if needed * count <= self.memory * 1e9:
            return
        while walks > 1 and self._needed(transitions, pilot, law, walks) * count > self.memory * 1e9:
            walks //= 2
        size = needed * count / 1e9
        raise InputError(
            f"Walks from {count:,} nodes need about {size:.3g} GB, the limit is {self.memory:g} GB: take walks={walks}, lengths"
            f" below {len(law.survival)}, memory={math.ceil(size)}, or ask for fewer nodes."
        )

    def _needed(self, transitions: Transitions, pilot: np.ndarray, law: Law, walks: int) -> float:
        return walk(transitions, pilot, walks, law, self.seed).bytes_per_row


def enough(operator: Operator, spectrum: Spectrum, stitches: int = 1) -> int:
    """The number of powers of S until the tail of the modulation is negligible. Raises: InputError where 512 are too few."""
    with torch.no_grad():
        f = spectrum.series(LONGEST, operator.rate, 0.5 / stitches).abs().double().numpy()
        whole = float(spectrum.at(torch.zeros((), dtype=torch.float64), operator.rate)) ** (0.5 / stitches)
    reached = f.cumsum()
    beyond = len(f) * f[-1]  # at least the tail of a series that decays like a power above 2
    total = max(whole, reached[-1] + beyond)
    left = 1 - reached / total
    if left[-1] > TAIL:
        raise InputError(
            f"{left[-1]:.1%} of the modulation of this spectrum is beyond {LONGEST} steps: take stitches={4 * stitches}"
            " or more, lengths=..., a spectrum of less reach, or backend='chebyshev'."
        )
    return int(np.argmax(left <= TAIL)) + 1
