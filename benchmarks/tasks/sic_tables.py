"""Neighbours against inducing inputs on tables: elevators, bike, kin40k, protein."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task
from benchmarks.tasks.sparse import split

if TYPE_CHECKING:
    from numpy import ndarray

DATA = ("elevators", "bike", "kin40k", "protein")
SECONDS = {"svgp": 600.0, "vnngp": 600.0}


def scores(name: str, mean: ndarray, variance: ndarray, y: ndarray, began: float) -> dict[str, float]:
    """By name of the data; Gaussian predictions of standardised targets."""
    import numpy as np

    density = -0.5 * (np.log(2 * np.pi * variance) + (y - mean) ** 2 / variance)
    return {
        f"{name}: NLPD": -float(density.mean()),
        f"{name}: RMSE": float(((mean - y) ** 2).mean() ** 0.5),
        f"{name}: seconds": time.perf_counter() - began,
    }


def run_gpx(setting: Setting) -> dict[str, float]:
    """As a user has it."""
    import warnings

    import gpx

    found: dict[str, float] = {}
    for name in DATA:
        _, (X, y, X_test, y_test) = split(name, setting)
        began = time.perf_counter()
        gp = gpx.GP(gpx.kernels.Matern(nu=1.5, ard=True), engine=gpx.engines.SIC())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gpx.FitWarning)
            gp.fit(X, y)
        p = gp.predict(X_test)
        found |= scores(name, p.mean.numpy(), p.variance.numpy(), y_test, began)
    return found


def run_gpboost(approximation: str, **settings: Any) -> Any:
    """GPBoost's model with a Matern-3/2 kernel and a lengthscale per column."""

    def run(setting: Setting) -> dict[str, float]:
        import gpboost

        found: dict[str, float] = {}
        for name in DATA:
            _, (X, y, X_test, y_test) = split(name, setting)
            began = time.perf_counter()
            model = gpboost.GPModel(
                gp_coords=X, cov_function="matern_ard", cov_fct_shape=1.5, likelihood="gaussian", gp_approx=approximation,
                seed=setting.seed, **settings,
            )  # fmt: skip
            level = y.mean()
            model.fit(y=y - level)
            p = model.predict(gp_coords_pred=X_test, predict_var=True, predict_response=True)
            found |= scores(name, p["mu"] + level, p["var"], y_test, began)
        return found

    return run


def run_svgp(setting: Setting) -> dict[str, float]:
    """GPyTorch's stochastic variational GP with 1,024 inducing inputs."""
    return run_gpytorch(setting, "svgp")


def run_vnngp(setting: Setting) -> dict[str, float]:
    """GPyTorch's variational nearest-neighbour GP: inducing inputs are the data, 256 neighbours."""
    return run_gpytorch(setting, "vnngp")


def run_gpytorch(setting: Setting, kind: str) -> dict[str, float]:
    """As its examples have it: single precision, Adam at 0.01, for ten minutes of the processor or 100 epochs."""
    import torch

    found: dict[str, float] = {}
    for name in DATA:
        X, y, X_test, y_test = (torch.as_tensor(v).float() for v in split(name, setting)[1])
        torch.manual_seed(setting.seed)
        began = time.perf_counter()
        model, likelihood, objective = gpytorch_model(kind, X, y, setting)
        optimiser = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], lr=0.01)
        until = time.process_time() + SECONDS[kind] / (60 if setting.quick else 1)
        for rows in (rows for _ in range(100) for rows in torch.randperm(len(y)).split(512)):
            if time.process_time() > until:
                break
            optimiser.zero_grad()
            loss = -step(kind, model, objective, X, y, rows)
            loss.backward()
            optimiser.step()
        model.eval(), likelihood.eval()
        with torch.no_grad():
            parts = [likelihood(model(rows)) for rows in X_test.split(512)]
        mean, variance = (torch.cat([getattr(p, v) for p in parts]).double().numpy() for v in ("mean", "variance"))
        found |= scores(name, mean, variance, y_test.double().numpy(), began)
    return found


def step(kind: str, model: Any, objective: Any, X: Any, y: Any, rows: Any) -> Any:
    """The objective of a batch."""
    if kind == "svgp":
        return objective(model(X[rows]), y[rows])
    output = model(x=None)  # a batch of its own choice
    return objective(output, y[model.variational_strategy.current_training_indices])


def gpytorch_model(kind: str, X: Any, y: Any, setting: Setting) -> tuple[Any, Any, Any]:
    """Model, likelihood and objective of GPyTorch's examples, with a Matern-3/2 kernel."""
    import gpytorch
    import torch
    from scipy.cluster.vq import kmeans2

    v = gpytorch.variational

    class Model(gpytorch.models.ApproximateGP):
        def __init__(self) -> None:
            if kind == "svgp":
                count = min(1024, len(X) // 2)
                centres, _ = kmeans2(X[:8000].numpy(), count, seed=setting.seed, minit="++", missing="warn")
                z = torch.as_tensor(centres)
                super().__init__(v.VariationalStrategy(self, z, v.CholeskyVariationalDistribution(count)))
            else:
                neighbours = min(256, len(X) // 4)
                strategy = v.NNVariationalStrategy(
                    self, X, v.MeanFieldVariationalDistribution(len(X)), k=neighbours, training_batch_size=256
                )
                super().__init__(strategy)
            self.mean_module = gpytorch.means.ConstantMean()
            kernel = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=X.shape[1])
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

        def __call__(self, x: Any, prior: bool = False, **settings: Any) -> Any:
            if x is not None and x.dim() == 1:
                x = x.unsqueeze(-1)
            return self.variational_strategy(x=x, prior=False, **settings)

    model, likelihood = Model().train(), gpytorch.likelihoods.GaussianLikelihood().train()
    return model, likelihood, gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(y))


TASK = Task(
    name="sic-tables",
    description="Four tables by 30 neighbours, against GPBoost's Vecchia and VIF approximations, GPyTorch's VNNGP and SVGP.",
    metrics=tuple(
        Metric(f"{name}: {what}", unit, compare)
        for name in DATA
        for what, unit, compare in (("NLPD", "nats", "difference"), ("RMSE", "", "ratio"), ("seconds", "s", "ratio"))
    ),
    models={
        "gpx": run_gpx,
        "gpboost-vecchia": run_gpboost("vecchia", num_neighbors=30),
        "gpboost-vif": run_gpboost("full_scale_vecchia", num_neighbors=30, num_ind_points=200),
        "gpytorch-svgp": run_svgp,
        "gpytorch-vnngp": run_vnngp,
    },
)
