"""Threads: runs of rows on several, for compiled loops that release the interpreter's lock; and one, where more are too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from threadpoolctl import ThreadpoolController

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


def lbfgs(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, **how: Any) -> OptimizeResult:
    """SciPy's L-BFGS-B for a loss with its gradient, the algebra of its own on one thread; how: as for `scipy.optimize.minimize`.

    Its products of a few short vectors wake the threads of SciPy's BLAS, which then wait for more, beside those of torch that
    the loss needs: on two cores a fit took up to three times as long. The loss has all threads.
    """
    pools = ThreadpoolController().select(user_api="blas").lib_controllers
    threads = [pool.num_threads for pool in pools]

    def allow(counts: Iterable[int]) -> None:
        for pool, count in zip(pools, counts, strict=True):
            pool.set_num_threads(count)

    def evaluated(z: np.ndarray) -> tuple[float, np.ndarray]:
        allow(threads)
        found = loss(z)
        allow([1] * len(pools))
        return found

    allow([1] * len(pools))
    try:
        return minimize(evaluated, start, jac=True, method="L-BFGS-B", **how)
    finally:
        allow(threads)
