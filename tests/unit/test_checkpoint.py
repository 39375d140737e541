"""Checkpoints: an interrupted fit goes on from where it was. How to: docs/how-to/scale-out.md."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

import gpx
from gpx import GP, FitWarning, InputError, checkpoint, engines, kernels, likelihoods
from gpx.files import read
from gpx.inference import fit as fitting
from gpx.inference.coordinates import Coordinates, trainable_modules
from gpx.inference.stage import Reached
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets

X, Y = points(60, 2), targets(points(60, 2))
SPARSE = engines.SparseVariational(6)


def model(engine="auto", **options):
    return GP(kernels.Matern(ard=True), engine=engine, **options)


class Interrupt:
    """Ctrl-C at the evaluation of a number of those with a gradient."""

    def __init__(self, monkeypatch, at):
        self.seen, self.losses, inner = 0, [], fitting._Search.evaluate

        def evaluate(search, problem, z):
            self.seen += 1
            if self.seen == at:
                raise KeyboardInterrupt
            loss, gradient = inner(search, problem, z)
            self.losses.append((loss, len(problem.data.x)))
            return loss, gradient

        monkeypatch.setattr(fitting._Search, "evaluate", evaluate)


@pytest.mark.parametrize("engine", ["auto", SPARSE, engines.Coreset(6)], ids=["exact", "sparse", "coreset"])
def test_an_interrupted_fit_goes_on(engine, tmp_path, monkeypatch):
    """It begins at the best point so far, and ends where the whole fit does."""
    path = tmp_path / "fit.ckpt"
    whole = model(engine).fit(X, Y)
    with monkeypatch.context() as patch:
        first = Interrupt(patch, 12)
        with pytest.raises(KeyboardInterrupt):
            model(engine).fit(X, Y, checkpoint=path)
    assert os.listdir(tmp_path) == ["fit.ckpt"], "no temporary file is left"
    second = Interrupt(monkeypatch, math.inf)
    resumed = model(engine).fit(X, Y, resume=path)
    assert second.losses[0][0] <= min(loss for loss, _ in first.losses[:-2]) + 1e-8, (
        "the last whole iteration, or later"
    )
    assert resumed.result_.converged
    close(resumed.result_.objective, whole.result_.objective, "objective", atol=0.02 if engine != "auto" else 1e-4)


def test_checkpoints_do_not_change_a_fit(tmp_path):
    for engine in ("auto", SPARSE):
        without, kept = model(engine).fit(X, Y), model(engine).fit(X, Y, checkpoint=tmp_path / "fit.ckpt")
        assert kept.result_.objectives == without.result_.objectives
        assert torch.equal(kept.predict(X).mean, without.predict(X).mean)


def test_the_last_checkpoint_is_the_end(tmp_path):
    path = tmp_path / "fit.ckpt"
    for engine in ("auto", SPARSE):
        gp = model(engine).fit(X, Y, checkpoint=path)
        with pytest.warns(FitWarning, match="max_iter=1 reached"):
            again = model(engine).fit(X, Y, resume=path, max_iter=1)
        assert again.result_.objectives[0] >= gp.result_.objectives[0] - 1e-9
        close(again.result_.starts["kernel.outputscale"], float(gp.kernel_.outputscale.detach()), "values", rtol=1e-12)


def test_values_are_kept_not_coordinates(tmp_path):
    """Coordinates count from starts that depend on the data; what is kept does not."""
    path = tmp_path / "fit.ckpt"
    gp = GP(kernels.RBF(), mean="linear").fit(X, Y, checkpoint=path)
    with pytest.warns(FitWarning):
        other = GP(kernels.RBF(), mean="linear").fit(X[:40], 3 * Y[:40] + 7, resume=path, max_iter=1)
    close(other.result_.starts["mean.constant"], float(gp.mean_.constant.detach()), "the mean", rtol=1e-9)


def test_the_same_path_need_not_be_there_yet(tmp_path):
    path = tmp_path / "fit.ckpt"
    first = model().fit(X, Y, checkpoint=path, resume=str(path))
    assert path.exists() and first.result_.iterations > 3
    assert model().fit(X, Y, checkpoint=path, resume=path).result_.iterations <= 2
    with pytest.raises(InputError, match="There is no model file"):
        model().fit(X, Y, checkpoint=path, resume=tmp_path / "other.ckpt")


def test_rounds_that_were_done_are_not_done_again(tmp_path, monkeypatch):
    x = points(9_000, 1)
    y, path = targets(x), tmp_path / "fit.ckpt"
    engine = engines.SparseVariational(5, refine=False)
    assert engine.rounds(len(x)) == (3_000, 9_000, 9_000)

    def fit(**options):
        return GP(kernels.RBF(), likelihoods.Gaussian(), engine=engine).fit(x, y, **options)

    with monkeypatch.context() as patch:
        first = Interrupt(patch, math.inf)
        whole = fit()
        sizes = [rows for _, rows in first.losses]
        at = sizes.index(9_000) + 3
    with monkeypatch.context() as patch:
        Interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            fit(checkpoint=path)
    second = Interrupt(monkeypatch, math.inf)
    resumed = fit(resume=path)
    assert {rows for _, rows in second.losses} == {9_000}
    # The last round chooses inducing inputs at the end of the one before, which the two reach on different ways.
    close(resumed.result_.objective, whole.result_.objective, "objective", rtol=1e-4)


def test_starts_that_were_not_begun_are_kept(tmp_path, monkeypatch):
    """Interrupted in the second of four searches: that one and the two others are still to come, from the same starts."""
    path = tmp_path / "fit.ckpt"
    t = torch.linspace(0, 10, 30, dtype=torch.float64)
    y = torch.sin(5 * t) + 0.3 * t
    whole = GP(kernels.RBF()).fit(t, y, restarts=3)
    with monkeypatch.context() as patch:
        begun, inner = [], fitting.MINIMISERS["l-bfgs"]

        def minimise(*arguments):
            begun.append(arguments[1])
            if len(begun) == 2:
                raise KeyboardInterrupt
            return inner(*arguments)

        patch.setitem(fitting.MINIMISERS, "l-bfgs", minimise)
        with pytest.raises(KeyboardInterrupt):
            GP(kernels.RBF()).fit(t, y, restarts=3, checkpoint=path)
    header, tensors = read(path)
    assert header["checkpoint"] == {"left": 1, "drawn": True} and tensors["points"].shape[0] == 4
    resumed = GP(kernels.RBF()).fit(t, y, restarts=3, resume=path)
    assert len(resumed.result_.objectives) == 4
    close(resumed.result_.objectives[1:], whole.result_.objectives[1:], "ends of the other starts", rtol=1e-6)


def test_inducing_inputs_are_kept(tmp_path):
    path = tmp_path / "fit.ckpt"
    gp = model(SPARSE).fit(X, Y, checkpoint=path)
    _, tensors = read(path)
    z = gp._solved.plan.inducing[0].detach()
    close(tensors["plan.inducing 0"], z, "inducing inputs", rtol=1e-12)
    for resume in (path, gp):
        with pytest.warns(FitWarning, match="max_iter=1 reached"):
            again = model(SPARSE).fit(X, Y, resume=resume, max_iter=1)
        assert again.result_.objectives[0] >= gp.result_.objectives[0] - 1e-9, (
            "the inputs of the checkpoint, not chosen anew"
        )
    other = model(engines.SparseVariational(9)).fit(X, Y, resume=path)
    assert len(other._solved.plan.inducing[0]) == 9, "another number is chosen anew"


def test_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "fit.ckpt"
    gp = model().fit(X, Y, checkpoint=path)
    with pytest.raises(InputError, match=r"is a checkpoint, not a model: go on from it with fit\(X, y, resume="):
        gpx.load(path)
    with pytest.raises(InputError, match=r"Cannot resume: the saved model has .*kernel\.lengthscale\[1\]"):
        GP(kernels.RBF()).fit(X, Y, resume=path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated"):
        model().fit(X, Y, resume=path)
    path.write_bytes(content[:-3] + b"abc")
    with pytest.raises(InputError, match="was changed after it was saved"):
        model().fit(X, Y, resume=path)
    gp.save(tmp_path / "model.gpx")
    assert model().fit(X, Y, resume=tmp_path / "model.gpx").result_.iterations <= 2
    for bad in (tmp_path / "no" / "fit.ckpt", tmp_path):
        with pytest.raises(InputError, match="Cannot write a checkpoint to .*existing folder"):
            model().fit(X, Y, checkpoint=bad)
    with pytest.raises(InputError, match="path"):
        model().fit(X, Y, checkpoint=3)


def test_files_are_not_written_at_every_iteration(tmp_path, monkeypatch):
    written, clock = [], iter(np.arange(1000) * 0.3)
    monkeypatch.setattr(checkpoint, "write", lambda path, header, tensors: written.append(tensors["points"]))
    problem = model().condition(X, Y)._solved
    coordinates = Coordinates(trainable_modules(problem.prior.mean, problem.prior.kernels, problem.likelihood))
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: next(clock))
    here = coordinates.read()
    with checkpoint.keeping(tmp_path / "a", coordinates, gpx.parallel.ALONE) as keep:
        for step in range(10):
            keep(Reached(here[None] + 0.01 * step))
    assert 2 <= len(written) < 8
    close(coordinates.read(), here, "writing moves nothing", rtol=1e-12)
    close(checkpoint._coordinates(coordinates, written[-1][0]), here + 0.09, "the last is always written", rtol=1e-9)


@pytest.mark.slow
def test_a_killed_process_leaves_a_checkpoint(tmp_path):
    """By SIGKILL, at any moment; what is left is whole."""
    path = tmp_path / "fit.ckpt"
    script = textwrap.dedent(
        """
        import sys, gpx
        from gpx.testing.cases import points, targets
        x = points(1500, 3)
        gpx.GP(gpx.kernels.RBF(ard=True)).fit(x, targets(x), checkpoint=sys.argv[1])
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)])
    try:
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.exists()
    x = points(1500, 3)[:200]
    gp = GP(kernels.RBF(ard=True)).fit(x, targets(x), resume=path)
    assert gp.result_.converged
