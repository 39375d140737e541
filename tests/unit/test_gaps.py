"""The gaps between the times of a series, as the state-space engine sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpx.engines import state_space


def _gaps(times: torch.Tensor) -> np.ndarray:
    return state_space._gaps(times).numpy()


def test_a_grid_with_rounding_errors_and_holes_has_equal_gaps():
    steps = torch.arange(50_000)
    times = steps.double() / 10 + 1e4
    kept = times[(steps % 7) != 3]
    assert len(np.unique(_gaps(times)[1:])) == 1
    assert len(np.unique(_gaps(kept)[1:])) == 2
    assert np.abs(_gaps(kept)[1:] - np.diff(kept.numpy())).max() < 1e-11
    assert abs(_gaps(kept).sum() - float(kept[-1] - kept[0])) < 1e-9


@pytest.mark.parametrize("times", [[0.0, 1.0, 1.0, 3.5, 3.5 + 1e-9], [2.0], [1.0, 1.0], [0.0, 1.0, 2.0 + 1e-12]])
def test_other_times_keep_their_gaps(times):
    assert np.array_equal(_gaps(torch.tensor(times, dtype=torch.float64)), np.diff(times, prepend=times[0]))
