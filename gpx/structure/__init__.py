"""What a kernel can offer an engine, asked by open generic functions (`functools.singledispatch`)."""

from gpx.structure.block_form import BlockForm, block_form
from gpx.structure.feature_map import FeatureMap, feature_map, frequencies
from gpx.structure.sparse_features import SparseFeatures, sparse_features
from gpx.structure.spectral_density import SpectralDensity, spectral_density
from gpx.structure.state_space import state_space

__all__ = [
    "BlockForm", "FeatureMap", "SparseFeatures", "SpectralDensity", "block_form", "feature_map", "frequencies", "sparse_features",
    "spectral_density", "state_space",
]  # fmt: skip
