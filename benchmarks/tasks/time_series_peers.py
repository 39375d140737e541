"""What a series can be predicted with besides gpx: each takes a Problem and gives means and variances at its test times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.tasks.series import Problem

if TYPE_CHECKING:
    from numpy import ndarray

MAX_HARMONICS = 8
ADAM_STEPS, QUICK_STEPS = 300, 20
LEARNING_RATE = 0.1
WINDOW, TOLERANCE = 50, 1e-4  # Adam stops once the loss per point has changed by less over so many steps
STEP = {"airline": 1 / 12, "mauna": 1 / 12, "gas": 1 / 12, "co2": 1 / 12, "internet": 1 / 8760, "temperature": 1 / 365}
SEASON: dict[str, dict[str, Any]] = {
    **{name: {"seasonal": 12} for name in ("airline", "mauna", "gas", "co2")},
    "solar": {"cycle": True, "stochastic_cycle": True, "damped_cycle": True, "cycle_period_bounds": (5, 20)},
    "internet": {"freq_seasonal": [{"period": 24, "harmonics": 6}, {"period": 168, "harmonics": 4}]},
    "temperature": {"freq_seasonal": [{"period": 365.25, "harmonics": 3}]},
}
TRENDS: tuple[dict[str, Any], ...] = (
    {"level": "lltrend"},
    {"level": "strend"},
    {"level": "rwdrift"},
    {"level": "lltrend", "autoregressive": 1},
    {"level": "rwdrift", "autoregressive": 1},
)


def simple(task: Problem) -> tuple[ndarray, ndarray]:
    """Interpolation: linear, with the variance of its leave-one-out residuals. Extrapolation: trend + Fourier regression."""
    return _linear(task) if task.kind == "interpolation" else _fourier(task)


def _linear(task: Problem) -> tuple[ndarray, ndarray]:
    import numpy as np

    t = np.unique(task.t)
    y = np.array([task.y[task.t == time].mean() for time in t])
    left_out = [np.interp(t[i], np.delete(t, i), np.delete(y, i)) - y[i] for i in range(1, len(t) - 1)]
    return np.interp(task.t_test, t, y), np.full(len(task.t_test), np.mean(np.square(left_out)))


def _fourier(task: Problem) -> tuple[ndarray, ndarray]:
    """A polynomial of degree 1 or 2 and up to 8 harmonics of the strongest period of the training rows, as the BIC has it."""
    import numpy as np
    import torch

    from gpx.linalg.periodogram import dominant_periods

    t, y, n = task.t, task.y, len(task.t)
    period = dominant_periods(torch.as_tensor(t), torch.as_tensor(y), limit=1)

    def design(times: ndarray, degree: int, harmonics: int) -> ndarray:
        u = (times - t.mean()) / np.ptp(t)
        angles = [2 * np.pi * k * times / period[0] for k in range(1, harmonics + 1)]
        return np.stack([u**j for j in range(degree + 1)] + [f(a) for a in angles for f in (np.cos, np.sin)], 1)

    def bic(choice: tuple[int, int]) -> float:
        A = design(t, *choice)
        residual = y - A @ np.linalg.lstsq(A, y, rcond=None)[0]
        return n * np.log(np.mean(residual**2)) + np.log(n) * A.shape[1]

    most = min(MAX_HARMONICS, n // 4) if period else 0
    choice = min(((d, k) for d in (1, 2) for k in range(most + 1)), key=bic)
    A, B = design(t, *choice), design(task.t_test, *choice)
    weights = np.linalg.lstsq(A, y, rcond=None)[0]
    noise = np.sum((y - A @ weights) ** 2) / (n - A.shape[1])
    return B @ weights, noise * (1 + np.sum((B @ np.linalg.pinv(A.T @ A)) * B, 1))


def unobserved_components(task: Problem) -> tuple[ndarray, ndarray] | None:
    """statsmodels: trend, season of the natural period and noise on the lattice of the stamps, test stamps missing.

    The trend (local linear, smooth, or random walk with drift; with or without an autoregression of order 1) is that of the
    least AIC. None where a stamp on the lattice is in training and test rows, or no smoother is finite.
    """
    import numpy as np

    origin, step = min(task.t[0], task.t_test[0]), STEP.get(task.name, 1.0)
    place, place_test = (np.rint((t - origin) / step).astype(int) for t in (task.t, task.t_test))
    if len(np.intersect1d(place, place_test)):
        return None
    centre, scale = task.y.mean(), task.y.std()
    lattice = np.full(max(place.max(), place_test.max()) + 1, np.nan)
    for i in np.unique(place):
        lattice[i] = (task.y[place == i].mean() - centre) / scale
    test = np.unique(place_test, return_inverse=True)
    for exact in (True, False):  # where one start of the filter fails, the other may not
        fits = [_smoothed(lattice, {**trend, **SEASON[task.name]}, exact, test[0]) for trend in TRENDS]
        usable = [
            (aic, mean, variance) for aic, mean, variance in fits if np.isfinite(mean).all() and variance.min() > 0
        ]
        if usable:
            _, mean, variance = min(usable, key=lambda fit: fit[0])
            return mean[test[1]] * scale + centre, variance[test[1]] * scale**2
    return None


def _smoothed(lattice: ndarray, form: dict[str, Any], exact: bool, places: ndarray) -> tuple[float, ndarray, ndarray]:
    """AIC of a model, and means and variances of the targets at places of the lattice."""
    import numpy as np
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    model = UnobservedComponents(lattice, **form, use_exact_diffuse=exact)
    fit = model.fit(method="lbfgs", maxiter=500, disp=False)
    h, smoothed = model.ssm["design"][0], fit.smoother_results
    spread = np.einsum("i,ijt,j->t", h, smoothed.smoothed_state_cov[:, :, places], h)
    return fit.aic, (h @ smoothed.smoothed_state)[places], spread + model.ssm["obs_cov", 0, 0]


def gpytorch_exact(task: Problem, kernel: Any, steps: int) -> tuple[ndarray, ndarray]:
    """ExactGP on standardised times and targets, Adam from GPyTorch's defaults; periods start where those of gpx do.

    Arguments: kernel: the one of gpx at its start, which is built again of GPyTorch's classes.
    """
    import gpytorch
    import torch

    x, y, new = (torch.as_tensor(v) for v in (task.t, task.y, task.t_test))
    start, unit, centre, scale = x.mean(), x.std(), y.mean(), y.std()
    x, y, new = (x - start) / unit, (y - centre) / scale, (new - start) / unit

    class Model(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean_module: Any = gpytorch.means.ConstantMean()
            self.covar_module: Any = translated(kernel, float(unit))

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model: Any = Model().double()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    losses: list[float] = []
    with gpytorch.settings.max_cholesky_size(10_000):
        for _ in range(steps):
            adam.zero_grad()
            loss = -objective(model(x), y)
            loss.backward()
            adam.step()
            losses.append(loss.item())
            if len(losses) > WINDOW and abs(losses[-1] - losses[-1 - WINDOW]) < TOLERANCE:
                break
        model.eval()
        with torch.no_grad():
            predictive = model.likelihood(model(new))
            mean, variance = predictive.mean, predictive.variance
    return (mean * scale + centre).numpy(), (variance * scale**2).numpy()


def translated(kernel: Any, unit: float) -> Any:
    """A kernel of GPyTorch's classes, for times in that unit, with the structure and the periods of one of gpx."""
    import gpytorch

    from gpx import kernels

    theirs = gpytorch.kernels
    if isinstance(kernel, kernels.Sum):
        return theirs.AdditiveKernel(*(translated(part, unit) for part in kernel.kernels))
    if isinstance(kernel, kernels.Product):
        return theirs.ProductKernel(*(translated(part, unit) for part in kernel.kernels))
    if isinstance(kernel, kernels.Linear):
        return theirs.LinearKernel()
    if isinstance(kernel, kernels.Constant):
        return theirs.ConstantKernel()
    if isinstance(kernel, kernels.Matern):
        return theirs.ScaleKernel(theirs.MaternKernel(nu=kernel.nu))
    if isinstance(kernel, kernels.HidaMatern):
        cosine = theirs.CosineKernel()
        cosine.period_length = 1 / (float(kernel.frequency.detach()) * unit)
        return theirs.ScaleKernel(theirs.MaternKernel(nu=kernel.order + 0.5) * cosine)
    if isinstance(kernel, kernels.QuasiPeriodic):
        season = theirs.PeriodicKernel()
        season.period_length = float(kernel.period.detach()) / unit
        return theirs.ScaleKernel(season * theirs.MaternKernel(nu=kernel.order + 0.5))
    raise TypeError(f"no counterpart of {kernel!r}")
