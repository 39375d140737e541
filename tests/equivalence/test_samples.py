"""Joint samples and paths have the posterior's mean and covariance: Student's t with false alarms of 1e-6 per test."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpx import GP
from gpx.likelihoods import Gaussian
from gpx.testing.assertions import close, mean_is
from gpx.testing.cases import KERNELS, points, targets

N = 10
WITH_PATHS = [
    "RBF-ard",
    "Matern12",
    "Periodic",
    "sum",
    "product",
    "product-of-sum",
    "nested-columns",
    "gpytorch-scaled-columns",
]


def fitted(name, outputs=None, mean="linear"):
    X, y = points(N), targets(points(N), outputs)
    y[2] = torch.nan
    return GP(KERNELS[name](), Gaussian(0.1), mean=mean).condition(X, y)


@pytest.mark.parametrize("name", ["RBF-ard", "sum", "gpytorch-polynomial"])
def test_joint_samples(name):
    gp, X = fitted(name), torch.cat([points(4, seed=6), points(N)[:2]])
    mean, covariance = gp.posterior_.joint(X)
    draws = gp.sample(X, 20_000, seed=3)
    assert draws.shape == (20_000, 6)
    centred = (draws - mean[:, 0]).reshape(100, 200, 6)
    mean_is(draws.reshape(100, 200, 6).mean(1), mean[:, 0], "mean of the samples")
    mean_is(centred.mT @ centred / 200, covariance[0], "covariance of the samples")


@pytest.mark.parametrize("name", WITH_PATHS)
def test_paths(name):
    gp, X = fitted(name), torch.cat([points(3, seed=6), points(N)[:2]])
    mean, covariance = gp.posterior_.joint(X)
    draws = torch.stack([gp.paths(100, seed=seed)(X) for seed in range(50)])
    centred = draws - mean[:, 0]
    mean_is(draws.mean(1), mean[:, 0], "mean of the paths")
    mean_is(centred.mT @ centred / 100, covariance[0], "covariance of the paths")


def test_outputs_are_independent():
    """Samples of P outputs: [n, N*, P], each with its own mean, uncorrelated."""
    gp, X = fitted("RBF", outputs=2, mean="zero"), points(3, seed=6)
    mean, _ = gp.posterior_.joint(X)
    assert gp.sample(X, 5).shape == gp.paths(5)(X).shape == (5, 3, 2)
    assert gp.predict(X).sample(5).shape == (5, 3, 2)
    for draws in (gp.sample(X, 20_000), gp.predict(X, of="f").sample(20_000)):
        centred = (draws - mean).reshape(100, 200, 3, 2)
        mean_is(draws.reshape(100, 200, 3, 2).mean(1), mean, "mean")
        mean_is(
            (centred[..., 0] * centred[..., 1]).mean(1),
            torch.zeros(3, dtype=torch.float64),
            "correlation of the outputs",
        )


def test_paths_are_functions():
    """The same values at the same points, in any call, alone or among others; differentiable in the points."""
    gp, X = fitted("sum"), points(6, seed=4)
    paths = gp.paths(3, seed=1)
    first = paths(X)
    assert torch.equal(first, paths(X))
    close(torch.cat([paths(X[:2]), paths(X[2:])], 1), first, "point by point", 1e-12)
    close(gp.paths(3, seed=1)(X), first, "the same seed", 0.0)
    leaf = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(paths(leaf)[0].sum(), leaf)
    step = 1e-6
    for d in range(3):
        up, down = X.clone(), X.clone()
        up[0, d] += step
        down[0, d] -= step
        difference = (paths(up)[0, 0] - paths(down)[0, 0]) / (2 * step)
        close(slope[0, d], difference, f"slope of a path in column {d}", atol=1e-3)


def test_paths_do_not_jump_between_the_data():
    """A path of a smooth kernel through nearly noiseless data passes by the targets."""
    X, y = points(8), targets(points(8))
    gp = GP(KERNELS["RBF"](), Gaussian(1e-8), mean="zero").condition(X, y)
    close(gp.paths(4)(X), y.expand(4, -1), "paths at the data", atol=2e-3)
    close(gp.sample(X, 4), y.expand(4, -1), "samples at the data", atol=2e-3)


def test_samples_of_one_prediction_are_independent_of_the_global_state():
    gp, X = fitted("RBF"), points(4)
    torch.manual_seed(5)
    a = gp.sample(X, 2), gp.paths(2)(X), gp.predict(X).sample(2)
    torch.manual_seed(6)
    b = gp.sample(X, 2), gp.paths(2)(X), gp.predict(X).sample(2)
    assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
    assert not torch.equal(gp.sample(X, 2, seed=None), gp.sample(X, 2, seed=None))


def test_of_nothing_but_the_prior():
    """Without an observed target: draws from the prior."""
    X = points(4)
    gp = GP(KERNELS["Matern32"](), mean="zero").condition(X, np.full(4, np.nan))
    prior = KERNELS["Matern32"]().matrix(X).detach()
    for draws in (gp.sample(X, 20_000), torch.cat([gp.paths(200, seed=s)(X) for s in range(100)])):
        products = draws.reshape(100, 200, 4)
        mean_is(products.mT @ products / 200, prior, "covariance of the prior")
