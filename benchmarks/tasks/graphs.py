"""Kernels of graphs: error of estimates at equal steps, sampling rates, products with vectors, traffic in San Jose."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

STEPS = 274  # per node, at which estimates are compared
REPEATS = 12
PROBLEMS = tuple((name, beta) for name in ("grid 15 x 15", "Barabasi-Albert") for beta in (1.0, 5.0))
LAWS = {  # halting, coupling of it and of directions
    "": ("matched", "systematic", "systematic"),
    ", i.i.d. geometric": (0.1, "iid", "iid"),
    ", antithetic geometric, repelling": (0.1, "antithetic", "repelling"),
}
SPLITS, TRAINING = 4, 250


def grid(side: int) -> Any:
    """A square grid of side x side nodes."""
    import numpy as np

    import gpx

    i = np.arange(side * side).reshape(side, side)
    across, down = (i[:, :-1], i[:, 1:]), (i[:-1], i[1:])
    return gpx.Graph.from_edges(np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in (across, down)]))


def power_law(n: int, degree: int = 6, exponent: float = 2.5) -> Any:
    """Edges between nodes drawn with probabilities that follow a power law (Chung & Lu), in random order."""
    import numpy as np

    import gpx

    random = np.random.default_rng(0)
    weights = (1 - random.random(n)) ** (-1 / (exponent - 1))
    ends = np.searchsorted(np.cumsum(weights / weights.sum()), random.random((n * degree // 2, 2))).clip(max=n - 1)
    ends = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], 1), axis=0)
    return gpx.Graph.from_edges(random.permutation(n)[ends], num_nodes=n)


def run_gpx(setting: Setting) -> dict[str, float]:
    """All parts; the quick version has graphs of a hundredth of the size, and fewer repeats."""
    found = errors_of_estimates(2 if setting.quick else REPEATS)
    size = 100_000 if setting.quick else 1_000_000
    found |= sampling(size) | scaling(16 if setting.quick else 20) | products(size)
    return found | traffic(2 if setting.quick else SPLITS)


def errors_of_estimates(repeats: int) -> dict[str, float]:
    """Relative Frobenius errors off the diagonal, and by what share the diagonal is too large, means over seeds."""
    import networkx as nx
    import numpy as np

    import gpx
    from gpx import graphs

    found = {}
    for name, beta in PROBLEMS:
        source = nx.grid_2d_graph(15, 15) if name.startswith("grid") else nx.barabasi_albert_graph(225, 3, seed=0)
        graph, spectrum, nodes = gpx.Graph.from_networkx(source), graphs.Diffusion(beta), np.arange(225)
        exact = gpx.kernels.Graph(graph, spectrum).matrix(nodes).detach().numpy()
        off = ~np.eye(225, dtype=bool)
        for law, (halting, coupling, directions) in LAWS.items():
            errors, biases = [], []
            for seed in range(repeats):
                walks = as_many_walks(graph, spectrum, halting)
                backend = graphs.Walks(walks, LENGTHS[halting], halting, coupling, directions, seed=seed)
                near = gpx.kernels.Graph(graph, spectrum, backend=backend).matrix(nodes).detach().numpy()
                errors.append(float(np.linalg.norm((near - exact)[off]) / np.linalg.norm(exact[off])))
                biases.append(float(np.trace(near - exact) / np.trace(exact)))
            found[f"error, {name}, beta = {beta:g}{law}"] = float(np.mean(errors))
            found[f"bias of the diagonal, {name}, beta = {beta:g}{law}"] = float(np.mean(biases))
    return found


LENGTHS: dict[str | float, int | None] = {"matched": None, 0.1: 30}


def as_many_walks(graph: Any, spectrum: Any, halting: Any) -> int:
    """The number of walks per node that take STEPS steps."""
    from gpx import graphs

    survival = graphs.Walks(1, LENGTHS[halting], halting).settled(graph.operator(), spectrum).survival
    assert survival is not None
    return round(STEPS / sum(survival[1:]))


def sampling(size: int) -> dict[str, float]:
    """Millions of walks per second and core: 100 from every node, up to 9 steps, a tenth of them the last."""
    import numpy as np
    import torch

    from gpx.graphs.walks import Law, Transitions, walk

    found = {}
    for name, graph in (("grid", grid(round(size**0.5))), ("power law", power_law(size))):
        transitions = Transitions.of(graph.operator())
        rows = np.arange(graph.num_nodes)
        for coupling in ("systematic", "iid"):
            law = Law(tuple(0.9 ** np.arange(10)), coupling, coupling)
            walk(transitions, rows[:10], 100, law, 0)
            rows = rows if name == "grid" else np.random.default_rng(1).choice(rows, size // 10, replace=False)
            began, cores = time.perf_counter(), min(2, torch.get_num_threads())
            counts = walk(transitions, rows, 100, law, 0)
            seconds = time.perf_counter() - began
            found[f"sampling, {name}, {coupling}"] = len(rows) * 100 / seconds / cores / 1e6
            if coupling == "systematic":
                found[f"sampling, {name}: seconds"] = seconds * graph.num_nodes / len(rows)
                found[f"sampling, {name}: memory"] = counts.bytes_per_row * graph.num_nodes / 1e9
            del counts
    return found


def scaling(largest: int) -> dict[str, float]:
    """Exponents of time and memory in the number of nodes, from 2^10 to 2^largest: least squares on logarithms."""
    import numpy as np

    from gpx.graphs.walks import Law, Transitions, walk

    law, sizes, seconds, memory = Law(tuple(0.9 ** np.arange(5)), "systematic", "systematic"), [], [], []
    for power in range(10, largest + 1, 2):
        graph = grid(2 ** (power // 2))
        transitions, rows = Transitions.of(graph.operator()), np.arange(graph.num_nodes)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            counts = walk(transitions, rows, 20, law, 0)
            times.append(time.perf_counter() - began)
        sizes.append(graph.num_nodes)
        seconds.append(min(times))
        memory.append(counts.bytes_per_row * len(rows))
    slopes = [np.polyfit(np.log(sizes), np.log(values), 1)[0] for values in (seconds, memory)]
    return {"exponent of time": float(slopes[0]), "exponent of memory": float(slopes[1])}


def products(size: int) -> dict[str, float]:
    """Seconds of ``exp(-5 L) v`` on a grid, and the error for a small one."""
    import numpy as np
    import torch
    from scipy.linalg import expm

    from gpx import graphs

    operator, spectrum = grid(round(size**0.5)).operator(), graphs.Diffusion(5.0)
    v, backend = torch.from_numpy(vector(operator.graph.num_nodes)), graphs.Chebyshev(1e-6)
    small = grid(30).operator()
    L = np.eye(900) - small.walk_matrix.toarray()
    unit = torch.from_numpy(vector(900))
    K = backend.multiply(small, spectrum, unit[:, None])[:, 0].detach().numpy()
    exact = expm(-5.0 * L) @ unit.numpy()
    return {
        "product, beta = 5": best(lambda: backend.multiply(operator, spectrum, v)),
        "product: error": float(np.linalg.norm(K - exact) / np.linalg.norm(unit.numpy())),
    }


def vector(size: int) -> ndarray:
    """Normal numbers."""
    import numpy as np

    return np.random.default_rng(0).standard_normal(size)


def best(action: Any, repeats: int = 5) -> float:
    """Median seconds, after a first run."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def traffic(splits: int) -> dict[str, float]:
    """Speeds at 325 places of San Jose's roads: RMSE in mph, NLPD in units of the training part's standard deviation; of both
    Laplacians that with the larger evidence, split by split.
    """
    import numpy as np

    import gpx

    graph, nodes, speed = roads()
    chosen, walks, unnormalised = [], [], 0
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(nodes))
        train, test = order[:TRAINING], order[TRAINING:]
        scale = speed[train].std()
        y = (speed - speed[train].mean()) / scale
        fits = [
            gpx.GP(gpx.kernels.Graph(graph, gpx.graphs.Matern(nu=1.5), laplacian)).fit(nodes[train], y[train])
            for laplacian in ("normalised", "unnormalised")
        ]
        gp = max(fits, key=lambda fit: fit.log_evidence())
        unnormalised += gp is fits[1]
        chosen.append(scores(gp, nodes[test], y[test], scale))
        sampled = by_walks(fits[0], nodes[train], y[train])
        walks.append([scores(model, nodes[test], y[test], scale) for model in (fits[0], sampled)])
    rmse, nlpd = np.mean(chosen, 0)
    eigen, sampled = np.mean(walks, 0)
    return {
        "traffic: RMSE": float(rmse),
        "traffic: NLPD": float(nlpd),
        "traffic: unnormalised chosen": unnormalised / splits,
        "traffic: RMSE by walks, relative to eigenvectors": float(sampled[0] / eigen[0]),
        "traffic: NLPD by walks less eigenvectors": float(sampled[1] - eigen[1]),
    }


