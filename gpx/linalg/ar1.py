"""Many scalar autoregressions in noise at once: log density and its hand-written derivative, and smoothing in torch.

For every frequency j, ``F_1 ~ N(0, l_j / (1 - w^2))``, ``F_(i+1) = w F_i + N(0, l_j)`` and ``z_i = F_i + N(0, noise)``.
Arrays are time-major, [K, c, p]: K steps, c columns that share the variances, p frequencies. Theory: docs/theory/block.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


@numba.njit(cache=True)
def noise_free(
    spectrum: np.ndarray, omega: float, square: np.ndarray, cross: np.ndarray, inner: np.ndarray, columns: int, steps: int
) -> tuple[float, np.ndarray, float]:  # fmt: skip
    """Log density without noise, its gradient [p] in the spectrum, and that in omega, from sufficient statistics [p].

    ``-2 l = sum_j c (K log 2 pi l_j - log(1 - w^2)) + (square - 2 w cross + w^2 inner)_j / l_j``. Cost: O(p).
    """
    gradient = np.empty_like(spectrum)
    value, slope, logs = 0.0, 0.0, 0.0
    count = columns * steps
    for j in range(len(spectrum)):
        inverse = 1 / spectrum[j]
        quad = (square[j] - 2 * omega * cross[j] + omega * omega * inner[j]) * inverse
        value += quad
        slope += (cross[j] - omega * inner[j]) * inverse
        gradient[j] = 0.5 * (quad - count) * inverse
        logs += math.log(spectrum[j])
    rest = 1 - omega * omega
    size = columns * len(spectrum)
    value += count * logs - size * math.log(rest) + steps * size * LOG_2PI
    return -0.5 * value, gradient, slope - size * omega / rest


def statistics(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `noise_free` needs of z [K, c, p], each [p]: the sums over steps and columns of ``z_i^2``, of
    ``z_i z_(i+1)``, and of ``z_i^2`` without the ends (for one step: minus its square, which cancels the initial variance).
    """
    inner = z[:-1].square().sum((0, 1)) - z[0].square().sum(0)
    return z.square().sum((0, 1)), (z[1:] * z[:-1]).sum((0, 1)), inner


class NoiseFree(torch.autograd.Function):
    """`noise_free` of tensors; statistics are constants."""

    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, omega: Tensor, stats: Sequence[Tensor], columns: int, steps: int) -> Tensor:
        numbers = (s.detach().numpy() for s in stats)
        value, gradient, slope = noise_free(spectrum.detach().numpy(), float(omega), *numbers, columns, steps)
        ctx.gradient, ctx.slope = torch.from_numpy(gradient), slope
        return spectrum.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.gradient, grad * ctx.slope, None, None, None


@numba.njit(cache=True)
def _filter(z, spectrum, omega, noise, both):  # type: ignore[no-untyped-def]
    """The forward pass; means and variances before every step, and after the last, are kept for `_adjoint`."""
    steps, columns, p = z.shape
    mean = np.zeros((steps + 1, columns, p))
    back = np.zeros((steps + 1 if both else 1, columns, p))
    variance, cross = np.empty((steps + 1, p)), np.empty((steps + 1, p))
    logs, quads = np.zeros(p), np.zeros(p)
    for j in range(p):
        variance[0, j] = spectrum[j] / (1 - omega * omega)
        cross[0, j] = omega * variance[0, j]
    for i in range(steps):
        for j in range(p):
            s = variance[i, j] + noise
            logs[j] += math.log(s)
            variance[i + 1, j] = omega * omega * noise * variance[i, j] / s + spectrum[j]
            cross[i + 1, j] = omega * noise / s * cross[i, j]
        for c in range(columns):
            for j in range(p):
                s = variance[i, j] + noise
                error = z[i, c, j] - mean[i, c, j]
                quads[j] += error * error / s
                mean[i + 1, c, j] = omega * (mean[i, c, j] + variance[i, j] / s * error)
                if both:
                    error = z[steps - 1 - i, c, j] - back[i, c, j]
                    back[i + 1, c, j] = omega * (back[i, c, j] + variance[i, j] / s * error)
    value = -0.5 * (columns * logs.sum() + quads.sum() + columns * steps * p * LOG_2PI)
    return value, mean, back, variance, cross


