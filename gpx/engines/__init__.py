"""Engines: how the Gaussian algebra is done."""

from gpx.engines.auto import choose_engine
from gpx.engines.base import Engine
from gpx.engines.block_circulant import BlockCirculant
from gpx.engines.coreset import Coreset
from gpx.engines.exact import Exact
from gpx.engines.kronecker import Kronecker
from gpx.engines.sic import SIC
from gpx.engines.sparse import SparseVariational
from gpx.engines.state_space import StateSpace

__all__ = [
    "SIC",
    "BlockCirculant",
    "Coreset",
    "Engine",
    "Exact",
    "Kronecker",
    "SparseVariational",
    "StateSpace",
    "choose_engine",
]
