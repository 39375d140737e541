"""The command line on good and odd tables: what is printed, what is written, and what is not."""

from __future__ import annotations

import gzip
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import gpx
from gpx import cli, tables
from gpx.cli import app

FAST = ("--max-iter", "5")


def gpx_command(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"TERM": "dumb"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def fails(*arguments, code=2):
    """The message of a command that ends with an error."""
    *_, message = gpx_command(*arguments, code=code).stderr.splitlines()
    assert message.startswith("error: ")
    return message


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def wave(here):
    x = np.linspace(0, 10, 40)
    pd.DataFrame({"t": x, "y": np.sin(x)}).to_csv("wave.csv", index=False)
    return here


def _table(n=60):
    random = np.random.default_rng(0)
    size, hue = random.uniform(0, 1, n), random.choice(["red", "green", "blue"], n)
    y = size + (hue == "red") + 0.01 * random.standard_normal(n)
    return pd.DataFrame({"size": size, "hue": hue, "fresh": random.uniform(size=n) > 0.5, "y": y})


def _files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_series(wave):
    result = gpx_command("fit", "wave.csv", "--target", "y", "--kernel", "RBF")
    for text in (
        "the last 8 rows along t, from 8.2",
        "engine: Exact()",
        "std. error",
        "Evidence =",
        "NLPD",
        "all 40 rows",
    ):
        assert text in result.stdout
    assert _files(wave / "wave") == ["forecast.csv", "forecast.png", "model.gpx"] and _files(wave) == [
        "wave",
        "wave.csv",
    ]

    forecast = pd.read_csv("wave/forecast.csv")
    assert list(forecast) == ["t", "observed", "mean", "std", "lower", "upper", "held_out"]
    assert len(forecast) == 44 and forecast.held_out.tolist() == [0] * 32 + [1] * 8 + [0] * 4
    assert forecast.observed.isna().tolist() == [False] * 40 + [True] * 4
    np.testing.assert_allclose(forecast["mean"][32:40], forecast.observed[32:40], atol=0.2)
    assert (np.diff(forecast.t) > 0).all()
    assert "8 rows held out" in result.stdout

    model = gpx.load("wave/model.gpx")
    assert len(model._fitted().data.x) == 40, "the held-out rows are part of the model that is saved"
    assert model.encoding.target == "y"
    np.testing.assert_allclose(model.predict(forecast.t[40:]).mean, forecast["mean"][40:])


def test_the_test_score_knows_nothing_of_what_is_held_out(wave):
    frame = pd.read_csv("wave.csv")
    frame.loc[32:, "y"] += 100.0
    frame.to_csv("shifted.csv", index=False)
    shifted, plain = (
        gpx_command("fit", f, "--target", "y", "--kernel", "RBF") and pd.read_csv(f"{tables.stem(f)}/forecast.csv")
        for f in ("shifted.csv", "wave.csv")
    )
    np.testing.assert_array_equal(shifted["mean"][:40], plain["mean"][:40])


def test_co2_is_the_default_data_set(here):
    result = gpx_command("fit", "--kernel", "RBF", "--test-share", "0.8", *FAST)
    assert "co2 [ppm]" in result.stdout and "warning: " in result.stderr
    assert _files(here / "co2") == ["forecast.csv", "forecast.png", "model.gpx"]


def test_bundled_data_need_no_pandas(here):
    assert find_spec("matplotlib")
    code = (
        "import sys\nfor name in ('pandas', 'pyarrow'): sys.modules[name] = None\n"
        "from gpx.cli import app\n"
        "app(['fit', 'co2', '--kernel', 'RBF', '--test-share', '0.8', '--max-iter', '2', '--output', 'out'])"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert _files(here / "out") == ["forecast.csv", "forecast.png", "model.gpx"]


def test_categories_round_trip_through_the_model_file(here):
    table = _table()
    table.to_csv("train.csv.gz", index=False)
    out = gpx_command("fit", "train.csv.gz", "--target", "y", "--output", "a/b").stdout
    assert "12 rows at random" in out and "hue: 3 categories" in out and "kernel.lengthscale[hue=red]" in out
    model = gpx.load("a/b/model.gpx")
    assert model.encoding.names == ("size", "hue=blue", "hue=green", "hue=red", "fresh")

    new = pd.DataFrame({"id": ["007", "008"], "hue": ["red", "blue"], "fresh": [True, True], "size": [0.5, 0.5]})
    new.to_csv("new.csv", index=False)
    assert "wrote new-predictions.csv: 2 rows" in gpx_command("predict", "a/b/model.gpx", "new.csv").stdout
    predicted = pd.read_csv("new-predictions.csv", dtype={"id": str})
    assert list(predicted) == ["id", "hue", "fresh", "size", "mean", "std", "lower", "upper"]
    assert predicted.id.tolist() == ["007", "008"], "cells are passed on as they came"
    assert predicted["mean"][0] - predicted["mean"][1] == pytest.approx(1.0, abs=0.1)

    new.hue = ["red", "pink"]
    new.to_csv("unseen.csv", index=False)
    message = fails("predict", "a/b/model.gpx", "unseen.csv")
    assert "pink" in message and "row(s) 2" in message and "blue, green, red" in message
    new.drop(columns="hue").to_csv("lacking.csv", index=False)
    assert "lacks the column(s) hue" in fails("predict", "a/b/model.gpx", "lacking.csv")
    assert not {"unseen-predictions.csv", "lacking-predictions.csv"} & set(_files(here))


def test_streaming_equals_predicting(wave, monkeypatch):
    gpx_command("fit", "wave.csv", "--target", "y", "--kernel", "RBF")
    model = gpx.load("wave/model.gpx")
    t = np.linspace(0, 12, 20_000)
    frame = pd.DataFrame({"mean": 1, "t": t})
    frame.to_csv("many.csv", index=False)
    frame.to_parquet("many.parquet")
    expected = model.predict(t)
    monkeypatch.setattr(cli, "ROWS", 3_000)
    for source in ("many.csv", "many.parquet"):
        gpx_command("predict", "wave/model.gpx", source, "--output", "out/p.csv")
        got = pd.read_csv("out/p.csv")
        assert list(got) == ["mean", "t", "predicted_mean", "std", "lower", "upper"]
        np.testing.assert_allclose(got.predicted_mean, expected.mean, rtol=1e-10)
        np.testing.assert_allclose(got["std"], expected.std, rtol=1e-8)
        np.testing.assert_allclose(got.upper, expected.interval(0.95)[1], rtol=1e-10)


def test_a_bad_row_far_down_leaves_no_file(wave, monkeypatch):
    gpx_command("fit", "wave.csv", "--target", "y", "--kernel", "RBF")
    (wave / "bad.csv").write_text("t\n" + "1.5\n" * 25 + "soon\n")
    monkeypatch.setattr(cli, "ROWS", 10)
    before = _files(wave)
    message = fails("predict", "wave/model.gpx", "bad.csv")
    assert "'t' is a number in the model, but holds 'soon' (row(s) 26)" in message
    (wave / "bad.csv").write_text("t\n" + "1.5\n" * 25 + "inf\n")
    assert "infinite in row(s) 26, column(s) t" in fails("predict", "wave/model.gpx", "bad.csv")
    assert _files(wave) == before


def test_a_model_saved_from_python(here):
    gpx.GP(gpx.kernels.RBF()).condition(np.arange(5.0), np.arange(5.0)).save("plain.gpx")
    (here / "new.csv").write_text("x\n1.0\n")
    gpx_command("predict", "plain.gpx", "new.csv")
    assert len(pd.read_csv("new-predictions.csv")) == 1
    (here / "wide.csv").write_text("x,z\n1.0,2.0\n")
    assert "1 unnamed input column(s), the file 2" in fails("predict", "plain.gpx", "wide.csv")
    (here / "none.csv").write_text("x\n")
    assert "no rows" in fails("predict", "plain.gpx", "none.csv")
    assert "no model file" in fails("predict", "absent.gpx", "new.csv")
    assert "not a file" in fails("predict", "plain.gpx", "absent.csv")
    (here / "binary.csv").write_bytes(bytes(range(256)))
    assert "cannot be read" in fails("predict", "plain.gpx", "binary.csv")


def test_dates(here):
    days = pd.date_range("2020-01-01", periods=30)
    pd.DataFrame({"day": days, "low": np.sin(np.arange(30) / 5)}).to_csv("daily.csv", index=False)
    out = gpx_command("fit", "daily.csv", "--target", "low", "--kernel", "RBF").stdout
    assert "from 2020-01-25 on" in out and "as days since 1970-01-01" in out
    assert pd.read_csv("daily/forecast.csv").day.tolist()[-4:] == [
        "2020-01-30",
        "2020-01-31",
        "2020-02-01",
        "2020-02-02",
    ]
    (here / "next.csv").write_text("day\n2020-02-01T12:00:00\n")
    gpx_command("predict", "daily/model.gpx", "next.csv")
    assert len(pd.read_csv("next-predictions.csv")) == 1


def test_missing_targets_are_missing_values(wave):
    frame = pd.read_csv("wave.csv")
    frame.loc[[0, 3, 39], "y"] = np.nan
    frame.to_csv("gappy.csv", index=False)
    out = gpx_command("fit", "gappy.csv", "--target", "y", "--kernel", "RBF").stdout
    assert "(3 missing)" in out and "the last 7 rows" in out
    forecast = pd.read_csv("gappy/forecast.csv")
    assert forecast.observed[:40].isna().sum() == 3 and forecast["mean"].notna().all()


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("t,y\n1,2\n,3\n4,5\n", ["--target", "y"], "missing in row(s) 2, column(s) t"),
        ("t,y\n1,2\n", ["--target", "z"], "no column 'z'; the table has t, y"),
        ("t,y\n1,2\n", [], "--target COLUMN; there are t, y"),
        ("t,y\n1,a\n2,b\n", ["--target", "y"], "'y' holds 'a'"),
        ("t,y\n1,\n2,\n", ["--target", "y"], "no observed target"),
        ("t,y\n", ["--target", "y"], "no rows"),
        ("", ["--target", "y"], "cannot be read"),
        ("1,2\n3,4\n", ["--target", "y"], "expected column names"),
        ("y\n1\n2\n", ["--target", "y"], "no input column"),
        ("t,y\n1,2\n", ["--target", "y", "--kernel", "Motern"], "Unknown kernel 'Motern'; known are"),
        ("t,y\n1,2\n", ["--target", "y", "--kernel", "__import__('os')"], "nown kernel"),
        ("t,y\n1,2\n", ["--target", "y", "--engine", "Warp"], "Unknown engine 'Warp'; known are Exact"),
        ("t,y\n1,2\n", ["--target", "y", "--likelihood", "Guess"], "Unknown likelihood 'Guess'; known are Bernoulli"),
        ("t,y\n1,2\n", ["--target", "y", "--mean", "wavy"], "mean must be"),
        ("t,y\n1,2\n", ["--target", "y", "--test-share", "1"], "--test-share must be"),
        ("t,y\n1,2\n", ["--target", "y", "--ignore", "t"], "no input column"),
        ("t,y\n1,2\n", ["--target", "y", "--output", "data.csv"], "is a file"),
        ("t,y\n1,2\n", ["--target", "y", "--output", "data.csv/out"], "is a file"),
        ("t,y\n1,inf\n2,3\n", ["--target", "y"], "'y' is infinite in row(s) 1"),
        ("t,y\n1,2\n2,3\n3,4\n4,5\ninf,3\n", ["--target", "y"], "infinite in row(s) 5, column(s) t"),
        ("t,y\n1,2\n2,3\n3,4\n4,5\nfive,3\n", ["--target", "y"], "'t' holds numbers, except for 'five' (row(s) 5)"),
        ("t,y\n1,2\n2,3\n3,4\n4,5\n5,six\n", ["--target", "y"], "'y' holds numbers, except for 'six' (row(s) 5)"),
    ],
)
def test_what_cannot_be_fitted_is_said_and_leaves_nothing(here, text, arguments, message):
    (here / "data.csv").write_text(text)
    assert message in fails("fit", "data.csv", *arguments)
    assert _files(here) == ["data.csv"]


