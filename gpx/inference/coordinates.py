"""The hyperparameters of a model as one vector: logarithms of positive values, multiples of the natural scale of others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import gpytorch
import numpy as np
import torch
from gpytorch.constraints import Interval
from gpytorch.priors import Prior
from torch import Tensor, nn

from gpx.parameters import LogInterval, Parameterised


@dataclass(frozen=True)
class Coordinate:
    """One trainable raw tensor: where it lives and how it maps to the optimiser's coordinates."""

    path: str
    module: nn.Module
    attribute: str
    origin: Tensor
    scale: Tensor

    @property
    def raw(self) -> Tensor:
        """The raw parameter."""
        return getattr(self.module, self.attribute)

    @property
    def name(self) -> str:
        """Its name without ``raw_``."""
        return self.attribute.removeprefix("raw_")

    @property
    def constraint(self) -> Interval | None:
        """The gpytorch constraint, if there is one."""
        return getattr(self.module, f"{self.attribute}_constraint", None)

    @property
    def positive(self) -> bool:
        """Whether the coordinate is a logarithm."""
        c = self.constraint
        return c is not None and (isinstance(c, LogInterval) or c.enforced) and bool((c.lower_bound >= 0).all())

    @property
    def prior(self) -> Prior | None:
        """The prior on the natural value, if there is one."""
        return getattr(self.module, f"{self.name}_prior", None)

    @property
    def value(self) -> Tensor:
        """The natural value, in the user's units."""
        return self.raw if self.constraint is None else self.constraint.transform(self.raw)

    def read(self) -> Tensor:
        """Coordinates of the present value."""
        return self.value.log() if self.positive else (self.value - self.origin) / self.scale

    def raw_at(self, z: Tensor) -> Tensor:
        """The raw tensor of coordinates z."""
        value = z.exp() if self.positive else self.origin + z * self.scale
        return value if self.constraint is None else self.constraint.inverse_transform(value)

    def bounds(self) -> np.ndarray:
        """The box [numbers, 2] of the coordinates."""
        lower, upper = (torch.full(self.raw.shape, v, dtype=torch.float64) for v in (-math.inf, math.inf))
        support = getattr(self.prior, "support", None)
        for limits in (self.constraint, support):
            if limits is not None and hasattr(limits, "lower_bound"):
                lower = torch.maximum(lower, torch.as_tensor(limits.lower_bound).to(lower))
            if limits is not None and hasattr(limits, "upper_bound"):
                upper = torch.minimum(upper, torch.as_tensor(limits.upper_bound).to(upper))
        if not self.positive:
            lower, upper = ((v - self.origin.to(v)) / self.scale.to(v) for v in (lower, upper))
            return _box(lower, upper)
        # gpytorch's saturating transforms reach their bounds only at infinity, and priors reject what
        # rounding puts outside their support: stay a little inside.
        inside = isinstance(self.constraint, LogInterval) and not hasattr(support, "upper_bound")
        margin = 0.0 if inside else 1e-6
        return _box(lower.clamp_min(0).log() + margin, upper.clamp_min(0).log() - margin)


def _box(lower: Tensor, upper: Tensor) -> np.ndarray:
    return torch.stack([lower.reshape(-1), upper.reshape(-1)], 1).numpy()


