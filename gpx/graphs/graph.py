"""Weighted undirected graphs in compressed rows, from what users have; a graph that cannot be used is refused with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from gpx.errors import InputError
from gpx.graphs.operator import LAPLACIANS, Operator

if TYPE_CHECKING:
    import networkx

SELF_LOOPS = ("error", "remove", "keep")
SHOWN = 5  # offenders that an error names
ASYMMETRY = 1e-12  # difference of two weights, relative to others at both nodes, that is rounding
MOST = np.iinfo(np.int32).max  # nodes, which are counted in 32 bits


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """An undirected graph with weighted edges: the nodes are 0, ..., N - 1, and row i of its symmetric matrix W has the weights
    of the edges of node i.

    Build one with `from_scipy`, `from_networkx`, `from_edges`, `from_mesh` or `from_neighbours`. The degree of a node is the sum
    of the absolute weights of its edges; its Laplacians are ``D - W`` (unnormalised) and ``I - D^-1/2 W D^-1/2`` (normalised);
    both are positive semidefinite, and zero in the row of a node without edges, whose prior variance is that of a constant.

    Attributes: indptr [N + 1], indices [E], weights [E]: compressed rows with ascending columns; every edge is there twice.
    Raises: InputError for rows that are not like this, or weights that are not finite and symmetric.
    Cost: O(N + E). Immutable: copies share it, and what is derived from it is kept with it.

    >>> Graph.from_edges([[0, 1], [1, 2]])
    Graph(3 nodes, 2 edges)
    """

    indptr: np.ndarray
    indices: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        _check_rows(*(np.asarray(getattr(self, name)) for name in ("indptr", "indices", "weights")))
        for name, kind in (("indptr", np.int64), ("indices", np.int32), ("weights", np.float64)):
            array = np.ascontiguousarray(getattr(self, name), kind)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        _check_weights(self.matrix, signed=True)
        _check_symmetric(self.matrix)

    @staticmethod
    def from_scipy(A: Any, *, self_loops: str = "error", signed: bool = False) -> Graph:
        """The graph of a symmetric matrix of weights [N, N], sparse or dense; a zero is no edge.

        Arguments: self_loops: what becomes of a diagonal: "error", "remove" or "keep" (they change the normalised Laplacian
        alone). signed: allow negative weights: joined nodes are pulled to opposite values (the signed Laplacian).
        Raises: InputError for a matrix that is not square, symmetric or finite, or has negative weights or a diagonal that were
        not asked for.

        >>> Graph.from_scipy(np.ones((3, 3)), self_loops="remove")
        Graph(3 nodes, 3 edges)
        """
        if self_loops not in SELF_LOOPS:
            raise InputError(f"self_loops must be one of {', '.join(map(repr, SELF_LOOPS))}, got {self_loops!r}.")
        W = _as_csr(A)
        _check_weights(W, signed)
        loops = np.flatnonzero(W.diagonal())
        if len(loops) and self_loops == "error":
            raise InputError(
                f"Node(s) {_shown(loops)} have edges to themselves; pass self_loops='remove' or self_loops='keep'."
            )
        if len(loops) and self_loops == "remove":
            W = W - sparse.diags_array(W.diagonal()).tocsr()
            W.eliminate_zeros()
        W.sort_indices()
        return Graph(W.indptr, W.indices, W.data)

    @staticmethod
    def from_networkx(G: networkx.Graph, *, weight: str = "weight", **how: Any) -> Graph:
        """The graph of a networkx graph; node i is the i-th of ``list(G)``, an edge without the attribute `weight` has weight 1.

        Edges of a multigraph between the same nodes add. how: as for `from_scipy`. Raises: InputError for a directed graph, one
        without nodes, or weights that are not numbers.
        """
        try:
            import networkx as nx
        except ImportError as error:
            raise InputError("from_networkx needs networkx: pip install networkx, or use Graph.from_edges.") from error
        if not isinstance(G, nx.Graph):
            raise InputError(f"from_networkx takes a networkx graph, got {type(G).__name__}.")
        if G.is_directed():
            raise InputError("The networkx graph is directed; pass G.to_undirected().")
        try:
            W = nx.to_scipy_sparse_array(G, weight=weight, dtype=float, format="csr")
        except (nx.NetworkXError, TypeError, ValueError) as error:
            raise InputError(f"The networkx graph has no matrix of weights: {error}.") from error
        return Graph.from_scipy(W, **how)

    @staticmethod
    def from_edges(edges: Any, weights: Any = None, num_nodes: int | None = None, **how: Any) -> Graph:
        """The graph of a list of undirected edges.

        Arguments: edges [E, 2]: integer nodes; an edge may be listed several times and in both directions, with one weight;
        weights [E]: None: 1; num_nodes: N, None: the largest node and one more. how: as for `from_scipy`.
        Raises: InputError for nodes that are not integers or outside 0 ... num_nodes - 1, or an edge with two weights.

        >>> Graph.from_edges([[0, 1], [1, 0], [1, 2]], num_nodes=4)
        Graph(4 nodes, 2 edges, 1 isolated)
        """
        pairs = _as_pairs(edges)
        values = np.ones(len(pairs)) if weights is None else _as_floats(weights, "weights", (len(pairs),))
        size = _as_size(num_nodes, pairs)
        low, high = pairs.min(1, initial=size), pairs.max(1, initial=0)
        key, first, inverse = np.unique(low * size + high, return_index=True, return_inverse=True)
        differs = np.flatnonzero(values != values[first][inverse.reshape(-1)])
        if len(differs):
            edge = pairs[differs[0]].tolist()
            raise InputError(f"Edge {edge} is listed with different weights; list it once, or add them up first.")
        i, j, w = key // size, key % size, values[first]
        away = i != j
        rows, columns = np.concatenate([i, j[away]]), np.concatenate([j, i[away]])
        W = sparse.coo_array((np.concatenate([w, w[away]]), (rows, columns)), (size, size))
        return Graph.from_scipy(W, **how)

    @staticmethod
    def from_mesh(faces: Any, vertices: Any = None) -> Graph:
        """The edges of a mesh of polygons: weights 1, or with vertices [N, 3] one over the length of the edge.

        Arguments: faces [F, K]: the vertices of each face, in order. Raises: InputError, also for an edge of length zero.

        >>> Graph.from_mesh([[0, 1, 2], [1, 2, 3]])
        Graph(4 nodes, 5 edges)
        """
        corners = _as_array(faces, "faces")
        if corners.ndim != 2 or corners.shape[1] < 3:
            raise InputError(f"faces must be [F, K] with K >= 3 vertices each, got shape {list(corners.shape)}.")
        pairs = _as_pairs(np.stack([corners, np.roll(corners, -1, 1)], -1).reshape(-1, 2))
        pairs = np.unique(np.sort(pairs, 1), axis=0)
        if vertices is None:
            return Graph.from_edges(pairs)
        points = _as_floats(vertices, "vertices", (None, None))
        _as_size(len(points), pairs)
        length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
        if not length.all():
            raise InputError(
                f"Edge {pairs[length.argmin()].tolist()} has length zero; merge vertices that coincide, or pass faces alone."
            )
        return Graph.from_edges(pairs, 1 / length, len(points))

    @staticmethod
    def from_neighbours(points: Any, k: int = 10) -> Graph:
        """Points joined to their k nearest neighbours, in either direction, with weights ``exp(-d^2 / (s_i s_j))``, s_i: the
        distance of point i to its k-th neighbour.

        Arguments: points [N, D]. Raises: InputError unless 1 <= k < N. Cost: O(N k log N) in few dimensions.
        Source: Zelnik-Manor & Perona (2004), "Self-tuning spectral clustering".

        >>> Graph.from_neighbours([[0.0], [1.0], [2.0], [3.5]], k=1)
        Graph(4 nodes, 3 edges)
        """
        x = _as_floats(points, "points", (None, None))
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k < len(x):
            raise InputError(f"k must be an integer with 1 <= k < {len(x)}, the number of points, got {k!r}.")
        x = np.ldexp(
            x, -int(np.frexp(np.abs(x).max(initial=0.0))[1])
        )  # weights have no unit; squares of distances have a range
        distance, near = cKDTree(x).query(x, k + 1)
        width = np.where(distance[:, -1] > 0, distance[:, -1], 1.0)
        i, j, d = np.repeat(np.arange(len(x)), k + 1), near.reshape(-1), distance.reshape(-1)
        away = i != j
        weights = np.exp(-(d**2) / (width[i] * width[j]))
        W = sparse.coo_array((weights[away], (i[away], j[away])), (len(x), len(x))).tocsr()
        return Graph.from_scipy(W.maximum(W.T))

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.indptr) - 1

    @cached_property
    def num_edges(self) -> int:
        """How many edges there are, those of nodes to themselves included."""
        loops = int(np.count_nonzero(self.matrix.diagonal()))
        return (len(self.indices) + loops) // 2

    @cached_property
    def matrix(self) -> Any:
        """The weights W, a SciPy array in compressed rows."""
        return sparse.csr_array((self.weights, self.indices, self.indptr), (self.num_nodes, self.num_nodes))

    @cached_property
    def degrees(self) -> np.ndarray:
        """Sums [N] of the absolute weights of each node's edges."""
        return np.asarray(abs(self.matrix).sum(1)).reshape(-1)

    @cached_property
    def _operators(self) -> dict[str, Operator]:
        return {kind: Operator(self, kind) for kind in LAPLACIANS}

    def operator(self, laplacian: str = "normalised") -> Operator:
        """The Laplacian, "normalised" or "unnormalised", with what is derived from it. Raises: InputError for another name."""
        if laplacian not in LAPLACIANS:
            raise InputError(f"laplacian must be one of {', '.join(map(repr, LAPLACIANS))}, got {laplacian!r}.")
        return self._operators[laplacian]

    def __deepcopy__(self, memo: Any) -> Graph:
        return self  # immutable

    def __reduce__(self) -> Any:
        return Graph, (self.indptr, self.indices, self.weights)

    def __repr__(self) -> str:
        isolated = int(np.count_nonzero(np.diff(self.indptr) == 0))
        more = f", {isolated:,} isolated" if isolated else ""
        return f"Graph({self.num_nodes:,} nodes, {self.num_edges:,} edges{more})"


