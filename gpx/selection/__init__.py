"""Which points represent all others: inducing inputs, coresets, subsets.

One protocol: ``select(kernel, X, size, *, seed) -> (indices or points, weights)``. `SELECTIONS` are those with a name;
`bless` and `squeak` (for streams) give dictionaries for ridge leverage scores, `ridge_leverage` the scores themselves.
"""

from __future__ import annotations

from typing import Any

from gpx.errors import InputError
from gpx.selection.base import Selection
from gpx.selection.bless import bless
from gpx.selection.dpp import dpp
from gpx.selection.greedy import greedy
from gpx.selection.kmeans import kmeans
from gpx.selection.leverage import leverage
from gpx.selection.scores import Dictionary, ridge_leverage
from gpx.selection.squeak import squeak
from gpx.selection.thinning import thinning

SELECTIONS: dict[str, Selection] = {
    "greedy": greedy,
    "kmeans": kmeans,
    "leverage": leverage,
    "dpp": dpp,
    "thinning": thinning,
}

__all__ = [
    "SELECTIONS",
    "Dictionary",
    "Selection",
    "bless",
    "choose_selection",
    "dpp",
    "greedy",
    "kmeans",
    "leverage",
    "ridge_leverage",
    "squeak",
    "thinning",
]


def choose_selection(select: Any) -> Selection:
    """The selection of a name, or the given function. Raises: InputError for another name."""
    if callable(select):
        return select
    if select not in SELECTIONS:
        raise InputError(f"select must be one of {', '.join(map(repr, SELECTIONS))} or a function, got {select!r}.")
    return SELECTIONS[select]
