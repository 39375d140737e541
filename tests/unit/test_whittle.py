"""`objectives.Whittle` as users meet it: fits, invariances, files, and what is refused with which advice."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch

import gpx
from benchmarks.tasks.whittle import series as ornstein_uhlenbeck
from gpx import GP, InputError, StructureError
from gpx.kernels import RBF, HidaMatern, Linear, Matern
from gpx.likelihoods import Bernoulli, Gaussian, Poisson
from gpx.objectives import Evidence, Whittle
from gpx.testing.assertions import close

N = 120


def series(columns=None, n=N, seed=0):
    """A tone that drifts, with noise."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(n, dtype=torch.float64)
    C = HidaMatern(0, 30.0, 1 / 9).matrix(t).detach() + 0.1 * torch.eye(n, dtype=torch.float64)
    y = torch.linalg.cholesky(C) @ torch.randn(n, columns or 1, generator=generator, dtype=torch.float64)
    return t, y if columns else y[:, 0]


def whittle(**options):
    return GP(HidaMatern(0), objective=Whittle(**options))


def test_a_fit_is_close_to_that_of_the_evidence():
    t, y = series(n=300)
    ours, exact = whittle().fit(t, y), GP(HidaMatern(0)).fit(t, y)
    assert ours.result_.converged
    for name in ("kernel.frequency", "kernel.lengthscale", "likelihood.noise"):
        a, b = ours.parameters()[name], exact.parameters()[name]
        assert abs(a.value - b.value) < 0.5 * b.standard_error, name
        assert a.standard_error == pytest.approx(b.standard_error, rel=0.5)
    at_theirs = GP(exact.kernel_, exact.likelihood_, mean=exact.mean_).condition(t, y)
    at_ours = GP(ours.kernel_, ours.likelihood_, mean=ours.mean_).condition(t, y)
    assert at_theirs.log_evidence() - at_ours.log_evidence() < 0.5
    close(ours.predict(t + 0.5).mean, at_ours.predict(t + 0.5).mean, "the engine conditions as always", 1e-12)


def test_log_evidence_is_the_value_of_the_objective():
    t, y = series()
    gp = whittle().fit(t, y)
    assert gp.log_evidence() == pytest.approx(gp.result_.objective, rel=1e-12)
    assert "Whittle" in gp.summary()
    evidence = GP(gp.kernel_, gp.likelihood_, mean=gp.mean_).condition(t, y).log_evidence()
    assert abs(gp.log_evidence() - evidence) < 0.05 * abs(evidence), "on the scale of the evidence"


def value(t, y, kernel=None, noise=0.2, **options):
    kernel = HidaMatern(0, 20.0, 0.1) if kernel is None else kernel
    return GP(kernel, Gaussian(noise), mean="zero", objective=Whittle(**options)).condition(t, y).log_evidence()


@pytest.mark.parametrize("debiased", [True, False])
def test_invariances(debiased):
    t, y = series(2)
    y[5:30, 0] = math.nan
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    expected = value(t, y, debiased=debiased)
    assert value(t[order], y[order], debiased=debiased) == pytest.approx(expected, rel=1e-12), "order"
    assert value(t - 1e4, y + 50.0, debiased=debiased) == pytest.approx(expected, rel=1e-9), "origin of both"
    slow = HidaMatern(0, 20.0 * 3600, 0.1 / 3600)
    assert value(3600 * t, y, slow, debiased=debiased) == pytest.approx(expected, rel=1e-9), "units of time"
    parts = [value(t, column, debiased=debiased) for column in y.T]
    assert sum(parts) == pytest.approx(expected, rel=1e-12), "outputs are independent series"
    once = y[:, 0]
    seen = ~torch.isnan(once)
    assert value(t[seen], once[seen], debiased=debiased) == pytest.approx(parts[0], rel=1e-12), "missing = left out"
    lonely = torch.full((N, 1), math.nan, dtype=torch.float64)
    assert value(t, torch.cat([y, lonely], 1), debiased=debiased) == pytest.approx(expected, rel=1e-12), "no targets"


def test_dates_and_columns_by_name():
    t, y = series()
    frame = pd.DataFrame({"day": t.numpy(), "other": np.zeros(N)})
    gp = GP(HidaMatern(0, 20.0, 0.1, active_dims=["day"]), Gaussian(0.2), mean="zero", objective=Whittle())
    assert gp.condition(frame[["day"]], y).log_evidence() == pytest.approx(value(t, y), rel=1e-12)
    stamps = pd.Series(pd.date_range("2020-01-01", periods=N, freq="D"))
    assert whittle().fit(stamps, y.numpy()).result_.converged


def test_known_noise():
    t, y = series()
    equal = value(t, y, noise=np.full(N, 0.2))
    assert equal == pytest.approx(value(t, y), rel=1e-12)
    assert value(t, y, noise=np.linspace(0.01, 0.6, N)) != pytest.approx(equal, rel=1e-6)


