"""Predictions: intervals are quantiles, samples have the moments, log densities integrate, NaN stays NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gpx import GP, InputError
from gpx.kernels import RBF, Matern
from gpx.likelihoods import Gaussian
from gpx.posterior import LeaveOneOutPrediction, Prediction, make_generator
from gpx.testing.assertions import close, copies, mean_is
from gpx.testing.cases import points, targets

X, Y = points(12), targets(points(12))
GP_ = GP(Matern(nu=1.5), Gaussian(0.05)).condition(X, Y)
NEW = points(5, seed=4)


@pytest.mark.parametrize("of", ["y", "f"])
def test_everything_is_a_normal(of):
    p = GP_.predict(NEW, of=of)
    law = stats.norm(p.mean.numpy(), p.std.numpy())
    close(p.std.square(), p.variance, "std^2", 1e-13)
    for level in (0.1, 0.5, 0.95, 0.9999):
        low, high = p.interval(level)
        close(low, law.ppf((1 - level) / 2), "lower", 1e-9)
        close(high, law.ppf((1 + level) / 2), "upper", 1e-9)
    close(p.quantile(0.3), law.ppf(0.3), "quantile", 1e-9)
    close(p.log_prob(Y[:5]), law.logpdf(Y[:5].numpy()), "log density", 1e-10)
    close(p.cdf(Y[:5]), law.cdf(Y[:5].numpy()), "cdf", 1e-9)
    assert p.of == of and p.is_normal


def test_y_is_f_with_noise():
    f, y = GP_.predict(NEW, of="f"), GP_.predict(NEW)
    close(y.mean, f.mean, "mean", 0.0)
    close(y.variance - f.variance, [0.05] * 5, "noise", 1e-9)


def test_samples_have_the_moments():
    """Student's t, false alarms of 1e-6 each."""
    p = GP_.predict(NEW)
    draws = p.sample(20_000, seed=1)
    assert draws.shape == (20_000, 5)
    mean_is(draws.reshape(100, 200, 5).mean(1), p.mean, "mean")
    mean_is((draws - p.mean).square().reshape(100, 200, 5).mean(1), p.variance, "variance")
    products = (draws - p.mean)[:, :1] * (draws - p.mean)[:, 1:]
    mean_is(products.reshape(100, 200, 4).mean(1), torch.zeros(4, dtype=torch.float64), "independence")


def test_samples_are_reproducible_and_finite():
    p = GP_.predict(NEW)
    assert torch.equal(p.sample(3), p.sample(3, seed=0))
    assert not torch.equal(p.sample(3, seed=1), p.sample(3, seed=0))
    assert not torch.equal(p.sample(3, seed=None), p.sample(3, seed=None))
    assert bool(p.sample(10_000).isfinite().all())
    assert p.sample(0).shape == (0, 5)


def test_missing_targets_stay_missing():
    y = Y[:5].clone()
    y[1] = torch.nan
    p = GP_.predict(NEW)
    for values in (p.log_prob(y), p.cdf(y)):
        assert values.isnan().tolist() == [False, True, False, False, False]
    assert p.log_prob([0.0, None, 1.0, 2.0, 3.0]).isnan().tolist() == [False, True, False, False, False]


def test_targets_in_any_form():
    p = GP_.predict(NEW)
    expected = p.log_prob(Y[:5])
    for form in (Y[:5].numpy(), Y[:5].tolist(), Y[:5].unsqueeze(1), Y[:5].float().double()):
        close(p.log_prob(form), expected, "log density", 1e-6)
    with pytest.raises(InputError, match=r"\[4\].*\[5\]"):
        p.log_prob(Y[:4])
    with pytest.raises(InputError, match="holds str"):
        p.log_prob(["a"] * 5)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2)])
def test_targets_of_several_outputs_keep_their_places(shape):
    """[P, N] is not [N, P]: the same number of cells is not enough."""
    p = GP(RBF()).condition(X, torch.stack([Y, Y], 1)).predict(NEW)
    if shape == (5, 2):
        assert p.log_prob(torch.zeros(shape)).shape == shape
    else:
        with pytest.raises(InputError, match=r"\[2, 5\].*\[5, 2\]"):
            p.log_prob(torch.zeros(shape))


