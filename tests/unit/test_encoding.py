"""Encodings: kinds of columns, categories, dates, and errors that name rows and columns."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pandas as pd
import pytest

from gpx.encoding import Column, Encoding, as_dates
from gpx.errors import InputError

FRAME = {"size": [1, 2, 3], "hue": ["red", "blue", "red"], "new": [True, False, True], "y": [0.1, np.nan, 0.3]}


@pytest.mark.parametrize("make", [dict, pd.DataFrame])
def test_kinds_of_columns(make):
    encoding = Encoding.fit(make(FRAME), "y")
    assert [c.kind for c in encoding.columns] == ["number", "category", "boolean"]
    assert encoding.names == ("size", "hue=blue", "hue=red", "new")
    expected = [[1, 0, 1, 1], [2, 1, 0, 0], [3, 0, 1, 1]]
    np.testing.assert_array_equal(encoding.transform(make(FRAME)), expected)
    np.testing.assert_array_equal(encoding.targets(make(FRAME)), FRAME["y"])
    assert not encoding.is_series


def test_an_encoding_survives_json():
    encoding = Encoding.fit(FRAME, "y")
    assert Encoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding


@pytest.mark.parametrize(
    "stamps",
    [
        np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"),
        ["2020-01-01", "2020-01-02T00:00:00"],
        ["2020-01-01T01:00:00+01:00", "2020-01-02 00:00:00Z"],
        [datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)],
        pd.Series(pd.to_datetime(["2020-01-01", "2020-01-02"])),
        pd.Series(pd.to_datetime(["2020-01-01T01:00+01:00", "2020-01-02T01:00+01:00"])),
    ],
)
def test_dates_become_days(stamps):
    encoding = Encoding.fit({"when": stamps, "y": [1, 2]}, "y")
    assert encoding.is_series and encoding.columns == (Column("when", "date"),)
    np.testing.assert_array_equal(encoding.transform({"when": stamps})[:, 0], [18262, 18263])


def test_months_are_their_first_days():
    encoding = Encoding.fit({"month": ["1970-01", "1970-02"], "y": [1, 2]}, "y")
    np.testing.assert_array_equal(encoding.transform({"month": ["1970-02"]}), [[31.0]])


def test_days_become_dates_again():
    assert as_dates(np.array([18262.0])).astype(str).tolist() == ["2020-01-01"]
    assert as_dates(np.array([18262.25])).astype(str).tolist() == ["2020-01-01T06:00:00"]


def test_text_cells_are_read_as_the_kinds_that_they_had():
    encoding = Encoding.fit({**FRAME, "when": ["2020-01-01"] * 3}, "y")
    text = {"size": ["4.5"], "hue": ["blue"], "new": ["True"], "when": ["1970-01-03"]}
    np.testing.assert_array_equal(encoding.transform(text), [[4.5, 1, 0, 1, 2]])


def test_a_category_that_looks_like_a_number_is_told_by_its_text():
    encoding = Encoding.fit({"code": ["01", "A1"], "y": [1, 2]}, "y")
    np.testing.assert_array_equal(encoding.transform({"code": ["01"]}), [[1.0, 0.0]])


def test_pandas_dtypes_with_missing_values():
    frame = pd.DataFrame({"n": [1, 2, 3], "y": [1.0, 2.0, 3.0]}).astype({"n": "Int64"})
    encoding = Encoding.fit(frame, "y")
    assert encoding.transform(frame).tolist() == [[1.0], [2.0], [3.0]]
    frame.loc[1, "n"] = pd.NA
    with pytest.raises(InputError, match=r"row\(s\) 2, column\(s\) n"):
        encoding.transform(frame)
    labels = pd.DataFrame({"c": pd.Categorical(["b", "a", "b"]), "y": [1, 2, 3]})
    assert Encoding.fit(labels, "y").names == ("c=a", "c=b")


def test_boolean_columns_with_missing_targets():
    encoding = Encoding.fit({"x": [1, 2], "y": [True, None]}, "y")
    np.testing.assert_array_equal(encoding.targets({"x": [1, 2], "y": [True, None]}), [1.0, np.nan])


@pytest.mark.parametrize(
    ("frame", "target", "message"),
    [
        (FRAME, "z", "no column 'z'; the table has size, hue, new, y"),
        ({"y": [1]}, "y", "no input column"),
        ({"x": [None, None], "y": [1, 2]}, "y", "'x' holds no value"),
        ({"id": [f"n{i}" for i in range(200)], "y": list(range(200))}, "y", "200 different texts.*--ignore id"),
        ({"x": np.array([1, 2], dtype="m8[s]"), "y": [1, 2]}, "y", "'x' holds no value that can be used"),
    ],
)
def test_tables_that_cannot_be_encoded(frame, target, message):
    with pytest.raises(InputError, match=message):
        Encoding.fit(frame, target)


def column(good, *stray, n=40):
    """n cells in which the strays, with their positions, stand among good ones."""
    cells = [good(i) for i in range(n)]
    for position, text in stray:
        cells[position] = text
    return cells


def day(i):
    return f"2020-01-{1 + i % 28:02}"


@pytest.mark.parametrize(
    ("cells", "parts"),
    [
        (column(str, (7, "n/a"), (8, "?"), (30, "?")), ["'x' holds numbers, except", "'n/a' (row(s) 8), '?' (row(s) 9, 31)."]),
        (column(float, (7, "1,5")), ["'x' holds numbers, except for '1,5' (row(s) 8)"]),
        (column(day, (0, "2020-02-30")), ["'x' holds dates, except for '2020-02-30' (row(s) 1)", "no dates"]),
        (column(str, *((i, f"bad{i}") for i in range(10)), n=200), ["'bad2' (row(s) 3) and 7 other texts"]),
        (column(str, *((3 * i, "?") for i in range(90)), n=300), ["'?' (row(s) 1, 4, 7, 10, 13 and 85 more)"]),
        (["1", None, "2", "3", "4", "x"], ["'x' (row(s) 6)"]),
    ],
    ids=["numbers", "mixed", "dates", "many", "a marker of missing values", "few rows"],
)  # fmt: skip
def test_a_stray_cell_does_not_make_categories_of_numbers(cells, parts):
    for target in ("y", "x"):
        with pytest.raises(InputError) as caught:
            Encoding.fit({"x": cells, "y": cells}, target).targets({"x": cells, "y": cells})
        message = str(caught.value).replace("Column 'y'", "Column 'x'")
        for part in [*parts, "Correct these cells", "counted from 1, below the header"]:
            assert part in message
    assert "leave the column out (--ignore" in message


@pytest.mark.parametrize(
    "cells", [["1", "2", "3+"], ["1", "2", "3", "4", "5+"] * 8, ["12", "12a", "12b"] * 9, column(lambda i: "abc"[i % 3], (4, "7"))]
)  # fmt: skip
def test_categories_may_have_numbers_among_them(cells):
    assert Encoding.fit({"x": cells, "y": cells}, "y").columns[0].kind == "category"


def test_infinite_cells_are_named_by_their_rows():
    encoding = Encoding.fit(FRAME, "y")
    for cells in ([1.0, 2.0, np.inf], ["1", "2", "-inf"]):
        with pytest.raises(
            InputError, match=r"infinite in row\(s\) 13, column\(s\) size; correct or drop.*below the header"
        ):
            encoding.transform({**FRAME, "size": cells}, first=11)
    with pytest.raises(InputError, match=r"target 'y' is infinite in row\(s\) 3; leave these cells empty"):
        encoding.targets({**FRAME, "y": [1.0, np.nan, np.inf]})


def test_columns_of_the_same_name():
    frame = pd.DataFrame([[1, 2, 3]], columns=["x", "x", "y"])
    with pytest.raises(InputError, match="several columns of the same name"):
        Encoding.fit(frame, "y")


def test_a_target_of_text():
    frame = {"x": [1, 2], "y": ["high", "low"]}
    with pytest.raises(InputError, match="'y' holds 'high'; it must be a column of numbers"):
        Encoding.fit(frame, "y").targets(frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hue": ["red", "green", "mauve"]}, r"not seen: green, mauve \(row\(s\) 12, 13\); known are blue, red"),
        ({"size": [1, None, 2]}, r"missing in row\(s\) 12, column\(s\) size"),
        ({"size": [1, "two", 2]}, r"'size' is a number in the model, but holds 'two' \(row\(s\) 12\)"),
        ({"new": ["yes", "True", "no"]}, r"'new' is a boolean in the model, but holds 'yes' \(row\(s\) 11, 13\)"),
    ],
)
def test_errors_name_rows_counted_from_the_first(change, message):
    encoding = Encoding.fit(FRAME, "y")
    with pytest.raises(InputError, match=message):
        encoding.transform({**FRAME, **change}, first=11)


def test_an_absent_column():
    with pytest.raises(InputError, match=r"lacks the column\(s\) hue, new of the model; it has size"):
        Encoding.fit(FRAME, "y").transform({"size": [1]})


def test_ignored_columns():
    encoding = Encoding.fit(FRAME, "y", ignore=["hue"])
    assert encoding.names == ("size", "new")
    with pytest.raises(InputError, match="no column 'colour'"):
        Encoding.fit(FRAME, "y", ignore=["colour"])
