"""The optimisation loop: it converges by itself, says why it stopped, keeps bounds, survives bad points, leaves no trace."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import gpx
from gpx import GP, NumericalError, engines
from gpx.errors import FitWarning
from gpx.inference import fit as fit_module
from gpx.inference import starts
from gpx.inference.coordinates import Coordinates
from gpx.kernels import RBF, Constant, Linear, Matern, Periodic
from gpx.likelihoods import Gaussian
from gpx.objectives import Evidence, LeaveOneOut, Objective
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets

X, Y = points(40), targets(points(40))


def optimum(gp):
    """The coordinates of a fitted model, its objective plus log prior there, and the gradient."""
    problem = gp._solved
    unsolved = type(problem).__mro__[1](
        *(getattr(problem, f) for f in ("prior", "data", "likelihood", "engine", "rule", "plan"))
    )
    coordinates = Coordinates(
        [("k", gp._solved.prior.kernels[0]), ("l", gp._solved.likelihood), ("m", gp._solved.prior.mean)]
    )
    z = coordinates.read()
    total = gp.objective_(unsolved) + coordinates.log_prior()
    grads = torch.autograd.grad(total, coordinates.raws, allow_unused=True)
    return float(total.detach()), coordinates.gradient(z, grads)


@pytest.mark.parametrize("objective", [Evidence(), LeaveOneOut()], ids=repr)
@pytest.mark.parametrize("priors", ["weak", None])
def test_the_end_is_a_maximum(objective, priors):
    """The gradient is as small as the result says, and no random step is better."""
    gp = GP(Matern(ard=True), objective=objective).fit(X, Y, priors=priors)
    result = gp.result_
    assert result.converged
    total, gradient = optimum(gp)
    assert total == pytest.approx(result.objective + result.log_prior, abs=1e-7)
    assert gp.log_evidence() == pytest.approx(result.objective, abs=1e-7), "without log priors"
    if not result.at_bounds:
        assert np.abs(gradient).max() == pytest.approx(result.gradient_norm, abs=1e-6)
    assert result.gradient_norm < 0.05
    inner = gp._solved  # the parts that the posterior was made of; kernel_ and the others are copies
    raws = [p for m in (*inner.prior.kernels, inner.likelihood, inner.prior.mean) for p in m.parameters()]
    before = [p.detach().clone() for p in raws]
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 1.0):
        for _ in range(5):
            for p, b in zip(raws, before, strict=True):
                p.data.copy_(b + size * torch.randn(b.shape, generator=generator, dtype=torch.float64))
            assert optimum(gp)[0] < total + 1e-4
    for p, b in zip(raws, before, strict=True):
        p.data.copy_(b)


def test_the_result_says_what_happened():
    gp = GP(Matern()).fit(X, Y, seed=3)
    result = gp.result_
    assert result.converged and result.reason in ("gradient is zero", "objective no longer changes")
    assert 1 <= result.iterations <= result.evaluations and result.rejected == 0
    assert result.seconds > 0 and result.seed == 3 and result.jitter == 0 and result.at_bounds == ()
    assert len(result.objectives) == 1 and max(result.objectives) == pytest.approx(result.objective + result.log_prior)
    assert set(result.starts) == {"kernel.lengthscale", "kernel.outputscale", "likelihood.noise", "mean.constant"}
    assert str(result).startswith("converged: ") and f"{result.objective:.4f} nats" in str(result)
    assert "fit: converged" in gp.summary() and "auto: exact inference" in gp.summary()


T = torch.linspace(0, 10, 30, dtype=torch.float64)
WAVES = torch.sin(5 * T) + 0.3 * T
OFFERED = (3.0, 0.02, 0.3, 1.0)  # the last is where the optimum of this series is


class Offering(RBF):
    """Starts its lengthscale at the first of some, and offers the others."""

    def __init__(self, offered=OFFERED):
        super().__init__()
        self.offered = offered

    def arguments(self):
        return [], {"offered": self.offered}

    def _init_from(self, data):
        super()._init_from(data)
        self.assign("lengthscale", self.offered[0])
        self.alternatives = tuple({"lengthscale": torch.tensor(v).double()} for v in self.offered[1:])


def start_of(gp):
    """The log evidence where the fit began."""
    at = gp.result_.starts
    noise, constant = at["likelihood.noise"], at["mean.constant"]
    kernel = RBF(at["kernel.lengthscale"], at["kernel.outputscale"])
    return GP(kernel, Gaussian(noise), mean="zero").condition(T, WAVES - constant).log_evidence()


@pytest.mark.parametrize("offered", [OFFERED[:2], OFFERED[:3], OFFERED])
def test_the_best_offer_after_short_searches_is_taken(offered, monkeypatch):
    """Without lengthscales of its own, the fit goes on from at least as high as a short search from any offer ends."""
    monkeypatch.setattr(starts, "LENGTHSCALE_FACTORS", (1.0,))
    for trial in (1, 3):
        monkeypatch.setattr(fit_module, "TRIAL", trial)
        whole = start_of(GP(Offering(offered)).fit(T, WAVES, priors=None))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)
            ends = [GP(Offering((v,))).fit(T, WAVES, priors=None, max_iter=trial).log_evidence() for v in offered]
        assert whole >= max(ends) - 1e-9


def test_offers_are_tried_in_the_same_way_every_time():
    results = [GP(Offering()).fit(T, WAVES).result_ for _ in range(2)]
    assert results[0].starts == results[1].starts and results[0].objective == results[1].objective


def test_the_order_of_offers_does_not_matter():
    ends = [GP(Offering(o)).fit(T, WAVES, priors=None).log_evidence() for o in (OFFERED, OFFERED[::-1])]
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)


def test_no_offer_is_tried_when_the_time_is_up():
    """One evaluation where short searches begin, and one where the fit does; none of the other offers."""
    calls = []

    class Counted(Evidence):
        def __call__(self, problem):
            calls.append(problem)
            return super().__call__(problem)

    with pytest.warns(FitWarning, match="max_seconds is up"):
        gp = GP(Offering(), objective=Counted()).fit(T, WAVES, max_seconds=0.0)
    assert len(calls) <= 2
    assert gp.result_.starts["kernel.lengthscale"] == pytest.approx(OFFERED[0])


def test_max_iter():
    with pytest.warns(FitWarning, match=r"did not converge \(max_iter=2 reached\).*resume=gp"):
        gp = GP(Matern(ard=True)).fit(X, Y, max_iter=2)
    assert not gp.result_.converged and gp.result_.iterations == 2
    assert "NOT converged: max_iter=2 reached" in str(gp.result_)
    assert bool(gp.predict(X).mean.isfinite().all()), "the best point so far is a model"


def test_max_seconds():
    with pytest.warns(FitWarning, match="max_seconds is up"):
        gp = GP(Matern(ard=True)).fit(X, Y, max_seconds=0.0, restarts=50)
    assert not gp.result_.converged and gp.result_.reason == "max_seconds is up"
    assert len(gp.result_.objectives) == 1, "no restart begins after the limit"
    assert bool(gp.predict(X).mean.isfinite().all())


def test_a_limit_never_makes_it_worse_than_the_start():
    free = GP(Matern(ard=True)).fit(X, Y, priors=None)
    with pytest.warns(FitWarning):
        short = GP(Matern(ard=True)).fit(X, Y, priors=None, max_iter=1)
    start = Matern(ard=True, lengthscale=[short.result_.starts[f"kernel.lengthscale[{i}]"] for i in range(3)],
                   outputscale=short.result_.starts["kernel.outputscale"])  # fmt: skip
    mean = gpx.means.ConstantMean()
    mean.constant = short.result_.starts["mean.constant"]
    noise = short.result_.starts["likelihood.noise"]
    problem = GP(start, Gaussian(noise), mean="zero").condition(X, Y - short.result_.starts["mean.constant"])
    assert problem.log_evidence() - 1e-9 <= short.log_evidence() <= free.log_evidence() + 1e-6


def test_resume():
    """From a model or its file: on with the values that were reached."""
    with pytest.warns(FitWarning):
        short = GP(Matern(ard=True)).fit(X, Y, max_iter=3)
    whole = GP(Matern(ard=True)).fit(X, Y)
    resumed = GP(Matern(ard=True)).fit(X, Y, resume=short)
    assert resumed.result_.converged
    assert resumed.result_.starts["kernel.outputscale"] == pytest.approx(
        float(short.kernel_.outputscale.detach()), rel=1e-9
    )
    assert resumed.log_evidence() == pytest.approx(whole.log_evidence(), abs=1e-3)
    assert GP(Matern(ard=True)).fit(X, Y, resume=whole).result_.iterations <= 2
    with pytest.raises(gpx.InputError, match=r"Cannot resume.*kernel\.alpha"):
        GP(gpx.kernels.RationalQuadratic()).fit(X, Y, resume=whole)
    with pytest.raises(gpx.InputError, match=r"Cannot resume"):
        GP(Matern()).fit(X, Y, resume=whole)
    with pytest.raises(gpx.InputError, match="There is no model file"):
        GP(Matern()).fit(X, Y, resume="no-such-file.gpx")
    with pytest.raises(gpx.InputError, match=r"fit\(X, y\)"):
        GP(Matern()).fit(X, Y, resume=GP(Matern()))


def test_resume_does_not_change_the_other_model():
    whole = GP(Matern()).fit(X, Y)
    before = float(whole.kernel_.lengthscale.detach())
    GP(Matern()).fit(X, -3 * Y.square(), resume=whole)
    assert float(whole.kernel_.lengthscale.detach()) == before


def test_restarts():
    """More starts, never a worse end; the seed decides them."""
    t = torch.linspace(0, 10, 30, dtype=torch.float64)
    y = torch.sin(5 * t) + 0.3 * t
    one = GP(RBF()).fit(t, y)
    many = GP(RBF()).fit(t, y, restarts=3)
    assert len(many.result_.objectives) == 4
    assert many.result_.objectives[0] == pytest.approx(one.result_.objectives[0], abs=1e-9)
    assert many.result_.objective + many.result_.log_prior == pytest.approx(max(many.result_.objectives), abs=1e-9)
    assert many.result_.evaluations > one.result_.evaluations
    assert GP(RBF()).fit(t, y, restarts=3).result_.objectives == many.result_.objectives
    assert GP(RBF()).fit(t, y, restarts=3, seed=1).result_.objectives != many.result_.objectives


def test_restarts_stay_inside_the_bounds():
    kernel = RBF().set(lengthscale=dict(bounds=(0.5, 0.6)))
    gp = GP(kernel).fit(X, Y, restarts=4)
    assert 0.5 <= float(gp.kernel_.lengthscale.detach()) <= 0.6 * (1 + 1e-12)


# ------------------------------------------------------------------------------------------------ bad points


@dataclass(frozen=True)
class Walled(Objective):
    """The evidence, but not defined where the lengthscale is below a limit."""

    limit: float
    kind: str

    def __call__(self, problem):
        value = Evidence()(problem)
        if float(problem.prior.kernels[0].lengthscale.detach()) < self.limit:
            if self.kind == "raise":
                raise NumericalError("No value here.")
            return value * {"nan": math.nan, "inf": math.inf}[self.kind]
        return value


@pytest.mark.parametrize("kind", ["nan", "inf", "raise"])
def test_points_without_a_value_are_rejected(kind):
    """The line search steps back, and ends at the constrained optimum: the wall."""
    free = float(GP(RBF()).fit(X, Y).kernel_.lengthscale.detach())
    start = 3 * free
    wall = 1.3 * free
    gp = GP(RBF(lengthscale=start), objective=Walled(wall, kind)).fit(X, Y)
    assert gp.result_.rejected > 0
    end = float(gp.kernel_.lengthscale.detach())
    assert wall <= end < 1.1 * wall
    assert math.isfinite(gp.result_.objective) and math.isfinite(gp.result_.gradient_norm)


@pytest.mark.parametrize("kind", ["nan", "raise"])
def test_no_finite_point_at_all(kind):
    with pytest.raises(NumericalError, match="not finite at the start of the fit"):
        GP(RBF(), objective=Walled(math.inf, kind)).fit(X, Y)


def test_diagnoses_look_for_causes():
    """What is named was found: duplicates, tiny noise, a huge lengthscale; else the message says that nothing was."""
    always = Walled(math.inf, "nan")
    with pytest.raises(NumericalError, match="No likely cause was found"):
        GP(RBF(), objective=always).fit(X, Y)
    with pytest.raises(NumericalError, match=r"2 duplicate input row\(s\): let the noise be learned"):
        GP(RBF(), objective=always).fit(torch.cat([X, X[:2]]), torch.cat([Y, Y[:2]]))
    with pytest.raises(NumericalError, match=r"the noise variance 1\.0e-12 is tiny.*raise it"):
        GP(RBF(), Gaussian(1e-12), objective=always).fit(X, Y)
    with pytest.raises(NumericalError, match=r"over 1,000 times the range of the inputs: lower it"):
        GP(RBF(lengthscale=1e5), objective=always).fit(X, Y)


class Indefinite(RBF):
    """Not positive semidefinite."""

    def correlation(self, r2):
        return 1 + 10 * r2


def test_an_indefinite_kernel_is_an_error_with_a_diagnosis():
    with pytest.raises(NumericalError, match=r"not positive definite.*Found: 1 duplicate"):
        GP(Indefinite()).condition(torch.cat([X, X[:1]]), torch.cat([Y, Y[:1]]))
    with pytest.raises(NumericalError, match="not finite at the start"):
        GP(Indefinite(lengthscale=0.1).set(lengthscale=dict(fixed=True))).fit(X, Y)


def test_jitter_is_recorded_and_reported_once():
    """Duplicates without noise: solved with a little jitter, and said so."""
    x = torch.linspace(0, 1, 60, dtype=torch.float64)
    noise = Gaussian(1e-18).set(noise=dict(fixed=True))
    with pytest.warns(FitWarning, match="the noise variance was raised by a share of") as caught:
        gp = GP(RBF(lengthscale=10.0), noise).fit(torch.cat([x, x]), torch.cat([x, x]))
    assert len(caught) == 1
    assert gp.result_.jitter > 0 and bool(gp.predict(x).mean.isfinite().all())


def test_a_failed_fit_leaves_the_model_as_it_was():
    gp = GP(RBF()).fit(X, Y)
    before = gp.predict(X).mean
    with pytest.raises(gpx.InputError):
        gp.fit(X, torch.full_like(Y, torch.inf))
    assert torch.equal(gp.predict(X).mean, before)


# ------------------------------------------------------------------------------------------------ starts


def test_scales_between_fast_and_slow_are_found():
    """The same data at any speed: the start is chosen on the data, not fixed at their range."""
    t = torch.linspace(0, 1, 120, dtype=torch.float64)
    for cycles in (0.5, 3.0, 12.0):
        y = torch.sin(2 * math.pi * cycles * t) + 0.05 * torch.randn(
            120, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        gp = GP(RBF()).fit(t, y)
        residual = (gp.predict(t, of="f").mean - torch.sin(2 * math.pi * cycles * t)).square().mean().sqrt()
        assert float(residual) < 0.05, cycles


def test_the_choice_of_a_start_reads_few_rows(monkeypatch):
    """On at most 500 rows, whatever N; the rows do not depend on the seed of the fit."""
    sizes = []
    original = Evidence.__call__

    def counted(self, problem):
        sizes.append(len(problem.data.x))
        return original(self, problem)

    monkeypatch.setattr(Evidence, "__call__", counted)
    x = points(650, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        GP(RBF()).fit(x, targets(x), max_iter=1)
    assert set(sizes) == {engines.Exact.start_rows, 650} and sizes.count(650) <= 8


def test_missing_rows_do_not_enter_the_choice_of_a_start():
    y = Y.clone()
    y[::2] = torch.nan
    with_gaps, without = GP(Matern()).fit(X, y), GP(Matern()).fit(X[1::2], Y[1::2])
    close(with_gaps.predict(X).mean, without.predict(X).mean, "a fit with gaps is a fit without these rows", 0.05)


@pytest.mark.parametrize(
    "kernel", [RBF() + RBF(), Matern() * Periodic(), Linear() + Constant() + Matern(), Periodic()], ids=repr
)
def test_other_kernels_converge(kernel):
    t = torch.linspace(0, 8, 60, dtype=torch.float64)
    y = (
        torch.sin(2 * math.pi * t)
        + 0.3 * t
        + 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    gp = GP(kernel).fit(t, y)
    assert gp.result_.converged
    null = -0.5 * 60 * (math.log(2 * math.pi * float(y.var(correction=0))) + 1)
    assert gp.log_evidence() > null


def test_progress_is_shown_when_asked_for_only(capsys):
    GP(RBF()).fit(X, Y, verbose=True)
    assert "objective" in capsys.readouterr().err
    GP(RBF()).fit(X, Y, verbose=False)
    GP(RBF()).fit(X, Y)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_leave_one_out_learns_another_model():
    """Less faith in the prior: its score is at least that of the evidence's model."""
    by_loo, by_evidence = GP(RBF(), objective=LeaveOneOut()).fit(X, Y, priors=None), GP(RBF()).fit(X, Y, priors=None)
    assert float(by_loo.loo().log_density.sum()) >= float(by_evidence.loo().log_density.sum()) - 1e-6
    assert by_loo.log_evidence() == pytest.approx(float(by_loo.loo().log_density.sum()), abs=1e-8)


