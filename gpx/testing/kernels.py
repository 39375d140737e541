"""Laws of a kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable

import gpytorch
import torch
from torch import Tensor

from gpx.errors import InputError
from gpx.inputs import as_data
from gpx.kernels import Kernel, parse
from gpx.kernels.dense import dense, diagonal
from gpx.kernels.expressions import KERNELS as PARSED
from gpx.testing.assertions import close, copies, finite, gradients
from gpx.testing.cases import points, targets


def check_kernel(
    kernel: gpytorch.kernels.Kernel, x: Tensor | None = None, *, gradcheck_points: int = 5, discrete: bool = False
) -> None:
    """Check the laws that every kernel obeys; the kernel itself is left as it is.

    - the matrix is symmetric and positive semidefinite, and `diagonal` is its diagonal;
    - the eager matrix is gpytorch's own, ``kernel(x).to_dense()``; `active_dims` are applied once, and other columns unread;
    - derivatives in inputs and parameters are right, and finite where points coincide;
    - a batch of inputs gives the matrices of its members;
    - deep copies and pickles give the same matrix; the repr of a gpx kernel reads back as that kernel;
    - `init_from` gives finite values for any data, or an error where the kernel needs more points than there are.

    Arguments: kernel: any gpytorch kernel. x: inputs [N, D] that it accepts, distinct; None: random ones with three columns.
    discrete: whether inputs are integers, in which the kernel has no derivative.
    Raises: AssertionError that names the law.

    >>> from gpx.kernels import Matern
    >>> check_kernel(Matern(nu=1.5))
    """
    x = points(7) if x is None else x.detach().double()
    kernel = copy.deepcopy(kernel).double()
    _matrix_laws(kernel, x)
    _same_as_gpytorch(kernel, x)
    _active_dims(kernel, x)
    _derivatives(kernel, x[:gradcheck_points], discrete)
    _coincident_points(kernel, x)
    _batches(kernel, x)
    _copies(kernel, x)
    if isinstance(kernel, Kernel):
        _reads_back(kernel)
        _starts(kernel, x)


def _matrix_laws(kernel: gpytorch.kernels.Kernel, x: Tensor) -> None:
    K = dense(kernel, x, x).detach()
    assert K.shape == (len(x), len(x)), f"matrix: shape {list(K.shape)} at {len(x)} points."
    finite(K, "matrix")
    close(K, K.mT, "symmetric", rtol=1e-14)
    lowest = float(torch.linalg.eigvalsh(K)[0])
    assert lowest > -1e-10 * float(K.diagonal().max()), f"positive semidefinite: an eigenvalue is {lowest:.3g}."
    close(diagonal(kernel, x), K.diagonal(), "diagonal", rtol=1e-12)
    half = len(x) // 2
    close(dense(kernel, x[:half], x[half:]), K[:half, half:], "rectangular blocks", atol=1e-12 * float(K.abs().max()))
    close(dense(kernel, x[:0], x), K[:0], "no rows")


def _same_as_gpytorch(kernel: gpytorch.kernels.Kernel, x: Tensor) -> None:
    scale = float(dense(kernel, x, x).detach().abs().max())
    close(dense(kernel, x, x), kernel(x).to_dense(), "gpytorch's lazy evaluation", atol=1e-10 * scale)
    close(dense(kernel, x[:2], x), kernel(x[:2], x).to_dense(), "gpytorch's lazy cross-covariance", atol=1e-10 * scale)
    close(diagonal(kernel, x), kernel(x, diag=True), "gpytorch's diagonal", atol=1e-10 * scale)


def _active_dims(kernel: gpytorch.kernels.Kernel, x: Tensor) -> None:
    K = dense(kernel, x, x)
    if kernel.active_dims is not None:
        unread = [d for d in range(x.shape[1]) if d not in kernel.active_dims.tolist()]
        changed = x.clone()
        changed[:, unread] = torch.randn(len(x), len(unread), generator=torch.Generator().manual_seed(1)).double()
        close(dense(kernel, changed, changed), K, "columns outside active_dims are not read", rtol=1e-12)
        return
    dims = x.shape[1]
    wide = torch.cat([torch.full_like(x[:, :1], 7.0), x.flip(1), -x], 1)
    selecting = copy.deepcopy(kernel)
    selecting.active_dims = torch.arange(dims, 0, -1)
    close(dense(selecting, wide, wide), K, "active_dims are applied exactly once", rtol=1e-12)
    close(diagonal(selecting, wide), K.diagonal(), "active_dims are applied exactly once to the diagonal", rtol=1e-12)
    lazy = selecting(wide).to_dense()
    close(lazy, K, "gpytorch applies active_dims as gpx does", atol=1e-10 * float(K.detach().abs().max()))


def _derivatives(kernel: gpytorch.kernels.Kernel, x: Tensor, discrete: bool) -> None:
    left, right = (x[i::2].clone().requires_grad_(not discrete) for i in (0, 1))
    params = _learned(kernel)
    gradients(lambda a, b, *_: dense(kernel, a, b), [left, right, *params], "derivatives of the matrix")
    gradients(lambda a, *_: diagonal(kernel, a) + 0 * a.sum(), [left, *params], "derivatives of the diagonal")


def _learned(kernel: gpytorch.kernels.Kernel) -> list[Tensor]:
    return [p for p in kernel.parameters() if p.requires_grad]


def _coincident_points(kernel: gpytorch.kernels.Kernel, x: Tensor) -> None:
    twice = torch.cat([x, x[:2]]).requires_grad_()
    K = dense(kernel, twice, twice)
    finite(K, "matrix at coincident points")
    weights = torch.randn(K.shape, generator=torch.Generator().manual_seed(2), dtype=K.dtype)
    grads = torch.autograd.grad((weights * K).sum(), [twice, *_learned(kernel)], allow_unused=True)
    finite(grads, "gradients at coincident points")


def _batches(kernel: gpytorch.kernels.Kernel, x: Tensor) -> None:
    batch = torch.stack([x, 2 * x, x.flip(0)])
    scale = float(dense(kernel, x, x).detach().abs().max())
    expected = torch.stack([dense(kernel, b, b) for b in batch])
    close(dense(kernel, batch, batch), expected, "a batch of inputs", atol=1e-12 * scale)
    expected = torch.stack([diagonal(kernel, b) for b in batch])
    close(diagonal(kernel, batch), expected, "the diagonal of a batch of inputs", atol=1e-12 * scale)


def _copies(kernel: gpytorch.kernels.Kernel, x: Tensor) -> None:
    for how, other in copies(kernel).items():
        close(dense(other, x, x), dense(kernel, x, x), f"{how} gives the same matrix", rtol=0.0)
        assert repr(other) == repr(kernel), f"{how} gives the same repr: {other!r} is not {kernel!r}."
        own, theirs = ({id(p) for p in k.parameters()} for k in (kernel, other))
        assert not own & theirs, f"{how} shares parameters with the original."


def _reads_back(kernel: Kernel) -> None:
    parts = [m for m in kernel.modules() if isinstance(m, gpytorch.kernels.Kernel)]
    if all(type(part) in PARSED.values() for part in parts):
        text = repr(kernel)
        assert repr(parse(text)) == text, f"repr reads back: {text!r} became {parse(text)!r}."


def _starts(kernel: Kernel, x: Tensor) -> None:
    constant = torch.ones_like(x)
    for what, inputs, y in (
        ("ordinary data", x, targets(x)),
        ("a constant target", x, torch.ones(len(x))),
        ("constant inputs", constant, targets(x)),
        ("one point", x[:1], targets(x)[:1]),
        ("missing targets", x, torch.where(torch.arange(len(x)) % 2 == 0, torch.nan, targets(x))),
        ("inputs of size 1e6", 1e6 * x, targets(x)),
        ("targets of size 1e-6", x, 1e-6 * targets(x)),
    ):
        started = copy.deepcopy(kernel)
        data = as_data(inputs, y)
        started.bind(data.columns)
        if data.targets < _least_points(started):
            _raises(lambda started=started, data=data: started.init_from(data), f"init_from on {what}")
            continue
        started.init_from(data)
        finite(list(started.parameters()), f"init_from on {what}")
        finite(dense(started, inputs, inputs), f"the matrix after init_from on {what}")


def _least_points(kernel: Kernel) -> int:
    return max(getattr(part, "least_points", 1) for part in kernel.modules())


def _raises(start: Callable[[], None], law: str) -> None:
    try:
        start()
    except InputError:
        return
    raise AssertionError(f"{law}: fewer points than the kernel needs, and no InputError.")
