"""Model files: tensors in safetensors, everything else as JSON in its header, guarded by a checksum.

A file holds the data, the fitted hyperparameters and the names of registered classes with their arguments; loading builds the
objects, and conditions again. No code is stored and none is run but the constructors of registered classes.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from typing import TYPE_CHECKING, Any, TypeVar

import gpytorch
import numpy as np
import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior as ParameterPrior
from torch import Tensor, nn

import gpx
from gpx import engines, graphs, kernels, likelihoods, objectives
from gpx.encoding import Encoding
from gpx.errors import InputError, StructureError
from gpx.files import FORMAT, as_path, read, write
from gpx.inference import rules
from gpx.inference.coordinates import trainable_modules
from gpx.inference.result import FitResult
from gpx.means import ConstantMean, LinearMean, Trend
from gpx.parameters import Box, Choice, LogInterval, Parameterised, prior_arguments
from gpx.sites import Sites

if TYPE_CHECKING:
    from gpx.gp import GP

_REGISTRY: dict[str, type] = {}
Class = TypeVar("Class", bound=type)


def register(cls: Class) -> Class:
    """Allow objects of a class in model files; usable as a decorator.

    The class must be rebuilt by its constructor from attributes of the same names as its arguments (a gpx kernel: from those
    listed in ``structure``). Returns the class. Raises: InputError for anything but a class.

    >>> import gpx
    >>> @gpx.register
    ... class Cubic(gpx.kernels.Matern):
    ...     pass
    """
    if not inspect.isclass(cls):
        raise InputError(
            f"register takes a class, got {cls!r}; write gpx.register(MyKernel), or @gpx.register above it."
        )
    _REGISTRY[_name(cls)] = cls
    return cls


def _name(cls: type) -> str:
    """The name in files: with its package, since these share names; the user's own modules may move."""
    parts = cls.__module__.split(".")
    depth = {"gpx": 2, "gpytorch": 1}.get(parts[0], 0)
    return ".".join([*parts[:depth], cls.__name__])


def _register_own() -> None:
    families = (kernels, graphs, likelihoods, engines, objectives, rules)
    for module in families:
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__.startswith("gpx.") and not inspect.isabstract(cls):
                register(cls)
    theirs = gpytorch.kernels
    for cls in (
        ConstantMean, LinearMean, Trend, gpytorch.means.ZeroMean, gpytorch.means.ConstantMean, theirs.RBFKernel,
        theirs.MaternKernel, theirs.ScaleKernel, theirs.AdditiveKernel, theirs.ProductKernel, theirs.PeriodicKernel,
        theirs.RQKernel, theirs.LinearKernel, theirs.CosineKernel,
    ):  # fmt: skip
        register(cls)
    for cls in (*vars(gpytorch.priors).values(), *vars(gpytorch.constraints).values()):
        if inspect.isclass(cls) and issubclass(cls, (ParameterPrior, Interval)):
            register(cls)


def save(gp: GP, path: str | os.PathLike[str]) -> None:
    """Write a fitted model to `path`: to a temporary file first, then renamed, so that no partial file is ever left.

    Of a model of several processes, all of which call it, process 0 writes the rows of all; with `engines.Agents` every process
    writes its own, to a path of its own.
    Raises: InputError if the model has seen no data or the file cannot be written; StructureError for an object of a class
    that is not registered.
    """
    problem, target = gp._fitted(), as_path(path)
    team, rows = problem.data.team, {"data.x": problem.data.x, "data.y": problem.data.y}
    if not problem.conjugate:
        rows |= {"sites.nu": gp.posterior_.sites.nu, "sites.tau": gp.posterior_.sites.tau}
    private = problem.engine.private
    tensors = {name: part if private else torch.cat(team.gather(part)) for name, part in rows.items()}
    tensors |= {f"plan.{name}": value for name, value in problem.engine.state(problem.plan).items()}
    modules = _modules(problem.prior.mean, problem.prior.kernels, problem.likelihood)
    header = {
        "format": FORMAT,
        "version": gpx.__version__,
        "constructor": {
            "kernel": _encode(list(problem.prior.kernels), tensors),
            "likelihood": _encode(problem.likelihood, tensors),
            "mean": _encode(problem.prior.mean, tensors),
            "engine": _encode(problem.engine, tensors),
            "rule": _encode(problem.rule, tensors),
            "objective": _encode(gp.objective_, tensors),
        },
        "modules": {name: _state(name, module, tensors) for name, module in modules.items()},
        "data": {"columns": problem.data.columns, "flat": problem.data.flat},
        "encoding": None if gp.encoding is None else gp.encoding.to_dict(),
        "engine_reason": gp.engine_reason_,
        "result": None if gp.result_ is None else dataclasses.asdict(gp.result_),
    }
    (team.together if private else team.share)(lambda: write(target, header, tensors))


