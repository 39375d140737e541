"""Differential equations: errors and seconds of gpx, of Chebyshev collocation, of finite
differences and of a small physics-informed network, beside published errors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

PROBLEMS = (
    *(f"poisson_1d_p{i}" for i in range(1, 6)), "allen_cahn_1d_p1", "allen_cahn_1d_p2", "poisson_2d_sines", "poisson_2d_sum",
    "allen_cahn_2d", "advection", "poisson_3d", "poisson_3d 100", "elliptic_2d", "burgers", "burgers 70 x 70", "eikonal", "darcy",
    "helmholtz", "heat",
)  # fmt: skip
QUICK = ("poisson_1d_p1", "allen_cahn_1d_p1", "advection", "elliptic_2d")
BROADBAND, SEEDS = 400, 5  # points, draws
COVERED = 4  # seeds of noise
TRAINING = {True: 1.0, False: 20.0}  # seconds of a network for each problem, quick or not
# Relative errors as recalled from the papers, not read there again: Fang et al. (2024), 1-D Poisson problems, the better of both kernels of GP-HM, trained by
# Adam for 1e5 to 1e6 epochs, the least error of 20 checkpoints against the exact solution. Chen et al. (2021) at 2,400 points
# (elliptic) and 4,800 (Burgers).
PUBLISHED = {
    "poisson_1d_p1": 3.99e-7, "poisson_1d_p2": 2.71e-3, "poisson_1d_p3": 3.17e-6, "poisson_1d_p4": 8.97e-7,
    "poisson_1d_p5": 4.22e-4, "elliptic_2d": 2.8e-7, "burgers": 9.8e-5,
}  # fmt: skip


def named(name: str) -> Any:
    """A problem of the list."""
    from gpx.pde import problems

    if name == "poisson_3d 100":
        return problems.poisson_3d(60.0, 100)
    if name == "burgers 70 x 70":
        from dataclasses import replace

        return replace(problems.burgers(), grid=70)
    return getattr(problems, name)()


def chosen(setting: Setting) -> tuple[str, ...]:
    """The quick version has a few problems."""
    return QUICK if setting.quick else PROBLEMS


def broadband(seed: int) -> Any:
    """u'' = f on (0, 1), u a sine series with random amplitudes over k^2, up to half the Nyquist frequency of the grid."""
    import torch

    from gpx.pde import D, Interval, Problem, u

    k = torch.arange(1, BROADBAND // 2, dtype=torch.float64)
    a = torch.randn(len(k), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / k**2
    waves = lambda x: torch.sin(torch.pi * x[:, :1] * k)  # noqa: E731
    return Problem(
        Interval(0, 1),
        D(u, 0, 2),
        lambda x: -waves(x) @ (a * (torch.pi * k) ** 2),
        0.0,
        lambda x: waves(x) @ a,
        BROADBAND,
    )


def run_gpx(setting: Setting) -> dict[str, float]:
    """`solve` as it comes, from the problem to the solution, choice of the kernel included."""
    import warnings

    import gpx
    from gpx.pde import solve

    warnings.simplefilter("ignore", gpx.FitWarning)
    found: dict[str, float] = {}
    solve(named("poisson_1d_p1"), grid=200)  # what is loaded on first use
    for name in chosen(setting):
        problem = named(name)
        began = time.perf_counter()
        solution = solve(problem)
        found[f"{name}: seconds"] = time.perf_counter() - began
        found[f"{name}: error"] = solution.relative_error()
        found[f"{name}: estimated / true"] = solution.error_estimate / found[f"{name}: error"]
    found["broadband: error"] = median([solve(broadband(seed)).relative_error() for seed in seeds(setting)])
    if not setting.quick:
        for i in range(1, 6):
            found[f"poisson_1d_p{i}: coverage"] = sum(coverage(i, seed) for seed in range(COVERED)) / COVERED
    return found


def coverage(number: int, seed: int) -> float:
    """The part of the nodes where the 95 % band has the exact solution, noise of 1e-3 max|f| in the source."""
    from dataclasses import replace

    import torch

    from gpx.pde import solve

    problem = named(f"poisson_1d_p{number}")
    x = torch.from_numpy(problem.domain.axes(problem.counts())[0])[:, None]
    f = problem.source(x)
    noise = 1e-3 * float(f.abs().max())
    random = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    solution = solve(replace(problem, source=f + noise * random, noise=noise))
    return float(((solution.u - problem.exact(x)).abs() <= 1.96 * solution.std).double().mean())


def run_chebyshev(setting: Setting) -> dict[str, float]:
    """Collocation at as many Chebyshev points per axis, by the same Newton's method; errors at its own nodes."""
    import numpy as np

    def nodes(bounds: tuple[float, float], count: int) -> ndarray:
        return bounds[0] + (bounds[1] - bounds[0]) * (1 - np.cos(np.pi * np.arange(count) / (count - 1))) / 2

    return collocated(setting, nodes, chebyshev_matrices)


