"""The posterior of `Kronecker`: one solution per group of columns on the cells of a grid. Theory: docs/theory/kronecker.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpx.engines.dense import ExactPosterior
from gpx.engines.grid_holes import Holes, few_holes
from gpx.engines.grid_solution import Basis, Even, Solution, Value
from gpx.engines.grid_uneven import Slope, Uneven
from gpx.errors import StructureError
from gpx.linalg import kron
from gpx.linalg.cells import lay_out
from gpx.posterior import Posterior
from gpx.prior import Prior
from gpx.sites import SiteMarginals, Sites
from gpx.structure.draws import Draws
from gpx.structure.feature_map import feature_map
from gpx.structure.kronecker import KroneckerForm, kronecker

if TYPE_CHECKING:
    from gpx.engines.kronecker import Kronecker, KroneckerPlan

CHUNK = 1 << 23  # entries of a prediction block
PRECISE = 500  # places whose variances get a solve each, where there is no factor
DENSER = 4  # combinations per place up to which predictions go through all of them
ROUGH_LOGDET = 1e-3  # nats per target: a standard error of the log determinant that is worth a warning
PATH_FEATURES = 2048


@dataclass(frozen=True, eq=False)
class Group:
    """The columns of a kernel that share their precisions."""

    latent: int
    columns: tuple[int, ...]
    form: KroneckerForm
    solution: Solution


@dataclass(frozen=True, eq=False)
class KroneckerPosterior(Posterior):
    """bases: by kernel, the eigenvectors of the axes where they are known."""

    engine: Kronecker
    prior: Prior
    plan: KroneckerPlan
    sites: Sites
    bases: dict[int, Basis] = field(default_factory=dict)

    def _matrices(self, form: KroneckerForm) -> list[Tensor]:
        return [form.matrix(d, values, values) for d, values in enumerate(self.plan.layout.values)]

    def _on_cells(self, values: Tensor) -> Tensor:
        """Values [N, c] of the rows, added up in their cells: [n_1, ..., n_D, c]; differentiable."""
        layout = self.plan.layout
        total = values.new_zeros(layout.size, values.shape[1]).index_add(0, layout.cells, values)
        return total.reshape(*layout.shape, values.shape[1])

    def _of_rows(self, values: Tensor) -> Tensor:
        """Values [n_1, ..., n_D, ...] on cells, for every row [N, ...]."""
        return values.flatten(0, len(self.plan.layout.shape) - 1)[self.plan.layout.cells]

    def _cell_sites(self, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        """nu [n_1, ..., n_D, c] and the common tau [n_1, ..., n_D] of some columns."""
        nu = self._on_cells(self.sites.nu[:, list(columns)])
        return nu, self._on_cells(self.sites.tau[:, [columns[0]]]).squeeze(-1)

    @cached_property
    def groups(self) -> list[Group]:
        """With the solutions that belong to them, as numbers."""
        found = []
        with torch.no_grad():
            for latent, columns in self.sites.groups(len(self.prior.kernels)):
                form = kronecker(self.prior.kernels[latent], self.plan.layout.axes)
                if latent not in self.bases:
                    self.bases[latent] = Basis.of(self._matrices(form))
                solved = solution(self.bases[latent], *self._cell_sites(columns), self.engine.probes)
                found.append(Group(latent, tuple(columns), form, solved))
        return found

    @property
    def is_compact(self) -> bool:
        """Whether no group needs more than half as many modes as there are rows."""
        solved = [g.solution for g in self.groups]
        limit = len(self.plan.x) // 2
        return all(
            isinstance(s, Even) or (isinstance(s, Uneven) and s.exact and math.prod(s.sizes) <= limit) for s in solved
        )

    @cached_property
    def dense(self) -> ExactPosterior:
        """The same posterior by dense algebra. Raises: StructureError for more rows than that is meant for."""
        if len(self.plan.x) > self.engine.dense_rows:
            raise StructureError(
                f"Kronecker differentiates variances of up to {self.engine.dense_rows:,} rows (here are"
                f" {len(self.plan.x):,}), or where few eigenvectors matter: use objectives.Evidence() for Gaussian noise, and"
                " objectives.ELBO() with rules.Variational() for other likelihoods, which need no such derivatives."
            )
        return ExactPosterior.of(self.prior, self.plan.x, self.sites)

    def _value(self, density: bool) -> Tensor:
        total = self.sites.nu.new_zeros(())
        for group in self.groups:
            matrices = self._matrices(group.form) if torch.is_grad_enabled() else []
            total = total + Value.apply(group.solution, density, *self._cell_sites(group.columns), *matrices)
        return total

    @property
    def log_partition(self) -> Tensor:
        return self._value(False)

    @property
    def log_density(self) -> Tensor:
        value = self._value(True)
        if self.plan.layout.occupied == len(self.plan.x):
            return value
        # Of several sites in a cell, what they say of each other.
        cells = Sites(self._on_cells(self.sites.nu), self._on_cells(self.sites.tau))
        return value + self.sites.log_heights - cells.log_heights

    @property
    def log_determinant_error(self) -> float:
        return sum((0.5 * len(g.columns) * g.solution.error) ** 2 for g in self.groups) ** 0.5

    @property
    def note(self) -> str:
        error, targets = self.log_determinant_error, int(self.sites.present.sum())
        if error <= ROUGH_LOGDET * targets:
            return ""
        return f"the log evidence has a standard error of {error:.2g} nats: raise probes of engines.Kronecker()"

    def _by_columns(self, parts: Sequence[Tensor]) -> Tensor:
        """What groups have for their columns [..., c], in the order of the columns."""
        order = [column for group in self.groups for column in group.columns]
        places = torch.tensor(order).argsort().to(parts[0].device)
        return torch.cat(list(parts), -1).index_select(-1, places)

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        with torch.no_grad():
            mean = self._by_columns([self._of_rows(g.solution.mean) for g in self.groups])
        return SiteMarginals(mean, self._site_variance)

    @torch.no_grad()
    def _site_variance(self) -> Tensor:
        parts = [self._of_rows(g.solution.variance)[:, None].expand(-1, len(g.columns)) for g in self.groups]
        return self._by_columns(parts)

    def with_sites(self, sites: Sites) -> Posterior:
        return self.engine.conditioned(self.prior, self.plan, sites, self.bases)

    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        """Variances as `site_marginals` has them, whether these are exact or not."""
        if bool(direction.tau.any()) and not all(isinstance(g.solution, Uneven) for g in self.groups):
            return self.dense.response(direction)
        with torch.no_grad():
            parts = [self._response(g, direction.columns(g.columns)) for g in self.groups]
        return self._by_columns([m for m, _ in parts]), self._by_columns([v for _, v in parts])

    def _response(self, group: Group, direction: Sites) -> tuple[Tensor, Tensor]:
        solved, dtau = group.solution, self._on_cells(direction.tau)
        push = self._on_cells(direction.nu) - dtau * solved.mean
        change = self._of_rows(solved.times_covariance(push))
        if not isinstance(solved, Uneven) or not bool(dtau.any()):
            return change, torch.zeros_like(change)
        changes = [solved.variance_response(column) for column in dtau.unbind(-1)]
        return change, self._of_rows(torch.stack(changes, -1))

    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        value = share * self.log_partition if share else self.sites.nu.new_zeros(())
        if not bool(direction.tau.any()) and not bool(direction.nu.any()):
            return value
        if not all(isinstance(g.solution, Uneven) and g.solution.exact for g in self.groups):
            return self.dense.slope(direction, share)
        for group in self.groups:
            along, columns = direction.columns(group.columns), list(group.columns)
            parts = [self._on_cells(v) for v in (self.sites.nu[:, columns], along.nu, along.tau)]
            matrices = self._matrices(group.form) if torch.is_grad_enabled() else []
            value = value + Slope.apply(group.solution, *parts, *matrices)
        return value

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """From the marginals with one site taken out; differentiable by dense algebra, where that is possible."""
        if torch.is_grad_enabled():
            return self.dense.leave_one_out()
        marginals = self.site_marginals
        return self.sites.leave_one_out(marginals.mean, marginals.variance, marginals.extra)

    def _on_axes(self, x: Tensor) -> list[Tensor]:
        return [x[:, list(axis)] for axis in self.plan.layout.axes]

    def _features(self, form: KroneckerForm, places: Sequence[Tensor]) -> list[Tensor]:
        """Covariances [m_d, n_d] of places on the axes with the axes' values."""
        return [form.matrix(d, x, v) for d, (x, v) in enumerate(zip(places, self.plan.layout.values, strict=True))]

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not len(x):
            return (x.new_zeros(0, self.sites.nu.shape[1]),) * 2
        if not x.requires_grad:
            layout = lay_out(x, self.plan.layout.axes)
            if layout.size <= DENSER * len(x):
                # All combinations of what occurs on the axes.
                mean, variance = self._marginals(layout.values, False, len(x))
                flat = (part.flatten(0, len(layout.shape) - 1)[layout.cells] for part in (mean, variance))
                return next(flat), next(flat)
        shape, widths = self.plan.layout.shape, [group.solution.width for group in self.groups]
        largest = max(math.prod(shape[1:]), *shape, *widths)
        chunks = x.split(max(1, CHUNK // largest))
        parts = [self._marginals(self._on_axes(chunk), True, len(x)) for chunk in chunks]
        return torch.cat([m for m, _ in parts]), torch.cat([v for _, v in parts])

    def _marginals(self, places: Sequence[Tensor], by_rows: bool, count: int) -> tuple[Tensor, Tensor]:
        """Mean and variance [..., C] of all combinations of places on the axes, or row by row; count: how many are wanted."""
        means, variances = [], []
        for group in self.groups:
            solved, features = group.solution, self._features(group.form, places)
            means.append((kron.rows if by_rows else kron.times)(features, solved.alpha))
            own = [group.form.diagonal(d, x) for d, x in enumerate(places)]
            prior = torch.stack(own).prod(0) if by_rows else kron.outer(own)
            if isinstance(solved, Uneven) and not solved.exact and count <= PRECISE:
                rows = features if by_rows else _combinations(features)
                reduction = solved.precise_reduction(rows).reshape(prior.shape)
            else:
                reduction = solved.reduction(features, by_rows)
            # Below the rounding error of the subtraction a variance is zero.
            variance = (prior - reduction).clamp_min(0)
            variances.append(variance.unsqueeze(-1).expand(*variance.shape, len(group.columns)))
        return self._by_columns(means), self._by_columns(variances)

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cost: a solve on the grid per row of x."""
        places, means, covariances = self._on_axes(x), [], []
        for group in self.groups:
            features = self._features(group.form, places)
            means.append(kron.rows(features, group.solution.alpha))
            cross = features[0].mT
            for f in features[1:]:
                cross = cross.unsqueeze(-2) * f.mT  # [n_1, ..., n_D, N*]
            scaled = group.solution.tau.unsqueeze(-1) * cross
            covariance = torch.stack([group.form.matrix(d, p, p) for d, p in enumerate(places)]).prod(0)
            covariance = covariance - cross.flatten(0, -2).mT @ group.solution.alpha_of(scaled).flatten(0, -2)
            covariance = 0.5 * (covariance + covariance.mT)
            covariances.append(covariance.unsqueeze(-1).expand(*covariance.shape, len(group.columns)))
        return self._by_columns(means), self._by_columns(covariances).movedim(-1, 0)

    @torch.no_grad()
    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Joint draws [n, N*, C] of f at x: of cells of the grid without larger arrays; elsewhere as in `Posterior`."""
        cells = self._cells_of(x)
        if cells is None:
            return super().sample(x, n, generator)
        draws = [g.solution.draws(n, generator) for g in self.groups]
        flat = [d.flatten(0, len(self.plan.layout.shape) - 1)[cells].movedim(-1, 0) for d in draws]
        return self._by_columns(flat)

    def _cells_of(self, x: Tensor) -> Tensor | None:
        """[N*]: the cells of rows that all are on the grid; None if one is not."""
        cells = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for place, values in zip(self._on_axes(x), self.plan.layout.values, strict=True):
            both, index = torch.unique(torch.cat([values, place]), dim=0, return_inverse=True)
            if len(both) > len(values):
                return None
            own = torch.empty_like(index[: len(values)])
            own[index[: len(values)]] = torch.arange(len(values), device=x.device)
            cells = cells * len(values) + own[index[len(values) :]]
        return cells

    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Matheron's rule: a prior path plus the kernel-weighted correction of its misfit at the sites.

        The prior path is exact for finite-dimensional kernels and made of 2,048 random features otherwise.
        Source: Wilson et al. (2021), "Pathwise conditioning of Gaussian processes", eq. 13.
        """
        draws = [self._paths(group, n, generator) for group in self.groups]

        def draw(x: Tensor) -> Tensor:
            return self._by_columns([part(x) for part in draws]).movedim(1, 0)

        return draw

    def _paths(self, group: Group, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """x -> [N*, n, c]."""
        solved, x = group.solution, self.plan.x
        count = len(group.columns)
        features: Any = feature_map(self.prior.kernels[group.latent], PATH_FEATURES, x.shape[1], Draws(generator))
        options: Any = {"generator": generator, "dtype": x.dtype, "device": x.device}
        weights = torch.randn(features.size, n * count, **options)
        noise = torch.randn(*solved.tau.shape, n * count, **options)
        with torch.no_grad():
            prior = torch.cat([features(rows) @ weights for rows in x.split(max(1, CHUNK // features.size))])
            tau = self.sites.tau[:, [group.columns[0]]]
            misfit = self._on_cells(tau * prior) + solved.tau.sqrt().unsqueeze(-1) * noise
            correction = solved.alpha.repeat(*[1] * solved.dims, n) - solved.alpha_of(misfit)

        def draw(x: Tensor) -> Tensor:
            rows = max(1, CHUNK // max(features.size, solved.nu[0].numel() * n))
            parts = [
                features(b) @ weights + kron.rows(self._features(group.form, self._on_axes(b)), correction)
                for b in x.split(rows)
            ]
            return torch.cat(parts).unflatten(1, (n, count))

        return draw

    def update(self, x: Tensor, sites: Sites) -> Posterior:
        """Condition on everything, on a grid that has the new places too."""
        joined = torch.cat([self.plan.x, x])
        return self.engine.conditioned(
            self.prior, self.engine.laid_out(self.prior, joined, self.plan.axes), self.sites.join(sites), {}
        )


def _combinations(features: Sequence[Tensor]) -> list[Tensor]:
    """Rows [m_1 ... m_D, n_d] of all combinations, in C order."""
    index = torch.meshgrid(*(torch.arange(len(f), device=f.device) for f in features), indexing="ij")
    return [f[i.reshape(-1)] for f, i in zip(features, index, strict=True)]


def solution(basis: Basis, nu: Tensor, tau: Tensor, probes: int) -> Solution:
    """The solution for sites of the cells, by the structure of their precisions."""
    if not bool(tau.any()):
        return Even(basis, nu, tau, 0.0)
    vectors = kron.rank_one(tau) if bool((tau > 0).all()) else None
    if vectors is None:
        precision, uneven = float(tau.max()), Uneven(basis, nu, tau, probes)
        flat = bool(((tau == 0).unsqueeze(-1) & (nu != 0)).any())
        return uneven if uneven.exact or flat or not few_holes(tau) else Holes(basis, nu, tau, precision)
    if all(bool((v == v[0]).all()) for v in vectors):
        return Even(basis, nu, tau, float(tau.flatten()[0]))
    roots = tuple(v.sqrt() for v in vectors)
    return Even(basis.scaled(roots), nu, tau, 1.0, roots)
