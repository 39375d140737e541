"""`GP` against plain numpy, to 1e-9: evidence, gradients, means, variances, samples, leave-one-out, for many kernels."""

from __future__ import annotations

import copy
from dataclasses import replace

import gpytorch
import numpy as np
import pytest
import torch

import gpx
from gpx import GP
from gpx.inference.objectives import Evidence, LeaveOneOut
from gpx.inference.problem import Problem
from gpx.inference.rules import Variational
from gpx.inputs import as_data
from gpx.kernels.dense import dense
from gpx.likelihoods import Gaussian
from gpx.means import ConstantMean, LinearMean
from gpx.prior import Prior
from gpx.testing import DenseGP
from gpx.testing.assertions import close, gradients
from gpx.testing.cases import KERNELS, points, targets

N = 14
RTOL = 1e-9


def matrices(gp, X, X_new=None):
    """Dense prior covariances of a fitted model: data, cross, new."""
    k = gp.kernel_
    pairs = [(X, X)] if X_new is None else [(X, X), (X_new, X), (X_new, X_new)]
    return [dense(k, a, b).detach().numpy() for a, b in pairs]


def with_gaps(y):
    """Every third cell is missing, at other rows for other columns."""
    y = y.clone()
    rows = torch.arange(len(y))
    for p in range(y.shape[1] if y.dim() == 2 else 1):
        (y[:, p] if y.dim() == 2 else y)[rows % 3 == p] = torch.nan
    return y


def noise_of(gp, y):
    known = gp.likelihood_.known_noise
    value = gp.likelihood_.noise.detach().numpy() if known is None else known.numpy()
    return np.broadcast_to(value if value.ndim != 1 else value[:, None], (len(y), y.shape[1] if y.dim() == 2 else 1))


def references(gp, X, y, mean):
    """One numpy model per output; mean: [N, P]."""
    columns = y.reshape(len(y), -1)
    (K,) = matrices(gp, X)
    noise = noise_of(gp, y)
    return [DenseGP(K, columns[:, p].numpy(), noise[:, p], mean[:, p]) for p in range(columns.shape[1])]


@pytest.mark.parametrize("name", KERNELS)
def test_everything_that_a_conditioned_model_says(name):
    X, X_new, y = points(N), points(5, seed=9), with_gaps(targets(points(N)))
    gp = GP(KERNELS[name](), Gaussian(0.05), mean="zero").condition(X, y)
    (reference,) = references(gp, X, y, np.zeros((N, 1)))
    _, cross, prior = matrices(gp, X, X_new)
    mean, covariance = reference.predict(cross, prior)

    close(gp.log_evidence(), reference.log_evidence(), "log evidence", RTOL)
    latent, observed = gp.predict(X_new, of="f"), gp.predict(X_new)
    close(latent.mean, mean, "mean of f", RTOL)
    close(latent.variance, np.diag(covariance), "variance of f", RTOL)
    close(observed.mean, mean, "mean of y", RTOL)
    close(observed.variance, np.diag(covariance) + 0.05, "variance of y", RTOL)
    close(gp.posterior_.joint(X_new)[1][0], covariance, "joint covariance", RTOL)
    loo, (m, v) = gp.loo(), reference.leave_one_out()
    close(loo.mean, m, "leave-one-out mean", RTOL)
    close(loo.variance, v, "leave-one-out variance", RTOL)
    close(float(loo.log_density.nansum()), reference.leave_one_out_density(), "leave-one-out density", RTOL)


