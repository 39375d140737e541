"""Functions of a box, as sums of products of functions of one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.pde.axes import multiply
from gpx.pde.basis import Basis, joined
from gpx.pde.domains import Box, called_at
from gpx.pde.expressions import Expression, Index, expression, indices, require_known, substitute, u

CHUNK = 20_000  # points


@dataclass(frozen=True)
class Function:
    """``sum c_ij... b_i(x_1) b_j(x_2) ...``: bases b of every axis, coefficients c [r_1, ..., r_d]."""

    bases: tuple[Basis, ...]
    coefficients: np.ndarray

    def on(self, axes: Sequence[Any]) -> Tensor:
        """The values [n_1, ..., n_d] on any grid. Cost: that of d thin matrix products."""
        matrices = [basis(np.asarray(x, dtype=float)) for basis, x in zip(self.bases, axes, strict=True)]
        return torch.from_numpy(multiply(matrices, self.coefficients))

    def derivative(self, x: Tensor, index: Index) -> Tensor:
        """A derivative [n] at points [n, d]. Cost: O(n r^d)."""
        rows = [basis(x[:, d].numpy(), index.count(d)) for d, basis in enumerate(self.bases)]
        value = np.tensordot(rows[0], self.coefficients, 1)
        for row in rows[1:]:
            value = np.einsum("nj,nj...->n...", row, value)
        return torch.from_numpy(np.ascontiguousarray(value))


def weighted(functions: Sequence[Function], weights: Sequence[float]) -> Function:
    """The sum of functions with weights, in all their bases together."""
    if len(functions) == 1:
        return Function(functions[0].bases, weights[0] * functions[0].coefficients)
    sizes = np.array([f.coefficients.shape for f in functions])
    coefficients = np.zeros(sizes.sum(0))
    for f, weight, ends in zip(functions, weights, sizes.cumsum(0), strict=True):
        where = tuple(slice(end - n, end) for end, n in zip(ends, f.coefficients.shape, strict=True))
        coefficients[where] = weight * f.coefficients
    return Function(tuple(joined(bases) for bases in zip(*(f.bases for f in functions), strict=True)), coefficients)


@dataclass(frozen=True, eq=False)
class Functions:
    """u, and the unknown functions and numbers that belong to it, called together: a solution's mean or a draw.

    domain; u; others: by their names; numbers: by their names.
    """

    domain: Box
    u: Function
    others: Mapping[str, Function] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, X: Any, of: Expression | None = None) -> Tensor:
        """Values [n] at points X [n, d] ([n] where d = 1) of u, or of an expression.

        Raises: InputError for points of another dimension or outside the domain, or an unknown function that is not there.
        Cost: O(n r^d).
        """
        x, what = self._points(X), u if of is None else expression(of)
        require_known(what, self.domain.dims, [*self.numbers, *self.others])
        what = substitute(what, self.numbers)
        found = []
        for part in x.split(CHUNK):
            jet: dict[Any, Tensor] = {index: self.u.derivative(part, index) for index in indices(what)}
            for name, function in self.others.items():
                jet |= {(name, index): function.derivative(part, index) for index in indices(what, name)}
            found.append(what.value(jet, part))
        return torch.cat(found) if found else x.new_zeros(0)

    def _points(self, X: Any) -> Tensor:
        x = called_at(X, self.domain.dims)
        for axis in range(self.domain.dims):
            self.domain.check(axis, x[:, axis])
        return x
