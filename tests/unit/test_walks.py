"""The sampler of walks, its sparse features, and the backend that is made of them."""

from __future__ import annotations

import re
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch

import gpx
from gpx import InputError, StructureError, graphs
from gpx.graphs.loads import Pattern, product
from gpx.graphs.reach import TAIL, shares_beyond
from gpx.graphs.walks import COUPLINGS, Law, Transitions, walk
from gpx.kernels import RBF, Graph
from gpx.structure import sparse_features
from gpx.testing import check_engine, check_kernel, check_structure
from gpx.testing.assertions import close, gradients
from gpx.testing.cases import SPECTRA, nodes, small_graph
from gpx.testing.structures import check_sparse_features

QUICK = graphs.Walks(walks=30, lengths=6)
KERNELS = {
    "Diffusion": lambda: Graph(small_graph(), SPECTRA["Diffusion"](), backend=QUICK, outputscale=0.7),
    "Matern": lambda: Graph(small_graph(), SPECTRA["Matern"](), "unnormalised", backend=QUICK),
    "Polynomial": lambda: Graph(small_graph(), SPECTRA["Polynomial"](), backend=QUICK),
    "stitched": lambda: Graph(small_graph(), SPECTRA["Diffusion"](), backend=graphs.Walks(20, 5, stitches=3)),
    "more": lambda: Graph(small_graph(), SPECTRA["Diffusion"](), backend=graphs.Walks(9, 5, halting=0.4).more(20)),
    "push": lambda: Graph(small_graph(), SPECTRA["Matern"](), backend=graphs.Push(1e-2, lengths=6)),
    "sum": lambda: Graph(small_graph(), backend=QUICK) + Graph(small_graph(), SPECTRA["Neural"](), backend=QUICK),
    "product": lambda: Graph(small_graph(), backend=QUICK, active_dims=[0]) * RBF(active_dims=[1]),
}


def columns(name):
    return 2 if name == "product" else 1


@pytest.mark.parametrize("name", KERNELS)
def test_laws_of_kernels(name):
    check_kernel(KERNELS[name](), nodes(8, columns(name)))


@pytest.mark.parametrize("name", [n for n in KERNELS if n != "product"])
def test_laws_of_structures(name):
    check_structure(KERNELS[name](), nodes(6))


def test_which_kernels_have_sparse_features():
    check_sparse_features(KERNELS["sum"](), nodes(5))
    for kernel, advice in (
        (KERNELS["stitched"](), "no sparse features of a node; use graphs.Walks"),
        (Graph(small_graph()), "no sparse features of a node; use graphs.Walks"),
        (RBF(), "RBF has no sparse features: use kernels.Graph"),
    ):
        with pytest.raises(StructureError, match=advice):
            sparse_features(kernel, nodes(3))
    assert "sparse features           yes" in str(gpx.explain(KERNELS["Matern"]()))


def test_laws_of_the_exact_engine():
    check_engine(gpx.engines.Exact(), [KERNELS["Diffusion"]()], nodes(8), tolerance=1e-9)


def counts(operator, rows, walks, halting="systematic", directions="systematic", survival=(1.0, 0.7, 0.4, 0.2), **how):
    return walk(
        Transitions.of(operator), np.asarray(rows), walks, Law(survival, halting, directions), how.pop("seed", 0), **how
    )


def dense(counts, size):
    """Visits [rows, size, L]."""
    result = np.zeros((len(counts.rows), size, counts.visits.shape[1]))
    for r in range(len(counts.rows)):
        part = slice(counts.indptr[r], counts.indptr[r + 1])
        assert len(set(counts.columns[part].tolist())) == part.stop - part.start, "a node has one entry"
        result[r, counts.columns[part]] = counts.visits[part]
    return result


@pytest.mark.parametrize("halting", COUPLINGS)
@pytest.mark.parametrize("directions", COUPLINGS)
def test_every_walk_is_counted(halting, directions):
    """Only neighbours are reached; walks end as often as the law says, without chance where they end systematically."""
    operator = small_graph().operator()
    visits = dense(counts(operator, range(12), 200, halting, directions), 12)
    assert np.array_equal(visits[:, :, 0], 200 * np.eye(12))
    S, reach = operator.walk_matrix.toarray(), np.eye(12)
    for step in range(1, 4):
        reach = reach @ (S != 0)
        assert not visits[reach == 0, step].any(), "only neighbours are reached"
    alive = visits.sum(1)
    assert (np.diff(alive, axis=1) <= 0).all()
    limit = {"iid": 60, "antithetic": 45, "repelling": 30, "systematic": 4}[halting]
    assert np.abs(alive - 200 * np.array([1, 0.7, 0.4, 0.2])).max() <= limit


