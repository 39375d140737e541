"""Annual sunspots one year ahead, with two rough cycles: the bounds of the specification."""

from __future__ import annotations

import pytest

from benchmarks.registry import Setting
from benchmarks.tasks import sunspots


@pytest.mark.slow
@pytest.mark.parametrize(("roots", "bound"), [(False, 21.7), (True, 20.8)])
def test_one_step_forecasts(roots, bound):
    pytest.importorskip("statsmodels")
    assert sunspots.pair(Setting(quick=False, seed=0), roots=roots)[sunspots.RMSE.name] <= bound