def test_standard_errors_are_those_of_the_curvature():
    """Noise of iid data: the standard error of a variance of n values is about s2 sqrt(2 / n)."""
    n = 400
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    y = 2.0 * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = Constant(1e-9).set(outputscale=dict(fixed=True))
    gp = GP(kernel, mean="zero").fit(x, y, priors=None)
    row = gp.parameters()["likelihood.noise"]
    assert row.value == pytest.approx(float(y.square().mean()), rel=1e-4)
    assert row.standard_error == pytest.approx(row.value * math.sqrt(2 / n), rel=0.02)


def test_standard_errors_do_not_move_the_model():
    gp = GP(Matern(ard=True), mean="linear").fit(X, Y)
    before = [p.detach().clone() for p in gp.kernel_.parameters()], gp.predict(X).mean
    table = gp.parameters()
    assert all(torch.equal(p, b) for p, b in zip(gp.kernel_.parameters(), before[0], strict=True))
    assert torch.equal(gp.predict(X).mean, before[1])
    assert str(gp.parameters()) == str(table)
    with pytest.raises(KeyError, match=r"no parameter 'kernel\.width'; there are kernel\.lengthscale"):
        table["kernel.width"]
    assert table[0].name == "kernel.lengthscale[0]"


def test_values_that_the_data_do_not_determine_have_no_standard_error():
    """Of two factors of one scale only the product is determined."""
    gp = GP(Constant(1.0) * Matern(outputscale=1.0), mean="zero").fit(X, Y, priors=None)
    table = gp.parameters()
    assert math.isnan(table["kernel.0.outputscale"].standard_error)
    assert math.isnan(table["kernel.1.outputscale"].standard_error)
    assert table["likelihood.noise"].standard_error > 0


def test_conditioned_models_have_a_table_without_errors():
    rows = GP(Matern()).condition(X, Y).parameters()
    assert all(math.isnan(r.standard_error) and math.isnan(r.start) for r in rows if not r.fixed)
