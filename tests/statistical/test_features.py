"""Random features are unbiased, and their errors are as small as the literature says. Theory: docs/theory/features.md."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import gpx
from gpx import InputError, StructureError, features
from gpx.features import Codec, Distributed, SigmaDelta
from gpx.linalg.directions import KINDS, coupled, repelling, rotations, simplex
from gpx.linalg.quantise import condensed, level, nearest, pack, unpack
from gpx.testing.assertions import close, mean_is
from gpx.testing.cases import points

D, NORM, REPEATS = 8, 0.5, 6_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(repeats=REPEATS, seed=1):
    """Two points at right angles for each repeat [repeats, 2, D]."""
    return NORM * rotations(repeats, D, generator(seed))[:, :2]


def blocks_of(kind, repeats=REPEATS, seed=2):
    """D directions for each repeat."""
    return coupled(kind, repeats * D, D, generator(seed)).reshape(repeats, D, D)


def estimates(kind, of):
    """Kernel estimates and true values, one pair and one block of directions for each repeat."""
    xy, omega = pairs(), blocks_of(kind)
    truth = (-0.5 * (xy[:, 0] - xy[:, 1]).square().sum(-1)).exp()
    phi = of(xy, omega)
    return (phi[:, 0] * phi[:, 1]).sum(-1), truth


def error(kind, of):
    got, truth = estimates(kind, of)
    return float((got - truth).square().mean())


# ------------------------------------------------------------------------------------------------ directions


@pytest.mark.parametrize("columns", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_standard_normal(kind, columns):
    """Each of them: the fourth moment too, in blocks of which the last is cut."""
    rows = coupled(kind, 40_000 * columns - 1, columns, generator())
    assert rows.shape == (40_000 * columns - 1, columns)
    blocks = coupled(kind, 20_000 * columns, columns, generator(1)).reshape(20_000, columns, columns)
    eye = torch.eye(columns, dtype=torch.float64)
    for k in range(columns):
        row = blocks[:, k]
        mean_is(row, torch.zeros(columns, dtype=torch.float64), f"mean of row {k}")
        mean_is(row.unsqueeze(-1) * row.unsqueeze(-2), eye, f"covariance of row {k}")
        mean_is(row**4, torch.full((columns,), 3.0, dtype=torch.float64), f"fourth moment of row {k}")


def test_directions_of_a_block():
    """The law "directions" of docs/theory/features.md."""
    unit = lambda kind, d: torch.nn.functional.normalize(coupled(kind, d, d, generator()), dim=-1)  # noqa: E731
    for d in (3, 5, 8):
        s, eye = simplex(d), torch.eye(d, dtype=torch.float64)
        close(s @ s.mT, eye * d / (d - 1) - 1 / (d - 1), "corners of a simplex", rtol=1e-12)
        gram = unit("orthogonal", d) @ unit("orthogonal", d).mT
        close(gram, eye, "orthogonal", atol=1e-12)
        close(unit("simplex", d) @ unit("simplex", d).mT, eye * d / (d - 1) - 1 / (d - 1), "simplex", atol=1e-12)
        norms = 1 + torch.rand(d, generator=generator(), dtype=torch.float64)
        after, before = ((norms[:, None] * v).sum(0).norm() for v in (repelling(norms), s))
        assert after < 0.2 * before
    for d in (1, 2):
        close(coupled("simplex", d, d, generator()), coupled("orthogonal", d, d, generator()), "few columns", rtol=0.0)


# ------------------------------------------------------------------------------------------------ features


MAPS = {"fourier": features.fourier, "positive": features.positive}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAPS)
def test_features_are_unbiased(name, kind):
    """The law "positive", and that of Fourier features."""
    got, truth = estimates(kind, MAPS[name])
    mean_is((got - truth)[:, None], torch.zeros(1, dtype=torch.float64), f"{name} features, {kind}")


def test_softmax_features_are_unbiased():
    xy, omega = pairs(), blocks_of("simplex")
    phi = features.positive(xy, omega, kernel="softmax")
    truth = (xy[:, 0] * xy[:, 1]).sum(-1).exp()
    mean_is(((phi[:, 0] * phi[:, 1]).sum(-1) - truth)[:, None], torch.zeros(1, dtype=torch.float64), "softmax")
    assert bool((phi > 0).all())


def test_errors_of_couplings():
    """Of estimates with D features, for x and y at right angles, relative to independent directions: the law "couplings". The
    ratio of 6,000 repeats is known to some 3 %; at random angles that of a simplex is 0.25.
    """
    independent = {name: error("iid", of) for name, of in MAPS.items()}
    assert error("simplex", features.positive) <= 0.25 * independent["positive"]
    assert error("simplex+", features.positive) <= 0.25 * independent["positive"]
    assert error("orthogonal", features.fourier) <= 0.3 * independent["fourier"]
    # A simplex is for positive features: it does worse than right angles with Fourier features.
    assert error("simplex", features.fourier) > error("orthogonal", features.fourier)


def test_features_are_those_of_the_engine():
    kernel, omega = gpx.kernels.RBF(lengthscale=1.0), features.directions(32, 3, seed=4)
    map_ = gpx.structure.feature_map(kernel.double(), 64, 3, gpx.structure.Draws(generator(4), "orthogonal"))
    close(map_(points(5)), features.fourier(points(5), omega), "features", rtol=1e-12)


# ------------------------------------------------------------------------------------------------ quantisation


SCHEMES = [(SigmaDelta(1), 1), (SigmaDelta(1), 3), (SigmaDelta(2), 2), (SigmaDelta(2), 4), (SigmaDelta(3), 3),
           (Distributed(1.3), 1), (Distributed(1.9), 1), (Distributed(1.5), 8)]  # fmt: skip


def waves(rows=20, count=640, seed=0):
    return 2 * torch.rand(rows, count, generator=generator(seed), dtype=torch.float64) - 1


@pytest.mark.parametrize(("scheme", "bits"), SCHEMES, ids=str)
def test_states_are_bounded_by_half_a_step(scheme, bits):
    """The law "stable": the extremes -1 and 1, for long, too."""
    z, top = torch.cat([waves(), torch.ones(1, 640).double(), -torch.ones(1, 640).double()]), scheme.amplitude(bits)
    codes = scheme.codes(z, 32, bits)
    assert int(codes.max()) < 2**bits
    error = z - level(codes, top, bits)
    if isinstance(scheme, SigmaDelta):
        for _ in range(scheme.order):  # D^r u = error
            error = error.cumsum(1)
        state = error
    else:
        state, parts = [], error.reshape(len(z), -1, 32)
        for i in range(32):
            state.append(parts[..., i] + (scheme.beta * state[-1] if i else 0))
        state = torch.stack(state)
    assert float(state.abs().max()) <= top / (2**bits - 1) * (1 + 1e-9)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_the_nearest_levels_and_pack(bits):
    z = waves(3, 37)
    codes = nearest(z, 1.0, bits)
    grid = level(torch.arange(2**bits), 1.0, bits)
    close(level(codes, 1.0, bits), grid[(z[..., None] - grid).abs().argmin(-1)], "nearest", rtol=1e-12)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.shape == (3, math.ceil(37 * bits / 8))
    assert torch.equal(unpack(packed, bits, 37), codes)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_error_falls_with_the_length_of_a_block(order):
    """As ``block^-(r - 1/2)``: the law "noise shaping", for condensed features, and for kernel values."""
    lengths, x = [16, 32, 64, 128, 256], points(30, 3)
    lengths, found = [n + 1 for n in lengths] if order == 2 else lengths, []
    for block in lengths:
        codec = Codec(gpx.kernels.RBF(0.8), 64, block, order, SigmaDelta(order))
        exact, quantised = codec.exact(x), codec.decode(codec.encode(x))
        found.append([float((exact - quantised).square().mean().sqrt()),
                      float((exact @ exact.mT - quantised @ quantised.mT).square().mean().sqrt())])  # fmt: skip
    slopes = np.polyfit(np.log(lengths), np.log(found), 1)[0]
    assert (slopes <= -(order - 0.7)).all(), slopes


def test_error_of_distributed_noise_shaping_falls_exponentially():
    z, errors = waves(), []
    for block in (4, 8, 16):
        scheme = Distributed(1.5)
        q = level(scheme.codes(z, block, 2), scheme.amplitude(2), 2)
        errors.append(float((condensed(z, scheme, block) - condensed(q, scheme, block)).square().mean().sqrt()))
    slopes = np.diff(np.log(errors)) / [4, 8]
    close(slopes, -np.log(1.5) * np.ones(2), "rate", atol=0.05)


@pytest.mark.parametrize("scheme", [SigmaDelta(1), Distributed(1.5)], ids=str)
def test_condensed_features_are_unbiased(scheme):
    """Before quantisation, over seeds: the law "condensed"."""
    kernel, x = gpx.kernels.Matern(nu=1.5, lengthscale=0.9, outputscale=1.7), points(4, 2)
    parts = torch.stack([Codec(kernel, 32, 8, 1, scheme, seed=s).exact(x) for s in range(200)])
    mean_is(parts @ parts.mT, kernel.double().matrix(x).detach(), "condensed features")


def test_a_codec_for_a_table():
    """One bit per entry: 512 bytes a row; kernel values to a few percent; the same codec gives the same codes."""
    kernel, x = gpx.kernels.RBF(0.8, outputscale=2.0), points(50, 4)
    codec = Codec(kernel, features=256, block=16)
    codes = codec.encode(x.numpy())
    assert codes.shape == (50, 512) and codes.dtype == np.uint8
    assert np.array_equal(codes, Codec(kernel, features=256, block=16).encode(x))
    phi = codec.decode(codes)
    error = phi @ phi.mT - kernel.double().matrix(x).detach()
    assert float(error.square().mean().sqrt()) < 0.15 * 2.0


@pytest.mark.parametrize("scheme", [SigmaDelta(1), Distributed(1.5)], ids=str)
def test_a_table_without_rows(scheme):
    codec = Codec(gpx.kernels.RBF(), features=8, block=4, bits=3, scheme=scheme)
    codes = codec.encode(np.zeros((0, 3)))
    assert codes.shape == (0, 12) and codec.decode(codes).shape == codec.exact(np.zeros((0, 3))).shape == (0, 8)


def test_arrays_are_taken_as_tensors_are():
    x, omega = points(4), features.directions(6, 3)
    for make in (features.positive, features.fourier):
        assert bool((make(x.numpy(), omega.numpy()) == make(x, omega)).all())


CODEC = Codec(gpx.kernels.RBF(), features=8, block=4, bits=3)


@pytest.mark.parametrize(("build", "error", "message"), [
    (lambda: SigmaDelta(0), InputError, "order >= 1, got 0"),
    (lambda: Distributed(2.5), InputError, "beta between 1 and 2"),
    (lambda: Codec(gpx.kernels.RBF(), bits=9), InputError, "bits, a number 1 to 8, got 9"),
    (lambda: Codec(gpx.kernels.RBF(), features=0), InputError, "features, a number >= 1"),
    (lambda: Codec(gpx.kernels.RBF(), bits=1, block=17, scheme=SigmaDelta(2)), InputError, "not stable with 1 bit.*use 2 or more"),
    (lambda: Codec(gpx.kernels.RBF(), bits=2, block=16, scheme=SigmaDelta(2)), InputError, "got 16: use 17"),
    (lambda: Codec(gpx.kernels.RBF(), kind="x"), InputError, "kind, one of"),
    (lambda: Distributed("a"), InputError, "beta between 1 and 2, got 'a'"),
    (lambda: Codec("rbf"), InputError, r"a kernel, such as kernels.RBF\(\), got 'rbf'"),
    (lambda: Codec(gpx.kernels.RBF(), scheme="sigma"), InputError, r"a scheme, SigmaDelta\(...\) or Distributed"),
    (lambda: Codec(gpx.kernels.RBF(), seed="a"), InputError, "seed, an integer, got 'a'"),
    (lambda: Codec(gpx.kernels.RBF([1.0, 2.0])).encode(np.ones((2, 3))), InputError, r"2 values of lengthscale.*3 column\(s\)"),
    (lambda: CODEC.decode(np.zeros((2, 3), np.uint8)), InputError, r"bytes \(uint8\) \[N, 12\] from encode, got uint8 \[2, 3\]"),
    (lambda: CODEC.decode(np.zeros((2, 30), np.uint8)), InputError, r"got uint8 \[2, 30\]"),
    (lambda: CODEC.decode(np.zeros((2, 12), int)), InputError, r"got int64 \[2, 12\]"),
    (lambda: Codec(gpx.kernels.Linear()).encode([[1.0]]), StructureError, "a stationary kernel"),
    (lambda: features.positive(points(2), features.directions(3, 3), "laplace"), InputError, "kernel='gaussian'"),
    (lambda: features.positive(points(2), features.directions(3, 4)), InputError, "positive needs .* the same columns"),
    (lambda: features.fourier(points(2), features.directions(3, 4)), InputError, "fourier needs .* the same columns"),
    (lambda: features.directions(3, 3, "x"), InputError, "kind, one of"),
    (lambda: features.directions(4, 0), InputError, "dims, an integer >= 1, got 0"),
    (lambda: features.directions(0, 4), InputError, "count, an integer >= 1, got 0"),
    (lambda: features.directions(4, 2.5), InputError, "dims, an integer >= 1, got 2.5"),
])  # fmt: skip
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_every_law_of_the_theory_is_cited():
    root = Path(__file__).parents[2]
    laws = re.findall(r"\*\*(.+?)\*\*", (root / "docs" / "theory" / "features.md").read_text())[1:]
    files = ("statistical/test_features.py", "equivalence/test_features.py", "equivalence/test_wide_features.py")
    cited = "".join((root / "tests" / name).read_text() for name in files)
    assert len(laws) == 9
    for law in laws:
        assert f'"{law.lower()}"' in cited, f"no test cites the law {law.lower()!r}."
