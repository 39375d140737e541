"""The grid spectral mixture product kernel against its formula, and what it takes from the data."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from gpx import GP, InputError
from gpx.inputs import as_data
from gpx.kernels import GridSpectralMixtureProduct, parse
from gpx.kernels.grid_spectral import unit_grid
from gpx.linalg.periodogram import spacings
from gpx.testing.assertions import close
from gpx.testing.cases import points, targets


def started(x, **options):
    """The kernel as a fit starts it."""
    kernel, data = GridSpectralMixtureProduct(**options), as_data(x, targets(torch.as_tensor(x).reshape(len(x), -1)))
    kernel.bind(data.columns)
    kernel.init_from(data)
    return kernel


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_it_is_its_formula(dims):
    kernel = GridSpectralMixtureProduct(
        7, weights=list(range(7)), max_frequency=[0.9, 0.4, 0.7, 0.2][:dims], bandwidth=0.15
    )
    grid, x, x2 = kernel.frequencies.tolist(), points(4, dims), points(3, dims, seed=2)

    def k(a, b):
        t = [p - q for p, q in zip(a, b, strict=True)]
        envelope = math.prod(math.exp(-2 * math.pi**2 * v**2 * 0.15**2) for v in t)
        waves = [math.prod(math.cos(2 * math.pi * f * v) for f, v in zip(mu, t, strict=True)) for mu in grid]
        return sum(w * envelope * wave for w, wave in enumerate(waves))

    expected = [[k(a, b) for b in x2.tolist()] for a in x.tolist()]
    close(kernel.matrix(x, x2), expected, "the formula", 1e-12)
    close(kernel.diagonal(x), [21.0] * 4, "k(0) is the sum of the weights")


def test_far_from_zero_it_keeps_its_digits():
    kernel = GridSpectralMixtureProduct(9, max_frequency=6.0, bandwidth=0.01)
    x = (points(6, 1) * 2**20).round() / 2**20  # so that the shift is exact
    close(kernel.matrix(x + 2.0**20), kernel.matrix(x), "a shift of a million", 1e-12)


def test_the_grid_goes_up_to_the_nyquist_frequency():
    months = np.delete(1958 + np.arange(120) / 12, [5, 60, 61])
    kernel = started(months, num_components=None)
    assert kernel.num_components == 500
    close(kernel.frequencies[:, 0], torch.linspace(0, 6, 500), "even steps from 0", 1e-7)
    assert float(kernel.bandwidth) == pytest.approx(12 / 119), "what the data resolve"
    assert float(started(months, num_components=20).bandwidth) == pytest.approx(6 / 20), "the grid, where it is coarser"
    near = started(np.append(months, months[7] + 1e-9), num_components=4)
    assert float(near.max_frequency) == pytest.approx(6.0), "a near duplicate changes nothing"


def test_spacings_of_several_columns():
    grid = torch.cartesian_prod(torch.linspace(0, 9, 10), torch.linspace(0, 1, 51)).double()
    close(spacings(grid), [1.0, 0.02], "axes of a grid", 1e-6)
    scattered = torch.rand(2500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert all(0.01 < gap < 0.03 for gap in spacings(scattered)), "50 places along each of two columns"
    assert spacings(torch.ones(5, 2)) == [0.0, 0.0]


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_the_grid_covers_unequal_frequencies(dims):
    grid = unit_grid(400, dims)
    assert not bool(grid[0].any()) and bool((grid < 1).all())
    halves = {tuple(row) for row in (grid > 0.5).int().tolist()}
    assert len(halves) == 2**dims, "every orthant of low and high frequencies"
    assert abs(np.corrcoef(grid.numpy(), rowvar=False) - np.eye(dims)).max() < 0.1


def test_components_by_default():
    assert started(points(30, 3), num_components=None).weights.shape == (300,)
    assert GridSpectralMixtureProduct(weights=[0.1, 0.2]).num_components == 2
    assert GridSpectralMixtureProduct().matrix(points(4, 2)).diagonal().tolist() == pytest.approx([0.4] * 4)


def test_values_that_are_given_stay():
    kernel = started(points(30, 1), weights=[0.1, 0.2], max_frequency=3.0, bandwidth=0.5)
    assert (kernel.weights.tolist(), float(kernel.max_frequency), float(kernel.bandwidth)) == ([0.1, 0.2], 3.0, 0.5)


def test_weights_of_zero_add_nothing_and_may_grow():
    x = points(5, 2)
    sparse = GridSpectralMixtureProduct(6, weights={2: 0.7}, max_frequency=0.8, bandwidth=0.1)
    with torch.no_grad():
        alone = sparse.matrix(x)
    close(alone, sparse.matrix(x), "with and without the others", 1e-13)
    (slopes,) = torch.autograd.grad(sparse.matrix(x).sum(), [sparse.raw_weights])
    assert bool((slopes != 0).all()), "a weight of zero has a gradient"
    text = "GridSpectralMixtureProduct(num_components=6, weights={2: 0.7}, max_frequency=0.8, bandwidth=0.1)"
    assert repr(sparse) == repr(parse(text)) == text


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GridSpectralMixtureProduct(3, weights=[1.0, -0.1, 0.0]), "weights must be at least 0 and finite"),
        (lambda: GridSpectralMixtureProduct(3, weights=[1.0, 2.0]), r"weights has shape \[2\], expected \[3\]; give one number, or 3"),
        (lambda: GridSpectralMixtureProduct(3, weights={3: 1.0}), "keys from 0 to num_components - 1"),
        (lambda: GridSpectralMixtureProduct(weights={3: 1.0}), "needs num_components"),
        (lambda: GridSpectralMixtureProduct(0), "num_components must be a positive integer, or None"),
        (lambda: GridSpectralMixtureProduct(3, bandwidth=-1.0), "bandwidth must be at least 0"),
        (lambda: GridSpectralMixtureProduct(3).set(weights=[1.0, 2.0]), "has 3 components, got 2 weights; give one number"),
        (lambda: GridSpectralMixtureProduct().matrix(torch.zeros(2, 13)), r"at most 12 input columns .* active_dims"),
        (lambda: GP(GridSpectralMixtureProduct(3, max_frequency=[1.0, 2.0])).condition(points(4, 3), [0.0] * 4), "2 values of max_frequency"),
    ],
)  # fmt: skip
def test_bad_arguments_get_advice(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_blocks_of_components_add_up(monkeypatch):
    kernel, x = GridSpectralMixtureProduct(11, max_frequency=0.8, bandwidth=0.1), points(6, 3)
    whole = kernel.matrix(x)
    monkeypatch.setattr("gpx.kernels.grid_spectral.CHUNK", 1)
    close(kernel.matrix(x), whole, "one component after the other", 1e-13)


def test_signs_average_to_the_product_of_cosines():
    kernel, x = GridSpectralMixtureProduct(2, max_frequency=0.8), points(5, 3)
    mu = torch.tensor([[0.3, 0.7, 0.2]], dtype=torch.float64)
    F = kernel.waves(mu, x)
    t = x[:, None] - x
    waves = [
        torch.cos(2 * math.pi * (t * torch.tensor([s0, s1, 1.0]) * mu[0]).sum(-1))
        for s0, s1 in product((1, -1), repeat=2)
    ]
    close(F @ F.mT, sum(waves) / 4, "Wilson & Adams' components of all signs", 1e-12)
