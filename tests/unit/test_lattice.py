"""Stamps on a lattice are found, whatever their order, gaps and rounding; others are refused."""

from __future__ import annotations

import pytest
import torch

from gpx.errors import InputError
from gpx.linalg.lattice import find_lattice
from gpx.testing.assertions import close


def kept(size, count, seed=0):
    """Sorted cells of which the first and the last are 0 and size - 1."""
    generator = torch.Generator().manual_seed(seed)
    inner = 1 + torch.randperm(size - 2, generator=generator)[: count - 2]
    return torch.cat([torch.tensor([0, size - 1]), inner]).sort().values


@pytest.mark.parametrize(("size", "count"), [(2, 2), (50, 50), (50, 20), (500, 12), (100_000, 5_000)])
@pytest.mark.parametrize(("start", "spacing"), [(0.0, 1.0), (-3.7, 0.1), (1.7e9, 3600.0), (2001.5, 1 / 12)])
def test_cells_are_found(size, count, start, spacing):
    cells = kept(size, count)
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(1))
    found = find_lattice(start + spacing * cells[order].double())
    divisor = int(torch.gcd(cells, cells[-1:]).min()) if size < 1000 else 1
    close(found.spacing, spacing * divisor, "spacing", 1e-6)
    assert found.size == (size - 1) // divisor + 1
    assert torch.equal(found.index * divisor, cells[order])


def test_the_spacing_is_shorter_than_every_gap():
    found = find_lattice(torch.tensor([0.0, 2.0, 5.0, 7.0, 14.0]))
    assert found.spacing == pytest.approx(1.0) and found.index.tolist() == [0, 2, 5, 7, 14]


def test_rounded_stamps():
    generator = torch.Generator().manual_seed(0)
    cells = kept(20_000, 15_000)
    t = cells + 1e-4 * (2 * torch.rand(15_000, generator=generator, dtype=torch.float64) - 1)
    assert torch.equal(find_lattice(t).index, cells)


def test_one_stamp():
    assert find_lattice(torch.tensor([3.0])).size == 1


@pytest.mark.parametrize("t", [
    torch.rand(50, generator=torch.Generator().manual_seed(0)),
    torch.arange(100.0, dtype=torch.float64) + 0.05 * torch.rand(100, generator=torch.Generator().manual_seed(0)),
    torch.arange(30.0, dtype=torch.float64) ** 1.5,
], ids=["random", "jittered", "stretched"])  # fmt: skip
def test_irregular_stamps_are_refused(t):
    with pytest.raises(InputError, match=r"not on a regular lattice: the gaps .* range from .* to "):
        find_lattice(t)


def test_equal_stamps_are_refused():
    with pytest.raises(InputError, match=r"2 stamp\(s\) occur more than once, the first is 1\."):
        find_lattice(torch.tensor([0.0, 2.0, 1.0, 1.0, 3.0, 2.0]))
