"""Progress of long work: a tqdm line on a terminal, nothing in pipes."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress_bar(total: int | None, description: str, verbose: bool | None = None, unit: str = "it") -> Any:
    """A tqdm bar. verbose: True shows it, False hides it, None shows it on a terminal only.

    >>> with progress_bar(3, "fit", verbose=False) as bar:
    ...     _ = bar.update()
    """
    # tqdm's own None means: hidden where stderr is not a terminal.
    return tqdm(total=total, desc=description, unit=unit, disable=None if verbose is None else not verbose, leave=False)