def by_walks(gp: Any, nodes: ndarray, y: ndarray) -> Any:
    """The same model, its kernel estimated by walks; nothing is learned anew."""
    import gpx

    fitted, walks = gp.kernel_, gpx.graphs.Walks(1000, lengths=1500)
    kernel = gpx.kernels.Graph(fitted.graph, fitted.spectrum, fitted.laplacian, walks, fitted.outputscale.detach())
    return gpx.GP(kernel, gp.likelihood_, mean=gp.mean_).condition(nodes, y)


def scores(gp: Any, nodes: ndarray, y: ndarray, scale: float) -> tuple[float, float]:
    """RMSE in mph and mean negative log predictive density."""
    prediction = gp.predict(nodes)
    rmse = float((prediction.mean.detach().numpy() - y).__pow__(2).mean() ** 0.5)
    return rmse * scale, -float(prediction.log_prob(y).mean())


def roads() -> tuple[Any, ndarray, ndarray]:
    """The graph of San Jose's roads, nodes with a detector, and mean speeds there, in mph."""
    import gpx

    data = gpx.datasets.load("pems_san_jose")
    return data.graph, data.X[:, 0].long().numpy(), data.y.numpy()


def run_scipy(setting: Setting) -> dict[str, float]:
    """The action of the matrix exponential (Al-Mohy & Higham)."""
    from scipy import sparse
    from scipy.sparse.linalg import expm_multiply

    size = 100_000 if setting.quick else 1_000_000
    operator = grid(round(size**0.5)).operator()
    L = sparse.eye_array(operator.graph.num_nodes, format="csr") - operator.walk_matrix
    v = vector(operator.graph.num_nodes)
    return {"product, beta = 5": best(lambda: expm_multiply(-5.0 * L, v), 3)}


