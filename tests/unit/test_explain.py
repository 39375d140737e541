"""`gpx.explain` says which structures and engines a kernel has, and why not."""

from __future__ import annotations

import gpytorch
import pytest
import torch

import gpx
from gpx import StructureError
from gpx.structure import Draws, feature_map
from gpx.structure.explain import _dims, explain
from gpx.testing.cases import KERNELS


@pytest.mark.parametrize("name", KERNELS)
def test_explain_agrees_with_what_happens(name):
    """A structure is there or not as `feature_map` says; the engine takes every kernel with a matrix."""
    kernel = KERNELS[name]()
    explanation = explain(kernel)
    found = {f.name: f for f in explanation.findings}
    try:
        features = feature_map(kernel, 256, _dims(kernel), Draws(torch.Generator()))
    except StructureError as error:
        assert not found["feature map"].supported and found["feature map"].note == str(error)
    else:
        assert found["feature map"].supported
        assert ("exact" in found["feature map"].note) == features.exact
    assert found["dense matrix"].supported and found["engine Exact"].supported
    assert "yes" in str(explanation) and "\n" in repr(explanation)


@pytest.mark.parametrize(("kernel", "note"), [
    ("Matern(nu=1.5) + Linear", "3 state(s), exact"),
    ("RBF", "9 state(s), approximate, error 1.1e-04 of the variance"),
    ("Periodic * RBF", "approximate, error 1.1e-04"),
    ("RationalQuadratic", "RationalQuadratic has no state-space form; use Matern"),
    ("RBF * RBF", "A state-space model of order 16 would lose its digits"),
    ("BlockQuasiPeriodic(4)", "4 state(s), exact"),
    ("BlockQuasiPeriodic(4) + Matern", "has one clock"),
    (gpx.kernels.Matern(active_dims=[0, 1]), "needs one input column, the kernel acts on 2"),
])  # fmt: skip
def test_state_space(kernel, note):
    found = {f.name: f for f in gpx.explain(kernel).findings}
    assert note in found["state space"].note
    assert (
        found["engine StateSpace"].supported
        == found["state space"].supported
        == ("state(s)" in note or "approximate" in note)
    )
    assert ("only if asked for" in found["engine StateSpace"].note) == ("approximate" in note)


@pytest.mark.parametrize(("kernel", "structures"), [
    ("SpectralMixture(3)", {"feature map", "spectral density", "derivatives"}),
    ("StudentMixture(3)", {"feature map", "spectral density", "derivatives", "state space"}),
    ("StudentMixture(3, nu=1.5)", {"feature map", "spectral density", "state space"}),
    ("SpectralMixtureProduct(3)", {"feature map"}),
    (gpx.kernels.StudentMixture(1, mixture_means=[[0.1, 0.2]]), {"feature map"}),
])  # fmt: skip
def test_mixtures(kernel, structures):
    found = {f.name: f.supported for f in gpx.explain(kernel).findings}
    asked = ("feature map", "spectral density", "derivatives", "state space")
    assert {name for name in asked if found[name]} == structures


def test_text_and_columns():
    assert "Matern(nu=1.5" in str(gpx.explain("Matern(nu=1.5) + Linear"))
    assert gpx.explain("RBF(lengthscale=[0.1, 0.2, 0.3])").findings[0].supported
    assert gpx.explain(gpx.kernels.Cosine(active_dims=[4])).findings[0].supported
    assert gpx.explain(gpx.kernels.RBF(active_dims=["age"])).findings[0].supported


def test_a_kernel_without_a_matrix():
    class Broken(gpytorch.kernels.Kernel):
        def forward(self, x1, x2, diag=False, **params):
            raise StructureError("Broken has no matrix.")

    explanation = gpx.explain(Broken())
    assert not any(f.supported for f in explanation.findings)
    assert "Broken has no matrix." in str(explanation)


def test_registered_structures_show():
    class Sign(gpytorch.kernels.Kernel):
        def forward(self, x1, x2, diag=False, **params):
            return (x1.sign() * x2.sign()).squeeze(-1) if diag else x1.sign() @ x2.sign().mT

    assert not gpx.explain(Sign()).findings[1].supported
    feature_map.register(
        Sign, lambda kernel, size, dims, draws: gpx.structure.FeatureMap(1, lambda x: x[:, :1].sign(), True)
    )
    assert gpx.explain(Sign()).findings[1].note.startswith("exact")


@pytest.mark.parametrize(("kernel", "rows", "engine"), [
    (gpx.kernels.Matern(nu=1.5), 600, "StateSpace"),
    (gpx.kernels.Matern(nu=1.5), 400, "Exact"),
    (gpx.kernels.RBF(), 600, "Exact"),
    (gpx.kernels.QuasiPeriodic(period=3.0, lengthscale=0.1, decay=50.0), 600, "Exact"),
])  # fmt: skip
def test_the_engine_that_is_chosen(kernel, rows, engine):
    """Series are for filters, unless they are short, or the kernel has too many states or none."""
    t = torch.linspace(0, 10, rows, dtype=torch.float64)
    assert type(gpx.GP(kernel).condition(t, torch.sin(t)).engine_).__name__ == engine


@pytest.mark.parametrize(("period", "engine"), [(12, "StateSpace"), (200, "Exact")])
def test_the_engine_of_blocks_with_missing_values(period, engine):
    """One of states, if a block is short."""
    t = torch.arange(600, dtype=torch.float64)
    y = torch.sin(t)
    y[7] = torch.nan
    assert type(gpx.GP(gpx.kernels.BlockQuasiPeriodic(period)).condition(t, y).engine_).__name__ == engine
