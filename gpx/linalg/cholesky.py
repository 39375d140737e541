"""The one Cholesky factorisation of gpx: in place, with relative jitter of limited escalation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from gpx.errors import NumericalError

JITTER = {torch.float64: (0.0, 1e-12, 1e-10, 1e-8, 1e-6), torch.float32: (0.0, 1e-7, 1e-6, 1e-5, 1e-4)}

SMALL = 1000  # rows up to which torch's routines are used on CPUs


@dataclass(frozen=True)
class Cholesky:
    """``A + jitter I = L L^T``.

    lower: [N, N]; only its lower triangle counts, what stands above is not defined. jitter: the absolute amount that
    was added to the diagonal.
    """

    lower: Tensor
    jitter: float

    def logdet(self) -> Tensor:
        """``log |A|``."""
        return 2 * self.lower.diagonal().log().sum()

    def half_solve(self, b: Tensor) -> Tensor:
        """``L^-1 b`` for b [N, M]. Cost: O(N^2 M)."""
        return torch.linalg.solve_triangular(self.lower, b, upper=False)

    def solve(self, b: Tensor) -> Tensor:
        """``A^-1 b`` for b [N, M]. Cost: O(N^2 M)."""
        return torch.linalg.solve_triangular(self.lower.mT, self.half_solve(b), upper=True)

    def inverse(self) -> Tensor:
        """``A^-1`` [N, N]: the lower triangle; what stands above is not defined. Cost: 2 N^3 / 3."""
        if _by_lapack(self.lower):
            return _potri(self.lower)
        return torch.cholesky_inverse(self.lower)

    def extend(self, cross: Tensor, corner: Callable[[], Tensor]) -> Cholesky:
        """The factor of ``[[A, cross^T], [cross, corner]]`` in O(N^2 M) from that of A, with the jitter of A throughout.

        cross: [M, N]. corner: builds the [M, M] block, lower triangle.
        """
        n, m = self.lower.shape[0], cross.shape[0]
        below = self.half_solve(cross.mT).mT
        jitter = self.jitter * torch.eye(m, dtype=cross.dtype, device=cross.device)
        schur = factorise(lambda: corner().sub_(below @ below.mT).add_(jitter))
        lower = self.lower.new_zeros(n + m, n + m)
        lower[:n, :n], lower[n:, :n], lower[n:, n:] = self.lower, below, schur.lower
        return Cholesky(lower, max(self.jitter, schur.jitter))


def factorise(build: Callable[[], Tensor]) -> Cholesky:
    """Factorise the symmetric positive definite matrix that `build` returns.

    The matrix is overwritten, so `build` is called again when jitter must be added. Jitter is relative to the mean
    diagonal and at most 1e-6 of it (float32: 1e-4).

    Arguments: build: () -> [N, N], of which only the lower triangle is read.
    Raises: NumericalError if the matrix has a non-finite entry or no jitter of the schedule helps.
    Cost: N^3 / 3 time, no memory beyond the matrix.

    >>> A = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> factor = factorise(A.clone)
    >>> print(f"{float(factor.logdet().exp()):.6f}")
    3.000000
    """
    relative = 0.0
    for relative in JITTER[build_dtype(matrix := build())]:
        if relative:
            matrix = build()
        diagonal = matrix.diagonal()
        scale = float(diagonal.mean()) if len(diagonal) else 1.0
        if not np.isfinite(scale):
            raise NumericalError("The covariance matrix has NaN or infinite entries on its diagonal.")
        diagonal.add_(relative * scale)
        if _potrf(matrix):
            return Cholesky(matrix, relative * scale)
    raise NumericalError(
        f"The covariance matrix is not positive definite, even with {relative:g} of its mean diagonal added."
    )


def build_dtype(matrix: Tensor) -> torch.dtype:
    """The dtype, if there is a jitter schedule for it."""
    if matrix.dtype not in JITTER:
        raise NumericalError(f"Cannot factorise a {matrix.dtype} matrix; use float64 or float32.")
    return matrix.dtype


def _by_lapack(matrix: Tensor) -> bool:
    """Whether SciPy's LAPACK is called, in place: half the memory and up to half the time of torch's routines, on CPUs. Where
    there are several threads and the matrix is small, waking a second pool of them beside torch's costs more than that.
    """
    single = len(matrix) > 0 and torch.get_num_threads() == 1
    return matrix.device.type == "cpu" and (single or len(matrix) > SMALL)


def _fortran(matrix: Tensor) -> np.ndarray:
    # A row-major matrix read as column-major is its transpose: LAPACK's upper triangle is our lower one.
    return matrix.detach().numpy().T


def _potrf(matrix: Tensor) -> bool:
    """Overwrite the lower triangle by its factor; False if not positive definite."""
    if not len(matrix):
        return True
    if not _by_lapack(matrix):
        factor, info = torch.linalg.cholesky_ex(matrix)
        matrix.copy_(factor)
        return not int(info) and bool(torch.isfinite(factor.diagonal()).all())
    view = _fortran(matrix)
    potrf = lapack.dpotrf if matrix.dtype == torch.float64 else lapack.spotrf
    factor, info = potrf(view, lower=0, clean=0, overwrite_a=1)
    if not np.shares_memory(factor, view):
        view[...] = factor
    return info == 0 and bool(np.isfinite(np.diagonal(factor)).all())


def _potri(lower: Tensor) -> Tensor:
    result = lower.detach().clone(memory_format=torch.contiguous_format)
    view = _fortran(result)
    potri = lapack.dpotri if lower.dtype == torch.float64 else lapack.spotri
    inverse, info = potri(view, lower=0, overwrite_c=1)
    if info:
        raise NumericalError("The Cholesky factor is singular; its inverse does not exist.")
    if not np.shares_memory(inverse, view):
        view[...] = inverse
    return result
