"""Engines: how the Gaussian algebra is done."""

from gpx.engines.agents import Agents, QuantisedADMM
from gpx.engines.auto import choose_engine
from gpx.engines.base import Engine
from gpx.engines.block_circulant import BlockCirculant
from gpx.engines.coreset import Coreset
from gpx.engines.exact import Exact
from gpx.engines.features import Features
from gpx.engines.kronecker import Kronecker
from gpx.engines.sic import SIC
from gpx.engines.sparse import SparseVariational
from gpx.engines.state_space import StateSpace

__all__ = [
    "SIC", "Agents", "BlockCirculant", "Coreset", "Engine", "Exact", "Features", "Kronecker", "QuantisedADMM",
    "SparseVariational", "StateSpace", "choose_engine",
]  # fmt: skip
