"""The base of gpx kernels: an ordinary ``gpytorch.kernels.Kernel`` with natural-scale values and an eager ``forward``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gpx.errors import InputError, StructureError
from gpx.inputs import Data, Points, as_points
from gpx.kernels.dense import dense, diagonal
from gpx.kernels.walk import resolve
from gpx.parameters import Parameterised, Value, as_value, format_value


class Kernel(Parameterised, gpytorch.kernels.Kernel):
    """Base class: `Value` descriptors declare the hyperparameters, ``forward`` returns a tensor.

    A subclass lists its structural arguments in `structure` (for repr and files), declares its values in ``__init__`` and
    implements ``forward(x1, x2, diag)`` and ``init_from(data)``.

    active_dims: indices of the input columns, or names of DataFrame columns; None: all of them.
    """

    structure: tuple[str, ...] = ()
    per_dimension: tuple[str, ...] = ()  # values of shape [..., 1, D] under ard=True
    ard = False
    labels = False  # whether inputs are labels, such as nodes of a graph, which have no distances and no derivatives

    def __init__(self, active_dims: Sequence[int | str] | None = None, batch_shape: Sequence[int] = ()):
        names, indices = _split_dims(active_dims)
        # Not super(): Sum and Product are also gpytorch's AdditiveKernel and ProductKernel, which take no active_dims.
        gpytorch.kernels.Kernel.__init__(self, active_dims=indices, batch_shape=torch.Size(batch_shape))
        self.named_dims = names
        self.columns: tuple[str, ...] = ()
        self.choices = {}

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        dims = self.named_dims if self.named_dims is not None else self.active_dims
        keywords = {name: getattr(self, name) for name in self.structure}
        return [], {**keywords, "active_dims": dims if dims is None else list(map(_plain, dims))}

    def declare_per_column(self, name: str, value: Any) -> None:
        """Declare a value of shape [..., 1, 1], or [..., 1, D] if it is given for every column."""
        given = torch.zeros(()) if value is None else as_value(type(self).__name__, name, value)
        self.declare(name, value, (*self.batch_shape, 1, given.shape[-1] if given.dim() else 1))

    def bind(self, columns: tuple[str, ...]) -> None:
        """Fix the input columns; see the function `bind`."""
        bind(self, columns)

    def _bind_own(self, columns: tuple[str, ...]) -> None:
        for name in self.per_dimension:
            value = getattr(self, name)
            if value.shape[-1] not in (1, len(columns)):
                raise InputError(
                    f"{type(self).__name__} has {value.shape[-1]} values of {name}, but its inputs have"
                    f" {len(columns)} column(s)."
                )
            if self.ard:
                self.assign(name, value.detach().expand(*value.shape[:-1], len(columns)))

    def init_from(self, data: Data) -> None:
        """Start what the user left open from the data, with weak priors (see `Parameterised.start`)."""
        self._init_from(data.select(self.active_dims))

    def _init_from(self, data: Data) -> None:
        if "outputscale" in self.choices:
            self.start("outputscale", data.variance)

    def shortfall(self) -> str:
        """What was fixed at the start of a fit and does not suit the present values, and what to do, in words; mostly nothing."""
        return ""

    def resettle(self) -> Callable[[], None]:
        """Fix that anew, for values about the present ones. Returns: what undoes it."""
        return lambda: None

    def matrix(self, X: Any, X2: Any = None) -> Tensor:
        """The kernel matrix k(X, X2) [N, M]. Arguments: [N, D] arrays, tensors or DataFrames; X2 None means X.

        >>> from gpx.kernels import RBF
        >>> RBF().matrix([0.0, 1.0])
        tensor([[1.0000, 0.6065],
                [0.6065, 1.0000]], dtype=torch.float64, grad_fn=<MulBackward0>)
        """
        return matrix(self, X, X2)

    def diagonal(self, X: Any) -> Tensor:
        """The prior variances k(x, x) [N]."""
        return diagonal(*_bound(self, X))

    @property
    def is_stationary(self) -> bool:
        return False

    def level(self, x: Tensor) -> Tensor:
        """The outputscale at every row of x [..., N, D]: the diagonal of a kernel with k(x, x) = outputscale."""
        return self.outputscale.unsqueeze(-1).expand(torch.broadcast_shapes(x.shape[:-1], (*self.batch_shape, 1)))

    def require_one_column(self, x: Tensor) -> None:
        """Raise InputError unless x [..., N, D] has D = 1."""
        if x.shape[-1] != 1:
            raise InputError(
                f"{type(self).__name__} acts on one input column, got {x.shape[-1]}; choose one with active_dims=[i]."
            )

    def __add__(self, other: Any) -> Kernel:
        from gpx.kernels.algebra import add

        return add(self, other)

    def __mul__(self, other: Any) -> Kernel:
        from gpx.kernels.algebra import multiply

        return multiply(self, other)

    def __radd__(self, other: Any) -> Kernel:
        from gpx.kernels.algebra import add

        return add(other, self)

    def __rmul__(self, other: Any) -> Kernel:
        from gpx.kernels.algebra import multiply

        return multiply(other, self)

    def _shown(self, name: str) -> str:
        """A value as it stands in the repr."""
        return format_value(getattr(self, name))

    def __repr__(self) -> str:
        parts = [f"{name}={getattr(self, name)!r}" for name in self.structure if getattr(self, name) is not False]
        parts += [f"{name}={self._shown(name)}" for name in self.choices]
        if self.named_dims is not None:
            parts.append(f"active_dims={list(self.named_dims)}")
        elif self.active_dims is not None:
            parts.append(f"active_dims={self.active_dims.tolist()}")
        return f"{type(self).__name__}({', '.join(parts)})"


def bind(kernel: gpytorch.kernels.Kernel, columns: tuple[str, ...]) -> None:
    """Fix the input columns of a kernel and its parts: `resolve` them, and give ard values one entry per dimension."""
    for part, names in resolve(kernel, columns):
        if isinstance(part, Kernel):
            part.columns = names
            part._bind_own(names)


def matrix(kernel: gpytorch.kernels.Kernel, X: Any, X2: Any = None) -> Tensor:
    """The kernel matrix k(X, X2) [N, M] of any gpytorch kernel, as a dense tensor.

    Arguments: X [N, D], X2 [M, D] (None: X): arrays, tensors or DataFrames. Cost: O(N M D).

    >>> import gpytorch
    >>> matrix(gpytorch.kernels.RBFKernel(), [0.0, 1.0]).shape
    torch.Size([2, 2])
    """
    bound, x1 = _bound(kernel, X)
    return dense(bound, x1, x1 if X2 is None else _beside(X2, X))


def _bound(kernel: gpytorch.kernels.Kernel, X: Any) -> tuple[gpytorch.kernels.Kernel, Tensor]:
    points = as_points(X)
    if not isinstance(kernel, gpytorch.kernels.Kernel):
        raise StructureError(f"Expected a gpytorch kernel, got {type(kernel).__name__}.")
    # A copy that shares the parameters: the names are those of X, and the kernel stays as it is.
    kernel = copy.deepcopy(kernel, {id(p): p for p in kernel.parameters()})
    resolve(kernel, points.columns)
    return kernel, _differentiable(X, points)


def _beside(X2: Any, X: Any) -> Tensor:
    """X2 with the columns of X: as many, and in the same order where both have names."""
    first, second = as_points(X), as_points(X2)
    if second.x.shape[1] != first.x.shape[1]:
        raise InputError(
            f"X has {first.x.shape[1]} column(s) and X2 has {second.x.shape[1]}; they must have the same ones."
        )
    return _differentiable(X2, as_points(X2, columns=first.columns))


def _differentiable(X: Any, points: Points) -> Tensor:
    # A tensor that is fit for use as it stands keeps its autograd graph.
    ready = isinstance(X, Tensor) and X.dim() == 2 and X.dtype == points.x.dtype
    return X if ready else points.x


def _plain(dim: Any) -> int | str:
    return dim if isinstance(dim, str) else int(dim)


def _split_dims(dims: Sequence[int | str] | None) -> tuple[tuple[str, ...] | None, Any]:
    if dims is None or isinstance(dims, Tensor):
        return None, dims
    if isinstance(dims, (int, str)):
        dims = [dims]
    if not len(dims) or len(set(dims)) < len(dims):
        raise InputError(f"active_dims must name one or more different columns, got {list(dims)!r}.")
    if all(isinstance(d, str) for d in dims):
        return tuple(str(d) for d in dims), None
    if not all(isinstance(d, int) for d in dims):
        raise InputError(f"active_dims must be all indices or all column names, got {list(dims)!r}.")
    return None, tuple(dims)


__all__ = ["Kernel", "Value", "bind", "matrix"]
