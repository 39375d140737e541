"""A trend with a flat prior: the formulas of generalised least squares in plain numpy, and limits."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import gpx
from gpx.engines import SIC, Exact, SparseVariational, StateSpace
from gpx.engines.base import Engine
from gpx.errors import InputError, NumericalError, StructureError
from gpx.flat import Flat
from gpx.kernels import Constant, Linear, Matern
from gpx.kernels.dense import dense
from gpx.likelihoods import Bernoulli, Categorical, Gaussian, Poisson, StudentT
from gpx.means import Trend
from gpx.objectives import ELBO, EPEvidence, Evidence, LeaveOneOut, Whittle
from gpx.rules import ExpectationPropagation, Laplace, Variational
from gpx.testing import check_conditioning
from gpx.testing.assertions import close

NOISE = 0.05
KERNEL = Matern(nu=1.5, lengthscale=1.3, outputscale=0.8)


@dataclass(frozen=True)
class Diffuse(Engine):
    """Another engine, with the functions 1 and x."""

    inner: Engine

    def plan(self, prior: Any, data: Any) -> Any:
        return data.x, self.inner.plan(prior, data)

    def condition(self, prior: Any, plan: Any, params: Any, sites: Any) -> Flat:
        def basis(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.ones_like(x[:, :1]), x], 1)

        x, inner = plan
        return Flat(self.inner.condition(prior, inner, params, sites), sites, basis(x), basis)


def series(n: int = 40, columns: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, columns], and a line with a wave and noise."""
    random = np.random.default_rng(seed)
    x = random.uniform(0, 10, (n, columns))
    return x, 2 + 0.7 * x.sum(1) + np.sin(x[:, 0]) + NOISE**0.5 * random.standard_normal(n)


def monomials(x: np.ndarray, degree: int, like: np.ndarray) -> np.ndarray:
    """The functions of a trend at x, in units of the inputs `like`."""
    unit = (x - like.mean(0)) / like.std(0)
    powers = np.array(np.meshgrid(*[range(degree + 1)] * x.shape[1])).reshape(x.shape[1], -1).T
    return np.stack([(unit**p).prod(1) for p in powers if p.sum() <= degree], 1)


