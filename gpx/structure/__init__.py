"""What a kernel can offer an engine, asked by open generic functions (`functools.singledispatch`)."""

from gpx.structure.block_form import BlockForm, block_form
from gpx.structure.derivatives import derivatives
from gpx.structure.feature_map import FeatureMap, feature_map, frequencies
from gpx.structure.spectral_density import SpectralDensity, spectral_density
from gpx.structure.state_space import state_space

__all__ = [
    "BlockForm", "FeatureMap", "SpectralDensity", "block_form", "derivatives", "feature_map", "frequencies", "spectral_density",
    "state_space",
]  # fmt: skip
