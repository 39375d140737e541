"""Graphs from what users have, spectra of their kernels, and what is refused."""

from __future__ import annotations

import copy
import pickle

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import sparse

import gpx
from gpx import InputError, StructureError, graphs
from gpx.engines import SIC, Coreset, Exact, SparseVariational
from gpx.graphs.spectra import power_series
from gpx.kernels import RBF, Linear, Matern
from gpx.testing import check_engine, check_kernel, check_structure
from gpx.testing.assertions import close, gradients
from gpx.testing.cases import GRAPHS, SPECTRA, nodes, small_graph

RING = [[0, 1], [1, 2], [2, 3], [3, 0]]


def laplacian(W, kind):
    """Dense, by the definition: zero in the row of a node without edges."""
    degrees = abs(W).sum(1)
    L = np.diag(degrees) - W
    if kind == "normalised":
        root = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
        L = root[:, None] * L * root
    return L


def columns(name):
    return 3 if name in ("sum", "product") else 1


@pytest.mark.parametrize("name", GRAPHS)
def test_laws_of_kernels(name):
    check_kernel(GRAPHS[name](), nodes(9, columns(name)))


@pytest.mark.parametrize("name", [n for n in GRAPHS if columns(n) == 1])
def test_laws_of_structures(name):
    check_structure(GRAPHS[name](), nodes(6))


@pytest.mark.parametrize("name", ["Matern", "unnormalised", "product"])
def test_laws_of_the_exact_engine(name):
    check_engine(Exact(), [GRAPHS[name]()], nodes(8, columns(name)), tolerance=1e-9)


@pytest.mark.parametrize("kind", ["normalised", "unnormalised"])
@pytest.mark.parametrize("signed", [False, True])
def test_the_operator_is_the_laplacian(kind, signed):
    W = small_graph().matrix.toarray()
    W = W * np.where(np.add.outer(np.arange(12), np.arange(12)) % 3 == 0, -1, 1) if signed else W
    W[3, 3] = 0.4
    operator = gpx.Graph.from_scipy(W, self_loops="keep", signed=signed).operator(kind)
    L = laplacian(W, kind)
    close(operator.multiply(np.eye(12)), L, "L", 1e-14)
    values, vectors = operator.eigen
    close((vectors * values) @ vectors.mT, L, "eigenvectors", 1e-12)
    assert float(values.max()) <= operator.bound
    root = np.sqrt(operator.stationary)
    P = abs(operator.walk_matrix.toarray()) / root[:, None] * root
    if kind == "normalised" or not signed:
        close(P.sum(1), np.ones(12), "the walk matrix is similar to a stochastic one", 1e-12)
    close(operator.eigen[0][:1], [0.0] if not signed else values[:1], "the smallest eigenvalue", atol=1e-12)
    close(operator.walk_matrix.toarray()[11], np.eye(12)[11], "a node without edges stays where it is")


