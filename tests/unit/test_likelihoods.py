"""Gaussian noise: learned, fixed, known; and the quadrature that other likelihoods inherit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, StudentT

import gpx
from gpx import GP, InputError, StructureError
from gpx.inputs import as_data
from gpx.kernels import RBF
from gpx.likelihoods import Gaussian, Heteroscedastic, Likelihood
from gpx.testing import check_likelihood
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets

X, Y = points(20), targets(points(20))


def t64(values):
    return torch.tensor(values, dtype=torch.float64)


class Quadrature(Likelihood):
    """A Gaussian likelihood that knows only its density."""

    def log_prob(self, y, f):
        return Normal(f, 0.3**0.5).log_prob(y)

    def predict(self, mean, variance, noise=None):
        return Normal(mean, (variance + 0.3).sqrt())


class Density(Likelihood):
    def log_prob(self, y, f):
        return Normal(f, 0.3**0.5).log_prob(y)


class Heavy(Quadrature):
    def log_prob(self, y, f):
        return StudentT(torch.tensor(4.0, dtype=torch.float64), f, 0.5).log_prob(y)


def test_quadrature_is_the_closed_form():
    """To 1e-7, and by the kit's integrals."""
    y, m, v = (torch.tensor(t, dtype=torch.float64) for t in ([-0.5, 0.2, 1.5], [0.1, 0.0, 0.7], [0.2, 0.5, 1.0]))
    exact, quadrature = Gaussian(0.3), Quadrature()
    close(quadrature.expected_log_prob(y, m, v), exact.expected_log_prob(y, m, v), "expected log density", 1e-9)
    close(quadrature.tilted(y, m, v), exact.tilted(y, m, v), "tilted", 1e-7)
    check_likelihood(quadrature)


def test_quadrature_of_heavy_tails():
    y, m, v = (torch.tensor(t, dtype=torch.float64) for t in ([-0.5, 0.2, 4.0], [0.1, 0.0, 0.7], [0.2, 0.5, 1.0]))
    node = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    weight = torch.exp(-0.5 * node**2) / torch.exp(-0.5 * node**2).sum()
    density = Heavy().log_prob(y[:, None], m[:, None] + v.sqrt()[:, None] * node)
    close(Heavy().expected_log_prob(y, m, v), (density * weight).sum(1), "expected log density", 1e-5)
    close(Heavy().tilted(y, m, v), (density.exp() * weight).sum(1).log(), "tilted", 1e-5)


@pytest.mark.parametrize("variance", [(1e-4, 1.0), (1e-4, 0.01), (1.0, 100.0), (1e-4, 1e-4), (10.0, 0.7)], ids=str)
@pytest.mark.parametrize("y", [5.0, -8.1, 300.0])
def test_changing_noise_and_surprising_targets(y, variance):
    """``log E N(y; m, v + e^g)`` where the bulk of the product is far from the mean of g: brute force over g."""
    m, v = (t64(p).requires_grad_() for p in ([[-8.0, -8.0]], [variance]))
    value = Heteroscedastic().tilted(t64([y]), m, v)
    g = torch.linspace(-120, 120, 2_400_001, dtype=torch.float64)
    log_prob = Normal(m[:, 0], (v[:, 0] + g.exp()).sqrt()).log_prob(t64(y))
    density = Normal(m[:, 1], v[:, 1].sqrt()).log_prob(g)
    expected = torch.logsumexp(log_prob + density, 0) + math.log(float(g[1] - g[0]))
    close(value, expected.reshape(1), "log E N(y; m, v + e^g)", atol=1e-8 * max(1.0, abs(expected.item())))
    for a, b, of in zip(*(torch.autograd.grad(z.sum(), (m, v)) for z in (value, expected)), ("m", "v"), strict=True):
        close(a, b, f"its derivative in {of}", atol=1e-7 * max(1.0, float(b.abs().max())))


def test_only_the_density_is_required():
    """Sites, objective, hyperparameters and predictions of f need log_prob alone; those of y need the conditional."""
    gp = GP(RBF(), Density()).fit(X, Y)
    close(
        gp.log_evidence(),
        GP(RBF(), Gaussian(0.3).set(noise=dict(fixed=True))).fit(X, Y).log_evidence(),
        "evidence",
        1e-6,
    )
    assert gp.predict(X, of="f").mean.isfinite().all()
    assert gp.predict(X).log_prob(Y).isfinite().all() and "Mixture, shape [20]" in repr(gp.predict(X))
    with pytest.raises(
        StructureError, match=r"Density must define conditional\(f\) for predictions of y; of='f' works"
    ):
        gp.predict(X).mean  # noqa: B018
    with pytest.raises(NotImplementedError, match="Likelihood must define log_prob"):
        Likelihood().log_prob(X, X)


