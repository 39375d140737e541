"""Rules: how a likelihood becomes Gaussian sites."""

from gpx.inference.rules import Rule, Variational

__all__ = ["Rule", "Variational"]
