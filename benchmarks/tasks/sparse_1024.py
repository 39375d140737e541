"""Regression through 1,024 inducing inputs: bike, kin40k and protein, 60 seconds against ten minutes of GPyTorch's SVGP."""

from __future__ import annotations

from benchmarks.registry import Task
from benchmarks.tasks.sparse import SECONDS, metrics, run_gpx, run_gpytorch

DATA, INDUCING = ("bike", "kin40k", "protein"), 1024

TASK = Task(
    name="sparse-1024",
    description="Regression on 15,600 to 41,000 rows through 1,024 inducing inputs in 60 s, against GPyTorch's SVGP in 600.",
    metrics=metrics(DATA),
    models={
        "gpx": lambda setting: run_gpx(setting, SECONDS, DATA, INDUCING),
        "gpytorch": lambda setting: run_gpytorch(setting, 10 * SECONDS, DATA, INDUCING),
    },
)
