"""Runs the models of a task in turn, each in a fresh process, and yields one record per run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def run(task: str, models: Sequence[str], *, repeats: int, quick: bool, threads: int) -> Iterator[dict[str, Any]]:
    """Every model of ``models`` in turn, ``repeats`` times over; the seed is the number of the repeat.

    Yields
    ------
    dict : task, model, repeat, seed, quick, machine, load (of the last minute before the start); metrics and
        versions, or error (the end of the output).
    """
    machine = describe_machine(threads)
    for repeat in range(repeats):
        for model in models:
            record = {
                "task": task,
                "model": model,
                "repeat": repeat,
                "seed": repeat,
                "quick": quick,
                "machine": machine,
                "load": os.getloadavg()[0],
            }
            yield record | _measure(task, model, repeat, quick, threads)


def _measure(task: str, model: str, seed: int, quick: bool, threads: int) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.worker",
        task,
        model,
        str(seed),
        "quick" if quick else "full",
    ]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": done.stderr.strip()[-2000:] or f"exit status {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def default_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(threads: int) -> dict[str, Any]:
    """CPU model, cores, threads that the models get, and operating system."""
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "threads": threads, "system": platform.platform()}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
