"""Exact GP regression: elevators, 2,000 training rows, ARD Matern-5/2, hyperparameters learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.measure import extra_memory, timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

WARM_UP_ROWS = 64


@dataclass(frozen=True)
class Problem:
    """Training and test rows, standardised together."""

    X: ndarray
    y: ndarray
    X_test: ndarray
    y_test: ndarray


def problem(quick: bool) -> Problem:
    """The first 2,000 rows of ``numpy.random.default_rng(0).permutation(N)`` train, the next 1,000 test.

    The quick version has 300 and 300.
    """
    import numpy as np

    from gpx import datasets

    data = datasets.load("elevators")
    train, test = (300, 300) if quick else (2000, 1000)
    rows = np.random.default_rng(0).permutation(len(data.y))
    X, y = data.X.numpy(), data.y.numpy()
    # Standardised by all rows in use: two columns hardly vary, and are constant in the training rows alone.
    used = rows[: train + test]
    scale = np.where(np.ptp(X[used], axis=0) == 0, 1.0, X[used].std(0))
    X, y = (X - X[used].mean(0)) / scale, (y - y[used].mean()) / y[used].std()
    first, second = used[:train], used[train:]
    return Problem(X[first], y[first], X[second], y[second])


def measure(
    quick: bool,
    fit: Callable[[ndarray, ndarray], Any],
    evidence: Callable[[Any], Any],
    predict: Callable[[Any, ndarray, ndarray], tuple[ndarray, ndarray]],
) -> dict[str, float]:
    """Time ``fit``, after a fit of another size so that compilation is not timed, and score what it gives.

    Parameters
    ----------
    fit : (X, y) -> model.
    evidence : model -> log evidence at its hyperparameters, nats.
    predict : (model, X, y) -> predictive mean and log density of y at X.
    """
    p = problem(quick)
    _, cold = timed(lambda: fit(p.X[:WARM_UP_ROWS], p.y[:WARM_UP_ROWS]))
    (model, seconds), memory = extra_memory(lambda: timed(lambda: fit(p.X, p.y)))
    (mean, log_prob), predict_seconds = timed(lambda: predict(model, p.X_test, p.y_test))
    return {
        "fit time": seconds,
        "log evidence": float(evidence(model)),
        "test NLPD": -float(log_prob.mean()),
        "test RMSE": float(((mean - p.y_test) ** 2).mean() ** 0.5),
        "fit memory": memory / 2**20,
        "prediction time": predict_seconds,
        "cold fit time": cold,
    }


def run_gpx(setting: Setting, priors: str | None) -> dict[str, float]:
    """gpx as a user has it in three lines."""
    import gpx

    def fit(X, y):
        return gpx.GP(gpx.kernels.Matern(nu=2.5, ard=True)).fit(X, y, priors=priors, seed=setting.seed)

    def predict(gp, X, y):
        prediction = gp.predict(X)
        return prediction.mean.numpy(), prediction.log_prob(y).numpy()

    return measure(setting.quick, fit, lambda gp: gp.log_evidence(), predict)


def run_sklearn(setting: Setting) -> dict[str, float]:
    """scikit-learn with its defaults: one L-BFGS-B run from unit hyperparameters."""
    import numpy as np
    from scipy.stats import norm
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    def fit(X, y):
        lengthscales: Any = np.ones(X.shape[1])
        kernel = ConstantKernel() * Matern(lengthscales, nu=2.5) + WhiteKernel()
        return GaussianProcessRegressor(kernel, random_state=setting.seed).fit(X, y)

    def predict(gp, X, y):
        mean, std = gp.predict(X, return_std=True)
        return mean, norm.logpdf(y, mean, std)

    return measure(setting.quick, fit, lambda gp: gp.log_marginal_likelihood_value_, predict)


def run_gpytorch(setting: Setting) -> dict[str, float]:
    """GPyTorch's ExactGP with Cholesky algebra: 100 steps of Adam at learning rate 0.1."""
    import gpytorch
    import torch

    class Model(gpytorch.models.ExactGP):
        def __init__(self, X, y):
            super().__init__(X, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean_module: Any = gpytorch.means.ConstantMean()
            base = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=X.shape[1])
            self.covar_module: Any = gpytorch.kernels.ScaleKernel(base)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def evidence(model: Any) -> Any:
        model.train()
        objective: Any = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        return len(model.train_targets) * objective(model(*model.train_inputs), model.train_targets)

    def fit(X, y):
        model = Model(torch.as_tensor(X), torch.as_tensor(y)).double()
        adam = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(100):
            adam.zero_grad()
            loss = -evidence(model) / len(y)
            loss.backward()
            adam.step()
        return model

    def predict(model, X, y):
        model.eval()
        with torch.no_grad():
            marginal: Any = model.likelihood(model(torch.as_tensor(X)))
            normal = torch.distributions.Normal(marginal.mean, marginal.stddev)
            return normal.mean.numpy(), normal.log_prob(torch.as_tensor(y)).numpy()

    torch.manual_seed(setting.seed)
    exact = gpytorch.settings.fast_computations(covar_root_decomposition=False, log_prob=False, solves=False)
    with exact, gpytorch.settings.max_cholesky_size(1_000_000):
        return measure(setting.quick, fit, lambda model: evidence(model).item(), predict)


TASK = Task(
    name="exact",
    description="Exact regression on elevators (2,000 + 1,000 rows), ARD Matern-5/2, parameters learned.",
    metrics=(
        Metric("fit time", "s"),
        Metric("log evidence", "nats", "difference"),
        Metric("test NLPD", "nats", "difference"),
        Metric("test RMSE", "sd of y"),
        Metric("fit memory", "MiB"),
        Metric("peak memory", "MiB"),
        Metric("prediction time", "s"),
        Metric("cold fit time", "s"),
    ),
    models={
        "gpx": lambda setting: run_gpx(setting, priors=None),
        "sklearn": run_sklearn,
        "gpx-weak": lambda setting: run_gpx(setting, priors="weak"),
        "gpytorch": run_gpytorch,
    },
)
