"""Rules: how a likelihood becomes Gaussian sites."""

from gpx.inference.rules import ExpectationPropagation, Laplace, Rule, Variational

__all__ = ["ExpectationPropagation", "Laplace", "Rule", "Variational"]
