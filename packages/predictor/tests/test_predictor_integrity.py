"""A model is loaded only if its hash, its manifest and its golden rows match."""

from __future__ import annotations

import json
import os
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from predictor import (
    Feature,
    GoldenRowMismatch,
    IntegrityError,
    Manifest,
    ManifestError,
    Model,
    ModelTextError,
    RowPolicy,
    SchemaError,
    manifest_path,
    write_manifest,
)
from predictor._system import read_at_most
from predictor.integrity import Comparison, check_ulps, sha256_of


def rewrite(subject, **changes) -> Manifest:
    """The manifest of *subject* with members replaced, validated again."""
    members = json.loads(manifest_path(subject.path).read_text())
    return Manifest.model_validate(members | {"answers": ()} | changes)


def test_a_file_with_one_altered_byte_is_refused(trained, tmp_path):
    data = bytearray(trained("binary").path.read_bytes())
    data[-2] ^= 1
    copy = tmp_path / "binary.txt"
    copy.write_bytes(data)
    with pytest.raises(
        IntegrityError, match=r"the model file was changed: its SHA-256 begins with [0-9a-f]{12}"
    ):
        Model.load(copy, manifest=manifest_path(trained("binary").path))


def test_a_model_without_manifest_or_sha256_is_refused(trained, tmp_path):
    lone = tmp_path / "lone.txt"
    lone.write_bytes(trained("binary").path.read_bytes())
    with pytest.raises(ManifestError, match=r"no manifest at .lone\.txt\.manifest\.json."):
        Model.load(lone)
    with pytest.raises(IntegrityError, match="nobody vouches"):
        Model.from_bytes(lone.read_bytes())
    assert Model.load(lone, sha256=sha256_of(lone.read_bytes())).info.version.startswith("sha256:")


def test_ranges_and_nullability_come_from_the_model_file_without_a_manifest(trained):
    data = trained("binary_missing").path.read_bytes()
    model = Model.from_bytes(data, sha256=sha256_of(data))
    rows = trained("binary_missing").rows
    assert np.isnan(rows).any()
    assert [(f.min, f.max) for f in model.features] == list(
        zip(np.nanmin(rows, axis=0), np.nanmax(rows, axis=0), strict=True)
    )
    assert (model.predict(rows) == trained("binary_missing").truth(rows)).all()
    data = trained("binary").path.read_bytes()
    with pytest.raises(SchemaError, match="is null"):
        Model.from_bytes(data, sha256=sha256_of(data)).predict(rows)


def test_a_pinned_sha256_is_checked_besides_the_manifest(trained):
    subject = trained("binary")
    with pytest.raises(IntegrityError, match="expected was 0"):
        subject.load(sha256="0" * 64)
    with pytest.raises(IntegrityError, match="64 hex digits"):
        subject.load(sha256="abc")
    assert subject.load(sha256=sha256_of(subject.path.read_bytes()).upper()).info.name == "binary"


def test_a_missing_model_file_raises_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Model.load(tmp_path / "absent.txt", sha256="0" * 64)


@pytest.mark.parametrize(("member", "again"), [("version", '"0"'), ("sha256", '"0"'), ("name", '"other"')])
def test_a_manifest_with_a_duplicate_member_is_refused(trained, tmp_path, member, again):
    text = manifest_path(trained("binary").path).read_text()
    path = tmp_path / "m.json"
    path.write_text(text.replace(f'"{member}":', f'"{member}":{again},"{member}":', 1))
    with pytest.raises(ManifestError, match=rf"m\.json: {member} is there twice"):
        Manifest.read(path)


def test_from_bytes_reads_the_same_manifest_and_names_the_file_in_errors(trained):
    path = manifest_path(trained("binary").path)
    assert Manifest.from_bytes(path.read_bytes(), name="m.json") == Manifest.read(path)
    with pytest.raises(ManifestError, match=r"^m\.json: "):
        Manifest.from_bytes(b"{}", name="m.json")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_trees": 99}, "early-stopped"),
        ({"objective": "regression"}, "objective"),
        ({"output": "value", "classes": []}, "output kind"),
        ({"n_outputs": 2, "golden": []}, "outputs"),
    ],
)
def test_a_manifest_of_another_model_is_refused(trained, changes, reason):
    subject = trained("binary")
    with pytest.raises(ManifestError, match=reason):
        subject.load(manifest=rewrite(subject, **changes))


