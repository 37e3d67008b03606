"""The C extension reads plain cells with the same result as the schema, and leaves all others to the schema."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from predictor.errors import SchemaError
from predictor.manifest import Feature, RowPolicy
from predictor.schema import RowSchema

_kernel = pytest.importorskip("predictor._kernel", reason="the extension is not built")

FEATURES = (
    Feature(name="plain", model_name="a"),
    Feature(name="nullable", model_name="b", nullable=True),
    Feature(name="whole", model_name="c", kind="integer"),
    Feature(name="label", model_name="d", kind="category", categories=("x", "y", 3), codes=(0, 2, 5)),
    Feature(
        name="code", model_name="e", kind="category", categories=(0, 1, 7), codes=(0, 1, 7), nullable=True
    ),
)
NAMES = tuple(feature.name for feature in FEATURES)
POLICIES = [
    RowPolicy(),
    RowPolicy(null="allow", infinite="allow", unseen="allow", boolean="number", large_integer="round"),
    RowPolicy(null="allow"),
]


class FloatSubclass(float):
    """A subclass of float, which the extension does not take for a plain float."""


CELL = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 9),
    st.sampled_from(
        ["x", "y", "z", None, True, False, 3.0, 7.0, 2**53, 2**53 + 1, -0.0, FloatSubclass(1.0), b"x", 1j]
    ),
    st.sampled_from([np.float64(1.5), np.int64(3), np.float32(0.1)]),
)


@pytest.fixture(autouse=True)
def _with_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)


def outcome(schema: RowSchema, row: Any) -> Any:
    """The encoded row as bytes, or the message of the error."""
    try:
        return np.array(schema.encode_row(row), dtype=np.float64).tobytes()
    except SchemaError as error:
        return str(error)


EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "400"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(cells=st.lists(CELL, min_size=5, max_size=5), policy=st.sampled_from(POLICIES))
@example(cells=[1.0, None, 2.0, "y", 7], policy=RowPolicy())
@example(cells=[1.0, math.nan, 2.5, "y", 7], policy=RowPolicy())
@example(cells=[2**53 + 1, math.nan, 2, 3.0, math.nan], policy=RowPolicy())
def test_rows_read_in_c_equal_rows_read_by_the_schema(cells, policy):
    os.environ.pop("PREDICTOR_ENGINE", None)
    schema = RowSchema(FEATURES, policy)
    for row in (cells, tuple(cells), dict(zip(NAMES, cells, strict=True))):
        out = np.zeros((1, 5))
        if schema.cells.rows([row], out, 0) == 1:
            nan_is_nan = np.where(np.isnan(out), np.nan, out)
            expected = outcome(schema, row)
            assert isinstance(expected, bytes), expected
            numbers = np.frombuffer(expected)
            assert np.where(np.isnan(numbers), np.nan, numbers).tobytes() == nan_is_nan.tobytes()


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, CELL, CELL, CELL, CELL), min_size=1, max_size=3),
    policy=st.sampled_from(POLICIES),
)
@example(rows=[(1.0, None, 2, "y", 7), (math.inf, math.nan, 3.0, 3, 0)], policy=POLICIES[1])
@example(rows=[(1.0, 2.0, 2.5, "y", 7)], policy=RowPolicy())
def test_encoding_by_column_equals_encoding_by_row(rows, policy):
    """A cell has the same value in a column, given as list or array, as in a row."""
    os.environ.pop("PREDICTOR_ENGINE", None)
    schema = RowSchema(FEATURES, policy)
    try:
        expected = schema.encode(list(map(list, rows))).tobytes()
    except SchemaError:
        expected = None
    columns = [list(column) for column in zip(*rows, strict=True)]
    objects = [np.empty(len(rows), dtype=object) for _ in columns]
    for array, column in zip(objects, columns, strict=True):
        array[:] = column
    for by_column in (columns, objects):
        try:
            got = schema.encode_columns(dict(zip(NAMES, by_column, strict=True))).tobytes()
        except SchemaError:
            got = None
        assert got == expected


NUMBERS = st.one_of(
    st.floats(), st.integers(-3, 9).map(float), st.sampled_from([math.nan, math.inf, -0.0, 0.5, 1e300])
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=9),
    policy=st.sampled_from(POLICIES),
)
@example(rows=[[1.0, 2.0, 7.0]], policy=RowPolicy())
@example(rows=[[1.0, 2.0, 1e300]], policy=RowPolicy())
def test_encoding_an_array_equals_encoding_its_rows(rows, policy):
    os.environ.pop("PREDICTOR_ENGINE", None)
    schema = RowSchema((FEATURES[0], FEATURES[2], FEATURES[4]), policy)
    try:
        expected = schema.encode(rows)
    except SchemaError:
        expected = None
    try:
        got = schema.encode(np.array(rows))
    except SchemaError:
        got = None
    assert (got is None) == (expected is None)
    if got is not None:  # by value: category -0.0 is category 0
        assert np.array_equal(got, expected, equal_nan=True)


def test_plain_columns_and_arrays_are_read_without_calling_python(monkeypatch):
    schema = RowSchema(FEATURES, RowPolicy())

    def fail(*_: Any) -> Any:
        raise AssertionError("a cell was read by Python")

    monkeypatch.setattr(type(schema._rules), "number", fail)
    columns = {"plain": [1.0, 2], "nullable": [None, math.nan], "whole": np.arange(2), "label": ("x", 3)}
    read = schema.encode_columns(columns | {"code": np.array([7.0, math.nan])})
    assert np.array_equal(read, [[1, math.nan, 0, 0, 7], [2, math.nan, 1, 5, math.nan]], equal_nan=True)
    numbers = RowSchema(FEATURES[:3], RowPolicy())
    array = np.array([[1.0, math.nan, 3.0]])
    assert numbers.encode(array) is array
    monkeypatch.undo()
    with pytest.raises(SchemaError, match="whole number"):
        numbers.encode(np.array([[1.0, math.nan, 3.5]]))


def test_plain_rows_are_read_in_c():
    schema = RowSchema(FEATURES, RowPolicy())
    plain = [
        [1.0, None, 3, "x", 7],
        (-2, math.nan, 4.0, 3, 1.0),
        {"code": 0, "label": "y", "whole": -5, "nullable": 1e300, "plain": 2**53},
    ]
    out = np.zeros((3, 5))
    assert schema.cells.rows(plain, out, 0) == 3
    assert out[0].tolist()[2:] == [3.0, 0.0, 7.0]
    assert out[2].tolist() == [2.0**53, 1e300, -5.0, 2.0, 0.0]


@pytest.mark.parametrize(
    "row",
    [
        [1.0, 1.0, 1.5, "x", 7],  # not whole
        [None, 1.0, 1, "x", 7],  # not nullable
        [math.inf, 1.0, 1, "x", 7],
        [2**53 + 1, 1.0, 1, "x", 7],
        [True, 1.0, 1, "x", 7],
        ["1", 1.0, 1, "x", 7],
        [1.0, 1.0, 1, "z", 7],  # unseen
        [1.0, 1.0, 1, True, 7],
        [1.0, 1.0, 1, ["x"], 7],  # cannot be looked up
        [1.0, 1.0, 1, "x"],
        {"plain": 1.0},
        {"plain": 1.0, "nullable": 1.0, "whole": 1, "label": "x", "kode": 7},
        np.ones((1, 5)),
        np.ones(5, dtype="datetime64[ns]"),
        np.ones(5, dtype=">f8"),
        np.ma.masked_array(np.ones(5), mask=[1, 0, 0, 0, 0]),
        "abcde",
        None,
    ],
    ids=repr,
)
def test_rows_with_other_than_plain_cells_are_left_to_the_schema(row):
    schema = RowSchema(FEATURES, RowPolicy())
    assert schema.cells.rows([row], np.zeros((1, 5)), 0) == 0


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "int32", "uint8"])
def test_strided_array_rows_of_each_dtype_are_read_in_c(dtype):
    features = [Feature(name=name, model_name=name) for name in "abc"]
    schema = RowSchema(features, RowPolicy())
    array = np.arange(12).reshape(2, 6).astype(dtype)[:, ::2]
    out = np.zeros((2, 3))
    assert schema.cells.rows(list(array), out, 0) == 2
    assert np.array_equal(out, array)


def test_invalid_buffers_and_indices_raise_value_error():
    schema = RowSchema(FEATURES, RowPolicy())
    for out in (np.zeros(7), np.zeros(41, np.uint8)[1:]):
        with pytest.raises(ValueError, match="whole rows of aligned float64"):
            schema.cells.rows([[1.0, 1.0, 1, "x", 7]], out, 0)
    with pytest.raises(ValueError, match="start must not be negative"):
        schema.cells.rows([], np.zeros((1, 5)), -1)
    for feature in (-1, 5):
        with pytest.raises(ValueError, match="feature must be from 0"):
            schema.cells.column([1.0], feature, np.zeros((1, 5)))
    for matrix in (np.zeros(7), np.zeros(41, np.uint8)[1:]):
        with pytest.raises(ValueError, match="whole rows of aligned float64"):
            schema.cells.plain(matrix)


def test_a_key_whose_comparison_empties_the_rows_does_not_crash():
    schema = RowSchema([Feature(name=name, model_name=name) for name in "ab"], RowPolicy())
    rows: list[Any] = []

    class Name(str):
        __slots__ = ()

        def __eq__(self, other):
            rows.clear()
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    rows.extend([{Name("a"): 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}])
    assert schema.cells.rows(rows, np.zeros((2, 2)), 0) in (0, 1)
    assert rows == []  # the key was compared
