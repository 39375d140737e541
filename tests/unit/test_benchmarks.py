"""The benchmark harness, with a task that is over in no time, and the arithmetic of its report."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import registry, report, runner
from benchmarks.__main__ import main
from benchmarks.measure import timed

ROOT = Path(__file__).resolve().parents[2]

FAKE = """
import os
from benchmarks.registry import Metric, Task

def slow(setting):
    return {"time": 6.0 + setting.seed, "score": 2.0, "threads": float(os.environ["OMP_NUM_THREADS"])}

def broken(setting):
    raise ArithmeticError("no luck")

TASK = Task(
    "fake", "For tests.", (Metric("time", "s"), Metric("score", "nats", "difference"), Metric("threads")),
    {"gpx": lambda setting: {"time": 2.0, "score": -1.0}, "slow": slow, "broken": broken},
)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The name of a module with a task, importable here and in the workers."""
    package = tmp_path / "fake_tasks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "quick.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield "fake_tasks.quick"
    for name in ("fake_tasks", "fake_tasks.quick"):
        sys.modules.pop(name, None)


def test_models_run_in_turn_with_equal_threads(fake):
    records = list(runner.run(fake, ["gpx", "slow"], repeats=2, quick=True, threads=1))
    assert [(r["model"], r["repeat"], r["seed"]) for r in records] == [
        ("gpx", 0, 0), ("slow", 0, 0), ("gpx", 1, 1), ("slow", 1, 1),
    ]  # fmt: skip
    assert [r["metrics"]["time"] for r in records] == [2.0, 6.0, 2.0, 7.0]
    assert records[1]["metrics"]["threads"] == records[1]["machine"]["threads"] == 1
    for record in records:
        assert record["metrics"]["peak memory"] > 1
        assert {"python", "torch", "gpytorch", "sklearn", "gpx"} <= set(record["versions"])
        assert record["machine"]["cpu"]
        assert record["quick"] is True
        assert record["load"] >= 0


def test_the_command_writes_table_and_lines(fake, tmp_path, capsys):
    arguments = [
        fake,
        "--models",
        "gpx,slow",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--output",
        str(tmp_path / "new" / "out"),
    ]
    assert main(arguments) == 0
    lines = (tmp_path / "new/out/fake.jsonl").read_text().splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["gpx", "slow"]
    text = (tmp_path / "new/out/fake.md").read_text()
    assert "| time [s]" in text
    assert "3 x" in text
    assert text in capsys.readouterr().out


def test_a_failing_model_is_reported_and_the_others_are_kept(fake, tmp_path, capsys):
    arguments = [fake, "--models", "broken,gpx", "--quick", "--repeats", "1", "--output", str(tmp_path)]
    assert main(arguments) == 1
    text = (tmp_path / "fake-quick.md").read_text()
    assert "broken, repeat 0: `ArithmeticError: no luck`" in text
    assert "Quick version" in text
    assert "| gpx " in text
    capsys.readouterr()


def test_unknown_tasks_and_models_are_answered_with_the_known(fake, capsys):
    assert main(["nope"]) == 2
    assert "exact, memory" in capsys.readouterr().err
    assert main(["no_such_package.module"]) == 2
    assert main([fake, "--models", "gpx,nope"]) == 2
    assert "'nope'" in capsys.readouterr().err


def test_without_a_name_the_tasks_are_listed(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "exact" in text
    assert "sklearn" in text


def test_reading_the_tasks_imports_nothing_heavy():
    """A process inherits the peak memory of its parent, so the one that starts the models must stay small."""
    code = "import sys, benchmarks.__main__ as m; m.main([]); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def records(times, scores, model):
    return [
        {"model": model, "repeat": i, "metrics": {"time": t, "score": s}}
        for i, (t, s) in enumerate(zip(times, scores, strict=True))
    ]


def test_the_summary_is_min_median_max_and_ratio_or_difference():
    metrics = (
        registry.Metric("time", "s"),
        registry.Metric("score", "nats", "difference"),
        registry.Metric("absent"),
    )
    task = registry.Task("t", "", metrics, {"gpx": dict, "peer": dict})
    runs = records([2.0, 1.0, 4.0], [-10.0, -10.0, -10.0], "gpx") + records([18.0, 17.0], [-12.0, -13.0], "peer")
    rows = {(row.metric.name, row.model): row for row in report.summarise(task, runs)}
    assert set(rows) == {("time", "gpx"), ("time", "peer"), ("score", "gpx"), ("score", "peer")}
    assert rows["time", "gpx"][2:] == (1.0, 2.0, 4.0, 1.0)
    assert rows["time", "peer"][2:] == (17.0, 17.5, 18.0, 8.75)
    assert rows["score", "peer"].against == -2.5


def test_without_a_reference_run_there_is_no_comparison():
    task = registry.Task("t", "", (registry.Metric("time"),), {"gpx": dict, "peer": dict})
    (row,) = report.summarise(task, records([3.0], [0.0], "peer"))
    assert math.isnan(row.against)
    zero = records([0.0], [0.0], "gpx") + records([3.0], [0.0], "peer")
    assert math.isnan(report.summarise(task, zero)[1].against)


def test_measures():
    value, seconds = timed(lambda: sum(range(1000)))
    assert value == 499500
    assert 0 <= seconds < 1
    # In a process of its own, as models run: here an earlier peak would hide the block.
    script = "from benchmarks.measure import extra_memory; print(extra_memory(lambda: bytearray(b'1' * (1 << 28)))[1])"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 1 << 27 < int(run.stdout) < 1 << 31


@pytest.mark.data
def test_the_exact_task_is_the_stated_problem():
    from benchmarks.tasks.exact import problem

    full, quick = problem(quick=False), problem(quick=True)
    assert full.X.shape == (2000, 18)
    assert full.X_test.shape == (1000, 18)
    assert quick.y.shape == quick.y_test.shape == (300,)
    X = np.concatenate([full.X, full.X_test])
    y = np.concatenate([full.y, full.y_test])
    assert (abs(X.mean(0)) < 1e-7).all()
    assert abs(X.std(0) - 1).max() < 1e-9
    assert (y.mean(), y.std()) == pytest.approx((0.0, 1.0))


@pytest.mark.data
def test_the_folds_of_the_classification_task_are_the_stated_ones():
    from benchmarks.tasks import classification, classification_gpytorch, classification_sklearn

    sizes = {name: len(classification.rows(name)[1]) for name in classification.SETS}
    assert sizes == {
        "ionosphere": 351, "parkinsons": 195, "monks-2": 601, "sonar": 208, "breast_cancer": 569, "usps": 1540,
    }  # fmt: skip
    for name in classification.SETS:
        folds = list(classification.folds(name, seed=9))
        assert sum(len(fold.y_test) for fold in folds) == sizes[name]
        for fold in folds:
            assert {*fold.y, *fold.y_test} == {0.0, 1.0}
            assert len(fold.y) + len(fold.y_test) == sizes[name]
            assert abs(fold.X.mean(0)).max() < 1e-9
            assert np.isclose(fold.X.std(0), 1, atol=1e-9)[np.ptp(fold.X, axis=0) > 0].all()
        (quick,) = classification.folds(name, seed=0, quick=True)
        assert {*quick.y} == {0.0, 1.0}
    for task in (classification_gpytorch.TASK, classification_sklearn.TASK):
        assert task.reference in task.models


@pytest.mark.data
def test_the_series_are_split_as_stated():
    from benchmarks.tasks.series import SERIES, problem

    for name in SERIES:
        inside, ahead = problem(name, "interpolation"), problem(name, "extrapolation")
        total = len(inside.y) + len(inside.y_test)
        assert total == len(ahead.y) + len(ahead.y_test)
        assert abs(len(inside.y) - len(inside.y_test)) <= 1
        assert len(ahead.y_test) == pytest.approx(0.2 * total, abs=1)
        assert ahead.t.max() <= ahead.t_test.min()
        assert inside.t.min() < inside.t_test.max() and inside.t_test.min() < inside.t.max()


@pytest.mark.data
def test_peers_of_the_series_predict_a_line_with_a_season():
    from benchmarks.tasks import time_series_peers as peers
    from benchmarks.tasks.series import Problem

    t = np.arange(120) / 12
    y = 3 * t + np.sin(2 * np.pi * t) + 0.05 * np.random.default_rng(0).standard_normal(120)
    half = np.arange(120) % 2 == 0
    inside = Problem("airline", "interpolation", t[half], y[half], t[~half], y[~half])
    ahead = Problem("airline", "extrapolation", t[:96], y[:96], t[96:], y[96:])
    for task, model in [(inside, peers.simple), (ahead, peers.simple), (ahead, peers.unobserved_components)]:
        mean, variance = model(task)
        assert np.sqrt(np.mean((mean - task.y_test) ** 2)) < 0.2
        assert (np.abs(mean - task.y_test) < 4 * np.sqrt(variance)).mean() > 0.9


def test_the_report_on_the_series_counts_where_gpx_is_best():
    from benchmarks.tasks.time_series import closing

    names = [f"{kind}, airline: NLPD" for kind in ("interpolation", "extrapolation")]
    runs = [
        {"model": model, "metrics": dict(zip(names, values, strict=True))}
        for model, values in {"gpx": (1.04, 3.0), "gpytorch": (1.0, 2.0)}.items()
    ]
    text = closing(runs)
    assert "on 1 of 2 problems" in text
    assert "| interpolation | airline | 1.040 | 1.000    |" in text
