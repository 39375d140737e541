"""`SparseVariational` against dense algebra. Theory: docs/theory/sparse.md."""

from __future__ import annotations

import copy
from dataclasses import replace

import gpytorch
import numpy as np
import pytest
import torch
from torch import Tensor

import gpx
from gpx import GP, engines, kernels, likelihoods, objectives, rules
from gpx.assemble import assemble
from gpx.engines import Coreset, SparseVariational
from gpx.engines.auto import choose_engine
from gpx.inference.problem import LOOSENESS
from gpx.inputs import as_data
from gpx.kernels.dense import dense
from gpx.means import as_mean
from gpx.prior import Prior
from gpx.testing import check_engine
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets

X, Z = points(40, 2), points(12, 2, seed=3)


class At:
    """A selection that always takes the same points."""

    def __init__(self, z: Tensor):
        self.z = z

    def __call__(self, kernel, X, size, *, seed=0):
        return self.z, torch.ones(len(self.z))

    def __eq__(self, other):
        return torch.equal(self.z, other.z)

    __hash__ = None


def rbf():
    return kernels.RBF(lengthscale=[0.8, 1.2], outputscale=1.3, ard=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_with_an_inducing_input_per_datum_it_is_exact(seed):
    check_engine(SparseVariational(select=At(points(9, 1, seed))), x=points(9, 1, seed), tolerance=1e-7, seed=seed)


def evidence(engine, y, x=X, noise=0.05, kernel=None):
    return GP(kernel or rbf(), likelihoods.Gaussian(noise), mean="zero", engine=engine).condition(x, y).log_evidence()


def test_the_bound_is_the_collapsed_one():
    """The law "collapsed bound" of docs/theory/sparse.md."""
    y, noise = targets(X), 0.05
    K, Q = explained(rbf(), X, Z)
    C = Q + noise * np.eye(len(X))
    log_density = -0.5 * (y @ np.linalg.solve(C, y) + np.linalg.slogdet(2 * np.pi * C)[1])
    expected = log_density - 0.5 * np.trace(K - Q) / noise
    close(evidence(SparseVariational(select=At(Z)), y), float(expected), "collapsed bound", rtol=1e-8)


@pytest.mark.parametrize("size", [1, 5, 20, 40])
@pytest.mark.parametrize("noise", [1e-3, 0.05, 2.0])
def test_the_bound_stays_below_the_evidence_and_reaches_it(size, noise):
    y = targets(X)
    exact, bound = (evidence(e, y, noise=noise) for e in (engines.Exact(), SparseVariational(size)))
    assert bound <= exact + 1e-7 * abs(exact)
    if size == len(X):
        close(bound, exact, "M = N", rtol=1e-7)


def explained(kernel, x, z):
    """K, and ``Q = K_XZ K_ZZ^-1 K_ZX``, as arrays."""
    K, Kz, Kzz = (dense(kernel, a, b).detach().numpy() for a, b in ((x, x), (x, z), (z, z)))
    return K, Kz @ np.linalg.solve(Kzz, Kz.T)


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_the_power_ep_evidence_is_its_closed_form(power):
    """The law "power EP" of docs/theory/sparse.md: value, sites, and the same predictions as those sites give."""
    y, noise, rule = targets(X), 0.05, rules.ExpectationPropagation(power)
    gp = GP(rbf(), likelihoods.Gaussian(noise), mean="zero", engine=SparseVariational(select=At(Z)), rule=rule)
    gp.condition(X, y)
    K, Q = explained(rbf(), X, Z)
    left = np.diag(K - Q)
    C = Q + np.diag(noise + power * left)
    log_density = -0.5 * (y @ np.linalg.solve(C, y) + np.linalg.slogdet(2 * np.pi * C)[1])
    expected = log_density - (1 - power) / (2 * power) * np.log1p(power * left / noise).sum()
    close(gp.log_evidence(), float(expected), "power EP", rtol=1e-7)
    tau = gp.posterior_.sites.tau[:, 0]
    close(tau, torch.as_tensor(1 / (noise + power * left)), "precisions of the sites", rtol=1e-6)
    assert gp.objective_ == objectives.EPEvidence() and gp._solved.solution.converged


def test_power_ep_tends_to_the_bound():
    y, engine = targets(X), SparseVariational(select=At(Z))
    rule = rules.ExpectationPropagation(1e-6)
    gp = GP(rbf(), likelihoods.Gaussian(0.05), mean="zero", engine=engine, rule=rule).condition(X, y)
    close(gp.log_evidence(), evidence(engine, y), "power -> 0", rtol=1e-3)


@pytest.mark.parametrize(
    "likelihood", [likelihoods.Gaussian(0.05), likelihoods.Bernoulli()], ids=["Gaussian", "Bernoulli"]
)
def test_ep_evidence_through_inducing_inputs_has_sites_of_its_own(likelihood):
    y = targets(X) if likelihood.conjugate else (targets(X) > 0.3).double()
    engine = SparseVariational(select=At(Z))
    gp = GP(rbf(), likelihood, engine=engine, objective=objectives.EPEvidence()).condition(X, y)
    assert gp._solved.rule == rules.ExpectationPropagation(0.5)
    with pytest.raises(gpx.StructureError, match=r"unbounded through inducing inputs.*power=0\.5"):
        GP(rbf(), likelihood, engine=engine, objective=objectives.EPEvidence(), rule=rules.Variational()).condition(
            X, y
        )


def test_power_ep_is_updated_saved_and_left_out_with_its_own_sites(tmp_path):
    z, y = points(25, 2, seed=3), targets(X)  # enough for an update to add none
    gp = GP(
        rbf(),
        likelihoods.Gaussian(0.05),
        mean="zero",
        engine=SparseVariational(select=At(z)),
        rule=rules.ExpectationPropagation(0.5),
    )
    whole = copy.deepcopy(gp).condition(X, y)
    parts = copy.deepcopy(gp).condition(X[:30], y[:30]).update(X[30:], y[30:])
    close(parts.predict(X[:5]).mean, whole.predict(X[:5]).mean, "means", atol=1e-6)
    close(parts.predict(X[:5]).variance, whole.predict(X[:5]).variance, "variances", rtol=1e-6)
    K, Q = explained(rbf(), X, z)
    C = np.linalg.inv(Q + np.diag(0.05 + 0.5 * np.diag(K - Q)))
    close(whole.loo().mean, y - torch.as_tensor(C @ y.numpy() / np.diag(C)), "leave-one-out means", atol=1e-6)
    kept = GP(rbf(), likelihoods.Gaussian(0.05), engine=SparseVariational(12), objective=objectives.EPEvidence())
    kept.condition(X, y).save(tmp_path / "model.gpx")
    close(gpx.load(tmp_path / "model.gpx").predict(X[:5]).variance, kept.predict(X[:5]).variance, "loaded", rtol=1e-9)


@pytest.mark.parametrize("objective", [objectives.ELBO(), objectives.Evidence()])
def test_every_gaussian_objective_is_the_bound_after_one_step(objective):
    gp = GP(rbf(), likelihoods.Gaussian(0.05), engine=SparseVariational(select=At(Z)), objective=objective)
    gp.condition(X, targets(X))
    assert gp._solved.solution.steps == 1
    close(gp.log_evidence(), evidence(SparseVariational(select=At(Z)), targets(X)), "bound", rtol=1e-8)


def test_the_elbo_at_the_sites_is_that_of_the_dense_posterior_of_the_inducing_values():
    """``sum E log p(y | f) - KL(q(u) || p(u))`` with q(u) from the sites: law "sites" of docs/theory/sparse.md."""
    y = (targets(X) > 0.3).double()
    gp = GP(rbf(), likelihoods.Bernoulli(), mean="zero", engine=SparseVariational(select=At(Z))).condition(X, y)
    with torch.no_grad():
        elbo = float(objectives.ELBO()(gp._solved))
    sites, k = gp.posterior_.sites, rbf()
    Kzz, Kxz = dense(k, Z, Z).detach(), dense(k, X, Z).detach()
    w = torch.linalg.solve(Kzz, Kxz.mT)
    S = torch.linalg.inv(torch.linalg.inv(Kzz) + (w * sites.tau[:, 0]) @ w.mT)
    m = S @ (w @ sites.nu[:, 0])
    d = k.diagonal(X).detach() - (Kxz * w.mT).sum(1)
    mean, variance = w.mT @ m, (w * (S @ w)).sum(0) + d
    expected = likelihoods.Bernoulli().expected_log_prob(y[:, None], mean[:, None], variance[:, None]).sum()
    q, p = (torch.distributions.MultivariateNormal(a, b) for a, b in ((m, S), (torch.zeros_like(m), Kzz)))
    kl = torch.distributions.kl_divergence(q, p)
    close(elbo, float(expected - kl), "ELBO", rtol=1e-6)


LIKELIHOODS = {
    "Gaussian": (likelihoods.Gaussian, lambda f: f, objectives.Evidence()),
    "Gaussian-ep": (likelihoods.Gaussian, lambda f: f, objectives.EPEvidence()),
    "Gaussian-loo": (likelihoods.Gaussian, lambda f: f, objectives.LeaveOneOut()),
    "Bernoulli": (likelihoods.Bernoulli, lambda f: (f > 0.3).double(), objectives.ELBO()),
    "Bernoulli-ep": (likelihoods.Bernoulli, lambda f: (f > 0.3).double(), objectives.EPEvidence()),
    "Poisson-ep": (likelihoods.Poisson, lambda f: f.exp().round(), objectives.EPEvidence()),
    "StudentT": (likelihoods.StudentT, lambda f: f, objectives.ELBO()),
    "Heteroscedastic": (likelihoods.Heteroscedastic, lambda f: f, objectives.ELBO()),
}


CASES = [(engine, name) for name in LIKELIHOODS for engine in (SparseVariational(5), Coreset(5))]
SEARCHED = [(Coreset(5, method="adam"), name) for name in ("Gaussian", "Bernoulli", "StudentT")]


@pytest.mark.parametrize(("engine", "name"), CASES + SEARCHED)
def test_gradients_of_objectives(name, engine):
    """In kernel, likelihood, mean and inducing inputs: extra variances and sites move, too; the precisions of a coreset as well."""
    likelihood, outcome, objective = LIKELIHOODS[name]
    gp = GP(rbf(), likelihood(), engine=engine, objective=objective)
    problem, objective, _ = assemble(gp, as_data(X, outcome(targets(X))))
    modules = (problem.prior.mean, *problem.prior.kernels, problem.likelihood)
    own = engine.parameters(problem.prior, problem.plan)
    raws = [p for m in modules for p in m.parameters() if p.requires_grad] + list(own.values())
    grads = torch.autograd.grad(objective(problem.anew()), raws, allow_unused=True)
    for raw, grad in zip(raws, grads, strict=True):
        got = torch.zeros_like(raw) if grad is None else grad
        close(got.reshape(-1), differences(raw, lambda: objective(problem.anew())), f"gradient of {name}", atol=2e-5)


@torch.no_grad()
def differences(raw, value, step=1e-5):
    result = []
    for i in range(raw.numel()):
        flat, sides = raw.view(-1), []
        start = float(flat[i])
        for side in (step, -step):
            flat[i] = start + side
            sides.append(float(value()))
        flat[i] = start
        result.append((sides[0] - sides[1]) / (2 * step))
    return torch.tensor(result)


def test_blocks_of_rows_add_up(monkeypatch):
    y, engine = targets(X), SparseVariational(select=At(Z))
    problem, objective, _ = assemble(GP(rbf(), engine=engine), as_data(X, y))
    raws = [p for p in problem.prior.kernels[0].parameters() if p.requires_grad] + list(problem.plan.inducing)
    value = lambda: objective(problem.anew())  # noqa: E731
    whole = value(), torch.autograd.grad(value(), raws)
    for name, entries in (("BLOCK", 16), ("KEPT", 0)):
        monkeypatch.setattr(f"gpx.engines.projections.{name}", entries)
        close(value(), whole[0], name)
        for got, expected in zip(torch.autograd.grad(value(), raws), whole[1], strict=True):
            close(got, expected, name, atol=1e-8)


def test_any_kernel_of_gpytorch():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2)).double()
    y = targets(X)
    bound, exact = (evidence(e, y, kernel=kernel) for e in (SparseVariational(40), engines.Exact()))
    close(bound, exact, "gpytorch", rtol=1e-6)


