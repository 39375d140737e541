"""The table of hyperparameters: values in the user's units, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gpytorch
import numpy as np
import torch
from torch import Tensor, nn

from gpx.errors import NumericalError
from gpx.inference.coordinates import Coordinates
from gpx.inference.objectives import Objective
from gpx.inference.problem import Problem
from gpx.parameters import Parameterised, prior_arguments

STEP = 1e-3
FLAT = 1e-6  # of the unit diagonal: below the error of the differences


@dataclass(frozen=True)
class ParameterRow:
    """One number of the model. standard_error: NaN if it is fixed, at a bound, or not determined by the data."""

    name: str
    value: float
    start: float
    lower: float
    upper: float
    prior: str
    standard_error: float
    at_bound: bool
    fixed: bool


class ParameterTable(tuple[ParameterRow, ...]):
    """Rows of parameters; prints as a table, and ``table["kernel.lengthscale"]`` finds a row."""

    def __getitem__(self, key):  # type: ignore[override, no-untyped-def]
        if isinstance(key, str):
            found = [row for row in self if row.name == key]
            if not found:
                raise KeyError(f"no parameter {key!r}; there are {', '.join(row.name for row in self)}")
            return found[0]
        return super().__getitem__(key)

    def __str__(self) -> str:
        head = ("parameter", "value", "std. error", "start", "bounds", "prior", "")
        body = [head, *(_cells(row) for row in self)]
        widths = [max(len(line[i]) for line in body) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in body]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__


def _cells(row: ParameterRow) -> tuple[str, ...]:
    flag = "fixed" if row.fixed else "at bound" if row.at_bound else ""
    bounded = math.isfinite(row.lower) and row.lower > 0 or math.isfinite(row.upper)
    bounds = f"[{row.lower:.3g}, {row.upper:.3g}]" if bounded else ""
    return (row.name, _number(row.value), _number(row.standard_error), _number(row.start), bounds, row.prior, flag)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def standard_errors(problem: Problem, objective: Objective, coordinates: Coordinates) -> np.ndarray:
    """Standard deviations of the coordinates in the Laplace approximation at the optimum.

    The inverse of the Hessian of ``-(objective + log prior)``, by central differences of the gradient, with directions in
    which the objective curves the wrong way left to the prior. Coordinates at their bounds are held there. NaN where
    neither objective nor prior determines a coordinate.
    Cost: two gradients per coordinate. The parameters of the problem are moved.
    """
    z, bounds = coordinates.read(), coordinates.bounds()
    free = np.flatnonzero((z - STEP > bounds[:, 0]) & (z + STEP < bounds[:, 1]))
    result = np.full(len(z), math.nan)
    try:
        curvature = _hessian(lambda: objective(problem.anew(problem.start)).double().cpu(), coordinates, z, free)
        curvature = problem.data.team.mean(curvature)
    except NumericalError:
        return result
    result[free] = np.sqrt(_marginal_variances(curvature, _hessian(coordinates.log_prior, coordinates, z, free)))
    return result


def _hessian(function: Callable[[], Tensor], coordinates: Coordinates, z: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The Hessian of -function in the free coordinates."""
    rows = []
    for i in free:
        step = np.zeros_like(z)
        step[i] = STEP
        difference = _gradient(function, coordinates, z - step) - _gradient(function, coordinates, z + step)
        rows.append(difference[free] / (2 * STEP))
    hessian = np.array(rows).reshape(len(free), len(free))
    return 0.5 * (hessian + hessian.T)


def _gradient(function: Callable[[], Tensor], coordinates: Coordinates, z: np.ndarray) -> np.ndarray:
    coordinates.assign(z)
    with torch.enable_grad():
        value = function()
        if not value.requires_grad:
            return np.zeros_like(z)
        grads = torch.autograd.grad(value, coordinates.raws, allow_unused=True)
    return coordinates.gradient(z, grads)


def _marginal_variances(objective: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The diagonal of the inverse of the sum of two Hessians; NaN for coordinates in directions without curvature."""
    # Unit diagonal first: curvatures of periods and of priors differ by many orders of magnitude.
    scale = np.sqrt(np.abs(objective.diagonal()) + prior.diagonal())
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    values, vectors = np.linalg.eigh(np.nan_to_num(objective / np.outer(scale, scale)))
    total = (vectors * values.clip(min=0)) @ vectors.T + np.nan_to_num(prior / np.outer(scale, scale))
    values, vectors = np.linalg.eigh(total)
    flat = values < FLAT
    variance = (vectors**2 / np.where(flat, math.inf, values)).sum(1) / scale**2
    variance[(vectors[:, flat] ** 2).sum(1) > 1e-4] = math.nan
    return variance


def parameter_table(
    modules: Sequence[tuple[str, nn.Module]], starts: dict[str, float], errors: np.ndarray | None
) -> ParameterTable:
    """Rows for all parameters, trainable and fixed. errors: of the coordinates; None: not computed."""
    coordinates = Coordinates(modules)
    rows, position = [], 0
    labels, bounds, z = coordinates.labels(), coordinates.bounds(), coordinates.read()
    for entry in coordinates.entries:
        parts = (
            v.detach().expand(entry.raw.shape).reshape(-1).tolist() for v in (entry.value, entry.scale, entry.origin)
        )
        for value, scale, origin in zip(*parts, strict=True):
            lower, upper = bounds[position]
            error = math.nan if errors is None else float(errors[position])
            if entry.positive:
                limits = (math.exp(lower) if lower > -700 else 0.0, math.exp(upper) if upper < 700 else math.inf)
            else:
                limits = (origin + lower * scale, origin + upper * scale)
            rows.append(
                ParameterRow(
                    name=labels[position],
                    value=value,
                    start=starts.get(labels[position], math.nan),
                    lower=limits[0],
                    upper=limits[1],
                    prior=_describe_prior(entry.prior),
                    standard_error=error * (value if entry.positive else scale),
                    at_bound=bool(z[position] <= lower or z[position] >= upper),
                    fixed=False,
                )
            )
            position += 1
    return ParameterTable([*rows, *_fixed_rows(modules)])


def _fixed_rows(modules: Sequence[tuple[str, nn.Module]]) -> list[ParameterRow]:
    rows = []
    for path, module in modules:
        for name, raw in module.named_parameters():
            if raw.requires_grad:
                continue
            parent, _, attribute = name.rpartition(".")
            owner = module.get_submodule(parent)
            short = attribute.removeprefix("raw_")
            known = isinstance(owner, (Parameterised, gpytorch.Module)) and hasattr(owner, short)
            values = (getattr(owner, short) if known else raw).detach().reshape(-1).tolist()
            full = ".".join(p for p in (path, parent.replace("kernels.", ""), short) if p)
            for i, value in enumerate(values):
                label = full if len(values) == 1 else f"{full}[{i}]"
                rows.append(ParameterRow(label, value, value, math.nan, math.nan, "", math.nan, False, True))
    return rows


def _describe_prior(prior: gpytorch.priors.Prior | None) -> str:
    if prior is None:
        return ""
    numbers = [f"{float(v.reshape(-1)[0]):.3g}" for v in prior_arguments(prior).values() if isinstance(v, Tensor)]
    return f"{type(prior).__name__.removesuffix('Prior')}({', '.join(numbers)})"
