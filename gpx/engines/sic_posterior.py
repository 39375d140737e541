"""The posterior of `SIC`: prior precision ``U U^T``, sites, and the posterior precision ``V V^T``.

V is the incomplete Cholesky factor of ``P = U U^T + diag(tau)`` on the pattern of U; means solve with P itself, by conjugate
gradients. Theory: docs/theory/sic.md.
"""

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
from gpx.errors import StructureError
from gpx.kernels.dense import diagonal
from gpx.linalg import sparse_factor
from gpx.linalg.closest_factor import closest_factor
from gpx.linalg.vecchia import NotPositiveDefinite
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import SiteMarginals, Sites
from gpx.structure.draws import Draws
from gpx.structure.feature_map import feature_map

if TYPE_CHECKING:
    from gpx.engines.sic import SIC, Pattern, SICPlan

BLIND = 1e15  # noise of a point without a target, relative to the largest of others
SOLVED = 1e-9  # residual of the means, relative, in the norm of the preconditioner
STEP = 1e-4  # of differences along a direction of the sites, relative to posterior scales
NUGGETS = (0.0, 1e-6, 1e-5, 1e-4)  # of the prior variance: smooth kernels with close points have no factor without
FLOOR = 1e-14  # of the prior variance: below, the variance of a new value given its neighbours is rounding
WIDER = 2  # new values have so many times the neighbours
PATH_FEATURES = 2048
CHUNK = 1 << 24  # entries


@dataclass(frozen=True, eq=False)
class Factor:
    """Columns u [n, m + 1] of the prior's factor, and the share of the prior variance that is added to the diagonal."""

    u: np.ndarray
    nugget: float


@dataclass(frozen=True, eq=False)
class Solution:
    """Columns that share kernel and precisions; numbers, computed on first use.

    tau [n] and nu [n, c]: the sites of each point, those of equal inputs added up; tolerance: see `SIC`; closest: whether V is
    the best factor on the pattern, not the incomplete one.
    """

    pattern: Pattern
    prior: Factor
    tau: np.ndarray
    nu: np.ndarray
    tolerance: float
    closest: bool

    @property
    def u(self) -> np.ndarray:
        """[n, m + 1]."""
        return self.prior.u

    @cached_property
    def incomplete(self) -> sparse_factor.Incomplete:
        """V, and the shift that it took."""
        return sparse_factor.incomplete_factor(self.pattern.near, self.u, self.tau, self.pattern.places)

    @cached_property
    def v(self) -> np.ndarray:
        """[n, m + 1]."""
        if not self.closest:
            return self.incomplete.v
        return closest_factor(self.pattern.near, self.u, self.tau, self.incomplete.v)

    def solve(self, b: np.ndarray) -> np.ndarray:
        """``P^-1 b`` for b [n, c]."""
        near = self.pattern.near
        parts = [sparse_factor.conjugate_gradients(near, self.u, self.tau, self.v, c, SOLVED)[0] for c in b.T.copy()]
        return np.stack(parts, 1)

    @cached_property
    def mean(self) -> np.ndarray:
        """[n, c]."""
        return self.solve(self.nu)

    @cached_property
    def variance(self) -> np.ndarray:
        """[n]: ``|V^-1 e_i|^2``."""
        curve = self.pattern.curve
        result = np.empty(len(curve))
        ones = np.ones((len(curve), 1))
        result[curve] = sparse_factor.norms(
            self.pattern.near, self.v, curve[:, None].astype(np.int32), ones, self.tolerance
        )
        return result

    @cached_property
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """``|V^-1 u_i|^2`` [n] and ``(V V^T)^-1 u_i`` in its own rows [n, m + 1]."""
        return sparse_factor.images(self.pattern.near, self.v, self.u, self.pattern.curve, self.tolerance)

    def log_partition(self) -> float:
        """``E_q sum log t_n - KL(q || p)``, summed over columns: with ``P m = nu``,
        ``nu^T m / 2 - [tr(V^-1 P V^-T) - n] / 2 - sum log V_ii + sum log U_ii``.
        """
        trace = self.tau @ self.variance + self.images[0].sum() - len(self.tau)
        logs = np.log(self.u[:, -1]).sum() - np.log(self.v[:, -1]).sum()
        return float(0.5 * (self.nu * self.mean).sum() + self.nu.shape[1] * (logs - 0.5 * trace))

    def in_columns(self) -> np.ndarray:
        """The gradient [n, m + 1] of the log partition in U, V and the means being where it is largest, or nearly."""
        near, count = self.pattern.near, self.nu.shape[1]
        result = -count * self.images[1]
        result[:, -1] += count / self.u[:, -1]
        for mean in self.mean.T.copy():
            scores = sparse_factor.transposed_times(near, self.u, mean)
            result[:, :-1] -= np.where(near >= 0, mean[near], 0.0) * scores[:, None]
            result[:, -1] -= mean * scores
        return result


