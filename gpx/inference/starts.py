"""Other points to start a fit from: near what the data suggest, and at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpx.inference.coordinates import Coordinate, Coordinates

LENGTHSCALE_FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0)
NOISE_FACTORS = (1.0, 0.01)
RESTART_SPREAD = 1.5


def shifts(coordinates: Coordinates, rows: int, fine: bool) -> list[np.ndarray]:
    """Steps that multiply the lengthscales and the noise that the data decide by some factors.

    Arguments: rows: how many data there are; fine: whether a length may be as short as their spacing.
    """
    lengths, noise = _free(coordinates, _is_length), _free(coordinates, lambda module, name: name == "noise")
    # The smoothness within a period is no length, but as uncertain; it has no finer scales.
    scales = np.maximum(lengths, _free(coordinates, lambda module, name: name == "lengthscale"))
    moves = [math.log(f) * lengths for f in (_finer(rows) if fine else [])]
    moves += [math.log(f) * scales for f in LENGTHSCALE_FACTORS]
    return [0 * noise, *(move + math.log(g) * noise for move in moves for g in NOISE_FACTORS)]


def random_starts(first: np.ndarray, bounds: np.ndarray, count: int, seed: int | None) -> list[np.ndarray]:
    """So many points around the first, inside the bounds [P, 2]."""
    random = np.random.default_rng(seed)
    draws = [first + RESTART_SPREAD * random.standard_normal(len(first)) for _ in range(count)]
    return [np.clip(d, bounds[:, 0], bounds[:, 1]) for d in draws]


def _finer(rows: int) -> list[float]:
    """Factors below the usual ones, down to about the spacing of the rows: a long series may vary that fast."""
    ratio, smallest = 0.3, min(LENGTHSCALE_FACTORS)
    count = math.floor(math.log(2 / (rows * smallest)) / math.log(ratio)) if rows * smallest > 2 else 0
    return [smallest * ratio**j for j in range(count, 0, -1)]


def _free(coordinates: Coordinates, wanted: Callable[[Any, str], bool]) -> np.ndarray:
    """1 for coordinates of wanted values (module, name) that the data decide, 0 for others."""

    def free(entry: Coordinate) -> bool:
        choices = getattr(entry.module, "choices", {})
        return entry.name in choices and not choices[entry.name].given and wanted(entry.module, entry.name)

    parts = [np.full(e.raw.numel(), float(free(e))) for e in coordinates.entries]
    return np.concatenate(parts)


def _is_length(module: Any, name: str) -> bool:
    return type(module).values()[name].length
