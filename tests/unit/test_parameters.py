"""`set`, bounds, priors, fixed values: what the user says is kept, what is wrong is refused with advice."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior

from gpx import GP, InputError
from gpx.inference.coordinates import Coordinates
from gpx.inputs import as_data
from gpx.kernels import RBF, Constant, Linear, Matern
from gpx.likelihoods import Gaussian
from gpx.parameters import LogInterval, format_value
from gpx.testing.assertions import close, copies
from gpx.testing.cases import points, targets

X, Y = points(25), targets(points(25))


def value(module, name):
    return getattr(module, name).detach()


def test_a_number_is_a_start():
    kernel = RBF().set(lengthscale=0.3)
    assert float(value(kernel, "lengthscale")) == pytest.approx(0.3, rel=1e-15)
    assert kernel.choices["lengthscale"].given and not kernel.choices["outputscale"].given


def test_set_returns_the_kernel_and_takes_several():
    kernel = RBF()
    assert kernel.set(lengthscale=dict(init=0.3, bounds=(0.1, 1.0)), outputscale=dict(fixed=True)) is kernel
    assert not kernel.raw_outputscale.requires_grad
    kernel.set(outputscale=dict(fixed=False))
    assert kernel.raw_outputscale.requires_grad


@pytest.mark.parametrize(("choices", "advice"), [
    (dict(width=1.0), "no parameter 'width'.*lengthscale, outputscale"),
    (dict(lengthscale=dict(start=1.0)), "start.*known keys are init, bounds, prior and fixed"),
    (dict(lengthscale=-1.0), "positive and finite"),
    (dict(lengthscale=dict(init=math.nan)), "positive and finite"),
    (dict(lengthscale=dict(bounds=(2.0, 1.0))), "lower < upper"),
    (dict(lengthscale=dict(bounds=(-1.0, 1.0))), "0 <= lower"),
    (dict(lengthscale=dict(bounds=(1.0, 1.0))), "lower < upper"),
    (dict(lengthscale=dict(bounds=(math.nan, 1.0))), "lower < upper"),
    (dict(lengthscale=dict(init=5.0, bounds=(0.1, 1.0))), "outside its bounds"),
    (dict(lengthscale=dict(prior=(0.0, 1.0))), "gpytorch.priors.Prior"),
    (dict(lengthscale="long"), "lengthscale"),
    (dict(lengthscale=dict(bounds=3.0)), "pair .lower, upper., got 3.0"),
    (dict(lengthscale=dict(bounds=(1.0, 2.0, 3.0))), "pair .lower, upper."),
], ids=str)  # fmt: skip
def test_set_refuses(choices, advice):
    with pytest.raises(InputError, match=advice):
        RBF().set(**choices)


def test_composites_have_no_own_parameters():
    with pytest.raises(InputError, match=r"kernels\[0\]\.set"):
        (RBF() + Linear()).set(lengthscale=1.0)


def test_an_init_outside_of_earlier_bounds_is_refused():
    kernel = RBF().set(lengthscale=dict(bounds=(0.1, 1.0)))
    with pytest.raises(InputError, match="outside its bounds"):
        kernel.set(lengthscale=5.0)


def test_bounds_hold_during_and_after_the_fit():
    free = GP(Matern(ard=True)).fit(X, Y)
    best = float(value(free.kernel_, "lengthscale")[0, 0])
    kernel = Matern(ard=True).set(lengthscale=dict(bounds=(0.01 * best, 0.5 * best)))
    gp = GP(kernel).fit(X, Y)
    inside = value(gp.kernel_, "lengthscale")
    assert bool((inside <= 0.5 * best * (1 + 1e-12)).all()) and bool((inside >= 0.01 * best * (1 - 1e-12)).all())
    assert "kernel.lengthscale[0]" in gp.result_.at_bounds
    row = gp.parameters()["kernel.lengthscale[0]"]
    assert row.at_bound and math.isnan(row.standard_error)
    assert (row.lower, row.upper) == (pytest.approx(0.01 * best), pytest.approx(0.5 * best))
    assert "at bound" in str(gp.parameters()) and "kernel.lengthscale[0]" in str(gp.result_)


@pytest.mark.parametrize("bounds", [(0.25, 0.5), (1e-3, 1e3)])
def test_bounds_without_a_value_move_the_start_inside(bounds):
    kernel = RBF().set(lengthscale=dict(bounds=bounds))
    kernel.init_from(as_data(1e4 * X, Y))
    assert bounds[0] <= float(value(kernel, "lengthscale")) <= bounds[1]


def test_fixed_values_do_not_move():
    kernel = Matern(lengthscale=0.37).set(lengthscale=dict(fixed=True))
    gp = GP(kernel, Gaussian(0.02).set(noise=dict(fixed=True)), mean="zero").fit(X, Y)
    assert torch.equal(value(gp.kernel_, "lengthscale"), value(kernel, "lengthscale"))
    assert float(value(gp.likelihood_, "noise")) == pytest.approx(0.02, rel=1e-14)
    row = gp.parameters()["kernel.lengthscale"]
    assert row.fixed and not row.at_bound and row.value == pytest.approx(0.37)
    assert [r.name for r in gp.parameters() if not r.fixed] == ["kernel.outputscale"]


def test_fixing_without_a_value_keeps_the_default():
    gp = GP(RBF().set(outputscale=dict(fixed=True))).fit(X, Y)
    assert float(value(gp.kernel_, "outputscale")) == 1.0


def test_everything_fixed_is_nothing_to_learn():
    kernel = RBF(0.5, 1.0).set(lengthscale=dict(fixed=True), outputscale=dict(fixed=True))
    gp = GP(kernel, Gaussian(0.1).set(noise=dict(fixed=True)), mean="zero").fit(X, Y)
    assert gp.result_.converged and gp.result_.reason == "nothing to learn"
    assert gp.result_.objective == pytest.approx(gp.log_evidence(), rel=1e-14)
    same = GP(RBF(0.5, 1.0), Gaussian(0.1), mean="zero").condition(X, Y)
    close(gp.predict(X).mean, same.predict(X).mean, "a fit that learns nothing is a condition", 0.0)


def test_a_strong_prior_decides():
    kernel = RBF().set(lengthscale=dict(prior=LogNormalPrior(math.log(0.05), 1e-4)))
    gp = GP(kernel).fit(X, Y)
    assert float(value(gp.kernel_, "lengthscale")) == pytest.approx(0.05, rel=1e-2)
    assert "LogNormal" in gp.parameters()["kernel.lengthscale"].prior


def test_priors_are_on_log_values_where_positive():
    """LogNormal(m, s) adds N(log value; m, s^2): its maximum is at its median, exp(m)."""
    kernel = RBF(0.3).set(lengthscale=dict(prior=LogNormalPrior(-1.0, 0.5)))
    coordinates = Coordinates([("kernel", kernel)])
    expected = torch.distributions.Normal(-1.0, 0.5).log_prob(torch.tensor(math.log(0.3)))
    close(coordinates.log_prior(), expected, "log prior in log coordinates", 1e-6)
    kernel.set(lengthscale=dict(prior=GammaPrior(3.0, 6.0)))
    expected = torch.distributions.Gamma(3.0, 6.0).log_prob(torch.tensor(0.3)) + math.log(0.3)
    close(coordinates.log_prior(), expected, "a Gamma prior with its Jacobian", 1e-6)


def test_priors_of_fixed_values_do_not_count():
    kernel = RBF(0.3).set(lengthscale=dict(prior=LogNormalPrior(-1.0, 0.5), fixed=True))
    assert float(Coordinates([("kernel", kernel)]).log_prior()) == 0.0


def test_priors_of_values_of_either_sign():
    mean = gpytorch.means.ConstantMean(constant_prior=NormalPrior(100.0, 1e-3))
    gp = GP(RBF(), mean=mean).fit(X, Y)
    assert float(gp.mean_.constant.detach()) == pytest.approx(100.0, abs=0.1)


def test_priors_of_gpytorch_kernels_count():
    base = gpytorch.kernels.RBFKernel(lengthscale_prior=LogNormalPrior(math.log(0.05), 1e-4))
    gp = GP(gpytorch.kernels.ScaleKernel(base)).fit(X, Y)
    assert float(gp.kernel_.base_kernel.lengthscale.detach()) == pytest.approx(0.05, rel=1e-2)


def test_constraints_of_gpytorch_kernels_hold():
    base = gpytorch.kernels.RBFKernel(lengthscale_constraint=gpytorch.constraints.Interval(0.01, 0.1))
    gp = GP(gpytorch.kernels.ScaleKernel(base)).fit(X, Y)
    assert 0.01 <= float(gp.kernel_.base_kernel.lengthscale.detach()) <= 0.1


def test_weak_priors_are_dropped_and_own_ones_stay():
    own = LogNormalPrior(0.0, 1.0)
    kernel = Matern().set(outputscale=dict(prior=own))
    gp = GP(kernel).fit(X, Y, priors=None)
    assert gp.parameters()["kernel.lengthscale"].prior == ""
    assert gp.parameters()["kernel.outputscale"].prior == "LogNormal(0, 1)"
    assert math.isfinite(gp.result_.log_prior) and gp.result_.log_prior != 0
    assert GP(Matern()).fit(X, Y, priors=None).result_.log_prior == 0
    weak = GP(Matern()).fit(X, Y)
    assert "LogNormal" in weak.parameters()["kernel.lengthscale"].prior and weak.result_.log_prior != 0


def test_a_second_fit_starts_from_the_users_words_again():
    """Starts, bounds and priors of one data set do not leak into the next: the arguments are copied."""
    gp = GP(Matern()).fit(1e6 * X, Y)
    gp.fit(X, Y)
    once = GP(Matern()).fit(X, Y)
    close(gp.predict(X).mean, once.predict(X).mean, "the second fit", 0.0)
    assert [tuple(r) if isinstance(r, tuple) else r for r in gp.parameters()][0].upper == once.parameters()[0].upper


def test_values_of_either_sign_may_be_bounded():
    kernel = Linear().set(center=dict(bounds=(-0.5, 0.25), fixed=False))
    gp = GP(kernel, mean="zero").fit(X, Y)
    center = value(gp.kernel_, "center")
    assert bool((center >= -0.5).all()) and bool((center <= 0.25).all())
    row = gp.parameters()["kernel.center[0]"]
    assert (row.lower, row.upper) == (pytest.approx(-0.5), pytest.approx(0.25))


def test_a_new_shape_replaces_the_parameter():
    kernel = RBF()
    kernel.lengthscale = [[0.1, 0.2, 0.3]]
    close(kernel.lengthscale, [[0.1, 0.2, 0.3]], "values", 1e-14)
    assert len(list(kernel.parameters())) == 2
    close(kernel.matrix(X), RBF([0.1, 0.2, 0.3]).matrix(X), "matrix", 1e-14)


def test_choices_survive_copies():
    kernel = RBF(0.3).set(lengthscale=dict(bounds=(0.1, 1.0), prior=GammaPrior(2.0, 3.0)), outputscale=dict(fixed=True))
    for how, other in copies(kernel).items():
        assert other.choices == kernel.choices, how
        assert float(other.raw_lengthscale_constraint.upper_bound) == 1.0, how
        assert isinstance(other.lengthscale_prior, GammaPrior), how
        assert not other.raw_outputscale.requires_grad, how
        other.set(outputscale=2.0)
        assert not kernel.choices["outputscale"].given, "copies are independent"


def test_gpytorch_may_sample_and_set_through_priors():
    """gpytorch's own closures read and write natural values."""
    kernel = RBF().set(lengthscale=dict(prior=GammaPrior(2.0, 3.0)))
    (_, module, prior, read, write), *_ = kernel.named_priors()
    assert torch.equal(read(module), kernel.lengthscale)
    write(module, torch.tensor(0.7))
    assert float(value(kernel, "lengthscale")) == pytest.approx(0.7)
    assert isinstance(prior, GammaPrior)


