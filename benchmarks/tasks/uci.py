"""Ten given splits of five small UCI sets through 100 inducing inputs, against exact inference and GPyTorch's SGPR."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting, Task
from benchmarks.report import table

if TYPE_CHECKING:
    from numpy import ndarray

SETS = ("yacht", "energy", "concrete", "wine", "housing")
INDUCING = 100


def splits(setting: Setting) -> list[tuple[str, float, tuple[ndarray, ndarray, ndarray, ndarray]]]:
    """Of every set: the name, the scale of y, and the split of that number, standardised by its training rows.

    The quick version has one set and 200 training rows.
    """
    from benchmarks.tasks.sparse import split

    return [(name, *split(name, setting, rows=200)) for name in SETS[: 1 if setting.quick else None]]


def measure(setting: Setting, fit: Any) -> dict[str, float]:
    """fit: (X, y, X_test, y_test) -> predictive log densities [N*], and the objective at the end."""
    found: dict[str, float] = {}
    for name, scale, (X, y, X_test, y_test) in splits(setting):
        (log_prob, objective), seconds = timed(lambda: fit(X, y, X_test, y_test))  # noqa: B023
        found |= {
            f"{name}: NLPD": math.log(scale) - float(log_prob.mean()),
            f"{name}: bound per row": objective / len(y),
            f"{name}: time": seconds,
        }
    return found


def run_gpx(setting: Setting, engine: str, objective: Any = "auto") -> dict[str, float]:
    """As a user has it."""
    import warnings

    import gpx

    def fit(X: ndarray, y: ndarray, X_test: ndarray, y_test: ndarray) -> tuple[ndarray, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gpx.FitWarning)  # some need more than 200 iterations
            gp = gpx.GP(gpx.kernels.RBF(ard=True), engine=engine, objective=objective).fit(X, y)
        return gp.predict(X_test).log_prob(y_test).numpy(), gp.log_evidence()

    return measure(setting, fit)


def run_power_ep(setting: Setting) -> dict[str, float]:
    """With the evidence of power EP, which is no bound, in place of the collapsed bound."""
    import gpx

    return run_gpx(setting, f"SparseVariational({INDUCING})", gpx.objectives.EPEvidence())


def run_gpytorch(setting: Setting, steps: int) -> dict[str, float]:
    """SGPR: double precision, inducing inputs by k-means and learned, so many steps of Adam at 0.05."""
    import gpytorch
    import torch
    from scipy.cluster.vq import kmeans2

    class Model(gpytorch.models.ExactGP):
        def __init__(self, X: Any, y: Any, likelihood: Any, inducing: Any):
            super().__init__(X, y, likelihood)
            self.mean_module: Any = gpytorch.means.ConstantMean()
            base = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=X.shape[1]))
            self.covar_module: Any = gpytorch.kernels.InducingPointKernel(base, inducing, likelihood)

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def fit(*parts: ndarray) -> tuple[ndarray, float]:
        X, y, X_test, y_test = (torch.as_tensor(v) for v in parts)
        centres, _ = kmeans2(parts[0], min(INDUCING, len(y)), seed=setting.seed, minit="++")
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        model = Model(X, y, likelihood, torch.as_tensor(centres)).double()
        objective: Any = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        adam, value = torch.optim.Adam(model.parameters(), lr=0.05), float("nan")
        for _ in range(steps):
            adam.zero_grad()
            loss = -objective(model(X), y)
            loss.backward()
            adam.step()
            value = -len(y) * float(loss.detach())
        model.eval()
        with torch.no_grad():
            p: Any = likelihood(model(X_test))
            return torch.distributions.Normal(p.mean, p.stddev).log_prob(y_test).numpy(), value

    torch.manual_seed(setting.seed)
    with gpytorch.settings.max_cholesky_size(1_000_000), gpytorch.settings.cholesky_max_tries(8):
        return measure(setting, fit)


def closing(records: Sequence[Mapping[str, Any]]) -> str:
    """Means over the splits with standard errors, and those of the differences from exact inference on the same splits."""
    rows = [["set", "model", "splits", "NLPD", "above exact", "bound per row", "time [s]"]]
    done = [r for r in records if "metrics" in r]
    for name in SETS:
        exact = {r["seed"]: r["metrics"].get(f"{name}: NLPD") for r in done if r["model"] == "exact"}
        for model in TASK.models:
            found = {r["seed"]: r["metrics"] for r in done if r["model"] == model and f"{name}: NLPD" in r["metrics"]}
            if not found:
                continue
            values = {seed: metrics[f"{name}: NLPD"] for seed, metrics in found.items()}
            above = [v - exact[seed] for seed, v in values.items() if exact.get(seed) is not None]
            rest = [mean(m[f"{name}: {what}"] for m in found.values()) for what in ("bound per row", "time")]
            cells = [_with_error(list(values.values())), _with_error(above) if model != "exact" else ""]
            rows.append([name, model, str(len(values)), *cells, f"{rest[0]:.3f}", f"{rest[1]:.1f}"])
    return table(rows)


def _with_error(values: Sequence[float]) -> str:
    if not values:
        return ""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):.3f} +- {error:.3f}"


TASK = Task(
    name="uci",
    description="Ten splits of five small sets, RBF-ARD, 100 inducing inputs, against exact inference and GPyTorch's SGPR.",
    metrics=tuple(
        Metric(f"{name}: {what}", unit, compare)
        for name in SETS
        for what, unit, compare in (
            ("NLPD", "nats", "difference"),
            ("bound per row", "nats", "difference"),
            ("time", "s", "ratio"),
        )
    ),
    models={
        "exact": lambda setting: run_gpx(setting, "Exact"),
        "gpx": lambda setting: run_gpx(setting, f"SparseVariational({INDUCING})"),
        "gpx-power-ep": run_power_ep,
        "gpytorch": lambda setting: run_gpytorch(setting, 500),
        "gpytorch-2000": lambda setting: run_gpytorch(setting, 2000),
    },
    reference="exact",
    closing=closing,
)
