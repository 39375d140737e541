"""Profiles of stationary kernels, ``kappa(x) = e^-x (c_0 + c_1 x + ... + c_p x^p)``, and their rational spectra.

Theory: docs/theory/state_space.md.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import Polynomial
from scipy.optimize import linprog
from torch import Tensor

from gpx.linalg.layout import noise_terms

GAUSSIAN_ORDER, GAUSSIAN_SMOOTHNESS = (
    8,
    2,
)  # 9 states: 1.1e-4; a state more halves the error and costs a digit of the filter
GAUSSIAN_RATE = math.sqrt(2 * 5.75)  # with the smallest error for this order
GAUSSIAN_FLOOR = 1e-4  # of the numerator over (1 + w^2)^degree: its roots stay apart from the axis
GAUSSIAN_RANGE = 8.0  # in lengthscales; beyond, either function is below 1e-8


def matern_profile(order: int) -> Tensor:
    """The profile of the Matern kernel of smoothness order + 1/2: ``c_k = 2^k p! (2p - k)! / ((2p)! k! (p - k)!)``."""
    p, f = order, math.factorial
    terms = [2.0**k * f(p) * f(2 * p - k) / (f(2 * p) * f(k) * f(p - k)) for k in range(p + 1)]
    return torch.tensor(terms, dtype=torch.float64)


def spectral_factor(profile: Tensor, degree: int) -> Tensor:
    """b [degree + 1] such that ``sum_i b_i z_i`` of a Matern process of order p has the covariance ``e^-x sum_k c_k x^k``.

    Its spectral density is ``|b(i w)|^2 q / (1 + w^2)^(p + 1)``: b is the factor of a polynomial of that degree in w^2, without
    roots in the right half-plane. Differentiable in the profile.
    """
    if degree == 0:
        return profile.new_ones(1)
    top = (numerator(len(profile) - 1).to(profile) @ profile)[: degree + 1]
    factor = _stable_factor(top.detach().cpu().numpy())
    # The factor solves "square = top"; one Newton step at the solution carries the gradient.
    size = degree + 1
    square, jacobian = np.zeros(size), np.zeros((size, size))
    for i in range(size):
        for j in range(i % 2, size, 2):
            sign, m = (-1.0) ** ((i - j) // 2), (i + j) // 2
            square[m] += sign * factor[i] * factor[j]
            jacobian[m, i] += 2 * sign * factor[j]
    step = torch.as_tensor(np.linalg.inv(jacobian)).to(profile) @ (top - torch.as_tensor(square).to(profile))
    return torch.as_tensor(factor).to(profile) + step


@lru_cache(maxsize=16)
def numerator(order: int) -> Tensor:
    """From profile to spectrum, [p + 1, p + 1]: coefficients of w^0, w^2, ... (rows) in
    ``2 Re k! / (1 + i w)^(k + 1) (1 + w^2)^(p + 1) / q``.
    """
    result = np.zeros((order + 1, order + 1))
    for k in range(order + 1):
        conjugate, rest = Polynomial([1.0, -1j]) ** (k + 1), Polynomial([1.0, 0.0, 1.0]) ** (order - k)
        even = (2 * math.factorial(k) * (conjugate * rest).coef.real / noise_terms(order)[2])[: 2 * order + 1 : 2]
        result[: len(even), k] = even
    return torch.as_tensor(result)


def _stable_factor(top: np.ndarray) -> np.ndarray:
    """b with ``|b(i w)|^2 = sum_m top_m w^2m`` and no roots in the right half-plane."""
    poles = np.sqrt(-np.roots(top[::-1]).astype(complex))
    poles = np.where(poles.real > 0, -poles, poles)
    return np.real(np.poly(poles))[::-1] * math.sqrt(top[-1])


@lru_cache(maxsize=1)
def gaussian_profile() -> tuple[tuple[float, ...], float]:
    """The profile c [p + 1] for which ``kappa(GAUSSIAN_RATE d)`` is nearest to ``exp(-d^2 / 2)``, and the largest difference.

    A linear programme in the coefficients of the spectrum's numerator, which is kept positive, with ``kappa(0) = 1``. Its degree
    is p - GAUSSIAN_SMOOTHNESS: paths can be differentiated that often. Cost: 30 ms, once.
    """
    p, degree, n = GAUSSIAN_ORDER, GAUSSIAN_ORDER - GAUSSIAN_SMOOTHNESS, 200
    to_profile = np.linalg.inv(numerator(p).numpy())[:, : degree + 1]

    def functions(d: np.ndarray) -> np.ndarray:
        x = GAUSSIAN_RATE * d[:, None]
        return np.exp(-x) * x ** np.arange(p + 1) @ to_profile

    d, m = np.linspace(0, GAUSSIAN_RANGE, n), np.arange(degree + 1)
    angle = (np.arange(n)[:, None] + 0.5) / n * np.pi / 2  # w = tan(angle)
    values, positive = functions(d), np.sin(angle) ** (2 * m) * np.cos(angle) ** (2 * (degree - m))
    one, target = np.ones((n, 1)), np.exp(-0.5 * d**2)
    left = np.block([[values, -one], [-values, -one], [-positive, 0 * one]])
    right = np.concatenate([target, -target, np.full(n, -GAUSSIAN_FLOOR)])
    best = linprog(np.eye(degree + 2)[-1], left, right, np.append(values[:1], [[0.0]], 1), [1.0], (None, None)).x[:-1]
    best /= values[0] @ best  # to rounding, not to the programme's tolerance
    fine = np.linspace(0, 2 * GAUSSIAN_RANGE, 40 * n)
    error = np.abs(functions(fine) @ best - np.exp(-0.5 * fine**2)).max()
    return tuple(to_profile @ best), 1.001 * float(error)  # between neighbours on the grid it grows by less
