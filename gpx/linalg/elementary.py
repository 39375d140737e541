"""Elementary symmetric polynomials ``e_l(v) = sum over l-subsets of the product of v``, in logarithms: sums of positive terms."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, logsumexp


def log_elementary(logs: np.ndarray, order: int, start: np.ndarray | None = None) -> np.ndarray:
    """``log e_l`` of the first n values, [len + 1, order + 1] at [n, l]. logs [len]: of the values; start [order + 1]: log e_l of
    values that are there from the outset. Cost: O(len order).
    """
    table = np.full((len(logs) + 1, order + 1), -np.inf)
    table[0] = np.where(np.arange(order + 1) == 0, 0.0, -np.inf) if start is None else start
    for n, log in enumerate(logs):
        table[n + 1, 0] = 0.0
        table[n + 1, 1:] = np.logaddexp(table[n, 1:], table[n, :-1] + log)
    return table


def log_of_equal(log: float, count: int, order: int) -> np.ndarray:
    """``log e_l`` of `count` equal values, l = 0..order: ``log (count choose l) v^l``."""
    degree = np.arange(min(order, count) + 1)
    terms = gammaln(count + 1) - gammaln(degree + 1) - gammaln(count - degree + 1) + degree * log
    return np.concatenate([terms, np.full(order + 1 - len(terms), -np.inf)])


def log_without_each(logs: np.ndarray, order: int, start: np.ndarray | None = None) -> np.ndarray:
    """``log e_order`` of all values but one, for each of `logs` [len]. Cost: O(len order); nothing is divided out."""
    before, after = log_elementary(logs, order, start)[:-1], log_elementary(logs[::-1], order)[-2::-1]
    return logsumexp(before + after[:, ::-1], axis=1)