class Coordinates:
    """All trainable values of some modules, as one vector of float64."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]):
        self.modules = [module for _, module in modules]
        self.entries = [entry for path, module in modules for entry in _entries(path, module)]
        self.has_tensors = False

    def with_tensors(self, tensors: Mapping[str, Tensor], scale: Tensor) -> Coordinates:
        """With tensors of an engine added: inputs [M, D] in units of a scale [D], vectors as they are."""
        held = nn.ParameterDict(dict(tensors))
        result = Coordinates([])
        result.modules = self.modules
        one = torch.ones((), dtype=scale.dtype, device=scale.device)
        extra = [
            Coordinate(name, held, name, raw.detach().clone(), scale if raw.dim() == 2 else one)
            for name, raw in held.items()
        ]
        result.entries, result.has_tensors = [*self.entries, *extra], bool(extra)
        return result

    @property
    def raws(self) -> list[Tensor]:
        """The raw tensors, in order."""
        return [e.raw for e in self.entries]

    @torch.no_grad()
    def read(self) -> np.ndarray:
        """The present coordinates."""
        parts = [e.read().reshape(-1).cpu().double().numpy() for e in self.entries]
        return np.concatenate(parts) if parts else np.zeros(0)

    def values(self) -> list[float]:
        """The present natural values."""
        return [v for e in self.entries for v in e.value.detach().reshape(-1).tolist()]

    @torch.no_grad()
    def assign(self, z: np.ndarray) -> None:
        """Move the parameters to coordinates z."""
        for entry, part in self._split(z):
            entry.raw.copy_(entry.raw_at(part))

    def gradient(self, z: np.ndarray, raw_gradients: Sequence[Tensor | None]) -> np.ndarray:
        """The gradient in z from that in the raw tensors."""
        result = []
        for (entry, part), gradient in zip(self._split(z), raw_gradients, strict=True):
            if gradient is None:
                gradient = torch.zeros_like(part)
            if not (entry.positive and isinstance(entry.constraint, LogInterval)):
                part = part.clone().requires_grad_()
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(entry.raw_at(part), part, gradient)
            result.append(gradient.reshape(-1).cpu().double().numpy())
        return np.concatenate(result)

    def bounds(self) -> np.ndarray:
        """The box [P, 2] of the coordinates."""
        return np.concatenate([np.zeros((0, 2)), *(e.bounds() for e in self.entries)])

    def log_prior(self) -> Tensor:
        """The log density of the coordinates: of log values where the value is positive, so that a LogNormal prior has
        its maximum at its median. Priors of fixed values do not count.
        """
        total = torch.zeros((), dtype=torch.float64)
        trainable = {(id(e.module), e.name): e for e in self.entries}
        for module in self.modules:
            named = module.named_priors() if isinstance(module, gpytorch.Module) else ()
            for path, owner, prior, read, _ in named:
                name = path.rpartition(".")[2].removesuffix("_prior")
                entry = trainable.get((id(owner), name))
                if entry is None and hasattr(owner, f"raw_{name}"):
                    continue
                value = read(owner)
                jacobian = value.log().sum() if entry is not None and entry.positive else 0.0
                total = total + (prior.log_prob(value).sum() + jacobian).to(total)
        return total

    @torch.no_grad()
    def starts(self) -> list[np.ndarray]:
        """The present coordinates, and those with alternatives that a module offers in the place of what the user left open."""
        present = self.read()
        found = [present]
        for module in dict.fromkeys(e.module for e in self.entries):
            for values in getattr(module, "alternatives", ()):
                for name, value in values.items():
                    if not module.choices[name].given and not module.choices[name].fixed:
                        module.assign(name, value)
                found.append(self.read())
                self.assign(present)
        return found

    def labels(self) -> list[str]:
        """One name per coordinate, with the input column for values per dimension."""
        return [label for entry in self.entries for label in _labels(entry)]

    def _split(self, z: np.ndarray) -> Iterator[tuple[Coordinate, Tensor]]:
        start = 0
        for entry in self.entries:
            raw = entry.raw
            part = torch.from_numpy(np.array(z[start : start + raw.numel()])).to(raw)
            yield entry, part.reshape(raw.shape)
            start += raw.numel()


def _entries(path: str, module: nn.Module) -> Iterator[Coordinate]:
    for name, raw in module.named_parameters():
        if not raw.requires_grad:
            continue
        parent, _, attribute = name.rpartition(".")
        owner = module.get_submodule(parent)
        scale = 1.0
        if isinstance(owner, Parameterised):
            scale = owner.choices[attribute.removeprefix("raw_")].scale
        inner = parent.replace("kernels.", "")
        full = ".".join(p for p in (path, inner, attribute.removeprefix("raw_")) if p)
        yield Coordinate(
            full, owner, attribute, raw.detach().clone(), torch.as_tensor(scale, dtype=raw.dtype, device=raw.device)
        )


def _labels(entry: Coordinate) -> list[str]:
    count = entry.raw.numel()
    if count == 1:
        return [entry.path]
    columns = getattr(entry.module, "columns", ())
    named = len(columns) == count and all(columns)
    return [f"{entry.path}[{columns[i] if named else i}]" for i in range(count)]


def trainable_modules(
    mean: gpytorch.means.Mean, kernels: Sequence[gpytorch.kernels.Kernel], likelihood: nn.Module
) -> list[tuple[str, nn.Module]]:
    """The modules of a model with the names that tables show."""
    named = [("kernel" if len(kernels) == 1 else f"kernel.{i}", k) for i, k in enumerate(kernels)]
    return [*named, ("likelihood", likelihood), ("mean", mean)]
