"""Inputs that stay in files: the same numbers as in memory, and errors that name files, columns and rows."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from gpx import GP, kernels, stored
from gpx.engines import SparseVariational
from gpx.errors import InputError
from gpx.inputs import as_data, as_points
from gpx.means import LinearMean
from gpx.testing.assertions import close

N = 50
X = np.random.default_rng(0).standard_normal((N, 3))
Y = X[:, 0] + 0.1 * np.random.default_rng(1).standard_normal(N)
FRAME = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], "y": Y})


class Pairs(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.as_tensor(X[i]).float(), Y[i]


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(stored, "ROWS", 7)


def mapped(tmp_path, array, name="X.npy"):
    np.save(tmp_path / name, array)
    return np.load(tmp_path / name, mmap_mode="r")


def parquet(tmp_path, frame=FRAME, name="data.parquet"):
    frame.to_parquet(tmp_path / name, row_group_size=11)
    return tmp_path / name


def same(data, x=X, y=Y):
    close(data.x, x, "inputs", rtol=0)
    close(data.y[:, 0], y, "targets", rtol=0)
    plain = as_data(np.array(x), y)
    assert data.variance == plain.variance and torch.equal(data.spread, plain.spread)


def test_maps_are_used_where_they_are(tmp_path):
    array = mapped(tmp_path, X)
    data = as_data(array, Y)
    same(data)
    assert data.x.data_ptr() == array.ctypes.data
    part = as_data(array[5:, 1:], Y[5:])
    same(part, X[5:, 1:], Y[5:])
    assert part.x.data_ptr() == array[5:, 1:].ctypes.data
    one = as_points(mapped(tmp_path, X[:, 0], "one.npy"))
    assert one.x.shape == (N, 1)


@pytest.mark.parametrize("dtype", ["float32", "int16", ">f8"])
def test_other_numbers_are_converted_in_a_temporary_file(tmp_path, dtype):
    array = (10 * X).astype(dtype)
    same(as_data(mapped(tmp_path, array), Y), array.astype(float))


def test_reversed_maps_are_copied(tmp_path):
    same(as_data(mapped(tmp_path, X)[::-1], Y[::-1]), X[::-1], Y[::-1])


def test_targets_may_be_mapped(tmp_path):
    same(as_data(mapped(tmp_path, X), mapped(tmp_path, Y, "y.npy")))


def test_temporary_files_go_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x = stored.spooled(iter([torch.ones(3, 2), torch.zeros(1, 2)]))
    assert x.tolist() == [[1, 1]] * 3 + [[0, 0]]
    assert not list(tmp_path.iterdir())


def test_parquet_by_path_folder_list_and_dataset(tmp_path):
    import pyarrow.dataset

    path = parquet(tmp_path)
    for source in (path, str(path), pyarrow.dataset.dataset(path)):
        data = as_data(source, "y")
        same(data)
        assert data.columns == ("a", "b", "c") and data.flat
    (tmp_path / "shards").mkdir()
    shards = [
        parquet(tmp_path / "shards", FRAME[:20], "0.parquet"),
        parquet(tmp_path / "shards", FRAME[20:], "1.parquet"),
    ]
    same(as_data(tmp_path / "shards", "y"))
    same(as_data(shards, "y"))
    same(as_data(parquet(tmp_path, FRAME.drop(columns="y"), "x.parquet"), Y))
    two = as_data(path, ["y", "c"])
    assert two.columns == ("a", "b") and two.y.shape == (N, 2)


def test_parquet_with_dates_and_missing_targets(tmp_path):
    frame = pandas.DataFrame({"day": pandas.date_range("2020-01-01", periods=N), "y": [None, *Y[1:]]})
    data = as_data(parquet(tmp_path, frame), "y")
    assert data.x[1, 0] - data.x[0, 0] == 1
    assert math.isnan(data.y[0, 0]) and torch.equal(data.y[1:, 0], torch.as_tensor(Y[1:]))


def test_torch_datasets():
    state = torch.random.get_rng_state()
    same(as_data(Pairs(), None), X.astype(np.float32).astype(float))
    same(as_data(Stream(), None))
    same(as_data(TensorDataset(torch.as_tensor(X), torch.as_tensor(Y)), None))
    same(as_data(TensorDataset(torch.as_tensor(X)), Y))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fit_and_predict_from_files(tmp_path):
    path = parquet(tmp_path)
    plain = GP(kernels.RBF(ard=True), engine=SparseVariational(10)).fit(FRAME[["a", "b", "c"]], Y)
    gp = GP(kernels.RBF(ard=True), engine=SparseVariational(10)).fit(path, "y")
    close(gp.log_evidence(), plain.log_evidence(), "Parquet", rtol=1e-12)
    close(gp.predict(path).mean, plain.predict(FRAME[["a", "b", "c"]]).mean, "predictions", rtol=1e-12)
    swapped = parquet(tmp_path, FRAME[["c", "y", "b", "a"]], "swapped.parquet")
    close(gp.predict(swapped).mean, gp.predict(path).mean, "columns are found by name", rtol=1e-12)
    pairs = GP(kernels.RBF(ard=True), engine=SparseVariational(10)).fit(Stream())
    close(pairs.log_evidence(), plain.log_evidence(), "torch Dataset", rtol=1e-12)
    gp.update(path, "y")
    assert len(gp._fitted().data.x) == 2 * N


def test_means_in_blocks(monkeypatch):
    data, values = as_data(X, Y), []
    for rows in (7, N):
        monkeypatch.setattr(stored, "ROWS", rows)
        mean = LinearMean()
        mean.bind(data, 1)
        mean.init_from(data)
        values.append(mean(data.x).detach())
    close(values[0], values[1], "plane", rtol=1e-12)


def fails(call, *fragments):
    with pytest.raises(InputError) as error:
        call()
    for fragment in fragments:
        assert fragment in str(error.value), f"{fragment!r} is not in {error.value}"


def test_missing_columns_are_named(tmp_path):
    path = parquet(tmp_path)
    fails(lambda: as_data(path, "price"), "lacks the column(s) price", "a, b, c, y")
    gp = GP(kernels.RBF(), engine=SparseVariational(5)).condition(path, "y")
    fails(lambda: gp.predict(parquet(tmp_path, FRAME[["a", "y"]], "less.parquet")), "lacks the column(s) b, c")


def test_files_of_different_columns_are_named(tmp_path):
    parquet(tmp_path, FRAME[:20], "0.parquet")
    parquet(tmp_path, FRAME[20:].drop(columns="b"), "1.parquet")
    fails(lambda: as_data(tmp_path, "y"), "1.parquet", "lacks the column(s) b")


def test_bad_files(tmp_path):
    fails(lambda: as_data(tmp_path / "none.parquet", "y"), "none.parquet", "check the path")
    (tmp_path / "bad.parquet").write_text("no Parquet")
    fails(lambda: as_data(tmp_path / "bad.parquet", "y"), "bad.parquet", "Parquet")
    text = FRAME.assign(b="red")
    fails(lambda: as_data(parquet(tmp_path, text), "y"), "Column(s) b hold text")
    fails(lambda: as_data(parquet(tmp_path), None), "y is missing", "name of their column")
    fails(lambda: as_data(X, None), "y is missing")
    fails(lambda: as_data(parquet(tmp_path), Y[:3]), "50 rows and y has 3")


def test_values_that_cannot_be_used_are_named(tmp_path):
    array = X.copy()
    array[[9, 30], 1] = np.nan, np.inf
    fails(lambda: as_data(mapped(tmp_path, array), Y), "row(s) 9, 30", "column(s) 1")
    array[[9, 30], 1] = 1e300
    fails(lambda: as_data(mapped(tmp_path, array), Y), "1.0e+300", "rescale")
    assert as_data(mapped(tmp_path, X[:, :1] * 0), Y).spread == 1
    fails(lambda: as_data(mapped(tmp_path, np.zeros((2, 2, 2))), Y), "[2, 2, 2]")


def test_items_of_a_dataset_that_are_no_numbers():
    class Texts(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return "red"

    fails(lambda: as_data(Texts(), Y[:2]), "pairs (x, y)")


def test_nothing_is_warned_about(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_data(mapped(tmp_path, X), Y)
