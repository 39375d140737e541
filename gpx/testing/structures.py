"""Laws of what kernels offer to engines."""

from __future__ import annotations

import copy

import gpytorch
import torch
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels.dense import dense
from gpx.structure import feature_map
from gpx.structure.state_space import state_space, time_column
from gpx.testing.assertions import close, mean_is
from gpx.testing.cases import points

DRAWS = 64


def check_structure(
    kernel: gpytorch.kernels.Kernel,
    x: Tensor | None = None,
    *,
    size: int = 256,
    false_alarm: float = 1e-6,
    seed: int = 0,
) -> None:
    """Check that every structure of the kernel reproduces its dense matrix.

    State space: the covariance of the model is the kernel to 1e-10, or to its stated error; left out where the kernel has no
    such form on x. Feature map: an exact one gives ``phi phi^T = K`` to 1e-10; a random one gives it on average, by Student's
    t over 64 independent maps, for every entry. A true law fails with probability at most `false_alarm`. Either is a fixed
    function once drawn, and `size` is the number of its features.

    Raises: AssertionError that names the law; StructureError for a kernel without a feature map.

    >>> from gpx.kernels import Linear
    >>> check_structure(Linear(outputscale=2.0))
    """
    x = points(5) if x is None else x.detach().double()
    kernel = copy.deepcopy(kernel).double()
    K = dense(kernel, x, x).detach()
    _check_state_space(kernel, x, K)
    generator = torch.Generator().manual_seed(seed)
    maps = [feature_map(kernel, size, x.shape[1], generator) for _ in range(DRAWS)]
    phi = maps[0](x)
    assert phi.shape == (len(x), maps[0].size), f"feature map: shape {list(phi.shape)}, its size says {maps[0].size}."
    close(maps[0](x[:2]), phi[:2], "a feature map is a fixed function", rtol=1e-12)
    if all(m.exact for m in maps):
        close(phi @ phi.mT, K, "exact feature map", rtol=1e-10)
    else:
        mean_is(torch.stack([m(x) @ m(x).mT for m in maps]).detach(), K, "unbiased feature map", false_alarm)


def _check_state_space(kernel: gpytorch.kernels.Kernel, x: Tensor, K: Tensor) -> None:
    try:
        times = x[:, time_column(kernel, x.shape[1])]
        form = state_space(kernel)
    except StructureError:
        return
    scale = float(K.diagonal().abs().max())
    close(form.covariance(times, times).detach(), K, "state-space form", atol=max(1e-10, form.error) * scale, rtol=0.0)
    layout, rates, rows, factors = form.at(times)
    assert len(rates) == len(layout.orders) and len(rows) == sum(layout.widths), "state-space form: shapes"
    assert factors.shape in ((1, sum(layout.copies)), (len(times), sum(layout.copies))), "state-space form: factors"
