"""What every selection of `gpx.selection` promises, and what it answers to bad input."""

from __future__ import annotations

import logging

import gpytorch
import numpy as np
import pytest
import torch

from gpx import GP, engines, kernels
from gpx.errors import InputError, NumericalError
from gpx.kernels.dense import dense, diagonal
from gpx.selection import SELECTIONS, bless, choose_selection, greedy, squeak
from gpx.selection.greedy import pivots
from gpx.selection.preselection import Preselection
from gpx.testing.cases import points, targets

X = points(60, 2)
KERNELS = {
    "gpx": kernels.Matern(nu=1.5, lengthscale=0.5),
    "gpytorch": gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, active_dims=(1,))).double(),
    "not stationary": kernels.Matern(nu=0.5, lengthscale=0.5) * kernels.Linear(),
}


@pytest.fixture(params=SELECTIONS)
def select(request):
    return SELECTIONS[request.param]


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("size", [1, 7, 32])
def test_as_many_distinct_points_as_asked_for_with_positive_weights(select, kernel, size):
    found, weights = select(kernel, X, size)
    chosen = found if found.is_floating_point() else X[found]
    assert chosen.shape == (size, 2)
    assert len(torch.unique(chosen, dim=0)) == size
    assert weights.shape == (size,)
    assert weights.dtype == X.dtype
    assert (weights > 0).all()
    assert not found.requires_grad and not weights.requires_grad


@torch.no_grad()
def test_pivots_go_on_where_greedy_ended_until_it_is_enough():
    kernel = KERNELS["gpx"]
    whole, _ = greedy(kernel, X, 20)
    known = X[whole[:8]]
    factor = torch.linalg.cholesky(dense(kernel, known, known))
    explained = torch.linalg.solve_triangular(factor, dense(kernel, known, X), upper=False).detach()
    assert torch.equal(pivots(kernel, X, 12, explained), whole[8:])
    left = [float(diagonal(kernel, X).mean() - explained.square().sum(0).mean())]
    for m in range(1, 12):
        z = X[whole[: 8 + m]]
        q = dense(kernel, X, z) @ torch.linalg.solve(dense(kernel, z, z), dense(kernel, z, X))
        left.append(float((diagonal(kernel, X) - q.diagonal()).mean()))
    for m in (0, 1, 5, 11):
        assert len(pivots(kernel, X, 12, explained, enough=left[m] * (1 + 1e-6))) == m


def test_equal_seeds_give_equal_points_and_the_global_state_is_left_alone(select):
    state = torch.random.get_rng_state()
    first, again = (select(KERNELS["gpx"], X, 9, seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    select(KERNELS["gpx"], X, 9, seed=None)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_more_points_than_rows_are_all_rows(select, rows):
    found, _ = select(KERNELS["gpx"], X[:rows], 10)
    chosen = found if found.is_floating_point() else X[:rows][found]
    assert torch.equal(torch.unique(chosen, dim=0), torch.unique(X[:rows], dim=0))


def test_equal_rows_are_no_obstacle(select):
    same = X[:3].repeat(10, 1)
    found, weights = select(KERNELS["gpx"], same, 8)
    chosen = found if found.is_floating_point() else same[found]
    assert 1 <= len(chosen) <= 8 and len(chosen) == len(weights)
    assert torch.isfinite(chosen).all() and torch.isfinite(weights).all()


def test_single_precision_stays_single(select):
    found, weights = select(kernels.Matern(lengthscale=0.5).float(), X.float(), 5)
    assert weights.dtype == torch.float32
    assert not found.is_floating_point() or found.dtype == torch.float32


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_sizes_that_are_none(select, size):
    with pytest.raises(InputError, match="size must be a positive integer"):
        select(KERNELS["gpx"], X, size)


@pytest.mark.parametrize("x", [X[:, 0], X[None], X[:0]])
def test_inputs_that_are_no_matrix(select, x):
    with pytest.raises(InputError, match=r"X must be \[N, D\] with at least one row"):
        select(KERNELS["gpx"], x, 3)


def test_unknown_names_seeds_and_streams():
    with pytest.raises(
        InputError, match="'greedy', 'kmeans', 'leverage', 'dpp', 'thinning' or a function, got 'random'"
    ):
        choose_selection("random")
    with pytest.raises(InputError, match="seed must be an integer >= 0"):
        SELECTIONS["leverage"](KERNELS["gpx"], X, 3, seed=0.5)
    with pytest.raises(InputError, match="at least one block"):
        squeak(KERNELS["gpx"], [], 1.0)
    with pytest.raises(InputError, match=r"X must be \[N, D\]"):
        squeak(KERNELS["gpx"], [X[:, 0]], 1.0)
    with pytest.raises(InputError, match="ridge must be positive"):
        squeak(KERNELS["gpx"], [X], 0.0)


def test_a_k_dpp_beyond_the_rank_is_greedy_and_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="gpx"):
        found, _ = SELECTIONS["dpp"](kernels.Linear(), X, 10)
    assert torch.equal(found, SELECTIONS["greedy"](kernels.Linear(), X, 10)[0])
    assert "numerical rank below 10" in caplog.text
    many = points(2_500, 2)
    assert len(SELECTIONS["dpp"](kernels.Linear(), many, 10)[0]) < 10


def test_a_k_dpp_that_would_not_fit_is_refused_with_advice():
    with pytest.raises(InputError, match="use select='greedy'"):
        SELECTIONS["dpp"](KERNELS["gpx"], torch.zeros(30_000, 1).double(), 500)


def test_k_means_does_not_depend_on_units_and_ignores_repetition():
    scale = torch.tensor([1e3, 1e-3]).double()
    plain, scaled = (SELECTIONS["kmeans"](KERNELS["gpx"], x, 6) for x in (X, X * scale))
    assert torch.allclose(plain[0] * scale, scaled[0]) and torch.equal(plain[1], scaled[1])
    assert float(plain[1].sum()) == pytest.approx(len(X))
    many = points(6_000, 1)
    assert float(SELECTIONS["kmeans"](KERNELS["gpx"], many, 3)[1].sum()) == pytest.approx(6_000)


@pytest.mark.parametrize("size", [3, 60, 100])
def test_thinning_above_the_rows_that_are_compared(size):
    many = points(5_001, 2)
    found, weights = SELECTIONS["thinning"](KERNELS["gpx"], many, size)
    assert len(found.unique()) == size
    assert float(weights.sum()) == pytest.approx(5_001)


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_sparse_engine_takes_them_by_name(name):
    engine = engines.SparseVariational(inducing=8, select=name, refine=False)
    gp = GP(KERNELS["gpx"], mean="zero", engine=engine).condition(X, targets(X))
    exact = GP(KERNELS["gpx"], mean="zero", engine=engines.Exact()).condition(X, targets(X))
    assert gp.log_evidence() <= exact.log_evidence() + 1e-7


def test_a_dictionary_of_rows_without_variance_is_empty():
    assert len(bless(kernels.Linear(), torch.zeros(5, 1).double(), 2).points) == 0


def test_a_k_dpp_that_is_never_accepted_ends(monkeypatch):
    monkeypatch.setattr(Preselection, "attempt", lambda *_: None)
    many = torch.linspace(0, 1, 50_000).double()[:, None]
    with pytest.raises(NumericalError, match="use select='greedy'"):
        Preselection(KERNELS["gpx"], many, 3, np.ones(len(many)), 0.0).draw(np.random.default_rng(0))
