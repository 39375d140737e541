"""Peaks of the Lomb-Scargle periodogram: the periods that a series of uneven stamps, gaps and trend shows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAX_STAMPS = 2000
OVERSAMPLING = 8


def nyquist(t: Tensor) -> float | None:
    """The Nyquist frequency of the median spacing of stamps t [N], in cycles per unit of t; None if all are equal.

    >>> import torch
    >>> nyquist(torch.tensor([0.0, 0.5, 1.0, 1.0, 1.5]))
    1.0
    """
    gaps = torch.diff(torch.unique(t.detach().double()))
    return 0.5 / float(gaps.median()) if len(gaps) else None


def dominant_periods(t: Tensor, y: Tensor, *, limit: int = 3, false_alarm: float = 1e-3) -> list[float]:
    """Significant periods of y(t), strongest first.

    A quadratic trend is removed; the power of white noise at a frequency is exponential, so a peak counts if its power
    exceeds ``log(frequencies / false_alarm)``.

    Arguments: t, y: [N]; NaN in y is left out. limit: how many at most. false_alarm: probability that white noise shows
    one. Result: periods in units of t, at least two cycles within the range and no faster than the Nyquist rate of the
    median spacing; possibly empty.
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
    values = values - np.polynomial.polynomial.polyval(unit, np.polynomial.polynomial.polyfit(unit, values, 2))
    scale = np.sqrt(np.mean(values**2))
    if not scale > 0:
        return []
    highest = min(0.5 / np.median(gaps), len(stamps) / span)
    frequencies = np.arange(2 / span, highest, 1 / (OVERSAMPLING * span))
    if len(frequencies) < 3:
        return []
    power = lombscargle(centred, values / scale, 2 * np.pi * frequencies)
    peaks, _ = find_peaks(power, height=np.log(len(frequencies) / false_alarm))
    strongest = peaks[np.argsort(-power[peaks], kind="stable")][:limit]
    return [float(1 / frequencies[i]) for i in strongest]
