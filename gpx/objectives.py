"""Objectives: what is maximised over the hyperparameters."""

from gpx.inference.objectives import ELBO, DataEmphasisedELBO, EPEvidence, Evidence, LeaveOneOut, Objective
from gpx.inference.whittle import Whittle

__all__ = ["ELBO", "DataEmphasisedELBO", "EPEvidence", "Evidence", "LeaveOneOut", "Objective", "Whittle"]
