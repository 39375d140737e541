"""What users of Gaussian-process libraries complain about, one test per complaint: it does not happen here.

The numbers are the rows of the project's table of recurrent complaints; rows about engines that are not part of this version
have no test yet.
"""

from __future__ import annotations

import gc
import inspect
import math
import re
import subprocess
import sys
import time
import tomllib
import warnings
import weakref
from pathlib import Path

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch

import gpx
from gpx import GP, InputError, NumericalError
from gpx.errors import FitWarning
from gpx.kernels import RBF, Linear, Matern, Periodic
from gpx.kernels.dense import dense
from gpx.likelihoods import Gaussian
from gpx.testing.assertions import close
from gpx.testing.cases import KERNELS, points, targets

ROOT = Path(__file__).parents[2]
X, Y, NEW = points(30), targets(points(30)), points(8, seed=3)


def test_complaint_01_cholesky_failures():
    """float64 by default; relative jitter of limited size, recorded in `result_`; one warning per fit, none per step; an error
    that names causes it has found."""
    x = torch.linspace(0, 1, 80, dtype=torch.float64)
    assert GP(RBF()).fit(x.numpy().astype(np.float32), x.sin().numpy()).predict([0.5]).mean.dtype == torch.float64
    hopeless = RBF(lengthscale=50.0), Gaussian(1e-16).set(noise=dict(fixed=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gp = GP(*hopeless).fit(torch.cat([x, x]), torch.cat([x, x]).sin())
    assert [w.category for w in caught] == [FitWarning]
    assert 0 < gp.result_.jitter < math.inf and bool(gp.predict(x).mean.isfinite().all())
    assert GP(Matern()).fit(X, Y).result_.jitter == 0

    class Indefinite(RBF):
        def correlation(self, r2):
            return 1 + r2

    with pytest.raises(NumericalError, match=r"not positive definite.*Found: 1 duplicate input row\(s\)"):
        GP(Indefinite()).condition([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])


def test_complaint_02_boilerplate():
    """Three lines to a converged fit: no model class, no loop, no number of steps."""
    gp = gpx.GP(gpx.kernels.Matern())
    gp.fit(X, Y)
    prediction = gp.predict(NEW)
    assert gp.result_.converged and prediction.mean.shape == (8,)


def test_complaint_03_fragile_fitting():
    """Data-driven starts, points without a value rejected inside the line search, a reason for stopping, one readable warning;
    given a poor start, restarts find the way out."""
    t = torch.linspace(0, 10, 60, dtype=torch.float64)
    y = torch.sin(6 * t) + 0.05 * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    good = GP(RBF()).fit(t, y)
    assert good.result_.converged and float(good.likelihood_.noise.detach()) < 0.02
    stuck = GP(RBF(lengthscale=3.0), Gaussian(1.0)).fit(t, y)
    freed = GP(RBF(lengthscale=3.0), Gaussian(1.0)).fit(t, y, restarts=4)
    assert stuck.log_evidence() < good.log_evidence() - 50 < freed.log_evidence()
    with pytest.warns(FitWarning, match="did not converge") as caught:
        GP(Matern(ard=True)).fit(X, Y, max_iter=1)
    assert len(caught) == 1


def test_complaint_04_scaling_traps():
    """No transform of the user's data, hidden or asked for: starts, log parameters and tolerances do not depend on units, and
    values come back in the user's units."""
    plain, scaled = GP(Matern()).fit(X, Y), GP(Matern()).fit(1e5 * X - 3e6, 1e-4 * Y + 1.0)
    close(
        (scaled.predict(1e5 * NEW - 3e6).mean - 1.0) * 1e4, plain.predict(NEW).mean, "predictions in other units", 1e-4
    )
    close(scaled.kernel_.lengthscale, 1e5 * plain.kernel_.lengthscale, "a lengthscale in other units", 1e-4)
    close(scaled.likelihood_.noise, 1e-8 * plain.likelihood_.noise, "a noise variance in other units", 1e-4)


def test_complaint_05_modes_and_double_calls():
    """No train() and eval(), no likelihood(model(x)): `predict` is of y unless f is asked for, and prints which."""
    gp = GP(RBF()).fit(X, Y)
    assert "Prediction of y, noise included" in repr(gp.predict(NEW))
    assert "Prediction of f" in repr(gp.predict(NEW, of="f"))
    assert not hasattr(gp, "train") and not hasattr(gp, "eval")
    before = gp.predict(NEW).variance
    gp.kernel_.train(), gp.likelihood_.train()
    training = gp.predict(NEW).variance
    gp.kernel_.eval(), gp.likelihood_.eval()
    assert torch.equal(before, training) and torch.equal(before, gp.predict(NEW).variance)


def test_complaint_06_prediction_in_chunks(monkeypatch):
    """`predict` never builds N* x N*: no block of the kernel has more entries than a chunk or than one row of data.

    tests/acceptance/test_memory.py measures it: 200,000 points from n = 2,000 in less than 1 GB.
    """
    sizes = []
    original = dense

    def counted(kernel, a, b):
        sizes.append((len(a), len(b)))
        return original(kernel, a, b)

    gp = GP(Matern()).fit(X, Y)
    whole = gp.predict(points(2000, seed=6))
    monkeypatch.setattr("gpx.engines.dense.dense", counted)
    monkeypatch.setattr("gpx.engines.dense.CHUNK", 3000)
    chunked = gp.predict(points(2000, seed=6))
    assert sizes and all(a <= 100 and b == 30 for a, b in sizes)
    close(chunked.mean, whole.mean, "the same in chunks", 1e-12)
    close(chunked.variance, whole.variance, "the same in chunks", 1e-12)


LEAK = """
import gc, torch, gpx
from benchmarks.measure import resident_memory
X = torch.rand(60, 2, dtype=torch.float64); y = X.sin().sum(1)
def work(n):
    for i in range(n):
        gp = gpx.GP(gpx.kernels.Matern()).fit(X, y); gp.predict(X); gp.loo()
    gc.collect()
    return resident_memory(), len(gc.get_objects())
before = work(50)
after = work(200)
print(after[0] - before[0], after[1] - before[1])
"""


def test_complaint_07_memory_leaks():
    """No caches on modules: a posterior dies with its model, and 200 fits need no more memory than 30."""
    gp = GP(Matern() * Periodic()).fit(X, Y)
    gp.predict(NEW), gp.paths(2)(NEW), gp.loo(), gp.parameters()
    dead = weakref.ref(gp.posterior_), weakref.ref(gp.kernel_)
    del gp
    gc.collect()
    assert dead[0]() is None and dead[1]() is None


@pytest.mark.slow
@pytest.mark.ci
def test_complaint_07_200_fits():
    command = [sys.executable, "-W", "ignore", "-c", LEAK]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    memory, objects = map(int, result.stdout.split())
    assert memory < 8e6 and objects < 200


def test_complaint_08_slow_repeated_prediction(monkeypatch):
    """Factors are computed once, at the end of the fit; the posterior is the cache."""
    gp = GP(Matern()).fit(X, Y)

    def never(*args, **kwargs):
        raise AssertionError("a prediction factorised a matrix")

    monkeypatch.setattr("gpx.engines.dense.factorise", never)
    gp.predict(NEW), gp.predict(NEW, of="f"), gp.paths(1)(NEW)
    gp.loo(), gp.log_evidence(), gp.check()


def test_complaint_09_overhead():
    """Dense eager tensors: a prediction of a small model takes milliseconds, and the device and dtype stay the user's."""
    gp = GP(Matern()).fit(X, Y)
    gp.predict(NEW)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        gp.predict(NEW)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01
    assert type(gp.kernel_.matrix(NEW)) is torch.Tensor
    assert gp.predict(NEW.float()).mean.device == NEW.device


def test_complaint_10_save_and_load(tmp_path):
    """One file with all that predictions need; the same bits after loading; pickle works too."""
    import pickle

    gp = GP(Matern(ard=True) + Linear(), mean="linear").fit(X, Y)
    gp.save(tmp_path / "model.gpx")
    for other in (gpx.load(tmp_path / "model.gpx"), pickle.loads(pickle.dumps(gp))):
        assert torch.equal(other.predict(NEW).mean, gp.predict(NEW).mean)
        assert torch.equal(other.predict(NEW).variance, gp.predict(NEW).variance)


def test_complaint_11_shapes():
    """Users never see batch dimensions: y is [N] or [N, P], one-dimensional X is N points, and wrong shapes are named."""
    gp = GP(RBF()).fit(X[:, 0], torch.stack([Y, -Y], 1))
    assert gp.predict(NEW[:, 0]).mean.shape == (8, 2)
    assert gp.predict(NEW[:, :1]).mean.shape == (8, 2)
    with pytest.raises(InputError, match="X has 30 rows and y has 29"):
        GP(RBF()).fit(X, Y[:-1])
    with pytest.raises(InputError, match=r"3 column\(s\), but the model was fitted on 1"):
        gp.predict(NEW)


def test_complaint_12_priors_bounds_fixing():
    """One call per parameter, by name, on the natural scale; a table shows what holds."""
    prior = gpytorch.priors.LogNormalPrior(0.0, 1.0)
    kernel = Matern().set(
        lengthscale=dict(init=1.0, bounds=(0.1, 10.0), prior=prior), outputscale=dict(init=2.0, fixed=True)
    )
    table = GP(kernel).fit(X, Y).parameters()
    row = table["kernel.lengthscale"]
    assert 0.1 <= row.value <= 10 and (row.lower, row.upper) == (pytest.approx(0.1), pytest.approx(10.0))
    assert row.prior == "LogNormal(0, 1)" and row.start == pytest.approx(1.0)
    assert table["kernel.outputscale"].fixed and table["kernel.outputscale"].value == pytest.approx(2.0)
    assert "[0.1, 10]" in str(table) and "fixed" in str(table)


def test_complaint_13_missing_values():
    """NaN in y is left out, of mean and covariance alike; NaN in X is an error with row numbers."""
    y = Y.clone()
    y[[2, 7]] = torch.nan
    keep = ~y.isnan()
    kernel, noise = Matern(), Gaussian(0.1)
    with_gaps, without = GP(kernel, noise).condition(X, y), GP(kernel, noise).condition(X[keep], Y[keep])
    assert with_gaps.log_evidence() == pytest.approx(without.log_evidence(), rel=1e-12)
    close(with_gaps.posterior_.joint(NEW)[1], without.posterior_.joint(NEW)[1], "covariance", 1e-10)
    close(with_gaps.predict(NEW).mean, without.predict(NEW).mean, "mean", 1e-10)
    bad = X.clone()
    bad[[3, 5], 1] = torch.nan
    with pytest.raises(InputError, match=r"row\(s\) 3, 5, column\(s\) 1"):
        GP(Matern()).fit(bad, Y)


def test_complaint_15_nothing_lazy_nothing_ambient():
    """Kernel matrices are tensors, and gpytorch's settings change nothing."""
    for name in KERNELS:
        assert type(dense(KERNELS[name]().double(), X, X)) is torch.Tensor
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    expected = GP(kernel).fit(X, Y).predict(NEW)
    with gpytorch.settings.fast_pred_var(), gpytorch.settings.max_cholesky_size(1), gpytorch.settings.cg_tolerance(10):
        got = GP(kernel).fit(X, Y).predict(NEW)
    assert torch.equal(got.mean, expected.mean) and torch.equal(got.variance, expected.variance)
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "gpx").rglob("*.py") if "testing" not in p.parts)
    assert "gpytorch.settings" not in source and "ExactGP" not in source


