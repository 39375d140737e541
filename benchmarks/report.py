"""From records to a Markdown table: minimum, median and maximum, set against the reference model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.registry import Metric, Task

Record = Mapping[str, Any]


class Row(NamedTuple):
    """One line of the table. against: median / or - that of the reference; NaN where there is none."""

    metric: Metric
    model: str
    low: float
    median: float
    high: float
    against: float


def summarise(task: Task, records: Sequence[Record]) -> list[Row]:
    """Rows of the table, by metric and then by model; a model without a value of a metric has no row."""
    rows = []
    for metric in task.metrics:
        values = {model: _values(records, model, metric.name) for model in task.models}
        centre = median(values[task.reference]) if task.reference and values.get(task.reference) else math.nan
        rows += [
            Row(metric, model, min(found), median(found), max(found), _against(metric, median(found), centre))
            for model, found in values.items()
            if found
        ]
    return rows


def _values(records: Sequence[Record], model: str, metric: str) -> list[float]:
    of_model = [record.get("metrics", {}) for record in records if record["model"] == model]
    return [metrics[metric] for metrics in of_model if metric in metrics]


def _against(metric: Metric, value: float, centre: float) -> float:
    if metric.compare == "difference":
        return value - centre
    return value / centre if centre else math.nan


def markdown(task: Task, records: Sequence[Record]) -> str:
    """The report: what ran where, the table, and what failed."""
    header = ["metric", "model", "min", "median", "max"] + ([f"against {task.reference}"] if task.reference else [])
    body = [_cells(row, bool(task.reference)) for row in summarise(task, records)]
    parts = [f"# {task.name}", task.description, _circumstances(records), table([header, *body])]
    if task.closing:
        parts.append(task.closing(records))
    failures = [
        f"- {r['model']}, repeat {r['repeat']}: `{r['error'].splitlines()[-1]}`" for r in records if "error" in r
    ]
    if failures:
        parts.append("Failed:\n\n" + "\n".join(failures))
    return "\n\n".join(parts) + "\n"


def _cells(row: Row, compared: bool) -> list[str]:
    unit = f" [{row.metric.unit}]" if row.metric.unit else ""
    cells = [
        row.metric.name + unit,
        row.model,
        *(_number(value) for value in (row.low, row.median, row.high)),
    ]
    against = f"{row.against:+.4g}" if row.metric.compare == "difference" else f"{row.against:.3g} x"
    return [*cells, "" if math.isnan(row.against) else against] if compared else cells


def _number(value: float) -> str:
    # Four significant digits would hide the decimal of a log evidence in the thousands.
    return f"{value:.1f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _circumstances(records: Sequence[Record]) -> str:
    first = records[0]
    machine = first["machine"]
    versions: Mapping[str, str] = next((record["versions"] for record in records if "versions" in record), {})
    repeats = 1 + max(record["repeat"] for record in records)
    return (
        f"{'Quick version. ' if first['quick'] else ''}Repeats: {repeats}; "
        f"{machine['cpu']}, {machine['threads']} threads, {machine['system']}; "
        f"load when started {first['load']:.1f}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )
