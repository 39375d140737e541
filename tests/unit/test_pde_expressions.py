"""The algebra of equations: values, total derivatives, linearisation and degree, against sympy and finite differences."""

import numpy as np
import pytest
import sympy
import torch

import gpx
from gpx import pde
from gpx.pde import D, u
from gpx.pde.expressions import evaluate, expression, indices, linearise

X = torch.rand(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
x, y = sympy.symbols("x y")
U = sympy.exp(0.3 * x) * sympy.sin(x + 2 * y) + x * y**2


def a(X):
    return torch.exp(X[:, 0]) + X[:, 1] ** 2


A = sympy.exp(x) + y**2
CASES = {
    "laplacian": (D(u, 0, 2) + D(u, 1, 2), lambda v: v.diff(x, 2) + v.diff(y, 2)),
    "divergence form": (D(a * D(u, 0), 0) - D(a * D(u, 1), 1), lambda v: (A * v.diff(x)).diff(x) - (A * v.diff(y)).diff(y)),
    "polynomial": (u**3 - u * 2 + 1, lambda v: v**3 - 2 * v + 1),
    "derivative of a square": (D(u**2, 0, 2), lambda v: (v**2).diff(x, 2)),
    "functions": (D(pde.sin(u), 0) + pde.exp(-u) + D(pde.cos(2 * u), 1), lambda v: sympy.sin(v).diff(x) + sympy.exp(-v) + sympy.cos(2 * v).diff(y)),
    "mixed": (D(D(u, 0), 1) * D(u, 1), lambda v: v.diff(x, y) * v.diff(y)),
    "quotients": (1 / (2 + D(u, 0) ** 2) - u / 3, lambda v: 1 / (2 + v.diff(x) ** 2) - v / 3),
    "second derivative of a function": (D(pde.exp(u * a), 1, 2), lambda v: sympy.exp(v * A).diff(y, 2)),
    "numbers first": (3 - u, lambda v: 3 - v),
}  # fmt: skip


def numbers(formula):
    f = sympy.lambdify((x, y), formula, "math")
    return torch.tensor([float(f(*point)) for point in X.tolist()], dtype=torch.float64)


def jet_of(equation):
    return {i: numbers(sympy.diff(U, *[(x, y)[axis] for axis in i]) if i else U) for i in indices(equation)}


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_sympy(name):
    equation, formula = CASES[name]
    torch.testing.assert_close(equation.value(jet_of(equation), X), numbers(formula(U)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_the_linearisation_is_the_derivative_along_any_jet(name):
    equation, _ = CASES[name]
    jet, step = jet_of(equation), 1e-6
    change = {i: torch.cos(v + k) for k, (i, v) in enumerate(jet.items())}
    value, slopes = linearise(equation, jet, X)
    moved = [equation.value({i: jet[i] + s * change[i] for i in jet}, X) for s in (step, -step)]
    torch.testing.assert_close(value, equation.value(jet, X))
    numeric = (moved[0] - moved[1]) / (2 * step)
    torch.testing.assert_close(sum(slopes[i] * change[i] for i in jet), numeric, rtol=1e-7, atol=1e-7)


def test_an_equation_without_u_has_no_slopes():
    value, slopes = linearise(expression(a), {(): X[:, 0]}, X)
    assert torch.equal(value, a(X)) and not slopes[()].any()


@pytest.mark.parametrize(("equation", "linear"), [
    (D(u, 0, 2) + a * u - 3, True), (D(a * D(u, 0), 0), True), (u * u, False), (u**2, False), (pde.sin(u), False), (pde.sin(a) * u, True),
    (u / 2, True), (2 / u, False), (u * D(u, 0), False), (expression(a) ** 2, True),
])  # fmt: skip
def test_degree(equation, linear):
    assert (equation.degree() <= 1) is linear


def test_an_equation_prints_itself():
    assert repr(D(u, 0, 2) + u**3) == "(u_00 + u**3)"
    assert "a(x)" in repr(a * u) and "sin(u)" in repr(pde.sin(u))


@pytest.mark.parametrize("bad", ["u", None, [1]])
def test_what_is_no_expression_is_named(bad):
    with pytest.raises(gpx.InputError, match="made of u, D"):
        u + bad


@pytest.mark.parametrize(("axis", "order"), [(-1, 1), (0, 0), (0.5, 1), (0, 1.5), (True, 1), (0, True)])
def test_derivatives_need_an_axis_and_an_order(axis, order):
    with pytest.raises(gpx.InputError, match="integer axis >= 0 and order >= 1"):
        D(u, axis, order)


def test_numpys_numbers_are_numbers():
    assert repr(D(u, np.int64(1), np.int32(2))) == repr(D(u, 1, 2))
    two = np.float64(2)
    for made, same in ((two * u, 2 * u), (two - u, 2 - u), (u / two, u / 2), (two / u, 2 / u), (two + u, 2 + u)):
        assert torch.equal(made.value({(): X[:, 0]}, X), same.value({(): X[:, 0]}, X))


@pytest.mark.parametrize(("make", "advice"), [
    (lambda: 2**u, r"pde\.exp\(math\.log\(2\) \* u\)"), (lambda: np.float64(2) ** u, r"pde\.exp"),
    (lambda: np.sin(u), r"numpy's sin takes numbers.*pde\.sin"), (lambda: torch.sin(u), r"torch's sin takes tensors.*pde\.sin"),
    (lambda: abs(u), r"write \(u\*\*2\) \*\* 0\.5"), (lambda: torch.ones(2) * u, "functions of x are given as callables"),
    (lambda: np.ones(2) * u, "made of u, D"), (lambda: D(u, 0, 2) / 0, "divides by zero.* correct the equation"),
])  # fmt: skip
def test_what_expressions_do_not_know_has_advice(make, advice):
    with pytest.raises(gpx.InputError, match=advice):
        make()


def numpys(X):
    return torch.from_numpy(2 + np.sin(3 * X.detach().numpy()[:, 0]))


@pytest.mark.parametrize("hidden", [
    numpys, lambda X: torch.from_numpy(np.sin(X.numpy()[:, 0])), lambda X: torch.where(X[:, 0] < 0.5, 1.0, 3.0),
    lambda X: torch.floor(3 * X[:, 0]), lambda X: torch.sin(X[:, 0]).detach(),
])  # fmt: skip
def test_derivatives_that_are_not_seen_are_refused(hidden):
    with pytest.raises(gpx.InputError, match=r"does not see .* torch's functions, or expand the product"):
        D(hidden * D(u, 0), 0).value({(0,): X[:, 0], (0, 0): X[:, 1]}, X)


@pytest.mark.parametrize(("of", "axis"), [
    (lambda X: torch.full((len(X),), 2.0), 0), (lambda X: torch.exp(X[:, 1]), 0), (lambda X: 3 * X[:, 0] + 1, 1),
])  # fmt: skip
def test_what_does_not_vary_along_an_axis_has_no_derivative(of, axis):
    assert not D(of, axis).value({}, X).any() and not D(of, axis, 2).value({}, X).any()


@pytest.mark.parametrize(("of", "message"), [
    (lambda X: 2.0, r"it returned \[\]\. A constant is given as a number"), (lambda X: None, "it returned NoneType: None"),
    (lambda X: X[:, 0].sqrt() - 1 / X[:, 0], "not finite at x ="),
])  # fmt: skip
def test_coefficients_that_are_none_are_named(of, message):
    at = torch.zeros(3, 2, dtype=torch.float64)
    for coefficient in (expression(of), D(of, 0)):
        with pytest.raises(gpx.InputError, match=message):
            coefficient.value({}, at)


def test_exponents_are_numbers():
    with pytest.raises(gpx.InputError, match=r"pde\.exp"):
        u**u


def test_functions_are_checked():
    assert torch.equal(evaluate(2, X, "f"), torch.full((7,), 2.0, dtype=torch.float64))
    assert evaluate(lambda X: X[:, :1], X, "f").shape == (7,)
    with pytest.raises(gpx.InputError, match=r"The source must map a tensor \[n, d\] to \[n\].*returned \[7, 2\]"):
        evaluate(lambda X: X, X, "The source")
    with pytest.raises(gpx.InputError, match="not finite at x ="):
        evaluate(lambda X: torch.log(-X[:, 0]), X, "The source")
