"""Tables for the command line: read whole or in pieces, rows held out, and files written all at once or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpx import datasets
from gpx.encoding import Encoding, as_dates
from gpx.errors import InputError

SHARE = 0.2  # of the rows, for the test
PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Table:
    """Columns by name, with what is known of them. target: "" if unknown; description: one line."""

    name: str
    columns: Mapping[str, Any]
    target: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    def label(self, column: str) -> str:
        """The name of a column with its unit.

        >>> Table("t", {}, units={"co2": "ppm"}).label("co2")
        'co2 [ppm]'
        """
        return f"{column} [{self.units[column]}]" if column in self.units else column


def read(source: str) -> Table:
    """A table from a CSV or Parquet file, or a data set by name. Raises: InputError if there is neither."""
    path = Path(source)
    if not path.exists() and source in datasets.names():
        data = datasets.load(source)
        columns = {name: data.X[:, i].numpy() for i, name in enumerate(data.columns)}
        return Table(source, {**columns, data.target: data.y.numpy()}, data.target, data.units, data.description)
    if not path.exists() and not path.suffix and path.name == source:
        raise InputError(
            f"{source!r} is neither a file nor a data set; the data sets are {', '.join(datasets.names())}."
        )
    return Table(stem(source), datasets.read_table(path).rename(columns=str))


def stem(source: str | Path) -> str:
    """The name of a file without its folder and .csv, .csv.gz, ...

    >>> stem("data/tides.csv.gz"), stem("co2")
    ('tides', 'co2')
    """
    name = Path(source).name.removesuffix(".gz")
    return name.rpartition(".")[0] or name


def pieces(path: Path, rows: int) -> Iterator[Any]:
    """A CSV or Parquet file as DataFrames of at most `rows` rows, never all in memory; the cells of a CSV file stay text.

    Raises: InputError for a file that cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{str(path)!r} is not a file; expected a CSV (plain or .gz) or Parquet file.")
    try:
        if path.suffix.lower() in PARQUET:
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=rows):
                    yield batch.to_pandas()
        else:
            import pandas

            with pandas.read_csv(path, chunksize=rows, dtype=str) as reader:
                yield from reader
    except ImportError as error:
        raise InputError(f'Reading {str(path)!r} needs pandas and pyarrow: pip install "gpx-torch[data]".') from error
    except InputError:  # of the code that uses the pieces
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error}); expected a CSV (plain or .gz) or Parquet file."
        ) from error


def held_out(x: np.ndarray, y: np.ndarray, share: float, series: bool, seed: int) -> np.ndarray:
    """[N] bool: the rows kept for the test: the last `share` of a series along its input, else a random share.

    Only rows with an observed target are counted; the test set is empty if it or the rest would have fewer than two.

    >>> held_out(np.array([[3.0], [1.0], [2.0], [5.0], [4.0]]), np.ones(5), 0.4, True, 0)
    array([False, False, False,  True,  True])
    """
    observed = np.flatnonzero(~np.isnan(y))
    count = round(share * len(observed))
    chosen = np.zeros(len(y), dtype=bool)
    if count < 2 or len(observed) - count < 2:
        return chosen
    if not series:
        chosen[np.random.default_rng(seed).permutation(observed)[:count]] = True
        return chosen
    # Whoever forecasts from a moment on knows nothing of that moment: rows of the same input stay together.
    inputs = x[observed, 0]
    chosen[observed] = inputs >= np.sort(inputs)[-count]
    return chosen if not chosen[observed].all() else np.zeros(len(y), dtype=bool)


def beyond(x: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Inputs [M, 1] of a series beyond its end, at its median spacing, `share` of its rows but at least one.

    >>> beyond(np.array([[0.0], [1.0], [2.0]]))
    array([[3.]])
    """
    stamps = np.unique(x[:, 0])
    if len(stamps) < 2:
        return np.empty((0, 1))
    steps = np.arange(1, max(1, round(share * len(stamps))) + 1)
    return (stamps[-1] + np.median(np.diff(stamps)) * steps)[:, None]


def input_cells(
    encoding: Encoding, columns: Mapping[str, Any], x: np.ndarray, future: np.ndarray
) -> dict[str, np.ndarray]:
    """The input columns as they came, dates as dates; those of a series with its future inputs appended.

    Arguments: x: the encoded inputs [N, D]; future: [M, D], M = 0 unless the table is a series.
    """
    cells = {}
    for column in encoding.columns:
        if column.kind in ("number", "date"):
            position = encoding.names.index(column.name)
            numbers = np.append(x[:, position], future[:, position])
            cells[column.name] = as_dates(numbers) if column.kind == "date" else numbers
        else:
            cells[column.name] = np.asarray(columns[column.name])
    return cells


def free_names(wanted: Mapping[str, Any], taken: Any) -> dict[str, Any]:
    """Columns under their own names, or with ``predicted_`` before it where the name is taken.

    >>> free_names({"mean": 1, "std": 2}, ["x", "mean"])
    {'predicted_mean': 1, 'std': 2}
    """
    return {f"predicted_{name}" if name in taken else name: column for name, column in wanted.items()}


def require_folder(folder: Path) -> None:
    """Raise InputError if the path, or a part of it, is a file."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"{str(path)!r} is a file; choose another folder for the output.")


def require_new(outputs: Sequence[Path], sources: Mapping[str, Path]) -> None:
    """Raise InputError if an output would overwrite a source, by whatever path. sources: files by what they are."""
    for output in outputs:
        for what, source in sources.items():
            if output.exists() and source.exists() and output.samefile(source):
                raise InputError(f"{str(output)!r} is the {what} file, which would be lost; choose another --output.")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move to `folder` at the end; after an error nothing is left of them.

    Raises: InputError if the folder cannot be written to.
    """
    require_folder(folder)
    parent = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    try:
        staging = Path(tempfile.mkdtemp(prefix=".gpx-", dir=parent))
    except OSError as error:
        raise InputError(f"Cannot write to {str(parent)!r} ({error.strerror}); choose another folder.") from error
    try:
        yield staging
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(staging.iterdir()):
            os.replace(file, folder / file.name)
    except OSError as error:
        raise InputError(f"Cannot write to {str(folder)!r} ({error}); choose another folder.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
