"""Data sets by name: one bundled with the package, and a table of classic ones read from a data folder.

``load("co2")`` works everywhere. The other sets are files of a data folder: the one that the environment
variable ``GPX_DATA`` names, or else ``../shared/data`` beside the repository where that exists. Each set is
an entry of a table (name, file, how to read it, units, source), so that adding a set is adding an entry.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpx import dataset_files as read
from gpx.errors import InputError

if TYPE_CHECKING:
    import pandas

    from gpx.graphs import Graph

__all__ = ["Dataset", "Entry", "catalogue", "folder", "load", "names", "read_table"]

_PACKAGED = Path(__file__).with_name("data")


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set: inputs ``X``, target ``y``, and what they mean.

    Attributes
    ----------
    X : Tensor [N, D], float64, in the units of the file.
    y : Tensor [N], float64; 1 in every row for sets of events: ``coal_events``, ``aircraft``, ``rainforest``.
    name : the name that :func:`load` takes.
    units : column name -> unit, for the columns whose unit is known.
    source : where the data come from, with credit and licence.
    columns : D input names.
    target : name of y.
    description : one line.
    folds : Tensor [N, K], bool, or None. True: a test row of that split.
    graph : for sets whose inputs are nodes of a graph, that graph; X [N, 1] are the labelled nodes.

    Examples
    --------
    >>> from gpx import datasets
    >>> co2 = datasets.load("co2")
    >>> co2
    Dataset('co2': N=753, D=1, target co2 [ppm])
    """

    X: torch.Tensor
    y: torch.Tensor
    name: str
    units: Mapping[str, str]
    source: str
    columns: tuple[str, ...]
    target: str
    description: str
    folds: torch.Tensor | None = None
    graph: Graph | None = None

    def __repr__(self) -> str:
        unit = f" [{self.units[self.target]}]" if self.target in self.units else ""
        folds = "" if self.folds is None else f", folds={self.folds.shape[1]}"
        N, D = self.X.shape
        return f"Dataset({self.name!r}: N={N}, D={D}, target {self.target}{unit}{folds})"

    def split(self, fold: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of one stored split: ``(X, y, X_test, y_test)``.

        Parameters
        ----------
        fold : column of ``folds``.

        Raises
        ------
        InputError : the set has no stored splits, or not that one.
        """
        if self.folds is None or not 0 <= fold < self.folds.shape[1]:
            stored = "none" if self.folds is None else f"0 to {self.folds.shape[1] - 1}"
            raise InputError(
                f"fold {fold!r} of data set {self.name!r} does not exist (stored folds: {stored}); "
                "choose a stored fold, or split the rows of X and y yourself."
            )
        test = self.folds[:, fold]
        return self.X[~test], self.y[~test], self.X[test], self.y[test]


@dataclass(frozen=True)
class Entry:
    """One line of the table of data sets.

    Attributes
    ----------
    name, description, source, target, units : as in :class:`Dataset`.
    columns : input names; empty: x0, x1, ...
    path : file relative to the data folder, or to the package's own if bundled.
    read : path -> (X, y, folds, graph).
    bundled : whether the set comes with an installed package and needs no data folder.
    """

    name: str
    path: str
    read: Callable[[Path], read.Arrays]
    description: str
    source: str
    target: str = "y"
    columns: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    bundled: bool = False

    @property
    def available(self) -> bool:
        """Whether :func:`load` would find the file."""
        root = _PACKAGED if self.bundled else _root()
        return root is not None and (root / self.path).exists()


def _regression(name: str, description: str, target: str = "y", unit: str | None = None) -> Entry:
    return Entry(
        name, f"regression/{name}.csv.gz", read.with_masks, f"{description}; columns are centred",
        "UCI Machine Learning Repository (CC BY 4.0), as prepared in treforevans/uci_datasets",
        target, units={target: unit} if unit else {},
    )  # fmt: skip


def _classification(name: str, description: str) -> Entry:
    return Entry(
        name, f"classification/{name}.csv.gz", partial(read.columns, skip=1), f"{description}; y in {{0, 1}}",
        "UCI Machine Learning Repository and AaltoML repositories", units={"y": "class"},
    )  # fmt: skip


def _series(name: str, file: str, description: str, target: str, unit: str | None = None) -> Entry:
    return Entry(
        name, f"timeseries/tsdlr/{file}-train.csv", read.halves, f"{description}; the fold is a random half",
        "Time Series Data Library, as prepared in jamesrobertlloyd/gpss-research",
        target, ("year",), {"year": "year"} | ({target: unit} if unit else {}),
    )  # fmt: skip


def _graph(name: str, file: str, description: str, **how: Any) -> Entry:
    return Entry(
        name, f"graphs/{file}.npz", partial(read.nodes, **how), f"{description}; the largest connected component",
        "baojian/FastONL (MIT)", "label", ("node",), {"label": "class"},
    )  # fmt: skip


_CREDIT = (
    "Dr. Pieter Tans, NOAA/GML (gml.noaa.gov/ccgg/trends/) and Dr. Ralph Keeling, "
    "Scripps Institution of Oceanography (scrippsco2.ucsd.edu); public domain"
)
_BAYESNEWTON = "AaltoML/BayesNewton"

_ENTRIES = (
    Entry(
        "co2", "co2.csv", partial(read.columns, skip=1),
        "Mauna Loa monthly mean CO2, March 1958 to January 2021, without two interpolated months",
        _CREDIT, "co2", ("date",), {"date": "year", "co2": "ppm"}, bundled=True,
    ),
    Entry(
        "diabetes", ".", read.diabetes, "disease progression one year after baseline, 442 patients",
        "Efron, Hastie, Johnstone and Tibshirani (2004), Least angle regression; bundled with scikit-learn",
        "progression", ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"),
        {"age": "year", "bmi": "kg/m^2", "bp": "mmHg"}, bundled=True,
    ),
    _regression("yacht", "log residuary resistance of sailing yachts", "log_resistance"),
    _regression("energy", "heating load of buildings", "heating_load", "kWh/m^2"),
    _regression("concrete", "compressive strength of concrete", "strength", "MPa"),
    _regression("airfoil", "self-noise of airfoil sections", "sound_pressure", "dB"),
    _regression("housing", "median house values around Boston", "value", "1000 USD"),
    _regression("wine", "alcohol content of red wines", "alcohol", "% vol"),
    _regression("stock", "daily returns of the Istanbul exchange from those of other indices", "return"),
    _regression("elevators", "log control action on the elevators of an aircraft", "log_action"),
    _regression("kin40k", "distance of the end of a robot arm from a target"),
    _regression("protein", "log(1 + RMSD in angstrom) of protein tertiary structures", "log_rmsd"),
    _regression("bike", "log number of bikes rented per hour", "log_count"),
    Entry(
        "neal", "regression/neal.txt", read.columns, "one input, 5 % of the targets are outliers",
        "R. M. Neal (1997), Monte Carlo implementation of Gaussian process models",
    ),
    _classification("ionosphere", "radar returns from the ionosphere, good or bad"),
    _classification("monks-2", "the second MONK's problem"),
    _classification("parkinsons", "voice measurements, with Parkinson's disease or without"),
    _classification("sonar", "sonar returns, mines or rocks"),
    _classification("usps", "16 x 16 images of handwritten digits, 3 or 5"),
    _classification("banana", "two banana-shaped classes in the plane"),
    Entry(
        "co2_weekly", "timeseries/co2_weekly_mlo.txt",
        partial(read.columns, x=3, y=4, delimiter=None, missing=-999.99),
        "Mauna Loa weekly mean CO2, from May 1974, weeks without data left out",
        _CREDIT, "co2", ("date",), {"date": "year", "co2": "ppm"},
    ),
    Entry(
        "sunspots", "timeseries/sunspots_monthly.csv", partial(read.dated, date=1, value=2, skip=1),
        "monthly mean sunspot numbers from 1749, dated by the last day of the month",
        "WDC-SILSO, Royal Observatory of Belgium, Brussels (CC BY-NC), as in EEA-sensors/parallel-gps",
        "sunspots", ("date",), {"date": "year"},
    ),
    Entry(
        "coal", "timeseries/coal_binned.csv", partial(read.with_order, delimiter=None),
        "coal-mining disasters in Great Britain, 1851 to 1962, counted in 333 bins of time",
        _BAYESNEWTON, "disasters", ("date",), {"date": "year", "disasters": "count per bin"},
    ),
    Entry(
        "coal_events", "timeseries/coal_events.txt", partial(read.events, delimiter=None),
        "dates of 191 coal-mining disasters in Great Britain; one event per row, y = 1",
        _BAYESNEWTON, "event", ("date",), {"date": "year", "event": "count"},
    ),
    Entry(
        "motorcycle", "timeseries/motorcycle.csv", partial(read.with_order, x=1, y=2),
        "head acceleration in a simulated motorcycle accident",
        f"Silverman (1985); {_BAYESNEWTON}", "acceleration", ("time",), {"time": "ms", "acceleration": "g"},
    ),
    Entry(
        "aircraft", "timeseries/aircraft_accidents.txt", read.dated,
        "dates of commercial aircraft accidents, 1919 to 2017; one event per row, y = 1",
        _BAYESNEWTON, "event", ("date",), {"date": "year", "event": "count"},
    ),
    Entry(
        "rainforest", "timeseries/rainforest_TRI2TU.csv", read.events,
        "places of 12,929 trees (Trichilia tuberculata) on 1000 m x 500 m; one event per row, y = 1",
        _BAYESNEWTON, "event", ("east", "north"), {"east": "m", "north": "m", "event": "count"},
    ),
    Entry(
        "tide", "timeseries/honolulu_tide_2010.asc", partial(read.columns, delimiter=None),
        "hourly water level at Honolulu in 2010; time in days since 1 January 1700",
        "wesleybowman/UTide", "level", ("time",), {"time": "day", "level": "mm"},
    ),
    _series("airline", "01-airline", "airline passengers per month, from 1949", "passengers", "1000 persons"),
    _series("solar", "02-solar", "yearly solar irradiance, 1610 to 2011", "irradiance", "W/m^2"),
    _series("mauna", "03-mauna2003", "monthly CO2 at Mauna Loa until 2003, centred", "co2", "ppm"),
    _series("internet", "internet-traffic-data-in-bits-fr-2", "internet traffic of a provider", "traffic"),
    _series("temperature", "daily-minimum-temperatures-in-me", "daily low in Melbourne", "low", "degC"),
    _graph("cora", "cora", "topics of papers on machine learning, 7 classes; edges are citations"),
    _graph("pubmed", "pubmed", "kinds of diabetes that papers are about, 3 classes; edges are citations"),
    _graph(
        "political_blogs", "political-blog", "liberal or conservative blogs of 2004; edges are links",
        self_loops="remove",
    ),
    Entry(
        "pems_san_jose", "graphs/pems_san_jose.npz", partial(read.nodes, node="node", target="speed_mph"),
        "mean speeds at 325 places of San Jose's roads; edges are roads, with weights that fall with their length",
        "vabor112/pems-regression (Apache-2.0)", "speed", ("node",), {"speed": "mph"},
    ),
    _series("gas", "monthly-production-of-gas-in-aus", "gas production of Australia per month", "production"),
)  # fmt: skip

_TABLE = {entry.name: entry for entry in _ENTRIES}


def names() -> list[str]:
    """Names that :func:`load` knows, the bundled ones first.

    Examples
    --------
    >>> from gpx import datasets
    >>> datasets.names()[:3]
    ['co2', 'diabetes', 'yacht']
    """
    return list(_TABLE)


def catalogue() -> tuple[Entry, ...]:
    """The table of data sets: one :class:`Entry` each, with what it is and whether it is available here."""
    return _ENTRIES


def _root() -> Path | None:
    """The data folder as configured, existing or not; None: nothing is configured and there is no default."""
    if configured := os.environ.get("GPX_DATA"):
        return Path(configured).expanduser()
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return beside if beside.is_dir() else None


def folder() -> Path:
    """The data folder: ``$GPX_DATA``, or ``../shared/data`` beside the repository where that exists.

    Raises
    ------
    InputError : there is no such folder.
    """
    root = _root()
    if root is None or not root.is_dir():
        received = "is not set" if root is None else f"is {str(root)!r}, which is not a folder"
        raise InputError(
            f"GPX_DATA {received}; expected a folder with regression/, classification/ and timeseries/. "
            f"Set the environment variable GPX_DATA to it, or use a set that needs none: {_bundled()}."
        )
    return root


def _bundled() -> str:
    return ", ".join(entry.name for entry in _ENTRIES if entry.bundled)


def load(name: str) -> Dataset:
    """A data set by name.

    Parameters
    ----------
    name : one of :func:`names`.

    Returns
    -------
    Dataset : X [N, D] and y [N], float64, in the units of the file, with units, source and stored splits.

    Raises
    ------
    InputError : unknown name; no data folder; the file is missing or cannot be read.

    Examples
    --------
    >>> from gpx import datasets
    >>> data = datasets.load("co2")
    >>> data.X.shape, data.y[0].item(), data.units["co2"]
    (torch.Size([753, 1]), 315.7, 'ppm')
    """
    entry = _TABLE.get(name) if isinstance(name, str) else None
    if entry is None:
        raise InputError(
            f"unknown data set {name!r}; expected one of {', '.join(names())}. "
            "For a file of your own use gpx.datasets.read_table(path)."
        )
    path = (_PACKAGED if entry.bundled else folder()) / entry.path
    if not path.exists():
        raise InputError(
            f"data set {name!r}: there is no file {str(path)!r}; expected {entry.path!r} in the data folder. "
            f"Set the environment variable GPX_DATA, or use a set that needs no folder: {_bundled()}."
        )
    try:
        X, y, folds, graph = entry.read(path)
    except (KeyError, ValueError, IndexError, OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"data set {name!r}: {str(path)!r} cannot be read ({error}); expected numbers in columns. "
            "Fetch the file again."
        ) from error
    return Dataset(
        X=torch.tensor(X, dtype=torch.float64),
        y=torch.tensor(y, dtype=torch.float64),
        name=name,
        units=dict(entry.units),
        source=entry.source,
        columns=entry.columns or tuple(f"x{i}" for i in range(X.shape[1])),
        target=entry.target,
        description=entry.description,
        folds=None if folds is None else torch.tensor(folds),
        graph=graph,
    )


def read_table(path: str | os.PathLike[str]) -> pandas.DataFrame:
    """A CSV file (plain or .gz) or a Parquet file as a DataFrame.

    The first row of a CSV file holds the column names. Text columns in which every value is an ISO 8601 date
    become datetimes; numbers, text and missing values are as pandas reads them.

    Parameters
    ----------
    path : file; ``.parquet`` or ``.pq`` is Parquet, anything else CSV.

    Raises
    ------
    InputError : no such file, not a table, no rows, no column names, or pandas is not installed.

    Examples
    --------
    >>> import pathlib, gpx
    >>> table = gpx.datasets.read_table(pathlib.Path(gpx.__file__).with_name("data") / "co2.csv")
    >>> list(table.columns)
    ['date', 'co2']
    """
    path = Path(path)
    parquet = path.suffix.lower() in {".parquet", ".pq"}
    expected = "a Parquet file" if parquet else "a CSV file (plain or .gz) that starts with column names"
    advice = f"expected {expected}. Check the file."
    if not path.is_file():
        raise InputError(f"{str(path)!r} is not a file; {advice}")
    try:
        import pandas

        table = pandas.read_parquet(path) if parquet else _read_csv(path)
    except ImportError as error:
        raise InputError(
            f"reading {str(path)!r} needs pandas, and pyarrow for Parquet ({error}); "
            'install them with: pip install "gpx-torch[data]".'
        ) from error
    except InputError:
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); {advice}") from error
    if table.empty:
        raise InputError(f"{str(path)!r} has no rows; {advice}")
    return table


def _read_csv(path: Path) -> pandas.DataFrame:
    import pandas
    from pandas.api.types import is_string_dtype

    # Two rows without a header: if the second has more cells this fails, where otherwise pandas makes an index of them.
    rows = pandas.read_csv(path, header=None, nrows=2, dtype=str)
    header: list[str] = rows.iloc[0].fillna("").tolist()
    if all(_is_number(cell) for cell in header):
        raise InputError(
            f"the first row of {str(path)!r} holds numbers ({', '.join(header[:3])}, ...); expected column names. "
            "Add a first row with the names of the columns."
        )
    if any("\0" in cell for cell in header):
        raise ValueError("it holds binary data")
    table = pandas.read_csv(path, low_memory=False)
    for column in table:
        if is_string_dtype(table[column]):
            table[column] = _as_dates(table[column])
    return table


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _as_dates(column: Any) -> Any:
    import pandas

    try:
        return pandas.to_datetime(column, format="ISO8601")
    except (ValueError, TypeError):
        return column
