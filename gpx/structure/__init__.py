"""What a kernel can offer an engine, asked by open generic functions (`functools.singledispatch`)."""

from gpx.structure.feature_map import FeatureMap, feature_map, frequencies

__all__ = ["FeatureMap", "feature_map", "frequencies"]
