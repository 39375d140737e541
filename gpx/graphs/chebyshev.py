"""The backend of polynomials: ``F(L)`` times vectors by the Laplacian alone, to a stated error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.graphs.backends import Backend
from gpx.graphs.operator import Operator
from gpx.graphs.spectra import Spectrum
from gpx.linalg.threads import in_runs

FIRST, MOST = 16, 1 << 14  # degrees of the polynomial that are tried
BLOCK = 1 << 18  # numbers in a block of columns: 2 MB, which processors hold near
KEPT, SETS = 1 << 24, 8  # moments of a set of nodes that are kept, 128 MB; such sets
TERMS = 16  # moments are computed so many at a time, or an eighth to a quarter of them


@dataclass(frozen=True)
class Chebyshev(Backend):
    """``F(L) ~ sum_k c_k T_k(2 L / bound - I)``, of the degree for which the error is at most `tolerance` times the largest F.

    Arguments: tolerance: of every entry and in the spectral norm, relative to max F. Raises: InputError for another value, or a
    spectrum so sharp that 16,384 terms are too few. Cost: O(degree E) per vector or column; memory: a few vectors. The degree is
    about ``sqrt(beta bound log 1/tolerance)`` for a diffusion. Source: Hammond, Vandergheynst & Gribonval (2011), "Wavelets on
    graphs via spectral graph theory", section 6. Theory: docs/theory/graphs.md.

    >>> Chebyshev()
    Chebyshev(tolerance=1e-10)
    """

    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        if not isinstance(self.tolerance, float) or not 1e-14 <= self.tolerance < 1:
            raise InputError(f"Chebyshev needs a tolerance in [1e-14, 1), got {self.tolerance!r}.")

    def coefficients(self, operator: Operator, spectrum: Spectrum) -> Tensor:
        """c [degree + 1] of F, differentiable in the values of the spectrum."""
        return expansion(lambda x: spectrum.at(x, operator.rate), operator.bound, self.tolerance)

    def covariance(self, operator: Operator, spectrum: Spectrum, left: Tensor, right: Tensor) -> Tensor:
        if len(left) < len(right):
            return self.covariance(operator, spectrum, right, left).mT
        c = self.coefficients(operator, spectrum)
        if len(c) * len(left) * len(right) <= KEPT:
            return torch.tensordot(c, moments(operator, left, right, len(c)).to(c), 1)
        return _Columns.apply(c, operator, left, right)

    def diagonal(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        c, step = self.coefficients(operator, spectrum), _step(operator)
        size = operator.graph.num_nodes
        if 2 * len(nodes) > size and len(c) * size <= KEPT:  # those of all are good for other nodes, too
            return c @ moments(operator, torch.arange(size), None, len(c))[:, nodes].to(c)
        if len(c) * len(nodes) <= KEPT:
            return c @ moments(operator, nodes, None, len(c)).to(c)
        parts = [_Columns.apply(c, operator, some, some).diagonal() for some in nodes.split(step)]
        return torch.cat(parts) if parts else c.new_zeros(0)

    def multiply(self, operator: Operator, spectrum: Spectrum, v: Tensor) -> Tensor:
        return _Multiply.apply(self.coefficients(operator, spectrum), operator, v)

    def features(self, operator: Operator, spectrum: Spectrum, nodes: Tensor) -> Tensor:
        c = expansion(lambda x: spectrum.root(x, operator.rate), operator.bound, self.tolerance)
        return _Columns.apply(c, operator, torch.arange(operator.graph.num_nodes), nodes).mT


def expansion(function: Callable[[Tensor], Tensor], bound: float, tolerance: float) -> Tensor:
    """Chebyshev coefficients of a function on [0, bound], cut where the rest sums to `tolerance` of its largest value.

    Differentiable in what the function depends on. Raises: InputError if 16,384 are too few. Cost: O(n log n).

    >>> expansion(lambda x: x, 2.0, 1e-12)
    tensor([1., 1.], dtype=torch.float64)
    """
    size = FIRST
    while size <= MOST:
        angle = torch.arange(size + 1, dtype=torch.float64) * (torch.pi / size)
        values = function(0.5 * bound * (1 + angle.cos()))
        c = torch.fft.rfft(torch.cat([values, values[1:-1].flip(0)])).real / size
        c = torch.cat([0.5 * c[:1], c[1:-1], 0.5 * c[-1:]])
        with torch.no_grad():
            rest = c.abs().flip(0).cumsum(0).flip(0)  # sums from each term on
            limit = tolerance * float(values.abs().max())
        needed = int((~(rest <= limit)).sum())
        if needed <= size // 2:  # those that are kept are free of aliases
            return c[: max(1, needed)]
        size *= 2
    raise InputError(
        f"This spectrum needs more than {MOST:,} Chebyshev terms for an error of {tolerance:g}: take a larger tolerance,"
        " backend='eigen', or a spectrum of less reach."
    )


def _terms(operator: Operator, v: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """``T_k(2 L / bound - I) v``, k = 0 ... count - 1, by the recurrence ``T_(k+1) = 2 x T_k - T_(k-1)``."""
    doubled, before, now = operator.doubled, v, v
    for k in range(count):
        if k:
            following = doubled @ now
            following = 0.5 * following if k == 1 else np.subtract(following, before, out=following)
            before, now = now, following
        yield now


class _Multiply(torch.autograd.Function):
    """``sum_k c_k T_k v``; the polynomial is symmetric, and its derivative in c_k is T_k."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, operator: Operator, v: Tensor) -> Tensor:
        ctx.save_for_backward(c, v)
        ctx.operator = operator
        return torch.from_numpy(_summed(operator, c, v.detach().double().numpy())).to(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        c, v = ctx.saved_tensors
        G, V = grad.detach().double().numpy(), v.detach().double().numpy()
        of_c = [float(np.vdot(G, term)) for term in _terms(ctx.operator, V, len(c))]
        of_v = torch.from_numpy(_summed(ctx.operator, c, G)).to(v) if ctx.needs_input_grad[2] else None
        return c.new_tensor(of_c), None, of_v


def _summed(operator: Operator, c: Tensor, v: np.ndarray) -> np.ndarray:
    weights, total = c.detach().tolist(), np.zeros_like(v)
    for weight, term in zip(weights, _terms(operator, v, len(weights)), strict=True):
        total += weight * term
    return total


class _Columns(torch.autograd.Function):
    """Entries [n, m] of the polynomial at rows left [n] and columns right [m], a block of columns at a time."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, operator: Operator, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(c, left, right)
        ctx.operator = operator
        rows, out = left.cpu().numpy(), np.empty((len(left), len(right)))
        for block, unit in _units(operator, right):
            out[:, block] = _summed(operator, c, unit)[rows]
        return torch.from_numpy(out).to(c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        c, left, right = ctx.saved_tensors
        rows, G, of_c = left.cpu().numpy(), grad.detach().double().numpy(), np.zeros(len(c))
        for block, unit in _units(ctx.operator, right):
            of_c += [float(np.vdot(G[:, block], term[rows])) for term in _terms(ctx.operator, unit, len(c))]
        return torch.from_numpy(of_c).to(c), None, None, None


def moments(operator: Operator, left: Tensor, right: Tensor | None, count: int) -> Tensor:
    """``T_k(2 L / bound - I)``, k = 0 ... count - 1, at rows left [n] and columns right [m]: [count, n, m]; right None: their
    diagonals [count, n].

    They are functions of the graph alone, and kept with the operator: hyperparameters change nothing but the coefficients.
    """
    rows, columns = left.cpu().numpy(), (left if right is None else right).cpu().numpy()
    key = (rows.tobytes(), None if right is None else columns.tobytes())
    known = operator.moments.get(key)
    if known is None or len(known) < count:
        # A degree changes a little, from step to step and from kernel to kernel.
        step = max(TERMS, 1 << max(0, count.bit_length() - 3))
        size = -(-count // step) * step
        known = operator.moments[key] = (
            _moments(operator, rows, columns, size) if right is not None else _diagonals(operator, rows, size)
        )
        for old in list(operator.moments)[:-SETS]:
            del operator.moments[old]
    return torch.from_numpy(known[:count])


def _moments(operator: Operator, rows: np.ndarray, columns: np.ndarray, count: int) -> np.ndarray:
    found = np.empty((count, len(rows), len(columns)))

    def work(start: int, stop: int) -> None:
        for k, term in enumerate(_terms(operator, _unit(operator, columns[start:stop]), count)):
            found[k, :, start:stop] = term[rows]

    in_runs(work, len(columns), _step(operator))
    return found


def _diagonals(operator: Operator, nodes: np.ndarray, count: int) -> np.ndarray:
    """By ``T_(j+k) = 2 T_j T_k - T_|j-k|``, from half as many terms."""
    found, first = np.empty((count + 2, len(nodes))), 0.5 * operator.doubled.diagonal()[nodes]

    def work(start: int, stop: int) -> None:
        part, before = found[:, start:stop], np.zeros(0)
        for k, term in enumerate(_terms(operator, _unit(operator, nodes[start:stop]), count // 2 + 1)):
            part[2 * k] = 2 * np.einsum("ij,ij->j", term, term) - 1
            if k:
                part[2 * k - 1] = 2 * np.einsum("ij,ij->j", before, term) - first[start:stop]
            before = term

    in_runs(work, len(nodes), _step(operator))
    return found[:count]


def _units(operator: Operator, nodes: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    """Unit vectors of nodes, in blocks."""
    at, step = nodes.cpu().numpy(), _step(operator)
    for start in range(0, len(at), step):
        yield slice(start, start + step), _unit(operator, at[start : start + step])


def _unit(operator: Operator, nodes: np.ndarray) -> np.ndarray:
    unit = np.zeros((operator.graph.num_nodes, len(nodes)))
    unit[nodes, np.arange(len(nodes))] = 1
    return unit


def _step(operator: Operator) -> int:
    return max(1, BLOCK // operator.graph.num_nodes)
