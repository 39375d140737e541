"""Kronecker products of matrices and vectors: numbers in, numbers out.

Values on a grid are tensors [n_1, ..., n_D, ...]: what follows the D axes of the grid is a batch, and matrices act on one axis
at a time. In C order this is the product of the flattened tensor with ``A_1 x ... x A_D``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

CHUNK = 1 << 22  # entries
ROUNDING = 64  # units of it by which a tensor may differ from an outer product
REVERSED = 1024  # of it by which a matrix may differ from its reverse: values such as years are rounded too
HALVED = 64  # rows from which eigenvectors of a matrix that is its own reverse are found by halves


def along(matrix: Tensor, values: Tensor, axis: int) -> Tensor:
    """Apply matrix [m, n] to an axis of length n. Cost: m times the number of values."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    flat = values.reshape(math.prod(before), values.shape[axis], math.prod(after))
    if not before:
        return (matrix @ flat[0]).reshape(len(matrix), *after)
    if not after or math.prod(after) == 1:
        return (flat[..., 0] @ matrix.mT).reshape(*before, len(matrix), *after)
    return torch.matmul(matrix, flat).reshape(*before, len(matrix), *after)


def times(matrices: Sequence[Tensor], values: Tensor) -> Tensor:
    """``(A_1 x ... x A_D) values``, those that shrink an axis the most first."""
    order = sorted(range(len(matrices)), key=lambda d: matrices[d].shape[0] / max(1, matrices[d].shape[1]))
    return reduce(lambda result, d: along(matrices[d], result, d), order, values)


def transposed(matrices: Sequence[Tensor]) -> list[Tensor]:
    """``A_1^T, ..., A_D^T``."""
    return [a.mT for a in matrices]


def outer(vectors: Sequence[Tensor]) -> Tensor:
    """``v_1 x ... x v_D`` as a tensor [n_1, ..., n_D]."""
    return reduce(lambda left, v: left.unsqueeze(-1) * v, vectors[1:], vectors[0])


def gram(left: Tensor, right: Tensor, axis: int) -> Tensor:
    """``sum left[.., i, ..] right[.., j, ..]`` over all other axes: [n, n]."""
    a, b = (v.movedim(axis, 0).reshape(v.shape[axis], -1) for v in (left, right))
    return a @ b.mT


def others(values: Tensor, axis: int, dims: int) -> Tensor:
    """The sum over all axes but one, of the first `dims`: [n]."""
    return values.sum([d for d in range(dims) if d != axis]) if dims > 1 else values


def spread(vectors: Sequence[Tensor], axis: int) -> Tensor:
    """The outer product of all vectors but one, as a tensor that broadcasts along its axis."""
    return outer([v.new_ones(1) if d == axis else v for d, v in enumerate(vectors)])


