"""`GP`: the contract of the one user class."""

from __future__ import annotations

import copy

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch

import gpx
from gpx import GP, InputError, StructureError
from gpx.kernels import RBF, Linear, Matern, Periodic
from gpx.likelihoods import Gaussian
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets

X, Y, NEW = points(15), targets(points(15)), points(4, seed=3)


def test_the_public_names():
    from gpx import datasets, engines, kernels, likelihoods, objectives, rules

    for name in ("GP", "InputError", "NumericalError", "StructureError", "explain", "load", "register", *gpx.__all__):
        assert hasattr(gpx, name), name
    assert gpx.errors.InputError is InputError
    assert issubclass(gpx.InputError, ValueError) and issubclass(gpx.StructureError, TypeError)
    assert issubclass(gpx.NumericalError, RuntimeError)
    for module, names in (
        (kernels, "RBF Matern Periodic RationalQuadratic Cosine Linear Constant matrix"), (likelihoods, "Gaussian"),
        (engines, "Exact"), (rules, "Variational"), (objectives, "Evidence LeaveOneOut"), (datasets, "load names"),
    ):  # fmt: skip
        assert all(hasattr(module, n) for n in names.split())


def test_methods_return_self():
    gp = GP(RBF())
    assert gp.fit(X, Y) is gp and gp.condition(X, Y) is gp and gp.update(NEW, targets(NEW)) is gp


def test_fitted_attributes_end_in_an_underscore():
    gp = GP(RBF()).fit(X, Y)
    for name in ("kernel_", "likelihood_", "mean_", "engine_", "posterior_", "result_"):
        assert getattr(gp, name) is not None, name
    assert isinstance(gp.likelihood_, Gaussian) and gp.likelihood is None
    assert gp.engine_ == gpx.engines.Exact() and gp.engine == "auto" and gp.mean == "constant"
    assert GP(RBF()).condition(X, Y).result_ is None


def test_constructor_arguments_are_untouched():
    kernel, likelihood, mean = Matern() + RBF(active_dims=["b"]), Gaussian(0.3), gpytorch.means.ConstantMean()
    before = copy.deepcopy((kernel.state_dict(), likelihood.state_dict(), mean.state_dict()))
    shown = repr(kernel), repr(likelihood)
    frame = pd.DataFrame(X.numpy(), columns=list("abc"))
    gp = GP(kernel, likelihood, mean=mean).fit(frame, Y)
    assert gp.kernel is kernel and gp.likelihood is likelihood and gp.mean is mean
    assert (repr(kernel), repr(likelihood)) == shown
    for module, state in zip((kernel, likelihood, mean), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None for m in (kernel, likelihood, mean) for p in m.parameters())
    assert not list(kernel.named_priors()) and kernel.kernels[1].active_dims is None


def test_condition_learns_nothing():
    kernel, likelihood = Matern(0.5, 0.3, 1.7), Gaussian(0.2)
    gp = GP(kernel, likelihood).condition(X, Y)
    for fitted, given in ((gp.kernel_, kernel), (gp.likelihood_, likelihood)):
        assert fitted is not given
        assert all(torch.equal(v, given.state_dict()[k]) for k, v in fitted.state_dict().items())


def test_condition_uses_the_documented_defaults():
    """Values left out: 1, noise 0.1, mean 0."""
    a = GP(RBF()).condition(X, Y)
    b = GP(RBF(lengthscale=1.0, outputscale=1.0), Gaussian(0.1), mean="zero").condition(X, Y)
    assert a.log_evidence() == b.log_evidence()


def test_condition_after_a_fit_starts_from_the_arguments():
    gp = GP(RBF()).fit(X, Y)
    assert gp.condition(X, Y).log_evidence() == GP(RBF()).condition(X, Y).log_evidence()
    assert gp.result_ is None


