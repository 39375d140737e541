"""Spectral mixtures: kernels whose spectral density is a sum of bumps, one for every frequency that the data have."""

from __future__ import annotations

import math
from functools import reduce
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.kernels.algebra import Product
from gpx.kernels.base import Kernel, Value
from gpx.kernels.spectral_start import Mixture, bearings, spectral_starts
from gpx.kernels.stationary import check_half_integer, matern_profile
from gpx.linalg.distance import squared_distance
from gpx.parameters import Box, as_value


class _Mixture(Kernel):
    """``k(t) = sum_q w_q envelope_q(t) cos(2 pi mu_q . t)``: a subclass declares the values, and gives the envelopes."""

    structure = ("num_mixtures",)
    ard = True
    width: str  # the name of the values that the envelopes have
    mixture_weights = Value(1.0)
    mixture_means = Value(0.0, positive=False)

    def __init__(self, num_mixtures: int, weights: Any, means: Any, widths: Any, active_dims: Any, batch_shape: Any):
        super().__init__(active_dims, batch_shape)
        self.num_mixtures = check_positive(type(self).__name__, "num_mixtures", num_mixtures)
        self.declare("mixture_weights", weights, (*self.batch_shape, self.num_mixtures))
        for name, value in (("mixture_means", means), (self.width, widths)):
            rows = None if value is None else self._rows(name, value)
            columns = 1 if rows is None else rows.shape[-1]
            self.declare(name, rows, (*self.batch_shape, self.num_mixtures, columns))

    def _rows(self, name: str, value: Any) -> Tensor:
        """A value with one row per mixture: a list is one of Q numbers, or of D where there is one mixture."""
        given = as_value(type(self).__name__, name, value)
        if given.dim() == 0:
            return given.reshape(1, 1)
        if given.dim() == 1:
            given = given.reshape(-1, 1) if len(given) == self.num_mixtures else given.reshape(1, -1)
        if given.shape[-2] != self.num_mixtures:
            raise InputError(
                f"{type(self).__name__}: {name} has shape {list(as_value('', name, value).shape)}, expected"
                f" [{self.num_mixtures}] or [{self.num_mixtures}, D]: a row for each of num_mixtures={self.num_mixtures}."
            )
        return given

    @property
    def is_stationary(self) -> bool:
        return True

    @property
    def outputscale(self) -> Tensor:
        """k(0), the sum of the weights."""
        return self.mixture_weights.sum(-1)

    @property
    def tones(self) -> tuple[float, ...]:
        """The periods of its mixtures on one input column, in input units."""
        means = self.mixture_means.detach()
        return tuple(1 / abs(f) for f in means.reshape(-1).tolist() if f) if means.shape[-1] == 1 else ()

    @property
    def least_points(self) -> int:
        """How many targets `init_from` needs."""
        return self.num_mixtures

    def widths(self, lengthscales: Tensor) -> Tensor:
        """The widths of envelopes of these lengthscales."""
        raise NotImplementedError(f"{type(self).__name__} must define widths(lengthscales).")

    def envelope(self, x1: Tensor, x2: Tensor, width: Tensor) -> Tensor:
        """The envelope [..., N, M] of one mixture of widths [..., 1, D]."""
        raise NotImplementedError(f"{type(self).__name__} must define envelope(x1, x2, width).")

    def _init_from(self, data: Data) -> None:
        starts = [self._values(start) for start in spectral_starts(type(self).__name__, data, self.num_mixtures)]
        ranges = bearings(data)
        for name, value in starts[0].items():
            if name == "mixture_means":
                # A frequency is seen to a fraction of a cycle over the range, wherever it lies: its unit is 1 / span.
                self.start(name, value, scale=torch.from_numpy(1 / ranges.spans))
            else:
                self.start(name, value)
        if not self.choices["mixture_means"].bounded:
            highest = torch.maximum(torch.from_numpy(ranges.highest), self.mixture_means.detach().abs().amax(-2).cpu())
            self.register_constraint("raw_mixture_means", Box(-highest, highest))
        self.alternatives = tuple(starts[1:])

    def _values(self, start: Mixture) -> dict[str, Tensor]:
        weights, means, lengthscales = (torch.from_numpy(v) for v in (start.weights, start.means, start.lengthscales))
        return {"mixture_weights": weights, "mixture_means": means, self.width: self.widths(lengthscales)}

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if diag:
            return self.level(x1)
        # Only differences matter: centring keeps phases, and gradients in frequencies, accurate far from zero.
        centre = x1.detach().mean(-2, keepdim=True)
        x1, x2 = x1 - centre, x2 - centre
        columns = x1.shape[-1]
        means, widths = (getattr(self, n).expand(*self.batch_shape, -1, columns) for n in ("mixture_means", self.width))
        # One mixture at a time, forward and backward: what autograd would keep of each is computed again instead.
        parts = (
            checkpoint(self._component, x1, x2, *values, use_reentrant=False, preserve_rng_state=False)
            for values in zip(self.mixture_weights.unbind(-1), means.unbind(-2), widths.unbind(-2), strict=True)
        )
        return reduce(torch.add, parts)

    def _component(self, x1: Tensor, x2: Tensor, weight: Tensor, mean: Tensor, width: Tensor) -> Tensor:
        phases = (2 * math.pi * (x * mean.unsqueeze(-2)).sum(-1, keepdim=True) for x in (x1, x2))
        waves = [torch.cat([p.cos(), p.sin()], -1) for p in phases]
        cosine = waves[0] @ (weight[..., None, None] * waves[1]).mT  # cos(a - b) = cos a cos b + sin a sin b
        return self.envelope(x1, x2, width.unsqueeze(-2)) * cosine


