"""Kernels against their formulas in plain Python, one pair of points at a time."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import gamma, kv

import gpx
from gpx import GP, InputError
from gpx.inputs import as_data
from gpx.kernels import RBF, Constant, Cosine, Linear, Matern, Periodic, Product, RationalQuadratic, Same, Sum
from gpx.kernels.dense import dense, diagonal
from gpx.testing.assertions import close, gradients
from gpx.testing.cases import points, targets

X, X2 = points(6), points(4, seed=2)


def loop(function, X=X, X2=X2):
    """The matrix of a function of two lists of coordinates."""
    return [[function(a.tolist(), b.tolist()) for b in X2] for a in X]


def scaled_distance(a, b, lengthscale):
    lengthscale = lengthscale if isinstance(lengthscale, list) else [lengthscale] * len(a)
    return math.sqrt(sum(((p - q) / s) ** 2 for p, q, s in zip(a, b, lengthscale, strict=True)))


def bessel(r, nu):
    """Rasmussen & Williams (2006), eq. 4.14."""
    z = math.sqrt(2 * nu) * r
    return 1.0 if z == 0 else 2 ** (1 - nu) / gamma(nu) * z**nu * kv(nu, z)


ARD = [0.5, 1.5, 0.9]
FORMULAS = {
    "rbf": (RBF(0.7, 1.3), lambda a, b: 1.3 * math.exp(-0.5 * scaled_distance(a, b, 0.7) ** 2)),
    "rbf ard": (RBF(ARD), lambda a, b: math.exp(-0.5 * scaled_distance(a, b, ARD) ** 2)),
    "rational quadratic": (
        RationalQuadratic(0.6, 0.8, 2.0), lambda a, b: 2.0 * (1 + scaled_distance(a, b, 0.8) ** 2 / (2 * 0.6)) ** -0.6,
    ),
    "periodic": (
        Periodic(period=1.4, lengthscale=0.8, outputscale=0.5),
        lambda a, b: 0.5 * math.exp(-2 * sum(math.sin(math.pi * (p - q) / 1.4) ** 2 for p, q in zip(a, b, strict=False)) / 0.8**2),
    ),
    "cosine": (
        Cosine(period=1.4, outputscale=0.5, active_dims=[1]), lambda a, b: 0.5 * math.cos(2 * math.pi * (a[1] - b[1]) / 1.4),
    ),
    "linear": (Linear(0.4, 0.2), lambda a, b: 0.4 * sum((p - 0.2) * (q - 0.2) for p, q in zip(a, b, strict=False))),
    "linear ard": (
        Linear([0.4, 0.1, 2.0], [0.2, 0.0, -1.0], ard=True),
        lambda a, b: sum(s * (p - c) * (q - c) for p, q, s, c in zip(a, b, [0.4, 0.1, 2.0], [0.2, 0.0, -1.0], strict=False)),
    ),
    "constant": (Constant(0.3), lambda a, b: 0.3),
    "same": (RBF(0.7) * Same(active_dims=[0, 2]), lambda a, b: float((a[0], a[2]) == (b[0], b[2])) * math.exp(-0.5 * scaled_distance(a, b, 0.7) ** 2)),
    "sum": (RBF(0.7) + Constant(0.3), lambda a, b: 0.3 + math.exp(-0.5 * scaled_distance(a, b, 0.7) ** 2)),
    "product": (RBF(0.7) * Linear(0.4), lambda a, b: 0.4 * sum(p * q for p, q in zip(a, b, strict=False)) * math.exp(-0.5 * scaled_distance(a, b, 0.7) ** 2)),
    "columns": (
        RBF(0.7, active_dims=[2]) * Linear(0.4, active_dims=[0]) + Constant(1.0),
        lambda a, b: 0.4 * a[0] * b[0] * math.exp(-0.5 * ((a[2] - b[2]) / 0.7) ** 2) + 1,
    ),
    "columns of columns": (
        Sum(RBF(0.7, active_dims=[1]), Linear(0.4, active_dims=[0]), active_dims=[2, 0]),
        lambda a, b: 0.4 * a[2] * b[2] + math.exp(-0.5 * ((a[0] - b[0]) / 0.7) ** 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    kernel, formula = FORMULAS[name]
    close(kernel.matrix(X, X2), loop(formula), "k(X, X2)", 1e-13)
    close(kernel.matrix(X), loop(formula, X, X), "k(X, X)", 1e-13)
    close(kernel.diagonal(X), np.diag(loop(formula, X, X)), "the diagonal", 1e-13)


@pytest.mark.parametrize("nu", [0.5 + p for p in range(10)])
def test_matern_is_its_bessel_function(nu):
    kernel = Matern(nu=nu, lengthscale=ARD, outputscale=1.7)
    expected = loop(lambda a, b: 1.7 * bessel(scaled_distance(a, b, ARD), nu))
    close(kernel.matrix(X, X2), expected, f"Matern of nu = {nu}", 1e-11)
    distant = torch.tensor([[0.0], [1e-9], [1e-4], [30.0], [1e4]], dtype=torch.float64)
    got = Matern(nu=nu).matrix(distant[:1], distant)
    close(got, [[bessel(r, nu) if r > 1e-9 else 1.0 for r in distant[:, 0].tolist()]], "from 0 to far away", atol=1e-8)
    assert bool((got >= 0).all()) and float(got[0, 0].detach()) == 1.0


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, 6.5])
def test_matern_second_derivatives(nu):
    """The profile is differentiable as often as the kernel is, away from zero."""
    kernel = Matern(nu=nu, lengthscale=0.9).double()
    a, b = (p.clone().requires_grad_() for p in (X[:2, :1], X2[:2, :1]))
    slope = lambda a, b: torch.autograd.grad(dense(kernel, a, b).sum(), a, create_graph=True)[0]  # noqa: E731
    gradients(slope, [a, b], "the second derivative", rtol=1e-4)


@pytest.mark.parametrize("nu", [0, 1, 2.0, -0.5, 0.25, math.inf, math.nan, "2.5", None])
def test_matern_wants_half_integers(nu):
    with pytest.raises((InputError, TypeError)) as caught:
        Matern(nu=nu)
    assert isinstance(caught.value, InputError), caught.value
    assert "half-integer" in str(caught.value) and "RBF" in str(caught.value)


def test_distances_of_close_points_far_from_zero():
    """Differences first: 1e-5 at 1e6 keeps its digits."""
    a = torch.tensor([[1e6]], dtype=torch.float64)
    close(RBF(1e-5).matrix(a, a + 1e-5), [[math.exp(-0.5)]], "a close pair far from zero", 1e-4)
    close(
        Periodic(period=1.0).matrix(1e8 + X[:, :1]), Periodic(period=1.0).matrix(X[:, :1]), "phases far from zero", 1e-6
    )


def test_arguments_as_in_the_contract():
    """Values by position or name, on their natural scale, shown by repr."""
    assert repr(RBF()) == "RBF(lengthscale=1, outputscale=1)"
    assert repr(Matern()) == "Matern(nu=2.5, lengthscale=1, outputscale=1)"
    assert repr(Matern(nu=1.5, ard=True)) == "Matern(nu=1.5, ard=True, lengthscale=1, outputscale=1)"
    assert repr(Periodic(period=2.0)) == "Periodic(period=2, lengthscale=1, outputscale=1)"
    assert repr(RBF(active_dims=["a"])) == "RBF(lengthscale=1, outputscale=1, active_dims=['a'])"
    assert repr(RBF([1.0, 2.5])) == "RBF(lengthscale=[1, 2.5], outputscale=1)"
    assert repr((RBF() + Constant()) * Linear()).startswith("(RBF(")
    kernel = RBF(0.5)
    assert float(kernel.lengthscale.detach()) == 0.5
    kernel.lengthscale = 2.0
    assert float(kernel.lengthscale.detach()) == pytest.approx(2.0, rel=1e-15)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, [1.0, -1.0]], ids=str)
def test_values_must_be_positive(bad):
    with pytest.raises(InputError, match=r"RBF: lengthscale must be positive and finite, got"):
        RBF(lengthscale=bad)
    kernel = RBF()
    with pytest.raises(InputError, match="positive and finite"):
        kernel.lengthscale = bad


def test_numbers_are_constant_kernels():
    close((2 * RBF()).matrix(X), 2 * RBF().matrix(X), "2 k")
    close((RBF() * 2).matrix(X), 2 * RBF().matrix(X), "k 2")
    close((0.5 + RBF()).matrix(X), 0.5 + RBF().matrix(X), "1/2 + k")
    close((RBF() + 0.5).matrix(X), 0.5 + RBF().matrix(X), "k + 1/2")
    for combine in (lambda: RBF() + "x", lambda: RBF() * -1.0, lambda: RBF() + 0.0, Sum, lambda: Product(RBF(), 3)):
        with pytest.raises(InputError):
            combine()


def test_sums_and_products_are_flat():
    total = RBF() + Linear() + (Constant() + Matern())
    assert [type(k) for k in total.kernels] == [RBF, Linear, Constant, Matern]
    product = RBF() * Linear() * (Constant() * Matern())
    assert [type(k) for k in product.kernels] == [RBF, Linear, Constant, Matern]
    kept = Sum(RBF(), Linear(), active_dims=[0]) + Constant()
    assert len(kept.kernels) == 2, "a sum on its own columns keeps them"


def test_composites_are_ours_and_gpytorchs():
    for kernel, theirs in (
        (RBF() + gpytorch.kernels.RBFKernel(), gpytorch.kernels.AdditiveKernel),
        (RBF() * gpytorch.kernels.RBFKernel(), gpytorch.kernels.ProductKernel),
        (gpytorch.kernels.RBFKernel() + RBF(), gpytorch.kernels.AdditiveKernel),
        (gpytorch.kernels.RBFKernel() * RBF(), gpytorch.kernels.ProductKernel),
    ):
        assert isinstance(kernel, theirs)
        assert dense(kernel, X, X).shape == (6, 6)


@pytest.mark.parametrize("kernel", [
    RBF(torch.tensor([[[0.5]], [[1.5]]]), batch_shape=[2]),
    Matern(nu=1.5, outputscale=torch.tensor([1.0, 3.0]), batch_shape=[2]),
    RationalQuadratic(torch.tensor([0.5, 2.0]), batch_shape=[2]),
    Periodic(torch.tensor([[[0.5]], [[1.5]]]), batch_shape=[2]),
    Linear(torch.tensor([[[0.5]], [[1.5]]]), batch_shape=[2]),
    Constant(torch.tensor([0.5, 1.5]), batch_shape=[2]),
], ids=lambda k: type(k).__name__)  # fmt: skip
def test_a_batch_of_hyperparameters_is_a_loop(kernel):
    single = []
    for i in (0, 1):
        other = type(kernel)(nu=1.5) if isinstance(kernel, Matern) else type(kernel)()
        for name in kernel.choices:
            setattr(other, name, getattr(kernel, name).detach()[i].reshape(getattr(other, name).shape))
        single.append(other)
    close(dense(kernel, X, X2), torch.stack([k.matrix(X, X2) for k in single]), "matrices", 1e-13)
    close(diagonal(kernel, X), torch.stack([k.diagonal(X) for k in single]), "diagonals", 1e-13)
    close(kernel(X, X2).to_dense(), dense(kernel, X, X2), "gpytorch's lazy batch", 1e-12)


# ------------------------------------------------------------------------------------------------ columns


FRAME = pd.DataFrame({"depth": X[:, 0], "age": X[:, 1], "mass": X[:, 2]})


def test_columns_by_name():
    named, indexed = RBF(active_dims=["mass", "depth"]), RBF(active_dims=[2, 0])
    close(named.matrix(FRAME), indexed.matrix(X), "matrix by names")
    close(named.diagonal(FRAME), indexed.diagonal(X), "diagonal by names")
    close(
        gpx.kernels.matrix(named + Linear(active_dims=["age"]), FRAME),
        (indexed + Linear(active_dims=[1])).matrix(X),
        "sum",
    )
    close(RBF(active_dims="age").matrix(FRAME), RBF(active_dims=1).matrix(X), "a single column")
    swapped = FRAME[["age", "mass", "depth"]]
    close(named.matrix(swapped), indexed.matrix(X), "the same names in another order")


def test_a_fit_by_name_is_a_fit_by_index():
    y = targets(X)
    by_name = GP(Matern(active_dims=["mass"]) + Linear(active_dims=["age", "depth"], ard=True)).fit(FRAME, y)
    by_index = GP(Matern(active_dims=[2]) + Linear(active_dims=[1, 0], ard=True)).fit(X, y)
    close(by_name.predict(FRAME).mean, by_index.predict(X).mean, "predictions", 1e-12)
    names = [row.name for row in by_name.parameters()]
    assert "kernel.1.outputscale[age]" in names and "kernel.1.outputscale[depth]" in names


@pytest.mark.parametrize("column", [-1, 3])
def test_columns_out_of_range(column):
    with pytest.raises(InputError, match=rf"active_dims \[{column}\] are out of range: the inputs have 3 column"):
        RBF(active_dims=[column]).matrix(X)


def test_ard_gets_one_value_per_column():
    gp = GP(Matern(ard=True)).condition(X, targets(X))
    assert gp.kernel_.lengthscale.shape == (1, 3)
    gp = GP(Matern(ard=True, active_dims=[0, 2])).condition(X, targets(X))
    assert gp.kernel_.lengthscale.shape == (1, 2)
    gp = GP(Matern()).condition(X, targets(X))
    assert gp.kernel_.lengthscale.shape == (1, 1)
    gp = GP(RBF(lengthscale=0.3, ard=True)).condition(X, targets(X))
    close(gp.kernel_.lengthscale, [[0.3, 0.3, 0.3]], "one given value for all columns")


def test_cosine_acts_on_one_column():
    with pytest.raises(InputError, match=r"one input column, got 3.*active_dims"):
        GP(Cosine()).fit(X, targets(X))


# ------------------------------------------------------------------------------------------------ starts


def trainable(kernel, y=None):
    """Names of the values that a fit learns."""
    data = as_data(X, targets(X))
    kernel.bind(data.columns)
    kernel.init_from(data)
    return [n.replace("kernels.", "").replace("raw_", "") for n, p in kernel.named_parameters() if p.requires_grad]


def test_a_product_learns_the_first_outputscale_only():
    assert trainable(RBF() * Linear()) == ["0.lengthscale", "0.outputscale"]
    assert trainable(RBF() * Matern()) == ["0.lengthscale", "0.outputscale", "1.lengthscale"]
    assert trainable(RBF() * Matern(outputscale=2.0)) == [
        "0.lengthscale",
        "0.outputscale",
        "1.lengthscale",
        "1.outputscale",
    ]
    inner = trainable(RBF() * (Matern() + Constant()))
    assert inner == ["0.lengthscale", "0.outputscale", "1.0.lengthscale", "1.1.outputscale"], (
        "a sum keeps its ratio free"
    )
    assert "1.0.outputscale" in trainable(Constant() + Matern() * Periodic())


def test_the_scale_of_a_product_is_the_variance_of_the_data():
    kernel = Matern() * Periodic() * RationalQuadratic()
    trainable(kernel)
    data = as_data(X, targets(X))
    close(kernel.diagonal(X), torch.full((6,), data.variance, dtype=torch.float64), "prior variance", 1e-12)
    kernel = Matern() + Periodic(active_dims=[0]) + Constant()
    trainable(kernel)
    close(kernel.diagonal(X), torch.full((6,), data.variance, dtype=torch.float64), "prior variance of a sum", 1e-12)


def test_given_values_are_where_a_fit_starts():
    kernel = Matern(lengthscale=0.123) + RBF(outputscale=7.0)
    trainable(kernel)
    assert float(kernel.kernels[0].lengthscale.detach()) == pytest.approx(0.123, rel=1e-14)
    assert float(kernel.kernels[1].outputscale.detach()) == pytest.approx(7.0, rel=1e-14)
    assert not hasattr(kernel.kernels[0], "lengthscale_prior"), "what is given gets no prior from the data"
    assert hasattr(kernel.kernels[1], "lengthscale_prior")


def test_starts_scale_with_the_data():
    def start(a, c):
        kernel = Matern(ard=True) * RationalQuadratic() + Linear()
        data = as_data(a * X, c * targets(X))
        kernel.bind(data.columns)
        kernel.init_from(data)
        return kernel.kernels[0].kernels, kernel.kernels[1]

    (matern, rq), linear = start(1.0, 1.0)
    (matern2, rq2), linear2 = start(1e3, 1e-2)
    close(matern2.lengthscale, 1e3 * matern.lengthscale, "lengthscales", 1e-12)
    close(rq2.lengthscale, 1e3 * rq.lengthscale, "lengthscales", 1e-12)
    close(matern2.outputscale, 1e-4 * matern.outputscale, "output scales", 1e-12)
    close(rq2.alpha, rq.alpha, "shapes have no unit", 1e-12)
    close(linear2.outputscale, 1e-10 * linear.outputscale, "slopes", 1e-12)
    close(linear2.center, 1e3 * linear.center, "centres", 1e-9)


def test_the_start_of_a_period_is_the_peak_of_the_periodogram():
    t = torch.arange(120.0, dtype=torch.float64)
    y = torch.sin(2 * math.pi * t / 17.3) + 0.02 * t
    for kernel in (Periodic(), gpx.kernels.Cosine()):
        kernel.init_from(as_data(t, y))
        assert float(kernel.period.detach()) == pytest.approx(17.3, rel=0.05)


def test_parts_of_a_sum_start_apart():
    """Equal kernels with equal starts would stay equal for ever."""
    kernel = RBF() + RBF()
    trainable(kernel)
    first, second = (float(k.lengthscale.detach()) for k in kernel.kernels)
    assert first > 2 * second


# ------------------------------------------------------------------------------------------------ gpytorch


def test_batches_of_gpytorch_kernels_and_registration():
    """`dense` is open: a user's kernel class without `forward` can be registered."""

    class Sampled(gpytorch.kernels.Kernel):
        has_lengthscale = False

    dense.register(Sampled, lambda kernel, x1, x2: torch.exp(-(x1 - x2.mT).abs()))

    close(
        dense(Sampled(), X[:, :1], X2[:, :1]), Matern(nu=0.5).matrix(X[:, :1], X2[:, :1]), "a registered kernel", 1e-13
    )


