"""Which frequencies a solution will have along every axis: those of the source and of the boundary values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gpx.errors import FitWarning
from gpx.linalg.tones import find_tones
from gpx.pde.domains import points
from gpx.pde.expressions import evaluate
from gpx.pde.problem import Problem

LINES = 3  # per axis, at places of the other axes without a pattern
DENSER = 4  # stamps of a line per point of the grid
MAX_STAMPS = 4000
TONES = 6  # per line
FAINT = 1e-8  # power, of the strongest on all lines: not followed
LOUD = 1e-4  # power above the Nyquist frequency that is worth a warning
GOLDEN = (np.sqrt(5) - 1) / 2


def frequencies(problem: Problem, counts: tuple[int, ...]) -> list[np.ndarray]:
    """For every axis, the frequencies in cycles per unit of the source and of the boundary values, below Nyquist's.

    Warns: FitWarning where a strong one is above the Nyquist frequency of the grid.
    """
    functions: list[tuple[Callable[[Tensor], Tensor], dict[int, float]]] = [
        (lambda x: evaluate(problem.source, x, "The source"), {})
    ]
    for c in (c for axis in range(problem.domain.dims) for c in problem.along(axis)):
        functions.append((lambda x, c=c: evaluate(c.g, x, "A boundary value"), {c.face[0]: problem.domain.end(c.face)}))
    return [along(problem, axis, counts[axis], functions) for axis in range(problem.domain.dims)]


def along(
    problem: Problem, axis: int, count: int, functions: Sequence[tuple[Callable[[Tensor], Tensor], dict[int, float]]]
) -> np.ndarray:
    """The frequencies along one axis of functions of x, each with the coordinates that are fixed."""
    low, high = problem.domain.bounds[axis]
    stamps = np.linspace(low, high, min(DENSER * count, MAX_STAMPS))
    nyquist = (count - 1) / (2 * (high - low))
    found: list[tuple[float, float]] = []
    for function, fixed in functions:
        if axis not in fixed:
            found += _of_lines([function(line) for line in _lines(problem, axis, stamps, fixed)], stamps)
    strongest = max((power for power, _ in found), default=0.0)
    beyond = [(power, f) for power, f in found if f >= nyquist]
    if beyond and max(beyond)[0] > LOUD * strongest:
        warnings.warn(
            f"The source or the boundary values vary along axis {axis} with {max(beyond)[1]:.4g} cycles per unit, and {count}"
            f" points tell frequencies below {nyquist:.4g} apart: the solution will be wrong; give at least"
            f" grid={int(np.ceil(2.2 * max(beyond)[1] * (high - low))) + 1} points along this axis.",
            FitWarning,
        )
    kept: list[float] = []
    for power, f in sorted(found, reverse=True):
        if power > FAINT * strongest and f < nyquist and all(abs(f - g) * (high - low) > 0.5 for g in kept):
            kept.append(f)
    return np.array(kept[:TONES])


def _of_lines(lines: Sequence[Tensor], stamps: np.ndarray) -> list[tuple[float, float]]:
    """(power, frequency) of the tones of lines, relative to the strongest line."""
    scale = max(float(line.abs().max()) for line in lines)
    found = []
    for line in lines:
        if scale and float(line.abs().max()) > 1e-6 * scale:
            tones = find_tones(stamps, line.numpy() / scale, TONES)
            found += [(float(p), float(f)) for p, f in zip(tones.powers, tones.frequencies, strict=True)]
    return found


def _lines(problem: Problem, axis: int, stamps: np.ndarray, fixed: dict[int, float]) -> list[Tensor]:
    """Lines [n, d] along an axis, at points of a Kronecker sequence of the other axes."""
    found = []
    others = [k for k in range(problem.domain.dims) if k != axis]
    for i in range(LINES if len(fixed) < len(others) else 1):
        axes = [stamps] * problem.domain.dims
        for j, k in enumerate(others):
            low, high = problem.domain.bounds[k]
            share = ((i + 1) * GOLDEN ** (j + 1)) % 1.0
            axes[k] = np.array([fixed.get(k, low + share * (high - low))])
        found.append(points(axes))
    return found


def residual_line(values: Callable[[Tensor], Tensor]) -> list[tuple[Callable[[Tensor], Tensor], dict[int, float]]]:
    """A function of x, as `along` takes it."""
    return [(lambda x: torch.as_tensor(values(x)), {})]
