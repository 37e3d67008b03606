"""Rows are checked by name and cell; what does not fit is refused with the feature and the row in the error."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import sqlite3
from typing import NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictor import Feature, RowPolicy, SchemaError
from predictor.schema import RowSchema

NAMES = ("price", "volume", "hour", "side", "venue")
FEATURES = (
    Feature(name="price", model_name="price"),
    Feature(name="volume", model_name="volume", nullable=True),
    Feature(name="hour", model_name="hour", kind="integer"),
    Feature(name="side", model_name="side", kind="category", categories=("buy", "sell"), codes=(0, 1)),
    Feature(
        name="venue", model_name="venue", kind="category", categories=(2, 5), codes=(2, 5), nullable=True
    ),
)
GOOD = {"price": 1.5, "volume": 3, "hour": 9, "side": "sell", "venue": 5}
ENCODED = [1.5, 3.0, 9.0, 1.0, 5.0]
NUMBERS = tuple(Feature(name=name, model_name=name) for name in "abc")


def schema(**policy) -> RowSchema:
    return RowSchema(FEATURES, RowPolicy(**policy))


def numbers(**policy) -> RowSchema:
    return RowSchema(NUMBERS, RowPolicy(**policy))


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        dict(reversed(GOOD.items())),
        list(GOOD.values()),
        tuple(GOOD.values()),
        np.array(list(GOOD.values()), dtype=object),
        pd.Series(GOOD),
        {**GOOD, "price": np.float32(1.5), "volume": np.int64(3), "venue": 5.0},
    ],
    ids=lambda row: type(row).__name__,
)
def test_one_row_in_any_form_gives_the_same_numbers(row):
    assert list(schema().encode_row(row)) == ENCODED


@pytest.mark.parametrize(
    "rows",
    [
        [GOOD, GOOD],
        [list(GOOD.values())] * 2,
        pd.DataFrame([GOOD, GOOD]),
        pd.DataFrame([GOOD, GOOD])[list(reversed(NAMES))],
        pd.DataFrame([GOOD, GOOD]).astype({"side": "category", "volume": "Int64"}),
        pl.DataFrame([GOOD, GOOD]),
        pl.DataFrame([GOOD, GOOD]).select(reversed(NAMES)).with_columns(pl.col("side").cast(pl.Categorical)),
        pa.Table.from_pylist([GOOD, GOOD]),
        np.array(
            [tuple(GOOD.values())] * 2,
            dtype=[("price", "f8"), ("volume", "i8"), ("hour", "i4"), ("side", "U4"), ("venue", "u1")],
        ),
    ],
    ids=[
        "mappings",
        "lists",
        "pandas",
        "pandas reversed",
        "pandas typed",
        "polars",
        "polars reversed",
        "arrow",
        "records",
    ],
)
def test_many_rows_in_any_form_give_the_same_matrix(rows):
    matrix = schema().encode(rows)
    assert matrix.tolist() == [ENCODED, ENCODED]
    assert matrix.dtype == np.float64
    assert matrix.flags.c_contiguous


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"price": None}, "null"),
        ({"price": float("nan")}, "null"),
        ({"price": "1"}, "str, not a number"),
        ({"price": "x"}, "str, not a number"),
        ({"price": True}, "boolean"),
        ({"price": float("inf")}, "infinite"),
        ({"price": -float("inf")}, "infinite"),
        ({"price": 2**53 + 1}, "not exact"),
        ({"price": 10**400}, "larger than any"),
        ({"price": decimal.Decimal("1.5")}, "Decimal, not a number; convert decimal numbers to float"),
        ({"price": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)}, "datetime, not a number"),
        ({"price": np.datetime64("2024-01-01", "ns")}, "datetime64, not a number"),
        ({"price": np.timedelta64(5, "ns")}, "timedelta64, not a number"),
        ({"side": np.datetime64("2024-01-01", "ns")}, "datetime64, not a category"),
        ({"price": 1j}, "complex, not a number"),
        ({"price": [1.0]}, "list, not a number"),
        ({"hour": 9.5}, "whole"),
        ({"side": "hold"}, "'hold' is a category"),
        ({"side": 1}, "1 is a category"),
        ({"side": None}, "null"),
        ({"side": b"buy"}, "bytes, not a category"),
        ({"venue": 3}, "3 is a category"),
        ({"venue": 5.5}, "5.5 is a category"),
        ({"venue": "5"}, "'5' is a category"),
        ({"venue": -0.5}, "-0.5 is a category"),
    ],
    ids=str,
)
def test_cells_that_do_not_fit_are_refused_with_feature_and_row(change, reason):
    bad = GOOD | change
    with pytest.raises(SchemaError, match=reason) as one:
        schema().encode_row(bad)
    with pytest.raises(SchemaError, match=reason) as many:
        schema().encode([GOOD, GOOD, bad])
    (name,) = change
    assert (one.value.feature, one.value.row) == (name, None)
    assert (many.value.feature, many.value.row) == (name, 2)
    assert "row 2: feature" in str(many.value)


@pytest.mark.parametrize(("feature", "sign"), [("price", 1), ("price", -1), ("side", 1), ("venue", 1)])
def test_a_whole_number_too_large_for_python_to_write_is_refused(feature, sign):
    row = GOOD | {feature: sign * 10**5_000}
    for call in (lambda: schema().encode_row(row), lambda: schema().encode([row])):
        with pytest.raises(
            SchemaError, match=r"larger than any float64|a huge whole number is a category"
        ) as caught:
            call()
        assert caught.value.feature == feature


@pytest.mark.parametrize(
    ("value", "reason"), [(float("nan"), "null"), (float("inf"), "infinite"), (-float("inf"), "infinite")]
)
def test_all_float_rows_are_checked_for_nan_and_infinity(value, reason):
    """Rows of plain floats take a fast path, which checks only whether their sum is finite."""
    for place, name in enumerate("abc"):
        row = [1.7e308, 1.7e308, 1.7e308]  # the sum is infinite, though no cell is
        assert list(numbers().encode_row(row)) == row
        row[place] = value
        for call in (numbers().encode_row, lambda row: numbers().encode([row])):
            with pytest.raises(SchemaError, match=f"'{name}': is {reason}"):
                call(row)


def test_missing_extra_and_renamed_features_are_refused():
    with pytest.raises(SchemaError, match="is missing") as caught:
        schema().encode_row({name: GOOD[name] for name in NAMES[:-1]})
    assert caught.value.feature == "venue"
    with pytest.raises(SchemaError, match="is not a feature") as caught:
        schema().encode_row(GOOD | {"colour": 1})
    assert caught.value.feature == "colour"
    renamed = pd.DataFrame([GOOD]).rename(columns={"price": "prize"})
    with pytest.raises(SchemaError, match="'price': is missing"):
        schema().encode(renamed)


@pytest.mark.parametrize("width", [2, 4])
def test_width_of_rows_without_names_is_checked(width):
    for call in (
        numbers().encode_row,
        lambda row: numbers().encode([row]),
        lambda row: numbers().encode(np.array([row])),
    ):
        with pytest.raises(SchemaError, match="for 3 features"):
            call([1.0] * width)


def test_each_policy_option_allows_what_the_default_refuses():
    assert np.isnan(schema(missing="null").encode_row({k: v for k, v in GOOD.items() if k != "venue"})[4])
    with pytest.raises(SchemaError, match="'price': is null"):  # it may be absent, but not null
        schema(missing="null").encode_row({k: v for k, v in GOOD.items() if k != "price"})
    assert schema(extra="ignore").encode_row(GOOD | {"colour": 1}) == ENCODED
    assert np.isnan(schema(null="allow").encode_row(GOOD | {"price": None})[0])
    assert schema(infinite="allow").encode_row(GOOD | {"price": float("inf")})[0] == float("inf")
    assert schema(boolean="number").encode_row(GOOD | {"price": True})[0] == 1.0
    assert schema(large_integer="round").encode_row(GOOD | {"price": 2**53 + 1})[0] == 2.0**53
    unseen = schema(unseen="allow").encode([GOOD | {"side": "hold", "venue": 3.9}, GOOD | {"venue": 10**30}])
    assert unseen[:, 3:].tolist() == [[-1.0, 3.9], [1.0, -1.0]]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"a": 1.0, "b": 2.0, "c": 3.0}, "one mapping is one row"),
        (np.zeros(3), "two dimensions"),
        (np.zeros((1, 1, 3)), "two dimensions"),
        ("abc", "not understood"),
        (7, "not understood"),
        (pd.Series([1.0, 2.0, 3.0]), "type Series are not understood"),
        (pl.Series([1.0, 2.0, 3.0]), "type Series are not understood"),
        ([7], "not understood"),
        (np.zeros((2, 3), dtype=bool), "'a': is a boolean"),
        (np.zeros((2, 3), dtype=complex), "complex"),
        (np.array([["1", "2", "3"]]), "str, not a number"),
        (np.zeros((2, 3), dtype="M8[s]"), "datetime"),
        (pd.DataFrame([[1, 2, 3]], columns=["a", "a", "b"]), "repeated"),
        (pd.DataFrame([[1, 2, 3]]), "'a': is missing"),
        (pd.DataFrame([[1, 2, 3, 4]], columns=["a", "b", 1, "1"]), "a name is repeated: '1'"),
        (pd.DataFrame({"a": ["x"], "b": [1], "c": [2]}), "row 0: feature 'a': is str"),
        (pl.DataFrame({"a": [1, None], "b": [1, 1], "c": [2, 2]}), "row 1: feature 'a': is null"),
        (
            pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [1, 1], "c": [2, 2]}),
            "row 1: feature 'a'",
        ),
        (pa.table({"a": [2**60 + 1, None], "b": [1, 1], "c": [2, 2]}), "not exact"),
    ],
)
def test_tables_that_do_not_fit_are_refused(rows, reason):
    with pytest.raises(SchemaError, match=reason):
        numbers().encode(rows)


@pytest.mark.parametrize(
    "times",
    [
        pd.date_range("2024-01-01", periods=2, unit="ns"),
        np.array([1, 2], dtype="m8[ns]"),
        pl.Series([1, 2]).cast(pl.Datetime("ns")),
        pa.array([1, 2], pa.timestamp("ns")),
        pd.Series(pd.NaT, index=[0, 1]),
    ],
    ids=["pandas", "durations", "polars", "arrow", "not a time"],
)
def test_times_are_refused_and_not_read_as_nanoseconds(times):
    """NumPy converts a time in nanoseconds to a whole number."""
    columns = {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    frame_of = {pl.Series: pl.DataFrame, pa.TimestampArray: pa.table}.get(type(times), pd.DataFrame)
    with pytest.raises(SchemaError, match=r"feature 'c': is \w+, not a number"):
        numbers(null="allow").encode(frame_of({**columns, "c": times}))
    nanoseconds = np.asarray(times).astype("M8[ns]")
    for call in (numbers().encode_row, lambda row: numbers().encode([row])):
        with pytest.raises(SchemaError, match="'a': is datetime64, not a number"):
            call(np.resize(nanoseconds, 3))
    masked = np.ma.MaskedArray(np.resize(nanoseconds, (1, 3)), mask=[[False, True, False]])
    with pytest.raises(SchemaError, match="'a': is datetime64, not a number"):
        numbers(null="allow").encode(masked)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_all_float_frames_are_read_by_name(frame):
    """Such a frame is read as one matrix if its columns have the right names in the right order."""
    columns = {"a": [1.0, 4.0], "b": [2.0, 5.0], "c": [3.0, 6.0]}
    expected = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert numbers().encode(frame(columns)).tolist() == expected
    assert numbers().encode(frame(dict(reversed(columns.items())))).tolist() == expected
    with pytest.raises(SchemaError, match="'c': is missing"):
        numbers().encode(frame({"a": [1.0], "b": [2.0], "d": [3.0]}))


def test_a_defaultdict_does_not_create_missing_features():
    row = collections.defaultdict(float, {"a": 1.0, "b": 2.0, "x": 3.0})
    with pytest.raises(SchemaError, match="'c': is missing"):
        numbers().encode_row(row)
    assert set(row) == {"a", "b", "x"}


def test_a_repeated_name_in_a_row_is_refused():
    with pytest.raises(SchemaError, match="repeated"):
        numbers().encode_row(pd.Series([1.0, 2.0, 3.0, 4.0], index=["a", "b", "c", "c"]))


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", object])
def test_a_masked_cell_is_null_not_the_number_under_the_mask(dtype):
    masked = np.ma.MaskedArray(np.array([[1, 2, 3]], dtype=dtype), mask=[[False, True, False]])
    record = np.ma.MaskedArray(
        [(1, 2, 3)], mask=[(False, True, False)], dtype=[(name, dtype) for name in "abc"]
    )
    for call in (
        lambda: numbers().encode(masked),
        lambda: numbers().encode_row(masked[0]),
        lambda: numbers().encode(record),
    ):
        with pytest.raises(SchemaError, match="'b': is null"):
            call()
    for rows in (masked, record):
        assert np.isnan(numbers(null="allow").encode(rows)).tolist() == [[False, True, False]]


class Permuted(NamedTuple):
    c: float
    b: float
    a: float


def _sqlite_row(names: str) -> sqlite3.Row:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    try:
        row: sqlite3.Row = connection.execute(f"select {names}").fetchone()
        return row
    finally:
        connection.close()


def test_named_tuples_and_sqlite_rows_are_read_by_name():
    for row in (Permuted(c=3.0, b=2.0, a=1.0), _sqlite_row("3.0 as c, 2.0 as b, 1.0 as a")):
        assert list(numbers().encode_row(row)) == [1.0, 2.0, 3.0]
        assert numbers().encode([row]).tolist() == [[1.0, 2.0, 3.0]]
    frame = pd.DataFrame({"c": [3.0], "b": [2.0], "a": [1.0]})
    assert numbers().encode(list(frame.itertuples(index=False))).tolist() == [[1.0, 2.0, 3.0]]
    with pytest.raises(SchemaError, match="'c': is missing"):
        numbers().encode_row(next(frame.rename(columns={"c": "d"}).itertuples(index=False)))
    with pytest.raises(SchemaError, match="repeated"):
        numbers().encode_row(_sqlite_row("1.0 as a, 2.0 as b, 3.0 as b"))


def test_record_arrays_are_read_by_name():
    records = np.array([(3.0, 2.0, 1.0)], dtype=[("c", "f8"), ("b", "f8"), ("a", "f8")])
    for rows in (records, np.ma.MaskedArray(records), records.view(np.recarray)):
        assert numbers().encode(rows).tolist() == [[1.0, 2.0, 3.0]]


def test_a_record_without_dimensions_is_one_row():
    record = np.array((1.0, 2.0, 3.0), dtype=[("c", "f8"), ("b", "f8"), ("a", "f8")])
    for row in (record, record[()], record.view(np.recarray)):
        assert list(numbers().encode_row(row)) == [3.0, 2.0, 1.0]
    with pytest.raises(SchemaError, match="this one has 0; for one row use predict_row"):
        numbers().encode(record)
    with pytest.raises(SchemaError, match="this array has 0"):
        numbers().encode_row(np.ma.array(record, mask=(False, True, False)))


def test_a_column_of_several_values_per_row_is_refused():
    for wide in (
        np.zeros(2, dtype=[("a", "f8"), ("b", "f8"), ("c", "f8", (2,))]),
        pl.DataFrame({"a": [1.0], "b": [2.0], "c": [[3.0]]}, schema_overrides={"c": pl.Array(pl.Float64, 1)}),
    ):
        with pytest.raises(SchemaError, match="'c': has several values per row"):
            numbers().encode(wide)


@pytest.mark.parametrize("dtype", ["Int64", "UInt64", "int64[pyarrow]"])
def test_large_integers_beside_nulls_are_refused_and_not_rounded(dtype):
    """pandas converts such a column to floats and rounds them."""
    frame = pd.DataFrame({"a": pd.array([2**53 + 1, None], dtype=dtype), "b": 1.0, "c": 2.0})
    with pytest.raises(SchemaError, match="row 0: feature 'a': 9007199254740993 is not exact"):
        numbers(null="allow").encode(frame)


def test_columns_without_a_numpy_dtype_are_read_cell_by_cell():
    # Among them a column of text.
    batch = pa.record_batch({name: pa.array([value] * 2) for name, value in GOOD.items()})
    assert schema().encode(batch).tolist() == [ENCODED, ENCODED]
    flags = pa.record_batch({"a": pa.array([True]), "b": pa.array([1.0]), "c": pa.array([1.0])})
    with pytest.raises(SchemaError, match="row 0: feature 'a': is a boolean"):
        numbers().encode(flags)
    wide = pl.DataFrame({"a": [3, 2**70 + 1], "b": 1.0, "c": 2.0}, schema_overrides={"a": pl.Int128})
    assert numbers().encode(wide[:1]).tolist() == [[3.0, 1.0, 2.0]]
    with pytest.raises(SchemaError, match="row 1: feature 'a': 1180591620717411303425 is not exact"):
        numbers().encode(wide)


def test_a_numpy_matrix_is_read_as_an_array():
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1, 2, 3], [4, 5, 6]])
    assert numbers().encode(matrix).tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.sampled_from(NAMES)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=2)), inner, max_size=6),
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_json_value_is_encoded_or_raises_schema_error(anything):
    for policy in (
        {},
        {"unseen": "allow", "null": "allow", "missing": "null", "extra": "ignore", "boolean": "number"},
    ):
        for call in (schema(**policy).encode_row, schema(**policy).encode):
            try:
                encoded = call(anything)
            except SchemaError:
                continue
            assert np.asarray(encoded, dtype=np.float64).size % len(NAMES) == 0


def test_a_polars_lazy_frame_is_refused():
    with pytest.raises(SchemaError, match="LazyFrame are not understood"):
        numbers().encode(pl.LazyFrame({"a": [1.0], "b": [2.0], "c": [3.0]}))


def test_tables_without_rows_are_encoded_as_empty():
    for nothing in ([], np.empty((0, 3)), pd.DataFrame({"a": [], "b": [], "c": []}, dtype=float)):
        assert numbers().encode(nothing).shape == (0, 3)


def test_strides_and_types_are_converted_not_reinterpreted():
    wide = np.arange(24, dtype=np.float64).reshape(4, 6)
    for rows in (
        wide[:, ::2],
        wide[::-1, :3],
        wide.T[:3, :].T,
        wide[:, :3].astype(np.float32),
        wide[:, :3].astype(">f8"),
    ):
        assert numbers().encode(rows).tolist() == np.asarray(rows, dtype=np.float64).tolist()
    assert list(numbers().encode_row(wide[0][::2])) == [0.0, 2.0, 4.0]
    assert list(numbers().encode_row(np.array([0.1, 0.2, 0.3], dtype=np.float32))) == [
        float(np.float32(value)) for value in (0.1, 0.2, 0.3)
    ]


def test_integers_are_not_rounded_to_float32(strict):
    """LightGBM's Python layer casts whole numbers to float32: 876999999 becomes 877000000."""
    model = strict.load()
    whole = [876999999, 1, 2, 3, 4]
    expected = strict.truth(np.array([whole], dtype=np.float64))
    for rows in ([whole], np.array([whole]), np.array([whole], dtype=np.uint64)):
        assert model.encode(rows).tolist() == [[876999999.0, 1.0, 2.0, 3.0, 4.0]]
        assert model.predict(rows) == expected
    with pytest.raises(SchemaError, match="not exact"):
        model.predict(np.array([[2**53 + 1, 1, 2, 3, 4]]))


