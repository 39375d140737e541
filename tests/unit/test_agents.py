"""Agents: processes that learn hyperparameters together and keep their rows to themselves."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import gpx
from gpx import GP, StructureError, engines, kernels, likelihoods
from gpx.assemble import assemble, start_from_data
from gpx.inference import multiplicative as mm
from gpx.inference import weights as ws
from gpx.inference.admm import bits, common_deviation, proximal, quantise
from gpx.inputs import Data, as_data
from gpx.parallel import ALONE, join
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets
from gpx.testing.processes import in_processes

ROWS, COMPONENTS = 96, 30


def series(rows=ROWS):
    """Tones, a trend and noise at even stamps."""
    t = torch.arange(rows, dtype=torch.float64) / 12
    noise = torch.randn(rows, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return t, 5 + 0.3 * t + torch.sin(2 * math.pi * t) + 0.4 * torch.sin(2 * math.pi * 2.3 * t) + 0.2 * noise


def parts(count):
    return [slice(ROWS * rank // count, ROWS * (rank + 1) // count) for rank in range(count)]


def model(engine=None, kernel=None):
    kernel = (
        kernels.GridSpectralMixtureProduct(COMPONENTS, max_frequency=6.0, bandwidth=0.2) if kernel is None else kernel
    )
    return GP(kernel, engine=engine or engines.Agents(), mean="linear")


def agent(engine=None, kernel=None):
    """What an agent learns, and what it predicts."""
    t, y = series()
    team = join()
    part = team.rows(ROWS)
    gp = model(engine, kernel).fit(t[part], y[part])
    values = torch.cat([p.detach().reshape(-1) for m in (gp.kernel_, gp.likelihood_, gp.mean_) for p in m.parameters()])
    return gp.result_, values, gp.predict(t[part]).mean, gp.log_evidence()


def alone(count, noise):
    """One machine with the agents' blocks: a mixture whose covariance is block-diagonal, and where it ends from this noise."""
    t, y = series()
    problem, _, _ = assemble(model(engines.Exact()), as_data(t, y))
    start_from_data(problem, "weak")
    found = ws.mixture_of(problem)
    (whole,) = found.blocks
    blocks = tuple(ws.Block(whole.rows[part], whole.targets[part], whole.design[part], None) for part in parts(count))
    mixture = ws.Mixture(found.parts, found.size, blocks, found.noise_prior, found.noise_range, ALONE)
    start = ws.start_of(problem)
    *_, reached = mm.ascend(mixture, mixture.at(start.weights, noise))
    return reached


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_sums_give_the_weights_of_one_machine(count):
    found = in_processes(count, agent)
    reached = alone(count, found[0][0].starts["likelihood.noise"])
    for result, values, _, evidence in found:
        close(values[:COMPONENTS], reached.point.weights, "weights", atol=1e-6)
        assert result.converged and result.components_left == int((reached.point.weights > 0).sum()) < COMPONENTS
        assert result.objective == pytest.approx(evidence, rel=1e-9)
        assert torch.equal(values, found[0][1]), "the same bits"


def test_predictions_are_of_the_own_rows():
    t, y = series()
    found = in_processes(2, agent)
    for part, (_, values, mean, _) in zip(parts(2), found, strict=True):
        kernel = kernels.GridSpectralMixtureProduct(
            COMPONENTS, values[:COMPONENTS].tolist(), max_frequency=6.0, bandwidth=0.2
        )
        gp = model(engines.Exact(), kernel)
        gp.mean = gpx.means.LinearMean().set(
            constant=float(values[-3]), slope=float(values[-2]), center=float(values[-1])
        )
        gp.likelihood = likelihoods.Gaussian(float(values[COMPONENTS + 2].exp()))
        close(gp.condition(t[part], y[part]).predict(t[part]).mean, mean, "predictions", 1e-6)


def other_kernel():
    x = points(40, 2)
    part = join().rows(40)
    gp = GP(kernels.RBF(), engine=engines.Agents()).fit(x[part], targets(x)[part])
    return gp.result_.objective, gp.log_evidence(), gp.kernel_.lengthscale.item()


def test_any_kernel_may_be_learned_together():
    first, second = in_processes(2, other_kernel)
    assert first == second and first[0] == pytest.approx(first[1], rel=1e-8)
    x, y = points(40, 2), targets(points(40, 2))
    assert first[2] != pytest.approx(
        GP(kernels.RBF(), engine=engines.Exact()).fit(x, y).kernel_.lengthscale.item(), rel=1e-3
    )


def test_one_agent_is_exact():
    t, y = series()
    ours, exact = (model(engine).fit(t, y) for engine in (engines.Agents(), engines.Exact()))
    assert ours.result_.objective == pytest.approx(exact.result_.objective, rel=1e-12)
    assert torch.equal(ours.kernel_.weights, exact.kernel_.weights)


def watched(folder):
    """A fit in which every tensor that is sent to others is looked at, and a model file each."""
    sent, team = [], join()
    gathered = type(team).gather
    type(team).gather = lambda self, rows: (sent.append(rows.shape), gathered(self, rows))[1]
    Data.gathered = lambda self: sent.append("rows")
    t, y = series()
    gp = model().fit(t[team.rows(ROWS)], y[team.rows(ROWS)])
    gp.save(f"{folder}/{team.rank}.gpx")
    return sent


