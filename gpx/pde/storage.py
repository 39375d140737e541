"""Files of solutions: their functions and coefficients; the problem, which is code, is given again to `load`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError, StructureError
from gpx.files import FORMAT, as_path, read, write
from gpx.io import decode_module, encode_module
from gpx.pde.axes import unconditioned
from gpx.pde.basis import Basis, Cosines, Features, Joined, Lags
from gpx.pde.draws import Component, Draws, Estimate
from gpx.pde.expressions import Index
from gpx.pde.functions import Function, Functions
from gpx.pde.gauss_newton import Choice, Measured, conditioned
from gpx.pde.grids import Grid
from gpx.pde.joint import Block
from gpx.pde.points import Points
from gpx.pde.problem import Problem
from gpx.pde.scattered import PointSolution
from gpx.pde.select import Setting
from gpx.pde.solution import Solution

ARRAYS = ("state", "spread", "numbers", "number_spread")  # of a component of the posterior


def save(solution: Solution, path: str | os.PathLike[str]) -> None:
    """Write a solution; see `load`.

    Raises: InputError if the file cannot be written; StructureError for a kernel of a class that is not registered.
    """
    tensors = {f"{d}.nodes": torch.from_numpy(n) for d, n in enumerate(solution.nodes)}
    if solution.posterior_std is not None:
        tensors["std"] = torch.from_numpy(solution.posterior_std)
    functions = {"u": solution.mean.u, **solution.mean.others}
    estimates = {}
    for name, estimate in solution.unknowns.items():
        if isinstance(estimate.value, Tensor) and isinstance(estimate.std, Tensor):
            tensors |= {f"{name}/value": estimate.value, f"{name}/std": estimate.std}
        else:
            estimates[name] = [estimate.value, estimate.std]
    header = {
        "format": FORMAT,
        "solution": {
            "bounds": solution.problem.domain.bounds,
            "equation": repr(solution.problem.equation),
            "error": solution.error_estimate,
            "setting": solution.setting and vars(solution.setting),
            "functions": {name: _encoded(function, f"{name}/", tensors) for name, function in functions.items()},
            "numbers": estimates,
            "draws": [_component(c, f"draws/{k}/", tensors) for k, c in enumerate(solution.draws.components)]
            if solution.draws
            else [],
        },
    }
    write(as_path(path), header, {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})


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
    choice = Choice(**{name: _tuples(value) for name, value in stored["choice"].items()})
    measured = Measured.of(problem, problem.domain)
    jets = {index: tensors[_name(index)] for index in measured.indices}
    posterior = conditioned(measured, choice.kernels(problem.domain.bounds), jets, choice.variance)
    return PointSolution(problem, posterior, jets, choice)


def load(path: str | os.PathLike[str], problem: Problem) -> Solution | PointSolution:
    """The solution of a problem that `Solution.save` wrote, equal to the one that was saved, draws included.

    Raises: InputError if the file is missing, damaged or none of a solution, or the problem has another domain or equation.
    Cost: at points, one step of Gauss-Newton's method; otherwise that of reading.
    """
    if not isinstance(problem, Problem):
        raise InputError(
            f"load needs the Problem whose solution was saved, which is code and not in the file; got {type(problem).__name__}."
        )
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
    functions = {name: _decoded(entry, f"{name}/", tensors) for name, entry in stored["functions"].items()}
    numbers = {name: Estimate(*pair) for name, pair in stored["numbers"].items()}
    found = {n: Estimate(tensors[f"{n}/value"], tensors[f"{n}/std"]) for n in functions if n != "u"}
    mean = Functions(
        problem.domain, functions.pop("u"), functions, {name: pair[0] for name, pair in stored["numbers"].items()}
    )
    setting = stored["setting"] and Setting(**{name: _tuples(value) for name, value in stored["setting"].items()})
    std = tensors["std"].numpy() if "std" in tensors else None
    nodes = tuple(tensors[f"{d}.nodes"].numpy() for d in range(problem.domain.dims))
    components = tuple(_drawn(entry, f"draws/{k}/", nodes, tensors) for k, entry in enumerate(stored["draws"]))
    draws = Draws(problem.domain, components) if components else None
    return Solution(problem, nodes, mean, stored["error"], setting, std, numbers | found, draws)


def _component(component: Component, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A part of the posterior; arrays go to `tensors`."""
    for field in ARRAYS:
        tensors[name + field] = torch.from_numpy(getattr(component, field))
    blocks = {}
    for block in component.blocks:
        prior = Function(tuple(axis.basis for axis in block.grid.axes), block.lift)  # pyright: ignore[reportArgumentType]
        blocks[block.name] = _encoded(prior, f"{name}{block.name}/", tensors)
        for d, factor in enumerate(block.factors):
            tensors[f"{name}{block.name}/{d}.factor"] = torch.from_numpy(factor)
    return {"weight": float(component.weight), "names": component.names, "blocks": blocks}


