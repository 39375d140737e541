"""Where spectral mixtures start: tones of the data, and a ladder of lengthscales at frequency zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.linalg.tones import FALSE_ALARM, Tones, find_tones, highest_frequency

MAX_ROWS = 10_000  # consecutive ones, in which tones are sought
ALARMS = (FALSE_ALARM, np.inf)  # probabilities that noise shows a tone: broad bumps are no tones, but are found as some
RUNGS = (1, 3)  # the least numbers of mixtures at frequency zero: the others are for tones
DRIFTS = (1.0, 0.1)  # lengthscales of tones, in ranges of the inputs
LEAST = 1e-3  # share of the variance that the ladder starts with


@dataclass(frozen=True)
class Start:
    """Weights [Q], frequencies [Q, D] in cycles per input unit and lengthscales [Q, D] in input units."""

    weights: np.ndarray
    means: np.ndarray
    lengthscales: np.ndarray


@dataclass(frozen=True)
class Bearings:
    """What the columns of the inputs tell of frequencies.

    spans [D]: ranges; highest [D]: frequencies up to which inputs tell tones apart.
    """

    spans: np.ndarray
    highest: np.ndarray


def bearings(data: Data) -> Bearings:
    """Ranges and highest frequencies of the inputs; of a constant column, one unit and one cycle."""
    x = data.x.detach().double().cpu().numpy()
    spans = np.array([np.ptp(c) if len(c) and np.ptp(c) > 0 else 1.0 for c in x.T])
    found = [highest_frequency(c) for c in x.T]
    return Bearings(spans, np.array([1 / s if f is None else f for f, s in zip(found, spans, strict=True)]))


def spectral_starts(owner: str, data: Data, count: int) -> Iterator[Start]:
    """Starts that the data suggest, different ones, each with weights that sum to the variance of the data.

    The strongest tones of the targets along every column, without those that other terms of a sum have, are joined by mixtures
    at frequency zero for what does not repeat, whose lengthscales fall from the range of the inputs to their spacing, and the
    first of which starts with the variance of the trend. How many there are at least, how sure a tone must be, and how slowly
    tones drift, differ from one start to the next; one has no tones.

    Raises: InputError for fewer observed targets than mixtures.
    """
    x, y = _seen(owner, data, count)
    ranges = bearings(data)
    seen: set[tuple[tuple[float, int, float], ...]] = set()
    for false_alarm in ALARMS:
        columns = [find_tones(c, y, count, false_alarm) for c in x.T]
        for rungs in (*RUNGS, count):
            tones = _strongest(columns, data, ranges, max(count - rungs, 0))
            if tuple(tones) not in seen:
                seen.add(tuple(tones))
                trend, rest = max(c.trend for c in columns), min(c.rest for c in columns)
                for drift in DRIFTS if tones else DRIFTS[:1]:
                    yield _start(data, ranges, count, tones, drift, trend, rest)


def _seen(owner: str, data: Data, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a target, of the output that has the most: in order, if there is one column."""
    output = int(data.observed.sum(0).argmax())
    rows = data.observed[:, output]
    x, y = (v[rows].detach().double().cpu().numpy() for v in (data.x, data.y[:, output]))
    if len(y) < count:
        raise InputError(
            f"{owner} has num_mixtures={count}, but there are only {len(y)} observed target(s) to start them from: use"
            f" {owner}({max(len(y), 1)}) or fewer mixtures, or give weights, means and widths and use condition()."
        )
    order = np.argsort(x[:, 0], kind="stable")[:MAX_ROWS] if x.shape[1] == 1 else np.arange(min(len(y), MAX_ROWS))
    return x[order], y[order]


def _strongest(columns: list[Tones], data: Data, ranges: Bearings, limit: int) -> list[tuple[float, int, float]]:
    """Power, column and frequency of tones."""
    taken = [1 / p for p in data.taken] if len(columns) == 1 else []
    found = [
        (float(power), column, float(frequency))
        for column, tones in enumerate(columns)
        for power, frequency in zip(tones.powers, tones.frequencies, strict=True)
        if all(abs(frequency - other) * ranges.spans[column] >= 1 for other in taken)
    ]
    return sorted(found, reverse=True)[:limit]


def _start(
    data: Data, ranges: Bearings, count: int, tones: list[tuple[float, int, float]], drift: float, trend: float, rest: float
) -> Start:  # fmt: skip
    rungs = count - len(tones)
    ladder = np.full(rungs, max(rest, LEAST * (trend + rest)) / max(rungs, 1))
    ladder[:1] += trend
    weights = np.concatenate([ladder, [power for power, _, _ in tones]])
    means = np.zeros((count, len(ranges.spans)))
    for row, (_, column, frequency) in enumerate(tones, rungs):
        means[row, column] = frequency
    finest = min(0.5, 2 * len(data.x) ** (-1 / len(ranges.spans)))
    steps = data.resolution * np.geomspace(1, finest, rungs + 1)[:rungs]
    factors = np.concatenate([steps, np.full(len(tones), drift)])
    total = weights.sum()
    weights = weights / total if total > 0 else np.full(count, 1 / count)
    return Start(weights * data.variance, means, factors[:, None] * ranges.spans)
