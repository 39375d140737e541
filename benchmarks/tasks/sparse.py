"""Regression through inducing inputs: elevators and kin40k, 200 of them, 60 seconds, against GPyTorch's SVGP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

DATA = ("elevators", "kin40k")
INDUCING, SECONDS = 200, 60.0


def split(name: str, setting: Setting, rows: int = 1000) -> tuple[float, tuple[ndarray, ndarray, ndarray, ndarray]]:
    """The scale of y, and the given split of that number, standardised by its training rows: the quick version has few."""
    import numpy as np

    from gpx import datasets

    X, y, X_test, y_test = (v.numpy() for v in datasets.load(name).split(setting.seed))
    if setting.quick:
        X, y = X[:rows], y[:rows]
    center, level = X.mean(0), y.mean()
    scale, spread = np.where(np.ptp(X, axis=0) == 0, 1.0, X.std(0)), y.std()
    return float(spread), (
        (X - center) / scale,
        (y - level) / spread,
        (X_test - center) / scale,
        (y_test - level) / spread,
    )


def scores(name: str, mean: ndarray, log_prob: ndarray, y: ndarray, bound: float) -> dict[str, float]:
    """By name of the data."""
    return {
        f"{name}: RMSE": float(((mean - y) ** 2).mean() ** 0.5),
        f"{name}: NLPD": -float(log_prob.mean()),
        f"{name}: bound per row": bound,
    }


def run_gpx(setting: Setting, seconds: float, data: Sequence[str] = DATA, inducing: int = INDUCING) -> dict[str, float]:
    """As a user has it, with this limit of the time."""
    import warnings

    import gpx

    found: dict[str, float] = {}
    for name in data:
        _, (X, y, X_test, y_test) = split(name, setting)
        gp = gpx.GP(gpx.kernels.RBF(ard=True), engine=gpx.engines.SparseVariational(inducing))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gpx.FitWarning)  # the time is up
            gp.fit(X, y, max_seconds=seconds / (20 if setting.quick else 1))
        p = gp.predict(X_test)
        bound = gp.log_evidence() / len(y)
        found |= scores(name, p.mean.numpy(), p.log_prob(y_test).numpy(), y_test, bound)
    return found


def run_gpytorch(
    setting: Setting, seconds: float = SECONDS, data: Sequence[str] = DATA, inducing: int = INDUCING
) -> dict[str, float]:
    """SVGP as its examples have it: single precision, Adam at 0.01 on everything, batches of 512, k-means inducing inputs."""
    import torch
    from scipy.cluster.vq import kmeans2

    found: dict[str, float] = {}
    for name in data:
        X, y, X_test, y_test = (torch.as_tensor(v).float() for v in split(name, setting)[1])
        torch.manual_seed(setting.seed)
        centres, _ = kmeans2(X[:5000].numpy(), inducing, seed=setting.seed, minit="++")
        model, likelihood, objective = svgp(torch.as_tensor(centres), len(y))
        optimiser = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], lr=0.01)
        until = time.perf_counter() + seconds / (20 if setting.quick else 1)
        while time.perf_counter() < until:
            for rows in torch.randperm(len(y)).split(512):
                optimiser.zero_grad()
                loss = -objective(model(X[rows]), y[rows])
                loss.backward()
                optimiser.step()
                if time.perf_counter() > until:
                    break
        model.eval(), likelihood.eval()
        with torch.no_grad():
            parts = [likelihood(model(rows)) for rows in X_test.split(1024)]
            mean, sd = torch.cat([p.mean for p in parts]), torch.cat([p.stddev for p in parts])
            bound = sum(float(objective(model(X[r]), y[r])) * len(r) for r in torch.arange(len(y)).split(1024)) / len(y)
        log_prob = torch.distributions.Normal(mean, sd).log_prob(y_test)
        found |= scores(name, mean.numpy(), log_prob.numpy(), y_test.numpy(), bound)
    return found


def svgp(inducing: Any, rows: int) -> tuple[Any, Any, Any]:
    """Model, likelihood and objective of GPyTorch's example of stochastic variational regression."""
    import gpytorch

    class Model(gpytorch.models.ApproximateGP):
        def __init__(self) -> None:
            distribution = gpytorch.variational.CholeskyVariationalDistribution(len(inducing))
            super().__init__(gpytorch.variational.VariationalStrategy(self, inducing, distribution))
            self.mean_module = gpytorch.means.ConstantMean()
            kernel = gpytorch.kernels.RBFKernel(ard_num_dims=inducing.shape[1])
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model, likelihood = Model().train(), gpytorch.likelihoods.GaussianLikelihood().train()
    return model, likelihood, gpytorch.mlls.VariationalELBO(likelihood, model, num_data=rows)


def metrics(data: Sequence[str]) -> tuple[Metric, ...]:
    """What `scores` finds for each of them."""
    rows = (("RMSE", "", "ratio"), ("NLPD", "nats", "difference"), ("bound per row", "nats", "difference"))
    return tuple(Metric(f"{name}: {what}", unit, compare) for name in data for what, unit, compare in rows)


TASK = Task(
    name="sparse",
    description="Regression on 15,000 and 36,000 rows through 200 inducing inputs in 60 s (and in 15), against GPyTorch's SVGP in 60.",
    metrics=metrics(DATA),
    models={
        "gpx": lambda setting: run_gpx(setting, SECONDS),
        "gpx-15": lambda setting: run_gpx(setting, SECONDS / 4),
        "gpytorch": run_gpytorch,
    },
)
