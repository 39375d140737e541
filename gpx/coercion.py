"""From what users have (arrays, DataFrames, datetimes, lists) to float tensors, with errors that name what cannot be used."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx import stored
from gpx.errors import InputError


def is_dataarray(value: Any) -> bool:
    """Whether it is an xarray.DataArray, of a package that need not be there."""
    return all(hasattr(value, name) for name in ("dims", "coords", "values", "to_dataset"))


def is_frame(value: Any) -> bool:
    """Whether it is a DataFrame."""
    return hasattr(value, "columns") and hasattr(value, "dtypes")


def from_frame(frame: Any, columns: tuple[str, ...] | None) -> tuple[Tensor, tuple[str, ...]]:
    """A DataFrame [N, D], or those of its columns, in this order, and their names."""
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


def from_array(value: Any, what: str) -> tuple[Tensor, tuple[str, ...]]:
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


def require_finite(x: Tensor, names: Sequence[str]) -> None:
    """Raise InputError for NaN or infinite inputs x [N, D]."""
    blocks = [~torch.isfinite(x[rows]) for rows in stored.slices(len(x)) if not bool(torch.isfinite(x[rows].sum()))]
    if any(bool(bad.any()) for bad in blocks):
        bad = torch.cat([~torch.isfinite(x[rows]).all(1) for rows in stored.slices(len(x))])
        where = torch.stack([block.any(0) for block in blocks]).any(0).nonzero().flatten().tolist()
        columns = [names[i] if i < len(names) and names[i] else str(i) for i in where]
        raise InputError(
            f"X has NaN or infinite values in row(s) {first_rows(bad)}, column(s) {', '.join(columns[:5])};"
            " drop or impute them (only y may have missing values)."
        )


def first_rows(bad: Tensor, limit: int = 5) -> str:
    """The first rows of bad [N], for messages."""
    rows = bad.nonzero().flatten().tolist()
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return ", ".join(str(r) for r in rows[:limit]) + more
