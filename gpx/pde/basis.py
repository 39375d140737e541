"""Functions of one axis: the eigenfunctions of a kernel there, in order of their prior variance.

A kernel ``k(x, x') = phi(x) . phi(x')`` has at nodes x_m with weights w_m (those of the trapezoidal rule) the factor
``W^1/2 phi = Q S V^T``. The functions ``phi(x) V S^-1`` are orthonormal there; under the prior their coefficients have standard
deviations S. They come from the factor of the kernel matrix: what is relatively 1e-12 in S is 1e-24 in the matrix itself, where
it could not be told from rounding. See docs/theory/pde.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import block_diag, svd

from gpx.kernels import SpectralMixture
from gpx.structure.derivatives import derivatives
from gpx.structure.spectral_density import spectral_density

Features = Callable[[np.ndarray, int], np.ndarray]
"""Points [n] and an order of differentiation -> [n, F]."""

TAIL = 12.1  # standard deviations of a bump of the spectrum, beyond which its square root is below 1e-16
REACH = 6.0  # lengthscales that the range is extended by before it repeats
KEPT = 1e-12  # of the largest singular value
KEPT_OF_MATRIX = 1e-14  # where the kernel matrix itself is factorised


@dataclass(frozen=True)
class Basis:
    """The functions ``features(x, 0) @ transform`` [n, r].

    deviations [r]: prior standard deviations of their coefficients; values [M, r]: the functions at the nodes, orthonormal to
    rounding, which what features and transform give is not where deviations are small.
    """

    features: Features
    transform: np.ndarray
    deviations: np.ndarray
    values: np.ndarray

    def __call__(self, x: np.ndarray, order: int = 0) -> np.ndarray:
        """Derivatives [n, r] of the functions at x [n]."""
        return self.features(x, order) @ self.transform


@dataclass(frozen=True)
class Joined:
    """The features of several parts, side by side."""

    parts: tuple[Features, ...]

    def __call__(self, x: np.ndarray, order: int) -> np.ndarray:
        """Their derivatives [n, F] at x [n]."""
        return np.concatenate([part(x, order) for part in self.parts], 1)


def joined(bases: Sequence[Basis]) -> Basis:
    """The functions of several bases of the same nodes, side by side."""
    return Basis(
        Joined(tuple(b.features for b in bases)),
        block_diag(*(b.transform for b in bases)),
        np.concatenate([b.deviations for b in bases]),
        np.concatenate([b.values for b in bases], 1),
    )


@dataclass(frozen=True)
class Cosines:
    """``a_j cos(w_j (x - centre))`` and ``a_j sin(w_j (x - centre))``.

    omega: w [J], angular frequencies, ascending; amplitude: a [J].
    """

    omega: np.ndarray
    amplitude: np.ndarray
    centre: float

    def __call__(self, x: np.ndarray, order: int) -> np.ndarray:
        """Their derivatives [n, F] at x [n]."""
        phase = np.multiply.outer(x - self.centre, self.omega) + order * math.pi / 2
        scale = self.amplitude * self.omega**order
        return np.concatenate([scale * np.cos(phase), (scale * np.sin(phase))[:, self.omega > 0]], 1)


def spectral_basis(
    frequencies: np.ndarray, lengthscales: np.ndarray, nodes: np.ndarray, kept: float = KEPT, slow: float = 1.0
) -> Basis:
    """The eigenfunctions of a `SpectralMixture`, by sums of cosines on a lattice of frequencies.

    Arguments: frequencies [Q] in cycles per unit; lengthscales [Q] of their envelopes; nodes [M], uniform; kept: deviations, of
    the largest, of the functions; slow: weight of the first in those of the others, which are equal. The sums repeat the
    kernel with a period longer than the range, and end at the Nyquist frequency of the nodes. Cost: O(M F^2), F frequencies of
    the lattice where the spectrum counts.
    """
    span, spacing = float(np.ptp(nodes)), float(nodes[1] - nodes[0])
    step = 2 * math.pi / (span + REACH * lengthscales.max())
    centres, widths = 2 * math.pi * frequencies, TAIL / lengthscales
    highest = min((centres + widths).max(), math.pi / spacing)
    omega = step * np.arange(int(highest / step) + 1)
    omega = omega[(np.abs(omega[:, None] - centres) < widths).any(1)]
    density = spectral_density(mixture(frequencies, lengthscales, slow))(torch.from_numpy(omega)).detach().numpy()
    amplitude = np.sqrt(density * step / math.pi) * np.where(omega == 0, math.sqrt(0.5), 1.0)
    return _factorised(Cosines(omega, amplitude, float(nodes.mean())), nodes, kept, 1.0)


def mixture(frequencies: np.ndarray, lengthscales: np.ndarray, slow: float = 1.0) -> SpectralMixture:
    """The kernel of unit variance whose bumps have these frequencies and equal weights, but for the first."""
    count = len(frequencies)
    weights = np.append(slow, np.ones(count - 1))
    return SpectralMixture(
        count, (weights / weights.sum()).tolist(), frequencies.tolist(), (1 / (2 * math.pi * lengthscales)).tolist()
    )


def kernel_basis(kernel: Any, nodes: np.ndarray, order: int) -> Basis:
    """The eigenfunctions of any stationary kernel that is smooth enough, from its derivatives in the lag.

    Raises: StructureError if the kernel is not 2 `order` times differentiable at zero. Cost: O(M^3).
    """
    return _factorised(Lags(kernel, nodes, 2 * order), nodes, KEPT_OF_MATRIX, 0.5)


@dataclass(frozen=True)
class Lags:
    """``k(x - x_m) w_m^1/2`` of a stationary kernel, at nodes x_m with weights w_m; order: of the highest derivative.

    Raises: StructureError for a kernel that is not as often differentiable at zero.
    """

    kernel: Any
    nodes: np.ndarray
    order: int

    def __post_init__(self) -> None:
        derivatives(self.kernel, self.order)

    def __call__(self, x: np.ndarray, order: int) -> np.ndarray:
        """Their derivatives [n, M] at x [n]."""
        lags = torch.from_numpy(np.subtract.outer(x, self.nodes))
        found = derivatives(self.kernel, self.order)(lags)[..., order]
        return found.detach().numpy() * np.sqrt(trapezoid(self.nodes))


def trapezoid(nodes: np.ndarray) -> np.ndarray:
    """The weights [M] of the trapezoidal rule."""
    gaps = np.diff(nodes)
    return 0.5 * (np.append(gaps, 0) + np.append(0, gaps))


def _factorised(features: Features, nodes: np.ndarray, kept: float, power: float) -> Basis:
    root = np.sqrt(trapezoid(nodes))[:, None]
    left, values, right = svd(root * features(nodes, 0), full_matrices=False, overwrite_a=True, check_finite=False)
    count = int((values > kept * values[0]).sum())
    return Basis(features, right[:count].T / values[:count], values[:count] ** power, left[:, :count] / root)
