"""Objectives: what is maximised over the hyperparameters. Sums over the data, in nats, without log priors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpx.inference.problem import Problem


class Objective(Protocol):
    """A function of a problem, to be maximised, differentiable in the hyperparameters."""

    def __call__(self, problem: Problem) -> Tensor:
        """The value, in nats."""
        ...


@dataclass(frozen=True)
class Evidence:
    """The log marginal likelihood ``log p(y)``, summed over outputs.

    Source: Rasmussen & Williams (2006), eq. 2.30.

    >>> Evidence()
    Evidence()
    """

    def __call__(self, problem: Problem) -> Tensor:
        """``log p(y)``, in nats."""
        return problem.posterior().log_density


@dataclass(frozen=True)
class LeaveOneOut:
    """The log pseudo-likelihood ``sum_n log p(y_n | y_without_n)``: less sensitive to a wrong prior than the evidence.

    Cost: the evidence and two more products of N x N matrices. Source: Rasmussen & Williams (2006), eqs. 5.10-5.13.

    >>> LeaveOneOut()
    LeaveOneOut()
    """

    def __call__(self, problem: Problem) -> Tensor:
        """The sum of leave-one-out log densities, in nats."""
        return torch.nansum(leave_one_out_density(problem.data.y, *problem.posterior().leave_one_out()))


def leave_one_out_density(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """``log N(y; mean, variance)`` [N, P]; NaN where y is missing."""
    missing = torch.isnan(y)
    one = torch.ones_like(variance)
    # Gradients through NaN entries would be NaN: they are replaced before the formula, not after.
    residual = torch.where(missing, torch.zeros_like(y), y - torch.where(missing, torch.zeros_like(mean), mean))
    variance = torch.where(missing, one, variance)
    density = -0.5 * (residual.square() / variance + variance.log() + math.log(2 * math.pi))
    return torch.where(missing, torch.full_like(density, math.nan), density)
