"""Stretches of time side by side: transitions, process noise and filter steps as operations on tensors [..., K].

Theory: docs/theory/state_space.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gpx.linalg.layout import Layout


def _powers(x: Tensor, count: int) -> Tensor:
    """1, x, x^2, ... [count, ...]; unlike those of `pow`, with all derivatives at zero."""
    terms = [torch.ones_like(x)]
    for _ in range(count - 1):
        terms.append(terms[-1] * x)
    return torch.stack(terms)


def transition(x: Tensor, N: np.ndarray) -> Tensor:
    """``exp(F x)`` [L, d, d, K] at x [L, K]."""
    return torch.einsum("kij,klm->lijm", torch.as_tensor(N).to(x), _powers(x, len(N)) * torch.exp(-x))


class ProcessNoise(torch.autograd.Function):
    """Q(x) [L, d, d, K] by incomplete gamma functions; its derivative is the integrand, ``q A e_p e_p^T A^T``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, N: np.ndarray, W: np.ndarray, q: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.N, ctx.q = N, q
        z, top = 2 * x, W.shape[-1]
        powers = _powers(z, top) * torch.exp(-z)
        gammas = [math.factorial(top - 1) * torch.special.gammainc(torch.full_like(z, top), z)]
        for k in range(top - 1, 0, -1):  # sums of positive terms
            gammas.append((gammas[-1] + powers[k]) / k)
        return torch.einsum("ijk,klm->lijm", torch.as_tensor(W).to(x), torch.stack(gammas[::-1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        last = transition(ctx.saved_tensors[0], ctx.N)[:, :, -1]
        return ctx.q * (grad * last.unsqueeze(1) * last.unsqueeze(2)).sum((1, 2)), None, None, None


@dataclass(frozen=True)
class Stretches:
    """K stretches of L times side by side: the entries of a matrix before the K stretches that they are for.

    transitions: of every block [L, d, d, K]; noise [L, S, S, K]; h [L, S, K]: the weights of the state in f.
    """

    layout: Layout
    transitions: tuple[Tensor, ...]
    noise: Tensor
    h: Tensor

    def steps(self, *more: Tensor) -> Iterator[tuple[Any, ...]]:
        """Transitions, noise, h and what else there is by step. An index into them would cost all of them, going back."""
        blocks = zip(*(A.unbind() for A in self.transitions), strict=True)
        return zip(blocks, *(v.unbind() for v in (self.noise, self.h, *more)), strict=True)

    def advance(self, transitions: tuple[Tensor, ...], X: Tensor) -> Tensor:
        """``A X`` [S, w, K]."""
        parts = X.split([c * len(A) for c, A in zip(self.layout.copies, transitions, strict=True)])
        moved = [
            (A.unsqueeze(2) * part.unflatten(0, (-1, 1, len(A)))).sum(2).flatten(0, 1)
            for A, part in zip(transitions, parts, strict=True)
        ]
        return torch.cat(moved)

    def filter(self, ahead: Tensor, C: Tensor, *sites: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """From step to step: the state's distribution ``N(A z_0 + b, C)`` after the site, ahead [S, w, K] with b its last column;
        f as ahead [w, K] and its variance [K] before the site; the change of ahead per covariance with f [w, K].

        sites: nu, tau and unit [L, K].
        """
        for transitions, noise, h, nu, tau, unit in self.steps(*sites):
            ahead = self.advance(transitions, ahead)
            C = self.advance(transitions, self.advance(transitions, C).transpose(0, 1)) + noise
            g, f = (C * h).sum(1), (h.unsqueeze(1) * ahead).sum(0)
            v = (g * h).sum(0)
            inverse = 1 / (unit + tau * v)
            shrink = tau * inverse
            push = pad((nu * inverse).unsqueeze(0), (0, 0, len(f) - 1, 0)) - shrink * f
            ahead = torch.addcmul(ahead, g.unsqueeze(1), push)
            C = torch.addcmul(C, g.unsqueeze(1), -shrink * g)
            yield ahead, C, f, v, push


def noise_draws(layout: Layout, distances: list[Tensor], noise: Tensor, normal: Tensor) -> Tensor:
    """Draws [L, S, K] of the process noise from standard normal ones, by scaled eigenvectors: of any rank, to full precision."""
    kicks, stop = [], 0
    for b in layout.block_of_copy:
        start, stop = stop, stop + layout.orders[b] + 1
        away = torch.where(distances[b] > 0, distances[b], 1.0).clamp_max(1.0).unsqueeze(-1)
        scale = away ** (torch.arange(stop - start, 0, -1).to(away) - 0.5)
        Q = noise[:, start:stop, start:stop].movedim(-1, 1) / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
        values, vectors = torch.linalg.eigh(Q)
        draw = vectors @ (values.clamp_min(0).sqrt() * normal[:, start:stop].movedim(-1, 1)).unsqueeze(-1)
        kicks.append((scale * draw.squeeze(-1)).movedim(-1, 1))
    return torch.cat(kicks, 1)
