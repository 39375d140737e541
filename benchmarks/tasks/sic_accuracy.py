"""What sparse inverse Cholesky factors lose: priors, bounds, variances, and the published search for the posterior's factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.registry import Metric, Setting, Task

if TYPE_CHECKING:
    from torch import Tensor

NOISE, LENGTHSCALE, NEIGHBOURS = 0.01, 0.25, 30


def run_gpx(setting: Setting) -> dict[str, float]:
    """Matern-3/2 in the unit square; the seed is that of the points and of the draw."""
    import torch

    with torch.no_grad():
        return measured(setting)


def measured(setting: Setting) -> dict[str, float]:
    """All metrics; numbers."""
    import gpx
    from gpx import engines, likelihoods

    small, large = (150, 300) if setting.quick else (800, 1500)
    kernel = gpx.kernels.Matern(nu=1.5, lengthscale=LENGTHSCALE).double()
    found = {"KL of the prior, n = 1,500": divergence(kernel, *points(large, setting.seed)[:1])}
    x, f, noise = points(small, setting.seed, kernel)
    y = f + NOISE**0.5 * noise
    sic, exact = (posterior(kernel, x, y, e) for e in (engines.SIC(NEIGHBOURS), engines.Exact()))
    dense = posterior(kernel, x, y, engines.SIC(NEIGHBOURS, tolerance=0.0))
    ratio = dense.site_marginals.variance / exact.site_marginals.variance - 1
    found |= {
        "|exact evidence - bound|": abs(float(exact.log_density - sic.log_density)),
        "evidence of the prior - bound": of_prior(sic, y) - float(sic.log_density),
        "variances: mean error": float(ratio.abs().mean()),
        "variances: largest error": float(ratio.abs().max()),
    }
    targets = {
        "Gaussian": (likelihoods.Gaussian(noise=NOISE), y),
        "StudentT": (likelihoods.StudentT(df=4.0, scale=0.1), y),
        "Bernoulli": (likelihoods.Bernoulli(), (y > 0).double()),
    }
    few = slice(None if setting.quick else 400)  # the published search takes minutes
    for name, (likelihood, z) in targets.items():
        bounds = [elbo(kernel, likelihood, x[few], z[few], engines.SIC(10, method=m)) for m in ("sites", "dkl")]
        found[f"{name}: best bound - bound"] = bounds[1] - bounds[0]
    found["iterations to 1e-8, n = 1e5"] = iterations(kernel, 2_000 if setting.quick else 100_000, setting.seed)
    return found


def points(n: int, seed: int, kernel: Any = None) -> tuple[Tensor, ...]:
    """Inputs; with a kernel, a draw of f and white noise too."""
    import torch

    from gpx.kernels.dense import dense

    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    if kernel is None:
        return (x,)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    root = torch.linalg.cholesky(dense(kernel, x, x) + 1e-10 * torch.eye(n, dtype=torch.float64))
    return x, root @ z[:, 0], z[:, 1]


def posterior(kernel: Any, x: Tensor, y: Tensor, engine: Any) -> Any:
    """Of a centred model with known noise; numbers."""
    import gpytorch
    import torch

    from gpx.inputs import as_data
    from gpx.prior import Prior
    from gpx.sites import Sites

    prior = Prior(gpytorch.means.ZeroMean(), (kernel,))
    tau = torch.full((len(x), 1), 1 / NOISE, dtype=torch.float64)
    return engine.condition(prior, engine.plan(prior, as_data(x, y)), {}, Sites(y[:, None] * tau, tau))


def matrix(near: Any, u: Any) -> Tensor:
    """U as a dense matrix."""
    import numpy as np
    import torch

    whole = np.zeros((len(u), len(u)))
    for i, rows in enumerate(near):
        whole[rows[rows >= 0], i], whole[i, i] = u[i, :-1][rows >= 0], u[i, -1]
    return torch.from_numpy(whole)


def divergence(kernel: Any, x: Tensor) -> float:
    """``KL(exact || SIC) = -sum log U_ii - log det K / 2``."""
    import torch

    from gpx.engines import SIC
    from gpx.kernels.dense import dense

    found = posterior(kernel, x, torch.zeros(len(x), dtype=torch.float64), SIC(NEIGHBOURS)).solved[0]
    logdet = torch.linalg.slogdet(dense(kernel, found.pattern.x, found.pattern.x))[1]
    return float(-torch.from_numpy(found.u[:, -1]).log().sum() - 0.5 * logdet)


def of_prior(found: Any, y: Tensor) -> float:
    """The log density of the targets under the prior of the factor, by a dense matrix."""
    import torch

    solution = found.solved[0]
    U = matrix(solution.pattern.near, solution.u)
    z = torch.zeros_like(y).index_copy(0, solution.pattern.slots, y)
    covariance = torch.linalg.inv(U @ U.mT) + NOISE * torch.eye(len(y), dtype=torch.float64)
    return float(torch.distributions.MultivariateNormal(torch.zeros_like(z), covariance).log_prob(z))


def elbo(kernel: Any, likelihood: Any, x: Tensor, y: Tensor, engine: Any) -> float:
    """The bound at its sites."""
    import gpytorch

    from gpx.inference.objectives import ELBO
    from gpx.inference.problem import Problem
    from gpx.inference.rules import Variational
    from gpx.inputs import as_data
    from gpx.prior import Prior

    prior = Prior(gpytorch.means.ZeroMean(), (kernel,))
    return float(ELBO()(Problem.planned(prior, as_data(x, y), likelihood.double(), engine, Variational())))


def iterations(kernel: Any, n: int, seed: int) -> float:
    """Of conjugate gradients for white noise."""
    import numpy as np

    from gpx.engines import SIC
    from gpx.linalg.sparse_factor import conjugate_gradients

    (x,) = points(n, seed)
    found = posterior(kernel, x, x[:, 0], SIC(NEIGHBOURS)).solved[0]
    b = np.random.default_rng(seed).standard_normal(n)
    return float(conjugate_gradients(found.pattern.near, found.u, found.tau, found.v, b, 1e-8)[1])


TASK = Task(
    name="sic-accuracy",
    description="Sparse inverse Cholesky factors against dense algebra: Matern-3/2, lengthscale .25, noise .01, 800 points.",
    metrics=(
        Metric("KL of the prior, n = 1,500", "nats"),
        Metric("|exact evidence - bound|", "nats"),
        Metric("evidence of the prior - bound", "nats"),
        Metric("variances: mean error"),
        Metric("variances: largest error"),
        *(Metric(f"{name}: best bound - bound", "nats") for name in ("Gaussian", "StudentT", "Bernoulli")),
        Metric("iterations to 1e-8, n = 1e5"),
    ),
    models={"gpx": run_gpx},
    reference=None,
)
