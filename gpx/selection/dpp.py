"""Determinantal point processes of fixed size: sets whose kernel matrix has a large determinant are likely.

Theory: docs/theory/selection.md.
"""

from __future__ import annotations

import logging

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.kernels.dense import dense
from gpx.selection.base import check_request, make_random
from gpx.selection.bless import bless
from gpx.selection.greedy import greedy
from gpx.selection.k_dpp import KDPP
from gpx.selection.preselection import LARGEST, Preselection, enough

DENSE = 2_000  # rows up to which an eigendecomposition of all is faster than attempts at a selection


@torch.no_grad()
def dpp(kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, *, seed: int | None = 0) -> tuple[Tensor, Tensor]:
    """A k-DPP: rows S with probability ``det K_SS / sum of det over all sets of that size``, exactly.

    By an eigendecomposition of K up to 2,000 rows, or size^2 / 3 if that is more; above, by one of about size^2 / 6 rows that are
    selected beforehand, in proportion to their chance, and accepted so that the law is the same.

    Arguments: X: [N, D]; size: how many rows; seed: of the draw.
    Returns: indices [M], sorted; weights [M]: one each. If the numerical rank of K is less than `size`, those of `greedy`, with a
    note to the logger `gpx`.
    Raises: InputError unless 0 < size, or if more than 20,000 rows would have to be decomposed; NumericalError if
    20,000 selected rows are not enough.
    Cost: O(N^3), or O(N (16 size)^2) and about 20 times O((size^2 / 6)^3).
    Source: Kulesza & Taskar (2011), "k-DPPs: fixed-size determinantal point processes"; pre-selection: Calandriello, Derezinski &
    Valko (2020), "Sampling from a k-DPP without looking at all items", here with a bound for sets of fixed size.

    >>> import gpx
    >>> indices, _ = dpp(gpx.kernels.RBF(), torch.tensor([[0.0], [0.001], [5.0]]).double(), 2)
    >>> 2 in indices.tolist()
    True
    """
    check_request(X, size)
    random, size = make_random(seed), min(size, len(X))
    whole = len(X) <= max(DENSE, 2 * enough(size))
    if whole and len(X) > LARGEST:
        raise InputError(
            f"A k-DPP of {size} out of {len(X):,} rows needs a decomposition of all of them; use select='greedy', fewer points, "
            f"or at most {LARGEST:,} rows."
        )
    if whole:
        process = KDPP.of(dense(kernel, X, X), size)
    else:
        dictionary = bless(kernel, X, size, seed=int(random.integers(2**31)))
        process = Preselection.of(kernel, X, size, dictionary.points)
    chosen = None if process is None else process.draw(random)
    if chosen is None:
        logging.getLogger("gpx").info("K has a numerical rank below %d: no k-DPP of that size, chosen greedily.", size)
        return greedy(kernel, X, size)
    return torch.as_tensor(np.sort(chosen), device=X.device), torch.ones(len(chosen)).to(X)
