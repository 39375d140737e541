"""The block quasi-periodic kernel: its formula, the laws of kernels, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gpx
from gpx import InputError, StructureError
from gpx.inputs import as_data
from gpx.kernels import RBF, BlockQuasiPeriodic, Constant, Cosine, Linear, Matern, Periodic, parse
from gpx.structure import block_form
from gpx.testing import check_kernel
from gpx.testing.assertions import close

STEPS = torch.tensor([[0.0], [3.0], [4.0], [7.0], [11.0], [12.0], [20.0], [-5.0]], dtype=torch.float64)

CASES = {
    "default": lambda: BlockQuasiPeriodic(4, 0.6),
    "negative": lambda: BlockQuasiPeriodic(5, -0.3, within=Periodic(lengthscale=0.5) + Cosine(period=5.0)),
    "not periodic": lambda: BlockQuasiPeriodic(3, 0.2, within=Matern(nu=1.5)),
    "product": lambda: RBF(lengthscale=3.0) * BlockQuasiPeriodic(4),
    "sum": lambda: BlockQuasiPeriodic(4, 0.6) + Linear(),
    "one step": lambda: BlockQuasiPeriodic(1, 0.6),
}  # fmt: skip


def random(n):
    return np.random.default_rng(1).standard_normal(n)


@pytest.mark.parametrize("name", CASES)
def test_laws(name):
    check_kernel(CASES[name](), STEPS, discrete=True)


def test_column_of_several():
    check_kernel(BlockQuasiPeriodic(4, 0.6, active_dims=[1]), torch.cat([STEPS.flip(0) + 0.5, STEPS], 1), discrete=True)


def test_it_is_the_published_covariance():
    """docs/theory/block.md, section 1: the Kronecker product of AR(1) and MacKay's kernel."""
    p, k, theta, omega, variance = 5, 4, 1.7, -0.6, 2.3
    within = Periodic(period=p, lengthscale=2**0.5 / theta, outputscale=variance)
    d = np.subtract.outer(np.arange(p), np.arange(p))
    R = variance * np.exp(-(theta**2) * np.sin(np.pi * d / p) ** 2)
    blocks = omega ** abs(np.subtract.outer(np.arange(k), np.arange(k))) / (1 - omega**2)
    matrix = BlockQuasiPeriodic(p, omega, within).matrix(np.arange(k * p))
    close(matrix, np.kron(blocks, R), "published covariance", rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (lambda: BlockQuasiPeriodic(2.5), r"integer period >= 1, in steps, got 2.5.*Periodic\(period"),
        (lambda: BlockQuasiPeriodic(0), "integer period >= 1"),
        (lambda: BlockQuasiPeriodic(float("nan")), "integer period >= 1"),
        (lambda: BlockQuasiPeriodic("year"), "integer period >= 1"),
        (lambda: BlockQuasiPeriodic(4, 1.0), r"inside \(-1, 1\), got 1.0.*kernels.Periodic"),
        (lambda: BlockQuasiPeriodic(4).set(correlation=-1.5), r"inside \(-1, 1\)"),
        (lambda: BlockQuasiPeriodic(4).set(correlation=dict(bounds=(-2, 0.5))), r"inside \(-1, 1\)"),
        (lambda: BlockQuasiPeriodic(4, within="RBF"), r"within must be a kernel such as kernels.Periodic\(\)"),
        (lambda: BlockQuasiPeriodic(4).matrix([0.0, 1.5]), "integer steps .*, got 1.5: number the observations"),
        (lambda: BlockQuasiPeriodic(4).matrix([[0.0, 1.0]]), r"one input column, got 2; .*active_dims"),
    ],
)
def test_what_it_refuses(build, advice):
    with pytest.raises(InputError, match=advice):
        build()


def test_periods_inside_are_constants():
    kernel = BlockQuasiPeriodic(6, within=Periodic() * Constant() + Cosine(period=3.0))
    periods = {n: p for n, p in kernel.named_parameters() if n.endswith("raw_period")}
    assert [round(float(p.exp().detach()), 9) for p in periods.values()] == [6.0, 3.0]
    assert not any(p.requires_grad for p in periods.values())


def test_text_and_files(tmp_path):
    text = "BlockQuasiPeriodic(period=4, within=Periodic(period=4, lengthscale=0.5, outputscale=2), correlation=0.3)"
    kernel = parse(text)
    assert repr(kernel) == text
    gp = gpx.GP(kernel).fit(np.arange(40), np.sin(np.arange(40.0)) + np.cos(3 * np.arange(40.0)))
    gp.save(tmp_path / "block.gpx")
    again = gpx.load(tmp_path / "block.gpx")
    assert repr(again.kernel_) == repr(gp.kernel_) and again.engine_ == gp.engine_
    close(again.predict([40, 47]).variance, gp.predict([40, 47]).variance, "loaded model", rtol=1e-12)


def test_starts_follow_the_data():
    """The correlation starts at that of a period; a product leaves the scale to its first factor."""
    y = np.tile(np.random.default_rng(0).standard_normal(7), 30)
    gp = gpx.GP(BlockQuasiPeriodic(7).set(correlation=dict(fixed=True))).fit(np.arange(210), y + 0.1 * random(210))
    assert float(gp.kernel_.correlation.detach()) == 0.5
    kernel = BlockQuasiPeriodic(7)
    kernel.init_from(as_data(np.arange(210), y + 0.1 * random(210)))
    assert float(kernel.correlation.detach()) == pytest.approx(0.95)
    kernel = BlockQuasiPeriodic(7)
    kernel.init_from(as_data(np.arange(210), random(210)))
    assert abs(float(kernel.correlation.detach())) < 0.3
    product = gpx.GP(RBF() * BlockQuasiPeriodic(7)).fit(np.arange(21), y[:21] + 0.1 * random(21))
    assert product.parameters()["kernel.1.within.outputscale"].fixed


def test_block_form():
    """The form reproduces the dense matrix; a covariance that is not circulant has none, and the error says what to do."""
    kernel = BlockQuasiPeriodic(5, -0.3, within=Periodic(lengthscale=0.5) + Cosine(period=5.0))
    form = block_form(kernel)
    block, position = form.locate(STEPS)
    row = torch.fft.ifft(form.spectrum).real
    lag, shift = (v[:, None] - v for v in (block, position))
    dense = form.correlation ** lag.abs() / (1 - form.correlation**2) * row[shift % 5]
    close(dense, kernel.matrix(STEPS), "block form", rtol=1e-12)
    for within in (RBF(), Periodic(period=3.0), Linear()):
        with pytest.raises(StructureError, match=r"not circulant: use kernels.Periodic\(period=4\), or engines.Exact"):
            block_form(BlockQuasiPeriodic(4, within=within))
    with pytest.raises(StructureError, match="RBF has no block-circulant form: use kernels.BlockQuasiPeriodic"):
        block_form(RBF())


def test_explain_names_the_engine():
    found = {f.name: f for f in gpx.explain("BlockQuasiPeriodic(period=4)").findings}
    assert found["engine BlockCirculant"].supported and "blocks of 4 steps" in found["block form"].note
    assert not {f.name: f for f in gpx.explain("RBF").findings}["engine BlockCirculant"].supported
