"""A graph's Laplacian L as the kernels see it: through the walk matrix ``S = I - L / rate``, whose spectrum lies in [-1, 1].

Theory: docs/theory/graphs.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

if TYPE_CHECKING:
    from gpx.graphs.graph import Graph

LAPLACIANS = ("normalised", "unnormalised")


@dataclass(frozen=True, eq=False)
class Operator:
    """The Laplacian L of a graph. ``S_uv = +-sqrt(stationary_u / stationary_v) P_uv`` with a stochastic matrix P: powers of S are
    averages over walks of the graph.

    Normalised: S = D^-1/2 W D^-1/2, 1 on the diagonal of nodes without edges; unnormalised: S = I - (D - W) / max D, walks that
    stay where they are now and then.
    """

    graph: Graph
    kind: str

    @cached_property
    def rate(self) -> float:
        """1 for the normalised Laplacian, the largest degree for the other (1 without edges)."""
        return 1.0 if self.kind == "normalised" else float(self.graph.degrees.max()) or 1.0

    @cached_property
    def typical(self) -> float:
        """Half of an eigenvalue that is neither small nor large: 1, or the median degree of nodes with edges."""
        degrees = self.graph.degrees[self.graph.degrees > 0]
        return float(np.median(degrees)) if self.kind == "unnormalised" and len(degrees) else 1.0

    @cached_property
    def stationary(self) -> np.ndarray:
        """Where walks are found after a long time, [N], up to a factor: degrees, or 1 everywhere."""
        degrees = self.graph.degrees
        return np.where(degrees > 0, degrees, 1.0) if self.kind == "normalised" else np.ones(len(degrees))

    @cached_property
    def walk_matrix(self) -> Any:
        """S, a SciPy array in compressed rows."""
        W, degrees = self.graph.matrix, self.graph.degrees
        if self.kind == "normalised":
            root = sparse.diags_array(1 / np.sqrt(self.stationary))
            S = root @ W @ root + sparse.diags_array(np.where(degrees > 0, 0.0, 1.0))
        else:
            S = W / self.rate + sparse.diags_array(1 - degrees / self.rate)
        S = S.tocsr()
        S.eliminate_zeros()
        S.sort_indices()
        return S

    @cached_property
    def bound(self) -> float:
        """No eigenvalue of L is larger: 2, or the largest ``d_i + sum_j |W_ij| d_j / d_i`` (Gershgorin, for ``D^-1 |L| D``)."""
        if self.kind == "normalised":
            return 2.0
        degrees = self.graph.degrees
        around = abs(self.graph.matrix) @ degrees
        return float(np.max(degrees + np.divide(around, degrees, out=np.zeros_like(degrees), where=degrees > 0)))

    @cached_property
    def doubled(self) -> Any:
        """``4 L / bound - 2 I``, twice a matrix with its spectrum in [-1, 1]; a SciPy array."""
        share = 4 * self.rate / self.bound if self.bound else 0.0
        matrix = sparse.diags_array(np.full(self.graph.num_nodes, share - 2)) - share * self.walk_matrix
        matrix = matrix.tocsr()
        matrix.eliminate_zeros()
        return matrix

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues [N] of L, ascending, and eigenvectors [N, N]. Cost: O(N^3) time, O(N^2) memory, once per graph."""
        L = self.rate * (np.eye(self.graph.num_nodes) - self.walk_matrix.toarray())
        values, vectors = torch.linalg.eigh(torch.from_numpy(L))
        return values.clamp_min(0), vectors

    @cached_property
    def drawn(self) -> dict[Any, Any]:
        """Random walks so far, by their settings: functions of these, and kept as long as the graph is."""
        return {}

    @cached_property
    def moments(self) -> dict[Any, Any]:
        """Chebyshev polynomials between nodes so far: `graphs.chebyshev.moments`."""
        return {}

    def multiply(self, v: np.ndarray) -> np.ndarray:
        """``L v`` for v [N] or [N, k]. Cost: O(E k)."""
        return self.rate * (v - self.walk_matrix @ v)
