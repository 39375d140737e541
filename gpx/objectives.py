"""Objectives: what is maximised over the hyperparameters."""

from gpx.inference.objectives import ELBO, DataEmphasisedELBO, EPEvidence, Evidence, LeaveOneOut, Objective

__all__ = ["ELBO", "DataEmphasisedELBO", "EPEvidence", "Evidence", "LeaveOneOut", "Objective"]
