"""Whatever users have becomes the same numbers; what cannot be used is refused, with advice."""

from __future__ import annotations

import datetime as dt
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

import gpx
from gpx import GP, InputError
from gpx.inputs import as_data, as_points
from gpx.kernels import RBF, Linear
from gpx.likelihoods import Gaussian

VALUES = [0.0, 1.0, 2.5, 4.0]
EXPECTED = torch.tensor(VALUES, dtype=torch.float64).unsqueeze(1)

SAME_COLUMN = {
    "list": VALUES,
    "tuple": tuple(VALUES),
    "list of rows": [[v] for v in VALUES],
    "numpy": np.array(VALUES),
    "numpy float32": np.array(VALUES, dtype=np.float32),
    "numpy column": np.array(VALUES)[:, None],
    "numpy read-only": np.broadcast_to(np.array(VALUES), (4,)),
    "numpy reversed": np.array(VALUES[::-1])[::-1],
    "numpy objects": np.array([0, 1.0, np.float32(2.5), 4], dtype=object),
    "tensor": torch.tensor(VALUES, dtype=torch.float64),
    "tensor float16": torch.tensor(VALUES, dtype=torch.float16),
    "tensor with gradient": torch.tensor(VALUES, dtype=torch.float64, requires_grad=True),
    "list of tensors": [torch.tensor(v, dtype=torch.float64) for v in VALUES],
    "Series": pd.Series(VALUES),
    "Series with an odd index": pd.Series(VALUES, index=[7, 3, 3, "a"]),
    "Series Float64": pd.Series(VALUES, dtype="Float64"),
    "DataFrame": pd.DataFrame({"a": VALUES}),
    "DataFrame Float32": pd.DataFrame({"a": pd.array(VALUES, dtype="Float32")}),
    "DataFrame objects": pd.DataFrame({"a": np.array(VALUES, dtype=object)}),
    "DataFrame pyarrow": pd.DataFrame({"a": pd.array(VALUES, dtype="double[pyarrow]")}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME_COLUMN)
def test_one_column_in_any_form(kind):
    points = as_points(SAME_COLUMN[kind])
    assert points.x.dtype == torch.float64
    assert torch.equal(points.x.detach(), EXPECTED)


INTEGERS = {
    "list": [0, 1, 2, 4],
    "numpy": np.array([0, 1, 2, 4]),
    "numpy uint8": np.array([0, 1, 2, 4], dtype=np.uint8),
    "tensor": torch.tensor([0, 1, 2, 4]),
    "range": [*range(3), 4],
    "Int64": pd.Series([0, 1, 2, 4], dtype="Int64"),
}


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_become_float64(kind):
    assert torch.equal(as_points(INTEGERS[kind]).x[:, 0], torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64))


@pytest.mark.parametrize("values", [
    np.array([True, False]), torch.tensor([True, False]), pd.Series([True, False]), pd.Series([True, False], dtype="boolean"),
], ids=lambda v: type(v).__name__)  # fmt: skip
def test_booleans_become_zero_and_one(values):
    assert as_points(values).x[:, 0].tolist() == [1.0, 0.0]


STAMPS = pd.to_datetime(["1970-01-01 00:00", "1970-01-02 12:00", "2020-02-29 00:00"])
DAYS = [0.0, 1.5, 18321.0]


@pytest.mark.parametrize("values", [
    STAMPS, pd.Series(STAMPS), pd.DataFrame({"t": STAMPS}), STAMPS.to_numpy(), STAMPS.to_pydatetime(), list(STAMPS),
    pd.Series(STAMPS).astype("datetime64[s]"), pd.Series(STAMPS.tz_localize("UTC")),
    [dt.datetime(1970, 1, 1), dt.datetime(1970, 1, 2, 12), dt.datetime(2020, 2, 29)],
], ids=["Index", "Series", "DataFrame", "numpy", "pydatetime", "Timestamps", "seconds", "UTC", "datetime"])  # fmt: skip
def test_datetimes_become_days(values):
    assert as_points(values).x[:, 0].tolist() == DAYS


def test_dates_become_days():
    assert as_points([dt.date(1970, 1, 1), dt.date(2020, 2, 29)]).x[:, 0].tolist() == [0.0, 18321.0]


