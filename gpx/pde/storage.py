"""Files of solutions: their functions and coefficients; the problem, which is code, is given again to `load`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError, StructureError
from gpx.files import FORMAT, as_path, read, write
from gpx.pde.basis import Basis, Cosines
from gpx.pde.expressions import Index
from gpx.pde.gauss_newton import Choice, Measured, conditioned
from gpx.pde.points import Points
from gpx.pde.problem import Problem
from gpx.pde.scattered import PointSolution
from gpx.pde.select import Setting
from gpx.pde.solution import Solution


def save(solution: Solution, path: str | os.PathLike[str]) -> None:
    """Write a solution; see `load`.

    Raises: InputError if the file cannot be written; StructureError for a solution with a kernel that was given to `solve`.
    """
    tensors: dict[str, np.ndarray] = {"coefficients": solution.coefficients}
    if solution.posterior_std is not None:
        tensors["std"] = solution.posterior_std
    for d, (nodes, basis) in enumerate(zip(solution.nodes, solution.bases, strict=True)):
        features = basis.features
        if not isinstance(features, Cosines):
            raise StructureError(
                "Solutions with a kernel= are not written to files; save their coefficients, or solve again."
            )
        tensors |= {f"{d}.nodes": nodes, f"{d}.omega": features.omega, f"{d}.amplitude": features.amplitude}
        tensors |= {f"{d}.transform": basis.transform, f"{d}.deviations": basis.deviations, f"{d}.values": basis.values}
    assert solution.setting is not None
    header = {
        "format": FORMAT,
        "solution": {
            "bounds": solution.problem.domain.bounds,
            "equation": repr(solution.problem.equation),
            "error": solution.error_estimate,
            "setting": vars(solution.setting),
        },
    }
    write(as_path(path), header, {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in tensors.items()})


def save_at_points(solution: PointSolution, path: str | os.PathLike[str]) -> None:
    """Write a solution at points; see `load`.

    Raises: InputError if the file cannot be written; StructureError for a solution with a kernel that was given to `solve`.
    """
    if solution.choice is None:
        raise StructureError("Solutions with a kernel= are not written to files; solve again.")
    header = {
        "format": FORMAT,
        "solution at points": {"equation": repr(solution.problem.equation), "choice": vars(solution.choice)},
    }
    tensors = {_name(index): value for index, value in solution.jets.items()}
    write(as_path(path), header, tensors | {"points": solution.points})


def _name(index: Index) -> str:
    return "u" + "".join(map(str, index))


def _load_at_points(path: str | os.PathLike[str], problem: Problem, stored: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(problem.domain, Points) or not torch.equal(problem.domain.all, tensors["points"]):
        raise InputError(f"{path} has a solution at other points than those of this problem.")
    if stored["equation"] != repr(problem.equation):
        raise InputError(f"{path} has a solution of {stored['equation']}, this problem is {problem.equation!r}.")
    choice = Choice(stored["choice"]["nu"], tuple(stored["choice"]["lengthscales"]))
    measured = Measured.of(problem, problem.domain)
    jets = {index: tensors[_name(index)] for index in measured.indices}
    posterior = conditioned(measured, choice.kernels(problem.domain.bounds), jets)
    return PointSolution(problem, posterior, jets, choice)


def load(path: str | os.PathLike[str], problem: Problem) -> Solution | PointSolution:
    """The solution of a problem that `Solution.save` wrote, equal to the one that was saved.

    Raises: InputError if the file is missing, damaged or none of a solution, or the problem has another domain or equation.
    Cost: at points, one step of Gauss-Newton's method; otherwise that of reading.
    """
    header, tensors = read(as_path(path))
    if "solution at points" in header:
        return _load_at_points(path, problem, header["solution at points"], tensors)
    if "solution" not in header:
        raise InputError(f"{path} is no file of a solution; read models with gpx.load.")
    stored = header["solution"]
    if isinstance(problem.domain, Points):
        raise InputError(f"{path} has a solution on a box, the domain of this problem is Points.")
    asked = {"bounds": [list(pair) for pair in problem.domain.bounds], "equation": repr(problem.equation)}
    for name, value in asked.items():
        if stored[name] != value:
            raise InputError(f"{path} has the solution of a problem with {name} {stored[name]}, this one has {value}.")
    axes = range(problem.domain.dims)
    setting = {name: _tuples(value) for name, value in stored["setting"].items()}
    std = tensors["std"].numpy() if "std" in tensors else None
    return Solution(
        problem, tuple(tensors[f"{d}.nodes"].numpy() for d in axes), tuple(_basis(tensors, d) for d in axes),
        tensors["coefficients"].numpy(), stored["error"], Setting(**setting), std,
    )  # fmt: skip


def _basis(tensors: dict[str, Tensor], axis: int) -> Basis:
    nodes, omega, amplitude, transform, deviations, values = (
        tensors[f"{axis}.{name}"].numpy()
        for name in ("nodes", "omega", "amplitude", "transform", "deviations", "values")
    )
    return Basis(Cosines(omega, amplitude, float(nodes.mean())), transform, deviations, values)


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
