"""`engines.Kronecker` as users meet it: which rows are grids, errors, files, updates; the structure behind it."""

from __future__ import annotations

import gpytorch
import pytest
import torch

import gpx
from gpx import Grid, InputError, StructureError
from gpx.engines import Exact, Kronecker, choose_engine
from gpx.inputs import as_data
from gpx.kernels import RBF, Constant, Linear, Matern
from gpx.kernels.base import bind
from gpx.linalg import kron
from gpx.linalg.cells import find_layout
from gpx.prior import Prior
from gpx.structure import kronecker
from gpx.structure.kronecker import atoms
from gpx.testing.assertions import close
from gpx.testing.cases import KERNELS, points


def axes(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.rand(n, generator=generator, dtype=torch.float64) for n in sizes]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product():
    return Matern(nu=1.5, active_dims=[0]) * RBF(active_dims=[1])


@pytest.mark.parametrize("name", KERNELS)
def test_factors_reproduce_the_kernel(name):
    """Over the finest axes, and over all columns together."""
    kernel = KERNELS[name]().double()
    x, other = points(5), points(4, seed=2)
    for groups in (atoms(kernel, 3), ((0, 1, 2),)):
        form = kronecker(kernel, groups)
        parts = [form.matrix(d, x[:, list(g)], other[:, list(g)]) for d, g in enumerate(groups)]
        close(
            torch.stack(parts).prod(0).detach(), gpx.kernels.matrix(kernel, x, other).detach(), f"{groups}", rtol=1e-12
        )
        diagonals = torch.stack([form.diagonal(d, x[:, list(g)]) for d, g in enumerate(groups)]).prod(0)
        close(diagonals.detach(), gpx.kernels.matrix(kernel, x).diagonal().detach(), f"diagonal, {groups}", rtol=1e-12)


@pytest.mark.parametrize(("kernel", "expected"), [
    (lambda: RBF(ard=True), ((0,), (1,), (2,))),
    (lambda: Matern(ard=True), ((0, 1, 2),)),
    (lambda: RBF(active_dims=[1]) * Matern(active_dims=[2, 0]), ((0, 2), (1,))),
    (lambda: (RBF(active_dims=[0]) + Linear(active_dims=[1])) * Matern(active_dims=[2]), ((0, 1), (2,))),
    (lambda: Constant(2.0) * Matern(active_dims=[1]), ((0,), (1,), (2,))),
    (lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(active_dims=(2, 1))), ((0,), (1,), (2,))),
    (lambda: gpx.kernels.Product(RBF(active_dims=[1]), Matern(active_dims=[0, 1]), active_dims=[2, 0]), ((0, 2), (1,))),
])  # fmt: skip
def test_which_columns_belong_together(kernel, expected):
    assert atoms(kernel(), 3) == expected


@pytest.mark.parametrize(("kernel", "message"), [
    (Matern(ard=True), r"its factor Matern couples the axes 0 \(column 0\), 1 \(column 1\).*one axis with the columns.*Exact"),
    (RBF(active_dims=[0]) + RBF(active_dims=[1]), "its factor Sum couples the axes 0"),
    (RBF() * Matern(active_dims=[0, 1]), "its factor Matern couples"),
])  # fmt: skip
def test_kernels_that_do_not_factor(kernel, message):
    inputs = Grid(axes(5, 4))
    with pytest.raises(StructureError, match=message):
        gpx.GP(kernel, engine=Kronecker()).condition(inputs, torch.zeros(5, 4))
    together = Grid([inputs.rows])
    assert gpx.GP(kernel, engine=Kronecker()).condition(together, torch.zeros(20)).log_evidence() < 0
    with pytest.raises(StructureError, match="does not factor over the 2 input columns.*separate columns.*Exact"):
        gpx.GP(kernel, engine=Kronecker()).condition(inputs.rows, torch.zeros(20))


def test_rows_that_are_no_grid():
    with pytest.raises(StructureError, match=r"The 40 rows are no grid.*gpx.Grid"):
        gpx.GP(RBF(ard=True), engine=Kronecker()).condition(points(40, 2), torch.zeros(40))


@pytest.mark.parametrize("settings", [{"probes": 1}, {"probes": 2.5}, {"dense_rows": -1}, {"dense_rows": True}])
def test_settings(settings):
    with pytest.raises(InputError, match=f"Kronecker needs {next(iter(settings))} to be an integer"):
        Kronecker(**settings)


def test_grids_are_found_in_rows():
    """In any order, with holes, over columns together where their values are no combinations."""
    rows = torch.cat([points(12, 2).repeat_interleave(7, 0), torch.arange(7.0).double().repeat(12)[:, None]], 1)
    shuffled = rows[torch.randperm(84, generator=torch.Generator().manual_seed(0))]
    for x in (shuffled, shuffled[:60]):
        layout = find_layout(x, [[0], [1], [2]])
        assert layout.axes == ((0, 1), (2,)) and layout.shape == (12, 7) and layout.occupied == len(x)
        back = torch.cat([v[i] for v, i in zip(layout.values, layout.index, strict=True)], 1)
        assert torch.equal(back, x)


def chosen(kernel, x, y, likelihood=None):
    kernel, data = kernel.double(), as_data(x, y)
    bind(kernel, data.columns)
    likelihood = likelihood or gpx.likelihoods.Gaussian()
    prior = Prior(gpytorch.means.ZeroMean(), (kernel,))
    return type(choose_engine("auto", prior, data, likelihood.exact_sites(data))[0]).__name__


