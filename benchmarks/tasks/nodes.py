"""Classes of nodes of a citation graph from 20 labels of each, against label spreading; one random split per repeat."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

DATA = ("cora", "pubmed")
LABELS = 20  # of every class; all other nodes are for testing
SHARES, FOLDS, STEPS = (0.5, 0.8, 0.9, 0.95, 0.99), 5, 200  # of label spreading
BINS = 10  # of confidence


def split(y: ndarray, seed: int) -> tuple[ndarray, ndarray]:
    """Nodes with labels, and the others."""
    import numpy as np

    random = np.random.default_rng(seed)
    train = np.concatenate([random.choice(np.flatnonzero(y == c), LABELS, replace=False) for c in np.unique(y)])
    return train, np.setdiff1d(np.arange(len(y)), train)


def problems(setting: Setting) -> Any:
    """Name, graph, classes [N] and the split; quick: cora alone."""
    import numpy as np

    import gpx

    for name in DATA[:1] if setting.quick else DATA:
        data = gpx.datasets.load(name)
        y = np.asarray(data.y).astype(int)
        yield name, data.graph, y, *split(y, setting.seed)


def calibration_error(probabilities: ndarray, y: ndarray) -> float:
    """Mean distance of confidence and share of hits, over bins of confidence (Guo et al. 2017)."""
    import numpy as np

    confidence, hit = probabilities.max(1), probabilities.argmax(1) == y
    bins = np.minimum((BINS * confidence).astype(int), BINS - 1)
    return float(sum(abs((hit - confidence)[bins == b].sum()) for b in range(BINS)) / len(y))


def run(spectrum: str) -> Any:
    """A model with this spectrum of the normalised Laplacian, everything learned by the default objective."""

    def model(setting: Setting) -> dict[str, float]:
        import warnings

        import numpy as np
        import torch

        import gpx

        found: dict[str, float] = {}
        for name, graph, y, train, test in problems(setting):
            kernel, count = gpx.kernels.Graph(graph, spectrum=getattr(gpx.graphs, spectrum)()), int(y.max()) + 1
            began = time.perf_counter()
            gp = gpx.GP(kernel, gpx.likelihoods.Categorical(count))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", gpx.FitWarning)
                gp.fit(train[:, None], y[train], max_iter=5 if setting.quick else 200)
            p = gp.predict(test[:, None])
            logs = np.stack([p.log_prob(torch.full((len(test),), c)).numpy() for c in range(count)], 1)
            found |= {
                f"{name}: accuracy": float((logs.argmax(1) == y[test]).mean()),
                f"{name}: NLPD": -float(logs[np.arange(len(test)), y[test]].mean()),
                f"{name}: calibration error": calibration_error(np.exp(logs), y[test]),
                f"{name}: evidence": gp.log_evidence(),
                f"{name}: seconds": time.perf_counter() - began,
            }
        return found

    return model


def run_spreading(setting: Setting) -> dict[str, float]:
    """Label spreading (Zhou et al. 2004), its share by five-fold cross-validation on the labels."""
    import numpy as np
    import scipy.sparse as sp

    found: dict[str, float] = {}
    for name, graph, y, train, test in problems(setting):
        began = time.perf_counter()
        A = sp.csr_array((graph.weights, graph.indices, graph.indptr), shape=(len(y), len(y)))
        root = sp.dia_array((np.maximum(A.sum(1), 1e-300)[None] ** -0.5, [0]), shape=A.shape)
        S = (root @ A @ root).tocsr()

        def spread(known: ndarray, share: float, S: Any = S, y: ndarray = y) -> ndarray:
            start = np.zeros((len(y), y.max() + 1))
            start[known, y[known]] = 1
            values = start
            for _ in range(STEPS):
                values = share * (S @ values) + (1 - share) * start
            return values.argmax(1)

        parts = np.array_split(np.random.default_rng(setting.seed).permutation(train), FOLDS)
        hits = [np.mean([(spread(np.setdiff1d(train, p), s)[p] == y[p]).mean() for p in parts]) for s in SHARES]
        guess = spread(train, SHARES[int(np.argmax(hits))])
        found[f"{name}: accuracy"] = float((guess[test] == y[test]).mean())
        found[f"{name}: seconds"] = time.perf_counter() - began
    return found


TASK = Task(
    name="nodes",
    description="Classes of the nodes of Cora and PubMed from 20 labels each: accuracy, density, calibration.",
    metrics=tuple(
        metric
        for name in DATA
        for metric in (
            Metric(f"{name}: accuracy", "", "difference"),
            Metric(f"{name}: NLPD", "nats", "difference"),
            Metric(f"{name}: calibration error", "", "difference"),
            Metric(f"{name}: evidence", "nats", "difference"),
            Metric(f"{name}: seconds", "s"),
        )
    ),
    models={"gpx-diffusion": run("Diffusion"), "gpx-matern": run("Matern"), "spreading": run_spreading},
    reference="spreading",
)
