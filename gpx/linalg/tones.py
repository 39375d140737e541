"""Tones of a series: a greedy search of the peaks of its periodogram, each refined by least squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import next_fast_len

OVERSAMPLING = 8  # frequencies per cycle over the range
CELLS = 16  # per cycle of the highest frequency
STEPS = 3  # of Gauss and Newton's after every tone
FALSE_ALARM = 1e-3  # probability that white noise shows a tone
ROUNDING = (
    1e-13  # of the largest value: a rest of this size is none, though what rounds a smooth curve is no white noise
)
GAP_QUANTILE = 0.1  # of the gaps between stamps: the shortest are near-duplicates


@dataclass(frozen=True)
class Tones:
    """What a series is made of, in the squares of its units.

    frequencies [K]: in cycles per unit of time, strongest first; powers [K]: variances a^2 / 2 of tones of amplitude a;
    trend: variance of the least-squares line; rest: variance of what is left.
    """

    frequencies: np.ndarray
    powers: np.ndarray
    trend: float
    rest: float


def highest_frequency(t: np.ndarray) -> float | None:
    """The frequency up to which stamps t [N] tell tones apart: Nyquist's, of all but the shortest gaps, and at most one cycle
    per stamp; None if all are equal.

    >>> round(highest_frequency(np.array([0.0, 0.5, 1.0, 1.000001, 1.5])), 3)
    1.0
    """
    stamps = np.unique(t)
    if len(stamps) < 2:
        return None
    spacing = np.quantile(np.diff(stamps), GAP_QUANTILE, method="higher")
    return float(min(0.5 / spacing, len(stamps) / (stamps[-1] - stamps[0])))


def find_tones(t: np.ndarray, y: np.ndarray, count: int, false_alarm: float = FALSE_ALARM) -> Tones:
    """At most so many tones of y(t), beside a line.

    The highest peak of the Lomb-Scargle periodogram of what is left joins a regression on a line and the tones so far; their
    frequencies are then refined together by steps of Gauss and Newton.

    Arguments: t, y: [N], finite; false_alarm: the probability that white noise shows a tone, infinite: every peak is one.
    Result: tones between one cycle over the range and `highest_frequency`, more than the noise that is left would show; none in
    what is rounding of the values.
    Cost: O(K (N K^2 + N log N)).
    Source: Scargle (1982), Astrophysical Journal 263; Press & Rybicki (1989), Astrophysical Journal 338.
    """
    highest, span = highest_frequency(t) or 0.0, float(np.ptp(t))
    unit = (t - t.mean()) / (span or 1.0)
    line = np.stack([np.ones_like(unit), unit], 1)
    fitted = line @ np.linalg.lstsq(line, y)[0]
    rest, cycles, weights = y - fitted, np.zeros(0), np.zeros((0, 2))
    rounding = ROUNDING * np.abs(y).max(initial=0.0)
    possible = min(count, (len(t) - 3) // 2) if highest * span >= 1 else 0
    while len(cycles) < possible and np.mean(rest**2) > rounding**2:
        grid, power = periodogram(unit, rest, highest * span)
        # Less than a cycle from a tone is its drift, which must not end the search.
        power[np.abs(grid[:, None] - cycles).min(1, initial=np.inf) < 1] = 0
        best = int(np.argmax(power))
        if not power[best] > (np.log(len(grid)) - np.log(false_alarm)) * np.mean(rest**2):
            break
        trial = np.append(cycles, grid[best])
        trial, coefficients, left = _refined(unit, y, line, trial, highest * span)
        if len(trial) > 1 and _closest(trial) < 0.5:
            break
        cycles, weights, rest = trial, coefficients, left
    powers = 0.5 * np.sum(weights**2, 1)
    order = np.argsort(-powers, kind="stable")
    return Tones(cycles[order] / (span or 1.0), powers[order], float(np.var(fitted)), float(np.mean(rest**2)))


def _closest(cycles: np.ndarray) -> float:
    return float(np.diff(np.sort(cycles)).min())


def periodogram(unit: np.ndarray, values: np.ndarray, highest: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies from 1 to `highest` (at least 1), in cycles over the range, and the Lomb-Scargle power of centred values at
    stamps `unit` in [0, 1] (up to a shift): half the sum of squares that a tone explains.
    """
    cells = next_fast_len(int(np.ceil(CELLS * OVERSAMPLING * max(highest, 2.0))), real=True)
    one, two = (np.fft.rfft(_spread(unit, v, cells)) for v in (values, np.ones_like(values)))
    index = np.arange(OVERSAMPLING, int(highest * OVERSAMPLING) + 1)
    wave, double = one[index], two[2 * index]
    # In the phase where sines and cosines are orthogonal.
    turn = np.exp(-0.5j * np.angle(double))
    turned, size = wave * turn, np.abs(double)
    n = len(values)
    power = turned.real**2 / np.maximum(n + size, 1e-9) + turned.imag**2 / np.maximum(n - size, 1e-3 * n)
    return index / OVERSAMPLING, power


def _spread(unit: np.ndarray, values: np.ndarray, cells: int) -> np.ndarray:
    """Values on a grid of cells, OVERSAMPLING times the range: each is shared by the two cells beside it."""
    position = (unit - unit.min()) * (cells / OVERSAMPLING)
    left = np.floor(position).astype(int)
    share = position - left
    return np.bincount(np.append(left, left + 1), np.append((1 - share) * values, share * values), minlength=cells)


def _refined(
    unit: np.ndarray, y: np.ndarray, line: np.ndarray, cycles: np.ndarray, highest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies, amplitudes [K, 2] of cosine and sine, and residual of a regression in which frequencies move too."""
    best = None
    for _ in range(STEPS + 1):
        phase = 2 * np.pi * unit[:, None] * cycles
        cos, sin = np.cos(phase), np.sin(phase)
        design = np.concatenate([line, cos, sin], 1)
        solution = np.linalg.lstsq(design, y)[0]
        rest = y - design @ solution
        weights = solution[line.shape[1] :].reshape(2, -1).T
        loss = float(rest @ rest)
        if best is not None and loss >= best[0]:
            break
        best = (loss, cycles, weights, rest)
        slope = 2 * np.pi * unit[:, None] * (weights[:, 1] * cos - weights[:, 0] * sin)
        step = np.linalg.lstsq(np.concatenate([design, slope], 1), rest)[0][design.shape[1] :]
        cycles = np.clip(cycles + np.clip(step, -0.25, 0.25), 0.5, max(highest, 0.5))
    assert best is not None
    return best[1:]