def test_permuted_or_missing_features_in_the_manifest_are_refused(trained):
    subject = trained("binary")
    features = json.loads(manifest_path(subject.path).read_text())["features"]
    with pytest.raises(ManifestError, match="feature 0: the manifest says 'b', the model has 'a'"):
        subject.load(manifest=rewrite(subject, features=[features[1], features[0], *features[2:]]))
    with pytest.raises(ManifestError, match="features"):
        subject.load(manifest=rewrite(subject, features=features[:-1], golden=[]))


def test_categories_in_the_manifest_must_match_the_model(trained):
    subject = trained("binary_categories")
    features = json.loads(manifest_path(subject.path).read_text())["features"]
    plain = {key: features[4][key] for key in ("name", "model_name", "nullable")}
    with pytest.raises(ManifestError, match="learned categories"):
        subject.load(manifest=rewrite(subject, features=[*features[:4], plain]))
    few = features[4] | {"categories": [0, 1], "codes": [0, 1], "reference": None}
    with pytest.raises(ManifestError, match="does not list"):
        subject.load(manifest=rewrite(subject, features=[*features[:4], few]))


def test_golden_raw_scores_are_compared_bit_for_bit(trained):
    subject = trained("multiclass")
    golden = json.loads(manifest_path(subject.path).read_text())["golden"]
    golden[3]["raw"][1] = float(np.nextafter(golden[3]["raw"][1], 1))
    with pytest.raises(GoldenRowMismatch, match="raw scores: golden row 3"):
        subject.load(manifest=rewrite(subject, golden=golden))


def test_golden_outputs_may_differ_by_at_most_four_ulp(trained):
    subject = trained("multiclass")
    golden = json.loads(manifest_path(subject.path).read_text())["golden"]
    at = golden[0]["output"][0]
    golden[0]["output"][0] = at + 4 * float(np.spacing(at))
    assert subject.load(manifest=rewrite(subject, golden=golden)).info.name == "multiclass"
    golden[0]["output"][0] = at + 5 * float(np.spacing(at))
    with pytest.raises(GoldenRowMismatch, match="outputs: golden row 0"):
        subject.load(manifest=rewrite(subject, golden=golden))


def test_ulps_are_counted_across_zero():
    tiny = np.array([[5e-324]])
    check_ulps("x", tiny, -tiny)
    with pytest.raises(GoldenRowMismatch):
        check_ulps("x", np.array([[1e-300]]), np.array([[-1e-300]]))


