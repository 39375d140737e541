"""Gaussian processes in time: the evidence of a million points and its gradient, against celerite2, tinygp and GPyTorch."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.measure import timed
from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from numpy import ndarray

REPEATS = 7
CASES = {"irregular": 1_000_000, "regular": 1_000_000, "2,000 rows": 2_000}
NOISE, LENGTHSCALE = 0.1, 2.0
SCANNED = 100_000


def series(setting: Setting, case: str) -> tuple[ndarray, ndarray]:
    """A sine with noise at 1e6 (quick: 5e4) or 2,000 times, about 10 per unit."""
    import numpy as np

    n = min(50_000, CASES[case]) if setting.quick else CASES[case]
    random = np.random.default_rng(setting.seed)
    t = np.arange(n) / 10 if case == "regular" else np.sort(random.uniform(0, n / 10, n))
    return t, np.sin(t) + NOISE**0.5 * random.standard_normal(n)


def microseconds(work: Any, n: int) -> float:
    """Median time per point, after a first call."""
    work()
    return 1e6 / n * median(timed(work)[1] for _ in range(REPEATS))


def run_gpx(setting: Setting, nu: float) -> dict[str, float]:
    """The objective as `fit` evaluates it: sites, filter, gradients in all hyperparameters."""
    import torch

    import gpx
    from gpx.assemble import assemble
    from gpx.inputs import as_data

    found: dict[str, float] = {}
    for case in CASES:
        t, y = series(setting, case)
        kernel, likelihood = gpx.kernels.Matern(nu=nu, lengthscale=LENGTHSCALE), gpx.likelihoods.Gaussian(NOISE)
        gp = gpx.GP(kernel, likelihood, mean="zero", engine=gpx.engines.StateSpace())
        problem, objective, _ = assemble(gp, as_data(t, y))
        raws = [p for m in (*problem.prior.kernels, problem.likelihood) for p in m.parameters() if p.requires_grad]

        def value(problem=problem, objective=objective):
            with torch.no_grad():
                return float(objective(problem.anew()))

        def gradient(problem=problem, objective=objective, raws=raws):
            return torch.autograd.grad(objective(problem.anew()), raws)

        found[f"{case}: log evidence"] = value()
        found[f"{case}: evidence"] = microseconds(value, len(t))
        found[f"{case}: evidence and gradient"] = microseconds(gradient, len(t))
    return found


def run_scan(setting: Setting) -> dict[str, float]:
    """The torch path that other devices take, on the first 1e5 times and without the model around it."""
    import torch

    from gpx.kernels import Matern
    from gpx.linalg.scan import Scan
    from gpx.structure.state_space import state_space

    found: dict[str, float] = {}
    for case in CASES:
        t, y = (torch.as_tensor(v[:SCANNED]) for v in series(setting, case))
        layout, *form = state_space(Matern(nu=1.5, lengthscale=2.0)).at(t)
        numbers = [v.detach() for v in (*form, y / NOISE, torch.full_like(y, 1 / NOISE))]
        gaps = t.diff(prepend=t[:1])

        def value(layout=layout, gaps=gaps, numbers=numbers):
            with torch.no_grad():
                return float(Scan(layout, gaps, *numbers).log_density())

        def gradient(layout=layout, gaps=gaps, numbers=numbers):
            inputs = [v.clone().requires_grad_() for v in numbers]
            return torch.autograd.grad(Scan(layout, gaps, *inputs).log_density(), inputs)

        found[f"{case}: evidence"] = microseconds(value, len(t))
        found[f"{case}: evidence and gradient"] = microseconds(gradient, len(t))
    return found


def run_celerite2(setting: Setting) -> dict[str, float]:
    """An SHO term (two states): `compute` and `log_likelihood`; with gradients: its forward and reverse passes for the matrices."""
    import celerite2
    import numpy as np
    from celerite2 import backprop, terms

    found: dict[str, float] = {}
    term = terms.SHOTerm(S0=1.0, w0=1.0, Q=0.5**0.5)
    for case in CASES:
        t, y = series(setting, case)
        n = len(t)
        gp = celerite2.GaussianProcess(term, mean=0.0)

        def value(gp=gp, t=t, y=y, n=n):
            gp.compute(t, diag=np.full(n, NOISE))
            return gp.log_likelihood(y)

        def gradient(t=t, y=y, n=n):
            c, a, U, V = term.get_celerite_matrices(t, np.full(n, NOISE))
            J = len(c)
            d, W, S = backprop.factor_fwd(t, c, a, U, V, np.empty(n), np.empty((n, J)), np.empty((n, J, J)))
            Z, F = backprop.solve_lower_fwd(t, c, U, W, y[:, None], np.empty((n, 1)), np.empty((n, J, 1)))
            grads = [np.zeros_like(v) for v in (t, c, U, W, Z)]
            bZ, bd = -Z / d[:, None], 0.5 * (Z[:, 0] / d) ** 2 - 0.5 / d
            _, _, _, bW, _ = backprop.solve_lower_rev(t, c, U, W, y[:, None], Z, F, bZ, *grads)
            grads = [np.zeros_like(v) for v in (t, c, a, U, V)]
            return backprop.factor_rev(t, c, a, U, V, d, W, S, bd, bW, *grads)

        found[f"{case}: evidence"] = microseconds(value, n)
        found[f"{case}: evidence and gradient"] = microseconds(gradient, n)
    return found


def run_tinygp(setting: Setting) -> dict[str, float]:
    """Its quasiseparable Matern-3/2 kernel, compiled, told that the times are sorted; gradients in all hyperparameters."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import tinygp

    def evidence(logs: Any, t: Any, y: Any) -> Any:
        scale, variance, noise = jnp.exp(logs)
        kernel = variance * tinygp.kernels.quasisep.Matern32(scale)
        return tinygp.GaussianProcess(kernel, t, diag=noise, assume_sorted=True).log_probability(y)

    found: dict[str, float] = {}
    value, gradient = jax.jit(evidence), jax.jit(jax.value_and_grad(evidence))
    logs = jnp.log(jnp.array([LENGTHSCALE, 1.0, NOISE]))
    for case in CASES:
        t, y = map(jnp.asarray, series(setting, case))
        found[f"{case}: log evidence"] = float(value(logs, t, y))
        found[f"{case}: evidence"] = microseconds(lambda t=t, y=y: value(logs, t, y).block_until_ready(), len(t))
        found[f"{case}: evidence and gradient"] = microseconds(
            lambda t=t, y=y: jax.block_until_ready(gradient(logs, t, y)), len(t)
        )
    return found


