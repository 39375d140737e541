"""Inference on rectangular grids by the algebra of Kronecker products, complete or with holes.

Theory: docs/theory/kronecker.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gpx.engines.base import Engine
from gpx.engines.dense import ExactPosterior
from gpx.engines.grid_solution import Basis
from gpx.engines.kronecker_posterior import KroneckerPosterior
from gpx.errors import InputError, StructureError
from gpx.grid import Axes
from gpx.inputs import Data
from gpx.linalg import kron
from gpx.linalg.cells import FULL, Layout, find_layout, lay_out
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.structure.kronecker import atoms, kronecker

FIRST_ROUND = 20_000  # rows above which `fit` starts on a quarter of them
ROUGH = 2e-4  # nats per row and unit of a coordinate


@dataclass(frozen=True, eq=False)
class KroneckerPlan:
    """x [N, D]; layout: its rows as cells; axes: their columns where the user said which, else None."""

    x: Tensor
    layout: Layout
    axes: Axes | None

    def stale(self, prior: Prior) -> bool:
        """Never: the plan does not depend on the hyperparameters."""
        return False


@dataclass(frozen=True)
class Kronecker(Engine):
    """Inference for kernels that are products over the axes of a grid, one factor for each axis or group of columns.

    Inputs are a `gpx.Grid`, or rows [N, D] that are cells of one, in any order and with holes. A complete grid whose noise is the
    same everywhere, or an outer product over the axes, is exact, by the eigenvectors of each axis. Missing cells and other
    precisions: a factor for the eigenvectors that matter, where these are at most 1,500; dense algebra up to `dense_rows` rows;
    a factor for the missing cells, where these are few; else conjugate gradients, with a log determinant from random vectors
    (`Posterior.log_determinant_error` is its standard error). Variances are then exact for up to 500 places at a time, by a solve
    each; for more, and for the sites of other likelihoods, they come from the 1,500 strongest eigenvectors and a diagonal for the
    others.

    Arguments: probes: random vectors; dense_rows: see above.
    Raises: StructureError for a kernel that does not factor over the axes, rows that are no grid, derivatives of variances above
    `dense_rows`. Cost: O(sum n_d^3 + N sum n_d) per evaluation with its gradient, memory O(N + sum n_d^2); with holes, times
    iterations and probes. A stationary kernel on an even axis of 64 or more values costs a quarter of the first term.
    Source: Saatci (2011), "Scalable inference for structured Gaussian process models", chapter 5.

    >>> Kronecker()
    Kronecker(probes=8, dense_rows=5000)
    """

    probes: int = 8
    dense_rows: int = 5_000
    exact: ClassVar[bool] = False  # not with holes, above `dense_rows`
    responsive: ClassVar[bool] = False
    precision: ClassVar[float] = 1e-6

    def __post_init__(self) -> None:
        for name, least in (("probes", 2), ("dense_rows", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"Kronecker needs {name} to be an integer >= {least}, got {value!r}.")

    def plan(self, prior: Prior, data: Data) -> KroneckerPlan:
        """Find the grid."""
        plan = self.laid_out(prior, data.x, data.axes)
        _require_grid(prior, plan)
        return plan

    def laid_out(self, prior: Prior, x: Tensor, axes: Axes | None) -> KroneckerPlan:
        """Rows as cells of a grid, over given axes or, if None, such as kernels and rows allow."""
        if axes is not None:
            for kernel in prior.kernels:
                kronecker(kernel, axes)
            return KroneckerPlan(x, lay_out(x, axes), axes)
        return KroneckerPlan(x, find_layout(x, _common(prior, x.shape[1])), None)

    def state(self, plan: KroneckerPlan) -> dict[str, Tensor]:
        """The axis of each column."""
        axes = plan.layout.axes
        owners = torch.zeros(sum(map(len, axes)), dtype=torch.long)
        for d, axis in enumerate(axes):
            owners[list(axis)] = d
        return {"axes": owners}

    def restored(self, prior: Prior, data: Data, state: dict[str, Tensor]) -> KroneckerPlan:
        """The plan over the same axes."""
        owners = state["axes"]
        axes = tuple(tuple((owners == d).nonzero().flatten().tolist()) for d in range(int(owners.max()) + 1))
        return KroneckerPlan(data.x, lay_out(data.x, axes), axes)

    def condition(self, prior: Prior, plan: KroneckerPlan, params: dict[str, Tensor], sites: Sites) -> Posterior:
        """Nothing is computed before it is asked for."""
        return self.conditioned(prior, plan, sites, {})

    def conditioned(self, prior: Prior, plan: KroneckerPlan, sites: Sites, bases: dict[int, Basis]) -> Posterior:
        """By dense algebra where there are few rows, and neither even precisions nor much fewer modes."""
        if not len(plan.x):
            return ExactPosterior.of(prior, plan.x, sites)
        posterior = KroneckerPosterior(self, prior, plan, sites, bases)
        dense = len(plan.x) <= self.dense_rows and not posterior.is_compact
        return ExactPosterior.of(prior, plan.x, sites) if dense else posterior

    def few(self, data: Data, plan: KroneckerPlan, rows: int) -> Tensor | None:
        """A smaller grid: the longest axis is halved, at random by a fixed seed, until few enough rows are left."""
        generator = torch.Generator().manual_seed(0)
        layout, seen = plan.layout, data.observed.any(1)
        kept = [torch.randperm(n, generator=generator) for n in layout.shape]
        while True:
            inside = seen.clone()
            for index, values in zip(layout.index, kept, strict=True):
                wanted = torch.zeros(int(index.max()) + 1, dtype=torch.bool, device=index.device)
                wanted[values.to(index.device)] = True
                inside &= wanted[index]
            longest = max(range(len(kept)), key=lambda d: len(kept[d]))
            if int(inside.sum()) <= rows or len(kept[longest]) == 1:
                return inside.nonzero().flatten()
            kept[longest] = kept[longest][: (len(kept[longest]) + 1) // 2]

    def rounds(self, rows: int, plan: Any = None) -> tuple[int, ...]:
        """A quarter of the rows first, where there are many."""
        return (rows // 4, rows) if rows > FIRST_ROUND else (rows,)

    def roughness(self, plan: Any, rows: int) -> float:
        """Of a gradient by random vectors."""
        return ROUGH * rows if rows > self.dense_rows else 0.0


def _common(prior: Prior, width: int) -> Axes:
    """The finest partition of the columns over which all kernels factor."""
    groups = [set(g) for g in atoms(prior.kernels[0], width)]
    for kernel in prior.kernels[1:]:
        for atom in atoms(kernel, width):
            met = [g for g in groups if g & set(atom)]
            groups = [g for g in groups if not g & set(atom)] + [set().union(*met)]
    return tuple(sorted(tuple(sorted(g)) for g in groups))


def covers(prior: Prior, data: Data, sites: Sites | None, rows: int, longest: int) -> bool:
    """Whether rows are a grid that is worth it, of Gaussian noise: complete with even noise, or with holes and more than so many
    rows; no axis being longer than so many values.
    """
    if sites is None:
        return False
    try:
        axes = data.axes or _common(prior, data.x.shape[1])
        for kernel in prior.kernels:
            kronecker(kernel, axes)
    except StructureError:
        return False
    # The shortest axis of a grid that is at least half full is no longer than this.
    if len(axes) < 2 or min(len(torch.unique(data.x[:, list(a)], dim=0)) for a in axes) > (len(data.x) / FULL) ** 0.5:
        return False
    layout = find_layout(data.x, axes)
    if sum(n > 1 for n in layout.shape) < 2 or max(layout.shape) > longest:
        return False
    return len(data.x) > rows or is_even(layout, sites)


def _require_grid(prior: Prior, plan: KroneckerPlan) -> None:
    """Raise StructureError for rows of several columns that are a grid of one axis, without the user having said so."""
    width = plan.x.shape[1]
    if plan.axes is not None or width == 1 or len(plan.layout.axes) > 1:
        return
    if len(_common(prior, width)) == 1:
        names = ", ".join(type(kernel).__name__ for kernel in prior.kernels)
        raise StructureError(
            f"The kernel ({names}) does not factor over the {width} input columns: use a product of kernels with active_dims on"
            " separate columns, or engines.Exact()."
        )
    raise StructureError(
        f"The {len(plan.x):,} rows are no grid: less than {FULL:.0%} of the combinations of their values occur. Use"
        " engines.Exact() or engines.SIC(), or give the axes by gpx.Grid."
    )


def is_even(layout: Layout, sites: Sites) -> bool:
    """Whether, in every column, all cells have sites whose precisions are an outer product over the axes."""
    tau = sites.tau.detach()
    if not len(tau) or not bool(tau.any()):
        return bool(len(tau))
    if layout.occupied < layout.size or bool((tau <= 0).any()):
        return False
    total = tau.new_zeros(layout.size, tau.shape[1]).index_add_(0, layout.cells, tau)
    return all(kron.rank_one(column.reshape(layout.shape)) is not None for column in total.unique(dim=1).T)
