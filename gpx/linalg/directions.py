"""Rows that are each standard normal, and repel each other: directions at right angles, or at the corners of a simplex.

Theory: docs/theory/features.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gpx.errors import InputError

SWEEPS = 5  # of the descent for the directions that repel each other most, given their norms


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Independent standard normal numbers."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)


def rotations(count: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthogonal matrices [count, columns, columns], uniform by Haar's measure. Cost: O(count columns^3)."""
    q, r = torch.linalg.qr(normal(generator, count, columns, columns))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def simplex(columns: int) -> Tensor:
    """Unit vectors [d, d], d >= 2, at the corners of a simplex around zero: ``s_i . s_j = -1 / (d - 1)``. The last column is 0.

    Source: Reid et al. (2023), "Simplex random features", eq. 8.
    """
    d = columns
    corners = math.sqrt(d / (d - 1)) * torch.eye(d, dtype=torch.float64)
    corners[:, : d - 1] -= (math.sqrt(d) + 1) / (d - 1) ** 1.5
    corners[d - 1] = 1 / math.sqrt(d - 1)
    corners[:, d - 1] = 0
    return corners


def repelling(norms: Tensor) -> Tensor:
    """Unit vectors [..., d, d] with a short sum of ``norms_i s_i``, norms [..., d], by coordinate descent from the simplex.

    Source: Reid et al. (2023), algorithm of SimRF+ (section 3.3).
    """
    s = simplex(norms.shape[-1]).to(norms).expand(*norms.shape, norms.shape[-1]).clone()
    for _ in range(SWEEPS):
        for i in range(norms.shape[-1]):
            rest = (norms.unsqueeze(-1) * s).sum(-2) - norms[..., i, None] * s[..., i, :]
            s[..., i, :] = -rest / rest.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    return s


def _independent(count: int, columns: int, generator: torch.Generator) -> Tensor:
    return normal(generator, count, columns)


def _orthogonal(count: int, columns: int, generator: torch.Generator) -> Tensor:
    return _turned(count, columns, generator, lambda norms: torch.eye(columns).to(norms))


def _simplex(count: int, columns: int, generator: torch.Generator) -> Tensor:
    return _turned(count, columns, generator, lambda norms: simplex(columns).to(norms))


def _repelling(count: int, columns: int, generator: torch.Generator) -> Tensor:
    return _turned(count, columns, generator, repelling)


def _turned(
    count: int, columns: int, generator: torch.Generator, directions: Callable[[Tensor], Tensor]
) -> Tensor:  # fmt: skip
    """Independent blocks of `columns` rows: directions for given norms, turned at random, with these norms."""
    groups = -(-count // columns)
    norms = normal(generator, groups, columns, columns).norm(dim=-1)
    rows = norms.unsqueeze(-1) * (directions(norms) @ rotations(groups, columns, generator))
    return rows.reshape(-1, columns)[:count]


KINDS = {"iid": _independent, "orthogonal": _orthogonal, "simplex": _simplex, "simplex+": _repelling}
FEWEST = 3  # columns of a simplex; with two, its corners are opposite to each other, and Fourier features come twice


def check_kind(kind: str, owner: str) -> None:
    """Raises: InputError for an unknown kind."""
    if kind not in KINDS:
        raise InputError(f"{owner} needs kind, one of {', '.join(map(repr, KINDS))}, got {kind!r}.")


def coupled(kind: str, count: int, columns: int, generator: torch.Generator) -> Tensor:
    """Rows [count, columns], each standard normal: independent ("iid"); in blocks of `columns` rows at right angles
    ("orthogonal"), at the corners of a simplex ("simplex"), or moved from these so that their sum is short ("simplex+").

    With fewer than three columns a simplex is degenerate, and rows are orthogonal instead.
    Cost: O(count columns^2). Source: Yu et al. (2016), "Orthogonal random features"; Reid et al. (2023).

    >>> rows = coupled("orthogonal", 3, 3, torch.Generator().manual_seed(0))
    >>> bool((rows @ rows.mT).triu(1).abs().max() < 1e-12)
    True
    """
    return KINDS["orthogonal" if columns < FEWEST and kind.startswith("simplex") else kind](count, columns, generator)
