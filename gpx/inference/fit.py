"""The one optimisation loop: L-BFGS-B on scale-free coordinates, with data-driven starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from gpx.errors import NumericalError, StructureError
from gpx.inference.adam import adam
from gpx.inference.admm import admm
from gpx.inference.alternate import alternate
from gpx.inference.coordinates import Coordinates
from gpx.inference.infer import MAX_STEPS
from gpx.inference.multiplicative import multiplicative, multiplies
from gpx.inference.objectives import Objective
from gpx.inference.problem import Problem
from gpx.inference.result import FitOptions, FitResult
from gpx.inference.stage import Keep, Reached, Trace, late
from gpx.inference.starts import random_starts, shifts
from gpx.linalg.threads import lbfgs
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
TRIAL = 10  # iterations from each start that modules offer, before the worse half goes


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
    failure: str = ""  # why the objective could not be computed the last time that it could not
    told: dict[str, Any] = field(default_factory=dict)  # fields of the `FitResult` that only the minimiser knows

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
        except NumericalError as failure:
            self.failure = str(failure)
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
    noise that the data decide multiplied by the best of a few factors, judged on at most 500 rows, unless the objective needs all
    of them; where modules offer alternatives, the end of short searches from each on these rows, of which the better half goes
    on; then `restarts` random ones. The best end is kept. keep: is handed what is reached, after every iteration.
    Raises: NumericalError if the objective is not finite at any start.
    """
    began = time.monotonic()
    deadline = began + (math.inf if options.max_seconds is None else options.max_seconds)
    objective = objective.prepared(problem)
    team = problem.data.team
    options = options if team.rank == 0 else replace(options, verbose=False)
    bounds = coordinates.bounds()
    first = coordinates.read()
    if not len(first):
        value, seconds = float(objective(problem).detach()), time.monotonic() - began
        return FitResult(True, "nothing to learn", value, 0.0, 0, 1, 0, 0.0, seconds, options.seed), problem.anew()
    first = np.clip(first if start is None else start.points[0], bounds[:, 0], bounds[:, 1])
    if start is None:
        coarse = replace(problem, engine=problem.engine.early(len(_rounds(problem, objective)) - 1))
        first = _choose_start(coarse, objective, coordinates, first, options, deadline)
    coordinates.assign(first)
    start_values = coordinates.values()
    if start is not None and start.drawn:
        starts = [np.clip(z, bounds[:, 0], bounds[:, 1]) for z in start.points]
    else:
        starts = team.share(lambda: [first, *random_starts(first, bounds, options.restarts, options.seed)])
    rounds = _rounds(problem, objective)
    before = None if start is None else start.plan(problem)
    rounds = rounds if start is None else rounds[-start.left :]
    searches: list[_Search] = []
    here, runs, precision = problem, [], 0.0
    with progress_bar(options.max_iter * (len(starts) + len(rounds) - 1), "fit", options.verbose) as bar:
        for index, rows in enumerate(rounds):
            early = replace(problem, engine=problem.engine.early(len(rounds) - 1 - index))
            here = _thinned(early, rows, here.plan if index else before, precision)
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
        **search.told,
    )
    return result, here.anew(search.best_sites)


Run = tuple[_Search, tuple[bool, str, int]]


def _rounds(problem: Problem, objective: Objective) -> tuple[int, ...]:
    rows = problem.data.count
    return (rows,) if objective.needs_all_rows else problem.engine.rounds(rows, problem.plan)


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
    minimise = _minimiser(problem, objective, coordinates)
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


def _minimiser(
    problem: Problem, objective: Objective, coordinates: Coordinates
) -> Callable[..., tuple[bool, str, int]]:
    """That of the objective, or of what is learned, or of the engine."""
    if objective.alternates:
        return alternate
    name = problem.engine.minimiser
    if multiplies(problem, objective, coordinates):
        return admm if name == "admm" else multiplicative
    if name == "admm":
        raise StructureError(
            "QuantisedADMM learns weights of fixed components, with Gaussian noise, and nothing else: use engines.Agents() for"
            " other kernels, whose gradients are added up."
        )
    return MINIMISERS[name]


