"""Laws of an engine that is exact: everything it says is what plain numpy says."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import gpytorch
import numpy as np
import torch
from torch import Tensor

from gpx.engines import Engine
from gpx.errors import FitWarning, StructureError
from gpx.gp import GP
from gpx.inputs import Data, as_data
from gpx.kernels import Linear, Matern, Periodic
from gpx.kernels.dense import dense, diagonal
from gpx.likelihoods import Gaussian
from gpx.posterior import Posterior, make_generator
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.structure.metric import has_metric
from gpx.testing.assertions import as_array, close, copies, finite
from gpx.testing.cases import points, targets
from gpx.testing.reference import DenseGP

STEP, FINITE = 1e-4, 1e-6  # of central differences along the sites, and their accuracy
FALL = 1e-9  # of an objective, relative: rounding


@dataclass(frozen=True)
class Setting:
    """One data set for an engine: targets z [N, C] of precision tau [N, C], tau = 0 where missing."""

    engine: Engine
    kernel: gpytorch.kernels.Kernel
    x: Tensor
    z: Tensor
    tau: Tensor
    tolerance: float

    def posterior(self) -> Posterior:
        """The engine's posterior, differentiable in the kernel, z and tau."""
        prior = Prior(gpytorch.means.ZeroMean(), (self.kernel,))
        plan = self.engine.plan(prior, self.data)
        params = self.engine.parameters(prior, plan)
        return self.engine.condition(prior, plan, params, self.sites)

    @property
    def sites(self) -> Sites:
        """nu = tau z."""
        return Sites(self.z * self.tau, self.tau)

    @property
    def data(self) -> Data:
        """What the engine plans for: NaN where there is no target."""
        missing = torch.full_like(self.z, math.nan)
        data = as_data(self.x, torch.where(self.tau > 0, self.z, missing).detach())
        return replace(data, x=self.x)

    def reference(self, column: int) -> DenseGP:
        """The same problem for one column in plain numpy."""
        tau = self.tau[:, column].detach()
        y = torch.where(tau > 0, self.z[:, column].detach(), torch.nan)
        noise = torch.where(tau > 0, 1 / tau, torch.ones_like(tau))
        return DenseGP(self.matrix(self.x, self.x), y.numpy(), noise.numpy())

    def matrix(self, a: Tensor, b: Tensor) -> np.ndarray:
        """The dense kernel matrix."""
        return dense(self.kernel, a, b).detach().numpy()

    def rows(self, index: Any) -> Setting:
        """Some of the data, or all in another order."""
        return replace(self, x=self.x[index], z=self.z[index], tau=self.tau[index])

    def close(self, actual: Any, expected: Any, law: str, factor: float = 1.0) -> None:
        """Assert equality within the tolerance, relative to the largest entry (but to no less than 1e-6)."""
        largest = float(np.nanmax(np.abs(as_array(expected)), initial=1e-6))
        text = f"{law} ({type(self.engine).__name__}, {' '.join(repr(self.kernel).split())})"
        close(actual, expected, text, atol=self.tolerance * factor * largest)


def check_engine(
    engine: Engine,
    kernels: Sequence[gpytorch.kernels.Kernel] | None = None,
    x: Tensor | None = None,
    *,
    tolerance: float = 1e-8,
    seed: int = 0,
) -> None:
    """Check the laws of an exact engine.

    - log density, marginals, joint covariance and leave-one-out equal plain numpy, and so do all gradients;
    - log density and log partition differ by the normalisers of the sites;
    - a datum without precision is a datum left out, per column; without any, the posterior is the prior;
    - columns are independent problems that share the kernel;
    - the order of the data does not matter, duplicate inputs and n = 1, 2 are allowed;
    - the log partition has the gradient ``(m, -(v + m^2) / 2)`` in the sites; `response`, `slope` and the gradient of the
      slope are central differences; `with_sites` equals conditioning on these sites; a site without precision tilts;
    - `update` equals conditioning on everything; a posterior is not changed by it;
    - derivatives, where there are any, are limits of differences;
    - variances are never negative, `sample` and `paths` are reproducible and finite;
    - the engine is a frozen object of settings that deep copies and pickles.

    Arguments: engine: the engine. kernels: those it is checked with; None: a Matern, a product and a sum. x: inputs [N, D],
    N >= 4, distinct; None: 9 random ones with one column; where all are whole numbers, so are new inputs, and labels are asked
    for anew. tolerance: relative to
    the largest entry.
    Raises: AssertionError that names the law and the kernel.

    >>> from gpx.engines import Exact
    >>> check_engine(Exact())
    """
    before = repr(engine)
    _check(engine, LAWS, kernels, x, tolerance, seed)
    assert repr(engine) == before, f"the engine changed: {before} became {engine!r}."
    assert all(other == engine for other in copies(engine).values()), f"a copy of {before} differs from it."


