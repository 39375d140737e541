"""Spectral mixtures with Gaussian bumps, and products of them over columns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.kernels.algebra import Product
from gpx.kernels.base import Value
from gpx.kernels.mixture import Mixture, check_positive
from gpx.linalg.distance import squared_distance
from gpx.parameters import as_value


class SpectralMixture(Mixture):
    """Spectral mixture, ``k(t) = sum_q w_q exp(-2 pi^2 sum_p t_p^2 v_qp^2) cos(2 pi mu_q . t)``, ``t = x - x'``.

    A Gaussian bump of the spectral density around every frequency mu_q and -mu_q; they approximate every stationary kernel.

    Arguments: num_mixtures: Q; mixture_weights: [Q], in squared target units, k(0) is their sum; mixture_means: [Q, D],
    frequencies in cycles per input unit ([Q] where there is one column); mixture_scales: v [Q, D], standard deviations of the
    bumps, in cycles per input unit: a lengthscale is 1 / (2 pi v). None starts at tones that the data show (the peaks of their
    periodogram along every column) and a ladder of lengthscales at frequency zero; `fit` tries several such starts and goes on
    from that with the best objective after short searches. Frequencies are kept below Nyquist's, of which a few near-duplicate
    inputs know nothing.
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


def _table(owner: str, name: str, value: Any, shape: tuple[int, int]) -> Tensor:
    given = as_value(owner, name, value)
    if given.shape != shape:
        raise InputError(
            f"{owner}: {name} has shape {list(given.shape)}, expected [num_mixtures, dims] = {list(shape)}."
        )
    return given
