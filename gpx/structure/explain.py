"""`gpx.explain`: which structures a kernel has, which engines can use it, and why not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gpytorch
import torch

from gpx.errors import InputError, StructureError
from gpx.kernels.auto import MAX_PERIODS, MIN_CYCLES, RULES
from gpx.kernels.dense import dense
from gpx.kernels.expressions import parse
from gpx.structure.block_form import BlockForm, block_form
from gpx.structure.feature_map import feature_map
from gpx.structure.isotropic import isotropic
from gpx.structure.spectral_density import spectral_density
from gpx.structure.state_space import StateSpace, state_space, time_column


@dataclass(frozen=True)
class Finding:
    """One line: a structure or engine, whether the kernel has it, and what to know about that."""

    name: str
    supported: bool
    note: str


@dataclass(frozen=True)
class Explanation:
    """What a kernel can do; prints as a table."""

    kernel: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        width = max(len(f.name) for f in self.findings)
        lines = [f"  {f.name.ljust(width)}  {'yes' if f.supported else 'no '}  {f.note}" for f in self.findings]
        return "\n".join([self.kernel, *lines])

    __repr__ = __str__


def explain(kernel: Any) -> Explanation:
    """Which structures and engines a kernel supports, and why not.

    Arguments: kernel: a gpytorch kernel, an expression, or "auto": then also which kernel is chosen for which data.
    Raises: InputError for anything else.

    >>> print(explain("Linear"))
    Linear(outputscale=1, center=0)
      dense matrix              yes  any gpytorch kernel
      feature map               yes  exact: functions can be drawn (gp.paths)
      state space               yes  1 state(s), exact
      spectral density          no   Linear has no spectral density that is a function of frequency, or none is ...
      block form                no   Linear has no block-circulant form: use kernels.BlockQuasiPeriodic, or ...
      engine Exact              yes  uses the dense matrix
      engine SparseVariational  yes  uses the dense matrix
      engine Coreset            yes  uses the dense matrix
      engine SIC                yes  uses the dense matrix of neighbours
      engine StateSpace         yes  linear time
      engine BlockCirculant     no   needs a block form
    """
    if isinstance(kernel, str) and kernel == "auto":
        return Explanation(_describe_auto(), _findings(parse(next(iter(RULES.values())))))
    kernel = parse(kernel) if isinstance(kernel, str) else kernel
    if not isinstance(kernel, gpytorch.kernels.Kernel):
        raise InputError(
            f"explain takes a kernel or an expression such as 'RBF + Linear', got {type(kernel).__name__}."
        )
    return Explanation(repr(kernel).replace("\n", ""), _findings(kernel))


def _describe_auto() -> str:
    width = max(map(len, RULES))
    choices = [f"  {data.ljust(width)}  {kernel}" for data, kernel in RULES.items()]
    note = f"  (a part with QuasiPeriodic for each of up to {MAX_PERIODS} periods that the data show at least {MIN_CYCLES} times)"
    return "\n".join(["auto: chosen by the data", *choices, note, "each of which has:"])


def _findings(kernel: gpytorch.kernels.Kernel) -> tuple[Finding, ...]:
    kernel = copy.deepcopy(kernel).double()
    matrix = _probe("dense matrix", lambda: dense(kernel, *(2 * [_points(kernel)])), lambda _: "any gpytorch kernel")
    features = _probe("feature map", lambda: _features(kernel), _describe_features)
    states = _probe("state space", lambda: _states(kernel), _describe_states)
    density = _probe(
        "spectral density", lambda: spectral_density(kernel), lambda _: "exact: objectives.Whittle(debiased=False)"
    )
    engine = Finding("engine Exact", matrix.supported, "uses the dense matrix" if matrix.supported else matrix.note)
    sparse, coreset = (replace(engine, name=f"engine {name}") for name in ("SparseVariational", "Coreset"))
    sic = Finding("engine SIC", engine.supported, _describe_neighbours(kernel) if engine.supported else engine.note)
    asked = "linear time" + (", only if asked for" if "approximate" in states.note else "")
    sequential = Finding("engine StateSpace", states.supported, asked if states.supported else states.note)
    blocks = _probe("block form", lambda: block_form(kernel), _describe_blocks)
    note = "one series without gaps, Gaussian noise" if blocks.supported else "needs a block form"
    circulant = Finding("engine BlockCirculant", blocks.supported, note)
    return matrix, features, states, density, blocks, engine, sparse, coreset, sic, sequential, circulant


def _points(kernel: gpytorch.kernels.Kernel) -> torch.Tensor:
    return torch.zeros(2, _dims(kernel), dtype=torch.float64)


def _dims(kernel: gpytorch.kernels.Kernel) -> int:
    """A number of input columns that the kernel can be asked about."""
    dims = [int(d) + 1 for m in kernel.modules() if getattr(m, "active_dims", None) is not None for d in m.active_dims]
    named = [(m, name) for m in kernel.modules() for name in getattr(m, "per_dimension", ("lengthscale",))]
    ard = [getattr(m, name).shape[-1] for m, name in named if getattr(m, name, None) is not None]
    return max([1, *dims, *(ard if not dims else [])])


def _features(kernel: gpytorch.kernels.Kernel) -> Any:
    return feature_map(kernel, 16, _dims(kernel), torch.Generator().manual_seed(0))


def _describe_features(features: Any) -> str:
    kind = "exact" if features.exact else "random Fourier features"
    return f"{kind}: functions can be drawn (gp.paths)"


def _states(kernel: gpytorch.kernels.Kernel) -> tuple[int, StateSpace]:
    """The number of states of the state-space form, and the form."""
    column = time_column(kernel, _dims(kernel))
    form = state_space(kernel)
    return form.at(_points(kernel)[:, column])[0].size, form


def _describe_states(states: tuple[int, StateSpace]) -> str:
    size, form = states
    if not form.exact:
        return f"{size} state(s), approximate, error {form.error:.1e} of the variance"
    return f"{size} state(s), " + (f"to {form.error:.0e} of the variance" if form.error else "exact")


def _describe_blocks(form: BlockForm) -> str:
    return f"exact: blocks of {form.period} steps, an autoregression per frequency"


def _describe_neighbours(kernel: gpytorch.kernels.Kernel) -> str:
    form = _probe("isotropic form", lambda: isotropic(kernel), lambda _: "compiled loops over neighbours")
    return form.note if form.supported else "uses the dense matrix of neighbours"


def _probe(name: str, ask: Callable[[], Any], note: Callable[[Any], str]) -> Finding:
    try:
        return Finding(name, True, note(ask()))
    except StructureError as error:
        return Finding(name, False, str(error))
