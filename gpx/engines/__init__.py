"""Engines: how the Gaussian algebra is done."""

from gpx.engines.auto import choose_engine
from gpx.engines.base import Engine
from gpx.engines.block_circulant import BlockCirculant
from gpx.engines.exact import Exact

__all__ = ["BlockCirculant", "Engine", "Exact", "choose_engine"]
