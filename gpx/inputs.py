"""Coercion of what users have (arrays, DataFrames, datetimes, lists) to tensors, with errors that name rows and columns.

Inputs become `[N, D]` and targets `[N, P]` float tensors. A NaN target is a missing value; a NaN input is an error. torch
tensors keep their device and floating dtype (float32 is used only for float32 tensors); everything else becomes float64.
Datetimes become days since 1970-01-01. Inputs in files stay there (`gpx.stored`); what walks over all rows does so in blocks.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx import stored
from gpx.errors import InputError
from gpx.parallel import ALONE, Team


@dataclass(frozen=True)
class Points:
    """Inputs x [N, D] and the names of their columns (a name may be empty)."""

    x: Tensor
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Data:
    """Inputs x [N, D], targets y [N, P] with NaN for missing values, and the scales that starts are derived from.

    variance: the target variance to be explained (1 for a constant target); spread: [D] standard deviations of the input
    columns (1 for a constant column); resolution: the share of the spread at which lengthscales start; taken: the periods at
    which other terms of a sum have started; flat: whether the
    targets came as [N]; team: the processes that have the other rows, if these are all of one of several.
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
        return replace(self, x=x, columns=names, spread=self.spread[dims])

    def component(self, variance: float, resolution: float = 1.0) -> Data:
        """The same data, of which a kernel is to explain only `variance`, at `resolution` times the present one."""
        return replace(self, variance=variance, resolution=self.resolution * resolution)

    def with_targets(self, y: Tensor, variance: float | Tensor) -> Data:
        """Other targets [N, P] of stated variance, of all or of each column, at the same inputs."""
        return replace(self, y=y, variance=variance)

    def rows(self, index: Tensor) -> Data:
        """A subset of the rows, at the scales of the whole."""
        return replace(self, x=self.x[index], y=self.y[index])

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
        return replace(self, x=x, y=y, variance=_pooled_variance(y), spread=_spread(x))


def as_data(X: Any, y: Any, *, columns: tuple[str, ...] | None = None) -> Data:
    """Coerce inputs and targets. Raises InputError for what cannot be used, naming rows or columns.

    y: targets, the name of their column in Parquet files, or None for a torch Dataset of pairs.
    """
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
    return Data(x, targets, points.columns, _pooled_variance(targets), _spread(x), flat=flat)


def as_points(X: Any, *, columns: tuple[str, ...] | None = None, like: Tensor | None = None) -> Points:
    """Coerce inputs to [N, D]; with `columns`, those of the fit are expected (DataFrames are matched by name)."""
    if stored.is_stored(X):
        x, names, _ = _from_files(X, None, columns)
    else:
        x, names = _frame(X, columns) if _is_frame(X) else _array(X, "X")
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
    _require_finite(x, columns or names)
    return Points(x, columns or names or ("",) * x.shape[1])


