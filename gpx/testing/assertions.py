"""Comparisons whose failures say which law is broken, where, and by how much."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck


def close(actual: Any, expected: Any, law: str, rtol: float = 1e-9, atol: float | None = None) -> None:
    """Assert equal shapes and values; the tolerance is relative to the largest expected magnitude, unless atol is given.

    NaN equals NaN.

    >>> close([1.0, 2.0], [1.0, 2.1], "doubling")
    Traceback (most recent call last):
    AssertionError: doubling: largest difference 0.1 (allowed 2.1e-09) at [1]: got 2.0, expected 2.1.
    """
    actual, expected = as_array(actual), as_array(expected)
    assert actual.shape == expected.shape, f"{law}: shape {list(actual.shape)}, expected {list(expected.shape)}."
    assert np.array_equal(np.isnan(actual), np.isnan(expected)), (
        f"{law}: NaN in other places: {actual}, not {expected}."
    )
    if not expected.size:
        return
    # Equal infinities differ by NaN, which is no difference.
    with np.errstate(invalid="ignore"):
        difference = np.nan_to_num(np.abs(actual - expected), posinf=np.inf)
    allowed = rtol * float(np.nan_to_num(np.abs(expected)).max()) if atol is None else atol
    if difference.max() > allowed:
        place = np.unravel_index(difference.argmax(), difference.shape)
        raise AssertionError(
            f"{law}: largest difference {difference.max():.3g} (allowed {allowed:.3g}) at {[int(i) for i in place]}: got"
            f" {float(actual[place])!r}, expected {float(expected[place])!r}."
        )


def as_array(value: Any) -> np.ndarray:
    """A tensor, array, number or list in float64."""
    return np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, dtype=np.float64)


def finite(values: Sequence[Tensor | None] | Tensor, law: str) -> None:
    """Assert that there is no NaN and no infinity."""
    for value in [values] if isinstance(values, Tensor) else values:
        assert value is None or bool(torch.isfinite(value).all()), f"{law}: not finite: {value}."


def gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    law: str,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    fast: bool = False,
) -> None:
    """Assert that automatic derivatives of `function` are its central differences (`torch.autograd.gradcheck`).

    Inputs that the function reads from elsewhere, such as the parameters of a module, may be among `inputs`: they are moved
    in place. fast: compare one random projection of the Jacobian per input.
    """
    try:
        gradcheck(function, tuple(inputs), rtol=rtol, atol=atol, fast_mode=fast)
    except GradcheckError as error:
        raise AssertionError(f"{law}: {error}") from error


def mean_is(draws: Tensor, expected: Tensor, law: str, false_alarm: float = 1e-6) -> None:
    """Assert that independent draws [R, ...] have the mean `expected` [...], by Student's t for every entry.

    false_alarm: an upper bound of the probability that a true law fails, over all entries (Bonferroni); the draws should be
    averages of many numbers, so that the central limit theorem holds.
    """
    draws, expected, count = draws.detach(), expected.detach(), len(draws)
    error = draws.std(0) / count**0.5
    rounding = 1e-10 * max(float(expected.abs().max()), 1e-300)
    score = (draws.mean(0) - expected).abs() / error.clamp_min(rounding)
    limit = float(stats.t.isf(false_alarm / 2 / max(1, score.numel()), count - 1))
    assert float(score.max()) <= limit, (
        f"{law}: the mean of {count} draws is {float(score.max()):.2f} standard errors from its expectation, allowed"
        f" {limit:.2f} (false alarms: {false_alarm:g})."
    )


def copies(thing: Any) -> dict[str, Any]:
    """The same object after a deep copy and after pickling."""
    return {"deepcopy": copy.deepcopy(thing), "pickle": pickle.loads(pickle.dumps(thing))}