@dataclass(frozen=True)
class Regression:
    """Generalised least squares with covariance C [n, n] of the targets, in textbook formulas."""

    C: np.ndarray
    X: np.ndarray
    y: np.ndarray

    @property
    def coefficients(self) -> np.ndarray:
        """Least-squares estimates."""
        return np.linalg.solve(self.precision, self.X.T @ np.linalg.solve(self.C, self.y))

    @property
    def precision(self) -> np.ndarray:
        """Of the estimates."""
        return self.X.T @ np.linalg.solve(self.C, self.X)

    def evidence(self) -> float:
        """The restricted likelihood: the integral over the coefficients."""
        r, q = self.y - self.X @ self.coefficients, self.X.shape[1]
        logdets = np.linalg.slogdet(2 * np.pi * self.C)[1] + np.linalg.slogdet(self.precision)[1]
        return float(-0.5 * (r @ np.linalg.solve(self.C, r) + logdets - q * np.log(2 * np.pi)))

    def predict(self, cross: np.ndarray, prior: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Universal kriging: mean and covariance of f."""
        gain = np.linalg.solve(self.C, cross.T).T
        left = X - gain @ self.X
        mean = X @ self.coefficients + gain @ (self.y - self.X @ self.coefficients)
        return mean, prior - gain @ cross.T + left @ np.linalg.solve(self.precision, left.T)


def regression(x: np.ndarray, y: np.ndarray, degree: int, like: np.ndarray) -> Regression:
    """Of the kernel and the noise above."""
    C = matrix(x, x) + NOISE * np.eye(len(x))
    return Regression(C, monomials(x, degree, like), y)


def matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the kernel above."""
    return dense(KERNEL, torch.tensor(a), torch.tensor(b)).detach().numpy()


def model(degree: int, engine: Any = "auto") -> gpx.GP:
    """With hyperparameters that are known."""
    return gpx.GP(KERNEL, Gaussian(NOISE), mean=Trend(degree), engine=engine)


@pytest.mark.parametrize("engine", [Exact(), StateSpace(), SparseVariational(40), SIC(40)], ids=repr)
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_is_generalised_least_squares(engine: Engine, degree: int) -> None:
    x, y = series()
    new = np.linspace(-3, 13, 7)[:, None]
    gp, reference = model(degree, engine).condition(x, y), regression(x, y, degree, x)
    law, allowed = f"degree {degree}", 1e-8 if engine in (Exact(), StateSpace()) else 1e-5
    mean, covariance = reference.predict(matrix(new, x), matrix(new, new), monomials(new, degree, x))
    close(gp.log_evidence(), reference.evidence(), f"{law}: evidence", rtol=allowed)
    close(gp.predict(new, of="f").mean, mean, f"{law}: mean", rtol=allowed)
    close(gp.predict(new, of="f").variance, np.diag(covariance), f"{law}: variance", rtol=allowed)
    close(gp.posterior_.joint(torch.tensor(new))[1][0], covariance, f"{law}: covariance", rtol=allowed)
    others = [regression(np.delete(x, i, 0), np.delete(y, i), degree, x) for i in range(len(x))]
    left = [
        r.predict(matrix(x[[i]], np.delete(x, i, 0)), matrix(x[[i]], x[[i]]), monomials(x[[i]], degree, x))
        for i, r in enumerate(others)
    ]
    close(gp.loo().mean, [float(m[0]) for m, _ in left], f"{law}: leave-one-out mean", rtol=10 * allowed)
    close(gp.loo().variance, [float(v[0, 0]) + NOISE for _, v in left], f"{law}: leave-one-out", rtol=10 * allowed)


def test_of_several_columns_and_outputs_with_gaps() -> None:
    x, y = series(columns=2)
    both = np.stack([y, -2 * y + x[:, 1]], 1)
    both[::7, 0] = np.nan
    gp, new = model(1, Exact()).condition(x, both), np.array([[3.0, 14.0], [-2.0, 5.0]])
    for output in range(2):
        seen = ~np.isnan(both[:, output])
        reference = regression(x[seen], both[seen, output], 1, x)
        mean, covariance = reference.predict(matrix(new, x[seen]), matrix(new, new), monomials(new, 1, x))
        close(gp.predict(new, of="f").mean[:, output], mean, f"output {output}: mean", rtol=1e-8)
        close(gp.predict(new, of="f").variance[:, output], np.diag(covariance), f"output {output}", rtol=1e-8)


@pytest.mark.parametrize("inner", [Exact(), StateSpace()], ids=repr)
def test_posteriors_keep_the_laws_of_conditioning(inner: Engine) -> None:
    check_conditioning(
        Diffuse(inner), [Matern(nu=1.5, lengthscale=0.8), Matern(nu=2.5) + Matern(nu=0.5, lengthscale=0.2)]
    )


def slopes(gp: gpx.GP) -> tuple[list[float], list[float]]:
    """The gradient of the objective in every raw parameter, and its central differences."""
    problem, objective = gp._fitted().anew(), gp.objective_
    raws = [p for m in (*problem.prior.kernels, problem.likelihood) for p in m.parameters() if p.requires_grad]
    grads = torch.autograd.grad(objective(problem.anew()), raws)
    differences = []
    with torch.no_grad():
        for raw in raws:
            ends = []
            for step in (1e-4, -2e-4):
                raw += step
                ends.append(float(objective(problem.anew())))
            raw += 1e-4
            differences.append((ends[0] - ends[1]) / 2e-4)
    return [float(g) for g in grads], differences


@pytest.mark.parametrize(
    ("engine", "allowed"),
    [(Exact(), 1e-6), (StateSpace(), 1e-6), (SparseVariational(15), 1e-6), (SIC(8), 1e-4)],
    ids=str,
)
def test_gradient_of_the_evidence(engine: Engine, allowed: float) -> None:
    gradient, differences = slopes(model(1, engine).condition(*series()))
    close(gradient, differences, "gradient of the evidence", rtol=allowed)


COUNTS = {
    "poisson": (Poisson(), lambda f, random: random.poisson(np.exp(0.3 * f))),
    "bernoulli": (Bernoulli(), lambda f, random: (random.random(len(f)) < 1 / (1 + np.exp(3 - f))).astype(float)),
    "student": (StudentT(df=4.0, scale=0.3), lambda f, random: f + 0.3 * random.standard_t(4, len(f))),
}
WAYS = {
    "elbo": (Variational(), ELBO()),
    "ep-evidence": (Variational(), EPEvidence()),
    "ep": (ExpectationPropagation(), EPEvidence()),
    "laplace": (Laplace(), Evidence()),
}


def sites_model(name: str, way: str, engine: Any, mean: Any, kernel: Any) -> gpx.GP:
    """Conditioned on targets of another likelihood."""
    likelihood, draw = COUNTS[name]
    x, y = series()
    rule, objective = WAYS[way]
    gp = gpx.GP(kernel, copy.deepcopy(likelihood), mean=mean, engine=engine, rule=rule, objective=objective)
    return gp.condition(x, draw(y, np.random.default_rng(1)))


@pytest.mark.parametrize("engine", [Exact(), StateSpace()], ids=repr)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", COUNTS)
def test_any_likelihood(name: str, way: str, engine: Engine) -> None:
    """The limit of a prior of large variance, with the gradient of what it computes."""
    gp = sites_model(name, way, engine, Trend(1), KERNEL)
    gradient, differences = slopes(gp)
    close(gradient, differences, f"{name}, {way}: gradient", rtol=1e-4)

    x, variance = series()[0], 1e5
    line = Linear(outputscale=variance / x.std() ** 2, center=float(x.mean()))
    wide = sites_model(name, way, engine, "zero", KERNEL + line + Constant(outputscale=variance))
    new = np.linspace(-3, 13, 7)[:, None]
    for got, expected in zip(
        gp.posterior_.marginals(torch.tensor(new)), wide.posterior_.marginals(torch.tensor(new)), strict=True
    ):
        close(got, expected, f"{name}, {way}: limit of wide priors", rtol=1e-2)
    close(gp.log_evidence(), wide.log_evidence() + np.log(2 * np.pi * variance), f"{name}, {way}: value", rtol=1e-3)


def test_a_fit_is_that_of_any_line_below() -> None:
    """Adding a line to the targets changes predictions by that line and nothing else: unlike a learned mean, exactly."""
    x, y = series()
    one, other = (gpx.GP(Matern(nu=1.5), mean=Trend(1)).fit(x, v) for v in (y, y + 5 - 3 * x[:, 0]))
    new = np.linspace(0, 30, 5)[:, None]
    assert one.result_ is not None and one.result_.converged
    close(other.predict(new).mean, one.predict(new).mean.numpy() + 5 - 3 * new[:, 0], "mean", rtol=1e-4)


def test_save_and_load(tmp_path: Any) -> None:
    x, y = series()
    gp = model(2).condition(x, y)
    gp.save(tmp_path / "model.gpx")
    again, new = gpx.load(tmp_path / "model.gpx"), np.linspace(-3, 13, 7)[:, None]
    close(again.predict(new).mean, gp.predict(new).mean, "mean after loading", rtol=1e-12)
    close(again.update([[3.0]], [1.0]).predict(new).mean, gp.update([[3.0]], [1.0]).predict(new).mean, "update")


@pytest.mark.parametrize("degree", [-1, 4, 1.5, True, "linear"])
def test_a_degree_that_there_is_not(degree: Any) -> None:
    with pytest.raises(InputError, match="integer degree from 0"):
        Trend(degree)


def test_in_single_precision() -> None:
    x = torch.linspace(0, 10, 60)
    gp = gpx.GP(KERNEL, Gaussian(NOISE), mean="trend", engine="StateSpace").condition(x, 3 + x.sin() + x)
    other = gpx.GP(KERNEL, Gaussian(NOISE), mean="trend").condition(x.double(), (3 + x.sin() + x).double())
    new = torch.tensor([3.3, 12.0])
    assert gp.predict(new).mean.dtype == torch.float32
    close(gp.predict(new).mean, other.predict(new.double()).mean, "mean", rtol=1e-4)


@pytest.mark.parametrize("mean", ["constant", "trend"])
def test_samples_are_those_of_the_engine(mean: str) -> None:
    """In linear time: moments of joint draws at more points than a dense covariance would be for, by z-tests (1e-4 each)."""
    x, y = series()
    gp = gpx.GP(KERNEL, Gaussian(NOISE), mean=mean, engine="StateSpace").condition(x, y)
    new = np.linspace(-3, 13, 3000)
    draws, f = gp.sample(new, 400), gp.predict(new, of="f")
    z = (draws.mean(0) - f.mean)[::1000] / (f.std[::1000] / 20)
    assert float(z.abs().max()) < 4.2
    ratio = draws.var(0)[::1000] / f.variance[::1000]
    assert float((ratio - 1).abs().max()) < 4.2 * (2 / 399) ** 0.5


def test_bootstrap_does_not_ask_for_a_trend() -> None:
    """The restricted likelihood is the same whatever the trend is."""
    x, y = series()
    again = gpx.GP(KERNEL, mean="trend").fit(x, y).bootstrap(5, verbose=False)
    assert len(again.draws) == 5 and bool(np.isfinite(again.draws).all())


def test_constant_columns_are_left_out() -> None:
    """As they are by `mean="linear"`; in the first data, that is."""
    x, y = series()
    kernel = Matern(nu=1.5, lengthscale=1.3, outputscale=0.8, active_dims=[0])
    both = gpx.GP(kernel, Gaussian(NOISE), mean=Trend(2)).condition(np.c_[x, np.full(40, 3.0)], y)
    one = model(2, Exact()).condition(x, y)
    close(both.predict([[12.0, 3.0]]).mean, one.predict([[12.0]]).mean, "mean", rtol=1e-8)
    close(both.log_evidence(), one.log_evidence(), "evidence", rtol=1e-8)


def test_a_fit_says_what_is_missing() -> None:
    with pytest.raises(NumericalError, match="start of the fit.*fewer than 2 different inputs"):
        gpx.GP(KERNEL, mean="trend").fit([1.0, 2.0], [2.0, np.nan])


@pytest.mark.parametrize("rule", [Variational(), ExpectationPropagation(), Laplace()], ids=str)
@pytest.mark.parametrize("likelihood", [Bernoulli(), Bernoulli("logit"), Poisson()], ids=str)
def test_targets_that_a_trend_explains_without_error(likelihood: Any, rule: Any) -> None:
    """The steeper the likelier: its coefficients have no posterior."""
    x = np.linspace(0, 1, 20)
    y = x > 0.4 if isinstance(likelihood, Bernoulli) else 0 * x
    with pytest.raises(NumericalError, match="start of the fit.*(runs away|say too little of f)"):
        gpx.GP(Matern(2.5), likelihood, mean="trend", rule=rule).fit(x, y.astype(float))


def test_too_few_targets() -> None:
    with pytest.raises(NumericalError, match="a trend of a lower degree"):
        model(1).condition([[1.0], [2.0]], [0.0, np.nan]).predict([[0.0]])


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"objective": Whittle()}, "mean='linear'"),
        ({"likelihood": Categorical(2)}, "a trend that all classes have: use mean='linear'"),
        ({"objective": LeaveOneOut()}, "objectives.Evidence"),
        ({"engine": SparseVariational(5, batch_size=10)}, "batch_size=None"),
    ],
    ids=str,
)
def test_what_has_no_flat_prior(options: dict[str, Any], advice: str) -> None:
    x = np.arange(40.0)[:, None]
    with pytest.raises(StructureError, match=advice):
        gpx.GP(KERNEL, mean=Trend(1), **options).fit(x, (np.sin(x[:, 0]) > 0).astype(float), max_iter=1)
