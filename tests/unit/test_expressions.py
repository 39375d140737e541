"""Kernels from text: parsed, never evaluated."""

from __future__ import annotations

import pytest

from gpx import GP, InputError
from gpx.kernels import RBF, Constant, Linear, Matern, Periodic, Sum, parse
from gpx.testing.assertions import close
from gpx.testing.cases import points


@pytest.mark.parametrize(("text", "kernel"), [
    ("RBF", RBF()),
    ("rbf()", RBF()),
    (" Matern ( nu = 1.5 , ard = True ) ", Matern(nu=1.5, ard=True)),
    ("Matern(1.5, 0.3)", Matern(1.5, 0.3)),
    ("RBF(lengthscale=[0.1, 0.2, 3e-1])", RBF([0.1, 0.2, 0.3])),
    ("2 * RBF + 0.5", 2 * RBF() + 0.5),
    ("RBF + Linear * Periodic(period=2)", RBF() + Linear() * Periodic(period=2.0)),
    ("(RBF + Linear) * Periodic(period=2)", (RBF() + Linear()) * Periodic(period=2.0)),
    ("Linear(center=-1.5, active_dims=[0, 2])", Linear(center=-1.5, active_dims=[0, 2])),
    ("RBF(active_dims=['age'])", RBF(active_dims=["age"])),
    ("Sum(RBF, Linear(), active_dims=[1])", Sum(RBF(), Linear(), active_dims=[1])),
    ("Product(RBF + 1, Linear)", (RBF() + 1) * Linear()),
    ("3", Constant(3.0)),
    ("2 + 3", 2 + Constant(3.0)),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_parse(text, kernel):
    parsed = parse(text)
    assert repr(parsed) == repr(kernel)
    if "age" not in text:
        close(parsed.matrix(points(4)), kernel.matrix(points(4)), text)


@pytest.mark.parametrize(("text", "advice"), [
    ("Mattern", "Unknown kernel 'Mattern'; known are RBF"),
    ("RBF + Mattern", "Mattern"),
    ("RBF +", "Cannot read the kernel expression"),
    ("RBF - Linear", "Cannot read"),
    ("RBF ** 2", "Cannot read"),
    ("", "Cannot read"),
    ("-1", "Cannot read"),
    ("RBF(lengthscale=-1)", "positive"),
    ("RBF(width=1)", "width"),
    ("Matern(nu=2)", "half-integer"),
    ("RBF(*[1])", "RBF"),
    ("RBF(**{'lengthscale': 1})", "RBF"),
    ("RBF(lengthscale=open('x'))", "RBF"),
    ("RBF(lengthscale=[x for x in (1, 2)])", "RBF"),
    ("Periodic(bad=1)", r"Cannot build Periodic.*It is Periodic\(period, lengthscale"),
    ("RBF()()", "Cannot read"),
    ("gpx.kernels.RBF", "Cannot read"),
    ("__import__('os')", "Unknown kernel '__import__'"),
    ("RBF if True else Linear", "Cannot read"),
    ("lambda: RBF", "Cannot read"),
    ("'RBF'", "Cannot read"),
    ("True", "Cannot read|Unknown"),
    ("RBF\0", "Cannot read"),
    ("(" * 500 + "RBF" + ")" * 500, "Cannot read"),
    ("+".join(["RBF"] * 3000), "Cannot read"),
], ids=lambda v: v[:30].replace("\0", "NUL"))  # fmt: skip
def test_what_cannot_be_parsed(text, advice):
    with pytest.raises(InputError, match=advice):
        parse(text)
    with pytest.raises(InputError):
        GP(text)


def test_nothing_is_executed(tmp_path):
    target = tmp_path / "made"
    for text in (
        f"open({str(target)!r}, 'w')",
        f"RBF(lengthscale=open({str(target)!r}, 'w'))",
        f"RBF(open({str(target)!r}, 'w'))",
    ):
        with pytest.raises(InputError):
            parse(text)
    assert not target.exists()


def test_an_expression_in_a_model():
    x = points(12, 1)
    a, b = (GP(k).fit(x, x.sin()) for k in ("Matern(nu=1.5) + 0.1", Matern(nu=1.5) + 0.1))
    close(a.predict(x).mean, b.predict(x).mean, "predictions")
    assert repr(a.kernel_) == repr(b.kernel_)