def _as_csr(A: Any) -> Any:
    try:
        W: Any = sparse.csr_array(A, dtype=np.float64, copy=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected a matrix of weights, sparse or dense, got {type(A).__name__}: {error}") from error
    if W.ndim != 2 or W.shape[0] != W.shape[1] or not W.shape[0]:
        raise InputError(f"Expected a square matrix of weights with at least one node, got shape {list(W.shape)}.")
    W.sum_duplicates()
    W.eliminate_zeros()
    return W


def _check_rows(indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> None:
    """Raise InputError unless these are compressed rows of a square matrix, with ascending columns."""
    size = len(indptr) - 1 if indptr.ndim == 1 else 0
    if not 1 <= size <= MOST:
        raise InputError(
            f"indptr must be [N + 1] with 1 <= N <= {MOST}, the number of nodes, got shape {list(indptr.shape)}."
        )
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        raise InputError(f"indptr and indices must be integers, got {indptr.dtype} and {indices.dtype}.")
    steps = np.diff(indptr.astype(np.int64))
    if indptr[0] != 0 or (steps < 0).any() or indices.shape != weights.shape or indices.shape != (indptr[-1],):
        raise InputError(
            f"indptr must ascend from 0 to the length of indices and weights, got {indptr[0]} ... {indptr[-1]} for the shapes"
            f" {list(indices.shape)} and {list(weights.shape)}."
        )
    if weights.dtype.kind not in "biuf":
        raise InputError(f"weights must be numbers, got {weights.dtype}.")
    outside = np.unique(indices[(indices < 0) | (indices >= size)])
    if len(outside):
        raise InputError(f"node id(s) {_shown(outside)} in indices are out of range: expected 0 ... {size - 1}.")
    inside = np.ones(max(0, len(indices) - 1), bool)  # two neighbours in the arrays that are of one row
    inside[indptr[1:-1][(indptr[1:-1] > 0) & (indptr[1:-1] < len(indices))] - 1] = False
    bad = np.flatnonzero(inside & (np.diff(indices.astype(np.int64)) <= 0))
    if len(bad):
        row = int(np.searchsorted(indptr, bad[0], side="right")) - 1
        raise InputError(f"The columns of row {row} do not ascend; use Graph.from_scipy, which puts them in order.")


def _check_weights(W: Any, signed: bool) -> None:
    rows = np.repeat(np.arange(W.shape[0]), np.diff(W.indptr))
    for bad, what, advice in (
        (~np.isfinite(W.data), "not finite", "drop or impute these edges"),
        (W.data < 0, "negative", "pass signed=True for the signed Laplacian, or leave these edges out"),
    ):
        at = np.flatnonzero(bad)
        if len(at) and not (signed and what == "negative"):
            i, j = int(rows[at[0]]), int(W.indices[at[0]])
            raise InputError(f"{len(at)} weight(s) are {what}, such as {W.data[at[0]]:g} of edge [{i}, {j}]; {advice}.")


def _check_symmetric(W: Any) -> None:
    """To rounding of the largest weights at both nodes: a large weight elsewhere hides no direction."""
    difference: Any = abs(W - W.T).tocoo()
    if not difference.nnz:
        return
    size: Any = abs(W)
    largest = np.maximum(*(np.asarray(size.max(axis).toarray()).reshape(-1) for axis in (0, 1)))
    excess = difference.data - ASYMMETRY * np.minimum(largest[difference.row], largest[difference.col])
    if excess.max() > 0:
        at = int(excess.argmax())
        i, j = int(difference.row[at]), int(difference.col[at])
        raise InputError(
            f"The matrix is not symmetric, so the graph is directed: the weight of [{i}, {j}] is {W[i, j]:g}, that of"
            f" [{j}, {i}] {W[j, i]:g}; pass (A + A.T) / 2, or A.maximum(A.T)."
        )


def _as_array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name} must be a rectangular array: {error}.") from error


def _as_pairs(edges: Any) -> np.ndarray:
    pairs = _as_array(edges, "edges")
    if not pairs.size:
        pairs = np.zeros((0, 2), np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise InputError(f"edges must be [E, 2], got shape {list(pairs.shape)}; pass edges.T if it is [2, E].")
    if pairs.dtype.kind not in "iu":
        raise InputError(f"edges must be integer node ids, got {pairs.dtype}; number the nodes 0, ..., N - 1.")
    return pairs.astype(np.int64)


def _as_size(num_nodes: Any, pairs: np.ndarray) -> int:
    if not (num_nodes is None or isinstance(num_nodes, (int, np.integer)) and not isinstance(num_nodes, bool)):
        raise InputError(f"num_nodes must be an integer or None, got {num_nodes!r}.")
    size = int(pairs.max(initial=-1)) + 1 if num_nodes is None else int(num_nodes)
    if size > MOST:
        raise InputError(f"A graph has at most {MOST} nodes, not {size}: number those that have edges 0, ..., N - 1.")
    outside = np.unique(pairs[(pairs < 0) | (pairs >= size)])
    if len(outside) or size < 1:
        named = f"node id(s) {_shown(outside)} are out of range" if len(outside) else "there is no node"
        raise InputError(f"{named}: expected 0 ... {size - 1} (num_nodes={size}).")
    return size


def _as_floats(values: Any, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers: {error}.") from error
    fits = array.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, array.shape, strict=True))
    if not fits or not np.isfinite(array).all():
        expected = ", ".join("any" if s is None else str(s) for s in shape)
        raise InputError(f"{name} must be finite numbers of shape [{expected}], got shape {list(array.shape)}.")
    return array


def _shown(ids: np.ndarray) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(map(str, ids[:SHOWN].tolist())) + more