def rank_one(values: Tensor) -> list[Tensor] | None:
    """Vectors whose outer product a positive tensor is, up to rounding; None if it is none. The first has the scale."""
    first = values[(0,) * values.dim()]
    vectors = [values[tuple(slice(None) if e == d else 0 for e in range(values.dim()))] for d in range(values.dim())]
    vectors = [v if d == 0 else v / first for d, v in enumerate(vectors)]
    gap = (outer(vectors) - values).abs().max()
    return vectors if bool(gap <= ROUNDING * torch.finfo(values.dtype).eps * values.abs().max()) else None


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending and not negative, and eigenvectors of a positive semi-definite matrix.

    A matrix that is the same from both ends, ``J K J = K`` with J the reversal, such as that of a stationary kernel on even
    values, has symmetric and antisymmetric eigenvectors, which are those of two matrices of half the size: a quarter of the cost.
    Source: Cantoni & Butler (1976), "Eigenvalues and eigenvectors of symmetric centrosymmetric matrices".
    """
    if len(matrix) < HALVED or not _is_reversible(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return values.flip(0).clamp_min(0), vectors.flip(1).contiguous()
    half = len(matrix) // 2
    # Columns of this orthogonal matrix are (e_i + e_j) / sqrt(2), the middle one, and (e_i - e_j) / sqrt(2), j = n - 1 - i.
    near, far = matrix[:half, :half], matrix[:half, half + len(matrix) % 2 :].flip(1)
    even = near + far
    if len(matrix) % 2:
        side = 2**0.5 * matrix[:half, half : half + 1]
        even = torch.cat(
            [torch.cat([even, side], 1), torch.cat([side.mT, matrix[half : half + 1, half : half + 1]], 1)]
        )
    (same, left), (other, right) = torch.linalg.eigh(even), torch.linalg.eigh(near - far)
    top, turned = (v[:half] * 0.5**0.5 for v in (left, right))
    vectors = torch.cat(
        [torch.cat([top, left[half:], top.flip(0)]), torch.cat([turned, 0 * left[half:, :half], -turned.flip(0)])], 1
    )
    values, order = torch.cat([same, other]).sort(descending=True)
    return values.clamp_min(0), vectors[:, order]


def _is_reversible(matrix: Tensor) -> bool:
    """Whether it is the same with rows and columns in reverse order, up to rounding."""
    allowed = REVERSED * torch.finfo(matrix.dtype).eps * matrix.abs().max()
    return bool((matrix - matrix.flip(0, 1)).abs().max() <= allowed)


def rows(features: Sequence[Tensor], values: Tensor) -> Tensor:
    """``sum_k features_1[m, k_1] ... features_D[m, k_D] values[k_1, ..., k_D, ...]``, row by row of features [M, r_d].

    Cost: M times the number of values.
    """
    result = along(features[0], values, 0)
    for feature in features[1:]:
        result = torch.einsum("mk,mk...->m...", feature, result)
    return result


def pairs(matrix: Tensor) -> Tensor:
    """Products of the entries of each row: [n, r r]."""
    return (matrix.unsqueeze(2) * matrix.unsqueeze(1)).flatten(1)


def weighted_gram(matrices: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``A^T diag(w) A`` [r, r] for ``A = A_1 x ... x A_D`` of r columns, without A. Cost: r^2 n_1 for two axes."""
    sizes, dims = [a.shape[1] for a in matrices], len(matrices)
    widest = sizes.index(max(sizes))  # its pairs of columns would be too many to hold for each of its values
    wide, rest = matrices[widest], [d for d in range(dims) if d != widest]
    summed = times([pairs(matrices[d]).mT for d in rest], weights.movedim(widest, -1)).reshape(-1, len(wide))
    blocks = [torch.matmul(wide.mT * part.unsqueeze(1), wide) for part in summed.split(max(1, CHUNK // wide.numel()))]
    split = torch.cat(blocks).reshape([sizes[d] for d in (*rest, widest) for _ in (0, 1)])
    place = [(*rest, widest).index(d) for d in range(dims)]
    return split.permute([2 * k for k in place] + [2 * k + 1 for k in place]).reshape(
        math.prod(sizes), math.prod(sizes)
    )


def weighted_diagonal(matrices: Sequence[Tensor], inner: Tensor) -> Tensor:
    """The diagonal of ``A B A^T`` for B [r, r], as a tensor [n_1, ..., n_D]; the transpose of `weighted_gram`."""
    sizes, dims = [a.shape[1] for a in matrices], len(matrices)
    widest = sizes.index(max(sizes))
    wide, rest = matrices[widest], [d for d in range(dims) if d != widest]
    split = inner.reshape(*sizes, *sizes).permute([axis for d in (*rest, widest) for axis in (d, dims + d)])
    blocks = split.reshape(-1, sizes[widest], sizes[widest])
    parts = [((wide @ part) * wide).sum(-1) for part in blocks.split(max(1, CHUNK // max(1, wide.numel())))]
    summed = torch.cat(parts).reshape([sizes[d] ** 2 for d in rest] + [len(wide)])
    return times([pairs(matrices[d]) for d in rest], summed).movedim(-1, widest)
