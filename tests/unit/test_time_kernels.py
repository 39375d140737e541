"""HidaMatern and QuasiPeriodic: products of kernels that exist, with starts from the periodogram."""

from __future__ import annotations

import math

import pytest
import torch

import gpx
from gpx import GP, InputError
from gpx.inputs import as_data
from gpx.kernels import Cosine, HidaMatern, Matern, Periodic, QuasiPeriodic, parse
from gpx.kernels.dense import dense
from gpx.linalg.periodogram import nyquist
from gpx.testing import check_kernel
from gpx.testing.assertions import close
from gpx.testing.cases import points

T, T2 = points(9, 1), points(5, 1, seed=2)
BUILDS = {
    "HidaMatern": lambda **k: HidaMatern(lengthscale=0.9, frequency=0.7, **k),
    "QuasiPeriodic": lambda **k: QuasiPeriodic(period=1.4, lengthscale=0.8, decay=2.0, **k),
}


def started(kernel, t, y):
    data = as_data(t, y)
    kernel.bind(data.columns)
    kernel.init_from(data)
    return kernel


def value(kernel, name):
    return float(getattr(kernel, name).detach())


@pytest.mark.parametrize("order", range(8))
def test_hida_matern_is_a_product(order):
    kernel = HidaMatern(order, lengthscale=0.9, frequency=0.7, outputscale=1.3)
    product = Cosine(period=1 / 0.7, outputscale=1.3) * Matern(order + 0.5, lengthscale=0.9)
    close(kernel.matrix(T, T2), product.matrix(T, T2), "Cosine x Matern", rtol=0, atol=1e-14)
    plain = HidaMatern(order, lengthscale=0.9, frequency=0.0)
    close(plain.matrix(T, T2), Matern(order + 0.5, lengthscale=0.9).matrix(T, T2), "Matern", rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", range(8))
def test_quasi_periodic_is_a_product(order):
    kernel = QuasiPeriodic(1.4, lengthscale=0.8, decay=2.0, order=order, outputscale=1.3)
    product = Periodic(1.4, lengthscale=0.8, outputscale=1.3) * Matern(order + 0.5, lengthscale=2.0)
    close(kernel.matrix(T, T2), product.matrix(T, T2), "Periodic x Matern", rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("order", [0, 1, 4])
def test_laws_on_one_column(name, order):
    check_kernel(BUILDS[name](order=order), points(8, 1))


def log_gradients(kernel):
    """Gradients of a weighted sum of k(T, T2) in log values, by name."""
    weights = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = kernel.double()
    names, raws = zip(*kernel.named_parameters(), strict=True)
    found = torch.autograd.grad((weights * dense(kernel, T, T2)).sum(), raws)
    return {n.replace("raw_", ""): float(g.sum()) for n, g in zip(names, found, strict=True)}


def test_derivatives_are_those_of_the_product():
    ours, theirs = log_gradients(HidaMatern(2, 0.9, 0.5)), log_gradients(Cosine(2.0) * Matern(2.5, 0.9))
    assert 0.5 * ours["frequency"] == pytest.approx(-theirs["kernels.0.period"], rel=1e-12)
    assert ours["lengthscale"] == pytest.approx(theirs["kernels.1.lengthscale"], rel=1e-12)
    assert ours["outputscale"] == pytest.approx(theirs["kernels.0.outputscale"], rel=1e-12)
    ours, theirs = log_gradients(QuasiPeriodic(2.0, 0.8, 1.5, 2)), log_gradients(Periodic(2.0, 0.8) * Matern(2.5, 1.5))
    assert ours["decay"] == pytest.approx(theirs["kernels.1.lengthscale"], rel=1e-12)
    for name in ("period", "lengthscale", "outputscale"):
        assert ours[name] == pytest.approx(theirs[f"kernels.0.{name}"], rel=1e-12)


@pytest.mark.parametrize("name", BUILDS)
def test_a_batch_of_hyperparameters_is_a_loop(name):
    pair = torch.tensor([0.6, 1.5], dtype=torch.float64)
    batched = BUILDS[name](batch_shape=[2], outputscale=pair)
    single = [BUILDS[name](outputscale=float(v)).matrix(T, T2) for v in pair]
    close(dense(batched, T, T2), torch.stack(single), "a batch", 1e-13)


def test_arguments_repr_and_expressions():
    assert repr(HidaMatern()) == "HidaMatern(order=1, lengthscale=1, frequency=0, outputscale=1)"
    assert repr(HidaMatern(2, 3.0, 0.25, 4.0)) == "HidaMatern(order=2, lengthscale=3, frequency=0.25, outputscale=4)"
    assert repr(QuasiPeriodic(12.0)) == "QuasiPeriodic(order=1, period=12, lengthscale=1, decay=1, outputscale=1)"
    text = "HidaMatern(order=0, lengthscale=2, frequency=0.1) + QuasiPeriodic(period=7, decay=30, order=0)"
    assert [type(k).__name__ for k in parse(text).kernels] == ["HidaMatern", "QuasiPeriodic"]


@pytest.mark.parametrize("order", [-1, 0.5, 1.5, True, "1", None])
@pytest.mark.parametrize("kind", [HidaMatern, QuasiPeriodic])
def test_orders_are_whole_numbers(kind, order):
    with pytest.raises(InputError, match=rf"{kind.__name__} needs an integer order >= 0.*nu = order \+ 1/2"):
        kind(order=order)


@pytest.mark.parametrize("kind", [HidaMatern, QuasiPeriodic])
def test_one_column_only(kind):
    x = points(5)
    with pytest.raises(InputError, match=rf"{kind.__name__} acts on one input column, got 3.*active_dims=\[i\]"):
        GP(kind()).fit(x, x[:, 0])


# ------------------------------------------------------------------------------------------------ frequency


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_a_frequency_is_not_negative(bad):
    with pytest.raises(InputError, match="HidaMatern: frequency must be at least 0 and finite, got"):
        HidaMatern(frequency=bad)
    with pytest.raises(InputError, match="Bounds of frequency must satisfy 0 <= lower < upper"):
        HidaMatern().set(frequency=dict(bounds=(-1.0, 1.0)))


def test_zero_stays_zero_unless_set():
    t = torch.arange(60.0, dtype=torch.float64)
    y = torch.sin(2 * math.pi * t / 9.7)
    gp = GP(HidaMatern(frequency=0.0)).fit(t, y)
    assert value(gp.kernel_, "frequency") == 0.0
    learned = lambda kernel: kernel.raw_frequency.requires_grad  # noqa: E731
    assert not learned(HidaMatern(frequency=0.0)) and learned(HidaMatern()) and learned(HidaMatern(frequency=0.1))
    assert learned(HidaMatern(frequency=0.0).set(frequency=0.2)), "another value is learned"
    assert not learned(HidaMatern(frequency=0.3).set(frequency=0.0)), "and zero is not"
    assert not learned(HidaMatern(frequency=0.0).set(frequency=dict(init=0.2, fixed=True)))
    freed = started(HidaMatern(frequency=0.0).set(frequency=dict(fixed=False)), t, y)
    assert value(freed, "frequency") == pytest.approx(1 / 9.7, rel=0.05), "at zero there would be no gradient"


@pytest.mark.parametrize("irregular", [False, True])
def test_the_start_of_a_frequency_is_the_peak_of_the_periodogram(irregular):
    t = torch.arange(120.0, dtype=torch.float64)
    if irregular:
        t = t + 0.8 * torch.rand(120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.sin(2 * math.pi * t / 17.3) + 0.02 * t
    assert value(started(HidaMatern(), t, y), "frequency") == pytest.approx(1 / 17.3, rel=0.05)
    assert value(started(QuasiPeriodic(), t, y), "period") == pytest.approx(17.3, rel=0.05)
    assert value(started(HidaMatern(frequency=0.2), t, y), "frequency") == 0.2, "what is given stays"


def test_a_frequency_stays_below_that_of_nyquist():
    t = 0.5 * torch.arange(50.0, dtype=torch.float64)
    y = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert nyquist(t) == 1.0 and nyquist(t[:1]) is None
    kernel = started(HidaMatern(), t, y)
    assert float(kernel.raw_frequency_constraint.lower_bound) == 0.0
    assert float(kernel.raw_frequency_constraint.upper_bound) == 1.0
    assert 0 < value(kernel, "frequency") < 0.1, "without a peak: close to a Matern kernel"
    chosen = started(HidaMatern().set(frequency=dict(bounds=(0.3, 0.4))), t, y)
    assert 0.3 <= value(chosen, "frequency") <= 0.4
    assert float(chosen.raw_frequency_constraint.upper_bound) == pytest.approx(0.4)


def test_a_fit_finds_the_frequency_whatever_the_units():
    generator = torch.Generator().manual_seed(3)
    t = torch.arange(80.0, dtype=torch.float64)
    y = torch.sin(2 * math.pi * t / 11.0) + 0.1 * torch.randn(80, generator=generator, dtype=torch.float64)
    gp = GP(HidaMatern(order=1)).fit(t, y)
    assert gp.result_.converged and value(gp.kernel_, "frequency") == pytest.approx(1 / 11, rel=0.02)
    scaled = GP(HidaMatern(order=1)).fit(1e4 * t, 1e-3 * y)
    assert 1e4 * value(scaled.kernel_, "frequency") == pytest.approx(value(gp.kernel_, "frequency"), rel=1e-3)
    row = next(r for r in gp.parameters() if r.name == "kernel.frequency")
    assert 0 < row.standard_error < 0.01


@pytest.mark.parametrize("name", BUILDS)
def test_model_files(tmp_path, name):
    t = torch.arange(30.0, dtype=torch.float64)
    y = torch.sin(2 * math.pi * t / 7.0)
    for kernel in (BUILDS[name](order=2), HidaMatern(frequency=0.0)):
        gp = GP(kernel).fit(t, y)
        gp.save(tmp_path / "model.gpx")
        other = gpx.load(tmp_path / "model.gpx")
        assert repr(other.kernel_) == repr(gp.kernel_)
        close(other.predict(t + 0.5).mean, gp.predict(t + 0.5).mean, "predictions", 1e-12)
        if isinstance(kernel, HidaMatern):
            bounds = [float(k.kernel_.raw_frequency_constraint.upper_bound) for k in (gp, other)]
            assert bounds[0] == bounds[1] == max(0.5, value(kernel, "frequency")), "Nyquist, unless more is given"
            assert other.kernel_.raw_frequency.requires_grad == gp.kernel_.raw_frequency.requires_grad


def test_terms_of_a_sum_start_at_different_peaks():
    t = torch.arange(200.0, dtype=torch.float64)
    y = 2 * torch.sin(2 * math.pi * t / 11.0) + torch.sin(2 * math.pi * t / 17.3)
    first, second = started(HidaMatern() + HidaMatern(), t, y).kernels
    assert [1 / value(k, "frequency") for k in (first, second)] == pytest.approx([11.0, 17.3], rel=0.02)
    _, second = started(QuasiPeriodic() + 2.0 * QuasiPeriodic(), t, y).kernels
    (season,) = (k for k in second.modules() if isinstance(k, QuasiPeriodic))
    assert value(season, "period") == pytest.approx(17.3, rel=0.02)
    _, second = started(Cosine(period=11.0) + HidaMatern(), t, y).kernels
    assert 1 / value(second, "frequency") == pytest.approx(17.3, rel=0.02), "a period that is given is taken, too"
    _, second = started(Cosine(period=11.0) + HidaMatern(), t, torch.sin(2 * math.pi * t / 11.0)).kernels
    assert value(second, "frequency") == pytest.approx(0.5 / 199), "without another peak: half a cycle"


def test_a_season_starts_at_no_harmonic_of_another():
    t = torch.arange(200.0, dtype=torch.float64)
    y = 2 * torch.sin(2 * math.pi * t / 12) + torch.sin(2 * math.pi * t / 6) + torch.sin(2 * math.pi * t / 19)
    _, second = started(QuasiPeriodic() + QuasiPeriodic(), t, y).kernels
    assert value(second, "period") == pytest.approx(19.0, rel=0.02)


def test_a_period_that_was_found_stays_in_its_lobe():
    t = torch.arange(120.0, dtype=torch.float64)
    y = torch.sin(2 * math.pi * t / 17.3)
    kernel = started(QuasiPeriodic(), t, y)
    lower, upper = (float(kernel.raw_period_constraint.get_buffer(n)) for n in ("lower_bound", "upper_bound"))
    period = value(kernel, "period")
    assert 1 / lower - 1 / period == pytest.approx(1 / 119) and 1 / period - 1 / upper == pytest.approx(1 / 119)
