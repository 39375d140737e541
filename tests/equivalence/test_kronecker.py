"""`engines.Kronecker` against dense algebra: complete grids, per-axis noise, holes, likelihoods with sites."""

from __future__ import annotations

import re
from pathlib import Path

import gpytorch
import pytest
import torch

import gpx
from gpx import Grid, likelihoods
from gpx.engines import Exact, Kronecker
from gpx.engines.dense import ExactPosterior
from gpx.engines.kronecker_posterior import KroneckerPosterior
from gpx.inputs import as_data
from gpx.kernels import RBF, Constant, Cosine, Linear, Matern, Periodic
from gpx.linalg import kron
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.testing import check_engine
from gpx.testing.assertions import close

TIGHT = 1e-8


def axis(n, seed, width=1):
    return 3 * torch.rand(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid(*sizes, widths=None):
    return Grid([axis(n, 7 * d + n, (widths or {}).get(d, 1)) for d, n in enumerate(sizes)])


# fmt: off
KERNELS = {
    "two-materns": lambda: Matern(nu=1.5, lengthscale=0.8, active_dims=[0]) * Matern(nu=2.5, lengthscale=0.6, outputscale=1.3, active_dims=[1]),
    "ard-rbf": lambda: RBF(lengthscale=[0.5, 1.0], outputscale=0.7, ard=True),
    "nested": lambda: 1.5 * (RBF(lengthscale=0.9, active_dims=[0]) + Linear(0.3, active_dims=[0])) * (Periodic(period=1.7, active_dims=[1]) * Matern(nu=0.5, active_dims=[1])),
    "one-axis": lambda: RBF(lengthscale=0.7, active_dims=[1]) * Constant(1.4),
    "low-rank": lambda: Cosine(period=2.1, active_dims=[0]) * Matern(nu=1.5, lengthscale=0.7, active_dims=[1]),
    "gpytorch": lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2)) * Matern(nu=0.5, active_dims=[1]),
}  # fmt: skip


