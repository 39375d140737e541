"""Objectives: what is maximised over the hyperparameters."""

from gpx.inference.objectives import Evidence, LeaveOneOut, Objective

__all__ = ["Evidence", "LeaveOneOut", "Objective"]
