"""Prior means: constant, zero, linear, gpytorch's; per output; their starts are least squares."""

from __future__ import annotations

import math
from dataclasses import replace

import gpytorch
import numpy as np
import pytest
import torch

from gpx import GP, InputError
from gpx.inputs import as_data
from gpx.kernels import RBF, Constant, Matern
from gpx.likelihoods import Gaussian
from gpx.means import ConstantMean, LinearMean, as_mean
from gpx.prior import Prior
from gpx.testing.assertions import close, copies
from gpx.testing.cases import points, targets

X, Y = points(30), targets(points(30))
FAR = X + 1e4


def test_far_from_the_data_the_mean_is_left():
    for mean, expected in (("zero", torch.zeros(30)), ("constant", None), ("linear", None)):
        gp = GP(RBF(), mean=mean).fit(X, 5 + Y)
        got = gp.predict(FAR).mean
        if mean == "constant":
            expected = gp.mean_.constant.detach().expand(30)
        elif mean == "linear":
            expected = gp.mean_(FAR).detach().squeeze(-1)
        close(got, expected, mean, 1e-12)


@pytest.mark.parametrize("mean", [ConstantMean, LinearMean])
def test_starts_are_least_squares(mean):
    """Per output, over what is observed there."""
    y = torch.stack([Y, 2 - 3 * X[:, 0] + X[:, 2]], 1)
    y[::4, 0] = torch.nan
    module = mean().double()
    module.bind(as_data(points(6), targets(points(6), 2)), 2)
    module.init_from(as_data(X, y))
    for column, got in zip(y.T, module(X).detach().T, strict=True):
        seen = ~column.isnan()
        design = np.ones((30, 1)) if mean is ConstantMean else np.column_stack([np.ones(30), X.numpy()])
        beta, *_ = np.linalg.lstsq(design[seen.numpy()], column[seen].numpy(), rcond=None)
        close(got, design @ beta, mean.__name__, 1e-6)


def test_a_linear_mean_of_constant_and_equal_columns():
    x = torch.stack([X[:, 0], torch.full((30,), 3.0, dtype=torch.float64), X[:, 0]], 1)
    gp = GP(RBF(), mean="linear").fit(x, Y)
    assert bool(gp.predict(x).mean.isfinite().all())
    one = GP(RBF(), mean="linear").fit(X[:1], Y[:1])
    close(one.predict(X[:1]).mean, Y[:1], "one point", 1e-3)


def test_outputs_have_their_own_constants():
    y = torch.stack([Y + 100, Y - 100], 1)
    gp = GP(Matern()).fit(X, y)
    constants = gp.mean_.constant.detach()
    assert constants.shape == (2,)
    close(constants[0] - constants[1], 200.0, "difference of the constants", 1e-2)
    assert [r.name for r in gp.parameters() if "mean" in r.name] == ["mean.constant[0]", "mean.constant[1]"]


def test_condition_takes_the_mean_as_given():
    """A constant mean is zero until a fit has learned it."""
    gp = GP(RBF()).condition(X, 5 + Y)
    assert float(gp.mean_.constant.detach()) == 0.0
    close(gp.predict(FAR).mean, torch.zeros(30), "far away")


def test_gpytorch_means():
    mean = gpytorch.means.ConstantMean()
    gp = GP(RBF(), mean=mean).fit(X, 5 + Y)
    assert float(mean.constant.detach()) == 0.0 and mean.constant.dtype == torch.float32, (
        "the user's mean is left alone"
    )
    assert abs(float(gp.mean_.constant.detach()) - 5) < 3
    ours = GP(RBF()).fit(X, 5 + Y)
    close(gp.predict(X).mean, ours.predict(X).mean, "predictions", 1e-3)


def test_gpytorch_means_of_two_outputs_are_shared():
    gp = GP(RBF(), mean=gpytorch.means.ConstantMean()).condition(X, torch.stack([Y, Y], 1))
    assert gp.predict(X).mean.shape == (30, 2)


def test_a_mean_by_a_users_class():
    class Sine(gpytorch.means.Mean):
        def forward(self, x):
            return x[:, 0].sin()

    gp = GP(RBF(lengthscale=0.1), Gaussian(0.1), mean=Sine()).condition(X, X[:, 0].sin())
    close(gp.predict(FAR).mean, FAR[:, 0].sin(), "far away", 1e-9)


@pytest.mark.parametrize("mean", ["quadratic", 0.0, None, ConstantMean])
def test_unknown_means(mean):
    with pytest.raises(InputError, match="'constant', 'zero', 'linear'"):
        as_mean(mean)


def test_mean_at_is_not_a_view_of_the_parameter():
    mean = ConstantMean().double()
    mean.bind(as_data(points(6, 1), targets(points(6, 1), 2)), 2)
    prior = Prior(mean, (Constant(),))
    values = prior.mean_at(X[:, :1], 2)
    mean.constant = 7.0
    assert float(values.sum().detach()) == 0.0


def test_copies_and_repr():
    mean = LinearMean().double()
    mean.bind(replace(as_data(points(6), targets(points(6))), columns=("a", "b", "c")), 1)
    mean.slope = [[1.0], [2.0], [3.0]]
    for other in copies(mean).values():
        close(other(X), mean(X), "values", 0.0)
    assert repr(mean) == "LinearMean(constant=0, slope=[1, 2, 3], center=[0, 0, 0])"
    assert repr(ConstantMean()) == "ConstantMean(constant=0)"


def test_a_linear_trend_is_extrapolated():
    t = torch.linspace(0, 10, 40, dtype=torch.float64)
    y = 3 + 2 * t + 0.1 * t.mul(3).sin()
    gp = GP(RBF(), mean="linear").fit(t, y)
    assert float(gp.predict([1000.0]).mean) == pytest.approx(2003, rel=0.05)
    assert math.isclose(float(gp.mean_.slope.detach()), 2.0, rel_tol=0.05)
