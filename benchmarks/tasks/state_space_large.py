"""Long series: what a fit, a gradient of many states, a step of inference and a prediction cost in seconds and memory."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.measure import extra_memory, peak_memory, resident_memory, timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

NOISE = 0.1
SPACING = 0.1
WARM_UP_ROWS = 60_000  # enough for the loops that are compiled for one kernel


def series(n: int, seed: int) -> tuple[ndarray, ndarray]:
    """A sine with noise at n irregular times, 10 per unit."""
    import numpy as np

    random = np.random.default_rng(seed)
    t = np.sort(random.uniform(0, n * SPACING, n))
    return t, np.sin(t) + NOISE**0.5 * random.standard_normal(n)


def measured(work: Any) -> dict[str, float]:
    """Seconds, and by how much the peak exceeds what was resident before; work was done once before, on fewer rows."""
    (_, seconds), memory = extra_memory(lambda: timed(work))
    return {"time": seconds, "extra memory": memory / 2**20}


def run_fit(setting: Setting) -> dict[str, float]:
    """`GP(Matern(nu=1.5)).fit` on 1e7 rows: starts, search, conditioning; all hyperparameters learned, engine "auto"."""
    import gpx

    t, y = series(100_000 if setting.quick else 10_000_000, setting.seed)
    gpx.GP(gpx.kernels.Matern(nu=1.5)).fit(t[:WARM_UP_ROWS], y[:WARM_UP_ROWS], max_iter=1)
    gp = gpx.GP(gpx.kernels.Matern(nu=1.5))
    found = measured(lambda: gp.fit(t, y))
    return found | {"evaluations": gp.result_.evaluations, "noise": float(gp.likelihood_.noise)}


def run_gradient(setting: Setting) -> dict[str, float]:
    """The evidence of 12 states with its gradient, 1e6 rows: two Hida-Matern kernels of order 2."""
    import torch

    import gpx
    from gpx.assemble import assemble
    from gpx.inputs import as_data

    def gradient(t: ndarray, y: ndarray) -> None:
        kernel = gpx.kernels.HidaMatern(2, 2.0, 0.16) + gpx.kernels.HidaMatern(2, 20.0, 0.01)
        gp = gpx.GP(kernel, gpx.likelihoods.Gaussian(NOISE), mean="zero", engine=gpx.engines.StateSpace())
        problem, objective, _ = assemble(gp, as_data(t, y))
        raws = [p for m in (*problem.prior.kernels, problem.likelihood) for p in m.parameters() if p.requires_grad]
        torch.autograd.grad(objective(problem.anew()), raws)

    t, y = series(WARM_UP_ROWS if setting.quick else 1_000_000, setting.seed)
    gradient(t[:WARM_UP_ROWS], y[:WARM_UP_ROWS])
    return measured(lambda: gradient(t, y))


def run_poisson(setting: Setting) -> dict[str, float]:
    """A sweep over 1e6 Poisson counts: marginals by filter and smoother, the new sites, and their ELBO."""
    import numpy as np
    import torch

    import gpx
    from gpx.assemble import assemble
    from gpx.inputs import as_data
    from gpx.sites import Sites

    t, _ = series(WARM_UP_ROWS if setting.quick else 1_000_000, setting.seed)
    counts = np.random.default_rng(setting.seed).poisson(np.exp(np.sin(t)))
    gp = gpx.GP(gpx.kernels.Matern(nu=1.5, lengthscale=2.0), gpx.likelihoods.Poisson(), engine=gpx.engines.StateSpace())
    problem, _, _ = assemble(gp, as_data(t, counts))
    rule, likelihood, data = problem.rule, problem.likelihood, problem.data

    def sweep(sites: Sites) -> Sites:
        posterior = problem.condition(sites)
        new = rule.update(likelihood, data, posterior.site_marginals, sites)
        rule.merit(likelihood, data, posterior, new)
        return new

    with torch.no_grad():
        sites = Sites(torch.zeros(len(t), 1).double(), torch.zeros(len(t), 1).double())
        sites = sweep(sites)
        before, seconds = resident_memory(), []
        for _ in range(5):
            sites, time = timed(lambda sites=sites: sweep(sites))
            seconds.append(time)
    return {"time": median(seconds), "extra memory": (max(peak_memory(), resident_memory()) - before) / 2**20}


def run_prediction(setting: Setting) -> dict[str, float]:
    """Means and variances at 1e6 new times from 1e6 rows; Matern-3/2."""
    import gpx

    t, y = series(100_000 if setting.quick else 1_000_000, setting.seed)
    kernel, likelihood = gpx.kernels.Matern(nu=1.5, lengthscale=2.0), gpx.likelihoods.Gaussian(NOISE)

    def model(rows: int) -> gpx.GP:
        return gpx.GP(kernel, likelihood, mean="zero", engine=gpx.engines.StateSpace()).condition(t[:rows], y[:rows])

    model(WARM_UP_ROWS).predict(t[:100])
    gp = model(len(t))
    return measured(lambda: gp.predict(t + SPACING / 3).variance)


def run_compilation(setting: Setting) -> dict[str, float]:
    """The first gradient of a Matern-3/2 kernel in a process that finds no compiled code on disk."""
    import os
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        import torch

        import gpx
        from gpx.assemble import assemble
        from gpx.inputs import as_data

        t, y = series(WARM_UP_ROWS, setting.seed)
        gp = gpx.GP(gpx.kernels.Matern(nu=1.5), gpx.likelihoods.Gaussian(NOISE), engine=gpx.engines.StateSpace())
        problem, objective, _ = assemble(gp, as_data(t, y))
        raws = [p for p in problem.prior.kernels[0].parameters() if p.requires_grad]
        return {"time": timed(lambda: torch.autograd.grad(objective(problem.anew()), raws))[1]}


TASK = Task(
    name="state-space-large",
    description="Long series of state-space models: a fit of 1e7 rows; of 1e6 rows a gradient, a sweep, predictions.",
    metrics=(
        Metric("time", "s"),
        Metric("extra memory", "MiB"),
        Metric("peak memory", "MiB"),
        Metric("evaluations"),
        Metric("noise"),
    ),
    models={
        "fit-1e7": run_fit,
        "gradient-12-states": run_gradient,
        "poisson-sweep": run_poisson,
        "predictions-1e6": run_prediction,
        "cold-compilation": run_compilation,
    },
    reference=None,
)