def test_no_row_leaves_its_agent(tmp_path):
    for sent in in_processes(2, watched, str(tmp_path)):
        assert all(shape != "rows" and shape[0] <= 1 for shape in sent), "nothing but largest magnitudes"
    for rank, part in enumerate(parts(2)):
        saved = gpx.load(tmp_path / f"{rank}.gpx")
        assert torch.equal(saved._solved.data.x[:, 0], series()[0][part])


def test_other_likelihoods_are_refused():
    with pytest.raises(StructureError, match=r"Agents needs a Gaussian likelihood; use engines\.SparseVariational"):
        GP(kernels.RBF(), likelihoods.Poisson(), engine=engines.Agents()).condition([0.0, 1.0], [1.0, 2.0])


def automatic():
    part = join().rows(ROWS)
    return GP("auto", engine="Agents").condition(series()[0][part], series()[1][part])


def test_an_automatic_kernel_is_refused():
    for found in in_processes(2, automatic):
        assert "looks at the rows of all processes" in str(found) and "name a kernel" in str(found)


# ------------------------------------------------------------------------------------------------ the quantised scheme


def test_rounding_is_unbiased_and_on_the_grid():
    """A z-test with 4.9 standard errors: a false alarm in a million, for each of 7 values."""
    values = torch.tensor([-1.3, -0.25, 0.0, 0.1, 0.5, 0.99, 7.2], dtype=torch.float64)
    draws = torch.stack([quantise(values, 0.5, torch.Generator().manual_seed(s)) for s in range(2000)])
    assert bool(((draws / 0.5) == (draws / 0.5).round()).all()) and bool(((draws - values).abs() < 0.5).all())
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - values).abs() <= 5.3 * error + 1e-12).all())


def test_bits_are_enough_for_the_largest_value():
    assert bits(torch.tensor([0.0, 3.0, -1.0]), 1.0) == 3 * (1 + 2)


def test_the_agents_problem_is_solved():
    generator = torch.Generator().manual_seed(0)
    rises, curvatures = torch.rand(2, 20, generator=generator, dtype=torch.float64) + 0.01
    slopes = torch.randn(20, generator=generator, dtype=torch.float64)
    s = proximal(rises, slopes, curvatures)
    close(-rises / s.pow(3) + slopes + curvatures * s, torch.zeros(20), "the derivative is zero", atol=1e-9)
    nothing = torch.zeros(2, dtype=torch.float64)
    close(proximal(nothing, torch.tensor([1.0, -3.0]).double(), nothing + 2), [0.0, 1.5], "without a rise")


def test_the_noise_agrees_with_the_agents_and_its_prior():
    mean, penalty, prior = 0.5, 7.0, (math.log(0.1), 0.8)
    found = common_deviation(mean, penalty, prior, (1e-9, 10.0))
    slope = penalty * (found - mean) + 4 * (math.log(found) - 0.5 * prior[0]) / prior[1] ** 2 / found
    assert abs(slope) < 1e-5 and math.sqrt(0.1) < found < mean
    assert common_deviation(mean, penalty, None, (1e-9, 0.16)) == pytest.approx(0.4), "between its limits"


def other_consensus():
    part = join().rows(40)
    GP(kernels.RBF(), engine=engines.Agents(engines.QuantisedADMM())).fit(
        points(40, 2)[part], targets(points(40, 2))[part]
    )


def test_what_the_quantised_scheme_cannot_learn():
    with pytest.raises(
        StructureError, match=r"learns weights of fixed components.*use engines\.Agents\(\) for other kernels"
    ):
        other_consensus()
    with pytest.raises(gpx.InputError, match="needs positive settings"):
        engines.QuantisedADMM(quantum=0.0)


def held_out(engine):
    """Squared errors of an agent's predictions at every eighth of its stamps, which it has not seen."""
    t, y = series()
    part = join().rows(ROWS)
    t, y, seen = t[part], y[part], torch.arange(ROWS)[part] % 8 != 3
    gp = model(engine).fit(t[seen], y[seen])
    return float((gp.predict(t[~seen]).mean - y[~seen]).square().sum()), gp.result_


@pytest.mark.slow
def test_quantised_consensus_is_that_of_sums():
    """It converges, and its evidence and squared errors are those of one machine to 0.05 nats and 5 %."""
    engine = engines.Agents(engines.QuantisedADMM())
    sums, rounded = in_processes(4, held_out, engines.Agents()), in_processes(4, held_out, engine)
    square = [sum(error for error, _ in found) for found in (sums, rounded)]
    ours, theirs = rounded[0][1], sums[0][1]
    assert ours.converged and ours.reason == "both residuals are small"
    assert square[1] == pytest.approx(square[0], rel=0.05)
    assert ours.objective + ours.log_prior == pytest.approx(theirs.objective + theirs.log_prior, abs=0.05)
    assert 0 < ours.bits_sent < 4 * 64 * (COMPONENTS + 1) * ours.iterations and f"{ours.bits_sent:,} bits sent" in str(
        ours
    )


def with_fixed_noise(engine):
    part = join().rows(ROWS)
    gp = model(engine)
    gp.likelihood = likelihoods.Gaussian(0.3).set(noise=dict(fixed=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gpx.FitWarning)  # not to the end
        return float(gp.fit(series()[0][part], series()[1][part]).likelihood_.noise)


def test_fixed_noise_stays():
    found = in_processes(2, with_fixed_noise, engines.Agents(engines.QuantisedADMM(rounds=12)))
    assert found == [pytest.approx(0.3)] * 2