@pytest.mark.parametrize("walks", [127, 128, 2**15 - 1, 2**15])
def test_counts_are_as_large_as_there_are_walks(walks):
    """Both ends of one edge of negative weight: every walk is on one side, and changes its sign at every step."""
    edge = gpx.Graph.from_scipy(np.array([[0.0, -1.0], [-1.0, 0.0]]), signed=True).operator()
    visits = dense(counts(edge, range(2), walks, survival=(1.0, 1.0, 1.0)), 2)
    assert np.array_equal(visits[0], [[walks, 0, walks], [0, -walks, 0]])


def test_systematic_directions_are_without_chance():
    """From a node with four neighbours, a quarter of the walks goes to each."""
    star = gpx.Graph.from_edges([[0, 1], [0, 2], [0, 3], [0, 4]]).operator()
    for directions in ("repelling", "systematic"):
        visits = dense(counts(star, [0], 40, "iid", directions, (1.0, 1.0)), 5)
        assert visits[0, 1:, 1].tolist() == [10, 10, 10, 10]


def test_independent_of_threads_order_and_company(monkeypatch):
    """Nor of how many rows are put together at a time."""
    operator = gpx.Graph.from_networkx(nx.grid_2d_graph(30, 40)).operator("unnormalised")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = counts(operator, range(1200), 20)
        torch.set_num_threads(2)
        monkeypatch.setattr("gpx.graphs.walks.GROUP", 700)
        two = counts(operator, range(1200), 20)
    finally:
        torch.set_num_threads(before)
    for name in ("indptr", "columns", "visits"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    some = counts(operator, [700, 3], 20)
    assert np.array_equal(some.visits, one.of(np.array([700, 3])).visits)
    other = counts(operator, [700, 3], 20, seed=1)
    assert not np.array_equal(dense(other, 1200), dense(some, 1200))


def test_loads_are_powers_of_the_walk_matrix():
    """docs/theory/graphs.md, graphs-walks: E V_l = S^l, also for signed weights and self-loops."""
    W = small_graph().matrix.toarray() * np.where(np.add.outer(np.arange(12), np.arange(12)) % 3 == 0, -1, 1)
    W[3, 3] = 0.4
    operator = gpx.Graph.from_scipy(W, signed=True, self_loops="keep").operator()
    settings = graphs.Walks(walks=50_000, lengths=4, halting=0.2).settled(operator, graphs.Diffusion())
    loads = settings.loads(operator, np.arange(12))
    S = operator.walk_matrix.toarray()
    for power in range(4):
        values = loads.values(torch.eye(4, dtype=torch.float64)[power]).numpy()
        V = np.zeros((12, 12))
        V[loads.rows(), loads.counts.columns] = values
        close(V, np.linalg.matrix_power(S, power), f"S^{power}", atol=0.02)


def test_more_walks():
    """More walks are others than the first, and all of them count."""
    operator = small_graph().operator()
    base = graphs.Walks(walks=10, lengths=4).settled(operator, graphs.Diffusion())
    f = torch.tensor([1.0, 0.5, 0.3, 0.1], dtype=torch.float64)
    first, both = (dict(zip(zip(x.rows().tolist(), x.counts.columns.tolist(), strict=True), x.values(f).tolist(), strict=True))
                   for x in (base.loads(operator, np.arange(12)), base.more(30).loads(operator, np.arange(12))))  # fmt: skip
    rest = base._counts(operator, np.arange(12), 0, 30, 10)
    added = dense(rest, 12) @ (f.numpy() / np.array(base.settled_survival))
    root = np.sqrt(operator.stationary)
    for (i, j), value in both.items():
        expected = 0.25 * first.get((i, j), 0.0) + added[i, j] * root[i] / root[j] / 40
        assert abs(value - expected) < 1e-12


def test_products_and_their_gradients():
    random = torch.Generator().manual_seed(0)
    pattern = Pattern(np.array([0, 2, 2, 5]), np.array([1, 3, 0, 1, 2], np.int32), (3, 4))
    values = torch.randn(5, generator=random, dtype=torch.float64, requires_grad=True)
    for transposed, rows in ((False, 4), (True, 3)):
        X = torch.randn(rows, 2, generator=random, dtype=torch.float64, requires_grad=True)
        A = torch.from_numpy(pattern.matrix(values).toarray())
        close(product(pattern, values, X, transposed), (A.mT if transposed else A) @ X.detach(), "product")
        gradients(lambda v, x, t=transposed: product(pattern, v, x, t), [values, X], "derivatives of a product")
    f = torch.rand(4, generator=random, dtype=torch.float64, requires_grad=True)
    loads = (
        graphs.Walks(40, 4)
        .settled(small_graph().operator(), graphs.Diffusion())
        .loads(small_graph().operator(), np.arange(9))
    )
    gradients(loads.values, [f], "derivatives of entries in the modulation")


@pytest.mark.parametrize("stitches", [1, 3])
def test_estimates_approach_the_kernel(stitches):
    graph = gpx.Graph.from_networkx(nx.grid_2d_graph(5, 6))
    exact = Graph(graph, graphs.Matern(kappa=2.0)).matrix(np.arange(30)).detach()
    many = Graph(graph, graphs.Matern(kappa=2.0), backend=graphs.Walks(20_000, stitches=stitches))
    close(many.matrix(np.arange(30)), exact, "20,000 walks", atol=0.01 * float(exact.max()))
    v = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product_ = many.backend.multiply(many.operator, many.spectrum, v)
    close(product_, many.matrix(np.arange(30)) @ v, "products with vectors", 1e-10)


@pytest.mark.parametrize("laplacian", ["normalised", "unnormalised"])
def test_push_approaches_the_kernel(laplacian):
    """The error falls with the threshold, and features stay local."""
    graph = gpx.Graph.from_networkx(nx.grid_2d_graph(9, 9))
    exact = Graph(graph, graphs.Diffusion(1.5), laplacian).matrix(np.arange(81)).detach()
    errors, entries = [], []
    for threshold in (1e-2, 1e-3, 1e-9):
        kernel = Graph(graph, graphs.Diffusion(1.5), laplacian, graphs.Push(threshold))
        errors.append(float((kernel.matrix(np.arange(81)).detach() - exact).abs().max()))
        entries.append(len(kernel.backend.loads(kernel.operator, np.arange(81)).counts.columns))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3, "the tail of the modulation"
    assert entries[0] < entries[1] < entries[2]


def test_far_nodes_have_no_covariance():
    """Where walks do not meet, the kernel is zero, whatever the spectrum."""
    path = gpx.Graph.from_networkx(nx.path_graph(50))
    K = Graph(path, graphs.Diffusion(), backend=graphs.Walks(50, lengths=4)).matrix([0, 49])
    assert float(K[0, 1].detach()) == 0


def test_matched_lengths_follow_the_start_of_a_fit(tmp_path):
    graph = gpx.Graph.from_networkx(nx.grid_2d_graph(6, 6))
    x, y = np.arange(36), np.sin(np.arange(36) / 7)
    gp = gpx.GP(Graph(graph, graphs.Diffusion(), backend=graphs.Walks(60))).fit(x[:30], y[:30], max_iter=20)
    before, after = gp.kernel.backend.survival, gp.kernel_.backend.survival
    assert len(before) < len(after)
    gp.save(tmp_path / "model.gpx")
    again = gpx.load(tmp_path / "model.gpx")
    assert again.kernel_.backend == gp.kernel_.backend
    close(again.predict(x).mean, gp.predict(x).mean, "predictions of a saved model", 1e-12)


def cut_short(backend):
    """A fit that begins with short walks, and whose optimum is far."""
    graph = gpx.Graph.from_networkx(nx.grid_2d_graph(24, 24))
    x = np.random.default_rng(0).permutation(576)[:200]
    y = np.sin(x // 24 / 6) * np.cos(x % 24 / 5) + 0.2 * np.random.default_rng(1).standard_normal(200)
    return gpx.GP(Graph(graph, graphs.Diffusion(), backend=backend)), x, y


@pytest.mark.parametrize("backend", [
    graphs.Walks(1000), graphs.Walks(500, stitches=2), pytest.param(graphs.Push(1e-6), marks=pytest.mark.slow),
])  # fmt: skip
def test_a_fit_goes_on_with_longer_walks(backend):
    """An optimum beyond the walks of the start is found, and nothing worth telling is left out there."""
    gp, x, y = cut_short(backend)
    gp.fit(x, y)
    exact = cut_short("eigen")[0].fit(x, y)
    assert abs(gp.log_evidence() - exact.log_evidence()) < 1.5
    beta = float(exact.kernel_.spectrum.beta.detach())
    assert abs(float(gp.kernel_.spectrum.beta.detach()) / beta - 1) < 0.15
    assert gp.kernel_.shortfall() == ""
    assert gp.result_.starts.keys() == exact.result_.starts.keys()


def test_a_fit_that_cannot_go_on_says_what_is_left_out():
    gp, x, y = cut_short(graphs.Walks(200))
    with pytest.warns(
        gpx.FitWarning, match=r"% of the modulation of Diffusion.* beyond the 14 steps of Walks.*: take stitches=2, len"
    ):
        gp.fit(x, y, max_iter=4)


def test_a_fit_without_memory_to_go_on_is_not_lost(monkeypatch):
    check = graphs.Walks._check_memory

    def little(self, transitions, rows, law, *rest):
        if len(law.survival) > 20:
            raise InputError("need about 9 GB")
        check(self, transitions, rows, law, *rest)

    monkeypatch.setattr(graphs.Walks, "_check_memory", little)
    gp, x, y = cut_short(graphs.Walks(200))
    with pytest.warns(gpx.FitWarning, match="beyond the 14 steps of Walks"):
        gp.fit(x, y)
    assert len(gp.kernel_.backend.survival) == 14
    assert gp.result_.converged
    assert abs(gp.log_evidence() - gp.result_.objective) < 1e-6


def test_lengths_that_were_asked_for_stay():
    gp, x, y = cut_short(graphs.Walks(200, lengths=7))
    assert len(gp.fit(x, y).kernel_.backend.survival) == 7


@pytest.mark.parametrize("spectrum", [graphs.Diffusion(9e3), graphs.Matern(kappa=70.0)])
def test_advice_about_lengths_works(spectrum):
    """What a refusal says is enough is, and one less is not."""
    with pytest.raises(InputError) as refusal:
        Graph(small_graph(), spectrum, backend="walks")
    operator = small_graph().operator()
    for name, value in re.findall(r"(stitches|lengths)=(\d+)", str(refusal.value)):
        settled = graphs.Walks(**{name: int(value)}).settled(operator, spectrum)
        left = shares_beyond(operator, spectrum, settled.stitches, 1 << 16)[len(settled.survival) - 1]
        assert left <= TAIL, name
    assert "lengths=" in str(refusal.value)


def test_coefficients_that_are_learned_are_all_walked():
    """Those of a free spectrum, also where they are negligible at the start."""
    backend = Graph(small_graph(), graphs.Polynomial(lengths=30), backend="walks").backend
    assert len(backend.survival) == 30


def test_memory_is_estimated_before_it_is_taken():
    graph = gpx.Graph.from_networkx(nx.grid_2d_graph(100, 100))
    kernel = Graph(graph, graphs.Diffusion(5.0), backend=graphs.Walks(64, memory=0.002))
    with pytest.raises(
        InputError, match=r"10,000 nodes need about .* GB, the limit is 0.002 GB: take walks=\d+, lengths below"
    ):
        kernel.backend.multiply(kernel.operator, kernel.spectrum, torch.zeros(10_000, 1).double())
    assert kernel.matrix([5, 6]).shape == (2, 2), "few rows are no problem"


@pytest.mark.parametrize("walks", [
    lambda limit: graphs.Walks(400, memory=limit),
    lambda limit: graphs.Walks(4, memory=limit).more(396),
    lambda limit: graphs.Walks(100, memory=limit).more(150).more(150),
    lambda limit: graphs.Walks(200, lengths=4, memory=limit, stitches=6),
])  # fmt: skip
@pytest.mark.parametrize("batch", [900, 100])
def test_all_walks_together_keep_within_the_memory(walks, batch):
    """Whatever is asked for, at once or in parts: what is kept is no more than the limit, to the accuracy of the pilot; the advice fits."""
    graph, limit = gpx.Graph.from_networkx(nx.grid_2d_graph(30, 30)), 3e-4

    def kept(backend):
        kernel = Graph(graph, graphs.Diffusion(3.0), backend=backend)
        kernel.operator.drawn.clear()
        try:
            for some in np.array_split(np.arange(900), 900 // batch):
                kernel.diagonal(some)
        finally:
            found = kernel.operator.drawn.values()
            size.append(sum(c.columns.nbytes + c.visits.nbytes for c in found) / 1e9)

    size: list[float] = []
    with pytest.raises(InputError, match=f"the limit is {limit:g} GB") as refused:
        kept(walks(limit))
    assert size[-1] < 1.1 * limit
    fitting = int(re.search(r"take walks=(\d+)", str(refused.value))[1])
    if batch == 900:
        kept(replace(walks(limit), walks=fitting, added=()))
        assert 0.1 * limit < size[-1] < 1.1 * limit
    kept(walks(1.0))
    assert size[-1] > limit


def test_stitches_are_multiplied_in_blocks(monkeypatch):
    """Nothing dense of all nodes and all that are asked for; the same numbers and gradients."""
    found = []
    for block in (1 << 24, 40):
        monkeypatch.setattr(graphs.sampled, "BLOCK", block)
        kernel = KERNELS["stitched"]()
        K, diagonal = kernel.matrix(np.arange(12), np.arange(5)), kernel.diagonal(np.arange(12))
        loss = (K * torch.arange(60.0).view(12, 5)).sum() + diagonal @ torch.arange(12.0).double()
        found.append((K, diagonal, *torch.autograd.grad(loss, [p for p in kernel.parameters() if p.requires_grad])))
    for one, many in zip(*found, strict=True):
        close(many.detach(), one.detach(), "blocks", 1e-12)
    close(found[0][1].detach(), kernel.matrix(np.arange(12)).diagonal().detach(), "diagonal", 1e-12)
    features = kernel.backend.features(kernel.operator, kernel.spectrum, torch.arange(4))
    weights = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    combined = kernel.backend.combined(kernel.operator, kernel.spectrum, torch.arange(4), weights)
    close(combined.detach(), (features @ weights).detach(), "features times weights", 1e-12)


def bound():
    return small_graph().operator("unnormalised").bound


@pytest.mark.parametrize(("build", "advice"), [
    (lambda: graphs.Walks(0), "walks, an integer >= 1, got 0"),
    (lambda: graphs.Walks(10, lengths=0), "lengths, an integer >= 1"),
    (lambda: graphs.Walks(10, halting=1.5), r"a probability in \(0, 1\), got 1.5"),
    (lambda: graphs.Walks(10, coupling="none"), "coupling to be one of"),
    (lambda: graphs.Walks(10, directions="none"), "directions to be one of"),
    (lambda: graphs.Walks(10, seed=-1), "a seed, an integer >= 0"),
    (lambda: graphs.Walks(10, memory=0), "memory > 0, in GB"),
    (lambda: graphs.Walks(10, memory="a"), "memory > 0, in GB, got 'a'"),
    (lambda: graphs.Walks(10).more(-3), "more needs walks, an integer >= 1, got -3"),
    (lambda: graphs.Walks(10).more(2.5), "an integer >= 1, got 2.5"),
    (lambda: graphs.Walks(10).more("a"), "an integer >= 1, got 'a'"),
    (lambda: graphs.Push(0.0), r"threshold in \(0, 1\), got 0.0"),
    (lambda: graphs.Push(lengths=0), "lengths, an integer >= 1"),
    (lambda: graphs.Walks(10).loads(small_graph().operator(), np.arange(3)), r"not settled: call settled\("),
    (lambda: Graph(small_graph(), graphs.Diffusion(1e4), backend="walks"), r"100.0% of the modulation .* beyond 4096 steps: take stitches=2, lengths=\d+, a spectrum"),
    (lambda: Graph(small_graph(), graphs.PStep(1), backend="walks"), "beyond 4096 steps"),
    (lambda: Graph(small_graph(), graphs.InverseCosine(2 / bound()), "unnormalised", "walks"), "converges up to 0.*this Laplacian needs 1"),
    (lambda: Graph(small_graph(), graphs.InverseCosine(2 / bound()), "unnormalised", graphs.Push(lengths=4)), "converges up to 0"),
    (lambda: Graph(small_graph(), graphs.Polynomial([0.1, 1.0]), backend=graphs.Walks(9, 4, stitches=2)), "up to 0.1,.*take stitches=1"),
])  # fmt: skip
def test_what_is_refused(build, advice):
    with pytest.raises(InputError, match=advice):
        build()
