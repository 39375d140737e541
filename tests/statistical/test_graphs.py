"""Estimates of graph kernels by walks: unbiased off the diagonal for every law of walks, with the stated bias on it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

import gpx
from gpx import graphs
from gpx.graphs.walks import COUPLINGS

REPEATS, PARTS, NODES = 600, 4, 100
LAWS = list(itertools.product(("matched", 0.3, "fixed"), COUPLINGS))


def problem(lengths=5):
    """Four graphs side by side, with unequal degrees and weights; a modulation; the kernel [PARTS, NODES, NODES] that it stands
    for.
    """
    graph = nx.disjoint_union_all([nx.barabasi_albert_graph(NODES, 2, seed=part) for part in range(PARTS)])
    random = np.random.default_rng(0)
    for edge in graph.edges:
        graph.edges[edge]["weight"] = float(random.lognormal(0, 0.5))
    operator, spectrum = gpx.Graph.from_networkx(graph).operator(), graphs.Diffusion(2.0)
    f = spectrum.modulation(lengths, 1.0).detach()
    S = operator.walk_matrix.toarray()
    psi = sum(weight * np.linalg.matrix_power(S, power) for power, weight in enumerate(f.tolist()))
    return operator, spectrum, f, blocks(psi @ psi.T)


def blocks(K):
    return np.stack([K[p * NODES : (p + 1) * NODES, p * NODES : (p + 1) * NODES] for p in range(PARTS)])


def estimates(operator, settings, f, repeats):
    """``Phi Phi^T`` [PARTS, NODES, NODES], one for every seed."""
    nodes = np.arange(PARTS * NODES)
    for seed in range(repeats):
        loads, phi = replace(settings, seed=seed).loads(operator, nodes), np.zeros((PARTS * NODES, NODES))
        phi[loads.rows(), loads.counts.columns % NODES] = loads.values(f).numpy()
        phi = phi.reshape(PARTS, NODES, NODES)
        yield phi @ phi.transpose(0, 2, 1)


def moments(operator, settings, f, K):
    """Mean of the estimates, and the standard error of it."""
    total, squares = np.zeros_like(K), np.zeros_like(K)
    for estimate in estimates(operator, settings, f, REPEATS):
        total, squares = total + estimate, squares + (estimate - K) ** 2
    mean = total / REPEATS
    return mean, np.sqrt((squares / REPEATS - (mean - K) ** 2) / REPEATS)


@pytest.mark.slow
@pytest.mark.parametrize(("halting", "coupling"), LAWS)
def test_estimates_are_unbiased(halting, coupling):
    """docs/theory/graphs.md, graphs-estimate: z-scores of the mean of 600 estimates have rms 1.0 +- 0.05 over pairs of nodes.

    Their correlation within rows makes the rms scatter by about 0.015; the seeds are fixed.
    """
    operator, spectrum, f, K = problem()
    settings = graphs.Walks(32, len(f), halting, coupling, coupling).settled(operator, spectrum)
    mean, error = moments(operator, settings, f, K)
    off = np.triu(0.01 * K.max() < K, 1)  # others meet too seldom for the central limit theorem
    rms = float(np.sqrt(np.mean(((mean - K) / error)[off] ** 2)))
    assert abs(rms - 1) < 0.05, f"{halting}, {coupling}: rms {rms:.3f} over {off.sum()} pairs"


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["iid", "systematic"])
def test_the_bias_of_the_diagonal(coupling):
    """graphs-estimate: E (Phi Phi^T)_ii - K_ii = tr Cov(phi_i), which falls as one over the number of walks."""
    operator, spectrum, f, K = problem()
    bias = []
    for walks in (16, 64):
        settings = graphs.Walks(walks, len(f), coupling=coupling, directions=coupling).settled(operator, spectrum)
        mean, _ = moments(operator, settings, f, K)
        bias.append(np.einsum("pii->pi", mean - K).mean())
    assert bias[0] > 0
    assert bias[1] < bias[0] / 3.3, f"{coupling}: {bias}"
