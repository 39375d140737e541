"""Checkpoints of fits: files from which an interrupted fit goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gpx
from gpx import io
from gpx.errors import InputError
from gpx.files import FORMAT, as_path, read, write
from gpx.inference.coordinates import Coordinates, trainable_modules
from gpx.inference.stage import Keep, Reached
from gpx.parallel import Team

EVERY = 1.0  # seconds between two writes at least


@contextmanager
def keeping(path: Any, coordinates: Coordinates, team: Team) -> Iterator[Keep | None]:
    """What writes the checkpoints of a fit, in process 0; the last one is written at the end, however that comes about.

    Raises: InputError, in every process, if nothing can be written there.
    """
    if path is None:
        yield None
        return
    target = as_path(path)
    team.share(lambda: _require_place(target))
    if team.rank:
        yield None
        return
    writer = _Writer(target, coordinates)
    try:
        yield writer
    finally:
        writer.flush()


@dataclass
class _Writer:
    path: Path
    coordinates: Coordinates
    due: float = 0.0
    last: Reached | None = None

    def __call__(self, reached: Reached) -> None:
        self.last = reached
        if time.monotonic() >= self.due:
            self.flush()

    def flush(self) -> None:
        if self.last is not None:
            here = self.coordinates.read()
            save(self.path, self.last, self.coordinates)
            self.coordinates.assign(here)
            self.last, self.due = None, time.monotonic() + EVERY


def save(path: Path, reached: Reached, coordinates: Coordinates) -> None:
    """Write a checkpoint. The parameters are moved."""
    header = {"format": FORMAT, "version": gpx.__version__, "labels": coordinates.labels()}
    header |= {"checkpoint": {"left": reached.left, "drawn": reached.drawn}}
    tensors = {"points": torch.stack([_raw(coordinates, z) for z in reached.points])}
    write(path, header, tensors | {f"plan.{name}": value for name, value in reached.state.items()})


def resumed(resume: Any, checkpoint: Any, coordinates: Coordinates) -> Reached | None:
    """Where to go on: of a fitted model, the path of one or of a checkpoint; None, where that is to be written only now.

    Raises: InputError if there is no such file, or it is of a model with other parameters.
    """
    if resume is None or _same(resume, checkpoint) and not as_path(resume).exists():
        return None
    if hasattr(resume, "_fitted"):
        return _of_model(resume, coordinates)
    header, tensors = read(as_path(resume))
    if "checkpoint" not in header:
        return _of_model(io.load(resume), coordinates)
    _require_labels(header["labels"], coordinates)
    points = np.array([_coordinates(coordinates, raw) for raw in tensors["points"]])
    state = {name.removeprefix("plan."): value for name, value in tensors.items() if name.startswith("plan.")}
    return Reached(points, state=state, **header["checkpoint"])


def _of_model(gp: Any, coordinates: Coordinates) -> Reached:
    problem = gp._fitted()
    theirs = Coordinates(trainable_modules(problem.prior.mean, problem.prior.kernels, problem.likelihood))
    _require_labels(theirs.labels(), coordinates)
    state = {name: value.detach().cpu() for name, value in problem.engine.state(problem.plan).items()}
    return Reached(_coordinates(coordinates, _raw(theirs, theirs.read()))[None], state=state)


def _require_labels(labels: list[str], coordinates: Coordinates) -> None:
    if labels != coordinates.labels():
        raise InputError(f"Cannot resume: the saved model has {labels}, this one {coordinates.labels()}.")


def _require_place(path: Path) -> None:
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"Cannot write a checkpoint to {path}: choose a file in an existing folder.")


def _same(resume: Any, checkpoint: Any) -> bool:
    paths = all(isinstance(path, (str, os.PathLike)) for path in (resume, checkpoint))
    return paths and Path(resume).absolute() == Path(checkpoint).absolute()


@torch.no_grad()
def _raw(coordinates: Coordinates, z: np.ndarray) -> Tensor:
    """The raw parameters [P] at z: coordinates themselves count from starts, which depend on the data."""
    coordinates.assign(z)
    return torch.cat([raw.reshape(-1).double().cpu() for raw in coordinates.raws])


@torch.no_grad()
def _coordinates(coordinates: Coordinates, raw: Tensor) -> np.ndarray:
    """The coordinates of raw parameters [P]."""
    for own, value in zip(coordinates.raws, raw.split([r.numel() for r in coordinates.raws]), strict=True):
        own.copy_(value.reshape(own.shape))
    return coordinates.read()