@numba.njit(cache=True)
def _adjoint(
    z, spectrum, omega, noise, both, mean, back, variance, cross, g_value, g_mean, g_back, g_variance, g_cross
):
    """Gradients in z, spectrum, omega and noise from those of the value and of the state after the last step.

    g_mean, g_back [c, p], g_variance, g_cross [p] are overwritten.
    """
    steps, columns, p = z.shape
    g_z, g_spectrum, g_gain = np.zeros_like(z), np.zeros(p), np.empty(p)
    g_omega, g_noise = np.zeros(p), np.zeros(p)
    for i in range(steps - 1, -1, -1):
        for j in range(p):
            s = variance[i, j] + noise
            gain = variance[i, j] / s
            g_spectrum[j] += g_variance[j]
            g_omega[j] += 2 * omega * noise * gain * g_variance[j] + noise / s * cross[i, j] * g_cross[j]
            g_noise[j] += omega * omega * gain * g_variance[j]
            g_gain[j] = omega * omega * noise * g_variance[j] - omega * cross[i, j] * g_cross[j]
            g_cross[j] *= omega * noise / s
            g_variance[j] = (
                -0.5 * columns * g_value / s
            )  # from here on the gradient in s, later also that in the variance
        for c in range(columns):
            for j in range(p):
                s = variance[i, j] + noise
                gain = variance[i, j] / s
                error = z[i, c, j] - mean[i, c, j]
                g_omega[j] += g_mean[c, j] * (mean[i, c, j] + gain * error)
                g_gain[j] += omega * g_mean[c, j] * error
                g_error = omega * gain * g_mean[c, j] - g_value * error / s
                g_mean[c, j] = omega * g_mean[c, j] - g_error
                g_z[i, c, j] += g_error
                g_variance[j] += 0.5 * g_value * error * error / (s * s)
                if both:
                    error = z[steps - 1 - i, c, j] - back[i, c, j]
                    g_omega[j] += g_back[c, j] * (back[i, c, j] + gain * error)
                    g_gain[j] += omega * g_back[c, j] * error
                    g_error = omega * gain * g_back[c, j]
                    g_back[c, j] = omega * g_back[c, j] - g_error
                    g_z[steps - 1 - i, c, j] += g_error
        for j in range(p):
            s = variance[i, j] + noise
            g_s = g_variance[j] - g_gain[j] * variance[i, j] / (s * s)
            g_noise[j] += g_s
            g_variance[j] = g_s + g_gain[j] / s
    rest = 1 - omega * omega
    for j in range(p):
        start = spectrum[j] / rest
        g_omega[j] += g_cross[j] * start
        g_start = g_variance[j] + omega * g_cross[j]
        g_spectrum[j] += g_start / rest
        g_omega[j] += 2 * omega * g_start * start / rest
    return g_z, g_spectrum, g_omega.sum(), g_noise.sum()


