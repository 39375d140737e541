"""The gaps between the times of a series, as the state-space engine sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpx.engines import state_space


def _gaps(times: torch.Tensor) -> np.ndarray:
    """Of one series."""
    return state_space._gaps(times, torch.zeros(len(times), dtype=torch.bool)).numpy()


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


def test_the_gap_to_another_series_is_infinite_and_leaves_a_grid_even():
    times = torch.cat([torch.arange(20.0), 7 + torch.arange(30.0)]).double() / 10
    gaps = state_space._gaps(times, torch.arange(50) == 20).numpy()
    assert np.isinf(gaps[20]) and len(np.unique(np.delete(gaps, [0, 20]))) == 1
