"""A dictionary of ridge leverage scores in one pass over a stream."""

from __future__ import annotations

from collections.abc import Iterable

import gpytorch
import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.selection.base import check_request, make_random
from gpx.selection.scores import OVERSAMPLING, Dictionary


@torch.no_grad()
def squeak(
    kernel: gpytorch.kernels.Kernel, stream: Iterable[Tensor], ridge: float, *, seed: int | None = 0
) -> Dictionary:
    """Blocks of rows come once; after each, a point stays with probability ``p_new / p``, ``p_new = min(p, 16 l_n)``.

    Leverage can only fall as rows come, and so do the probabilities p of still being there: a point stands for 1 / p rows.

    Arguments: stream: blocks [n, D] of rows; ridge: > 0, in the units of the kernel; seed: of the sampling.
    Returns: Dictionary of about 16 d points, d the effective dimension of all rows; its estimates are rarely off
    by more than a factor of two (see the theory).
    Raises: InputError if the ridge is not positive or a block not [n, D]. Cost: O((16 d + n)^3) per block; nothing else is kept.
    Source: Calandriello, Lazaric & Valko (2017), "Distributed adaptive sampling for kernel matrix approximation", with one copy
    of every row in place of several: a row that must stay has weight one.

    >>> import gpx
    >>> X = torch.linspace(0, 50, 1000).double()[:, None]
    >>> len(squeak(gpx.kernels.RBF(), X.split(50), ridge=20.0).points) < 400
    True
    """
    if not ridge > 0:
        raise InputError(f"ridge must be positive, got {ridge!r}.")
    random, points, p = make_random(seed), None, torch.zeros(0)
    for block in stream:
        check_request(block, 1)
        points = block if points is None else torch.cat([points, block])
        p = torch.cat([p.to(block), torch.ones(len(block)).to(block)])
        scores = Dictionary(points, 1 / p, ridge).leverage(kernel, points)
        fewer = torch.minimum(p, OVERSAMPLING * scores)
        stays = torch.as_tensor(random.random(len(p)), device=block.device) < fewer / p
        points, p = points[stays], fewer[stays]
    if points is None:
        raise InputError("The stream has no rows; give at least one block [n, D].")
    return Dictionary(points, 1 / p, ridge)