@pytest.mark.parametrize(("shape", "outputs"), [((15,), ()), ((15, 1), (1,)), ((15, 3), (3,))])
def test_results_have_the_shape_of_the_targets(shape, outputs):
    y = targets(X, outputs[0] if outputs else None).reshape(shape)
    gp = GP(RBF()).fit(X, y)
    for of in ("y", "f"):
        p = gp.predict(NEW, of=of)
        for value in (p.mean, p.variance, p.std, *p.interval(), p.log_prob(torch.zeros(4, *outputs))):
            assert value.shape == (4, *outputs)
        assert p.sample(2).shape == (2, 4, *outputs)
    assert gp.sample(NEW, 2).shape == gp.paths(2)(NEW).shape == (2, 4, *outputs)
    loo = gp.loo()
    assert loo.mean.shape == loo.variance.shape == loo.log_density.shape == y.shape
    assert gp.check().residuals.shape == y.shape
    assert isinstance(gp.log_evidence(), float)


def test_one_input_dimension_in_two_shapes():
    x, y = X[:, 0], Y
    a, b = GP(RBF()).fit(x, y), GP(RBF()).fit(x.unsqueeze(1), y)
    assert torch.equal(a.predict(x).mean, b.predict(x.unsqueeze(1)).mean)
    assert torch.equal(a.predict(x.unsqueeze(1)).mean, b.predict(x).mean)


def test_outputs_are_separate_problems_with_shared_hyperparameters():
    y = torch.stack([Y, 2 - Y.square()], 1)
    y[3, 0] = y[5, 1] = torch.nan
    together = GP(Matern(), Gaussian(0.1), mean="zero").condition(X, y)
    each = [GP(Matern(), Gaussian(0.1), mean="zero").condition(X, y[:, p]) for p in (0, 1)]
    assert together.log_evidence() == pytest.approx(sum(gp.log_evidence() for gp in each), rel=1e-12)
    for of in ("y", "f"):
        close(
            together.predict(NEW, of=of).mean,
            torch.stack([g.predict(NEW, of=of).mean for g in each], 1),
            "means",
            1e-10,
        )
        close(
            together.predict(NEW, of=of).std, torch.stack([g.predict(NEW, of=of).std for g in each], 1), "stds", 1e-10
        )
    close(together.loo().log_density, torch.stack([g.loo().log_density for g in each], 1), "leave-one-out", 1e-10)


def test_a_repeated_output_is_learned_as_one():
    """The evidence doubles and its maximum stays."""
    one, two = GP(Matern()).fit(X, Y, priors=None), GP(Matern()).fit(X, torch.stack([Y, Y], 1), priors=None)
    assert two.log_evidence() == pytest.approx(2 * one.log_evidence(), abs=1e-2)
    close(two.predict(NEW).mean[:, 0], one.predict(NEW).mean, "predictions", 1e-2)


def test_an_output_without_any_target():
    y = torch.stack([Y, torch.full_like(Y, torch.nan)], 1)
    gp = GP(Matern()).fit(X, y)
    p = gp.predict(NEW, of="f")
    assert bool(p.mean.isfinite().all())
    close(p.variance[:, 1], gp.kernel_.diagonal(NEW), "the prior variance", 1e-12)


def test_lists_of_kernels_are_copied():
    kernel = RBF()
    gp = GP([kernel]).fit(X, Y)
    assert gp.kernel_ is not kernel
    close(gp.predict(NEW).mean, GP(RBF()).fit(X, Y).predict(NEW).mean, "a list of one", 0.0)
    with pytest.raises(InputError, match=r"1 latent function.*2 kernels"):
        GP([RBF(), RBF()]).fit(X, Y)


def test_names_and_objects_are_the_same():
    by_name = GP("Matern(nu=1.5)", engine="Exact").fit(X, Y)
    by_object = GP(Matern(nu=1.5), engine=gpx.engines.Exact()).fit(X, Y)
    assert torch.equal(by_name.predict(NEW).mean, by_object.predict(NEW).mean)
    assert by_name.engine_reason_ == by_object.engine_reason_ == "chosen by the user"


