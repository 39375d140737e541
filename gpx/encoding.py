"""From the columns of a table to the numbers of a model, and the memory of how that was done.

Numbers stay, booleans become 0 and 1, dates become days since 1970-01-01, a column of text becomes one indicator column per
category. The encoding is saved with the model, so that new rows are treated as the first ones were.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpx.errors import InputError

MAX_CATEGORIES = 100
STRAY = 0.1  # up to this share of the cells of a column of numbers or dates, text is taken for a mistake
COUNTED = "Rows are counted from 1, below the header."
_BOOLEANS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
_EPOCH = datetime.datetime(1970, 1, 1)
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Column:
    """One column of the table. kind: "number", "boolean", "date" or "category"; categories: of the latter, in order."""

    name: str
    kind: str
    categories: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the input columns that it becomes."""
        return tuple(f"{self.name}={c}" for c in self.categories) if self.kind == "category" else (self.name,)


@dataclass(frozen=True)
class Encoding:
    """How a table becomes inputs [N, D] and a target [N].

    target: the name of the target column; columns: the input columns in order.

    >>> encoding = Encoding.fit({"size": [1, 2, 3], "hue": ["red", "blue", "red"], "y": [0.1, 0.2, 0.3]}, "y")
    >>> encoding.names
    ('size', 'hue=blue', 'hue=red')
    >>> encoding.transform({"size": [4], "hue": ["red"]})
    array([[4., 0., 1.]])
    """

    target: str
    columns: tuple[Column, ...]

    @classmethod
    def fit(cls, frame: Mapping[str, Any] | Any, target: str, ignore: Sequence[str] = ()) -> Encoding:
        """Learn the kinds and categories of the columns.

        Arguments: frame: a DataFrame, or columns by name; target: the column to predict; ignore: columns to leave out.
        Raises: InputError for an unknown column, a table without inputs, or a column of no usable kind.
        """
        names = [str(name) for name in frame]
        if len(set(names)) < len(names):
            raise InputError(f"The table has several columns of the same name; rename them: {', '.join(names)}.")
        for name in (target, *ignore):
            if name not in names:
                raise InputError(f"There is no column {name!r}; the table has {', '.join(names)}.")
        inputs = [name for name in names if name != target and name not in ignore]
        if not inputs:
            raise InputError(f"The table has no input column beside the target {target!r}; it has {', '.join(names)}.")
        return cls(target, tuple(_describe(name, _values(frame[name])) for name in inputs))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the D columns of the inputs."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def is_series(self) -> bool:
        """Whether the only input is a number or a date, so that rows have an order."""
        return len(self.columns) == 1 and self.columns[0].kind in ("number", "date")

    def transform(self, frame: Mapping[str, Any] | Any, first: int = 1) -> np.ndarray:
        """The inputs [N, D] of a table. first: the number of its first row, for messages.

        Raises: InputError for absent columns, missing values, unseen categories, and text where a number or date is needed.
        """
        have = [str(name) for name in frame]
        lacking = [c.name for c in self.columns if c.name not in have]
        if lacking:
            raise InputError(
                f"The table lacks the column(s) {', '.join(lacking)} of the model; it has {', '.join(have)}."
            )
        values = [_values(frame[column.name]) for column in self.columns]
        _require_complete(self.columns, values, first)
        parts = [_ENCODERS[c.kind](c, v, first) for c, v in zip(self.columns, values, strict=True)]
        numbers = np.concatenate(parts, 1)
        wrong = ~np.isfinite(numbers)
        if wrong.any():
            names = [name for name, bad in zip(self.names, wrong.any(0), strict=True) if bad]
            raise InputError(
                f"Inputs are infinite in row(s) {_rows(wrong.any(1), first)}, column(s) {_shown(names)}; correct or drop these"
                f" rows. {COUNTED}"
            )
        return numbers

    def targets(self, frame: Mapping[str, Any] | Any) -> np.ndarray:
        """The target [N] of a table; NaN where it is missing. Raises: InputError if it does not hold numbers."""
        values = _values(frame[self.target])
        column = _describe(self.target, values)
        seen = ~_missing(values)
        if column.kind not in ("number", "boolean"):
            shown = next((v for v in values[seen] if _number(v) is None), values[seen][0])
            raise InputError(f"The target {self.target!r} holds {shown!r}; it must be a column of numbers.")
        result = np.full(len(values), np.nan)
        result[seen] = _ENCODERS[column.kind](column, values[seen], 1)[:, 0]
        if np.isinf(result).any():
            raise InputError(
                f"The target {self.target!r} is infinite in row(s) {_rows(np.isinf(result), 1)}; leave these cells empty, or"
                f" drop these rows. {COUNTED}"
            )
        return result

    def to_dict(self) -> dict[str, Any]:
        """As plain lists and strings, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Encoding:
        """The encoding that `to_dict` described."""
        columns = (Column(c["name"], c["kind"], tuple(c["categories"])) for c in value["columns"])
        return cls(value["target"], tuple(columns))


def as_dates(days: np.ndarray) -> np.ndarray:
    """Days since 1970-01-01 as datetime64: days if all are whole, else seconds.

    >>> as_dates(np.array([0.0, 365.0])), as_dates(np.array([0.5]))
    (array(['1970-01-01', '1971-01-01'], dtype='datetime64[D]'), array(['1970-01-01T12:00:00'], dtype='datetime64[s]'))
    """
    seconds = np.round(np.asarray(days) * 86_400).astype("timedelta64[s]")
    dates = np.datetime64(0, "s") + seconds
    whole = dates.astype("datetime64[D]")
    return whole if (whole == dates).all() else dates


def _values(column: Any) -> np.ndarray:
    """A column as numbers with NaN, datetime64, or objects with None."""
    kind = getattr(getattr(column, "dtype", None), "kind", "O")
    if str(getattr(column, "dtype", "")).startswith("datetime64") and hasattr(column, "to_numpy"):
        return column.to_numpy(dtype="datetime64[ns]")  # in UTC, where there is a time zone
    if hasattr(column, "to_numpy") and hasattr(column, "isna"):
        if kind in "iufb" and column.isna().any():
            return column.to_numpy(dtype=float, na_value=np.nan)
        return np.asarray(column) if kind in "iufbM" else column.astype(object).to_numpy(dtype=object, na_value=None)
    array = np.asarray(column)
    return array.astype(object) if array.dtype.kind in "US" else array


def _missing(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind == "M":
        return np.isnat(values)
    return np.array([_is_missing(v) for v in values], dtype=bool)


def _is_missing(value: Any) -> bool:
    return value is None or value != value or value == ""


def _describe(name: str, values: np.ndarray) -> Column:
    """The kind of a column, from what is not missing in it."""
    if values.dtype.kind == "b":
        return Column(name, "boolean")
    if values.dtype.kind in "iuf":
        return Column(name, "number")
    if values.dtype.kind == "M":
        return Column(name, "date")
    seen = values[~_missing(values)] if values.dtype.kind == "O" else values[:0]
    if not len(seen):
        raise InputError(f"Column {name!r} holds no value that can be used; leave it out (--ignore {name}).")
    if all(isinstance(v, (bool, np.bool_)) for v in seen):
        return Column(name, "boolean")
    if all(isinstance(v, (bool, int, float, np.number, np.bool_)) for v in seen):
        return Column(name, "number")
    if all(_date(v) is not None for v in seen):
        return Column(name, "date")
    _require_no_stray(name, values)
    return _category(name, seen)


def _require_no_stray(name: str, values: np.ndarray) -> None:
    """Raise InputError for a few cells of text among numbers or dates, which would make every number a category."""
    seen = ~_missing(values)
    many = len(set(map(str, values[seen]))) > MAX_CATEGORIES
    for kind, convert in (("numbers", _number), ("dates", _date)):
        stray = seen & np.array([convert(v) is None for v in values], dtype=bool)
        count, others = int(stray.sum()), int(seen.sum() - stray.sum())
        few = count <= max(1, STRAY * seen.sum()) or many and count < others
        if count and few and others >= 4:
            raise InputError(
                f"Column {name!r} holds {kind}, except for {_stray_cells(values, stray)}. Correct these cells or drop these"
                f" rows (in a target they may be empty); or leave the column out (--ignore {name}); or, if these are"
                f" categories, give all of them names that are no {kind}. {COUNTED}"
            )


def _stray_cells(values: np.ndarray, stray: np.ndarray, limit: int = 3) -> str:
    texts = list(dict.fromkeys(str(v) for v in values[stray]))
    same = np.array([str(v) for v in values])
    cells = [f"{text!r} (row(s) {_rows(stray & (same == text), 1)})" for text in texts[:limit]]
    more = f" and {len(texts) - limit:,} other texts" if len(texts) > limit else ""
    return ", ".join(cells) + more


def _category(name: str, seen: np.ndarray) -> Column:
    categories = sorted({str(v) for v in seen})
    if len(categories) > MAX_CATEGORIES:
        raise InputError(
            f"Column {name!r} holds {len(categories):,} different texts, such as {categories[0]!r} and {categories[1]!r};"
            f" at most {MAX_CATEGORIES} categories are encoded. Leave it out (--ignore {name}), or group them."
        )
    return Column(name, "category", tuple(categories))


def _date(value: Any) -> datetime.datetime | None:
    """A date, a datetime or ISO 8601 text as a datetime without zone (in UTC)."""
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return datetime.datetime(value.year, value.month, value.day)
    try:
        # A month counts as its first day.
        stamp = (
            value
            if isinstance(value, datetime.datetime)
            else datetime.datetime.fromisoformat(value + "-01" * _is_month(value))
        )
    except (TypeError, ValueError):
        return None
    return stamp if stamp.tzinfo is None else stamp.astimezone(datetime.UTC).replace(tzinfo=None)


def _is_month(text: str) -> bool:
    return len(text) == 7 and text[4] == "-"


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _boolean(value: Any) -> float | None:
    return _BOOLEANS.get(str(value).strip().lower())


def _days(value: Any) -> float | None:
    stamp = _date(value)
    return None if stamp is None else (stamp - _EPOCH) / _DAY


def _encode_numbers(column: Column, values: np.ndarray, first: int) -> np.ndarray:
    if values.dtype.kind in "iufb":
        return values.astype(float)[:, None]
    return _each(column, values, first, _number)


def _encode_dates(column: Column, values: np.ndarray, first: int) -> np.ndarray:
    if values.dtype.kind == "M":
        return ((values - np.datetime64(0, "D")) / np.timedelta64(1, "D"))[:, None]
    return _each(column, values, first, _days)


def _encode_booleans(column: Column, values: np.ndarray, first: int) -> np.ndarray:
    return _each(column, values.astype(object), first, _boolean)


def _encode_categories(column: Column, values: np.ndarray, first: int) -> np.ndarray:
    position = {category: i for i, category in enumerate(column.categories)}
    index = np.array([position.get(str(v), -1) for v in values], dtype=int)
    if (index < 0).any():
        unseen = sorted({str(v) for v in values[index < 0]})
        raise InputError(
            f"Column {column.name!r} has categories that the model has not seen: {_shown(unseen)} (row(s)"
            f" {_rows(index < 0, first)}); known are {_shown(column.categories)}. Drop these rows, or fit with them."
        )
    return np.eye(len(column.categories))[index]


_ENCODERS: dict[str, Callable[[Column, np.ndarray, int], np.ndarray]] = {
    "number": _encode_numbers,
    "boolean": _encode_booleans,
    "date": _encode_dates,
    "category": _encode_categories,
}


def _each(column: Column, values: np.ndarray, first: int, convert: Callable[[Any], float | None]) -> np.ndarray:
    """Every value converted, or an error that names the rows of those that cannot be."""
    converted = [convert(v) for v in values]
    bad = np.array([c is None for c in converted], dtype=bool)
    if bad.any():
        raise InputError(
            f"Column {column.name!r} is a {column.kind} in the model, but holds {str(values[bad][0])!r} (row(s)"
            f" {_rows(bad, first)}); correct or drop these rows."
        )
    return np.array(converted, dtype=float)[:, None]


def _require_complete(columns: Sequence[Column], values: Sequence[np.ndarray], first: int) -> None:
    gaps = {c.name: _missing(v) for c, v in zip(columns, values, strict=True)}
    if any(g.any() for g in gaps.values()):
        rows = np.logical_or.reduce(list(gaps.values()))
        names = [name for name, gap in gaps.items() if gap.any()]
        raise InputError(
            f"Inputs are missing in row(s) {_rows(rows, first)}, column(s) {_shown(names)}; drop or fill them"
            f" (only the target may be missing). {COUNTED}"
        )


def _rows(bad: np.ndarray, first: int, limit: int = 5) -> str:
    rows = np.flatnonzero(bad)
    more = f" and {len(rows) - limit:,} more" if len(rows) > limit else ""
    return ", ".join(str(r + first) for r in rows[:limit]) + more


def _shown(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
