"""The model of `linalg.chain` in plain torch: a two-level scan over stretches of time, on any device and with any derivative.

Stretches of about ``sqrt(n) / 5`` times are visited side by side, twice: from an unknown state, which makes an element of an
associative product of each of them; then, the products of their predecessors known, from the state before them. Theory:
docs/theory/state_space.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gpx.linalg.layout import Layout, tables
from gpx.linalg.steps import LONGEST
from gpx.linalg.stretches import ProcessNoise, Stretches, noise_draws, transition


class Element(NamedTuple):
    """``N(z; A z_0 + b, C) exp(eta . z_0 - z_0^T J z_0 / 2)``: the state z after a stretch, given its sites and the state z_0
    before it, times the likelihood of these.

    ahead [..., S, S + 1]: A and b; C [..., S, S]; back [..., S, S + 1]: -J and eta.
    """

    ahead: Tensor
    C: Tensor
    back: Tensor

    def then(self, later: Element) -> Element:
        """The element of two stretches. C and J may be singular: only by ``1 + C J`` is divided."""
        S = self.C.shape[-1]
        A, J = later.ahead[..., :S], -later.back[..., :S]
        # An offset is the last column of ahead or back.
        offset, tilt = (pad(v[..., S:], (S, 0)) for v in (later.ahead, later.back))
        start = torch.cat([self.ahead + self.C @ tilt, self.C], -1)
        middle = torch.linalg.solve(torch.eye(S).to(A) + self.C @ J, start)
        ahead, C = middle[..., : S + 1], A @ middle[..., S + 1 :] @ A.mT + later.C
        back = self.back + self.ahead[..., :S].mT @ (tilt - J @ ahead)
        return Element(A @ ahead + offset, 0.5 * (C + C.mT), back)


def prefixes(elements: Element) -> Element:
    """The products of the first 1, ..., K elements, in ``log2 K`` rounds. Source: Hillis & Steele (1986)."""
    step, count = 1, len(elements.C)
    while step < count:
        joined = Element(*(v[:-step] for v in elements)).then(Element(*(v[step:] for v in elements)))
        elements = Element(*(torch.cat([v[:step], w]) for v, w in zip(elements, joined, strict=True)))
        step *= 2
    return elements


@dataclass(frozen=True, eq=False)
class Marginals:
    """Moments of f at the times [n], and ``share = 1 - tau variance`` without cancellation."""

    mean: Tensor
    variance: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False)
class Series:
    """``f(t) = sum_j factors_j(t) rows . z_j(t)`` with sites ``exp(nu f - tau f^2 / 2)`` at n ordered times.

    layout: of the state; gaps [n]: to the time before, 0 for the first, infinite where an independent series starts; rates [B];
    rows: weights of observed coordinates, block by block; factors [n, J], or [1, J] where they are constant; nu, tau [n].
    """

    layout: Layout
    gaps: Tensor
    rates: Tensor
    rows: Tensor
    factors: Tensor
    nu: Tensor
    tau: Tensor


class Scan(Series):
    """A series by an associative product of stretches of time, in torch alone.

    Cost: O(n S^2 (p + 1)) in about ``2 sqrt(n) / 5`` steps; memory, where gradients are taken, some 10 S^2 numbers per time.
    Source: Sarkka & Garcia-Fernandez (2021), "Temporal parallelization of Bayesian smoothers".
    """

    @property
    def _shape(self) -> tuple[int, int]:
        """L and K. A product of elements costs as much as S steps: stretches are not shorter than that."""
        n = max(1, len(self.gaps))
        length = min(n, max(self.layout.size, math.isqrt(n) // 5))
        return length, -(-n // length)

    def _side_by_side(self, values: Tensor, filling: float = 0.0) -> Tensor:
        """[n, ...] -> [L, ..., K]. What is filled up has no site and is at the last time."""
        length, count = self._shape
        full = torch.cat([values, values.new_full((length * count - len(values), *values.shape[1:]), filling)])
        return full.unflatten(0, (count, length)).movedim(0, -1).contiguous()

    def _in_order(self, values: list[Tensor]) -> Tensor:
        """L times [K] -> [n]."""
        return torch.stack(values, 1).flatten()[: len(self.gaps)]

    def _distances(self) -> list[Tensor]:
        """Of every block the gaps [L, K] in units of 1 / rate."""
        apart = self.gaps.isinf()
        near = torch.where(apart, 0.0, self.gaps)
        far = [torch.where(apart, LONGEST, near * rate).clamp_max(LONGEST) for rate in self.rates]
        return [self._side_by_side(x) for x in far]

    def _stretches(self) -> Stretches:
        known, layout, S = tables(self.layout), self.layout, self.layout.size
        transitions, noise, stop = [], torch.zeros(()).to(self.tau), 0
        for b, x in enumerate(self._distances()):
            d, copies = known.sizes[b], layout.copies[b]
            N, W = known.N[b, :d, :d, :d], known.W[b, :d, :d, : 2 * d - 1]
            transitions.append(transition(x, N))
            Q = torch.einsum("ab,lijk->laibjk", torch.eye(copies).to(x), ProcessNoise.apply(x, N, W, known.q[b]))
            start, stop = stop, stop + copies * d
            noise = noise + pad(Q.flatten(3, 4).flatten(1, 2), (0, 0, start, S - stop, start, S - stop))
        seen, copy_of, row_of = (
            torch.as_tensor(v, device=self.rows.device) for v in (known.seen, known.copy_of, known.row_of)
        )
        weights = self.factors[:, copy_of] * self.rows[row_of]
        h = weights.new_zeros(len(weights), S).index_copy(1, seen, weights)
        h = self._side_by_side(h) if len(h) == len(self.gaps) else h.unsqueeze(-1).expand(self._shape[0], S, 1)
        return Stretches(layout, tuple(transitions), noise, h)

    def _predicted(self, nu: Tensor, tau: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [n] of f before its site, given all earlier sites.

        unit [n]: ones. Their derivatives are ``1 - tau variance``.
        """
        stretches = self._stretches()
        sites = [self._side_by_side(v, filling) for v, filling in ((nu, 0.0), (tau, 0.0), (unit, 1.0))]
        start = self._starts(stretches, sites)
        steps = [(f[0], v) for _, _, f, v, _ in stretches.filter(start.ahead[:, -1:], start.C, *sites)]
        means, variances = (self._in_order(list(values)) for values in zip(*steps, strict=True))
        return means, variances

    def _starts(self, stretches: Stretches, sites: list[Tensor]) -> Element:
        """The state before every stretch, the entries first: the stretches as elements, then the products of their
        predecessors and the prior, which ends the dependence on what was before.
        """
        S, identity = self.layout.size, self._identity
        back = nothing = torch.zeros_like(identity)
        for step in stretches.filter(identity, nothing[:, :S], *sites):
            ahead, C, f, _, push = step
            back = back + f[:S].unsqueeze(1) * push
        first = nothing[..., :1], torch.as_tensor(self.layout.stationary).to(C).unsqueeze(-1), nothing[..., :1]
        elements = (
            torch.cat([v, w[..., :-1]], -1).movedim(-1, 0) for v, w in zip(first, (ahead, C, back), strict=True)
        )
        return Element(*(v.movedim(0, -1).contiguous() for v in prefixes(Element(*elements))))

    @property
    def _identity(self) -> Tensor:
        """A = 1 and b = 0 [S, S + 1, K]."""
        return pad(torch.eye(self.layout.size).to(self.tau), (0, 1)).unsqueeze(-1).repeat(1, 1, self._shape[1])

    def log_partition(self) -> Tensor:
        """``log int p(f) prod_n t_n(f_n) df``; differentiable in all tensors."""
        sites = self.nu, self.tau, torch.ones_like(self.tau)
        quadratic, logarithm = _parts(*self._predicted(*sites), *sites)
        return quadratic - 0.5 * logarithm

    def log_density(self) -> Tensor:
        """``log N(nu / tau; 0, K + 1 / tau)`` over the sites with tau > 0, and no function of the others."""
        seen = self.tau > 0
        nu, tau = (torch.where(seen, v, v.detach()) for v in (self.nu, self.tau))
        f, v = self._predicted(nu, tau, torch.ones_like(tau))
        precision = torch.where(seen, tau, 1.0)
        spread, error = v + 1 / precision, nu / precision - f
        terms = -0.5 * ((2 * math.pi * spread).log() + error.square() / spread)
        return torch.where(seen, terms, 0.0).sum()

    @torch.enable_grad()
    def _marginals(self, graph: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of the log partition, whose determinant does not depend on nu: no cancellation with the mean."""
        leaves = [v + 0 if v.requires_grad else v.clone().requires_grad_() for v in (self.nu, self.tau)]
        leaves.append(torch.ones_like(self.tau).requires_grad_())
        quadratic, logarithm = _parts(*self._predicted(*leaves), *leaves)
        (mean,) = torch.autograd.grad(quadratic, leaves[:1], create_graph=graph, retain_graph=True)
        variance, share = torch.autograd.grad(logarithm, leaves[1:], create_graph=graph)
        return mean, variance, share

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance [n] of f, differentiable where gradients are enabled."""
        return self._marginals(torch.is_grad_enabled())[:2]

    @cached_property
    def smoothed(self) -> Marginals:
        """Numbers."""
        return Marginals(*self._numbers._marginals(False))

    @property
    def _numbers(self) -> Scan:
        fields = ("gaps", "rates", "rows", "factors", "nu", "tau")
        return replace(self, **{name: getattr(self, name).detach() for name in fields})

    @cached_property
    @torch.enable_grad()
    def _tangent(self) -> tuple[Tensor, ...]:
        """nu, tau, and mean and variance as their functions."""
        numbers = self._numbers
        nu, tau = numbers.nu.requires_grad_(), numbers.tau.requires_grad_()
        return nu, tau, *numbers.moments()

    @torch.enable_grad()
    def response(self, nu: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """The changes of mean and variance along a direction of the sites: numbers. The Hessians are symmetric."""
        *sites, mean, variance = self._tangent
        slopes = (nu.detach() * mean - 0.5 * tau.detach() * mean.square()).sum(), (tau.detach() * variance).sum()
        along_nu, along_tau = (
            torch.autograd.grad(slope, site, retain_graph=True)[0] for slope, site in zip(slopes, sites, strict=True)
        )
        return along_nu, along_tau

    @torch.no_grad()
    def path(self, random: np.random.Generator) -> Tensor:
        """A draw [n] of f from the prior."""
        anew = replace(self, gaps=torch.cat([self.gaps.new_full((1,), math.inf), self.gaps[1:]])[: len(self.gaps)])
        stretches, S, identity = anew._stretches(), self.layout.size, self._identity
        normal = torch.as_tensor(random.standard_normal((len(self.gaps), S))).to(self.gaps)
        kicks = noise_draws(self.layout, anew._distances(), stretches.noise, self._side_by_side(normal))

        def go(ahead: Tensor) -> Iterator[Tensor]:
            for transitions, _, _, kick in stretches.steps(kicks):
                ahead = stretches.advance(transitions, ahead) + pad(kick.unsqueeze(1), (0, 0, ahead.shape[1] - 1, 0))
                yield ahead

        *_, last = go(identity)
        # Without sites; before the first stretch is nothing, since its gap is infinite.
        nothing = torch.zeros_like(identity)
        ahead = torch.cat([nothing[..., :1], last[..., :-1]], -1)
        still = Element(*(v.movedim(-1, 0) for v in (ahead, nothing[:, :S], nothing)))
        start = prefixes(still).ahead[..., -1:].movedim(0, -1)
        f = [(h * z[:, 0]).sum(0) for h, z in zip(stretches.h, go(start), strict=True)]
        return self._in_order(f)


def _parts(f: Tensor, v: Tensor, nu: Tensor, tau: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """The log partition as ``quadratic - logarithm / 2``, the second of which is ``log |1 + K T|``."""
    spread = unit + tau * v
    quadratic = (nu * f + 0.5 * nu.square() * v - 0.5 * tau * f.square()) / spread
    return quadratic.sum(), spread.log().sum()
