"""The part of a kernel that a few inducing inputs explain: ``phi(x) = L^-1 k(Z, x)``, ``L L^T = k(Z, Z)`` and a little noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpx.errors import NumericalError
from gpx.kernels.dense import dense

NOISE = 1e-6  # of the prior variance: inducing inputs are data too, and of these something must be left to explain


def low_rank(kernel: Any, z: Tensor, x: Tensor) -> Tensor:
    """phi [n, k] at x [n, D] for inducing inputs z [k, D], which may be none; differentiable in the kernel.

    ``k(x, x') - phi(x) . phi(x')`` is a covariance again. Raises: NumericalError. Cost: O(n k^2).
    """
    return torch.linalg.solve_triangular(root(kernel, z), dense(kernel, z, x), upper=False).mT if len(z) else x[:, :0]


def root(kernel: Any, z: Tensor) -> Tensor:
    """L [k, k]."""
    matrix = dense(kernel, z, z)
    noise = NOISE * matrix.detach().diagonal().mean()
    lower, info = torch.linalg.cholesky_ex(matrix + noise * torch.eye(len(z)).to(z))
    if int(info):
        raise NumericalError(
            "The kernel matrix of the inducing inputs is not positive definite; use fewer of them, or lower the outputscale."
        )
    return lower
