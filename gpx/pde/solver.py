"""`solve`: one configuration for all problems."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from gpx.errors import FitWarning, InputError, NumericalError
from gpx.pde import map_adam
from gpx.pde.axes import galerkin
from gpx.pde.basis import kernel_basis
from gpx.pde.boundary import complain_of_slopes
from gpx.pde.domains import points
from gpx.pde.draws import Draws, Estimate
from gpx.pde.estimate import judge
from gpx.pde.expressions import substitute
from gpx.pde.fields import evaluate
from gpx.pde.functions import Function, Functions
from gpx.pde.grids import Grid, boundary_values
from gpx.pde.inverse import infer, settings
from gpx.pde.joint import mean_square
from gpx.pde.newton import State
from gpx.pde.points import Points
from gpx.pde.problem import Problem
from gpx.pde.resonance import require_conditions, undetermined
from gpx.pde.scattered import PointSolution, solve_at_points
from gpx.pde.select import Candidate, Search, Setting, select
from gpx.pde.solution import Solution
from gpx.pde.spectrum import Tones, complaint, resolved, tones, tones_of_values

COARSEST = 16  # points per axis
DOUBTFUL = 0.01  # estimated errors that are worth a warning
USELESS = 0.5  # and those of what is no solution
UNEXPLAINED = 3.0  # deviations: what is more is no noise


def solve(
    problem: Problem, grid: int | Sequence[int] | None = None, *, kernel: Any = None, method: str = "direct"
) -> Solution | PointSolution:
    """The solution of a differential equation, as the mean of a Gaussian process that satisfies it on a uniform grid.

    The process is a product over axes of spectral mixtures: bumps at the frequencies of the source and of the boundary values,
    and at zero. In the eigenfunctions of its kernel, truncated where they are lost in rounding, the equation, tested by those
    that meet the boundary conditions, is solved by Newton's method: directly where it is linear and a sum over axes, otherwise
    with GMRES, preconditioned by the nearest such sum. Frequencies, lengthscales and the truncation are those of least estimated
    error; where the source has noise or u was observed, those of the largest evidence, and the solution is the posterior mean,
    with the unknown numbers and functions of the equation in `Solution.unknowns`.
    Nothing reads `problem.exact`.

    On `Points` the process is given the equation, the conditions and what was observed at them, linearised around its own mean by
    the Gauss-Newton method; the kernel, a product of Gaussian or Matern ones, is that of the least estimated error
    (where data have errors, of the largest evidence), and the estimated error is the posterior's.

    Arguments: grid: points per axis, a number or one for each; None: the problem's. kernel: a stationary kernel of one input
    for every axis, or a list with one for each, instead of the choice. method: "map-adam" for the published training by Adam,
    2,000 epochs of it, for comparison. Result: a `Solution`; on `Points`, a `PointSolution`.
    Raises: InputError for grids too small; NumericalError if Newton's method does not converge, or where the equation with its
    conditions is singular; StructureError for a kernel that is not as often differentiable as the equation asks.
    Warns: FitWarning where the grid is too coarse for the source, the estimated error is above 1 % (of data with noise: what is
    left of the equation between the points makes more than 1 % and more than noise, or than 50 %), or slopes and values given on
    faces disagree where these meet. Sources that are given by values are not known between the points.
    Cost: per candidate, O(sum_d (M_d r_d^2 + r_d^3) + M sum_d r_d) time, r_d functions per axis; O(M) memory.
    Source: kernel and collocation of Fang et al. (2024), "Solving high frequency and multi-scale PDEs with Gaussian processes";
    the rest is in docs/theory/pde.md.

    >>> from gpx.pde import problems
    >>> solve(problems.poisson_1d_p1()).relative_error() < 1e-9
    True
    """
    if not isinstance(problem, Problem):
        raise InputError(f"solve needs a Problem(domain, equation, source, boundary), got {type(problem).__name__}.")
    if method not in ("direct", "map-adam"):
        raise InputError(f'method is "direct" or "map-adam", got {method!r}.')
    if isinstance(problem.domain, Points):
        if grid is not None or method != "direct":
            raise InputError("grid= and method= are for boxes: leave them out for a domain of Points.")
        return solve_at_points(problem, kernel)
    counts = problem.counts(grid)
    nodes = tuple(problem.domain.axes(counts))
    if method == "map-adam":
        if kernel is not None:
            raise InputError('method="map-adam" trains its own kernel; leave out kernel=.')
        return map_adam.solved(problem, counts, nodes)
    if problem.uncertain:
        return _inferred(problem, nodes, kernel)
    require_conditions(problem)
    judged = judge(problem, counts)
    search = Search(problem, nodes, _source(problem, nodes), boundary_values(problem, nodes), judged)
    found = tones(problem, counts)
    if kernel is None:
        best = _selected(search, found)
    else:
        best = search.solved(search.of(_bases(problem, nodes, kernel)))
    complaints = [*_coarse(found, nodes), complain_of_slopes(problem.domain, problem.conditions)]
    error = max(best.error, judged.resonance(best.grid, best.state))
    if not np.isfinite(error):
        raise NumericalError(undetermined(problem))
    if error > DOUBTFUL:
        complaints.append(
            f"The estimated relative error of the solution is {error:.2g}: give more points than grid={counts}, or a domain"
            " in which the solution is smoother."
            + (" If that does not help, the conditions hardly determine the solution." if error > USELESS else "")
        )
    _warn(complaints)
    bases = tuple(axis.basis for axis in best.grid.axes)
    mean = Functions(problem.domain, Function(bases, best.state.coefficients))  # pyright: ignore[reportArgumentType]
    return Solution(problem, nodes, mean, error, best.setting)


def _selected(search: Search, found: Sequence[Tones]) -> Candidate:
    """The candidate of least estimated error; where that is large and the equation not linear, begun also from the solution with
    half as many points: fewer functions leave Newton's method fewer ways to go astray.

    Raises: NumericalError where neither finds a solution.
    """
    problem, frequencies = search.problem, [resolved(f, n) for f, n in zip(found, search.nodes, strict=True)]
    best, failure = _tried(search, frequencies)
    counts = tuple(max(COARSEST, len(n) // 2) for n in search.nodes)
    if not problem.linear and (best is None or best.error > DOUBTFUL) and max(counts) > COARSEST:
        nodes = tuple(problem.domain.axes(counts))
        half = Search(problem, nodes, _source(problem, nodes), boundary_values(problem, nodes), judge(problem, counts))
        with suppress(NumericalError):
            coarse = _selected(half, tones(problem, counts))
            bases = tuple(axis.basis for axis in coarse.grid.axes)
            guess = Function(bases, coarse.state.coefficients).on(search.nodes).numpy()  # pyright: ignore[reportArgumentType]
            again, _ = _tried(replace(search, guess=guess), frequencies)
            best = min((c for c in (best, again) if c is not None), key=lambda c: c.error, default=None)
    if best is None:
        assert failure is not None
        raise failure
    return best


def _tried(search: Search, frequencies: Sequence[np.ndarray]) -> tuple[Candidate | None, NumericalError | None]:
    """The candidate that is chosen, or why there is none."""
    try:
        return select(search, frequencies), None
    except NumericalError as failure:
        return None, failure


def _inferred(problem: Problem, nodes: tuple[np.ndarray, ...], kernel: Any) -> Solution:
    """The posterior given data with noise, averaged over kernels by their evidence."""
    source, known = _source(problem, nodes), not isinstance(problem.source, (Tensor, np.ndarray))
    search = Search(problem, nodes, source, [], None)
    counts = tuple(len(n) for n in nodes)
    found = tones(problem, counts) if known else tones_of_values(problem, nodes, source)
    if kernel is not None:
        choices: list[tuple[Setting | None, Any]] = [(None, lambda: search.of(_bases(problem, nodes, kernel)))]
    else:
        usable = [resolved(f, n) for f, n in zip(found, nodes, strict=True)]
        choices = [(setting, partial(search.grid, setting)) for setting in settings(usable, list(counts))]
    draws, setting = infer(problem, nodes, source, choices)
    mean = draws.mean()
    std = draws.deviations()[0].reshape(counts)
    values = mean.u.on(nodes).numpy()
    noise = float(np.sqrt(mean_square(std, nodes) / max(mean_square(values, nodes), 1e-300)))
    left = _between(problem, nodes, source, mean) if known and problem.complete else 0.0
    complaints = _coarse(found, nodes) if known else []
    if left > max(DOUBTFUL, min(noise, USELESS)):
        complaints.append(
            f"The estimated relative error of the solution is {left:.2g}, by what it leaves of the equation between the points of"
            f" the grid, and {noise:.2g} by noise: give more points than grid={counts}, or data with less noise."
        )
    _warn(complaints)
    return Solution(problem, nodes, mean, max(noise, left), setting, std, _unknowns(problem, nodes, draws), draws)


def _unknowns(problem: Problem, nodes: tuple[np.ndarray, ...], draws: Draws) -> dict[str, Estimate]:
    """The unknown numbers and functions, these with their means."""
    found = draws.estimates([len(n) for n in nodes])
    for name in problem.unknown_functions:
        process = found[name].value
        mean = problem.prior(name).value({}, points(nodes)).reshape([len(n) for n in nodes])
        found[name] = replace(found[name], value=mean + process)
    return found


def _between(problem: Problem, nodes: tuple[np.ndarray, ...], source: Tensor, mean: Functions) -> float:
    """The relative error of a posterior mean that answers to what it leaves of the equation between the nodes, with the unknowns
    that it has; 0 where the conditions leave the equation singular, so that observations choose the solution.

    Of the residual at the nodes noise explains so many deviations: these, interpolated, are noise between the nodes too.
    """
    others = {name: function.derivative for name, function in mean.others.items()}
    equation = substitute(problem.equation, mean.numbers, others)
    known = replace(problem, equation=equation, noise=0.0, observations=())
    try:
        require_conditions(known)
    except NumericalError:
        return 0.0
    grid = Grid(tuple(galerkin(known, d, b, n) for d, (b, n) in enumerate(zip(mean.u.bases, nodes, strict=True))))
    residual = equation.value(grid.jet(mean.u.coefficients, known.jet), grid.x) - source
    explained = residual.clamp(-UNEXPLAINED * problem.noise, UNEXPLAINED * problem.noise).reshape(grid.shape)
    noise = RegularGridInterpolator(nodes, explained.numpy(), bounds_error=False, fill_value=None)  # pyright: ignore

    def seen(x: Tensor) -> Tensor:
        return evaluate(problem.source, x, "The source") + torch.from_numpy(noise(x.numpy()))

    return judge(replace(known, source=seen), grid.shape).error(grid, State(mean.u.coefficients, {}, ()))


def _coarse(found: Sequence[Tones], nodes: Sequence[np.ndarray]) -> list[str]:
    """What to do about tones that the nodes do not resolve, for every axis; empty where they do."""
    return [complaint(f, n, axis) for axis, (f, n) in enumerate(zip(found, nodes, strict=True))]


def _warn(complaints: Sequence[str]) -> None:
    if any(complaints):
        warnings.warn(" ".join(filter(None, complaints)), FitWarning)


def _source(problem: Problem, nodes: tuple[np.ndarray, ...]) -> Tensor:
    """The values [M] of the source at the nodes."""
    if not isinstance(problem.source, (Tensor, np.ndarray)):
        return evaluate(problem.source, points(nodes), "The source")
    values = torch.as_tensor(problem.source, dtype=torch.float64)
    shape = tuple(len(n) for n in nodes)
    if tuple(values.shape) != shape:
        raise InputError(
            f"The source has values of shape {list(values.shape)}, the grid {list(shape)}; give grid= the same."
        )
    return values.reshape(-1)


def _bases(problem: Problem, nodes: tuple[np.ndarray, ...], kernel: Any) -> list[Any]:
    kernels = list(kernel) if isinstance(kernel, (list, tuple)) else [kernel] * len(nodes)
    if len(kernels) != len(nodes):
        raise InputError(f"kernel is one kernel or a list of one for each of {len(nodes)} axes, got {len(kernels)}.")
    return [kernel_basis(k, n, order) for k, n, order in zip(kernels, nodes, problem.orders, strict=True)]
