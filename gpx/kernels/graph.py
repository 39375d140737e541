"""Kernels between the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx import graphs
from gpx.errors import InputError
from gpx.graphs.backends import choose_backend
from gpx.inputs import Data
from gpx.kernels.base import Kernel, Value

SHOWN = 5  # ids that an error names
PROBED = 256  # nodes whose variance decides where the outputscale starts


class Graph(Kernel):
    """A function of a graph's Laplacian: ``K = outputscale F(L)``, no trace normalisation: k(i, i) is outputscale times F(L)_ii.

    Arguments: graph: a `gpx.Graph`; spectrum: F, one of `gpx.graphs`, None: ``Matern(nu=1.5)``; laplacian: "normalised" or
    "unnormalised" (compare the evidence of both); backend: "auto", "eigen", "chebyshev", "walks" or settings of one, see
    `gpx.graphs`; outputscale: in squared target units; active_dims: the column with the nodes.
    X: integer node ids [N], or one column of them; they are labels: nothing scales them or takes distances.
    Raises: InputError for ids that are not integers or not in the graph, several columns, or a spectrum that is negative on this
    Laplacian. Cost: that of the backend. Source: Smola & Kondor (2003); Reid et al. (2024); theory: docs/theory/graphs.md.

    >>> Graph(graphs.Graph.from_edges([[0, 1], [1, 2]]), graphs.Diffusion(beta=0.5))
    Graph(graph=Graph(3 nodes, 2 edges), spectrum=Diffusion(beta=0.5), laplacian='normalised', backend=Eigen(), outputscale=1)
    """

    structure = ("graph", "spectrum", "laplacian", "backend")
    labels = True
    outputscale = Value(1.0)

    def __init__(self, graph: graphs.Graph, spectrum: graphs.Spectrum | None = None, laplacian: str = "normalised",
                 backend: Any = "auto", outputscale: Any = None, *, active_dims: Any = None):  # fmt: skip
        super().__init__(active_dims)
        if not isinstance(graph, graphs.Graph):
            raise InputError(
                f"kernels.Graph takes a gpx.Graph, got {type(graph).__name__}; build one, for example with Graph.from_scipy(A)."
            )
        if not (spectrum is None or isinstance(spectrum, graphs.Spectrum)):
            raise InputError(f"spectrum must be one of gpx.graphs such as graphs.Diffusion(), got {spectrum!r}.")
        self.graph, self.laplacian = graph, laplacian
        chosen = choose_backend(backend, self.operator, graphs.BACKENDS)
        meant = graphs.Matern(nu=1.5) if spectrum is None else spectrum
        self.spectrum = meant.adapted(self.operator, chosen.series)
        self.spectrum.check(self.operator)
        self.backend = chosen.settled(self.operator, self.spectrum)
        self.declare("outputscale", outputscale)
        if self.spectrum.scaled and outputscale is None:
            self.fix("outputscale")

    @property
    def operator(self) -> graphs.Operator:
        """The Laplacian, with what is derived from it."""
        return self.graph.operator(self.laplacian)

    def nodes(self, x: Tensor) -> Tensor:
        """The node ids [..., n] of inputs [..., n, 1]. Raises: InputError for several columns, or ids not in the graph."""
        self.require_one_column(x)
        ids, size = x.detach()[..., 0], self.graph.num_nodes
        for bad, what in ((ids != ids.round(), "not integers"), ((ids < 0) | (ids >= size), "out of range")):
            if bool(bad.any()):
                found = np.unique(ids[bad].cpu().numpy())
                more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
                raise InputError(
                    f"Node id(s) {', '.join(f'{v:g}' for v in found[:SHOWN])}{more} are {what}: {self.graph!r} has the nodes"
                    f" 0 ... {size - 1}."
                )
        return ids.long()

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        left, settings = self.nodes(x1), (self.operator, self.spectrum)
        if diag:
            values = self.backend.diagonal(*settings, left.reshape(-1))
            return self.outputscale * values.reshape(left.shape).to(x1)
        right = self.nodes(x2)
        if left.dim() == right.dim() == 1:
            return self.outputscale * self.backend.covariance(*settings, left, right).to(x1)
        batch = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
        pairs = zip(*(ids.expand(*batch, -1).flatten(0, -2) for ids in (left, right)), strict=True)
        blocks = torch.stack([self.backend.covariance(*settings, *pair) for pair in pairs])
        return self.outputscale * blocks.unflatten(0, batch).to(x1)

    def shortfall(self) -> str:
        return self.backend.shortfall(self.operator, self.spectrum)

    def resettle(self) -> Callable[[], None]:
        before = self.backend
        self.backend = before.extended(self.operator, self.spectrum)
        return lambda: setattr(self, "backend", before)

    def _init_from(self, data: Data) -> None:
        nodes = self.nodes(data.x)
        self.spectrum.start_for(self.operator, data.variance)
        self.spectrum.check(self.operator)
        self.spectrum.confine(self.operator, self.backend.series)
        self.backend = self.backend.resettled(self.operator, self.spectrum)
        if self.spectrum.scaled:
            self.start("outputscale", 1.0)
            return
        few = nodes[:: max(1, len(nodes) // PROBED)]
        with torch.no_grad():
            level = float(self.backend.diagonal(self.operator, self.spectrum, few).mean())
        self.start("outputscale", data.variance / level)
