"""Symmetric circulant matrices, ``R[s, s'] = row[(s - s') mod p]`` with ``row[d] = row[p - d]``, in the Hartley basis.

``H[j, s] = (cos + sin)(2 pi j s / p) / sqrt(p)`` is real, symmetric and its own inverse, and ``R = H diag(eigenvalues) H``:
unlike the Fourier basis it keeps real vectors real, one number per frequency.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hartley(values: Tensor) -> Tensor:
    """``H values`` along the last dimension [..., p]; its own inverse. Cost: O(p log p) per row.

    >>> values = torch.tensor([1.0, 2.0, 4.0])
    >>> torch.allclose(hartley(hartley(values)), values)
    True
    """
    if not values.numel():  # which MKL refuses
        return values
    transform = torch.fft.fft(values, norm="ortho")
    return transform.real - transform.imag


def eigenvalues(row: Tensor) -> Tensor:
    """Eigenvalues [..., p] of the circulant with this first row [..., p], not below the rounding error of the largest."""
    spectrum = torch.fft.fft(row).real
    floor = torch.finfo(row.dtype).eps * spectrum.detach().abs().amax(-1, keepdim=True)
    return torch.maximum(spectrum, floor)


def first_row(spectrum: Tensor) -> Tensor:
    """The first row [..., p] of the circulant with these eigenvalues [..., p]."""
    if not spectrum.numel():
        return spectrum
    return torch.fft.ifft(spectrum).real
