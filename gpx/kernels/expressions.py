"""Kernels from text, such as ``Matern(nu=1.5, ard=True) + Linear()``: parsed with `ast`, never evaluated."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from inspect import signature
from typing import Any

from gpx.errors import InputError
from gpx.kernels.algebra import Product, Sum, add, multiply
from gpx.kernels.base import Kernel
from gpx.kernels.block import BlockQuasiPeriodic
from gpx.kernels.grid_spectral import GridSpectralMixtureProduct
from gpx.kernels.hida_matern import HidaMatern
from gpx.kernels.periodic import Cosine, Periodic
from gpx.kernels.quasi_periodic import QuasiPeriodic
from gpx.kernels.simple import Constant, Linear, Same
from gpx.kernels.spectral_mixture import SpectralMixture, SpectralMixtureProduct
from gpx.kernels.stationary import RBF, Matern, RationalQuadratic
from gpx.kernels.student_mixture import StudentMixture

KERNELS = {
    c.__name__: c
    for c in (
        RBF, Matern, RationalQuadratic, Periodic, Cosine, HidaMatern, QuasiPeriodic, Linear, Constant, Same, BlockQuasiPeriodic,
        SpectralMixture, SpectralMixtureProduct, StudentMixture, GridSpectralMixtureProduct, Sum, Product,
    )
}  # fmt: skip


def parse(text: str) -> Kernel:
    """The kernel that an expression stands for.

    Arguments: text: kernel names (with literal arguments), numbers, ``+``, ``*`` and brackets.
    Raises: InputError for anything else, with the names that are known.

    >>> parse("Matern(nu=1.5) * Periodic(period=1)")
    Matern(nu=1.5, lengthscale=1, outputscale=1) * Periodic(period=1, lengthscale=1, outputscale=1)
    """
    kernel = parse_call(text, KERNELS, "kernel")
    return Constant(kernel) if isinstance(kernel, (int, float)) else kernel


def parse_call(text: str, classes: Mapping[str, type], what: str) -> Any:
    """An object from text, with the names in `classes` and literal arguments only."""
    try:
        return _build(ast.parse(text.strip(), mode="eval").body, classes, what, text)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"Cannot read the {what} expression {text[:200]!r}: {error}.") from error


def _build(node: ast.expr, classes: Mapping[str, type], what: str, text: str) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
        left, right = _build(node.left, classes, what, text), _build(node.right, classes, what, text)
        return (add if isinstance(node.op, ast.Add) else multiply)(left, right)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise InputError(f"Cannot read the {what} expression {text!r}; write for example {next(iter(classes))}(...).")
    return _construct(call, classes, what, text)


def _construct(call: ast.Call, classes: Mapping[str, type], what: str, text: str) -> Any:
    name = call.func.id  # type: ignore[attr-defined]
    lookup = {known.lower(): cls for known, cls in classes.items()}
    if name.lower() not in lookup:
        raise InputError(f"Unknown {what} {name!r}; known are {', '.join(classes)}.")
    try:
        arguments = [_argument(a, classes, what, text) for a in call.args]
        keywords = {str(k.arg): _argument(k.value, classes, what, text) for k in call.keywords}
        return lookup[name.lower()](*arguments, **keywords)
    except (TypeError, ValueError) as error:
        cls = lookup[name.lower()]
        names = ", ".join(signature(cls).parameters)
        raise InputError(f"Cannot build {name} from {text!r}: {error}. It is {cls.__name__}({names}).") from error


def _argument(node: ast.expr, classes: Mapping[str, type], what: str, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _build(node, classes, what, text)
