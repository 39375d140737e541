"""Data sets: the bundled one anywhere, every entry where the data folder exists, and errors that advise."""

from __future__ import annotations

import dataclasses
import gzip
import os
import subprocess
import sys

import pytest
import torch

from gpx import datasets
from gpx.errors import InputError

ENTRIES = {entry.name: entry for entry in datasets.catalogue()}


def test_co2_is_the_measured_monthly_mean():
    data = datasets.load("co2")
    assert data.X.shape == (753, 1) and data.y.shape == (753,)
    assert data.X.dtype == data.y.dtype == torch.float64
    assert (data.X.diff(dim=0) > 0).all() and data.X[0] == 1958.2027 and data.X[-1] == 2021.0417
    assert data.y.min() > 300 and data.y.max() < 420
    # 1975-12 and 1984-04 are interpolated, not measured: the gap is two months long.
    assert int((data.X.diff(dim=0) > 0.12).sum()) == 2
    assert (data.columns, data.target, data.units["co2"]) == (("date",), "co2", "ppm")
    assert "NOAA" in data.source and "public domain" in data.source
    assert repr(data) == "Dataset('co2': N=753, D=1, target co2 [ppm])"


def test_bundled_sets_need_neither_folder_nor_pandas():
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from gpx import datasets\n"
        "print(*[tuple(datasets.load(e.name).X.shape) for e in datasets.catalogue() if e.bundled])"
    )
    environment = os.environ | {"GPX_DATA": "/no/such/folder"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "(753, 1) (442, 10)"


def test_names_are_the_table():
    assert datasets.names() == list(ENTRIES) and datasets.names()[0] == "co2"
    assert len(ENTRIES) == len(datasets.catalogue()), "a name is used twice"
    assert ENTRIES["co2"].available


def test_a_data_set_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        datasets.load("co2").name = "other"


def test_diabetes_is_in_natural_units():
    data = datasets.load("diabetes")
    assert data.columns[:2] == ("age", "sex") and data.target == "progression"
    assert data.X[:, 0].min() >= 18 and data.X[:, 0].max() < 100, "ages in years"


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if not entry.bundled])
def test_every_entry_loads(name):
    data = datasets.load(name)
    N, D = data.X.shape
    assert data.y.shape == (N,) and len(data.columns) == D
    assert data.X.isfinite().all() and data.y.isfinite().all()
    assert data.source and data.description and set(data.units) <= {*data.columns, data.target}
    if ENTRIES[name].path.startswith("classification"):
        assert data.y.unique().tolist() == [0, 1]
    if data.folds is not None:
        assert data.folds.dtype == torch.bool and len(data.folds) == N
        assert (data.folds.sum(1) <= 1).all(), "a row is in two test sets"
        X, y, X_test, y_test = data.split(data.folds.shape[1] - 1)
        assert len(X) == len(y) and len(X_test) == len(y_test) and len(X) + len(X_test) == N


@pytest.mark.data
def test_known_sizes_and_values():
    sizes = {
        "elevators": (16599, 18, 10),
        "yacht": (308, 6, 10),
        "motorcycle": (133, 1, 10),
        "airline": (144, 1, 1),
    }
    for name, size in sizes.items():
        data = datasets.load(name)
        assert (*data.X.shape, data.folds.shape[1]) == size
    assert datasets.load("yacht").folds.sum(1).eq(1).all()
    assert datasets.load("coal").y.sum() == len(datasets.load("coal_events").y) == 191
    assert datasets.load("co2_weekly").y.min() > 300
    assert datasets.load("aircraft").X[0].item() == pytest.approx(1919 + 201 / 365)
    assert datasets.load("airline").X.diff(dim=0).gt(0).all()


def test_an_unknown_name_is_answered_with_the_names():
    for name in ("nope", None, 3):
        with pytest.raises(InputError, match=r"unknown data set .*co2, diabetes, yacht.*read_table"):
            datasets.load(name)


