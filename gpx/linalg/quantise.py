"""Numbers in [-1, 1] to a few bits each, so that the error vanishes from weighted sums. Theory: docs/theory/features.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError


@dataclass(frozen=True)
class SigmaDelta:
    """Noise shaping of order r: the error of z is ``D^r u``, differences of a bounded state u along all features.

    Sums with the coefficients of ``(1 + t + ... + t^(l - 1))^r``, ``block = r (l - 1) + 1``, see no more than the ends of it: the
    error falls as ``block^-(r - 1/2)``.
    Raises: InputError for another order. Source: Zhang, Cloninger & Saab (2021), "Sigma-Delta and distributed noise-shaping
    quantization methods for random Fourier features", section 2.
    """

    order: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.order, bool) or not isinstance(self.order, int) or self.order < 1:
            raise InputError(f"SigmaDelta needs an order >= 1, got {self.order!r}.")

    def amplitude(self, bits: int) -> float:
        """The largest level, so that the state stays within half a step. Raises: InputError for fewer bits than the order."""
        if bits < self.order:
            raise InputError(
                f"SigmaDelta of order {self.order} is not stable with {bits} bit(s): use {self.order} or more, or a lower order."
            )
        return 1 / (1 - (2**self.order - 2) / (2**bits - 1))

    def weights(self, block: int) -> Tensor:
        """[block]. Raises: InputError for a length that is not ``order (l - 1) + 1``."""
        if block < 1 or (block - 1) % self.order:
            near = 1 + self.order * round(max(block - 1, 1) / self.order)
            raise InputError(
                f"Blocks of order {self.order} have {self.order} (l - 1) + 1 entries, got {block}: use {near}."
            )
        result, flat = np.ones(1), np.ones(1 + (block - 1) // self.order)
        for _ in range(self.order):
            result = np.convolve(result, flat)
        return torch.from_numpy(result)

    def codes(self, z: Tensor, block: int, bits: int) -> Tensor:
        """The codes [N, m], 0 to 2^bits - 1, of z [N, m] in [-1, 1]. Cost: O(N m order)."""
        result, top = torch.empty(z.shape, dtype=torch.uint8), self.amplitude(bits)
        pulls = [(-1) ** (j - 1) * math.comb(self.order, j) for j in range(1, self.order + 1)]
        states = [z.new_zeros(len(z)) for _ in pulls]
        for i, column in enumerate(z.mT):
            wanted = column + sum(c * u for c, u in zip(pulls, states, strict=True))
            result[:, i] = nearest(wanted, top, bits)
            states = [wanted - level(result[:, i], top, bits), *states[:-1]]
        return result


@dataclass(frozen=True)
class Distributed:
    """Noise shaping in every block for itself: ``q_i = Q(z_i + beta u_(i-1))``, and sums with the weights ``beta^-i`` see an
    error of ``beta^-block`` times half a step.

    Raises: InputError for beta outside (1, 2). Source: as for `SigmaDelta`, section 3.
    """

    beta: float = 1.5

    def __post_init__(self) -> None:
        if not isinstance(self.beta, (int, float)) or not 1 < self.beta < 2:
            raise InputError(f"Distributed needs beta between 1 and 2, got {self.beta!r}.")

    def amplitude(self, bits: int) -> float:
        """The largest level, so that the state stays within half a step."""
        return 1 / (1 - (self.beta - 1) / (2**bits - 1))

    def weights(self, block: int) -> Tensor:
        """[block]."""
        return self.beta ** -torch.arange(1, block + 1, dtype=torch.float64)

    def codes(self, z: Tensor, block: int, bits: int) -> Tensor:
        """The codes [N, m], 0 to 2^bits - 1, of z [N, m] in [-1, 1], m a multiple of block. Cost: O(N m)."""
        result, top = torch.empty(z.shape, dtype=torch.uint8), self.amplitude(bits)
        blocks = result.view(len(z), z.shape[1] // block, block)
        state = z.new_zeros(blocks.shape[:2])
        for i, column in enumerate(z.view(blocks.shape).unbind(-1)):
            wanted = column + self.beta * state
            blocks[..., i] = nearest(wanted, top, bits)
            state = wanted - level(blocks[..., i], top, bits)
        return result


Scheme = SigmaDelta | Distributed


def nearest(z: Tensor, top: float, bits: int) -> Tensor:
    """The codes of the nearest of 2^bits levels from -top to top."""
    steps = 2**bits - 1
    return ((z / top + 1) * (0.5 * steps)).round().clamp(0, steps).to(torch.uint8)


def level(codes: Tensor, top: float, bits: int) -> Tensor:
    """What codes stand for."""
    return top * (codes.double() * (2 / (2**bits - 1)) - 1)


def condensed(values: Tensor, scheme: Scheme, block: int) -> Tensor:
    """Weighted sums [N, p] of the blocks of values [N, p block], with weights of length one."""
    weights = scheme.weights(block)
    return values.reshape(len(values), values.shape[1] // block, block) @ (weights / weights.norm()).to(values)


def pack(codes: Tensor, bits: int) -> np.ndarray:
    """Codes [N, m] of so many bits as bytes [N, ceil(m bits / 8)].

    >>> unpack(pack(torch.tensor([[5, 2, 7]]), 3), 3, 3)
    tensor([[5, 2, 7]], dtype=torch.uint8)
    """
    places = np.arange(bits, dtype=np.uint8)
    spread = (codes.numpy().astype(np.uint8)[..., None] >> places) & 1
    return np.packbits(spread.reshape(len(codes), codes.shape[1] * bits), axis=1)


def unpack(packed: Any, bits: int, count: int) -> Tensor:
    """The codes [N, count] again."""
    spread = np.unpackbits(packed, axis=1, count=count * bits).reshape(len(packed), count, bits)
    return torch.from_numpy((spread << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8))
