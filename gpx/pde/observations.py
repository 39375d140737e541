"""Measured values of a solution."""

from __future__ import annotations

from typing import Any

import torch

from gpx.errors import InputError
from gpx.pde.domains import Box, numbers
from gpx.pde.expressions import Expression, expression, u
from gpx.pde.points import Points


class Observations:
    """Values of u, or of an expression in u and its derivatives, at points, with independent Gaussian errors.

    Arguments: X [n, d] ([n] where d = 1); y [n]; noise: standard deviation of the errors in y, a number or [n], in the units of
    y; of: what was measured. Raises: InputError for other shapes, values that are not finite, or noise that is not positive.

    >>> Observations([0.2, 0.7], [1.0, 0.4], noise=0.1).x.shape
    torch.Size([2, 1])
    """

    def __init__(self, X: Any, y: Any, noise: Any, of: Expression = u):
        self.x, self.y, self.of = numbers(X, "X of Observations"), numbers(y, "y of Observations"), expression(of)
        self.x = self.x[:, None] if self.x.dim() == 1 else self.x
        if self.x.dim() != 2 or self.y.shape != self.x.shape[:1] or not len(self.y):
            raise InputError(
                f"Observations need points X [n, d] and values y [n], got {list(self.x.shape)} and {list(self.y.shape)};"
                " there must be one at least."
            )
        deviations = numbers(noise, "noise of Observations")
        if deviations.dim() and deviations.shape != self.y.shape or not bool((deviations > 0).all()):
            raise InputError(
                f"noise is a standard deviation > 0, one or one for each of {len(self.y)} values: {noise!r}."
            )
        if not (bool(torch.isfinite(self.x).all()) and bool(torch.isfinite(self.y).all())):
            raise InputError("Observations have X and y that are finite; leave out what is missing.")
        self.noise = deviations.expand(self.y.shape)

    def check(self, domain: Box | Points) -> None:
        """Raises: InputError for points of another dimension or outside the domain."""
        if self.x.shape[1] != domain.dims:
            raise InputError(
                f"Observations of a domain of {domain.dims} axes have X [n, {domain.dims}], got {list(self.x.shape)}."
            )
        if isinstance(domain, Points):
            domain.check(self.x)
            return
        low, high = torch.tensor(domain.bounds, dtype=torch.float64).T
        outside = int(((self.x < low) | (self.x > high)).any(1).sum())
        if outside:
            raise InputError(f"{outside} of {len(self.x)} observations are outside the domain {domain.bounds}.")
