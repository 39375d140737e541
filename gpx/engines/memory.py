"""Better an error now than a killed process in an hour."""

from __future__ import annotations

import os

from gpx.errors import InputError


def require_memory(needed: float, what: str, advice: str) -> None:
    """Raises: InputError if so many bytes are more than this machine has."""
    if not hasattr(os, "sysconf"):
        return
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > installed:
        raise InputError(
            f"{what} needs {needed / 2**30:.0f} GB of memory, this machine has {installed / 2**30:.0f} GB; {advice}."
        )