def test_best_iteration_is_pinned_by_the_number_of_trees(tmp_path):
    """An early-stopped model that was saved with all its rounds predicts with all of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(x, x[:, 0]), 8)
    booster.save_model(tmp_path / "best.txt", num_iteration=3)
    made = write_manifest(tmp_path / "best.txt", x, name="best", version="1")
    assert made.n_trees == 3
    booster.save_model(tmp_path / "all.txt")
    with pytest.raises(ManifestError, match="early-stopped"):
        Model.load(
            tmp_path / "all.txt",
            manifest=made.model_copy(update={"sha256": sha256_of((tmp_path / "all.txt").read_bytes())}),
        )


def test_info_lists_the_classes_of_the_manifest_in_output_order(trained):
    model = trained("multiclass").load()
    assert model.info.classes == ("SELL", "HOLD", "BUY")
    answers = model.predict(trained("multiclass").rows)
    assert {model.info.classes[index] for index in answers.argmax(axis=1)} == {"SELL", "HOLD", "BUY"}
    binary = trained("binary").load()
    assert binary.info.classes == ("no", "yes")
    assert binary.info.n_classes == 1  # one value per row: the probability of "yes"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": ["one"]}, "class labels do not fit"),
        ({"classes": ["a", "a", "b"]}, "must not repeat"),
        ({"golden": [{"row": [1.0], "raw": [1.0], "output": [1.0]}]}, "golden row"),
        ({"sha256": "xyz"}, "sha256"),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema_version"),
        ({"features": []}, "features"),
        (
            {"features": [{"name": "a", "model_name": "a"}] * 5},
            "m.json: manifest: .* feature names must not repeat",
        ),
        ({"name": ""}, "name"),
        ({"version": ""}, "version"),
        ({"n_trees": 0}, "n_trees"),
        ({"n_outputs": 0}, "n_outputs"),
        ({"output": "raw", "classes": ["a"], "n_outputs": 1, "golden": []}, "class labels do not fit"),
    ],
)
def test_an_inconsistent_manifest_is_refused(trained, tmp_path, changes, reason):
    members = json.loads(manifest_path(trained("multiclass").path).read_text())
    path = tmp_path / "m.json"
    path.write_text(json.dumps(members | changes))
    with pytest.raises(ManifestError, match=reason):
        Manifest.read(path)


@pytest.mark.parametrize(
    "feature",
    [
        {"kind": "category"},
        {"kind": "category", "categories": ("a",), "codes": (0, 1)},
        {"kind": "category", "categories": ("a", "a"), "codes": (0, 1)},
        {"kind": "category", "categories": ("a", "b"), "codes": (0, -1)},
        {"kind": "category", "categories": ("a", "b"), "codes": (0, 0)},
        {"kind": "category", "categories": ("a",), "codes": (2**31,)},
        {"kind": "category", "categories": ("a",)},
        {"kind": "category", "codes": (0,)},
        {"kind": "number", "categories": ("a",), "codes": (0,)},
        {"kind": "number", "categories": ("a",)},
        {"kind": "number", "codes": (0,)},
        {"reference": {"count": 0, "null_share": 0, "shares": (1,)}},
        {"reference": {"count": 1, "null_share": 1.5, "shares": (1,)}},
        {"reference": {"count": 1, "null_share": 0, "edges": (2, 1), "shares": (1, 0, 0)}},
        {"reference": {"count": 1, "null_share": 0, "edges": (1,), "shares": (1,)}},
    ],
)
def test_an_inconsistent_feature_is_refused(feature):
    with pytest.raises(ValueError, match=r"category|labels|codes|reference"):
        Feature(name="x", model_name="x", **feature)


def test_write_manifest_records_ranges_categories_metrics_and_golden_rows(tmp_path, trained):
    subject = trained("categories_missing")
    made = write_manifest(
        subject.path,
        subject.rows,
        name="signal",
        version="2",
        classes=("SELL", "HOLD", "BUY"),
        provenance={"seed": 11},
        metrics={"log_loss": 0.9},
        baseline={"log_loss": 1.1},
        path=tmp_path / "m.json",
    )
    assert Manifest.read(tmp_path / "m.json") == made
    assert made.features[0].nullable
    assert made.features[0].min == np.nanmin(subject.rows[:, 0])
    assert made.features[4].codes == tuple(range(12))
    assert sum(made.features[0].reference.shares) == pytest.approx(1)
    assert (made.metrics["log_loss"].model, made.metrics["log_loss"].baseline) == (0.9, 1.1)
    assert len(made.golden) == 8
    assert list(tmp_path.iterdir()) == [tmp_path / "m.json"]  # no half-written file stays
    if os.name == "posix":
        assert (tmp_path / "m.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "options",
    [
        {"classes": "no"},
        {"names": "vwxyz"},
        {"integers": "e"},
        {"nullable": "a"},
        {"categories": {"e": "0123456789ab"}},
    ],
    ids=str,
)
def test_a_string_in_place_of_a_list_is_refused(trained, tmp_path, options):
    subject = trained("binary_categories")
    with pytest.raises(ManifestError, match="pass a list, not the text"):
        write_manifest(subject.path, subject.rows, name="x", version="1", path=tmp_path / "m.json", **options)


def test_ranges_come_from_the_sample_and_categories_have_none(trained, tmp_path):
    subject = trained("binary_categories")
    few = subject.rows[:40]
    made = write_manifest(subject.path, few, name="x", version="1", path=tmp_path / "m.json")
    assert [(f.min, f.max) for f in made.features[:4]] == list(
        zip(few[:, :4].min(axis=0), few[:, :4].max(axis=0), strict=True)
    )
    assert (made.features[4].min, made.features[4].max) == (None, None)


def test_a_feature_trained_on_infinities_has_no_range(tmp_path):
    x = np.array([[1.0], [2.0], [np.inf], [-np.inf]] * 50)
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(x, np.arange(200.0) % 4), 2)
    path = tmp_path / "wide.txt"
    booster.save_model(path)
    assert "[-inf:inf]" in path.read_text()
    model = Model.load(path, sha256=sha256_of(path.read_bytes()))
    assert (model.features[0].min, model.features[0].max) == (None, None)
    assert model.predict(x[:2]).tolist() == booster.predict(x[:2], num_threads=1).tolist()


def test_original_column_names_are_mapped_to_the_names_of_lightgbm(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(100, 2)), columns=["close price", "größe"])
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(frame, frame["größe"]), 3)
    path = tmp_path / "names.txt"
    booster.save_model(path)
    assert booster.feature_name() == ["close_price", "größe"]
    rows = [{"label": 1.0, **row} for row in frame.to_dict("records")]
    for sample, options in (
        (frame, {"names": tuple(frame.columns)}),
        (frame, {}),
        (pa.Table.from_pandas(frame), {}),
        (rows, {}),
    ):
        made = write_manifest(path, sample, name="names", version="1", **options)
        assert [feature.model_name for feature in made.features] == booster.feature_name()
        assert [feature.name for feature in made.features] == ["close price", "größe"]
    model = Model.load(path)
    assert (model.predict(frame) == booster.predict(frame.to_numpy(), num_threads=1)).all()
    with pytest.raises(SchemaError, match="close price"):
        model.predict(frame.rename(columns={"close price": "close_price"}))
    with pytest.raises(
        ManifestError, match=r"'close price' and 'close_price' have the same name .* names=\["
    ):
        write_manifest(path, frame.assign(close_price=1.0), name="names", version="1")
    assert write_manifest(path, frame.to_numpy(), name="names", version="1").features[0].name == "close_price"


def test_pandas_categories_are_mapped_by_label(tmp_path):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"x": rng.normal(size=300), "side": rng.choice(list("abcde"), 300)})
    frame["side"] = frame["side"].astype("category")
    target = frame["x"] + frame["side"].cat.codes * (frame["side"].cat.codes % 2)
    booster = lgb.train(
        {"verbose": -1, "num_threads": 1, "min_data_per_group": 5}, lgb.Dataset(frame, target), 5
    )
    path = tmp_path / "side.txt"
    booster.save_model(path)
    write_manifest(path, frame, name="side", version="1")
    model = Model.load(path)
    assert model.info.categories == {"side": tuple("abcde")}
    whole = model.predict(frame)
    assert (whole == booster.predict(frame, num_threads=1)).all()
    only_d = frame[frame["side"] == "d"].assign(side=lambda f: f["side"].astype(str))
    assert (model.predict(only_d) == whole[frame["side"] == "d"]).all()
    with pytest.raises(SchemaError, match="'f' is a category"):
        model.predict_row({"x": 0.0, "side": "f"})


def test_write_manifest_refuses_options_that_do_not_fit_the_model(trained, tmp_path):
    subject, path = trained("binary_categories"), tmp_path / "m.json"
    for options, reason in (
        ({"categories": {"e": ["a"]}}, "learned code"),
        ({"integers": ["zzz"]}, "not a feature"),
        ({"names": ["a"]}, "1 names for 5"),
        ({"baseline": {"auc": 0.5}}, "names that metrics does not have"),
        ({"classes": ["yes"]}, r"the manifest to write: .*1 class labels do not fit"),
        ({"metrics": {"auc": float("nan")}}, "finite number"),
        ({"categories": {"e": [0] * 12}}, "labels and codes must not repeat"),
    ):
        with pytest.raises(ManifestError, match=reason):
            write_manifest(subject.path, subject.rows, name="x", version="1", path=path, **options)
    with pytest.raises(ManifestError, match="at least one sample row"):
        write_manifest(subject.path, subject.rows[:0], name="x", version="1", path=path)
    assert not path.exists()


def test_a_model_with_a_custom_objective_has_a_manifest_with_raw_output(tmp_path):
    """The file has no objective line, and the manifest omits null members."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    data = lgb.Dataset(x, (x[:, 0] > 0).astype(float))
    booster = lgb.train(
        {"objective": lambda s, d: (s - d.get_label(), np.ones_like(s)), "verbose": -1, "num_threads": 1},
        data,
        3,
    )
    path = tmp_path / "own.txt"
    booster.save_model(path)
    made = write_manifest(path, x, name="own", version="1")
    model = Model.load(path)
    assert model.manifest == made
    assert (model.info.objective, model.info.output) == (None, "raw")
    assert (model.predict(x) == booster.predict(x, num_threads=1)).all()


