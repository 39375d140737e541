"""The state-space engine where its forms are at their limits: harmonics that are left out, stamps far away."""

from __future__ import annotations

import numpy as np
import pytest

from gpx import GP, FitWarning
from gpx.engines import Exact, StateSpace
from gpx.kernels import Matern, Periodic
from gpx.likelihoods import Gaussian
from gpx.structure import state_space
from gpx.testing.assertions import close

RANDOM = np.random.default_rng(0)


def test_harmonics_are_kept_that_many_data_with_little_noise_see():
    """A third harmonic of 1e-8 of the variance, beside noise of 1e-7 of it."""
    t = np.sort(RANDOM.uniform(0, 30, 400))
    phase = 2 * np.pi * t
    y = 200 * np.cos(phase) + 2 * np.cos(2 * phase) + 0.05 * np.cos(3 * phase) + 0.1 * RANDOM.standard_normal(400)
    kernel = Periodic(1.0, 30.0, 45_000.0)
    assert state_space(kernel).exact
    models = [GP(kernel, Gaussian(0.01), mean="zero", engine=e).condition(t, y) for e in (StateSpace(), Exact())]
    chain, dense = (gp.predict(np.linspace(0.1, 1, 30), of="f") for gp in models)
    assert models[0].log_evidence() == pytest.approx(models[1].log_evidence(), abs=1e-4)
    close(chain.mean, dense.mean, "means", atol=1e-5)
    close(chain.std, dense.std, "deviations", 1e-4)


def pulses():
    t = np.sort(np.random.default_rng(0).uniform(0, 30, 600))
    return t, np.where(t % 1 < 0.01, 5.0, 0.0) - np.where(abs(t % 1 - 0.5) < 0.005, 4.0, 0.0) + 0.05 * np.cos(9 * t)


def pulsing() -> Periodic:
    return Periodic(period=1.0).set(period={"init": 1.0, "fixed": True})


@pytest.mark.slow
@pytest.mark.ci
def test_a_fit_leaves_an_engine_that_is_not_exact_where_it_ends():
    """Pulses take a lengthscale, and with it more harmonics than there are, that nothing is known of before the fit."""
    gp = GP(pulsing()).fit(*pulses(), max_iter=15)
    assert gp.engine_ == Exact() and "auto" in gp.engine_reason_
    again = GP(gp.kernel_, gp.likelihood_, mean=gp.mean_, engine=Exact()).condition(*pulses())
    assert gp.log_evidence() == pytest.approx(again.log_evidence(), rel=1e-9)


def test_a_fit_with_harmonics_left_out_says_so():
    kernel = pulsing().set(lengthscale={"init": 0.01, "fixed": True})
    with pytest.warns(FitWarning, match=r"leaves out a share of 0\.2 .*engine='Exact', or bounds on the lengthscale"):
        GP(kernel, engine=StateSpace()).fit(*(part[:100] for part in pulses()), max_iter=1)


def test_a_stamp_far_away_changes_nothing():
    """Whether gaps are those of a grid is asked of each by the rounding of its own two times."""
    t, near = np.sort(RANDOM.uniform(0, 20, 70)), [1.0, 5.0]
    gp = GP(Matern(nu=2.5, lengthscale=2.0), Gaussian(0.05), engine=StateSpace()).condition(t, np.sin(t))
    far = GP(gp.kernel_, gp.likelihood_, mean=gp.mean_, engine=StateSpace())
    far.condition(np.r_[t, 1e15], np.r_[np.sin(t), np.nan])
    assert far.log_evidence() == pytest.approx(gp.log_evidence(), rel=1e-12)
    for other in (far.predict(near), gp.predict([*near, 1e15])):
        close(other.mean[:2], gp.predict(near).mean, "means", 1e-12)
