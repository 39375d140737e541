"""A trend whose coefficients have a flat prior, on top of any engine: exact diffuse regression.

Theory: docs/theory/trend.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from gpx.errors import NumericalError
from gpx.linalg.derivatives import derivative
from gpx.posterior import Around, Posterior
from gpx.sites import SiteMarginals, Sites

Basis = Callable[[Tensor], Tensor]
Moments = Callable[[Posterior], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Flat(Around):
    """The posterior of ``f = basis(x)^T b + g``, g ~ GP(0, kernel), with a flat prior on the coefficients b of every column.

    It is made of posteriors of g alone, whose sites are those of f less its trend, or of one function of the basis.
    `log_partition` and `log_density` are the limits of those of a prior N(0, s I) on b plus ``q log(2 pi s) / 2``, q functions.

    inner: of g, at any sites; sites: of f; design: the basis [N, q] at the data; basis: x [N*, D] -> [N*, q].
    Raises: NumericalError where the data do not determine b. Cost: time that of 3 q + 2
    columns of `inner` in place of one, memory that of 2 q + 1.
    Source: Rasmussen & Williams (2006), eqs. 2.41 and 2.45; de Jong (1991), "The diffuse Kalman filter".
    """

    inner: Posterior
    sites: Sites
    design: Tensor
    basis: Basis

    @property
    def within(self) -> Posterior:
        return self.inner

    @property
    def _columns(self) -> int:
        return self.sites.nu.shape[1]

    @property
    def _functions(self) -> int:
        return self.design.shape[1]

    def _at(self, design: Tensor) -> Tensor:
        """Functions [N*, q] as columns of their own [N*, q C], for every column of f."""
        return design.repeat_interleave(self._columns, 1)

    def _apart(self, values: Tensor) -> Tensor:
        """Such columns as [N*, q, C]."""
        return values.unflatten(1, (self._functions, self._columns))

    def _with(self, values: Tensor) -> Posterior:
        """That of g where the targets are these [N, q C]."""
        tau = self.sites.tau.repeat(1, self._functions)
        return self.inner.with_sites(Sites(self._seen(tau * values, self.sites), tau))

    def _seen(self, nu: Tensor, sites: Sites) -> Tensor:
        """nu [N, q C] with next to nothing in place of zeros where sites are: engines leave out what is absent."""
        present = sites.present.repeat(1, self._functions)
        return torch.where(present & (nu == 0), torch.finfo(nu.dtype).tiny, nu)

    @torch.no_grad()
    def _pull(self) -> Posterior:
        """What g would be if the targets were the functions of the basis."""
        return self._with(self._at(self.design))

    @cached_property
    def _pulled(self) -> Posterior:
        """Kept for what is asked beside the evidence."""
        return self._pull()

    @cached_property
    def _left(self) -> Tensor:
        """[N, q, C]: what g leaves of the functions of the basis, at the data."""
        return self._apart(self._at(self.design) - self._pull().site_marginals.mean)

    @cached_property
    def _root(self) -> Tensor:
        """[C, q, q]: Cholesky factor of the precision of b."""
        precision = torch.einsum("nkc,nc,nl->ckl", self._left, self.sites.tau.detach(), self.design)
        root, info = torch.linalg.cholesky_ex(0.5 * (precision + precision.mT))
        if bool(info.any()) or not bool(torch.isfinite(root).all()):
            raise NumericalError(
                f"The targets do not determine the {self._functions} coefficients of the trend, which have a flat prior: they are"
                f" at fewer than {self._functions} different inputs, or say too little of f (all of one class, all counts zero)."
                " Give more, a trend of a lower degree, or mean='constant'."
            )
        return root

    def _solved(self, values: Tensor) -> Tensor:
        """[C, q]: the inverse of the precision of b, times values."""
        return torch.cholesky_solve(values[:, :, None], self._root)[:, :, 0]

    @cached_property
    def coefficients(self) -> Tensor:
        """Posterior means [C, q] of b."""
        return self._solved(torch.einsum("nkc,nc->ck", self._left, self.sites.nu.detach()))

    @cached_property
    def _trend(self) -> Tensor:
        """[N, C] at the data."""
        return self.design @ self.coefficients.mT

    @property
    def _centred(self) -> Posterior:
        """That of g where b is at its mean, differentiable in the sites."""
        return self.inner.with_sites(self.sites.centred(self._trend))

    @cached_property
    def _numbers(self) -> Posterior:
        with torch.no_grad():
            return self._centred

    def _whitened(self, left: Tensor) -> Tensor:
        """[N*, q, C]: what g leaves of functions, in coordinates of b with unit covariance."""
        return torch.linalg.solve_triangular(self._root, left.permute(2, 1, 0), upper=False).permute(2, 1, 0)

    @cached_property
    def _spread(self) -> Tensor:
        return self._whitened(self._left)

    @cached_property
    def _constant(self) -> Tensor:
        """``log int exp(-b^T S b / 2) db``, S the precision of b, over all columns."""
        size = self._functions * self._columns
        return 0.5 * size * math.log(2 * math.pi) - self._root.diagonal(dim1=1, dim2=2).log().sum()

    def _volume(self, value: Callable[[Posterior], Tensor], own: float) -> Tensor:
        """`_constant`, differentiable: from what the basis in whitened coordinates adds to an evidence of zeros; own: share of
        the squares of the targets that this evidence has beside ``-t^T W t / 2``, ``S = X^T W X``.
        """
        if not torch.is_grad_enabled():
            return self._constant
        white = torch.linalg.solve_triangular(self._root, self.design.mT.expand(self._columns, -1, -1), upper=False)
        functions = white.permute(2, 1, 0).flatten(1)
        tau, zero = self.sites.tau, torch.zeros_like(self.sites.nu)
        moved = value(self._with(functions)) - self._functions * value(self.inner.with_sites(Sites(zero, tau)))
        moved = moved - 0.5 * own * (tau.repeat(1, self._functions) * functions.square()).sum()
        return self._constant + (moved - moved.detach())

    def _of_trend(self, nu: Tensor, tau: Tensor) -> Tensor:
        return (nu * self._trend - 0.5 * tau * self._trend.square()).sum()

    @property
    def log_partition(self) -> Tensor:
        return self.centred_log_partition + self._of_trend(self.sites.nu, self.sites.tau)

    @property
    def centred_log_partition(self) -> Tensor:
        return self._centred.log_partition + self._volume(lambda posterior: posterior.log_partition, 1.0)

    @property
    def rough_log_partition(self) -> Tensor:
        return self._numbers.rough_log_partition.detach() + self._constant

    @property
    def log_density(self) -> Tensor:
        return self._centred.log_density + self._volume(lambda posterior: posterior.log_density, 0.0)

    @property
    def log_density_limit(self) -> Tensor:
        centred = self._numbers
        return self.log_density + (centred.log_density_limit - centred.log_density).detach()

    @cached_property
    def site_marginals(self) -> SiteMarginals:
        inner = self._numbers.site_marginals
        return SiteMarginals(
            inner.mean + self._trend,
            lambda: inner.variance + self._spread.square().sum(1),
            inner.extra,
            self._trend,
        )

    def with_sites(self, sites: Sites) -> Flat:
        return replace(self, inner=self.inner.with_sites(sites), sites=sites)

    def response(self, direction: Sites) -> tuple[Tensor, Tensor]:
        """With the covariance ``A = C + p p^T`` of f, p the spread: ``A (dnu - m dtau)`` for the mean m, ``-(A o A) dtau`` for
        the variance.
        """
        spread, tau = self._spread, direction.tau
        push = direction.nu - tau * self.site_marginals.mean
        dm, dv = self._numbers.response(direction.centred(self._trend))
        turned = self._seen((tau[:, None] * spread).flatten(1), direction)
        cross, _ = self._pulled.response(Sites(turned, torch.zeros_like(turned)))
        squares = torch.einsum("nkc,nlc,nc->ckl", spread, spread, tau)
        dm = dm + torch.einsum("nkc,mkc,mc->nc", spread, spread, push)
        dv = dv - 2 * (spread * self._apart(cross)).sum(1) - torch.einsum("nkc,nlc,ckl->nc", spread, spread, squares)
        return dm, dv

    def slope(self, direction: Sites, share: float = 0.0) -> Tensor:
        """See docs/theory/trend.md for the gradient: through g at fixed b, through b, and through what g leaves of the basis."""
        centred, spread, tau = self._centred, self._spread, direction.tau
        value = centred.slope(direction.centred(self._trend), share)
        value = value + self._of_trend(direction.nu + share * self.sites.nu, tau + share * self.sites.tau)
        value = value - 0.5 * (tau[:, None] * spread.square()).sum() + share * self._constant
        if not torch.is_grad_enabled():
            return value
        push = torch.einsum("nkc,nc->ck", self._left, direction.nu - tau * self.site_marginals.mean)
        in_trend = self.sites.tau * (self.design @ self._solved(push).mT)
        moved = -centred.slope(Sites(in_trend, torch.zeros_like(in_trend)))
        inverse = torch.cholesky_inverse(self._root)
        squares = torch.einsum("nkc,nlc,nc->ckl", self._left, self._left, tau)
        inner = share * inverse - inverse @ squares @ inverse
        weights = torch.einsum("nkc,ckl,nc->nlc", self._left, inverse, tau)
        weights = weights + 0.5 * self.sites.tau[:, None] * torch.einsum("nk,ckl->nlc", self.design, inner)
        moved = moved + self._pulled.slope(Sites(weights.flatten(1), torch.zeros_like(weights).flatten(1)))
        return value + (moved - moved.detach())

    def _moments(self, design: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        mean, variance = moments(self._numbers)
        return mean + design @ self.coefficients.mT, variance + self._whitened(
            self._rest(design, moments)
        ).square().sum(1)

    def _rest(self, design: Tensor, moments: Moments) -> Tensor:
        return self._apart(self._at(design) - moments(self._pulled)[0])

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._moments(self.basis(x), lambda posterior: posterior.marginals(x))

    def derivative(self, x: Tensor, order: int, column: int = 0) -> tuple[Tensor, Tensor]:
        design = derivative(self.basis, x, order, column)
        return self._moments(design, lambda posterior: posterior.derivative(x, order, column))

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        design = self.basis(x)
        mean, covariance = self._numbers.joint(x)
        spread = self._whitened(self._rest(design, lambda posterior: posterior.marginals(x)))
        return mean + design @ self.coefficients.mT, covariance + torch.einsum("nkc,mkc->cnm", spread, spread)

    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return self._numbers.sample(x, n, generator) + self._trends(n, generator)(x)

    def paths(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """A path of g with b at its mean, and what a draw of b changes of it."""
        inner, trends = self._numbers.paths(n, generator), self._trends(n, generator)
        return lambda x: inner(x) + trends(x)

    def _trends(self, n: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """The trend, and what n draws of b change of it and of g."""
        root = self._root
        drawn = torch.randn(n, *root.shape[:2], generator=generator, dtype=root.dtype, device=root.device)

        def draw(x: Tensor) -> Tensor:
            design = self.basis(x)
            spread = self._whitened(self._rest(design, lambda posterior: posterior.marginals(x)))
            return design @ self.coefficients.mT + torch.einsum("nkc,sck->snc", spread, drawn)

        return draw

    def update(self, x: Tensor, sites: Sites) -> Flat:
        design = torch.cat([self.design, self.basis(x)])
        return Flat(self.inner.update(x, sites), self.sites.join(sites), design, self.basis)

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """From ``W - W X S^-1 X^T W``, whose entries at the data are those of g less the squares of the spread."""
        mean, variance = self._numbers.leave_one_out()
        tau = self.sites.tau.detach()
        precision = 1 / variance - (tau[:, None] * self._spread).square().sum(1)
        targets = self.sites.nu.detach() / tau
        residual = (targets - self._trend - mean) / variance
        return targets - residual / precision, 1 / precision