@pytest.mark.parametrize("golden", [0, -1, 1, 10_000])
def test_number_of_golden_rows_is_limited_to_the_sample(trained, tmp_path, golden):
    subject, path = trained("binary"), tmp_path / "m.json"
    write_manifest(subject.path, subject.rows, name="x", version="1", golden=golden, path=path)
    loaded = Model.load(subject.path, manifest=path)
    assert loaded.manifest is not None
    assert len(loaded.manifest.golden) == min(max(golden, 0), len(subject.rows))


def test_numpy_integer_labels_stay_integers(trained, tmp_path):
    subject, path = trained("binary_categories"), tmp_path / "m.json"
    options = {"classes": np.array([-1, 7]), "categories": {"e": np.arange(10, 22)}}
    write_manifest(subject.path, [[0, 0, 0, 0, 10]], name="x", version="1", path=path, **options)
    info = Model.load(subject.path, manifest=path).info
    assert [repr(label) for label in info.classes] == ["-1", "7"]
    assert [repr(label) for label in info.categories["e"][:2]] == ["10", "11"]


def test_rare_categories_of_the_sample_are_known_categories(tmp_path):
    """LightGBM omits rare categories from its file; rows may still have them."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=2_000), rng.integers(0, 3, 2_000)])
    x[0, 1] = 7
    data = lgb.Dataset(x, x[:, 1] * x[:, 0], categorical_feature=[1], feature_name=["x", "venue"])
    booster = lgb.train({"verbose": -1, "num_threads": 1}, data, 3)
    path = tmp_path / "rare.txt"
    booster.save_model(path)
    assert "7" not in booster.dump_model()["feature_infos"]["venue"]["values"]
    made = write_manifest(path, x, name="rare", version="1")
    assert made.features[1].codes == (0, 1, 2, 7)
    assert Model.load(path).predict(x).tolist() == booster.predict(x, num_threads=1).tolist()
    x[0, 1] = 2.5
    with pytest.raises(SchemaError, match="'venue': a sample row has a category"):
        write_manifest(path, x, name="rare", version="1")


def test_a_failed_write_leaves_no_file_behind(trained, tmp_path):
    made = trained("binary").load().manifest
    folder = tmp_path / "taken.json"
    folder.mkdir()
    with pytest.raises(OSError):  # noqa: PT011  the message for "is a directory" differs by platform
        made.write(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_an_ordered_pandas_category_needs_the_training_frame_or_categories(tmp_path):
    """LightGBM trains on the codes of an ordered category as plain numbers, and its file does not say so."""
    rng = np.random.default_rng(0)
    stars = rng.integers(0, 5, 400)
    frame = pd.DataFrame(
        {"x": rng.normal(size=400), "rating": pd.Categorical((stars + 1) * 10, ordered=True)}
    )
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(frame, frame["x"] + stars), 5)
    path = tmp_path / "ordered.txt"
    booster.save_model(path)
    rows = frame.astype(float).to_dict("records")
    with pytest.raises(ManifestError, match="ordered ones too"):
        write_manifest(path, rows, name="x", version="1")
    with pytest.raises(ManifestError, match="ordered ones too"):
        Model.load(path, sha256=sha256_of(path.read_bytes()))
    expected = booster.predict(frame, num_threads=1)
    labels = {"rating": [10, 20, 30, 40, 50]}
    # The training frame says to which column the categories belong.
    for sample, options in ((frame, {}), (frame[["rating", "x"]], {}), (rows, {"categories": labels})):
        write_manifest(path, sample, name="x", version="1", **options)
        assert Model.load(path).predict(frame).tolist() == expected.tolist()
    # A label that training did not have is no null, after which rows with nulls would be answered.
    for strange, feature in (({**labels, "x": ["a", "b"]}, "x"), ({"rating": [1, 2, 3, 4, 5]}, "rating")):
        with pytest.raises(SchemaError, match=f"'{feature}': a sample row has a category that training did"):
            write_manifest(path, rows, name="x", version="1", categories=strange)


@pytest.mark.parametrize("ordered", [False, True], ids=["one column", "two columns, one ordered"])
@pytest.mark.parametrize("form", [lambda frame: frame, lambda frame: frame.astype(object).to_dict("records")])
def test_labels_of_the_file_in_another_order_are_refused(tmp_path, ordered, form):
    rng = np.random.default_rng(0)
    labels = ["c", "a", "b"]  # a caller's sorted ones would exchange their codes
    frame = pd.DataFrame({"x": rng.normal(size=300), "kind": pd.Categorical(rng.choice(labels, 300), labels)})
    right = {"kind": labels}
    if ordered:
        frame["rank"] = pd.Categorical(rng.choice([30, 10, 20], 300), [30, 10, 20], ordered=True)
        right["rank"] = [30, 10, 20]
    target = frame["x"] + frame["kind"].cat.codes
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(frame, target), 5)
    path = tmp_path / "m.txt"
    booster.save_model(path)
    made = {"name": "m", "version": "1"}
    for name in right:
        wrong = right | {name: sorted(right[name])}
        with pytest.raises(ManifestError, match=f"labels of '{name}' have another order in the model file: "):
            write_manifest(path, form(frame), categories=wrong, **made)
    for longer in (right, right | {"kind": [*labels, "d"]}):
        write_manifest(path, form(frame), categories=longer, **made)
        assert Model.load(path).predict(frame).tolist() == booster.predict(frame, num_threads=1).tolist()
    with pytest.raises(ManifestError, match="categories"):
        write_manifest(path, form(frame), categories=right | {"kind": [["c"], "a", "b"]}, **made)


@pytest.fixture
def ambiguous(tmp_path):
    """A model with a pandas category that is trained as numbers, and a categorical feature of plain integers."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "size": pd.Categorical(rng.integers(1, 4, 400), categories=[1, 2, 3], ordered=True),
            "venue": rng.integers(1, 3, 400),
            "x": rng.normal(size=400),
        }
    )
    score = frame["size"].astype(int) + 5 * frame["venue"] + frame["x"]
    data = lgb.Dataset(frame, score, categorical_feature=["venue"])
    booster = lgb.train({"verbose": -1, "num_threads": 1, "min_data_per_group": 5}, data, 10)
    path = tmp_path / "shuffled.txt"
    booster.save_model(path)
    return path, frame, booster.predict(frame, num_threads=1)


