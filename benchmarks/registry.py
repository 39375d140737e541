"""What can be run: tasks, each with its models and metrics.

A task is a module with a :class:`Task` called ``TASK``. Such modules import heavy packages only inside their
models: the process that starts the models reads the tasks too, and must stay small (see benchmarks.measure).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MODULES = {
    "exact": "benchmarks.tasks.exact",
    "memory": "benchmarks.tasks.memory",
    "sparse": "benchmarks.tasks.sparse",
    "sparse-1024": "benchmarks.tasks.sparse_1024",
    "sparse-large": "benchmarks.tasks.sparse_large",
    "sparse-serving": "benchmarks.tasks.sparse_serving",
    "coreset": "benchmarks.tasks.coreset",
    "features": "benchmarks.tasks.features",
    "uci": "benchmarks.tasks.uci",
    "state-space": "benchmarks.tasks.state_space",
    "state-space-large": "benchmarks.tasks.state_space_large",
    "time-series": "benchmarks.tasks.time_series",
    "trajectories": "benchmarks.tasks.trajectories",
    "spectral": "benchmarks.tasks.spectral",
    "gsmp": "benchmarks.tasks.gsmp",
    "whittle": "benchmarks.tasks.whittle",
    "block": "benchmarks.tasks.block",
    "graphs": "benchmarks.tasks.graphs",
    "nodes": "benchmarks.tasks.nodes",
    "graph-labels": "benchmarks.tasks.graph_labels",
    "sic": "benchmarks.tasks.sic",
    "sic-simulations": "benchmarks.tasks.sic_simulations",
    "sic-accuracy": "benchmarks.tasks.sic_accuracy",
    "sic-tables": "benchmarks.tasks.sic_tables",
    "grids": "benchmarks.tasks.grids",
    "pde": "benchmarks.tasks.pde",
    "selection": "benchmarks.tasks.selection",
    "classification": "benchmarks.tasks.classification",
    "classification-gpytorch": "benchmarks.tasks.classification_gpytorch",
    "classification-sklearn": "benchmarks.tasks.classification_sklearn",
}


@dataclass(frozen=True)
class Metric:
    """A number that models report, by its name.

    Attributes
    ----------
    name, unit : as printed.
    compare : how a median is set against that of the reference model: by the ratio, or by the difference
        where zero has no meaning (log densities).
    """

    name: str
    unit: str = ""
    compare: Literal["ratio", "difference"] = "ratio"


@dataclass(frozen=True)
class Setting:
    """What a model is told. quick: a small version of the problem; seed: the number of the repeat."""

    quick: bool
    seed: int


@dataclass(frozen=True)
class Task:
    """A problem, the models that solve it, and what is measured.

    Attributes
    ----------
    name : as on the command line.
    description : one line.
    metrics : rows of the table, in order.
    models : name -> function of a Setting that returns metric values by name; those beyond ``metrics`` are
        recorded, not tabulated.
    reference : the model that others are compared with; None: no comparison.
    closing : the end of the report, from all records.
    """

    name: str
    description: str
    metrics: tuple[Metric, ...]
    models: Mapping[str, Callable[[Setting], dict[str, float]]]
    reference: str | None = "gpx"
    closing: Callable[[Sequence[Mapping[str, Any]]], str] | None = None


def find(name: str) -> Task:
    """The task of that name, or of any importable module ``package.module`` that has a ``TASK``.

    Raises
    ------
    KeyError : no such task.
    """
    if name not in MODULES and "." not in name:
        raise KeyError(f"unknown task {name!r}; expected one of {', '.join(MODULES)}, or a module with a TASK.")
    return importlib.import_module(MODULES.get(name, name)).TASK
