"""How far walks have to go for a spectrum: the share of its modulation beyond a number of steps."""

from __future__ import annotations

import numpy as np
import torch

from gpx.errors import InputError
from gpx.graphs.operator import Operator
from gpx.graphs.spectra import Spectrum

TAIL = 1e-4  # share of the modulation beyond the longest walk
LONGEST = 4096  # steps, beyond which walks are no way to evaluate a spectrum, unless somebody asks for them
FARTHEST = 1 << 15  # steps that advice goes to
FIRST = 512  # steps that are looked at first
ROUNDING = 1e-9


def converges(operator: Operator, spectrum: Spectrum, stitches: int = 1) -> bool:
    """Whether the series of the modulation in the walk matrix, whose eigenvalues are in [-1, 1], is its function."""
    return spectrum.radius(operator.rate, 0.5 / stitches) >= 1 - ROUNDING


def require_convergence(operator: Operator, spectrum: Spectrum, stitches: int = 1) -> None:
    """Raise InputError where the series of the modulation in the walk matrix diverges."""
    if not converges(operator, spectrum, stitches):
        unstitched = "stitches=1, " if stitches > 1 and converges(operator, spectrum) else ""
        raise InputError(
            f"The series of {spectrum!r} in the walk matrix converges up to {spectrum.radius(operator.rate, 0.5 / stitches):.3g},"
            f" and this Laplacian needs 1: take {unstitched}other values, backend='eigen' or 'chebyshev'."
        )


def shares_beyond(operator: Operator, spectrum: Spectrum, stitches: int, steps: int) -> np.ndarray:
    """The share [steps] of the modulation that is beyond each number of powers of S, from 1 on."""
    with torch.no_grad():
        f = spectrum.series(steps, operator.rate, 0.5 / stitches).abs().double().numpy()
        whole = float(spectrum.at(torch.zeros((), dtype=torch.float64), operator.rate)) ** (0.5 / stitches)
    reached = f.cumsum()
    beyond = len(f) * f[-1]  # at least the tail of a series that decays like a power above 2
    return 1 - reached / max(whole, reached[-1] + beyond)


def enough(operator: Operator, spectrum: Spectrum, stitches: int = 1, most: int = LONGEST) -> int | None:
    """The number of powers of S beyond which the modulation is negligible, None where so many are too few."""
    steps = min(FIRST, most)
    while steps <= most:
        left = shares_beyond(operator, spectrum, stitches, steps)
        if left[-1] <= TAIL:
            return int(np.argmax(left <= TAIL)) + 1
        steps *= 2
    return None


def advice(operator: Operator, spectrum: Spectrum, stitches: int, more: tuple[int, ...], most: int) -> str:
    """What would be enough, in words, where so many steps are not. more: factors of stitches that may be taken."""
    able = (s for s in (stitches * k for k in more) if converges(operator, spectrum, s))
    stitched = next((s for s in able if enough(operator, spectrum, s, most) is not None), None)
    lengths = enough(operator, spectrum, stitches, FARTHEST)
    parts = ([f"stitches={stitched}"] if stitched else []) + ([f"lengths={lengths}"] if lengths else [])
    return ", ".join([*parts, "a spectrum of less reach"]) + ", or backend='eigen' or 'chebyshev'"
