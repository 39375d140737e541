"""Run a function in several processes that know of each other, as torchrun would, for tests of what they do together."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 300.0  # seconds


def in_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the function returns in each of so many processes, or the exception that it raises there.

    Arguments: function: of a module, so that it can be pickled; its arguments are the same everywhere, and
    `gpx.parallel.join` tells the processes apart. Raises: TimeoutError after five minutes.

    >>> in_processes(2, pow, 2, 3)
    [8, 8]
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpx"])
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(count):
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(there, f"file://{folder}/store", rank, count, function, arguments)
            )
            process.start()
            there.close()
            ends.append(here)
            processes.append(process)
        try:
            return [_received(end, process) for end, process in zip(ends, processes, strict=True)]
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _received(end: Connection, process: Any) -> Any:
    if not wait([end, process.sentinel], TIMEOUT):
        raise TimeoutError(f"A process has not answered for {TIMEOUT:.0f} seconds.")
    try:
        return pickle.loads(end.recv_bytes())
    except EOFError:
        process.join()
        return ChildProcessError(f"The process ended with exit code {process.exitcode}.")


def _run(
    end: Connection, store: str, rank: int, count: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    try:
        result = function(*arguments)
    except Exception as error:
        result = error
    # By value: multiprocessing would share the memory of tensors, which goes with the process.
    end.send_bytes(pickle.dumps(result))
    dist.destroy_process_group()
