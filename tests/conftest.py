"""What all tests share."""

from __future__ import annotations

import pytest
import torch

from gpx.datasets import catalogue

# torch gives most of its warnings once per process; with warnings as errors, the order of the tests would matter.
torch.set_warn_always(True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `data` need the folder of data sets, and say so where there is none."""
    if item.get_closest_marker("data") and not all(entry.available for entry in catalogue()):
        pytest.skip("needs the data folder: set GPX_DATA")