def test_datetimes_in_a_fit():
    t = pd.date_range("2024-01-01", periods=12, freq="MS")
    y = np.sin(np.arange(12.0))
    by_date = GP(RBF(lengthscale=40.0), Gaussian(0.1)).condition(t, y).predict(t[:3])
    by_days = GP(RBF(lengthscale=40.0), Gaussian(0.1)).condition(as_points(t).x, y).predict(as_points(t[:3]).x)
    assert torch.equal(by_date.mean, by_days.mean)


def test_nullable_targets_are_missing():
    data = as_data([0, 1, 2], pd.Series([1, None, 3], dtype="Int64"))
    assert data.observed[:, 0].tolist() == [True, False, True]
    frame = pd.DataFrame({"p": pd.array([1.0, None, 2.0], dtype="Float64"), "q": [np.nan, 1.0, 2.0]})
    assert as_data([0, 1, 2], frame).observed.tolist() == [[True, False], [False, True], [True, True]]
    assert as_data([0, 1], [None, 2.0]).observed[:, 0].tolist() == [False, True]


def test_shapes_of_targets():
    assert as_data([0, 1], [1.0, 2.0]).flat and as_data([0, 1], pd.Series([1.0, 2.0])).flat
    for y in ([[1.0], [2.0]], pd.DataFrame({"y": [1.0, 2.0]}), torch.ones(2, 3)):
        assert not as_data([0, 1], y).flat


def test_float32_and_gradients_are_kept():
    x = torch.tensor(VALUES, requires_grad=True)
    points = as_points(x)
    assert points.x.dtype == torch.float32 and points.x.requires_grad
    assert as_data(x, VALUES).y.dtype == torch.float32
    assert not as_data(x, VALUES).x.requires_grad


def test_the_arrays_of_the_user_are_not_shared():
    x, y = np.array(VALUES), np.array(VALUES)
    gp = GP(RBF(), Gaussian(0.1)).condition(x, y)
    before = gp.predict(VALUES).mean
    x[:] = 7.0
    y[:] = 7.0
    assert torch.equal(gp.predict(VALUES).mean, before)


def test_the_tensors_of_the_user_are_not_shared(tmp_path):
    x, y = torch.tensor(VALUES, dtype=torch.float64), torch.tensor(VALUES, dtype=torch.float64)
    gp = GP(RBF(), Gaussian(0.1)).condition(x, y)
    before, loo = gp.predict(VALUES).mean, gp.loo().log_density
    x.fill_(7.0), y.fill_(7.0)
    gp.save(tmp_path / "m.gpx")
    for model in (gp, gpx.load(tmp_path / "m.gpx")):
        assert torch.equal(model.predict(VALUES).mean, before)
        assert torch.equal(model.loo().log_density, loo)


# ------------------------------------------------------------------------------------------------ scales


def test_scales_of_the_data():
    data = as_data([[0.0, 5.0], [2.0, 5.0]], [1.0, 3.0])
    assert data.variance == 1.0
    assert data.spread.tolist() == [1.0, 1.0]  # the second by convention: the column is constant
    assert as_data([0, 1], [7.0, 7.0]).variance == 1.0
    assert as_data([0, 1], [np.nan, np.nan]).variance == 1.0
    assert as_data([0, 1, 2, 3], [[0.0, 1], [2.0, 1], [0.0, 1], [2.0, np.nan]]).variance == 0.5


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_constant_up_to_rounding(size):
    """0.1 + 0.2 and 0.3 are the same target, at any scale; 1e-6 of the size is not rounding."""
    assert as_data([0, 1, 2], [size * 0.3, size * (0.1 + 0.2), size * 0.3]).variance == 1.0
    data = as_data([0, 1], [size * 1.0, size * (1 + 1e-6)])
    assert data.variance == pytest.approx((0.5e-6 * size) ** 2, rel=1e-6)


def test_select_rows_join():
    data = as_data(pd.DataFrame({"a": VALUES, "b": [1.0, 2.0, 3.0, 5.0]}), [1.0, np.nan, 2.0, 3.0])
    part = data.select(torch.tensor([1]))
    assert (
        part.columns == ("b",) and torch.equal(part.x[:, 0], data.x[:, 1]) and torch.equal(part.spread, data.spread[1:])
    )
    rows = data.rows(torch.tensor([2, 0]))
    assert torch.equal(rows.x, data.x[[2, 0]]) and rows.variance == data.variance
    again = data.rows(torch.arange(2)).join(data.rows(torch.arange(2, 4)))
    assert torch.equal(again.x, data.x) and again.variance == data.variance and torch.equal(again.spread, data.spread)


