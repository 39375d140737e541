"""Sparse features: ``k(X, X') = Phi(X) Phi(X')^T`` with few entries per row, for engines that work with weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch import kernels as gpytorch_kernels
from torch import Tensor

from gpx.errors import StructureError
from gpx.graphs import SparseBackend
from gpx.kernels import Graph
from gpx.kernels.dense import select


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """Where Phi [N, size] has entries, in compressed rows, for inputs that stay; and the entries, for hyperparameters that move.

    values: kernel -> [nnz], differentiable in the parameters of the kernel, which is the one that was asked or a copy of it.
    """

    indptr: np.ndarray
    columns: np.ndarray
    size: int
    values: Callable[[gpytorch.kernels.Kernel], Tensor]


@singledispatch
def sparse_features(kernel: Any, x: Tensor) -> SparseFeatures:
    """Sparse features at inputs x [N, D], whose products are the kernel matrix: ``Phi Phi^T = K`` exactly.

    Cost: `kernels.Graph` with backend="walks": that of walks from nodes not met before; values: O(nnz lengths).
    Raises: StructureError for a kernel that has none registered.
    """
    raise StructureError(
        f"{type(kernel).__name__} has no sparse features: use kernels.Graph(graph, backend='walks'), or register a rule with"
        " gpx.structure.sparse_features.register."
    )


@sparse_features.register
def _(kernel: Graph, x: Tensor) -> SparseFeatures:
    backend = kernel.backend
    if not isinstance(backend, SparseBackend) or backend.stitches > 1:
        raise StructureError(
            f"{backend!r} has no sparse features of a node; use graphs.Walks() without stitches, or graphs.Push()."
        )
    loads = backend.loads(kernel.operator, kernel.nodes(select(kernel, x)).cpu().numpy())

    def values(kernel: Any) -> Tensor:
        f = kernel.spectrum.modulation(len(loads.survival), kernel.operator.rate)
        return kernel.outputscale.sqrt() * loads.values(f)

    return SparseFeatures(loads.counts.indptr, loads.counts.columns, loads.size, values)


@sparse_features.register
def _(kernel: gpytorch_kernels.AdditiveKernel, x: Tensor) -> SparseFeatures:
    parts = [sparse_features(part, select(kernel, x)) for part in kernel.kernels]
    starts = np.cumsum([0, *(part.size for part in parts)])
    rows = np.concatenate([np.repeat(np.arange(len(x)), np.diff(part.indptr)) for part in parts])
    columns = np.concatenate(
        [part.columns.astype(np.int64) + start for part, start in zip(parts, starts, strict=False)]
    )
    order = np.argsort(rows, kind="stable")

    def values(kernel: Any) -> Tensor:
        found = [part.values(k) for part, k in zip(parts, kernel.kernels, strict=True)]
        return torch.cat(found)[torch.from_numpy(order)]

    indptr = np.sum([part.indptr for part in parts], 0)
    return SparseFeatures(indptr, columns[order], int(starts[-1]), values)