class Filter(torch.autograd.Function):
    """The log density of z, and what it says of the neighbours of its ends.

    Returns: the log density, mean [c, p] of the step after the last and of that before the first (zero unless `both`), the
    variance [p] of either, and their covariance [p]. Cost: O(K c p), and memory O(K c p) for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, spectrum: Tensor, omega: Tensor, noise: Tensor, both: bool) -> Any:
        ctx.numbers = (z.detach().numpy(), spectrum.detach().numpy(), float(omega), float(noise), both)
        value, *ctx.states = _filter(*ctx.numbers)
        mean, back, variance, cross = (torch.from_numpy(s[-1].copy()) for s in ctx.states)
        return z.new_tensor(value), mean, back, variance, cross

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *others: Tensor) -> Any:
        ends = (g.contiguous().numpy().copy() for g in others)
        grads = _adjoint(*ctx.numbers, *ctx.states, float(grad), *ends)
        g_z, g_spectrum = (torch.from_numpy(g) for g in grads[:2])
        return g_z, g_spectrum, g_z.new_tensor(grads[2]), g_z.new_tensor(grads[3]), None


def filtered(z: Tensor, spectrum: Tensor, omega: Tensor, noise: Tensor, both: bool) -> tuple[Tensor, ...]:
    """`Filter`, compiled for float64 on CPUs and in plain torch otherwise."""
    if z.dtype == torch.float64 and z.device.type == "cpu":
        return Filter.apply(z.contiguous(), spectrum, omega, noise, both)
    return filtered_plainly(z, spectrum, omega, noise, both)


def filtered_plainly(z: Tensor, spectrum: Tensor, omega: Tensor, noise: Tensor, both: bool) -> tuple[Tensor, ...]:
    """`Filter` in torch, step by step."""
    steps, columns, p = z.shape
    variance = spectrum / (1 - omega.square())
    cross, mean, back = omega * variance, torch.zeros_like(z[:1].sum(0)), torch.zeros_like(z[:1].sum(0))
    value = -0.5 * steps * columns * p * LOG_2PI * torch.ones_like(omega)
    for i in range(steps):
        s = variance + noise
        error, gain = z[i] - mean, variance / s
        value = value - 0.5 * (columns * s.log().sum() + (error.square() / s).sum())
        mean = omega * (mean + gain * error)
        if both:
            back = omega * (back + gain * (z[steps - 1 - i] - back))
        variance, cross = omega.square() * noise * gain + spectrum, omega * noise / s * cross
    return value, mean, back, variance, cross


@dataclass(frozen=True, eq=False)
class Smoothed:
    """Posterior of the chain at B chosen steps, some of them observed.

    predicted, information: [B, p], variance given what came before, and what it and all that follows say of it; link:
    [B, p], how an error at one step carries over to the next; mean: [B, c, p]; alpha: [B, c, p] and precision [B, p]:
    ``C^-1 z`` and the diagonal of ``C^-1`` at observed steps, C the covariance of z; zero elsewhere.
    """

    predicted: Tensor
    information: Tensor
    link: Tensor
    mean: Tensor
    alpha: Tensor
    precision: Tensor

    @property
    def variance(self) -> Tensor:
        """[B, p]; below the rounding error of the subtraction a variance is zero."""
        return (self.predicted * self.shrink).clamp_min(0)

    @property
    def shrink(self) -> Tensor:
        """What the data from a step on leave of its predicted variance."""
        return 1 - self.predicted * self.information

    def covariance_with(self, step: int) -> Tensor:
        """Posterior covariances [B, p] of every step with one of them."""
        after = torch.cumprod(torch.cat([torch.ones_like(self.link[:1]), self.link[step:-1]]), 0)
        before = torch.cumprod(self.link[:step].flip(0), 0).flip(0)
        earlier = self.predicted[:step] * before * self.shrink[step]
        return torch.cat([earlier, self.predicted[step] * after * self.shrink[step:]])


def smooth(
    z: Tensor, seen: Sequence[bool], lags: Sequence[int], spectrum: Tensor, omega: Tensor, noise: Tensor
) -> Smoothed:  # fmt: skip
    """The chain given z [B, c, p] at the steps that are seen; lags: [B - 1], distances between neighbours. Differentiable.

    Source: Durbin & Koopman (2012), "Time series analysis by state space methods", sections 4.4-4.7. Cost: O(B c p).
    """
    start = spectrum / (1 - omega.square())
    powers = [omega**lag for lag in lags]
    mean, variance = torch.zeros_like(z[:1].sum(0)), start
    means, predicted, inverse, errors, links, gains = [], [], [], [], [], []
    for i, known in enumerate(seen):
        means.append(mean)
        predicted.append(variance)
        power = powers[i] if i < len(powers) else torch.zeros_like(omega)
        inverse.append(1 / (variance + noise) if known else torch.zeros_like(variance))
        errors.append(z[i] - mean)
        gains.append(power * variance * inverse[-1])
        links.append(power * noise * inverse[-1] if known else power.expand_as(variance))
        mean = power * mean + gains[-1] * errors[-1]
        added = spectrum if i < len(lags) and lags[i] == 1 else start * (1 - power.square())
        variance = power * links[-1] * variance + added
    r, information = torch.zeros_like(mean), torch.zeros_like(start)
    scores, informations, alphas, precisions = [], [], [], []
    for i in reversed(range(len(seen))):
        alphas.append((errors[i] * inverse[i] - gains[i] * r) if seen[i] else torch.zeros_like(r))
        precisions.append(inverse[i] + gains[i].square() * information)
        r = errors[i] * inverse[i] + links[i] * r
        information = inverse[i] + links[i].square() * information
        scores.append(r)
        informations.append(information)
    backwards = (torch.stack(part[::-1]) for part in (scores, informations, alphas, precisions))
    score, information, alpha, precision = backwards
    prior = torch.stack(predicted)
    smoothed = torch.stack(means) + prior[:, None] * score
    return Smoothed(prior, information, torch.stack(links), smoothed, alpha, precision)