def test_auto_says_why():
    gp = GP(RBF()).fit(X, Y)
    assert gp.engine_reason_.startswith("auto: ") and "N = 15" in gp.engine_reason_


def test_more_than_the_memory_is_refused_early():
    from gpx.engines.auto import choose_engine
    from gpx.inputs import Data
    from gpx.prior import Prior

    x = torch.zeros(1, 1, dtype=torch.float64).expand(10_000_000, 1)
    data = Data(x, x, ("",), 1.0, torch.ones(1))
    with pytest.raises(
        InputError, match=r"10,000,000 points needs .* GB of memory, this machine has .* GB; use engines.SparseV"
    ):
        choose_engine("Exact", Prior(gpytorch.means.ZeroMean(), (RBF(),)), data)
    assert "SparseVariational" in repr(choose_engine("auto", Prior(gpytorch.means.ZeroMean(), (RBF(),)), data)[0])


def test_predict_is_pure():
    gp = GP(Matern() * Periodic()).fit(X, Y)
    first = gp.predict(NEW)
    (
        gp.predict(X),
        gp.sample(X, 2),
        gp.paths(1)(X),
        gp.loo(),
        gp.parameters(),
        gp.summary(),
        gp.check(),
        gp.log_evidence(),
    )
    second = gp.predict(NEW)
    assert torch.equal(first.mean, second.mean) and torch.equal(first.variance, second.variance)


def test_models_do_not_share_anything():
    kernel = RBF()
    a, b = GP(kernel).fit(X, Y), GP(kernel).fit(X, -3 * Y)
    again = GP(RBF()).fit(X, Y)
    close(a.predict(NEW).mean, again.predict(NEW).mean, "the first of two fits", 0.0)
    assert a.kernel_ is not b.kernel_


def test_loo_is_brute_force():
    gp = GP(Matern(), Gaussian(0.05), mean="zero").condition(X, Y)
    loo = gp.loo()
    for i in (0, 7, 14):
        keep = torch.arange(15) != i
        p = GP(Matern(), Gaussian(0.05), mean="zero").condition(X[keep], Y[keep]).predict(X[[i]])
        close(loo.mean[[i]], p.mean, "mean", 1e-9)
        close(loo.std[[i]], p.std, "std", 1e-9)
        close(loo.log_density[[i]], p.log_prob(Y[[i]]), "log density", 1e-9)


def test_check_is_a_report_of_leave_one_out():
    gp = GP(Matern()).fit(X, Y)
    report = gp.check()
    assert report.n == 15
    assert report.nlpd == pytest.approx(-float(gp.loo().log_density.mean()), rel=1e-9)
    assert "Calibration on 15 targets" in str(report)


def test_repr_and_summary():
    gp = GP(Matern(), Gaussian(0.1))
    assert repr(gp) == "GP(Matern(nu=2.5, lengthscale=1, outputscale=1))"
    gp.condition(X, Y)
    assert "Gaussian(noise=0.1)" in repr(gp) and "engine=Exact()" in repr(gp)
    text = gp.summary()
    for part in ("GP on 15 points, 3 input column(s)", "Exact()", "Evidence", "as given", "likelihood.noise"):
        assert part in text


def test_no_output_on_standard_out(capsys):
    gp = GP(Matern()).fit(X, Y)
    gp.predict(NEW), gp.summary(), gp.check(), gp.parameters()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_results_are_torch_tensors_of_the_data():
    p = GP(RBF()).fit(X.numpy(), Y.numpy()).predict(NEW.numpy())
    assert isinstance(p.mean, torch.Tensor) and p.mean.dtype == torch.float64
    p = GP(RBF()).fit(X.float(), Y.float()).predict(NEW)
    assert p.mean.dtype == p.variance.dtype == torch.float32
    assert GP(RBF()).fit(np.float32(X), np.float32(Y)).predict(NEW).mean.dtype == torch.float64


