"""The one optimisation loop: L-BFGS-B on scale-free coordinates, with data-driven starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from gpx.errors import NumericalError
from gpx.inference.adam import adam
from gpx.inference.alternate import alternate
from gpx.inference.coordinates import Coordinate, Coordinates
from gpx.inference.infer import MAX_STEPS
from gpx.inference.objectives import Objective, prepared
from gpx.inference.problem import Problem
from gpx.inference.result import FitOptions, FitResult
from gpx.inference.stage import Keep, Reached, Trace, late
from gpx.progress import progress_bar
from gpx.sites import Sites

FTOL_TENSORS = 1e-6  # relative to the gain over white noise, where inducing inputs move: their valley is long and flat
GTOL = 1e-5  # nats per unit of a coordinate, times the square root of N
STEEP = 1e-2  # likewise: a search that stops on a steeper slope is begun anew from there
MAX_RENEWALS = 3
PLATEAU = 3  # evaluations in a row that may be equal
REACH = 10.0  # standard errors of one datum: the optimum of all rows is so near that of a part of them
WARM_STEPS = 30  # from the sites of a neighbour: where these do not do, it is no neighbour
COARSE = 1e-3  # residual of the sites above which an objective is not trusted
LENGTHSCALE_FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0)
NOISE_FACTORS = (1.0, 0.01)
RESTART_SPREAD = 1.5


class _Timeout(Exception):
    """The time is up."""


class _Settled(Exception):
    """The objective is the same at one point after the other."""


@dataclass(frozen=True)
class _Pace:
    """deadline: when a search ends; reach: how far its first step goes."""

    deadline: float = math.inf
    reach: float = 1.0


@dataclass
class _Search:
    """One objective as a function of coordinates for scipy: remembers the best point, rejects what is not finite."""

    problem: Problem
    objective: Objective
    coordinates: Coordinates
    baseline: float
    pace: _Pace = _Pace()
    trace: Trace | None = None
    best: float = math.inf
    best_z: np.ndarray | None = None
    best_gradient: np.ndarray | None = None
    best_sites: Sites | None = None
    evaluations: int = 0
    rejected: int = 0
    unconverged: int = 0

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        if self.best_z is not None and late(self.deadline, self.problem.data.team):
            raise _Timeout
        self.evaluations += 1
        warm = self.best_sites is not None
        problem = self.problem.anew(self.best_sites, WARM_STEPS if warm else MAX_STEPS)
        loss, gradient = self.evaluate(problem, z)
        # Of a cliff the line search learns nothing but that it is steep: its next step would be too short to go on from.
        usable = math.isfinite(loss) and loss <= self.best + self._height and np.isfinite(gradient).all()
        if not usable:
            return self._wall(z)
        found = problem.found
        if found is not None and not found.converged:
            self.unconverged += 1
            if found.residual > COARSE and self.best_z is not None:
                return self._wall(z)
        self.record(loss, z, gradient, None if found is None else found.posterior.sites)
        return loss, gradient

    @property
    def deadline(self) -> float:
        """When it ends."""
        return self.pace.deadline

    def steepness(self, bounds: np.ndarray) -> float:
        """The largest entry of the projected gradient at the best point."""
        if self.best_z is None or self.best_gradient is None:
            return 0.0
        return float(np.abs(_projected(self.best_z, self.best_gradient, bounds)).max())

    def record(self, loss: float, z: np.ndarray, gradient: np.ndarray, sites: Sites | None) -> bool:
        """Keep a point that is better than the best; whether it is."""
        better = loss < self.best
        if better:
            self.best, self.best_z, self.best_gradient, self.best_sites = loss, z.copy(), gradient, sites
        return better

    @torch.no_grad()
    def loss(self, z: np.ndarray) -> float:
        """The loss at z, infinite where it cannot be computed."""
        self.coordinates.assign(z)
        try:
            value = float(self.objective(self.problem.anew())) + float(self.coordinates.log_prior())
        except NumericalError:
            return math.inf
        return self.problem.data.team.max(self.baseline - value if math.isfinite(value) else math.inf)

    def note(self) -> None:
        """Let the best point be kept, where a fit is."""
        if self.trace is not None:
            self.trace.note(self.best, self.best_z)

    def evaluate(self, problem: Problem, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient at z of a problem that nothing was asked of yet."""
        self.coordinates.assign(z)
        try:
            with torch.enable_grad():
                value = self.objective(problem)
                total = value.double().cpu() + self.coordinates.log_prior()
                grads = torch.autograd.grad(total, self.coordinates.raws, allow_unused=True)
        except NumericalError:
            return math.inf, np.zeros_like(z)
        values = np.concatenate([[float(total.detach())], self.coordinates.gradient(z, grads)])
        values = problem.data.team.mean(values)
        return self.baseline - float(values[0]), -values[1:]

    @property
    def _height(self) -> float:
        """Of the wall above the best loss; infinite where there is no best."""
        return 1e3 + abs(self.best)

    def _wall(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """A parabola around the best point, so that the line search steps back to where the objective is finite."""
        self.rejected += 1
        if self.best_z is None:
            return math.inf, np.zeros_like(z)
        away, height = z - self.best_z, self._height
        distance = max(float(away @ away), 1e-300)
        return self.best + height, 2 * height * away / distance


def fit(
    problem: Problem,
    objective: Objective,
    coordinates: Coordinates,
    options: FitOptions,
    start: Reached | None = None,
    keep: Keep | None = None,
) -> tuple[FitResult, Problem]:
    """Maximise objective + log prior over the coordinates; the modules are left at the optimum.

    Returns: how it ended, and the problem to be solved there.

    The engine may ask for several rounds, on more and more of the rows, each from the end of the one before.
    Starts: those of `start` if given, in the round where that was; else the data-driven values, with the lengthscales and the
    noise that the data decide multiplied by the best of a few factors (judged on at most 500 rows, unless the objective needs all
    of them); then `restarts` random ones. The best end is kept. keep: is handed what is reached, after every iteration.
    Raises: NumericalError if the objective is not finite at any start.
    """
    began = time.monotonic()
    deadline = began + (math.inf if options.max_seconds is None else options.max_seconds)
    objective = prepared(objective, problem)
    bounds = coordinates.bounds()
    first = coordinates.read()
    if not len(first):
        value, seconds = float(objective(problem).detach()), time.monotonic() - began
        return FitResult(True, "nothing to learn", value, 0.0, 0, 1, 0, 0.0, seconds, options.seed), problem.anew()
    first = np.clip(first if start is None else start.points[0], bounds[:, 0], bounds[:, 1])
    if start is None:
        first = _choose_start(problem, objective, coordinates, first, deadline)
    coordinates.assign(first)
    start_values = coordinates.values()
    team = problem.data.team
    if start is not None and start.drawn:
        starts = [np.clip(z, bounds[:, 0], bounds[:, 1]) for z in start.points]
    else:
        starts = team.share(lambda: [first, *_random_starts(first, bounds, options)])
    rounds = _rounds(problem, objective)
    before = None if start is None else start.plan(problem)
    rounds = rounds if start is None else rounds[-start.left :]
    searches: list[_Search] = []
    here, runs, precision = problem, [], 0.0
    verbose = options.verbose if team.rank == 0 else False
    with progress_bar(options.max_iter * (len(starts) + len(rounds) - 1), "fit", verbose) as bar:
        for index, rows in enumerate(rounds):
            here = _thinned(problem, rows, here.plan if index else before, precision)
            whole = coordinates.with_tensors(here.engine.parameters(here.prior, here.plan), here.data.spread)
            limit = _share(deadline, len(rounds) - index)
            reach = min(1.0, REACH / math.sqrt(rounds[index - 1])) if index else 1.0
            pace = _Pace(limit, reach)
            trace = None if keep is None else Trace(keep, here, whole, starts, len(rounds) - index)
            runs = list(_round(here, objective, whole, starts, options, pace, bar, trace))
            searches += [search for search, _ in runs]
            search = _best(runs, problem)[0]
            best = search.best_z
            assert best is not None
            whole.assign(best)
            starts = [best[: len(first)]]
            # A round that took all its time leaves none for a larger plan.
            precision = 0.0 if late(limit, team) else _precision(here, search.best_sites)
    search, (converged, reason, iterations) = _best(runs, problem)
    assert search.best_z is not None
    log_prior = float(coordinates.log_prior().detach())
    labels = coordinates.labels()
    result = FitResult(
        converged=converged,
        reason=reason,
        objective=search.baseline - search.best - log_prior,
        log_prior=log_prior,
        iterations=iterations,
        evaluations=sum(s.evaluations for s in searches),
        rejected=sum(s.rejected for s in searches),
        gradient_norm=search.steepness(whole.bounds()),
        seconds=time.monotonic() - began,
        seed=options.seed,
        at_bounds=tuple(n for n, z, (a, b) in zip(labels, search.best_z, bounds, strict=False) if z <= a or z >= b),
        objectives=tuple(s.baseline - s.best for s in searches if s.best_z is not None),
        starts=dict(zip(labels, start_values, strict=True)),
        unconverged=sum(s.unconverged for s in searches),
    )
    return result, here.anew(search.best_sites)


Run = tuple[_Search, tuple[bool, str, int]]


def _rounds(problem: Problem, objective: Objective) -> tuple[int, ...]:
    rows = problem.data.count
    return (rows,) if getattr(objective, "needs_all_rows", False) else problem.engine.rounds(rows)


def _share(deadline: float, rounds: int) -> float:
    """When a round should end if so many are left, this one included."""
    now = time.monotonic()
    return now + (deadline - now) / rounds


def _round(
    problem: Problem,
    objective: Objective,
    coordinates: Coordinates,
    starts: list[np.ndarray],
    options: FitOptions,
    pace: _Pace,
    bar: Any,
    trace: Trace | None,
) -> Iterator[Run]:
    """Optimise from every start, until the time is up."""
    minimise = alternate if getattr(objective, "alternates", False) else MINIMISERS[problem.engine.minimiser]
    baseline, bounds = _baseline(problem), coordinates.bounds()
    rest = coordinates.read()
    for start in starts:
        search = _Search(problem, objective, coordinates, baseline, pace, trace)
        yield search, minimise(search, np.concatenate([start, rest[len(start) :]]), bounds, options, bar)
        bar.refresh()
        if trace is not None:
            trace.next()
        if late(pace.deadline, problem.data.team):
            return


def _best(runs: list[Run], problem: Problem) -> Run:
    """That with the best end. Raises: NumericalError if the objective was finite nowhere."""
    found = [run for run in runs if run[0].best_z is not None]
    if not found:
        raise NumericalError("The objective is not finite at the start of the fit." + diagnose(problem))
    return min(found, key=lambda run: run[0].best)


def _minimise(
    search: _Search, start: np.ndarray, bounds: np.ndarray, options: FitOptions, bar: Any
) -> tuple[bool, str, int]:
    """Run scipy's L-BFGS-B; whether it converged, why it stopped, and after how many iterations."""

    def step(z: np.ndarray) -> tuple[float, np.ndarray] | None:
        try:
            return search(z)
        except _Timeout:
            return None

    return search.problem.data.team.lead(lambda step: _lbfgs(search, step, start, bounds, options, bar), step)


def _lbfgs(
    search: _Search, step: Callable[[np.ndarray], Any], start: np.ndarray, bounds: np.ndarray, options: FitOptions, bar: Any
) -> tuple[bool, str, int]:  # fmt: skip
    iterations = still = 0

    def evaluate(w: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal still
        best, found = search.best, step(unit * w)
        if found is None:
            raise _Timeout
        # Where gradients are rough a line search may look for a better point for long, and find none.
        still = still + 1 if abs(found[0] - best) <= engine.precision * max(1.0, abs(found[0])) else 0
        if still > PLATEAU:
            raise _Settled
        return found[0], unit * found[1]

    def report(intermediate_result: Any) -> None:
        nonlocal iterations
        iterations += 1
        search.note()
        bar.update()
        bar.set_postfix_str(f"objective {search.baseline - search.best:.3f}", refresh=False)

    engine, rows = search.problem.engine, search.problem.data.count
    root = math.sqrt(max(1, search.problem.data.targets))
    unit = search.pace.reach  # scipy's first step has the length 1, whatever the slope
    try:
        for _ in range(1 + MAX_RENEWALS):
            limits = {
                "maxiter": options.max_iter - iterations,
                "maxfun": max(1, 20 * options.max_iter - search.evaluations),
            }
            limits |= {
                "ftol": max(engine.precision, FTOL_TENSORS if search.coordinates.has_tensors else 0.0),
                "gtol": unit * GTOL * root,
                "maxcor": 20,
            }
            outcome = minimize(
                evaluate, start / unit, jac=True, method="L-BFGS-B", bounds=bounds / unit, callback=report, options=limits
            )  # fmt: skip
            # Trial points far away leave wrong curvatures in the memory, and steps become tiny on a slope: forget them.
            steep = search.steepness(bounds) > STEEP * root + engine.roughness(rows)
            if outcome.status == 1 or not steep or iterations >= options.max_iter or search.best_z is None:
                break
            start = search.best_z
    except _Timeout:
        return False, "max_seconds is up", iterations
    except _Settled:
        return True, "objective no longer changes", iterations
    if outcome.status == 1:
        return False, f"max_iter={options.max_iter} reached", iterations
    if outcome.status == 0:
        return True, "gradient is zero" if "GRAD" in str(outcome.message) else "objective no longer changes", iterations
    # The line search found no better point: at the resolution of the arithmetic this is an optimum.
    return True, "no better point on the line of search", iterations


MINIMISERS = {"l-bfgs": _minimise, "adam": adam}


def _projected(z: np.ndarray, gradient: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    return z - np.clip(z - gradient, bounds[:, 0], bounds[:, 1])


def _baseline(problem: Problem) -> float:
    """The log density of the data under a constant and white noise: the zero of the relative tolerance, so that it does
    not depend on the units of the target.
    """
    count = problem.data.targets
    return -0.5 * count * (math.log(2 * math.pi * problem.data.variance) + 1)


def _choose_start(
    problem: Problem, objective: Objective, coordinates: Coordinates, z: np.ndarray, deadline: float
) -> np.ndarray:
    """Of the starts that the modules offer, with the lengthscales and the noise that the data decide multiplied by some factors,
    that with the best objective on some rows.
    """
    lengths, noise = _free(coordinates, _is_length), _free(coordinates, lambda module, name: name == "noise")
    # The smoothness within a period is no length, but as uncertain; it has no finer scales.
    scales = np.maximum(lengths, _free(coordinates, lambda module, name: name == "lengthscale"))
    engine, whole = problem.engine, getattr(objective, "needs_all_rows", False)
    small = problem if whole else _thinned(problem, engine.start_rows)
    search = _Search(small, objective, coordinates, _baseline(small))
    bounds = coordinates.bounds()
    fine = _finer(problem.data.count) if whole or engine.consecutive else []
    moves = [math.log(f) * lengths for f in fine] + [math.log(f) * scales for f in LENGTHSCALE_FACTORS]
    shifts = [move + math.log(g) * noise for move in moves for g in NOISE_FACTORS]
    offered = [z, *coordinates.starts()[1:]]
    candidates = [np.clip(start + s, bounds[:, 0], bounds[:, 1]) for start in offered for s in [0 * z, *shifts]]
    candidates = np.unique(candidates, axis=0)
    if len(candidates) == 1:
        return z
    losses = [math.inf if late(deadline, problem.data.team) else search.loss(c) for c in candidates]
    return candidates[int(np.argmin(losses))] if np.isfinite(losses).any() else z


def _finer(rows: int) -> list[float]:
    """Factors below the usual ones, down to about the spacing of the rows: a long series may vary that fast."""
    ratio, smallest = 0.3, min(LENGTHSCALE_FACTORS)
    count = math.floor(math.log(2 / (rows * smallest)) / math.log(ratio)) if rows * smallest > 2 else 0
    return [smallest * ratio**j for j in range(count, 0, -1)]


def _free(coordinates: Coordinates, wanted: Callable[[Any, str], bool]) -> np.ndarray:
    """1 for coordinates of wanted values (module, name) that the data decide, 0 for others."""

    def free(entry: Coordinate) -> bool:
        choices = getattr(entry.module, "choices", {})
        return entry.name in choices and not choices[entry.name].given and wanted(entry.module, entry.name)

    parts = [np.full(e.raw.numel(), float(free(e))) for e in coordinates.entries]
    return np.concatenate(parts)


def _is_length(module: Any, name: str) -> bool:
    return type(module).values()[name].length


@torch.no_grad()
def _precision(problem: Problem, sites: Sites | None) -> float:
    """The mean precision of the sites."""
    sites = problem.likelihood.exact_sites(problem.data) or sites
    return float(problem.data.team.mean(np.array([0.0 if sites is None else sites.mean_precision]))[0])


def _thinned(problem: Problem, rows: int, before: Any = None, precision: float = 0.0) -> Problem:
    """The problem on at most so many rows, if the engine takes fewer and the likelihood is not bound to them; planned anew, from
    the plan of a round before and the precision of its sites if there was one.
    """
    bound = getattr(problem.likelihood, "known_noise", None) is not None
    kept = None if bound or rows >= problem.data.count else problem.engine.few(problem.data, problem.plan, rows)
    data, engine = problem.data if kept is None else problem.data.rows(kept), problem.engine
    plan = engine.plan(problem.prior, data) if before is None else engine.replan(problem.prior, data, before, precision)
    return replace(problem.anew(), data=data, plan=plan)


def _random_starts(first: np.ndarray, bounds: np.ndarray, options: FitOptions) -> list[np.ndarray]:
    random = np.random.default_rng(options.seed)
    draws = [first + RESTART_SPREAD * random.standard_normal(len(first)) for _ in range(options.restarts)]
    return [np.clip(d, bounds[:, 0], bounds[:, 1]) for d in draws]


def diagnose(problem: Problem) -> str:
    """Likely causes of a numerical failure that are found in the data and the hyperparameters."""
    causes = []
    x = problem.data.x
    unique = torch.unique(x, dim=0)
    if len(unique) < len(x):
        causes.append(f"{len(x) - len(unique)} duplicate input row(s): let the noise be learned, or average them")
    noise = getattr(problem.likelihood, "noise", None)
    if noise is not None and float(noise.detach().min()) < 1e-8 * problem.data.variance:
        causes.append(
            f"the noise variance {float(noise.detach().min()):.1e} is tiny beside the target variance: raise it"
        )
    spans = (x.amax(0) - x.amin(0)).clamp_min(torch.finfo(x.dtype).tiny)
    for kernel in problem.prior.kernels:
        for module in kernel.modules():
            lengthscale = getattr(module, "lengthscale", None)
            if lengthscale is not None and float(lengthscale.detach().min()) > 1e3 * float(spans.max()):
                causes.append("a lengthscale is over 1,000 times the range of the inputs: lower it or give it bounds")
    return " Found: " + "; ".join(causes) + "." if causes else " No likely cause was found in the data."
