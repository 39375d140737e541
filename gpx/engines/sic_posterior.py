"""The posterior of `SIC`, by the algebra of `sic_solution`. Theory: docs/theory/sic.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpx.engines.columns import columns, explained
from gpx.engines.low_rank import low_rank, root
from gpx.engines.sic_solution import Factor, LogPartition, Solution, numbers, tensor
from gpx.errors import StructureError
from gpx.kernels.dense import diagonal
from gpx.linalg import sparse_factor
from gpx.linalg.vecchia import NotPositiveDefinite
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import SiteMarginals, Sites
from gpx.structure.draws import Draws
from gpx.structure.feature_map import feature_map

if TYPE_CHECKING:
    from gpx.engines.sic import SIC, SICPlan

BLIND = 1e15  # noise of a point without a target, relative to the largest of others
STEP = 1e-4  # of differences along a direction of the sites, relative to posterior scales
NUGGETS = (0.0, 1e-6, 1e-5, 1e-4)  # of the prior variance: smooth kernels with close points have no factor without
FLOOR = 1e-14  # of the prior variance: below, the variance of a new value given its neighbours is rounding
WIDER = 2  # new values have so many times the neighbours
PATH_FEATURES = 2048
CHUNK = 1 << 24  # entries


class _Scores(torch.autograd.Function):
    """``U^T z`` [n, c] and the diagonal of U; nothing of the size of U is made but its gradient."""

    @staticmethod
    def forward(ctx: Any, near: np.ndarray, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        ctx.near = near
        ctx.save_for_backward(u, z)
        parts = [sparse_factor.transposed_times(near, numbers(u), column) for column in numbers(z.T)]
        return tensor(np.stack(parts, 1), z), u[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, in_diagonal: Tensor) -> Any:
        u, z = ctx.saved_tensors
        columns, pushes = numbers(z.T), numbers(grad.T)
        in_u = np.zeros(u.shape)
        in_u[:, -1] = numbers(in_diagonal)
        for column, push in zip(columns, pushes, strict=True):
            sparse_factor.add_outer(ctx.near, column, push, in_u)
        in_z = np.stack([sparse_factor.times(ctx.near, numbers(u), push) for push in pushes], 1)
        return None, tensor(in_u, u), tensor(in_z, z)


@dataclass(frozen=True, eq=False)
class SICPosterior(Posterior):
    """known: by kernel, the prior's factor where it is at hand."""

    engine: SIC
    prior: Prior
    plan: SICPlan
    sites: Sites
    known: dict[int, Factor] = field(default_factory=dict)

    @cached_property
    def groups(self) -> list[tuple[int, list[int]]]:
        """Kernel and columns, of columns that share the kernel and precisions."""
        return self.sites.groups(len(self.prior.kernels))

    def _prior(self, latent: int, nugget: float, known: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """Columns [n, m + 1] of the factor of the rest, the low-rank part [n, k]; differentiable where gradients are enabled."""
        pattern, kernel = self.plan.patterns[latent], self.prior.kernels[latent]
        phi = low_rank(kernel, pattern.inducing, pattern.x)
        return columns(kernel, pattern.x, pattern.near, _spare(kernel, pattern.x, nugget), phi, known=known), phi

    @cached_property
    def solved(self) -> list[Solution]:
        """Of every group; numbers."""
        with torch.no_grad():
            found = {latent: self._solved(latent) for latent, _ in self.groups}
        return [found[latent].pop(0) for latent, _ in self.groups]

    def _solved(self, latent: int) -> list[Solution]:
        """Of the groups of a kernel, with the first nugget for which their posteriors have an incomplete factor."""
        known, found, failure = self.known.get(latent), [], None
        for nugget in NUGGETS if known is None else NUGGETS[NUGGETS.index(known.nugget) :]:
            try:
                same = known is not None and known.nugget == nugget
                prior = known if same else Factor(*map(numbers, self._prior(latent, nugget)), nugget)
            except NotPositiveDefinite as error:
                failure = error
                continue
            self.known[latent] = prior
            found = [self._solution(latent, members, prior) for kernel, members in self.groups if kernel == latent]
            if not any(solution.incomplete.shift for solution in found):
                return found
        if not found:
            assert failure is not None
            raise explained(failure, self.plan.patterns[latent].x, self.plan.patterns[latent].near) from failure
        return found

    def _sites(self, latent: int, members: list[int]) -> tuple[Tensor, Tensor]:
        """nu and tau [n, c] of every point: sites of equal inputs add up."""
        slots, size = self.plan.patterns[latent].slots, len(self.plan.patterns[latent].x)
        present = self.sites.present
        parts = (torch.where(present, part, 0.0)[:, members] for part in (self.sites.nu, self.sites.tau))
        nu, tau = (part.new_zeros(size, len(members)).index_add(0, slots, part) for part in parts)
        return nu, tau

    def _solution(self, latent: int, members: list[int], prior: Factor) -> Solution:
        pattern, (nu, tau) = self.plan.patterns[latent], self._sites(latent, members)
        return Solution(pattern, prior, numbers(tau[:, 0]), numbers(nu), *self.engine.precisely(len(pattern.x)))

    @property
    def note(self) -> str:
        shift = max((s.incomplete.shift for s in self.solved), default=0.0)
        if not shift:
            return ""
        return (
            f"the incomplete factor of the posterior precision broke down, and its diagonal was raised by a share of {shift:.0e}:"
            " the bound is lower for it; a less smooth kernel, more neighbours or another engine would help"
        )

    @property
    def log_partition(self) -> Tensor:
        total = self.sites.nu.new_zeros(())
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            if bool(self.sites.present[:, members].any()):
                prior = self._prior(latent, solution.prior.nugget, solution.u)
                total = total + LogPartition.apply(solution, *prior, *self._sites(latent, members))
        return total

    @property
    def rough_log_partition(self) -> Tensor:
        observed = [
            s for (_, members), s in zip(self.groups, self.solved, strict=True) if self.sites.present[:, members].any()
        ]
        return self.sites.nu.new_tensor([s.rough_log_partition() for s in observed]).sum()

    @property
    def log_density(self) -> Tensor:
        """By "sites", a lower bound of that of the prior ``(U U^T)^-1``; by "response", that of the targets, each given its
        neighbours.
        """
        if self.engine.method == "response":
            return torch.stack([self._response(*group) for group in self.groups]).sum()
        return self.log_partition + self.sites.log_heights

    @property
    def log_density_limit(self) -> Tensor:
        """Not known."""
        return self.sites.nu.new_tensor(math.nan)

    def _response(self, latent: int, members: list[int]) -> Tensor:
        """``sum log N(z; 0, K + 1 / tau)`` of the pseudo-targets z of some columns, each point given its neighbours; the targets
        of equal inputs are first replaced by their weighted mean.
        """
        pattern, (nu, tau) = self.plan.patterns[latent], self._sites(latent, members)
        seen = tau[:, 0] > 0
        safe = torch.where(seen, tau[:, 0], 1.0)
        targets = torch.where(seen[:, None], nu / safe[:, None], 0.0)
        # A point without a target is one that was measured with infinite noise.
        noise = torch.where(seen, 1 / safe, BLIND * (1 / safe).max())
        phi = low_rank(self.prior.kernels[latent], pattern.inducing, pattern.x)
        try:
            u = columns(self.prior.kernels[latent], pattern.x, pattern.near, noise, phi)
        except NotPositiveDefinite as error:
            raise explained(error, pattern.x, pattern.near) from error
        scores, last = _Scores.apply(pattern.near, u, torch.cat([targets, phi], 1))
        scores, images = scores[seen].split([len(members), phi.shape[1]], 1)
        root = torch.linalg.cholesky(torch.eye(phi.shape[1]).to(phi) + images.mT @ images)
        common = torch.linalg.solve_triangular(root, images.mT @ scores, upper=False)
        logs = (last.log() - 0.5 * math.log(2 * math.pi))[seen].sum() - root.diagonal().log().sum()
        density = len(members) * logs - 0.5 * (scores.square().sum() - common.square().sum())
        heights = self.sites.columns(members).log_heights
        merged = Sites(nu, tau).log_heights
        return density + heights - merged

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        mean = torch.zeros_like(self.sites.nu.detach())
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            mean[:, members] = tensor(solution.mean, mean)[self.plan.patterns[latent].slots]
        return SiteMarginals(mean, self._variances)

    def _variances(self) -> Tensor:
        result = torch.zeros_like(self.sites.nu.detach())
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            result[:, members] = tensor(solution.variance, result)[self.plan.patterns[latent].slots, None]
        return result

    def with_sites(self, sites: Sites) -> SICPosterior:
        return replace(self, sites=sites)

    @torch.no_grad()
    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        """The means move by the covariance times ``dnu - m dtau``; the variances by differences."""
        dm, dv = torch.zeros_like(self.sites.nu), torch.zeros_like(self.sites.nu)
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            slots, size = self.plan.patterns[latent].slots, len(solution.tau)
            push = direction.nu[:, members] - direction.tau[:, members] * self.site_marginals.mean[:, members]
            push = push.new_zeros(size, len(members)).index_add(0, slots, push)
            dm[:, members] = tensor(solution.times_covariance(numbers(push)), dm)[slots]
        if bool(direction.tau.any()):
            step = self._step(direction)
            ends = (step, 0.0 if any(s.tolerance for s in self.solved) else -step)
            up, down = (
                self._moved(direction, h).site_marginals.variance if h else self.site_marginals.variance for h in ends
            )
            dv = (up - down) / (ends[0] - ends[1])
        return dm, dv

    def _moved(self, direction: Sites, step: float) -> SICPosterior:
        sites = self.sites
        return self.with_sites(Sites(sites.nu + step * direction.nu, sites.tau + step * direction.tau))

    def _step(self, direction: Sites) -> float:
        """How far to go for differences: a small part of the posterior's own scales."""
        variance = self.site_marginals.variance.clamp_min(torch.finfo(self.sites.nu.dtype).tiny)
        largest = torch.maximum((direction.tau * variance).abs(), (direction.nu * variance.sqrt()).abs()).max()
        return STEP / max(float(largest), torch.finfo(largest.dtype).tiny)

    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        """By differences of the log partition."""
        step = self._step(direction)
        up, down = (self._moved(direction, h).log_partition for h in (step, -step))
        slope = (up - down) / (2 * step)
        return slope + share * self.log_partition if share else slope

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = x.new_zeros(len(x), self.sites.nu.shape[1]), x.new_zeros(len(x), self.sites.nu.shape[1])
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            order = solution.pattern.along(x)  # points that are near each other share their ancestors
            link = self._link(latent, x[order])
            level, common = link.phi @ solution.level, (link.phi - link.mean(solution.moved)) @ solution.root
            mean[order[:, None], members] = tensor(link.mean(solution.rest) + level, x)
            mixed = sparse_factor.norms(solution.pattern.near, solution.v, link.near, link.weights, solution.tolerance)
            variance[order[:, None], members] = tensor(mixed + link.spread + np.square(common).sum(1), x)[:, None]
        return mean, variance

    @torch.no_grad()
    def _link(self, latent: int, x: Tensor) -> _Link:
        """New values given those of the data."""
        pattern = self.plan.patterns[latent]
        near = pattern.neighbours(x, WIDER * self.engine.neighbours)
        return self._linked(latent, torch.cat([pattern.x, x]), near)

    def _linked(self, latent: int, x: Tensor, near: np.ndarray) -> _Link:
        """The last rows of x, as many as near has, given their neighbours."""
        kernel, pattern, known = self.prior.kernels[latent], self.plan.patterns[latent], self.known[latent]
        old = len(pattern.x)
        spare = _spare(kernel, x, known.nugget)
        spare[old:] = 0.0
        floor = FLOOR * float(diagonal(kernel, x[:1]).mean()) if len(x) else FLOOR
        phi = torch.cat([tensor(known.phi, x), low_rank(kernel, pattern.inducing, x[old:])])
        try:
            u = numbers(columns(kernel, x, near, spare, phi, floor=floor))
        except NotPositiveDefinite as error:
            raise explained(error, x, near) from error
        return _Link(near, -u[:, :-1] / u[:, -1:], 1 / u[:, -1] ** 2, numbers(phi[len(x) - len(near) :]))

    @torch.no_grad()
    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each new value given its neighbours among the data and the new values before it. Cost: O(N N* m), memory O(N N*)."""
        mean = x.new_zeros(len(x), self.sites.nu.shape[1])
        covariance = x.new_zeros(self.sites.nu.shape[1], len(x), len(x))
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            old, whole = len(solution.pattern.x), solution.pattern.extended(x, WIDER * self.engine.neighbours)
            link = self._linked(latent, whole.x, whole.near[old:])
            slots = whole.slots[len(whole.slots) - len(x) :].cpu().numpy()
            shares, noise = link.shares(old, slots)
            halves = [sparse_factor.solve(solution.pattern.near, solution.v, row) for row in shares]
            half, phi = np.stack(halves) if halves else shares, np.concatenate([solution.prior.phi, link.phi])[slots]
            common = (phi - shares @ solution.moved) @ solution.root
            mean[:, members] = tensor(shares @ solution.rest + phi @ solution.level, x)
            covariance[members] = tensor(half @ half.T + noise @ noise.T + common @ common.T, x)
        return mean, covariance

    @torch.no_grad()
    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """A prior path of 2,048 random features (exact for kernels of finite dimension), corrected near the data to a draw of the
        values there: each new value by its misfit at its neighbours, with the weights that predict it from them.
        Source: Wilson et al. (2021), "Pathwise conditioning of Gaussian processes", eq. 13.
        """
        paths: dict[int, Callable[[Tensor], Tensor]] = {}
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            for index, column in enumerate(members):
                paths[column] = self._path(latent, solution, index, n, generator)
        return lambda x: torch.stack([paths[c](x) for c in range(len(paths))], -1)

    def _path(
        self, latent: int, solution: Solution, index: int, n: int, generator: torch.Generator
    ) -> Callable[[Tensor], Tensor]:  # fmt: skip
        pattern, kernel = solution.pattern, self.prior.kernels[latent]
        options: Any = {"generator": generator, "dtype": pattern.x.dtype, "device": pattern.x.device}
        features = feature_map(kernel, PATH_FEATURES, pattern.x.shape[1], Draws(generator))
        weights, noise = torch.randn(features.size, n, **options), torch.randn(n, len(pattern.x), **options)
        draws = [sparse_factor.transposed_solve(pattern.near, solution.v, z) for z in numbers(noise)]
        push = solution.root @ numbers(torch.randn(len(solution.root), n, **options))
        rest = np.array(draws).reshape(n, -1).T + solution.rest[:, [index]] - solution.moved @ push
        # What the low-rank part of a prior path is, and what it is to be: the rest of the path is corrected near the data.
        was = torch.linalg.solve_triangular(
            root(kernel, pattern.inducing), features(pattern.inducing) @ weights, upper=False
        )
        shall = tensor(solution.level[:, [index]] + push, pattern.x)
        rows = max(1, CHUNK // features.size)

        def prior(x: Tensor) -> Tensor:
            return features(x) @ weights - low_rank(kernel, pattern.inducing, x) @ was

        values = tensor(rest, pattern.x)
        misfit = values - torch.cat([prior(part) for part in pattern.x.split(rows)] or [values])

        def path(x: Tensor) -> Tensor:
            if x.requires_grad:
                raise StructureError(
                    "Paths of engines.SIC() have no derivatives: neighbours change from point to point."
                )
            links = ((part, self._link(latent, part)) for part in x.split(rows))
            parts = [prior(part) + tensor(link.phi, part) @ shall + link.mean(misfit) for part, link in links]
            return torch.cat([*parts, x.new_zeros(0, n)]).mT

        return path

    def update(self, x: Tensor, sites: Sites) -> SICPosterior:
        """New inputs come last in the order; everything that depends on the sites is computed anew."""
        plan, count = self.plan, self.engine.neighbours
        patterns = tuple(pattern.extended(x, count) for pattern in plan.patterns)
        moved = replace(plan, x=torch.cat([plan.x, x]), patterns=patterns)
        return replace(self, plan=moved, sites=self.sites.join(sites), known={})

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """From the marginals with one site taken out; differentiable by `slope`."""
        marginals = self.site_marginals
        params = [p for kernel in self.prior.kernels for p in kernel.parameters() if p.requires_grad]
        mean, variance = _Marginals.apply(self, marginals.mean, marginals.variance, *params)
        return self.sites.leave_one_out(mean, variance, marginals.extra)


class _Marginals(torch.autograd.Function):
    """Means and variances as they are, with the gradient in the hyperparameters of every function of them."""

    @staticmethod
    def forward(ctx: Any, posterior: SICPosterior, mean: Tensor, variance: Tensor, *params: Tensor) -> Any:
        ctx.posterior, ctx.params = posterior, params
        return mean.clone(), variance.clone()

    @staticmethod
    def backward(ctx: Any, in_mean: Tensor, in_variance: Tensor) -> Any:
        posterior = ctx.posterior
        along = Sites(in_mean - 2 * posterior.site_marginals.mean * -in_variance, -2 * in_variance)
        with torch.enable_grad():
            slope = posterior.slope(along)
        return None, None, None, *torch.autograd.grad(slope, ctx.params, allow_unused=True)


@dataclass(frozen=True, eq=False)
class _Link:
    """New values as ``phi . w + weights . r(near) + N(0, spread)``: near [j, m], -1 for none, where the weight is 0; spread [j];
    phi [j, k].
    """

    near: np.ndarray
    weights: np.ndarray
    spread: np.ndarray
    phi: np.ndarray

    def mean(self, values: Any) -> Any:
        """``sum weights . values(near)`` [j, c] for values [n, c] of an array or a tensor."""
        if isinstance(values, Tensor):
            return tensor(self.mean(numbers(values)), values)
        return (
            np.einsum("km,kmc->kc", self.weights, values[self.near])
            if len(values)
            else np.zeros((len(self.near), values.shape[1]))
        )

    def shares(self, old: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values of slots as combinations of the first `old` values and of independent standard normals."""
        count = len(self.near)
        of_old, of_noise = np.zeros((count, old)), np.zeros((count, count))
        for t, (rows, weights) in enumerate(zip(self.near, self.weights, strict=True)):
            first = rows < old
            of_old[t, rows[first & (rows >= 0)]] = weights[first & (rows >= 0)]
            later, by = rows[~first] - old, weights[~first]
            of_old[t] += by @ of_old[later]
            of_noise[t] = by @ of_noise[later]
            of_noise[t, t] = math.sqrt(self.spread[t])
        shares, noise = np.zeros((len(slots), old)), np.zeros((len(slots), count))
        known = slots < old
        shares[known, slots[known]] = 1.0
        shares[~known], noise[~known] = of_old[slots[~known] - old], of_noise[slots[~known] - old]
        return shares, noise


def _spare(kernel: Any, x: Tensor, nugget: float) -> Tensor:
    """What a nugget adds to the variances [n]."""
    if not nugget:
        return x.new_zeros(len(x))
    return x.new_full((len(x),), nugget * float(diagonal(kernel, x).detach().mean()))
