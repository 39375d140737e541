"""Random features for one's own use: what `engines.Features` is made of, positive features, and features of a few bits.

How to: docs/theory/features.md.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gpytorch import kernels as gpytorch_kernels
from torch import Tensor

from gpx.coercion import from_array
from gpx.errors import InputError, StructureError
from gpx.inputs import as_points
from gpx.kernels.base import bind
from gpx.linalg.directions import check_kind, coupled
from gpx.linalg.quantise import Distributed, Scheme, SigmaDelta, condensed, level, pack, unpack
from gpx.posterior import make_generator
from gpx.structure.draws import Draws
from gpx.structure.feature_map import variance
from gpx.structure.frequencies import frequencies

__all__ = ["Codec", "Distributed", "SigmaDelta", "directions", "fourier", "positive"]


def directions(count: int, dims: int, kind: str = "orthogonal", seed: int = 0) -> Tensor:
    """Rows [count, dims], each standard normal, coupled so that averages over them have small errors.

    Arguments: kind: "iid"; "orthogonal", for Fourier features; "simplex" and "simplex+", for positive features of short inputs.
    Raises: InputError for another kind, or a number of rows or columns that is not a positive integer. Cost: O(count dims^2).
    Source: Yu et al. (2016), "Orthogonal random features"; Reid et al. (2023), "Simplex random features".

    >>> directions(4, 3).shape
    torch.Size([4, 3])
    """
    check_kind(kind, "directions")
    for name, value in (("count", count), ("dims", dims)):
        if not _is_count(value):
            raise InputError(f"directions needs {name}, an integer >= 1, got {value!r}.")
    return coupled(kind, count, dims, make_generator(seed))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _as_pair(x: Any, omega: Any, owner: str) -> tuple[Tensor, Tensor]:
    """Inputs and directions as tensors of one kind. Raises: InputError unless they have the same columns."""
    x, omega = (v if isinstance(v, Tensor) else from_array(v, f"The argument of {owner}")[0] for v in (x, omega))
    if x.dim() < 2 or omega.dim() < 2 or x.shape[-1] != omega.shape[-1]:
        raise InputError(
            f"{owner} needs x [..., N, D] and omega [..., m, D] with the same columns, got shapes {list(x.shape)} and"
            f" {list(omega.shape)}."
        )
    return x, omega.to(x)


def fourier(x: Any, omega: Any) -> Tensor:
    """Features [..., N, 2 m] of ``exp(-|x - y|^2 / 2)``, ``m^-1/2 (cos omega_k . x, sin omega_k . x)``.

    Unbiased for every coupling of the directions omega [..., m, D]. Raises: InputError for shapes that do not go together.
    Source: Rahimi & Recht (2007), "Random features for large-scale kernel machines".

    >>> phi = fourier(torch.zeros(1, 3).double(), directions(4, 3))
    >>> float((phi @ phi.mT).squeeze())
    1.0
    """
    x, omega = _as_pair(x, omega, "fourier")
    phase = x @ omega.mT
    return torch.cat([phase.cos(), phase.sin()], -1) / omega.shape[-2] ** 0.5


def positive(x: Any, omega: Any, kernel: str = "gaussian") -> Tensor:
    """Positive features [..., N, m] of ``exp(-|x - y|^2 / 2)``, or, with kernel="softmax", of ``exp(x . y)``; omega: [..., m, D].

    ``m^-1/2 exp(omega_k . x - |x|^2)``, or ``- |x|^2 / 2``: unbiased. Errors grow with the norm: centre and scale the inputs.
    Raises: InputError for another kernel, or shapes that do not go together.
    Source: Choromanski et al. (2021), "Rethinking attention with performers", lemma 1.

    >>> float(positive(torch.zeros(1, 3).double(), directions(4, 3)).sum())
    2.0
    """
    if kernel not in ("gaussian", "softmax"):
        raise InputError(f"positive needs kernel='gaussian' or kernel='softmax', got {kernel!r}.")
    x, omega = _as_pair(x, omega, "positive")
    half = x.square().sum(-1, keepdim=True) * (1.0 if kernel == "gaussian" else 0.5)
    return (x @ omega.mT - half).exp() / omega.shape[-2] ** 0.5


@dataclass(frozen=True, eq=False)
class Codec:
    """Inputs to features of a few bits, and back to features whose products are kernel values.

    ``z_k = cos(omega_k . x + phase_k)``, ``k(x, y) = 2 k(0) E z z'``, is quantised by noise shaping along k, and blocks of it
    are condensed to one feature each when decoded: the error of the bits falls with the length of a block, that of chance with
    the number of blocks.

    Arguments: kernel: a stationary kernel, at its present hyperparameters; features: decoded ones, p; block: entries condensed to
    one; bits: 1 to 8 per entry; scheme: `SigmaDelta` or `Distributed`; kind, seed: of the frequencies.
    Raises: InputError for other values; StructureError for a kernel without frequencies.
    Cost: encode O(N p block D) time, N p block bits / 8 bytes; decode O(N p block).
    Source: Zhang, Cloninger & Saab (2021), "Sigma-Delta and distributed noise-shaping quantization methods for random Fourier
    features".

    >>> import gpx
    >>> codec = Codec(gpx.kernels.RBF(0.5), features=64, block=8, bits=1)
    >>> codes = codec.encode([[0.0, 0.1], [0.2, 0.1]])
    >>> codes.shape, codes.dtype, codec.decode(codes).shape
    ((2, 64), dtype('uint8'), torch.Size([2, 64]))
    """

    kernel: gpytorch_kernels.Kernel
    features: int = 256
    block: int = 16
    bits: int = 1
    scheme: Scheme = field(default_factory=SigmaDelta)
    kind: str = "orthogonal"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("kernel", gpytorch_kernels.Kernel), ("scheme", Scheme)):
            if not isinstance(getattr(self, name), kind):
                wanted = "such as kernels.RBF()" if name == "kernel" else "SigmaDelta(...) or Distributed(...)"
                raise InputError(f"Codec needs a {name}, {wanted}, got {getattr(self, name)!r}.")
        for name in ("features", "block", "bits"):
            value = getattr(self, name)
            if not _is_count(value) or name == "bits" and value > 8:
                wanted = "1 to 8" if name == "bits" else ">= 1"
                raise InputError(f"Codec needs {name}, a number {wanted}, got {value!r}.")
        check_kind(self.kind, "Codec")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"Codec needs seed, an integer, got {self.seed!r}.")
        self.scheme.amplitude(self.bits)
        self.scheme.weights(self.block)
        object.__setattr__(self, "kernel", copy.deepcopy(self.kernel).double().requires_grad_(False))

    def waves(self, X: Any) -> Tensor:
        """The numbers [N, features block] in [-1, 1] that are quantised."""
        points, count = as_points(X), self.features * self.block
        x, kernel = points.x.double(), copy.deepcopy(self.kernel)
        bind(kernel, points.columns)
        draws = Draws(make_generator(self.seed), self.kind)
        phase = 2 * torch.pi * torch.rand(count, generator=draws.generator, dtype=torch.float64)
        at = frequencies(kernel, count, x.shape[1], draws)
        if at is None:
            raise StructureError(
                f"Codec needs a stationary kernel such as kernels.RBF(), got {type(self.kernel).__name__}."
            )
        omega, weight = at()
        if not bool((weight == 1).all()):
            raise StructureError(
                f"Codec needs frequencies of equal weight, those of {type(self.kernel).__name__} are not."
            )
        return (x @ omega.mT + phase).cos()

    def encode(self, X: Any) -> np.ndarray:
        """Bytes [N, ceil(features block bits / 8)]."""
        return pack(self.scheme.codes(self.waves(X), self.block, self.bits), self.bits)

    def decode(self, codes: np.ndarray) -> Tensor:
        """Features [N, features], whose products estimate the kernel, from what `encode` gave.

        Raises: InputError for other arrays.
        """
        width = -(-self.features * self.block * self.bits // 8)
        codes = np.asarray(codes)
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != width:
            raise InputError(
                f"decode needs bytes (uint8) [N, {width}] from encode, got {codes.dtype} {list(codes.shape)}."
            )
        numbers = unpack(codes, self.bits, self.features * self.block)
        return self._condensed(level(numbers, self.scheme.amplitude(self.bits), self.bits))

    def exact(self, X: Any) -> Tensor:
        """The same features without quantisation."""
        return self._condensed(self.waves(X))

    def _condensed(self, values: Tensor) -> Tensor:
        return condensed(values, self.scheme, self.block) * (2 * float(variance(self.kernel)) / self.features) ** 0.5
