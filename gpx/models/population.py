"""The posterior of several latent processes in bins, with a Gaussian site on all of them in every bin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.engines.compiled import log_partition
from gpx.errors import StructureError
from gpx.likelihoods import Likelihood
from gpx.linalg.chain import Chain
from gpx.linalg.layout import Layout
from gpx.structure.state_space import state_space

RIDGE = 1e-9  # of a matrix of second derivatives, relative
HALVINGS = 8


@dataclass(frozen=True)
class Bins:
    """The bins of all trials in a row. times [T]: within the trial; lengths: of the trials."""

    times: Tensor
    lengths: tuple[int, ...]

    @staticmethod
    def of(lengths: Sequence[int]) -> Bins:
        """Trials one after the other."""
        return Bins(torch.cat([torch.arange(n, dtype=torch.float64) for n in lengths]), tuple(lengths))

    def gaps(self, steps: int) -> np.ndarray:
        """[steps T]: gaps with so many steps at every bin; infinite between trials, which are independent."""
        gaps = np.zeros((len(self.times), steps))
        gaps[:, 0] = 1.0
        starts = np.cumsum(self.lengths) - self.lengths
        gaps[starts, 0] = np.inf
        gaps[0, 0] = 0.0
        return gaps.reshape(-1)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values [T, ...] by trial."""
        return values.split(list(self.lengths))


