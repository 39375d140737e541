"""Things that are more than one GP."""

from gpx.models.latent_trajectories import LatentTrajectories, bits_per_spike

__all__ = ["LatentTrajectories", "bits_per_spike"]
