"""Latent trajectories of a population: many counts per bin, driven by a few Gaussian processes in time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gpytorch
import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.distributions import Normal

from gpx.engines import StateSpace
from gpx.errors import InputError
from gpx.gp import GP
from gpx.inference.coordinates import Coordinates
from gpx.inference.whittle import Whittle
from gpx.inputs import as_data
from gpx.kernels import HidaMatern
from gpx.kernels.expressions import parse
from gpx.kernels.walk import fix_outputscale
from gpx.likelihoods import Gaussian, Likelihood, NegativeBinomial, Poisson
from gpx.linalg.threads import lbfgs
from gpx.models.population import Bins, Readout, VectorSites, projected, smooth, update
from gpx.posterior import Prediction
from gpx.progress import progress_bar

LIKELIHOODS = {"poisson": Poisson, "gaussian": Gaussian, "negative_binomial": NegativeBinomial}
ROUNDS, TOLERANCE = 50, 1e-5  # of the whole fit; nats per datum
SITE_STEPS, SITE_TOLERANCE = 30, 1e-6
KERNEL_STEPS, READOUT_STEPS, OWN_STEPS = 5, 4, 5
MEMORY = 6  # rounds that the next one is extrapolated from
WINDOW = 3.0  # standard deviation of the smoothing, in bins, that starts the loadings


@dataclass
class LatentTrajectories:
    """``y_tn ~ likelihood(c_n . x_t + d_n)``, the latents x_l independent Gaussian processes of the bin index.

    Every bin has a Gaussian site on all latents, so that the posterior of the trajectories is that of a Kalman smoother;
    loadings, offsets and kernels maximise the evidence lower bound.

    Parameters
    ----------
    kernels : one kernel of one input per latent, with a state-space form (that of `RBF` is approximate); their outputscales
        stay 1, or what was given, as the loadings have the scale. None: two of `HidaMatern(order=1, frequency=0)`. A
        stationary kernel whose frequency or period is left open starts from the debiased Whittle likelihood of the first
        estimates of its latent.
    likelihood : "poisson", "gaussian", "negative_binomial", or a likelihood of `gpx.likelihoods` with one latent function.

    After `fit`: latents_ (a list with, per trial, a Prediction of mean [T_r, L]), loading_ [N, L], offset_ [N], kernels_,
    likelihood_, elbo_ (nats).
    Cost: O(T L^2 S^2) per step for T bins in all, S the number of states of all latents.
    Source: Dowling, Zhao & Park (2023), "Linear time GPs for inferring latent trajectories from neural spike trains".

    >>> model = LatentTrajectories()
    >>> counts = [np.random.default_rng(0).poisson(1.0, (30, 5)) for _ in range(2)]
    >>> model.fit(counts, max_rounds=2).loading_.shape
    torch.Size([5, 2])
    """

    kernels: Sequence[gpytorch.kernels.Kernel] | None = None
    likelihood: str | Likelihood = "poisson"
    latents_: list[Prediction] = field(default_factory=list, init=False, repr=False)

    def fit(
        self, trials: Sequence[Any], *, max_rounds: int = ROUNDS, verbose: bool | None = None
    ) -> LatentTrajectories:
        """Learn from trials: a list of [T_r, N] arrays of counts, NaN where missing; lengths may differ.

        Raises: InputError for trials with different numbers of neurons or counts that the likelihood does not allow.
        """
        data = [_as_trial(trial, i) for i, trial in enumerate(trials)]
        self._start(data)
        bins = Bins.of([len(y) for y in data])
        y, sites, before = torch.cat(data), None, -np.inf
        rounds: list[tuple[np.ndarray, np.ndarray]] = []  # where they began, and where they led
        ahead = False
        with progress_bar(max_rounds, "fit", verbose) as bar:
            for _ in range(max_rounds):
                self.elbo_, new, found = self._infer(bins, y, sites)
                bar.update()
                bar.set_postfix_str(f"ELBO {self.elbo_:.2f}", refresh=False)
                little = not self.elbo_ - before >= TOLERANCE * y.numel()
                if little and ahead:  # perhaps too far: back to where the last round led
                    self._assign(rounds[-1][1])
                    rounds, ahead = rounds[-1:], False
                    continue
                if little:
                    break
                before, sites, start = self.elbo_, new, self._parameters()
                self._learn_readout(y, *found)
                self._learn_kernels(bins, sites)
                rounds = [*rounds, (start, self._parameters())][-MEMORY:]
                ahead = len(rounds) > 1
                self._assign(_mixed(rounds))
        self.elbo_, _, (mean, variance) = self._infer(bins, y, sites)
        if not self.elbo_ >= before:  # the last round was the limit, and its extrapolation too far
            self._assign(rounds[-1][1])
            self.elbo_, _, (mean, variance) = self._infer(bins, y, sites)
        self.latents_ = self._predictions(bins, mean, variance)
        return self

    def predict_rates(self, trials: Sequence[Any]) -> list[Tensor]:
        """Expected counts [T_r, N] of every trial, the latents inferred from what is not NaN in it: from some neurons to others.

        With ``shown`` [N], True for the neurons that may be seen, those of the others are
        ``predict_rates([np.where(shown, trial, np.nan)])[0][:, ~shown]``.

        Raises: InputError before a fit, for counts that the likelihood does not allow, and for trials with another number of
        neurons than those of the fit.
        """
        if not hasattr(self, "offset_"):
            raise InputError("LatentTrajectories is not fitted yet: call fit(trials) first.")
        data = [_as_trial(trial, i, len(self.offset_)) for i, trial in enumerate(trials)]
        for i, y in enumerate(data):
            _check(self.likelihood_, y, i)
        bins = Bins.of([len(y) for y in data])
        _, _, (mean, variance) = self._infer(bins, torch.cat(data), None)
        with torch.no_grad():
            rates = self.likelihood_.predict(*projected(self.loading_, self.offset_, mean, variance)).mean
        return list(bins.split(rates))

    def _start(self, data: Sequence[Tensor]) -> None:
        """Loadings from principal components of smoothed square roots, offsets from mean counts, kernels as given."""
        if not data:
            raise InputError("fit needs at least one trial: an array [bins, neurons].")
        widths = sorted({y.shape[1] for y in data})
        if len(widths) > 1:
            raise InputError(
                f"All trials need the same number of neurons (columns), got {', '.join(map(str, widths))}."
            )
        silent = torch.isnan(torch.cat(list(data))).all(0).nonzero().flatten().tolist()
        if silent:
            raise InputError(f"Neuron(s) {silent} (columns) have no observed bin in any trial; leave them out.")
        self.likelihood_ = _as_likelihood(self.likelihood)
        for i, y in enumerate(data):
            _check(self.likelihood_, y, i)
        joined = torch.cat(list(data))
        seen = joined if self._log_link else joined - joined.nanmean(0)
        seen = as_data(torch.arange(len(seen)), seen)
        self.likelihood_.init_from(seen)
        self._unit = 1.0 if self._log_link else seen.variance**0.5
        self.kernels_ = _as_kernels(self.kernels)
        self.loading_, self.offset_ = _principal_loadings(data, len(self.kernels_), self._log_link)
        longest = max(len(y) for y in data)
        for i, kernel in enumerate(self.kernels_):
            _start_lengths(kernel, longest)
            if longest > 1 and kernel.is_stationary and _open_oscillation(kernel):
                self.kernels_[i] = _whittle_start(kernel, self._read_out(data, i))

    def _read_out(self, data: Sequence[Tensor], latent: int) -> Tensor:
        """A noisy latent, linear in the counts, trial by trial [longest, R]; NaN after the end of a trial."""
        joined = torch.cat(list(data))
        level = joined.nanmean(0)
        gain = self.loading_ * level.unsqueeze(1) if self._log_link else self.loading_
        latents = torch.nan_to_num(joined - level) @ torch.linalg.pinv(gain.mT)
        parts = list(latents[:, latent].split([len(y) for y in data]))
        return torch.nn.utils.rnn.pad_sequence(parts, padding_value=math.nan)

    @property
    def _log_link(self) -> bool:
        """Whether targets are positive where a latent function is zero."""
        zero = torch.zeros(1, dtype=torch.float64)
        return bool(self.likelihood_.predict(zero, zero + 1e-6).mean > 0.1)

    @torch.no_grad()
    def _infer(
        self, bins: Bins, y: Tensor, start: VectorSites | None
    ) -> tuple[float, VectorSites, tuple[Tensor, Tensor]]:
        """Bound, sites and moments at the present parameters, by damped steps that never lower the bound."""
        L = len(self.kernels_)
        none = VectorSites(torch.zeros(len(y), L).double(), torch.zeros(len(y), L, L).double())
        sites, step = start or none, 1.0 if start else 0.5
        bound, target, found = self._bound(bins, y, sites)
        for _ in range(SITE_STEPS):
            trial = sites.towards(target, step)
            new, new_target, new_found = self._bound(bins, y, trial)
            if not new >= bound - 1e-9 * abs(bound):
                step *= 0.5
                continue
            gain, sites, bound, target, found = new - bound, trial, new, new_target, new_found
            step = min(1.0, 1.5 * step)
            if gain < SITE_TOLERANCE * y.numel() ** 0.5 and step == 1.0:
                break
        return bound, sites, found

    def _bound(self, bins: Bins, y: Tensor, sites: VectorSites) -> tuple[float, VectorSites, tuple[Tensor, Tensor]]:
        found = smooth(self.kernels_, bins, sites)
        expected, target = update(self.likelihood_, y, self.loading_, self.offset_, found.mean, found.variance)
        bound = found.log_partition + expected - sites.expected_log(found.mean, found.variance)
        return float(bound), target, (found.mean, found.variance)

    def _learn_readout(self, y: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Loadings and offsets, and the likelihood's own parameters, at fixed posteriors of the latents."""
        readout = Readout(self.likelihood_, y, mean, variance)
        self.loading_, self.offset_ = readout.climbed(self.loading_, self.offset_, READOUT_STEPS)
        own = [p for p in self.likelihood_.parameters() if p.requires_grad]
        if own:
            _ascend(lambda: readout.expected(self.loading_, self.offset_).sum(), own, OWN_STEPS)

    @property
    def _coordinates(self) -> Coordinates:
        return Coordinates([(f"kernel.{i}", kernel) for i, kernel in enumerate(self.kernels_)])

    def _parameters(self) -> np.ndarray:
        """Loadings and offsets, without unit, and what is learned of the kernels."""
        readout = torch.cat([self.loading_.flatten(), self.offset_]) / self._unit
        return np.concatenate([readout.numpy(), self._coordinates.read()])

    def _assign(self, values: np.ndarray) -> None:
        """Parameters, kept within their bounds."""
        N, L = self.loading_.shape
        loading, offset, kernels = np.split(values, [N * L, N * L + N])
        self.loading_ = self._unit * torch.tensor(loading).reshape(N, L)
        self.offset_ = self._unit * torch.tensor(offset)
        self._coordinates.assign(np.clip(kernels, *self._coordinates.bounds().T))

    def _learn_kernels(self, bins: Bins, sites: VectorSites) -> None:
        """The kernels at fixed sites: where the sites are optimal, the log partition has the gradient of the bound."""
        coordinates = self._coordinates
        if coordinates.entries:
            _climb(lambda: smooth(self.kernels_, bins, sites).log_partition, coordinates, KERNEL_STEPS)

    def _predictions(self, bins: Bins, mean: Tensor, variance: Tensor) -> list[Prediction]:
        spread = variance.diagonal(dim1=-2, dim2=-1).sqrt()
        pairs = zip(bins.split(mean), bins.split(spread), strict=True)
        return [Prediction(Normal(m, s, validate_args=False), of="f") for m, s in pairs]


