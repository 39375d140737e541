"""`engines.Features` with more sparse features than rows, against `Exact`. Theory: docs/theory/features.md."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch

import gpx
from gpx import GP, engines, graphs, likelihoods
from gpx.engines.dense import ExactPosterior
from gpx.engines.wide import WidePlan, WidePosterior
from gpx.errors import StructureError
from gpx.linalg.local_factor import LocalFactor, neighbours
from gpx.sites import Sites
from gpx.testing.assertions import close

SIDE, ROWS = 30, 300
NODES = np.random.default_rng(0).permutation(SIDE**2)[:ROWS]
Y = np.sin(NODES // SIDE / 4.0) + 0.3 * np.random.default_rng(1).standard_normal(ROWS)
X = torch.from_numpy(NODES)[:, None].double()
NEW = torch.arange(0, SIDE**2, 17.0, dtype=torch.float64)[:, None]


def kernel(spectrum=None, **how):
    graph = gpx.Graph.from_networkx(nx.grid_2d_graph(SIDE, SIDE))
    spectrum = spectrum or graphs.Polynomial([0.5, 0.4, 0.3, 0.2])
    return gpx.kernels.Graph(graph, spectrum, backend=graphs.Walks(16, 4), **how)


def sites(missing=0):
    tau = torch.full((ROWS, 1), 1 / 0.09, dtype=torch.float64)
    tau[:missing] = 0
    return Sites(tau * torch.from_numpy(Y)[:, None], tau)


def both(k, missing=0):
    gp = GP(k, likelihoods.Gaussian(0.09), mean="zero", engine=engines.Exact()).condition(NODES, Y)
    prior = gp._solved.prior
    exact = ExactPosterior.of(prior, X, sites(missing))
    return WidePosterior(prior, WidePlan.of(prior, X), sites(missing)), exact, prior


def earlier(order):
    """All earlier rows, [n, n]."""
    near = np.full((len(order), len(order)), -1, np.int32)
    for place, row in enumerate(order):
        near[row, :place] = order[:place]
    return near


@pytest.mark.parametrize("missing", [0, 40])
def test_it_is_the_posterior_of_dense_algebra(missing):
    """Moments to the tolerance of the solves; the evidence within its stated error, far below 1e-3 nat per datum; the law "variances":
    those from 64 neighbours are no less than the exact ones.
    """
    found, exact, _ = both(kernel(), missing)
    error = abs(float((found.log_density - exact.log_density).detach()))
    assert error < 4 * found.log_determinant_error + 1e-6 and error < 1e-4 * ROWS
    close(found.marginals(NEW)[0], exact.marginals(NEW)[0].detach(), "mean", atol=1e-6)
    for got, want, what in zip(found.joint(NEW), exact.joint(NEW), ("mean", "covariance"), strict=True):
        close(got, want.detach(), f"joint {what}", atol=1e-6)
    ratio = found.marginals(NEW)[1] / exact.marginals(NEW)[1].detach()
    assert float(ratio.min()) > 1 - 1e-8 and float(ratio.max()) < 1.02
    for got, want in zip(found.leave_one_out(), exact.leave_one_out(), strict=True):
        close(got[missing:], want.detach()[missing:], "leave-one-out", rtol=0.02, atol=1e-3)
        assert bool(got[:missing].isnan().all())


def test_gradients():
    """With all earlier rows as neighbours nothing is left to chance: the derivative is that of the value, to 1e-6; with few it is
    near to it.
    """
    found, exact, prior = both(kernel())
    part = found.plan.parts[0]
    whole = replace(found, plan=WidePlan(X, (replace(part, near=earlier(part.order)),)))
    for own, tolerance in ((whole, 1e-6), (found, 1e-3)):
        params = [p for p in prior.kernels[0].parameters() if p.requires_grad]
        got, want = (torch.autograd.grad(posterior.log_density, params) for posterior in (own, exact))
        for a, b in zip(got, want, strict=True):
            close(a, b, "gradient", rtol=tolerance, atol=1e-7 if tolerance < 1e-3 else 0.1)


def test_paths_are_draws_from_the_posterior():
    """Means and variances of 2,000 paths; false alarms: one in a thousand."""
    found, exact, _ = both(kernel())
    draws = found.paths(2_000, torch.Generator().manual_seed(0))(NEW)[..., 0]
    mean, variance = (part[:, 0].detach() for part in exact.marginals(NEW))
    z = (draws.mean(0) - mean) / (variance / 2_000).sqrt()
    assert float(z.abs().max()) < 4.5
    spread = ((draws - mean).square().mean(0) / variance - 1) * (2_000 / 2) ** 0.5
    assert float(spread.abs().max()) < 4.5


def test_which_solver(monkeypatch, tmp_path):
    """Few rows: Cholesky; many: conjugate gradients; the same model, which is updated, saved and read again."""
    models, some = [], NEW[:, 0].long()
    for small in (4_000, 10):
        monkeypatch.setattr(engines.features, "SMALL", small)
        gp = GP(kernel(), likelihoods.Gaussian(0.09), mean="zero", engine=engines.Features())
        models.append(gp.condition(NODES[:200], Y[:200]).update(NODES[200:], Y[200:]))
        gp.save(tmp_path / "model.gpx")
        read = gpx.load(tmp_path / "model.gpx")
        close(read.predict(some).mean, gp.predict(some).mean, "read again", rtol=1e-9)
    few, many = models
    assert abs(few.log_evidence() - many.log_evidence()) < 1e-4 * ROWS
    close(few.predict(some).mean, many.predict(some).mean, "mean", atol=1e-6)
    with pytest.raises(StructureError, match="needs a Gaussian likelihood.*SparseVariational"):
        GP(kernel(), likelihoods.Poisson(), engine=engines.Features()).fit(NODES, np.abs(Y).round())


def test_a_fit_begins_with_all_rows():
    """Fewer have hardly any features in common."""
    plan, engine = both(kernel())[0].plan, engines.Features(4096)
    assert engine.rounds(100_000, plan) == (100_000,) and engine.rounds(100_000)[0] == 3_000


def test_few_rows_take_any_likelihood():
    counts, some = np.abs(3 * Y).round()[:60], NEW[:, 0].long()
    exact, wide = (
        GP(kernel(), likelihoods.Poisson(), engine=engine).condition(NODES[:60], counts)
        for engine in (engines.Exact(), engines.Features())
    )
    assert wide.log_evidence() == pytest.approx(exact.log_evidence(), rel=1e-9)
    close(wide.predict(some).mean, exact.predict(some).mean, "rates", rtol=1e-8)


def test_local_factors():
    """The law "local factors": W B W^T has a unit diagonal, and with all earlier rows it is the identity; its log determinant and
    slope are then those of B.
    """
    from scipy import sparse

    A = sparse.random_array((40, 60), density=0.2, format="csr", rng=np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(40)
    rank, B = np.argsort(order), np.eye(40) + (A @ A.T).toarray()
    for near in (neighbours(A, A, 3, rank, rank, np.full(40, -1)), earlier(order)):
        factor = LocalFactor.of(A, A, near, 1.0)
        W = factor.matrix().toarray()
        close(np.diag(W @ B @ W.T), np.ones(40), "diagonal", rtol=1e-10)
        z = np.random.default_rng(2).standard_normal((40, 2))
        close(W @ factor.colour(z, order), z, "root", atol=1e-10)
    close(W @ B @ W.T, np.eye(40), "all rows", atol=1e-10)
    close(factor.logdet(), np.linalg.slogdet(B)[1], "log determinant", rtol=1e-10)
    rows = np.repeat(np.arange(40), np.diff(A.indptr))
    close(factor.slope(A), 2 * (np.linalg.inv(B) @ A.toarray())[rows, A.indices], "slope", atol=1e-10)


@pytest.mark.parametrize("small", [4_000, 10])
def test_all_rows_are_one_batch(monkeypatch, small):
    """There are no statistics of so many features that add: a fit in batches is one of all rows."""
    monkeypatch.setattr(engines.features, "SMALL", small)
    some, models = NEW[:, 0].long(), []
    for engine in (engines.Features(), engines.Features(batch_size=50)):
        gp = GP(kernel(graphs.Diffusion(3.0)), mean="zero", engine=engine).fit(NODES[:200], Y[:200], max_iter=200)
        models.append(gp.update(NODES[200:], Y[200:]))
    whole, batched = models
    assert batched.log_evidence() == pytest.approx(whole.log_evidence(), rel=1e-12)
    close(batched.predict(some).mean, whole.predict(some).mean, "mean", rtol=1e-9)


def test_single_precision():
    """Targets of float32 are solved for in float64, and answered in float32."""
    found, _, prior = both(kernel())
    single = Sites(*(part.float() for part in (found.sites.nu, found.sites.tau)))
    low = WidePosterior(prior, WidePlan.of(prior, X.float()), single)
    assert low.log_density.dtype == low.log_partition.dtype == torch.float32
    close(low.log_density.detach().double(), found.log_density.detach(), "evidence", rtol=1e-5)
    draws = [p.paths(2, torch.Generator().manual_seed(0))(NEW) for p in (low, found)]
    for got, want in zip(
        (*low.marginals(NEW), *low.joint(NEW), *low.leave_one_out(), draws[0]),
        (*found.marginals(NEW), *found.joint(NEW), *found.leave_one_out(), draws[1]),
        strict=True,
    ):
        assert got.dtype == torch.float32
        close(got.double(), want, "moments", atol=1e-5)
