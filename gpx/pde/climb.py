"""Newton's method for few variables of unequal scales, with derivatives by differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Loss = Callable[[np.ndarray], float]

MAX_STEPS = 4
LONGEST = 1.5  # step of a variable
HALVINGS = 6
ENOUGH = 1e-3  # decrease that is worth another step
FIRST = 1e-3  # step of differences
GROWTH = (0.01, 1.0)  # of the loss by such a step: more than rounding, but little
TRIALS = 12


def minimise(loss: Loss, at: np.ndarray, bounds: Sequence[tuple[float | None, float | None]]) -> np.ndarray:
    """A local minimum within bounds. Cost: about 2 p^2 + 2 p evaluations per step."""
    low, high = (np.array([np.inf * sign if b[i] is None else b[i] for b in bounds]) for i, sign in ((0, -1), (1, 1)))
    here = loss(at)
    for _ in range(MAX_STEPS):
        slope, second = curvature(loss, at)
        free = ~(((at <= low) & (slope > 0)) | ((at >= high) & (slope < 0)))
        if not free.any() or not np.isfinite(second).all():
            break
        values, vectors = np.linalg.eigh(second[np.ix_(free, free)])
        step = np.zeros(len(at))
        step[free] = -vectors @ ((vectors.T @ slope[free]) / np.maximum(np.abs(values), 1e-8))
        step *= min(1.0, LONGEST / max(np.abs(step).max(), 1e-300))
        for _ in range(HALVINGS):
            there = np.clip(at + step, low, high)
            reached = loss(there)
            if reached < here:
                break
            step = step / 2
        else:
            break
        gained, at, here = here - reached, there, reached
        if gained < ENOUGH:
            break
    return at


def curvature(loss: Loss, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First [p] and second derivatives [p, p], with steps over which the loss grows little, but more than by rounding."""
    here, count = loss(at), len(at)
    steps, ahead, behind = np.zeros(count), np.zeros(count), np.zeros(count)
    for i, unit in enumerate(np.eye(count)):
        steps[i], ahead[i], behind[i] = _differences(loss, here, at, unit)
    bent = np.diag(ahead + behind - 2 * here)
    moves = np.diag(steps)
    for i in range(count):
        for j in range(i):
            both = loss(at + moves[i] + moves[j]) + loss(at - moves[i] - moves[j]) - 2 * here
            parts = both, -bent[i, i], -bent[j, j]
            bent[i, j] = bent[j, i] = 0.5 * sum(parts) if np.isfinite(parts).all() else 0.0
    return (ahead - behind) / (2 * steps), bent / np.outer(steps, steps)


def _differences(loss: Loss, here: float, at: np.ndarray, unit: np.ndarray) -> tuple[float, float, float]:
    """(step, loss ahead, loss behind)."""
    step, short, long = FIRST, 0.0, np.inf
    for _ in range(TRIALS):
        used, ahead, behind = step, loss(at + step * unit), loss(at - step * unit)
        growth = abs(ahead + behind - 2 * here) / 2
        if growth > GROWTH[1] or not np.isfinite(growth):
            long = step
            step *= max(0.5 / np.sqrt(growth), 1e-3) if np.isfinite(growth) else 0.1
        elif growth < GROWTH[0] and step < 0.1:
            short = step
            step *= 4
        else:
            break
        step = step if short < step < long else np.sqrt(short * long)
    return used, ahead, behind
