"""Threads of the algebra libraries: who has how many, and when."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from gpx.linalg.threads import lbfgs


def counts():
    return [pool.num_threads for pool in ThreadpoolController().select(user_api="blas").lib_controllers]


def test_the_loss_has_all_threads_and_the_search_leaves_them_as_they_were():
    before, seen = counts(), []

    def loss(z):
        seen.append(counts())
        return float(z @ z), 2 * z

    found = lbfgs(loss, np.ones(3), bounds=[(0.5, 2)] * 3)
    assert np.allclose(found.x, 0.5)
    assert all(c == before for c in seen) and counts() == before


def test_threads_are_given_back_after_a_failure():
    before = counts()

    def loss(z):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lbfgs(loss, np.ones(3))
    assert counts() == before