def test_the_interval_of_logarithms():
    interval = LogInterval(0.1, 10.0)
    raw = torch.linspace(-2, 2, 5, dtype=torch.float64)
    close(interval.transform(raw), raw.exp(), "transform")
    close(interval.inverse_transform(raw.exp()), raw, "inverse", 1e-14)
    assert float(interval.lower_bound) == 0.1, "not rounded to float32"


def test_format():
    assert format_value(torch.tensor([[1.0, 0.123456]])) == "[1, 0.1235]"
    assert format_value(torch.tensor(1e-7)) == "1e-07"


@pytest.mark.parametrize("kernel", [RBF(), Matern() + Constant(), Linear(ard=True)], ids=repr)
def test_coordinates_round_trip(kernel):
    """read -> assign -> read is the identity, and the gradient in coordinates is the chain rule."""
    data = as_data(X, Y)
    kernel.bind(data.columns)
    kernel.init_from(data)
    coordinates = Coordinates([("kernel", kernel)])
    z = coordinates.read()
    coordinates.assign(z + 0.3)
    close(coordinates.read(), z + 0.3, "round trip", 1e-12)
    assert len(coordinates.labels()) == len(z) == len(coordinates.bounds()) == len(coordinates.values())


def test_gradients_in_coordinates():
    """For logarithms, gpytorch's softplus and plain values: central differences of the objective in z."""
    modules = [
        ("kernel", gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()),
        ("likelihood", Gaussian(0.2)),
        ("mean", gpytorch.means.LinearMean(3).double()),
    ]
    coordinates = Coordinates(modules)

    def objective():
        kernel, likelihood, mean = (m for _, m in modules)
        scale, lengthscale = kernel.outputscale, kernel.base_kernel.lengthscale.sum()
        return scale.square() + lengthscale.log() * scale + likelihood.noise.log() ** 2 + mean(X).square().sum()

    z = coordinates.read() + 0.1
    coordinates.assign(z)
    grads = torch.autograd.grad(objective(), coordinates.raws)
    analytic = coordinates.gradient(z, grads)
    numeric = []
    for i in range(len(z)):
        values = []
        for sign in (1, -1):
            moved = z.copy()
            moved[i] += sign * 1e-6
            coordinates.assign(moved)
            values.append(float(objective().detach()))
        numeric.append((values[0] - values[1]) / 2e-6)
    close(analytic, numeric, "gradient in coordinates", 1e-6)