def test_the_noise_is_learned_unless_given_as_an_array():
    assert Gaussian().noise.item() == pytest.approx(0.1) and Gaussian().raw_noise.requires_grad
    learned = GP(RBF()).fit(X, Y)
    assert float(learned.likelihood_.noise.detach()) != pytest.approx(0.1)
    known = GP(RBF(), Gaussian([0.3] * 20)).fit(X, Y)
    assert not list(known.likelihood_.parameters())
    assert [r.name for r in known.parameters() if "noise" in r.name] == []


@pytest.mark.parametrize("noise", [0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64), 1])
def test_a_number_is_a_start(noise):
    likelihood = Gaussian(noise)
    assert likelihood.known_noise is None
    assert float(likelihood.noise.detach()) == pytest.approx(float(noise), rel=1e-7)


def test_known_noise_in_any_form():
    import pandas as pd

    values = [0.1, 0.2, 0.4]
    x, y = [0.0, 1.0, 2.0], [1.0, 2.0, 0.5]
    reference = GP(RBF(), Gaussian(values), mean="zero").condition(x, y).log_evidence()
    for form in (np.array(values), torch.tensor(values, dtype=torch.float64), pd.Series(values), [[v] for v in values]):
        assert GP(RBF(), Gaussian(form), mean="zero").condition(x, y).log_evidence() == reference


def test_equal_known_noise_is_fixed_noise():
    fixed = Gaussian(0.07).set(noise=dict(fixed=True))
    a = GP(RBF(), fixed).fit(X, Y)
    b = GP(RBF(), Gaussian([0.07] * 20)).fit(X, Y)
    close(a.log_evidence(), b.log_evidence(), "evidence", 1e-8)
    close(a.predict(X).variance, b.predict(X, noise=0.07).variance, "predictions", 1e-5)


def test_more_noise_counts_less():
    """A datum of infinite variance is as good as missing."""
    noise = torch.full((20,), 0.01, dtype=torch.float64)
    noise[5] = 1e12
    y = Y.clone()
    y[5] = torch.nan
    a = GP(RBF(), Gaussian(noise), mean="zero").condition(X, Y)
    b = GP(RBF(), Gaussian(0.01), mean="zero").condition(X, y)
    close(a.predict(X, of="f").mean, b.predict(X, of="f").mean, "predictions", 1e-9)


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_noise_of_a_missing_target_may_be_missing(outputs, tmp_path):
    """Masked = deleted, whatever is known of the noise there."""
    noise, y = torch.linspace(0.1, 0.3, 20, dtype=torch.float64), torch.stack([Y] * outputs, 1)
    gaps = torch.tensor([3, 11])
    keep = torch.ones(20, dtype=torch.bool).index_fill(0, gaps, False)
    noise[gaps], y[gaps] = torch.nan, torch.nan
    a, b = GP(RBF(), Gaussian(noise)).fit(X, y), GP(RBF(), Gaussian(noise[keep])).fit(X[keep], y[keep])
    close(a.log_evidence(), b.log_evidence(), "evidence", 1e-5)
    close(a.predict(X, of="f").mean, b.predict(X, of="f").mean, "predictions", 1e-3)
    assert bool(a.loo().log_density[keep].isfinite().all()) and np.isfinite(a.check().nlpd)
    a.save(tmp_path / "model.gpx")
    close(gpx.load(tmp_path / "model.gpx").log_evidence(), a.log_evidence(), "the loaded model", 0)


def test_the_noise_of_an_observed_target_must_be_known():
    noise = np.full((20, 2), 0.1)
    noise[[2, 5], 0] = np.nan
    y = torch.stack([Y, Y], 1)
    with pytest.raises(InputError, match=r"NaN beside an observed target in row\(s\) 2, 5; give it a value, or drop"):
        GP(RBF(), Gaussian(noise)).condition(X, y)
    y[[2, 5], 0] = torch.nan
    assert math.isfinite(GP(RBF(), Gaussian(noise)).condition(X, y).log_evidence())
    with pytest.raises(InputError, match=r"NaN beside an observed target in row\(s\) 0, 1, 2, 3, 4 and 15 more"):
        GP(RBF(), Gaussian([np.nan] * 20)).fit(X, Y)


