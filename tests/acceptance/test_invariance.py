"""A fit does not depend on units: on (a X + b, c y + d) it gives the mapped predictions."""

from __future__ import annotations

import math

import pytest
import torch

from gpx import GP
from gpx.kernels import RBF, Constant, Linear, Matern, Periodic, RationalQuadratic
from gpx.objectives import LeaveOneOut
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets

N = 35
SMOOTH = (points(N, 2), targets(points(N, 2)), points(8, 2, seed=3))
_T = torch.linspace(0, 8, 60, dtype=torch.float64)
SEASONAL = (
    _T,
    torch.sin(2 * math.pi * _T) * (1 + 0.1 * _T) + 0.2 * _T + 0.15 * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    torch.linspace(7, 9, 9, dtype=torch.float64),
)  # fmt: skip

KERNELS = {
    "RBF": (lambda: RBF(), SMOOTH),
    "Matern ard": (lambda: Matern(ard=True), SMOOTH),
    "RationalQuadratic": (lambda: RationalQuadratic(), SMOOTH),
    "Linear": (lambda: Linear(ard=True), SMOOTH),
    "sum": (lambda: RBF() + Matern(nu=0.5), SMOOTH),
    "product": (lambda: Matern(nu=1.5) * Linear() + Constant(), SMOOTH),
    "Periodic": (lambda: Periodic(), SEASONAL),
    "quasi-periodic": (lambda: RBF() * Periodic() + RBF(), SEASONAL),
}
SIZES = (1e-6, 1.0, 1e6)
OFFSETS = ((0.0, 0.0), (1e3, -1e3), (-1e3, 1e3))


def check(build, data, units, tolerance=1e-4, **options):
    """units: (a, c, shift of X in ranges, shift of y in standard deviations), for one fit each."""
    X, y, new = data
    plain = GP(build(), **options).fit(X, y).predict(new)
    for a, c, shift_x, shift_y in units:
        b = shift_x * a * float((X.amax(0) - X.amin(0)).max())
        d = shift_y * c * float(y.std())
        mapped = GP(build(), **options).fit(a * X + b, c * y + d).predict(a * new + b)
        close((mapped.mean - d) / c, plain.mean, f"mean for {a=:g}, {c=:g}, {b=:g}, {d=:g}", tolerance)
        close(mapped.std / c, plain.std, f"std for {a=:g}, {c=:g}, {b=:g}, {d=:g}", tolerance)


@pytest.mark.parametrize("name", KERNELS)
def test_extreme_units(name):
    """Both scales at their ends, one up and one down; every offset."""
    check(*KERNELS[name], [(1e-6, 1e6, *OFFSETS[0]), (1e6, 1e-6, *OFFSETS[1]), (1e-6, 1e6, *OFFSETS[2])])


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", KERNELS)
def test_all_units(name):
    check(*KERNELS[name], [(a, c, *shifts) for a in SIZES for c in SIZES for shifts in OFFSETS])


@pytest.mark.slow
@pytest.mark.ci
def test_the_kernel_auto():
    """To 1 %: five parts share what 60 points tell, so that the objective is flat along some direction."""
    check(lambda: "auto", SEASONAL, [(1e-6, 1e6, 1e3, -1e3), (1e6, 1e-6, -1e3, 1e3)], tolerance=1e-2)


@pytest.mark.parametrize("options", [
    dict(mean="linear"), dict(mean="zero"), dict(objective=LeaveOneOut()),
], ids=str)  # fmt: skip
def test_other_means_and_objectives(options):
    """A zero mean knows where zero is: no offset of the target."""
    shift_y = 0.0 if options.get("mean") == "zero" else 1e3
    check(lambda: Matern(ard=True), SMOOTH, [(1e6, 1e-6, -1e3, shift_y), (1e-6, 1e6, 1e3, -shift_y)], **options)


def test_columns_of_different_units():
    """Every column on its own scale, with ard."""
    X, y, new = SMOOTH
    units = torch.tensor([1e-5, 1e7], dtype=torch.float64)
    plain, mapped = (GP(Matern(ard=True)).fit(u * X, y).predict(u * new) for u in (torch.ones(2), units))
    close(mapped.mean, plain.mean, "mean", 1e-4)
    close(mapped.std, plain.std, "std", 1e-4)


def test_reflections():
    X, y, new = SMOOTH
    plain, mirrored = GP(Matern()).fit(X, y).predict(new), GP(Matern()).fit(-X, -y).predict(-new)
    close(-mirrored.mean, plain.mean, "mean", 1e-4)
    close(mirrored.std, plain.std, "std", 1e-4)


def test_the_order_of_rows_and_columns():
    X, y, new = SMOOTH
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    plain = GP(Matern(ard=True)).fit(X, y).predict(new)
    for other in (
        GP(Matern(ard=True)).fit(X[order], y[order]).predict(new),
        GP(Matern(ard=True)).fit(X.flip(1), y).predict(new.flip(1)),
    ):
        close(other.mean, plain.mean, "mean", 1e-4)
        close(other.std, plain.std, "std", 1e-4)


def test_evidence_in_other_units():
    """The density of c y is that of y over c^N."""
    X, y, _ = SMOOTH
    a = GP(Matern()).fit(X, y, priors=None).log_evidence()
    b = GP(Matern()).fit(X, 1e6 * y, priors=None).log_evidence()
    assert b == pytest.approx(a - N * math.log(1e6), abs=1e-4)


def test_hyperparameters_are_in_the_units_of_the_user():
    X, y, _ = SMOOTH
    a, b = GP(Matern()).fit(X, y), GP(Matern()).fit(1e3 * X + 5, 1e2 * y - 7)
    close(b.kernel_.lengthscale, 1e3 * a.kernel_.lengthscale, "lengthscale", 1e-4)
    close(b.kernel_.outputscale, 1e4 * a.kernel_.outputscale, "outputscale", 1e-4)
    close(b.likelihood_.noise, 1e4 * a.likelihood_.noise, "noise", 1e-4)
    close(b.mean_.constant, 1e2 * a.mean_.constant - 7, "mean", 1e-4)
    for name in ("kernel.lengthscale", "likelihood.noise"):
        ratio = b.parameters()[name].value / a.parameters()[name].value
        assert b.parameters()[name].standard_error == pytest.approx(
            ratio * a.parameters()[name].standard_error, rel=1e-2
        )
