"""Preconditioned conjugate gradients for many right-hand sides, and the logarithms that they give by the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpx.errors import NumericalError


@dataclass(frozen=True)
class Solves:
    """solution [n, c] of ``A x = b``; for each column the quadratic forms ``z^T log(E) z`` and ``z^T E z`` [c] with
    ``E = P^-1/2 A P^-1/2``, ``z = P^-1/2 b``; iterations: taken.
    """

    solution: Tensor
    logarithm: Tensor
    product: Tensor
    iterations: int


def conjugate_gradients(
    times: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    b: Tensor,
    tolerance: Tensor,
    limit: int,
) -> Solves:
    """Solve ``A x = b`` for b [n, c], A and P positive definite; columns that are solved drop out.

    Arguments: times: A; precondition: P^-1; tolerance [c]: of each residual, relative to b, in the norm of P^-1; limit: of the
    iterations. The quadratic forms are Gauss quadrature with the coefficients of the iteration.
    Raises: NumericalError if the limit is reached. Source: Golub & Van Loan (2013), section 11.5.2; Ubaru, Chen & Saad (2017),
    "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature".
    """
    x, r = torch.zeros_like(b), b.clone()
    z = precondition(r)
    rz = start = (r * z).sum(0)
    p, left = z.clone(), torch.arange(b.shape[1], device=b.device)
    steps: list[list[tuple[float, float]]] = [[] for _ in range(b.shape[1])]
    iterations = 0
    while True:
        keep = rz > tolerance[left].square() * start[left]
        if not bool(keep.any()):
            break
        if iterations == limit:
            raise NumericalError(
                f"Conjugate gradients did not converge in {limit} steps: the noise is tiny beside the variance that the kernel"
                " gives to cells that are missing; raise the noise, or use engines.Exact()."
            )
        left, r, p, rz = left[keep], r[:, keep], p[:, keep], rz[keep]
        ap = times(p)
        alpha = rz / (p * ap).sum(0)
        x.index_add_(1, left, p * alpha)
        r = r - ap * alpha
        z = precondition(r)
        following = (r * z).sum(0)
        beta = following / rz
        for column, pair in zip(left.tolist(), zip(alpha.tolist(), beta.tolist(), strict=True), strict=True):
            steps[column].append(pair)
        p, rz = z + p * beta, following
        iterations += 1
    forms = [_forms(own) for own in steps]
    logarithm, product = (b.new_tensor([f[i] for f in forms]) * start for i in (0, 1))
    return Solves(x, logarithm, product, iterations)


def _forms(steps: list[tuple[float, float]]) -> tuple[float, float]:
    """``e^T log(T) e`` and ``e^T T e`` of the tridiagonal matrix T of one column's coefficients; e: the first unit vector."""
    if not steps:
        return 0.0, 1.0
    alpha, beta = torch.tensor(steps, dtype=torch.float64).T
    matrix = torch.diag(1 / alpha)
    if len(steps) > 1:
        matrix.diagonal()[1:] += beta[:-1] / alpha[:-1]
        side = beta[:-1].sqrt() / alpha[:-1]
        matrix = matrix + side.diag(1) + side.diag(-1)
    values, vectors = torch.linalg.eigh(matrix)
    weights = vectors[0].square()
    return float((weights * values.clamp_min(torch.finfo(values.dtype).tiny).log()).sum()), float(
        (weights * values).sum()
    )
