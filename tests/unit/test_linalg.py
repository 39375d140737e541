"""Numbers in, numbers out: factorisation, distances, periodogram, quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gpx import NumericalError
from gpx.linalg.cholesky import JITTER, Cholesky, factorise
from gpx.linalg.distance import squared_distance
from gpx.linalg.periodogram import dominant_periods
from gpx.linalg.quadrature import expectation, log_expectation_at_mode
from gpx.testing.assertions import close, gradients
from gpx.testing.cases import points


def spd(n, dtype=torch.float64, seed=0):
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return root @ root.mT + 0.1 * torch.eye(n, dtype=dtype)


def singular(n, rank=2, seed=0):
    """Rank deficient: rounding decides whether a factorisation without jitter breaks down."""
    root = torch.randn(n, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT


@pytest.mark.parametrize("n", [0, 1, 2, 17])
def test_what_a_factor_gives(n):
    A, b = spd(n), torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factor = factorise(A.clone)
    L = factor.lower.tril()
    close(L @ L.mT, A, "L L^T", 1e-13)
    close(factor.logdet(), torch.logdet(A), "log |A|", 1e-12)
    close(factor.solve(b), torch.linalg.solve(A, b), "A^-1 b", 1e-9)
    close(L @ factor.half_solve(b), b, "L^-1 b", 1e-12)
    inverse = factor.inverse()
    close(inverse.tril() + inverse.tril(-1).mT, torch.linalg.inv(A), "A^-1", 1e-9)
    assert factor.jitter == 0 and torch.equal(factor.lower.tril(), L), "solving leaves the factor alone"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_only_the_lower_triangle_is_read(dtype):
    A = spd(6, dtype)
    lower = A.tril() + torch.full_like(A, math.nan).triu(1)
    factor = factorise(lower.clone)
    close(factor.lower.tril(), torch.linalg.cholesky(A), "factor", 1e-5 if dtype == torch.float32 else 1e-13)
    close(factor.inverse().tril(), torch.linalg.inv(A).tril(), "inverse", 1e-3 if dtype == torch.float32 else 1e-9)
    assert factor.lower.dtype == dtype


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_jitter_is_relative(scale):
    """A singular matrix gets a share of its mean diagonal, the same at any scale."""
    A = singular(12) - 1e-9 * torch.eye(12, dtype=torch.float64) * float(singular(12).diagonal().mean())
    mean = float(A.diagonal().mean())
    factor = factorise(lambda: scale * A)
    assert factor.jitter == pytest.approx(1e-8 * mean * scale, rel=1e-6)
    L = factor.lower.tril()
    close(L @ L.mT, scale * (A + factor.jitter / scale * torch.eye(12)), "L L^T = A + jitter", 1e-12)


def test_jitter_escalates_to_its_limit_only():
    A = spd(5)
    shift = float(torch.linalg.eigvalsh(A)[0]) + 1e-3 * float(A.diagonal().mean())
    indefinite = A - shift * torch.eye(5, dtype=torch.float64)
    calls = []
    with pytest.raises(NumericalError, match="not positive definite, even with 1e-06 of its mean diagonal"):
        factorise(lambda: calls.append(1) or indefinite.clone())
    assert len(calls) == len(JITTER[torch.float64]) == 5
    assert max(JITTER[torch.float64]) == 1e-6 and max(JITTER[torch.float32]) == 1e-4


@pytest.mark.parametrize("place", [(0, 0), (3, 3), (3, 1)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_entries_that_are_not_finite(place, bad):
    A = spd(5)
    A[place] = bad
    with pytest.raises(NumericalError, match="NaN or infinite|not positive definite"):
        factorise(A.clone)


def test_other_dtypes():
    with pytest.raises(NumericalError, match=r"float16.*use float64 or float32"):
        factorise(lambda: spd(2).half())


@pytest.mark.parametrize("m", [0, 1, 4])
def test_extend(m):
    A = spd(7 + m)
    whole = factorise(A.clone)
    part = factorise(A[:7, :7].clone).extend(A[7:, :7], lambda: A[7:, 7:].clone())
    close(part.lower.tril(), whole.lower.tril(), "bordered factor", 1e-12)


def test_extend_records_the_jitter():
    A = spd(4)
    factor = Cholesky(factorise(A.clone).lower, 0.25)
    assert factor.extend(A[:1] * 0, lambda: torch.ones(1, 1, dtype=torch.float64)).jitter == 0.25


def test_squared_distance():
    a, b = points(5), points(4, seed=1)
    close(squared_distance(a, b), ((a[:, None] - b) ** 2).sum(-1), "by the formula", 1e-14)
    assert bool((squared_distance(a, a).diagonal() == 0).all())
    batch = torch.stack([a, 2 * a])
    close(squared_distance(batch, b), torch.stack([squared_distance(x, b) for x in batch]), "batches", 1e-14)
    assert squared_distance(a[:0], b).shape == (0, 4)


def test_squared_distance_is_differentiable_any_number_of_times():
    a, b = points(3).requires_grad_(), points(2, seed=1).requires_grad_()
    gradients(squared_distance, [a, b], "first derivative")
    torch.autograd.gradgradcheck(lambda x, y: squared_distance(x, y).square(), (a, b))
    batch = torch.stack([points(3), points(3, seed=4)]).requires_grad_()
    gradients(squared_distance, [batch, b], "a batch against one")
    same = a.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(squared_distance(same, same).exp().sum(), same)
    assert bool(slope.isfinite().all()), "coincident points"


def test_squared_distance_keeps_the_digits_of_close_pairs():
    far = torch.tensor([[1e8]], dtype=torch.float64)
    assert float(squared_distance(far, far + 1.0)) == 1.0
    (slope,) = torch.autograd.grad(squared_distance(far.requires_grad_(), far.detach() + 1.0).sum(), far)
    assert float(slope) == -2.0


@pytest.mark.parametrize("period", [3.7, 12.0, 55.0])
def test_periods_of_uneven_stamps(period):
    random = np.random.default_rng(0)
    t = np.sort(random.uniform(0, 300, 400))
    y = np.sin(2 * np.pi * t / period) + 0.5 * random.standard_normal(400) + 1e-4 * t**2
    found = dominant_periods(torch.from_numpy(t), torch.from_numpy(y), limit=1)
    assert found == [pytest.approx(period, rel=0.03)]


def test_several_periods_strongest_first():
    t = torch.arange(500.0, dtype=torch.float64)
    y = 2 * torch.sin(2 * math.pi * t / 30) + torch.sin(2 * math.pi * t / 7.0)
    assert dominant_periods(t, y, limit=2) == [pytest.approx(30, rel=0.03), pytest.approx(7, rel=0.03)]


def test_periods_do_not_depend_on_units_order_or_gaps():
    t = torch.arange(200.0, dtype=torch.float64)
    y = torch.sin(2 * math.pi * t / 9.3)
    (expected,) = dominant_periods(t, y, limit=1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert dominant_periods(t[order], y[order], limit=1) == [pytest.approx(expected, rel=1e-9)]
    assert dominant_periods(1e6 * t + 1e9, 1e-6 * y + 3, limit=1) == [pytest.approx(1e6 * expected, rel=1e-6)]
    missing = torch.where(torch.arange(200) % 5 == 0, torch.nan, y)
    assert dominant_periods(t, missing, limit=1) == [pytest.approx(9.3, rel=0.02)]


def test_white_noise_has_no_period():
    """At most one false alarm in 1,000: among 200 series, more than 4 have a probability of 2e-6."""
    t = torch.arange(100.0, dtype=torch.float64)
    alarms = 0
    for seed in range(200):
        noise = torch.randn(100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        alarms += bool(dominant_periods(t, noise))
    assert alarms <= 4


@pytest.mark.parametrize("t", [[], [1.0], [1.0, 2.0], [1.0] * 50, list(range(8))], ids=len)
def test_too_few_stamps_have_no_period(t):
    t = torch.tensor(t, dtype=torch.float64)
    assert dominant_periods(t, t.sin()) == []
    assert dominant_periods(torch.arange(50.0), torch.ones(50)) == []
    assert dominant_periods(torch.arange(50.0), torch.full((50,), torch.nan)) == []


@pytest.mark.parametrize("power", range(12))
def test_quadrature_of_normal_moments(power):
    """Wherever the nodes crowd."""
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    centre, width = torch.tensor([0.0, 5.0, -300.0], dtype=torch.float64), torch.tensor([1.0, 0.01, 3.0]).double()
    moment = expectation(lambda f: f**power, zero, one, centre, width)
    expected = 0.0 if power % 2 else float(math.prod(range(1, power, 2)))
    close(moment, expected * one, f"E x^{power}", atol=1e-4 * max(1.0, expected) if power > 4 else 1e-7)


@pytest.mark.parametrize("sd", [1e-3, 0.3, 2.0, 10.0])
def test_quadrature_of_exponentials(sd):
    """``log E exp(a f) = a m + a^2 v / 2``: the bulk is a v away from the mean."""
    mean = torch.tensor([-8.0, 0.0, 8.0], dtype=torch.float64, requires_grad=True)
    variance = torch.full((3,), sd**2, dtype=torch.float64, requires_grad=True)
    value = log_expectation_at_mode(lambda f: 2 * f, mean, variance)
    close(value, 2 * mean + 2 * variance, "log E exp(2 f)", 1e-10)
    grads = torch.autograd.grad(value.sum(), (mean, variance))
    close(grads[0], [2.0] * 3, "in the mean", 1e-8)
    close(grads[1], [2.0] * 3, "in the variance", 1e-7)


def test_quadrature_at_a_variance_of_zero():
    """``d / dv E g(f) = g'' / 2``, at v = 0 too."""
    mean, one = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64)
    variance = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    value = expectation(torch.sin, mean, variance, mean.detach(), one)
    grads = torch.autograd.grad(value.sum(), (mean, variance))
    close(value, mean.sin(), "value", 1e-9)
    close(grads[0], mean.cos(), "in the mean", 1e-8)
    close(grads[1], -0.5 * mean.sin(), "in the variance", 1e-4)


def test_quadrature_of_a_bump_in_the_tail():
    """A feature a thousand times narrower than the Gaussian."""
    mean, variance = torch.zeros(1, dtype=torch.float64), torch.full((1,), 100.0, dtype=torch.float64)
    centre = torch.full((1,), 7.0, dtype=torch.float64)
    bump = lambda f: -0.5 * ((f - 7) / 0.01) ** 2  # noqa: E731
    expected = 0.5 * math.log(0.0001 / 100.0001) - 0.5 * 49 / 100.0001
    close(log_expectation_at_mode(bump, mean, variance, centre), [expected], "log E bump, by its mode", 1e-9)