def load(path: str | os.PathLike[str]) -> GP:
    """Read a model written by `GP.save`: its predictions equal those of the saved one.

    Raises: InputError if the file is missing, truncated, edited or not a model of gpx; StructureError for a class that is not
    registered (see `register`).
    """
    header, tensors = read(as_path(path))
    if "constructor" not in header:
        raise InputError(
            f"{path} is a checkpoint, not a model: go on from it with fit(X, y, resume={os.fspath(path)!r})."
        )
    parts = {name: _decode(value, tensors) for name, value in header["constructor"].items()}
    mean, likelihood, own = parts["mean"], parts["likelihood"], parts["kernel"]
    for name, module in _modules(mean, own, likelihood).items():
        _restore(name, module, header["modules"][name], tensors)
    gp = gpx.GP(own[0] if len(own) == 1 else own, likelihood, mean=mean, engine=parts["engine"], rule=parts["rule"],
                objective=parts["objective"])  # fmt: skip
    gp.encoding = None if header.get("encoding") is None else Encoding.from_dict(header["encoding"])
    y = tensors["data.y"].squeeze(-1) if header["data"]["flat"] else tensors["data.y"]
    result = header["result"]
    if result is not None:
        lists = {k: tuple(v) for k, v in result.items() if isinstance(v, list)}
        result = FitResult(**{**result, **lists})
    sites = Sites(tensors["sites.nu"], tensors["sites.tau"]) if "sites.nu" in tensors else None
    plan = {name.removeprefix("plan."): value for name, value in tensors.items() if name.startswith("plan.")}
    columns = tuple(header["data"]["columns"])
    return gp._revive(tensors["data.x"], y, columns, result, header["engine_reason"], sites, plan)


