"""Labels, names and classes that a model file does not record are required or refused, never guessed."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import predictor
from predictor import (
    Feature,
    GoldenRowMismatch,
    Manifest,
    ManifestError,
    Model,
    ModelTextError,
    RowPolicy,
    SchemaError,
    Unsupported,
    sha256_of,
    write_manifest,
)
from predictor._cell_rules import CellRules
from predictor._objectives import most_probable
from predictor.schema import RowSchema

SETTINGS = {"verbose": -1, "num_threads": 1, "min_data_per_group": 5, "min_data_in_leaf": 5}


def saved(path: Path, data: lgb.Dataset, rounds: int = 10, **settings) -> lgb.Booster:
    """Train on *data*, save the model at *path*, and return the booster."""
    booster = lgb.train({**SETTINGS, **settings}, data, rounds)
    booster.save_model(path)
    return booster


def load_without_manifest(path: Path) -> Model:
    """Load a file that has no manifest."""
    return Model.load(path, sha256=sha256_of(path.read_bytes()))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


# Labels and codes


@pytest.fixture
def without_labels(tmp_path, rng):
    """A model of a pandas category with the labels 1, 2, 3 (codes 0, 1, 2), whose file has lost the labels."""
    kind = rng.integers(1, 4, 600)
    frame = pd.DataFrame({"kind": pd.Categorical(kind), "x": rng.normal(size=600)})
    path = tmp_path / "m.txt"
    booster = saved(path, lgb.Dataset(frame, frame["x"] + np.array([0.0, 5.0, -3.0])[kind - 1]))
    text = path.read_bytes()
    path.write_bytes(text[: text.index(b"\npandas_categorical")] + b"\n")
    return path, frame, booster.predict(frame, num_threads=1)


FRAMES = {
    "pandas": lambda frame: frame,
    "polars": lambda frame: pl.DataFrame({"kind": frame["kind"].astype(str), "x": frame["x"]}).cast(
        {"kind": pl.Categorical}
    ),
    "arrow": lambda frame: pa.table(
        {"kind": pa.array(frame["kind"].astype(int)).dictionary_encode(), "x": frame["x"]}
    ),
}


@pytest.mark.parametrize("form", FRAMES)
def test_category_labels_are_not_read_as_codes(without_labels, form):
    path, frame, expected = without_labels
    rows = FRAMES[form](frame)
    with pytest.raises(SchemaError, match=r"'kind': is a category column.*categories=") as caught:
        write_manifest(path, rows, name="m", version="1")
    assert caught.value.feature == "kind"
    with pytest.raises(SchemaError, match=r"'kind': is a category column"):
        load_without_manifest(path).predict(rows)
    assert not path.with_name("m.txt.manifest.json").exists()
    labels = ["1", "2", "3"] if form == "polars" else [1, 2, 3]
    write_manifest(path, rows, name="m", version="1", categories={"kind": labels}, expected=expected)
    assert Model.load(path).predict(rows).tolist() == expected.tolist()


def test_labels_equal_to_the_codes_need_no_categories_argument(tmp_path, rng):
    kind = rng.integers(0, 3, 300)
    frame = pd.DataFrame({"kind": kind, "x": rng.normal(size=300)})
    path = tmp_path / "m.txt"
    booster = saved(path, lgb.Dataset(frame, frame["x"] + 3 * (kind == 1), categorical_feature=["kind"]))
    expected = booster.predict(frame, num_threads=1).tolist()
    typed = frame.astype({"kind": "category"})
    write_manifest(path, typed, name="m", version="1", expected=expected)
    assert Model.load(path).predict(typed).tolist() == expected


def test_a_sample_of_mostly_unseen_codes_is_refused(without_labels):
    path, frame, _ = without_labels
    rows = frame.assign(kind=frame["kind"].astype(int) * 10)
    with pytest.raises(
        ManifestError, match=r"'kind': most sample rows .* such as \d+; .*categories=.*expected="
    ):
        write_manifest(path, rows, name="m", version="1")
    few = pd.concat([frame.assign(kind=1)] * 3 + [rows], ignore_index=True)
    assert write_manifest(path, few, name="m", version="1").features[0].codes == (0, 1, 2, 10, 20, 30)


@pytest.mark.parametrize("form", [list, np.asarray, lambda answers: np.column_stack([answers])])
def test_write_manifest_compares_predictions_with_the_expected_answers(without_labels, form):
    path, frame, expected = without_labels
    codes = frame.assign(kind=frame["kind"].cat.codes)
    write_manifest(path, codes, name="m", version="1", expected=form(expected))
    path.with_name("m.txt.manifest.json").unlink()
    for rows, reason in (
        (
            frame.assign(kind=frame["kind"].astype(int)),
            r"of 600 sample rows have another answer than expected",
        ),
        (codes.assign(kind=0), "check categories, names and the order of columns"),
    ):
        with pytest.raises(GoldenRowMismatch, match=reason):
            write_manifest(path, rows, name="m", version="1", expected=form(expected))
    last = expected.copy()
    last[-1] = np.nextafter(last[-1], np.inf)
    with pytest.raises(GoldenRowMismatch, match=r"1 of 600 sample rows .* first row 599"):
        write_manifest(path, codes, name="m", version="1", expected=last)
    with pytest.raises(ManifestError, match="expected has the shape"):
        write_manifest(path, codes, name="m", version="1", expected=expected[:-1])
    with pytest.raises(ManifestError, match=r"expected must be .* an array of numbers"):
        write_manifest(path, codes, name="m", version="1", expected=["yes"] * 600)
    assert not path.with_name("m.txt.manifest.json").exists()


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")  # of LightGBM 4.6
@pytest.mark.parametrize("classes", [2, 3])
def test_expected_answers_may_be_the_probabilities_of_a_classifier(tmp_path, rng, classes):
    x = rng.normal(size=(300, 3))
    y = np.digitize(x[:, 0], np.linspace(-0.5, 0.5, classes - 1))
    model = lgb.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(x, y)
    path = tmp_path / "m.txt"
    model.booster_.save_model(path)
    proba = model.predict_proba(x, num_threads=1)
    write_manifest(path, x, name="m", version="1", classes=model.classes_, expected=proba)
    assert Model.load(path).predict_proba(x).tolist() == proba.tolist()
    assert Model.load(path).predict_label(x).tolist() == model.predict(x).tolist()
    with pytest.raises(GoldenRowMismatch):
        write_manifest(path, x, name="m", version="1", expected=proba[:, ::-1])


@pytest.mark.parametrize("value", [-1, -1.0, -7, -3.5, None])
def test_negative_codes_are_missing_values_as_in_lightgbm(tmp_path, rng, value):
    kind = rng.integers(-1, 4, 600).astype(float)
    x = np.column_stack([kind, rng.normal(size=600)])
    path = tmp_path / "m.txt"
    booster = saved(path, lgb.Dataset(x, x[:, 1] + 4 * (kind == 2) - 3 * (kind < 0), categorical_feature=[0]))
    expected = booster.predict(x, num_threads=1)
    made = write_manifest(path, x, name="m", version="1", expected=expected)
    assert (made.features[0].codes, made.features[0].nullable) == ((0, 1, 2, 3), True)
    model = Model.load(path)
    asked = np.array([[np.nan if value is None else value, 0.5]])
    answer = booster.predict(asked, num_threads=1).tolist()
    rows = [[value, 0.5]]
    names = made.features[0].name, made.features[1].name
    frame = pd.DataFrame(rows, columns=names)
    for many in (
        rows,
        np.array(rows, dtype=float),
        frame,
        pl.from_pandas(frame),
        [dict(zip(names, *rows, strict=True))],
    ):
        assert model.predict(many).tolist() == answer
    assert model.predict_row(rows[0]).tolist() == answer
    strict = Model.from_bytes(
        model.data,
        manifest=made.model_copy(
            update={
                "features": (made.features[0].model_copy(update={"nullable": False}), made.features[1]),
                "golden": (),
            }
        ),
    )
    with pytest.raises(SchemaError, match="is null"):
        strict.predict(rows)


# Files of other versions and systems


def test_windows_line_ends_are_accepted_in_the_last_line_only(without_labels, tmp_path):
    path, frame, expected = without_labels
    windows = tmp_path / "windows.txt"
    windows.write_bytes(path.read_bytes().rstrip(b"\n") + b"\n\r\npandas_categorical:[[1, 2, 3]]\r\n")
    write_manifest(windows, frame, name="m", version="1", expected=expected)
    model = Model.load(windows)
    assert model.info.categories == {"kind": (1, 2, 3)}
    assert model.info.sha256 == sha256_of(windows.read_bytes())
    whole = windows.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    with pytest.raises(ModelTextError, match="carriage returns"):
        Model.from_bytes(whole, sha256=sha256_of(whole))


@pytest.mark.parametrize("second", ["one category", "as a number"])
def test_a_model_continued_on_other_data_predicts_like_lightgbm(tmp_path, rng, second):
    kind = rng.integers(0, 6, 600)
    x = np.column_stack([kind, rng.normal(size=600)])
    y = x[:, 1] + np.array([0, 4, -3, 2, 7, -5])[kind]
    first = lgb.train(SETTINGS, lgb.Dataset(x, y, categorical_feature=[0]), 5)
    rows = kind == 2 if second == "one category" else kind >= 0
    columns = [0] if second == "one category" else "auto"
    data = lgb.Dataset(x[rows], y[rows], categorical_feature=columns)
    booster = lgb.train(SETTINGS, data, 5, init_model=first)
    path = tmp_path / "m.txt"
    booster.save_model(path)
    assert re.search(r"^feature_infos=(none|\[0:5\]) ", path.read_text(), re.MULTILINE)
    expected = booster.predict(x, num_threads=1)
    write_manifest(path, x, name="m", version="1", expected=expected)
    assert Model.load(path).predict(x).tolist() == expected.tolist()
    assert sorted(Model.load(path).info.categories["Column_0"]) == list(range(6))


@pytest.mark.parametrize("number", [7, 7.5, -3, -0.5, 2.5, 2**53, -(2**40), 1e300])
def test_an_unseen_number_is_passed_as_it_is_where_training_read_the_column_both_ways(tmp_path, rng, number):
    x = np.column_stack([rng.integers(0, 6, 600), rng.normal(size=600)])
    y = x[:, 1] + np.array([0, 4, -3, 2, 7, -5])[x[:, 0].astype(int)]
    first = lgb.train(SETTINGS, lgb.Dataset(x, y), 5)  # as a number
    booster = lgb.train(SETTINGS, lgb.Dataset(x, y, categorical_feature=[0]), 5, init_model=first)
    path = tmp_path / "m.txt"
    booster.save_model(path)
    made = write_manifest(path, x, name="m", version="1", policy=RowPolicy(unseen="allow"))
    model, names = Model.load(path), [feature.name for feature in made.features]
    answer = booster.predict(np.array([[number, 0.5]], dtype=float), num_threads=1).tolist()
    frame = pd.DataFrame([[number, 0.5]], columns=names)
    rows = [[number, 0.5]]
    for many in (rows, np.array(rows, dtype=float), frame, [dict(zip(names, *rows, strict=True))]):
        assert model.predict(many).tolist() == answer
    assert model.predict_row(rows[0]).tolist() == answer
    with pytest.raises(SchemaError, match="is str, not a number"):
        model.predict([["seven", 0.5]])
    write_manifest(path, x, name="m", version="1")
    with pytest.raises(SchemaError, match="a category that training did not have"):
        Model.load(path).predict(rows)


def test_an_unseen_label_is_missing_where_training_read_a_pandas_category_both_ways(tmp_path, rng):
    kind = rng.integers(0, 6, 600)
    frame = pd.DataFrame({"kind": pd.Categorical(kind), "x": rng.normal(size=600)})
    y = frame["x"] + np.array([0, 4, -3, 2, 7, -5])[kind]
    ordered = frame.assign(kind=frame["kind"].cat.as_ordered())
    first = lgb.train(SETTINGS, lgb.Dataset(ordered, y), 5)  # the codes as numbers
    booster = lgb.train(SETTINGS, lgb.Dataset(frame, y), 5, init_model=first)
    path = tmp_path / "m.txt"
    booster.save_model(path)
    write_manifest(path, frame, name="m", version="1", policy=RowPolicy(unseen="allow", null="allow"))
    asked = pd.DataFrame({"kind": pd.Categorical([7], categories=range(8)), "x": [0.5]})
    answer = booster.predict(asked, num_threads=1).tolist()
    assert Model.load(path).predict(asked).tolist() == answer
    assert Model.load(path).predict([[7, 0.5]]).tolist() == answer


def test_format_v3_is_loaded_and_v2_is_refused_with_a_remedy(trained):
    text = trained("binary").path.read_bytes()
    old = text.replace(b"version=v4", b"version=v3").replace(b"feature_importances:", b"feature importances:")
    assert old != text
    rows = trained("binary").rows
    model = Model.from_bytes(old, sha256=sha256_of(old))
    assert model.predict(rows).tolist() == trained("binary").truth(rows).tolist()
    v2 = text.replace(b"version=v4", b"version=v2")
    with pytest.raises(ModelTextError, match=r"version 'v2'.*Booster\(model_file=\.\.\.\)\.save_model"):
        Model.from_bytes(v2, sha256=sha256_of(v2))


def test_text_given_to_lightgbm_omits_unused_lines_and_predicts_the_same(any_model):
    from predictor._model_file import parse_model_text

    parsed = parse_model_text(any_model.path.read_bytes())
    text = parsed.lightgbm_text()
    again = lgb.Booster(model_str=text.decode())
    rows = any_model.rows
    assert again.predict(rows, num_threads=1).tolist() == any_model.truth(rows).tolist()
    given = {re.split(rb"[=:]", line)[0] for line in text.split(b"\n")}
    assert not given & {
        b"leaf_weight",
        b"internal_value",
        b"internal_weight",
        b"pandas_categorical",
        b"[boosting",
    }
    assert b"feature_names=f0 f1" in text
    head = parsed.first(2).lightgbm_text()
    fewer = lgb.Booster(model_str=head.decode()).predict(rows, num_threads=1)
    assert fewer.tolist() == any_model.truth(rows, num_iteration=2).tolist()


def test_parsed_trees_equal_dump_model(any_model):
    from predictor._model_file import parse_model_text

    trees = parse_model_text(any_model.path.read_bytes()).trees
    assert len(trees) == any_model.booster.num_trees()

    def walk(tree: int, node: int, told: dict) -> None:
        if node < 0:
            leaf = trees.leaf_start[tree] + ~node
            assert trees.leaf_value[leaf] == told["leaf_value"]
            assert trees.leaf_count[leaf] == told.get("leaf_count", 0)
            return
        at = trees.node_start[tree] + node
        assert trees.split_feature[at] == told["split_feature"]
        assert trees.split_gain[at] == pytest.approx(told["split_gain"], rel=1e-5)
        assert trees.internal_count[at] == told["internal_count"]
        assert bool(trees.decision_type[at] & 2) == told["default_left"]
        if told["decision_type"] == "==":
            words = trees.category_words[trees.category_start[at] :][: trees.category_size[at]]
            bits = {32 * w + b for w, word in enumerate(words.tolist()) for b in range(32) if word >> b & 1}
            assert bits == set(map(int, told["threshold"].split("||")))
        else:
            assert trees.category_size[at] == 0
            assert trees.threshold[at] == pytest.approx(told["threshold"], rel=1e-15)
        walk(tree, trees.left_child[at], told["left_child"])
        walk(tree, trees.right_child[at], told["right_child"])

    for tree, told in enumerate(any_model.booster.dump_model()["tree_info"]):
        walk(tree, 0 if told["num_leaves"] > 1 else -1, told["tree_structure"])


# Values of the sample


NULLABLE = {"x": [1.5, None, 3.0], "n": [1, 2, None], "b": [True, None, False]}
NULLABLE_TABLES = [
    pd.DataFrame(NULLABLE).astype({"x": "Float64", "n": "Int64", "b": "boolean"}),
    pd.DataFrame(NULLABLE).astype({"x": "double[pyarrow]", "n": "int64[pyarrow]", "b": "bool[pyarrow]"}),
    pd.DataFrame(NULLABLE).astype({"x": float, "n": "Int64", "b": object}),
    pl.DataFrame(NULLABLE),
    pa.table(NULLABLE),
    np.array([[1.5, 1, True], [None, 2, None], [3.0, None, False]], dtype=object),
]


@pytest.mark.parametrize(
    "rows", NULLABLE_TABLES, ids=["masked", "arrow in pandas", "objects", "polars", "arrow", "matrix"]
)
def test_columns_with_nulls_and_booleans_are_not_read_cell_by_cell(rows, monkeypatch):
    features = tuple(Feature(name=name, model_name=name, nullable=True) for name in NULLABLE)
    schema = RowSchema(features, RowPolicy(boolean="number"))
    if schema.cells is None:
        pytest.skip("the extension is not built")
    monkeypatch.setattr(CellRules, "number", lambda *_: pytest.fail("a cell was read on its own"))
    expected = [[1.5, 1, 1], [math.nan, 2, math.nan], [3, math.nan, 0]]
    assert np.array_equal(schema.encode(rows), expected, equal_nan=True)


def test_boolean_columns_are_read_as_arrays_or_refused_by_the_policy(monkeypatch):
    features = (Feature(name="b", model_name="b"),)
    rows = pd.DataFrame({"b": [True, False]})
    with pytest.raises(SchemaError, match="is a boolean"):
        RowSchema(features, RowPolicy()).encode(rows)
    monkeypatch.setattr(CellRules, "number", lambda *_: pytest.fail("a cell was read on its own"))
    assert RowSchema(features, RowPolicy(boolean="number")).encode(rows).tolist() == [[1.0], [0.0]]


def test_a_sample_with_booleans_gives_a_policy_that_allows_them(tmp_path, rng):
    frame = pd.get_dummies(pd.DataFrame({"x": rng.normal(size=300), "kind": rng.choice(list("abc"), 300)}))
    assert frame["kind_b"].dtype == bool
    path = tmp_path / "m.txt"
    expected = saved(path, lgb.Dataset(frame, frame["x"] + 2 * frame["kind_b"])).predict(frame, num_threads=1)
    made = write_manifest(path, frame, name="m", version="1", expected=expected)
    assert made.policy == RowPolicy(boolean="number")
    model = Model.load(path)
    for rows in (frame, pl.from_pandas(frame), pa.Table.from_pandas(frame), frame.to_dict("records")):
        assert model.predict(rows).tolist() == expected.tolist()
    assert model.predict_row(frame.iloc[0]).tolist() == expected[:1].tolist()
    numbers = write_manifest(path, frame.astype(float), name="m", version="1")
    assert numbers.policy == RowPolicy()
    with pytest.raises(SchemaError, match=r'RowPolicy\(boolean="number"\)'):
        Model.load(path).predict(frame)
    with pytest.raises(ManifestError, match="remove 'boolean' from the policy"):
        write_manifest(path, frame, name="m", version="1", policy=RowPolicy(boolean="refuse"))


def test_a_sample_with_infinities_allows_them_and_keeps_finite_ranges(tmp_path, rng):
    x = rng.normal(size=(300, 2))
    x[::50, 0], x[7, 1] = np.inf, -np.inf
    path = tmp_path / "m.txt"
    expected = saved(path, lgb.Dataset(x, np.where(x[:, 0] > 0, 1.0, 0.0))).predict(x, num_threads=1)
    for policy in (None, RowPolicy(infinite="allow")):
        made = write_manifest(path, x, name="m", version="1", policy=policy, expected=expected)
        assert made.policy.infinite == "allow"
        assert np.isfinite([(f.min, f.max) for f in made.features]).all()
        assert all(np.isfinite(f.reference.edges).all() for f in made.features)
        assert len(made.golden) == 8
        assert Model.load(path).predict(x).tolist() == expected.tolist()
    only = np.full((3, 2), np.inf)
    assert write_manifest(path, only, name="m", version="1").golden == ()
    assert np.isfinite(Model.load(path).predict(only)).all()


def test_an_overflowing_row_of_a_linear_tree_does_not_change_other_rows(tmp_path, rng):
    x = rng.normal(size=(400, 2))
    path = tmp_path / "m.txt"
    booster = saved(path, lgb.Dataset(x, 3 * x[:, 0] + x[:, 1]), linear_tree=True)
    rows = np.vstack([x, [[1.7e308, 1.7e308]]])
    expected = booster.predict(rows, num_threads=1)
    assert not np.isfinite(expected[-1])
    made = write_manifest(path, rows, name="m", version="1", expected=expected)
    assert len(made.golden) == 8
    answers = Model.load(path).predict(rows)
    assert answers[:-1].tolist() == expected[:-1].tolist()
    assert repr(answers[-1]) == repr(expected[-1])


def test_a_model_of_6000_features_has_a_readable_manifest_and_predicts(tmp_path, rng):
    width = 6_000
    x = rng.normal(size=(60, width))
    path = tmp_path / "m.txt"
    names = [f"f_{i}" for i in range(width)]
    expected = saved(path, lgb.Dataset(x, x[:, 5], feature_name=names), 3).predict(x, num_threads=1)
    made = write_manifest(path, x, name="m", version="1", nullable=names, expected=expected, golden=2)
    assert Manifest.read(tmp_path / "m.txt.manifest.json") == made
    model = Model.load(path)
    assert model.predict_row(dict(zip(names, x[0].tolist(), strict=True))).tolist() == expected[:1].tolist()
    with pytest.raises(SchemaError, match="'f_5999': is missing"):
        model.predict_row(dict(zip(names[:-1], x[0].tolist(), strict=False)))


def test_a_manifest_above_the_size_limit_is_not_written(trained, tmp_path, monkeypatch):
    from predictor import manifest

    subject = trained("binary")
    monkeypatch.setattr(manifest, "_MAX_BYTES", 1_000)
    with pytest.raises(ManifestError, match="record fewer golden rows"):
        write_manifest(subject.path, subject.rows, name="x", version="1", path=tmp_path / "m.json")
    assert not list(tmp_path.iterdir())


# Names


@pytest.fixture
def spaced(tmp_path, rng):
    """A model trained on columns "unit price" and 7."""
    frame = pd.DataFrame(rng.normal(size=(300, 2)), columns=["unit price", 7])
    path = tmp_path / "m.txt"
    booster = saved(path, lgb.Dataset(frame, 2 * frame["unit price"] - frame[7]))
    return path, frame, booster.predict(frame.to_numpy(), num_threads=1)


def test_column_names_that_are_not_text_are_matched_by_their_text(spaced):
    path, frame, expected = spaced
    write_manifest(path, frame, name="m", version="1", expected=expected)
    model = Model.load(path)
    assert model.info.features == ("unit price", "7")
    for rows in (
        frame,
        frame[[7, "unit price"]],
        frame.to_dict("records"),
        [row for _, row in frame.iterrows()],
    ):
        assert model.predict(rows).tolist() == expected.tolist()
    assert model.predict_row(frame.iloc[0]).tolist() == expected[:1].tolist()
    assert (
        model.predict_row({7: frame[7][0], "unit price": frame["unit price"][0]}).tolist()
        == expected[:1].tolist()
    )
    for both in ({"7": 1.0, 7: 2.0, "unit price": 3.0}, frame.assign(**{"7": 1.0})):
        with pytest.raises(SchemaError, match="a name is repeated: '7'"):
            model.predict([both] if isinstance(both, dict) else both)


def test_multi_index_columns_are_matched_by_their_text(tmp_path, rng):
    x = rng.normal(size=(300, 2))
    columns = pd.MultiIndex.from_tuples([("a", "low"), ("a", "high")])
    features = tuple(Feature(name=str(column), model_name=f"c{i}") for i, column in enumerate(columns))
    found = RowSchema(features, RowPolicy()).encode(pd.DataFrame(x[:, ::-1], columns=columns[::-1]))
    assert found.tolist() == x.tolist()


def test_two_columns_with_the_same_lightgbm_name_are_refused_as_ambiguous(spaced):
    path, frame, expected = spaced
    loaded = load_without_manifest(path)  # with the names of LightGBM
    assert loaded.info.features == ("unit_price", "7")
    assert loaded.predict(frame).tolist() == expected.tolist()
    other = frame.assign(unit_price=0.0)
    rows = [*other.to_dict("records")]
    by_array = write_manifest(path, frame.to_numpy(), name="m", version="1", policy=RowPolicy(extra="ignore"))
    lenient = Model.from_bytes(path.read_bytes(), manifest=by_array)
    for model in (loaded, lenient):
        for call in (lambda m: m.predict(other), lambda m: m.predict(rows), lambda m: m.predict_row(rows[0])):
            with pytest.raises(SchemaError, match="are one name to LightGBM"):
                call(model)
    told = write_manifest(path, frame, name="m", version="1", policy=RowPolicy(extra="ignore"))
    assert Model.from_bytes(path.read_bytes(), manifest=told).predict(other).tolist() == expected.tolist()


# One row in a table, classes


def test_predict_row_accepts_a_table_of_exactly_one_row(strict):
    model = strict.load()
    frame = pd.DataFrame(strict.rows, columns=list("abcde"))
    expected = strict.truth(strict.rows[:1]).tolist()
    records = np.array([tuple(strict.rows[0])], dtype=[(name, "f8") for name in "abcde"])
    for row in (
        frame.iloc[[0]],
        frame.iloc[0],
        frame[list("edcba")].iloc[[0]],
        pl.from_pandas(frame)[:1],
        pa.Table.from_pandas(frame.iloc[[0]], preserve_index=False),
        pa.RecordBatch.from_pandas(frame.iloc[[0]], preserve_index=False),
        strict.rows[:1],
        records,
        records[0],
        pl.Series(strict.rows[0]),
        pa.array(strict.rows[0]),
    ):
        assert model.predict_row(row).tolist() == expected
    for rows in (frame.iloc[:2], frame.iloc[:0], pl.from_pandas(frame)):
        with pytest.raises(SchemaError, match=r"a table of \d+ rows is not one row; use predict"):
            model.predict_row(rows)
    with pytest.raises(SchemaError, match=r"^feature 'a': is null"):
        model.predict_row(frame.iloc[[0]].assign(a=np.nan))
    one = frame.iloc[0].to_dict()
    assert model.explain(one).contributions.tolist() == model.explain([one]).contributions.tolist()


def test_raw_score_models_have_class_names_but_no_probabilities(tmp_path, rng):
    x = rng.normal(size=(200, 2))
    y = np.digitize(x[:, 0], [-0.4, 0.4])

    def softmax(scores, data):
        scores = scores.reshape(len(y), -1) if scores.ndim == 1 else scores
        p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        return p - np.eye(3)[y], p * (1 - p) * 1.5

    path = tmp_path / "m.txt"
    booster = saved(path, lgb.Dataset(x, y), objective=softmax, num_class=3)
    made = write_manifest(path, x, name="m", version="1", classes=["SELL", "HOLD", "BUY"])
    assert made.output == "raw"
    model = Model.load(path)
    best = booster.predict(x, num_threads=1).argmax(axis=1)
    assert model.predict_label(x).tolist() == [("SELL", "HOLD", "BUY")[k] for k in best]
    assert model.explain(x[:1]).top(1, output="BUY")
    with pytest.raises(Unsupported, match="raw, not probabilities"):
        model.predict_proba(x)
    with pytest.raises(ManifestError, match="2 class labels do not fit"):
        write_manifest(path, x, name="m", version="1", classes=["SELL", "BUY"])


def test_classes_for_a_ranking_model_are_refused(tmp_path, rng):
    x = rng.normal(size=(200, 2))
    path = tmp_path / "m.txt"
    saved(path, lgb.Dataset(x, rng.integers(0, 3, 200), group=[20] * 10), objective="lambdarank")
    with pytest.raises(ManifestError, match="class labels do not fit"):
        write_manifest(path, x, name="m", version="1", classes=["a", "b"])


@pytest.mark.parametrize(
    "kind",
    ["binary", "multiclass", "two_class_softmax", "one_vs_all", "forest", "binary_missing", "cross_entropy"],
)
def test_every_classifier_has_a_probability_for_each_class(trained, kind):
    subject = trained(kind)
    model, rows = subject.load(), subject.rows
    truth = subject.truth(rows)
    told = np.column_stack([1.0 - truth, truth]) if truth.ndim == 1 else truth
    proba = model.predict_proba(rows)
    assert proba.shape[1] >= 2
    assert proba.tolist() == told.tolist()
    labels = model.info.classes or tuple(range(proba.shape[1]))
    assert model.predict_label(rows).tolist() == [labels[k] for k in told.argmax(axis=1)]
    assert model.predict_proba(rows[:0]).shape == (0, proba.shape[1])
    assert model.predict_label(rows[:0]).shape == (0,)


@pytest.mark.parametrize(
    "classes",
    [
        ("no", "yes"),
        (False, True),
        (1, "a"),
        (-1, 2**63),
        (-1, 2**63 + 1),
        (0.5, 2),
        ("a", "b\0"),
        (1, 2**70),
    ],
    ids=str,
)
def test_labels_are_returned_as_the_manifest_has_them(classes):
    first, second = most_probable(np.array([[0.9, 0.1], [0.2, 0.8]]), classes).tolist()
    assert (first, second) == classes
    assert (type(first), type(second)) == tuple(map(type, classes))


@pytest.mark.parametrize("kind", ["regression", "poisson", "linear"])
def test_models_that_are_not_classifiers_have_no_probabilities(trained, kind):
    for call in (trained(kind).load().predict_proba, trained(kind).load().predict_label):
        with pytest.raises(Unsupported, match="value, not probabilities"):
            call(trained(kind).rows)


# Refusals


REFUSED_ROWS = {
    "missing": {"a": 1.0},
    "extra": {"a": 1.0, "k": "x", "z": 1.0},
    "null": {"a": None, "k": "x"},
    "infinite": {"a": float("inf"), "k": "x"},
    "unseen": {"a": 1.0, "k": "w"},
    "boolean": {"a": True, "k": "x"},
    "large_integer": {"a": 2**53 + 1, "k": "x"},
}
TWO_FEATURES = (
    Feature(name="a", model_name="a"),
    Feature(name="k", model_name="k", kind="category", categories=("x", "y"), codes=(0, 1), nullable=True),
)


@pytest.mark.parametrize("word", RowPolicy.model_fields)
def test_every_policy_refusal_names_the_option_that_allows_the_row(word):
    row = REFUSED_ROWS[word]
    schema = RowSchema(TWO_FEATURES, RowPolicy())
    calls = {
        "encode_row": lambda s: s.encode_row(row),
        "list": lambda s: s.encode([row]),
        "frame": lambda s: s.encode(pd.DataFrame([row])),
        "columns": lambda s: s.encode_columns({name: [cell] for name, cell in row.items()}),
        "arrow": lambda s: s.encode(pa.Table.from_pylist([row])),
    }
    for call in calls.values():
        with pytest.raises(SchemaError) as caught:
            call(schema)
        assert caught.value.policy == word
        named = re.search(r"RowPolicy\((\w+)=\"(\w+)\"\)", str(caught.value))
        assert named, str(caught.value)
        call(RowSchema(TWO_FEATURES, RowPolicy(**{named[1]: named[2]})))


def test_every_schema_error_in_the_source_gives_a_remedy():
    seen = 0
    for path in Path(predictor.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", None) == "SchemaError"):
                continue
            given = {keyword.arg for keyword in node.keywords}
            assert "remedy" in given, f"{path.name}:{node.lineno}"
            seen += 1
    assert seen > 15
