"""Gauss-Hermite quadrature."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def normal_nodes(like: Tensor, order: int = 64) -> tuple[Tensor, Tensor]:
    """Nodes and weights [order] with ``sum w g(x) = E g(x)``, ``x ~ N(0, 1)``: exact for polynomials of degree 2 order - 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / weights.sum()
    return torch.from_numpy(nodes).to(like), torch.from_numpy(weights).to(like)