# ------------------------------------------------------------------------------------------------ bad input


def fails(call, *fragments):
    """The InputError of a call, with everything that its message must say."""
    with pytest.raises(InputError) as caught:
        call()
    for fragment in fragments:
        assert re.search(fragment, str(caught.value)), f"{fragment!r} is not in {caught.value}"


FRAME = pd.DataFrame({"depth": [1.0, 2.0, 3.0], "age": [0.1, 0.2, 0.4]})
NAMED = FRAME.assign(kind=["a", "b", "a"])
CASES = {
    "nan in X": (lambda f: f([0.0, np.nan, 2.0], [1, 2, 3]), "NaN", r"row\(s\) 1", "drop or impute"),
    "inf in X": (lambda f: f([0.0, 1.0, np.inf], [1, 2, 3]), "infinite", r"row\(s\) 2", "drop or impute"),
    "nan in a named column": (lambda f: f(FRAME.assign(age=[1, None, 2]), [1, 2, 3]), r"row\(s\) 1", "age", "drop or impute"),
    "NaT": (lambda f: f(pd.to_datetime(["2020-01-01", None, "2020-01-03"]), [1, 2, 3]), r"row\(s\) 1", "drop or impute"),
    "inf in y": (lambda f: f([0, 1, 2], [1, np.inf, 3]), r"row\(s\) 1", "NaN for a missing target", "drop"),
    "inf in one output": (lambda f: f([0, 1], [[1, 2], [3, -np.inf]]), r"row\(s\) 1", "NaN for a missing target"),
    "X with three axes": (lambda f: f(np.zeros((2, 2, 2)), [1, 2]), r"\[2, 2, 2\]", r"\[N\] or \[N, D\]", "flatten"),
    "y with three axes": (lambda f: f([0, 1], np.zeros((2, 1, 1))), r"\[2, 1, 1\]", r"\[N\], or \[N, P\]|\[N\] or \[N, P\]"),
    "y is a number": (lambda f: f([0, 1], 3.0), "y must be", r"\[\]"),
    "X is a number": (lambda f: f(3.0, [3.0]), r"\[\]", r"\[N\] or \[N, D\]"),
    "ragged X": (lambda f: f([[0, 1], [2]], [1, 2]), "X is not a rectangular array"),
    "strings in X": (lambda f: f(["a", "b"], [1, 2]), "X holds", "'a'", "needs numbers", "encode"),
    "numbers as strings": (lambda f: f(["1", "2"], [1, 2]), "X holds", "encode|convert"),
    "strings in y": (lambda f: f([0, 1], ["a", "b"]), "y holds", "encode"),
    "strings in a DataFrame": (lambda f: f(NAMED, [1, 2, 3]), "kind", "text or categories", "get_dummies"),
    "categories": (lambda f: f(FRAME.assign(age=pd.Categorical([1, 2, 1])), [1, 2, 3]), "age", "get_dummies"),
    "objects": (lambda f: f([object(), object()], [1, 2]), "X holds object", "encode"),
    "complex numpy": (lambda f: f(np.array([1j, 2.0]), [1, 2]), "X", "complex", "real|numbers"),
    "complex tensor": (lambda f: f(torch.tensor([1j, 2.0]), [1, 2]), "X is complex", "real"),
    "timedelta": (lambda f: f(pd.to_timedelta([1, 2], unit="D"), [1, 2]), "X holds", "encode|numbers"),
    "mismatched lengths": (lambda f: f([0, 1, 2], [1, 2]), "X has 3 rows and y has 2", "same length"),
    "no rows": (lambda f: f([], []), "no rows|among 0"),
    "X without columns": (lambda f: f(np.zeros((2, 0)), [1, 2]), "X has no columns", "2 row", "at least one input column"),
    "a DataFrame without columns": (lambda f: f(pd.DataFrame(index=[0, 1]), [1, 2]), "X has no columns"),
    "y without columns": (lambda f: f([0, 1], np.zeros((2, 0))), "y has no columns", "at least one output"),
    "sparse X": (lambda f: f(torch.eye(2).to_sparse(), [1, 2]), "X is a sparse tensor", r"pass X\.to_dense\(\)"),
    "sparse y": (lambda f: f([0, 1], torch.ones(2).to_sparse()), "y is a sparse tensor", r"pass y\.to_dense\(\)"),
    "scipy's sparse X": (lambda f: f(csr_array(np.eye(2)), [1, 2]), "X is a sparse csr_array", r"pass X\.toarray\(\)"),
    "a dict": (lambda f: f({"a": 1}, [1]), "X"),
    "None": (lambda f: f(None, [1]), "X"),
}  # fmt: skip


