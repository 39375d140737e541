"""Time and memory of the running process."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """The result of ``work()`` and the seconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes.

    On Linux a new process starts from the peak of the one that started it, so that one must stay small.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def resident_memory() -> int:
    """Resident size of this process now, in bytes; where the system does not tell, the peak."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def extra_memory(work: Callable[[], T]) -> tuple[T, int]:
    """The result of ``work()`` and the bytes by which the peak then exceeds what was resident before.

    An upper bound: an earlier peak counts too. Call it once per process, after a small warm-up.
    """
    before = resident_memory()
    result = work()
    # Some systems update the peak now and then only: what is resident now counts too.
    return result, max(peak_memory(), resident_memory()) - before
