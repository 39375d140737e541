"""Hyperparameters: natural-scale values over gpytorch's ``raw_*`` parameters, constraints and priors.

Positive values are stored as logarithms (``value = exp(raw)``), so that a step of the optimiser is a relative change and
nothing depends on the user's units. Bounds are kept by the optimiser as a box, not by a saturating transform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.priors import LogNormalPrior, MultivariateNormalPrior, Prior, UniformPrior
from torch import Tensor

from gpx.errors import InputError

WEAK = math.log(100.0)  # standard deviation of a weak prior on a log value: a factor of 100


class LogInterval(Interval):
    """``value = exp(raw)`` with ``lower <= value <= upper``; the bounds are a box for the optimiser."""

    def __init__(self, lower: float = 0.0, upper: float = math.inf):
        super().__init__(lower, upper, transform=torch.exp, inv_transform=torch.log)
        # gpytorch stores bounds in the default dtype; a user's 0.1 must stay 0.1.
        self.lower_bound = torch.as_tensor(lower, dtype=torch.float64)
        self.upper_bound = torch.as_tensor(upper, dtype=torch.float64)

    def transform(self, tensor: Tensor) -> Tensor:
        return tensor.exp()

    def inverse_transform(self, transformed_tensor: Tensor) -> Tensor:
        return transformed_tensor.log()


class Box(Interval):
    """``value = raw`` with ``lower <= value <= upper``, infinite bounds included; a box for the optimiser."""

    def __init__(self, lower: float = -math.inf, upper: float = math.inf):
        super().__init__(lower, upper, transform=None)
        self.lower_bound = torch.as_tensor(lower, dtype=torch.float64)
        self.upper_bound = torch.as_tensor(upper, dtype=torch.float64)


@dataclass(frozen=True)
class Choice:
    """What the user said about one parameter: everything not said is left to the data."""

    given: bool = False
    bounded: bool = False
    has_prior: bool = False
    fixed: bool = False
    scale: float | list[float] = 1.0  # natural unit of a parameter that may have either sign; one per column if several


class Value:
    """A hyperparameter on its natural scale, stored as ``raw_NAME`` (the logarithm if positive).

    A value that may be zero is not positive, and has a `lower` bound: it is stored as it is, and stays in a box. length: whether
    it is a length in input units, of which `fit` tries several.
    """

    def __init__(
        self,
        default: float,
        *,
        positive: bool = True,
        fixed: bool = False,
        lower: float = -math.inf,
        length: bool = False,
    ):
        self.default, self.positive, self.fixed, self.length = default, positive, fixed, length
        self.lower = 0.0 if positive else lower

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        if module is None:
            return self
        raw = getattr(module, f"raw_{self.name}")
        return raw.exp() if self.positive else raw

    def __set__(self, module: Any, value: Any) -> None:
        module.assign(self.name, value)


def read_value(module: torch.nn.Module, name: str) -> Tensor:
    """The natural value; a module-level function, so that priors which refer to it can be pickled."""
    return getattr(module, name)


def _write_value(module: Parameterised, value: Tensor, name: str) -> None:
    module.assign(name, value)


class Parameterised:
    """Mixin of a ``gpytorch.Module`` whose hyperparameters are `Value` descriptors."""

    choices: dict[str, Choice]
    alternatives: Sequence[Mapping[str, Tensor]] = ()  # values by name: other starts, of which `fit` takes the best

    @classmethod
    def values(cls) -> dict[str, Value]:
        """The declared hyperparameters, in the order of their declaration."""
        found = {}
        for base in reversed(cls.__mro__):
            found.update({name: v for name, v in vars(base).items() if isinstance(v, Value)})
        return found

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Constructor arguments that are not values: what a model file needs to build an equal object."""
        return [], {}

    def declare(self, name: str, value: Any, shape: tuple[int, ...] = ()) -> None:
        """Register ``raw_NAME``; `value` None means that the data decide."""
        spec = type(self).values()[name]
        start = as_value(type(self).__name__, name, spec.default if value is None else value)
        check_value(type(self).__name__, name, start, spec)
        try:
            start = start.detach().expand(shape).clone()
        except RuntimeError as error:
            raise InputError(
                f"{type(self).__name__}: {name} has shape {list(start.shape)}, expected {list(shape)}; give one number"
                f"{f', or {math.prod(shape)} of them' if shape else ''}."
            ) from error
        raw = torch.nn.Parameter(start.log() if spec.positive else start, requires_grad=not spec.fixed)
        self.register_parameter(f"raw_{name}", raw)
        if spec.positive:
            self.register_constraint(f"raw_{name}", LogInterval())
        elif spec.lower > -math.inf:
            self.register_constraint(f"raw_{name}", Box(spec.lower))
        if "choices" not in self.__dict__:
            self.choices = {}
        self.choices[name] = Choice(given=value is not None, fixed=spec.fixed)

    def assign(self, name: str, value: Any) -> None:
        """Set the natural value; a new shape replaces the parameter."""
        raw = getattr(self, f"raw_{name}")
        spec = type(self).values()[name]
        new = as_value(type(self).__name__, name, value).to(raw)
        check_value(type(self).__name__, name, new, spec)
        new = new.detach().log() if spec.positive else new.detach().clone()  # it may be a view of the parameter
        if new.numel() == 1:
            new = new.reshape(()).expand(raw.shape)
        if new.shape == raw.shape:
            raw.data.copy_(new)
        else:
            setattr(self, f"raw_{name}", torch.nn.Parameter(new.clone(), requires_grad=raw.requires_grad))

    def set(self, **choices: Any) -> Parameterised:
        """Choose start, bounds, prior or fixing of parameters by name.

        Arguments: one keyword per parameter, a number (the start) or a dict with any of ``init``, ``bounds`` (lower,
        upper), ``prior`` (a gpytorch prior on the natural scale) and ``fixed`` (bool). Returns self.

        Raises: InputError for an unknown parameter or key, an empty interval, or a start outside its bounds.

        >>> from gpx.kernels import RBF
        >>> RBF().set(lengthscale=dict(init=2.0, bounds=(0.1, 10.0)), outputscale=dict(fixed=True))
        RBF(lengthscale=2, outputscale=1)
        """
        for name, choice in choices.items():
            known = type(self).values()
            if name not in known:
                raise InputError(
                    f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(known) or 'none'}."
                )
            self._set_one(name, choice if isinstance(choice, Mapping) else {"init": choice})
        return self

    def _set_one(self, name: str, choice: Mapping[str, Any]) -> None:
        unknown = set(choice) - {"init", "bounds", "prior", "fixed"}
        if unknown:
            raise InputError(f"set({name}=...) got {sorted(unknown)}; known keys are init, bounds, prior and fixed.")
        bounds = self._bounds(name) if choice.get("bounds") is None else choice["bounds"]
        if choice.get("init") is not None:
            self.assign(name, choice["init"])
            self.choices[name] = replace(self.choices[name], given=True)
        if bounds is not None:
            self._set_bounds(name, bounds)
            self.choices[name] = replace(self.choices[name], bounded=True)
        if choice.get("prior") is not None:
            self._set_prior(name, choice["prior"])
            self.choices[name] = replace(self.choices[name], has_prior=True)
        if choice.get("fixed") is not None:
            self.fix(name, bool(choice["fixed"]))

    def fix(self, name: str, fixed: bool = True) -> None:
        """Keep the parameter out of the fit (or let it in again)."""
        getattr(self, f"raw_{name}").requires_grad_(not fixed)
        self.choices[name] = replace(self.choices[name], fixed=fixed)

    def _bounds(self, name: str) -> tuple[float, float] | None:
        """The bounds that the user chose."""
        if not self.choices[name].bounded:
            return None
        constraint = getattr(self, f"raw_{name}_constraint")
        return float(constraint.lower_bound), float(constraint.upper_bound)

    def _set_bounds(self, name: str, bounds: Any) -> None:
        try:
            lower, upper = map(float, bounds)
        except (TypeError, ValueError) as error:
            raise InputError(f"Bounds of {name} must be a pair (lower, upper), got {bounds!r}.") from error
        spec = type(self).values()[name]
        if not spec.lower <= lower < upper:
            least = f"{spec.lower:g} <= " if spec.lower > -math.inf else ""
            raise InputError(f"Bounds of {name} must satisfy {least}lower < upper, got {lower, upper}.")
        value = getattr(self, name)
        if self.choices[name].given and not bool(
            ((value >= lower - 1e-12 * abs(lower)) & (value <= upper + 1e-12 * abs(upper))).all()
        ):
            raise InputError(f"{name} = {value.tolist()} lies outside its bounds {lower, upper}; move one of them.")
        if not self.choices[name].given:
            self.assign(name, value.detach().clamp(lower, upper))
        self.register_constraint(f"raw_{name}", (LogInterval if spec.positive else Box)(lower, upper))

    def _set_prior(self, name: str, prior: Prior) -> None:
        if not isinstance(prior, Prior):
            raise InputError(f"The prior of {name} must be a gpytorch.priors.Prior, got {type(prior).__name__}.")
        self.register_prior(f"{name}_prior", prior, partial(read_value, name=name), partial(_write_value, name=name))

    def start(
        self,
        name: str,
        value: Any,
        *,
        spread: float = WEAK,
        box: tuple[float, float] = (1e-5, 1e5),
        scale: float | Tensor = 1.0,
        median: Any = None,
    ) -> None:
        """Start a value that the user did not give from the data, with a weak prior and wide bounds.

        A positive value gets the prior ``log value ~ N(log median, spread^2)``, whose median is the start if None is given, and
        the bounds ``box x start``; a value of either sign gets the unit `scale`, one for all or one per column. What the user
        chose stays; a list without numbers has no start.
        """
        spec, choice, raw = type(self).values()[name], self.choices[name], getattr(self, f"raw_{name}")
        self.choices[name] = replace(choice, scale=scale.tolist() if isinstance(scale, Tensor) else scale)
        if choice.given or choice.fixed and not spec.fixed or not raw.numel():
            return
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        if bounds := self._bounds(name):
            value = value.clamp(*bounds)
        self.assign(name, value)
        if not spec.positive:
            return
        if not choice.bounded:
            lower, upper = float(value.min()) * box[0], float(value.max()) * box[1]
            self.register_constraint(f"raw_{name}", LogInterval(lower, upper))
        if not choice.has_prior:
            centre = torch.as_tensor(value if median is None else median).to(value).log().expand(raw.shape).clone()
            self._set_prior(name, LogNormalPrior(centre, torch.full_like(centre, spread)))

    def settle(self, name: str, value: Any, **how: Any) -> None:
        """Start a value as `start` does, and keep this start whatever the data."""
        self.start(name, value, **how)
        self.choices[name] = replace(self.choices[name], given=True)

    def keep_above(self, name: str, floor: float) -> None:
        """A lower bound for a positive value whose start the user gave, without bounds; a smaller start lowers it."""
        choice = self.choices[name]
        if choice.given and not choice.bounded:
            lower = min(floor, float(getattr(self, name).detach().min()))
            self.register_constraint(f"raw_{name}", LogInterval(lower, math.inf))

    def keep_below(self, name: str, ceiling: float) -> None:
        """An upper bound for a positive value, beside the bounds that it has."""
        constraint = getattr(self, f"raw_{name}_constraint")
        lower, upper = float(constraint.lower_bound), float(constraint.upper_bound)
        self.register_constraint(f"raw_{name}", LogInterval(min(lower, ceiling), min(upper, ceiling)))

    def drop_weak_priors(self) -> None:
        """Remove the priors that came from the data; the user's own stay."""
        for name, choice in self.choices.items():
            if not choice.has_prior and f"{name}_prior" in self._priors:
                del self._priors[f"{name}_prior"]
                delattr(self, f"{name}_prior")


