"""Memory: the evidence with its gradient below 5 N^2 floats; predictions never build N* x N*. Each in its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The peak of a process is that of its parent at first; Linux resets it on request, elsewhere an upper bound must do.
PEAK = """
import sys
sys.path.insert(0, ".")
from benchmarks.measure import peak_memory, resident_memory
from benchmarks.tasks.memory import evidence_and_gradient, problem

def peak():
    try:
        line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    except OSError:
        return peak_memory()

def extra(work):
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
    before = resident_memory()
    work()
    print(peak() - before)
"""

EVIDENCE = """
X, y = problem({n}, 0)
evidence_and_gradient(X[:64], y[:64])
extra(lambda: evidence_and_gradient(X, y))
"""

PREDICTION = """
import gpx
X, y = problem({n}, 0)
X_new, _ = problem({points}, 1)
gp = gpx.GP(gpx.kernels.Matern(nu=2.5, lengthscale=[3.0] * 8, ard=True)).condition(X, y)
gp.predict(X_new[:64]), gp.paths(1)(X_new[:64])
extra(lambda: gp.{call})
"""


def extra_bytes(code, **values):
    command = [sys.executable, "-W", "ignore", "-c", PEAK + code.format(**values)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.parametrize("n", [
    2_500, pytest.param(5_000, marks=[pytest.mark.slow, pytest.mark.ci]), pytest.param(10_000, marks=pytest.mark.slow),
])  # fmt: skip
def test_evidence_and_gradient(n):
    """At most 5 N^2 floats; not less than the two triangles of the factor and the inverse, or the measurement is broken."""
    matrices = extra_bytes(EVIDENCE, n=n) / (8 * n**2)
    assert 1 < matrices <= 5


@pytest.mark.parametrize("call", ["predict(X_new)", "paths(2)(X_new)"])
def test_predictions_in_chunks(call):
    """20,000 points from 500: N* x N* would be 3,200 MB, N* x N 80 MB; chunks are 64 MB each."""
    assert extra_bytes(PREDICTION, n=500, points=20_000, call=call) < 500e6


@pytest.mark.slow
@pytest.mark.ci
def test_prediction_at_200_000_points():
    """From n = 2,000 rows, below 1 GB extra: N* x N* would be 320 GB."""
    assert extra_bytes(PREDICTION, n=2_000, points=200_000, call="predict(X_new)") < 1e9
