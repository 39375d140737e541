"""Rectangular grids as inputs, and xarray in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.coercion import from_array, from_frame, is_frame, require_finite
from gpx.errors import InputError

Axes = tuple[tuple[int, ...], ...]


class Grid:
    """All combinations of the values on some axes: inputs ``[N, D]`` in C order (the last axis runs fastest).

    N is the product of the axes' lengths. Targets at a grid have its shape, NaN for missing cells, and so have predictions.

    Arguments: axes: for each axis its values [n], or [n, k] for an axis of several columns (places on a map, settings of a
    machine): arrays, tensors, Series, DataFrames, datetimes; names: of the axes; None: those of Series and DataFrames. Columns of
    an axis of several are called ``name[0]``, ``name[1]``, ... where they have no names of their own.
    Raises: InputError for no axes, repeated values on an axis, or names that do not fit. Cost: memory O(sum n).

    >>> grid = Grid([[0.0, 1.0, 2.0], [10.0, 20.0]], names=["time", "depth"])
    >>> grid
    Grid(time: 3, depth: 2)
    >>> grid.rows[:3].tolist()
    [[0.0, 10.0], [0.0, 20.0], [1.0, 10.0]]
    """

    def __init__(self, axes: Sequence[Any], names: Sequence[str] | None = None):
        if not len(axes):
            raise InputError("A Grid needs at least one axis: gpx.Grid([x1, x2]).")
        if names is not None and len(names) != len(axes):
            raise InputError(f"Grid got {len(axes)} axes and {len(names)} names; give one name per axis.")
        parts = [_axis(values, position) for position, values in enumerate(axes)]
        self.axes = tuple(values for values, _ in parts)
        found = [columns[0] if len(columns) == 1 else "" for _, columns in parts]
        self.names = tuple(found if names is None else map(str, names))
        self.columns = tuple(c for name, (_, own) in zip(self.names, parts, strict=True) for c in _columns(name, own))
        for position, axis in enumerate(self.axes):
            _require_distinct(axis, self.names[position] or str(position))

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values on each axis."""
        return tuple(map(len, self.axes))

    @property
    def groups(self) -> Axes:
        """The columns of each axis."""
        widths = [axis.shape[1] for axis in self.axes]
        return tuple(tuple(range(sum(widths[:d]), sum(widths[: d + 1]))) for d in range(len(widths)))

    @property
    def rows(self) -> Tensor:
        """The inputs [N, D]."""
        index = torch.meshgrid(*(torch.arange(n) for n in self.shape), indexing="ij")
        return torch.cat([axis[i.reshape(-1)] for axis, i in zip(self.axes, index, strict=True)], 1)

    def targets(self, y: Any) -> Tensor:
        """y of the grid's shape as [N], or of that shape and [P] as [N, P]. Raises: InputError for another shape."""
        values, shape = (from_frame(y, None) if is_frame(y) else from_array(y, "y"))[0], self.shape
        if tuple(values.shape) == shape:
            return values.reshape(-1)
        if tuple(values.shape[:-1]) == shape:
            return values.reshape(-1, values.shape[-1])
        raise InputError(
            f"y has shape {list(values.shape)}, {self!r} has {list(shape)}; give y that shape, NaN for missing cells, or"
            f" {[*shape, 'P']} for P outputs."
        )

    @staticmethod
    def from_dataarray(array: Any) -> tuple[Grid, Any]:
        """The grid of the coordinates of an xarray.DataArray, and its values."""
        axes = [
            array.coords[d].values if d in array.coords else np.arange(n)
            for d, n in zip(array.dims, array.shape, strict=True)
        ]
        return Grid(axes, names=[str(d) for d in array.dims]), array.values

    def to_dataarray(self, values: Any) -> Any:
        """Values of the grid's shape as an xarray.DataArray.

        Raises: InputError for axes of several columns; ImportError without xarray.
        """
        import xarray  # pyright: ignore[reportMissingImports]

        if any(axis.shape[1] > 1 for axis in self.axes):
            raise InputError(
                f"A coordinate of a DataArray has one value per place, {self!r} has axes of several columns."
            )
        names = [name or f"axis_{d}" for d, name in enumerate(self.names)]
        coordinates = {name: axis[:, 0].numpy() for name, axis in zip(names, self.axes, strict=True)}
        return xarray.DataArray(np.asarray(values), coordinates, names)

    def __repr__(self) -> str:
        axes = enumerate(zip(self.names, self.shape, strict=True))
        return f"Grid({', '.join(f'{name or d}: {n}' for d, (name, n) in axes)})"


def _axis(values: Any, position: int) -> tuple[Tensor, tuple[str, ...]]:
    """The values [n, k] on an axis, and the names of its columns."""
    x, names = from_frame(values, None) if is_frame(values) else from_array(values, f"Axis {position} of the Grid")
    x = x.detach().clone().unsqueeze(1) if x.dim() == 1 else x.detach().clone()
    if x.dim() != 2 or not x.numel():
        raise InputError(f"Axis {position} of the Grid must be [n] or [n, k] and not empty, got shape {list(x.shape)}.")
    require_finite(x, names)
    return x, names or ("",) * x.shape[1]


def _columns(name: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    if len(columns) == 1:
        return (name,)
    return columns if all(columns) or not name else tuple(f"{name}[{i}]" for i in range(len(columns)))


def _require_distinct(axis: Tensor, name: str) -> None:
    values, counts = torch.unique(axis, dim=0, return_counts=True)
    if bool((twice := counts > 1).any()):
        example = values[twice][0].tolist()
        raise InputError(
            f"Axis {name} of the Grid has repeated values, such as {example[0] if len(example) == 1 else example}; every value"
            " must occur once: average what was measured twice, or pass rows [N, D] instead of a Grid."
        )
