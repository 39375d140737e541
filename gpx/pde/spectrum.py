"""Which frequencies a solution will have along every axis: those of the source and of the boundary values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpx.linalg.tones import find_tones
from gpx.pde.boundary import Robin
from gpx.pde.domains import points
from gpx.pde.fields import evaluate
from gpx.pde.problem import Problem

LINES = 3  # per axis, at places of the other axes without a pattern
DENSER = 4  # stamps of a line per point of the grid
MAX_STAMPS = 4000
TONES = 12  # per line, and per axis
FAINT = 1e-8  # power, of the strongest on all lines: not followed
LOUD = 1e-4  # power above the Nyquist frequency that is worth a warning
GOLDEN = (np.sqrt(5) - 1) / 2


Tones = list[tuple[float, float]]
"""(power, frequency in cycles per unit) along one axis; powers are relative; the slopes of lines have frequency zero."""


def tones(problem: Problem, counts: tuple[int, ...]) -> list[Tones]:
    """For every axis, the tones of the source and of the boundary values, along lines denser than the grid."""
    found = []
    for axis, (count, bounds) in enumerate(zip(counts, problem.domain.bounds, strict=True)):
        stamps = np.linspace(*bounds, min(DENSER * count, MAX_STAMPS))
        lines = [evaluate(problem.source, line, "The source") for line in _lines(problem, axis, stamps, {})]
        found.append(_of_lines(lines, stamps) + _of_boundary(problem, axis, stamps))
    return found


def tones_of_values(problem: Problem, nodes: Sequence[np.ndarray], source: Tensor) -> list[Tones]:
    """The same from values [M] of the source on the grid alone."""
    found = []
    for axis, stamps in enumerate(nodes):
        lines = np.moveaxis(source.numpy().reshape([len(n) for n in nodes]), axis, 0).reshape(len(stamps), -1)
        some = sorted({int((i + 1) * GOLDEN * lines.shape[1]) % lines.shape[1] for i in range(LINES)})
        of_source = _of_lines([torch.from_numpy(lines[:, k]) for k in some], stamps)
        found.append(of_source + _of_boundary(problem, axis, stamps))
    return found


def resolved(found: Tones, nodes: np.ndarray) -> np.ndarray:
    """The strongest frequencies below the Nyquist frequency of the nodes, at least half a cycle over their range apart."""
    tones = [(power, f) for power, f in found if f > 0]
    strongest = max((power for power, _ in tones), default=0.0)
    kept: list[float] = []
    for power, f in sorted(tones, reverse=True):
        if power > FAINT * strongest and f < nyquist(nodes) and all(abs(f - g) * np.ptp(nodes) > 0.5 for g in kept):
            kept.append(f)
    return np.array(kept[:TONES])


def complaint(found: Tones, nodes: np.ndarray, axis: int) -> str:
    """What to do about a strong tone above the Nyquist frequency of the nodes; empty where there is none."""
    power, highest = max(((p, f) for p, f in found if f >= nyquist(nodes)), default=(0.0, 0.0))
    if not power or power <= LOUD * max(p for p, _ in found):
        return ""
    return (
        f"The source or the boundary values vary along axis {axis} with {highest:.4g} cycles per unit, and {len(nodes)} points"
        f" tell frequencies below {nyquist(nodes):.4g} apart: the solution will be wrong; give at least"
        f" grid={int(np.ceil(2.2 * highest * np.ptp(nodes))) + 1} points along this axis."
    )


def nyquist(nodes: np.ndarray) -> float:
    """Half a cycle per spacing, in cycles per unit."""
    return float(0.5 * (len(nodes) - 1) / np.ptp(nodes))


def _of_boundary(problem: Problem, axis: int, stamps: np.ndarray) -> Tones:
    """(power, frequency) of the tones of the boundary values along an axis."""
    found = []
    for c in problem.conditions:
        if isinstance(c, Robin) and c.face[0] != axis:
            fixed = {c.face[0]: problem.domain.end(c.face)}
            found += _of_lines(
                [evaluate(c.g, x, "A boundary value") for x in _lines(problem, axis, stamps, fixed)], stamps
            )
    return found


def _of_lines(lines: Sequence[Tensor], stamps: np.ndarray) -> Tones:
    """(power, frequency) of the tones of lines, relative to the strongest line."""
    scale = max(float(line.abs().max()) for line in lines)
    found = []
    for line in lines:
        if scale and float(line.abs().max()) > 1e-6 * scale:
            of_line = find_tones(stamps, line.numpy() / scale, TONES)
            found += [(float(p), float(f)) for p, f in zip(of_line.powers, of_line.frequencies, strict=True)]
            found.append((of_line.trend, 0.0))
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
