"""Learning with kernels in which something is fixed where a fit begins, such as the lengths of random walks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from gpx.errors import InputError
from gpx.inference import stochastic
from gpx.inference.coordinates import Coordinates
from gpx.inference.fit import fit
from gpx.inference.objectives import Objective
from gpx.inference.problem import Problem
from gpx.inference.result import FitOptions, FitResult
from gpx.inference.stage import Keep, Reached
from gpx.kernels.base import Kernel


def learn(
    problem: Problem, objective: Objective, coordinates: Coordinates, options: FitOptions, start: Reached | None,
    keep: Keep | None,
) -> tuple[FitResult, Problem]:  # fmt: skip
    """`fit`, all rows at a time or in batches. Where its end is beyond what kernels were fixed for, they are fixed anew there,
    and it goes on, once, in what is left of iterations and time.
    """
    search = fit if problem.engine.batch_size is None else stochastic.fit
    result, problem = search(problem, objective, coordinates, options, start, keep)
    short, left = [k for k in _kernels(problem) if k.shortfall()], options.after(result)
    if not short or left is None:
        return result, problem
    end, undo = coordinates.read(), [kernel.resettle() for kernel in short]
    try:
        farther = replace(problem.anew(), plan=problem.engine.plan(problem.prior, problem.data))
        here = Reached(end[None], state=problem.engine.state(problem.plan), drawn=True)
        again, farther = search(farther, objective, coordinates, left, here, keep)
    except InputError:  # more memory than there may be: what was reached is not lost, and the shortfall is told
        if problem.data.team.size > 1:
            raise  # the others wait
        for back in undo:
            back()
        coordinates.assign(end)
        return result, problem
    return again.after(result), farther


def shortfalls(problem: Problem) -> list[str]:
    """What kernels leave out at the present hyperparameters, in words."""
    return [text for kernel in _kernels(problem) if (text := kernel.shortfall())]


def _kernels(problem: Problem) -> Iterable[Any]:
    parts = (part for kernel in problem.prior.kernels for part in kernel.modules() if isinstance(part, Kernel))
    return dict.fromkeys(parts)  # one that is shared counts once
