"""Each derivation of docs/theory/exact.md, checked by brute force: integrals on grids, plain solves, draws.

A test cites the section that it checks by its label; the last test sees to it that every label is cited.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from pathlib import Path

import gpytorch
import numpy as np
import torch

from gpx.engines import Exact
from gpx.inference.problem import Problem
from gpx.inference.rules import Variational
from gpx.inputs import as_data
from gpx.kernels import Matern, Periodic
from gpx.kernels.dense import dense
from gpx.likelihoods import Gaussian
from gpx.linalg.cholesky import factorise
from gpx.means import ConstantMean
from gpx.posterior import make_generator
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.testing import DenseGP
from gpx.testing.assertions import close, mean_is
from gpx.testing.cases import points

DOCUMENT = Path(__file__).parents[2] / "docs" / "theory" / "exact.md"
N = 7


def setting(n=N):
    """Inputs, sites and the covariance of their targets."""
    generator = torch.Generator().manual_seed(n)
    x = points(n, 1)
    kernel = Matern(nu=1.5, lengthscale=0.9, outputscale=1.3) + Periodic(period=1.1, outputscale=0.4)
    nu = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    tau = 0.3 + 2 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    K = dense(kernel, x, x).detach()
    return x, kernel, Sites(nu, tau), K


def solve(x, kernel, sites):
    prior = Prior(gpytorch.means.ZeroMean(), (kernel,))
    engine = Exact()
    plan = engine.plan(prior, as_data(x, sites.nu / sites.tau))
    return engine.condition(prior, plan, {}, sites)


def numbers(sites, K):
    """nu, tau, z and C as numpy arrays."""
    nu, tau = sites.nu[:, 0].numpy(), sites.tau[:, 0].numpy()
    return nu, tau, nu / tau, K.numpy() + np.diag(1 / tau)


def test_sites_are_gaussian_observations():
    """exact-sites: t_n(f) = c_n N(z_n; f, 1 / tau_n)."""
    nu, tau = 1.3, 0.7
    f = torch.linspace(-4, 4, 9, dtype=torch.float64)
    log_c = 0.5 * math.log(2 * math.pi / tau) + nu**2 / (2 * tau)
    normal = torch.distributions.Normal(f, tau**-0.5).log_prob(torch.tensor(nu / tau, dtype=torch.float64))
    close(nu * f - 0.5 * tau * f**2, log_c + normal, "log t_n", 1e-14)
    sites = Gaussian(0.3).exact_sites(as_data([0.0, 1.0], [0.5, math.nan]))
    close(sites.tau[:, 0], [1 / 0.3, 0.0], "tau of a Gaussian likelihood, 0 where missing", 1e-14)
    close(sites.nu[:, 0], [0.5 / 0.3, 0.0], "nu of a Gaussian likelihood", 1e-14)


def test_the_matrix_that_is_factorised():
    """exact-b: eigenvalues between 1 and 1 + sum tau K_nn; C^-1, log |C| and alpha from B."""
    x, kernel, sites, K = setting()
    _, tau, z, C = numbers(sites, K)
    root = np.sqrt(tau)
    B = np.eye(N) + root[:, None] * K.numpy() * root
    eigenvalues = np.linalg.eigvalsh(B)
    assert eigenvalues[0] >= 1 and eigenvalues[-1] <= 1 + tau @ np.diag(K.numpy())
    factor = solve(x, kernel, sites).solutions[0].factor
    close(factor.lower.tril() @ factor.lower.tril().mT, B, "L L^T = B", 1e-14)
    close(root[:, None] * np.linalg.inv(B) * root, np.linalg.inv(C), "C^-1", 1e-12)
    close(float(factor.logdet()) - np.log(tau).sum(), np.linalg.slogdet(C)[1], "log |C|", 1e-12)
    close(solve(x, kernel, sites).solutions[0].alpha[:, 0], np.linalg.solve(C, z), "alpha", 1e-12)


def test_the_condition_of_the_matrix_does_not_depend_on_the_units():
    """exact-b: B is the same for (c y, c^2 k, c^2 noise), and its jitter is none where the noise is not tiny."""
    x, kernel, sites, _ = setting()
    small = Matern(nu=1.5, lengthscale=0.9, outputscale=1.3e-12) + Periodic(period=1.1, outputscale=0.4e-12)
    a = solve(x, kernel, sites).solutions[0].factor
    b = solve(x, small, Sites(sites.nu * 1e6, sites.tau * 1e12)).solutions[0].factor
    close(b.lower.tril(), a.lower.tril(), "the factor in other units", 1e-13)
    assert a.jitter == b.jitter == 0


def test_posterior():
    """exact-posterior: the conditional of the joint Gaussian of f(x*) and z."""
    x, kernel, sites, K = setting()
    x_new = points(4, 1, seed=3)
    _, _, z, C = numbers(sites, K)
    joint = torch.cat([x, x_new])
    S = dense(kernel, joint, joint).detach().numpy()
    S[:N, :N] = C
    precision = np.linalg.inv(S)[N:, N:]  # the block of a precision matrix is that of the conditional
    mean, covariance = solve(x, kernel, sites).joint(x_new)
    close(covariance[0], np.linalg.inv(precision), "conditional covariance", 1e-10)
    close(mean[:, 0], -np.linalg.solve(precision, np.linalg.inv(S)[N:, :N] @ z), "conditional mean", 1e-10)


def test_log_partition():
    """exact-partition: log int p(f) prod t_n(f_n) df, on a grid of f_1, f_2; and its closed form."""
    x, kernel, sites, K = setting(2)
    nu, tau, z, C = numbers(sites, K)
    axis = np.linspace(-9, 9, 601)
    f = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    log_prior = (
        -0.5 * np.einsum("abi,ij,abj->ab", f, np.linalg.inv(K.numpy()), f)
        - 0.5 * np.linalg.slogdet(2 * np.pi * K.numpy())[1]
    )
    log_sites = (nu * f - 0.5 * tau * f**2).sum(-1)
    integral = np.exp(log_prior + log_sites).sum() * (axis[1] - axis[0]) ** 2
    posterior = solve(x, kernel, sites)
    close(posterior.log_partition, np.log(integral), "log Z", 1e-9)
    B = np.eye(2) + np.sqrt(tau)[:, None] * K.numpy() * np.sqrt(tau)
    closed = 0.5 * nu @ np.linalg.inv(np.linalg.inv(K.numpy()) + np.diag(tau)) @ nu - 0.5 * np.linalg.slogdet(B)[1]
    close(posterior.log_partition, closed, "log Z in closed form", 1e-12)
    close(posterior.log_density, DenseGP(K.numpy(), z, 1 / tau).log_evidence(), "log N(z; 0, C)", 1e-12)


def test_log_partition_with_a_prior_mean():
    """exact-mean: the engine receives nu - tau mu, the caller adds sum(nu mu - tau mu^2 / 2) to log Z."""
    x, kernel, sites, K = setting(2)
    nu, tau, z, _ = numbers(sites, K)
    mean = ConstantMean().double()
    mean.assign("constant", 0.8)
    data = as_data(x, sites.nu / sites.tau)
    problem = Problem.planned(Prior(mean, (kernel,)), data, Gaussian(), Exact(), Variational())
    posterior = problem.condition(sites)
    axis = np.linspace(-9, 9, 601)
    f = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    g = f - 0.8
    log_prior = (
        -0.5 * np.einsum("abi,ij,abj->ab", g, np.linalg.inv(K.numpy()), g)
        - 0.5 * np.linalg.slogdet(2 * np.pi * K.numpy())[1]
    )
    log_sites = (nu * f - 0.5 * tau * f**2).sum(-1)
    integral = np.exp(log_prior + log_sites).sum() * (axis[1] - axis[0]) ** 2
    close(posterior.log_partition, np.log(integral), "log Z with a mean", 1e-9)
    reference = DenseGP(K.numpy(), z, 1 / tau, 0.8)
    close(posterior.log_density, reference.log_evidence(), "log density with a mean", 1e-12)
    close(posterior.marginals(x)[0][:, 0], reference.predict(K.numpy(), K.numpy(), 0.8)[0], "mean at the data", 1e-12)


def test_gradient_weights():
    """exact-gradient: W = (alpha alpha^T - C^-1) / 2, dl/dtau = -W_nn / tau^2, dl/dz = -alpha; P outputs: P C^-1."""
    x, kernel, sites, K = setting()
    _, tau, z, C = numbers(sites, K)
    nu2, tau_leaf = torch.cat([sites.nu, 2 - sites.nu], 1), sites.tau.clone().requires_grad_()
    z2 = (nu2 / sites.tau).requires_grad_()
    shared = tau_leaf.expand(-1, 2)
    leaf = x.clone().requires_grad_()
    density = solve(leaf, kernel, Sites(z2 * shared, shared)).log_density
    scale = kernel.kernels[0].raw_outputscale  # dK / d log outputscale is the part itself
    grads = torch.autograd.grad(density, [z2, tau_leaf, scale])
    alpha = np.linalg.solve(C, z2.detach().numpy())
    W = 0.5 * (alpha @ alpha.T - 2 * np.linalg.inv(C))
    close(grads[0], -alpha, "gradient in z", 1e-10)
    close(grads[1][:, 0], -np.diag(W) / tau**2, "gradient in tau", 1e-10)
    part = dense(kernel.kernels[0], x, x).detach().numpy()
    close(grads[2], (W * part).sum(), "gradient in a kernel parameter", 1e-10)


def test_gradient_through_alpha_and_the_precision():
    """exact-gradient: W = -(h alpha^T + alpha h^T) / 2 - C^-1 diag(g) C^-1 for any a and g; dz: h."""
    x, kernel, sites, K = setting()
    _, tau, z, C = numbers(sites, K)
    generator = torch.Generator().manual_seed(2)
    a, g = (torch.randn(N, generator=generator, dtype=torch.float64) for _ in range(2))
    z_leaf, tau_leaf = (sites.nu / sites.tau).requires_grad_(), sites.tau.clone().requires_grad_()
    solution = solve(x, kernel, Sites(z_leaf * tau_leaf, tau_leaf)).solutions[0]
    value = a @ solution.density()[1][:, 0] + g @ solution.precision()
    close(solution.precision(), np.diag(np.linalg.inv(C)), "diag C^-1", 1e-12)
    grads = torch.autograd.grad(value, [z_leaf, tau_leaf, kernel.kernels[1].raw_outputscale])
    inverse = np.linalg.inv(C)
    h, alpha = inverse @ a.numpy(), inverse @ z
    W = -0.5 * (np.outer(h, alpha) + np.outer(alpha, h)) - inverse @ np.diag(g.numpy()) @ inverse
    close(grads[0][:, 0], h, "gradient in z", 1e-10)
    close(grads[1][:, 0], -np.diag(W) / tau**2, "gradient in tau", 1e-10)
    part = dense(kernel.kernels[1], x, x).detach().numpy()
    close(grads[2], (W * part).sum(), "gradient in a kernel parameter", 1e-10)


def test_leave_one_out():
    """exact-loo: N(z_n - alpha_n / L_nn, 1 / L_nn), by leaving out; f_n has 1 / tau_n less variance."""
    x, kernel, sites, K = setting()
    _, tau, z, _ = numbers(sites, K)
    mean, variance = solve(x, kernel, sites).leave_one_out()
    expected_mean, expected_variance = DenseGP(K.numpy(), z, 1 / tau).leave_one_out()
    close(mean[:, 0], expected_mean, "leave-one-out mean", 1e-11)
    close(variance[:, 0], expected_variance, "leave-one-out variance", 1e-11)
    keep = torch.arange(N) != 2
    without = solve(x[keep], kernel, Sites(sites.nu[keep], sites.tau[keep]))
    close(variance[2, 0] - 1 / tau[2], without.marginals(x[[2]])[1][0, 0], "variance of f_n", 1e-11)


def test_update_borders_the_matrix():
    """exact-update: the factor of [[B, E^T], [E, F]] keeps L, and is the one with positive diagonal."""
    x, kernel, sites, _ = setting()
    old = solve(x[:5], kernel, Sites(sites.nu[:5], sites.tau[:5]))
    extended = old.update(x[5:], Sites(sites.nu[5:], sites.tau[5:])).solutions[0].factor
    whole = solve(x, kernel, sites).solutions[0].factor
    assert torch.equal(extended.lower[:5, :5].tril(), old.solutions[0].factor.lower.tril())
    close(extended.lower.tril(), whole.lower.tril(), "the bordered factor", 1e-13)
    assert bool((extended.lower.diagonal() > 0).all())
    corner = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    bordered = factorise(lambda: corner[:1, :1].clone()).extend(corner[1:, :1], lambda: corner[1:, 1:].clone())
    close(bordered.lower.tril() @ bordered.lower.tril().mT, corner, "a two by two matrix", 1e-15)


def test_matheron():
    """exact-matheron: mean and covariance of the paths are those of the posterior (false alarms: 2e-6)."""
    x, kernel, sites, _ = setting()
    posterior = solve(x, kernel, sites)
    x_new = torch.cat([points(3, 1, seed=5), x[:1], x[:1] + 30.0])  # the last one is far from the data
    mean, covariance = posterior.joint(x_new)
    with torch.no_grad():
        draws = torch.stack([posterior.paths(200, make_generator(seed))(x_new)[..., 0] for seed in range(60)])
    centred = draws - mean[:, 0]
    # One set of features serves the 200 paths of a call: only calls are independent.
    mean_is(draws.mean(1), mean[:, 0], "mean of the paths")
    mean_is((centred.mT @ centred) / 200, covariance[0], "covariance of the paths")


def test_every_derivation_is_cited():
    labels = set(re.findall(r"^\((exact-[a-z]+)\)=", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    here = [f for n, f in inspect.getmembers(sys.modules[__name__], inspect.isfunction) if n.startswith("test_")]
    cited = {label for f in here for label in re.findall(r"exact-[a-z]+", f.__doc__ or "")}
    assert labels == cited