def test_complaint_16_negative_variances():
    """Never, not even where almost nothing is left of the prior variance; and of="y" is never below the noise."""
    x = torch.linspace(0, 1, 200, dtype=torch.float64)
    for noise in (1e-3, 1e-8, 1e-14):
        gp = GP(RBF(lengthscale=2.0), Gaussian(noise)).condition(x, x.sin())
        f, y = gp.predict(x, of="f"), gp.predict(x)
        assert bool((f.variance >= 0).all()) and bool((y.variance >= noise * (1 - 1e-12)).all())
        assert bool((f.variance <= gp.kernel_.diagonal(x)).all()), "data never add variance"
        assert bool((gp.loo().variance > 0).all())


def test_complaint_17_online_updates():
    """`update` is conditioning on everything; the hyperparameters stay."""
    kernel, noise = Matern(), Gaussian(0.1)
    updated = GP(kernel, noise).condition(X[:20], Y[:20]).update(X[20:25], Y[20:25]).update(X[25:], Y[25:])
    whole = GP(kernel, noise).condition(X, Y)
    close(updated.predict(NEW).mean, whole.predict(NEW).mean, "mean", 1e-10)
    close(updated.predict(NEW).variance, whole.predict(NEW).variance, "variance", 1e-10)
    assert updated.log_evidence() == pytest.approx(whole.log_evidence(), rel=1e-10)


