"""Latent trajectories: the posterior of dense algebra, a bound that is one, and what users ask of a population."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

import gpx
from benchmarks.tasks import factor_analysis
from gpx.errors import InputError, StructureError
from gpx.kernels import BlockQuasiPeriodic, HidaMatern, Matern, RationalQuadratic
from gpx.kernels.dense import dense
from gpx.models import LatentTrajectories, bits_per_spike
from gpx.models.latent_trajectories import _mixed
from gpx.models.population import Bins, Readout, VectorSites, smooth
from gpx.testing.assertions import close

LENGTHS = (7, 4, 9)
KERNELS = (Matern(nu=1.5, lengthscale=3.0).double(), HidaMatern(0, 5.0, 0.1).double())


def population(neurons=12, latents=2, bins=(60, 40), rate=2.0, seed=0):
    """Counts [T_r, N] driven by smooth trajectories."""
    random = np.random.default_rng(seed)
    loading = 0.7 * random.standard_normal((neurons, latents))
    trials, paths = [], []
    for n in bins:
        phase = random.uniform(0, 2 * np.pi)
        x = np.stack([np.sin(2 * np.pi * np.arange(n) / 25 + phase + k) for k in range(latents)], 1) * 2**0.5
        paths.append(x)
        trials.append(random.poisson(rate * np.exp(x @ loading.T - 0.25)).astype(float))
    return trials, paths


def test_smoothing_is_dense_algebra():
    """Log partition, means and covariances of two latents in three trials, with precisions that are not diagonal or full."""
    generator = torch.Generator().manual_seed(0)
    bins, T = Bins.of(LENGTHS), sum(LENGTHS)
    root = torch.randn(T, 2, 2, generator=generator, dtype=torch.float64)
    root[3], root[5, :, 1] = 0.0, 0.0
    sites = VectorSites(torch.randn(T, 2, generator=generator, dtype=torch.float64), root @ root.mT)
    found = smooth(KERNELS, bins, sites)
    t = bins.times[:, None]
    within = torch.block_diag(*(torch.ones(n, n) for n in LENGTHS)).double()  # trials are independent
    K = torch.block_diag(*(within * dense(k, t, t).detach() for k in KERNELS)).numpy()  # by latent
    J = np.zeros((2 * T, 2 * T))
    for i in range(2):
        for j in range(2):
            J[i * T : (i + 1) * T, j * T : (j + 1) * T] = np.diag(sites.tau[:, i, j].numpy())
    nu = sites.nu.mT.reshape(-1).numpy()
    B = np.eye(2 * T) + K @ J
    covariance = np.linalg.solve(B, K)
    close(
        found.log_partition.detach(), 0.5 * nu @ covariance @ nu - 0.5 * np.linalg.slogdet(B)[1], "log partition", 1e-9
    )
    close(found.mean.mT.reshape(-1), covariance @ nu, "mean", atol=1e-9)
    for i in range(2):
        for j in range(2):
            block = np.diag(covariance[i * T : (i + 1) * T, j * T : (j + 1) * T])
            close(found.variance[:, i, j], block, f"covariance {i}, {j}", atol=1e-9)


def test_gaussian_counts_have_the_exact_evidence():
    """The bound of a Gaussian model is its log evidence, by dense algebra."""
    trials, _ = population(neurons=5, bins=(12, 8))
    model = LatentTrajectories([HidaMatern(1, 4.0, 0.0), HidaMatern(0, 9.0, 0.0)], "gaussian").fit(trials, max_rounds=3)
    y, t = np.concatenate(trials), Bins.of([12, 8]).times[:, None]
    within = torch.block_diag(torch.ones(12, 12), torch.ones(8, 8)).double()
    C, noise = model.loading_.numpy(), float(model.likelihood_.noise.detach())
    covariance = noise * np.eye(y.size)
    for k, kernel in enumerate(model.kernels_):
        covariance += np.kron((within * dense(kernel, t, t).detach()).numpy(), np.outer(C[:, k], C[:, k]))
    residual = (y - model.offset_.numpy()).reshape(-1)
    _, logdet = np.linalg.slogdet(2 * np.pi * covariance)
    assert model.elbo_ == pytest.approx(
        -0.5 * residual @ np.linalg.solve(covariance, residual) - 0.5 * logdet, rel=1e-8
    )


def test_the_bound_is_stationary_in_the_sites():
    """Its gradient in a kernel at fixed sites is that of the bound solved anew: central differences to 1e-4."""
    trials, _ = population(neurons=6, bins=(30, 20))
    model = LatentTrajectories([HidaMatern(1, 6.0, 0.0), HidaMatern(1, 4.0, 0.0)]).fit(trials, max_rounds=1)
    bins, y = Bins.of([30, 20]), torch.as_tensor(np.concatenate(trials))
    raw, values = model.kernels_[0].raw_lengthscale, []
    _, sites, _ = model._infer(bins, y, None)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(smooth(model.kernels_, bins, sites).log_partition, raw)
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            raw += step
            values.append(model._infer(bins, y, sites)[0])
            raw -= step
    assert float(slope) == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-3)


def test_trajectories_and_held_out_neurons():
    """Trajectories up to an affine map; neurons predicted from the others better than by their mean."""
    trials, paths = population(neurons=30, bins=(120, 100, 80))
    model = LatentTrajectories().fit(trials[:2])
    assert [tuple(p.mean.shape) for p in model.latents_] == [(120, 2), (100, 2)]
    assert model.loading_.shape == (30, 2) and model.offset_.shape == (30,)
    design = np.c_[np.concatenate([p.mean for p in model.latents_]), np.ones(220)]
    truth = np.concatenate(paths[:2])
    rest = truth - design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    assert 1 - (rest**2).sum() / (truth**2).sum() > 0.95
    shown, bound = np.arange(30) >= 5, model.elbo_
    (rates,) = model.predict_rates([np.where(shown, trials[2], np.nan)])
    assert bits_per_spike([rates[:, ~shown]], [trials[2][:, ~shown]]) > 0.1
    assert model.elbo_ == bound  # of the fit, not of what is predicted


def test_neurons_that_are_not_shown_are_not_used():
    """Hidden neurons are as if they were not there; of a trial without any, the rates are those of the prior."""
    trials, _ = population(neurons=9, bins=(30, 20))
    model = LatentTrajectories().fit(trials, max_rounds=2)
    shown = np.arange(9) % 3 > 0
    (rates,) = model.predict_rates([np.where(shown, trials[1], np.nan)])
    fewer = copy.copy(model)
    fewer.loading_, fewer.offset_ = model.loading_[shown], model.offset_[shown]
    close(rates[:, shown], fewer.predict_rates([trials[1][:, shown]])[0], "rates of the neurons shown", 1e-8)
    (rates,) = model.predict_rates([np.full((7, 9), np.nan)])
    prior = torch.exp(model.offset_ + 0.5 * model.loading_.square().sum(1))
    close(rates, prior.expand(7, 9), "rates of the prior", 1e-8)


def test_white_latents_are_factor_analysis():
    """Latents without memory: the bound and the rates of Poisson factor analysis, bin by bin, in plain numpy."""
    trials, _ = population(neurons=10, bins=(40, 30))
    white = HidaMatern(0, 1e-3, 0.0).set(lengthscale=dict(fixed=True))
    model = LatentTrajectories([white, white]).fit(trials, max_rounds=2)
    factors = factor_analysis.Factors(model.loading_.numpy(), model.offset_.numpy())
    bound, *_ = factor_analysis.infer(np.concatenate(trials), factors)
    assert model.elbo_ == pytest.approx(bound, rel=1e-6)
    hidden = np.where(np.arange(10) > 3, trials[0], np.nan)
    _, *moments = factor_analysis.infer(hidden, factors)
    close(model.predict_rates([hidden])[0], factor_analysis.predicted(factors, *moments), "rates", rtol=1e-3)


def test_open_frequencies_start_from_the_counts():
    """An oscillation of 25 bins: found where the frequency is open, with a higher bound than without one."""
    trials, _ = population(neurons=20, bins=(100, 80), rate=0.5)
    tone, plain = (LatentTrajectories([HidaMatern(1, frequency=f)] * 2).fit(trials, max_rounds=5) for f in (None, 0.0))
    found = max(float(kernel.frequency.detach()) for kernel in tone.kernels_)
    assert found == pytest.approx(1 / 25, rel=0.05)
    assert tone.elbo_ > plain.elbo_ + 1


def test_more_rounds_do_not_lower_the_bound():
    trials, _ = population(neurons=8)
    bounds = [LatentTrajectories().fit(trials, max_rounds=n).elbo_ for n in (1, 2, 4, 8)]
    assert all(b >= a - 1e-6 * abs(a) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("likelihood", ["negative_binomial", gpx.likelihoods.Poisson()])
def test_other_likelihoods(likelihood):
    trials, _ = population(neurons=6, bins=(25,))
    assert np.isfinite(LatentTrajectories(likelihood=likelihood).fit(trials, max_rounds=2).elbo_)


def test_bad_input():
    counts, _ = population(neurons=6, bins=(25, 20))
    model = LatentTrajectories()
    with pytest.raises(InputError, match="same number of neurons.*5, 6"):
        model.fit([counts[0], counts[1][:, :5]])
    negative = counts[1].copy()
    negative[3, 2] = -1
    with pytest.raises(InputError, match=r"trial 1 has -1 in bin 3, neuron 2"):
        model.fit([counts[0], negative])
    with pytest.raises(InputError, match=r"Trial 0 must be an array \[bins, neurons\], got shape \[3\]"):
        model.fit([[1, 2, 3]])
    with pytest.raises(InputError, match="at least one trial"):
        model.fit([])
    with pytest.raises(InputError, match="likelihood must be 'poisson'"):
        LatentTrajectories(likelihood="normal").fit(counts)
    with pytest.raises(InputError, match="7 latents need at least as many neurons"):
        LatentTrajectories([Matern()] * 7).fit(counts)
    with pytest.raises(InputError, match="5 neurons.*the fit had 6"):
        model.fit(counts, max_rounds=1).predict_rates([counts[0][:, :5]])
    with pytest.raises(InputError, match=r"trial 0 has -1 in bin 3, neuron 2"):
        model.predict_rates([negative])
    with pytest.raises(InputError, match=r"call fit\(trials\) first"):
        LatentTrajectories().predict_rates(counts)
    with pytest.raises(InputError, match=r"Neuron\(s\) \[6\] .*no observed bin in any trial; leave them out"):
        model.fit([np.c_[c, np.full(len(c), np.nan)] for c in counts])
    with pytest.raises(StructureError, match="RationalQuadratic has no state-space form; use Matern"):
        LatentTrajectories([RationalQuadratic(), Matern()]).fit(counts)
    with pytest.raises(StructureError, match=r"need kernels of time such as kernels.Matern\(\)"):
        LatentTrajectories([BlockQuasiPeriodic(4), Matern()]).fit(counts)


LIKELIHOODS = {
    "poisson": (gpx.likelihoods.Poisson(), lambda f, random: random.poisson(np.exp(f))),
    "gaussian": (gpx.likelihoods.Gaussian(0.5), lambda f, random: f + 0.7 * random.standard_normal(f.shape)),
    "negative_binomial": (gpx.likelihoods.NegativeBinomial(2.0), lambda f, random: random.poisson(np.exp(f))),
    "bernoulli": (gpx.likelihoods.Bernoulli(), lambda f, random: random.random(f.shape) < 1 / (1 + np.exp(-f))),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_readouts_climb_to_where_the_slope_is_zero(name):
    """Newton's method for loadings and offsets never falls, and ends at an optimum of what is expected."""
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    likelihood, draw = LIKELIHOODS[name]
    mean = torch.randn(80, 2, generator=generator, dtype=torch.float64)
    root = 0.3 * torch.randn(80, 2, 2, generator=generator, dtype=torch.float64)
    loading = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    y = torch.as_tensor(draw((mean @ loading.mT).numpy(), random).astype(float))
    y[::9, 0] = torch.nan
    readout = Readout(likelihood.double(), y, mean, root @ root.mT)
    at = torch.zeros(5, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    values = [readout.expected(*at)]
    for _ in range(40):
        at = readout.climbed(*at, 1)
        values.append(readout.expected(*at))
        assert bool((values[-1] >= values[-2]).all())
    leaves = [v.clone().requires_grad_() for v in at]
    for slope in torch.autograd.grad(readout.expected(*leaves).sum(), leaves):
        close(slope, torch.zeros_like(slope), f"{name}: slope at the optimum", atol=1e-5 * len(y))


def test_more_rounds_are_no_worse():
    """Wherever a fit is cut off."""
    trials, _ = population(bins=(40, 30))
    bounds = [LatentTrajectories().fit(trials, max_rounds=n, verbose=False).elbo_ for n in range(1, 9)]
    assert all(b >= a - 1e-6 * abs(a) for a, b in itertools.pairwise(bounds))


def test_extrapolated_rounds_of_a_linear_map_end_at_its_fixed_point():
    """After as many rounds as there are dimensions, but one, however slowly the map contracts."""
    random = np.random.default_rng(0)
    basis, fixed = np.linalg.qr(random.standard_normal((4, 4)))[0], random.standard_normal(4)
    contraction = basis @ np.diag([0.999, 0.9, 0.5, 0.1]) @ basis.T
    at, rounds = np.zeros(4), []
    for _ in range(6):
        rounds.append((at, fixed + contraction @ (at - fixed)))
        at = _mixed(rounds)
    close(at, fixed, "fixed point", rtol=1e-8)


@pytest.mark.parametrize("likelihood", ["gaussian", gpx.likelihoods.StudentT()], ids=repr)
def test_targets_have_no_unit(likelihood):
    """The same bound and rates in any unit; noise that starts at 1 drowns small targets."""
    random = np.random.default_rng(0)
    x = np.stack([np.sin(np.arange(60) / 7), np.cos(np.arange(60) / 11)], 1)
    y = x @ random.normal(size=(2, 6)) + 0.3 * random.standard_normal((60, 6))

    def fitted(unit):
        model = LatentTrajectories(likelihood=likelihood).fit([unit * y], max_rounds=6, verbose=False)
        return model.elbo_ + y.size * np.log(unit), model.predict_rates([unit * y])[0] / unit

    bound, rates = fitted(1.0)
    for unit in (1e4, 1e-2, 1e-5):
        other, same = fitted(unit)
        assert other == pytest.approx(bound, abs=0.1)
        close(same, rates, f"rates in a unit of {unit}", atol=0.02)
    assert (rates.numpy() - y).std() < 0.4


def test_kernels_may_be_one_or_a_name_and_keep_their_scale():
    trials, _ = population(bins=(20,))
    for kernels, name in (
        (HidaMatern(1, outputscale=3.0, frequency=0.0), "HidaMatern"),
        (["Matern(nu=1.5)"], "Matern"),
    ):
        model = LatentTrajectories(kernels).fit(trials, max_rounds=2, verbose=False)
        assert [type(k).__name__ for k in model.kernels_] == [name]
        assert float(model.kernels_[0].outputscale) == pytest.approx(3.0 if name == "HidaMatern" else 1.0)


@pytest.mark.parametrize("kernels", [[], [3], 3])
def test_kernels_that_are_none(kernels):
    with pytest.raises(InputError, match=r"a list of one kernel per latent, such as \[kernels.HidaMatern\(1\)\], got"):
        LatentTrajectories(kernels).fit([np.ones((5, 3))])
