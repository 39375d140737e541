"""Inputs that stay in files: memory-mapped arrays, Parquet files, pyarrow Datasets, torch Datasets.

An array of float64 on disk is used where it is. Everything else is read once, in blocks of rows, into a temporary file that goes
when the data go: rows can then be taken in any order, and the system decides which of them are in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gpx.errors import InputError

ROWS = 1 << 16  # of a block
SUFFIXES = (".parquet", ".pq")


def slices(rows: int) -> Iterator[slice]:
    """Blocks of rows, in order; one empty block where there are none."""
    return (slice(start, min(start + ROWS, rows)) for start in range(0, max(rows, 1), ROWS))


def is_stored(value: Any) -> bool:
    """Whether inputs are read in blocks: a memory map, a Parquet path, a pyarrow or a torch Dataset."""
    return isinstance(value, (np.memmap, Dataset)) or is_table(value)


def is_table(value: Any) -> bool:
    """Whether inputs have named columns in files: a Parquet path, several of them, or a pyarrow Dataset."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(v, (str, Path)) and is_table(v) for v in value)
    if isinstance(value, (str, Path)):
        return Path(value).suffix.lower() in SUFFIXES or Path(value).is_dir()
    return hasattr(value, "to_batches") and hasattr(value, "get_fragments")


def as_mapped(array: np.ndarray) -> Tensor | None:
    """The tensor over the same memory, if it can be one of float64; a map for reading must not be written to.

    >>> import numpy as np
    >>> as_mapped(np.zeros((2, 1), dtype=np.float32)) is None
    True
    """
    if array.dtype != np.float64 or any(s < 0 or s % array.itemsize for s in array.strides) or not array.size:
        return None
    return torch.from_numpy(np.asarray(_Shared(array)))


class _Shared:
    """The memory of an array, offered as if it could be written to: torch has no tensors that cannot."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.__array_interface__ = dict(array.__array_interface__, data=(array.ctypes.data, False))


def spooled(blocks: Iterable[Tensor]) -> Tensor:
    """Blocks [n, D] of rows in one memory-mapped temporary file [N, D] of float64, which goes with the tensor.

    Raises: InputError if the folder for temporary files is full.

    >>> spooled([torch.zeros(2, 1), torch.ones(1, 1)]).flatten()
    tensor([0., 0., 1.], dtype=torch.float64)
    """
    rows, width = 0, 0
    with tempfile.TemporaryFile(prefix="gpx-") as file:
        try:
            for block in blocks:
                rows, width = rows + len(block), block.shape[1]
                file.write(block.double().contiguous().numpy().data)
            file.flush()
        except OSError as error:
            raise InputError(
                f"The temporary copy of X could not be written to {tempfile.gettempdir()!r} ({error.strerror}): let TMPDIR name a"
                " folder with more space, or store X as an array of float64 with numpy.save."
            ) from error
        if not rows * width:
            return torch.zeros(rows, width, dtype=torch.float64)
        return torch.from_numpy(np.memmap(file, dtype=np.float64, mode="r+", shape=(rows, width)))


def table(source: Any) -> Any:
    """A pyarrow Dataset of a Parquet path, a folder of such files, or a list of them.

    Raises: InputError if there is no such file, or it is no Parquet file.
    """
    if hasattr(source, "to_batches"):
        return source
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise InputError('Reading Parquet files needs pandas and pyarrow: pip install "gpx-torch[data]".') from error
    names = [os.fspath(s) for s in source] if isinstance(source, (list, tuple)) else os.fspath(source)
    try:
        return pyarrow.dataset.dataset(names, format="parquet")
    except (OSError, ValueError) as error:
        raise InputError(f"{names!r} cannot be read as Parquet ({error}); check the path.") from error


def input_columns(data: Any, columns: Sequence[str] | None, targets: Sequence[str]) -> list[str]:
    """The columns that are inputs: those of the fit, or all that are no targets.

    Raises: InputError that names the missing columns, and the file that lacks them.
    """
    wanted = [*(columns if columns is not None else ()), *targets]
    for where, schema in _schemas(data):
        missing = [c for c in wanted if c not in schema.names]
        if missing:
            raise InputError(f"{where} lacks the column(s) {', '.join(missing)}; it has {', '.join(schema.names)}.")
    inputs = list(columns) if columns is not None else [c for c in data.schema.names if c not in targets]
    for where, schema in _schemas(data):
        missing = [c for c in inputs if c not in schema.names]
        if missing:
            raise InputError(
                f"{where} lacks the column(s) {', '.join(missing)} of other files; give all files the same columns."
            )
    return inputs


def _schemas(data: Any) -> Iterator[tuple[str, Any]]:
    """What the columns of every file are: a column that one of them lacks would be read as missing values."""
    yield "X", data.schema
    for fragment in data.get_fragments():
        if getattr(fragment, "path", None):
            yield f"The file {fragment.path!r}", fragment.physical_schema


def frames(data: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Some columns of a pyarrow Dataset as DataFrames of few rows, in order; at least one."""
    yield data.schema.empty_table().select(list(columns)).to_pandas()
    for batch in data.to_batches(columns=list(columns), batch_size=ROWS):
        yield batch.to_pandas()


def items(data: Dataset) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Inputs [n, D] and targets of a torch Dataset of inputs, or of pairs of inputs and targets, in order.

    Raises: InputError for items that are neither.
    """
    rows = ROWS if isinstance(data, IterableDataset) else min(ROWS, max(1, len(data)))  # pyright: ignore
    loader = DataLoader(data, batch_size=rows, generator=torch.Generator())
    try:
        for item in loader:
            x, y = item if isinstance(item, (list, tuple)) and len(item) == 2 else (item, None)
            if isinstance(x, (list, tuple)) and len(x) == 1:  # TensorDataset(x)
                x = x[0]
            if not isinstance(x, Tensor) or not (y is None or isinstance(y, Tensor)):
                raise TypeError(f"{type(x).__name__}")
            yield (x.unsqueeze(1) if x.dim() == 1 else x).double(), None if y is None else y.double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The items of a torch Dataset must be numbers x, or pairs (x, y) of such, of equal shapes; got: {error}."
        ) from error