def check_conditioning(
    engine: Engine, kernels: Sequence[gpytorch.kernels.Kernel] | None = None, x: Tensor | None = None, *,
    tolerance: float = 1e-8, seed: int = 0,
) -> None:  # fmt: skip
    """Check those laws of `check_engine` that compare posteriors with each other: they hold for improper priors, too.

    Arguments and errors: as there.

    >>> from gpx.engines import StateSpace
    >>> check_conditioning(StateSpace())
    """
    _check(engine, CONDITIONING, kernels, x, tolerance, seed)


def _check(
    engine: Engine, laws: Sequence[Callable[[Setting], None]], kernels: Sequence[gpytorch.kernels.Kernel] | None,
    x: Tensor | None, tolerance: float, seed: int,
) -> None:  # fmt: skip
    if kernels is None:
        kernels = [Matern(nu=1.5, lengthscale=0.8), Matern(nu=2.5) * Periodic(period=1.5), Matern(nu=0.5) + Linear()]
    x = points(9, 1, seed) if x is None else x.detach().double()
    for kernel in kernels:
        setting = _setting(engine, copy.deepcopy(kernel).double(), x, tolerance, seed)
        for law in laws:
            law(setting)


def check_fit(
    engine: Engine, kernel: gpytorch.kernels.Kernel | None = None, x: Tensor | None = None, *, seed: int = 0
) -> None:
    """Check that a short fit with an engine, exact or not, does what fits do.

    - its objective is not below that of the hyperparameters where it starts, and neither falls with more iterations;
    - its means and variances at the data, and between them unless all are whole numbers, are finite, and variances positive.

    Arguments: engine: the engine. kernel: whose values are the start; None: a Matern. x: inputs [N, D]; None: 24 random ones with
    one column. Targets are draws of a smooth function with noise.
    Raises: AssertionError that names the law and the engine. Cost: two fits of at most three iterations.

    >>> from gpx.engines import Exact
    >>> check_fit(Exact())
    """
    x = points(24, 1, seed) if x is None else x.detach().double()
    gp = GP(
        Matern(nu=2.5, lengthscale=0.8, outputscale=1.0) if kernel is None else kernel, Gaussian(0.3), engine=engine
    )
    before, y = repr(engine), targets(x, seed=seed)
    reached = [copy.deepcopy(gp).condition(x, y).log_evidence()]
    for iterations in (1, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # so few iterations need not be enough
            fitted = copy.deepcopy(gp).fit(x, y, max_iter=iterations, priors=None)
        assert fitted.result_ is not None
        reached.append(fitted.result_.objective)
    name = type(engine).__name__
    finite(torch.tensor(reached), f"objectives of a fit ({name})")
    allowed = FALL * max(1.0, *map(abs, reached))
    assert all(b >= a - allowed for a, b in pairwise(reached)), f"the objective of a fit fell ({name}): {reached}."
    between = 0.5 * (x[1:] + x[:-1])
    whole = not has_metric(fitted.kernel_) or torch.equal(x, x.round())
    prediction = fitted.predict(x if whole else torch.cat([x, between]))
    finite(prediction.mean, f"means after a fit ({name})")
    finite(prediction.variance, f"variances after a fit ({name})")
    assert bool((prediction.variance > 0).all()), f"variances after a fit are not positive ({name})."
    assert repr(engine) == before, f"the engine changed: {before} became {engine!r}."


def _setting(engine: Engine, kernel: gpytorch.kernels.Kernel, x: Tensor, tolerance: float, seed: int) -> Setting:
    """Two columns with different missing cells and precisions."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(x), 2, generator=generator, dtype=torch.float64)
    tau = 2 + 8 * torch.rand(len(x), 2, generator=generator, dtype=torch.float64)
    tau[1, 0] = tau[2, 1] = tau[3, :] = 0
    return Setting(engine, kernel, x, z, tau, tolerance)


def _agrees_with_numpy(s: Setting) -> None:
    posterior, references = s.posterior(), [s.reference(c) for c in (0, 1)]
    s.close(posterior.log_density, sum(r.log_evidence() for r in references), "log density")
    x_new = points(4, s.x.shape[1], seed=5)
    if not has_metric(s.kernel):
        x_new = s.x[-4:].flip(0)
    elif torch.equal(s.x, s.x.round()):
        x_new = (9 * x_new).round()
    x_new = torch.cat([x_new, s.x[:2]])
    mean, variance = posterior.marginals(x_new)
    joint_mean, covariance = posterior.joint(x_new)
    loo_mean, loo_variance = posterior.leave_one_out()
    for c, reference in enumerate(references):
        expected_mean, expected_covariance = reference.predict(s.matrix(x_new, s.x), s.matrix(x_new, x_new))
        s.close(mean[:, c], expected_mean, "mean")
        s.close(joint_mean[:, c], expected_mean, "joint mean")
        s.close(variance[:, c], np.diag(expected_covariance), "variance")
        s.close(covariance[c], expected_covariance, "joint covariance")
        m, v = reference.leave_one_out()
        s.close(loo_mean[:, c], m, "leave-one-out mean")
        s.close(loo_variance[:, c], v, "leave-one-out variance")
    marginals = posterior.site_marginals
    mean, variance = posterior.marginals(s.x)
    s.close(marginals.mean, mean, "mean of the sites' function")
    s.close(marginals.variance + marginals.extra, variance, "variance of the sites' function")


def _partition(s: Setting) -> None:
    posterior, tau = s.posterior(), s.tau[s.tau > 0]
    heights = 0.5 * ((2 * math.pi / tau).log() + (s.z[s.tau > 0].square() * tau)).sum()
    s.close(posterior.log_partition, posterior.log_density + heights, "log partition")


def _gradients(s: Setting) -> None:
    z, tau = s.z.clone().requires_grad_(), s.tau.clone().requires_grad_()
    params = [p for p in s.kernel.parameters() if p.requires_grad]
    grads = torch.autograd.grad(replace(s, z=z, tau=tau).posterior().log_density, [z, tau, *params])
    jacobians = [_jacobian(s.kernel, s.x, p) for p in params]
    references = [s.reference(c) for c in (0, 1)]
    for param, grad, jacobian in zip(params, grads[2:], jacobians, strict=True):
        flat = jacobian.reshape(len(s.x), len(s.x), -1)
        expected = [sum(r.evidence_gradient(d) for r in references) for d in np.moveaxis(flat, -1, 0)]
        s.close(grad.reshape(-1), expected, f"gradient in a parameter of shape {list(param.shape)}")
    unit = np.eye(len(s.x))
    for c, reference in enumerate(references):
        noise = np.array([reference.evidence_gradient(np.diag(e)) for e in unit])
        t = s.tau[:, c].numpy()
        expected = np.divide(-noise, t**2, out=np.zeros_like(t), where=t > 0)
        s.close(grads[1][:, c], expected, "gradient in the precisions")
        s.close(grads[0][:, c], [-reference.evidence_gradient(dmean=e) for e in unit], "gradient in the targets")


def _sites(s: Setting) -> None:
    """What the search for sites needs: derivatives of the log partition in the sites, and of those in the hyperparameters."""
    nu, tau = (s.z * s.tau).requires_grad_(), s.tau.clone().requires_grad_()
    sites, generator = Sites(nu, tau), torch.Generator().manual_seed(5)
    prior = Prior(gpytorch.means.ZeroMean(), (s.kernel,))
    plan = s.engine.plan(prior, s.data)
    posterior = s.engine.condition(prior, plan, s.engine.parameters(prior, plan), sites)
    mean, variance, seen = posterior.site_marginals.mean, posterior.site_marginals.variance, s.tau > 0
    grads = torch.autograd.grad(posterior.log_partition, [nu, tau])
    s.close(grads[0][seen], mean[seen], "gradient of the log partition in nu")
    s.close(grads[1][seen], -0.5 * (variance + mean.square())[seen], "gradient of the log partition in tau")

    posterior = s.posterior()
    parts = (torch.randn(s.z.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    along = Sites(next(parts), torch.where(seen, next(parts), 0.0))  # absent sites may tilt
    moved = [posterior.with_sites(Sites(s.sites.nu + h * along.nu, s.sites.tau + h * along.tau)) for h in (STEP, -STEP)]
    changes = [(a - b) / (2 * STEP) for a, b in zip(*(_moments(p) for p in moved), strict=True)]
    for got, expected in zip(posterior.response(along), changes, strict=True):
        there = torch.where(along.present, got, 0.0), torch.where(along.present, expected, 0.0)
        s.close(*there, "response", FINITE / s.tolerance)
    slope = (moved[0].log_partition - moved[1].log_partition) / (2 * STEP)
    s.close(posterior.slope(along), slope, "slope", FINITE / s.tolerance)
    params = [p for p in s.kernel.parameters() if p.requires_grad]
    _same_gradients(s, params, posterior.slope(along), slope, "gradient of the slope")
    together = posterior.slope(along, 0.7)
    separate = posterior.slope(along) + 0.7 * posterior.log_partition
    s.close(together, separate, "slope with a share of the log partition")
    _same_gradients(s, params, together, separate, "gradient of the slope with a share of the log partition")

    other = Sites(s.sites.nu + torch.where(seen, along.nu, 0.0), s.tau * (1 + along.tau.abs()))
    fresh = s.engine.condition(prior, plan, s.engine.parameters(prior, plan), other)
    _same_posterior(s, posterior.with_sites(other), fresh, "with_sites is conditioning on these sites")
    _flat_site(s, prior, plan)


def _flat_site(s: Setting, prior: Prior, plan: Any) -> None:
    """A site without precision tilts: ``exp(nu f)`` moves the mean by ``S nu`` and nothing else."""
    nu, tau = s.z * s.tau, s.tau.clone()
    tau[0] = 0.0
    tilt, none = nu.clone(), nu.clone()
    tilt[0], none[0] = 0.7, 0.0
    with_tilt, without = (s.engine.condition(prior, plan, {}, Sites(n, tau)) for n in (tilt, none))
    _, covariance = without.joint(s.x)
    mean, variance = without.marginals(s.x)
    s.close(with_tilt.marginals(s.x)[0], mean + 0.7 * covariance[:, :, 0].mT, "a site without precision moves the mean")
    s.close(with_tilt.marginals(s.x)[1], variance, "a site without precision keeps the variance")


def _moments(posterior: Posterior) -> tuple[Tensor, Tensor]:
    return posterior.site_marginals.mean, posterior.site_marginals.variance


def _same_gradients(s: Setting, params: list[Tensor], value: Tensor, other: Tensor, law: str) -> None:
    grads = [torch.autograd.grad(v, params, allow_unused=True) for v in (value, other)]
    flat = [
        torch.cat([torch.zeros(p.numel()) if g is None else g.reshape(-1) for g, p in zip(gs, params, strict=True)])
        for gs in grads
    ]
    s.close(flat[0], flat[1], law, FINITE / s.tolerance)


def _jacobian(kernel: gpytorch.kernels.Kernel, x: Tensor, param: Tensor) -> np.ndarray:
    """d K / d param [N, N, *param.shape]."""
    K = dense(kernel, x, x)
    rows = [torch.autograd.grad(k, param, retain_graph=True, allow_unused=True)[0] for k in K.reshape(-1)]
    zero = torch.zeros_like(param)
    return torch.stack([zero if r is None else r for r in rows]).reshape(*K.shape, *param.shape).numpy()


def _missing_is_deleted(s: Setting) -> None:
    gone = torch.zeros_like(s.tau)
    gone[::2] = s.tau[::2]
    masked, deleted = replace(s, tau=gone), s.rows(slice(None, None, 2))
    _same(s, masked, deleted, "a datum without precision is a datum left out")


def _order_does_not_matter(s: Setting) -> None:
    _same(s, s.rows(torch.arange(len(s.x)).flip(0)), s, "the order of the data")
    generator = torch.Generator().manual_seed(3)
    _same(s, s.rows(torch.randperm(len(s.x), generator=generator)), s, "the order of the data")


def _duplicates(s: Setting) -> None:
    """Two observations of one value are one at their weighted mean."""
    tau, z = s.tau.clone(), s.z.clone()
    tau[:2] = torch.tensor([[2.0, 3.0], [4.0, 1.0]])
    x = s.x.clone()
    x[1] = x[0]
    twice = replace(s, x=x, z=z, tau=tau)
    total = tau[0] + tau[1]
    z_merged, tau_merged = z[1:].clone(), tau[1:].clone()
    z_merged[0], tau_merged[0] = (tau[0] * z[0] + tau[1] * z[1]) / total, total
    once = replace(s, x=x[1:], z=z_merged, tau=tau_merged)
    for got, expected in zip(twice.posterior().marginals(s.x), once.posterior().marginals(s.x), strict=True):
        s.close(got, expected, "duplicate inputs")


def _columns_are_independent(s: Setting) -> None:
    posterior = s.posterior()
    each = [replace(s, z=s.z[:, [c]], tau=s.tau[:, [c]]).posterior() for c in (0, 1)]
    s.close(posterior.log_density, sum(p.log_density for p in each), "columns are independent")
    for got, *parts in zip(posterior.marginals(s.x), *(p.marginals(s.x) for p in each), strict=True):
        s.close(got, torch.cat(parts, 1), "columns are independent")
    shared = replace(s, tau=s.tau[:, [0, 0]])  # equal precisions may share a factor
    each = [replace(shared, z=s.z[:, [c]], tau=s.tau[:, [0]]).posterior() for c in (0, 1)]
    s.close(shared.posterior().log_density, sum(p.log_density for p in each), "columns of equal precisions")
    for got, *parts in zip(shared.posterior().leave_one_out(), *(p.leave_one_out() for p in each), strict=True):
        s.close(got, torch.cat(parts, 1), "leave-one-out of columns of equal precisions")


def _no_target_gives_the_prior(s: Setting) -> None:
    for empty in (replace(s, tau=torch.zeros_like(s.tau)), s.rows(slice(0, 0))):
        posterior = empty.posterior()
        mean, variance = posterior.marginals(s.x)
        s.close(mean, torch.zeros_like(s.z), "no observed target: mean")
        s.close(variance, diagonal(s.kernel, s.x)[:, None].expand(s.z.shape), "no observed target: variance")
        close(posterior.log_density, 0.0, "no observed target: log density", rtol=0.0)
        close(posterior.log_partition, 0.0, "no observed target: log partition", rtol=0.0)


def _few_data(s: Setting) -> None:
    full = replace(s, tau=s.tau.clamp_min(1.0))
    for n in (1, 2):
        _agrees_with_numpy(full.rows(slice(0, n)))


def _update_is_refit(s: Setting) -> None:
    cut = len(s.x) // 2
    first, second = s.rows(slice(0, cut)), s.rows(slice(cut, None))
    start = first.posterior()
    before = [v.clone() for v in start.marginals(s.x)]
    updated = start.update(second.x, second.sites)
    _same_posterior(s, updated, s.posterior(), "update equals conditioning on everything")
    for got, expected in zip(start.marginals(s.x), before, strict=True):
        close(got, expected, "update leaves the posterior that it starts from alone", rtol=0.0)
    for row in range(cut, len(s.x)):
        one = s.rows(slice(row, row + 1))
        start = start.update(one.x, one.sites)
    _same_posterior(s, start, s.posterior(), "updates one by one")
    nothing = updated.update(s.x[:0], Sites(s.z[:0], s.tau[:0]))
    _same_posterior(s, nothing, updated, "an update with nothing")


def _same(s: Setting, one: Setting, other: Setting, law: str) -> None:
    params = [p for p in s.kernel.parameters() if p.requires_grad]
    a, b = one.posterior(), other.posterior()
    s.close(a.log_density, b.log_density, law)
    grads = [torch.autograd.grad(p.log_density, params) for p in (a, b)]
    s.close(torch.cat([g.reshape(-1) for g in grads[0]]), torch.cat([g.reshape(-1) for g in grads[1]]), law, 10)
    for got, expected in zip(a.marginals(s.x), b.marginals(s.x), strict=True):
        s.close(got, expected, law)


def _same_posterior(s: Setting, a: Posterior, b: Posterior, law: str) -> None:
    s.close(a.log_density, b.log_density, law)
    s.close(a.log_partition, b.log_partition, law)
    pairs = (a.marginals(s.x), b.marginals(s.x)), (a.joint(s.x), b.joint(s.x)), (a.leave_one_out(), b.leave_one_out())
    for got, expected in (p for pair in pairs for p in zip(*pair, strict=True)):
        s.close(got, expected, law)


def _variances_and_draws(s: Setting) -> None:
    sharp = replace(s, tau=1e10 * s.tau)  # almost without noise: what is left of the variance is rounding
    _, variance = sharp.posterior().marginals(s.x)
    assert bool((variance >= 0).all()), f"variances are never negative: {variance.min():.3g}."
    posterior = s.posterior()
    _draws(s, "sample", lambda seed: posterior.sample(s.x, 3, make_generator(seed)))
    try:
        posterior.paths(1, make_generator(0))
    except StructureError:  # the kernel has no feature map
        return
    _draws(s, "paths", lambda seed: posterior.paths(3, make_generator(seed))(s.x))


def _draws(s: Setting, what: str, draw: Callable[[int], Tensor]) -> None:
    one, same, other = draw(0), draw(0), draw(1)
    assert one.shape == (3, *s.z.shape), f"{what}: shape {list(one.shape)}, expected {[3, *s.z.shape]}."
    finite(one, what)
    assert torch.equal(one, same), f"{what}: the same seed gives other draws."
    assert not torch.equal(one, other), f"{what}: another seed gives the same draws."


def _derivatives(s: Setting) -> None:
    """The derivative of f is the limit of its differences: moments of ``(f(x + h) - f(x - h)) / 2h``."""
    posterior, h = s.posterior(), 3e-4
    x = points(4, s.x.shape[1], seed=5)
    try:
        mean, variance = posterior.derivative(x, 1)
    except StructureError:  # of this engine, or this kernel
        return
    ends, covariance = posterior.joint(torch.cat([x + h, x - h]))
    up, down = slice(0, len(x)), slice(len(x), None)
    s.close(mean, (ends[up] - ends[down]) / (2 * h), "derivative: mean", 3e-3 / s.tolerance)
    square = covariance[:, up, up] - 2 * covariance[:, up, down] + covariance[:, down, down]
    s.close(variance, square.diagonal(dim1=1, dim2=2).mT / (2 * h) ** 2, "derivative: variance", 3e-3 / s.tolerance)
    for got, expected in zip(posterior.derivative(s.x, 0), posterior.marginals(s.x), strict=True):
        s.close(got, expected, "derivative of order 0")


CONDITIONING: tuple[Callable[[Setting], None], ...] = (
    _partition, _sites, _missing_is_deleted, _order_does_not_matter, _duplicates, _columns_are_independent,
    _update_is_refit, _variances_and_draws, _derivatives,
)  # fmt: skip
LAWS = (_agrees_with_numpy, _gradients, _no_target_gives_the_prior, _few_data, *CONDITIONING)
