"""scikit-learn and GPyTorch say the same at the same hyperparameters."""

from __future__ import annotations

import gpytorch
import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as sk

from gpx import GP
from gpx.kernels import RBF, Constant, Linear, Matern, Periodic, RationalQuadratic
from gpx.kernels.dense import dense
from gpx.likelihoods import Gaussian
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets

N = 40
NOISE = 0.07

PAIRS = {
    "rbf": (RBF(lengthscale=[0.7, 1.1, 0.9], outputscale=1.4), 1.4 * sk.RBF([0.7, 1.1, 0.9])),
    "matern12": (Matern(nu=0.5, lengthscale=1.2), 1.0 * sk.Matern(1.2, nu=0.5)),
    "matern32": (Matern(nu=1.5, lengthscale=0.8, outputscale=0.6), 0.6 * sk.Matern(0.8, nu=1.5)),
    "matern52": (Matern(nu=2.5, lengthscale=[0.7, 1.1, 0.9]), 1.0 * sk.Matern([0.7, 1.1, 0.9], nu=2.5)),
    "matern72": (Matern(nu=3.5, lengthscale=0.9), 1.0 * sk.Matern(0.9, nu=3.5)),
    "rational-quadratic": (RationalQuadratic(alpha=0.8, lengthscale=1.1), 1.0 * sk.RationalQuadratic(1.1, 0.8)),
    "linear": (Linear(outputscale=0.5) + Constant(0.7), 0.5 * sk.DotProduct(np.sqrt(1.4))),
    "sum": (RBF(lengthscale=0.8) + Matern(nu=0.5, outputscale=0.3), sk.RBF(0.8) + 0.3 * sk.Matern(1.0, nu=0.5)),
    "product": (RBF(lengthscale=1.5, outputscale=2.0) * Matern(nu=1.5), 2.0 * sk.RBF(1.5) * sk.Matern(1.0, nu=1.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_scikit_learn(name):
    ours, theirs = PAIRS[name]
    X, y = points(N), targets(points(N))
    gp = GP(ours, Gaussian(NOISE), mean="zero").condition(X, y)
    peer = GaussianProcessRegressor(theirs, alpha=NOISE, optimizer=None).fit(X.numpy(), y.numpy())
    close(gp.log_evidence(), peer.log_marginal_likelihood_value_, "log evidence", 1e-9)
    X_new = points(7, seed=8)
    mean, std = peer.predict(X_new.numpy(), return_std=True)
    prediction = gp.predict(X_new, of="f")
    close(prediction.mean, mean, "mean", 1e-8)
    close(prediction.std, std, "standard deviation", 1e-8)
    close(ours.matrix(X_new, X), theirs(X_new.numpy(), X.numpy()), "kernel matrix", 1e-12)


def test_scikit_learn_periodic():
    """scikit-learn's periodic kernel is of the distance: the same in one dimension."""
    X, y = points(N, 1), targets(points(N, 1))
    ours, theirs = Periodic(period=1.3, lengthscale=0.8, outputscale=1.2), 1.2 * sk.ExpSineSquared(0.8, 1.3)
    gp = GP(ours, Gaussian(NOISE), mean="zero").condition(X, y)
    peer = GaussianProcessRegressor(theirs, alpha=NOISE, optimizer=None).fit(X.numpy(), y.numpy())
    close(gp.log_evidence(), peer.log_marginal_likelihood_value_, "log evidence", 1e-9)


def test_scikit_learn_gradient():
    """Both differentiate in log values: constant, lengthscales, noise."""
    X, y = points(N), targets(points(N))
    theirs = 1.4 * sk.RBF([0.7, 1.1, 0.9]) + sk.WhiteKernel(NOISE)
    peer = GaussianProcessRegressor(theirs, alpha=0.0, optimizer=None).fit(X.numpy(), y.numpy())
    _, expected = peer.log_marginal_likelihood(peer.kernel_.theta, eval_gradient=True)
    gp = GP(RBF(lengthscale=[0.7, 1.1, 0.9], outputscale=1.4, ard=True), Gaussian(NOISE), mean="zero").condition(X, y)
    kernel, likelihood = gp._solved.prior.kernels[0], gp._solved.likelihood
    problem = gp._solved
    value = problem.engine.condition(problem.prior, problem.plan, {}, likelihood.exact_sites(problem.data)).log_density
    grads = torch.autograd.grad(value, [kernel.raw_outputscale, kernel.raw_lengthscale, likelihood.raw_noise])
    close(torch.cat([g.reshape(-1) for g in grads]), expected, "gradient in log values", 1e-8)


class _Model(gpytorch.models.ExactGP):
    def __init__(self, X, y, likelihood, kernel, constant):
        super().__init__(X, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.mean_module.constant.data.fill_(constant)
        self.covar_module = kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def theirs():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=3)).double()
    kernel.outputscale, kernel.base_kernel.lengthscale = 1.3, torch.tensor([0.7, 1.1, 0.9])
    return kernel


@pytest.mark.parametrize("kernel", [
    Matern(nu=2.5, lengthscale=[0.7, 1.1, 0.9], outputscale=1.3, ard=True), theirs(),
], ids=["gpx", "gpytorch"])  # fmt: skip
def test_gpytorch(kernel):
    """ExactMarginalLogLikelihood (divided by N there) with GPyTorch's model, given either kernel; and its predictions."""
    X, y, constant = points(N), targets(points(N)), 0.4
    mean = gpytorch.means.ConstantMean().double()
    mean.constant.data.fill_(constant)
    gp = GP(kernel, Gaussian(NOISE), mean=mean).condition(X, y)

    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = NOISE
    model = _Model(X, y, likelihood, kernel.double(), constant).double()
    model.train()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    close(gp.log_evidence(), float(mll(model(X), y).detach()) * N, "log evidence", 1e-8)

    model.eval(), likelihood.eval()
    X_new = points(7, seed=8)
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        peer = likelihood(model(X_new))
    prediction = gp.predict(X_new)
    close(prediction.mean, peer.mean, "mean", 1e-7)
    close(prediction.variance, peer.variance, "variance", 1e-7)


def test_gpx_kernels_in_a_gpytorch_model_learn():
    """An Adam step on a gpx kernel inside ExactGP moves its values."""
    X, y = points(20), targets(points(20))
    kernel = Matern(nu=1.5, lengthscale=0.5) * Periodic(period=2.0) + RBF(lengthscale=2.0)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model = _Model(X, y, likelihood, kernel, 0.0).double()
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = -mll(model(X), y)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert float(kernel.kernels[0].kernels[0].lengthscale.detach()) != 0.5
    assert torch.isfinite(dense(kernel, X, X)).all()
