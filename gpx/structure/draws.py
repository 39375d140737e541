"""The random numbers that features are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpx.linalg.directions import coupled, normal


class Draws:
    """Arrays of random numbers, one after the other: those that are kept first, then new ones, which are kept, too.

    They know nothing of hyperparameters: features that are made of the same draws are a smooth function of these.

    Arguments: generator: of new numbers; kind: how normal rows are coupled, see `gpx.linalg.directions.coupled`; kept: what
    another one has kept.
    """

    def __init__(self, generator: torch.Generator, kind: str = "iid", kept: Sequence[Tensor] = ()):
        self.generator, self.kind = generator, kind
        self.kept, self._next = list(kept), 0

    def _take(self, make: Callable[[], Tensor]) -> Tensor:
        if self._next == len(self.kept):
            self.kept.append(make())
        self._next += 1
        return self.kept[self._next - 1]

    def normal(self, count: int, columns: int) -> Tensor:
        """Standard normal rows [count, columns], coupled."""
        return self._take(lambda: coupled(self.kind, count, columns, self.generator))

    def chi_squared(self, count: int, freedom: int) -> Tensor:
        """[count, 1], divided by the degrees of freedom."""
        return self._take(lambda: normal(self.generator, count, freedom).square().mean(1, keepdim=True))

    def uniform(self, count: int, columns: int) -> Tensor:
        """Numbers in [0, 1), one in each of `count` intervals of equal length: each column in an order of its own."""
        return self._take(lambda: self._stratified(count, columns))

    def sign(self, count: int) -> Tensor:
        """[count, 1], 1 or -1."""
        return 2.0 * (self.uniform(count, 1) < 0.5) - 1

    def _stratified(self, count: int, columns: int) -> Tensor:
        options = {"generator": self.generator, "dtype": torch.float64, "device": self.generator.device}
        order = torch.rand(count, columns, **options).argsort(0)
        return (order + torch.rand(count, columns, **options)) / count
