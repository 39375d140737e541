"""Column names, ranges and starts reach our kernels wherever they are: inside our containers and gpytorch's."""

from __future__ import annotations

import math

import gpytorch
import pandas as pd
import pytest
import torch
from gpytorch.kernels import AdditiveKernel, ProductKernel, RBFKernel, ScaleKernel

import gpx
from gpx import GP, InputError, StructureError
from gpx.inputs import as_data
from gpx.kernels import RBF, Linear, Matern, Product, Sum
from gpx.kernels.base import bind
from gpx.kernels.dense import dense, diagonal
from gpx.kernels.walk import init_from, parts, resolve
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets

X = points(20, 3)
Y = targets(X)
FRAME = pd.DataFrame(X.numpy(), columns=list("abc"))
HALF = math.log(2)  # where gpytorch starts its parameters: softplus(0)
A, C = X[:, :1], X[:, 2:]


def rbf(x):
    return RBF().matrix(x)


NAMED = {
    "scale": (lambda: ScaleKernel(RBF(active_dims=["c"])), lambda: HALF * rbf(C)),
    "scale twice": (lambda: ScaleKernel(ScaleKernel(RBF(active_dims=["c"]))), lambda: HALF**2 * rbf(C)),
    "scale outside": (lambda: ScaleKernel(ScaleKernel(RBF(active_dims=["c"])), active_dims=[0]), lambda: HALF**2 * rbf(C)),
    "scale of a sum": (
        lambda: ScaleKernel(RBF(active_dims=["c"]) + RBF(active_dims=["a"])), lambda: HALF * (rbf(C) + rbf(A)),
    ),
    "their sum": (lambda: RBFKernel(active_dims=[0]) + RBF(active_dims=["c"]), lambda: RBF(HALF).matrix(A) + rbf(C)),
    "their product": (lambda: ProductKernel(RBF(active_dims=["c"]), RBF(active_dims=["a"])), lambda: rbf(C) * rbf(A)),
    "nested": (
        lambda: AdditiveKernel(ScaleKernel(RBF(active_dims=["a"])), Sum(RBF(active_dims=["b"]), active_dims=["c", "b"])),
        lambda: HALF * rbf(A) + rbf(X[:, 1:2]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_named_columns_are_found_in_every_container(name, tmp_path):
    make, expected = NAMED[name]
    kernel = make().double()
    close(gpx.kernels.matrix(kernel, FRAME), expected(), "the matrix", 1e-6)
    assert all(k.active_dims is None for k in kernel.modules() if getattr(k, "named_dims", None)), "the kernel is kept"
    gp = GP(kernel).condition(FRAME, Y)
    whole = gpx.kernels.matrix(gp.kernel_, FRAME)
    close(gp.kernel_(X).to_dense(), whole, "gpytorch's own evaluation", 1e-9)
    close(diagonal(gp.kernel_, X), whole.diagonal(), "the diagonal", 1e-12)
    gp.save(tmp_path / "model.gpx")
    close(gpx.load(tmp_path / "model.gpx").predict(FRAME).mean, gp.predict(FRAME).mean, "the loaded model", 0)


@pytest.mark.parametrize(
    "kernel",
    [ScaleKernel(RBF(active_dims=[3])), RBFKernel() + RBF(active_dims=[3]), RBFKernel(active_dims=[3]), ScaleKernel(RBFKernel(active_dims=[3]))],
    ids=["scale", "sum", "theirs", "theirs scaled"],
)  # fmt: skip
def test_columns_out_of_range_are_refused_in_every_container(kernel):
    with pytest.raises(InputError, match=r"active_dims \[3\] are out of range: the inputs have 3 column"):
        GP(kernel).condition(X, Y)


def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(InputError, match="unknown column.s. z; the inputs have a, b, c"):
        GP(ScaleKernel(RBF(active_dims=["z"]))).condition(FRAME, Y)


def test_a_range_counts_in_the_columns_that_the_container_selects():
    kernel = AdditiveKernel(RBF(active_dims=[1]))
    kernel.active_dims = torch.tensor([0, 2])
    assert [names for _, names in resolve(kernel, ("a", "b", "c"))] == [("a", "c"), ("c",)]


def test_ard_kernels_in_containers_get_a_value_per_column():
    kernel = ScaleKernel(RBF(ard=True, active_dims=["a", "c"]) + Linear(ard=True))
    bind(kernel, ("a", "b", "c"))
    first, second = kernel.base_kernel.kernels
    assert first.lengthscale.shape == (1, 2) and second.outputscale.shape == (1, 3)
    assert first.columns == ("a", "c")


# --------------------------------------------------------------------------------------------------- starts


def started(kernel, scale=1.0):
    data = as_data(FRAME, scale * Y)
    bind(kernel, data.columns)
    init_from(kernel, data)
    return kernel, data


def total(kernel):
    return float(diagonal(kernel.double(), X).detach().mean())


@pytest.mark.parametrize("container", [
    lambda: ScaleKernel(RBF()), lambda: AdditiveKernel(RBF(), Matern()), lambda: ProductKernel(RBF(), Matern()),
    lambda: RBFKernel() * RBF(), lambda: ProductKernel(RBFKernel(), ScaleKernel(RBF())), lambda: ScaleKernel(RBF() * Matern()),
    lambda: RBF() + Matern(), lambda: RBF() * Matern(), lambda: ScaleKernel(RBF(active_dims=["b"])),
])  # fmt: skip
def test_the_whole_starts_at_the_variance_of_the_data_in_any_unit(container):
    for scale in (1.0, 1e4):
        kernel, data = started(container(), scale)
        assert total(kernel) == pytest.approx(data.variance, rel=1e-5)


def test_theirs_and_ours_start_alike():
    for theirs, ours in ((AdditiveKernel, Sum), (ProductKernel, Product)):
        (a, _), (b, _) = started(theirs(RBF(), Matern())), started(ours(RBF(), Matern()))
        for (name, value), (_, other) in zip(a.named_parameters(), b.named_parameters(), strict=True):
            assert torch.equal(value, other) and value.requires_grad == other.requires_grad, name


def fixed(kernel):
    return [not k.raw_outputscale.requires_grad for k in kernel.modules() if hasattr(k, "raw_outputscale")]


def test_of_a_product_one_scale_is_learned():
    assert fixed(started(ProductKernel(RBF(), Matern()))[0]) == [False, True]
    assert fixed(started(RBFKernel() * RBF())[0]) == [False], "the only scale there is"
    assert fixed(started(ScaleKernel(RBF()))[0]) == [False, True]
    assert fixed(started(ScaleKernel(RBF(outputscale=2.0)))[0]) == [False, False], "given"
    assert fixed(started(RBF() * AdditiveKernel(RBF(), Matern()))[0]) == [False, True, False], "the ratio stays free"
    assert fixed(started(RBF() * AdditiveKernel(RBFKernel(), Matern()))[0]) == [False, False], "it is a ratio already"
    assert fixed(started(RBF() * ProductKernel(RBFKernel(), Matern()))[0]) == [False, True]
    kernel = ScaleKernel(RBF())
    kernel.raw_outputscale.requires_grad_(False)
    assert fixed(started(kernel)[0]) == [True, False]


def test_a_fit_in_a_gpytorch_container_does_not_depend_on_the_units():
    fits = [GP(ScaleKernel(RBF(active_dims=["a"]))).fit(FRAME, s * Y) for s in (1.0, 1e4)]
    close(fits[1].predict(FRAME).mean, 1e4 * fits[0].predict(FRAME).mean, "predictions", 1e-4)


# ------------------------------------------------------------------------------------------------- register


class Doubled(gpytorch.kernels.Kernel):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x1, x2, diag=False, **params):
        return 2 * (diagonal(self.inner, x1) if diag else dense(self.inner, x1, x2))


def test_names_in_an_unknown_container_are_refused_until_it_is_registered():
    kernel = Doubled(RBF(active_dims=["c"]))
    with pytest.raises(StructureError, match=r"Doubled holds RBF with column names.*use indices, or register"):
        GP(kernel).condition(FRAME, Y)
    close(gpx.kernels.matrix(Doubled(RBF(active_dims=[2])), FRAME), 2 * rbf(C), "indices need no rule", 1e-12)

    class Registered(Doubled):
        pass

    parts.register(Registered, lambda k: (k.inner,))
    close(gpx.kernels.matrix(Registered(RBF(active_dims=["c"])), FRAME), 2 * rbf(C), "the matrix", 1e-12)


def test_a_matrix_needs_a_kernel():
    with pytest.raises(StructureError, match="Expected a gpytorch kernel, got str"):
        gpx.kernels.matrix("RBF", X)
