"""Latent trajectories: spike counts of 50 neurons driven by a Van der Pol oscillator; the latents recovered up to an affine map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

RATES = (5.0, 0.3, 0.1)
NEURONS, TRIALS, BINS, BURN_IN = 50, 10, 500, 50
WINDOWS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20)  # of Gaussian smoothing, in bins


def simulate(rate: float, setting: Setting) -> tuple[list[ndarray], list[ndarray]]:
    """States [bins, 2] and counts [bins, 50] per trial: ``x'' = 1.5 (1 - x^2) x' - x``, 5 steps of 0.02 per bin."""
    import numpy as np

    random = np.random.default_rng(setting.seed)
    trials, bins = (2, 100) if setting.quick else (TRIALS, BINS)
    paths = []
    for _ in range(trials):
        x, path = random.normal(size=2), []
        for _ in range(bins + BURN_IN):
            for _ in range(5):
                drift = np.array([x[1], 1.5 * (1 - x[0] ** 2) * x[1] - x[0]])
                x = x + 0.02 * drift + 0.004 * random.normal(size=2)
            path.append(x)
        paths.append(np.array(path)[BURN_IN:])
    joined = np.concatenate(paths)
    paths = [(x - joined.mean(0)) / joined.std(0) for x in paths]
    loading = 0.6 * random.normal(size=(NEURONS, 2))
    return paths, [random.poisson(rate * np.exp(x @ loading.T - 0.36)) for x in paths]


def affine_r2(paths: list[ndarray], estimates: list[ndarray]) -> float:
    """Share of the variance of the pooled states that an affine map of the estimates explains."""
    import numpy as np

    states, estimate = np.concatenate(paths), np.concatenate(estimates)
    design = np.c_[estimate, np.ones(len(estimate))]
    rest = states - design @ np.linalg.lstsq(design, states, rcond=None)[0]
    return float(1 - (rest**2).sum() / ((states - states.mean(0)) ** 2).sum())


def components(signal: list[ndarray]) -> list[ndarray]:
    """The first two principal components of every trial."""
    import numpy as np

    joined = np.concatenate(signal)
    axes = np.linalg.svd(joined - joined.mean(0), full_matrices=False)[2][:2]
    return [(s - joined.mean(0)) @ axes.T for s in signal]


def hidden(trial: ndarray) -> ndarray:
    """The trial without its first half of neurons."""
    import numpy as np

    return np.where(np.arange(NEURONS) < NEURONS // 2, np.nan, trial)


def held_out_bits(rates: ndarray, trial: ndarray) -> float:
    """Bits per spike of the neurons that were hidden; their mean counts in the trial itself are zero."""
    import torch

    import gpx

    half = slice(0, NEURONS // 2)
    return gpx.models.bits_per_spike([torch.as_tensor(rates[:, half])], [trial[:, half]])


def run_gpx(setting: Setting) -> dict[str, float]:
    """`LatentTrajectories()` as it is, hyperparameters learned; and the neurons of the last trial that were hidden."""
    import gpx

    found: dict[str, float] = {}
    for rate in RATES:
        paths, counts = simulate(rate, setting)
        gpx.models.LatentTrajectories().fit([counts[0][:40]], max_rounds=1)
        model, seconds = timed(lambda counts=counts: gpx.models.LatentTrajectories().fit(counts))
        found[f"rate {rate:g}: R2"] = affine_r2(paths, [p.mean.numpy() for p in model.latents_])
        found[f"rate {rate:g}: fit time"] = seconds
        (rates,) = gpx.models.LatentTrajectories().fit(counts[:-1]).predict_rates([hidden(counts[-1])])
        found[f"rate {rate:g}: bits per held-out spike"] = held_out_bits(rates.numpy(), counts[-1])
    return found


def run_factor_analysis(setting: Setting) -> dict[str, float]:
    """Poisson factor analysis, fitted on all trials but the last; its factors of all trials, and the hidden neurons of the last."""
    import numpy as np

    from benchmarks.tasks import factor_analysis

    found: dict[str, float] = {}
    for rate in RATES:
        paths, counts = simulate(rate, setting)
        start = factor_analysis.principal_start(counts[:-1], 2)
        model, seconds = timed(
            lambda counts=counts, start=start: factor_analysis.fit(np.concatenate(counts[:-1]), start)
        )
        factors = factor_analysis.infer(np.concatenate(counts), model)[1]
        found[f"rate {rate:g}: R2"] = affine_r2(paths, [factors])
        found[f"rate {rate:g}: fit time"] = seconds
        _, mean, cov = factor_analysis.infer(hidden(counts[-1]), model)
        found[f"rate {rate:g}: bits per held-out spike"] = held_out_bits(
            factor_analysis.predicted(model, mean, cov), counts[-1]
        )
    return found


def run_components(setting: Setting) -> dict[str, float]:
    """Principal components of the square root of smoothed counts, with the window that turns out best."""
    import numpy as np
    from scipy.ndimage import gaussian_filter1d

    found: dict[str, float] = {}
    for rate in RATES:
        paths, counts = simulate(rate, setting)
        smooth = [[np.sqrt(gaussian_filter1d(c.astype(float), w, axis=0)) for c in counts] for w in WINDOWS]
        found[f"rate {rate:g}: R2"] = max(affine_r2(paths, components(s)) for s in smooth)
    return found


TASK = Task(
    name="trajectories",
    description="Two latents of a Van der Pol oscillator behind Poisson counts of 50 neurons, 10 trials of 500 bins.",
    metrics=tuple(
        metric
        for rate in RATES
        for metric in (
            Metric(f"rate {rate:g}: R2", "", "difference"),
            Metric(f"rate {rate:g}: fit time", "s"),
            Metric(f"rate {rate:g}: bits per held-out spike", "bits", "difference"),
        )
    ),
    models={"gpx": run_gpx, "factor-analysis": run_factor_analysis, "principal-components": run_components},
)
