"""Regression with 4,096 orthogonal features: elevators, against GPyTorch's SVGP with 1,024 inducing inputs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

NAME = "elevators"
FEATURES, INDUCING, EPOCHS, BATCH = 4096, 1024, 50, 512


def scores(mean: ndarray, log_prob: ndarray, y: ndarray, seconds: float) -> dict[str, float]:
    """What is measured; seconds: of the fit and all predictions."""
    return {
        "RMSE": float(((mean - y) ** 2).mean() ** 0.5),
        "NLPD": -float(log_prob.mean()),
        "time": seconds,
    }


def run_gpx(setting: Setting, features: int, kind: str = "orthogonal") -> dict[str, float]:
    """As a user has it."""
    import gpx
    from benchmarks.tasks.sparse import split

    _, (X, y, X_test, y_test) = split(NAME, setting)
    engine = gpx.engines.Features(features // (16 if setting.quick else 1), kind)
    began = time.perf_counter()
    gp = gpx.GP(gpx.kernels.RBF(ard=True), engine=engine).fit(X, y)
    p = gp.predict(X_test)
    found = scores(p.mean.numpy(), p.log_prob(y_test).numpy(), y_test, time.perf_counter() - began)
    return found | {"log evidence per row": gp.log_evidence() / len(y)}


def run_gpytorch(setting: Setting) -> dict[str, float]:
    """SVGP as its examples have it: single precision, Adam at 0.01 on everything, batches of 512, k-means inducing inputs."""
    import torch
    from scipy.cluster.vq import kmeans2

    from benchmarks.tasks.sparse import split, svgp

    X, y, X_test, y_test = (torch.as_tensor(v).float() for v in split(NAME, setting)[1])
    size, epochs = (INDUCING // 16, 2) if setting.quick else (INDUCING, EPOCHS)
    began = time.perf_counter()
    torch.manual_seed(setting.seed)
    centres, _ = kmeans2(X[:5000].numpy(), size, seed=setting.seed, minit="++")
    model, likelihood, objective = svgp(torch.as_tensor(centres), len(y))
    optimiser = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], lr=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(BATCH):
            optimiser.zero_grad()
            loss: Any = -objective(model(X[rows]), y[rows])
            loss.backward()
            optimiser.step()
    model.eval()
    likelihood.eval()
    with torch.no_grad():
        parts = [likelihood(model(rows)) for rows in X_test.split(1024)]
        mean, sd = torch.cat([p.mean for p in parts]), torch.cat([p.stddev for p in parts])
    log_prob = torch.distributions.Normal(mean, sd).log_prob(y_test)
    return scores(mean.numpy(), log_prob.numpy(), y_test.numpy(), time.perf_counter() - began)


TASK = Task(
    name="features",
    description="Regression on 15,000 rows of 18 columns with 4,096 features (and 1,024), against 50 epochs of GPyTorch's SVGP(1024).",
    metrics=(
        Metric("RMSE"),
        Metric("NLPD", "nats", "difference"),
        Metric("time", "s"),
        Metric("peak_rss", "MiB"),
    ),
    models={
        "gpx": lambda setting: run_gpx(setting, FEATURES),
        "gpx-1024": lambda setting: run_gpx(setting, FEATURES // 4),
        "gpx-iid": lambda setting: run_gpx(setting, FEATURES, "iid"),
        "gpytorch": run_gpytorch,
    },
)
