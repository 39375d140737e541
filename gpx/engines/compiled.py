"""Series by compiled loops, as differentiable functions with hand-written gradients. Theory: docs/theory/state_space.md."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.linalg.chain import Chain, Smoothed
from gpx.linalg.layout import Layout
from gpx.linalg.scan import Marginals, Scan, Series


class Compiled(Series):
    """A series by the loops of `Chain`: the methods and numbers of `Scan`, for data that numpy can read."""

    @property
    def _inputs(self) -> tuple[Any, ...]:
        return self.layout, numbers(self.gaps), self.rates, self.rows, self.factors, self.nu, self.tau

    @cached_property
    def _loops(self) -> Chain:
        return _chain(*self._inputs)

    def log_partition(self) -> Tensor:
        """See `Scan`."""
        return _Evidence.apply(*self._inputs)[0]

    def log_density(self) -> Tensor:
        """See `Scan`."""
        return _Evidence.apply(*self._inputs)[1]

    def moments(self) -> tuple[Tensor, Tensor]:
        """See `Scan`."""
        return _Moments.apply(*self._inputs)

    @cached_property
    def smoothed(self) -> Marginals:
        """See `Scan`."""
        found = self._loops.smoothed
        return Marginals(*map(torch.as_tensor, (found.mean, found.variance, found.share)))

    def response(self, nu: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """See `Scan`."""
        moved = self._loops.along(numbers(nu), numbers(tau)).smoothed.imag()
        return torch.as_tensor(moved.mean), torch.as_tensor(moved.variance)

    def path(self, random: np.random.Generator) -> Tensor:
        """See `Scan`."""
        return torch.as_tensor(self._loops.path(random))


def chain_of(device: torch.device) -> type[Compiled] | type[Scan]:
    """What computes where the data are: compiled loops in the processor's memory, a scan elsewhere."""
    return Compiled if device.type == "cpu" else Scan


class _Evidence(torch.autograd.Function):
    """Log partition, and log density of the targets nu / tau; the gradients are read off the smoother."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        gaps: np.ndarray,
        rates: Tensor,
        rows: Tensor,
        factors: Tensor,
        nu: Tensor,
        tau: Tensor,
    ) -> Any:
        ctx.chain = _chain(layout, gaps, rates, rows, factors, nu, tau)
        ctx.save_for_backward(rates)
        if any(ctx.needs_input_grad):
            _ = ctx.chain.filtered  # one pass for the value and the smoother
        partition, density = ctx.chain.evidence()
        return nu.new_tensor(float(partition)), nu.new_tensor(float(density))

    @staticmethod
    def backward(ctx: Any, grad_partition: Tensor, grad_density: Tensor) -> Any:
        (rates,), total = ctx.saved_tensors, grad_partition + grad_density
        sites = ctx.chain.site_gradients(float(grad_partition), float(grad_density))
        grads = (torch.as_tensor(v).to(rates) for v in sites)
        return None, None, *_parameters(ctx.chain.smoothed, total, rates), *grads


class _Moments(torch.autograd.Function):
    """Mean and variance [N] of f: ``(a, b) . (dm, dv)`` is the change of the log partition's gradient along the sites
    ``(a - 2 m b, -2 b)``, which one complex step gives.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        gaps: np.ndarray,
        rates: Tensor,
        rows: Tensor,
        factors: Tensor,
        nu: Tensor,
        tau: Tensor,
    ) -> Any:
        ctx.chain = _chain(layout, gaps, rates, rows, factors, nu, tau)
        ctx.save_for_backward(rates, nu)
        smoothed = ctx.chain.smoothed
        return tuple(torch.as_tensor(v).to(nu) for v in (smoothed.mean, smoothed.variance))

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Any:
        rates, nu = ctx.saved_tensors
        m, a, b = ctx.chain.smoothed.mean, numbers(grad_mean), numbers(grad_variance)
        moved = ctx.chain.along(a - 2 * m * b, -2 * b).smoothed.imag()
        grad_nu = torch.as_tensor(moved.mean).to(nu)
        grad_tau = torch.as_tensor(-0.5 * moved.variance - m * moved.mean).to(nu)
        return None, None, *_parameters(moved, torch.ones(()).to(nu), rates), grad_nu, grad_tau


def log_partition(
    layout: Layout, gaps: np.ndarray, rates: Tensor, rows: Tensor, factors: Tensor, nu: Tensor, tau: Tensor
) -> Tensor:
    """The log partition of a `Chain`, differentiable in its tensors."""
    return _Evidence.apply(layout, gaps, rates, rows, factors, nu, tau)[0]


def _parameters(smoothed: Smoothed, grad: Tensor, like: Tensor) -> Sequence[Tensor]:
    """Gradients in rates, rows and factors."""
    return [grad * torch.as_tensor(v).to(like) for v in (smoothed.rates, smoothed.rows, smoothed.factors)]


def _chain(
    layout: Layout, gaps: np.ndarray, rates: Tensor, rows: Tensor, factors: Tensor, nu: Tensor, tau: Tensor
) -> Chain:
    return Chain(layout, gaps, *map(numbers, (rates, rows, factors, nu, tau)))


def numbers(values: Tensor) -> np.ndarray:
    """As an array of float64. Raises: TypeError for values that are not in the processor's memory: nothing is moved."""
    return np.ascontiguousarray(values.detach().double().numpy())
