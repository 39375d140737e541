"""``engine="auto"``: a written-out table of rules, the first of which that applies is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from gpx.engines.agents import Agents, QuantisedADMM
from gpx.engines.base import Engine
from gpx.engines.block_circulant import BlockCirculant, covers
from gpx.engines.coreset import Coreset
from gpx.engines.exact import Exact
from gpx.engines.features import Features
from gpx.engines.inducing import Inducing
from gpx.engines.kronecker import Kronecker
from gpx.engines.kronecker import covers as is_grid
from gpx.engines.memory import require_memory
from gpx.engines.sic import SIC
from gpx.engines.sparse import SparseVariational
from gpx.engines.state_space import StateSpace
from gpx.errors import InputError, StructureError
from gpx.inputs import Data
from gpx.kernels.expressions import parse_call
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.structure.metric import has_metric
from gpx.structure.state_space import state_space, time_column

SEQUENTIAL = 500  # rows from which a filter of few states is faster than a factorisation
MANY = 8_000  # rows above which exact inference is not chosen
LARGE = 1_000_000  # rows up to which a sparse factor fits into a few gigabytes
LONGEST = 5_000  # values on an axis whose matrix is diagonalised in a minute
COLUMNS = 8  # of inputs, up to which neighbours are worth more than inducing inputs
BATCHED = (200_000, 4_096)  # rows above which inducing inputs see batches, and the size of these
FIRST, FEW, MOST = 256, 512, 1024  # inducing inputs: at first; up to so many in any case, or where there are fewer rows
WORK = 4e10  # N M^2 up to which there may be more than a few
ROWS_PER_STATE = 7  # the filter costs N S^2, the factorisation N^3; a season may gain harmonics while it is learned
ENGINES = {
    "Exact": Exact,
    "StateSpace": StateSpace,
    "SparseVariational": SparseVariational,
    "Coreset": Coreset,
    "SIC": SIC,
    "Features": Features,
    "BlockCirculant": BlockCirculant,
    "Agents": Agents,
    "QuantisedADMM": QuantisedADMM,
    "Kronecker": Kronecker,
}


@dataclass(frozen=True)
class EngineRule:
    """An engine, when it applies (to prior, data and the exact sites of the likelihood), and the reason that is printed."""

    engine: Engine
    applies: Callable[[Prior, Data, Sites | None], bool]
    reason: str


def _sequential(prior: Prior, data: Data, sites: Sites | None) -> bool:
    """Whether there are many data on a line, and kernels that are state-space models of few states."""
    if len(data.x) < SEQUENTIAL or data.x.device.type != "cpu":
        return False
    try:
        for kernel in prior.kernels:
            column, form = time_column(kernel, data.x.shape[1]), state_space(kernel)
            if not form.exact or ROWS_PER_STATE * form.at(data.x[:1, column])[0].size > len(data.x):
                return False
    except StructureError:
        return False
    return True


def _on_a_grid(prior: Prior, data: Data, sites: Sites | None) -> bool:
    """Whether there are many data on a grid; only in few columns is one looked for."""
    if len(data.x) < SEQUENTIAL or (data.axes is None and data.x.shape[1] > COLUMNS):
        return False
    return is_grid(prior, data, sites, Kronecker.dense_rows, LONGEST)


def _batched(prior: Prior, data: Data, sites: Sites | None) -> bool:
    """Whether there are very many rows, and no noise that belongs to each of them."""
    if len(data.x) <= BATCHED[0]:
        return False
    return sites is None or bool((sites.tau == torch.where(sites.tau > 0, sites.tau.max(), 0.0)).all())


RULES = (
    EngineRule(
        SparseVariational(),
        lambda prior, data, sites: data.team.size > 1,
        "several processes share the rows; this is a lower bound, through inducing inputs",
    ),
    EngineRule(
        BlockCirculant(),
        lambda prior, data, sites: covers(prior, data.x, sites),
        "its blocks are circulant, no step is missing and the noise is the same everywhere: exact, in linear time",
    ),
    EngineRule(StateSpace(), _sequential, "the kernel is a state-space model of one input: exact in linear time"),
    EngineRule(
        Kronecker(),
        _on_a_grid,
        "the rows are a grid over whose axes the kernel factors: by the eigenvectors of each axis",
    ),
    EngineRule(
        SparseVariational(refine=False),
        lambda prior, data, sites: len(data.x) > MANY and not all(map(has_metric, prior.kernels)),
        "inputs that are nodes have no neighbours in a metric; this is a lower bound, through inducing nodes",
    ),
    EngineRule(
        SIC(),
        lambda prior, data, sites: MANY < len(data.x) <= LARGE and data.x.shape[1] <= COLUMNS,
        "an exact fit of so many rows would take hours; in few dimensions values depend on their neighbours",
    ),
    EngineRule(
        SparseVariational(batch_size=BATCHED[1]),
        _batched,
        "so many rows are seen in batches; this is a lower bound, through inducing inputs",
    ),
    EngineRule(
        SparseVariational(FIRST),
        lambda prior, data, sites: len(data.x) > MANY,
        "an exact fit of so many rows would take hours; this is a lower bound, through inducing inputs",
    ),
    EngineRule(Exact(), lambda prior, data, sites: True, "exact inference works for any kernel and is the reference"),
)


def named_engine(engine: Any) -> Any:
    """The engine of a text such as "SIC(neighbours=20)"; anything else, "auto" included, stays."""
    return parse_call(engine, ENGINES, "engine") if isinstance(engine, str) and engine != "auto" else engine


def choose_engine(engine: Any, prior: Prior, data: Data, sites: Sites | None = None) -> tuple[Engine, str]:
    """The engine to use and why.

    Arguments: engine: "auto", the name of an engine, or an engine; sites: the exact ones of the likelihood, if any.
    Raises: InputError for an unknown name, or if the chosen engine's arrays would not fit into memory.
    """
    engine = named_engine(engine)
    if engine != "auto":
        chosen, reason = _checked(engine), "chosen by the user"
    else:
        rule = next(rule for rule in RULES if rule.applies(prior, data, sites))
        chosen, reason = rule.engine, f"auto: {rule.reason} (N = {data.count:,})"
        if isinstance(chosen, SparseVariational) and chosen.batch_size is None:
            chosen = replace(chosen, most=_affordable(data.count))
    if isinstance(chosen, Inducing) and chosen.size > data.count:
        reason += f"; its {chosen.size} inducing inputs are reduced to {data.count}, one per row"
    if isinstance(chosen, Agents) and sites is None:
        raise StructureError("engines.Agents needs a Gaussian likelihood; use engines.SparseVariational() for others.")
    if isinstance(chosen, Exact):
        _require_memory(data)
    return chosen, reason


def engine_of_derivatives(engine: Engine, prior: Prior, dims: int) -> tuple[Engine, int]:
    """The engine that gives the derivatives of f in a model of this engine, and the one of `dims` columns that they are along.

    Raises: StructureError if there is none: for kernels of several columns, or without an exact state-space form unless the
    engine is StateSpace.
    """
    try:
        columns = {time_column(kernel, dims) for kernel in prior.kernels}
        exact = isinstance(engine, StateSpace) or all(state_space(kernel).exact for kernel in prior.kernels)
    except StructureError as error:
        raise StructureError(f"Derivatives need a kernel of one input with a state-space form. {error}") from error
    if len(columns) > 1:
        raise StructureError(f"Derivatives need kernels of the same input column, these are of {sorted(columns)}.")
    if not exact:
        raise StructureError(
            "Derivatives need an exact state-space form, that of this kernel is approximate: use a kernel such as"
            " kernels.Matern(), or fit with engine='StateSpace', which takes the approximation for the model."
        )
    return engine if isinstance(engine, StateSpace) else StateSpace(), columns.pop()


def _affordable(rows: int) -> int:
    """How many inducing inputs a fit of so many rows may come to have."""
    return min(MOST, max(FEW, int((WORK / rows) ** 0.5)))


def _checked(engine: Any) -> Engine:
    if isinstance(engine, type) or not all(hasattr(engine, name) for name in ("plan", "parameters", "condition")):
        raise InputError(f"engine must be 'auto' or an engine such as engines.Exact(), got {engine!r}.")
    return engine


def _require_memory(data: Data) -> None:
    """Two N x N arrays must fit."""
    if data.x.device.type == "cpu":
        needed = 2 * len(data.x) ** 2 * data.x.element_size()
        require_memory(needed, f"Exact inference on {len(data.x):,} points", "use engines.SparseVariational()")
