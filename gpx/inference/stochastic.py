"""Fits in batches of rows, for data beyond memory or beyond patience.

Some thousand rows give a start by `fit`. Then every batch gives an unbiased estimate of the bound and of the statistics of q(u):
the statistics follow it by a natural-gradient step, the hyperparameters by Adam. The end is passes over all rows at the final
hyperparameters, so that posterior and bound are those of all data. Theory: docs/theory/sparse.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.engines.projections import Statistics
from gpx.errors import NumericalError, StructureError
from gpx.inference import fit as plain
from gpx.inference.coordinates import Coordinates
from gpx.inference.objectives import ELBO, Evidence, Objective
from gpx.inference.problem import Problem, Solved
from gpx.inference.result import FitOptions, FitResult
from gpx.inference.rules import Variational, natural_sites
from gpx.inference.stage import Keep, Reached
from gpx.inference.sweeps import Belief, added, expected_gradient, gathered, swept
from gpx.posterior import make_generator
from gpx.progress import progress_bar

FIRST_ROWS, FIRST_ITERATIONS = 2_000, 20  # of the fit that gives the start
LEG = 50  # batches between two decisions
RATES = (2e-2, 5e-3, 1.25e-3)  # of Adam in log coordinates, one after the other
GAIN = 1e-3  # nats per target: less than this from leg to leg, or than the noise, and the next rate is due
SLOWEST = 0.02  # share of a batch in the statistics of q(u); before, they are an average
MAX_FAILURES = 10
MOMENTS = (0.9, 0.99)


def check(problem: Problem, objective: Objective) -> None:
    """Raise StructureError unless the objective is a sum over rows whose sites are a natural gradient."""
    likelihood, rule = problem.likelihood, problem.rule
    if problem.data.team.size > 1:
        raise StructureError(
            "Several processes share the rows of every step: leave batch_size out, or fit in one process."
        )
    if likelihood.bound_to_rows:
        raise StructureError(
            f"{type(likelihood).__name__} with a noise variance per row cannot be mini-batched: it is bound to the rows in their"
            " order. Leave batch_size out, or learn one noise variance."
        )
    fits = isinstance(objective, ELBO) or isinstance(objective, Evidence) and likelihood.conjugate
    if not fits or not isinstance(rule, Variational):
        raise StructureError(
            f"objectives.{type(objective).__name__} with rules.{type(rule).__name__} cannot be mini-batched: use"
            " objectives.ELBO() with rules.Variational(), or leave batch_size out."
        )


def batches(rows: int, size: int, seed: int | None) -> Iterator[Tensor]:
    """Indices of rows, without end: every epoch visits all of them once, in an order of its own, in batches that differ by at
    most one row.

    >>> [len(b) for b, _ in zip(batches(5, 2, 0), range(3))]
    [2, 2, 1]
    """
    generator = make_generator(seed)
    while True:
        yield from (
            b.sort().values
            for b in torch.tensor_split(torch.randperm(rows, generator=generator), math.ceil(rows / size))
        )


def estimate(belief: Belief, rows: Tensor, count: int) -> tuple[Tensor, tuple[Statistics, ...]]:
    """From one of `count` batches: the ELBO of all rows, differentiable in the hyperparameters, and the statistics of the q(u)
    that one natural-gradient step of length one would reach.

    Both are unbiased: their means over the batches of an epoch are the values for all rows.
    Cost: O(B M^2 + M^3) for B rows.
    """
    problem = belief.problem
    data = problem.data.rows(rows)
    marginals, ws = belief.seen(data.x)
    expected, slope, curvature = expected_gradient(problem, data, marginals)
    if torch.is_grad_enabled():
        push = belief.push(data.x, ws, slope, curvature)
        expected = expected + push - push.detach()
    value = count * expected - belief.divergence()
    with torch.no_grad():
        sites = natural_sites(problem.likelihood, data, marginals.mean, slope, curvature)
        centred = sites.centred(problem.prior.mean_at(data.x, problem.columns))
        parts = added(ws, centred, marginals.extra)
    return value, tuple(Statistics(*(count * part for part in s)) for s in parts)


@dataclass
class Descent:
    """Adam in the box of the coordinates, and q(u) on the way.

    count: batches of an epoch; seen: batches that the statistics of q(u) are worth.
    """

    belief: Belief
    coordinates: Coordinates
    count: int
    seen: float
    z: np.ndarray = field(init=False)
    first: np.ndarray = field(init=False)
    second: np.ndarray = field(init=False)
    steps: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        self.z, self.bounds = self.coordinates.read(), self.coordinates.bounds()
        self.usable = self.z
        self.first, self.second = np.zeros_like(self.z), np.zeros_like(self.z)

    def step(self, rows: Tensor, rate: float) -> float | None:
        """One batch; returns its estimate of the objective. Where that cannot be computed, the coordinates go back to where it
        could, and the next step sets out from there at rest.

        Raises: NumericalError at the first batch, or after 10 failures.
        """
        try:
            return self._step(rows, rate)
        except NumericalError:
            self.failures += 1
            if not self.steps or self.failures > MAX_FAILURES:
                raise
            self.z, self.first = self.usable, np.zeros_like(self.z)
            self.coordinates.assign(self.z)
            return None

    def reached(self) -> Reached:
        """What it takes to go on from here; q(u) is found anew."""
        problem = self.belief.problem
        state = {name: z.detach().clone() for name, z in problem.engine.state(problem.plan).items()}
        own = len(self.z) - sum(z.numel() for z in problem.engine.parameters(problem.prior, problem.plan).values())
        return Reached(self.z[None, :own], state=state)

    def _step(self, rows: Tensor, rate: float) -> float:
        with torch.enable_grad():
            belief = self.belief.moved()
            value, statistics = estimate(belief, rows, self.count)
            total = value.double().cpu() + self.coordinates.log_prior()
            raws = self.coordinates.raws
            grads = torch.autograd.grad(total, raws, allow_unused=True) if raws else ()
        gradient = self.coordinates.gradient(self.z, grads) if raws else self.z
        found = float(total.detach())
        if not math.isfinite(found) or not np.isfinite(gradient).all():
            raise NumericalError("The objective of a batch is not finite.")
        self.seen, self.usable = self.seen + 1, self.z
        self.belief = belief.numbers().towards(statistics, max(SLOWEST, 1 / self.seen))
        self.steps += 1
        if raws:
            self._move(gradient, rate)
        return found

    def _move(self, gradient: np.ndarray, rate: float) -> None:
        a, b = MOMENTS
        self.first = a * self.first + (1 - a) * gradient
        self.second = b * self.second + (1 - b) * gradient**2
        unbiased = self.first / (1 - a**self.steps), np.sqrt(self.second / (1 - b**self.steps))
        direction = unbiased[0] / np.maximum(unbiased[1], np.finfo(float).tiny)
        self.z = np.clip(self.z + rate * direction, self.bounds[:, 0], self.bounds[:, 1])
        self.coordinates.assign(self.z)


def fit(
    problem: Problem,
    objective: Objective,
    coordinates: Coordinates,
    options: FitOptions,
    start: Reached | None = None,
    keep: Keep | None = None,
) -> tuple[FitResult, Problem]:
    """Maximise objective + log prior over the coordinates from batches of ``engine.batch_size`` rows.

    Returns: how it ended, and the problem, solved: with all rows, at the final hyperparameters. ``max_iter`` counts epochs.
    keep: is handed the hyperparameters and inducing inputs that were reached, after every leg of batches. With as many rows in a
    batch as there are, or a plan that sees all of them at once: as `fit.fit`.
    Raises: StructureError for what cannot be mini-batched; NumericalError if the objective is not finite at the start.
    Cost: O(B M^2 + M^3) per batch, O(N M^2) per pass of the last few.
    """
    check(problem, objective)
    began, engine, total = time.monotonic(), problem.engine, len(problem.data.x)
    assert engine.batch_size is not None
    if engine.batch_size >= total or not engine.batched(problem.plan):
        whole: Any = replace(engine, batch_size=None)  # pyright: ignore
        result, end = plain.fit(replace(problem, engine=whole), objective, coordinates, options, start, keep)
        return result, replace(end, engine=engine)
    deadline = began + (math.inf if options.max_seconds is None else options.max_seconds)
    result, few = _first_rows(problem, objective, coordinates, options, start)
    plan = (None if start is None else start.plan(problem)) or engine.plan(problem.prior, problem.data)
    problem = replace(problem.anew(), plan=plan)
    belief = _first_belief(problem, replace(few, plan=replace(plan, x=few.data.x)))
    every = coordinates.with_tensors(engine.parameters(problem.prior, plan), problem.data.spread)
    count = math.ceil(total / engine.batch_size)
    descent = Descent(belief, every, count, seen=max(1.0, len(few.data.x) / total * count))
    converged, reason = descend(descent, options, deadline, keep)
    with torch.no_grad():
        solution, value = swept(problem.anew(), descent.belief.moved())
        result = result.inferred(solution, problem)
    labels, bounds = coordinates.labels(), coordinates.bounds()
    ends = zip(labels, coordinates.read(), bounds, strict=True)
    result = replace(
        result,
        converged=converged,
        reason=reason,
        objective=value,
        log_prior=float(coordinates.log_prior().detach()),
        iterations=result.iterations + descent.steps,
        evaluations=result.evaluations + descent.steps,
        gradient_norm=float(np.abs(descent.first).max(initial=0.0)),
        seconds=time.monotonic() - began,
        at_bounds=tuple(name for name, z, (a, b) in ends if z <= a or z >= b),
        objectives=(value,),
    )
    return result, Solved.of(problem, solution)


def _first_rows(
    problem: Problem, objective: Objective, coordinates: Coordinates, options: FitOptions, start: Reached | None
) -> tuple[FitResult, Problem]:
    """A fit to some rows, in a third of the time; inducing inputs stay among the data: the batches move them."""
    engine: Any = problem.engine
    engine = engine.unbatched
    data = problem.data.rows(engine.few(problem.data, problem.plan, min(FIRST_ROWS, len(problem.data.x) // 2)))
    few = replace(problem.anew(), data=data, engine=engine, plan=engine.plan(problem.prior, data))
    limit = None if options.max_seconds is None else options.max_seconds / 3
    fewer = replace(options, max_seconds=limit, max_iter=min(FIRST_ITERATIONS, options.max_iter))
    here = None if start is None else Reached(start.points[:1])
    return plain.fit(few, objective, coordinates, fewer, here)


def _first_belief(problem: Problem, few: Problem) -> Belief:
    """Of the rows that gave the start, as many times as there are such parts of all rows."""
    with torch.no_grad():
        sites = few.inferred.posterior.sites
        share = int(problem.data.observed.sum()) / max(1, int(few.data.observed.sum()))
        found = gathered(few, sites)
        parts = tuple(Statistics(*(share * part for part in s)) for s in found.statistics)
        return Belief(problem, found.lowers, parts)


def descend(descent: Descent, options: FitOptions, deadline: float, keep: Keep | None = None) -> tuple[bool, str]:
    """Legs of batches until the objective no longer rises at the smallest rate; whether it converged, and why it stopped."""
    problem, before, longest = descent.belief.problem, -math.inf, options.max_iter * descent.count
    targets, rates = max(1, int(problem.data.observed.sum())), list(RATES)
    size = problem.engine.batch_size
    assert size is not None
    stream = batches(len(problem.data.x), size, options.seed)
    with progress_bar(longest, "batches", options.verbose) as bar:
        while rates:
            values = []
            for rows in (next(stream) for _ in range(LEG)):
                if time.monotonic() > deadline:
                    return False, "max_seconds is up"
                values.append(descent.step(rows, rates[0]))
                bar.update()
            if keep is not None:
                keep(descent.reached())
            values = [v for v in values if v is not None]
            mean, noise = float(np.mean(values)), float(np.std(values)) / math.sqrt(len(values))
            bar.set_postfix_str(f"objective {mean:.3f}", refresh=False)
            if mean - before < max(GAIN * targets, noise):
                rates.pop(0)
            before = max(before, mean)
            if descent.steps >= longest and rates:
                return False, f"max_iter={options.max_iter} epochs reached"
    return True, "objective no longer changes"
