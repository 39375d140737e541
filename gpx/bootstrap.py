"""Parametric bootstrap: simulate from a fitted model, fit again, and see how the estimates scatter."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import gpytorch
import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from gpx.errors import InputError, NumericalError, StructureError
from gpx.inference.coordinates import Coordinates, trainable_modules
from gpx.inference.fit import fit
from gpx.inference.objectives import Objective
from gpx.inference.problem import Problem, Solved
from gpx.inference.result import FitOptions
from gpx.inference.stage import Reached
from gpx.posterior import draw_count, make_generator
from gpx.progress import progress_bar
from gpx.sites import Sites

METHODS = ("percentile", "bias-corrected")


@dataclass(frozen=True)
class Bootstrap:
    """Estimates of P hyperparameters in user units: names, those of the fit [P], and those of n simulated data sets [n, P].

    failed: simulated data sets whose fit did not converge; their estimates are among the draws unless they have none.
    """

    names: tuple[str, ...]
    estimate: np.ndarray
    draws: np.ndarray
    failed: int = 0

    @property
    def standard_errors(self) -> np.ndarray:
        """[P]: standard deviations of the draws."""
        return self.draws.std(0, ddof=1)

    @property
    def bias(self) -> np.ndarray:
        """[P]: mean of the draws minus the estimate."""
        return self.draws.mean(0) - self.estimate

    def interval(self, level: float = 0.95, method: str = "percentile") -> np.ndarray:
        """Confidence intervals [P, 2] of probability `level`.

        Arguments: method: "percentile": quantiles of the draws; "bias-corrected": quantiles at levels that are moved by
        twice the normal score of the share of draws below the estimate, which undoes a bias of the median.
        Raises: InputError for another method or level. Source: Efron & Tibshirani (1993), "An introduction to the
        bootstrap", sections 13.3 and 14.3 (without acceleration).
        """
        if method not in METHODS:
            raise InputError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")
        if not isinstance(level, (int, float)) or not 0 < level < 1:
            raise InputError(f"level must be between 0 and 1, got {level!r}; write 0.95 for a 95 % interval.")
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        pairs = zip(self.draws.T, self.estimate, strict=True)
        return np.array([_quantiles(d, e, tails, method == "bias-corrected") for d, e in pairs]).reshape(-1, 2)

    def __str__(self) -> str:
        head = ("parameter", "estimate", "std. error", "bias", "95 % interval")
        numbers = zip(self.estimate, self.standard_errors, self.bias, self.interval(), strict=True)
        body = [
            (name, f"{e:.4g}", f"{s:.4g}", f"{b:.2g}", f"[{i[0]:.4g}, {i[1]:.4g}]")
            for name, (e, s, b, i) in zip(self.names, numbers, strict=True)
        ]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *body)]
        return "\n".join([*lines, f"{len(self.draws)} simulated data sets, {self.failed} fits did not converge"])

    __repr__ = __str__


def _quantiles(draws: np.ndarray, estimate: float, tails: np.ndarray, corrected: bool) -> np.ndarray:
    if corrected:
        # Draws equal to the estimate, such as those at a bound, count half; no share is 0 or 1.
        below = (draws < estimate).mean() + 0.5 * (draws == estimate).mean()
        shift = norm.ppf(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
        tails = norm.cdf(norm.ppf(tails) + 2 * shift)
    return np.quantile(draws, tails)


def bootstrap(
    solved: Solved, objective: Objective, n: int, seed: int | None = 0, verbose: bool | None = None
) -> Bootstrap:  # fmt: skip
    """n data sets drawn from a fitted model at its inputs, each fitted from the estimates of the model, priors included.

    Missing targets stay missing. The model is left as it is. Cost: that of n fits from a close start.
    Raises: InputError for n < 2 or nothing to learn; StructureError for a likelihood that is not Gaussian; NumericalError if
    every fit fails.
    """
    if draw_count(n) < 2:
        raise InputError(f"A bootstrap needs n >= 2 data sets, got {n}; 200 are enough for standard errors.")
    if solved.data.team.size > 1:
        raise StructureError(
            "bootstrap needs all rows in one process: save the model, load it in one process, and call bootstrap there."
        )
    problem = copy.deepcopy(solved.anew())
    sites = problem.likelihood.exact_sites(problem.data)
    if sites is None:
        raise StructureError(
            f"bootstrap simulates Gaussian noise, not {type(problem.likelihood).__name__}: use the standard errors of"
            " gp.parameters()."
        )
    modules = trainable_modules(problem.prior.mean, problem.prior.kernels, problem.likelihood)
    coordinates = Coordinates(modules)
    start = coordinates.read()
    if not len(start):
        raise InputError("All parameters are fixed: there is nothing to fit to simulated data.")
    names, estimate = tuple(coordinates.labels()), np.array(coordinates.values())
    targets = simulate(problem, sites, n, make_generator(seed, problem.data.x.device))
    options, draws, failed = FitOptions(verbose=False), [], 0
    with progress_bar(n, "bootstrap", verbose) as bar:
        for y in targets:
            coordinates.assign(start)
            data = replace(problem.data, y=torch.where(problem.data.observed, y, torch.nan))
            again = Problem.planned(problem.prior, data, problem.likelihood, problem.engine, problem.rule)
            try:
                result, _ = fit(again, objective, coordinates, options, Reached(start[None]))
                failed += not result.converged
                draws.append(coordinates.values())
            except NumericalError:
                failed += 1
            bar.update()
    if len(draws) < 2:
        raise NumericalError(f"{failed} of {n} fits to simulated data failed; look at gp.result_ and gp.check().")
    return Bootstrap(names, estimate, np.array(draws), failed)


@torch.no_grad()
def simulate(problem: Problem, sites: Sites, n: int, generator: torch.Generator) -> Tensor:
    """n sets of targets [n, N, P] from the prior of a problem, with noise of the precisions of the sites."""
    nothing = Sites(torch.zeros_like(sites.nu), torch.zeros_like(sites.tau))
    if problem.prior.basis is not None:  # the evidence is the same whatever the trend is
        problem = replace(problem, prior=replace(problem.prior, mean=gpytorch.means.ZeroMean()))
    f = problem.condition(nothing).sample(problem.data.x, n, generator)
    noise = torch.randn(f.shape, generator=generator, dtype=f.dtype, device=f.device)
    return f + noise * sites.tau.clamp_min(torch.finfo(f.dtype).tiny).rsqrt()
