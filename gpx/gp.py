"""`GP`: the one class that users need. It joins a kernel, a likelihood, an engine, a rule and an objective."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from gpx import checking, io, plot
from gpx.assemble import assemble, check_parts, reconsidered, start_from_data
from gpx.bootstrap import Bootstrap, bootstrap
from gpx.checkpoint import keeping, resumed
from gpx.encoding import Encoding
from gpx.engines.auto import engine_of_derivatives
from gpx.engines.base import Engine
from gpx.engines.coreset import PseudoData, pseudo_data
from gpx.errors import FitWarning, InputError, StructureError, TeamError
from gpx.inference.coordinates import Coordinates, trainable_modules
from gpx.inference.fit import diagnose
from gpx.inference.infer import Inferred
from gpx.inference.learn import learn, shortfalls
from gpx.inference.objectives import Objective, leave_one_out_density
from gpx.inference.problem import Problem, Solved, extend
from gpx.inference.result import FitOptions, FitResult
from gpx.inference.rules import cavities
from gpx.inference.table import ParameterTable, parameter_table, standard_errors
from gpx.inputs import Data, Points, as_data, as_points
from gpx.kernels.walk import resolve
from gpx.likelihoods import Likelihood
from gpx.parallel import Team, join
from gpx.posterior import LeaveOneOutPrediction, Paths, Prediction, draw_count, make_generator
from gpx.prior import Prior
from gpx.shards import shared
from gpx.sites import Sites

UNSETTLED = 1e-4  # standard deviations by which marginals may still move, from which predictions are approximate


class GP:
    """A Gaussian-process model: ``f ~ GP(mean, kernel)``, ``y ~ likelihood(f)``.

    Arguments:
        kernel: a gpx or gpytorch kernel, an expression such as ``"Matern(nu=1.5) + Linear"``, ``"auto"``, or a list with
            one kernel per latent function of the likelihood.
        likelihood: of `gpx.likelihoods`, or a one-dimensional one of gpytorch; None means `likelihoods.Gaussian()`.
        mean: "constant" (learned), "zero", "linear", "trend" (`means.Trend(1)`), any `means.Trend`, or a gpytorch mean.
        engine, rule, objective: "auto", or an object of `gpx.engines`, `gpx.rules`, `gpx.objectives`.
    The arguments are stored untouched; what `fit` makes of them ends in an underscore: ``kernel_``, ``likelihood_``,
    ``mean_``, ``engine_``, ``posterior_``, ``result_``.
    Raises: InputError for an unknown name.

    >>> import gpx
    >>> gp = gpx.GP(gpx.kernels.RBF()).fit([0.0, 1.0, 2.0, 3.0], [0.0, 0.8, 0.9, 0.1])
    >>> gp.predict([1.5]).mean.shape
    torch.Size([1])
    """

    encoding: Encoding | None = None  # how `gpx fit` made the inputs from a table

    def __init__(
        self, kernel: Any, likelihood: Likelihood | None = None, *, mean: Any = "constant", engine: Any = "auto",
        rule: Any = "auto", objective: Any = "auto",
    ):  # fmt: skip
        self.kernel, self.likelihood, self.mean = kernel, likelihood, mean
        self.engine, self.rule, self.objective = engine, rule, objective
        check_parts(self)

    def fit(
        self, X: Any, y: Any = None, *, max_iter: int = 200, restarts: int = 0, seed: int | None = 0, priors: str | None = "weak",
        max_seconds: float | None = None, resume: str | os.PathLike[str] | GP | None = None,
        checkpoint: str | os.PathLike[str] | None = None, team: Team | None = None, verbose: bool | None = None,
    ) -> GP:  # fmt: skip
        """Learn the hyperparameters by maximising the objective plus log priors, and condition on the data.

        Arguments:
            X: [N, D] or [N]; y: [N], or [N, P] for P outputs that share the hyperparameters; NaN in y is a missing value.
                X may be a `gpx.Grid`, y then has its shape, or an xarray.DataArray (no y). It may stay in files: a memory map,
                a Parquet path or pyarrow Dataset (y: the name of a column), a torch Dataset of pairs (no y).
            max_iter: iterations per start; restarts: further random starts; seed: of their draws.
            priors: "weak": wide LogNormal priors around the data-driven starts; None: only those that were set.
            max_seconds: a limit on the time.
            checkpoint: a file that is kept up to date with what was reached, about every second.
            resume: a saved model, its path or that of a checkpoint, to go on from; that of `checkpoint` need not be there yet.
            team: the processes that fit this model together, each on rows of its own; None: those that torchrun started.
            verbose: progress; None: on terminals only.
        Returns: self. Raises: InputError for data that cannot be used; NumericalError if no start has a finite objective.
        Cost: per evaluation that of the engine: N^3 for Exact.
        """
        if priors not in ("weak", None):
            raise InputError(f"priors must be 'weak' or None, got {priors!r}.")
        _check_options(max_iter, restarts, seed, max_seconds)
        data = shared(lambda: as_data(X, y), join() if team is None else team)
        if not data.targets:
            raise InputError(
                f"y has no observed target among {data.y.numel()}; fit needs at least one, see condition()."
            )
        options = FitOptions(max_iter, restarts, seed, max_seconds, verbose)
        result, *fitted = self._learn(data, priors, options, resume, checkpoint)
        other = reconsidered(self, fitted[0])
        if other is not None:
            result, *fitted = self._learn(data, priors, options, resume, checkpoint, other)
        self._finish(*fitted, result)
        assert self.result_ is not None
        _report(self.result_, [self.posterior_.note, *shortfalls(self._solved)])
        return self

    def _learn(
        self, data: Data, priors: str | None, options: FitOptions, resume: Any, checkpoint: Any,
        instead: tuple[Engine, str] | None = None,
    ) -> tuple[FitResult, Problem, Objective, str]:  # fmt: skip
        """What `fit` found: the result, the problem, its objective, and why its engine was chosen; instead: an engine and why."""
        problem, objective, reason = assemble(self, data, instead)
        start_from_data(problem, priors)
        coordinates = _coordinates(problem)
        start = data.team.share(lambda: resumed(resume, checkpoint, coordinates))
        with keeping(checkpoint, coordinates, data.team) as keep:
            result, problem = learn(problem, objective, coordinates, options, start, keep)
        return result, problem, objective, reason

    def condition(self, X: Any, y: Any = None, *, team: Team | None = None) -> GP:
        """Condition on data with the hyperparameters as given; nothing is learned. team: see `fit`. Returns self."""
        data = shared(lambda: as_data(X, y), join() if team is None else team)
        return self._finish(*assemble(self, data), None)

    def update(self, X: Any, y: Any, *, noise: Any = None) -> GP:
        """Condition on more data, the fitted hyperparameters kept. Returns self.

        Arguments: noise: variances of the new points, where those of the fit are known per point.
        Cost: Exact: O(N^2 M) for M new points, by extending its factor; a few factorisations for a likelihood that is not
        Gaussian, whose sites are found anew from those of the fit. Through m inducing inputs O(M m^2) for every likelihood: the
        sites of the data so far are kept. Where new points are far from the inducing inputs, some are added to these, O(N m^2).
        """
        problem = self._fitted()
        team = problem.data.team
        new = team.together(lambda: as_data(X, y, columns=problem.data.columns))
        new = replace(new, x=new.x.to(problem.data.x), y=new.y.to(problem.data.x), team=team)
        if new.y.shape[1] != problem.data.y.shape[1]:
            raise InputError(f"y has {new.y.shape[1]} column(s), the model {problem.data.y.shape[1]}; they must agree.")
        new_likelihood, likelihood = problem.likelihood.extended(new, noise)
        team.together(lambda: new_likelihood.check(new))
        with torch.no_grad():
            solution, whole = extend(problem, new, new_likelihood, likelihood)
        self._solved, self.posterior_ = Solved.of(whole, solution), solution.posterior
        return self

    def log_evidence(self) -> float:
        """The objective at the present hyperparameters, in nats, without log priors."""
        problem = self._fitted()
        with torch.no_grad():
            return float(self.objective_(problem))

    def predict(self, X: Any, of: str | None = None, *, noise: Any = None, derivative: int = 0) -> Prediction:
        """Predictive marginals at X [N*, D].

        Arguments: of: "y": the targets, noise included, the default; "f": the latent function. noise: variances of the new
        points where they are known (a number or [N*]). derivative: 1: of f' = df/dx, for kernels of one input (beside
        labels of series) with a state-space form, as often as their paths can be differentiated.
        Returns: a Prediction of shape [N*] ([N*, P] for several outputs).
        Raises: InputError for derivatives of targets; StructureError for kernels that have none.
        Cost: Exact: O(N^2) per point; in chunks, never N* x N*. Derivatives: that of `engines.StateSpace`.
        """
        if derivative:
            return self._derivative(X, of, noise, derivative)
        of = "y" if of is None else of
        if of not in ("y", "f"):
            raise InputError(f"of must be 'y' (targets) or 'f' (latent function), got {of!r}.")
        points = self._points(X)
        with torch.set_grad_enabled(points.x.requires_grad):
            mean, variance = (points.arranged(part) for part in self.posterior_.marginals(points.x))
            if of == "f":
                distribution = Normal(self._flat(mean), self._flat(variance).sqrt(), validate_args=False)
            else:
                distribution = self._fitted().settled.predict(*self._latents(mean, variance), noise)
        return Prediction(distribution, of)

    def _derivative(self, X: Any, of: str | None, noise: Any, order: Any) -> Prediction:
        x = self._points(X).x
        _check_derivative(order, of, noise)
        problem, posterior = self._fitted(), self.posterior_
        engine, column = engine_of_derivatives(problem.engine, problem.prior, x.shape[1])
        with torch.no_grad():
            if engine is not problem.engine:
                other = Problem.planned(problem.prior, problem.data, problem.likelihood, engine, problem.rule)
                posterior = other.condition(posterior.sites)
            mean, variance = posterior.derivative(x, order, column)
        return Prediction(Normal(self._flat(mean), self._flat(variance).sqrt(), validate_args=False), "f" + "'" * order)

    def sample(self, X: Any, n: int, seed: int | None = 0) -> Tensor:
        """Joint posterior draws of f at X: [n, N*]. Cost: O(N*^3); with StateSpace linear in N*."""
        points = self._points(X)
        with torch.no_grad():
            draws = self.posterior_.sample(points.x, draw_count(n), make_generator(seed, points.x.device))
        return self._flat(points.arranged(draws, 1))

    def paths(self, n: int, seed: int | None = 0) -> Paths:
        """n posterior functions of f: callable, consistent over calls, ``paths(X) -> [n, N*]``."""
        generator = make_generator(seed, self._fitted().data.x.device)
        with torch.no_grad():
            draw = self.posterior_.paths(draw_count(n), generator)
        return Paths(draw, self._points, self._flat)

    def coreset(self) -> PseudoData | list[PseudoData]:
        """The weighted pseudo-observations of `engines.Coreset`: points, targets of f and their precisions; a list for several
        outputs or latent functions. Raises: StructureError with another engine.
        """
        self._fitted()
        found = pseudo_data(self.posterior_)
        return found[0] if len(found) == 1 else found

    def loo(self) -> LeaveOneOutPrediction:
        """Leave-one-out predictions of y with the hyperparameters kept: a Prediction with ``log_density`` [N].

        Exact for Gaussian likelihoods; for others from the cavities: the posterior with one site taken out.
        Cost: Exact: N^3, once; no refitting. Source: Rasmussen & Williams (2006), eqs. 5.10-5.12.
        """
        problem, posterior = self._fitted(), self.posterior_
        data, likelihood = problem.data, problem.settled
        with torch.no_grad():
            if problem.conjugate:
                mean, variance = posterior.leave_one_out()
                density = self._flat(leave_one_out_density(data.y, mean, variance))
                distribution = Normal(self._flat(mean), self._flat(variance).sqrt(), validate_args=False)
            else:
                marginals = posterior.site_marginals
                mean, variance = cavities(marginals, posterior.sites)
                distribution = likelihood.predict(*self._latents(mean, variance + marginals.extra))
                density = distribution.log_prob(self._flat(data.filled))
                density = torch.where(self._flat(data.observed), density, torch.nan)
        return LeaveOneOutPrediction(distribution, log_density=density)

    def check(self) -> checking.Calibration:
        """Calibration of the leave-one-out predictions: coverage, PIT, scores."""
        problem = self._fitted()
        y = self._flat(problem.likelihood.outcome(problem.data.y))
        return checking.calibration(self.loo(), y, y)

    def parameters(self) -> ParameterTable:
        """The table of hyperparameters, in user units, with standard errors.

        Cost: two gradients of the objective per learned value, for the standard errors (none after `condition`).
        """
        problem = self._fitted()
        errors = None
        if self.result_ is not None:
            # On a copy: the differences move the parameters, and other threads may be predicting.
            moving = copy.deepcopy(problem.anew())
            errors = standard_errors(moving, self.objective_, _coordinates(moving))
        modules = trainable_modules(problem.prior.mean, problem.prior.kernels, problem.likelihood)
        return parameter_table(modules, self.result_.starts if self.result_ else {}, errors)

    def summary(self) -> str:
        """Parameters, engine, objective and how the fit ended, as text."""
        problem = self._fitted()
        lines = [
            f"GP on {problem.data.count:,} points, {problem.data.x.shape[1]} input column(s)",
            f"engine: {self.engine_!r}: {self.engine_reason_}",
            f"objective: {type(self.objective_).__name__} = {self.log_evidence():.4f} nats",
            f"fit: {self.result_ or 'hyperparameters as given'}",
        ]
        return "\n".join([*lines, "", str(self.parameters())])

    def bootstrap(self, n: int = 200, seed: int | None = 0, *, verbose: bool | None = None) -> Bootstrap:
        """Standard errors and intervals of the hyperparameters, from n data sets drawn from the model and fitted.

        Cost: that of n fits from a close start. Raises: StructureError for a likelihood that is not Gaussian.
        """
        return bootstrap(self._fitted(), self.objective_, n, seed, verbose)

    def plot(self, ax: Any = None) -> Any:
        """Data, mean and 95 % band for one input column; leave-one-out predictions against targets for more. Returns ax."""
        return plot.plot_gp(self, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, its data included, to one file; see `gpx.load`."""
        io.save(self, path)

    def __repr__(self) -> str:
        if not hasattr(self, "posterior_"):
            return f"GP({self.kernel!r})"
        return f"GP({self.kernel_!r}, {self.likelihood_!r}, mean={self.mean_!r}, engine={self.engine_!r})"

    def _finish(self, problem: Problem, objective: Objective, reason: str, result: FitResult | None) -> GP:
        with torch.no_grad():
            solution = _solution(problem)
            if result is not None and not isinstance(problem, Solved):
                result = result.inferred(solution, problem)
            if problem.data.team.size > 1:
                _ = solution.posterior.log_partition  # what it takes of the others, before one of them predicts alone
        self._solved, posterior = Solved.of(problem, solution), solution.posterior
        # Copies for the user: moving one of their parameters must not part the posterior from its factors.
        kernels, self.likelihood_, self.mean_ = copy.deepcopy(
            (problem.prior.kernels, problem.likelihood, problem.prior.mean)
        )
        self.kernel_ = kernels[0] if len(kernels) == 1 else list(kernels)
        self.engine_, self.engine_reason_, self.objective_ = problem.engine, reason, objective
        self.posterior_, self.result_ = posterior, result
        return self

    def _revive(
        self, x: Tensor, y: Tensor, columns: tuple[str, ...], result: FitResult | None, reason: str, sites: Sites | None,
        plan: dict[str, Tensor],
    ) -> GP:  # fmt: skip
        """The fitted state of a model file: condition on its data, with its own hyperparameters, sites and plan."""
        data = replace(as_data(x, y), columns=columns)
        kernels = self.kernel if isinstance(self.kernel, list) else [self.kernel]
        for kernel in kernels:
            resolve(kernel, columns)
        assert self.likelihood is not None  # a file names all parts
        for module in (self.mean, self.likelihood, *kernels):
            module.to(dtype=x.dtype)
        prior = Prior(self.mean, tuple(kernels))
        restored = self.engine.restored(prior, data, plan)
        problem = Problem(prior, data, self.likelihood, self.engine, self.rule, restored)
        if sites is not None:
            with torch.no_grad():
                problem = Solved.of(problem, Inferred(problem.condition(sites)))
        return self._finish(problem, self.objective, reason, result)

    def _fitted(self) -> Solved:
        if not hasattr(self, "_solved"):
            raise InputError("This GP has seen no data yet: call fit(X, y) or condition(X, y) first.")
        return self._solved

    def _points(self, X: Any) -> Points:
        data = self._fitted().data
        return as_points(X, columns=data.columns, like=data.x)

    def _latents(self, *values: Tensor) -> tuple[Tensor, ...]:
        """[N, C] as the likelihood takes it, without the axis of outputs if the targets were [N]."""
        problem = self._fitted()
        latents = problem.likelihood.num_latents
        parts = (v if latents == 1 else v.unflatten(-1, (-1, latents)) for v in values)
        return tuple(p.squeeze(-1 if latents == 1 else -2) if problem.data.flat else p for p in parts)

    def _flat(self, values: Tensor) -> Tensor:
        """[..., N, C] as the user's targets were: [..., N] if they were [N]."""
        return values.squeeze(-1) if self._fitted().data.flat and values.shape[-1] == 1 else values