@pytest.mark.parametrize("method", ["fit", "condition"])
@pytest.mark.parametrize("case", CASES)
def test_bad_data(case, method):
    call, *fragments = CASES[case]
    gp = GP(RBF())
    fails(lambda: call(getattr(gp, method)), *fragments)
    assert not hasattr(gp, "posterior_") and not hasattr(gp, "kernel_"), "nothing is kept of a fit that failed"


@pytest.mark.parametrize("y", [[np.nan, np.nan], [[np.nan], [np.nan]], [None, None]], ids=str)
def test_no_observed_target(y):
    fails(lambda: GP(RBF()).fit([0, 1], y), "no observed target", "at least one", r"condition\(\)")
    assert GP(RBF(), mean="zero").condition([0, 1], y).log_evidence() == 0.0


def test_wrong_columns_at_predict():
    gp = GP(RBF()).condition(FRAME, [1, 2, 3])
    fails(lambda: gp.predict(np.zeros((2, 3))), r"3 column\(s\)", "fitted on 2", "depth, age", "same columns")
    fails(lambda: gp.predict(np.zeros(2)), r"1 column\(s\)", "fitted on 2")
    fails(lambda: gp.predict(FRAME[["depth"]]), r"lacks the column\(s\) age", "it has depth")
    fails(lambda: gp.predict(np.full((1, 2), np.nan)), "NaN", r"row\(s\) 0", "depth", "drop or impute")
    fails(lambda: gp.sample(np.zeros((2, 3)), 1), r"3 column\(s\)")
    fails(lambda: gp.paths(1)(np.zeros((2, 3))), r"3 column\(s\)")
    fails(lambda: gp.update(np.zeros((2, 3)), [0, 1]), r"3 column\(s\)")


def test_frames_are_matched_by_name():
    gp = GP(RBF(lengthscale=[1.0, 0.3]), Gaussian(0.1)).condition(FRAME, [1, 2, 3])
    swapped = FRAME[["age", "depth"]].assign(other=7.0)
    assert torch.equal(gp.predict(swapped).mean, gp.predict(FRAME).mean)
    assert torch.equal(gp.predict(FRAME.to_numpy()).mean, gp.predict(FRAME).mean)


def test_frames_with_equal_names():
    """By position in the fit; matching by name afterwards would be ambiguous."""
    twice = pd.DataFrame(np.arange(6.0).reshape(3, 2), columns=["a", "a"])
    gp = GP(RBF(), Gaussian(0.1)).condition(twice, [1, 2, 3])
    assert gp.predict(twice.to_numpy()).mean.shape == (3,)


def test_update_with_other_outputs():
    gp = GP(RBF()).condition([0, 1], [[1.0, 2.0], [3.0, 4.0]])
    fails(lambda: gp.update([2], [[1.0]]), r"y has 1 column\(s\), the model 2", "agree")


def test_unknown_columns_in_active_dims():
    fails(lambda: GP(RBF(active_dims=["mass"])).fit(FRAME, [1, 2, 3]), r"unknown column\(s\) mass", "depth, age")
    fails(lambda: GP(RBF(active_dims=["mass"])).fit(FRAME.to_numpy(), [1, 2, 3]), "mass", r"2 unnamed column\(s\)")
    fails(lambda: GP(RBF(active_dims=[2])).fit(FRAME, [1, 2, 3]), r"\[2\] are out of range", r"2 column\(s\)")
    fails(lambda: GP(RBF() + Linear(active_dims=["mass"])).fit(FRAME, [1, 2, 3]), "mass", "depth, age")
    fails(lambda: RBF(active_dims=[0, "age"]), "all indices or all column names")


def test_wrong_number_of_lengthscales():
    fails(
        lambda: GP(RBF(lengthscale=[1.0, 2.0, 3.0])).fit(FRAME, [1, 2, 3]), "3 values of lengthscale", r"2 column\(s\)"
    )


