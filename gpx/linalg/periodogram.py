"""Peaks of the Lomb-Scargle periodogram: the periods that a series of uneven stamps, gaps and trend shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MAX_STAMPS = 2000
OVERSAMPLING = 8
TONELESS = 1e-9  # of the range of the values: what is left is rounding


def nyquist(t: Tensor) -> float | None:
    """The Nyquist frequency of the median spacing of stamps t [N], in cycles per unit of t; None if all are equal.

    >>> import torch
    >>> nyquist(torch.tensor([0.0, 0.5, 1.0, 1.0, 1.5]))
    1.0
    """
    gaps = torch.diff(torch.unique(t.detach().double()))
    return 0.5 / float(gaps.median()) if len(gaps) else None


def spacings(x: Tensor) -> list[float]:
    """The distance between neighbouring values of every column of x [N, D]; 0 for a column that is constant.

    One column: the median gap. Of several, the rows are N places in D dimensions: columns with few values are taken for axes of a
    grid, and what is left of N is shared by the others, so that scattered rows have N^(1/D) places along each.

    >>> spacings(torch.cartesian_prod(torch.arange(4.0), torch.arange(0.0, 5.0, 0.5)))
    [1.0, 0.5]
    """
    gaps = [torch.diff(torch.unique(column.detach().double())) for column in x.T]
    left, result = float(len(x)), [0.0] * len(gaps)
    order = sorted((i for i, gap in enumerate(gaps) if len(gap)), key=lambda i: len(gaps[i]))
    for position, i in enumerate(order):
        values = len(gaps[i]) + 1
        places = min(values, max(2.0, left ** (1 / (len(order) - position))))
        result[i] = float(gaps[i].median()) * values / places
        left /= places
    return result


def dominant_periods(
    t: Tensor, y: Tensor, *, limit: int = 3, false_alarm: float = 1e-3, besides: Sequence[float] = ()
) -> list[float]:
    """Significant periods of y(t), strongest first.

    A quadratic trend is removed; the power of white noise at a frequency is exponential, so a peak counts if its power
    exceeds ``log(frequencies / false_alarm)``.

    Arguments: t, y: [N]; NaN in y is left out. limit: how many at most. false_alarm: probability that white noise shows
    one. besides: periods that are known: their sinusoids are removed, and peaks less than a cycle over the range away are
    theirs.
    Result: periods in units of t, at least two cycles within the range and no faster than the Nyquist rate of the median
    spacing; possibly empty.
    Cost: O(N F) for F <= 8 N frequencies, with N limited to 2,000 consecutive stamps.
    Source: Scargle (1982), Astrophysical Journal 263.
    """
    from scipy.signal import find_peaks, lombscargle  # slow to import, and not needed by most fits

    stamps, values = t.detach().cpu().double().numpy(), y.detach().cpu().double().numpy()
    seen = np.isfinite(values)
    order = np.argsort(stamps[seen], kind="stable")[:MAX_STAMPS]
    stamps, values = stamps[seen][order], values[seen][order]
    gaps = np.diff(stamps)
    gaps = gaps[gaps > 0]
    if len(gaps) < 8:
        return []
    span, centred = stamps[-1] - stamps[0], stamps - stamps[0]
    unit = 2 * centred / span - 1
    rest = _without(values, unit, [2 * np.pi * centred / p for p in besides])
    scale = np.sqrt(np.mean(rest**2))
    if not scale > TONELESS * np.ptp(values):
        return []
    highest = min(0.5 / np.median(gaps), len(stamps) / span)
    frequencies = np.arange(2 / span, highest, 1 / (OVERSAMPLING * span))
    if len(frequencies) < 3:
        return []
    power = lombscargle(centred, rest / scale, 2 * np.pi * frequencies)
    peaks, _ = find_peaks(power, height=np.log(len(frequencies) / false_alarm))
    # What is left beside a known period is its drift.
    peaks = [i for i in peaks if all(abs(frequencies[i] - 1 / p) >= 1 / span for p in besides)]
    strongest = sorted(peaks, key=lambda i: -power[i])[:limit]
    return [float(1 / frequencies[i]) for i in strongest]


def _without(values: np.ndarray, unit: np.ndarray, phases: Sequence[np.ndarray]) -> np.ndarray:
    """The residual of a regression on a quadratic trend and sinusoids."""
    design = np.stack([np.ones_like(unit), unit, unit**2, *(f(p) for p in phases for f in (np.cos, np.sin))], 1)
    return values - design @ np.linalg.lstsq(design, values)[0]
