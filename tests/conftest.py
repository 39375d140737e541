"""What all tests share."""

from __future__ import annotations

import torch

# torch gives most of its warnings once per process; with warnings as errors, the order of the tests would matter.
torch.set_warn_always(True)
