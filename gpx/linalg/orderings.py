"""Orders of points from coarse to fine, and the nearest of the points that come earlier.

Points are rows of x [n, d], already divided by lengthscales. Theory: docs/theory/sic.md.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from scipy.spatial import cKDTree

from gpx.errors import InputError

LEAF = 8  # points in a box at the bottom of the tree
HEAD = 512  # points among which neighbours are found by all distances
FLAT = 5  # dimensions above which the coarse-to-fine order is worth no more than a random one
MORE = 8  # neighbours asked for in addition: some come later
ORDERINGS = ("maximin", "random", "coordinate")


def choose_ordering(x: np.ndarray, name: str) -> np.ndarray:
    """The order [n] of that name: "maximin" (random above five dimensions), "random" (by a fixed seed) or "coordinate".

    Raises: InputError for another name.
    """
    if name not in ORDERINGS:
        raise InputError(f"ordering must be one of {', '.join(map(repr, ORDERINGS))}, got {name!r}.")
    if name == "maximin" and x.shape[1] <= FLAT:
        return maximin(x)
    return coordinate(x) if name == "coordinate" else random(len(x))


def random(n: int) -> np.ndarray:
    """A random permutation of n, always the same."""
    return np.random.default_rng(0).permutation(n)


def coordinate(x: np.ndarray) -> np.ndarray:
    """By the first coordinate, then the second, and so on."""
    return np.lexsort(x.T[::-1])


def spatial(x: np.ndarray) -> np.ndarray:
    """Along a space-filling curve: points near each other in the order are near each other in space. Cost: O(n log n)."""
    low, high = x.min(0, initial=math.inf), x.max(0, initial=-math.inf)
    bits = max(1, min(20, 62 // max(1, x.shape[1])))
    width = np.where(high > low, high - low, 1.0)
    cells = ((x - low) / width * (2**bits - 1)).astype(np.int64)
    code = np.zeros(len(x), np.int64)
    for bit in range(bits - 1, -1, -1):
        for column in cells.T[: 62 // bits]:
            code = (code << 1) | ((column >> bit) & 1)
    return np.argsort(code, kind="stable")


def maximin(x: np.ndarray) -> np.ndarray:
    """Every point is the one farthest from all that come before it; the first is nearest to the centre.

    Boxes along a space-filling curve hold the largest distance of a point in them: a new point only looks into those boxes
    where it comes nearer than that. Cost: O(n log n) for few dimensions. Source: Guinness (2018); Schaefer et al. (2021).

    >>> maximin(np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])).tolist()
    [2, 0, 4, 1, 3]
    """
    if not len(x):
        return np.zeros(0, np.int64)
    curve = spatial(x)
    points = np.ascontiguousarray(x[curve])
    first = int(np.square(x - x.mean(0)).sum(1).argmin())
    return curve[_maximin(points, int(np.flatnonzero(curve == first)[0]), curve)]


@numba.njit(cache=True, nogil=True)
def _boxes(points, leaves):
    """Corners [2 leaves, d] of the boxes of a binary tree whose root is 1 and whose leaves are runs of points."""
    n, d = points.shape
    low, high = np.full((2 * leaves, d), np.inf), np.full((2 * leaves, d), -np.inf)
    for i in range(n):
        for k in range(d):
            leaf = leaves + i // LEAF
            low[leaf, k] = min(low[leaf, k], points[i, k])
            high[leaf, k] = max(high[leaf, k], points[i, k])
    for node in range(leaves - 1, 0, -1):
        for k in range(d):
            low[node, k] = min(low[2 * node, k], low[2 * node + 1, k])
            high[node, k] = max(high[2 * node, k], high[2 * node + 1, k])
    return low, high


@numba.njit(cache=True, nogil=True)
def _maximin(points, first, label):
    """Positions in order; ties go to the smallest label."""
    n, d = points.shape
    leaves = 1
    while leaves * LEAF < n:
        leaves *= 2
    low, high = _boxes(points, leaves)
    distance, largest = np.full(n, np.inf), np.full(2 * leaves, np.inf)  # squared; -1: taken, or nothing there
    for leaf in range(leaves):
        if leaf * LEAF >= n:
            largest[leaves + leaf] = -1.0
    for node in range(leaves - 1, 0, -1):
        largest[node] = max(largest[2 * node], largest[2 * node + 1])
    order, visited, stack = np.empty(n, np.int64), np.empty(2 * leaves, np.int64), np.empty(128, np.int64)
    pivot = first
    for step in range(n):
        order[step] = pivot
        distance[pivot] = -1.0
        seen, top = 0, 1
        stack[0] = 1
        while top:
            top -= 1
            node = stack[top]
            near = 0.0
            for k in range(d):
                away = max(low[node, k] - points[pivot, k], points[pivot, k] - high[node, k], 0.0)
                near += away * away
            # The leaf of the pivot itself has changed.
            if largest[node] < 0 or (near >= largest[node] and near > 0):
                continue
            visited[seen] = node
            seen += 1
            if node < leaves:
                stack[top], stack[top + 1] = 2 * node, 2 * node + 1
                top += 2
                continue
            best = -1.0
            for i in range((node - leaves) * LEAF, min(n, (node - leaves + 1) * LEAF)):
                if distance[i] >= 0:
                    square = 0.0
                    for k in range(d):
                        square += (points[i, k] - points[pivot, k]) ** 2
                    distance[i] = min(distance[i], square)
                best = max(best, distance[i])
            largest[node] = best
        for k in range(seen - 1, -1, -1):
            node = visited[k]
            if node < leaves:
                largest[node] = max(largest[2 * node], largest[2 * node + 1])
        if step + 1 < n:
            pivot = _farthest(distance, largest, leaves, label)
    return order


@numba.njit(cache=True, nogil=True)
def _farthest(distance, largest, leaves, label):
    """The point with the largest distance."""
    node = 1
    while node < leaves:
        node = 2 * node if largest[2 * node] >= largest[2 * node + 1] else 2 * node + 1
    best = -1
    for i in range((node - leaves) * LEAF, min(len(distance), (node - leaves + 1) * LEAF)):
        if distance[i] == largest[node] and (best < 0 or label[i] < label[best]):
            best = i
    return best


def earlier_neighbours(x: np.ndarray, count: int, start: int = 0, workers: int = 1) -> np.ndarray:
    """For every row of x [n, d], from `start` on, the `count` nearest of the rows before it, [n - start, count], ascending; -1 in
    front where there are fewer. Of rows at equal distance any are taken, the same every time.

    Trees of the first 2^k rows are asked about the rows that follow among these. Cost: O(n log n) for few dimensions.

    >>> earlier_neighbours(np.array([[0.0], [2.0], [1.0]]), 2).tolist()
    [[-1, -1], [-1, 0], [0, 1]]
    """
    n = len(x)
    found = np.full((n - start, count), -1, np.int32)
    first = max(start, min(n, max(HEAD, 4 * count)))
    for i in range(max(1, start), first):
        near = np.argsort(np.square(x[:i] - x[i]).sum(1), kind="stable")[:count]
        found[i - start, count - len(near) :] = np.sort(near)
    while first < n:
        stop = min(n, 2 * first)
        tree, rows, asked = cKDTree(x[:stop]), np.arange(first, stop), 2 * count + MORE
        while len(rows):
            asked = min(asked, stop)
            near = tree.query(x[rows], asked, workers=workers)[1].reshape(len(rows), asked)
            before = near < rows[:, None]
            rank = before.cumsum(1)
            done = rank[:, -1] >= count
            keep = (before & (rank <= count))[done]
            found[rows[done] - start] = np.sort(near[done][keep].reshape(-1, count), 1)
            rows, asked = rows[~done], 2 * asked
        first = stop
    return found
