"""Each derivation of docs/theory/multiple_kernel.md against dense algebra, one component after the other.

A test cites the section that it checks by its label; the last test sees to it that every label is cited.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gpx
from gpx import GP, engines, likelihoods
from gpx.assemble import assemble, start_from_data
from gpx.inference import multiplicative as mm
from gpx.inference import weights as ws
from gpx.inference.coordinates import Coordinates, trainable_modules
from gpx.inputs import as_data
from gpx.kernels import RBF, GridSpectralMixtureProduct
from gpx.structure import components
from gpx.testing.assertions import close
from gpx.testing.cases import points

DOCUMENT = Path(__file__).parents[2] / "docs" / "theory" / "multiple_kernel.md"


def data(seed, rows=30, dims=1, outputs=1, missing=0):
    """Tones, trend and noise, of random sizes; or noise alone. Cells may be missing, in one output only."""
    random = np.random.default_rng(seed)
    x = np.sort(random.random((rows, dims)), 0) * random.choice([1e-3, 1.0, 40.0])
    phase = x.sum(1, keepdims=True) / x.max() * random.uniform(3, 40, outputs)
    y = random.choice([0.0, 1.0]) * np.sin(phase) + random.choice([0.01, 0.3]) * random.standard_normal((rows, outputs))
    y = random.choice([1e-3, 1.0, 1e4]) * (y + random.choice([0.0, 3.0]) * x[:, :1] / x.max())
    y[:missing, 0] = math.nan
    return torch.tensor(x), torch.tensor(y if outputs > 1 else y[:, 0])


def problem_of(x, y, count=12, mean="linear", noise=None, priors="weak", kernel=None):
    gp = GP(kernel or GridSpectralMixtureProduct(count), likelihoods.Gaussian(noise), engine=engines.Exact(), mean=mean)
    problem, objective, _ = assemble(gp, as_data(x, y))
    start_from_data(problem, priors)
    return problem, objective


def mixture(*args, **options):
    """The mixture of a problem, and its start."""
    problem, objective = problem_of(*args, **options)
    found, start = ws.mixture_of(problem), ws.start_of(problem)
    return problem, objective, found, found.at(start.weights, start.noise)


def dense_statistics(problem, point):
    """The evidence at a point and both statistics of every component and the noise, by dense matrices, one at a time."""
    kernel, x, y = problem.prior.kernels[0], problem.data.x, problem.data.y
    ws.move(problem, point)
    mu = problem.prior.mean_at(x, y.shape[1])
    count = len(point.weights)
    value, numerators, denominators = 0.0, torch.zeros(count + 1).double(), torch.zeros(count + 1).double()
    for column in range(y.shape[1]):
        seen = ~torch.isnan(y[:, column])
        parts = []
        for q in range(count):
            kernel.weights = torch.eye(count, dtype=torch.float64)[q]
            parts.append(kernel.matrix(x[seen]).detach())
        parts.append(torch.eye(int(seen.sum()), dtype=torch.float64))
        z = torch.cat([point.weights, torch.tensor([point.noise], dtype=torch.float64)])
        C = sum(w * K for w, K in zip(z, parts, strict=True))
        rest = (y[:, column] - mu[:, column])[seen].detach()
        a, inverse = torch.linalg.solve(C, rest), torch.linalg.inv(C)
        value += -0.5 * float(rest @ a + torch.logdet(2 * math.pi * C))
        numerators += torch.stack([a @ K @ a for K in parts])
        denominators += torch.stack([(inverse * K).sum() for K in parts])
    ws.move(problem, point)
    return value, numerators, denominators


# ------------------------------------------------------------------------------------------------ (kernels-statistics)


@pytest.mark.parametrize(("dims", "outputs", "missing"), [(1, 1, 0), (1, 2, 4), (3, 1, 0), (2, 2, 0), (1, 1, 5)])
def test_statistics_are_those_of_dense_matrices(dims, outputs, missing):
    """(kernels-statistics)"""
    x, y = data(0, dims=dims, outputs=outputs, missing=missing)
    problem, objective, found, point = mixture(x, y)
    value, numerators, denominators = dense_statistics(problem, point)
    statistics = found.statistics(point, torch.arange(12))
    close(statistics.numerators, numerators[:-1], "numerators", 1e-9)
    close(statistics.denominators, denominators[:-1], "denominators", 1e-9)
    close(statistics.noise, [float(numerators[-1]), float(denominators[-1])], "those of the noise", 1e-9)
    assert float(objective(problem.anew()).detach()) == pytest.approx(value, rel=1e-9)
    assert point.value == pytest.approx(value, rel=1e-9), "the prior of the noise is 0 at its start"


def test_its_slopes_are_those_of_the_evidence():
    """(kernels-statistics)"""
    x, y = data(1, dims=2)
    problem, objective, found, point = mixture(x, y)
    ws.move(problem, point)
    raw = problem.prior.kernels[0].raw_weights
    (gradient,) = torch.autograd.grad(objective(problem.anew()), [raw])
    close(found.statistics(point, torch.arange(12)).slopes(point.weights), point.weights * gradient, "slopes", 1e-8)


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_components_are_the_kernel(chunk, monkeypatch):
    """(kernels-statistics)"""
    monkeypatch.setattr("gpx.kernels.grid_spectral.CHUNK", chunk)
    x = points(9, 3)
    kernel = GridSpectralMixtureProduct(
        6, weights=[0.1, 0.0, 0.3, 0.7, 0.0, 0.2], max_frequency=0.7, active_dims=[0, 2]
    ).double()
    parts = components(kernel, x)
    close(parts.matrix(kernel.weights.detach()), kernel.matrix(x), "the matrix", 1e-12)
    M = points(9, 9)
    M = M + M.mT
    expected = [(M * GridSpectralMixtureProduct(6, {q: 1.0}, 0.7, active_dims=[0, 2]).matrix(x)).sum() for q in (4, 1)]
    close(parts.inner(M, torch.tensor([4, 1])), torch.stack(expected), "tr(M K_q)", 1e-10)


# ------------------------------------------------------------------------------------------------ (kernels-update)


@pytest.mark.parametrize("priors", ["weak", None])
@pytest.mark.parametrize("seed", range(12))
def test_every_update_raises_the_evidence(seed, priors):
    """(kernels-update): plain updates, and the longer ones of a fit, on data of any kind."""
    x, y = data(seed, dims=1 + seed % 2, outputs=1 + seed % 3 % 2, missing=seed % 4)
    *_, found, point = mixture(x, y, priors=priors)
    plain = [point]
    for _ in range(15):
        plain.append(mm.update(found, plain[-1]))
    reached = [reached.point for reached, _ in zip(mm.ascend(found, point), range(400), strict=False)]
    for path in (plain, [point, *reached]):
        values = np.array([p.value for p in path])
        assert np.isfinite(values).all() and (np.diff(values) >= -1e-9 * np.abs(values).max()).all()
    assert reached[-1].value > plain[-1].value - 1e-6


def test_the_update_minimises_its_majoriser():
    """(kernels-update): the bound touches, lies above, and its minimum is the update, that of the noise with its prior included."""
    *_, found, point = mixture(*data(3))
    at = found.statistics(point, torch.arange(12))
    after = mm.update(found, point)
    random = torch.Generator().manual_seed(0)

    def bound(weights, noise):
        """Of minus twice the objective, up to a constant."""
        body = (point.weights**2 / weights * at.numerators + weights * at.denominators).sum()
        middle, spread = found.noise_prior
        return (
            float(body)
            + point.noise**2 / noise * at.noise[0]
            + noise * at.noise[1]
            + ((math.log(noise) - middle) / spread) ** 2
        )

    constant = -2 * point.value - bound(point.weights, point.noise)
    for _ in range(50):
        weights = point.weights * (0.7 * torch.randn(12, generator=random, dtype=torch.float64)).exp()
        noise = point.noise * math.exp(0.7 * float(torch.randn(1, generator=random)))
        assert -2 * found.at(weights, noise).value <= bound(weights, noise) + constant + 1e-8
        assert bound(weights, noise) >= bound(after.weights, after.noise) - 1e-8


# ------------------------------------------------------------------------------------------------ (kernels-optimum)


@pytest.mark.parametrize("seed", range(6))
def test_a_fit_ends_at_an_optimum(seed):
    """(kernels-optimum): weights that are left have slope zero, the others a negative one, by dense matrices; and are zero."""
    x, y = data(seed, rows=40)
    gp = GP(GridSpectralMixtureProduct(40), mean="linear", engine=engines.Exact()).fit(x, y)
    result, problem = gp.result_, gp._fitted()
    point = ws.start_of(problem)
    assert (
        result.converged and result.components == 40 and result.components_left == int((point.weights > 0).sum()) < 30
    )
    mean = torch.cat([problem.prior.mean.constant.detach(), problem.prior.mean.slope.detach().reshape(-1)])
    value, numerators, denominators = dense_statistics(problem, replace(point, mean=mean))
    ratios, zero = (numerators / denominators)[:-1], point.weights == 0
    assert value == pytest.approx(result.objective, rel=1e-9)
    assert (
        float(ratios[zero].max()) == pytest.approx(result.largest_ratio, rel=1e-6)
        and result.largest_ratio <= 1 + mm.KKT
    )
    assert float((0.5 * point.weights * (numerators - denominators)[:-1]).abs().max()) < 0.05, "nats"


def test_zeros_that_could_gain_enter_again():
    """(kernels-optimum)"""
    x = torch.linspace(0, 20, 60, dtype=torch.float64)
    y = torch.sin(2 * math.pi * 0.6 * x) + 0.1 * torch.cos(40 * x)
    wrong = GridSpectralMixtureProduct(20, weights={0: 1.0})
    gp = GP(wrong, engine=engines.Exact()).fit(x, y)
    best = GP(GridSpectralMixtureProduct(20), engine=engines.Exact()).fit(x, y)
    assert gp.result_.converged and gp.result_.objective == pytest.approx(best.result_.objective, abs=0.1)
    strongest = int(gp.kernel_.weights.argmax())
    assert abs(float(gp.kernel_.frequencies[strongest, 0]) - 0.6) < 0.1


# ------------------------------------------------------------------------------------------------ (kernels-mean)


def test_the_mean_is_that_of_generalised_least_squares():
    """(kernels-mean)"""
    x, y = data(2, dims=2, outputs=2, missing=3)
    problem, objective, _, point = mixture(x, y)
    ws.move(problem, point)
    raws = [raw for raw in problem.prior.mean.parameters() if raw.requires_grad]
    scale = problem.data.variance**0.5
    for gradient in torch.autograd.grad(objective(problem.anew()), raws):
        close(gradient * scale, torch.zeros_like(gradient), "no slope in the mean is left", atol=1e-6)


def test_a_constant_column_has_no_slope():
    """(kernels-mean)"""
    x, y = data(2, dims=2)
    x[:, 1] = 7.0
    gp = GP(GridSpectralMixtureProduct(10), mean="linear", engine=engines.Exact()).fit(x, y)
    assert gp.result_.converged and abs(float(gp.mean_.slope[1, 0].detach())) < 1e-9 * float(y.abs().max())


# ------------------------------------------------------------------------------------------------ (kernels-agents)


def test_blocks_are_a_block_diagonal_covariance():
    """(kernels-agents): sums over blocks are the evidence and the statistics of the covariance without what is between them."""
    x, y = data(6)
    problem, _, found, point = mixture(x, y)
    (whole,) = found.blocks
    halves = [
        replace(whole, rows=whole.rows[p], targets=whole.targets[p], design=whole.design[p])
        for p in (slice(12), slice(12, None))
    ]
    both = replace(found, blocks=tuple(halves))
    at = both.at(point.weights, point.noise)
    inside = torch.block_diag(torch.ones(12, 12), torch.ones(18, 18)).double()
    dense = replace(
        found,
        parts=replace(
            found.parts,
            matrix=lambda w: found.parts.matrix(w) * inside,
            inner=lambda M, c: found.parts.inner(M * inside, c),
        ),
    )
    expected = dense.at(point.weights, point.noise)
    close([at.value, *at.mean], [expected.value, *expected.mean], "value and mean", 1e-9)
    ours, theirs = both.statistics(at, torch.arange(12)), dense.statistics(expected, torch.arange(12))
    close(ours.numerators, theirs.numerators, "numerators", 1e-9)
    close(ours.denominators, theirs.denominators, "denominators", 1e-9)


# ------------------------------------------------------------------------------------------------ fits


def coordinates_of(problem):
    return Coordinates(trainable_modules(problem.prior.mean, problem.prior.kernels, problem.likelihood))


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        (True, {}), (True, {"noise": [0.1] * 30}), (True, {"mean": "zero"}), (True, {"mean": "constant"}),
        (True, {"kernel": GridSpectralMixtureProduct(5, weights=[1.0, 2.0, 0.0, 0.1, 3.0])}),
        (False, {"kernel": RBF()}), (False, {"kernel": GridSpectralMixtureProduct(5) + RBF()}),
        (False, {"kernel": GridSpectralMixtureProduct(5).set(bandwidth=dict(fixed=False))}),
        (False, {"kernel": GridSpectralMixtureProduct(5).set(weights=dict(bounds=(0.1, 2.0)))}),
    ],
)  # fmt: skip
def test_what_is_learned_by_updates(expected, options):
    problem, objective = problem_of(*data(0), **options)
    assert mm.multiplies(problem, objective, coordinates_of(problem)) is expected


def test_known_noise_and_fixed_noise_stay():
    x, y = data(5)
    noise = torch.linspace(0.5, 2.0, 30, dtype=torch.float64) * float(y.var()) * 0.1
    known = GP(GridSpectralMixtureProduct(20), likelihoods.Gaussian(noise), engine=engines.Exact()).fit(x, y)
    fixed = likelihoods.Gaussian().set(noise=dict(init=float(noise[0]), fixed=True))
    held = GP(GridSpectralMixtureProduct(20), fixed, engine=engines.Exact()).fit(x, y)
    assert known.result_.converged and held.result_.converged
    assert float(held.likelihood_.noise) == pytest.approx(float(noise[0]))
    assert known.result_.objective == pytest.approx(known.log_evidence(), rel=1e-9)


def test_fewer_points_than_components_and_a_model_file(tmp_path):
    x, y = data(4, rows=6)
    gp = GP(GridSpectralMixtureProduct(50), mean="linear", engine=engines.Exact()).fit(x, y)
    gp.save(tmp_path / "model.gpx")
    again = gpx.load(tmp_path / "model.gpx")
    assert torch.equal(again.kernel_.weights, gp.kernel_.weights) and repr(again.kernel_) == repr(gp.kernel_)
    close(again.predict(x).mean, gp.predict(x).mean, "predictions", 1e-9)
    assert f"{gp.result_.components_left} of 50 weights are not zero" in gp.summary()
    assert len(gp.summary().splitlines()) < 40


def test_limits_of_a_fit():
    x, y = data(4, rows=40)
    with pytest.warns(gpx.FitWarning, match="max_iter=1 reached"):
        short = GP(GridSpectralMixtureProduct(40), engine=engines.Exact()).fit(x, y, max_iter=1).result_
    with pytest.warns(gpx.FitWarning, match="max_seconds is up"):
        GP(GridSpectralMixtureProduct(40), engine=engines.Exact()).fit(x, y, max_seconds=0.0)
    assert short.iterations == 1 and not short.converged


def test_every_section_is_cited():
    labels = set(re.findall(r"^\((kernels-[a-z]+)\)=", DOCUMENT.read_text(), re.MULTILINE))
    source = inspect.getsource(sys.modules[__name__])
    assert labels == set(re.findall(r'"""\((kernels-[a-z]+)\)', source)), (
        "a test for every section, a section for every test"
    )
