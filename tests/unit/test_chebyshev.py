"""Polynomials of the Laplacian: their error, their gradients, and agreement with the other backends."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import expm_multiply

import gpx
from gpx import InputError, graphs
from gpx.graphs.chebyshev import expansion, moments
from gpx.kernels import Graph
from gpx.testing import check_engine, check_kernel, check_structure
from gpx.testing.assertions import close, gradients
from gpx.testing.cases import SPECTRA, nodes, small_graph

PRECISE = graphs.Chebyshev(1e-12)


def columns(n, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SPECTRA)
def test_laws(name):
    kernel = Graph(small_graph(), SPECTRA[name](), backend=PRECISE, outputscale=0.7)
    check_kernel(kernel, nodes(7))
    check_structure(kernel, nodes(5))


def test_laws_of_the_exact_engine():
    kernel = Graph(small_graph(), SPECTRA["Matern"](), "unnormalised", backend=PRECISE)
    check_engine(gpx.engines.Exact(), [kernel], nodes(8), tolerance=1e-8)


@pytest.mark.parametrize("laplacian", ["normalised", "unnormalised"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("spectrum", [graphs.Diffusion(30.0), graphs.Matern(kappa=5.0), graphs.PStep(4)])
def test_the_error_is_as_stated(laplacian, tolerance, spectrum):
    """docs/theory/graphs.md, graphs-chebyshev: every entry, products with vectors and the diagonal."""
    graph = gpx.Graph.from_networkx(nx.barabasi_albert_graph(80, 2, seed=1))
    exact = Graph(graph, spectrum, laplacian)
    near = Graph(graph, spectrum, laplacian, backend=graphs.Chebyshev(tolerance))
    everywhere = np.arange(80)
    K = exact.matrix(everywhere)
    error = torch.linalg.matrix_norm(near.matrix(everywhere) - K, 2)
    assert float(error.detach()) <= tolerance, "spectral norm"
    close(near.diagonal(everywhere), near.matrix(everywhere).diagonal(), "diagonal", 1e-12)
    v = columns(80)
    close(
        near.backend.multiply(near.operator, near.spectrum, v),
        near.matrix(everywhere) @ v,
        "products with vectors",
        1e-10,
    )
    close(near.matrix([5, 1, 70], [2, 1]), near.matrix(everywhere)[[5, 1, 70]][:, [2, 1]], "some entries", 1e-12)


def test_a_large_graph_against_scipy():
    """No matrix of N x N numbers is ever there."""
    graph = gpx.Graph.from_networkx(nx.grid_2d_graph(60, 70))
    kernel = Graph(graph, graphs.Diffusion(5.0), backend="chebyshev")
    L = sparse.eye_array(4200, format="csr") - kernel.operator.walk_matrix
    v = columns(4200).numpy()
    K = kernel.backend.multiply(kernel.operator, kernel.spectrum, torch.from_numpy(v))
    close(K, expm_multiply(-5.0 * L, v), "exp(-beta L) v", 1e-9)
    assert Graph(graph).backend == graphs.Chebyshev(), "chosen where eigenvectors are too many"


@pytest.mark.parametrize("laplacian", ["normalised", "unnormalised"])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17])
def test_diagonal_moments_are_diagonals(laplacian, count):
    """From half as many terms; T_j(x) is cos(j arccos x) of the eigenvalues."""
    operator = gpx.Graph.from_networkx(nx.barabasi_albert_graph(60, 2, seed=1)).operator(laplacian)
    some = torch.tensor([3, 0, 59, 17])
    found = moments(operator, some, None, count)
    values, vectors = np.linalg.eigh(0.5 * operator.doubled.toarray())
    waves = np.cos(np.arange(count)[:, None] * np.arccos(values.clip(-1, 1)))
    close(found, (waves @ (vectors**2).T)[:, some.numpy()], "diagonals", atol=1e-6)


def test_moments_that_are_kept_change_nothing(monkeypatch):
    """Values and gradients are those of polynomials that are evaluated anew, whatever was asked for before."""
    left, right = nodes(7)[:, 0].long(), nodes(5)[:, 0].long()

    def found(beta, graph):
        spectrum = graphs.Diffusion(beta)
        blocks = (
            PRECISE.covariance(graph.operator(), spectrum, left, right),
            PRECISE.diagonal(graph.operator(), spectrum, left),
        )
        (slope,) = torch.autograd.grad(sum(block.cos().sum() for block in blocks), spectrum.raw_beta)
        return *blocks, slope

    graph = small_graph()
    kept = [found(beta, graph) for beta in (1.0, 60.0, 4.0)]
    assert len(graph.operator().moments) == 2, "pairs, and a diagonal"
    monkeypatch.setattr(graphs.chebyshev, "KEPT", 0)
    anew = [found(beta, small_graph()) for beta in (1.0, 60.0, 4.0)]
    for a, b in zip(kept, anew, strict=True):
        for x, y, law in zip(a, b, ("covariance", "diagonal", "gradient"), strict=True):
            close(x, y, law, atol=1e-13)


def test_gradients_of_products():
    operator, spectrum, v = small_graph().operator("unnormalised"), SPECTRA["Matern"](), columns(12).requires_grad_()
    gradients(
        lambda v, *_: PRECISE.multiply(operator, spectrum, v), [v, *spectrum.parameters()], "derivatives of products"
    )


def test_expansions():
    x = torch.linspace(0, 3, 50, dtype=torch.float64)
    c = expansion(torch.exp, 3.0, 1e-13)
    terms = torch.cos(torch.arange(len(c)) * torch.acos((2 * x / 3 - 1).clamp(-1, 1))[:, None])
    close(terms @ c, x.exp(), "the exponential", 1e-12)
    assert len(expansion(lambda x: x**3, 3.0, 1e-12)) == 4


def test_features_of_a_spectrum_that_ends_at_zero():
    """Its root has an edge there: few digits are possible, more are refused, never NaN."""
    operator = small_graph().operator("unnormalised")
    spectrum = graphs.InverseCosine(2 / operator.bound)
    with pytest.raises(InputError, match="take a larger tolerance"):
        graphs.Chebyshev().features(operator, spectrum, torch.arange(12))
    phi = graphs.Chebyshev(1e-4).features(operator, spectrum, torch.arange(12)).detach()
    exact = graphs.Eigen().covariance(operator, spectrum, torch.arange(12), torch.arange(12)).detach()
    close(phi @ phi.mT, exact, "covariance", atol=1e-3)


def test_graph_without_edges():
    graph = gpx.Graph.from_edges([], num_nodes=3)
    for laplacian in ("normalised", "unnormalised"):
        close(Graph(graph, graphs.Diffusion(), laplacian, "chebyshev").matrix([0, 1, 2]), np.eye(3), "no edges", 1e-10)


@pytest.mark.parametrize(("build", "advice"), [
    (lambda: graphs.Chebyshev(0.0), r"tolerance in \[1e-14, 1\), got 0.0"),
    (lambda: expansion(lambda x: (x - 0.3).abs().sqrt(), 2.0, 1e-10), "more than 16,384 Chebyshev terms .* take a larger tolerance"),
])  # fmt: skip
def test_what_is_refused(build, advice):
    with pytest.raises(InputError, match=advice):
        build()
