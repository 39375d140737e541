"""Data in several processes, each with rows of its own: checks that they belong together, and the scales of all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.parallel import Team


def shared(make: Callable[[], Data], team: Team) -> Data:
    """The data of this process as a part of those of all, with the scales of all.

    Raises: InputError, in every process, if one cannot read its rows or has none, if two have the same, or if they differ in
    columns, outputs, precision or kind of device.
    """
    data = team.together(make)
    if team.size == 1:
        return data
    _require_equal(team.collect(_schema(data)))
    _require_own_rows(team.collect((len(data.x), _fingerprint(data))))
    return pooled(replace(data, team=team))


def pooled(data: Data) -> Data:
    """With the variance and the spread of the rows of all processes."""
    if data.team.size == 1:
        return data
    variances, rounding, seen = _variances(data.y, data.team)
    variances = torch.where(variances > rounding.square(), variances, 0.0)[seen > 0]
    variance = float(variances.mean()) if len(variances) else 0.0
    asked = torch.isnan(data.y).all(1, keepdim=True)  # only: such rows say nothing of scales
    squares, rounding, _ = _variances(data.x.masked_fill(asked, torch.nan), data.team)
    spread = squares.sqrt()
    return replace(
        data,
        variance=variance if variance > 0 else 1.0,
        spread=torch.where(spread > rounding, spread, torch.ones_like(spread)),
    )


def _variances(values: Tensor, team: Team) -> tuple[Tensor, Tensor, Tensor]:
    """Of the columns of values [N, K] with NaN for what is missing: variances, rounding errors of deviations, and numbers."""
    seen = (~torch.isnan(values)).to(values)
    filled = torch.nan_to_num(values)
    count, total = team.sums([seen.sum(0), filled.sum(0)])
    count = count.clamp_min(1)
    squares = team.sum(((filled - total / count).square() * seen).sum(0)) / count
    largest = filled.abs().amax(0) if len(values) else torch.zeros_like(total)
    largest = torch.cat(team.gather(largest[None])).amax(0)
    return squares, 8 * torch.finfo(values.dtype).eps * largest, team.sum(seen.sum(0))


def _schema(data: Data) -> dict[str, str]:
    names = ", ".join(data.columns) if any(data.columns) else f"{data.x.shape[1]} without names"
    outputs = "one" if data.flat else f"{data.y.shape[1]} in columns"
    kind = str(data.x.dtype).removeprefix("torch.")
    return {"input columns": names, "outputs": outputs, "numbers": f"{kind} on {data.x.device.type}"}


def _require_equal(schemas: list[dict[str, str]]) -> None:
    for name, first in schemas[0].items():
        for rank, schema in enumerate(schemas):
            if schema[name] != first:
                raise InputError(
                    f"The processes have different {name}: {first} in process 0, {schema[name]} in process {rank}; give all of"
                    " them the same, in the same order."
                )


def _require_own_rows(found: list[tuple[int, str]]) -> None:
    ranks: dict[str, int] = {}
    for rank, (rows, fingerprint) in enumerate(found):
        if not rows:
            raise InputError(
                f"Process {rank} of {len(found)} has no rows; use fewer processes, or part the rows evenly."
            )
        other = ranks.setdefault(fingerprint, rank)
        if other != rank:
            raise InputError(
                f"Processes {other} and {rank} have the same {rows} row(s), which would count twice: pass each process rows of"
                " its own, such as X[part], y[part] with part = gpx.parallel.join().rows(len(X))."
            )


def _fingerprint(data: Data) -> str:
    digest = hashlib.sha256()
    for part in (data.x, data.y):
        digest.update(part.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