class _LogPartition(torch.autograd.Function):
    """The log partition as a function of u, nu [n, c] and tau [n, c], whose columns are equal; by the envelope theorem."""

    @staticmethod
    def forward(ctx: Any, solution: Solution, u: Tensor, nu: Tensor, tau: Tensor) -> Tensor:
        ctx.solution, ctx.like = solution, nu
        return nu.new_tensor(solution.log_partition())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        s, like = ctx.solution, ctx.like
        in_u = torch.from_numpy(s.in_columns()).to(like) if ctx.needs_input_grad[1] else None
        in_tau = -0.5 * (s.variance[:, None] + s.mean**2)
        return None, None if in_u is None else grad * in_u, grad * _tensor(s.mean, like), grad * _tensor(in_tau, like)


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like)


def _numbers(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().double().cpu().numpy())


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

    def _columns(self, latent: int, nugget: float, known: np.ndarray | None = None) -> Tensor:
        """Of the prior's factor [n, m + 1]; differentiable where gradients are enabled."""
        pattern, kernel = self.plan.patterns[latent], self.prior.kernels[latent]
        return columns(kernel, pattern.x, pattern.near, _spare(kernel, pattern.x, nugget), known=known)

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
                prior = known if same else Factor(_numbers(self._columns(latent, nugget)), nugget)
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
        return Solution(pattern, prior, _numbers(tau[:, 0]), _numbers(nu), *self.engine.precisely(len(pattern.x)))

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
                u = self._columns(latent, solution.prior.nugget, solution.u)
                total = total + _LogPartition.apply(solution, u, *self._sites(latent, members))
        return total

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
        near = torch.from_numpy(pattern.near.astype(np.int64)).to(nu.device)
        # A point without a target is one that was measured with infinite noise.
        noise = torch.where(seen, 1 / safe, BLIND * (1 / safe).max())
        try:
            u = columns(self.prior.kernels[latent], pattern.x, pattern.near, noise)
        except NotPositiveDefinite as error:
            raise explained(error, pattern.x, pattern.near) from error
        within = torch.where((near >= 0)[..., None], targets[near.clamp_min(0)], 0.0)
        scores = (u[:, :-1, None] * within).sum(1) + u[:, -1:] * targets
        seen_logs = (u[:, -1].log() - 0.5 * math.log(2 * math.pi))[seen].sum()
        density = len(members) * seen_logs - 0.5 * scores[seen].square().sum()
        heights = self.sites.columns(members).log_heights
        merged = Sites(nu, tau).log_heights
        return density + heights - merged

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        mean = torch.zeros_like(self.sites.nu.detach())
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            mean[:, members] = _tensor(solution.mean, mean)[self.plan.patterns[latent].slots]
        return SiteMarginals(mean, self._variances)

    def _variances(self) -> Tensor:
        result = torch.zeros_like(self.sites.nu.detach())
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            result[:, members] = _tensor(solution.variance, result)[self.plan.patterns[latent].slots, None]
        return result

    def with_sites(self, sites: Sites) -> SICPosterior:
        return replace(self, sites=sites)

    @torch.no_grad()
    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        """The means move by ``P^-1 (dnu - m dtau)``; the variances by differences."""
        dm, dv = torch.zeros_like(self.sites.nu), torch.zeros_like(self.sites.nu)
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            slots, size = self.plan.patterns[latent].slots, len(solution.tau)
            push = direction.nu[:, members] - direction.tau[:, members] * self.site_marginals.mean[:, members]
            push = push.new_zeros(size, len(members)).index_add(0, slots, push)
            dm[:, members] = _tensor(solution.solve(_numbers(push)), dm)[slots]
        if bool(direction.tau.any()):
            step = self._step(direction)
            up, down = (self._moved(direction, h).site_marginals.variance for h in (step, -step))
            dv = (up - down) / (2 * step)
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
            mean[order[:, None], members] = _tensor(link.mean(solution.mean), x)
            mixed = sparse_factor.norms(solution.pattern.near, solution.v, link.near, link.weights, solution.tolerance)
            variance[order[:, None], members] = _tensor(mixed + link.spread, x)[:, None]
        return mean, variance

    @torch.no_grad()
    def _link(self, latent: int, x: Tensor) -> _Link:
        """New values given those of the data."""
        pattern = self.plan.patterns[latent]
        near = pattern.neighbours(x, WIDER * self.engine.neighbours)
        return self._linked(latent, torch.cat([pattern.x, x]), near)

    def _linked(self, latent: int, x: Tensor, near: np.ndarray) -> _Link:
        """The last rows of x, as many as near has, given their neighbours."""
        kernel, old = self.prior.kernels[latent], len(self.plan.patterns[latent].x)
        spare = _spare(kernel, x, self.known[latent].nugget)
        spare[old:] = 0.0
        floor = FLOOR * float(diagonal(kernel, x[:1]).mean()) if len(x) else FLOOR
        try:
            u = _numbers(columns(kernel, x, near, spare, floor=floor))
        except NotPositiveDefinite as error:
            raise explained(error, x, near) from error
        return _Link(near, -u[:, :-1] / u[:, -1:], 1 / u[:, -1] ** 2)

    @torch.no_grad()
    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each new value given its neighbours among the data and the new values before it. Cost: O(N N* m), memory O(N N*)."""
        mean = x.new_zeros(len(x), self.sites.nu.shape[1])
        covariance = x.new_zeros(self.sites.nu.shape[1], len(x), len(x))
        for (latent, members), solution in zip(self.groups, self.solved, strict=True):
            old, whole = len(solution.pattern.x), solution.pattern.extended(x, WIDER * self.engine.neighbours)
            link = self._linked(latent, whole.x, whole.near[old:])
            shares, noise = link.shares(old, whole.slots[len(whole.slots) - len(x) :].cpu().numpy())
            halves = [sparse_factor.solve(solution.pattern.near, solution.v, row) for row in shares]
            half = np.stack(halves) if halves else shares
            mean[:, members] = _tensor(shares @ solution.mean, x)
            covariance[members] = _tensor(half @ half.T + noise @ noise.T, x)
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
        draws = [sparse_factor.transposed_solve(pattern.near, solution.v, z) for z in _numbers(noise)]
        values = _tensor(np.array(draws).reshape(n, -1).T + solution.mean[:, [index]], pattern.x)
        rows = max(1, CHUNK // features.size)
        misfit = values - torch.cat([features(part) @ weights for part in pattern.x.split(rows)] or [values])

        def path(x: Tensor) -> Tensor:
            if x.requires_grad:
                raise StructureError(
                    "Paths of engines.SIC() have no derivatives: neighbours change from point to point."
                )
            parts = [features(part) @ weights + self._link(latent, part).mean(misfit) for part in x.split(rows)]
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
    """New values as ``weights . f(near) + N(0, spread)``: near [k, m], -1 for none, where the weight is 0; spread [k]."""

    near: np.ndarray
    weights: np.ndarray
    spread: np.ndarray

    def mean(self, values: Any) -> Any:
        """``sum weights . values(near)`` [k, c] for values [n, c] of an array or a tensor."""
        if isinstance(values, Tensor):
            return _tensor(self.mean(_numbers(values)), values)
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