def test_fit_in_rounds_finds_what_exact_finds():
    x = points(4_000, 1)
    y = torch.sin(4 * x[:, 0]) + 0.1 * torch.randn(len(x), generator=torch.Generator().manual_seed(0)).double()
    gp = GP(kernels.Matern(nu=2.5), engine=SparseVariational(40)).fit(x, y)
    reference = GP(kernels.Matern(nu=2.5), engine="StateSpace").fit(x, y)
    assert gp.log_evidence() <= reference.log_evidence() + 1e-6
    assert reference.log_evidence() - gp.log_evidence() < 0.01 * len(x)
    close(gp.likelihood_.noise.detach(), reference.likelihood_.noise.detach(), "noise", rtol=0.02)


def test_updates_add_statistics_for_any_rows():
    y = targets(X)
    gp = GP(rbf(), likelihoods.Gaussian(0.05), mean="zero", engine=SparseVariational(select=At(Z))).condition(
        X[:25], y[:25]
    )
    gp.update(X[25:], y[25:])
    whole = GP(rbf(), likelihoods.Gaussian(0.05), mean="zero", engine=SparseVariational(select=At(Z))).condition(X, y)
    for name in ("mean", "variance"):
        close(getattr(gp.predict(Z), name), getattr(whole.predict(Z), name), name)


