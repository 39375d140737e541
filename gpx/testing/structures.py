"""Laws of what kernels offer to engines."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels.dense import dense
from gpx.linalg.layout import noise_terms, transition_terms
from gpx.parameters import Box
from gpx.structure import Draws, FeatureMap, derivatives, feature_map, sparse_features
from gpx.structure.state_space import Block, read, state_space, time_column
from gpx.testing.assertions import close, mean_is
from gpx.testing.cases import points

DRAWS = 64


def check_structure(
    kernel: gpytorch.kernels.Kernel,
    x: Tensor | None = None,
    *,
    size: int = 256,
    kind: str = "iid",
    false_alarm: float = 1e-6,
    seed: int = 0,
) -> None:
    """Check that every structure of the kernel reproduces its dense matrix.

    State space, derivatives and sparse features: see `check_state_space`, `check_derivatives` and `check_sparse_features`; left
    out where the kernel has none on x. Feature map: an exact one gives ``phi phi^T = K`` to 1e-10; a random one gives it on
    average, by Student's t over 64 independent maps, for every entry. A true law fails with probability at most `false_alarm`.
    Either is a fixed function once drawn, the same for the same draws, with the gradients of its differences in the
    hyperparameters; `size` is the number of its features. kind: how random directions are coupled.

    Raises: AssertionError that names the law; StructureError for a kernel without a feature map.

    >>> from gpx.kernels import Linear
    >>> check_structure(Linear(outputscale=2.0))
    """
    x = points(5) if x is None else x.detach().double()
    kernel = copy.deepcopy(kernel).double()
    K = dense(kernel, x, x).detach()
    with contextlib.suppress(StructureError):
        check_state_space(kernel, x)
    for order in (2, 4):
        with contextlib.suppress(StructureError):
            check_derivatives(kernel, x, order)
    with contextlib.suppress(StructureError):
        check_sparse_features(kernel, x)
    generator = torch.Generator().manual_seed(seed)
    draws = [Draws(generator, kind) for _ in range(DRAWS)]
    maps = [feature_map(kernel, size, x.shape[1], d) for d in draws]
    phi = maps[0](x)
    assert phi.shape == (len(x), maps[0].size), f"feature map: shape {list(phi.shape)}, its size says {maps[0].size}."
    close(maps[0](x[:2]), phi[:2], "a feature map is a fixed function", rtol=1e-12)
    again = feature_map(kernel, size, x.shape[1], Draws(torch.Generator(), kept=draws[0].kept))
    close(again(x), phi, "the same draws give the same feature map", rtol=0.0)
    _check_gradients(kernel, maps[0], x, generator)
    if all(m.exact for m in maps):
        close(phi @ phi.mT, K, "exact feature map", rtol=1e-10)
    else:
        mean_is(torch.stack([m(x) @ m(x).mT for m in maps]).detach(), K, "unbiased feature map", false_alarm)


def _check_gradients(
    kernel: gpytorch.kernels.Kernel, features: FeatureMap, x: Tensor, generator: torch.Generator
) -> None:  # fmt: skip
    """Values at a bound, where a square root has no derivative, are left out."""
    found = [(p, c) for _, p, c in kernel.named_parameters_and_constraints() if p.requires_grad]
    raws = [raw for raw, _ in found]
    phi = features(x)
    weights = torch.randn(phi.shape, generator=generator, dtype=phi.dtype)
    value = (weights * phi).sum()
    grads = torch.autograd.grad(value, raws, allow_unused=True) if value.requires_grad and raws else [None] * len(raws)
    for (raw, constraint), grad in zip(found, grads, strict=True):
        inside = (
            raw.detach() > constraint.lower_bound
            if isinstance(constraint, Box)
            else torch.ones_like(raw, dtype=torch.bool)
        )
        got = torch.zeros_like(raw) if grad is None else torch.where(inside, grad, 0.0)
        expected = torch.where(inside.reshape(-1), differences(raw, lambda: (weights * features(x)).sum()), 0.0)
        scale = max(float(weights.norm()), float(expected.abs().max()))
        close(got.reshape(-1), expected, "gradient of a feature map", atol=1e-6 * scale)


@torch.no_grad()
def differences(raw: Tensor, value: Callable[[], Tensor], step: float = 1e-6) -> Tensor:
    """The gradient of a value in a parameter, which is moved and put back, by differences of five points."""
    result, flat = [], raw.view(-1)
    for i, start in enumerate(flat.tolist()):
        sides = []
        for side in (1, -1, 2, -2):
            flat[i] = start + side * step
            sides.append(float(value()))
        flat[i] = start
        result.append((8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * step))
    return torch.tensor(result, dtype=torch.float64)


def check_sparse_features(kernel: gpytorch.kernels.Kernel, x: Tensor) -> None:
    """Check that ``Phi Phi^T`` is the matrix of a kernel at inputs x [N, D], before and after its parameters move.

    Raises: AssertionError that names the law; StructureError for a kernel without sparse features.
    """
    kernel = copy.deepcopy(kernel).double()
    features = sparse_features(kernel, x)
    rows = torch.from_numpy(np.repeat(np.arange(len(x)), np.diff(features.indptr)))
    columns = torch.from_numpy(features.columns).long()
    params = [p for p in kernel.parameters() if p.requires_grad]
    weights = torch.randn(len(x), len(x), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for when in ("", ", after a step"):
        phi = torch.zeros(len(x), features.size, dtype=torch.float64)
        phi = phi.index_put((rows, columns), features.values(kernel))
        K = dense(kernel, x, x)
        close(phi @ phi.mT, K, f"sparse features{when}", rtol=1e-10)
        for actual, expected in zip(
            *(torch.autograd.grad((weights * M).sum(), params) for M in (phi @ phi.mT, K)), strict=True
        ):
            close(actual, expected, f"gradients through sparse features{when}", rtol=1e-8)
        with torch.no_grad():
            for p in params:
                p.add_(0.1)


def check_state_space(kernel: gpytorch.kernels.Kernel, x: Tensor) -> None:
    """Check the state-space form of a kernel at inputs x [N, D].

    Its covariance is the kernel to 1e-10 of the variance, or to its stated error; the observed weights of every block have the
    block's covariance to 1e-8; the clock ascends; shapes.

    Raises: AssertionError that names the law; StructureError for a kernel without such a form.

    >>> from gpx.kernels import Matern
    >>> check_state_space(Matern(nu=1.5), points(5, 1))
    """
    x, kernel = x.detach().double(), copy.deepcopy(kernel).double()
    K, times = dense(kernel, x, x).detach(), x[:, time_column(kernel, x.shape[1])]
    form = state_space(kernel)
    scale = float(K.diagonal().abs().max())
    close(form.covariance(times, times).detach(), K, "state-space form", atol=max(1e-10, form.error) * scale, rtol=0.0)
    layout, rates, rows, factors = form.at(times)
    assert len(rates) == len(layout.orders) and len(rows) == sum(layout.widths), "state-space form: shapes"
    assert factors.shape in ((1, sum(layout.copies)), (len(times), sum(layout.copies))), "state-space form: factors"
    assert bool((read(form.clock, times.sort().values).diff() >= 0).all()), "state-space form: the clock runs backwards"
    for block in form.blocks:
        _check_row(block)


def check_derivatives(kernel: gpytorch.kernels.Kernel, x: Tensor, order: int) -> None:
    """Check the derivatives of a kernel in the lag at inputs x [N, D].

    Order 0 is the kernel to 1e-12 of its variance; every order is even or odd in the lag, and the slope of the order before, by
    central differences, to 1e-4 of its largest value, at zero too.

    Raises: AssertionError that names the law; StructureError for a kernel that has not so many.

    >>> from gpx.kernels import Matern
    >>> check_derivatives(Matern(nu=2.5), points(5, 1), 4)
    """
    x, kernel = x.detach().double(), copy.deepcopy(kernel).double()
    times = x[:, time_column(kernel, x.shape[1])]
    lag, step, function = times[:, None] - times, 1e-5, derivatives(kernel, order)
    K, found = dense(kernel, x, x).detach(), function(lag).detach()
    close(found[..., 0], K, "derivative of order 0", atol=1e-12 * float(K.diagonal().max()))
    signs = (-1.0) ** torch.arange(order + 1).double()
    close(function(-lag).detach(), signs * found, "derivatives are even or odd", rtol=1e-12)
    slopes = (function(lag + step) - function(lag - step)).detach() / (2 * step)
    for n in range(order):
        close(found[..., n + 1], slopes[..., n], f"derivative of order {n + 1}", rtol=1e-4)


def _check_row(block: Block) -> None:
    """``row . A(x) P row = e^-x sum_k c_k x^k``."""
    x, p, row = np.linspace(0, 9, 19), block.order, block.row().detach().numpy()
    limit, terms = noise_terms(p)[1][:, : len(row)] @ row, transition_terms(p)[:, : len(row)]
    moved = np.exp(-x)[:, None] * x[:, None] ** np.arange(p + 1)
    got = moved @ np.einsum("i,kij,j->k", row, terms, limit)
    close(got, moved @ block.profile.detach().numpy(), f"observed weights of a block of order {p}", atol=1e-8, rtol=0.0)