def test_a_missing_folder_is_answered_with_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("GPX_DATA", str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"absent.*Set the environment variable GPX_DATA.*co2"):
        datasets.load("yacht")
    monkeypatch.setenv("GPX_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"regression/yacht\.csv\.gz.*Set the environment variable GPX_DATA"):
        datasets.load("yacht")
    assert not ENTRIES["yacht"].available and ENTRIES["co2"].available


def test_without_any_folder_the_variable_is_named(monkeypatch):
    monkeypatch.setattr(datasets, "_root", lambda: None)
    with pytest.raises(InputError, match="GPX_DATA is not set"):
        datasets.folder()


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("GPX_DATA", str(tmp_path))
    (tmp_path / "regression").mkdir()
    (tmp_path / "regression/neal.txt").write_text("1,2\nx,y\n")
    (tmp_path / "regression/yacht.csv.gz").write_bytes(gzip.compress(b"1,2\n" * 500)[:30])
    for name in ("neal", "yacht"):
        with pytest.raises(InputError, match="cannot be read"):
            datasets.load(name)


def test_a_fold_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="stored folds: none"):
        datasets.load("co2").split(0)


# Tables of the user's own.


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas")


def test_csv_and_gzip_and_parquet_give_the_same_table(pandas, tmp_path):
    pytest.importorskip("pyarrow")
    text = "t,colour,y\n2020-01-01,red,1.5\n2020-01-02,blue,\n"
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    table = datasets.read_table(tmp_path / "a.csv")
    table.to_parquet(tmp_path / "a.parquet")
    assert pandas.api.types.is_datetime64_any_dtype(table["t"])
    assert table["colour"].tolist() == ["red", "blue"] and table["y"].isna().tolist() == [False, True]
    pandas.testing.assert_frame_equal(datasets.read_table(str(tmp_path / "a.csv.gz")), table)
    pandas.testing.assert_frame_equal(datasets.read_table(tmp_path / "a.parquet"), table)


BAD = {
    "empty.csv": b"",
    "header_only.csv": b"x,y\n",
    "ragged.csv": b"x,y\n1,2\n1,2,3,4\n",
    "wide.csv": b"x,y\n1,2,3\n4,5,6\n",
    "image.csv": b"\x89PNG\r\n\x1a\n\x00\x00\x00\xff\xfe",
    "nul.csv": b"\x00\x01\x02,\x00\n\x00\n",
    "cut.csv.gz": gzip.compress(b"x,y\n" + os.urandom(4000))[:200],
    "empty.parquet": b"",
    "garbage.parquet": b"x,y\n1,2\n",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_is_refused(pandas, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises(InputError, match=r"expected a (CSV|Parquet) file.*Check the file"):
        datasets.read_table(path)


@pytest.mark.parametrize("text", ["1.5,2,3\n4,5,6\n", "1,1,1\n2,2,2\n"])
def test_a_table_without_column_names_is_refused(pandas, tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match="Add a first row"):
        datasets.read_table(tmp_path / "a.csv")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(InputError, match="is not a file"):
            datasets.read_table(path)


def test_without_pandas_the_advice_is_to_install_it(monkeypatch, tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"gpx-torch\[data\]"):
        datasets.read_table(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "labelled"),
    [("cora", 2485, 5069, 2485), ("pubmed", 19717, 44324, 19717), ("pems_san_jose", 1016, 1172, 325)],
)
def test_graphs_come_with_labels_of_nodes(name, nodes, edges, labelled):
    if name not in [entry.name for entry in datasets.catalogue() if entry.available]:
        pytest.skip("needs the data folder")
    data = datasets.load(name)
    assert data.graph is not None
    assert (data.graph.num_nodes, len(data.graph.indices) // 2, len(data.y)) == (nodes, edges, labelled)
    assert data.X.shape == (labelled, 1) and 0 <= int(data.X.min()) <= int(data.X.max()) < nodes
    assert datasets.load("co2").graph is None
