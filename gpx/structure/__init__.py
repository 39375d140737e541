"""What a kernel can offer an engine, asked by open generic functions (`functools.singledispatch`)."""

from gpx.structure.block_form import BlockForm, block_form
from gpx.structure.feature_map import FeatureMap, feature_map, frequencies

__all__ = ["BlockForm", "FeatureMap", "block_form", "feature_map", "frequencies"]
