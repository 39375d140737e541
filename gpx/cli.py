"""The command line: ``gpx fit``, ``gpx predict``, ``gpx explain``, ``gpx datasets``."""

from __future__ import annotations

import csv
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import gpx
from gpx import checking, datasets, likelihoods, plot, tables
from gpx.encoding import Column, Encoding, as_dates
from gpx.errors import FitWarning, InputError, NumericalError, StructureError
from gpx.gp import GP
from gpx.kernels.expressions import parse_call
from gpx.posterior import Prediction
from gpx.progress import progress_bar

ROWS = 10_000  # rows of a file in memory at a time
FILES = ("model.gpx", "forecast.csv", "forecast.png")
CORRECT, BROKEN = 2, 1  # exit codes: something for the user to correct; a computation that broke down
LIKELIHOODS = {
    name: getattr(likelihoods, name) for name in likelihoods.__all__ if name not in ("Likelihood", "FromGPyTorch")
}

app = typer.Typer(
    help="Gaussian processes: fit a table, predict another.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors and warnings are lines on stderr, without a traceback."""

    @functools.wraps(command)
    def reported(*args: Any, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", FitWarning)
                warnings.showwarning = lambda message, *_, **__: _say("warning", message)
                command(*args, **kwargs)
        except (InputError, StructureError, NumericalError) as error:
            _say("error", error)
            raise typer.Exit(BROKEN if isinstance(error, NumericalError) else CORRECT) from error

    return reported


def _say(kind: str, message: object) -> None:
    """One line on stderr, whatever line breaks a library put into the message."""
    typer.echo(f"{kind}: {' '.join(str(message).split())}", err=True)


@app.command()
@_reported
def fit(
    data: Annotated[
        str, typer.Argument(help="A CSV (plain or .gz) or Parquet file, or the name of a data set.")
    ] = "co2",
    target: Annotated[str, typer.Option(help="The column to predict; known for a data set.")] = "",
    kernel: Annotated[
        str, typer.Option(help="An expression, such as 'Matern(nu=1.5) + Linear'; auto: by the data.")
    ] = "auto",
    engine: Annotated[str, typer.Option(help="An engine, such as Exact; auto: by the data.")] = "auto",
    likelihood: Annotated[str, typer.Option(help=f"One of {', '.join(LIKELIHOODS)}.")] = "Gaussian",
    mean: Annotated[
        str, typer.Option(help="The prior mean: constant, zero, linear, or trend (a line with a flat prior).")
    ] = "constant",
    output: Annotated[
        Path | None, typer.Option(help="The folder of the results; default: named after the data.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="A column to leave out; may be repeated.")] = None,
    test_share: Annotated[
        float | None,
        typer.Option(
            help=f"The share of the rows held out for the test; 0: none; default: {tables.SHARE}, none of few rows."
        ),
    ] = None,
    max_iter: Annotated[int, typer.Option(help="Iterations of the optimiser per start.")] = 200,
    restarts: Annotated[int, typer.Option(help="Further random starts.")] = 0,
    max_seconds: Annotated[float | None, typer.Option(help="A limit on the time of the fit.")] = None,
    seed: Annotated[int, typer.Option(help="Of the rows held out at random, and of random starts.")] = 0,
) -> None:
    """Fit a Gaussian process to a table, score it on rows held out, and write the model, a forecast and a picture.

    The last rows of a series (one input column) are held out, of other tables random ones. The hyperparameters are learned
    without them; the model that is saved is then conditioned on all rows.
    """
    model = GP(kernel, parse_call(likelihood, LIKELIHOODS, "likelihood"), mean=mean, engine=engine)
    folder = Path(tables.stem(data)) if output is None else output
    tables.require_folder(folder)
    tables.require_new([folder / name for name in FILES], {"data": Path(data)})
    job = _prepare(tables.read(data), target, tuple(ignore or ()), test_share, seed)
    typer.echo(_describe(job))
    train = ~job.held_out
    model.fit(job.inputs(train), job.y[train], max_iter=max_iter, restarts=restarts, max_seconds=max_seconds, seed=seed)
    typer.echo(f"kernel: {_structure(model.kernel_)}\n{model.summary()}\n")
    scores = _scores(model, job)
    typer.echo(_score_table(job, scores))
    results = _predictions(model, job)
    model.encoding = job.encoding
    with tables.staged(folder) as place:
        paths = [place / name for name in FILES]
        model.save(paths[0])
        _write_forecast(paths[1], job, results)
        drawn = _draw(paths[2], job, results, scores)
    typer.echo(_written(folder, job, drawn))


@app.command()
@_reported
def predict(
    model: Annotated[Path, typer.Argument(help="A model file that `gpx fit` or `GP.save` wrote.")],
    data: Annotated[
        Path, typer.Argument(help="A CSV (plain or .gz) or Parquet file with the input columns of the model.")
    ],
    output: Annotated[Path | None, typer.Option(help="The CSV file to write; default: DATA-predictions.csv.")] = None,
) -> None:
    """Predict every row of a table of any length: its columns, then mean, std, and the 95 % interval (lower, upper)."""
    gp = gpx.load(model)
    path = Path(f"{tables.stem(data)}-predictions.csv") if output is None else output
    tables.require_new([path], {"data": data, "model": model})
    with tables.staged(path.parent) as place, progress_bar(None, "predict", unit=" rows") as bar:
        rows = 0
        with open(place / path.name, "w", newline="", encoding="utf-8") as file:
            for piece in tables.pieces(data, ROWS):
                prediction = gp.predict(_encoding_of(gp, piece).transform(piece, rows + 1))
                piece = piece.assign(**tables.free_names(_summary(prediction), piece.columns))
                piece.to_csv(file, header=not rows, index=False)
                rows += len(piece)
                bar.update(len(piece))
        if not rows:
            raise InputError(f"{str(data)!r} has no rows; there is nothing to predict.")
    typer.echo(f"wrote {path}: {rows:,} rows")


@app.command()
@_reported
def explain(kernel: Annotated[str, typer.Argument(help="An expression, such as 'RBF * Periodic + Linear'.")]) -> None:
    """Say which structures and engines a kernel supports, and why not others."""
    typer.echo(gpx.explain(kernel))


@app.command("datasets")
@_reported
def list_datasets() -> None:
    """List the data sets by name, and which of them can be loaded here."""
    entries = datasets.catalogue()
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        state = "" if entry.available else "  (needs the data folder: set GPX_DATA)"
        typer.echo(f"{entry.name:<{width}}  {entry.target}: {entry.description}{state}")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"gpx {gpx.__version__}")
        raise typer.Exit


@dataclass(frozen=True)
class Job:
    """A table as a fit needs it: inputs x [N, D], targets y [N] with NaN, and which rows are held out [N]."""

    table: tables.Table
    encoding: Encoding
    x: np.ndarray
    y: np.ndarray
    held_out: np.ndarray
    future: np.ndarray  # [M, D]: inputs beyond the end of a series

    def named(self, x: np.ndarray) -> Any:
        """Inputs with their names, where pandas is installed."""
        try:
            import pandas
        except ImportError:
            return x
        return pandas.DataFrame(x, columns=list(self.encoding.names))

    def inputs(self, rows: Any = slice(None)) -> Any:
        """The inputs of some rows, with their names."""
        return self.named(self.x[rows])

    def grid(self) -> np.ndarray:
        """Inputs for the smooth line of a series [G, 1]; for other tables those of the data."""
        x = self.x
        return plot.grid_between(x.min(), x.max(), x[:, 0])[:, None] if self.encoding.is_series else x


@dataclass(frozen=True)
class Scores:
    """Scores on the rows held out, and those of a constant with white noise there."""

    nlpd: float
    rmse: float
    coverage: float
    constant_nlpd: float
    constant_rmse: float


def _prepare(table: tables.Table, target: str, ignore: tuple[str, ...], share: float | None, seed: int) -> Job:
    if share is not None and not 0 <= share < 1:
        raise InputError(f"--test-share must be at least 0 and below 1, got {share}.")
    if not (target or table.target):
        raise InputError(
            f"Say which column to predict: --target COLUMN; there are {', '.join(map(str, table.columns))}."
        )
    encoding = Encoding.fit(table.columns, target or table.target, ignore)
    x, y = encoding.transform(table.columns), encoding.targets(table.columns)
    held = tables.held_out(x, y, tables.SHARE if share is None else share, encoding.is_series, seed)
    if share and not held.any():
        rows = int((~np.isnan(y)).sum())
        count = round(share * rows)
        together = ", and rows of the same input stay together" if encoding.is_series else ""
        raise InputError(
            f"--test-share {share} holds out {count:,} of {rows:,} rows with a target and leaves {rows - count:,}; both need at"
            f" least 2{together}. Choose another share, or 0 for no test."
        )
    future = tables.beyond(x) if encoding.is_series else np.empty((0, x.shape[1]))
    return Job(table, encoding, x, y, held, future)


def _describe(job: Job) -> str:
    """What was read, how it was encoded, and what is held out."""
    names = ", ".join(job.table.label(c.name) for c in job.encoding.columns)
    missing = int(np.isnan(job.y).sum())
    lines = [
        f"data: {job.table.name}: {len(job.y):,} rows; target {job.table.label(job.encoding.target)}"
        + (f" ({missing:,} missing)" if missing else "") + f"; inputs {names}"
    ]  # fmt: skip
    for column in job.encoding.columns:
        if column.kind == "category":
            lines.append(f"  {column.name}: {len(column.categories)} categories, one column each")
        elif column.kind == "date":
            lines.append(f"  {column.name}: dates, as days since 1970-01-01")
    return "\n".join([*lines, _describe_split(job), ""])


def _describe_split(job: Job) -> str:
    count = int(job.held_out.sum())
    if not count:
        return "held out: nothing, so there is no test score"
    if not job.encoding.is_series:
        return f"held out: {count:,} rows at random"
    column = job.encoding.columns[0]
    first = job.x[job.held_out, 0].min()
    start = str(as_dates(first)) if column.kind == "date" else f"{first:g}"
    return f"held out: the last {count:,} rows along {column.name}, from {start} on"


def _scores(model: GP, job: Job) -> Scores | None:
    """The scores of a model on the rows held out, or None if there are none."""
    if not job.held_out.any():
        return None
    y, train = (model.likelihood_.outcome(torch.from_numpy(job.y[rows])) for rows in (job.held_out, ~job.held_out))
    constant, spread = np.nanmean(train.numpy()), np.nanstd(train.numpy()) or 1.0
    noise = torch.distributions.Normal(torch.tensor(constant), torch.tensor(spread))
    test = model.predict(job.inputs(job.held_out))
    return Scores(
        nlpd=checking.nlpd(test.log_prob(y)),
        rmse=checking.rmse(test.mean, y),
        coverage=checking.coverage(test, y, plot.LEVEL),
        constant_nlpd=checking.nlpd(noise.log_prob(y)),
        constant_rmse=checking.rmse(noise.mean.expand(len(y)), y),
    )


def _score_table(job: Job, scores: Scores | None) -> str:
    if scores is None:
        return ""
    unit = job.table.units.get(job.encoding.target, "in units of the target")
    lines = [
        f"test on the {job.held_out.sum():,} rows held out   model     a constant with noise",
        f"  NLPD    {scores.nlpd:<10.4g}  {scores.constant_nlpd:<10.4g} nats per row",
        f"  RMSE    {scores.rmse:<10.4g}  {scores.constant_rmse:<10.4g} {unit}",
        f"  inside the 95 % interval: {_percent(scores.coverage)}",
    ]
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class Results:
    """Predictions: at the rows, from the training rows; at a smooth line of inputs; of the future, from all rows."""

    rows: Prediction
    grid: np.ndarray
    line: Prediction
    future: Prediction | None


def _predictions(model: GP, job: Job) -> Results:
    """All predictions; on the way the model is conditioned on what was held out."""
    rows, grid = model.predict(job.inputs()), job.grid()
    line = model.predict(job.named(grid)) if job.encoding.is_series else rows
    if job.held_out.any():
        model.update(job.inputs(job.held_out), job.y[job.held_out])
    return Results(rows, grid, line, model.predict(job.named(job.future)) if len(job.future) else None)


def _summary(prediction: Prediction) -> dict[str, np.ndarray]:
    """The columns of a prediction in files."""
    lower, upper = prediction.interval(plot.LEVEL)
    parts = {"mean": prediction.mean, "std": prediction.std, "lower": lower, "upper": upper}
    return {name: values.detach().cpu().numpy() for name, values in parts.items()}


def _write_forecast(path: Path, job: Job, results: Results) -> None:
    """Inputs, observed, mean, std, lower, upper, held_out; for a series also the rows beyond its end."""
    extra = len(job.future)
    values = _summary(results.rows)
    if results.future is not None:
        future = _summary(results.future)
        values = {name: np.append(v, future[name]) for name, v in values.items()}
    cells = tables.input_cells(job.encoding, job.table.columns, job.x, job.future)
    more = {
        "observed": np.append(job.y, np.full(extra, np.nan)),
        **values,
        "held_out": np.append(job.held_out, np.zeros(extra, dtype=bool)).astype(int),
    }
    columns = {**cells, **tables.free_names(more, cells)}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(map(_cell, column.astype(object)) for column in columns.values()), strict=True))


def _cell(value: Any) -> Any:
    """Missing values are empty cells."""
    return "" if value is None or value != value else value


def _draw(path: Path, job: Job, results: Results, scores: Scores | None) -> bool:
    """The picture, if matplotlib is installed."""
    if not plot.is_available():
        typer.echo('no picture: it needs matplotlib; pip install "gpx-torch[plot]"', err=True)
        return False
    label = job.table.label
    target = label(job.encoding.target)
    title = target if job.table.name == job.encoding.target else f"{job.table.name}: {target}"
    subtitle = _caption(job, scores)
    if job.encoding.is_series:
        column = job.encoding.columns[0]
        figure = plot.plot_forecast(
            plot.Forecast(
                job.x[:, 0], job.y, job.held_out, results.grid[:, 0], results.line, job.future[:, 0], results.future,
                xlabel=label(column.name), ylabel=target, title=title, subtitle=subtitle, dates=column.kind == "date",
            )
        )  # fmt: skip
    else:
        shown = job.held_out if job.held_out.any() else ~np.isnan(job.y)
        figure = plot.plot_test(results.rows, job.y, shown, target=target, title=title, subtitle=subtitle)
    figure.savefig(path)
    return True


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _structure(kernel: Any) -> str:
    """A kernel without its values: what the numbers in the names of the parameters count.

    >>> _structure(gpx.kernels.Linear() + gpx.kernels.Matern(nu=1.5) * gpx.kernels.Periodic())
    'Linear + Matern(nu=1.5) * Periodic'
    """
    if isinstance(kernel, (gpx.kernels.Sum, gpx.kernels.Product)):
        parts = (f"({_structure(k)})" if isinstance(k, gpx.kernels.Sum) else _structure(k) for k in kernel.kernels)
        return kernel.symbol.join(parts)
    settings = {name: getattr(kernel, name) for name in getattr(kernel, "structure", ())}
    shown = ", ".join(f"{name}={value!r}" for name, value in settings.items() if value is not False)
    return type(kernel).__name__ + (f"({shown})" if shown else "")


def _caption(job: Job, scores: Scores | None) -> str:
    """What the picture is of, and the scores."""
    lines = [job.table.description] if job.table.description else []
    if scores is not None:
        held = "the last" if job.encoding.is_series else "a random"
        unit = job.table.units.get(job.encoding.target, "")
        share = job.held_out.sum() / (~np.isnan(job.y)).sum()
        lines.append(
            f"{held} {_percent(share)} held out: NLPD {scores.nlpd:.3g} nats per row, "
            + f"RMSE {scores.rmse:.3g} {unit}".rstrip()
            + f", {_percent(scores.coverage)} inside the 95 % interval"
        )
    return "\n".join(line[0].upper() + line[1:] for line in lines)


def _written(folder: Path, job: Job, drawn: bool) -> str:
    """What lies where, and what the model file knows."""
    count = int((~np.isnan(job.y)).sum())
    known = f"{count:,} rows"
    if job.held_out.any():
        known = f"all {count:,} rows; its hyperparameters were learned without those held out"
    lines = [
        f"wrote {folder / 'model.gpx'}: conditioned on {known}",
        f"wrote {folder / 'forecast.csv'}: predictions of every row"
        + (", and beyond the end" if len(job.future) else ""),
    ]
    if drawn:
        lines.append(f"wrote {folder / 'forecast.png'}")
    return "\n".join(lines)


def _encoding_of(gp: GP, piece: Any) -> Encoding:
    """How the rows of a file become inputs; a model that was not made by the command line takes numbers."""
    if gp.encoding is not None:
        return gp.encoding
    names = gp._fitted().data.columns
    if not any(names):
        if len(piece.columns) != len(names):
            raise InputError(
                f"The model has {len(names)} unnamed input column(s), the file {len(piece.columns)}; they must be the same."
            )
        names = tuple(map(str, piece.columns))
    return Encoding("", tuple(Column(name, "number") for name in names))
