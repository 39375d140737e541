"""Local push: powers of the walk matrix from a node, without the small numbers; deterministic sparse features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numba
import numpy as np

from gpx.errors import InputError
from gpx.graphs.loads import Loads
from gpx.graphs.operator import Operator
from gpx.graphs.sampled import SparseBackend
from gpx.graphs.spectra import Spectrum
from gpx.graphs.walks import COMPILATION, Counts
from gpx.linalg.threads import in_runs

RUN = 256  # rows that a thread takes at once


@dataclass(frozen=True)
class Push(SparseBackend):
    """Row i of Phi is row i of ``sum_l f_l S^l``, spread from node to node as long as a node has more than `threshold` per edge
    of the probability that a walk from i is there; less than that is kept, and not passed on.

    ``Phi Phi^T`` is a covariance, the same at every call, and approaches F(L) as the threshold goes to 0. A step costs at most
    1 / threshold edges, whatever the size of the graph. Arguments: threshold: positive; lengths: as for `Walks`.
    Raises: InputError for other values, or a modulation that does not decay.
    Source: Zhou, Sun & Reddi (2023), "Fast online node labeling for very large graphs" (for inverses of Laplacians).

    >>> Push(1e-4)
    Push(threshold=0.0001, lengths=None)
    """

    longest: ClassVar[int] = 512  # of numbers in floating point at every node that is reached
    threshold: float = 1e-5
    lengths: int | None = None
    survival: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, float) or not 0 < self.threshold < 1:
            raise InputError(f"Push needs a threshold in (0, 1), got {self.threshold!r}.")
        if self.lengths is not None and (not isinstance(self.lengths, int) or self.lengths < 1):
            raise InputError(f"Push needs lengths, an integer >= 1, got {self.lengths!r}.")
        if isinstance(self.survival, list):  # from a file
            object.__setattr__(self, "survival", tuple(self.survival))

    def _matched(self, operator: Operator, spectrum: Spectrum, length: int, times: int) -> np.ndarray:
        return np.ones(length * times)

    def loads(self, operator: Operator, nodes: np.ndarray, stitch: int = 0) -> Loads:
        S, length = operator.walk_matrix, len(self.settled_survival)
        distinct = np.unique(nodes)
        arguments = S.indptr.astype(np.int64), S.indices, S.data, np.sqrt(operator.stationary), self.threshold, length
        parts = in_runs(lambda start, stop: _push(distinct[start:stop], *arguments), len(distinct), RUN)
        parts = parts or [_push(distinct, *arguments)]
        sizes, columns, visits = (np.concatenate([part[k] for part in parts]) for k in range(3))
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        counts = Counts(distinct, indptr, columns, visits).of(nodes)
        return Loads(counts, np.ones(len(counts.columns)), np.ones(length), operator.graph.num_nodes)


@numba.njit(**COMPILATION)
def _push(rows, indptr, indices, data, root, threshold, lengths):
    size = len(indptr) - 1
    entry = np.full(size, -1, np.int64)  # the entry of a node, while its row is made
    nodes, values, following = np.empty(size, np.int64), np.zeros(size), np.zeros(size)
    capacity, total = max(16, len(rows)), 0
    columns, visits, sizes = np.empty(capacity, np.int32), np.empty((capacity, lengths)), np.zeros(len(rows), np.int64)
    for r in range(len(rows)):
        nodes[0], entry[rows[r]], values[0], found = rows[r], 0, 1.0, 1
        for step in range(lengths):
            while total + found > capacity:
                capacity *= 2
                more_columns, more_visits = np.empty(capacity, np.int32), np.empty((capacity, lengths))
                more_columns[:total], more_visits[: len(visits)] = columns[:total], visits
                columns, visits = more_columns, more_visits
            for e in range(found):
                if step == 0:
                    visits[total + e, :] = 0
                visits[total + e, step] = values[e]
            if step == lengths - 1:
                break
            known = found
            for e in range(known):
                u = nodes[e]
                degree = indptr[u + 1] - indptr[u]
                if abs(values[e]) * root[u] <= threshold * degree * root[rows[r]]:
                    continue
                for k in range(indptr[u], indptr[u + 1]):
                    v = indices[k]
                    if entry[v] < 0:
                        entry[v], nodes[found], following[found] = found, v, 0.0
                        found += 1
                    following[entry[v]] += data[k] * values[e]
            while total + found > capacity:
                capacity *= 2
                more_columns, more_visits = np.empty(capacity, np.int32), np.empty((capacity, lengths))
                more_columns[:total], more_visits[: len(visits)] = columns[:total], visits
                columns, visits = more_columns, more_visits
            for e in range(known, found):
                visits[total + e, :] = 0
            for e in range(found):
                values[e], following[e] = following[e], 0.0
        for e in range(found):
            columns[total + e] = nodes[e]
            entry[nodes[e]] = -1
            values[e] = 0.0
        sizes[r] = found
        total += found
    return sizes, columns[:total].copy(), visits[:total].copy()