def test_saved_models_predict_the_same(tmp_path):
    gp = GP(rbf(), engine=SparseVariational(7)).fit(X, targets(X))
    gp.save(tmp_path / "model.gpx")
    again = gpx.load(tmp_path / "model.gpx")
    close(again.predict(Z).mean, gp.predict(Z).mean, "mean")
    close(again.predict(Z).variance, gp.predict(Z).variance, "variance")


@pytest.mark.parametrize("size", [1, 5, 20, 40])
@pytest.mark.parametrize("engine", [SparseVariational, Coreset])
def test_the_evidence_is_between_the_bounds(size, engine):
    y = targets(X)
    exact = evidence(engines.Exact(), y)
    gp = GP(rbf(), likelihoods.Gaussian(0.05), mean="zero", engine=engine(size)).condition(X, y)
    with torch.no_grad():
        lower, upper = gp.posterior_.log_density, gp.posterior_.log_density_limit
    assert lower <= exact + 1e-6 and exact <= upper + 1e-6
    if size == len(X):
        close(upper, exact, "M = N", rtol=1e-6)


def test_a_fit_reports_the_bounds():
    y = targets(X)
    result = GP(rbf(), engine=SparseVariational(3)).fit(X, y).result_
    lower, upper = result.evidence_bounds
    assert lower < upper and "log evidence between" in str(result)
    exact = GP(rbf()).fit(X, y).result_
    assert exact.evidence_bounds[0] == exact.evidence_bounds[1] and "between" not in str(exact)
    assert GP(rbf(), likelihoods.Bernoulli()).fit(X, (y > 0.3).double()).result_.evidence_bounds is None


