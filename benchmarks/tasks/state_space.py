"""Gaussian processes in time: the evidence of a million irregular points and its gradient, against celerite2."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.measure import extra_memory, timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

REPEATS = 7
GRIDS = ("irregular", "regular")
NOISE = 0.1
SCANNED = 100_000


def series(setting: Setting, grid: str) -> tuple[ndarray, ndarray]:
    """A sine with noise at 1e6 (quick: 5e4) times, about 10 per unit."""
    import numpy as np

    n = 50_000 if setting.quick else 1_000_000
    random = np.random.default_rng(setting.seed)
    t = np.sort(random.uniform(0, n / 10, n)) if grid == "irregular" else np.arange(n) / 10
    return t, np.sin(t) + NOISE**0.5 * random.standard_normal(n)


def microseconds(work: Any, n: int) -> float:
    """Median time per point, after a first call."""
    work()
    return 1e6 / n * median(timed(work)[1] for _ in range(REPEATS))


def run_gpx(setting: Setting, nu: float) -> dict[str, float]:
    """The objective as `fit` evaluates it: sites, filter, gradients in all hyperparameters."""
    import torch

    import gpx
    from gpx.assemble import assemble
    from gpx.inputs import as_data

    found: dict[str, float] = {}
    for grid in GRIDS:
        t, y = series(setting, grid)
        kernel, likelihood = gpx.kernels.Matern(nu=nu, lengthscale=2.0), gpx.likelihoods.Gaussian(NOISE)
        gp = gpx.GP(kernel, likelihood, mean="zero", engine=gpx.engines.StateSpace())
        problem, objective, _ = assemble(gp, as_data(t, y))
        raws = [p for m in (*problem.prior.kernels, problem.likelihood) for p in m.parameters() if p.requires_grad]

        def value(problem=problem, objective=objective):
            with torch.no_grad():
                return float(objective(problem.anew()))

        def gradient(problem=problem, objective=objective, raws=raws):
            return torch.autograd.grad(objective(problem.anew()), raws)

        if grid == GRIDS[0]:
            found["cold compilation"] = timed(gradient)[1]
        found[f"{grid}: evidence"] = microseconds(value, len(t))
        found[f"{grid}: evidence and gradient"] = microseconds(gradient, len(t))
        if grid == GRIDS[0]:
            gp.condition(t, y)
            (_, seconds), memory = extra_memory(lambda gp=gp, t=t: timed(lambda: gp.predict(t + 0.03).variance))
            found |= {"mean and variance at as many new times": seconds, "memory of these": memory / 2**20}
    return found


def run_scan(setting: Setting) -> dict[str, float]:
    """The torch path that other devices take, on the first 1e5 times and without the model around it."""
    import torch

    from gpx.kernels import Matern
    from gpx.linalg.scan import Scan
    from gpx.structure.state_space import state_space

    found: dict[str, float] = {}
    for grid in GRIDS:
        t, y = (torch.as_tensor(v[:SCANNED]) for v in series(setting, grid))
        layout, *form = state_space(Matern(nu=1.5, lengthscale=2.0)).at(t)
        numbers = [v.detach() for v in (*form, y / NOISE, torch.full_like(y, 1 / NOISE))]
        gaps = t.diff(prepend=t[:1])

        def value(layout=layout, gaps=gaps, numbers=numbers):
            with torch.no_grad():
                return float(Scan(layout, gaps, *numbers).log_density())

        def gradient(layout=layout, gaps=gaps, numbers=numbers):
            inputs = [v.clone().requires_grad_() for v in numbers]
            return torch.autograd.grad(Scan(layout, gaps, *inputs).log_density(), inputs)

        found[f"{grid}: evidence"] = microseconds(value, len(t))
        found[f"{grid}: evidence and gradient"] = microseconds(gradient, len(t))
    return found


def run_celerite2(setting: Setting) -> dict[str, float]:
    """An SHO term (two states): `compute` and `log_likelihood`; with gradients: its forward and reverse passes for the matrices."""
    import celerite2
    import numpy as np
    from celerite2 import backprop, terms

    found: dict[str, float] = {}
    term = terms.SHOTerm(S0=1.0, w0=1.0, Q=0.5**0.5)
    for grid in GRIDS:
        t, y = series(setting, grid)
        n = len(t)
        gp = celerite2.GaussianProcess(term, mean=0.0)

        def value(gp=gp, t=t, y=y, n=n):
            gp.compute(t, diag=np.full(n, NOISE))
            return gp.log_likelihood(y)

        def gradient(t=t, y=y, n=n):
            c, a, U, V = term.get_celerite_matrices(t, np.full(n, NOISE))
            J = len(c)
            d, W, S = backprop.factor_fwd(t, c, a, U, V, np.empty(n), np.empty((n, J)), np.empty((n, J, J)))
            Z, F = backprop.solve_lower_fwd(t, c, U, W, y[:, None], np.empty((n, 1)), np.empty((n, J, 1)))
            grads = [np.zeros_like(v) for v in (t, c, U, W, Z)]
            bZ, bd = -Z / d[:, None], 0.5 * (Z[:, 0] / d) ** 2 - 0.5 / d
            _, _, _, bW, _ = backprop.solve_lower_rev(t, c, U, W, y[:, None], Z, F, bZ, *grads)
            grads = [np.zeros_like(v) for v in (t, c, a, U, V)]
            return backprop.factor_rev(t, c, a, U, V, d, W, S, bd, bW, *grads)

        found[f"{grid}: evidence"] = microseconds(value, n)
        found[f"{grid}: evidence and gradient"] = microseconds(gradient, n)
    return found


TASK = Task(
    name="state-space",
    description="Evidence of a series of 1e6 points: exact Matern kernels, and celerite2's SHO term.",
    metrics=(
        *(Metric(f"{grid}: {what}", "us/point") for grid in GRIDS for what in ("evidence", "evidence and gradient")),
        Metric("mean and variance at as many new times", "s"),
        Metric("memory of these", "MB"),
        Metric("cold compilation", "s"),
    ),
    models={
        "gpx-matern32": lambda setting: run_gpx(setting, 1.5),
        "gpx-matern52": lambda setting: run_gpx(setting, 2.5),
        "gpx-scan-matern32": run_scan,
        "celerite2": run_celerite2,
    },
    reference="celerite2",
)
