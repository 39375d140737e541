"""``rule="auto"`` and ``objective="auto"``: what goes with a likelihood, and what does not."""

from __future__ import annotations

from typing import Any

from gpx.engines.base import Engine
from gpx.errors import InputError, StructureError
from gpx.inference.objectives import ELBO, EPEvidence, Evidence, Objective
from gpx.inference.rules import ExpectationPropagation, Laplace, Rule, Variational
from gpx.likelihoods import Likelihood

POWER = 0.5  # of EP through inducing inputs: the best of Bui, Yan & Turner (2017) over many data sets


def choose_rule(rule: Any, likelihood: Likelihood, engine: Engine, objective: Any) -> Rule:
    """The rule: the variational one unless another was asked for; power EP for the EP evidence through inducing inputs.

    Raises: InputError for what is no rule; StructureError for one that a likelihood of several latent functions cannot use.
    """
    if isinstance(rule, str) and rule == "auto":
        return ExpectationPropagation(POWER) if engine.partial and isinstance(objective, EPEvidence) else Variational()
    if isinstance(rule, (str, type)) or not hasattr(rule, "update"):
        raise InputError(f"rule must be 'auto' or an object such as rules.Variational(), got {rule!r}.")
    if likelihood.num_latents > 1 and not getattr(rule, "several_latents", False):
        raise StructureError(
            f"rules.{type(rule).__name__} needs one latent function per datum, {type(likelihood).__name__} has"
            f" {likelihood.num_latents}; use rules.Variational()."
        )
    return rule


def choose_objective(objective: Any, likelihood: Likelihood, rule: Rule, engine: Engine) -> Objective:
    """The objective: the evidence where it has a closed form, else its EP approximation; the ELBO for several latents, and for
    engines that are not exact, where the EP approximation can diverge and the ELBO is a bound.

    Raises: InputError for what is no objective.
    """
    if not (isinstance(objective, str) and objective == "auto"):
        if not isinstance(objective, Objective):
            raise InputError(
                f"objective must be 'auto' or an object such as objectives.Evidence(), got {objective!r}; one of your own is a"
                " subclass of objectives.Objective."
            )
        return objective
    sought = engine.partial and isinstance(rule, ExpectationPropagation)
    if likelihood.conjugate and not sought or isinstance(rule, Laplace):
        return Evidence()
    return EPEvidence() if likelihood.num_latents == 1 and (engine.exact or likelihood.conjugate) else ELBO()