NOISES = {
    "number": 0.3,
    "per-point": torch.linspace(0.02, 0.5, N, dtype=torch.float64),
    "per-cell": 0.02 + torch.rand(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
}


@pytest.mark.parametrize("outputs", [None, 3], ids=["N", "NxP"])
@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", ["Matern52-ard", "sum", "gpytorch-scaled-rbf"])
def test_noise_and_outputs(name, noise, gaps, outputs):
    if noise == "per-cell" and outputs is None:
        outputs = 3
    X, y = points(N), targets(points(N), outputs)
    y = with_gaps(y) if gaps else y
    gp = GP(KERNELS[name](), Gaussian(NOISES[noise]), mean="zero").condition(X, y)
    parts = references(gp, X, y, np.zeros((N, 3)))
    close(gp.log_evidence(), sum(r.log_evidence() for r in parts), "log evidence, summed over outputs", RTOL)
    X_new = points(4, seed=3)
    _, cross, prior = matrices(gp, X, X_new)
    expected = [r.predict(cross, prior) for r in parts]
    shape = y.shape[1:]
    prediction = gp.predict(X_new, of="f")
    close(prediction.mean, np.stack([m for m, _ in expected], 1).reshape(4, *shape), "means", RTOL)
    close(prediction.variance, np.stack([np.diag(c) for _, c in expected], 1).reshape(4, *shape), "variances", RTOL)
    new = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    observed = gp.predict(X_new, noise=new)
    close(
        observed.variance - prediction.variance,
        new.reshape(4, *(1,) * len(shape)).expand(4, *shape),
        "noise of new points",
    )
    loo = gp.loo()
    close(loo.mean, np.stack([r.leave_one_out()[0] for r in parts], 1).reshape(N, *shape), "leave-one-out means", RTOL)
    close(
        loo.variance,
        np.stack([r.leave_one_out()[1] for r in parts], 1).reshape(N, *shape),
        "leave-one-out variances",
        RTOL,
    )


def problem(kernel, y, likelihood=None, mean=None, X=None):
    """A problem whose parameters are leaves of autograd."""
    X = points(len(y)) if X is None else X
    likelihood = Gaussian(0.2) if likelihood is None else likelihood
    kernel, likelihood = copy.deepcopy(kernel).double(), likelihood.double()
    data = as_data(X, y)
    if isinstance(kernel, gpx.kernels.Kernel):
        kernel.bind(data.columns)
    mean = gpytorch.means.ZeroMean() if mean is None else mean
    data = replace(data, x=X)
    return Problem.planned(Prior(mean, (kernel,)), data, likelihood, gpx.engines.Exact(), Variational())


def leaves(problem):
    modules = (problem.prior.kernels[0], problem.likelihood, problem.prior.mean)
    return [p for m in modules for p in m.parameters() if p.requires_grad]


@pytest.mark.parametrize("objective", [Evidence(), LeaveOneOut()], ids=repr)
@pytest.mark.parametrize("name", KERNELS)
def test_gradcheck_in_raw_parameters_noise_and_inputs(name, objective):
    """With a gap, two outputs and a mean, at once."""
    X = points(6).requires_grad_()
    y = targets(points(6), 2)
    y[1, 0] = torch.nan
    mean = ConstantMean()
    mean.bind(as_data(X, y), 2)
    p = problem(KERNELS[name](), y, mean=mean.double(), X=X)
    gradients(lambda *_: objective(p), [X, *leaves(p)], f"gradient of {objective!r}", rtol=1e-6, fast=True)


@pytest.mark.parametrize("objective", [Evidence(), LeaveOneOut()], ids=repr)
def test_gradients_do_not_depend_on_the_block_size(objective, monkeypatch):
    """Row blocks of the contraction: one row, several, all."""
    y = targets(points(37), 2)
    p = problem(KERNELS["sum"](), y)
    results = []
    for block in (1, 200, 1 << 18):
        monkeypatch.setattr("gpx.engines.dense_gradients.BLOCK", block)
        grads = torch.autograd.grad(objective(p), leaves(p))
        results.append(torch.cat([g.reshape(-1) for g in grads]))
    close(results[0], results[2], "blocks of 16 rows", 1e-10)
    close(results[1], results[2], "blocks of 16 rows", 1e-10)


@pytest.mark.parametrize("chunk", [1, 50, 1 << 23])
def test_marginals_do_not_depend_on_the_chunk_size(chunk, monkeypatch):
    X, y = points(20), targets(points(20))
    gp = GP(KERNELS["product"](), mean="linear").condition(X, y)
    expected = gp.predict(points(33, seed=4))
    paths = gp.paths(2)(points(33, seed=4))
    monkeypatch.setattr("gpx.engines.dense.CHUNK", chunk)
    got = gp.predict(points(33, seed=4))
    close(got.mean, expected.mean, "mean in chunks", 1e-12)
    close(got.variance, expected.variance, "variance in chunks", 1e-12)
    close(gp.paths(2)(points(33, seed=4)), paths, "paths in chunks", 1e-12)


@pytest.mark.parametrize("name", ["RBF-ard", "product-of-sum", "gpytorch-matern-ard", "mixed-sum"])
def test_gradient_of_the_evidence_by_the_formula(name):
    """The gradient in every raw parameter is that of numpy, to 1e-9: kernel, noise and mean."""
    y = with_gaps(targets(points(N)))
    mean = ConstantMean().double()
    p = problem(KERNELS[name](), y, mean=mean)
    kernel, X = p.prior.kernels[0], p.data.x
    params = [q for q in kernel.parameters() if q.requires_grad]
    grads = torch.autograd.grad(Evidence()(p), [*params, p.likelihood.raw_noise, mean.raw_constant])
    reference = DenseGP(dense(kernel, X, X).detach().numpy(), y.numpy(), 0.2)
    for param, grad in zip(params, grads, strict=False):
        J = torch.autograd.functional.jacobian(lambda v, param=param: _matrix_at(kernel, X, param, v), param.detach())
        expected = [reference.evidence_gradient(d) for d in np.moveaxis(J.reshape(N, N, -1).numpy(), -1, 0)]
        close(grad.reshape(-1), expected, f"parameter of shape {list(param.shape)}", RTOL)
    close(grads[-2], reference.evidence_gradient(0.2 * np.eye(N)), "raw noise (a logarithm)", RTOL)
    close(grads[-1], [reference.evidence_gradient(dmean=np.ones(N))], "mean", RTOL)


def _matrix_at(kernel, X, param, value):
    names = {id(q): n for n, q in kernel.named_parameters()}
    lookup = {names[id(param)]: value}
    return torch.func.functional_call(_Matrix(kernel), {f"kernel.{k}": v for k, v in lookup.items()}, (X,))


class _Matrix(torch.nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def forward(self, X):
        return dense(self.kernel, X, X)


def test_prior_means():
    """Constant and linear means per output, and gpytorch's, enter as y - mean."""
    X, y = points(N), with_gaps(targets(points(N), 2))
    slope = torch.tensor([[0.3, -1.0], [0.0, 0.4], [1.1, 0.2]], dtype=torch.float64)
    constant = torch.tensor([0.5, -2.0], dtype=torch.float64)
    linear = LinearMean().double()
    linear.bind(as_data(X, y), 2)
    linear.assign("slope", slope), linear.assign("constant", constant), linear.assign("center", X.mean(0))
    theirs = gpytorch.means.LinearMean(3).double()
    theirs.weights.data, theirs.bias.data = slope[:, :1].clone(), constant[:1].clone()
    for mean, expected in (
        (linear, constant + (X - X.mean(0)) @ slope),
        (theirs, (constant[:1] + X @ slope[:, :1]).expand(N, 2)),
    ):
        p = problem(KERNELS["RBF"](), y, mean=mean)
        K = dense(p.prior.kernels[0], X, X).detach().numpy()
        parts = [DenseGP(K, y[:, c].numpy(), 0.2, expected[:, c].numpy()) for c in (0, 1)]
        close(Evidence()(p), sum(r.log_evidence() for r in parts), f"evidence with {type(mean).__name__}", RTOL)
        close(LeaveOneOut()(p), sum(r.leave_one_out_density() for r in parts), f"LOO with {type(mean).__name__}", RTOL)
        posterior = p.posterior()
        m, v = posterior.leave_one_out()
        close(m[:, 0], parts[0].leave_one_out()[0], "leave-one-out mean", RTOL)
        close(v[:, 1], parts[1].leave_one_out()[1], "leave-one-out variance", RTOL)
        close(posterior.marginals(X)[0][:, 1], parts[1].predict(K, K, expected[:, 1].numpy())[0], "mean", RTOL)
        close(posterior.joint(X)[0][:, 1], posterior.marginals(X)[0][:, 1], "joint mean", RTOL)
        close(posterior.site_marginals.mean, posterior.marginals(X)[0], "mean of the sites' function", RTOL)


def test_float32_follows_the_data():
    """float32 tensors give float32 results, to the tolerance of the arithmetic: 1e-4 of the scale."""
    X, y = points(30), targets(points(30))
    double = GP(KERNELS["Matern32"](), Gaussian(0.05)).condition(X, y)
    single = GP(KERNELS["Matern32"](), Gaussian(0.05)).condition(X.float(), y.float())
    expected, got = (gp.predict(points(9, seed=2)) for gp in (double, single))
    assert got.mean.dtype == got.variance.dtype == torch.float32
    close(got.mean, expected.mean, "mean in float32", 1e-4)
    close(got.variance, expected.variance, "variance in float32", 1e-4)
    assert single.log_evidence() == pytest.approx(double.log_evidence(), rel=1e-4)
