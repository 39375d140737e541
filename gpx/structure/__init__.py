"""What a kernel can offer an engine, asked by open generic functions (`functools.singledispatch`)."""

from gpx.structure.block_form import BlockForm, block_form
from gpx.structure.components import Components, components
from gpx.structure.derivatives import derivatives
from gpx.structure.draws import Draws
from gpx.structure.feature_map import FeatureMap, feature_map
from gpx.structure.frequencies import frequencies
from gpx.structure.kronecker import KroneckerForm, kronecker
from gpx.structure.sparse_features import SparseFeatures, sparse_features
from gpx.structure.spectral_density import SpectralDensity, spectral_density
from gpx.structure.state_space import state_space

__all__ = [
    "BlockForm", "Components", "Draws", "FeatureMap", "KroneckerForm", "SparseFeatures", "SpectralDensity", "block_form",
    "components", "derivatives", "feature_map", "frequencies", "kronecker", "sparse_features", "spectral_density", "state_space",
]  # fmt: skip
