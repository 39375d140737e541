"""Derivations of docs/theory/graphs.md that no other test checks, and that every section is cited by a test."""

from __future__ import annotations

import re
from pathlib import Path

import networkx as nx
import numpy as np

import gpx
from gpx import graphs
from gpx.testing.assertions import close
from gpx.testing.cases import small_graph

ROOT = Path(__file__).parents[2]


def signed_graph():
    W = small_graph().matrix.toarray() * np.where(np.add.outer(np.arange(12), np.arange(12)) % 4 == 1, -1, 1)
    return gpx.Graph.from_scipy(W, signed=True), W


def test_quadratic_form_of_signed_laplacians():
    """graphs-laplacian: x^T L x is a sum of squares, and eigenvalues stay below the bound."""
    graph, W = signed_graph()
    x = np.random.default_rng(0).standard_normal(12)
    operator = graph.operator("unnormalised")
    squares = 0.5 * (abs(W) * (x[:, None] - np.sign(W) * x) ** 2).sum()
    close(x @ operator.multiply(x), squares, "quadratic form", 1e-12)
    for source in (nx.barabasi_albert_graph(60, 2, seed=0), nx.star_graph(20), nx.grid_2d_graph(4, 5)):
        operator = gpx.Graph.from_networkx(source).operator("unnormalised")
        largest = float(operator.eigen[0][-1])
        assert largest <= operator.bound * (1 + 1e-12) <= 2 * operator.rate * (1 + 1e-12)


def test_walks_telescope():
    """graphs-walks: S^l = sqrt(delta_i / delta_u) P^l for positive weights, with P a stochastic matrix."""
    for kind in ("normalised", "unnormalised"):
        operator = small_graph().operator(kind)
        S, root = operator.walk_matrix.toarray(), np.sqrt(operator.stationary)
        P = S / root[:, None] * root
        close(P.sum(1), np.ones(12), "stochastic", 1e-12)
        close(np.linalg.matrix_power(S, 3), root[:, None] * np.linalg.matrix_power(P, 3) / root, "S^3", 1e-12)


def test_stitched_modulations():
    """graphs-estimate: the square root is the product of equal factors with shorter modulations."""
    operator, spectrum = small_graph().operator(), graphs.Diffusion(3.0)
    S = operator.walk_matrix.toarray()
    f = spectrum.series(60, 1.0, 0.5 / 3).detach().numpy()
    factor = sum(weight * np.linalg.matrix_power(S, power) for power, weight in enumerate(f))
    psi = np.linalg.matrix_power(factor, 3)
    close(psi @ psi.T, gpx.kernels.Graph(small_graph(), spectrum).matrix(np.arange(12)), "F(L)", 1e-10)


def test_every_section_is_cited():
    labels = re.findall(r"^\((graphs-[a-z-]+)\)=$", (ROOT / "docs" / "theory" / "graphs.md").read_text(), re.M)
    tests = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    assert len(labels) == 6
    assert not [label for label in labels if label not in tests]
