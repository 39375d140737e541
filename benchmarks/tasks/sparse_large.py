"""Tables beyond memory: a streamed pass over 5e6 rows of a memory-mapped file, and a classifier trained on 1e6 rows in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.measure import extra_memory, timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

DIMENSIONS, INDUCING, BATCH = 8, 512, 4096
BLOCK = 100_000  # rows that are written at a time
NOISE = 0.1


def function(seed: int) -> Any:
    """A draw of a Gaussian process with an RBF kernel of lengthscale 3 and variance 2, through 256 features: X [n, 8] -> [n]."""
    import numpy as np

    random = np.random.default_rng(seed)
    frequencies, phases = random.standard_normal((DIMENSIONS, 256)) / 3, random.uniform(0, 2 * np.pi, 256)
    weights = random.standard_normal(256) * np.sqrt(2 * 2 / 256)
    return lambda X: np.cos(X @ frequencies + phases) @ weights


def write(path: str, rows: int, seed: int) -> ndarray:
    """Standard normal inputs [rows, 8] in a file of numpy, written in blocks; the values [rows] of the function there."""
    import numpy as np

    random, f, values = np.random.default_rng(seed), function(seed), np.empty(rows)
    X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(rows, DIMENSIONS))
    for start in range(0, rows, BLOCK):
        X[start : start + BLOCK] = block = random.standard_normal((min(BLOCK, rows - start), DIMENSIONS))
        values[start : start + BLOCK] = f(block)
    X.flush()
    return values


def measured(work: Any) -> tuple[Any, dict[str, float]]:
    """The result of `work`, and its seconds, those of all processors together, and by how much the peak of memory rose."""
    import time

    before = time.process_time()
    (result, seconds), memory = extra_memory(lambda: timed(work))
    return result, {"time": seconds, "processor time": time.process_time() - before, "extra memory": memory / 2**20}


def run_pass(setting: Setting) -> dict[str, float]:
    """`condition` and the bound on 5e6 rows (quick: 5e5) of a memory-mapped file: inducing inputs chosen, one pass over the rows."""
    import tempfile

    import numpy as np

    import gpx

    rows = 500_000 if setting.quick else 5_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/X.npy"
        y = write(path, rows, setting.seed) + NOISE**0.5 * np.random.default_rng(setting.seed + 1).standard_normal(rows)
        X = np.load(path, mmap_mode="r")
        kernel = gpx.kernels.RBF(lengthscale=[3.0] * DIMENSIONS, outputscale=2.0, ard=True)
        engine = gpx.engines.SparseVariational(INDUCING, refine=False, batch_size=BATCH)
        gp = gpx.GP(kernel, gpx.likelihoods.Gaussian(NOISE), mean="zero", engine=engine)
        bound, found = measured(lambda: gp.condition(X, y).log_evidence())
    return found | {"bound per row": bound / rows}


def run_bernoulli(setting: Setting) -> dict[str, float]:
    """`fit` of labels on 1e6 rows (quick: 1e5), all of it timed; then the search goes on for as long again, for what is left."""
    import numpy as np

    import gpx
    from gpx.inference.coordinates import Coordinates, trainable_modules
    from gpx.inference.fit import FitOptions
    from gpx.inference.stochastic import Descent, descend
    from gpx.inference.sweeps import gathered, swept

    rows = 100_000 if setting.quick else 1_000_000
    random = np.random.default_rng(setting.seed)
    X = random.standard_normal((rows, DIMENSIONS))
    y = (function(setting.seed)(X) + random.standard_normal(rows) > 0).astype(float)
    engine = gpx.engines.SparseVariational(INDUCING, batch_size=BATCH)
    gp = gpx.GP(gpx.kernels.RBF(ard=True), gpx.likelihoods.Bernoulli(), engine=engine)
    _, found = measured(lambda: gp.fit(X, y, seed=setting.seed))
    bound = gp.result_.objective / rows

    problem = gp._solved.anew()
    modules = trainable_modules(problem.prior.mean, problem.prior.kernels, problem.likelihood)
    every = Coordinates(modules).with_tensors(engine.parameters(problem.prior, problem.plan), problem.data.spread)
    count = -(-rows // BATCH)
    descent = Descent(gathered(problem, gp.posterior_.sites), every, count, seen=float(count))
    descend(descent, FitOptions(seed=setting.seed + 1), float("inf"))
    further = swept(problem, descent.belief.moved())[1] / rows
    return found | {
        "bound per row": bound,
        "bound per row, converged": further,
        "left": further - bound,
        "batches": gp.result_.iterations,
    }


TASK = Task(
    name="sparse-large",
    description="M = 512: one streamed pass over 5e6 rows of a memory-mapped file; Bernoulli, 1e6 rows, trained in batches of 4,096.",
    metrics=(
        Metric("time", "s"),
        Metric("processor time", "s"),
        Metric("extra memory", "MiB"),
        Metric("peak memory", "MiB"),
        Metric("bound per row", "nats", "difference"),
        Metric("bound per row, converged", "nats", "difference"),
        Metric("left", "nats per row", "difference"),
    ),
    models={"pass-5e6": run_pass, "bernoulli-1e6": run_bernoulli},
    reference=None,
)