def test_auto_kernels():
    assert "ard=True" in repr(GP("auto").fit(X, Y).kernel_)
    t = torch.arange(60.0, dtype=torch.float64)
    assert isinstance(GP("auto").fit(t, torch.sin(2 * torch.pi * t / 12) + 0.01 * t).kernel_, gpx.kernels.Kernel)


def test_named_parameters_in_the_table():
    frame = pd.DataFrame(X.numpy(), columns=["depth", "age", "mass"])
    gp = GP(Matern(ard=True) + Linear(active_dims=["age"])).fit(frame, Y)
    names = [row.name for row in gp.parameters()]
    assert "kernel.0.lengthscale[depth]" in names and "kernel.0.lengthscale[mass]" in names
    assert "kernel.1.outputscale" in names and "likelihood.noise" in names and "mean.constant" in names
    row = gp.parameters()["kernel.1.center"]
    assert row.fixed


def test_refits_give_the_same(tmp_path):
    gp = GP(Matern())
    first = gp.fit(X, Y).predict(NEW).mean
    gp.fit(NEW, targets(NEW))
    assert torch.equal(gp.fit(X, Y).predict(NEW).mean, first)


@pytest.mark.parametrize("call", [
    lambda gp: gp.sample(NEW, -1), lambda gp: gp.paths(-1)(NEW), lambda gp: gp.predict(NEW).sample(-1),
], ids=["sample", "paths", "predict"])  # fmt: skip
def test_negative_numbers_of_draws(call):
    with pytest.raises((InputError, RuntimeError)):
        call(GP(RBF()).condition(X, Y))


def test_moving_a_fitted_value_does_not_part_posterior_and_factor():
    """kernel_ is a copy: the posterior keeps the hyperparameters that it was computed with."""
    gp = GP(RBF()).fit([0.0, 1.0, 2.0, 3.0], [0.1, 0.9, 1.0, 0.2])
    before = gp.predict([0.5]).mean
    gp.kernel_.set(lengthscale=0.05)
    assert torch.equal(gp.predict([0.5]).mean, before)


def test_a_failed_fit_leaves_the_fitted_model():
    gp = GP(RBF()).fit([0.0, 1.0, 2.0, 3.0], [0.1, 0.9, 1.0, 0.2])
    before = gp.log_evidence()
    gp.objective = gpx.objectives.LeaveOneOut()
    with pytest.raises(InputError):
        gp.fit([0.0, 1.0], [0.0, 1.0], resume="no-such-file")
    assert gp.log_evidence() == before


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": "a"}, {"max_seconds": "a"}, {"max_seconds": -1.0}], ids=str)
def test_options_of_fit_are_checked(options):
    with pytest.raises(InputError, match="or None"):
        GP(RBF()).fit([0.0, 1.0], [0.0, 1.0], **options)


