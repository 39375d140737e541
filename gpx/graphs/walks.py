"""Random walks of a graph, counted: how many of a node's walks are where after l steps. Compiled loops, numbers in and out.

Random numbers are functions of (seed, node, walk, step), so that rows do not depend on each other, on their order or on the
number of threads. Walkers that are at one node after the same number of steps choose their next nodes together, in blocks:
within a block of size b the quantiles are ``u + k / b mod 1``, k = 0 ... b - 1, with one uniform u, each uniform by itself.
Theory: docs/theory/graphs.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from scipy import sparse

from gpx.graphs.operator import Operator
from gpx.linalg.threads import in_runs

COUPLINGS = ("iid", "antithetic", "repelling", "systematic")
EQUAL = 1e-14  # difference of probabilities that is rounding: nothing is searched where all steps are as likely
RUN, GROUP = 512, 1 << 12  # rows that a thread takes at once, and whose parts are held before they are put together
ROOM = 1.1  # for results, as a multiple of what is expected
COMPILATION: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
GOLDEN, MIX1, MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S11, S27, S30, S31, STEPS = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(1 << 16)
TURN = 0.6180339887498949  # the golden section: halting times of neighbouring walkers are spread evenly


@dataclass(frozen=True)
class Law:
    """survival [L]: the probability that a walk has more than l - 1 steps, 1 at l = 0; halting, directions: couplings."""

    survival: tuple[float, ...]
    halting: str
    directions: str


@dataclass(frozen=True, eq=False)
class Transitions:
    """Steps of the walks: P in compressed rows, as running sums, and the signs of the weights."""

    indptr: np.ndarray
    indices: np.ndarray
    cumulative: np.ndarray
    signs: np.ndarray

    @staticmethod
    def of(operator: Operator) -> Transitions:
        """The steps of ``P_uv``, in proportion to the weight of the edge. Cost: O(E)."""
        S, root = operator.walk_matrix, np.sqrt(operator.stationary)
        degree = np.diff(S.indptr)
        weights = np.abs(S.data) * root[S.indices] / np.repeat(root, degree)  # sums of 1
        start = np.repeat(S.indptr[:-1], degree)
        equal = np.abs(weights - 1 / np.repeat(degree, degree)).max(initial=0) < EQUAL
        running = np.concatenate([[0.0], np.cumsum(weights)])
        cumulative = np.ones(0) if equal else running[1:] - running[start]
        signs = np.where(S.data < 0, -1, 1).astype(np.int8) if (S.data < 0).any() else np.ones(0, np.int8)
        return Transitions(S.indptr.astype(np.int64), S.indices.astype(np.int32), cumulative, signs)


@dataclass(frozen=True, eq=False)
class Counts:
    """Signed numbers of walks, by node of departure, node and steps: row r of `indptr` belongs to `rows[r]`, its entries are at
    nodes `columns` [nnz], `visits` [nnz, L].
    """

    rows: np.ndarray
    indptr: np.ndarray
    columns: np.ndarray
    visits: np.ndarray

    @property
    def bytes_per_row(self) -> float:
        """Memory of a row, on average."""
        return (self.columns.nbytes + self.visits.nbytes) / max(1, len(self.rows))

    def followed(self, other: Counts) -> Counts:
        """These rows and others."""
        return Counts(
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.indptr, self.indptr[-1] + other.indptr[1:]]),
            np.concatenate([self.columns, other.columns]),
            np.concatenate([self.visits, other.visits]),
        )

    def of(self, nodes: np.ndarray) -> Counts:
        """The rows of these nodes, which are all there; the same ones share their arrays."""
        if np.array_equal(nodes, self.rows):
            return self
        order = np.argsort(self.rows, kind="stable")
        at = order[np.searchsorted(self.rows, nodes, sorter=order)]
        sizes = np.diff(self.indptr)[at]
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        entries = np.repeat(self.indptr[at] - indptr[:-1], sizes) + np.arange(indptr[-1])
        return Counts(np.asarray(nodes), indptr, self.columns[entries], self.visits[entries])

    def joined(self, other: Counts) -> Counts:
        """The counts of both, for the same rows: of more walks."""
        size, length = int(max(self.columns.max(initial=0), other.columns.max(initial=0))) + 1, self.visits.shape[1]
        keys = np.concatenate(
            [np.repeat(np.arange(len(c.rows)), np.diff(c.indptr)) * size + c.columns for c in (self, other)]
        )
        unique, inverse = np.unique(keys, return_inverse=True)
        entries = (np.ones(len(keys), np.int32), (inverse.reshape(-1), np.arange(len(keys))))
        visits = sparse.csr_array(entries, (len(unique), len(keys))) @ np.concatenate(
            [self.visits, other.visits]
        ).astype(np.int32)
        indptr = np.searchsorted(unique, np.arange(len(self.rows) + 1) * size)
        return Counts(self.rows, indptr, (unique % size).astype(np.int32), visits.astype(np.int32).reshape(-1, length))


def walk(transitions: Transitions, rows: np.ndarray, walks: int, law: Law, seed: int, first: int = 0) -> Counts:
    """Counts of `walks` walks from each of the rows. first: the number of the first walk; others than those of a sample so far
    add to it. Cost: O(rows walks steps), on as many threads as torch uses.
    """
    survival = np.array(law.survival)
    kind = np.min_scalar_type(-walks - 1).type  # counts are up to as many, and down to minus as many
    couplings = COUPLINGS.index(law.halting), COUPLINGS.index(law.directions)
    rows = np.ascontiguousarray(rows, np.int64)

    def work(start: int, stop: int) -> Any:
        arguments = transitions.indptr, transitions.indices, transitions.cumulative, transitions.signs
        return _walk(
            rows[start:stop], *arguments, survival, walks, *couplings, np.uint64(seed), np.uint64(first), kind(0)
        )

    sizes, *found = work(0, 0)
    lengths, total, done = [sizes], 0, 0
    for begin in range(0, len(rows), GROUP):
        for sizes, *part in in_runs(lambda i, j, n=begin: work(n + i, n + j), min(GROUP, len(rows) - begin), RUN):
            end, done = total + len(part[0]), done + len(sizes)
            if end > len(found[0]):
                found = [_longer(array, total, int(ROOM * end * len(rows) / done)) for array in found]
            for whole, piece in zip(found, part, strict=True):
                whole[total:end] = piece
            lengths.append(sizes)
            total = end
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Counts(rows, indptr, found[0][:total], found[1][:total])


def _longer(array: np.ndarray, used: int, size: int) -> np.ndarray:
    """With the entries that are used, and room for `size`: memory that is not written to is not taken."""
    longer = np.empty((size, *array.shape[1:]), array.dtype)
    longer[:used] = array[:used]
    return longer


@numba.njit(inline="always", **COMPILATION)
def _mix(z):
    """The finaliser of splitmix64."""
    z = (z ^ (z >> S30)) * MIX1
    z = (z ^ (z >> S27)) * MIX2
    return z ^ (z >> S31)


@numba.njit(inline="always", **COMPILATION)
def _uniform(stream, walk, step):
    """In [0, 1): a function of its arguments."""
    return (_mix(stream + (walk * STEPS + step) * GOLDEN) >> S11) * 2.0**-53


@numba.njit(inline="always", **COMPILATION)
def _block(coupling, degree, count):
    """How many walkers choose together: one, two, as many as there are choices, or all."""
    if coupling == 0:
        return 1
    if coupling == 1:
        return 2
    return degree if coupling == 2 else count


@numba.njit(**COMPILATION)
def _halting(times, coupling, survival, stream, first):
    """For each walker the quantile of its length: it survives to step l while this is below survival[l]."""
    walks, about = len(times), 1
    if len(survival) > 1:  # on average one of so many walks ends at the first step
        about = int(np.ceil(1 / max(1 - survival[1], 1e-3)))
    size, u, begun, length = _block(coupling, about, walks), 0.0, 0, 1
    for k in range(walks):
        if k % size == 0:
            u, begun, length = _uniform(stream, first + np.uint64(k), np.uint64(0)), k, min(size, walks - k)
        if coupling == 3:
            t = u + (k - begun) * TURN
        else:
            t = u + (k - begun) / length
        times[k] = t - np.floor(t)


@numba.njit(inline="always", **COMPILATION)
def _choose(start, stop, cumulative, quantile):
    """The index of an edge among those of a node, start ... stop - 1."""
    if len(cumulative) == 0:
        return min(start + np.int64(quantile * (stop - start)), stop - 1)
    last = stop - 1
    while start < last:
        middle = (start + last) // 2
        if cumulative[middle] > quantile:
            last = middle
        else:
            start = middle + 1
    return start


@numba.njit(**COMPILATION)
def _step(step, groups, active, bounds, order, nodes, times, survival, directions, stream, first, links, work):
    """Which walkers are left, in order, and the edges that they take. The loops have no branch on what they load, so that
    several loads are under way at once: a large graph is not in the cache.
    """
    indptr, cumulative = links
    starts, stops, moved, edges = work
    for g in range(groups):
        starts[g], stops[g] = indptr[nodes[active[g]]], indptr[nodes[active[g]] + 1]
    alive, threshold = 0, survival[step]
    for g in range(groups):
        begin, start, stop = alive, starts[g], stops[g]
        for k in range(bounds[g], bounds[g + 1]):
            moved[alive] = order[k]
            alive += times[order[k]] < threshold
        block, k = _block(directions, stop - start, alive - begin), begin
        while k < alive:
            end = min(k + block, alive)
            quantile, share = _uniform(stream, first + np.uint64(moved[k]), np.uint64(step)), 1.0 / (end - k)
            while k < end:
                edges[k] = _choose(start, stop, cumulative, quantile)
                quantile += share
                quantile = quantile if quantile < 1.0 else quantile - 1.0
                k += 1
    return alive


@numba.njit(**COMPILATION)
def _walk(rows, indptr, indices, cumulative, signs, survival, walks, halting, directions, seed, first, zero):
    lengths, size = len(survival), len(indptr) - 1
    most = min(size, 1 + walks * (lengths - 1))
    bits = 4
    while 2**bits < 2 * most:
        bits += 1
    shift, mask = np.uint64(64 - bits), 2**bits - 1
    keys, table = (
        np.full(2**bits, -1, np.int32),
        np.zeros(2**bits, np.int32),
    )  # open hashing: visited nodes and their entries
    nodes, slots = np.empty(most, np.int64), np.empty(most, np.int64)
    here, ends = (
        np.zeros(most, np.int64),
        np.empty(most, np.int64),
    )  # walkers at an entry after a step, and where they end
    times, sign = np.empty(walks), np.ones(walks, np.int64)
    order, place, until = np.empty(walks, np.int64), np.empty(walks, np.int64), np.empty(walks, np.int64)
    moved, edges, targets = np.empty(walks + 1, np.int64), np.empty(walks, np.int64), np.empty(walks, np.int64)
    active, bounds = np.empty(walks + 1, np.int64), np.empty(walks + 2, np.int64)
    links, work = (indptr, cumulative), (np.empty(walks + 1, np.int64), np.empty(walks + 1, np.int64), moved, edges)
    capacity = max(64, len(rows) * min(most, 64))
    columns, visits = np.empty(capacity, np.int32), np.empty((capacity, lengths), type(zero))
    sizes, total = np.zeros(len(rows), np.int64), 0
    for r in range(len(rows)):
        stream = _mix(_mix(seed + GOLDEN) + np.uint64(rows[r]) * GOLDEN)
        if total + most > capacity:
            while total + most > capacity:
                capacity *= 2
            more_columns, more_visits = np.empty(capacity, np.int32), np.empty((capacity, lengths), type(zero))
            more_columns[:total], more_visits[:total] = columns[:total], visits[:total]
            columns, visits = more_columns, more_visits
        _halting(times, halting, survival, stream, first)
        slot = np.int64((np.uint64(rows[r]) * GOLDEN) >> shift)
        keys[slot], table[slot], nodes[0], slots[0], entries = rows[r], 0, rows[r], slot, 1
        visits[total, :] = zero
        visits[total, 0] = walks
        for k in range(walks):
            order[k], sign[k] = k, 1
        groups, active[0], bounds[0], bounds[1] = 1, 0, 0, walks
        for step in range(1, lengths):
            alive = _step(
                step, groups, active, bounds, order, nodes, times, survival, directions, stream, first, links, work
            )  # fmt: skip
            for k in range(alive):
                targets[k] = indices[edges[k]]
            found, runs = 0, 0
            k = 0
            while k < alive:  # walkers that go to the same node, one after the other
                node, begin = targets[k], k
                k += 1
                while k < alive and targets[k] == node:
                    k += 1
                slot = np.int64((np.uint64(node) * GOLDEN) >> shift)
                while keys[slot] != node and keys[slot] >= 0:
                    slot = (slot + 1) & mask
                if keys[slot] < 0:
                    keys[slot], table[slot] = node, entries
                    nodes[entries], slots[entries] = node, slot
                    visits[total + entries, :] = zero
                    entries += 1
                entry = table[slot]
                if here[entry] == 0:
                    active[found] = entry
                    found += 1
                here[entry] += k - begin
                place[runs], until[runs] = entry, k
                runs += 1
            if len(signs):
                k = 0
                for run in range(runs):
                    while k < until[run]:
                        sign[moved[k]] *= signs[edges[k]]
                        visits[total + place[run], step] += sign[moved[k]]
                        k += 1
            groups, bounds[0] = found, 0
            for g in range(groups):
                entry = active[g]
                ends[entry] = bounds[g]
                bounds[g + 1] = bounds[g] + here[entry]
                if not len(signs):
                    visits[total + entry, step] = here[entry]
                here[entry] = 0
            k = 0
            for run in range(runs):
                end = ends[place[run]]
                while k < until[run]:
                    order[end] = moved[k]
                    end, k = end + 1, k + 1
                ends[place[run]] = end
            if alive == 0:
                break
        for e in range(entries):
            columns[total + e] = nodes[e]
            keys[slots[e]] = -1
        sizes[r] = entries
        total += entries
    return sizes, columns[:total], visits[:total]
