"""Exact inference for a series in blocks whose covariance is circulant: in the Hartley basis, scalar Kalman filters.

Theory: docs/theory/block.md. Blocks that the data cover completely go through the filters; what they cover in part, at
most one block at either end, is then conditioned on densely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from gpx.engines.base import Engine
from gpx.engines.block_chain import CHUNK, Edge, EdgeFactor, conditioned, edge_density
from gpx.errors import StructureError
from gpx.inputs import Data
from gpx.linalg.ar1 import NoiseFree, filtered, smooth, statistics
from gpx.linalg.circulant import hartley
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import SiteMarginals, Sites
from gpx.structure.block_form import BlockForm, block_form

NEGLIGIBLE = 1e-10  # nats: noise that changes the log density by less is none
LARGEST_RESPONSE = 4096  # rows up to which variances are differentiated in precisions, by N x N arrays


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """How N consecutive steps fall into blocks.

    x: [N, D]; order: [N], rows by step; start, count: number of the first complete block, and how many there are; edges:
    what is left at the beginning and end. known: the targets [N, C] by step, blocks of them in the Hartley basis [count,
    C, p], and for every kernel their statistics, with which an evaluation without noise costs O(p).
    """

    x: Tensor
    order: Tensor
    period: int
    start: int
    count: int
    edges: tuple[Edge, ...]
    known: tuple[Tensor, Tensor, tuple[tuple[Tensor, ...], ...]] | None = None

    def stale(self, prior: Prior) -> bool:
        """Never: the plan does not depend on the hyperparameters."""
        return False

    @property
    def complete(self) -> slice:
        """The rows, by step, of complete blocks."""
        first = len(self.edges[0].positions) if self.edges and self.edges[0].block < self.start else 0
        return slice(first, first + self.count * self.period)

    def in_blocks(self, values: Tensor) -> Tensor:
        """Values [N, c] by step of complete blocks, in the Hartley basis [count, c, p]."""
        rows = values[self.complete]
        return hartley(rows.reshape(self.count, self.period, values.shape[1]).mT)


@dataclass(frozen=True)
class BlockCirculant(Engine):
    """Exact inference for `kernels.BlockQuasiPeriodic` with the same Gaussian noise at all steps of a series without gaps.

    Cost: O(N log p) once and O(N) per evaluation with its gradient; without noise, and with a mean that is not learned,
    O(p); O(p^3) more where the first or last block is incomplete.
    Raises: StructureError for another kernel; for missing, repeated or skipped steps; for noise that changes from step
    to step (all likelihoods that are not Gaussian): `StateSpace` (for short periods) and `Exact` take those.

    >>> BlockCirculant()
    BlockCirculant()
    """

    def plan(self, prior: Prior, data: Data) -> BlockPlan:
        """Sort the steps and find the blocks; transform the targets if none is missing."""
        plan = _layout(prior, data.x)
        if data.y.shape[1] % len(prior.kernels) or not plan.count or not bool(data.observed.all()):
            return plan
        y = data.y[plan.order]
        z, latents = plan.in_blocks(y), len(prior.kernels)
        return replace(plan, known=(y, z, tuple(statistics(z[:, k::latents]) for k in range(latents))))

    def condition(
        self, prior: Prior, plan: BlockPlan, params: dict[str, Tensor], sites: Sites
    ) -> BlockCirculantPosterior:  # fmt: skip
        """Nothing is computed until it is asked for."""
        _require_equal_sites(sites)
        return BlockCirculantPosterior(prior, plan, sites)

    def few(self, data: Data, plan: BlockPlan, rows: int) -> None:
        """All rows are needed: some of them are a series with gaps."""
        return


def covers(prior: Prior, x: Tensor, sites: Sites | None) -> bool:
    """Whether `BlockCirculant` takes these kernels, inputs and sites."""
    try:
        _layout(prior, x)
        return sites is not None and _require_equal_sites(sites) is None
    except StructureError:
        return False


def _layout(prior: Prior, x: Tensor) -> BlockPlan:
    with torch.no_grad():
        located = [(form.period, *form.locate(x)) for form in map(block_form, prior.kernels)]
    period, block, position = located[0]
    for p, b, s in located[1:]:
        if p != period or not torch.equal(b, block) or not torch.equal(s, position):
            raise StructureError(
                "BlockCirculant needs kernels with the same period and input column; use engines.Exact()."
            )
    steps = period * block + position
    order = steps.argsort()
    _require_consecutive(steps[order])
    n, first = len(x), int(steps.min()) if len(x) else 0
    head = min(-first % period, n)
    count = (n - head) // period
    start = -(-first // period)
    pieces = (start - 1, slice(0, head)), (start + count, slice(head + count * period, n))
    edges = tuple(Edge(b, position[order[rows]], rows) for b, rows in pieces if rows.stop > rows.start)
    return BlockPlan(x, order, period, start, count, edges)


def _require_consecutive(steps: Tensor) -> None:
    gaps = steps.diff()
    if bool((wrong := gaps != 1).any()):
        at, gap = int(steps[:-1][wrong][0]), int(gaps[wrong][0])
        what = f"step {at} occurs more than once" if not gap else f"step {at} is followed by {at + gap}"
        raise StructureError(
            f"BlockCirculant needs every step of the series exactly once, but {what}; use engines.StateSpace() or"
            " engines.Exact()."
        )


def _require_equal_sites(sites: Sites) -> None:
    present, tau = sites.present, sites.tau.detach()
    if not bool(present.any()):
        return
    if not bool((tau > 0).all()):
        missing = int((tau <= 0).sum())
        raise StructureError(
            f"BlockCirculant needs a target at every step, {missing} of {tau.numel()} are missing; use engines.StateSpace()"
            " or engines.Exact(), which leave them out."
        )
    low, high = float(tau.min()), float(tau.max())
    if low != high:
        raise StructureError(
            f"BlockCirculant needs the same Gaussian noise at every step, got precisions from {low:.3g} to {high:.3g}; use"
            " engines.StateSpace() or engines.Exact()."
        )


@dataclass(frozen=True, eq=False)
class BlockCirculantPosterior(Posterior):
    """The posterior of `BlockCirculant`. Gradients in the sites hold for changes that keep their precisions equal."""

    prior: Prior
    plan: BlockPlan
    sites: Sites

    # What has gradients is not kept: every value has a graph of its own.

    def _form(self, index: int) -> BlockForm:
        return block_form(self.prior.kernels[index])

    @property
    def latents(self) -> int:
        """The number of kernels, which the columns have in turn."""
        return len(self.prior.kernels)

    @cached_property
    def observed(self) -> bool:
        """Whether there are sites; if not, the posterior is the prior."""
        return bool(self.sites.present.any())

    @property
    def noise(self) -> Tensor:
        """The one variance of all sites."""
        return 1 / self.sites.tau.mean() if self.observed else self.sites.tau.new_ones(())

    @property
    def targets(self) -> Tensor:
        """Pseudo-targets [N, C] by step."""
        return (self.sites.nu * self.noise)[self.plan.order]

    @property
    def log_density(self) -> Tensor:
        total = self.sites.nu.new_zeros(())
        if not self.observed:
            return total
        for index in range(self.latents):
            total = total + self._density(index)
        return total

    @property
    def log_partition(self) -> Tensor:
        if not self.observed:
            return self.sites.nu.new_zeros(())
        tau = self.sites.tau
        heights = 0.5 * ((2 * math.pi / tau).log() + self.sites.nu.square() / tau)
        return self.log_density + heights.sum()

    def _density(self, index: int) -> Tensor:
        """The log density of the columns of one kernel."""
        form, plan, noise, targets = self._form(index), self.plan, self.noise, self.targets
        omega, spectrum, z = form.correlation, form.spectrum, targets[:, index :: self.latents]
        if plan.count and self._is_negligible(noise, form):
            blocks, stats = self._known(index, targets)
            if spectrum.device.type == "cpu" and spectrum.dtype == torch.float64 and not z.requires_grad:
                value = NoiseFree.apply(spectrum, omega, stats, z.shape[1], plan.count)
            else:
                value, *_ = filtered(blocks, spectrum, omega, torch.zeros_like(noise), False)
            if not plan.edges:
                return value
            ends = omega * blocks[-1], omega * blocks[0], spectrum, torch.zeros_like(spectrum)
        else:
            both = bool(plan.edges) and plan.edges[0].block < plan.start
            value, *ends = filtered(plan.in_blocks(z), spectrum, omega, noise, both)
        return value + edge_density(plan.edges, plan.start, z, ends, noise)

    def _is_negligible(self, noise: Tensor, form: BlockForm) -> bool:
        if self.sites.tau.requires_grad:
            return False
        weakest = float(form.spectrum.detach().min()) / (1 + float(form.correlation.detach().abs())) ** 2
        return self.sites.nu.numel() * float(noise) < NEGLIGIBLE * weakest

    def _known(self, index: int, z: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Targets in blocks and their statistics: those of the plan, if the targets z [N, C] are the same up to rounding."""
        if self.plan.known is not None and not z.requires_grad:
            y, blocks, stats = self.plan.known
            if y.shape == z.shape and float((y - z).abs().max()) <= 4 * torch.finfo(z.dtype).eps * float(y.abs().max()):
                return blocks[:, index :: self.latents], stats[index]
        blocks = self.plan.in_blocks(z[:, index :: self.latents])
        return blocks, statistics(blocks)

    def _chain(self, index: int, extra: Tensor) -> tuple[Tensor, EdgeFactor]:
        """The numbers [B] of the blocks of data and `extra` ones, sorted, and their posterior."""
        plan, form, noise = self.plan, self._form(index), self.noise
        z = self.targets[:, index :: self.latents]
        edges = plan.edges if self.observed else ()
        count = plan.count if self.observed else 0
        own = torch.arange(plan.start, plan.start + count, device=extra.device)
        ends = torch.tensor([e.block for e in edges], dtype=own.dtype, device=extra.device)
        blocks = torch.cat([own, ends, extra]).unique()
        seen = (blocks >= plan.start) & (blocks < plan.start + count)
        values = z.new_zeros(len(blocks), z.shape[1], plan.period)
        if count:
            values = values.index_put((seen.nonzero().flatten(),), plan.in_blocks(z))
        smoothed = smooth(values, seen.tolist(), blocks.diff().tolist(), form.spectrum, form.correlation, noise)
        places = [int((blocks == e.block).nonzero()) for e in edges]
        return blocks, conditioned(smoothed, edges, places, z, noise)

    def _located(self, index: int, x: Tensor) -> tuple[EdgeFactor, Tensor, Tensor]:
        """The chain with the blocks of x, the place of each point in it, and its position in the block."""
        block, position = self._form(index).locate(x)
        blocks, chain = self._chain(index, block.unique())
        return chain, torch.searchsorted(blocks, block), position

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for index in range(self.latents):
            chain, place, position = self._located(index, x)
            step = max(1, CHUNK // max(1, chain.size))
            chunks = [chain.marginals(a, b) for a, b in zip(place.split(step), position.split(step), strict=True)]
            mean, variance = torch.cat([m for m, _ in chunks]), torch.cat([v for _, v in chunks])
            parts.append((mean, variance[:, None].expand_as(mean)))
        return self._interleave([m for m, _ in parts], 1), self._interleave([v for _, v in parts], 1)

    def _interleave(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """Columns of the kernels in turn."""
        return torch.stack(list(parts), dim + 1).flatten(dim, dim + 1)

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        means, covariances = [], []
        for index in range(self.latents):
            chain, place, position = self._located(index, x)
            mean, covariance = chain.marginals(place, position)[0], chain.covariance(place, position)
            means.append(mean)
            covariances.append(covariance.expand(mean.shape[1], -1, -1))
        return self._interleave(means, 1), self._interleave(covariances, 0)

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        with torch.no_grad():
            return SiteMarginals(*self.marginals(self.plan.x))

    def with_sites(self, sites: Sites) -> BlockCirculantPosterior:
        _require_equal_sites(sites)
        return replace(self, sites=sites)

    def update(self, x: Tensor, sites: Sites) -> BlockCirculantPosterior:
        """Condition on everything: O(N log p) with nothing that could be kept."""
        joined = self.sites.join(sites)
        _require_equal_sites(joined)
        return BlockCirculantPosterior(self.prior, _layout(self.prior, torch.cat([self.plan.x, x])), joined)

    @torch.no_grad()
    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        """Raises: StructureError for a change of precisions at more than 4,096 steps."""
        push = direction.nu - self.site_marginals.mean * direction.tau
        change = self._linear(push).marginals(self.plan.x)[0]
        if not bool(direction.tau.any()):
            return change, torch.zeros_like(change)
        if len(self.plan.x) > LARGEST_RESPONSE:
            raise StructureError(
                f"BlockCirculant differentiates variances at {LARGEST_RESPONSE:,} steps at most, got {len(self.plan.x):,};"
                " use objectives.Evidence(), which needs none, or engines.Exact()."
            )
        covariance = self.joint(self.plan.x)[1]
        return change, -torch.einsum("cnm,mc->nc", covariance.square(), direction.tau)

    def _linear(self, nu: Tensor) -> BlockCirculantPosterior:
        """The posterior of other values nu [N, n C] of the sites: its mean is linear in them."""
        tau = self.sites.tau[:1, :1].expand(nu.shape)
        return replace(self, sites=Sites(nu, tau))

    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        mean, variance = self.marginals(self.plan.x)
        slope = (direction.nu * mean).sum() - 0.5 * (direction.tau * (variance + mean.square())).sum()
        return slope + share * self.log_partition if share else slope

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        if not self.observed:
            return tuple(torch.full_like(self.sites.nu, math.nan) for _ in range(2))  # pyright: ignore[reportReturnType]
        parts = [self._leave_one_out(index) for index in range(self.latents)]
        back = self.plan.order.argsort()
        mean, variance = (self._interleave(p, 1)[back] for p in zip(*parts, strict=True))
        return mean, variance

    def _leave_one_out(self, index: int) -> tuple[Tensor, Tensor]:
        """Of the columns of one kernel, by step."""
        plan, z = self.plan, self.targets[:, index :: self.latents]
        around = torch.tensor([plan.start - 1, plan.start + plan.count], device=z.device)
        blocks, chain = self._chain(index, around)
        inside = slice(int((blocks < plan.start).sum()), int((blocks < plan.start + plan.count).sum()))
        alpha, precision = chain.weights(inside, plan.start, plan.complete, self.noise)
        precision = precision[:, None].expand_as(alpha)
        return z - alpha / precision, 1 / precision

    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Matheron's rule: a path of the autoregression, whose innovations have a seed for every block, plus the
        posterior mean of its misfit at the data. Exact. Cost: O(log p) per step between the data and x, and path.
        """
        seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
        columns = self.sites.nu.shape[1]

        def prior_path(x: Tensor) -> Tensor:
            return _prior_path([*map(block_form, self.prior.kernels)], self.plan.start, x, seed, n * columns)

        if not self.observed:
            return lambda x: prior_path(x).reshape(len(x), n, columns).movedim(1, 0)
        nu, x_data = self.sites.nu.detach(), self.plan.x
        noise = torch.randn(len(nu), n * columns, generator=generator, dtype=nu.dtype, device=nu.device)
        with torch.no_grad():
            tau = self.sites.tau[:1, :1]
            misfit = self._linear(nu.repeat(1, n) - tau * prior_path(x_data) - tau.sqrt() * noise)
        return lambda x: (prior_path(x) + misfit.marginals(x)[0]).reshape(len(x), n, columns).movedim(1, 0)

    @torch.no_grad()
    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Joint draws [n, N*, C] of f at x, as paths: no N* x N* array."""
        return self.paths(n, generator)(x)


def _prior_path(forms: Sequence[BlockForm], anchor: int, x: Tensor, seed: int, columns: int) -> Tensor:
    """Draws [N*, columns] of the prior at x: an autoregression that sets out from the block `anchor` in both directions."""
    result = x.new_empty(len(x), columns)
    for index, form in enumerate(forms):
        block, position = form.locate(x)
        members = slice(index, None, len(forms))
        spectrum, omega = form.spectrum.detach(), form.correlation.detach()
        size = len(range(columns)[members]), form.period

        def draw(number: int, index: int = index, size: tuple[int, int] = size) -> Tensor:
            source = torch.Generator(x.device).manual_seed((seed + 2654435761 * number + index) % (1 << 63))
            return torch.randn(*size, generator=source, dtype=x.dtype, device=x.device)

        needed = set(block.tolist())
        first = draw(anchor) * (spectrum / (1 - omega.square())).sqrt()
        values = {anchor: first}
        for way, last in ((1, max(needed, default=anchor)), (-1, min(needed, default=anchor))):
            state = first
            for number in range(anchor + way, last + way, way):
                state = omega * state + spectrum.sqrt() * draw(number)
                if number in needed:
                    values[number] = state
        for number in needed:
            rows = (block == number).nonzero().flatten()
            result[rows, members] = hartley(values[number])[:, position[rows]].mT
    return result


__all__ = ["BlockCirculant", "BlockCirculantPosterior", "BlockPlan", "covers"]
