"""Compiled pieces of one step of a Matern process: arrays in registers, the transition and the process noise.

Theory: docs/theory/state_space.md.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]
from numba.core.cgutils import alloca_once
from numba.core.types import CPointer
from numba.extending import intrinsic

from gpx.linalg.layout import TERMS

COMPILATION: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "reassoc"}, "cache": True}
LONGEST = 700.0  # a gap in units of 1 / rate beyond which nothing is remembered
TINY_TERMS, TINY = 12, 0.25  # terms of the series for the incomplete gamma function that do below this argument
SMALL_TERMS, SMALL = 18, 1.0
ROOM = 256  # numbers of a matrix on the stack


@intrinsic
def _room(typing: Any, like: Any) -> Any:
    """A pointer to ROOM numbers of the type of `like` on the stack of the calling loop."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return alloca_once(builder, context.get_value_type(signature.args[0]), size=ROOM)

    return CPointer(like)(like), generate


@numba.njit(inline="always", **COMPILATION)
def array(zero, shape):
    """To write in; on the stack if that is small, where the compiler keeps the entries in registers."""
    size = 1
    for length in shape:
        size *= length
    return carray(_room(zero), shape) if size <= ROOM else np.empty(shape, np.asarray(zero).dtype)


@numba.njit(inline="always", **COMPILATION)
def copy(vector, matrix, S, to_vector, to_matrix):
    """Entry by entry: a slice would keep the arrays out of registers."""
    for i in range(S):
        to_vector[i] = vector[i]
        for j in range(S):
            to_matrix[i, j] = matrix[i, j]


@numba.njit(inline="always", **COMPILATION)
def scaled(rate, gap):
    """A gap in units of 1 / rate; an infinite one starts anew, whatever the rate."""
    return min(rate * gap, LONGEST) if gap < np.inf else LONGEST


@numba.njit(inline="always", **COMPILATION)
def transition(x, N, d, A):
    """``A = exp(F x)``; returns e^-x."""
    decay = math.exp(-x)
    for i in range(d):
        for j in range(d):
            value = N[d - 1, i, j]
            for k in range(d - 2, -1, -1):
                value = value * x + N[k, i, j]
            A[i, j] = value * decay
    return decay


@numba.njit(inline="always", **COMPILATION)
def process_noise(x, decay, W, series, inverses, d, gamma, Q):
    """Q(x), by incomplete gamma functions: the difference ``P - A P A^T`` would have no digits for small x."""
    z, tail, top = 2 * x, decay * decay, 2 * d - 1
    if z < top + 1:
        even, odd, square = 0.0, 0.0, z * z
        for k in range((TINY_TERMS if z < TINY else SMALL_TERMS if z < SMALL else TERMS) - 2, -1, -2):
            even = even * square + series[k]
            odd = odd * square + series[k + 1]
        power, back = tail, (1 / z if z > 0 else 0.0)
        for _ in range(top - 1):
            power *= z
        gamma[top - 1] = power * z * (even + odd * z) * inverses[top - 1]
        for k in range(top - 2, -1, -1):
            gamma[k] = (gamma[k + 1] + power) * inverses[k]
            power *= back
    else:
        power = 1.0
        gamma[0] = 1 - tail
        for k in range(1, top):
            power *= z
            gamma[k] = k * gamma[k - 1] - power * tail
    for i in range(d):
        for j in range(i + 1):
            value = 0.0
            for k in range(top):
                value += W[i, j, k] * gamma[k]
            Q[i, j] = value
            Q[j, i] = value
