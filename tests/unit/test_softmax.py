"""Expectations of log-sum-exp and softmax: docs/theory/sites.md, section on softmax."""

from __future__ import annotations

import pytest
import torch

from gpx.linalg.softmax import expected_logsumexp, log_expected_softmax
from gpx.testing.assertions import close

LIKE = [(0.01, 0.01), (0.1, 0.3), (0.5, 0.7), (1.0, 1.0), (3.0, 1.0), (10.0, 10.0), (10.0, 1.0), (100.0, 100.0)]
UNLIKE = [(10.0, 0.01), (5.0, 0.1), (3.0, 0.01)]
Z = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
DENSITY = torch.exp(-0.5 * Z.square()) / torch.exp(-0.5 * Z.square()).sum()


def two(difference, sds):
    """Means and variances [1, 2] that are leaves."""
    mean = torch.tensor([[difference, 0.0]], dtype=torch.float64, requires_grad=True)
    return mean, torch.tensor([sds], dtype=torch.float64).square().requires_grad_()


def reference(mean, variance, function):
    """``E function(f_1 - f_2)``."""
    d = mean[0, 0] - mean[0, 1] + variance.sum().sqrt() * Z
    return (DENSITY * function(d)).sum()


@pytest.mark.parametrize(("sds", "tolerance"), [*((s, 3e-6) for s in LIKE), *((s, 1e-3) for s in UNLIKE)], ids=str)
@pytest.mark.parametrize("difference", [0.0, 1.3, -4.0, 30.0])
def test_two_classes_are_an_integral_over_their_difference(difference, sds, tolerance):
    mean, variance = two(difference, sds)
    value = expected_logsumexp(mean, variance)[0]
    expected = mean[0, 1] + reference(mean, variance, torch.nn.functional.softplus)
    close(value, expected, "E logsumexp", atol=tolerance)
    for i, what in enumerate(("means", "variances")):
        gradients = (torch.autograd.grad(v, (mean, variance)[i], retain_graph=True)[0] for v in (value, expected))
        close(*gradients, f"its gradient in the {what}", atol=3 * tolerance)
    share = log_expected_softmax(mean, variance)[0, 0].exp()
    close(share, reference(mean, variance, torch.sigmoid), "E softmax", atol=tolerance)


def test_three_classes_are_a_sum_over_a_lattice():
    node = torch.linspace(-6, 6, 61, dtype=torch.float64)
    log_weight = torch.log_softmax(-0.5 * node.square(), 0)
    mean, sd = torch.tensor([0.3, -1.0, 2.0]).double(), torch.tensor([0.8, 1.5, 0.4]).double()
    f = mean + sd * torch.cartesian_prod(node, node, node)
    weight = torch.cartesian_prod(log_weight, log_weight, log_weight).sum(1).exp()
    close(expected_logsumexp(mean, sd.square()), (weight * torch.logsumexp(f, 1)).sum(), "E logsumexp", 3e-6)
    close(log_expected_softmax(mean, sd.square()).exp(), weight @ torch.softmax(f, 1), "E softmax", 3e-6)


def test_derivatives_are_those_of_the_value_to_second_order():
    """Numbers are sums at nodes that are held: with the nodes far from their ends the value hardly depends on them."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    variance = 0.2 + 2 * torch.rand(3, 4, generator=generator, dtype=torch.float64)
    inputs = mean.requires_grad_(), variance.requires_grad_()
    assert torch.autograd.gradcheck(expected_logsumexp, inputs, atol=1e-5)
    assert torch.autograd.gradgradcheck(expected_logsumexp, inputs, atol=1e-4)


def test_rows_do_not_depend_on_each_other():
    generator = torch.Generator().manual_seed(1)
    mean = 3 * torch.randn(50, 2, 3, generator=generator, dtype=torch.float64)
    variance = torch.exp(2 * torch.randn(50, 2, 3, generator=generator, dtype=torch.float64))
    whole = expected_logsumexp(mean, variance)
    each = torch.stack([expected_logsumexp(m, v) for m, v in zip(mean, variance, strict=True)])
    close(whole, each, "rows one by one", 1e-12)
    assert expected_logsumexp(mean[:0], variance[:0]).shape == (0, 2)


def test_a_class_far_below_the_others_has_at_least_its_bound():
    """By Jensen's inequality ``log E softmax(f) >= E log softmax(f)``: finite, however improbable."""
    mean = torch.tensor([[0.0, -60.0], [0.0, -800.0]], dtype=torch.float64)
    variance = torch.ones(2, 2, dtype=torch.float64)
    value = log_expected_softmax(mean, variance)
    assert bool((value >= mean - expected_logsumexp(mean, variance)[:, None]).all()) and bool((value <= 1e-6).all())
