"""Runs of rows on several threads, for compiled loops that release the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_runs(work: Callable[[int, int], Result], rows: int, step: int) -> list[Result]:
    """``work(start, stop)`` for runs of `step` rows, on as many threads as torch uses; the results in the order of the rows.

    The runs do not depend on the number of threads, so that sums over them do not either.
    """
    runs = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    threads = min(torch.get_num_threads(), len(runs))
    if threads <= 1:
        return [work(*run) for run in runs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda run: work(*run), runs))