def _from_files(X: Any, y: Any, columns: tuple[str, ...] | None) -> tuple[Tensor, tuple[str, ...], Any]:
    """Inputs that stay in files, the names of their columns, and targets: read with them, or as they were given."""
    if isinstance(X, np.memmap):
        x = stored.as_mapped(X)
        if x is None and X.ndim == 2:
            x = stored.spooled(_array(np.asarray(X[rows]), "X")[0] for rows in stored.slices(len(X)))
        return _array(X, "X")[0] if x is None else x, (), y
    parts: list[Tensor] = []
    if not stored.is_table(X):
        x = stored.spooled(_inputs_of(stored.items(X), parts))
        return x, (), torch.cat(parts) if y is None and parts else y
    data = stored.table(X)
    targets = [y] if isinstance(y, str) else y if isinstance(y, list) and y and isinstance(y[0], str) else []
    names = stored.input_columns(data, columns if columns and any(columns) else None, targets)
    pairs = (
        (_frame(f[names], None)[0], _frame(f[targets], None)[0] if targets else None)
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
    values, _ = _frame(y, None) if _is_frame(y) else _array(y, "y")
    if values.dim() == 0 or values.dim() > 2:
        raise InputError(f"y must be [N] or [N, P], got shape {list(values.shape)}.")
    if values.shape[1:] == (0,):
        raise InputError(f"y has no columns, only {len(values)} row(s); give at least one output.")
    if values.shape[0] != x.shape[0]:
        raise InputError(f"X has {x.shape[0]} rows and y has {values.shape[0]}; they must be of the same length.")
    if bool(torch.isinf(values).any()):
        rows = _first_rows(torch.isinf(values).reshape(len(values), -1).any(1))
        raise InputError(f"y is infinite in row(s) {rows}; use NaN for a missing target, or drop these rows.")
    if isinstance(y, Tensor) and y.device != x.device:
        raise InputError(f"X is on {x.device} and y on {y.device}; move one of them, gpx moves nothing silently.")
    return values.detach().to(dtype=x.dtype, device=x.device)


def as_like(value: Any, like: Tensor, name: str) -> Tensor:
    """Coerce numbers to the dtype and device of `like`."""
    values, _ = _frame(value, None) if _is_frame(value) else _array(value, name)
    return values.to(dtype=like.dtype, device=like.device)


def _is_frame(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "dtypes")


def _frame(frame: Any, columns: tuple[str, ...] | None) -> tuple[Tensor, tuple[str, ...]]:
    names = tuple(str(c) for c in frame.columns)
    if columns is not None and any(columns):
        missing = [c for c in columns if c not in names]
        if missing:
            raise InputError(f"X lacks the column(s) {', '.join(missing)} of the fit; it has {', '.join(names)}.")
        frame, names = frame[[frame.columns[names.index(c)] for c in columns]], columns
    arrays, bad = [], []
    for position, name in enumerate(names):
        series = frame.iloc[:, position]
        array = _numeric(series.to_numpy(dtype="datetime64[ns]") if _is_datetime(series) else _series_array(series))
        arrays.append(array)
        if array is None:
            bad.append(name)
    if bad:
        raise InputError(
            f"Column(s) {', '.join(bad)} hold text or categories; gpx needs numbers: encode them"
            " (pandas.get_dummies makes indicator columns, and so does `gpx fit` on a file)."
        )
    stacked = np.stack(arrays, 1) if arrays else np.zeros((len(frame), 0))
    return torch.from_numpy(np.ascontiguousarray(stacked)), names


def _is_datetime(series: Any) -> bool:
    return str(series.dtype).startswith("datetime64")


def _series_array(series: Any) -> np.ndarray:
    """A pandas column as a numpy array; nullable numbers get NaN for their missing values."""
    if str(series.dtype) == "category":
        return series.astype(str).to_numpy()  # codes of categories are no numbers, whatever they look like
    if getattr(series.dtype, "na_value", None) is not None and getattr(series.dtype, "kind", "O") in "iufb":
        return series.to_numpy(dtype=float, na_value=np.nan)
    return series.to_numpy()


def _array(value: Any, what: str) -> tuple[Tensor, tuple[str, ...]]:
    """Anything that is not a DataFrame, as a float tensor, and the name of a Series."""
    _require_dense(value, what)
    if isinstance(value, np.ma.MaskedArray):
        value = value.astype(float).filled(np.nan)
    names = (str(value.name),) if getattr(value, "name", None) is not None and hasattr(value, "index") else ()
    if isinstance(value, Tensor):
        if value.is_complex():
            raise InputError(f"{what} is complex; gpx needs real numbers.")
        keep = value.dtype in (torch.float32, torch.float64)
        return value if keep else value.to(torch.float64), names
    if hasattr(value, "dtype") and hasattr(value, "to_numpy"):
        value = value.to_numpy(dtype="datetime64[ns]") if _is_datetime(value) else _series_array(value)
    try:
        array = _numeric(np.asarray(value))
    except ValueError as error:
        raise InputError(f"{what} is not a rectangular array: {error}.") from error
    if array is None:
        raise InputError(
            f"{what} holds {_describe(value)}; gpx needs numbers: encode text and categories as numbers first."
        )
    return torch.from_numpy(np.array(array, dtype=np.float64)), names


def _require_dense(value: Any, what: str) -> None:
    """Kernel matrices of sparse inputs are dense: nothing would be gained, and most functions do not take them."""
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise InputError(f"{what} is a sparse tensor ({value.layout}); pass {what}.to_dense().")
    if hasattr(value, "toarray"):  # scipy.sparse
        raise InputError(f"{what} is a sparse {type(value).__name__}; pass {what}.toarray().")


def _numeric(array: np.ndarray) -> np.ndarray | None:
    """The array in float64 (datetimes as days since 1970-01-01), or None if it does not hold numbers."""
    if array.dtype.kind == "O" and array.size:
        array = _unbox(array)
    if array.dtype.kind == "M":
        since = (array.astype("datetime64[ns]") - np.datetime64(0, "ns")) / np.timedelta64(1, "D")
        return np.where(np.isnat(array), np.nan, since)
    if array.dtype.kind not in "iufb":
        return None if array.size else array.astype(float)
    return array.astype(np.float64)


def _unbox(array: np.ndarray) -> np.ndarray:
    first = array.reshape(-1)[0]
    if isinstance(first, (datetime.datetime, datetime.date, np.datetime64)):
        return array.astype("datetime64[ns]")
    numbers = all(v is None or isinstance(v, (int, float, np.number, np.bool_)) for v in array.reshape(-1))
    return array.astype(np.float64) if numbers else array


def _describe(value: Any) -> str:
    flat = np.asarray(value).reshape(-1)
    return f"{type(flat[0]).__name__} values such as {flat[0]!r}" if flat.size else type(value).__name__


def _require_finite(x: Tensor, names: Sequence[str]) -> None:
    blocks = [~torch.isfinite(x[rows]) for rows in stored.slices(len(x)) if not bool(torch.isfinite(x[rows].sum()))]
    if any(bool(bad.any()) for bad in blocks):
        bad = torch.cat([~torch.isfinite(x[rows]).all(1) for rows in stored.slices(len(x))])
        where = torch.stack([block.any(0) for block in blocks]).any(0).nonzero().flatten().tolist()
        columns = [names[i] if i < len(names) and names[i] else str(i) for i in where]
        raise InputError(
            f"X has NaN or infinite values in row(s) {_first_rows(bad)}, column(s) {', '.join(columns[:5])};"
            " drop or impute them (only y may have missing values)."
        )


def _require_moderate(values: Tensor, what: str) -> None:
    """Squares and their products must stay finite."""
    limit = torch.finfo(values.dtype).max ** 0.4
    parts = (torch.nan_to_num(values[rows]).abs() for rows in stored.slices(len(values)))
    largest = max(float(part.max()) if part.numel() else 0.0 for part in parts)
    if largest > limit:
        raise InputError(f"{what} has values up to {largest:.1e}; rescale it to stay below {limit:.0e}.")


def _first_rows(bad: Tensor, limit: int = 5) -> str:
    rows = bad.nonzero().flatten().tolist()
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return ", ".join(str(r) for r in rows[:limit]) + more


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


def _spread(x: Tensor) -> Tensor:
    if not len(x):
        return torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    slices = list(stored.slices(len(x)))
    mean = sum(x[rows].sum(0) for rows in slices) / len(x)
    spread = (sum((x[rows] - mean).square().sum(0) for rows in slices) / len(x)).sqrt()
    largest = torch.stack([x[rows].abs().amax(0) for rows in slices]).amax(0)
    rounding = 8 * torch.finfo(x.dtype).eps * largest
    return torch.where(spread > rounding, spread, torch.ones_like(spread))