@pytest.mark.parametrize("level", [0, 1, -0.5, 1.5, 95, math.nan])
def test_levels(level):
    with pytest.raises(InputError, match="0.95"):
        GP_.predict(NEW).interval(level)
    with pytest.raises(InputError, match="0 < p < 1"):
        GP_.predict(NEW).quantile(level)


def test_no_points():
    p = GP_.predict(NEW[:0])
    assert p.mean.shape == p.variance.shape == (0,)
    assert p.sample(3).shape == (3, 0) and p.log_prob([]).shape == (0,)
    assert GP_.sample(NEW[:0], 2).shape == GP_.paths(2)(NEW[:0]).shape == (2, 0)


def test_predictions_say_what_they_are():
    assert repr(GP_.predict(NEW)) == "Prediction of y, noise included: Normal, shape [5]"
    assert repr(GP_.predict(NEW, of="f")) == "Prediction of f, the latent function: Normal, shape [5]"


def test_predictions_are_plain_tensors():
    """No graph unless the inputs ask for one: numpy works at once."""
    p = GP_.predict(NEW)
    for tensor in (
        p.mean,
        p.variance,
        *p.interval(),
        p.log_prob(Y[:5]),
        GP_.sample(NEW, 2),
        GP_.paths(2)(NEW),
        GP_.loo().mean,
    ):
        assert not tensor.requires_grad
        assert isinstance(tensor.numpy(), np.ndarray)


def test_predictions_are_differentiable_in_the_inputs():
    leaf = NEW.clone().requires_grad_()
    p = GP_.predict(leaf)
    slopes = torch.autograd.grad(p.mean.sum() + p.variance.sum(), leaf)[0]
    step = 1e-6
    for n, d in ((0, 0), (3, 2)):
        moved = [NEW.clone(), NEW.clone()]
        moved[0][n, d] += step
        moved[1][n, d] -= step
        a, b = (GP_.predict(m) for m in moved)
        difference = (a.mean.sum() + a.variance.sum() - b.mean.sum() - b.variance.sum()) / (2 * step)
        close(slopes[n, d], difference, "slope of mean + variance", atol=1e-7)


def test_leave_one_out_is_a_prediction():
    loo = GP_.loo()
    assert isinstance(loo, LeaveOneOutPrediction) and loo.mean.shape == (12,)
    close(loo.log_density, loo.log_prob(Y), "log density", 1e-12)
    y = Y.clone()
    y[3] = torch.nan
    gaps = GP(Matern(nu=1.5), Gaussian(0.05)).condition(X, y).loo()
    assert gaps.log_density.isnan().tolist() == [i == 3 for i in range(12)]
    assert gaps.mean.isnan().tolist() == gaps.std.isnan().tolist() == [i == 3 for i in range(12)]


def test_generators():
    assert torch.equal(torch.rand(3, generator=make_generator(3)), torch.rand(3, generator=make_generator(3)))
    assert not torch.equal(torch.rand(3, generator=make_generator(None)), torch.rand(3, generator=make_generator(None)))


def test_predictions_are_copied_and_pickled():
    p = GP_.predict(NEW)
    for other in copies(p).values():
        close(other.mean, p.mean, "mean", 0.0)
    assert isinstance(p, Prediction)


@pytest.mark.parametrize("n", [-1, 1.5, "2", None])
def test_numbers_of_draws(n):
    for draw in (lambda: GP_.sample(NEW, n), lambda: GP_.paths(n), lambda: GP_.predict(NEW).sample(n)):
        with pytest.raises(InputError, match="integer >= 0"):
            draw()


def test_seeds_are_integers():
    with pytest.raises(InputError, match="integer"):
        GP_.sample(NEW, 2, seed="a")
    with pytest.raises(InputError, match="0.95"):
        GP_.predict(NEW).interval("a")