def test_a_constant_mean_stays_and_has_no_standard_error():
    t, y = series()
    y = y + 300.0
    y[7:11] = math.nan
    gp = whittle().fit(t, y)
    row = gp.parameters()["mean.constant"]
    assert row.value == pytest.approx(float(torch.nanmean(y)), rel=1e-12) and math.isnan(row.standard_error)
    assert all(r.standard_error > 0 for r in gp.parameters() if r.name in ("kernel.lengthscale", "likelihood.noise"))


def test_a_line_is_learned():
    t, y = series()
    gp = GP(HidaMatern(0), mean="linear", objective=Whittle()).fit(t, y + 2.0 * t)
    row = gp.parameters()["mean.slope"]
    assert abs(row.value - 2.0) < 4 * row.standard_error < 0.1
    assert math.isnan(gp.parameters()["mean.constant"].standard_error)


@pytest.mark.parametrize("mean", ["zero", "constant", "linear", gpytorch.means.ConstantMean()])
def test_every_mean_can_be_used(mean):
    t, y = series(2)
    gp = GP(HidaMatern(0), mean=mean, objective=Whittle()).fit(t, y)
    assert gp.result_.converged


def test_model_files(tmp_path):
    t, y = series()
    gp = whittle(debiased=False).fit(t, y)
    gp.save(tmp_path / "model.gpx")
    other = gpx.load(tmp_path / "model.gpx")
    assert other.objective_ == Whittle(debiased=False)
    assert other.log_evidence() == pytest.approx(gp.log_evidence(), rel=1e-12)


def test_lengthscales_of_a_few_cells_are_found():
    """Starts reach down to the spacing: a long series may vary within a few of its cells."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(3000, dtype=torch.float64)
    noise = torch.randn(3002, generator=generator, dtype=torch.float64)
    y = noise[2:] + noise[1:-1] + noise[:-2]
    gp = GP(Matern(1.5), mean="zero", objective=Whittle()).fit(t[:800], y[:800])
    assert 0.3 < float(gp.kernel_.lengthscale.detach()) < 5


def test_a_search_does_not_stop_on_a_slope():
    """From a start this far off, L-BFGS-B alone stopped at a gradient of 6.5 nats, with steps cut by far trial points."""
    y = ornstein_uhlenbeck(2048, 26)
    gp = GP(Matern(0.5, lengthscale=17.74), objective=Whittle()).fit(np.arange(2048.0), y, priors=None)
    assert gp.result_.gradient_norm < 0.1


# ------------------------------------------------------------------------------------------------ refusals


T, Y = torch.arange(9, dtype=torch.float64), torch.randn(9, generator=torch.Generator().manual_seed(0)).double()
TWICE = torch.cat([T, T[:2]])
REFUSED = {
    "two columns": (InputError, lambda: (GP(RBF(), objective=Whittle()), torch.stack([T, T], 1), Y), "one input column, a series, got 2"),
    "irregular": (InputError, lambda: (whittle(), T**1.7, Y), "gaps between them range from 1 to"),
    "duplicates": (InputError, lambda: (whittle(), TWICE, torch.cat([Y, Y[:2]])), r"2 stamp\(s\) occur more than once"),
    "one target": (InputError, lambda: (whittle(), T[:1], Y[:1]), r"two observed targets in an output, got \[1\]"),
    "not stationary": (StructureError, lambda: (GP(RBF() + 2 * Linear(), objective=Whittle()), T, Y), "stationary kernel, Linear is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("ask", [lambda gp, x, y: gp.fit(x, y), lambda gp, x, y: gp.condition(x, y).log_evidence()])
def test_what_is_refused(case, ask):
    """Each error says what was received, and that the evidence takes it."""
    error, build, received = REFUSED[case]
    gp, x, y = build()
    with pytest.raises(error, match=rf"{received}.*use objectives\.Evidence\(\)"):
        ask(gp, x, y)
    GP(RBF() + Linear(), objective=Evidence()).fit(x, y)  # the advice is good


@pytest.mark.parametrize("likelihood", [Poisson(), Bernoulli()])
def test_gaussian_noise_only(likelihood):
    gp = GP(RBF(), likelihood, objective=Whittle())
    with pytest.raises(StructureError, match=r"likelihoods.Gaussian\(\), got .*; use objectives.EPEvidence\(\)"):
        gp.fit(T, (Y > 0).double())


def test_the_naive_form_wants_a_density():
    with pytest.raises(StructureError, match=r"Periodic has no spectral density.*Whittle\(debiased=True\)"):
        GP(gpx.kernels.Periodic(3.0), objective=Whittle(debiased=False)).fit(T, Y)
    assert GP(gpx.kernels.Periodic(3.0), objective=Whittle()).fit(T, Y).result_.converged, "the advice is good"
    for wrong in (1, "yes", None):
        with pytest.raises(InputError, match="debiased=True or debiased=False, got"):
            Whittle(debiased=wrong)
