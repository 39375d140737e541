"""`Coreset` against `SparseVariational` and dense algebra. Theory: docs/theory/sparse.md."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize

from gpx import GP, kernels, likelihoods, load, objectives
from gpx.engines import Coreset, Exact, SparseVariational
from gpx.errors import FitWarning, InputError, StructureError
from gpx.kernels.dense import dense
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets
from tests.equivalence.test_sparse import At, rbf

X = points(60, 2)
Y = targets(X)


def conditioned(engine, noise=0.05, kernel=None):
    return GP(kernel or rbf(), likelihoods.Gaussian(noise), mean="zero", engine=engine).condition(X, Y)


@pytest.mark.parametrize("size", [1, 6, 25])
def test_the_mean_is_that_of_the_best_posterior_and_the_bound_is_below_it(size):
    coreset, sparse = conditioned(Coreset(size)), conditioned(SparseVariational(size))
    new = points(30, 2, seed=7)
    close(coreset.predict(new).mean, sparse.predict(new).mean, "mean")
    gap = coreset.coreset().gap
    assert gap >= 0
    close(coreset.log_evidence(), sparse.log_evidence() - gap, "bound", rtol=1e-9)
    if size == 1:
        close(gap, 0.0, "one point: every covariance is in the family", atol=1e-9)


def test_the_precisions_are_a_maximum_of_the_bound():
    """The law "stationary" of docs/theory/sparse.md, against a general optimiser of the Kullback-Leibler divergence."""
    found, k = conditioned(Coreset(6)).coreset(), rbf()
    K, cross = dense(k, found.points, found.points).detach(), dense(k, found.points, X).detach()
    w = torch.linalg.solve(K, cross)
    best = torch.linalg.inv(torch.linalg.inv(K) + w @ w.mT / 0.05)

    def divergence(log_b):
        S = torch.linalg.inv(torch.linalg.inv(K) + torch.as_tensor(log_b).exp().diag())
        ratio = torch.linalg.solve(best, S)
        return float(0.5 * (ratio.diagonal().sum() - len(S) - torch.linalg.slogdet(ratio)[1]))

    start = found.precisions.log().numpy()
    close(divergence(start), found.gap, "gap", rtol=1e-5)
    assert minimize(divergence, start, method="Nelder-Mead", options={"maxiter": 500}).fun >= found.gap - 1e-6


def test_the_posterior_is_that_of_exact_inference_on_the_pseudo_observations():
    gp = conditioned(Coreset(8))
    found, new = gp.coreset(), points(20, 2, seed=7)
    pseudo = GP(rbf(), likelihoods.Gaussian(1 / found.precisions), mean="zero", engine=Exact())
    pseudo.condition(found.points, found.targets)
    for name in ("mean", "variance"):
        close(getattr(gp.predict(new, of="f"), name), getattr(pseudo.predict(new, of="f"), name), name, atol=1e-6)


def test_a_learned_mean_is_part_of_the_pseudo_targets():
    shifted = GP(rbf(), likelihoods.Gaussian(0.05), engine=Coreset(25)).fit(X, Y + 100, max_iter=60)
    assert float(shifted.coreset().targets.mean()) > 50


def test_a_large_gap_is_told_and_can_be_avoided(monkeypatch):
    monkeypatch.setattr("gpx.engines.coreset.LARGE_GAP", 1e-6)
    with pytest.warns(FitWarning, match="nats per datum below that of a full covariance.*larger size, or max_gap"):
        GP(kernels.RBF(), engine=Coreset(12)).fit(X, Y)
    full = conditioned(Coreset(20, max_gap=0.0))
    close(full.log_evidence(), conditioned(SparseVariational(20)).log_evidence(), "full covariance")
    with pytest.raises(StructureError, match="max_gap=0 nats.*use max_gap=None"):
        full.coreset()


def test_other_engines_have_no_pseudo_observations():
    with pytest.raises(StructureError, match=r"engines.Coreset\(size\)"):
        conditioned(Exact()).coreset()


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(), likelihoods.StudentT()])
def test_what_adam_finds_is_not_above_the_optimum_at_the_same_inputs(likelihood):
    y = Y + 3
    objective = objectives.ELBO()
    gp = GP(rbf(), likelihood, engine=Coreset(8, method="adam"), objective=objective)
    with pytest.warns(FitWarning, match="max_iter=30 reached"):
        gp.fit(X, y, max_iter=30)
    at = Coreset(select=At(gp.coreset().points))
    best = GP(gp.kernel_, gp.likelihood_, mean=gp.mean_, engine=at, objective=objective).condition(X, y)
    assert best.log_evidence() - 20 <= gp.log_evidence() <= best.log_evidence() + 1e-6
    start = GP(gp.kernel_, gp.likelihood_, mean=gp.mean_, engine=Coreset(8, method="adam"), objective=objective)
    assert start.condition(X, y).log_evidence() < gp.log_evidence() - 20


def test_searched_pseudo_observations_are_saved_and_are_those_of_the_posterior(tmp_path):
    gp = GP(rbf(), likelihoods.Gaussian(0.05), engine=Coreset(8, method="adam")).condition(X, Y)
    found, new = gp.coreset(), points(20, 2, seed=7)
    pseudo = GP(rbf(), likelihoods.Gaussian(1 / found.precisions), mean=gp.mean_, engine=Exact())
    pseudo.condition(found.points, found.targets)
    for name in ("mean", "variance"):
        close(getattr(gp.predict(new, of="f"), name), getattr(pseudo.predict(new, of="f"), name), name, atol=1e-6)
    gp.save(tmp_path / "model.gpx")
    close(load(tmp_path / "model.gpx").predict(new).mean, gp.predict(new).mean, "mean")


def test_searched_pseudo_observations_are_not_updated():
    gp = GP(rbf(), likelihoods.Gaussian(0.05), engine=Coreset(8, method="adam")).condition(X[:50], Y[:50])
    with pytest.raises(StructureError, match="fit again with all data, or use method='optimum'"):
        gp.update(X[50:], Y[50:])


def test_pseudo_observations_of_several_columns_are_not_searched_for():
    with pytest.raises(InputError, match="one target column.*use method='optimum'"):
        GP(rbf(), engine=Coreset(8, method="adam")).condition(X, torch.stack([Y, Y], 1))
    with pytest.raises(InputError, match="one target column and latent function.*use method='optimum'"):
        GP(rbf(), likelihoods.Categorical(2), engine=Coreset(8, method="adam")).fit(X, Y.mean() < Y)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [({"method": "sgd"}, "method='optimum' or"), ({"size": 0}, "size, a number"), ({"max_gap": -1.0}, "max_gap >= 0")],
)
def test_bad_settings(arguments, advice):
    with pytest.raises(InputError, match=advice):
        Coreset(**arguments)


def test_classes():
    y = (targets(X) > 0.3).double()
    gp = GP(rbf(), likelihoods.Bernoulli(), engine=Coreset(15), objective=objectives.ELBO()).fit(X, y, max_iter=100)
    assert float((gp.predict(X).mean.round() == y).double().mean()) > 0.9
    assert gp.coreset().points.shape == (15, 2)
