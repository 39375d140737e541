"""Ridge leverage scores along a path of ridges, each estimated with the dictionary of the one before."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from gpx.kernels.dense import diagonal
from gpx.selection.base import check_request, make_random
from gpx.selection.scores import FLOOR, OVERSAMPLING, Dictionary


@torch.no_grad()
def bless(kernel: gpytorch.kernels.Kernel, X: Tensor, size: int, *, seed: int | None = 0) -> Dictionary:
    """A dictionary for leverage at the ridge whose effective dimension is about `size`: the trace of K, halved until it is.

    At every ridge, candidates are taken with probability ``b_n = min(1, 16 k_nn / ridge)``, which bounds 16 times their
    leverage; of these, row n stays with probability ``p_n / b_n``, ``p_n = min(1, 16 l_n)``, and stands for 1 / p_n rows.

    Arguments: X: [N, D]; size: effective dimension, which stops the path; so does a ridge of 1e-8 of the prior variance.
    Returns: Dictionary of about 16 size points; its estimates are rarely off by more than a factor of two (see the theory).
    Raises: InputError unless 0 < size. Cost: O(size^2) per candidate, of which there are 16 tr K / ridge; of N only random
    numbers depend.
    Source: Rudi, Calandriello, Carratino & Rosasco (2018), "On fast leverage score sampling and optimal learning", algorithm 2.

    >>> import gpx
    >>> X = torch.linspace(0, 50, 1000).double()[:, None]
    >>> dictionary = bless(gpx.kernels.RBF(), X, 10)
    >>> 10 <= float(dictionary.leverage(gpx.kernels.RBF(), X).sum()) < 30
    True
    """
    check_request(X, size)
    random = make_random(seed)
    prior = diagonal(kernel, X).double()
    dictionary = Dictionary(X[:0], X.new_zeros(0), float(prior.sum()))
    floor = FLOOR * float(prior.max())
    while dictionary.ridge > floor:
        bound = (OVERSAMPLING * prior / dictionary.ridge).clamp(max=1)
        taken = torch.as_tensor(random.random(len(X)), device=X.device) < bound
        bound, candidates = bound[taken], X[taken]
        scores = dictionary.leverage(kernel, candidates).double()
        p = torch.minimum(OVERSAMPLING * scores, bound)
        stays = torch.as_tensor(random.random(len(p)), device=X.device) < p / bound
        dictionary = Dictionary(candidates[stays], (1 / p[stays]).to(X), dictionary.ridge)
        if float((scores / bound).sum()) >= size:
            break
        dictionary = dictionary._replace(ridge=dictionary.ridge / 2)
    return dictionary