def _check_options(max_iter: Any, restarts: Any, seed: Any, max_seconds: Any) -> None:
    if not isinstance(max_iter, Integral) or max_iter < 1 or not isinstance(restarts, Integral) or restarts < 0:
        raise InputError(f"max_iter must be a positive integer and restarts one >= 0, got {max_iter!r}, {restarts!r}.")
    if seed is not None and (not isinstance(seed, Integral) or seed < 0):
        raise InputError(f"seed must be an integer >= 0, or None for a fresh one, got {seed!r}.")
    if max_seconds is not None and not (isinstance(max_seconds, Real) and max_seconds >= 0):
        raise InputError(f"max_seconds must be a number >= 0, or None for no limit, got {max_seconds!r}.")


def _check_derivative(order: Any, of: str | None, noise: Any) -> None:
    if isinstance(order, bool) or not isinstance(order, Integral) or order < 0:
        raise InputError(f"derivative must be an integer >= 0, got {order!r}.")
    if of not in (None, "f") or noise is not None:
        raise InputError("Targets have no derivative: use predict(X, derivative=1), which is of f and takes no noise.")


def _coordinates(problem: Problem) -> Coordinates:
    return Coordinates(trainable_modules(problem.prior.mean, problem.prior.kernels, problem.likelihood))