def test_matrix_leaves_the_kernel_and_its_columns():
    """Names are resolved against the columns of each call, and the gradient reaches the kernel's own parameters."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [0.0, 1.0, 2.0], "b": [0.0, 3.0, 5.0]})
    kernel = RBF(active_dims=["b"])
    assert torch.equal(kernel.matrix(frame), kernel.matrix(frame[["b", "a"]]))
    assert kernel.active_dims is None
    kernel.matrix(frame).sum().backward()
    assert kernel.raw_lengthscale.grad is not None


def test_masked_arrays_and_large_values():
    y = np.ma.masked_array([0.0, 1.0, 99.0], [False, False, True])
    assert GP(RBF()).condition([0.0, 1.0, 2.0], y)._solved.data.observed.tolist() == [[True], [True], [False]]
    with pytest.raises(InputError, match="rescale"):
        GP(RBF()).fit([0.0, 1.0], [1e300, 0.0])


def test_a_uniform_prior_bounds_the_fit():
    kernel = RBF().set(lengthscale=dict(prior=gpytorch.priors.UniformPrior(0.1, 0.2)))
    gp = GP(kernel).fit([0.0, 1.0, 2.0, 3.0], [0.1, 0.9, 1.0, 0.2])
    assert 0.1 <= float(gp.kernel_.lengthscale.detach()) <= 0.2


TIMES = np.linspace(0, 6, 40)


@pytest.mark.parametrize("engine", ["Exact", "StateSpace"])
def test_derivatives(engine):
    """Of f, the prior mean included; of every output; whichever exact engine has solved the model."""
    y = np.stack([np.sin(TIMES) + 3 * TIMES, np.cos(TIMES)], 1)
    gp = gpx.GP(gpx.kernels.Matern(nu=4.5), gpx.likelihoods.Gaussian(1e-6), mean="linear", engine=engine)
    gp.condition(TIMES, y)
    new = np.linspace(1.01, 5.0, 9)
    f, slope = gp.predict(new, "f"), gp.predict(new, derivative=1)
    assert repr(slope) == "Prediction of f', a derivative: Normal, shape [9, 2]" and slope.of == "f'"
    close(slope.mean[:, 0], np.cos(new) + 3, "f'", atol=1e-2)
    close(gp.predict(new, "f", derivative=2).mean[:, 1], -np.cos(new), "f''", atol=5e-2)
    for got, expected in ((gp.predict(new, derivative=0, of="f").mean, f.mean), (gp.predict(new).mean, f.mean)):
        assert torch.equal(got, expected)
    ends = [gp.predict(new + h, "f").mean for h in (1e-4, -1e-4)]
    close(slope.mean, (ends[0] - ends[1]) / 2e-4, "differences", rtol=1e-6)


def test_derivatives_of_counts_and_after_an_update():
    """From the sites that were found, and those that were added."""
    gp = gpx.GP(gpx.kernels.Matern(nu=1.5), gpx.likelihoods.Poisson()).condition(TIMES[:30], np.arange(30) // 10)
    gp.update(TIMES[30:], np.arange(30, 40) // 10)
    new = np.linspace(0.51, 5.5, 9)
    ends = [gp.predict(new + h, "f").mean for h in (1e-5, -1e-5)]
    close(gp.predict(new, derivative=1).mean, (ends[0] - ends[1]) / 2e-5, "differences", rtol=1e-4)


@pytest.mark.parametrize(("kernel", "x", "options", "error", "advice"), [
    ("Matern(nu=0.5)", TIMES, {}, StructureError, r"differentiated 0 time.*derivative=1: use a smoother kernel.*nu=1.5"),
    ("Matern(nu=1.5) + Matern(nu=4.5)", TIMES, {"derivative": 2}, StructureError, r"differentiated 1 time.*nu=2.5"),
    ("BlockQuasiPeriodic(4)", np.arange(40.0), {}, StructureError, "function of steps.*use kernels of time"),
    ("RBF", TIMES, {}, StructureError, "is approximate: use a kernel such as.*engine='StateSpace'"),
    ("RationalQuadratic", TIMES, {}, StructureError, "one input with a state-space form.*use Matern"),
    ("Matern", TIMES, {"of": "y"}, InputError, r"Targets have no derivative: use predict\(X, derivative=1\)"),
    ("Matern", TIMES, {"noise": 0.1}, InputError, "takes no noise"),
    ("Matern", TIMES, {"derivative": 1.5}, InputError, "integer >= 0, got 1.5"),
    ("Matern", TIMES, {"derivative": -1}, InputError, "integer >= 0, got -1"),
    ("Matern", np.stack([TIMES, TIMES], 1), {}, StructureError, r"one input.*acts on 2: choose one with active_dims=\[i\]"),
])  # fmt: skip
def test_derivatives_that_do_not_exist(kernel, x, options, error, advice):
    gp = gpx.GP(kernel).condition(x, np.sin(TIMES))
    with pytest.raises(error, match=advice):
        gp.predict(x, **{"derivative": 1, **options})
