"""The algebra of equations: values, total derivatives, linearisation and degree, against sympy and finite differences."""

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


@pytest.mark.parametrize(("axis", "order"), [(-1, 1), (0, 0), (0.5, 1), (0, 1.5)])
def test_derivatives_need_an_axis_and_an_order(axis, order):
    with pytest.raises(gpx.InputError, match="integer axis >= 0 and order >= 1"):
        D(u, axis, order)


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
