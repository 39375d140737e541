"""Stamps on a regular lattice, some of whose cells may be empty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpx.errors import InputError

TOLERANCE = 1e-3  # of the spacing: what stamps may be off their cell by rounding
MAX_CELLS = 100  # per stamp: a finer lattice would be one of rounding errors


@dataclass(frozen=True)
class Lattice:
    """``t[n] = start + spacing * index[n]``; index: [N] whole numbers from 0 to size - 1."""

    start: float
    spacing: float
    index: Tensor
    size: int


def find_lattice(t: Tensor) -> Lattice:
    """The coarsest regular lattice that all stamps lie on, found by Euclid's algorithm on their gaps.

    Arguments: t [N], in any order. Raises: InputError for stamps that are equal, or that are not multiples of a spacing to
    `TOLERANCE` with at most `MAX_CELLS` cells per stamp; it says which. Cost: O(N log N).

    >>> find_lattice(torch.tensor([0.5, 1.5, 1.0, 3.5]))
    Lattice(start=0.5, spacing=0.5, index=tensor([0, 2, 1, 6]), size=7)
    """
    stamps = t.detach().double()
    ordered = stamps.sort().values
    start = float(ordered[0])
    if len(stamps) == 1:
        return Lattice(start, 1.0, torch.zeros(1, dtype=torch.long, device=t.device), 1)
    gaps = ordered.diff()
    if bool((equal := gaps <= 0).any()):
        first = float(ordered[:-1][equal][0])
        raise InputError(f"{int(equal.sum())} stamp(s) occur more than once, the first is {first:g}.")
    spacing = _spacing(gaps)
    cells = ((stamps - start) / spacing) if spacing else stamps
    index = cells.round()
    if not spacing or float((cells - index).abs().max()) > TOLERANCE or bool((index.sort().values.diff() < 1).any()):
        raise InputError(
            f"The stamps are not on a regular lattice: the gaps between them range from {float(gaps.min()):.6g} to"
            f" {float(gaps.max()):.6g} and are no multiples of one spacing."
        )
    return Lattice(start, spacing, index.long(), int(index.max()) + 1)


def _spacing(gaps: Tensor) -> float:
    """The largest number that all gaps are multiples of; 0 if it would be too small."""
    span, step = float(gaps.sum()), float(gaps.min())
    least = span / (MAX_CELLS * (len(gaps) + 1))
    while step >= least:
        # The mean of the gaps of one step, then that of all: rounding must not add up over a long gap.
        single = gaps[(gaps - step).abs() <= 8 * TOLERANCE * step]
        step = float(single.mean()) if len(single) else step
        refined = span / float((gaps / step).round().sum())
        if not len(_rest(gaps, refined)):
            return refined
        rest = _rest(gaps, step)
        if not len(rest):
            return 0.0
        step = float(rest.min())
    return 0.0


def _rest(gaps: Tensor, step: float) -> Tensor:
    """How far gaps are from a multiple of step, where that is more than rounding."""
    rest = (gaps - (gaps / step).round() * step).abs()
    return rest[rest > 2 * TOLERANCE * step]