def test_pandas_categories_are_read_by_label_and_not_by_code():
    """pandas numbers the categories of each frame anew; one row of "sell" alone would become code 0."""
    alone = pd.DataFrame([GOOD]).astype({"side": "category"})
    assert alone["side"].cat.codes.tolist() == [0]
    assert schema().encode(alone).tolist() == [ENCODED]


SIDES = ["sell", None, "buy", "sell"]
LABELLED = {
    "polars": lambda: pl.DataFrame({"side": pl.Series(SIDES, dtype=pl.Categorical)}).to_arrow(),
    "polars enum": lambda: pl.DataFrame(
        {"side": pl.Series(SIDES, dtype=pl.Enum(["sell", "buy"]))}
    ).to_arrow(),
    "pandas": lambda: pa.Table.from_pandas(pd.DataFrame({"side": pd.Categorical(SIDES)})),
    **{
        str(kind): lambda kind=kind: pa.table(
            {"side": pa.DictionaryArray.from_arrays(pa.array([1, None, 0, 1], kind), ["buy", "sell"])}
        )
        for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.uint64())
    },
}


@pytest.mark.parametrize("name", LABELLED)
def test_arrow_dictionaries_with_positions_of_any_type_are_read_by_label(name):
    table = LABELLED[name]()
    side = (FEATURES[3].model_copy(update={"nullable": True}),)
    for rows in (table, table.to_batches()[0], table.slice(1), pa.concat_tables([table, table])):
        told = [[{"buy": 0.0, "sell": 1.0, None: None}[cell]] for cell in rows.column("side").to_pylist()]
        found = RowSchema(side, RowPolicy()).encode(rows)
        assert np.where(np.isnan(found), None, found).tolist() == told


def test_encoding_one_row_rows_and_columns_agree():
    """encode_row has a fast path for plain numbers; encode of a frame never takes it."""

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(
            st.one_of(
                st.floats(),
                st.integers(-(2**60), 2**60),
                st.sampled_from([None, True, "1", float("nan"), 2, 5, 5.5, 1e308]),
            ),
            min_size=3,
            max_size=3,
        )
    )
    def check(cells):
        features = (NUMBERS[0], NUMBERS[1].model_copy(update={"nullable": True}), FEATURES[4])
        both = RowSchema(features, RowPolicy())

        def outcome(call):
            try:
                return repr(list(map(float, call())))
            except SchemaError as error:
                return error.feature, error.reason

        columns = {feature.name: [cell] for feature, cell in zip(features, cells, strict=True)}

        def by_columns():
            return both._checked(both._from_columns(columns))[0]

        def by_rows():
            return both.encode([cells])[0]

        def by_one_row():
            return both.encode_row(cells)

        assert outcome(by_one_row) == outcome(by_rows) == outcome(by_columns)

    check()
