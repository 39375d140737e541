"""Backends with sparse features of nodes; random walks, whose features' products are estimates of F(L)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpx.errors import InputError, NumericalError
from gpx.graphs.backends import Backend
from gpx.graphs.loads import Loads, Pattern, inner, product
from gpx.graphs.operator import Operator
from gpx.graphs.reach import LONGEST, TAIL, advice, converges, enough, require_convergence, shares_beyond
from gpx.graphs.spectra import Spectrum
from gpx.graphs.walks import COUPLINGS, Counts, Law, Transitions, walk

CUT, CUT_SHORT, MARGIN = 0.01, 4, 2  # share beyond which a fit was cut short; how far it goes on then, and else
KEPT = 16  # samples of a graph, which take memory: of stitches, added walks and different settings
LEAST = 0.01  # survival probability, so that a modulation that is learned cannot make loads unbounded
NEVER = 1e-200  # survival probability, by which loads can be divided
PILOT = (64, 100)  # rows of the pilot: at least so many, and one in so many
BLOCK = 1 << 24  # numbers of a dense matrix between stitches that are there at a time

Factor = tuple[Pattern, Tensor]  # a sparse matrix: where it has entries, and which


class SparseBackend(Backend):
    """A backend with sparse features: rows of Phi, or of the first of several factors, that are linear in the modulation.

    lengths: how many powers of S, None: as many as the modulation has; survival: the share of walks that take part in each of
    them, filled in by `settled`; longest: of powers that nobody asked for.
    """

    series: ClassVar[bool] = True
    longest: ClassVar[int] = LONGEST
    more_stitches: ClassVar[tuple[int, ...]] = ()  # factors by which there may be more
    stitches: int = 1
    lengths: int | None
    survival: tuple[float, ...] | None

    @abstractmethod
    def loads(self, operator: Operator, nodes: np.ndarray, stitch: int = 0) -> Loads:
        """Loads of nodes [n], any of which may come up again; stitch: of which factor."""

    @abstractmethod
    def _matched(self, operator: Operator, spectrum: Spectrum, length: int, times: int) -> np.ndarray:
        """The survival [length times] for a spectrum that goes so many times as far as it does at its present values."""

    def settled(self, operator: Operator, spectrum: Spectrum) -> Self:
        """Raises: InputError where the modulation diverges, or goes farther than walks."""
        if self.survival is not None:
            return self
        require_convergence(operator, spectrum, self.stitches)
        if self._length(operator, spectrum) is None:
            left = shares_beyond(operator, spectrum, self.stitches, self.longest)[-1]
            raise InputError(
                f"{left:.1%} of the modulation of this spectrum is beyond {self.longest} steps: take"
                f" {self._advice(operator, spectrum)}."
            )
        return self.resettled(operator, spectrum)

    def resettled(self, operator: Operator, spectrum: Spectrum) -> Self:
        return self._reaching(operator, spectrum, 1)

    def extended(self, operator: Operator, spectrum: Spectrum) -> Self:
        """For walks that go some times as far as the present values need: an optimum that was cut short is not the last one."""
        return self._reaching(operator, spectrum, CUT_SHORT if self._left(operator, spectrum) > CUT else MARGIN)

    def _reaching(self, operator: Operator, spectrum: Spectrum, times: int) -> Self:
        require_convergence(operator, spectrum, self.stitches)
        length = self._length(operator, spectrum) or self.longest
        survival = self._matched(operator, spectrum, length, times)
        return replace(self, survival=tuple(survival[: max(length, self.longest)].tolist()))

    def _length(self, operator: Operator, spectrum: Spectrum) -> int | None:
        if self.lengths is None and self.stitches == 1 and spectrum.terms:
            return spectrum.terms  # all of them may be learned, negligible at the start or not
        return self.lengths or enough(operator, spectrum, self.stitches, self.longest)

    def shortfall(self, operator: Operator, spectrum: Spectrum) -> str:
        if (left := self._left(operator, spectrum)) <= TAIL:
            return ""
        return (
            f"{left:.2%} of the modulation of {spectrum!r} is beyond the {len(self.settled_survival)} steps of"
            f" {type(self).__name__}, where the kernel is cut: take {self._advice(operator, spectrum)}"
        )

    def _left(self, operator: Operator, spectrum: Spectrum) -> float:
        """The share of the modulation beyond the lengths, where nobody asked for these."""
        steps = len(self.settled_survival)
        if self.lengths is not None or (self.stitches == 1 and spectrum.terms):
            return 0.0
        return float(shares_beyond(operator, spectrum, self.stitches, max(steps, self.longest))[steps - 1])

    def _advice(self, operator: Operator, spectrum: Spectrum) -> str:
        return advice(operator, spectrum, self.stitches, self.more_stitches, self.longest)

    @property
    def settled_survival(self) -> tuple[float, ...]:
        """Raises: InputError before `settled`."""
        if self.survival is None:
            raise InputError(f"{self!r} is not settled: call settled(operator, spectrum) first.")
        return self.survival

    def _modulation(self, operator: Operator, spectrum: Spectrum) -> Tensor:
        if not converges(operator, spectrum, self.stitches):
            raise NumericalError(
                f"The series of {spectrum!r} in the walk matrix, with stitches={self.stitches}, diverges."
            )
        return spectrum.series(len(self.settled_survival), operator.rate, 0.5 / self.stitches)

    def covariance(self, operator: Operator, spectrum: Spectrum, left: Tensor, right: Tensor) -> Tensor:
        if len(left) < len(right):
            return self.covariance(operator, spectrum, right, left).mT
        f = self._modulation(operator, spectrum)
        (at_left, of_left), (at_right, of_right) = (self._rows(operator, f, nodes) for nodes in (left, right))
        if self.stitches == 1:
            return inner(at_left, of_left, at_right, of_right)
        factors = self._factors(operator, f)

        def columns(identity: Tensor) -> Tensor:
            X = _along([(at_right, of_right), *factors], identity)
            return product(at_left, of_left, _back(factors, X))

        return _in_blocks(columns, len(right), operator.graph.num_nodes, f)

    def _rows(self, operator: Operator, f: Tensor, nodes: Tensor, stitch: int = 0) -> Factor:
        """Rows of a factor at nodes [n]."""
        loads = self.loads(operator, nodes.cpu().numpy(), stitch)
        return Pattern(loads.counts.indptr, loads.counts.columns, (len(nodes), loads.size)), loads.values(f)

    def _factors(self, operator: Operator, f: Tensor) -> list[Factor]:
        """Those after the first, of all nodes."""
        every = torch.arange(operator.graph.num_nodes if self.stitches > 1 else 0)
        return [self._rows(operator, f, every, stitch) for stitch in range(1, self.stitches)]

    def diagonal(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        f = self._modulation(operator, spectrum)
        if self.stitches > 1:
            all_of = [self._rows(operator, f, nodes), *self._factors(operator, f)]
            return _in_blocks(lambda X: _along(all_of, X).square().sum(0), len(nodes), operator.graph.num_nodes, f)
        loads = self.loads(operator, nodes.cpu().numpy())
        total = torch.zeros(len(nodes), dtype=f.dtype)
        return total.index_add(0, torch.from_numpy(loads.rows()), loads.values(f).square())

    def multiply(self, operator: Operator, spectrum: Spectrum, v: Tensor) -> Tensor:
        f = self._modulation(operator, spectrum)
        all_of = [self._rows(operator, f, torch.arange(operator.graph.num_nodes)), *self._factors(operator, f)]
        return _back(all_of, _along(all_of, v))

    def features(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        f = self._modulation(operator, spectrum)
        all_of = [self._rows(operator, f, nodes), *self._factors(operator, f)]
        return _along(all_of, torch.eye(len(nodes), dtype=f.dtype)).mT

    def combined(self, operator: Operator, spectrum: Spectrum, nodes: Tensor, weights: Tensor) -> Tensor:
        """Features of nodes [n] times weights [N, k], never dense; differentiable."""
        f = self._modulation(operator, spectrum)
        return _back([self._rows(operator, f, nodes), *self._factors(operator, f)], weights)


def _along(factors: Sequence[Factor], X: Tensor) -> Tensor:
    """``F_s^T ... F_1^T X``."""
    for pattern, values in factors:
        X = product(pattern, values, X, transposed=True)
    return X


def _back(factors: Sequence[Factor], X: Tensor) -> Tensor:
    """``F_1 ... F_s X``."""
    for pattern, values in factors[::-1]:
        X = product(pattern, values, X)
    return X


def _in_blocks(work: Callable[[Tensor], Tensor], count: int, size: int, like: Tensor) -> Tensor:
    """What `work` makes of the columns of the identity [count, count], some at a time, along the last dimension. What it holds of
    them, [size, some], is forgotten, and made again for gradients.
    """
    step = max(1, BLOCK // max(1, size, count))
    if count <= step:
        return work(torch.eye(count, dtype=like.dtype))
    parts = []
    for start in range(0, count, step):
        columns = torch.zeros(count, min(step, count - start), dtype=like.dtype)
        columns[start : start + step].fill_diagonal_(1)
        parts.append(checkpoint(work, columns, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts, -1)


@dataclass(frozen=True)
class Walks(SparseBackend):
    """Graph random features: row i of Phi is the mean of walks from node i, ``Phi_iu = sum_l f_l V_iul``, E V_l = S^l, so that
    ``E (Phi Phi^T)_ij = F(L)_ij`` for i != j; on the diagonal it is larger by O(1 / walks). ``Phi Phi^T`` is a covariance for any
    draw, and the draw is a function of the seed: it is the same for training and test, and for every step of an optimiser.

    Arguments: walks: per node; lengths: how many powers of S, None: until 1e-4 of the modulation is left, for which walks are
    drawn a second time where a fit goes farther than its start; halting: "matched":
    a walk survives in proportion to the modulation where a fit begins; "fixed": all have the same length; a
    number p in (0, 1): each step is the last with this probability; coupling: of the halting times of a node's walks,
    directions: of the steps of walkers that are at one node: "iid", "antithetic" (pairs), "repelling" (as many as there are
    choices) or "systematic" (all together); stitches: F is a product of so many independent samples of shorter
    walks, multiplied only with vectors; memory: GB that the counts may take, those of all stitches and of
    added walks together.
    Raises: InputError for other values, a modulation that does not decay, or too little memory, with what would fit.
    Cost: O(walks length) time and memory per node, independent of N. Source: Reid et al. (2024), "General graph random features";
    Reid et al. (2023), "Repelling random walks"; Choromanski et al. (2025), arXiv 2510.07716 (stitching). Theory:
    docs/theory/graphs.md.

    >>> Walks(walks=100, halting=0.1)
    Walks(walks=100, lengths=None, halting=0.1, coupling='systematic', directions='systematic', stitches=1, seed=0, memory=4.0)
    """

    more_stitches: ClassVar[tuple[int, ...]] = (2, 4, 8, 16, 32, 64)
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

    def _matched(self, operator: Operator, spectrum: Spectrum, length: int, times: int) -> np.ndarray:
        if self.halting == "fixed":
            return np.ones(length * times)
        if self.halting != "matched":
            return np.maximum((1 - float(self.halting)) ** np.arange(length * times), NEVER)
        with torch.no_grad():
            f = spectrum.series(length, operator.rate, 0.5 / self.stitches).abs().double().numpy()
        reach = np.maximum.accumulate(f[::-1])[::-1]
        return np.repeat(np.maximum(reach / reach[0], LEAST), times)

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
            self._check_memory(transitions, missing, law, len(known), stitch)
            new = walk(transitions, missing, walks, law, seed % 2**64, first)
            kept = new if kept is None else kept.followed(new)
            operator.drawn[key] = kept
            for old in list(operator.drawn)[:-KEPT]:
                del operator.drawn[old]
        return kept.of(nodes)

    def _check_memory(self, transitions: Transitions, rows: np.ndarray, law: Law, known: int, stitch: int) -> None:
        """Estimate the memory of all walks, from these rows and those known, and from all in factors after the first, by a pilot
        of few rows.
        """
        size, total = len(transitions.indptr) - 1, self.walks + sum(self.added)
        count = (len(rows) + known if stitch == 0 else 0) + (self.stitches - 1) * size
        if count * _most_bytes(law, total, size) <= self.memory * 1e9:
            return
        rows = rows if self.stitches == 1 else np.arange(size)
        pilot = rows[:: max(1, min(PILOT[1], len(rows) // PILOT[0]))]
        each = {walks: self._needed(transitions, pilot, law, walks) for walks in {self.walks, *self.added}}
        needed = count * sum(each[walks] for walks in (self.walks, *self.added))
        if needed <= self.memory * 1e9:
            return
        while total > 1 and self._needed(transitions, pilot, law, total) * count > self.memory * 1e9:
            total //= 2
        raise InputError(
            f"Walks from {count:,} nodes need about {needed / 1e9:.3g} GB, the limit is {self.memory:g} GB: take walks={total},"
            f" lengths below {len(law.survival)}, memory={math.ceil(needed / 1e9)}, or ask for fewer nodes."
        )

    def _needed(self, transitions: Transitions, pilot: np.ndarray, law: Law, walks: int) -> float:
        return walk(transitions, pilot, walks, law, self.seed).bytes_per_row


def _most_bytes(law: Law, walks: int, size: int) -> float:
    """Of a row's counts, if no two walks ever meet; on average over the lengths of walks."""
    entries = min(size, 1 + walks * sum(law.survival[1:]))
    return entries * (np.dtype(np.int32).itemsize + len(law.survival) * np.min_scalar_type(-walks - 1).itemsize)