def test_complaint_18_function_samples():
    """`paths` are functions, the same at any call, and differentiable; so are predictions."""
    gp = GP(RBF()).fit(X, Y)
    paths = gp.paths(3, seed=1)
    together = paths(NEW)
    close(torch.cat([paths(NEW[:3]), paths(NEW[3:])], 1), together, "piecewise", 1e-12)
    leaf = NEW.clone().requires_grad_()
    for value in (paths(leaf).sum(), gp.predict(leaf).mean.sum(), gp.predict(leaf).variance.sum()):
        (slope,) = torch.autograd.grad(value, leaf)
        assert bool(slope.isfinite().all()) and bool((slope != 0).any())


def test_complaint_19_model_checking():
    """`gp.check()`: leave-one-out densities, PIT, coverage, standardised residuals, in one report."""
    report = GP(Matern()).fit(X, Y).check()
    assert report.n == 30 and sum(report.pit_counts) == 30 and len(report.coverage) == len(report.levels)
    for word in ("NLPD", "coverage of 95%", "PIT", "RMSE", "residual"):
        assert word in str(report)


def test_complaint_20_heteroscedastic_noise():
    """An array of known variances: each datum counts as its variance says."""
    noise = torch.where(torch.arange(30) < 15, 1e-4, 1e2).double()
    gp = GP(Matern(), Gaussian(noise)).condition(X, Y)
    residual = (gp.predict(X, of="f").mean - Y).abs()
    assert float(residual[:15].max()) < 0.1 and float(residual[15:].mean()) > 0.1


