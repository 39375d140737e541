"""Rows as cells of a rectangular grid: which columns belong together, the values on every axis, and the cell of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

FULL = 0.5  # share of its cells from which rows are called a grid


@dataclass(frozen=True, eq=False)
class Layout:
    """axes: the columns of each axis; values: what occurs on it [n, k], sorted; index: of each row on each axis, [N] each."""

    axes: tuple[tuple[int, ...], ...]
    values: tuple[Tensor, ...]
    index: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values on each axis."""
        return tuple(map(len, self.values))

    @property
    def size(self) -> int:
        """The number of cells."""
        return math.prod(self.shape)

    @cached_property
    def cells(self) -> Tensor:
        """[N]: the cell of each row, in C order."""
        result = torch.zeros_like(self.index[0])
        for index, n in zip(self.index, self.shape, strict=True):
            result = result * n + index
        return result

    @cached_property
    def occupied(self) -> int:
        """How many cells have a row."""
        return int(
            torch.zeros(self.size, dtype=torch.bool, device=self.cells.device).index_fill(0, self.cells, True).sum()
        )


def lay_out(x: Tensor, axes: Sequence[Sequence[int]]) -> Layout:
    """The grid of rows x [N, D] over given axes. Cost: O(N log N)."""
    found = [_distinct(x[:, list(axis)]) for axis in axes]
    return Layout(tuple(tuple(axis) for axis in axes), tuple(v for v, _ in found), tuple(i for _, i in found))


def _distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1] == 1:  # much faster than along a dimension
        values, index = torch.unique(x[:, 0], return_inverse=True)
        return values[:, None], index
    values, index = torch.unique(x, dim=0, return_inverse=True)
    return values, index


def find_layout(x: Tensor, axes: Sequence[Sequence[int]]) -> Layout:
    """The grid of rows x [N, D] over these axes, or some of them together: while more than half of the cells are empty, the two
    axes are joined that have the fewest of their combinations.

    Cost: O(D^2 N log N) at most.
    """
    layout = lay_out(x, axes)
    rows = len(torch.unique(torch.stack(layout.index, 1), dim=0)) if len(x) and layout.size > len(x) else len(x)
    while len(layout.axes) > 1 and rows < FULL * layout.size:
        shape, index = layout.shape, layout.index

        def share(pair: tuple[int, int], shape: tuple[int, ...] = shape, index: tuple[Tensor, ...] = index) -> float:
            a, b = pair
            return len(torch.unique(index[a] * shape[b] + index[b])) / (shape[a] * shape[b])

        a, b = min(combinations(range(len(shape)), 2), key=share)
        joined = tuple(sorted((*layout.axes[a], *layout.axes[b])))
        axes = sorted([*(axis for d, axis in enumerate(layout.axes) if d not in (a, b)), joined])
        layout = lay_out(x, axes)
    return layout