def test_auto_recognises_grids():
    inputs, y = Grid(axes(30, 20)), normal(600)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    holes = y.clone()
    holes[::3] = torch.nan
    assert chosen(product(), inputs, y.reshape(30, 20)) == "Kronecker"
    assert chosen(product(), inputs.rows[order], y[order]) == "Kronecker"
    assert chosen(product(), inputs.rows, holes) == "Exact"  # it would do the same
    assert chosen(Matern(), inputs, y.reshape(30, 20)) == "Exact"
    assert chosen(product(), inputs.rows[:400], y[:400]) == "Exact"  # few rows
    assert chosen(product(), points(600, 2), y) == "Exact"
    assert chosen(product(), inputs, y.reshape(30, 20).abs().round(), gpx.likelihoods.Poisson()) == "Exact"
    large, z = Grid(axes(100, 180)), normal(18_000)
    z[::3] = torch.nan
    assert chosen(product(), large, z.reshape(100, 180)) == "Kronecker"
    seen = ~torch.isnan(z)
    assert chosen(product(), large.rows[seen], z[seen]) == "Kronecker"
    sparse = torch.rand(18_000, generator=torch.Generator().manual_seed(0)) < 0.47
    assert chosen(product(), large.rows[sparse], z[sparse].nan_to_num()) == "SIC"  # most cells are empty


def test_fit_update_and_files(tmp_path):
    """The same as with dense algebra; a model comes back from its file with its axes."""
    inputs = Grid(axes(9, 8))
    y = torch.sin(inputs.rows.sum(1)).reshape(9, 8) + 0.1 * normal(9, 8)
    fits = [gpx.GP(product(), engine=engine).fit(inputs, y) for engine in (Kronecker(), Exact())]
    assert fits[0].log_evidence() == pytest.approx(fits[1].log_evidence(), abs=1e-2)
    gp, reference = (gpx.GP(product(), engine=engine).condition(inputs, y) for engine in (Kronecker(), Exact()))
    close(gp.loo().log_density, reference.loo().log_density, "leave-one-out", atol=1e-8, rtol=0)
    for model in (gp, reference):
        model.update(torch.tensor([[0.5, 0.7]]), torch.tensor([0.3]))
    close(gp.predict(inputs).mean, reference.predict(inputs).mean, "update", atol=1e-8, rtol=0)
    gp.save(tmp_path / "grid.gpx")
    close(gpx.load(tmp_path / "grid.gpx").predict(inputs).mean, gp.predict(inputs).mean, "file", atol=1e-10, rtol=0)


def test_smaller_problems_are_grids():
    inputs, y = Grid(axes(40, 6)), normal(40, 6)
    y[::3, 2] = torch.nan
    data, engine, prior = as_data(inputs, y), Kronecker(), Prior(gpytorch.means.ZeroMean(), (product().double(),))
    plan = engine.plan(prior, data)
    rows = engine.few(data, plan, 60)
    assert rows is not None and 30 <= len(rows) <= 60 and bool(data.observed[rows].all())
    assert engine.plan(prior, data.rows(rows)).layout.shape[1] == 6


def test_derivatives_of_variances_need_few_rows_or_modes():
    gp = gpx.GP(product(), engine=Kronecker(dense_rows=10), objective=gpx.objectives.LeaveOneOut())
    with pytest.raises(StructureError, match=r"up to 10 rows \(here are \d+\).*objectives.Evidence"):
        gp.fit(Grid(axes(30, 20)), normal(30, 20))


def test_products():
    matrices = [normal(n, m) for n, m in ((3, 2), (4, 5), (2, 3))]
    whole = torch.kron(torch.kron(matrices[0], matrices[1]), matrices[2])
    values, weights = normal(2, 5, 3, 4), normal(3, 4, 2).square()
    close(kron.times(matrices, values).reshape(24, 4), whole @ values.reshape(30, 4), "times", atol=1e-12)
    gram = whole.mT @ (weights.reshape(-1, 1) * whole)
    close(kron.weighted_gram(matrices, weights), gram, "weighted gram", atol=1e-10)
    diagonal = (whole @ gram @ whole.mT).diagonal()
    close(kron.weighted_diagonal(matrices, gram).reshape(-1), diagonal, "weighted diagonal", rtol=1e-10)
    one, some = normal(40, 7), normal(40).square()  # a single axis: its pairs of columns are never held
    close(kron.weighted_gram([one], some), one.mT @ (some[:, None] * one), "one axis", atol=1e-10)
    close(kron.weighted_diagonal([one], one.mT @ one), (one @ one.mT).square().sum(1), "one axis", atol=1e-9)
    rows = [normal(6, n) for n in (2, 5, 3)]
    together = torch.einsum("mi,mj,mk->mijk", *rows).reshape(6, 30)
    close(kron.rows(rows, values), together @ values.reshape(30, 4), "rows", atol=1e-12)
    assert kron.rank_one(kron.outer([normal(n).exp() for n in (3, 4)])) is not None
    assert kron.rank_one(normal(3, 4).exp()) is None


def test_explanation():
    findings = {f.name: f for f in gpx.explain(product()).findings}
    assert findings["engine Kronecker"].supported and "columns 0 | 1" in findings["Kronecker form"].note
    findings = {f.name: f for f in gpx.explain(Matern(active_dims=[0, 1])).findings}
    assert (
        not findings["engine Kronecker"].supported and "couples all of its 2 columns" in findings["Kronecker form"].note
    )
