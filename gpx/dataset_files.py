"""How the files of data sets are read, to arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from gpx.graphs import Graph


class Arrays(NamedTuple):
    """What a reader gives: X [N, D], y [N], and folds [N, K] (bool) or None; the graph whose nodes X are."""

    X: np.ndarray
    y: np.ndarray
    folds: np.ndarray | None = None
    graph: Graph | None = None


def matrix(path: Path, delimiter: str | None = ",", skip: int = 0) -> np.ndarray:
    """A table of numbers."""
    return np.loadtxt(path, delimiter=delimiter, skiprows=skip, ndmin=2)


def columns(
    path: Path,
    x: int | slice = slice(None, -1),
    y: int = -1,
    delimiter: str | None = ",",
    skip: int = 0,
    missing: float | None = None,
) -> Arrays:
    """Numbers in columns: inputs ``x``, target ``y``; rows with target ``missing`` are left out."""
    table = matrix(path, delimiter, skip)
    table = table if missing is None else table[table[:, y] != missing]
    return Arrays(table[:, x].reshape(len(table), -1), table[:, y])


def with_masks(path: Path) -> Arrays:
    """A table and its splits: ``NAME.folds.csv.gz`` has one column of 0/1 per split, 1 = test row."""
    X, y, *_ = columns(path)
    return Arrays(X, y, matrix(path.with_name(path.name.replace(".csv", ".folds.csv"))) == 1)


def with_order(path: Path, folds: int = 10, **how: Any) -> Arrays:
    """A table and its splits: equal consecutive pieces of the permutation of its rows in ``NAME.folds.csv``.

    The few rows left over by the division are in no test set (as in the experiments of BayesNewton).
    """
    X, y, *_ = columns(path, **how)
    order = np.loadtxt(path.with_name(path.name.replace(".csv", ".folds.csv"))).astype(int)
    pieces = order[: folds * (len(order) // folds)].reshape(folds, -1)
    mask = np.zeros((len(y), folds), dtype=bool)
    mask[pieces, np.arange(folds)[:, None]] = True
    return Arrays(X, y, mask)


def halves(path: Path) -> Arrays:
    """``NAME-train.csv`` and ``NAME-test.csv`` (x, y), merged and sorted by x; one fold is the test half."""
    train, test = (matrix(path.with_name(path.name.replace("-train", part))) for part in ("-train", "-test"))
    table = np.vstack([train, test])
    mask = np.arange(len(table)) >= len(train)
    order = np.argsort(table[:, 0], kind="stable")
    return Arrays(table[order, :1], table[order, 1], mask[order, None])


def events(path: Path, **how: Any) -> Arrays:
    """One event per row: its place or time is X, and y = 1."""
    X = matrix(path, **how)
    return Arrays(X, np.ones(len(X)))


def dated(path: Path, date: int = 0, value: int | None = None, skip: int = 0) -> Arrays:
    """ISO dates as decimal years, with a column of values, or as events (y = 1)."""
    table = np.loadtxt(path, delimiter=",", skiprows=skip, dtype=str, ndmin=2)
    X = decimal_year(table[:, date].astype("datetime64[D]"))[:, None]
    return Arrays(X, np.ones(len(X)) if value is None else table[:, value].astype(float))


def decimal_year(dates: np.ndarray) -> np.ndarray:
    """Year plus the elapsed fraction of that year, for datetime64[D]."""
    years = dates.astype("datetime64[Y]")
    start, end = years.astype("datetime64[D]"), (years + 1).astype("datetime64[D]")
    return years.astype(int) + 1970 + (dates - start) / (end - start)


def diabetes(_: Path) -> Arrays:
    """Disease progression of the patients that come with scikit-learn."""
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True, scaled=False)
    return Arrays(np.asarray(X), np.asarray(y))


def nodes(path: Path, node: str | None = None, target: str = "labels", self_loops: str = "error") -> Arrays:
    """A symmetric matrix of weights in compressed rows, with targets of all nodes, or of those in an array."""
    from scipy import sparse

    from gpx.graphs import Graph

    with np.load(path) as file:
        y = file[target].astype(float)
        labelled = np.arange(len(y)) if node is None else file[node]
        W = sparse.csr_array((file["data"], file["indices"], file["indptr"]), tuple(file["shape"]))
    return Arrays(labelled[:, None], y, graph=Graph.from_scipy(W, self_loops=self_loops))
