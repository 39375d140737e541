"""The engine SIC: the laws of engines where every neighbour is used, and what it promises where few are."""

import math

import gpytorch
import numpy as np
import pytest
import torch

import gpx
from gpx import GP
from gpx.engines import SIC, Exact
from gpx.engines.sic import pattern
from gpx.errors import InputError, NumericalError, StructureError
from gpx.inputs import as_data
from gpx.kernels import RBF, Constant, Linear, Matern, Periodic, RationalQuadratic
from gpx.kernels.dense import dense
from gpx.likelihoods import Bernoulli, Gaussian, Poisson, StudentT
from gpx.prior import Prior
from gpx.sites import Sites
from gpx.testing import check_engine
from gpx.testing.cases import points

KERNELS = [
    Matern(nu=0.5, lengthscale=0.7),
    Matern(nu=1.5, lengthscale=[0.8, 1.5], ard=True),
    Matern(nu=2.5, lengthscale=0.9),
    RBF(lengthscale=0.4),
    pytest.param(Matern(nu=1.5) + Linear(), marks=pytest.mark.slow),
    pytest.param(RationalQuadratic(alpha=0.7), marks=[pytest.mark.slow, pytest.mark.ci]),
    gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
def test_with_all_neighbours_the_laws_of_engines_hold(kernel):
    check_engine(SIC(), kernels=[kernel], x=points(9, 2, 0), tolerance=1e-6)


@pytest.mark.parametrize("choice", [{"ordering": "random"}, {"ordering": "coordinate"}, {"inducing": 4}], ids=str)
def test_the_laws_hold_for_any_ordering_and_low_rank_part(choice):
    check_engine(SIC(**choice), kernels=[Matern(nu=1.5)], x=points(9, 1, 0), tolerance=1e-6)


def conditioned(engine, kernel, x, y, noise):
    """The posterior of a centred Gaussian model."""
    prior, data = Prior(gpytorch.means.ZeroMean(), (kernel.double(),)), as_data(x, y)
    tau = torch.full((len(x), 1), 1 / noise, dtype=torch.float64)
    sites = Sites(torch.as_tensor(y).reshape(-1, 1) * tau, tau)
    return engine.condition(prior, engine.plan(prior, data), {}, sites)


def field(n, seed, noise=0.01, d=2, lengthscale=0.25, nu=1.5):
    """Points in the unit cube, noisy values of a draw of f there, and the kernel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, d, generator=generator, dtype=torch.float64)
    kernel = Matern(nu=nu, lengthscale=lengthscale).double()
    with torch.no_grad():
        root = torch.linalg.cholesky(dense(kernel, x, x) + 1e-10 * torch.eye(n, dtype=torch.float64))
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x, root @ z[:, 0] + math.sqrt(noise) * z[:, 1], kernel


def factor(kernel, x, neighbours, inducing=0):
    """The ordered points, U as a dense matrix, and the low-rank part."""
    prior, engine = Prior(gpytorch.means.ZeroMean(), (kernel,)), SIC(neighbours, inducing=inducing)
    posterior = engine.condition(
        prior, engine.plan(prior, as_data(x, torch.zeros(len(x)))), {}, Sites(*2 * [torch.zeros(len(x), 1)])
    )
    with torch.no_grad():
        found, (u, phi) = posterior.plan.patterns[0], posterior._prior(0, 0.0)
    matrix = torch.zeros(len(x), len(x), dtype=torch.float64)
    for i, near in enumerate(found.near):
        seen = near >= 0
        matrix[near[seen], i] = u[i, :-1][torch.from_numpy(seen)]
        matrix[i, i] = u[i, -1]
    return found.x, matrix, phi


def divergence(kernel, x, neighbours):
    """KL(exact || SIC) by its definition and by the closed form ``-sum log U_ii - log det K / 2``; theory/sic.md, section 1."""
    ordered, U, _ = factor(kernel, x, neighbours)
    with torch.no_grad():
        K = dense(kernel, ordered, ordered)
    logdet = torch.linalg.slogdet(K)[1]
    trace = (U.mT @ K @ U).diagonal().sum() - len(x)
    return 0.5 * (trace - logdet - 2 * U.diagonal().log().sum()), -U.diagonal().log().sum() - 0.5 * logdet


def test_the_divergence_from_the_prior_is_its_closed_form():
    x, _, kernel = field(300, 0)
    by_definition, closed = divergence(kernel, x, 10)
    assert float(by_definition) == pytest.approx(float(closed), abs=1e-8 * len(x))
    assert float(closed) > 0


@pytest.mark.slow
def test_thirty_neighbours_lose_little_of_the_prior():
    found = [float(divergence(field(1500, seed)[2], field(1500, seed)[0], 30)[1]) for seed in range(10)]
    assert np.mean(found) <= 1.9


@pytest.mark.parametrize("inducing", [0, 9])
def test_all_neighbours_give_the_dense_evidence_gradients_and_predictions(inducing):
    x, y, kernel = field(60, 1)
    new = torch.rand(7, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    results = []
    for engine in (SIC(neighbours=59, inducing=inducing), Exact()):
        posterior = conditioned(engine, kernel, x, y, 0.01)
        gradients = torch.autograd.grad(posterior.log_density, list(kernel.parameters()))
        with torch.no_grad():
            results.append([posterior.log_density, *gradients, *posterior.marginals(new), *posterior.joint(new)])
    for got, expected in zip(*results, strict=True):
        assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(("seed", "inducing"), [(0, 0), (1, 0), (2, 0), (0, 30)])
def test_the_bound_is_below_the_evidence_of_its_prior_and_close_to_both(seed, inducing):
    x, y, kernel = field(800, seed)
    posterior = conditioned(SIC(inducing=inducing), kernel, x, y, 0.01)
    _, U, phi = factor(kernel, x, 30, inducing)
    slots = posterior.plan.patterns[0].slots
    targets = torch.zeros(len(x), dtype=torch.float64).index_copy(0, slots, y)
    covariance = torch.linalg.inv(U @ U.mT) + phi @ phi.mT + 0.01 * torch.eye(len(x), dtype=torch.float64)
    of_prior = torch.distributions.MultivariateNormal(torch.zeros_like(targets), covariance).log_prob(targets)
    with torch.no_grad():
        exact, bound = conditioned(Exact(), kernel, x, y, 0.01).log_density, float(posterior.log_density)
    assert float(of_prior) - 0.05 <= bound <= float(of_prior) + 1e-8
    assert abs(bound - float(exact)) <= 2.0  # 1 in the mean over seeds: `python -m benchmarks sic-accuracy`


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_marginal_variances_are_those_of_the_exact_posterior(tolerance):
    x, y, kernel = field(800, 3)
    found = conditioned(SIC(tolerance=tolerance), kernel, x, y, 0.01).site_marginals.variance
    expected = conditioned(Exact(), kernel, x, y, 0.01).site_marginals.variance
    error = (found / expected - 1).abs()
    assert float(error.mean()) <= 0.005
    assert float(error.max()) <= 0.05


@torch.no_grad()
def test_the_rough_log_partition_errs_alike_from_step_to_step():
    """Theory, "Rough steps": its trace is estimated from the same signs for all sites; without a tolerance it is exact."""
    x, y, kernel = field(1200, seed=3)
    posterior = conditioned(SIC(tolerance=1e-5), kernel, x, y, 0.01)
    other = posterior.with_sites(Sites(posterior.sites.nu * 0.8, posterior.sites.tau * 0.7))
    errors = [float(p.rough_log_partition - p.log_partition) for p in (posterior, other)]
    change = abs(float(posterior.log_partition - other.log_partition))
    assert max(map(abs, errors)) < 1 and abs(errors[0] - errors[1]) < 1e-3 * change
    exact = conditioned(SIC(tolerance=0.0), kernel, x[:300], y[:300], 0.01)
    assert float(exact.rough_log_partition) == float(exact.log_partition)


def test_a_low_rank_part_has_the_posterior_of_its_prior():
    """Means, variances and covariances at the data and elsewhere, against the dense algebra of ``phi phi^T + (U U^T)^-1``."""
    x, y, kernel = field(60, 10, d=3, lengthscale=0.7)
    new = torch.rand(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    posterior = conditioned(SIC(neighbours=6, inducing=8, method="dkl"), kernel, x, y, 0.01)
    _, U, phi = factor(kernel, x, 6, 8)
    slots = posterior.plan.patterns[0].slots
    K = torch.linalg.inv(U @ U.mT) + phi @ phi.mT
    gain = torch.linalg.solve(K + 0.01 * torch.eye(60, dtype=torch.float64), K).mT
    mean = gain @ torch.zeros(60, dtype=torch.float64).index_copy(0, slots, y)
    covariance = K - gain @ K
    marginals = posterior.site_marginals
    assert torch.allclose(marginals.mean[:, 0], mean[slots], atol=1e-7)
    assert torch.allclose(marginals.variance[:, 0], covariance.diagonal()[slots], rtol=0.02)
    joint_mean, joint = posterior.joint(torch.cat([x, new]))
    assert torch.allclose(joint_mean[:60, 0], mean[slots], atol=1e-7)
    error = joint[0, :60, :60] - covariance[slots][:, slots]
    assert float(error.abs().max()) <= 0.04 * float(covariance.abs().max())
    for row in new.split(1):
        (at_new, variance), (joint_mean, joint) = posterior.marginals(row), posterior.joint(row)
        assert torch.allclose(joint_mean, at_new, atol=1e-10)
        assert torch.allclose(joint[0], variance, rtol=1e-8)


def test_a_low_rank_part_helps_where_the_kernel_is_smooth():
    x, y, kernel = field(500, 11, d=5, lengthscale=1.5, nu=2.5)
    with torch.no_grad():
        exact = float(conditioned(Exact(), kernel, x, y, 0.01).log_density)
        loss = [exact - float(conditioned(SIC(15, inducing=k), kernel, x, y, 0.01).log_density) for k in (0, 30)]
    assert abs(loss[1]) < 0.5 * abs(loss[0])


@pytest.mark.parametrize("inducing", [0, 12])
def test_the_envelope_gradient_is_that_of_the_bound(inducing):
    x, y, kernel = field(400, 4)
    engine = SIC(inducing=inducing)
    posterior = conditioned(engine, kernel, x, y, 0.01)
    found = torch.autograd.grad(posterior.log_density, [kernel.raw_lengthscale, kernel.raw_outputscale])
    for raw, gradient in zip((kernel.raw_lengthscale, kernel.raw_outputscale), found, strict=True):
        values = []
        for h in (1e-4, -1e-4):
            with torch.no_grad():
                raw.add_(h)
                values.append(float(engine.condition(posterior.prior, posterior.plan, {}, posterior.sites).log_density))
                raw.sub_(h)
        assert float(gradient) == pytest.approx((values[0] - values[1]) / 2e-4, rel=2e-3, abs=2e-3)


def test_the_response_density_is_that_of_each_target_given_its_neighbours():
    x, y, kernel = field(200, 5)
    engine = SIC(neighbours=12, method="response")
    posterior = conditioned(engine, kernel, x, y, 0.05)
    found, total = posterior.plan.patterns[0], 0.0
    targets = torch.zeros(200, dtype=torch.float64).index_copy(0, found.slots, y)
    with torch.no_grad():
        C = dense(kernel, found.x, found.x) + 0.05 * torch.eye(200, dtype=torch.float64)
    for i, near in enumerate(found.near):
        rows = near[near >= 0]
        weights = torch.linalg.solve(C[rows][:, rows], C[rows, i])
        given = torch.distributions.Normal(weights @ targets[rows], (C[i, i] - weights @ C[rows, i]).sqrt())
        total += float(given.log_prob(targets[i]))
    assert float(posterior.log_density.detach()) == pytest.approx(total, rel=1e-9)
    parameters = [kernel.raw_lengthscale, kernel.raw_outputscale]
    gradients = torch.autograd.grad(posterior.log_density, parameters)
    for raw, gradient in zip(parameters, gradients, strict=True):
        values = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                raw.add_(h)
                values.append(float(engine.condition(posterior.prior, posterior.plan, {}, posterior.sites).log_density))
                raw.sub_(h)
        assert float(gradient) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-5)


def test_the_response_density_with_a_low_rank_part_is_that_of_its_dense_covariance():
    x, y, kernel = field(60, 12)
    got, expected = (
        conditioned(e, kernel, x, y, 0.05).log_density for e in (SIC(59, method="response", inducing=7), Exact())
    )
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-7)
    parameters = [kernel.raw_lengthscale, kernel.raw_outputscale]
    for one, other in zip(*(torch.autograd.grad(v, parameters) for v in (got, expected)), strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-6)


def test_missing_targets_and_repeated_inputs_leave_the_response_density_of_the_others():
    x, y, kernel = field(60, 6)
    engine = SIC(neighbours=59, method="response")
    missing = y.clone()
    missing[::4] = math.nan
    data, prior = as_data(x, missing), Prior(gpytorch.means.ZeroMean(), (kernel,))
    sites = Gaussian(noise=0.01).double().exact_sites(data)
    got = engine.condition(prior, engine.plan(prior, data), {}, sites).log_density
    expected = Exact().condition(prior, Exact().plan(prior, data), {}, sites).log_density
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    twice = torch.cat([x, x[:20]])
    z = torch.cat([y, y[:20] + 0.05])
    got, expected = (conditioned(e, kernel, twice, z, 0.01).log_density for e in (SIC(79, method="response"), Exact()))
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli(), Poisson(), pytest.param(StudentT(df=4.0, scale=0.1), marks=pytest.mark.slow)],
    ids=lambda v: type(v).__name__,
)
def test_any_likelihood_agrees_with_the_exact_engine(likelihood):
    """The ELBO and predictions at the same hyperparameters; where all neighbours are used, to the accuracy of the sites."""
    from gpx.inference.infer import infer
    from gpx.inference.objectives import ELBO
    from gpx.inference.problem import Problem
    from gpx.inference.rules import Variational

    x, y, kernel = field(80, 7)
    if isinstance(likelihood, Bernoulli):
        y = (y > 0).double()
    if isinstance(likelihood, Poisson):
        y = y.exp().round()
    prior, data = Prior(gpytorch.means.ZeroMean(), (kernel,)), as_data(x, y)
    values = []
    for engine in (SIC(neighbours=79), Exact()):
        problem = Problem.planned(prior, data, likelihood.double(), engine, Variational())
        with torch.no_grad():
            found = infer(problem)
            values.append([ELBO()(problem), *found.posterior.marginals(x[:9] + 0.01)])
        assert found.converged
    (bound, *moments), (exact, *expected) = values
    assert float(bound) == pytest.approx(float(exact), rel=1e-6)
    for got, reference in zip(moments, expected, strict=True):
        assert torch.allclose(got, reference, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    X = random.random((400, 2))
    return X, np.sin(6 * X[:, 0]) + X[:, 1] + 0.1 * random.standard_normal(400)


def test_repeated_rows_keep_all_their_targets(rows):
    X, y = rows
    X, y = np.concatenate([X, X[:80]]), np.concatenate([y, y[:80] + 0.3])
    kernel, likelihood = Matern(nu=1.5, lengthscale=0.5), Gaussian(noise=0.01)
    means = []
    for engine in (SIC(), Exact()):
        gp = GP(kernel, likelihood=likelihood, engine=engine).condition(X, y)
        means.append(gp.predict(X[:80]).mean)
    assert float((means[0] - means[1]).abs().max()) < 0.02


@pytest.mark.parametrize(
    "case", ["line", "constant column", "twenty columns", "copies of a column", "unsorted integers"]
)
def test_odd_inputs_are_fitted_without_losing_rows(rows, case):
    X, y = rows
    random = np.random.default_rng(1)
    inputs = {
        "line": X[:, :1],
        "constant column": np.c_[X, np.full(400, 3.0)],
        "twenty columns": np.c_[X, random.random((400, 18))],
        "copies of a column": np.c_[X, X[:, :1]],
        "unsorted integers": random.permutation(400)[:, None] // 2,
    }[case]
    kernel = Matern(nu=1.5, ard=True)
    gp = GP(kernel, engine=SIC(neighbours=15)).condition(inputs, y)
    mean = gp.predict(inputs).mean
    assert mean.shape == (400,)
    assert bool(torch.isfinite(mean).all())
    assert gp.loo().mean.shape == (400,)


def test_columns_that_the_kernel_ignores_make_rows_equal():
    x = torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    assert len(pattern(RBF(active_dims=[0]).double(), x, 5, "maximin").x) == 2
    assert len(pattern(RBF().double(), x, 5, "maximin").x) == 3
    assert len(pattern(Constant().double(), x, 5, "maximin").x) == 1
    assert len(pattern(Linear().double(), x, 5, "maximin").x) == 3


def test_a_new_value_of_a_constant_column_is_another_input(rows):
    X, y = rows
    gp = GP(RBF(lengthscale=0.5, outputscale=1.0), engine=SIC()).condition(np.c_[X, np.full(400, 3.0)], y)
    at, beside = (gp.predict(np.c_[X[:5], np.full(5, c)], of="f").std for c in (3.0, 3.4))
    assert bool((beside > 1.5 * at).all())


def test_more_neighbours_than_points_are_reduced(rows):
    X, y = rows
    gp = GP(Matern(nu=1.5), engine=SIC(neighbours=1000)).condition(X[:20], y[:20])
    exact = GP(Matern(nu=1.5), engine="Exact").condition(X[:20], y[:20])
    assert np.allclose(gp.predict(X[20:30]).mean, exact.predict(X[20:30]).mean, atol=1e-5)


def test_a_save_and_an_update_keep_the_model(rows, tmp_path):
    X, y = rows
    gp = GP(Matern(nu=1.5), engine=SIC()).condition(X[:300], y[:300])
    gp.save(tmp_path / "model")
    assert np.allclose(gpx.load(tmp_path / "model").predict(X[300:]).mean, gp.predict(X[300:]).mean, atol=1e-8)
    more = gp.update(X[300:], y[300:])
    assert float((more.predict(X).mean - torch.as_tensor(y)).square().mean()) < 0.02


@pytest.mark.parametrize("inducing", [0, 10])
def test_draws_have_the_moments_of_the_posterior(rows, inducing):
    """4,000 draws at 6 points: means within 5 standard errors (false alarm: 1e-5), variances within 15 % (paths: 2,048 features)."""
    X, y = rows
    gp = GP(Matern(nu=2.5, lengthscale=0.4), Gaussian(noise=0.05), engine=SIC(inducing=inducing)).condition(X, y)
    new = X[:6] + 0.03
    expected = gp.predict(new, of="f")
    for draws in (gp.sample(new, 4000), gp.paths(4000)(new)):
        error = (draws.mean(0) - expected.mean) / (expected.std / math.sqrt(4000))
        assert float(error.abs().max()) < 5
        assert torch.allclose(draws.var(0), expected.variance, rtol=0.15)


@pytest.mark.parametrize(
    ("choices", "advice"),
    [
        ({"neighbours": 0}, "a number >= 1"),
        ({"neighbours": True}, "a number >= 1"),
        ({"ordering": "sorted"}, "'maximin', 'random', 'coordinate'"),
        ({"method": "vecchia"}, "'sites', 'dkl', 'response'"),
        ({"tolerance": 1.5}, "0 <= tolerance < 1"),
        ({"inducing": -1}, "a number of inputs >= 0"),
    ],
)
def test_settings_that_are_none_are_refused(choices, advice):
    with pytest.raises(InputError, match=advice):
        SIC(**choices)


def test_a_kernel_that_is_no_covariance_is_named_with_its_points():
    class Bad(gpytorch.kernels.Kernel):
        def forward(self, x1, x2, diag=False, **params):
            if diag:
                return x1.new_ones(x1.shape[:-1])
            return torch.cos(3 * (x1 - x2.mT).abs().sqrt()) * 2 - 1

    x, y, _ = field(50, 8, d=1)
    with pytest.raises(NumericalError, match="not positive definite.*fewer neighbours"):
        conditioned(SIC(), Bad(), x, y, 0.01).log_density.backward()


def test_paths_have_no_derivative_and_say_so(rows):
    X, y = rows
    gp = GP(Matern(nu=2.5), engine=SIC()).condition(X[:50], y[:50])
    with pytest.raises(StructureError, match="no derivatives"):
        gp.paths(2)(torch.rand(3, 2, dtype=torch.float64, requires_grad=True))


def test_a_periodic_kernel_of_two_inputs_works_by_blocks(rows):
    X, y = rows
    kernel = Matern(nu=1.5, active_dims=[0]) * Periodic(period=0.7, active_dims=[1])
    gp = GP(kernel, engine=SIC()).condition(X[:150], y[:150])
    assert float((gp.predict(X[150:200]).mean - torch.as_tensor(y[150:200])).abs().mean()) < 0.4


@pytest.mark.parametrize("inducing", [0, 6])
def test_a_fit_of_repeated_integers_and_a_constant_column_says_what_it_found(inducing):
    random = np.random.default_rng(5)
    X = np.c_[random.integers(0, 40, 60), np.ones(60)]
    y = np.sin(X[:, 0] / 3) + 0.1 * random.standard_normal(60)
    gp = GP(RBF(), engine=SIC(inducing=inducing)).fit(X, y)
    assert gp.result_.converged
    assert float((gp.predict(X, of="f").mean - torch.from_numpy(np.sin(X[:, 0] / 3))).square().mean().sqrt()) < 0.1
