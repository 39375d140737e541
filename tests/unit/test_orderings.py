"""Orders from coarse to fine, and earlier neighbours, against their definitions."""

import numpy as np
import pytest

from gpx.errors import InputError
from gpx.linalg.orderings import choose_ordering, coordinate, earlier_neighbours, maximin, spatial


def brute_force_maximin(x, first):
    order, distance = [first], np.full(len(x), np.inf)
    for _ in range(len(x) - 1):
        distance = np.minimum(distance, np.square(x - x[order[-1]]).sum(1))
        distance[order] = -1
        order.append(int(distance.argmax()))
    return np.array(order)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 2), (7, 1), (8, 3), (300, 2), (500, 3), (200, 6)])
def test_maximin_is_its_definition(n, d):
    x = np.random.default_rng(n).random((n, d)) * np.arange(1, d + 1)
    order = maximin(x)
    assert order[0] == np.square(x - x.mean(0)).sum(1).argmin()
    assert np.array_equal(order, brute_force_maximin(x, order[0]))


def test_maximin_of_a_grid_and_of_duplicates_is_coarse_to_fine():
    grid = np.stack(np.meshgrid(np.arange(16.0), np.arange(16.0)), -1).reshape(-1, 2)
    for x in (grid, np.repeat(grid[::7], 3, 0), np.zeros((20, 2))):
        order = maximin(x)
        assert sorted(order) == list(range(len(x)))
        nearest = [np.square(x[order[:k]] - x[order[k]]).sum(1).min() for k in range(1, len(x))]
        assert sorted(nearest, reverse=True) == nearest


def test_the_empty_set_has_an_order():
    assert len(maximin(np.zeros((0, 2)))) == 0
    assert earlier_neighbours(np.zeros((0, 2)), 3).shape == (0, 3)


@pytest.mark.parametrize("name", ["maximin", "random", "coordinate"])
@pytest.mark.parametrize("d", [1, 2, 8])
def test_every_ordering_is_a_permutation_and_always_the_same(name, d):
    x = np.random.default_rng(0).random((97, d))
    order = choose_ordering(x, name)
    assert sorted(order) == list(range(97))
    assert np.array_equal(order, choose_ordering(x.copy(), name))


def test_coordinate_sorts_by_the_first_column_first():
    x = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert coordinate(x).tolist() == [2, 1, 0]


def test_the_spatial_curve_keeps_neighbours_together():
    x = np.random.default_rng(0).random((4000, 2))
    along = x[spatial(x)]
    steps = np.linalg.norm(along[1:] - along[:-1], axis=1)
    assert np.median(steps) < 2 / np.sqrt(len(x))  # the spacing is 1 / sqrt(n); at random it would be .5
    assert sorted(spatial(np.zeros((5, 70)))) == list(range(5))  # more columns than bits


def test_an_unknown_ordering_names_those_that_exist():
    with pytest.raises(InputError, match="'maximin', 'random', 'coordinate'"):
        choose_ordering(np.zeros((3, 1)), "minimax")


@pytest.mark.parametrize(("n", "d", "count"), [(5, 1, 3), (700, 2, 12), (2000, 2, 30), (900, 20, 10), (600, 1, 1)])
def test_earlier_neighbours_are_the_nearest_before(n, d, count):
    x = np.random.default_rng(d).random((n, d))
    found = earlier_neighbours(x, count)
    for i in range(n):
        nearest = np.argsort(np.square(x[:i] - x[i]).sum(1))[:count]
        expected = np.full(count, -1)
        expected[count - len(nearest) :] = np.sort(nearest)
        assert np.array_equal(found[i], expected)


@pytest.mark.parametrize("start", [0, 3, 600, 899])
def test_neighbours_of_the_last_rows_are_those_among_all(start):
    x = np.random.default_rng(1).random((900, 2))
    assert np.array_equal(earlier_neighbours(x, 7, start), earlier_neighbours(x, 7)[start:])


def test_coordinates_that_are_sorted_leave_all_neighbours_to_be_found():
    """Of a sorted line the nearest rows of a tree come half before and half after."""
    x = np.arange(3000.0)[:, None]
    found = earlier_neighbours(x, 10)
    assert np.array_equal(found[2000], np.arange(1990, 2000))
    assert np.array_equal(
        earlier_neighbours(np.zeros((1500, 2)), 4) >= 0, np.arange(1500)[:, None] > np.arange(3, -1, -1)
    )