def test_files_that_are_no_tables(here):
    (here / "noise.csv").write_bytes(np.random.default_rng(0).bytes(2000))
    (here / "cut.csv.gz").write_bytes(gzip.compress(b"t,y\n1,2\n" * 99)[:30])
    (here / "fake.parquet").write_text("t,y\n1,2\n")
    before = _files(here)
    for name in before:
        assert "cannot be read" in fails("fit", name, "--target", "y")
        assert _files(here) == before
    assert "neither a file nor a data set" in fails("fit", "c02")
    assert "is not a file" in fails("fit", "absent.csv", "--target", "y")


@pytest.mark.parametrize(
    "rows",
    [
        "1,2",
        "1,2\n2,3",
        "1,5\n2,5\n3,5\n4,5\n5,5\n6,5",
        "3,1\n3,2\n3,1\n3,2\n3,3\n3,2",
        "1,2\n1,2\n1,2\n2,3\n2,3\n2,3\n2,3",
    ],
    ids=["one row", "two rows", "constant target", "constant input", "duplicate rows"],
)
def test_odd_tables_are_fitted(here, rows):
    (here / "odd.csv").write_text(f"t,y\n{rows}\n")
    gpx_command("fit", "odd.csv", "--target", "y")
    assert _files(here / "odd") == ["forecast.csv", "forecast.png", "model.gpx"]
    assert np.isfinite(pd.read_csv("odd/forecast.csv")[["mean", "std"]]).all(axis=None)