TASK = Task(
    name="graphs",
    description="Kernels of graphs: estimates by walks at 274 steps per node, sampling of a million nodes, products, traffic.",
    metrics=(
        *(Metric(f"error, {name}, beta = {beta:g}{law}") for name, beta in PROBLEMS for law in LAWS),
        *(Metric(f"bias of the diagonal, {name}, beta = {beta:g}{law}") for name, beta in PROBLEMS for law in LAWS),
        *(
            Metric(f"sampling, {name}, {coupling}", "M walks/s/core")
            for name in ("grid", "power law")
            for coupling in ("systematic", "iid")
        ),
        *(Metric(f"sampling, {name}: seconds", "s") for name in ("grid", "power law")),
        *(Metric(f"sampling, {name}: memory", "GB") for name in ("grid", "power law")),
        Metric("exponent of time"),
        Metric("exponent of memory"),
        Metric("product, beta = 5", "s"),
        Metric("product: error"),
        Metric("traffic: RMSE", "mph"),
        Metric("traffic: NLPD", "nats", "difference"),
        Metric("traffic: unnormalised chosen"),
        Metric("traffic: RMSE by walks, relative to eigenvectors"),
        Metric("traffic: NLPD by walks less eigenvectors", "nats", "difference"),
    ),
    models={"gpx": run_gpx, "scipy": run_scipy},
)