def test_a_matrix_needs_the_same_columns_twice():
    for a, b in ((X, X2[:, :2]), (X[:, :1], X2)):
        with pytest.raises(
            InputError, match=rf"X has {a.shape[1]} column.*X2 has {b.shape[1]}; they must have the same"
        ):
            gpx.kernels.matrix(RBF(), a, b)
    with pytest.raises(InputError, match="X has no columns"):
        RBF().matrix(X[:, :0])


def test_columns_of_a_matrix_are_matched_by_name():
    first, second = pd.DataFrame(X.numpy(), columns=list("abc")), pd.DataFrame(X2.numpy(), columns=list("abc"))
    for kernel in (RBF(active_dims=["a"]), RBF([0.5, 1.5, 0.9], ard=True)):
        close(kernel.matrix(first, second[["c", "a", "b"]]), kernel.matrix(first, second), "another order", 1e-14)
    with pytest.raises(InputError, match="d, e"):
        RBF().matrix(first, pd.DataFrame(X2.numpy(), columns=["a", "d", "e"]))


def test_only_kernels_have_matrices():
    from gpx import StructureError

    for function in (dense, lambda k, x, _: diagonal(k, x)):
        with pytest.raises(StructureError, match="Expected a gpytorch kernel, got str"):
            function("RBF", X, X)


def test_some_gpytorch_kernels_ignore_diag():
    class NoDiagonal(gpytorch.kernels.RBFKernel):
        def forward(self, x1, x2, diag=False, **params):
            return super().forward(x1, x2, **params)

    kernel = NoDiagonal().double()
    close(diagonal(kernel, X), torch.ones(6), "the diagonal of the matrix")


def test_a_gpytorch_model_of_a_gpytorch_kernel_is_fitted():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5))
    x = points(30, 1)
    gp = GP(kernel).fit(x, targets(x))
    assert gp.result_.converged
    assert kernel.outputscale.dtype == torch.float32, "the user's kernel is left as it is"
    assert gp.kernel_.outputscale.dtype == torch.float64
    ours = GP(Matern(nu=2.5)).fit(x, targets(x), priors=None)
    assert gp.log_evidence() == pytest.approx(ours.log_evidence(), abs=0.05)
