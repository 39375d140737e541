"""Distribution functions that torch lacks, from SciPy; not differentiable."""

from __future__ import annotations

import scipy.special
import torch
from torch import Tensor


def betainc(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """The regularised incomplete beta function, with broadcasting."""
    return _from_scipy(scipy.special.betainc, a, b, x)


def student_cdf(df: Tensor, x: Tensor) -> Tensor:
    """Student's distribution function."""
    return _from_scipy(scipy.special.stdtr, df, x)


def _from_scipy(function, *arguments: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    like = torch.broadcast_tensors(*arguments)[0]
    values = function(*(a.detach().cpu().double().numpy() for a in arguments))
    return torch.as_tensor(values).to(like)