def _report(result: FitResult, notes: list[str]) -> None:
    """One warning for all that the user should know about how a fit ended, with notes that are not empty."""
    notes = [note for note in notes if note]
    if not result.converged:
        notes.append(
            f"it did not converge ({result.reason}): raise the limit, or go on from here with fit(..., resume=gp)"
        )
    if not result.sites_converged and result.site_residual > UNSETTLED:
        notes.append(
            "the sites of the likelihood did not converge at the optimum: predictions are approximate; try another rule, or"
            " bounds on the outputscale"
        )
    if result.jitter > 0:
        notes.append(
            f"the noise variance was raised by a share of {result.jitter:.1e} to factorise the covariance matrix"
        )
    if notes:
        warnings.warn("The fit needs attention: " + "; ".join(notes) + ".", FitWarning, stacklevel=3)


def _solution(problem: Problem) -> Inferred:
    """What was inferred, conditioned on anew: without the arrays that only the search for the sites needs."""
    try:
        inferred = problem.inferred
        if inferred.steps == 1 or isinstance(problem, Solved):
            return inferred
        return replace(inferred, posterior=problem.condition(inferred.posterior.sites))
    except (StructureError, TeamError):
        raise
    except RuntimeError as error:
        raise type(error)(f"{error}{diagnose(problem)}") from error
