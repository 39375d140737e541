"""Stationary kernels that are functions of a scaled distance: RBF, Matern, RationalQuadratic."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.inputs import Data
from gpx.kernels.base import Kernel, Value
from gpx.linalg.distance import squared_distance


class Stationary(Kernel):
    """``k(x, x') = outputscale * correlation(|x - x'|^2 / lengthscale^2)``; a subclass gives ``correlation``."""

    per_dimension = ("lengthscale",)
    lengthscale = Value(1.0, length=True)  # pyright: ignore[reportAssignmentType]
    outputscale = Value(1.0)

    def __init__(self, lengthscale: Any, outputscale: Any, ard: bool, active_dims: Any, batch_shape: Any):
        super().__init__(active_dims, batch_shape)
        self.ard = bool(ard)
        self.declare_per_column("lengthscale", lengthscale)
        self.declare("outputscale", outputscale, tuple(self.batch_shape))

    @property
    def is_stationary(self) -> bool:
        return True

    def correlation(self, r2: Tensor) -> Tensor:
        """The correlation at squared scaled distances r2."""
        raise NotImplementedError(f"{type(self).__name__} must define correlation(r2).")

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if diag:
            return self.level(x1)
        lengthscale = self.lengthscale
        if lengthscale.shape[-1] > 1:
            r2 = squared_distance(x1 / lengthscale, x2 / lengthscale)
        else:  # scaled last, the gradient in the lengthscale keeps its digits for points that are almost equal
            r2 = squared_distance(x1, x2) / lengthscale.square()
        return self.outputscale[..., None, None] * self.correlation(r2)

    def _init_from(self, data: Data) -> None:
        # Distances between random points are about sqrt(2 D) spreads: start at a correlation that is neither 0 nor 1.
        spread = data.spread * math.sqrt(len(data.spread)) if self.ard else data.spread.square().sum().sqrt()
        spread = spread * data.resolution
        self.start("lengthscale", spread.reshape(1, -1).expand(*self.batch_shape, 1, -1), box=data.length_box)
        self.start("outputscale", data.variance)


class RBF(Stationary):
    """Squared-exponential kernel, ``k = outputscale * exp(-r^2 / 2)``, ``r = |(x - x') / lengthscale|``.

    Arguments: lengthscale: positive, in input units (a list: one per dimension); outputscale: the variance k(0), in squared
    target units; ard: learn one lengthscale per dimension; active_dims: columns, by index or name.
    Cost: O(N M D). Source: Rasmussen & Williams (2006), eq. 4.9.

    >>> RBF(lengthscale=2.0)
    RBF(lengthscale=2, outputscale=1)
    """

    structure = ("ard",)

    def __init__(self, lengthscale: Any = None, outputscale: Any = None, ard: bool = False, *,
                 active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(lengthscale, outputscale, ard, active_dims, batch_shape)

    def correlation(self, r2: Tensor) -> Tensor:
        return torch.exp(-0.5 * r2)


class Matern(Stationary):
    """Matern kernel of half-integer smoothness, ``k = outputscale * M_nu(sqrt(2 nu) r)``.

    ``M_nu(z) = exp(-z) p! / (2p)! * sum_i (p+i)! / (i! (p-i)!) (2z)^(p-i)``, ``p = nu - 1/2``.

    Arguments: nu: 0.5, 1.5, 2.5, ... ; the others as for `RBF`. Raises: InputError for another nu.
    Cost: O(N M (D + p)). Source: Rasmussen & Williams (2006), eq. 4.16.

    >>> Matern(nu=1.5, ard=True)
    Matern(nu=1.5, ard=True, lengthscale=1, outputscale=1)
    """

    structure = ("nu", "ard")

    def __init__(self, nu: float = 2.5, lengthscale: Any = None, outputscale: Any = None, ard: bool = False, *,
                 active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(lengthscale, outputscale, ard, active_dims, batch_shape)
        self.nu = check_half_integer(type(self).__name__, nu, "RBF")

    def correlation(self, r2: Tensor) -> Tensor:
        return matern_profile(2 * self.nu * r2, round(self.nu - 0.5))


class RationalQuadratic(Stationary):
    """Rational-quadratic kernel, ``k = outputscale * (1 + r^2 / (2 alpha))^-alpha``: RBF kernels of many lengthscales.

    Arguments: alpha: positive, dimensionless; the others as for `RBF`. Cost: O(N M D).
    Source: Rasmussen & Williams (2006), eq. 4.19.

    >>> RationalQuadratic(alpha=2.0)
    RationalQuadratic(lengthscale=1, outputscale=1, alpha=2)
    """

    structure = ("ard",)
    alpha = Value(1.0)

    def __init__(self, alpha: Any = None, lengthscale: Any = None, outputscale: Any = None, ard: bool = False, *,
                 active_dims: Any = None, batch_shape: Any = ()):  # fmt: skip
        super().__init__(lengthscale, outputscale, ard, active_dims, batch_shape)
        self.declare("alpha", alpha, tuple(self.batch_shape))

    def correlation(self, r2: Tensor) -> Tensor:
        alpha = self.alpha[..., None, None]
        return torch.exp(-alpha * torch.log1p(r2 / (2 * alpha)))

    def _init_from(self, data: Data) -> None:
        super()._init_from(data)
        self.start("alpha", 1.0, box=(1e-3, 1e3))


def check_half_integer(owner: str, nu: Any, limit: str) -> float:
    """The smoothness nu. Raises: InputError unless it is 1/2, 3/2, ...; limit: the kernel of infinite smoothness."""
    if not isinstance(nu, (int, float)) or nu <= 0 or (2 * nu) % 2 != 1:
        raise InputError(f"{owner} needs a half-integer nu (0.5, 1.5, 2.5, ...), got {nu!r}; for nu = inf use {limit}.")
    return float(nu)


class _MaternProfile(torch.autograd.Function):
    """M_nu as a function of z^2, with d M_nu / d(z^2) = -M_(nu-1) / (4 (nu - 1)): no square root in the gradient."""

    @staticmethod
    def forward(ctx: Any, z2: Tensor, p: int) -> Tensor:
        ctx.save_for_backward(z2)
        ctx.p = p
        z = z2.sqrt()
        norm = math.factorial(p) / math.factorial(2 * p)
        result = torch.full_like(z, norm * 2**p)
        for i in range(1, p + 1):
            weight = math.factorial(p + i) / (math.factorial(i) * math.factorial(p - i)) * 2 ** (p - i)
            result.mul_(z).add_(norm * weight)
        return result.mul_(z.neg_().exp_())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z2,) = ctx.saved_tensors
        if ctx.p:
            return grad * matern_profile(z2, ctx.p - 1) / (2 - 4 * ctx.p), None
        # exp(-r) has a kink at zero: coincident points get the subgradient zero.
        z = torch.where(z2 > 0, z2, torch.ones_like(z2)).sqrt()
        return torch.where(z2 > 0, -grad * torch.exp(-z) / (2 * z), torch.zeros_like(z2)), None


def matern_profile(z2: Tensor, p: int) -> Tensor:
    """The Matern correlation of order p = nu - 1/2 at z2 = 2 nu r^2, differentiable at zero."""
    return _MaternProfile.apply(z2, p)
