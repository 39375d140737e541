"""Which points represent all others: inducing inputs, coresets, subsets.

One protocol: ``select(kernel, X, size, *, seed) -> (indices or points, weights)``.
"""

from __future__ import annotations

from typing import Any

from gpx.errors import InputError
from gpx.selection.base import Selection
from gpx.selection.greedy import greedy

SELECTIONS: dict[str, Selection] = {"greedy": greedy}

__all__ = ["SELECTIONS", "Selection", "choose_selection", "greedy"]


def choose_selection(select: Any) -> Selection:
    """The selection of a name, or the given function. Raises: InputError for another name."""
    if callable(select):
        return select
    if select not in SELECTIONS:
        raise InputError(f"select must be one of {', '.join(map(repr, SELECTIONS))} or a function, got {select!r}.")
    return SELECTIONS[select]