def _drawn(stored: dict[str, Any], name: str, nodes: tuple[np.ndarray, ...], tensors: dict[str, Tensor]) -> Component:
    blocks = []
    for of, entry in stored["blocks"].items():
        prior = _decoded(entry, f"{name}{of}/", tensors)
        axes = tuple(unconditioned(basis, n, 0) for basis, n in zip(prior.bases, nodes, strict=True))
        factors = tuple(tensors[f"{name}{of}/{d}.factor"].numpy() for d in range(len(nodes)))
        blocks.append(Block(of, Grid(axes), prior.coefficients, factors))
    arrays = {field: tensors[name + field].numpy() for field in ARRAYS}
    return Component(stored["weight"], tuple(blocks), names=tuple(stored["names"]), **arrays)


def _encoded(function: Function, name: str, tensors: dict[str, Tensor]) -> list[Any]:
    """The features of every axis; arrays go to `tensors`."""
    tensors[f"{name}coefficients"] = torch.from_numpy(function.coefficients)
    found = []
    for d, basis in enumerate(function.bases):
        for field in ("transform", "deviations", "values"):
            tensors[f"{name}{d}.{field}"] = torch.from_numpy(getattr(basis, field))
        found.append([_features(p, f"{name}{d}.{k}", tensors) for k, p in enumerate(_parts(basis.features))])
    return found


def _parts(features: Features) -> tuple[Features, ...]:
    return (
        tuple(part for each in features.parts for part in _parts(each)) if isinstance(features, Joined) else (features,)
    )


def _features(features: Features, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(features, Cosines):
        tensors |= {f"{name}.omega": torch.from_numpy(features.omega)}
        tensors |= {f"{name}.amplitude": torch.from_numpy(features.amplitude)}
        return {"centre": features.centre}
    if isinstance(features, Lags):
        tensors[f"{name}.nodes"] = torch.from_numpy(features.nodes)
        return {"order": features.order, "kernel": encode_module(f"{name}.kernel", features.kernel, tensors)}
    raise StructureError(f"Functions of {type(features).__name__} are not written to files.")


def _decoded(stored: list[Any], name: str, tensors: dict[str, Tensor]) -> Function:
    bases = []
    for d, parts in enumerate(stored):
        found = [_restored(part, f"{name}{d}.{k}", tensors) for k, part in enumerate(parts)]
        arrays = [tensors[f"{name}{d}.{field}"].numpy() for field in ("transform", "deviations", "values")]
        bases.append(Basis(found[0] if len(found) == 1 else Joined(tuple(found)), *arrays))
    return Function(tuple(bases), tensors[f"{name}coefficients"].numpy())


def _restored(stored: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> Features:
    if "centre" in stored:
        return Cosines(tensors[f"{name}.omega"].numpy(), tensors[f"{name}.amplitude"].numpy(), stored["centre"])
    kernel = decode_module(f"{name}.kernel", stored["kernel"], tensors)
    return Lags(kernel, tensors[f"{name}.nodes"].numpy(), stored["order"])


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
