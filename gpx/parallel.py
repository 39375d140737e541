"""Processes that fit one model together, each on rows of its own, as torchrun starts them. How to: docs/how-to/scale-out.md.

Every process runs the same program. What is a sum over the rows is added up over all of them, process 0 decides where there is a
choice (rounding may differ from process to process), and so all take the same steps. Gradients are those of the mean over the
processes of what each computes: the transpose of a sum over processes is another one, and parameters need no care.
"""

from __future__ import annotations

import atexit
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from gpx.errors import InputError, NumericalError, StructureError, TeamError

T = TypeVar("T")
OWN = (InputError, StructureError, NumericalError)  # that all processes raise if one does
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells its processes


class Team(Protocol):
    """Those who hold the rows of one data set. All of them call its methods, in the same order.

    rank: which of them this process is, from 0; size: how many there are.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def rows(self, count: int) -> slice:
        """The share of this process of so many rows; those of all processes cover every row once."""
        ...

    def sums(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The sums over the processes, differentiable, in one message."""
        ...

    def sum(self, part: Tensor) -> Tensor:
        """The sum over the processes, differentiable."""
        ...

    def count(self, number: int) -> int:
        """The sum over the processes."""
        ...

    def max(self, value: float) -> float:
        """The largest value of all; infinite where one is not finite."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether it holds in one of the processes."""
        ...

    def gather(self, rows: Tensor) -> list[Tensor]:
        """The rows [n, ...] of every process; n may differ."""
        ...

    def collect(self, value: T) -> list[T]:
        """The value of every process."""
        ...

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over the processes: of losses and gradients, so that all go on with the same bits."""
        ...

    def share(self, make: Callable[[], T]) -> T:
        """What process 0 makes, or the error that it gets."""
        ...

    def lead(self, run: Callable[[Callable[[Any], Any]], T], step: Callable[[Any], Any]) -> T:
        """What ``run(step)`` returns in process 0, which decides what to do; all take every step that it takes."""
        ...

    def together(self, make: Callable[[], T]) -> T:
        """What this process makes. Raises: the error of one process in all of them."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process that has all rows.

    >>> Alone().rows(10)
    slice(0, 10, None)
    """

    rank: int = 0
    size: int = 1

    def rows(self, count: int) -> slice:
        return slice(0, count)

    def sums(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts)

    def sum(self, part: Tensor) -> Tensor:
        return part

    def count(self, number: int) -> int:
        return number

    def max(self, value: float) -> float:
        return value

    def any(self, flag: bool) -> bool:
        return flag

    def gather(self, rows: Tensor) -> list[Tensor]:
        return [rows]

    def collect(self, value: T) -> list[T]:
        return [value]

    def mean(self, values: np.ndarray) -> np.ndarray:
        return values

    def share(self, make: Callable[[], T]) -> T:
        return make()

    def lead(self, run: Callable[[Callable[[Any], Any]], T], step: Callable[[Any], Any]) -> T:
        return run(step)

    def together(self, make: Callable[[], T]) -> T:
        return make()


ALONE = Alone()


@dataclass(frozen=True)
class Processes:
    """The processes of the default group of torch.distributed. device: where numbers that they exchange are put.

    Raises, from every method: TeamError if another process is lost, or does not take part.

    >>> Processes(rank=1, size=3).rows(10)
    slice(3, 6, None)
    """

    rank: int
    size: int
    device: str = "cpu"

    def rows(self, count: int) -> slice:
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sums(self, parts: Sequence[Tensor]) -> list[Tensor]:
        flat = self.sum(torch.cat([part.reshape(-1) for part in parts]))
        pieces = flat.split([part.numel() for part in parts])
        return [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]

    def sum(self, part: Tensor) -> Tensor:
        return _Sum.apply(part)  # type: ignore[no-any-return]

    def count(self, number: int) -> int:
        return int(_reduced(torch.tensor(number, device=self.device), dist.ReduceOp.SUM))

    def max(self, value: float) -> float:
        value = value if math.isfinite(value) else math.inf  # a comparison with NaN says no
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(_reduced(number, dist.ReduceOp.MAX))

    def any(self, flag: bool) -> bool:
        return self.max(float(flag)) > 0

    def gather(self, rows: Tensor) -> list[Tensor]:
        counts = self.collect(len(rows))
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        with _speaking():
            dist.all_gather(parts, padded)
        return [part[:count] for part, count in zip(parts, counts, strict=True)]

    def collect(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with _speaking():
            dist.all_gather_object(found, value)
        return found

    def mean(self, values: np.ndarray) -> np.ndarray:
        total = _reduced(torch.tensor(values, dtype=torch.float64, device=self.device), dist.ReduceOp.SUM)
        return total.cpu().numpy() / self.size

    def share(self, make: Callable[[], T]) -> T:
        found: list[Any] = [None]
        if self.rank == 0:
            found = [_attempt(make)]
        with _speaking():
            dist.broadcast_object_list(found, src=0)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def lead(self, run: Callable[[Callable[[Any], Any]], T], step: Callable[[Any], Any]) -> T:
        if self.rank == 0:

            def asked(argument: Any) -> Any:
                self.share(lambda: (argument, None))
                return step(argument)

            result = run(asked)
            self.share(lambda: (None, result))
            return result
        argument, result = self.share(_nothing)
        while argument is not None:
            step(argument)
            argument, result = self.share(_nothing)
        return result  # type: ignore[no-any-return]

    def together(self, make: Callable[[], T]) -> T:
        made: Any = _attempt(make)
        failed = isinstance(made, Exception)
        for rank, error in enumerate(self.collect(made if failed else None)):
            if error is not None:
                raise type(error)(f"Process {rank} of {self.size}: {error}")
        return made


def join() -> Team:
    """The processes that torchrun started with this one, or those of a group of torch.distributed that is there already; `ALONE`
    where there are no others.

    Raises: TeamError if the others cannot be reached.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not all(name in os.environ for name in LAUNCHED) or int(os.environ["WORLD_SIZE"]) < 2:
            return ALONE
        with _speaking():
            # NCCL moves tensors of GPUs, gloo everything else.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            store, rank, size = next(rendezvous("env://"))
            dist.init_process_group(backend, store=_of_this_life(store), rank=rank, world_size=size)
        atexit.register(_leave)
    size = dist.get_world_size()
    device = "cpu" if "gloo" in str(dist.get_backend_config()) else "cuda"
    return Processes(dist.get_rank(), size, device) if size > 1 else ALONE


def _of_this_life(store: Any) -> Any:
    """The store without what was written before a restart: torchrun's agent hands out the same one again, and processes that find
    the addresses of those that were killed in it wait for them.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":  # the agents of several machines need not count alike
        return store
    return dist.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
        f"life {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
    )


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return _reduced(part.detach().clone(), dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _reduced(grad.clone(), dist.ReduceOp.SUM)


def _reduced(value: Tensor, how: Any) -> Tensor:
    """In place. Every process gets the same bits: an entry is reduced in one order, and the result is passed on."""
    value = value.contiguous()
    with _speaking():
        dist.all_reduce(value, op=how)
    return value


def _nothing() -> Any:
    """What a process has to add to what process 0 makes."""


def _attempt(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except OWN as error:
        return error


@contextmanager
def _speaking() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise TeamError(
            f"Another process was lost or does not take part: {error}. Calls that go over the rows (fit, condition, update,"
            " log_evidence, summary, parameters, save) are made by every process. Under torchrun --max-restarts=3 a fit with"
            " checkpoint=path, resume=path goes on by itself after a process was killed."
        ) from error


__all__ = ["ALONE", "Alone", "Processes", "Team", "join"]