@pytest.mark.parametrize("engine", [SparseVariational(25), Coreset(25)])
def test_a_plain_fit_ends_by_itself(engine):
    """With all inducing inputs moving, and without a warning (which would be an error here)."""
    x = points(300, 3)
    assert GP(kernels.Matern(nu=2.5, ard=True), engine=engine).fit(x, targets(x)).result_.converged


def test_a_fit_certifies_what_inducing_inputs_lose():
    """The trace term of docs/theory/sparse.md, per target, and the distance of the bounds."""
    y = targets(X).clone()
    y[3] = torch.nan
    gp = GP(rbf(), engine=SparseVariational(4)).fit(X, y)
    z, k, seen = gp._solved.plan.inducing[0].detach(), gp.kernel_, ~y.isnan()
    K, Kz, Kzz = (dense(k, a, b).detach() for a, b in ((X[seen], X[seen]), (X[seen], z), (z, z)))
    trace = (K - Kz @ torch.linalg.solve(Kzz, Kz.mT)).diagonal().sum() / (2 * gp.likelihood_.noise.detach())
    result = gp.result_
    close(result.loss_per_target, float(trace) / 39, "loss", rtol=1e-6)
    close(result.gap_per_target, (result.evidence_bounds[1] - result.evidence_bounds[0]) / 39, "gap")
    assert result.inducing == 4 and "4 inducing inputs lose" in str(result)
    exact = GP(rbf()).fit(X, y).result_
    assert exact.inducing == 0 and exact.loss_per_target == 0 and "lose" not in str(exact)


