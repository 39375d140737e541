"""Variational inference through inducing inputs. Theory: docs/theory/sparse.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gpx.engines.inducing import Inducing, check_select
from gpx.errors import InputError


@dataclass(frozen=True)
class SparseVariational(Inducing):
    """Variational inference through M inducing inputs: a lower bound of the evidence, for any kernel and likelihood.

    With a Gaussian likelihood the objective is the collapsed bound, ``log N(y; Q + noise) - tr(K - Q) / (2 noise)``,
    ``Q = K_XZ K_ZZ^-1 K_ZX``.

    Arguments: inducing: how many inducing inputs, M (at most as many as there are rows); select: how they are chosen, the name
    of a function of `gpx.selection` or such a function; refine: whether `fit` moves them; batch_size: `fit` learns from so
    many rows at a time, for data beyond memory or beyond patience (4,096 is a good size); None: from all rows at every step;
    most: up to how many inducing inputs `fit` may have between its rounds, while too few lose more than 0.01 nats per target
    (None: as many as it began with; batches keep their number).
    Raises: InputError for another value. Cost: O(N M^2) per evaluation, in blocks of rows, O(M^2) per predicted point; memory:
    O(N + M^2). In batches of B rows: O(B M^2 + M^3) per step.
    Source: Titsias (2009), "Variational learning of inducing variables in sparse Gaussian processes"; Adam et al. (2021), "Dual
    parameterization of sparse variational Gaussian processes".

    >>> SparseVariational(inducing=100)
    SparseVariational(inducing=100, select='greedy', refine=True, batch_size=None, most=None)
    """

    partial: ClassVar[bool] = True

    inducing: int = 512
    select: Any = "greedy"
    refine: bool = True
    batch_size: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        check_select(self, self.inducing, "inducing")
        size = self.batch_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise InputError(f"SparseVariational needs batch_size, a number of rows >= 1, or None, got {size!r}.")
        if self.most is not None and (isinstance(self.most, bool) or not isinstance(self.most, int)):
            raise InputError(f"SparseVariational needs most, a number of inputs, or None, got {self.most!r}.")

    @property
    def size(self) -> int:
        return self.inducing

    @property
    def largest(self) -> int:
        return max(self.inducing, self.most or 0)
