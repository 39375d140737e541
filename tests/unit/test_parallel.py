"""Several processes that share the rows: they do what one does with all of them. How to: docs/how-to/scale-out.md."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gpx
from gpx import GP, FitWarning, InputError, StructureError, TeamError, engines, kernels, likelihoods, objectives, rules
from gpx.assemble import assemble, start_from_data
from gpx.inference.coordinates import Coordinates, trainable_modules
from gpx.inference.fit import _thinned
from gpx.inputs import as_data
from gpx.parallel import ALONE, Processes, join
from gpx.shards import shared
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets
from gpx.testing.processes import in_processes

ROWS = 60


def data(outputs=1, rows=ROWS):
    x = points(rows, 2)
    f = torch.stack([targets(x, seed=s) for s in range(outputs)], 1)
    return x, f


def own(*parts):
    """The rows of this process."""
    return tuple(part[join().rows(len(part))] for part in parts)


# ------------------------------------------------------------------------------------------------ at the same hyperparameters


CASES = {
    "Gaussian": (likelihoods.Gaussian, lambda f: f, objectives.Evidence(), "auto"),
    "Gaussian-loo": (likelihoods.Gaussian, lambda f: f, objectives.LeaveOneOut(), "auto"),
    "Bernoulli": (likelihoods.Bernoulli, lambda f: (f > 0.3).double(), objectives.ELBO(), "auto"),
    "Bernoulli-ep": (likelihoods.Bernoulli, lambda f: (f > 0.3).double(), objectives.EPEvidence(), "auto"),
    "Bernoulli-power": (likelihoods.Bernoulli, lambda f: (f > 0.3).double(), objectives.EPEvidence(), rules.ExpectationPropagation(0.5)),
    "Bernoulli-laplace": (likelihoods.Bernoulli, lambda f: (f > 0.3).double(), objectives.Evidence(), rules.Laplace()),
    "StudentT": (likelihoods.StudentT, lambda f: f, objectives.ELBO(), "auto"),
    "StudentT-kappa": (likelihoods.StudentT, lambda f: f, objectives.DataEmphasisedELBO(2.0), "auto"),
    "Heteroscedastic": (likelihoods.Heteroscedastic, lambda f: f, objectives.ELBO(), "auto"),
}  # fmt: skip
ENGINES = {
    "sparse": engines.SparseVariational(7),
    "coreset": engines.Coreset(7),
    "features": engines.Features(14),
    "chosen": engines.SparseVariational(7, select="kmeans", refine=False),
}


def value_and_gradient(case, engine, outputs):
    """The objective and its gradient in everything that is learned, and predictions; with cells missing in one process only."""
    likelihood, outcome, objective, rule = CASES[case]
    x, f = data(outputs)
    y = outcome(f)
    y[3, 0] = y[ROWS - 2 :] = math.nan
    x, y = own(x, y)
    gp = GP(
        kernels.RBF([0.8, 1.2], 1.3, ard=True),
        likelihood(),
        engine=ENGINES[engine],
        rule=rule,
        objective=objective,
        mean="linear",
    )
    problem, objective, _ = assemble(gp, shared(lambda: as_data(x, y), join()))
    start_from_data(problem, "weak")
    problem = replace(problem.anew(), plan=problem.engine.plan(problem.prior, problem.data))
    hyper = Coordinates(trainable_modules(problem.prior.mean, problem.prior.kernels, problem.likelihood))
    whole = hyper.with_tensors(problem.engine.parameters(problem.prior, problem.plan), problem.data.spread)
    z = whole.read()
    value = objective(problem)
    grads = torch.autograd.grad(value, whole.raws, allow_unused=True)
    gradient = problem.data.team.mean(whole.gradient(z, grads))
    return float(value.detach()), gradient, z


@pytest.mark.parametrize(
    ("case", "engine", "outputs", "count"),
    [
        ("Gaussian", "features", 2, 2), ("Bernoulli-ep", "features", 1, 2), ("Heteroscedastic", "features", 1, 2),
        ("Gaussian", "sparse", 2, 2), ("Gaussian-loo", "coreset", 2, 2), ("Bernoulli", "coreset", 1, 2),
        ("Bernoulli-ep", "sparse", 1, 2), ("Heteroscedastic", "sparse", 1, 2), ("Gaussian", "chosen", 1, 2),
        *(
            pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.ci])
            for values in (
                ("Gaussian", "coreset", 1, 4), ("Gaussian-loo", "sparse", 1, 2), ("Bernoulli", "sparse", 1, 4),
                ("Bernoulli-power", "sparse", 1, 2), ("Bernoulli-laplace", "sparse", 1, 2), ("StudentT", "sparse", 1, 2),
                ("StudentT-kappa", "coreset", 1, 2),
            )
        ),
    ],
)  # fmt: skip
def test_objectives_and_gradients_are_those_of_one_process(case, engine, outputs, count):
    value, gradient, z = value_and_gradient(case, engine, outputs)
    stationary = case not in ("Bernoulli-ep", "StudentT-kappa", "Bernoulli-laplace", "Heteroscedastic")
    found = in_processes(count, value_and_gradient, case, engine, outputs)
    for theirs, slope, start in found:
        close(start, z, "starts", rtol=1e-12, atol=1e-12)
        close(theirs, value, "value", rtol=1e-10 if stationary else 1e-8)
        close(slope, gradient, "gradient", rtol=1e-6, atol=1e-7 * float(np.abs(gradient).max()))
    assert all(theirs == found[0][0] and (slope == found[0][1]).all() for theirs, slope, _ in found), "the same bits"


# ------------------------------------------------------------------------------------------------ fits


def fitted(case, refine, **options):
    likelihood, outcome, objective, rule = CASES[case]
    x, f = data(rows=120)
    x, y = own(x, outcome(f[:, 0]))
    gp = GP(
        kernels.RBF(), likelihood(), engine=engines.SparseVariational(8, refine=refine), objective=objective, rule=rule
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        gp.fit(x, y, **options)
    modules = (gp.kernel_, gp.likelihood_, gp.mean_)
    values = torch.cat([p.detach().reshape(-1) for module in modules for p in module.parameters()])
    return gp.result_, values, gp.predict(points(5, 2, seed=9)).mean, gp.log_evidence()


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["Gaussian", pytest.param("Bernoulli", marks=pytest.mark.slow)])
def test_a_fit_ends_where_that_of_one_process_does(case, count):
    result, values, predicted, bound = fitted(case, refine=False)
    found = in_processes(count, fitted, case, False)
    for theirs, there, mean, evidence in found:
        close(theirs.objective, result.objective, "bound", rtol=1e-6)
        close(evidence, theirs.objective, "log_evidence", rtol=1e-9)
        close(there, values, "hyperparameters", rtol=1e-3, atol=1e-3)
        close(mean, predicted, "predictions", rtol=1e-4, atol=1e-5)
    assert all(torch.equal(there, found[0][1]) and torch.equal(mean, found[0][2]) for _, there, mean, _ in found)


def test_inducing_inputs_that_move_move_alike():
    result, *_ = fitted("Gaussian", refine=True)
    first, second = in_processes(2, fitted, "Gaussian", True)
    assert torch.equal(first[1], second[1]) and torch.equal(first[2], second[2])
    close(first[0].objective, result.objective, "bound: the search stops at 1e-6 of what was gained", atol=0.05)


def test_what_a_process_decides_alone_is_decided_by_one_for_all():
    """Random starts of no seed, and the end of the time."""
    first, second = in_processes(
        2,
        fitted,
        "Gaussian",
        False,
    ).copy()
    assert torch.equal(first[1], second[1])
    starts = in_processes(2, unseeded)
    assert starts[0] == starts[1] and len(set(starts[0])) > 1
    short = in_processes(2, hurried)
    assert short[0] == short[1] == ("max_seconds is up", short[0][1])


def unseeded():
    return fitted("Gaussian", False, restarts=2, seed=None, max_iter=3)[0].objectives


def hurried():
    result = fitted("Gaussian", False, max_seconds=0.2 if join().rank else 1e3, restarts=500)[0]
    return result.reason, result.objective


# ------------------------------------------------------------------------------------------------ rows


def rows_of_rounds(count):
    """The numbers of the rows of every round of a fit, which are the first column."""
    x = torch.stack([torch.arange(count, dtype=torch.float64), points(count, 1)[:, 0]], 1)
    x, y = own(x, x[:, 1].sin())
    problem, _, _ = assemble(
        GP(kernels.RBF(), engine=engines.SparseVariational(5)), shared(lambda: as_data(x, y), join())
    )
    rounds = [500, *problem.engine.rounds(problem.data.count)]
    return rounds, [_thinned(problem, rows).data.x[:, 0].tolist() for rows in rounds]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_row_is_lost_or_used_twice(count):
    found = in_processes(count, rows_of_rounds, 7001)
    for number, rows in enumerate(found[0][0]):
        used = [row for _, rounds in found for row in rounds[number]]
        assert len(used) == len(set(used)) == rows
    assert sorted(used) == list(range(7001))
    alone = rows_of_rounds(7001)[1]
    assert alone[0] == [row for _, rounds in found for row in rounds[0]], "as one process draws them"


@pytest.mark.parametrize(("count", "size"), [(10, 3), (3, 4), (0, 2), (8, 8)])
def test_shares_of_rows(count, size):
    covered = [row for rank in range(size) for row in range(count)[Processes(rank, size).rows(count)]]
    assert covered == list(range(count))


def uneven():
    """Process 1 has three rows, none with a target."""
    x, f = data()
    y = f[:, 0].clone()
    y[-3:] = math.nan
    parts = ALONE.rows(ROWS) if join().size == 1 else (slice(0, -3), slice(-3, None))[join().rank]
    gp = GP(kernels.RBF(), engine=engines.SparseVariational(5, refine=False)).fit(x[parts], y[parts])
    return gp.result_.objective, float(gp.loo().log_density.nansum())


def test_shards_may_be_of_any_size():
    objective, loo = uneven()
    found = in_processes(2, uneven)
    for theirs, _ in found:
        close(theirs, objective, "objective", rtol=1e-8)
    close(sum(part for _, part in found), loo, "leave-one-out densities of own rows", rtol=1e-6)


# ------------------------------------------------------------------------------------------------ models


def updated_and_saved(folder):
    x, f = data(rows=80)
    x, y = own(x, f[:, 0])
    gp = GP(kernels.RBF([0.8, 1.2], 1.3, ard=True), engine=engines.SparseVariational(6, refine=False))
    gp.condition(x[:20], y[:20]).update(x[20:], y[20:])
    gp.save(f"{folder}/model.gpx")
    return (
        gp.predict(points(5, 2, seed=9)).mean,
        gp.log_evidence(),
        gp.summary().splitlines()[0],
        gp.parameters().__str__(),
    )


def test_update_and_save_take_the_rows_of_all(tmp_path):
    found = in_processes(2, updated_and_saved, str(tmp_path))
    gp = gpx.load(tmp_path / "model.gpx")
    for mean, evidence, line, table in found:
        close(gp.predict(points(5, 2, seed=9)).mean, mean, "predictions of the saved model", rtol=1e-8)
        close(gp.log_evidence(), evidence, "evidence", rtol=1e-8)
        assert line == "GP on 80 points, 2 input column(s)" and table == found[0][3]
    assert len(gp._solved.data.x) == 80


def predicts_alone():
    """Process 0 predicts when the others are gone, and then wants to see the rows again."""
    x, f = data()
    x, y = own(x, (f[:, 0] > 0.3).double())
    gp = GP(kernels.RBF(), likelihoods.Bernoulli(), engine=engines.SparseVariational(5)).condition(x, y)
    if join().rank:
        os._exit(0)
    time.sleep(0.5)
    mean = gp.predict(points(5, 2, seed=9)).mean
    try:
        gp.parameters()
        gp.condition(x, y)
    except TeamError as error:
        return mean, str(error)


def test_one_process_predicts_alone_and_learns_that_it_is_alone():
    (mean, message), _ = in_processes(2, predicts_alone)
    assert bool(mean.isfinite().all()) and "made by every process" in message and "checkpoint=path" in message


# ------------------------------------------------------------------------------------------------ errors


def refused(kind):
    rank = join().rank
    x, f = data()
    x, y = own(x, f[:, 0])
    engine, likelihood, objective = engines.SparseVariational(5), None, "auto"
    if kind == "columns":
        x = torch.cat([x, x], 1) if rank else x
    elif kind == "names":
        import pandas as pd

        x = pd.DataFrame(x.numpy(), columns=["b", "a"] if rank else ["a", "b"])
    elif kind == "precision":
        x = x.float() if rank else x
    elif kind == "outputs":
        y = torch.stack([y, y], 1) if rank else y
    elif kind == "no rows":
        x, y = (x[:0], y[:0]) if rank else (x, y)
    elif kind == "same rows":
        x, y = x[:10].clone(), y[:10].clone()
        x, y = data()[0][:10], data()[1][:10, 0]
    elif kind == "NaN":
        x = x.clone()
        x[2, 1] = math.nan if rank else 0.0
    elif kind == "targets":
        y, likelihood = y * 0.0 + rank + 1.0, likelihoods.Beta()
    elif kind == "Exact":
        engine = engines.Exact()
    elif kind == "Whittle":
        objective = objectives.Whittle()
    elif kind == "unobserved":
        y = y * math.nan
    GP(kernels.RBF(), likelihood, engine=engine, objective=objective).fit(x, y)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("columns", InputError, "different input columns: 2 without names in process 0, 4 without names in process 1"),
        (
            "names",
            InputError,
            "different input columns: a, b in process 0, b, a in process 1; give all of them the same",
        ),
        ("precision", InputError, "different numbers: float64 on cpu in process 0, float32 on cpu in process 1"),
        ("outputs", InputError, "different outputs: one in process 0, 2 in columns in process 1"),
        ("no rows", InputError, "Process 1 of 2 has no rows; use fewer processes"),
        (
            "same rows",
            InputError,
            r"Processes 0 and 1 have the same 10 row.*X\[part\], y\[part\] with part = gpx.parallel",
        ),
        ("NaN", InputError, r"Process 1 of 2: X has NaN or infinite values in row\(s\) 2, column\(s\) 1"),
        ("targets", InputError, r"Process 0 of 2: Beta needs targets that are"),
        (
            "Exact",
            StructureError,
            r"Exact needs all rows in one process, here are 2: use engines.SparseVariational\(M\).*ALONE",
        ),
        ("Whittle", StructureError, "Whittle needs all rows in one process, here are 2: use objective='auto'"),
        ("unobserved", InputError, "y has no observed target"),
    ],
)
def test_what_is_refused_is_refused_by_all(kind, error, message):
    for found in in_processes(2, refused, kind):
        assert type(found) is error
        with pytest.raises(error, match=message):
            raise found


def alone_among_others():
    x, f = data()
    return GP(kernels.RBF()).fit(x, f[:, 0], team=ALONE).result_.objective


def test_every_process_may_fit_a_model_of_its_own():
    expected = alone_among_others()
    assert in_processes(2, alone_among_others) == [expected, expected]


def chosen():
    x, y = own(*data())
    return GP(kernels.RBF()).condition(x, y).summary()


def test_the_engine_that_is_chosen():
    for text in in_processes(2, chosen):
        assert "auto: several processes share the rows" in text and "(N = 60)" in text


def test_there_is_no_team_without_torchrun(monkeypatch):
    assert join() is ALONE
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert join() is ALONE, "one process needs no others"


# ------------------------------------------------------------------------------------------------ torchrun


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "scale-out.md"


def torchrun(folder, count):
    """The script of the page on 20,000 rows."""
    script = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "train.py").write_text(script[1])
    x = points(20_000, 3)
    np.save(folder / "X.npy", x.numpy())
    np.save(folder / "y.npy", targets(x).numpy())
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--max-restarts=3", "train.py"]
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", *launch], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def changed(path, since, process):
    """When a file is written anew."""
    while not path.exists() or path.stat().st_mtime_ns <= since:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    return path.stat().st_mtime_ns


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_a_run_whose_worker_is_killed_ends_by_itself(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = torchrun(tmp_path / "one", 1)
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, output
    run = torchrun(tmp_path / "two", 2)
    since = 0
    for _ in range(3):
        since = changed(tmp_path / "two" / "fit.ckpt", since, run)
    workers = children(run.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert "converged" in output and "exitcode: -9" in output
    bounds = [gpx.load(tmp_path / name / "model.gpx").result_.objective for name in ("one", "two")]
    close(bounds[1], bounds[0], "bound", rtol=1e-3)