def test_noise_of_predictions():
    gp = GP(RBF()).fit(X, Y)
    f, y = gp.predict(X[:3], of="f"), gp.predict(X[:3])
    close(y.variance - f.variance, gp.likelihood_.noise.detach().expand(3), "the learned noise", 1e-9)
    close(gp.predict(X[:3], noise=0.5).variance - f.variance, [0.5] * 3, "one number")
    close(gp.predict(X[:3], noise=[0.1, 0.2, 0.0]).variance - f.variance, [0.1, 0.2, 0.0], "per point", 1e-9)
    two = GP(RBF()).fit(X, torch.stack([Y, -Y], 1))
    f = two.predict(X[:3], of="f")
    close(
        two.predict(X[:3], noise=[0.1, 0.2, 0.3]).variance - f.variance,
        [[0.1] * 2, [0.2] * 2, [0.3] * 2],
        "per row",
        1e-9,
    )
    cells = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    close(two.predict(X[:3], noise=cells).variance - f.variance, cells, "per cell", 1e-9)
    with pytest.raises(InputError, match=r"\[2\].*\[3, 2\].*one variance per row"):
        two.predict(X[:3], noise=[0.1, 0.2])


def test_update_with_known_noise():
    """The variances of the first data are not those of the new ones, even if there are as many: they are asked for."""
    noise = torch.linspace(0.05, 0.3, 20, dtype=torch.float64)
    gp = GP(RBF(), Gaussian(noise[:12]), mean="zero").condition(X[:12], Y[:12])
    with pytest.raises(InputError, match=r"known for the 12 points.*update\(X, y, noise=variances\)"):
        gp.update(X[:12], Y[:12])
    gp.update(X[12:], Y[12:], noise=noise[12:])
    whole = GP(RBF(), Gaussian(noise), mean="zero").condition(X, Y)
    close(gp.predict(X, of="f").mean, whole.predict(X, of="f").mean, "update is refit")
    close(gp.log_evidence(), whole.log_evidence(), "update is refit")
    with pytest.raises(InputError, match="leave it out"):
        GP(RBF()).condition(X, Y).update(X, Y, noise=0.1)


def test_the_floor_of_learned_noise():
    """Noiseless data: the noise ends at 1e-6 of the target variance, in any unit."""
    x = torch.linspace(0, 6, 40, dtype=torch.float64)
    for scale in (1e-3, 1.0, 1e3):
        y = scale * x.sin()
        gp = GP(RBF()).fit(x, y, priors=None)
        floor = 1e-6 * float(y.var(correction=0))
        assert float(gp.likelihood_.noise.detach()) == pytest.approx(floor, rel=1e-6)
        assert gp.result_.at_bounds == ("likelihood.noise",)


def test_a_given_noise_below_the_floor_is_kept():
    gp = GP(RBF(), Gaussian(1e-10)).condition(X, Y)
    assert float(gp.likelihood_.noise.detach()) == pytest.approx(1e-10)
    gp = GP(RBF(), Gaussian(1e-10)).fit(X, Y)
    assert math.isfinite(gp.result_.objective)


def test_repr():
    assert repr(Gaussian()) == "Gaussian(noise=0.1)"
    assert repr(Gaussian([0.1, 0.2])) == "Gaussian(noise=2 known variances)"


def test_data_of_another_length():
    with pytest.raises(InputError, match=r"\[3\].*\[2, 1\]"):
        Gaussian([0.1, 0.2, 0.3]).exact_sites(as_data([0, 1], [0, 1]))


def test_rules_are_listed():
    assert repr(gpx.rules.Variational()) == "Variational()"


@pytest.mark.parametrize("precision", [2.0, 300.0, 1e4])
@pytest.mark.parametrize(("mean", "variance"), [(0.3, 0.1), (-2.0, 30.0), (-8.0, 100.0)])
def test_the_density_of_shares_is_the_slope_of_their_distribution(precision, mean, variance):
    """Also where one datum says much more of f than is known of it."""
    p = gpx.likelihoods.Beta(precision).double().predict(t64([mean]), t64([variance]))
    y = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    step = 1e-5
    close((p.cdf(y + step) - p.cdf(y - step)) / (2 * step), p.log_prob(y).exp(), "slope", 1e-4, atol=1e-6)
    halves = p.cdf(t64([0.5])) + gpx.likelihoods.Beta(precision).double().predict(t64([-mean]), t64([variance])).cdf(
        t64([0.5])
    )
    close(halves, t64([1.0]), "mirrored", 1e-7)


def test_constants_of_several_latent_functions_are_those_of_every_output():
    first = GP(RBF(), Heteroscedastic()).fit(X[:, :1], Y)
    both = GP(first.kernel_, first.likelihood_, mean=first.mean_)
    both.condition(X[:, :1], torch.stack([Y, Y], 1))
    assert both.log_evidence() == pytest.approx(2 * first.log_evidence(), abs=1e-6)
    with pytest.raises(
        InputError, match=r"constant of ConstantMean has shape \[2\], the model needs \[1\].*Give one number"
    ):
        GP(RBF(), mean=first.mean_).condition(X, Y)