def bits_per_spike(rates: Sequence[Tensor], counts: Sequence[Any]) -> float:
    """``(log p(counts | rates) - log p(counts | mean counts)) / (spikes log 2)`` for Poisson counts; NaN is left out.

    >>> bits_per_spike([torch.full((4, 1), 2.0)], [np.full((4, 1), 2.0)])
    0.0
    """
    rate = torch.cat(list(rates)).double()
    y = torch.cat([torch.as_tensor(np.asarray(c), dtype=torch.float64) for c in counts])
    level = y.nanmean(0).expand_as(y)
    gain = torch.nansum(torch.special.xlogy(y, rate) - rate - torch.special.xlogy(y, level) + level)
    return float(gain / (torch.nansum(y) * math.log(2)))


def _mixed(rounds: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Anderson's combination of the last rounds, whose changes cancel best. Source: Walker & Ni (2011)."""
    starts, ends = (np.stack(part) for part in zip(*rounds, strict=True))
    changes = ends - starts
    weights = np.linalg.lstsq(np.diff(changes, axis=0).T, changes[-1], rcond=None)[0]
    return ends[-1] - weights @ np.diff(ends, axis=0)


def _ascend(value: Callable[[], Tensor], tensors: Sequence[Tensor], steps: int) -> None:
    """A few steps of L-BFGS uphill; the tensors are moved."""

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.no_grad():
            for tensor, part in zip(tensors, torch.as_tensor(z).split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.reshape(tensor.shape))
        with torch.enable_grad():
            total = value()
            grads = torch.autograd.grad(total, list(tensors))
        return -float(total.detach()), -torch.cat([g.reshape(-1) for g in grads]).numpy()

    start = torch.cat([t.detach().reshape(-1) for t in tensors]).numpy().copy()
    loss(lbfgs(loss, start, options={"maxiter": steps}).x)


def _climb(value: Callable[[], Tensor], coordinates: Coordinates, steps: int) -> None:
    """A few steps of L-BFGS uphill, in coordinates that have a natural unit each, within their bounds."""

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        coordinates.assign(z)
        with torch.enable_grad():
            total = value()
            grads = torch.autograd.grad(total, coordinates.raws)
        return -float(total.detach()), -coordinates.gradient(z, grads)

    bounds = coordinates.bounds()
    start = np.clip(coordinates.read(), *bounds.T)
    loss(lbfgs(loss, start, bounds=bounds, options={"maxiter": steps}).x)


def _principal_loadings(data: Sequence[Tensor], latents: int, log_link: bool) -> tuple[Tensor, Tensor]:
    """Loadings [N, L] and offsets [N] that make unit-variance latents of the principal components."""
    filled = [torch.where(torch.isnan(y), torch.nanmean(torch.cat(list(data)), 0), y) for y in data]
    smoothed = torch.cat([torch.as_tensor(gaussian_filter1d(y.numpy(), WINDOW, axis=0)) for y in filled])
    level = smoothed.mean(0)
    signal = torch.log(smoothed + 0.1 * level + 1e-3) if log_link else smoothed
    centred = signal - signal.mean(0)
    if latents > min(centred.shape):
        raise InputError(f"{latents} latents need at least as many neurons and bins, got {list(centred.shape)[::-1]}.")
    _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    loading = axes[:latents].mT * singular[:latents] / len(centred) ** 0.5
    return loading, torch.log(level + 1e-3) - 0.5 * loading.square().sum(1) if log_link else level


def _start_lengths(kernel: gpytorch.kernels.Kernel, bins: int) -> None:
    """A lengthscale that was left open starts at a twentieth of a trial."""
    for module in kernel.modules():
        choices = getattr(module, "choices", {})
        if "lengthscale" in choices and not choices["lengthscale"].given:
            module.assign("lengthscale", max(2.0, bins / 20))


def _open_oscillation(kernel: gpytorch.kernels.Kernel) -> bool:
    """Whether a frequency or a period was left to the data."""
    owners = [getattr(module, "choices", {}) for module in kernel.modules()]
    choices = [owner[name] for owner in owners for name in ("frequency", "period") if name in owner]
    return any(not (choice.given or choice.fixed) for choice in choices)


def _whittle_start(kernel: gpytorch.kernels.Kernel, series: Tensor) -> gpytorch.kernels.Kernel:
    """The kernel with the values of the debiased Whittle likelihood of series [T, R] that are it, some scale and noise.

    Around a frequency of zero the bound has no slope, and it has an optimum at many others.
    """
    gp = GP(gpytorch.kernels.ScaleKernel(kernel), mean="zero", engine=StateSpace(), objective=Whittle())
    return gp.fit(torch.arange(len(series)).double(), series).kernel_.base_kernel


def _as_kernels(kernels: Any) -> list[gpytorch.kernels.Kernel]:
    """Own copies, whose scales are not learned."""
    if kernels is None:
        kernels = [HidaMatern(1, frequency=0.0) for _ in range(2)]
    given = list(kernels) if isinstance(kernels, (list, tuple)) else [kernels]
    if not given or not all(isinstance(k, (str, gpytorch.kernels.Kernel)) for k in given):
        raise InputError(
            f"kernels must be a list of one kernel per latent, such as [kernels.HidaMatern(1)], got {kernels!r}."
        )
    own = [parse(k) if isinstance(k, str) else copy.deepcopy(k) for k in given]
    for kernel in own:
        fix_outputscale(kernel)
        if "outputscale" in getattr(kernel, "choices", {}):
            kernel.fix("outputscale")  # one that was given is not learned either
    return [kernel.double() for kernel in own]


def _as_likelihood(likelihood: Any) -> Likelihood:
    if isinstance(likelihood, str) and likelihood in LIKELIHOODS:
        return LIKELIHOODS[likelihood]().double()
    if isinstance(likelihood, Likelihood) and likelihood.num_latents == 1:
        return copy.deepcopy(likelihood).double()
    names = ", ".join(map(repr, LIKELIHOODS))
    raise InputError(f"likelihood must be {names} or a likelihood with one latent function, got {likelihood!r}.")


def _as_trial(trial: Any, index: int, neurons: int | None = None) -> Tensor:
    y = torch.as_tensor(np.asarray(trial, dtype=float))
    if y.dim() != 2 or not len(y):
        raise InputError(f"Trial {index} must be an array [bins, neurons], got shape {list(y.shape)}.")
    if bool(torch.isinf(y).any()):
        raise InputError(f"Trial {index} has infinite values; a missing value is NaN.")
    if neurons is not None and y.shape[1] != neurons:
        raise InputError(f"Trial {index} has {y.shape[1]} neurons (columns), the fit had {neurons}.")
    return y


def _check(likelihood: Likelihood, y: Tensor, index: int) -> None:
    bad = ~torch.isnan(y) & ~likelihood.allows(torch.nan_to_num(y))
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise InputError(
            f"{type(likelihood).__name__} needs {likelihood.domain}; trial {index} has {float(y[row, column]):g} in bin {row},"
            f" neuron {column}."
        )
