"""Spectra of graph kernels: functions F of the Laplacian, ``K = outputscale F(L)``, with learned values.

Each gives F at eigenvalues of L, and the coefficients of powers of F as series in the walk matrix ``S = I - L / rate``; the
square root's are the *modulation* of walks: ``F(L) = (sum_l f_l S^l)^2``. Theory: docs/theory/graphs.md.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError, StructureError
from gpx.graphs.operator import Operator
from gpx.parameters import Parameterised, Value, as_value, format_value

SPREAD = 4.0  # steps: how far the modulation of a kernel without other information reaches


class Spectrum(Parameterised, gpytorch.Module):
    """A function F >= 0 of the eigenvalues of a Laplacian. A subclass lists the arguments that are not values in `structure`, and
    defines `at`, `series` and `start_for`.

    scaled: whether its own values include a factor of the whole, so that an outputscale would be one too many.
    """

    structure: tuple[str, ...] = ()
    scaled: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.choices = {}

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return [], {name: getattr(self, name) for name in self.structure}

    def at(self, eigenvalues: Tensor, rate: float) -> Tensor:
        """F at eigenvalues of L, of any shape. rate: that of the operator."""
        raise NotImplementedError(f"{type(self).__name__} must define at(eigenvalues, rate).")

    def root(self, eigenvalues: Tensor, rate: float) -> Tensor:
        """A function whose square is F: smooth where F has no zeros inside the spectrum."""
        values = self.at(eigenvalues, rate)
        return values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()  # a zero may be rounded to below zero

    def series(self, length: int, rate: float, power: float = 1.0) -> Tensor:
        """The first coefficients [length] of ``F(rate (1 - s))^power`` as a series in s."""
        raise NotImplementedError(f"{type(self).__name__} must define series(length, rate, power).")

    def modulation(self, length: int, rate: float) -> Tensor:
        """The coefficients f [length] of the square root: ``sum_p f_p f_(r-p)`` are those of F."""
        return self.series(length, rate, 0.5)

    def radius(self, rate: float, power: float = 0.5) -> float:
        """Up to which size of s the series of ``F(rate (1 - s))^power`` converges; that of a walk matrix needs 1."""
        return math.inf

    def adapted(self, operator: Operator, series: bool) -> Spectrum:
        """This, or a copy in which what the user left open suits the Laplacian. series: whether a series in S is to be made of
        it, which converges in a smaller range.
        """
        return self

    def confine(self, operator: Operator, series: bool) -> None:
        """Bound values that may be learned, so that F is not negative on the spectrum of this Laplacian; series: as in
        `adapted`.
        """

    @property
    def terms(self) -> int | None:
        """How many coefficients the modulation has, None: infinitely many."""
        return None

    def check(self, operator: Operator) -> None:
        """Raise InputError if F is negative somewhere on the spectrum of this Laplacian."""

    def start_for(self, operator: Operator, variance: float) -> None:
        """Start what the user left open: correlations over a few edges; variance: of one node, for those with a scale."""
        raise NotImplementedError(f"{type(self).__name__} must define start_for(operator, variance).")

    def __repr__(self) -> str:
        parts = [f"{name}={getattr(self, name)!r}" for name in self.structure]
        parts += [f"{name}={format_value(getattr(self, name))}" for name in self.choices]
        return f"{type(self).__name__}({', '.join(parts)})"


class Diffusion(Spectrum):
    """Heat flow over a time beta, ``F = exp(-beta L)``.

    Arguments: beta: positive. Source: Kondor & Lafferty (2002), "Diffusion kernels on graphs".

    >>> Diffusion(beta=2.0)
    Diffusion(beta=2)
    """

    beta = Value(1.0, length=True)

    def __init__(self, beta: Any = None):
        super().__init__()
        self.declare("beta", beta)

    def at(self, eigenvalues: Tensor, rate: float) -> Tensor:
        return torch.exp(-self.beta * eigenvalues)

    def series(self, length: int, rate: float, power: float = 1.0) -> Tensor:
        mean, order = self.beta * rate * power, _orders(length, self.beta)
        return torch.exp(order * mean.log() - mean - torch.lgamma(order + 1))

    def start_for(self, operator: Operator, variance: float) -> None:
        self.start("beta", 2 * SPREAD / operator.typical)


class _Power(Spectrum, ABC):
    """``F = (1 + a L)^-p``."""

    @abstractmethod
    def _shape(self) -> tuple[Tensor, Tensor]:
        """a and p."""

    def at(self, eigenvalues: Tensor, rate: float) -> Tensor:
        a, p = self._shape()
        return torch.exp(-p * torch.log1p(a * eigenvalues))

    def series(self, length: int, rate: float, power: float = 1.0) -> Tensor:
        a, p = self._shape()
        a, p = a * rate, p * power
        order = _orders(length, a)
        logs = torch.lgamma(p + order) - torch.lgamma(p) - torch.lgamma(order + 1)
        return torch.exp(logs - p * torch.log1p(a) - order * torch.log1p(1 / a))


class Matern(_Power):
    """``F = (1 + kappa^2 L / (2 nu))^-nu``, the graph analogue of Matern kernels of lengthscale kappa.

    Arguments: nu: positive, the smoothness: a constant; it is learned after ``set(nu=dict(fixed=False))``; kappa: positive.
    Source: Borovitskiy et al. (2021), "Matern Gaussian processes on graphs", eq. 12, times (kappa^2 / (2 nu))^nu.

    >>> Matern(nu=1.5, kappa=2.0)
    Matern(nu=1.5, kappa=2)
    """

    nu = Value(1.5, fixed=True)
    kappa = Value(1.0, length=True)

    def __init__(self, nu: Any = None, kappa: Any = None):
        super().__init__()
        self.declare("nu", nu)
        self.declare("kappa", kappa)

    def _shape(self) -> tuple[Tensor, Tensor]:
        return self.kappa.square() / (2 * self.nu), self.nu

    def start_for(self, operator: Operator, variance: float) -> None:
        nu = float(self.nu.detach())
        self.start("nu", nu)
        self.start("kappa", math.sqrt(4 * SPREAD / operator.typical))


class RegularisedLaplacian(_Power):
    """``F = (1 + scale L)^-power``.

    Arguments: power: positive, a constant (see `Matern`); scale: positive. Source: Smola & Kondor (2003), "Kernels and
    regularization on graphs".

    >>> RegularisedLaplacian(power=2.0)
    RegularisedLaplacian(power=2, scale=1)
    """

    power = Value(1.0, fixed=True)
    scale = Value(1.0, length=True)

    def __init__(self, power: Any = None, scale: Any = None):
        super().__init__()
        self.declare("power", power)
        self.declare("scale", scale)

    def _shape(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.power

    def start_for(self, operator: Operator, variance: float) -> None:
        self.start("power", float(self.power.detach()))
        self.start("scale", 2 * SPREAD / (float(self.power.detach()) * operator.typical))


class PStep(Spectrum):
    """``F = (1 - L / shift)^steps``: a walk of so many steps. Nothing is learned.

    Arguments: steps: an integer >= 1; shift: in units of the operator's rate (1 for the normalised Laplacian), at least 2 for
    walks; for an odd number of steps F must not be negative. Source: Smola & Kondor (2003), times shift^-steps.

    >>> PStep(steps=3)
    PStep(steps=3, shift=2.0)
    """

    structure = ("steps", "shift")

    def __init__(self, steps: int = 2, shift: float = 2.0):
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"PStep needs steps, an integer >= 1, got {steps!r}.")
        if not isinstance(shift, (int, float)) or not 0 < shift < math.inf:
            raise InputError(f"PStep needs a positive shift, got {shift!r}.")
        self.steps, self.shift = steps, float(shift)

    def at(self, eigenvalues: Tensor, rate: float) -> Tensor:
        return (1 - eigenvalues / (self.shift * rate)) ** self.steps

    def series(self, length: int, rate: float, power: float = 1.0) -> Tensor:
        if self.shift < 2:
            raise StructureError(
                f"The walks of PStep need shift >= 2, got {self.shift:g}: its series in the walk matrix would not converge; use"
                " backend='eigen' or 'chebyshev'."
            )
        n, order = self.steps * power, torch.arange(1, length, dtype=torch.float64)
        factors = (n - order + 1) / order / (self.shift - 1)
        first = torch.tensor([(1 - 1 / self.shift) ** n], dtype=torch.float64)
        return first * torch.cat([torch.ones(1, dtype=torch.float64), factors.cumprod(0)])

    def check(self, operator: Operator) -> None:
        zero, bound = self.shift * operator.rate, operator.bound
        if self.steps % 2 and zero < bound * (1 - 1e-12):
            raise InputError(
                f"PStep with {self.steps} steps and shift={self.shift:g} is negative at eigenvalues above {zero:.4g}, and this"
                f" Laplacian has some up to {bound:.4g}; take shift >= {bound / operator.rate:.4g}, or an even number of steps."
            )

    def start_for(self, operator: Operator, variance: float) -> None:
        pass


class InverseCosine(Spectrum):
    """``F = cos(pi scale L / 4)``, a low-pass filter with a sharp end.

    Arguments: scale: positive, a constant unless set otherwise; ``scale L`` must not exceed 2, where F is zero, and its series
    for walks converges up to scale = 1 / rate; None: as large as possible. Source: Smola & Kondor (2003), with scale = 1 for the
    normalised Laplacian.

    >>> InverseCosine()
    InverseCosine(scale=1)
    """

    scale = Value(1.0, fixed=True)

    def __init__(self, scale: Any = None):
        super().__init__()
        self.declare("scale", scale)

    def at(self, eigenvalues: Tensor, rate: float) -> Tensor:
        return torch.cos(0.25 * math.pi * self.scale * eigenvalues)

    def series(self, length: int, rate: float, power: float = 1.0) -> Tensor:
        angle, order = 0.25 * math.pi * self.scale * rate, _orders(length, self.scale)
        turned = torch.cos(angle - 0.5 * math.pi * order)  # derivatives of the cosine, divided by factorials
        return power_series(turned * torch.exp(order * angle.log() - torch.lgamma(order + 1)), power)

    def radius(self, rate: float, power: float = 0.5) -> float:
        # That of the nearest zero, around which only integer powers are smooth.
        return math.inf if float(power).is_integer() else abs(1 - 2 / (float(self.scale.detach()) * rate))

    def _largest(self, operator: Operator, series: bool) -> float:
        """The largest scale for which F is not negative, and its series converges."""
        largest = 2 / operator.bound if operator.bound else math.inf
        return min(largest, 1 / operator.rate) if series else largest

    def adapted(self, operator: Operator, series: bool) -> Spectrum:
        largest = self._largest(operator, series)
        if self.choices["scale"].given or not math.isfinite(largest):
            return self
        fitting = copy.deepcopy(self)  # the user's own may be meant for other graphs, too
        fitting.assign("scale", largest)
        return fitting

    def confine(self, operator: Operator, series: bool) -> None:
        self.keep_below("scale", self._largest(operator, series))

    def check(self, operator: Operator) -> None:
        scale = float(self.scale.detach())
        if scale * operator.bound > 2 * (1 + 1e-9):
            raise InputError(
                f"InverseCosine with scale={scale:.4g} is negative at eigenvalues above {2 / scale:.4g}, and this Laplacian has"
                f" some up to {operator.bound:.4g}; take scale <= {2 / operator.bound:.4g}."
            )

    def start_for(self, operator: Operator, variance: float) -> None:
        self.start("scale", self.scale.detach())


class _Modulated(Spectrum, ABC):
    """``F = (sum_l f_l S^l)^2``, a polynomial given by its square root."""

    scaled = True
    lengths: int

    @abstractmethod
    def coefficients(self) -> Tensor:
        """f [lengths]."""

    @property
    def terms(self) -> int:
        return self.lengths

    def root(self, eigenvalues: Tensor, rate: float) -> Tensor:
        s, total = 1 - eigenvalues / rate, torch.zeros_like(eigenvalues)
        for f in self.coefficients().flip(0):
            total = total * s + f
        return total

    def at(self, eigenvalues: Tensor, rate: float) -> Tensor:
        return self.root(eigenvalues, rate).square()

    def series(self, length: int, rate: float, power: float = 1.0) -> Tensor:
        f = self.coefficients()
        padded = torch.cat([f, f.new_zeros(max(0, length - len(f)))])[:length]
        return padded if power == 0.5 else power_series(padded, 2 * power)

    def radius(self, rate: float, power: float = 0.5) -> float:
        if (2 * power).is_integer():
            return math.inf
        zeros = np.roots(self.coefficients().detach().cpu().numpy()[::-1])
        return float(np.abs(zeros).min(initial=math.inf))


class Polynomial(_Modulated):
    """``F = (sum_l f_l S^l)^2`` with free coefficients and the walk matrix S: I - L for the normalised Laplacian.

    Arguments: f: coefficients of either sign; None: as many as `lengths` says, started at a diffusion. They include the scale of
    the kernel, so that its outputscale is not learned. Source: Reid et al. (2024), "General graph random features".

    >>> Polynomial([1.0, 0.5, 0.1])
    Polynomial(lengths=3, f=[1, 0.5, 0.1])
    """

    structure = ("lengths",)
    f = Value(1.0, positive=False)

    def __init__(self, f: Any = None, lengths: int = 10):
        super().__init__()
        self.lengths = _as_lengths(lengths) if f is None else _count(f)
        self.declare("f", f, (self.lengths,))
        if f is None:
            self.assign("f", _decaying(self.lengths))

    def coefficients(self) -> Tensor:
        return self.f

    def start_for(self, operator: Operator, variance: float) -> None:
        f = math.sqrt(variance) * _decaying(self.lengths)
        self.start("f", f, scale=float(f.abs().max()))


class Neural(_Modulated):
    """``F = (sum_l f_l S^l)^2``, f_l: a network with one hidden layer at ``t = l / (lengths - 1)``:
    ``f_l = sum_j outer_j tanh(inner_j0 t + inner_j1) + outer_last``.

    Arguments: lengths: how many coefficients; hidden: width of the layer; inner [hidden, 2], outer [hidden + 1]: the
    weights; None: started so that f is that of a diffusion. As for `Polynomial`, the scale is included.
    Source: Reid et al. (2024), "General graph random features", section 3.1.

    >>> Neural(lengths=5, hidden=2).coefficients().shape
    torch.Size([5])
    """

    structure = ("lengths", "hidden")
    inner = Value(0.0, positive=False)
    outer = Value(0.0, positive=False)

    def __init__(self, lengths: int = 10, hidden: int = 6, inner: Any = None, outer: Any = None):
        super().__init__()
        self.lengths, self.hidden = _as_lengths(lengths), _as_lengths(hidden)
        self.declare("inner", inner, (self.hidden, 2))
        self.declare("outer", outer, (self.hidden + 1,))
        if inner is None:  # bends spread over the lengths
            place = torch.linspace(0, 1, self.hidden, dtype=torch.float64)
            slope = torch.full_like(place, 2.0 * self.hidden)
            self.assign("inner", torch.stack([slope, -slope * place], 1))
        if outer is None:
            self.assign("outer", self._fitted(_decaying(self.lengths)))

    def _layer(self) -> Tensor:
        t = torch.linspace(0, 1, self.lengths, dtype=self.inner.dtype, device=self.inner.device)
        bent = torch.tanh(t[:, None] * self.inner[:, 0] + self.inner[:, 1])
        return torch.cat([bent, torch.ones_like(bent[:, :1])], 1)

    def _fitted(self, f: Tensor) -> Tensor:
        """Outer weights for which the coefficients are as near to f as they can be."""
        return torch.linalg.pinv(self._layer().detach(), rcond=1e-6) @ f

    def coefficients(self) -> Tensor:
        return self._layer() @ self.outer

    def start_for(self, operator: Operator, variance: float) -> None:
        outer = self._fitted(math.sqrt(variance) * _decaying(self.lengths))
        self.start("inner", self.inner.detach())
        self.start("outer", outer, scale=float(outer.abs().max()))


def power_series(a: Tensor, power: float) -> Tensor:
    """Coefficients of ``(sum_r a_r x^r)^power``, as many as those of a [n], a_0 > 0: Miller's recursion
    ``r a_0 b_r = sum_(k=1..r) (k (power + 1) - r) a_k b_(r-k)``. Differentiable. Cost: O(n^2).

    >>> power_series(torch.tensor([1.0, -2.0, 3.0, -4.0]), 0.5)  # of (1 + x)^-2
    tensor([ 1., -1.,  1., -1.])
    """
    if power == 1:
        return a
    if power == 2:  # of any series
        return torch.stack([(a[: r + 1] * a[: r + 1].flip(0)).sum() for r in range(len(a))])
    if not bool(a[0] > 0):
        raise StructureError(
            f"A power {power:g} of a series needs a positive first coefficient, got {float(a[0].detach()):g}; use"
            " backend='eigen' or 'chebyshev'."
        )
    return _SeriesPower.apply(a, power)


class _SeriesPower(torch.autograd.Function):
    """``B = A^p`` for series; ``dB = p A^(p-1) dA``."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, power: float) -> Tensor:
        ctx.save_for_backward(a)
        ctx.power = power
        first = a.detach().double().cpu().numpy()
        ratios, b, k = first / first[0], np.ones(len(a)), np.arange(len(a))
        for r in range(1, len(a)):
            weights = (k[1 : r + 1] * (power + 1) - r) / r
            b[r] = (weights * ratios[1 : r + 1]) @ b[r - 1 :: -1]
        return torch.from_numpy(first[0] ** power * b).to(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        slope = ctx.power * _SeriesPower.apply(a, ctx.power - 1)
        later = torch.cat([grad, torch.zeros_like(grad[1:])])
        return torch.nn.functional.conv1d(later[None, None], slope[None, None])[0, 0], None


def _orders(length: int, like: Tensor) -> Tensor:
    return torch.arange(length, dtype=like.dtype, device=like.device)


def _decaying(lengths: int) -> Tensor:
    """The modulation of a diffusion over a few steps, of unit sum: F(0) = 1."""
    order = torch.arange(lengths, dtype=torch.float64)
    f = torch.exp(order * math.log(min(SPREAD, lengths / 2)) - torch.lgamma(order + 1))
    return f / f.sum()


def _count(f: Any) -> int:
    """How many coefficients f has. Raises: InputError if there are none but zeros."""
    values = as_value("Polynomial", "f", f).reshape(-1)
    if not bool((values != 0).any()):
        raise InputError(f"Polynomial needs f with a coefficient that is not zero, got {values.tolist()}.")
    return len(values)


def _as_lengths(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"Expected an integer >= 1, the number of coefficients or hidden units, got {value!r}.")
    return value
