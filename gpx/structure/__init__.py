"""What a kernel can offer an engine, asked by open generic functions (`functools.singledispatch`)."""

from gpx.structure.feature_map import FeatureMap, feature_map, frequencies
from gpx.structure.state_space import state_space

__all__ = ["FeatureMap", "feature_map", "frequencies", "state_space"]
