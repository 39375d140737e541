"""`update` equals conditioning on all data: docs/theory/exact.md, section 7."""

from __future__ import annotations

import pytest
import torch

import gpx
from gpx import GP
from gpx.likelihoods import Gaussian
from gpx.testing.assertions import close
from gpx.testing.cases import KERNELS, points, targets

N = 15


def same(a, b, X):
    close(a.log_evidence(), b.log_evidence(), "log evidence", 1e-10)
    for of in ("y", "f"):
        p, q = a.predict(X, of=of), b.predict(X, of=of)
        close(p.mean, q.mean, f"mean of {of}", 1e-9)
        close(p.variance, q.variance, f"variance of {of}", 1e-9)
    close(a.loo().log_density, b.loo().log_density, "leave-one-out", 1e-9)


@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
@pytest.mark.parametrize("outputs", [None, 2], ids=["N", "NxP"])
@pytest.mark.parametrize("name", ["Matern12", "sum", "nested-columns", "gpytorch-scaled-columns"])
def test_update_is_refit(name, outputs, gaps):
    X, y = points(N), targets(points(N), outputs)
    if gaps:
        y[torch.arange(N) % 4 == 1] = torch.nan
        if outputs:
            y[9:12, 1] = torch.nan  # the columns shared a factor before the update, and do not after it
    whole = GP(KERNELS[name](), Gaussian(0.1), mean="zero").condition(X, y)
    parts = GP(KERNELS[name](), Gaussian(0.1), mean="zero").condition(X[:8], y[:8])
    for rows in (slice(8, 9), slice(9, 9), slice(9, N)):
        assert parts.update(X[rows], y[rows]) is parts
    same(parts, whole, points(6, seed=2))


def test_update_keeps_the_fitted_values_and_the_mean():
    X, y = points(N), targets(points(N))
    gp = GP(KERNELS["Matern52-ard"](), mean="linear").fit(X[:10], y[:10])
    before = {n: v.clone() for n, v in gp.kernel_.named_parameters()}
    shape, result = gp.posterior_.at_sites.clone(), gp.result_
    gp.update(X[10:], y[10:])
    assert gp.result_ is result
    assert all(torch.equal(before[n], v) for n, v in gp.kernel_.named_parameters())
    close(gp.posterior_.at_sites[:10], shape, "prior mean at the old points", 0.0)
    whole = GP(gp.kernel_, gp.likelihood_, mean="zero").condition(X, y - gp.mean_(X).detach().squeeze(-1))
    got, expected = gp.predict(X), whole.predict(X)
    close(got.mean, expected.mean + gp.mean_(X).squeeze(-1), "mean", 1e-9)
    close(got.variance, expected.variance, "variance", 1e-9)


def test_update_keeps_the_dtype():
    """float64 arrays for a float32 model."""
    X, y = points(N), targets(points(N))
    gp = (
        GP(KERNELS["Matern32"](), Gaussian(0.1))
        .condition(X[:9].float(), y[:9].float())
        .update(X[9:].numpy(), y[9:].numpy())
    )
    whole = GP(KERNELS["Matern32"](), Gaussian(0.1)).condition(X.float(), y.float())
    assert gp.predict(X).mean.dtype == torch.float32
    close(gp.predict(X).mean, whole.predict(X).mean, "mean", 1e-5)


def test_update_after_no_observed_target():
    X, y = points(6), targets(points(6))
    empty = GP(KERNELS["RBF"](), Gaussian(0.1), mean="zero").condition(X[:2], torch.full((2,), torch.nan))
    y[:2] = torch.nan
    same(empty.update(X[2:], y[2:]), GP(KERNELS["RBF"](), Gaussian(0.1), mean="zero").condition(X, y), X)


def test_save_after_update(tmp_path):
    X, y = points(N), targets(points(N))
    gp = GP(KERNELS["RBF"]()).fit(X[:9], y[:9]).update(X[9:], y[9:])
    gp.save(tmp_path / "m.gpx")
    got = gpx.load(tmp_path / "m.gpx").predict(points(4, seed=5))
    close(got.mean, gp.predict(points(4, seed=5)).mean, "mean after update, save and load", 1e-9)