def test_pandas_categories_are_not_assigned_to_a_column_by_their_number(ambiguous):
    path, frame, expected = ambiguous
    rows = frame.astype(float).to_dict("records")
    with pytest.raises(ManifestError, match="does not say of which features"):
        write_manifest(path, rows, name="x", version="1")
    with pytest.raises(ManifestError, match="does not say of which features"):
        Model.load(path, sha256=sha256_of(path.read_bytes()))
    labels = {"size": [1, 2, 3], "venue": [0, 1, 2]}
    for sample, options in ((frame, {}), (rows, {"categories": labels})):
        write_manifest(path, sample, name="x", version="1", **options)
        assert Model.load(path).predict(frame).tolist() == expected.tolist()
        assert Model.load(path).predict(rows).tolist() == expected.tolist()


@pytest.mark.parametrize("size", [["S", "M", "L"], [3, 1, 2]], ids=["text", "another order"])
def test_a_frame_with_other_categories_than_the_file_is_refused(ambiguous, size):
    path, frame, _ = ambiguous
    other = frame.assign(size=pd.Categorical.from_codes(frame["size"].cat.codes, size))
    with pytest.raises(ManifestError, match="does not say of which features"):
        write_manifest(path, other, name="x", version="1")


@pytest.mark.parametrize(
    ("labels", "flag"),
    [(["a", "b", "c"], [0, 1]), ([0, 1, 2], [0, 1]), ([7, 8, 9], [0, 3]), ([7, 8, 9], [-1, 1])],
)
def test_an_unambiguous_pandas_category_is_assigned_without_a_manifest(tmp_path, labels, flag):
    """Text labels, labels equal to their codes, and columns outside the codes 0, 1 and 2 leave one assignment."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"kind": pd.Categorical(rng.choice(labels, 300), labels), "flag": rng.choice(flag, 300)}
    )
    booster = lgb.train(
        {"verbose": -1, "num_threads": 1, "min_data_per_group": 5},
        lgb.Dataset(frame, frame["kind"].cat.codes + frame["flag"]),
        5,
    )
    path = tmp_path / "kind.txt"
    booster.save_model(path)
    model = Model.load(path, sha256=sha256_of(path.read_bytes()))
    assert model.predict(frame).tolist() == booster.predict(frame, num_threads=1).tolist()


@pytest.mark.parametrize("flag", [[0, 1], [0, 2], [5, 5]], ids=["a flag", "as large", "constant"])
def test_a_numeric_pandas_category_is_refused_if_another_column_may_be_its_codes(tmp_path, flag):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"kind": pd.Categorical(rng.choice([7, 8, 9], 300)), "flag": rng.choice(flag, 300)})
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(frame, frame["kind"].cat.codes), 2)
    path = tmp_path / "kind.txt"
    booster.save_model(path)
    with pytest.raises(ManifestError, match="write the manifest with the training frame"):
        Model.load(path, sha256=sha256_of(path.read_bytes()))


@pytest.mark.parametrize("labels", [["S", "M", "L"], [0, 1, 2]], ids=["text", "numbers"])
def test_an_unseen_label_of_an_ordered_category_is_a_missing_value_as_in_lightgbm(tmp_path, labels):
    """LightGBM reads the code -1 as a missing value; as a number it would be smaller than all others."""
    rng = np.random.default_rng(0)
    size = pd.Categorical(rng.choice(labels, 400), categories=labels, ordered=True)
    frame = pd.DataFrame({"size": size, "x": rng.normal(size=400)})
    frame.loc[::7, "size"] = np.nan
    score = frame["size"].cat.codes.replace({-1: 5}) + frame["x"]
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(frame, score), 10)
    path = tmp_path / "ordered.txt"
    booster.save_model(path)
    asked = pd.DataFrame({"size": [labels[0], 77, None], "x": 0.0})
    seen = asked.astype({"size": pd.CategoricalDtype([*labels, 77], ordered=True)})
    expected = booster.predict(seen, num_threads=1).tolist()
    assert expected[1] == expected[2] != expected[0]
    # An unseen label is not a null, so features that are not nullable allow it.
    for nullable in (["size"], []):
        policy = RowPolicy(unseen="allow")
        rows = frame[frame["size"].notna()]
        write_manifest(path, rows, name="x", version="1", nullable=nullable, policy=policy)
        model = Model.load(path)
        for row, answer in zip(asked.to_dict("records")[:2], expected, strict=False):
            assert model.predict_row(row).tolist() == [answer]
        assert model.predict(seen[:2]).tolist() == expected[:2]
    with pytest.raises(SchemaError, match="is null"):
        model.predict(seen)


def test_model_and_manifest_files_above_the_size_limit_are_refused(trained, tmp_path):
    for path in (tmp_path / "large.txt", tmp_path / "m.txt.manifest.json"):
        with path.open("wb") as file:
            file.truncate(10**13)  # a sparse file of ten terabytes
    with pytest.raises(ModelTextError, match="more than 1073741824 bytes"):
        Model.load(tmp_path / "large.txt", sha256="0" * 64)
    data = trained("binary").path.read_bytes()
    (tmp_path / "m.txt").write_bytes(data)
    with pytest.raises(ManifestError, match="more than 67108864 bytes"):
        Model.load(tmp_path / "m.txt", sha256=sha256_of(data))


def test_read_at_most_stops_at_the_limit():
    assert read_at_most("/dev/zero", 3_000_000) is None
    whole = Path(__file__).read_bytes()
    assert read_at_most(__file__, len(whole) - 1) is None
    assert read_at_most(__file__, len(whole)) == whole


def test_an_unreadable_manifest_is_refused_and_not_ignored(trained, tmp_path):
    """Such as a link to an unmounted volume: labels and policy would be lost silently."""
    data = trained("binary").path.read_bytes()
    for name in ("link", "folder"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link.manifest.json").symlink_to(tmp_path / "not mounted")
    (tmp_path / "folder.manifest.json").mkdir()
    for name in ("link", "folder"):
        with pytest.raises(ManifestError, match="no manifest at"):
            Model.load(tmp_path / name, sha256=sha256_of(data))


def test_pandas_categories_that_match_no_feature_must_be_passed(trained, tmp_path):
    text = trained("binary_categories").path.read_bytes()
    path = tmp_path / "m.txt"
    path.write_bytes(text.replace(b"pandas_categorical:null", b'pandas_categorical:[["a"], ["b"]]'))
    rows = trained("binary_categories").rows
    with pytest.raises(ManifestError, match="pass categories"):
        write_manifest(path, rows, name="x", version="1")
    twelve = list(range(12))
    with pytest.raises(ManifestError, match="has 2 pandas categories"):
        write_manifest(path, rows, name="x", version="1", categories={"e": twelve})
    row = [["x", 0, 0, 0, 0]]
    made = write_manifest(path, row, name="x", version="1", categories={"a": ["x"], "e": twelve})
    assert made.features[4].categories == tuple(range(12))


@pytest.mark.parametrize(
    ("answers", "expected", "told"),
    [
        ([1.0, 2.0], [1.0, 2.5], "first row 1, by up to 0.5: the file"),
        ([1.0, 2.0], [1.0, np.nan], "first row 1, NaN against a number: the file"),
        (
            [np.nan, 2.0, 3.0],
            [1.0, 2.0, 3.25],
            "first row 0, by up to 0.25 or NaN against a number: the file",
        ),
        ([1.0, 2.0], [np.inf, 2.0], "first row 0, by up to inf: the file"),
        ([np.inf, 2.0], [np.inf, 2.5], "first row 1, by up to 0.5: the file"),
    ],
)
def test_comparison_error_distinguishes_differing_numbers_from_nan(answers, expected, told):
    comparison = Comparison()
    comparison.add(np.array(answers), np.array(expected))
    with pytest.raises(GoldenRowMismatch, match=told):
        comparison.check("rows")


def test_a_reference_with_too_few_shares_is_refused_with_the_required_number():
    few = {"count": 1, "null_share": 0, "edges": (1, 2), "shares": (1,)}
    with pytest.raises(ValueError, match="the reference needs one share per bin: 3, not 1"):
        Feature(name="a", model_name="a", reference=few)