def prior_arguments(prior: Prior) -> dict[str, Any]:
    """The arguments that build an equal prior.

    >>> from gpytorch.priors import UniformPrior
    >>> list(prior_arguments(UniformPrior(0.0, 2.0)))
    ['a', 'b']
    """
    if isinstance(prior, UniformPrior):
        return {"a": prior.low, "b": prior.high}
    if isinstance(prior, MultivariateNormalPrior):
        # torch computes its other matrices on first use, and gpytorch recurses without end on that.
        return {"loc": prior.loc, "scale_tril": prior._unbroadcasted_scale_tril}
    return {name: getattr(prior, name) for name in prior.arg_constraints}


def as_value(owner: str, name: str, value: Any) -> Tensor:
    """A number or list of numbers as a float64 tensor."""
    try:
        return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{owner}: {name} must be a number or a list of numbers, got {value!r}.") from error


def check_value(owner: str, name: str, value: Tensor, spec: Value) -> None:
    """Raise InputError unless the value is finite, and positive or above its lower bound where it must be."""
    high = bool((value > 0).all() if spec.positive else (value >= spec.lower).all())
    if not bool(torch.isfinite(value).all()) or not high:
        limit = f"at least {spec.lower:g} and " if spec.lower > -math.inf else ""
        kind = "positive and finite" if spec.positive else f"{limit}finite"
        raise InputError(f"{owner}: {name} must be {kind}, got {value.tolist()}.")


def format_value(value: Tensor) -> str:
    """A value as it stands in a repr: a number, a list of numbers, or a list of rows."""
    value = value.detach()
    if value.dim() > 1 and min(value.shape[-2:]) > 1:
        return "[" + ", ".join(map(format_value, value)) + "]"
    numbers = [f"{v:.4g}" for v in value.reshape(-1).tolist()]
    return numbers[0] if len(numbers) == 1 else "[" + ", ".join(numbers) + "]"