def encode_module(name: str, module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A kernel as JSON; its parameters go to `tensors`, under its name.

    Raises: StructureError for a class that is not registered.
    """
    return {"constructor": _encode(module, tensors), "state": _state(name, module, tensors)}


def decode_module(name: str, stored: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The kernel that `encode_module` stored. Raises: StructureError for a class that is not registered."""
    module = _decode(stored["constructor"], tensors)
    _restore(name, module, stored["state"], tensors)
    return module


def _modules(mean: nn.Module, own: Any, likelihood: nn.Module) -> dict[str, nn.Module]:
    return dict(trainable_modules(mean, own, likelihood))  # type: ignore[arg-type]


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; objects of registered classes by name and arguments; arrays go to `tensors`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return {"list": [_encode(v, tensors) for v in value]}
    if isinstance(value, np.ndarray):
        name = f"array/{len(tensors)}"
        tensors[name] = torch.tensor(value)
        return {"array": name}
    if isinstance(value, Tensor):
        return {"tensor": value.detach().cpu().tolist()}
    name = _name(type(value))
    if _REGISTRY.get(name) is not type(value):
        raise StructureError(
            f"{name} is not registered, so it cannot be part of a model file; call gpx.register({name}) in your code,"
            " before saving and before loading."
        )
    positional, keywords = _arguments(value)
    return {
        "class": name,
        "args": [_encode(v, tensors) for v in positional],
        "kwargs": {k: _encode(v, tensors) for k, v in keywords.items()},
    }


def _arguments(value: Any) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(value, Parameterised):
        return value.arguments()
    if dataclasses.is_dataclass(value):
        return [], {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, (gpytorch.kernels.AdditiveKernel, gpytorch.kernels.ProductKernel)):
        return list(value.kernels), {}
    if isinstance(value, ParameterPrior):
        if getattr(value, "_transform", None) is not None:
            raise StructureError(
                f"{value} has a transform of its own, which cannot be part of a model file; leave it out."
            )
        return [], prior_arguments(value)
    names = list(inspect.signature(type(value)).parameters)
    if isinstance(value, Interval):
        keywords = {name: getattr(value, name) for name in names if name.endswith("_bound")}
        if repr(value._transform) != repr(type(value)(**keywords)._transform):
            raise StructureError(
                f"{value} has a transform of its own, which cannot be part of a model file; use its default."
            )
        return [], keywords
    if isinstance(value, gpytorch.kernels.Kernel) and "kwargs" in names:
        names += inspect.signature(gpytorch.kernels.Kernel).parameters
    keywords = {}
    for name in names:
        attribute = getattr(value, f"raw_{name}" if name.endswith("_constraint") else name, None)
        simple = isinstance(attribute, (bool, int, float, str, gpytorch.kernels.Kernel, ParameterPrior, Interval))
        if simple or name == "active_dims" and attribute is not None:
            keywords[name] = attribute
    return [], keywords


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "list" in value:
        return [_decode(v, tensors) for v in value["list"]]
    if "array" in value:
        return tensors[value["array"]].numpy()
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=torch.float64)
    if value["class"] not in _REGISTRY:
        raise StructureError(
            f"The model file uses the class {value['class']}, which is not registered here; define it and call"
            f" gpx.register({value['class']}) before gpx.load."
        )
    keywords = {k: _decode(v, tensors) for k, v in value["kwargs"].items()}
    if isinstance(keywords.get("active_dims"), Tensor):
        keywords["active_dims"] = keywords["active_dims"].long()
    return _REGISTRY[value["class"]](*(_decode(v, tensors) for v in value["args"]), **keywords)


def _state(name: str, module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Settings of every submodule; its parameters go to `tensors`."""
    settings = {}
    for path, part in module.named_modules():
        entry: dict[str, Any] = {"fixed": [k for k, p in part.named_parameters(recurse=False) if not p.requires_grad]}
        for key, raw in part.named_parameters(recurse=False):
            tensors[f"{name}/{path}/{key}"] = raw
        if isinstance(part, Parameterised):
            entry["choices"] = {k: dataclasses.asdict(c) for k, c in part.choices.items()}
            entry["bounds"] = {k: [_numbers(c.lower_bound), _numbers(c.upper_bound)] for k, c in _bounds(part)}
            entry["columns"] = list(getattr(part, "columns", ()))
        if isinstance(part, gpytorch.Module):
            entry["priors"] = {
                k: _encode(v[0], tensors) for k, v in part._priors.items() if isinstance(part, Parameterised)
            }
        settings[path] = entry
    return settings


def _numbers(bound: Any) -> Any:
    return torch.as_tensor(bound).tolist()


def _bounds(part: Any) -> list[tuple[str, Interval]]:
    named = ((k, getattr(part, f"raw_{k}_constraint", None)) for k in part.choices)
    return [(k, c) for k, c in named if c is not None]


def _restore(name: str, module: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for path, part in list(module.named_modules()):
        if path not in settings:  # constraints and priors, which settings restore
            continue
        entry = settings[path]
        for key in [k for k, _ in part.named_parameters(recurse=False)]:
            raw = nn.Parameter(tensors[f"{name}/{path}/{key}"].clone(), requires_grad=key not in entry["fixed"])
            part.register_parameter(key, raw)
        if not isinstance(part, Parameterised):
            continue
        part.choices = {k: Choice(**v) for k, v in entry["choices"].items()}
        part.columns = tuple(entry["columns"])
        for key, (lower, upper) in entry["bounds"].items():
            positive = type(part).values()[key].positive
            constraint = (LogInterval if positive else Box)(lower, upper)
            part.register_constraint(f"raw_{key}", constraint)  # type: ignore[attr-defined]
        for key, prior in entry["priors"].items():
            part._set_prior(key.removesuffix("_prior"), _decode(prior, tensors))


_register_own()
__all__ = ["load", "register", "save"]
