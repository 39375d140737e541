"""From the parts of a model and data to a problem: copies, bound to the columns of the data, with starts derived from them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gpytorch
import torch

from gpx.engines.auto import ENGINES, choose_engine, named_engine
from gpx.engines.base import Engine
from gpx.errors import InputError, StructureError
from gpx.inference.auto import choose_objective, choose_rule
from gpx.inference.objectives import Objective
from gpx.inference.problem import Problem
from gpx.inputs import Data
from gpx.kernels.auto import auto_kernel
from gpx.kernels.base import bind
from gpx.kernels.expressions import parse, parse_call
from gpx.kernels.walk import init_from
from gpx.likelihoods import FromGPyTorch, Gaussian, Likelihood
from gpx.means import as_mean
from gpx.parameters import Parameterised
from gpx.prior import Prior

if TYPE_CHECKING:
    from gpx.gp import GP

VIEWED = 100_000  # rows of all processes that starts are derived from


def check_parts(gp: GP) -> None:
    """Fail early on what can be seen without data. Raises: InputError."""
    kernel, likelihood, engine = gp.kernel, gp.likelihood, gp.engine
    as_mean(gp.mean)
    if isinstance(likelihood, type) or not (likelihood is None or isinstance(likelihood, gpytorch.Module)):
        raise InputError(f"likelihood must be a gpx likelihood such as likelihoods.Gaussian(), got {likelihood!r}.")
    _likelihood(likelihood)
    for part in kernel if isinstance(kernel, (list, tuple)) else [kernel]:
        if isinstance(part, str) and part != "auto":
            parse(part)
        elif not isinstance(part, (str, gpytorch.kernels.Kernel)):
            raise InputError(f"kernel must be a kernel such as kernels.Matern(), or its name, got {part!r}.")
    if isinstance(engine, str) and engine != "auto":
        parse_call(engine, ENGINES, "engine")


def assemble(gp: GP, data: Data, instead: tuple[Engine, str] | None = None) -> tuple[Problem, Objective, str]:
    """Copies of the parts, bound to the data; the objective; why the engine was chosen.

    Arguments: instead: an engine in the place of that of the model, and why.
    Raises: InputError for data without rows, targets that the likelihood does not allow, or parts that do not fit the data.
    """
    if not data.count:
        raise InputError("X has no rows.")
    likelihood = _likelihood(gp.likelihood)
    data.team.together(lambda: likelihood.check(data))
    asked = named_engine(gp.engine)
    private = getattr(asked, "private", False)
    if (
        private
        and data.team.size > 1
        and "auto" in (gp.kernel if isinstance(gp.kernel, (list, tuple)) else [gp.kernel])
    ):
        raise InputError(
            "kernel='auto' looks at the rows of all processes, which engines.Agents keeps apart: name a kernel."
        )
    kernels = _kernels(gp.kernel, likelihood, _view(data, private))
    mean = copy.deepcopy(as_mean(gp.mean))
    for kernel in kernels:
        bind(kernel, data.columns)
    if hasattr(mean, "bind"):
        mean.bind(data, data.y.shape[1] * likelihood.num_latents)
    for module in (mean, likelihood, *kernels):
        module.to(dtype=data.x.dtype, device=data.x.device)
    prior = Prior(mean, tuple(kernels))
    engine, reason = instead or choose_engine(asked, prior, data, likelihood.exact_sites(data))
    rule = choose_rule(gp.rule, likelihood, engine, gp.objective)
    objective = choose_objective(gp.objective, likelihood, rule, engine)
    _check_team(data, engine, objective)
    if prior.basis is not None:
        _check_flat(data, likelihood, engine, objective)
    problem = Problem.planned(prior, data, likelihood, engine, rule)
    objective.check(problem)
    return problem, objective, reason


def reconsidered(gp: GP, problem: Problem) -> tuple[Engine, str] | None:
    """The engine that "auto" chooses at the hyperparameters of a problem, and why, where the one it has is wrong for them."""
    if gp.engine != "auto" or problem.engine.faithful(problem.prior):
        return None
    return choose_engine("auto", problem.prior, problem.data, problem.likelihood.exact_sites(problem.data))


def start_from_data(problem: Problem, priors: str | None) -> None:
    """Start what the user left open from the data, as each latent function sees them."""
    prior, likelihood, data = problem.prior, problem.likelihood, _view(problem.data, problem.engine.private)
    latents = likelihood.latent_data(data)
    if prior.basis is not None:
        latents = [part.without(prior.basis(part.x)) for part in latents]
    stacked = torch.stack([part.y for part in latents], -1).flatten(1)
    variances = data.y.new_tensor([part.variance for part in latents]).repeat(data.y.shape[1])
    average = latents[0].with_targets(stacked, variances)
    latent = [
        (module, part.seen()) for module, part in zip((prior.mean, *prior.kernels), (average, *latents), strict=False)
    ]
    for module, view in [*latent, (likelihood, data)]:
        init_from(module, view)
        for part in module.modules():
            if priors is None and isinstance(part, Parameterised):
                part.drop_weak_priors()
        if problem.engine.private:  # every process has seen other rows
            module.load_state_dict(problem.data.team.share(module.state_dict))


def _view(data: Data, private: bool) -> Data:
    """All rows, where one process has them; else as many of all processes as starts need, the same in every one, or the own
    ones where these are private.
    """
    if data.team.size == 1 or private:
        return data
    return (data if data.count <= VIEWED else data.rows(data.draw(VIEWED))).gathered()


def _check_team(data: Data, engine: Engine, objective: Objective) -> None:
    """Raise StructureError if several processes cannot share the rows."""
    if data.team.size == 1:
        return
    if not engine.additive:
        raise StructureError(
            f"engines.{type(engine).__name__} needs all rows in one process, here are {data.team.size}: use"
            " engines.SparseVariational(M) or engines.Coreset(M), or let every process fit a model of its own, with"
            " team=gpx.parallel.ALONE."
        )
    if objective.needs_all_rows:
        raise StructureError(
            f"objectives.{type(objective).__name__} needs all rows in one process, here are {data.team.size}: use"
            " objective='auto'."
        )


def _check_flat(data: Data, likelihood: Likelihood, engine: Engine, objective: Objective) -> None:
    """Raise StructureError for what does not know of coefficients with a flat prior, or cannot determine them."""
    if likelihood.exchangeable:
        raise StructureError(
            f"means.Trend has a flat prior, and {type(likelihood).__name__} does not change with a trend that all classes have:"
            " use mean='linear', which is learned."
        )
    if data.team.size > 1 or engine.batch_size is not None or engine.minimiser == "admm":
        raise StructureError(
            "means.Trend needs all rows in one process at once, and no ADMM: use an engine with batch_size=None, or"
            " mean='linear', which is learned."
        )
    if not objective.flat:
        raise StructureError(
            f"means.Trend is integrated over in objectives.Evidence, EPEvidence and ELBO, not in {type(objective).__name__}: use"
            " these, or mean='linear', which is learned."
        )


def _likelihood(likelihood: Any) -> Likelihood:
    """A copy of the user's likelihood, as one of ours."""
    if likelihood is None:
        return Gaussian()
    likelihood = copy.deepcopy(likelihood)
    return likelihood if isinstance(likelihood, Likelihood) else FromGPyTorch(likelihood)


def _kernels(kernel: Any, likelihood: Likelihood, data: Data) -> list[gpytorch.kernels.Kernel]:
    """One own copy per latent function, each of which sees the data its own way; one for all where these play the same part."""
    latents = likelihood.latent_data(data)
    parts: Sequence[Any] = [kernel] * (1 if likelihood.exchangeable else len(latents))
    if isinstance(kernel, (list, tuple)):
        parts = kernel
        if len(parts) != len(latents):
            raise InputError(
                f"The likelihood has {len(latents)} latent function(s), but {len(parts)} kernels were given; give one kernel for"
                " all of them, or a list with one each."
            )
    return [
        auto_kernel(view) if k == "auto" else parse(k) if isinstance(k, str) else copy.deepcopy(k)
        for k, view in zip(parts, latents, strict=False)
    ]
