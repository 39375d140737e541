"""Latent trajectories of a population: many counts per bin, driven by a few Gaussian processes in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gpytorch
import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import Normal

from gpx.errors import InputError
from gpx.kernels import HidaMatern
from gpx.likelihoods import Gaussian, Likelihood, NegativeBinomial, Poisson
from gpx.models.population import Bins, VectorSites, smooth, update
from gpx.posterior import Prediction
from gpx.progress import progress_bar

LIKELIHOODS = {"poisson": Poisson, "gaussian": Gaussian, "negative_binomial": NegativeBinomial}
ROUNDS, TOLERANCE = 50, 1e-5  # of the whole fit; nats per datum
SITE_STEPS, SITE_TOLERANCE = 30, 1e-6
KERNEL_STEPS, READOUT_STEPS = 5, 15
WINDOW = 3.0  # standard deviation of the smoothing, in bins, that starts the loadings


@dataclass
class LatentTrajectories:
    """``y_tn ~ likelihood(c_n . x_t + d_n)``, the latents x_l independent Gaussian processes of the bin index.

    Every bin has a Gaussian site on all latents, so that the posterior of the trajectories is that of a Kalman smoother; loadings,
    offsets and kernels maximise the evidence lower bound.

    Parameters
    ----------
    kernels : one kernel of one input per latent, with a state-space form; their outputscales stay 1, as the loadings have the
        scale. None: two of `HidaMatern(order=1, frequency=0)`.
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

    def fit(self, trials: Sequence[Any], *, max_rounds: int = ROUNDS, verbose: bool | None = None) -> LatentTrajectories:
        """Learn from trials: a list of [T_r, N] arrays of counts, NaN where missing; lengths may differ.

        Raises: InputError for trials with different numbers of neurons or counts that the likelihood does not allow.
        """
        data = [_as_trial(trial, i) for i, trial in enumerate(trials)]
        self._start(data)
        bins = Bins.of([len(y) for y in data])
        y, sites, before = torch.cat(data), None, -np.inf
        with progress_bar(max_rounds, "fit", verbose) as bar:
            for _ in range(max_rounds):
                sites, found = self._infer(bins, y, sites)
                bar.update()
                bar.set_postfix_str(f"ELBO {self.elbo_:.2f}", refresh=False)
                if self.elbo_ - before < TOLERANCE * y.numel():
                    break
                before = self.elbo_
                self._learn_readout(y, *found)
                self._learn_kernels(bins, sites)
        sites, (mean, variance) = self._infer(bins, y, sites)
        self.latents_ = self._predictions(bins, mean, variance)
        return self
