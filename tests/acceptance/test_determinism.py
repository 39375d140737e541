"""Same seed and threads: the same bits; nothing global is touched; several threads may predict at once."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import gpx
from gpx import GP
from gpx.kernels import RBF, Linear, Matern, Periodic
from gpx.testing.cases import points, targets

X, Y, NEW = points(40), targets(points(40)), points(30, seed=2)
KERNELS = {
    "Matern": lambda: Matern(ard=True),
    "sum": lambda: RBF() + Linear(),
    "product": lambda: Matern(nu=1.5) * Periodic(),
}


def everything(kernel):
    """All that a user may ask for."""
    gp = GP(kernel).fit(X, Y, restarts=1)
    loo, p = gp.loo(), gp.predict(NEW)
    numbers = [p.mean, p.variance, p.sample(3), gp.sample(NEW, 3), gp.paths(3)(NEW), loo.mean, loo.log_density]
    table = [float(r.value) for r in gp.parameters()] + [float(r.standard_error) for r in gp.parameters()]
    gp.update(NEW, targets(NEW))
    return [*numbers, gp.predict(NEW).mean, torch.tensor(table, dtype=torch.float64), torch.tensor(gp.log_evidence())]


@pytest.mark.parametrize("name", KERNELS)
def test_the_same_bits(name):
    for a, b in zip(everything(KERNELS[name]()), everything(KERNELS[name]()), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_the_same_bits_in_another_process():
    code = (
        "import torch; from gpx import GP; from gpx.kernels import Matern; from gpx.testing.cases import points, targets;"
        "gp = GP(Matern(ard=True)).fit(points(40), targets(points(40)), restarts=1); torch.set_num_threads(1);"
        "print(gp.predict(points(30, seed=2)).mean.numpy().tobytes().hex())"
    )
    code = "import torch; torch.set_num_threads(1);" + code
    with threads(1):
        expected = GP(Matern(ard=True)).fit(X, Y, restarts=1).predict(NEW).mean
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == expected.numpy().tobytes().hex()


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def global_state():
    """What a call must leave as it was."""
    return (
        torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate(),  # noqa: NPY002
        torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.get_printoptions() if hasattr(torch, "get_printoptions") else None, np.geterr(), list(warnings.filters),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_global_is_touched(count, tmp_path):
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    random.seed(11)
    gp = GP(Matern() * Periodic() + Linear())
    actions = {
        "fit": lambda: gp.fit(X, Y, restarts=1, seed=5),
        "predict": lambda: gp.predict(NEW),
        "marginal samples": lambda: gp.predict(NEW).sample(3),
        "sample": lambda: gp.sample(NEW, 3),
        "paths": lambda: gp.paths(2)(NEW),
        "loo": gp.loo,
        "check": gp.check,
        "parameters": gp.parameters,
        "summary": gp.summary,
        "save": lambda: gp.save(tmp_path / "m.gpx"),
        "load": lambda: gpx.load(tmp_path / "m.gpx"),
        "update": lambda: gp.update(NEW, targets(NEW)),
        "condition": lambda: gp.condition(X, Y),
        "auto": lambda: GP("auto").fit(X[:, 0], Y),
        "explain": lambda: gpx.explain("Matern"),
        "entropy": lambda: gp.sample(NEW, 1, seed=None),
    }
    with threads(count):
        for name, action in actions.items():
            before = global_state()
            action()
            assert global_state() == before, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_dtype_does_not_matter(dtype):
    with default_dtype(dtype):
        gp = GP(Matern(ard=True) * Periodic(), mean="linear").fit(X.numpy(), Y.numpy())
        values = gp.predict(NEW.numpy()), gp.paths(2)(NEW.numpy()), gp.sample(NEW.numpy(), 2)
        assert torch.get_default_dtype() == dtype
    gp = GP(Matern(ard=True) * Periodic(), mean="linear").fit(X, Y)
    expected = gp.predict(NEW), gp.paths(2)(NEW), gp.sample(NEW, 2)
    assert torch.equal(values[0].mean, expected[0].mean) and torch.equal(values[0].variance, expected[0].variance)
    assert torch.equal(values[1], expected[1]) and torch.equal(values[2], expected[2])


def test_gradients_may_be_off_or_on():
    """Under `no_grad` a fit still learns."""
    with torch.no_grad():
        gp = GP(Matern()).fit(X, Y)
        assert not torch.is_grad_enabled()
        table = str(gp.parameters())
    other = GP(Matern()).fit(X, Y)
    assert torch.equal(gp.predict(NEW).mean, other.predict(NEW).mean)
    assert table == str(other.parameters())
    with torch.inference_mode():
        assert torch.equal(other.predict(NEW).mean, gp.predict(NEW).mean)


@pytest.mark.parametrize("name", KERNELS)
def test_eight_threads_predict_at_once(name):
    """One fitted model, whatever else is asked of it at the same time."""
    gp = GP(KERNELS[name]()).fit(X, Y)
    expected = gp.predict(NEW), gp.sample(NEW, 2), gp.paths(2)(NEW), gp.loo().log_density

    def ask(i):
        if i % 8 == 7:
            gp.parameters()  # moves parameters of a copy
        p = gp.predict(NEW)
        return (
            torch.equal(p.mean, expected[0].mean) and torch.equal(p.variance, expected[0].variance)
            and torch.equal(gp.sample(NEW, 2), expected[1]) and torch.equal(gp.paths(2)(NEW), expected[2])
            and torch.equal(gp.loo().log_density, expected[3])
        )  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(48)))


def test_eight_threads_fit_at_once():
    """Fits of the same arguments in parallel do not meet."""
    kernel = Matern(ard=True)
    expected = GP(kernel).fit(X, Y).predict(NEW).mean
    with ThreadPoolExecutor(8) as pool:
        means = list(pool.map(lambda _: GP(kernel).fit(X, Y).predict(NEW).mean, range(8)))
    assert all(torch.equal(m, expected) for m in means)


def test_warnings_filters_survive_a_warning():
    before = list(warnings.filters)
    with pytest.warns(gpx.errors.FitWarning):
        GP(Matern()).fit(X, Y, max_iter=1)
    assert list(warnings.filters) == before
