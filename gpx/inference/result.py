"""What a fit is told, and what it tells."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from gpx.inference.infer import Inferred
from gpx.inference.problem import Problem

GAP = 0.1  # nats between the bounds of the evidence that are worth telling
MOST_NAMES = 8  # of values at bounds that are told
LOSS = 0.01  # nats per target by which inducing inputs lower the evidence that are


@dataclass(frozen=True)
class FitOptions:
    """max_iter: iterations per start; restarts: further random starts; max_seconds: for all together."""

    max_iter: int = 200
    restarts: int = 0
    seed: int | None = 0
    max_seconds: float | None = None
    verbose: bool | None = None

    def after(self, result: FitResult) -> FitOptions | None:
        """For going on from the end of a fit with these; None where nothing is left of iterations or time."""
        iterations = self.max_iter - result.iterations
        seconds = None if self.max_seconds is None else self.max_seconds - result.seconds
        if iterations < 1 or (seconds is not None and seconds <= 0):
            return None
        return replace(self, max_iter=iterations, max_seconds=seconds, restarts=0)


@dataclass(frozen=True)
class FitResult:
    """How a fit ended.

    objective: value at the optimum, nats, without priors; log_prior: log density of the priors in the coordinates;
    gradient_norm: largest entry of the gradient in log coordinates, nats; at_bounds: names of values at their bounds;
    objectives: the final value of every start; jitter: by what share the noise variances were raised so that the final
    factorisation succeeded; rejected: trial points at which the objective was not finite, or far below the best;
    sites_converged, site_steps, site_residual: how the search for the sites of the likelihood ended at the optimum;
    zero_precisions: observed targets whose precision was cut at zero there; unconverged: evaluations during the fit whose
    sites did not converge; evidence_bounds: of the log evidence at the optimum, nats, for a Gaussian likelihood: from below and
    above, equal where the engine is exact, None where one is not known; gap_per_target: between them; inducing: how many inducing
    inputs there are; loss_per_target: the trace term ``sum tau d / 2`` of what they do not explain; nats, per observed target;
    components, components_left: how many weights were learned by multiplicative updates, and how many of them are not zero;
    largest_ratio: ``a^T K_q a / tr(C^-1 K_q)`` of those that are zero, at most 1 at an optimum;
    bits_sent: by all agents of a quantised consensus, for the weights.
    """

    converged: bool
    reason: str
    objective: float
    log_prior: float
    iterations: int
    evaluations: int
    rejected: int
    gradient_norm: float
    seconds: float
    seed: int | None
    jitter: float = 0.0
    at_bounds: tuple[str, ...] = ()
    objectives: tuple[float, ...] = ()
    starts: dict[str, float] = field(default_factory=dict)
    sites_converged: bool = True
    site_steps: int = 0
    site_residual: float = 0.0
    zero_precisions: int = 0
    unconverged: int = 0
    evidence_bounds: tuple[float, float] | None = None
    gap_per_target: float | None = None
    inducing: int = 0
    loss_per_target: float = 0.0
    components: int = 0
    components_left: int = 0
    largest_ratio: float = 0.0
    bits_sent: int = 0

    def after(self, first: FitResult) -> FitResult:
        """That of a fit which went on from the end of another."""
        counts = ("iterations", "evaluations", "rejected", "unconverged", "seconds", "bits_sent")
        sums = {name: getattr(first, name) + getattr(self, name) for name in counts}
        return replace(self, **sums, starts=first.starts)

    def inferred(self, solution: Inferred, problem: Problem) -> FitResult:
        """With what is known of the posterior at the optimum."""
        posterior, targets, bounds = solution.posterior, max(1, problem.data.targets), None
        if problem.conjugate:
            bounds = float(posterior.log_density), float(posterior.log_density_limit)
        bounds = None if bounds is None or math.isnan(bounds[1]) else bounds
        return replace(
            self,
            evidence_bounds=bounds,
            gap_per_target=None if bounds is None else (bounds[1] - bounds[0]) / targets,
            inducing=posterior.inducing,
            loss_per_target=float(posterior.unexplained) / targets,
            jitter=solution.posterior.jitter,
            sites_converged=solution.converged,
            site_steps=solution.steps,
            site_residual=solution.residual,
            zero_precisions=solution.zero_precisions,
        )

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        text = (
            f"{state}: {self.reason}; objective {self.objective:.4f} nats after {self.iterations} iterations"
            f" ({self.evaluations} evaluations, {self.seconds:.1f} s)"
        )
        if not self.sites_converged:
            text += f"; the sites of the likelihood did NOT converge (residual {self.site_residual:.1e})"
        if self.evidence_bounds is not None and self.evidence_bounds[1] - self.evidence_bounds[0] > GAP:
            between = "; log evidence between {:.1f} and {:.1f}".format(*self.evidence_bounds)
            text += f"{between}, {self.gap_per_target:.2g} per target"
        if self.loss_per_target > LOSS:
            text += f"; {self.inducing} inducing inputs lose {self.loss_per_target:.2g} nats per target"
        if self.components:
            text += f"; {self.components_left} of {self.components} weights are not zero, the others' largest ratio is"
            text += f" {self.largest_ratio:.4f} (optimal up to 1)"
        if self.bits_sent:
            text += f"; {self.bits_sent:,} bits sent"
        if self.zero_precisions:
            text += f"; {self.zero_precisions} site precision(s) cut at zero"
        shown = self.at_bounds[:MOST_NAMES]
        more = f" and {len(self.at_bounds) - len(shown)} more" if len(shown) < len(self.at_bounds) else ""
        return text + (f"; at bounds: {', '.join(shown)}{more}" if shown else "")
