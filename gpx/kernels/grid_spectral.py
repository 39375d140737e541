"""The grid spectral mixture product kernel: many fixed spectral components, of which only the weights are learned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.kernels.base import Kernel, Value
from gpx.linalg.distance import squared_distance
from gpx.linalg.periodogram import spacings
from gpx.parameters import format_value

ONE, PER_COLUMN = 500, 100  # components by default: of one input column, and per column of several
MOST_COLUMNS = 12  # a component has 2^(P - 1) waves in P columns
CHUNK = 1 << 22  # entries of a block of waves: 32 MB of float64


class GridSpectralMixtureProduct(Kernel):
    """``k = sum_q weights_q prod_p exp(-2 pi^2 bandwidth_p^2 t_p^2) cos(2 pi frequency_qp t_p)``, ``t = x - x'``.

    The frequencies are a fixed grid, so the evidence is a function of the non-negative weights alone, and its maximum has most of
    them exactly at zero. `fit` with `engines.Exact` finds it by multiplicative updates, without a start that matters
    (docs/theory/multiple_kernel.md); add ``GP(..., mean="linear")`` for a series with a trend.

    Arguments: num_components: Q; None: 500 for one column, 100 per column for several. weights: k(0) of every component, in
    squared target units: one number for all, a list [Q], or a dict from the number of a component to its weight, all others zero.
    max_frequency: in cycles per input unit (a list: one per column); None: `fit` takes the Nyquist frequency of the data (0.5
    until then). bandwidth: standard deviation of every component's spectrum, in cycles per input unit (a list: one per column);
    None: what the data resolve, one over the range of the column, or the spacing of the grid, ``max_frequency Q^(-1/P)``, if that
    is wider; the published 0.001 at unit spacing is the second. Both stay as they are started, unless ``set(bandwidth=dict(fixed=
    False))`` frees them for a general search.
    The grid: evenly spaced from 0 to max_frequency in one column; in several a low-discrepancy sequence, which covers pairs of
    unequal frequencies (the published diagonal, all columns with the same index, does not).
    Raises: InputError for negative weights, another number of them than Q, or more than 12 columns.
    Cost: O(2^P Q N M) time, O(N M) memory; components of weight zero cost nothing in predictions.
    Source: Suwandi, Lin, Yin, Wang & Theodoridis (2023), arXiv 2309.08201.

    >>> GridSpectralMixtureProduct(4, weights={0: 1.0, 2: 0.5}, max_frequency=6.0, bandwidth=0.1)
    GridSpectralMixtureProduct(num_components=4, weights={0: 1, 2: 0.5}, max_frequency=6, bandwidth=0.1)
    """

    structure = ("num_components",)
    per_dimension = ("max_frequency", "bandwidth")
    ard = True
    weights = Value(1 / ONE, positive=False, lower=0.0)
    max_frequency = Value(0.5, positive=False, lower=0.0, fixed=True)
    bandwidth = Value(0.5 / ONE, positive=False, lower=0.0, fixed=True)

    def __init__(self, num_components: int | None = None, weights: Any = None, max_frequency: Any = None,
                 bandwidth: Any = None, *, active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(active_dims, batch_shape)
        self.num_components = _check_count(num_components)
        if isinstance(weights, Mapping):
            weights = _from_numbers(weights, self.num_components)
        elif num_components is None and hasattr(weights, "__len__") and len(weights) > 1:
            self.num_components = len(weights)
        self.declare("weights", weights, (*self.batch_shape, self.num_components or 1))
        self.declare_per_column("max_frequency", max_frequency)
        self.declare_per_column("bandwidth", bandwidth)

    @property
    def is_stationary(self) -> bool:
        return True

    @property
    def frequencies(self) -> Tensor:
        """The grid [..., Q, P], in cycles per input unit."""
        return self.frequencies_in(self.max_frequency.shape[-1])

    @property
    def outputscale(self) -> Tensor:
        """k(0), the sum of the weights."""
        return self.weights_in(self.max_frequency.shape[-1]).sum(-1)

    def frequencies_in(self, columns: int) -> Tensor:
        """The grid [..., Q, P] for so many input columns."""
        highest = self.max_frequency
        return unit_grid(self._count(columns), columns).to(highest) * highest

    def weights_in(self, columns: int) -> Tensor:
        """The weights [..., Q] for so many input columns."""
        return self.weights.expand(*self.batch_shape, self._count(columns))

    def level(self, x: Tensor) -> Tensor:
        total = self.weights_in(x.shape[-1]).sum(-1, keepdim=True)
        return total.expand(torch.broadcast_shapes(x.shape[:-1], (*self.batch_shape, 1)))

    def envelope(self, x1: Tensor, x2: Tensor) -> Tensor:
        """``prod_p exp(-2 pi^2 bandwidth_p^2 t_p^2)`` [..., N, M]."""
        scale = 2 * math.pi * self.bandwidth
        return torch.exp(-0.5 * squared_distance(x1 * scale, x2 * scale))

    def waves(self, frequencies: Tensor, x: Tensor) -> Tensor:
        """F [..., N, 2 S K], S = 2^(P - 1), of frequencies [..., K, P]: a component's product of cosines is the mean of
        ``cos(2 pi w^T t)`` over the signs of all columns but the first, and ``cos(a - b) = cos a cos b + sin a sin b``. Columns
        are ordered by cosine and sine, by sign, and by component.
        """
        signs = torch.tensor([(1.0, *rest) for rest in product((1.0, -1.0), repeat=x.shape[-1] - 1)]).to(x)
        omega = (signs[:, None, :] * frequencies.unsqueeze(-3)).flatten(-3, -2)
        phase = 2 * math.pi * x @ omega.mT
        return torch.cat([phase.cos(), phase.sin()], -1) * len(signs) ** -0.5

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if diag:
            return self.level(x1)
        middle = x2.detach().mean(-2, keepdim=True)  # phases stay small, and their cosines accurate
        x1, x2 = ((x - middle).to(torch.promote_types(x.dtype, self.weights.dtype)) for x in (x1, x2))
        total = sum(self._mixed(*block, x1, x2) for block in self._blocks(x1, x2))
        return self.envelope(x1, x2) * total

    def _mixed(self, weights: Tensor, frequencies: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
        left, right = self.waves(frequencies, x1), self.waves(frequencies, x2)
        return (
            left * weights.repeat(*(1,) * (weights.dim() - 1), left.shape[-1] // weights.shape[-1])[..., None, :]
        ) @ right.mT

    def _blocks(self, x1: Tensor, x2: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights and frequencies of components whose waves fit into a block, without those that add and learn nothing."""
        columns = x1.shape[-1]
        weights, frequencies = self.weights_in(columns), self.frequencies_in(columns)
        learning = torch.is_grad_enabled() and weights.requires_grad
        if not learning and weights.dim() == 1 and bool((live := weights != 0).any()):
            weights, frequencies = weights[live], frequencies[live]
        numbers = torch.arange(weights.shape[-1], device=weights.device)
        for part in self.portions(numbers, max(x1.shape[-2], x2.shape[-2]), columns):
            yield weights[..., part], frequencies[..., part, :]

    def portions(self, numbers: Tensor, rows: int, columns: int) -> tuple[Tensor, ...]:
        """Numbers of components [C] in portions whose waves at so many rows fit into a block."""
        return numbers.split(max(1, CHUNK // (max(rows, 1) << columns))) if len(numbers) else ()

    def assign(self, name: str, value: Any) -> None:
        if name == "weights" and isinstance(value, Mapping):
            value = _from_numbers(value, self.num_components)
        if name == "weights" and self.num_components is not None:
            given = torch.as_tensor(value)
            if given.numel() > 1 and given.shape[-1] != self.num_components:
                raise InputError(
                    f"{type(self).__name__} has {self.num_components} components, got {given.shape[-1]} weights; give one number"
                    " for all, one per component, or a dict from numbers of components to weights."
                )
        super().assign(name, value)

    def _count(self, columns: int) -> int:
        if columns > MOST_COLUMNS:
            raise InputError(
                f"{type(self).__name__} takes at most {MOST_COLUMNS} input columns (its cost doubles with each), got {columns};"
                " choose some with active_dims=[...], or use kernels.RBF(ard=True)."
            )
        default = ONE if columns == 1 else PER_COLUMN * columns
        return default if self.num_components is None else self.num_components

    def _bind_own(self, columns: tuple[str, ...]) -> None:
        super()._bind_own(columns)
        self.num_components = self._count(len(columns))
        self.assign("weights", self.weights_in(len(columns)).detach().clone())

    def _init_from(self, data: Data) -> None:
        highest = [0.5 / step if step else 0.0 for step in spacings(data.x)]
        count, columns = self._count(len(highest)), len(highest)
        shape = (*self.batch_shape, 1, -1)
        self.start("max_frequency", torch.tensor(highest, dtype=torch.float64).expand(shape))
        span = data.x.amax(0) - data.x.amin(0) if len(data.x) else torch.zeros(columns)
        resolution = torch.where(span > 0, 1 / span, 0.0).to(self.max_frequency)
        self.start("bandwidth", torch.maximum(self.max_frequency.detach() * count ** (-1 / columns), resolution))
        self.start("weights", data.variance / count, scale=data.variance / count)

    def _shown(self, name: str) -> str:
        values = getattr(self, name).detach()
        if values.numel() > 1 and bool((values == values.reshape(-1)[0]).all()):
            return format_value(values.reshape(-1)[:1])
        if name == "weights" and values.dim() == 1 and 2 * int((values != 0).sum()) <= len(values) > 1:
            kept = [f"{q}: {format_value(values[q])}" for q in values.nonzero().flatten().tolist()]
            return f"{{{', '.join(kept)}}}"
        return format_value(values)


def unit_grid(count: int, columns: int) -> Tensor:
    """Frequencies [Q, P] in [0, 1]^P, the first of them 0: even steps in one column; in several the additive recurrence
    ``q phi^-p mod 1`` with ``phi^(P + 1) = phi + 1``, of low discrepancy. Source: Roberts (2018), after Niederreiter.

    >>> unit_grid(3, 1).flatten().tolist()
    [0.0, 0.5, 1.0]
    """
    if columns == 1:
        return torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    phi = 1.5
    for _ in range(64):
        phi = (1 + phi) ** (1 / (columns + 1))
    steps = phi ** -torch.arange(1, columns + 1, dtype=torch.float64)
    return torch.arange(count, dtype=torch.float64)[:, None] * steps % 1


def _check_count(count: Any) -> int | None:
    if count is not None and (isinstance(count, bool) or not isinstance(count, Integral) or count < 1):
        raise InputError(f"num_components must be a positive integer, or None for 500 of one column, got {count!r}.")
    return count if count is None else int(count)


def _from_numbers(weights: Mapping[Any, Any], count: int | None) -> list[float]:
    """The weights [Q] of a dict from numbers of components to weights."""
    if count is None or not all(isinstance(q, Integral) and 0 <= q < count for q in weights):
        raise InputError(
            f"A dict of weights needs num_components and keys from 0 to num_components - 1, got {list(weights)[:5]} for"
            f" num_components={count}."
        )
    return [float(weights.get(q, 0.0)) for q in range(count)]