UNKNOWN = {
    "kernel name": (lambda: GP("Mattern"), "Mattern", "Matern"),
    "kernel type": (lambda: GP(3.0), "kernels.Matern", "3.0"),
    "kernel class": (lambda: GP(RBF), r"kernel must be a kernel such as kernels.Matern\(\)"),
    "empty list of kernels": (lambda: GP([]).fit([0, 1], [0, 1]), "1 latent", "0 kernels"),
    "engine name": (lambda: GP(RBF(), engine="Approximate"), "Approximate", "Exact"),
    "engine": (lambda: GP(RBF(), engine=3).fit([0, 1], [0, 1]), "engine must be 'auto' or an engine", "3"),
    "engine class": (lambda: GP(RBF(), engine=gpx.engines.Exact).fit([0, 1], [0, 1]), "engine must be 'auto'"),
    "likelihood": (lambda: GP(RBF(), "gaussian"), "likelihoods.Gaussian", "gaussian"),
    "mean": (lambda: GP(RBF(), mean="quadratic"), "'constant', 'zero', 'linear'", "quadratic"),
    "objective": (lambda: GP(RBF(), objective="elbo").fit([0, 1], [0, 1]), "objectives.Evidence", "elbo"),
    "rule": (lambda: GP(RBF(), rule="ep").fit([0, 1], [0, 1]), "rules.Variational", "ep"),
    "priors": (lambda: GP(RBF()).fit([0, 1], [0, 1], priors="strong"), "'weak' or None", "strong"),
    "max_iter": (lambda: GP(RBF()).fit([0, 1], [0, 1], max_iter=0), "max_iter", "positive"),
    "restarts": (lambda: GP(RBF()).fit([0, 1], [0, 1], restarts=-1), "restarts", ">= 0"),
    "of": (lambda: GP(RBF()).condition([0, 1], [0, 1]).predict([0], of="z"), "'y' .targets. or 'f'", "z"),
    "explain": (lambda: gpx.explain(3), "kernel or an expression", "int"),
    "level": (lambda: GP(RBF()).condition([0, 1], [0, 1]).predict([0]).interval(95), "95", "0.95"),
    "data set": (lambda: gpx.datasets.load("no such data"), "no such data"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_names(case):
    call, *fragments = UNKNOWN[case]
    fails(call, *fragments)


def test_known_noise_is_checked():
    fails(lambda: Gaussian(-0.1), "noise must be positive and finite", "-0.1")
    fails(lambda: Gaussian([0.1, 0.0, np.inf]), "positive and finite", r"row\(s\) 1, 2")
    fails(lambda: Gaussian("much"), "noise")
    fails(
        lambda: GP(RBF(), Gaussian([0.1, 0.2, 0.3])).fit([0, 1], [0, 1]), r"\[3\]", r"\[2, 1\]", "one variance per row"
    )
    gp = GP(RBF(), Gaussian([0.1, 0.2])).condition([0, 1], [0, 1])
    fails(lambda: gp.predict([0.5]), r"predict\(X, noise=variances\)", "of='f'")
    fails(lambda: gp.predict([0.5, 0.6], noise=[0.1, 0.1, 0.1]), r"\[3\]", r"\[2\]", "one variance per row")
    fails(lambda: gp.predict([0.5], noise=-0.1), ">= 0")
    fails(lambda: gp.predict([0.5], noise=[np.nan]), ">= 0")
    assert gp.predict([0.5], of="f").mean.shape == (1,)


def test_before_any_data():
    gp = GP(RBF())
    for call in (
        lambda: gp.predict([0]), lambda: gp.sample([0], 1), lambda: gp.paths(1), gp.loo, gp.check, gp.log_evidence,
        gp.parameters, gp.summary, lambda: gp.update([0], [0]), lambda: gp.save("never.gpx"),
    ):  # fmt: skip
        fails(call, r"fit\(X, y\) or condition\(X, y\) first")
    assert repr(gp) == "GP(RBF(lengthscale=1, outputscale=1))"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_nothing_asks_for_it():
    GP(RBF()).fit([0.0, 1.0, 2.0], [0.0, 1.0, 0.5]).predict([0.5])
    assert not torch.cuda.is_initialized()
