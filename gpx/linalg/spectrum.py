"""Periodograms of series with gaps, and their expectation under a covariance: the numbers behind debiased Whittle.

Theory: docs/theory/whittle.md. All frequencies are those of Fourier without zero, ``w_k = 2 pi k / L``, k = 1 .. L // 2, in
radians per cell of a lattice of L cells; the mean of the observed cells is always taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.fft import next_fast_len
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Which cells of a lattice are observed, and what does not depend on their values.

    mask [Q, L]: 1 where observed, else 0; count [Q, 1]: how many are; pairs [Q, L]: the number of pairs of observed cells at
    each lag; transform [Q, 1 + L // 2]: of the mask; padded: its transform over twice the length; complete: no gaps.
    """

    mask: Tensor
    count: Tensor
    pairs: Tensor
    transform: Tensor
    padded: Tensor
    complete: bool


def window(mask: Tensor) -> Window:
    """What periodograms need of a mask [Q, L]. Cost: O(Q L log L).

    >>> window(torch.tensor([[1.0, 1.0, 0.0, 1.0]])).pairs
    tensor([[3., 1., 1., 1.]])
    """
    length = mask.shape[-1]
    padded = torch.fft.rfft(mask, next_fast_len(2 * length - 1, real=True))
    # Whole numbers: rounding makes them exact.
    pairs = torch.fft.irfft(padded.abs().square(), next_fast_len(2 * length - 1, real=True))[..., :length].round()
    return Window(mask, mask.sum(-1, keepdim=True), pairs, torch.fft.rfft(mask), padded, bool(mask.all()))


def periodogram(values: Tensor, cells: Window) -> Tensor:
    """``I_k = |sum_t h_t (y_t - mean) exp(-i w_k t)|^2 / sum_t h_t`` [P, L // 2] of values [P, L] under the mask h.

    The mean is that of the observed cells, so that a constant added to them changes nothing. Values outside the mask are
    not used, but must be finite. Cost: O(P L log L).

    >>> periodogram(torch.tensor([[1.0, -1.0, 1.0, -1.0]]), window(torch.ones(1, 4)))
    tensor([[0., 4.]])
    """
    mean = (values * cells.mask).sum(-1, keepdim=True) / cells.count
    transform = torch.fft.rfft((values - mean) * cells.mask)[..., 1:]
    return (transform.real.square() + transform.imag.square()) / cells.count


def expected_periodogram(autocovariance: Tensor, noise: Tensor, cells: Window) -> Tensor:
    """The expectation [Q, L // 2] of `periodogram` for ``cov(y_s, y_t) = c(|s - t|) + noise_t delta_st``, exactly.

    ``E I_k = [2 Re sum_(j >= 0) r_j c_j exp(-i w_k j) - r_0 c_0 + sum_t h_t noise_t] / m``, r the pairs and m the number of
    observed cells, less the share of the mean that is taken off, which is zero without gaps.

    Arguments: autocovariance [L]: c at the lags 0 .. L - 1; noise [Q, L] or [1, L]: variances, used inside the mask only.
    Differentiable in both. Cost: O(Q L log L). Source: Sykulski, Olhede, Guillaumin, Lilly & Early (2019), "The debiased
    Whittle likelihood"; with gaps: Guillaumin, Sykulski, Olhede & Simons (2022), "The debiased spatial Whittle likelihood".

    >>> expected_periodogram(torch.tensor([2.0, 0.0, 0.0]), torch.ones(1, 3), window(torch.ones(1, 3)))
    tensor([[3.]])
    """
    length, count = cells.mask.shape[-1], cells.count
    level = (cells.mask * noise).sum(-1, keepdim=True)
    lags = torch.fft.rfft(cells.pairs * autocovariance).real
    total = 2 * lags - cells.pairs[..., :1] * autocovariance[0] + level
    if not cells.complete:
        total = total - _mean_share(autocovariance, noise, cells, length)
    return total[..., 1:] / count


def _mean_share(autocovariance: Tensor, noise: Tensor, cells: Window, length: int) -> Tensor:
    """What taking off the mean takes from ``E |sum_t h_t y_t exp(-i w_k t)|^2``."""
    size = next_fast_len(2 * length - 1, real=True)
    symmetric = 2 * torch.fft.rfft(autocovariance, size).real - autocovariance[0]
    with_sum = torch.fft.irfft(symmetric * cells.padded, size)[..., :length]  # cov(y_t, sum of the observed), no noise
    cross = torch.fft.rfft(cells.mask * (with_sum + noise)) / cells.count
    variance = cross[..., :1].real / cells.count
    shape = cells.transform
    both = shape.real * cross.real + shape.imag * cross.imag
    return 2 * both - (shape.real.square() + shape.imag.square()) * variance