def run_gpytorch(setting: Setting) -> dict[str, float]:
    """Exact inference by a Cholesky factor, Matern-3/2, 2,000 rows."""
    import gpytorch
    import torch

    case = "2,000 rows"
    t, y = map(torch.as_tensor, series(setting, case))
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).double()
    kernel.base_kernel.lengthscale, kernel.outputscale, likelihood.noise = LENGTHSCALE, 1.0, NOISE

    class Model(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(t, y, likelihood)
            self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model = Model()
    model.train()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    raws = list(model.parameters())

    def evidence() -> Any:
        return len(t) * marginal(model(t), y)

    def value() -> float:
        with torch.no_grad():
            return float(evidence())

    with gpytorch.settings.fast_computations(False, False, False):
        return {
            f"{case}: log evidence": value(),
            f"{case}: evidence": microseconds(value, len(t)),
            f"{case}: evidence and gradient": microseconds(lambda: torch.autograd.grad(evidence(), raws), len(t)),
        }


TASK = Task(
    name="state-space",
    description="Evidence of a series of 1e6 points: exact Matern kernels, celerite2's SHO term; of 2,000 also a dense one.",
    metrics=(
        *(Metric(f"{case}: {what}", "us/point") for case in CASES for what in ("evidence", "evidence and gradient")),
        *(Metric(f"{case}: log evidence", "nats", "difference") for case in CASES),
    ),
    models={
        "gpx-matern32": lambda setting: run_gpx(setting, 1.5),
        "gpx-matern52": lambda setting: run_gpx(setting, 2.5),
        "gpx-scan-matern32": run_scan,
        "celerite2": run_celerite2,
        "tinygp": run_tinygp,
        "gpytorch": run_gpytorch,
    },
    reference="celerite2",
)