@dataclass(frozen=True)
class VectorSites:
    """``exp(nu . x - x^T tau x / 2)``: nu [T, L], tau [T, L, L], symmetric and not negative."""

    nu: Tensor
    tau: Tensor

    def towards(self, other: VectorSites, step: float) -> VectorSites:
        """A share `step` of the way to others."""
        return VectorSites(torch.lerp(self.nu, other.nu, step), torch.lerp(self.tau, other.tau, step))

    def expected_log(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The sum of their expected logarithms."""
        second = variance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
        return (self.nu * mean).sum() - 0.5 * (self.tau * second).sum()


@dataclass(frozen=True)
class Smoothing:
    """log Z of prior x sites, differentiable in the kernels; mean [T, L] and variance [T, L, L] of the latents, numbers."""

    log_partition: Tensor
    mean: Tensor
    variance: Tensor


def smooth(kernels: Sequence[gpytorch.kernels.Kernel], bins: Bins, sites: VectorSites) -> Smoothing:
    """Filter and smooth.

    A site on L latents is L sites on one function each, along the eigenvectors of its precision, at equal times; means and
    covariances are those of functions without a site, along the axes and the sums of two axes.
    """
    T, L = sites.nu.shape
    precisions, axes = torch.linalg.eigh(sites.tau)
    asked = _directions(L)
    directions = torch.cat([axes.mT, asked.expand(T, -1, -1)], 1)  # [T, L + A, L]
    steps = directions.shape[1]
    nothing = torch.zeros(T, len(asked), dtype=torch.float64)
    nu = torch.cat([(axes.mT @ sites.nu.unsqueeze(-1)).squeeze(-1), nothing], 1).flatten()
    tau = torch.cat([precisions.clamp_min(0), nothing], 1).flatten()
    layout, rates, rows, waves, latent = _joined(kernels, bins.times)
    factors = (directions[:, :, latent] * waves.unsqueeze(1)).flatten(0, 1)
    gaps = bins.gaps(steps)
    value = log_partition(layout, gaps, rates, rows, factors, nu, tau)
    chain = Chain(layout, gaps, *(v.detach().numpy() for v in (rates, rows, factors, nu, tau)))
    moments = (torch.as_tensor(v).reshape(T, steps)[:, L:] for v in (chain.smoothed.mean, chain.smoothed.variance))
    return Smoothing(value, *_moments(L, *moments))


def _directions(latents: int) -> Tensor:
    """[A, L]: the axes, and the sums of two."""
    eye = torch.eye(latents, dtype=torch.float64)
    pairs = torch.combinations(torch.arange(latents), 2)
    return torch.cat([eye, eye[pairs[:, 0]] + eye[pairs[:, 1]]]) if len(pairs) else eye


def _moments(latents: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [T, L] and covariance [T, L, L] from those of the directions asked for."""
    covariance = torch.diag_embed(variance[:, :latents])
    for column, (i, j) in enumerate(torch.combinations(torch.arange(latents), 2).tolist(), start=latents):
        both = 0.5 * (variance[:, column] - variance[:, i] - variance[:, j])
        covariance[:, i, j], covariance[:, j, i] = both, both
    return mean[:, :latents], covariance


def _joined(kernels: Sequence[gpytorch.kernels.Kernel], times: Tensor) -> tuple[Layout, Tensor, Tensor, Tensor, Tensor]:
    """The blocks of all kernels as one model; the latent of every factor."""
    models = [state_space(kernel) for kernel in kernels]
    if any(model.clock is not None for model in models):
        raise StructureError(
            "Latent trajectories need kernels of time such as kernels.Matern(), not BlockQuasiPeriodic."
        )
    forms = [model.at(times) for model in models]
    layout = Layout(*(sum((getattr(f[0], name) for f in forms), ()) for name in ("orders", "copies", "widths")))
    rates, rows = (torch.cat([f[i] for f in forms]) for i in (1, 2))
    waves = torch.cat([f[3].expand(len(times), -1) for f in forms], 1)
    latent = torch.cat([torch.full((f[3].shape[1],), i) for i, f in enumerate(forms)])
    return layout, rates, rows, waves, latent


def update(
    likelihood: Likelihood, y: Tensor, loading: Tensor, offset: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, VectorSites]:
    """``E log p(y | x)`` in all, and the sites whose natural parameters are its gradient; y [T, N], NaN where missing."""
    expected, slope, curvature = Readout(likelihood, y, mean, variance).derivatives(loading, offset)
    tau = (-curvature @ _squares(loading)).reshape(variance.shape)
    nu = slope @ loading + (tau @ mean.unsqueeze(-1)).squeeze(-1)
    return expected.sum(), VectorSites(nu, tau)


@dataclass(frozen=True)
class Readout:
    """What targets y [T, N], NaN where missing, say of ``c_n . x + d_n`` given latents of mean [T, L] and variance [T, L, L]."""

    likelihood: Likelihood
    y: Tensor
    mean: Tensor
    variance: Tensor

    def expected(self, loading: Tensor, offset: Tensor) -> Tensor:
        """``E log p(y_n | x)`` [N], summed over bins."""
        return self._expected(*projected(loading, offset, self.mean, self.variance))

    def _expected(self, mean: Tensor, variance: Tensor) -> Tensor:
        seen = ~torch.isnan(self.y)
        filled = torch.where(seen, self.y, 1.0)
        return torch.where(seen, self.likelihood.expected_log_prob(filled, mean, variance), 0.0).sum(0)

    def derivatives(self, loading: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`expected`, and its first and second derivatives [T, N] in ``c_n . x + d_n``, the latter cut at zero."""
        with torch.enable_grad():
            m, v = (p.detach().requires_grad_() for p in projected(loading, offset, self.mean, self.variance))
            expected = self._expected(m, v)
            slope, half = torch.autograd.grad(expected.sum(), (m, v))
        return expected.detach(), slope, (2 * half).clamp_max(0)

    def climbed(self, loading: Tensor, offset: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Loadings [N, L] and offsets [N] after some steps of Newton's method for every target, as if the second derivative did
        not depend on them; halved where `expected` falls.
        """
        N, L = loading.shape
        design = torch.cat([self.mean, torch.ones_like(self.mean[:, :1])], 1)
        squares = _squares(design).reshape(-1, L + 1, L + 1)
        squares[:, :L, :L] += self.variance
        at = torch.cat([loading, offset[:, None]], 1)
        for _ in range(steps):
            here, slope, curvature = self.derivatives(at[:, :L], at[:, L])
            weights = (-curvature).mT @ squares.flatten(1)
            gradient = slope.mT @ design
            spread = (curvature.mT @ self.variance.flatten(1)).reshape(N, L, L)
            gradient[:, :L] += (spread @ at[:, :L, None])[:, :, 0]
            step = _solved(weights.reshape(N, L + 1, L + 1), gradient)
            for _ in range(HALVINGS):
                reached = self.expected((at + step)[:, :L], (at + step)[:, L])
                worse = ~(reached >= here)
                if not bool(worse.any()):
                    break
                step = torch.where(worse[:, None], 0.5 * step, step)
            at = torch.where(worse[:, None], at, at + step)
        return at[:, :L], at[:, L]


def _solved(matrices: Tensor, right: Tensor) -> Tensor:
    """``matrix^-1 right`` [N, K] for matrices [N, K, K] that are not negative."""
    scale = matrices.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    ridge = (RIDGE * scale + torch.finfo(matrices.dtype).tiny) * torch.eye(matrices.shape[1]).to(matrices)
    return torch.linalg.solve(matrices + ridge, right.unsqueeze(-1)).squeeze(-1)


def projected(loading: Tensor, offset: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [T, N] of ``c_n . x + d_n``."""
    return mean @ loading.mT + offset, variance.flatten(1) @ _squares(loading).mT


def _squares(rows: Tensor) -> Tensor:
    """``r r^T`` of every row, flattened [n, K^2]."""
    return (rows[:, :, None] * rows[:, None]).flatten(1)
