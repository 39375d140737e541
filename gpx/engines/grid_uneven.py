"""Gaussian algebra on a grid with holes, or with precisions that differ from cell to cell. Theory: docs/theory/kronecker.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gpx.engines.grid_solution import Basis, Solution
from gpx.linalg import kron
from gpx.linalg.cholesky import Cholesky, factorise
from gpx.linalg.lanczos import Solves, conjugate_gradients

MODES = 1500  # that C is factorised for
EXACT, ROUGH = 1e-8, 1e-3  # relative residuals of solves for means, and for what is averaged
STEPS = 1000
CHUNK = 1 << 24  # entries


@dataclass(frozen=True, eq=False)
class Uneven(Solution):
    """Missing cells, or precisions that differ: C is factorised where at most `MODES` modes matter; else solved with by conjugate
    gradients, preconditioned with its diagonal, which is all of it on a complete grid.

    probes: random vectors for the log determinant, by a fixed seed.
    """

    basis: Basis
    nu: Tensor
    tau: Tensor
    probes: int

    @cached_property
    def sizes(self) -> list[int]:
        """How many modes of each axis are kept."""
        return self.basis.kept(float(self.tau.max()))

    @cached_property
    def vectors(self) -> list[Tensor]:
        """Q of the modes that are kept."""
        return [q[:, :r] for q, r in zip(self.basis.vectors, self.sizes, strict=True)]

    @cached_property
    def values(self) -> list[Tensor]:
        """Eigenvalues of the modes that are kept."""
        return [v[:r] for v, r in zip(self.basis.values, self.sizes, strict=True)]

    @cached_property
    def root(self) -> Tensor:
        """``Lambda^1/2``."""
        return kron.outer(self.values).sqrt()

    @cached_property
    def phi(self) -> list[Tensor]:
        """The factors of Phi."""
        return [q * v.sqrt() for q, v in zip(self.vectors, self.values, strict=True)]

    @cached_property
    def seen(self) -> Tensor:
        """The diagonal of ``Q^T T Q``."""
        return kron.times([q.square().mT for q in self.vectors], self.tau)

    @cached_property
    def diagonal(self) -> Tensor:
        """Of C."""
        return 1 + self.root.square() * self.seen

    @property
    def exact(self) -> bool:
        return math.prod(self.sizes) <= MODES

    @property
    def width(self) -> int:
        return min(MODES, math.prod(self.sizes))

    @cached_property
    def _factor(self) -> Cholesky:
        """Of C."""
        return self._block(self.phi)

    @cached_property
    def inverse(self) -> Tensor:
        """C^-1 [r, r], where it is factorised."""
        return _symmetric(self._factor.inverse())

    def _block(self, phi: Sequence[Tensor]) -> Cholesky:
        """The factor of C for some modes."""

        def build() -> Tensor:
            matrix = kron.weighted_gram(phi, self.tau)
            matrix.diagonal().add_(1)
            return matrix

        return factorise(build)

    def _times(self, flat: Tensor) -> Tensor:
        """C times vectors [r, k]."""
        w = flat.reshape(*self.sizes, -1)
        cells = kron.times(self.phi, w).mul_(self.tau.unsqueeze(-1))
        return (w + kron.times(kron.transposed(self.phi), cells)).reshape(flat.shape)

    def _solves(self, b: Tensor, tolerance: float) -> Solves:
        flat = b.reshape(-1, b.shape[-1])
        reachable = max(tolerance, 10 * torch.finfo(b.dtype).eps)
        diagonal, accuracy = self.diagonal.reshape(-1, 1), b.new_full((b.shape[-1],), reachable)
        return conjugate_gradients(self._times, lambda r: r / diagonal, flat, accuracy, STEPS)

    def solve(self, b: Tensor, tolerance: float = EXACT) -> Tensor:
        """``C^-1 b`` for b [r_1, ..., r_D, k]."""
        flat = b.reshape(-1, b.shape[-1])
        return (self.inverse @ flat if self.exact else self._solves(b, tolerance).solution).reshape(b.shape)

    def _pull(self, values: Tensor) -> Tensor:
        return kron.times(kron.transposed(self.phi), values)

    @cached_property
    def modes(self) -> Tensor:
        """w [r_1, ..., r_D, c]: the mean is Phi w."""
        return self.solve(self._pull(self.nu))

    @cached_property
    def mean(self) -> Tensor:
        return kron.times(self.phi, self.modes)

    @property
    def energy(self) -> Tensor:
        return self.modes.square().sum()

    @cached_property
    def alpha(self) -> Tensor:
        return self.nu - self.tau.unsqueeze(-1) * self.mean

    @property
    def spectral_alpha(self) -> Tensor:
        return kron.times(kron.transposed(self.basis.vectors), self.alpha)

    def times_covariance(self, nu: Tensor) -> Tensor:
        return kron.times(self.phi, self.solve(self._pull(nu)))

    @cached_property
    def _sampled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random ``C_0^1/2 z``, C_0 being the diagonal of C, as ``C_0^-1/2 z``; ``C^-1 C_0^1/2 z``; and what each says of the log
        determinant beyond C_0: ``z^T [log(E) - E + 1] z`` with ``E = C_0^-1/2 C C_0^-1/2``, since ``tr(E - 1)`` is zero.
        """
        generator = torch.Generator(self.nu.device).manual_seed(0)
        shape = [*self.tau.shape, self.probes]
        signs = torch.randint(0, 2, shape, generator=generator, device=self.nu.device).to(self.nu).mul_(2).sub_(1)
        z = kron.times([q.mT for q in self.vectors], signs)  # on cells, so that it moves smoothly with the modes
        root = self.diagonal.sqrt().unsqueeze(-1)
        solves = self._solves(z * root, ROUGH)
        beyond = solves.logarithm - solves.product + z.reshape(-1, self.probes).square().sum(0)
        return z / root, solves.solution.reshape(z.shape), beyond

    @cached_property
    def logdet(self) -> Tensor:
        if self.exact:
            return self._factor.logdet()
        return self.diagonal.log().sum() + self._sampled[2].mean()

    @property
    def error(self) -> float:
        return 0.0 if self.exact or self.probes < 2 else float(self._sampled[2].std()) / math.sqrt(self.probes)

    @cached_property
    def variance(self) -> Tensor:
        """Exact where C is factorised; else with C_0 but for the strongest modes."""
        return self._lowered(self.phi, kron.times)

    @cached_property
    def strongest(self) -> list[int]:
        """Modes of each axis, `MODES` at most together, above a common share of the largest."""
        low, high = 0.0, 1.0
        shares = [v / v[0].clamp_min(torch.finfo(v.dtype).tiny) for v in self.values]
        for _ in range(60):
            level = math.exp(0.5 * (math.log(low or 1e-16) + math.log(high)))
            count = math.prod(int((s >= level).sum()) for s in shares)
            low, high = (level, high) if count > MODES else (low, level)
        return [int((s >= high).sum()) for s in shares]

    @cached_property
    def _approximate(self) -> tuple[list[int], Tensor, Tensor]:
        """C^-1 as far as it is known: of how many modes of each axis C is factorised, its inverse there, and the diagonal for
        the others.
        """
        if self.exact:
            return self.sizes, self.inverse, torch.zeros_like(self.root)
        strong, rest = self.strongest, 1 / self.diagonal
        rest[tuple(slice(0, s) for s in strong)] = 0.0
        return strong, _symmetric(self._block(_first(self.phi, strong)).inverse()), rest

    def _lowered(self, features: Sequence[Tensor], apply: Any) -> Tensor:
        """``phi^T C^-1 phi`` of features [m_d, r_d], with what is known of C^-1."""
        strong, inner, rest = self._approximate
        value = self._quadratic(_first(features, strong), inner, apply)
        return value if self.exact else value + apply([f.square() for f in features], rest)

    def variance_response(self, tau: Tensor) -> Tensor:
        """The change of `variance` along a direction [n_1, ..., n_D] of tau."""
        strong, inner, rest = self._approximate
        first = _first(self.phi, strong)
        change = kron.weighted_diagonal(first, inner @ kron.weighted_gram(first, tau) @ inner)
        if not self.exact:
            squares = [p.square() for p in self.phi]
            change = change + kron.times(squares, rest.square() * kron.times(kron.transposed(squares), tau))
        return -change

    @staticmethod
    def _quadratic(features: Sequence[Tensor], inner: Tensor, apply: Any) -> Tensor:
        if apply is kron.times:
            return kron.weighted_diagonal(features, inner)
        sizes = [f.shape[1] for f in features]
        rows = features[0]
        for f in features[1:]:
            rows = (rows.unsqueeze(2) * f.unsqueeze(1)).flatten(1)
        assert rows.shape[1] == math.prod(sizes)
        return ((rows @ inner) * rows).sum(1)

    @cached_property
    def trace_variance(self) -> Tensor:
        if self.exact:
            return self.variance
        first, whole, _ = self._sampled
        change = kron.times(self.phi, whole - first) * kron.times(self.phi, first)
        return kron.times([p.square() for p in self.phi], 1 / self.diagonal) + change.mean(-1)

    def traces(self) -> list[Tensor]:
        return self._exact_traces() if self.exact else self._sampled_traces()

    def _exact_traces(self) -> list[Tensor]:
        """Of ``T - T Phi C^-1 Phi^T T``."""
        lower = torch.linalg.cholesky(self.inverse)

        def columns(part: slice) -> tuple[Tensor, Tensor]:
            x = self._push(lower[:, part])
            return x, x

        return self._contracted(self.tau, columns)

    def slope_weights(self, push: Tensor, pull: Tensor) -> list[Tensor]:
        """The gradients [n_d, n_d] of ``push^T m + pull^T v``, push [..., c] and pull [...] being constants, in the covariance
        matrices of the axes: those of ``D^T push alpha^T + D^T diag(pull) D``, ``D = I - S T``.
        """
        tau, gram = self.tau.unsqueeze(-1), kron.weighted_gram(self.phi, pull)
        inner = self.inverse @ gram

        def columns(part: slice) -> tuple[Tensor, Tensor]:
            unit = torch.eye(len(gram)).to(gram)[:, part]
            left = self._push(self.inverse[:, part])
            right = kron.times(self.phi, unit.reshape(*self.sizes, -1)) * pull.unsqueeze(-1)
            return left, 2 * right - self._push(inner[:, part])

        back = push - tau * self.times_covariance(push)
        first, alpha, result = kron.times(kron.transposed(self.basis.vectors), back), self.spectral_alpha, []
        for d, spread_out in enumerate(self._contracted(pull, columns)):
            q, spread = self.basis.vectors[d], kron.spread(self.basis.values, d).unsqueeze(-1)
            whole = spread_out + kron.gram(first * spread, alpha, d)
            result.append(0.5 * q @ (whole + whole.mT) @ q.mT)
        return result

    def _push(self, modes: Tensor) -> Tensor:
        """``T Phi`` times modes [r, k]."""
        return kron.times(self.phi, modes.reshape(*self.sizes, -1)).mul_(self.tau.unsqueeze(-1))

    def _contracted(self, diagonal: Tensor, columns: Callable[[slice], tuple[Tensor, Tensor]]) -> list[Tensor]:
        """For every axis, in its eigenvectors, what ``diag(d) - sum_k left_k right_k^T`` has for the covariance of the axis."""
        own, result = [k.diagonal() for k in self.basis.matrices], []
        for d, q in enumerate(self.basis.vectors):
            weights = kron.others(diagonal * kron.spread(own, d), d, self.dims)
            result.append(q.mT @ (weights[:, None] * q))
        step, total = max(1, CHUNK // self.tau.numel()), math.prod(self.sizes)
        for start in range(0, total, step):
            pair = columns(slice(start, min(start + step, total)))
            for d in range(self.dims):
                inside = [self.basis.vectors[e].mT if e == d else p.mT for e, p in enumerate(self.phi)]
                left, right = (kron.times(inside, part) for part in pair)
                result[d] -= kron.gram(left, right, d)
        return result

    def _sampled_traces(self) -> list[Tensor]:
        """The diagonal as if C were C_0, and the rest by the random vectors: ``Lambda^-1/2 (C_0^-1 - C^-1) Lambda^-1/2``.

        Nothing is divided by a small eigenvalue twice.
        """
        first, whole, _ = self._sampled
        cells = kron.times(self.phi, whole).mul_(self.tau.unsqueeze(-1))
        known, result = self.seen / self.diagonal, []
        push = self.root.unsqueeze(-1) * self.seen.unsqueeze(-1) * first
        for d, (n, r) in enumerate(zip(self.tau.shape, self.sizes, strict=True)):
            left = kron.times(
                [self.basis.vectors[e].mT if e == d else q.mT for e, q in enumerate(self.vectors)], cells
            ).neg_()
            left.narrow(d, 0, r).add_(push)
            spread = kron.spread(self.values, d)
            half = kron.gram(left * spread.sqrt().unsqueeze(-1), first, d) / self.probes
            half[r:] *= 2  # seen from one side only
            whole_d = half.new_zeros(n, n)
            whole_d[:, :r] = -half / self.values[d].sqrt()
            whole_d = 0.5 * (whole_d + whole_d.mT)
            whole_d.diagonal()[:r].add_(kron.others(known * spread, d, self.dims))
            result.append(whole_d)
        return result

    def reduction(self, features: Sequence[Tensor], by_rows: bool) -> Tensor:
        scaled = [f @ (q / v.sqrt()) for f, q, v in zip(features, self.vectors, self.values, strict=True)]
        apply = kron.rows if by_rows else kron.times
        prior = apply([f.square() for f in scaled], torch.ones_like(self.root))
        return prior - self._lowered(scaled, apply)

    def precise_reduction(self, features: Sequence[Tensor]) -> Tensor:
        """`reduction` row by row, by a solve for each."""
        scaled = [f @ (q / v.sqrt()) for f, q, v in zip(features, self.vectors, self.values, strict=True)]
        parts = []
        for chunk in zip(*(f.split(max(1, CHUNK // self.root.numel())) for f in scaled), strict=True):
            rows = chunk[0].mT
            for f in chunk[1:]:
                rows = rows.unsqueeze(-2) * f.mT
            x = self.solve(rows, EXACT**0.5)
            parts.append((rows * (rows - x)).flatten(0, -2).sum(0))
        return torch.cat(parts)


def _first(matrices: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Their first columns."""
    return [a[:, :r] for a, r in zip(matrices, sizes, strict=True)]


def _symmetric(lower: Tensor) -> Tensor:
    """The symmetric matrix of a lower triangle."""
    lower = lower.tril()
    return lower + lower.tril(-1).mT


class Slope(torch.autograd.Function):
    """``sum dnu m - dtau (v + m^2) / 2`` as a function of the cells' nu and dnu [..., c] and the axes' covariance matrices; the
    precisions are constants.
    """

    @staticmethod
    def forward(ctx: Any, solved: Uneven, nu: Tensor, dnu: Tensor, dtau: Tensor, *matrices: Tensor) -> Tensor:
        ctx.solved = solved
        ctx.save_for_backward(dnu, dtau)
        second = solved.variance.unsqueeze(-1) + solved.mean.square()
        return (dnu * solved.mean).sum() - 0.5 * (dtau * second).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        s, (dnu, dtau) = ctx.solved, ctx.saved_tensors
        push = dnu - dtau * s.mean
        in_nu = s.times_covariance(push) if ctx.needs_input_grad[1] else None
        wanted = any(ctx.needs_input_grad[4:])
        in_matrices = s.slope_weights(push, -0.5 * dtau.sum(-1)) if wanted else [None] * (len(ctx.needs_input_grad) - 4)
        scaled = (g if g is None else grad * g for g in (in_nu, s.mean, None, *in_matrices))
        return None, *scaled
