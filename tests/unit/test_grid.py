"""`gpx.Grid`: inputs on axes are rows in C order, and what comes back has the grid's shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gpx
from gpx import Grid, InputError
from gpx.inputs import as_data, as_points

AXES = [torch.tensor([0.0, 0.5, 1.0, 2.0]).double(), torch.tensor([-1.0, 0.0, 2.0]).double()]


def values(seed=0, shape=(4, 3)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rows_are_in_c_order():
    grid = Grid([AXES[0], torch.stack([AXES[1], AXES[1] ** 2], 1)], names=["time", "place"])
    assert grid.shape == (4, 3) and grid.columns == ("time", "place[0]", "place[1]") and grid.groups == ((0,), (1, 2))
    rows = grid.rows.reshape(4, 3, 3)
    for i in range(4):
        for j in range(3):
            assert rows[i, j].tolist() == [float(AXES[0][i]), float(AXES[1][j]), float(AXES[1][j]) ** 2]
    data = as_data(grid, values())
    assert data.axes == ((0,), (1, 2)) and torch.equal(data.y[:, 0], values().reshape(-1)) and data.flat
    several = as_data(grid, values(1, (4, 3, 2)))
    assert several.y.shape == (12, 2) and not several.flat
    assert torch.equal(several.y, values(1, (4, 3, 2)).reshape(12, 2))


def test_axes_take_names_and_dates(tmp_path):
    pandas = pytest.importorskip("pandas")
    days = pandas.date_range("2024-01-01", periods=3)
    places = pandas.DataFrame({"lat": [1.0, 2.0], "lon": [3.0, 5.0]})
    grid = Grid([days.to_numpy(), places])
    assert grid.columns == ("", "lat", "lon") and grid.axes[0].diff(dim=0).flatten().tolist() == [1.0, 1.0]
    assert as_points(grid, columns=("day", "lat", "lon")).columns == ("day", "lat", "lon")


@pytest.mark.parametrize(("build", "message"), [
    (lambda: Grid([]), "at least one axis"),
    (lambda: Grid([[0.0, 1.0], [2.0, 2.0]], names=["t", "depth"]), "Axis depth of the Grid has repeated values, such as 2.0.*average"),
    (lambda: Grid([[0.0, 1.0], [[2.0, 1.0], [2.0, 1.0]]]), r"Axis 1 of the Grid has repeated values, such as \[2.0, 1.0\]"),
    (lambda: Grid([[0.0, 1.0]], names=["t", "u"]), "1 axes and 2 names"),
    (lambda: Grid([[0.0, float("nan")]]), "NaN"),
    (lambda: Grid([[]]), "not empty"),
    (lambda: as_data(Grid(AXES, names=["time", "depth"]), torch.zeros(3, 4)),
     r"y has shape \[3, 4\], Grid\(time: 4, depth: 3\) has \[4, 3\].*NaN for missing cells"),
    (lambda: as_data(Grid(AXES), torch.zeros(12)), r"y has shape \[12\]"),
    (lambda: as_data(Grid(AXES), None), "y is missing"),
])  # fmt: skip
def test_errors(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("engine", [gpx.engines.Exact(), gpx.engines.SparseVariational(8), "auto"])
def test_every_engine_takes_a_grid(engine):
    """As it takes its rows; predictions have the shape of the grid where they are asked for."""
    y = values()
    y[1, 2] = torch.nan
    grid, other = Grid(AXES), Grid([[0.2, 0.7], [0.0, 1.0, 4.0]])
    one = gpx.GP(gpx.kernels.RBF(), engine=engine).condition(grid, y)
    rows = gpx.GP(gpx.kernels.RBF(), engine=engine).condition(grid.rows, y.reshape(-1))
    assert one.log_evidence() == pytest.approx(rows.log_evidence(), rel=1e-12)
    for of in ("y", "f"):
        prediction = one.predict(other, of)
        assert prediction.shape == (2, 3)
        assert torch.allclose(prediction.mean.reshape(-1), rows.predict(other.rows, of).mean, rtol=1e-9)
        assert prediction.log_prob(torch.zeros(2, 3)).shape == (2, 3)
    assert one.sample(other, 5).shape == (5, 2, 3) and one.paths(4)(other).shape == (4, 2, 3)


def test_several_outputs_and_latents():
    several = gpx.GP(gpx.kernels.RBF()).condition(Grid(AXES), values(1, (4, 3, 2)))
    assert several.predict(Grid(AXES)).shape == (4, 3, 2) and several.sample(Grid(AXES), 3).shape == (3, 4, 3, 2)
    noisy = gpx.GP(gpx.kernels.RBF(), gpx.likelihoods.Heteroscedastic()).condition(Grid(AXES), values())
    assert noisy.predict(Grid(AXES)).shape == (4, 3) and noisy.predict(Grid(AXES), "f").shape == (4, 3, 2)
    classes = gpx.GP(gpx.kernels.RBF(), gpx.likelihoods.Categorical(3)).condition(
        Grid(AXES), torch.arange(12).reshape(4, 3) % 3
    )
    assert classes.predict(Grid(AXES)).mean.shape[:2] == (4, 3)


class Labelled:
    """What gpx needs of an xarray.DataArray."""

    dims, shape = ("time", "depth"), (4, 3)

    def __init__(self, values):
        self.values, self.coords = np.asarray(values), {"time": self._coordinate(AXES[0])}

    @staticmethod
    def _coordinate(values):
        return type("Coordinate", (), {"values": values.numpy()})

    def to_dataset(self):
        raise AssertionError


def test_labelled_arrays():
    """A coordinate that is not there counts the places."""
    gp = gpx.GP(gpx.kernels.RBF()).condition(Labelled(values()))
    grid = Grid([AXES[0], [0.0, 1.0, 2.0]])
    assert gp.log_evidence() == pytest.approx(gpx.GP(gpx.kernels.RBF()).condition(grid, values()).log_evidence())
    assert gp.predict(Labelled(values())).shape == (4, 3)


def test_xarray():
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(values().numpy(), {"time": AXES[0].numpy(), "depth": AXES[1].numpy()}, ["time", "depth"])
    gp = gpx.GP(gpx.kernels.RBF()).condition(array)
    back = Grid.from_dataarray(array)[0].to_dataarray(gp.predict(array).mean)
    assert back.dims == array.dims and np.array_equal(back.coords["time"], array.coords["time"])
