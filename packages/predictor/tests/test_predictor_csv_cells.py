"""CSV cells have the same value whether a column is parsed cell by cell or as a whole."""

from __future__ import annotations

import math

import numpy as np
import pytest

from predictor import Feature, SchemaError
from predictor.cli.cells import CellTable, read_column

NUMBER = Feature(name="x", model_name="x", nullable=True)
PLAIN = [f"{value:.3f}" for value in np.random.default_rng(0).normal(size=50)]


def read(cells, feature=NUMBER, first=0):
    column = CellTable({"x": read_column(cells, "x", feature, first)}, len(cells)).column("x")
    return column.to_pylist()


def one_by_one(cells):
    """Read each cell in a column of four copies, which is too short to be parsed as a whole unless it is plain."""
    return [read([cell] * 4)[0] for cell in cells]


def same(a, b):
    return [(type(x), repr(x)) for x in a] == [(type(x), repr(x)) for x in b]


@pytest.mark.parametrize(
    "cell",
    [
        "-0",
        "-0.0",
        "9007199254740993",
        "-9007199254740993",
        "inf",
        "-Infinity",
        "True",
        "false",
        "1e400",
        "9" * 400,
    ],
)
def test_special_cells_have_the_same_value_in_a_column_as_alone(cell):
    assert same(read([*PLAIN, cell]), one_by_one([*PLAIN, cell]))


@pytest.mark.parametrize("cell", ["", "nan", "NaN", " 7 ", "+5", "1e5", "007", "9007199254740991"])
def test_plain_cells_have_the_same_value_in_a_column_as_alone(cell):
    together, alone = read([*PLAIN, cell]), one_by_one([*PLAIN, cell])
    assert [cell is None or math.isnan(cell) for cell in together] == [
        cell is None or math.isnan(cell) for cell in alone
    ]
    assert together[:-1] == alone[:-1]
    assert together[-1] == alone[-1] or together[-1] is None


@pytest.mark.parametrize("cell", ["1_000", "\u0661\u0662", "x", "0x10", "1,5"])
@pytest.mark.parametrize("cells", [PLAIN, ["1", "2"] * 25], ids=["varied", "repeated"])
def test_cells_that_are_not_numbers_are_refused_with_feature_and_row(cell, cells):
    with pytest.raises(SchemaError, match="is not a number") as refused:
        read([*cells, cell, *cells, cell], first=8_192)
    assert (refused.value.feature, refused.value.row) == ("x", 8_192 + len(cells))


def test_columns_that_are_not_features_keep_whole_numbers_and_text():
    assert same(read(["1", "2.5", "a", ""], feature=None), [1, 2.5, "a", None])


def test_cell_table_converts_selects_and_drops_rows_and_columns():
    table = CellTable({"x": np.array([1.0, math.nan, 3.0]), "label": ["a", "b", "c"]}, 3)
    assert table.column_names == ["x", "label"]
    assert table.to_pylist() == [
        {"x": 1.0, "label": "a"},
        {"x": None, "label": "b"},
        {"x": 3.0, "label": "c"},
    ]
    assert table.take(np.array([2, 0])).to_pylist() == [{"x": 3.0, "label": "c"}, {"x": 1.0, "label": "a"}]
    assert table.drop_columns({"x"}).to_pylist() == [{"label": "a"}, {"label": "b"}, {"label": "c"}]
    assert table.drop_columns({"x", "label"}).to_pylist() == [{}, {}, {}]
    with pytest.raises(KeyError):
        table.column("y")


def category(*labels):
    return Feature(name="x", model_name="x", kind="category", categories=labels, codes=range(len(labels)))


@pytest.mark.parametrize(
    ("labels", "cell", "value"),
    [
        ((0, 1, 2), "-1", -1),  # an encoder's unknown, a missing value to LightGBM
        ((0, 1, 2), "-1.0", -1.0),
        ((0, 1, 2), "7", 7),
        ((0, 1, 2), "2.0", 2),
        ((0, 1, 2), "nan", math.nan),
        ((0, 1), "True", True),
        ((0, 1), "false", False),
        ((0, 1), "x", "x"),
        (("nan", "True"), "nan", "nan"),
        (("nan", "True"), "True", "True"),
        (("0", "1"), "-1", "-1"),
        (("0", "1"), "true", "true"),
        ((1, "a"), "1.0", 1),
    ],
)
def test_a_cell_of_a_category_is_its_label_or_what_python_would_send(labels, cell, value):
    assert same(read([cell], category(*labels)), [value])


@pytest.mark.parametrize("labels", [(1, "1"), ("a", 2.5, "2.5")])
def test_a_cell_that_means_two_labels_is_refused(labels):
    with pytest.raises(
        SchemaError, match=r"row 3: feature 'x': .* can be the label .* or '.*'; use JSON lines"
    ):
        read([str(labels[-1])], category(*labels), first=3)