def problem(kernel, inputs, tau, columns=2, seed=0):
    """Prior, data and sites on the rows of a grid."""
    kernel = kernel.double()
    z = torch.randn(len(inputs.rows), columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tau = tau.reshape(len(z), -1).expand(len(z), columns).clone()
    data = as_data(inputs, torch.where(tau > 0, z, torch.nan).reshape(*inputs.shape, columns))
    return Prior(gpytorch.means.ZeroMean(), (kernel,)), data, Sites(torch.where(tau > 0, z * tau, 0.0), tau)


def condition(engine, prior, data, sites):
    return engine.condition(prior, engine.plan(prior, data), {}, sites)


def values(build, sites, prior):
    """What an objective asks for, with its gradients."""
    params = [p for k in prior.kernels for p in k.parameters() if p.requires_grad]
    found = {}
    for name in ("log_density", "log_partition"):
        value = getattr(build(), name)
        grads = torch.autograd.grad(value, [sites.nu, sites.tau, *params])
        found[name] = value
        # Columns of equal precisions share a factor: which of them has the gradient in tau is not defined, their sum is.
        found |= {f"{name} in nu": grads[0], f"{name} in tau": grads[1].sum(1)}
        found[f"{name} in parameters"] = torch.cat([g.reshape(-1) for g in grads[2:]])
    return found


def agree(kernel, inputs, tau, engine=Kronecker(dense_rows=0), tolerance=TIGHT, columns=2):  # noqa: B008
    prior, data, sites = problem(kernel, inputs, tau, columns)
    sites = Sites(sites.nu.requires_grad_(), sites.tau.requires_grad_())
    fast, dense = (condition(e, prior, data, sites) for e in (engine, Exact()))
    assert isinstance(fast, KroneckerPosterior) and isinstance(dense, ExactPosterior)
    seen = (sites.tau > 0).any(1)
    found = [values(lambda e=e: condition(e, prior, data, sites), sites, prior) for e in (engine, Exact())]
    for name, expected in found[1].items():
        got = found[0][name]
        if "in nu" in name or "in tau" in name:
            got, expected = got[seen], expected[seen]
        close(got, expected, name, atol=tolerance * float(expected.detach().abs().max()), rtol=0)
    with torch.no_grad():
        scattered = (
            4 * torch.rand(7, data.x.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.5
        )
        other = Grid([torch.cat([a[:2], a[:2] + 0.31]) for a in inputs.axes]).rows
        for places in (data.x, other, scattered):
            for got, expected, what in zip(
                fast.marginals(places), dense.marginals(places), ("mean", "variance"), strict=True
            ):
                close(got, expected, what, atol=tolerance, rtol=0)
        for got, expected, what in zip(
            fast.joint(scattered), dense.joint(scattered), ("mean", "covariance"), strict=True
        ):
            close(got, expected, f"joint {what}", atol=tolerance, rtol=0)
        for got, expected, what in zip(fast.leave_one_out(), dense.leave_one_out(), ("mean", "variance"), strict=True):
            close(got, expected, f"leave-one-out {what}", atol=10 * tolerance, rtol=0)
        close(fast.site_marginals.mean, dense.site_marginals.mean, "site means", atol=tolerance, rtol=0)
        close(fast.site_marginals.variance, dense.site_marginals.variance, "site variances", atol=tolerance, rtol=0)
        push = Sites(torch.where(seen[:, None], torch.ones_like(sites.nu), 0.0), torch.zeros_like(sites.tau))
        moved = fast.response(push)[0][seen], dense.response(push)[0][seen]
        close(*moved, "response of the mean", atol=tolerance * 10, rtol=0)


ON_THE_GRID = [
    lambda: Matern(nu=1.5, lengthscale=0.8, active_dims=[0]) * RBF(lengthscale=1.1, outputscale=1.3, active_dims=[1]),
    lambda: RBF(lengthscale=[0.5, 1.0], ard=True),
    lambda: RBF(active_dims=[1]) * Constant(2.0),
]
NINE = Grid([[0.0, 0.7, 2.0], [-1.0, 0.0, 0.4]])


def test_laws():
    check_engine(Kronecker())
    check_engine(Kronecker(), [build() for build in ON_THE_GRID], NINE.rows)


@pytest.mark.parametrize("name", KERNELS)
def test_complete_grid(name):
    agree(KERNELS[name](), grid(7, 5), torch.full((7, 5), 3.0).double())


@pytest.mark.parametrize("name", KERNELS)
def test_noise_of_every_axis(name):
    """kronecker-even: precisions that are an outer product are made equal by scaling."""
    tau = kron.outer([1 + 4 * axis(7, 1)[:, 0], 0.5 + axis(5, 2)[:, 0]])
    agree(KERNELS[name](), grid(7, 5), tau)


@pytest.mark.parametrize("name", KERNELS)
def test_holes(name):
    """kronecker-uneven: by a factor of C, that nothing of the spectrum is lost for."""
    tau = 1 + 4 * torch.rand(7, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tau[1, 2] = tau[3, :3] = tau[6] = 0.0
    agree(KERNELS[name](), grid(7, 5), tau)


def test_three_axes_one_of_two_columns():
    def kernel():
        places = RBF(lengthscale=[0.9, 1.2], ard=True, active_dims=[0, 2])
        return places * Matern(nu=2.5, active_dims=[1]) * RBF(active_dims=[3])

    inputs = Grid([axis(4, 1), axis(3, 2), axis(5, 3, 2)])
    agree(kernel(), inputs, torch.full(inputs.shape, 2.0).double())
    tau = torch.full(inputs.shape, 2.0).double()
    tau[0, 1, 2] = tau[3] = 0.0
    agree(kernel(), inputs, tau)


@pytest.mark.parametrize("name", KERNELS)
def test_few_missing_cells(name, monkeypatch):
    """kronecker-holes: exact from the complete grid."""
    monkeypatch.setattr("gpx.engines.grid_uneven.MODES", 0)
    tau = torch.full((7, 5), 3.0).double()
    tau[1, 2] = tau[3, :3] = 0.0
    agree(KERNELS[name](), grid(7, 5), tau)


def unit_of_holes(share=0.3, sizes=(24, 30)):
    missing = torch.rand(sizes, generator=torch.Generator().manual_seed(4), dtype=torch.float64) < share
    return torch.where(missing, 0.0, 20.0).double()


@pytest.fixture
def without_factor(monkeypatch):
    """As if no factor of C were affordable, nor one of the missing cells."""
    monkeypatch.setattr("gpx.engines.grid_uneven.MODES", 30)
    monkeypatch.setattr("gpx.engines.grid_holes.FEW", 0)


def rough():
    return Matern(nu=1.5, lengthscale=1.0, active_dims=[0]) * Matern(nu=2.5, lengthscale=0.7, active_dims=[1])


def test_random_vectors(without_factor):
    """kronecker-probes: means and the variances of few places are exact, the log determinant has the standard error that it says,
    and so have the gradients: 6 of them are a false alarm in 1e8.
    """
    prior, data, sites = problem(rough(), grid(24, 30), unit_of_holes(), 1)
    sites = Sites(sites.nu, sites.tau.requires_grad_())
    fast, dense = (condition(e, prior, data, sites) for e in (Kronecker(dense_rows=0, probes=32), Exact()))
    error = fast.log_determinant_error
    assert 0 < error < 1.0, f"a standard error of {error} nats"
    close(fast.log_density, dense.log_density, "log density", atol=6 * error, rtol=0)
    close(fast.site_marginals.mean, dense.site_marginals.mean, "means", atol=1e-6, rtol=0)
    some = data.x[::5]
    for got, expected in zip(fast.marginals(some), dense.marginals(some), strict=True):
        close(got.detach(), expected.detach(), "marginals", atol=1e-5, rtol=1e-4)
    params = [p for p in prior.kernels[0].parameters() if p.requires_grad]
    grads = [torch.autograd.grad(p.log_density, [*params, sites.tau]) for p in (fast, dense)]
    for got, expected in zip(*grads, strict=True):
        close(got.sum(), expected.sum(), "gradient", atol=0.01 * float(expected.abs().sum()) + 6 * error, rtol=0)


def test_random_vectors_are_unbiased(without_factor):
    """kronecker-probes: value and gradient on average over 1,000 vectors, to three times the accuracy of one fit's."""
    prior, data, sites = problem(rough(), grid(24, 30), unit_of_holes(), 1)
    fast, dense = (condition(e, prior, data, sites) for e in (Kronecker(dense_rows=0, probes=1000), Exact()))
    error = fast.log_determinant_error
    close(fast.log_density, dense.log_density, "log density", atol=5 * error + 1e-6, rtol=0)
    params = [p for p in prior.kernels[0].parameters() if p.requires_grad]
    grads = [torch.autograd.grad(p.log_density, params) for p in (fast, dense)]
    for got, expected in zip(*grads, strict=True):
        close(got, expected, "gradient", atol=0.2, rtol=0)


def test_a_third_of_2000_cells_missing(without_factor):
    """kronecker-probes: the evidence to 1e-3 nats per cell, as fits have it; variances of 60 missing cells within 1 %."""
    tau = unit_of_holes(0.3, (40, 50))
    prior, data, sites = problem(rough(), grid(40, 50), tau, 1)
    fast, dense = (condition(e, prior, data, sites) for e in (Kronecker(dense_rows=0), Exact()))
    with torch.no_grad():
        assert abs(float(fast.log_density - dense.log_density)) < 1e-3 * 2000
        missing = data.x[(tau == 0).reshape(-1)][::10]
        close(fast.marginals(missing)[1], dense.marginals(missing)[1], "variances of missing cells", rtol=1e-3)


def test_low_rank_axes_with_random_vectors(without_factor):
    """kronecker-probes: where the range of the covariance moves with a parameter, its gradient is seen from one side."""
    kernel = Cosine(period=2.1, active_dims=[0]) * Matern(nu=1.5, lengthscale=0.3, active_dims=[1])
    prior, data, sites = problem(kernel, grid(24, 30), unit_of_holes(), 1)
    fast, dense = (condition(e, prior, data, sites) for e in (Kronecker(dense_rows=0, probes=2000), Exact()))
    params = [p for p in prior.kernels[0].parameters() if p.requires_grad]
    grads = [torch.autograd.grad(p.log_density, params) for p in (fast, dense)]
    for got, expected in zip(*grads, strict=True):
        close(got, expected, "gradient", atol=0.05 + 0.03 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", KERNELS)
def test_changes_of_sites(name):
    """Response, slope and its gradient, where C is factorised, are those of dense algebra."""
    tau = 1 + 4 * torch.rand(7, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tau[1, 2] = tau[3, :3] = 0.0
    prior, data, sites = problem(KERNELS[name](), grid(7, 5), tau)
    seen = sites.tau > 0
    random = torch.randn(2, *seen.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    along = Sites(*(torch.where(seen, part, 0.0) for part in random))
    fast, dense = (condition(e, prior, data, sites) for e in (Kronecker(dense_rows=0), Exact()))
    # In Exact columns of equal precisions have one factor, whose precisions cannot move apart.
    alone = [condition(Exact(), prior, data, sites.columns([c])).response(along.columns([c])) for c in (0, 1)]
    for got, expected in zip(fast.response(along), zip(*alone, strict=True), strict=True):
        close(got[seen], torch.cat(expected, 1)[seen], "response", atol=TIGHT, rtol=0)
    params = [p for p in prior.kernels[0].parameters() if p.requires_grad]
    for share in (0.0, 0.7):
        values = [p.slope(along, share) for p in (fast, dense)]
        close(*values, "slope", rtol=TIGHT)
        grads = [torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, params)]) for v in values]
        close(*grads, "gradient of the slope", atol=TIGHT * float(grads[1].abs().max()), rtol=0)


def test_variances_respond_as_they_are(without_factor):
    """Where they are approximate, `response` is their derivative all the same."""
    prior, data, sites = problem(rough(), grid(24, 30), unit_of_holes(), 1)
    posterior = condition(Kronecker(dense_rows=0), prior, data, sites)
    tau = torch.where(
        sites.tau > 0, torch.randn(sites.tau.shape, generator=torch.Generator().manual_seed(1)), 0.0
    ).double()
    along, h = Sites(torch.zeros_like(tau), tau), 1e-4
    ends = [posterior.with_sites(Sites(sites.nu, sites.tau + s * h * tau)).site_marginals.variance for s in (1, -1)]
    close(posterior.response(along)[1], (ends[0] - ends[1]) / (2 * h), "response of variances", atol=1e-7, rtol=0)


def counts(n=20):
    x = torch.linspace(0, 1, n).double()
    generator, kernel = torch.Generator().manual_seed(0), RBF(lengthscale=0.15).double()
    values, vectors = kron.eigen(kernel.matrix(x).detach())
    half = vectors * values.sqrt()
    f = half @ torch.randn(n, n, generator=generator, dtype=torch.float64) @ half.mT
    return Grid([x, x]), torch.poisson((f + 1).exp(), generator=generator)


@pytest.mark.parametrize("objective", [gpx.objectives.ELBO(), gpx.objectives.EPEvidence()])
@pytest.mark.parametrize("rows", [0, 5000])
def test_poisson_counts(objective, rows):
    """kronecker-sites: value and gradient are those of dense algebra."""
    kernel = RBF(lengthscale=0.2, outputscale=0.8, active_dims=[0]) * RBF(lengthscale=0.2, active_dims=[1])
    inputs, y = counts()
    found = []
    for engine in (Kronecker(dense_rows=rows), Exact()):
        gp = gpx.GP(kernel, likelihoods.Poisson(), engine=engine, objective=objective).condition(inputs, y)
        problem = gp._fitted().anew()
        params = [p for p in problem.prior.kernels[0].parameters() if p.requires_grad]
        value = gp.objective_(problem)
        grads = torch.autograd.grad(value, params, allow_unused=True)
        found.append([value.item(), *(g.item() for g in grads)])
    close(found[0], found[1], "objective and gradient", atol=1e-6 * abs(found[1][0]), rtol=1e-6)
    assert abs(found[0][0] - found[1][0]) < 1e-6 * 400, "nats per cell"


def test_equal_eigenvalues():
    """kronecker-gradient: no eigenvector is differentiated."""
    inputs = Grid([10.0 * torch.arange(4).double(), 10.0 * torch.arange(3).double()])  # K is a multiple of the identity
    agree(
        RBF(lengthscale=0.5, active_dims=[0]) * RBF(lengthscale=0.5, active_dims=[1]), inputs, torch.ones(4, 3).double()
    )


def test_draws_have_the_moments_of_the_posterior():
    """kronecker-even, kronecker-uneven: a mean or covariance is off by 6.5 standard errors once in 1e10."""
    tau = torch.full((4, 3), 3.0).double()
    holes = tau.clone()
    holes[1, 1] = holes[3] = 0.0
    for precisions in (tau, holes):
        prior, data, sites = problem(KERNELS["two-materns"](), grid(4, 3), precisions, 1)
        posterior = condition(Kronecker(dense_rows=0), prior, data, sites)
        mean, covariance = (part.detach() for part in posterior.joint(data.x))
        draws = posterior.sample(data.x, 20_000, torch.Generator().manual_seed(0))[..., 0]
        sd = covariance[0].diagonal().sqrt()
        z = (draws.mean(0) - mean[:, 0]) / sd * 20_000**0.5
        assert float(z.abs().max()) < 6.5, "mean of draws"
        off = (torch.cov(draws.mT) - covariance[0]) / (sd[:, None] * sd) * (20_000 / 2) ** 0.5
        assert float(off.abs().max()) < 6.5, "covariance of draws"


def test_paths_go_through_precise_data():
    y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[2, 3] = torch.nan
    for targets in (y.nan_to_num(0.3), y):
        gp = gpx.GP(rough(), likelihoods.Gaussian(noise=1e-6), engine=Kronecker(dense_rows=0)).condition(
            grid(6, 5), targets
        )
        seen = ~torch.isnan(targets)
        assert float((gp.paths(3)(grid(6, 5)) - targets)[:, seen].abs().max()) < 0.02
        assert float((gp.sample(grid(6, 5), 3) - targets)[:, seen].abs().max()) < 0.02
        assert gp.sample(Grid([[0.1, 1.2], [0.3, 2.2]]), 3).shape == (3, 2, 2)


def test_several_latent_functions():
    """Each with a kernel of its own; the grid is one for all."""
    kernels = [rough(), RBF(lengthscale=[0.9, 1.3], ard=True)]
    y = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for engine in (Kronecker(dense_rows=0), Exact()):
        gp = gpx.GP(kernels, likelihoods.Heteroscedastic(), engine=engine).condition(grid(5, 4), y)
        found.append((gp.log_evidence(), gp.predict(grid(5, 4)).mean))
    assert abs(found[0][0] - found[1][0]) < 1e-6
    close(found[0][1], found[1][1], "predictions", atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [2, 3, 64, 65])
def test_eigenvectors_by_halves(n, monkeypatch):
    """kronecker-halves: on values that are the same from both ends, even or not, they are those of two smaller matrices."""
    monkeypatch.setattr(kron, "HALVED", 2)
    sizes = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (sizes.append(len(a)), eigh(a))[1])
    steps = axis(n - 1, 3)[:, 0] / n
    uneven = torch.cat([steps.new_zeros(1), steps + steps.flip(0)]).cumsum(0)
    for values in (torch.linspace(-1, 2, n, dtype=torch.float64), 10 + torch.arange(n).double() / 12, uneven):
        for kernel in (Matern(nu=0.5, lengthscale=0.3), RBF(lengthscale=2.0), Cosine(period=1.3)):
            matrix = kernel.double().matrix(values[:, None]).detach()
            found, vectors = kron.eigen(matrix)
            assert sizes == [n - n // 2, n // 2], "two of half the size"
            sizes.clear()
            close(found, eigh(matrix)[0].flip(0).clamp_min(0), "eigenvalues, descending", atol=1e-11)
            close(vectors @ (found[:, None] * vectors.mT), matrix, "the matrix", atol=1e-11)
            close(vectors.mT @ vectors, torch.eye(n).double(), "they are orthogonal", atol=1e-11)


def test_other_matrices_are_not_halved():
    """kronecker-halves: those of uneven values, and of kernels that are not stationary, are as before."""
    for kernel, values in ((Linear(0.3), torch.linspace(0, 1, 70)), (RBF(lengthscale=0.3), axis(70, 1)[:, 0])):
        matrix = kernel.double().matrix(values.double()[:, None]).detach()
        found, vectors = kron.eigen(matrix)
        close(vectors @ (found[:, None] * vectors.mT), matrix, "the matrix", atol=1e-10)


@pytest.mark.parametrize("holes", [False, True])
def test_even_axes(holes):
    """kronecker-halves"""
    inputs = Grid([torch.linspace(0, 3, 65, dtype=torch.float64), torch.linspace(0, 2, 6, dtype=torch.float64)])
    tau = torch.full((65, 6), 3.0).double()
    if holes:
        tau[1, 2] = tau[30, :3] = tau[6] = 0.0
    agree(rough(), inputs, tau)


def test_every_derivation_is_cited():
    """kronecker-modes and kronecker-prediction by the tests of all grids, the others by name."""
    document = Path(__file__).parents[2] / "docs" / "theory" / "kronecker.md"
    labels = re.findall(r"^\((kronecker-.*)\)=", document.read_text(), re.MULTILINE)
    assert labels
    missing = [label for label in labels if label not in Path(__file__).read_text()]
    assert not missing, missing