def _best(runs: list[Run], problem: Problem) -> Run:
    """That with the best end. Raises: NumericalError if the objective was finite nowhere."""
    found = [run for run in runs if run[0].best_z is not None]
    if not found:
        why = " ".join(dict.fromkeys(run[0].failure for run in runs))
        raise NumericalError(f"The objective is not finite at the start of the fit.{diagnose(problem)} {why}".rstrip())
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

    problem = search.problem
    # Counts of all processes are taken before one of them leads.
    slope = STEEP * math.sqrt(max(1, problem.data.targets)) + problem.engine.roughness(problem.plan, problem.data.count)
    return problem.data.team.lead(lambda step: _lbfgs(search, step, start, bounds, slope, options, bar), step)


def _lbfgs(
    search: _Search, step: Callable[[np.ndarray], Any], start: np.ndarray, bounds: np.ndarray, slope: float,
    options: FitOptions, bar: Any,
) -> tuple[bool, str, int]:  # fmt: skip
    """slope: a gradient below which a search has ended."""
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

    engine, root = search.problem.engine, math.sqrt(max(1, search.problem.data.targets))
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
            outcome = lbfgs(
                evaluate, start / unit, bounds=bounds / unit, callback=report, options=limits
            )  # fmt: skip
            # Trial points far away leave wrong curvatures in the memory, and steps become tiny on a slope: forget them.
            steep = search.steepness(bounds) > slope
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
    problem: Problem,
    objective: Objective,
    coordinates: Coordinates,
    z: np.ndarray,
    options: FitOptions,
    deadline: float,
) -> np.ndarray:
    """Of z, with the lengthscales and the noise that the data decide multiplied by some factors, that with the best objective on
    some rows. Where modules offer other starts, short searches go on from the better half, again and again, until one is left.

    Source: Jamieson & Talwalkar (2016), "Non-stochastic best arm identification and hyperparameter optimization" (halving).
    """
    engine, whole = problem.engine, objective.needs_all_rows
    small = problem if whole else _thinned(problem, engine.start_rows)
    search = _Search(small, objective, coordinates, _baseline(small))
    moved = shifts(coordinates, problem.data.count, whole or engine.consecutive)
    offered = [z, *coordinates.starts()[1:]]
    judged = [_shifted(search, start, moved, deadline) for start in offered]
    if len(offered) == 1:
        return judged[0][1]
    starts = [start for _, start in sorted(judged, key=lambda found: found[0])]
    short, pace = replace(options, max_iter=min(TRIAL, options.max_iter)), _Pace(_share(deadline, 2))
    with progress_bar(None, "starts", options.verbose) as bar:
        while len(starts) > 1 and not late(pace.deadline, problem.data.team):
            ends = [search for search, _ in _round(small, objective, coordinates, starts, short, pace, bar, None)]
            kept = sorted((e for e in ends if e.best_z is not None), key=lambda e: e.best)[: len(starts) // 2]
            starts = [e.best_z for e in kept if e.best_z is not None] or starts[:1]
    return starts[0]


def _shifted(search: _Search, z: np.ndarray, steps: list[np.ndarray], deadline: float) -> tuple[float, np.ndarray]:
    """The best loss at z and some steps from it, and where."""
    bounds = search.coordinates.bounds()
    candidates = np.unique([np.clip(z + s, bounds[:, 0], bounds[:, 1]) for s in steps], axis=0)
    if len(candidates) == 1:
        return math.inf, candidates[0]
    losses = [math.inf if late(deadline, search.problem.data.team) else search.loss(c) for c in candidates]
    best = int(np.argmin(losses))
    return (losses[best], candidates[best]) if math.isfinite(losses[best]) else (math.inf, z)


@torch.no_grad()
def _precision(problem: Problem, sites: Sites | None) -> float:
    """The mean precision of the sites."""
    sites = problem.likelihood.exact_sites(problem.data) or sites
    return float(problem.data.team.mean(np.array([0.0 if sites is None else sites.mean_precision]))[0])


def _thinned(problem: Problem, rows: int, before: Any = None, precision: float = 0.0) -> Problem:
    """The problem on at most so many rows, if the engine takes fewer and the likelihood is not bound to them; planned anew, from
    the plan of a round before and the precision of its sites if there was one.
    """
    bound = problem.likelihood.bound_to_rows
    kept = None if bound or rows >= problem.data.count else problem.engine.few(problem.data, problem.plan, rows)
    data, engine = problem.data if kept is None else problem.data.rows(kept), problem.engine
    plan = engine.plan(problem.prior, data) if before is None else engine.replan(problem.prior, data, before, precision)
    return replace(problem.anew(), data=data, plan=plan)


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