class SpectralMixture(_Mixture):
    """Spectral mixture, ``k(t) = sum_q w_q exp(-2 pi^2 sum_p t_p^2 v_qp^2) cos(2 pi mu_q . t)``, ``t = x - x'``.

    A Gaussian bump of the spectral density around every frequency mu_q and -mu_q; they approximate every stationary kernel.

    Arguments: num_mixtures: Q; mixture_weights: [Q], in squared target units, k(0) is their sum; mixture_means: [Q, D],
    frequencies in cycles per input unit ([Q] where there is one column); mixture_scales: v [Q, D], standard deviations of the
    bumps, in cycles per input unit: a lengthscale is 1 / (2 pi v). None starts at tones that the data show (the peaks of their
    periodogram along every column) and a ladder of lengthscales at frequency zero; `fit` takes the best of several such starts.
    Frequencies are kept below Nyquist's, of which a few near-duplicate inputs know nothing.
    Raises: InputError for shapes that do not agree, or (from `init_from`) fewer targets than mixtures.
    Cost: O(N M Q D) time; memory of a few N x M arrays, forward and backward, whatever Q and D.
    Source: Wilson & Adams (2013), "Gaussian process kernels for pattern discovery and extrapolation", eq. 12.

    >>> SpectralMixture(2, mixture_weights=[1.0, 3.0], mixture_means=[0.0, 0.5], mixture_scales=[0.1, 0.2])
    SpectralMixture(num_mixtures=2, mixture_weights=[1, 3], mixture_means=[0, 0.5], mixture_scales=[0.1, 0.2])
    """

    per_dimension = ("mixture_means", "mixture_scales")
    width = "mixture_scales"
    mixture_scales = Value(1.0)

    def __init__(self, num_mixtures: int = 10, mixture_weights: Any = None, mixture_means: Any = None,
                 mixture_scales: Any = None, *, active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(num_mixtures, mixture_weights, mixture_means, mixture_scales, active_dims, batch_shape)

    def widths(self, lengthscales: Tensor) -> Tensor:
        return 1 / (2 * math.pi * lengthscales)

    def envelope(self, x1: Tensor, x2: Tensor, width: Tensor) -> Tensor:
        return torch.exp(-2 * math.pi**2 * squared_distance(x1 * width, x2 * width))


class StudentMixture(_Mixture):
    """Mixture of Matern kernels around frequencies, ``k(t) = sum_q w_q M_nu(sqrt(2 nu) r_q) cos(2 pi mu_q . t)``.

    ``r_q^2 = sum_p (t_p / lengthscale_qp)^2``, ``t = x - x'``, M_nu as in `Matern`. The bumps of the spectral density are
    Student's t with 2 nu degrees of freedom: heavier tails than a `SpectralMixture` has, and matrices that are better
    conditioned. On one input column it is a sum of `HidaMatern` kernels, and has their state-space form.

    Arguments: nu: 0.5, 1.5, 2.5, ...; mixture_lengthscales: [Q, D], in input units; the others, and starts, as for
    `SpectralMixture`. Raises: InputError for another nu, or as there. Cost: as there.
    Source: Matern envelopes instead of the Gaussian ones of Wilson & Adams (2013), eq. 12.

    >>> StudentMixture(1, nu=1.5, mixture_means=0.5)
    StudentMixture(num_mixtures=1, nu=1.5, mixture_weights=1, mixture_means=0.5, mixture_lengthscales=1)
    """

    structure = ("num_mixtures", "nu")
    per_dimension = ("mixture_means", "mixture_lengthscales")
    width = "mixture_lengthscales"
    mixture_lengthscales = Value(1.0)

    def __init__(self, num_mixtures: int = 10, nu: float = 2.5, mixture_weights: Any = None, mixture_means: Any = None,
                 mixture_lengthscales: Any = None, *, active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(num_mixtures, mixture_weights, mixture_means, mixture_lengthscales, active_dims, batch_shape)
        self.nu = check_half_integer(type(self).__name__, nu, "SpectralMixture")

    def widths(self, lengthscales: Tensor) -> Tensor:
        return lengthscales

    def envelope(self, x1: Tensor, x2: Tensor, width: Tensor) -> Tensor:
        return matern_profile(2 * self.nu * squared_distance(x1 / width, x2 / width), round(self.nu - 0.5))


class SpectralMixtureProduct(Product):
    """Product over input columns of spectral mixtures of one column each, ``k(t) = prod_p k_p(t_p)``.

    On a grid its matrix is a Kronecker product: `factor` gives the kernel of a column, an ordinary `SpectralMixture`.

    Arguments: num_mixtures: Q; dims: D, the number of columns; mixture_weights, mixture_means, mixture_scales: [Q, D], as for
    `SpectralMixture`; active_dims: D columns, None: the first D. k(0) is the product over the columns of the sums of their
    weights: the first starts with the variance of the data, the others with 1.
    Raises: InputError for shapes that do not agree, or other than D columns. Cost: as for `SpectralMixture`.
    Source: Wilson, Gilboa, Nehorai & Cunningham (2014), "Fast kernel learning for multidimensional pattern extrapolation".

    >>> SpectralMixtureProduct(1, dims=2, mixture_means=[[0.5, 2.0]]).factor(1)
    SpectralMixture(num_mixtures=1, mixture_weights=1, mixture_means=2, mixture_scales=1, active_dims=[1])
    """

    def __init__(self, num_mixtures: int = 10, dims: int = 2, mixture_weights: Any = None, mixture_means: Any = None,
                 mixture_scales: Any = None, *, active_dims: Any = None):  # fmt: skip
        name = type(self).__name__
        self.num_mixtures, self.dims = (
            check_positive(name, "num_mixtures", num_mixtures),
            check_positive(name, "dims", dims),
        )
        columns = list(range(dims)) if active_dims is None else list(active_dims)
        if len(columns) != dims:
            raise InputError(f"{name}(dims={dims}) needs as many active_dims, got {columns}; give one column for each.")
        values = {"mixture_weights": mixture_weights, "mixture_means": mixture_means, "mixture_scales": mixture_scales}
        tables = {k: None if v is None else _table(name, k, v, (num_mixtures, dims)) for k, v in values.items()}
        super().__init__(*(
            SpectralMixture(num_mixtures, **{k: v if v is None else v[:, p] for k, v in tables.items()}, active_dims=[column])
            for p, column in enumerate(columns)
        ))  # fmt: skip

    def factor(self, column: int) -> SpectralMixture:
        """The kernel of a column, counted from 0 among those that the product acts on."""
        return self.kernels[column]  # pyright: ignore[reportReturnType]

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        dims = [dim for kernel in self.kernels for dim in kernel.arguments()[1]["active_dims"]]  # pyright: ignore
        return [], {"num_mixtures": self.num_mixtures, "dims": self.dims, "active_dims": dims}


def check_positive(owner: str, name: str, value: Any) -> int:
    """A number of things. Raises: InputError unless it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{owner} needs an integer {name} >= 1, got {value!r}.")
    return int(value)


def _table(owner: str, name: str, value: Any, shape: tuple[int, int]) -> Tensor:
    given = as_value(owner, name, value)
    if given.shape != shape:
        raise InputError(
            f"{owner}: {name} has shape {list(given.shape)}, expected [num_mixtures, dims] = {list(shape)}."
        )
    return given
