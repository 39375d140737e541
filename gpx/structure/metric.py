"""How fast a kernel's correlation falls along each input column: a metric in which near points are those that correlate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels.dense import dense, diagonal

PLACES = 64  # at which correlations are averaged
LEVEL = 0.5  # of the correlation that the metric calls one unit of distance
REACH = 1e4  # multiples of the spread of a column that are looked at
EQUAL = 1e-12  # relative
STEPS = 25  # of a bisection over 18 powers of e: to 1e-6


def has_metric(kernel: Any) -> bool:
    """Whether no part of the kernel has labels, such as nodes of a graph, as its inputs."""
    return not any(getattr(part, "labels", False) for part in kernel.modules())


def require_metric(kernel: Any, user: str) -> None:
    """Raise StructureError unless inputs of the kernel are numbers that can be compared and moved; user: who needs that."""
    if not has_metric(kernel):
        named = next(type(part).__name__ for part in kernel.modules() if getattr(part, "labels", False))
        raise StructureError(
            f"{user} needs inputs with distances, but those of kernels.{named} are labels; use engines.Exact(), or"
            " engines.SparseVariational(select='greedy', refine=False)."
        )


@torch.no_grad()
def metric(kernel: Any, x: Tensor) -> Tensor:
    """Weights [D] of the columns of x [N, D]: one over the step along a column that halves the correlation of f, on average over
    some of the rows; 0 where f does not depend on the column.

    For a stationary kernel with a lengthscale per column, proportional to one over these. Cost: O(D) kernel evaluations.
    Raises: StructureError for a kernel of labels, see `require_metric`.

    >>> from gpx.kernels import RBF
    >>> metric(RBF(lengthscale=[1.0, 4.0], ard=True), torch.randn(9, 2)).ravel().div(0.8493).round(decimals=3).tolist()
    [1.0, 0.25]
    """
    require_metric(kernel, "engines.SIC")
    if not len(x):
        return x.new_ones(x.shape[1])
    places = x[torch.linspace(0, len(x) - 1, min(PLACES, len(x))).long()]
    spread = x.amax(0) - x.amin(0)
    found = [_weight(kernel, places, column, float(width) or 1.0) for column, width in enumerate(spread)]
    return x.new_tensor(found)


def _weight(kernel: Any, places: Tensor, column: int, spread: float) -> float:
    if _correlation(kernel, places, column, spread * REACH) > LEVEL:
        return 0.0 if _is_blind(kernel, places, column, spread * REACH) else 1 / (spread * REACH)
    low, high = math.log(spread / REACH), math.log(spread * REACH)
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        near = _correlation(kernel, places, column, math.exp(middle)) > LEVEL
        low, high = (middle, high) if near else (low, middle)
    return math.exp(-low)


def _is_blind(kernel: Any, places: Tensor, column: int, step: float) -> bool:
    """Whether f does not depend on the column."""
    covariance, before, after = _moments(kernel, places, column, step)
    return bool(torch.allclose(covariance, before, rtol=EQUAL) and torch.allclose(after, before, rtol=EQUAL))


def _correlation(kernel: Any, places: Tensor, column: int, step: float) -> float:
    """The mean correlation of f with itself a step along a column away."""
    covariance, before, after = _moments(kernel, places, column, step)
    return float((covariance / (before * after).sqrt().clamp_min(torch.finfo(places.dtype).tiny)).mean())


def _moments(kernel: Any, places: Tensor, column: int, step: float) -> tuple[Tensor, Tensor, Tensor]:
    moved = places.clone()
    moved[:, column] += step
    covariance = dense(kernel, places[:, None], moved[:, None]).flatten()
    return covariance, diagonal(kernel, places), diagonal(kernel, moved)
