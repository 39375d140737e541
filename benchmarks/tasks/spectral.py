"""Spectral mixtures of ten components on six series, interpolated and extrapolated, from automatic starts.

One configuration for all: ``gpx.GP(SpectralMixture(10)).fit(t, y)``. GPyTorch's kernel starts by its own
``initialize_from_data`` and is optimised by Adam, as in its example; times and targets are standardised for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task
from benchmarks.report import Record, table
from benchmarks.tasks.series import KINDS, SERIES, Problem, score

if TYPE_CHECKING:
    from numpy import ndarray

TSDLR = SERIES[:6]
MIXTURES = 10
RESTARTS = 5
ADAM_STEPS, QUICK_STEPS = 300, 20
LEARNING_RATE = 0.1


def gpx_model(build: Callable[[Any], Any], restarts: int = 0) -> Callable[[Setting], dict[str, float]]:
    """Fits of a kernel of gpx with everything at its default."""

    def run(setting: Setting) -> dict[str, float]:
        import warnings

        import gpx

        def predict(task: Problem) -> tuple[ndarray, ndarray]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", gpx.FitWarning)  # an end at max_iter is an end
                gp = gpx.GP(build(gpx.kernels)).fit(task.t, task.y, restarts=restarts, seed=setting.seed)
            made = gp.predict(task.t_test)
            return made.mean.numpy(), made.variance.numpy()

        return score(predict, setting, TSDLR)

    return run


def run_gpytorch(setting: Setting) -> dict[str, float]:
    """ExactGP with SpectralMixtureKernel; the seed is that of its random start."""
    import gpytorch
    import torch

    steps = QUICK_STEPS if setting.quick else ADAM_STEPS

    def predict(task: Problem) -> tuple[ndarray, ndarray]:
        torch.manual_seed(setting.seed)
        x, y, new = (torch.as_tensor(v) for v in (task.t, task.y, task.t_test))
        start, unit, centre, scale = x.mean(), x.std(), y.mean(), y.std()
        x, y, new = (x - start) / unit, (y - centre) / scale, (new - start) / unit

        class Model(gpytorch.models.ExactGP):
            def __init__(self) -> None:
                super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
                self.mean_module: Any = gpytorch.means.ConstantMean()
                self.covar_module: Any = gpytorch.kernels.SpectralMixtureKernel(num_mixtures=MIXTURES)
                self.covar_module.initialize_from_data(x, y)

            def forward(self, x: Any) -> Any:
                return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

        model: Any = Model().double()
        objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        model.train()
        with gpytorch.settings.max_cholesky_size(10_000):
            for _ in range(steps):
                adam.zero_grad()
                loss = -objective(model(x), y)
                loss.backward()
                adam.step()
            model.eval()
            with torch.no_grad():
                predictive = model.likelihood(model(new))
                mean, variance = predictive.mean, predictive.variance
        return (mean * scale + centre).numpy(), (variance * scale**2).numpy()

    return score(predict, setting, TSDLR)


def run_noise(setting: Setting) -> dict[str, float]:
    """A normal distribution with the mean and variance of the training targets."""
    import numpy as np

    def predict(task: Problem) -> tuple[ndarray, ndarray]:
        return np.full(len(task.t_test), task.y.mean()), np.full(len(task.t_test), task.y.var())

    return score(predict, setting, TSDLR)


def closing(records: Sequence[Record]) -> str:
    """NLPD of every problem, and how often gpx's spectral mixture is better than each of the others."""
    from statistics import median

    values: dict[tuple[str, str], list[float]] = {}
    for record in records:
        for name, value in record.get("metrics", {}).items():
            values.setdefault((record["model"], name), []).append(value)
    models = [m for m in MODELS if any(model == m for model, _ in values)]
    names = [f"{kind}, {series}: NLPD" for kind in KINDS for series in TSDLR]
    names = [name for name in names if ("gpx", name) in values]
    found = {m: [median(values[m, name]) if (m, name) in values else float("inf") for name in names] for m in models}
    rows = [[name, *(f"{found[m][i]:.3f}" for m in models)] for i, name in enumerate(names)]
    counts = [
        f"gpx is better than {m} on {sum(a < b for a, b in zip(found['gpx'], found[m], strict=True))} of {len(names)}."
        for m in models
        if m != "gpx" and "gpx" in models
    ]
    return "\n\n".join([table([["", *models], *rows]), "\n".join(counts)])


MODELS: dict[str, Callable[[Setting], dict[str, float]]] = {
    "gpx": gpx_model(lambda k: k.SpectralMixture(MIXTURES)),
    "gpx, StudentMixture": gpx_model(lambda k: k.StudentMixture(MIXTURES)),
    "gpytorch": run_gpytorch,
    "gpx, RBF + Periodic + Linear": gpx_model(lambda k: k.RBF() + k.Periodic() + k.Linear(), RESTARTS),
    "noise only": run_noise,
}

TASK = Task(
    name="spectral",
    description=(
        f"Six series, half of each interpolated and the last fifth extrapolated, by spectral mixtures of {MIXTURES} components"
        " from automatic starts (means over the series; NLPD in nats per point, original units)."
    ),
    metrics=tuple(
        Metric(f"{kind}: mean {what}", unit, compare)
        for kind in KINDS
        for what, unit, compare in (
            ("NLPD", "nats", "difference"),
            ("RMSE / std", "", "ratio"),
            ("seconds", "s", "ratio"),
        )
    ),
    models=MODELS,
    closing=closing,
)