def test_one_row_has_no_test(here):
    (here / "one.csv").write_text("t,y\n1,2\n")
    assert "so there is no test score" in gpx_command("fit", "one.csv", "--target", "y").stdout


@pytest.mark.parametrize(
    ("share", "numbers"), [("0.999", "40 of 40 rows with a target and leaves 0"), ("0.96", "leaves 2"), ("0.01", "holds out 0")]
)  # fmt: skip
def test_a_share_that_leaves_nothing_to_learn_or_to_test(wave, share, numbers):
    arguments = ("fit", "wave.csv", "--target", "y", "--kernel", "RBF", "--test-share", share, *FAST)
    if numbers == "leaves 2":
        assert "the last 38 rows" in gpx_command(*arguments).stdout
        return
    message = fails(*arguments)
    assert numbers in message and "both need at least 2" in message and "or 0 for no test" in message
    assert _files(wave) == ["wave.csv"]


def test_a_share_of_rows_that_stay_together(here):
    (here / "same.csv").write_text("t,y\n" + "1,2\n" * 9)
    assert "same input stay together" in fails("fit", "same.csv", "--target", "y", "--test-share", "0.3")


def test_sources_are_not_overwritten(wave):
    gpx_command("fit", "wave.csv", "--target", "y", "--kernel", "RBF", *FAST)
    (wave / "link.csv").symlink_to("wave.csv")
    before = {name: (wave / name).read_bytes() for name in ("wave.csv", "wave/model.gpx")}
    for output, what in (("wave.csv", "data"), ("wave/../link.csv", "data"), ("wave/model.gpx", "model")):
        message = fails("predict", "wave/model.gpx", "wave.csv", "--output", output)
        assert f"is the {what} file, which would be lost; choose another --output" in message
    (wave / "wave" / "forecast.csv").write_bytes(before["wave.csv"])
    assert "is the data file" in fails("fit", "wave/forecast.csv", "--target", "y", "--output", "wave")
    assert all((wave / name).read_bytes() == content for name, content in before.items())