FUNCTIONS = {
    "Diffusion": lambda x: np.exp(-1.3 * x),
    "Matern": lambda x: (1 + 1.7**2 * x / 3) ** -1.5,
    "RegularisedLaplacian": lambda x: (1 + 0.8 * x) ** -2,
    "PStep": lambda x: (1 - x / 2.5) ** 3,
    "InverseCosine": lambda x: np.cos(np.pi * 0.3 * x / 4),
    "Polynomial": lambda x: (0.7 + 0.5 * (1 - x) - 0.2 * (1 - x) ** 2 + 0.1 * (1 - x) ** 3) ** 2,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernels_are_functions_of_the_laplacian(name):
    """docs/theory/graphs.md, graphs-kernels."""
    kernel = gpx.kernels.Graph(small_graph(), SPECTRA[name](), outputscale=0.7)
    values, vectors = np.linalg.eigh(laplacian(small_graph().matrix.toarray(), "normalised"))
    K = 0.7 * (vectors * FUNCTIONS[name](values)) @ vectors.T
    close(kernel.matrix(np.arange(12)), K, "F(L)", 1e-12)


@pytest.mark.parametrize("rate", [1.0, 1.9])
@pytest.mark.parametrize("name", SPECTRA)
def test_series(name, rate):
    """docs/theory/graphs.md, graphs-series: the series is that of F, and the modulation squares to it."""
    spectrum, length = SPECTRA[name](), 400 if name in ("Matern", "PStep") else 80
    s = torch.linspace(-0.95, 0.95, 9, dtype=torch.float64)
    powers = s[:, None] ** torch.arange(length)
    F = spectrum.at(rate * (1 - s), rate)
    f = spectrum.modulation(length, rate)
    close(powers @ spectrum.series(length, rate), F, "series of F", atol=1e-8)
    close((powers @ f).square(), F, "squared modulation", atol=1e-8)
    close(
        (powers @ spectrum.series(length, rate, 0.25)) ** 4, F, "quarter powers", atol=1e-6
    ) if not spectrum.scaled else None
    own = [p for p in spectrum.parameters() if p.requires_grad]
    if own:
        gradients(lambda *_: spectrum.modulation(12, rate), own, "derivatives of the modulation")


def test_the_recursion_and_the_closed_forms_agree():
    """graphs-series: f_r = (alpha_r - sum f_p f_(r-p)) / (2 f_0) is Miller's recursion with power 1/2."""
    for name in ("Diffusion", "Matern", "RegularisedLaplacian", "PStep"):
        spectrum = SPECTRA[name]()
        close(power_series(spectrum.series(20, 1.0), 0.5), spectrum.modulation(20, 1.0), name, 1e-10)
    alpha, f = SPECTRA["Diffusion"]().series(10, 1.0).tolist(), []
    for r, a in enumerate(alpha):
        f.append(a**0.5 if not r else (a - sum(f[p] * f[r - p] for p in range(1, r))) / (2 * f[0]))
    close(f, SPECTRA["Diffusion"]().modulation(10, 1.0), "the recursion of the papers", 1e-10)


def test_sources():
    """The same graph from every source."""
    graph = small_graph()
    W = graph.matrix
    G = nx.from_scipy_sparse_array(W)
    rows, columns_, weights = sparse.find(W)
    for other in (
        gpx.Graph.from_scipy(W.toarray()),
        gpx.Graph.from_networkx(G),
        gpx.Graph.from_edges(np.stack([rows, columns_], 1), weights, num_nodes=12),
        pickle.loads(pickle.dumps(graph)),
    ):
        close(other.matrix.toarray(), W.toarray(), "weights")
        assert repr(other) == "Graph(12 nodes, 12 edges, 1 isolated)"
    assert copy.deepcopy(graph) is graph
    assert gpx.Graph.from_networkx(nx.MultiGraph([(0, 1), (0, 1)])).weights.tolist() == [2.0, 2.0]
    assert gpx.Graph.from_scipy(np.eye(3) + 1, self_loops="keep").num_edges == 6


def test_meshes_and_neighbours():
    faces, vertices = [[0, 1, 2], [0, 2, 3]], [[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]]
    mesh = gpx.Graph.from_mesh(faces, vertices).matrix.toarray()
    close(mesh[0], [0.0, 0.5, 5**-0.5, 1.0], "one over the length of edges")
    x = np.random.default_rng(0).standard_normal((30, 2))
    near = gpx.Graph.from_neighbours(x, 3).matrix.toarray()
    distance = np.linalg.norm(x[:, None] - x, axis=-1)
    joined = distance <= np.sort(distance, 1)[:, [3]]
    np.fill_diagonal(joined, False)
    assert np.array_equal(near > 0, joined | joined.T)
    width = np.sort(distance, 1)[:, 3]
    close(near[near > 0], np.exp(-(distance**2) / np.outer(width, width))[near > 0], "weights of neighbours")


@pytest.mark.parametrize("scale", [1e-200, 1e160])
def test_neighbours_do_not_depend_on_the_unit(scale):
    points = np.random.default_rng(0).standard_normal((30, 2))
    want, got = (gpx.Graph.from_neighbours(x, k=3).matrix.toarray() for x in (points, points * scale))
    close(got, want, "weights", 1e-12)


def test_rounding_is_no_direction():
    """Also where it is all that there is of an edge: beside the weights of both of its nodes."""
    W = np.ones((3, 3)) - np.eye(3)
    W[0, 1], W[0, 2] = 1 + 1e-14, 0
    W[2, 0] = 1e-17
    assert gpx.Graph.from_scipy(W).num_nodes == 3


@pytest.mark.parametrize(("build", "advice"), [
    (lambda: gpx.Graph.from_scipy([[0, 1], [0, 0]]), r"not symmetric.*\[0, 1\] is 1, that of \[1, 0\] 0; pass \(A \+ A.T\) / 2"),
    (lambda: gpx.Graph.from_scipy([[0, -1], [-1, 0]]), r"negative, such as -1 of edge \[0, 1\]; pass signed=True"),
    (lambda: gpx.Graph.from_scipy([[0, np.nan], [np.nan, 0]]), "not finite.*drop or impute"),
    (lambda: gpx.Graph.from_scipy([[1, 1], [1, 0]]), r"Node\(s\) 0 have edges to themselves; pass self_loops='remove'"),
    (lambda: gpx.Graph.from_scipy(np.ones((2, 3))), r"square matrix.*\[2, 3\]"),
    (lambda: gpx.Graph.from_scipy("A"), "matrix of weights"),
    (lambda: gpx.Graph.from_scipy(np.eye(2), self_loops="yes"), "self_loops must be one of"),
    (lambda: gpx.Graph.from_networkx(nx.DiGraph([(0, 1)])), r"directed; pass G.to_undirected\(\)"),
    (lambda: gpx.Graph.from_networkx([[0, 1]]), "takes a networkx graph, got list"),
    (lambda: gpx.Graph.from_edges([[0, 1, 2]]), r"must be \[E, 2\], got shape \[1, 3\]"),
    (lambda: gpx.Graph.from_edges([[0.0, 1.0]]), "integer node ids, got float64"),
    (lambda: gpx.Graph.from_edges(RING, num_nodes=3), r"node id\(s\) 3 are out of range: expected 0 ... 2"),
    (lambda: gpx.Graph.from_edges([[-1, 1]]), r"node id\(s\) -1 are out of range"),
    (lambda: gpx.Graph.from_edges([]), "there is no node"),
    (lambda: gpx.Graph.from_edges([[0, 1], [1, 0]], [1.0, 2.0]), r"Edge \[1, 0\] is listed with different weights"),
    (lambda: gpx.Graph.from_edges(RING, [1.0]), r"weights must be finite numbers of shape \[4\]"),
    (lambda: gpx.Graph.from_mesh([[0, 1]]), r"K >= 3"),
    (lambda: gpx.Graph.from_mesh([[0, 1, 2]], np.zeros((3, 3))), "length zero; merge vertices"),
    (lambda: gpx.Graph.from_mesh([[0, 1, 7]], np.eye(3)), r"node id\(s\) 7 are out of range"),
    (lambda: gpx.Graph.from_neighbours(np.zeros((4, 1)), 4), "1 <= k < 4"),
    (lambda: gpx.Graph.from_scipy([[0, 1e12, 0], [1e12, 0, 0.5], [0, 0, 0]]), r"not symmetric.*\[1, 2\] is 0.5, that of \[2, 1\] 0"),
    (lambda: gpx.Graph.from_edges([[0, 2**31 + 5]]), "at most 2147483647 nodes, not 2147483654"),
    (lambda: gpx.Graph.from_edges(RING, num_nodes=4.7), "num_nodes must be an integer or None, got 4.7"),
    (lambda: gpx.Graph.from_edges(RING, num_nodes="x"), "num_nodes must be an integer or None, got 'x'"),
    (lambda: gpx.Graph.from_edges([[0, 1], [1]]), "edges must be a rectangular array"),
    (lambda: gpx.Graph.from_networkx(nx.Graph()), "no matrix of weights: Graph has no nodes"),
    (lambda: gpx.Graph.from_networkx(nx.Graph([(0, 1, {"weight": "x"})])), "no matrix of weights: could not convert"),
    (lambda: gpx.Graph.from_mesh([[0, 1, 2], [0, 1, 2, 3]]), "faces must be a rectangular array"),
    (lambda: gpx.Graph([], [], []), r"indptr must be \[N \+ 1\]"),
    (lambda: gpx.Graph([0.0, 1.0], [0], [1.0]), "must be integers, got float64"),
    (lambda: gpx.Graph([0, 2, 1], [0], [1.0]), "indptr must ascend from 0"),
    (lambda: gpx.Graph([0, 1, 2], [1, 0], [1.0]), r"for the shapes \[2\] and \[1\]"),
    (lambda: gpx.Graph([0, 1], [5], [1.0]), r"node id\(s\) 5 in indices are out of range: expected 0 ... 0"),
    (lambda: gpx.Graph([0, 0, 2, 3, 4], [3, 2, 1, 1], np.ones(4)), "columns of row 1 do not ascend"),
    (lambda: gpx.Graph([0, 1, 2], [1, 0], [1.0, np.nan]), "not finite"),
    (lambda: gpx.Graph([0, 1, 2], [1, 0], ["a", "b"]), "weights must be numbers"),
    (lambda: gpx.Graph([0, 1, 2], [1, 0], [1.0, 2.0]), r"not symmetric.*\[0, 1\] is 1, that of \[1, 0\] 2"),
    (lambda: gpx.kernels.Graph(small_graph(), laplacian="random walk"), "laplacian must be one of 'normalised'"),
    (lambda: gpx.kernels.Graph(small_graph(), backend="dense"), "backend must be 'auto', one of 'eigen'"),
    (lambda: gpx.kernels.Graph(np.eye(3)), r"takes a gpx.Graph, got ndarray.*from_scipy"),
    (lambda: gpx.kernels.Graph(small_graph(), "Matern"), r"spectrum must be one of gpx.graphs"),
    (lambda: gpx.kernels.Graph(small_graph(), graphs.PStep(3, shift=1.5)), "negative at eigenvalues above 1.5.*take shift >= 2"),
    (lambda: gpx.kernels.Graph(small_graph(), graphs.InverseCosine(1.0), "unnormalised"), r"negative at .* take scale <="),
    (lambda: gpx.kernels.Graph(small_graph()).matrix([0, 12, 40]), r"Node id\(s\) 12, 40 are out of range: .* 0 ... 11"),
    (lambda: gpx.kernels.Graph(small_graph()).matrix([0.5]), r"Node id\(s\) 0.5 are not integers"),
    (lambda: gpx.kernels.Graph(small_graph()).matrix([[0, 1]]), r"one input column, got 2; .*active_dims"),
    (lambda: graphs.PStep(0), "integer >= 1"),
    (lambda: graphs.PStep(2, shift=-1), "positive shift"),
    (lambda: graphs.Polynomial(lengths=0), "integer >= 1"),
    (lambda: graphs.Polynomial([]), "a coefficient that is not zero"),
    (lambda: graphs.Polynomial([0.0, 0.0]), "a coefficient that is not zero"),
    (lambda: graphs.Diffusion(beta=-1.0), "beta must be positive"),
])  # fmt: skip
def test_what_is_refused(build, advice):
    with pytest.raises(InputError, match=advice):
        build()


@pytest.mark.parametrize(
    "engine", [SIC(), SparseVariational(4), Coreset(4), SparseVariational(4, select="kmeans", refine=False)]
)
@pytest.mark.parametrize("name", ["Diffusion", "product"])
def test_engines_that_need_distances(engine, name):
    gp = gpx.GP(GRAPHS[name](), engine=engine)
    with pytest.raises(StructureError, match=r"kernels.Graph are labels; use engines.Exact\(\), or .*refine=False"):
        gp.condition(nodes(8, columns(name)), np.arange(8.0))


def test_inducing_nodes():
    x, y = nodes(12), torch.sin(torch.arange(12.0)).double()
    exact = gpx.GP(GRAPHS["Matern"]()).condition(x, y)
    sparse_gp = gpx.GP(GRAPHS["Matern"](), engine=SparseVariational(12, refine=False)).condition(x, y)
    close(sparse_gp.log_evidence(), exact.log_evidence(), "all nodes as inducing inputs", atol=1e-6)


def test_explain():
    text = str(gpx.explain(GRAPHS["Matern"]()))
    assert "feature map               yes  exact" in text
    assert "engine SIC                no   engines.SIC needs inputs with distances" in text
    assert "engine SparseVariational  yes  uses the dense matrix; with refine=False" in text


def draw(kernel, x, noise=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    K = kernel.matrix(x).detach()
    root = torch.linalg.cholesky(K + 1e-8 * torch.eye(len(K)))
    z = torch.randn(2, len(x), generator=generator, dtype=torch.float64)
    return root @ z[0] + noise**0.5 * z[1]


@pytest.mark.filterwarnings("ignore::gpx.FitWarning")  # of the free spectra, for the number of iterations
@pytest.mark.parametrize("spectrum", [graphs.Matern(), graphs.Polynomial(), graphs.Neural(), graphs.InverseCosine()])
def test_fit_from_integers(spectrum, tmp_path):
    """A fit finds a better model than no correlation, whatever the scale of the target, and a file gives it back."""
    graph = gpx.Graph.from_networkx(nx.grid_2d_graph(7, 8))
    x = np.random.default_rng(0).permutation(56)
    y = 1e3 * draw(gpx.kernels.Graph(graph, graphs.Diffusion(5.0)), x, 1e-3).numpy()
    gp = gpx.GP(gpx.kernels.Graph(graph, spectrum)).fit(x[:40], y[:40], max_iter=60)
    error = float((gp.predict(x[40:]).mean - torch.from_numpy(y[40:])).square().mean().sqrt())
    assert error < 0.8 * y[40:].std()
    gp.save(tmp_path / "model.gpx")
    again = gpx.load(tmp_path / "model.gpx")
    close(again.predict(x[40:]).mean, gp.predict(x[40:]).mean, "predictions of a saved model", 1e-12)
    assert repr(again.kernel_) == repr(gp.kernel_)
    if gp.kernel_.spectrum.scaled:
        assert gp.kernel_.choices["outputscale"].fixed
    with pytest.raises(InputError, match=r"Node id\(s\) 56 are out of range"):
        gp.predict([56])


@pytest.mark.parametrize("laplacian", ["normalised", "unnormalised"])
@pytest.mark.parametrize("backend", ["eigen", "walks"])
def test_the_inverse_cosine_stays_in_its_range(laplacian, backend, tmp_path):
    """Left open it is as wide as it can be; learned, the kernel stays a covariance."""
    graph = gpx.Graph.from_networkx(nx.path_graph(30))
    operator, mine = graph.operator(laplacian), graphs.InverseCosine()
    series = backend == "walks"
    limit = 1 / operator.rate if series else 2 / operator.bound
    lengths = graphs.Walks(50, lengths=20) if series else backend
    kernel = gpx.kernels.Graph(graph, mine, laplacian, lengths)
    assert abs(float(kernel.spectrum.scale.detach()) / limit - 1) < 1e-12
    assert float(mine.scale.detach()) == 1, "the user's own is as it was"
    free = graphs.InverseCosine(0.2).set(scale=dict(fixed=False, bounds=(0.01, 50.0)))
    x, y = np.arange(30), np.sin(np.arange(30) / 9)
    gp = gpx.GP(gpx.kernels.Graph(graph, free, laplacian, lengths)).fit(x, y, max_iter=60)
    assert float(gp.kernel_.spectrum.scale.detach()) <= limit * (1 + 1e-12)
    eigenvalues = torch.linalg.eigvalsh(gp.kernel_.matrix(x).detach())
    assert float(eigenvalues.min()) > -1e-12 * float(eigenvalues.max())
    gp = gpx.GP(kernel).condition(x, y)
    gp.save(tmp_path / "model.gpx")
    again = gpx.load(tmp_path / "model.gpx")
    assert repr(again.kernel_) == repr(gp.kernel_)
    close(again.predict(x).mean, gp.predict(x).mean, "predictions of a saved model", 1e-12)


def test_nodes_and_columns_of_a_table():
    """A product with a kernel on node features, by name; the ids stay as they are."""
    pd = pytest.importorskip("pandas")
    random = np.random.default_rng(1)
    table = pd.DataFrame({"age": 50 * random.random(24), "node": random.permutation(np.repeat(np.arange(12), 2))})
    kernel = gpx.kernels.Graph(small_graph(), active_dims=["node"]) * RBF(active_dims=["age"]) + Linear(
        active_dims=["age"]
    )
    gp = gpx.GP(kernel).fit(table, np.sin(table["age"] / 10), max_iter=30)
    assert gp.predict(table[["node", "age"]]).mean.shape == (24,)
    by_index = gpx.kernels.Graph(small_graph(), active_dims=[1]) + Matern(active_dims=[0])
    with pytest.raises(InputError, match="out of range"):
        gpx.GP(by_index).condition(np.array([[0.5, 30]]), [1.0])


def test_paths_agree_with_predictions():
    gp = gpx.GP(GRAPHS["unnormalised"]()).condition(nodes(6), torch.arange(6.0).double())
    paths = gp.paths(4000)(np.arange(12))
    close(paths.mean(0), gp.predict(np.arange(12), of="f").mean, "mean of paths", atol=0.1)