def test_complaint_24_unsorted_inputs():
    """The order of the rows means nothing; equal inputs are merged exactly."""
    t, y = X[:, 0], Y
    order = torch.argsort(t)
    kernel, noise = Matern(nu=0.5), Gaussian(0.1)
    a, b = GP(kernel, noise).condition(t, y), GP(kernel, noise).condition(t[order], y[order])
    close(a.predict(NEW[:, 0]).mean, b.predict(NEW[:, 0]).mean, "mean", 1e-10)
    twice = GP(kernel, Gaussian(0.2)).condition(torch.cat([t, t]), torch.cat([y + 0.3, y - 0.3]))
    close(twice.predict(NEW[:, 0], of="f").mean, a.predict(NEW[:, 0], of="f").mean, "two of double variance", 1e-9)
    close(twice.predict(NEW[:, 0], of="f").std, a.predict(NEW[:, 0], of="f").std, "two of double variance", 1e-9)


@pytest.mark.parametrize("name", KERNELS)
def test_complaint_25_gradients_at_coincident_points(name):
    """Finite, for every kernel, in inputs and parameters; and in the evidence of duplicate rows."""
    x = torch.cat([X[:4], X[:4]]).requires_grad_()
    kernel = KERNELS[name]().double()
    params = [p for p in kernel.parameters() if p.requires_grad]
    grads = torch.autograd.grad(dense(kernel, x, x).square().sum(), [x, *params], allow_unused=True)
    assert all(g is None or bool(g.isfinite().all()) for g in grads)
    same = X[:4].clone().requires_grad_()
    grads = torch.autograd.grad(dense(kernel, same, same).sum(), [same, *params], allow_unused=True)
    assert all(g is None or bool(g.isfinite().all()) for g in grads)


def test_complaint_26_versions():
    """Lower bounds without upper pins, for a small set of core dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(project["dependencies"]) <= 12
    for requirement in project["dependencies"]:
        assert re.fullmatch(r"[a-z-]+>=[\d.]+", requirement), requirement


def test_complaint_27_documentation_gaps():
    """Every public function and class has a docstring; the index "how do I" speaks of what users ask for."""
    for name in gpx.__all__:
        assert inspect.getdoc(getattr(gpx, name)), name
    for name, member in inspect.getmembers(GP):
        if callable(member) and not name.startswith("_"):
            assert inspect.getdoc(member), f"GP.{name}"
    text = (ROOT / "docs" / "how-do-i.md").read_text(encoding="utf-8").lower()
    for topic in (
        "save",
        "missing",
        "bounds",
        "prior",
        "noise",
        "several outputs",
        "leave-one-out",
        "draw",
        "column",
        "update",
    ):
        assert topic in text, topic


def test_the_frames_of_users_stay_whole():
    """No complaint, but its cause: inputs are read, never written."""
    frame, series = pd.DataFrame(X.numpy(), columns=list("abc")), pd.Series(Y.numpy())
    before = frame.copy(), series.copy()
    gp = GP(Matern()).fit(frame, series)
    gp.predict(frame), gp.update(frame, series)
    pd.testing.assert_frame_equal(frame, before[0])
    pd.testing.assert_series_equal(series, before[1])