def test_a_numerical_failure_has_its_own_exit_code(wave, monkeypatch):
    def fail(*_, **__):
        raise gpx.NumericalError("no luck")

    monkeypatch.setattr(gpx.GP, "fit", fail)
    assert "no luck" in fails("fit", "wave.csv", "--target", "y", code=1)
    assert _files(wave) == ["wave.csv"]


def test_an_error_while_writing_leaves_nothing(wave, monkeypatch):
    monkeypatch.setattr(cli, "_draw", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert "No space left" in fails("fit", "wave.csv", "--target", "y", "--kernel", "RBF", *FAST)
    assert _files(wave) == ["wave.csv"]


def test_without_matplotlib_there_is_no_picture(wave, monkeypatch):
    monkeypatch.setattr(cli.plot, "is_available", lambda: False)
    result = gpx_command("fit", "wave.csv", "--target", "y", "--kernel", "RBF", *FAST)
    assert "pip install" in result.stderr and _files(wave / "wave") == ["forecast.csv", "model.gpx"]


def test_explain_datasets_and_version(here):
    assert "engine Exact" in gpx_command("explain", "RBF * Periodic + Linear").stdout
    assert "Unknown kernel" in fails("explain", "Nothing")
    assert "auto: chosen by the data" in gpx_command("explain", "auto").stdout
    out = gpx_command("datasets").stdout
    assert "co2" in out and "diabetes" in out
    assert gpx_command("--version").stdout.strip() == f"gpx {gpx.__version__}"
    assert "fit" in gpx_command("--help").stdout


def test_rows_held_out_of_a_series_stay_together():
    x = np.array([[5.0], [1.0], [4.0], [4.0], [2.0], [3.0]])
    y = np.array([1.0, 1.0, 1.0, 1.0, 1.0, np.nan])
    assert tables.held_out(x, y, 0.4, True, 0).tolist() == [True, False, True, True, False, False]
    random = tables.held_out(x, y, 0.4, False, 0)
    assert random.sum() == 2 and not random[5]
    assert not tables.held_out(x, y, 0.0, True, 0).any()
    assert not tables.held_out(np.zeros((6, 1)), np.ones(6), 0.5, True, 0).any(), "one stamp cannot be split"
