"""How ``F(L)`` of a graph is evaluated: a table of its eigenvectors, polynomials of the Laplacian, or random walks.

All backends answer the same questions. Theory: docs/theory/graphs.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gpx.errors import InputError, StructureError
from gpx.graphs.operator import Operator
from gpx.graphs.spectra import Spectrum

FEW = 4_000  # nodes up to which all eigenvectors are computed
MANY = 100_000  # nodes above which whole columns of F(L) are too long


class Backend(ABC):
    """Settings of a way to evaluate F(L); immutable, without state. exact: whether there is no error but rounding's; series:
    whether it takes the series of F in the walk matrix.
    """

    exact: ClassVar[bool] = False
    series: ClassVar[bool] = False

    def settled(self, operator: Operator, spectrum: Spectrum) -> Backend:
        """With what depends on the graph and the present values of the spectrum filled in, where it was not before."""
        return self

    def resettled(self, operator: Operator, spectrum: Spectrum) -> Backend:
        """With that filled in anew, as well as it can be done, for values that a fit begins with."""
        return self

    def extended(self, operator: Operator, spectrum: Spectrum) -> Backend:
        """With that filled in anew where there is a `shortfall`, and a fit is to go on."""
        return self

    def shortfall(self, operator: Operator, spectrum: Spectrum) -> str:
        """What it leaves out at the present values of the spectrum, and what to do, in words; empty where that is nothing."""
        return ""

    @abstractmethod
    def covariance(self, operator: Operator, spectrum: Spectrum, left: Tensor, right: Tensor) -> Tensor:
        """F(L) [n, m] at nodes left [n] and right [m], differentiable in the values of the spectrum."""

    @abstractmethod
    def diagonal(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        """The diagonal of F(L) at nodes [n], differentiable."""

    @abstractmethod
    def multiply(self, operator: Operator, spectrum: Spectrum, v: Tensor) -> Tensor:
        """``F(L) v`` for v [N, k], differentiable in both."""

    def features(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        """Rows [n, N] of a matrix Phi with ``Phi Phi^T`` the covariance. Raises: StructureError where there is none."""
        raise StructureError(
            f"graphs.{type(self).__name__} has no finite features of a node; use backend='eigen' or backend='walks'."
        )


@dataclass(frozen=True)
class Eigen(Backend):
    """All eigenvectors of the Laplacian: exact. Cost: O(N^3) time and O(N^2) memory once per graph, then O(n m N).

    >>> Eigen()
    Eigen()
    """

    exact: ClassVar[bool] = True

    def covariance(self, operator: Operator, spectrum: Spectrum, left: Tensor, right: Tensor) -> Tensor:
        F, vectors = _spectral(operator, spectrum)
        rows = vectors[left]
        return (rows * F) @ (rows if torch.equal(left, right) else vectors[right]).mT

    def diagonal(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        F, vectors = _spectral(operator, spectrum)
        return vectors[nodes].square() @ F

    def multiply(self, operator: Operator, spectrum: Spectrum, v: Tensor) -> Tensor:
        F, vectors = _spectral(operator, spectrum)
        return vectors @ (F[:, None] * (vectors.mT @ v))

    def features(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        F, vectors = _spectral(operator, spectrum)
        return vectors[nodes] * F.clamp_min(0).sqrt()


def _spectral(operator: Operator, spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    like = next(spectrum.parameters(), torch.zeros((), dtype=torch.float64))
    values, vectors = (part.to(like) for part in operator.eigen)
    return spectrum.at(values, operator.rate), vectors


def choose_backend(backend: Any, operator: Operator, named: Mapping[str, Backend]) -> Backend:
    """The backend that is meant. "auto": "eigen" up to 4,000 nodes (exact, and no slower); "chebyshev" up to 100,000 (exact to
    its tolerance, a column costs a few products with L); "walks" above (an estimate, at a cost per node that does not grow
    with N).

    Raises: InputError for another name.
    """
    if isinstance(backend, Backend):
        return backend
    if backend == "auto":
        nodes = operator.graph.num_nodes
        backend = "eigen" if nodes <= FEW else "chebyshev" if nodes <= MANY else "walks"
    if backend not in named:
        raise InputError(
            f"backend must be 'auto', one of {', '.join(map(repr, named))}, or settings such as graphs.Walks(walks=100), got"
            f" {backend!r}."
        )
    return named[backend]
