"""Coercion of what users have (arrays, DataFrames, datetimes, lists) to tensors, with errors that name rows and columns.

Inputs become `[N, D]` and targets `[N, P]` float tensors. A NaN target is a missing value; a NaN input is an error. torch
tensors keep their device and floating dtype (float32 is used only for float32 tensors); everything else becomes float64.
Datetimes become days since 1970-01-01. Inputs in files stay there (`gpx.stored`); what walks over all rows does so in blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx import stored
from gpx.coercion import first_rows, from_array, from_frame, is_dataarray, is_frame, require_finite
from gpx.errors import InputError
from gpx.grid import Axes, Grid
from gpx.parallel import ALONE, Team


@dataclass(frozen=True)
class Points:
    """Inputs x [N, D] and the names of their columns (a name may be empty); of a grid also its shape and which columns belong to
    each axis.
    """

    x: Tensor
    columns: tuple[str, ...]
    axes: Axes | None = None
    shape: tuple[int, ...] | None = None

    def arranged(self, values: Tensor, dim: int = 0) -> Tensor:
        """Values whose axis `dim` has the rows, in the shape of the grid if there is one."""
        return values if self.shape is None else values.unflatten(dim, self.shape)


@dataclass(frozen=True)
class Data:
    """Inputs x [N, D], targets y [N, P] with NaN for missing values, and the scales that starts are derived from.

    variance: the target variance to be explained (1 for a constant target); spread: [D] standard deviations of the input
    columns, over the rows that have a target (1 for a constant column); resolution: the share of the spread at which
    lengthscales start; taken: the periods at which other terms of a sum have started; flat: whether the
    targets came as [N]; team: the processes that have the other rows, if these are all of one of several; axes: the columns of
    each axis of a grid, if the rows came as the cells of one.
    """

    x: Tensor
    y: Tensor
    columns: tuple[str, ...]
    variance: float
    spread: Tensor
    resolution: float = 1.0
    taken: tuple[float, ...] = ()
    flat: bool = True
    team: Team = ALONE
    axes: Axes | None = None

    @cached_property
    def count(self) -> int:
        """How many rows all processes have together."""
        return self.team.count(len(self.x))

    @cached_property
    def targets(self) -> int:
        """How many observed targets all processes have together."""
        return self.team.count(int(self.observed.sum()))

    @cached_property
    def observed(self) -> Tensor:
        """[N, P] bool: False where the target is missing."""
        return ~torch.isnan(self.y)

    @cached_property
    def complete(self) -> bool:
        """Whether no target is missing."""
        return bool(self.observed.all())

    @cached_property
    def filled(self) -> Tensor:
        """Targets [N, P] with an observed one in place of the missing: in the domain of every likelihood."""
        if self.complete:
            return self.y
        seen = self.y[self.observed]
        return torch.where(self.observed, self.y, seen[0] if len(seen) else torch.ones_like(self.y[:0].sum()))

    @property
    def length_box(self) -> tuple[float, float]:
        """Bounds of a lengthscale as multiples of its start: down to a tenth of the spacing of a long series."""
        return min(1e-5, 0.1 / max(1, len(self.x))), 1e5

    def select(self, dims: Tensor | None) -> Data:
        """The same data with some input columns only."""
        if dims is None:
            return self
        names = tuple(self.columns[int(d)] for d in dims)
        first, count = int(dims[0]), len(dims)
        together = dims.tolist() == list(range(first, first + count))  # a view: nothing is copied
        x = self.x[:, first : first + count] if together else self.x[:, dims]
        return replace(self, x=x, columns=names, spread=self.spread[dims], axes=None)

    def component(self, variance: float, resolution: float = 1.0) -> Data:
        """The same data, of which a kernel is to explain only `variance`, at `resolution` times the present one."""
        return replace(self, variance=variance, resolution=self.resolution * resolution)

    def with_targets(self, y: Tensor, variance: float | Tensor) -> Data:
        """Other targets [N, P] of stated variance, of all or of each column, at the same inputs."""
        return replace(self, y=y, variance=variance)

    def without(self, design: Tensor) -> Data:
        """What is left of the targets by their least-squares fit to functions [N, q]."""
        y = self.y.clone()
        for column in range(y.shape[1]):
            seen = self.observed[:, column]
            fit = torch.linalg.lstsq(design[seen], y[seen, column], driver="gelsd").solution
            y[:, column] -= design @ fit
        variance = torch.as_tensor(self.variance).clamp_max(
            _pooled_variance(y)
        )  # where it was robust, so is what is left
        return replace(self, y=y, variance=float(variance) if variance.dim() == 0 else variance)

    def rows(self, index: Tensor) -> Data:
        """A subset of the rows, at the scales of the whole."""
        return replace(self, x=self.x[index], y=self.y[index])

    def seen(self) -> Data:
        """The rows that have a target, at the scales of the whole."""
        kept = self.observed.any(1)
        return self if bool(kept.all()) else self.rows(kept)

    def draw(self, rows: int) -> Tensor:
        """The rows of this process among at most so many that have a target, drawn evenly at random, by a fixed seed, from those
        of all processes, which count as one array in the order of the processes.
        """
        seen = self.observed.any(1).nonzero().flatten()
        counts = self.team.collect(len(seen))
        if rows >= sum(counts):
            return seen
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0))[:rows].sort().values
        order = order - sum(counts[: self.team.rank])
        return seen[order[(order >= 0) & (order < len(seen))].to(seen.device)]

    def gathered(self) -> Data:
        """The rows of all processes, in every one of them."""
        x, y = (torch.cat(self.team.gather(part)) for part in (self.x, self.y))
        return replace(self, x=x, y=y, team=ALONE)

    def join(self, other: Data) -> Data:
        """The rows of both, with the scales of all of them."""
        x, y = torch.cat([self.x, other.x]), torch.cat([self.y, other.y])
        return replace(self, x=x, y=y, variance=_pooled_variance(y), spread=_spread(x, y))


def as_data(X: Any, y: Any, *, columns: tuple[str, ...] | None = None) -> Data:
    """Coerce inputs and targets. Raises InputError for what cannot be used, naming rows or columns.

    X: also a `Grid`, or an xarray.DataArray, whose coordinates are one. y: targets (of the grid's shape), the name of their
    column in Parquet files, or None for a torch Dataset of pairs or a DataArray that holds them.
    """
    if is_dataarray(X):
        X, values = Grid.from_dataarray(X)
        y = values if y is None else y
    if isinstance(X, Grid) and y is not None:
        y = X.targets(y)
    if stored.is_stored(X):
        x, names, y = _from_files(X, y, columns)
        points = _checked(x, names, columns)
        x = points.x
    else:
        points = as_points(X, columns=columns)
        x = points.x.detach().clone()  # the caller may change a tensor later
    if y is None:
        raise InputError(
            "y is missing: give targets [N], the name of their column in a Parquet file, or a torch Dataset of pairs (x, y)."
        )
    targets = as_targets(y, x).clone()
    _require_moderate(x, "X")
    _require_moderate(targets, "y")
    flat = targets.dim() == 1
    targets = targets.unsqueeze(1) if flat else targets
    return Data(x, targets, points.columns, _pooled_variance(targets), _spread(x, targets), flat=flat, axes=points.axes)


def as_points(X: Any, *, columns: tuple[str, ...] | None = None, like: Tensor | None = None) -> Points:
    """Coerce inputs to [N, D]; with `columns`, those of the fit are expected (DataFrames are matched by name)."""
    grid = Grid.from_dataarray(X)[0] if is_dataarray(X) else X
    if isinstance(grid, Grid):
        points = replace(_checked(grid.rows, grid.columns, columns), axes=grid.groups, shape=grid.shape)
        return points if like is None else replace(points, x=points.x.to(like))
    if stored.is_stored(X):
        x, names, _ = _from_files(X, None, columns)
    else:
        x, names = from_frame(X, columns) if is_frame(X) else from_array(X, "X")
    points = _checked(x, names, columns)
    if like is None:
        return points
    return replace(points, x=points.x.to(dtype=like.dtype, device=x.device if isinstance(X, Tensor) else like.device))


def _checked(x: Tensor, names: tuple[str, ...], columns: tuple[str, ...] | None) -> Points:
    if x.dim() == 1:
        x = x.unsqueeze(1)
    if x.dim() != 2:
        raise InputError(f"X must be [N] or [N, D], got shape {list(x.shape)}; flatten the leading dimensions.")
    if not x.shape[1]:
        raise InputError(f"X has no columns, only {len(x)} row(s); give at least one input column.")
    if columns is not None and x.shape[1] != len(columns):
        known = f" ({', '.join(columns)})" if any(columns) else ""
        raise InputError(
            f"X has {x.shape[1]} column(s), but the model was fitted on {len(columns)}{known}; pass the same columns."
        )
    require_finite(x, columns or names)
    return Points(x, columns or names or ("",) * x.shape[1])


def _from_files(X: Any, y: Any, columns: tuple[str, ...] | None) -> tuple[Tensor, tuple[str, ...], Any]:
    """Inputs that stay in files, the names of their columns, and targets: read with them, or as they were given."""
    if isinstance(X, np.memmap):
        x = stored.as_mapped(X)
        if x is None and X.ndim == 2:
            x = stored.spooled(from_array(np.asarray(X[rows]), "X")[0] for rows in stored.slices(len(X)))
        return from_array(X, "X")[0] if x is None else x, (), y
    parts: list[Tensor] = []
    if not stored.is_table(X):
        x = stored.spooled(_inputs_of(stored.items(X), parts))
        return x, (), torch.cat(parts) if y is None and parts else y
    data = stored.table(X)
    targets = [y] if isinstance(y, str) else y if isinstance(y, list) and y and isinstance(y[0], str) else []
    names = stored.input_columns(data, columns if columns and any(columns) else None, targets)
    pairs = (
        (from_frame(f[names], None)[0], from_frame(f[targets], None)[0] if targets else None)
        for f in stored.frames(data, [*names, *targets])
    )
    x = stored.spooled(_inputs_of(pairs, parts))
    if targets:
        y = torch.cat(parts).squeeze(1) if isinstance(y, str) else torch.cat(parts)
    return x, tuple(names), y


def _inputs_of(pairs: Iterable[tuple[Tensor, Tensor | None]], targets: list[Tensor]) -> Iterator[Tensor]:
    """The inputs of blocks of inputs and targets; the targets are added to a list on the way."""
    for x, y in pairs:
        if y is not None:
            targets.append(y)
        yield x


def as_targets(y: Any, x: Tensor) -> Tensor:
    """Coerce targets to [N] or [N, P] beside inputs x [N, D]; NaN stays, as a missing value."""
    values, _ = from_frame(y, None) if is_frame(y) else from_array(y, "y")
    if values.dim() == 0 or values.dim() > 2:
        raise InputError(f"y must be [N] or [N, P], got shape {list(values.shape)}.")
    if values.shape[1:] == (0,):
        raise InputError(f"y has no columns, only {len(values)} row(s); give at least one output.")
    if values.shape[0] != x.shape[0]:
        raise InputError(f"X has {x.shape[0]} rows and y has {values.shape[0]}; they must be of the same length.")
    if bool(torch.isinf(values).any()):
        rows = first_rows(torch.isinf(values).reshape(len(values), -1).any(1))
        raise InputError(f"y is infinite in row(s) {rows}; use NaN for a missing target, or drop these rows.")
    if isinstance(y, Tensor) and y.device != x.device:
        raise InputError(f"X is on {x.device} and y on {y.device}; move one of them, gpx moves nothing silently.")
    return values.detach().to(dtype=x.dtype, device=x.device)


def as_like(value: Any, like: Tensor, name: str) -> Tensor:
    """Coerce numbers to the dtype and device of `like`."""
    values, _ = from_frame(value, None) if is_frame(value) else from_array(value, name)
    return values.to(dtype=like.dtype, device=like.device)


def _require_moderate(values: Tensor, what: str) -> None:
    """Squares and their products must stay finite."""
    limit = torch.finfo(values.dtype).max ** 0.4
    parts = (torch.nan_to_num(values[rows]).abs() for rows in stored.slices(len(values)))
    largest = max(float(part.max()) if part.numel() else 0.0 for part in parts)
    if largest > limit:
        raise InputError(f"{what} has values up to {largest:.1e}; rescale it to stay below {limit:.0e}.")


def _pooled_variance(y: Tensor) -> float:
    """Mean over the columns of the variance of what is observed; 1 if all of it is constant up to rounding."""
    variances = []
    for column in y.T:
        seen = column[~torch.isnan(column)]
        if len(seen):
            centred = seen - seen.mean()
            variance = float(centred.square().mean())
            rounding = 8 * torch.finfo(y.dtype).eps * float(seen.abs().max())
            variances.append(variance if variance > rounding**2 else 0.0)
    variance = sum(variances) / len(variances) if variances else 0.0
    return variance if variance > 0 else 1.0


def _spread(x: Tensor, y: Tensor) -> Tensor:
    """Of the rows that have a target, if any does: what is only asked about says nothing of scales."""
    if not len(x):
        return torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    kept = ~torch.isnan(y).all(1)
    every = bool(kept.all()) or not bool(kept.any())

    def blocks() -> Iterator[Tensor]:
        return (x[rows] if every else x[rows][kept[rows]] for rows in stored.slices(len(x)))

    count = len(x) if every else int(kept.sum())
    mean = sum(block.sum(0) for block in blocks()) / count
    spread = (sum((block - mean).square().sum(0) for block in blocks()) / count).sqrt()
    largest = torch.stack([block.abs().amax(0) for block in blocks() if len(block)]).amax(0)
    rounding = 8 * torch.finfo(x.dtype).eps * largest
    return torch.where(spread > rounding, spread, torch.ones_like(spread))