def chebyshev_matrices(x: ndarray, order: int) -> list[ndarray]:
    """Derivatives of the polynomial through values at Chebyshev points (Trefethen 2000, "Spectral methods in MATLAB", chapter 6)."""
    import numpy as np

    weights = (-1.0) ** np.arange(len(x))
    weights[[0, -1]] *= 2
    gaps = np.subtract.outer(x, x) + np.eye(len(x))
    first = np.outer(weights, 1 / weights) / gaps
    first -= np.diag(first.sum(1))
    return [np.linalg.matrix_power(first, n) for n in range(order + 1)]


def run_differences(setting: Setting) -> dict[str, float]:
    """Central differences of second order (upwind, of first order, where one end has the conditions) on the same grid."""
    import numpy as np

    return collocated(setting, lambda bounds, count: np.linspace(*bounds, count), None)


def collocated(setting: Setting, nodes: Any, matrices: Any) -> dict[str, float]:
    """Errors at the nodes, and seconds; NaN where Newton's method fails."""
    import warnings

    found: dict[str, float] = {}
    warnings.simplefilter("ignore")
    for name in chosen(setting):
        began = time.perf_counter()
        error = collocation_error(named(name), nodes, matrices)
        found[f"{name}: seconds"], found[f"{name}: error"] = time.perf_counter() - began, error
    found["broadband: error"] = median([collocation_error(broadband(seed), nodes, matrices) for seed in seeds(setting)])
    return found


def collocation_error(problem: Any, nodes: Any, matrices: Any) -> float:
    """The relative error at the nodes, from zero by Newton's method."""
    from gpx.errors import NumericalError
    from gpx.pde.axes import collocation, differences
    from gpx.pde.expressions import evaluate
    from gpx.pde.grids import Grid, boundary_values
    from gpx.pde.newton import newton

    points = [nodes(bounds, count) for bounds, count in zip(problem.domain.bounds, problem.counts(), strict=True)]
    axes = [
        differences(problem, d, x)
        if matrices is None
        else collocation(problem, d, x, matrices(x, max(problem.orders[d], 2)))
        for d, x in enumerate(points)
    ]
    grid = Grid(tuple(axes))
    try:
        state = newton(problem, grid, evaluate(problem.source, grid.x, "The source"), boundary_values(problem, points))
    except NumericalError:
        return float("nan")
    exact = problem.exact(grid.x).numpy()
    gap = grid.jet(state.coefficients, [()])[()].numpy() - exact
    return float((gap @ gap) ** 0.5 / (exact @ exact) ** 0.5)


def run_pinn(setting: Setting) -> dict[str, float]:
    """A physics-informed network, for some seconds on each problem."""
    from benchmarks.tasks import pinn

    found: dict[str, float] = {}
    for name in chosen(setting):
        began = time.perf_counter()
        error = pinn.error(named(name), TRAINING[setting.quick], setting.seed)
        found[f"{name}: seconds"], found[f"{name}: error"] = time.perf_counter() - began, error
    errors = [pinn.error(broadband(seed), TRAINING[setting.quick], setting.seed) for seed in seeds(setting)]
    return found | {"broadband: error": median(errors)}


def run_published(setting: Setting) -> dict[str, float]:
    """Numbers of papers as recalled, not run here and not verified."""
    return {f"{name}: error": PUBLISHED[name] for name in chosen(setting) if name in PUBLISHED}


def seeds(setting: Setting) -> range:
    """Of the broadband problem."""
    return range(1 if setting.quick else SEEDS)


def median(values: list[float]) -> float:
    """Of a list."""
    return sorted(values)[len(values) // 2]


TASK = Task(
    name="pde",
    description="Differential equations: one configuration for all, relative errors against exact solutions.",
    metrics=(
        *(Metric(f"{name}: {what}", unit) for name in PROBLEMS for what, unit in (("error", ""), ("seconds", "s"))),
        *(Metric(f"{name}: estimated / true") for name in PROBLEMS),
        Metric("broadband: error"),
        *(Metric(f"poisson_1d_p{i}: coverage") for i in range(1, 6)),
    ),
    models={
        "gpx": run_gpx,
        "Chebyshev": run_chebyshev,
        "differences": run_differences,
        "network": run_pinn,
        "published": run_published,
    },
)