def wave(n):
    x = points(n, 1)
    return x, torch.sin(8 * x[:, 0]) + 0.05 * torch.randn(n, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(("size", "refine"), [(5, True), (10, False)])
def test_a_fit_adds_inducing_inputs_while_too_few_lose_much(size, refine):
    x, y = wave(300)
    few, more = (GP(kernels.RBF(), engine=SparseVariational(size, refine=refine, most=m)).fit(x, y) for m in (None, 60))
    assert few.result_.inducing == size < more.result_.inducing < 60
    assert more.result_.loss_per_target < 0.02
    assert more.log_evidence() > few.log_evidence() + 100


def test_auto_has_more_inducing_inputs_where_there_are_fewer_rows():
    for rows, most in ((9_000, 1024), (40_000, 1000), (190_000, 512)):
        engine, _ = choose_engine(
            "auto", Prior(as_mean("zero"), (rbf(),)), as_data(np.zeros((rows, 9)), np.zeros(rows))
        )
        assert engine == SparseVariational(256, most=most)


UPDATED = {
    "Bernoulli": (likelihoods.Bernoulli(), lambda f: (f > 0.3).double(), 0.1),
    "Poisson": (likelihoods.Poisson(), lambda f: f.exp().round(), 0.1),
    "Heteroscedastic": (likelihoods.Heteroscedastic(), lambda f: f, 0.5),
}


@pytest.mark.parametrize("engine", [SparseVariational(25), Coreset(25)])
@pytest.mark.parametrize("name", UPDATED)
def test_an_update_keeps_old_sites_and_is_close_to_inference_from_all(engine, name):
    likelihood, outcome, tolerance = UPDATED[name]
    x, new = points(120, 2), points(30, 2, seed=7)
    y = outcome(targets(x))
    build = lambda: GP(rbf(), likelihood, mean="constant", engine=engine)  # noqa: E731
    gp = build().condition(x[:100], y[:100])
    before = gp.posterior_.sites
    gp.update(x[100:], y[100:])
    assert torch.equal(gp.posterior_.sites.nu[:100], before.nu) and gp._solved.solution.converged
    whole = GP(rbf(), likelihood, engine=replace(engine, select=At(gp._solved.plan.inducing[0].detach()))).condition(
        x, y
    )
    p, q = gp.predict(new, of="f"), whole.predict(new, of="f")
    error = float(((p.mean - q.mean).abs() / q.std).max())
    assert error < tolerance
    assert float((p.std / q.std).log().abs().max()) < tolerance
    without = build().condition(x[:100], y[:100]).predict(new, of="f").mean
    assert error < 0.5 * float(((without - q.mean).abs() / q.std).max())


def test_the_sites_of_an_update_are_those_that_the_rule_finds_given_the_old_ones():
    """At the fixed point another step of the rule, on the posterior of everything, leaves the new sites as they are, to the
    accuracy that is asked of them."""
    y = (targets(X) > 0.3).double()
    gp = GP(rbf(), likelihoods.Bernoulli(), engine=SparseVariational(select=At(Z))).condition(X[:30], y[:30])
    gp.update(X[30:30], y[30:30]).update(X[30:], y[30:])
    posterior = gp.posterior_
    step = gp.rule if gp.rule != "auto" else gp._solved.rule
    again = step.update(gp._solved.likelihood, gp._solved.data, posterior.site_marginals, posterior.sites)
    close(again.tau[30:], posterior.sites.tau[30:], "precisions", atol=2 * LOOSENESS)
    close(again.nu[30:], posterior.sites.nu[30:], "nu", atol=2 * LOOSENESS)
    assert gp.loo().log_density.isfinite().all() and np.isfinite(gp.log_evidence())


def test_columns_with_different_sites_are_updated_one_by_one():
    y = torch.stack([targets(X), -targets(X)], 1).exp().round()
    build = lambda: GP(rbf(), likelihoods.Poisson(), mean="zero", engine=SparseVariational(select=At(Z)))  # noqa: E731
    both = build().condition(X[:30], y[:30]).update(X[30:], y[30:])
    for column in range(2):
        one = build().condition(X[:30], y[:30, column]).update(X[30:], y[30:, column])
        close(both.predict(Z).mean[:, column], one.predict(Z).mean, "mean", rtol=1e-6)


@pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(0.05), likelihoods.StudentT(scale=0.2)])
def test_an_update_far_from_the_inducing_inputs_adds_some(likelihood):
    x = torch.linspace(0, 10, 80).double()[:, None]
    y = torch.sin(2 * x[:, 0])
    gp = GP(kernels.RBF(), likelihood, mean="zero", engine=SparseVariational(10)).condition(x[:40], y[:40])
    near = gp._solved.plan.inducing[0]
    assert gp.update(x[:40] + 0.05, y[:40])._solved.plan.inducing[0] is not None
    assert len(gp._solved.plan.inducing[0]) == len(near)
    gp.update(x[40:], y[40:])
    z = gp._solved.plan.inducing[0]
    assert len(near) < len(z) <= 2 * len(near) and torch.equal(z[: len(near)], near)
    assert float((gp.predict(x[45:], of="f").mean - y[45:]).abs().max()) < 0.2
    if likelihood.conjugate:
        every = torch.cat([x[:40], x[:40] + 0.05, x[40:]]), torch.cat([y[:40], y[:40], y[40:]])
        whole = GP(kernels.RBF(), likelihood, mean="zero", engine=SparseVariational(select=At(z.detach())))
        whole.condition(*every)
        close(gp.predict(x).mean, whole.predict(x).mean, "mean", atol=1e-7)
        close(gp.log_evidence(), whole.log_evidence(), "bound", rtol=1e-8)
