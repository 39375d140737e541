"""The kits of `gpx.testing` find what is broken: one class per law, wrong in that law only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from gpx.engines import Exact
from gpx.kernels import RBF, Linear, Matern
from gpx.kernels.base import Kernel, Value
from gpx.likelihoods import Gaussian
from gpx.sites import Sites
from gpx.structure import FeatureMap, feature_map
from gpx.testing import DenseGP, check_engine, check_kernel, check_likelihood, check_structure
from gpx.testing.assertions import close, finite, gradients, mean_is
from gpx.testing.kernels import _copies

# ------------------------------------------------------------------------------------------------ kernels


class Base(Kernel):
    """An RBF kernel, to be broken."""

    lengthscale = Value(1.0)

    def __init__(self):
        super().__init__()
        self.declare("lengthscale", None)

    def _init_from(self, data):
        self.start("lengthscale", float(data.spread[0]))

    def square(self, x1, x2):
        return ((x1.unsqueeze(-2) - x2.unsqueeze(-3)) / self.lengthscale).square().sum(-1)

    def forward(self, x1, x2, diag=False, **params):
        if diag:
            return torch.ones_like(x1[..., 0]) * self.lengthscale**0
        return torch.exp(-0.5 * self.square(x1, x2))


class Asymmetric(Base):
    def forward(self, x1, x2, diag=False, **params):
        if diag:
            return super().forward(x1, x2, True)
        return super().forward(x1, x2) * torch.exp(1e-3 * (x1.sum(-1).unsqueeze(-1) - x2.sum(-1).unsqueeze(-2)))


class Negative(Base):
    def forward(self, x1, x2, diag=False, **params):
        return super().forward(x1, x2, diag) if diag else 2 - torch.exp(-self.square(x1, x2))


class WrongDiagonal(Base):
    def forward(self, x1, x2, diag=False, **params):
        return 2 * super().forward(x1, x2, diag) if diag else super().forward(x1, x2)


class NanSlope(Base):
    """The usual mistake: a distance by square root."""

    def forward(self, x1, x2, diag=False, **params):
        return super().forward(x1, x2, True) if diag else torch.exp(-self.square(x1, x2).sqrt())


class WrongSlope(Base):
    def forward(self, x1, x2, diag=False, **params):
        if diag:
            return super().forward(x1, x2, True)
        square = self.square(x1, x2)
        return torch.exp(-0.5 * (2 * square - square.detach()))  # the right value, twice the slope


class NoBatches(Base):
    def square(self, x1, x2):
        return ((x1.reshape(-1, 1, x1.shape[-1]) - x2.reshape(1, -1, x2.shape[-1])) / self.lengthscale).square().sum(-1)


class SelectsTwice(Base):
    def forward(self, x1, x2, diag=False, **params):
        if self.active_dims is not None:
            x1, x2 = (x.roll(1, -1) * torch.arange(1.0, x.shape[-1] + 1) for x in (x1, x2))
        return super().forward(x1, x2, diag)


class Forgets(Base):
    """A value that copies lose."""

    def __deepcopy__(self, memo):
        return type(self)()


class StartsBadly(Base):
    def _init_from(self, data):
        self.raw_lengthscale.data.fill_(float(data.y.log().sum()))


BROKEN_KERNELS = [
    (Asymmetric, "symmetric"), (Negative, "positive semidefinite"), (WrongDiagonal, "diagonal"),
    (NanSlope, "derivatives of the matrix|gradients at coincident points"), (WrongSlope, "derivatives of the matrix"),
    (NoBatches, "a batch of inputs"), (SelectsTwice, "active_dims are applied exactly once"), (StartsBadly, "init_from on"),
]  # fmt: skip


def test_the_kernel_that_is_broken_below_is_whole():
    check_kernel(Base())


@pytest.mark.parametrize(("kernel", "law"), BROKEN_KERNELS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_broken_kernels_are_found(kernel, law):
    with pytest.raises(AssertionError, match=law):
        check_kernel(kernel())


def test_a_copy_that_forgets_is_found():
    kernel = Forgets()
    kernel.lengthscale = 0.3
    with pytest.raises(AssertionError, match="deepcopy gives the same matrix"):
        _copies(kernel, torch.rand(3, 1, dtype=torch.float64))


def test_a_kernel_that_is_checked_does_not_change():
    kernel = RBF(0.3)
    check_kernel(kernel)
    assert repr(kernel) == repr(RBF(0.3)) and not list(kernel.named_priors())


# ------------------------------------------------------------------------------------------------ structures


def test_biased_features_are_found():
    class Biased(RBF):
        pass

    class Inexact(Linear):
        pass

    def shrunk(kernel, size, dims, draws):
        true = feature_map(RBF(0.5), size, dims, draws)
        return FeatureMap(true.size, lambda x: 0.98 * true(x), False)

    feature_map.register(Biased, shrunk)
    with pytest.raises(AssertionError, match="unbiased feature map.*standard errors"):
        check_structure(Biased(0.5))
    feature_map.register(Inexact, lambda k, size, dims, draws: FeatureMap(3, lambda x: x * (1 + 1e-6), True))
    with pytest.raises(AssertionError, match="exact feature map"):
        check_structure(Inexact())


def test_features_that_change_are_found():
    class Restless(RBF):
        pass

    feature_map.register(
        Restless,
        lambda k, size, dims, draws: FeatureMap(
            2, lambda x: torch.randn(len(x), 2, generator=draws.generator).double(), False
        ),
    )
    with pytest.raises(AssertionError, match="fixed function"):
        check_structure(Restless())


# ------------------------------------------------------------------------------------------------ engines


@dataclass(frozen=True)
class Wrapped:
    """Exact inference on sites that are tampered with."""

    def plan(self, prior, data):
        return Exact().plan(prior, data)

    def parameters(self, prior, plan):
        return {}

    def condition(self, prior, plan, params, sites):
        return Exact().condition(prior, plan, params, self.change(sites))

    def change(self, sites):
        return sites


class SeesMissing(Wrapped):
    def change(self, sites):
        return Sites(sites.nu, sites.tau.clamp_min(1e-3))


class OrderMatters(Wrapped):
    def change(self, sites):
        return Sites(sites.nu * torch.linspace(1, 1 + 1e-6, len(sites.nu), dtype=torch.float64)[:, None], sites.tau)


class ExtraNoise(Wrapped):
    def change(self, sites):
        return Sites(sites.nu / (1 + 1e-6 * sites.tau), sites.tau / (1 + 1e-6 * sites.tau))


class NoGradient(Wrapped):
    def change(self, sites):
        return Sites(sites.nu, sites.tau.detach())


class Changed(Wrapped):
    """Its posterior says another thing in one method."""

    method = ""

    def condition(self, prior, plan, params, sites):
        posterior = Exact().condition(prior, plan, params, sites)
        broken = type("Broken", (type(posterior),), {self.method: self.broken(getattr(type(posterior), self.method))})
        return broken(*(getattr(posterior, f) for f in posterior.__dataclass_fields__))


class StaleUpdate(Changed):
    method = "update"

    def broken(self, original):
        return lambda posterior, x, sites: original(posterior, x, Sites(0.999 * sites.nu, sites.tau))


class FunctionVariances(Changed):
    """Leave-one-out of f instead of y."""

    method = "leave_one_out"

    def broken(self, original):
        def leave_one_out(posterior):
            mean, variance = original(posterior)
            return mean, variance - 1 / posterior.sites.tau

        return leave_one_out


class UnseededSamples(Changed):
    method = "sample"

    def broken(self, original):
        return lambda posterior, x, n, generator: original(posterior, x, n, torch.default_generator)


BROKEN_ENGINES = [
    (SeesMissing, "log density"), (OrderMatters, "log density"), (ExtraNoise, "log density"), (NoGradient, "precisions|differentiated"),
    (StaleUpdate, "update equals conditioning"), (FunctionVariances, "leave-one-out variance"), (UnseededSamples, "sample"),
]  # fmt: skip


def test_a_wrapped_engine_is_whole():
    check_engine(Wrapped())


@pytest.mark.parametrize(("engine", "law"), BROKEN_ENGINES, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_broken_engines_are_found(engine, law):
    with pytest.raises((AssertionError, RuntimeError), match=law):
        check_engine(engine(), [Matern(nu=1.5)])


# ------------------------------------------------------------------------------------------------ likelihoods


class WrongTilted(Gaussian):
    def tilted(self, y, mean, variance, power=1.0):
        return super().tilted(y, mean, 1.001 * variance, power)


class WrongExpectation(Gaussian):
    def expected_log_prob(self, y, mean, variance):
        return self.log_prob(y, mean)


class NoiselessPrediction(Gaussian):
    def predict(self, mean, variance, noise=None):
        return Normal(mean, variance.sqrt())


class LooseSites(Gaussian):
    def exact_sites(self, data):
        exact = super().exact_sites(data)
        return replace(exact, tau=1.01 * exact.tau)


class DetachedNoise(Gaussian):
    def log_prob(self, y, f):
        return Normal(f, self.noise.detach().sqrt()).log_prob(y)


@pytest.mark.parametrize(("likelihood", "law"), [
    (WrongTilted, "tilted is its integral"), (WrongExpectation, "expected_log_prob is its integral"),
    (NoiselessPrediction, "predict is the density of tilted"), (LooseSites, "gives the exact precisions in one step"),
    (DetachedNoise, "derivatives of log_prob"),
], ids=lambda v: v if isinstance(v, str) else v.__name__)  # fmt: skip
def test_broken_likelihoods_are_found(likelihood, law):
    with pytest.raises(AssertionError, match=law):
        check_likelihood(likelihood(0.3))


# ------------------------------------------------------------------------------------------------ assertions


def test_close():
    close([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], "equal")
    close(torch.ones(2, requires_grad=True), [1.0, 1.0], "equal")
    close([], [], "nothing")
    for actual, expected in (
        ([1.0], [1.0 + 1e-8]), ([1.0], [[1.0]]), ([np.nan], [1.0]), ([1.0], [np.nan]), ([np.inf], [1.0]), ([-np.inf], [np.inf]),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="the law"):
            close(actual, expected, "the law")


def test_finite():
    finite([torch.ones(2), None], "fine")
    with pytest.raises(AssertionError, match="the law: not finite"):
        finite(torch.tensor([1.0, torch.nan]), "the law")


def test_gradients_of_things_that_are_moved():
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    gradients(lambda x, _: weight.sin() * x, [x, weight], "right")
    with pytest.raises(AssertionError, match="wrong"):
        gradients(lambda x, _: weight.sin().detach() * x, [x, weight], "wrong")


def test_means_of_draws():
    draws = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean_is(draws, torch.zeros(3, dtype=torch.float64), "right")
    with pytest.raises(AssertionError, match=r"wrong: the mean of 500 draws is .* standard errors"):
        mean_is(draws, torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64), "wrong")
    mean_is(torch.ones(9, 1), torch.ones(1), "no spread, no difference")
    with pytest.raises(AssertionError):
        mean_is(torch.ones(9, 1), torch.full((1,), 1.001), "no spread, but a difference")


def test_false_alarms_are_as_rare_as_stated():
    """At 5 %: among 2,000 true laws of 4 entries, at most 5 % alarms, plus 5 standard deviations."""
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(2000):
        try:
            mean_is(torch.randn(30, 4, generator=generator), torch.zeros(4), "true", false_alarm=0.05)
        except AssertionError:
            alarms += 1
    assert 30 <= alarms <= 100 + 5 * (2000 * 0.05 * 0.95) ** 0.5


def test_the_reference_is_the_textbook():
    """Two points by hand."""
    K = np.array([[2.0, 1.0], [1.0, 2.0]])
    gp = DenseGP(K, np.array([1.0, -1.0]), noise=1.0)
    assert gp.log_evidence() == pytest.approx(-0.5 * np.log((2 * np.pi) ** 2 * 8) - 0.5 * 1.0)
    mean, covariance = gp.predict(K, K)
    np.testing.assert_allclose(mean, [0.5, -0.5])
    np.testing.assert_allclose(covariance, K - K @ np.linalg.inv(K + np.eye(2)) @ K)
    loo_mean, loo_variance = gp.leave_one_out()
    np.testing.assert_allclose(loo_mean, [-1 / 3, 1 / 3])
    np.testing.assert_allclose(loo_variance, [3 - 1 / 3] * 2)
    step = 1e-6
    moved = DenseGP(K + step * np.eye(2), gp.y, 1.0)
    assert gp.evidence_gradient(np.eye(2)) == pytest.approx((moved.log_evidence() - gp.log_evidence()) / step, abs=1e-5)
    shifted = DenseGP(K, gp.y, 1.0, mean=np.array([step, 0.0]))
    expected = (shifted.log_evidence() - gp.log_evidence()) / step
    assert gp.evidence_gradient(dmean=np.array([1.0, 0.0])) == pytest.approx(expected, abs=1e-5)
    gaps = DenseGP(K, np.array([1.0, np.nan]), 1.0)
    assert gaps.log_evidence() == pytest.approx(-0.5 * np.log(2 * np.pi * 3) - 0.5 / 3)
