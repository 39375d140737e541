"""Isotropic forms: ``k(x, x') = variance profile(|x - x'| / lengthscale)`` with a profile that compiled loops know."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from gpytorch import kernels as gpytorch_kernels
from torch import Tensor

from gpx.errors import StructureError
from gpx.kernels import RBF, Matern

MATERN = {0.5: "matern12", 1.5: "matern32", 2.5: "matern52"}


@dataclass(frozen=True)
class Isotropic:
    """profile: its name in `linalg.vecchia.PROFILES`; lengthscale [d] or [1], in units of the profile; variance []: both
    differentiable; dims: the columns that count, all of them if None.
    """

    profile: str
    lengthscale: Tensor
    variance: Tensor
    dims: Tensor | None = None

    def columns(self, x: Tensor) -> Tensor:
        """Those columns of x that count."""
        return x if self.dims is None else x.index_select(-1, self.dims)


@singledispatch
def isotropic(kernel: Any) -> Isotropic:
    """The isotropic form of a kernel, exact: Matern of smoothness 1/2, 3/2 and 5/2, RBF, and these scaled.

    Raises: StructureError for another kernel.

    >>> isotropic(Matern(nu=1.5, lengthscale=3.0)).profile
    'matern32'
    """
    raise StructureError(
        f"{type(kernel).__name__} is not one of the isotropic kernels with compiled loops: Matern, RBF."
    )


def _one(kernel: Any, profile: str, unit: float) -> Isotropic:
    if kernel.batch_shape:
        raise StructureError(f"A batch of {type(kernel).__name__} kernels has no isotropic form.")
    variance = getattr(kernel, "outputscale", kernel.lengthscale.new_ones(()))
    return Isotropic(profile, kernel.lengthscale.reshape(-1) / unit, variance.reshape(()), kernel.active_dims)


@isotropic.register(RBF)
@isotropic.register(gpytorch_kernels.RBFKernel)
def _(kernel: Any) -> Isotropic:
    return _one(kernel, "rbf", 1.0)


@isotropic.register(Matern)
@isotropic.register(gpytorch_kernels.MaternKernel)
def _(kernel: Any) -> Isotropic:
    if kernel.nu not in MATERN:
        raise StructureError(f"Matern kernels have compiled loops for nu = 0.5, 1.5 and 2.5, not for {kernel.nu}.")
    return _one(kernel, MATERN[kernel.nu], math.sqrt(2 * kernel.nu))


@isotropic.register
def _(kernel: gpytorch_kernels.ScaleKernel) -> Isotropic:
    base, own = isotropic(kernel.base_kernel), kernel.active_dims
    if kernel.batch_shape:
        raise StructureError("A batch of kernels has no isotropic form.")
    dims = own if base.dims is None else base.dims  # the base selects alone: see `kernels.dense`
    return Isotropic(base.profile, base.lengthscale, base.variance * kernel.outputscale.reshape(()), dims)
