"""Plots of fitted models (needs matplotlib: the extra `plot`)."""
