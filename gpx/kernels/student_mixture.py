"""Spectral mixtures with heavy tails: Matern kernels around frequencies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gpx.kernels.base import Value
from gpx.kernels.mixture import Mixture
from gpx.kernels.stationary import check_half_integer, matern_profile
from gpx.linalg.distance import squared_distance


class StudentMixture(Mixture):
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
