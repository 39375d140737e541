"""The errors and warnings that gpx raises on purpose. Each message says what was received, what is expected and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Data, an argument or a file that cannot be used as given."""


class StructureError(TypeError):
    """A combination of kernel, engine, rule and objective that has no meaning or no implementation."""


class NumericalError(RuntimeError):
    """A computation that broke down in floating point, with the causes that were looked for."""


class FitWarning(UserWarning):
    """A fit that ended early or needed help, with what to do; at most one per fit."""


class TeamError(RuntimeError):
    """A fit in several processes one of which is lost, or does something else."""
