"""Plain arrays that are not too large are predicted by one call of the C extension, others are left to the schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from predictor import Model, RowPolicy, write_manifest
from predictor.errors import SchemaError

pytest.importorskip("predictor._kernel", reason="the extension is not built")


class ArraySubclass(np.ndarray):
    """A subclass of array, which the extension does not take for an array."""


@pytest.fixture(autouse=True)
def _with_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)


def in_one_call(model: Model, rows: Any) -> np.ndarray | None:
    assert model._plain_matrix is not None
    return model._plain_matrix(rows)


def by_parts(model: Model, rows: Any) -> np.ndarray:
    return model.predict_encoded(model.encode(rows))


@pytest.mark.parametrize(
    "name", ["regression", "binary_missing", "categories_missing", "multiclass", "poisson"]
)
@pytest.mark.parametrize("n", [0, 1, 12, 13, 64, 300])
def test_small_array_is_predicted_in_one_call_with_the_same_bits(name, n, trained):
    subject = trained(name)
    model = subject.load()
    answers = in_one_call(model, subject.rows[:n])
    assert answers is not None
    assert answers.dtype == np.float64
    expected = by_parts(model, subject.rows[:n])
    assert answers.shape == expected.shape
    assert answers.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert model.predict(subject.rows[:n]).tobytes() == answers.tobytes()


OTHER_ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "one dimension": lambda rows: rows[0],
    "three dimensions": lambda rows: rows[None],
    "three dimensions, the second as wide as a row": lambda rows: rows[:, :, None],
    "too narrow": lambda rows: np.ascontiguousarray(rows[:, 1:]),
    "too wide": lambda rows: np.ascontiguousarray(np.concatenate([rows, rows], axis=1)),
    "float32": lambda rows: rows.astype(np.float32),
    "whole numbers": lambda rows: rows.astype(np.int64),
    "other byte order": lambda rows: rows.astype(">f8"),
    "Fortran order": np.asfortranarray,
    "every other row": lambda rows: rows[::2],
    "masked": np.ma.masked_array,
    "subclass": lambda rows: rows.view(ArraySubclass),
    "objects": lambda rows: rows.astype(object),
    "dates": lambda rows: rows.astype("datetime64[s]"),
    "list": lambda rows: rows.tolist(),
    "not aligned": lambda rows: np.frombuffer(b"." + rows.tobytes(), dtype=np.float64, offset=1).reshape(
        rows.shape
    ),
}


REFUSED = {
    "one dimension",
    "three dimensions",
    "three dimensions, the second as wide as a row",
    "too narrow",
    "too wide",
    "dates",
}


@pytest.mark.parametrize("kind", OTHER_ARRAYS)
def test_other_kinds_of_rows_are_left_to_the_schema(kind, trained):
    subject = trained("regression")
    model = subject.load()
    rows = OTHER_ARRAYS[kind](subject.rows[:6].round())
    assert in_one_call(model, rows) is None
    if kind in REFUSED:
        with pytest.raises(SchemaError):
            model.predict(rows)
    else:
        assert np.array_equal(model.predict(rows), by_parts(model, rows))


@pytest.mark.parametrize("cell", [np.nan, np.inf, -np.inf])
def test_array_with_a_cell_that_the_policy_refuses_is_left_to_the_schema(cell, train_model):
    model = train_model("strict", {"objective": "regression"}, policy=RowPolicy()).load()
    rows = np.ones((4, 5))
    assert in_one_call(model, rows) is not None
    rows[2, 3] = cell
    assert in_one_call(model, rows) is None
    with pytest.raises(SchemaError, match="row 2"):
        model.predict(rows)


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_one_refused_cell_is_found_at_any_place_of_an_array(rows, train_model):
    model = train_model("strict", {"objective": "regression"}, policy=None).load()
    for place in np.ndindex(rows, 5):
        matrix = np.zeros((rows, 5))
        assert in_one_call(model, matrix) is not None
        matrix[place] = np.nan
        assert in_one_call(model, matrix) is None, place


def test_array_of_too_many_rows_is_left_to_python(trained):
    subject = trained("regression")
    model = subject.load()
    most = model._runtime.kernel.most_rows(1_000_000)
    rows = np.resize(subject.rows, (most + 1, 5))
    assert in_one_call(model, rows[:most]) is not None
    assert in_one_call(model, rows) is None
    assert np.array_equal(model.predict(rows)[:most], model.predict(rows[:most]))


def test_categories_named_by_labels_are_left_to_the_schema(trained, tmp_path):
    subject = trained("binary_categories")
    path = tmp_path / "labels.txt"
    path.write_bytes(subject.path.read_bytes())
    frame = pd.DataFrame(subject.rows, columns=list("abcde"))
    labels = [f"kind {code}" for code in range(12)]
    frame["e"] = pd.Categorical.from_codes(frame["e"].astype(int), categories=labels)
    write_manifest(path, frame, name="labels", version="1", classes=("no", "yes"), categories={"e": labels})
    model = Model.load(path)
    assert in_one_call(model, np.ones((2, 5))) is None
    assert np.array_equal(model.predict(frame[:5]), subject.load().predict(subject.rows[:5]))
