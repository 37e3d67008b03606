"""`save` writes an estimator with its manifest; fewer iterations, stages and sparse rows predict like LightGBM."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import pickle
import warnings

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from predictor import (
    GoldenRowMismatch,
    Manifest,
    ManifestError,
    Model,
    ModelSlot,
    SchemaError,
    Unsupported,
    save,
)

# LightGBM 4.6 has scikit-learn say this of every estimator that was trained with an array, and predicts for one.
trained_with_an_array = pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")

QUIET = {"n_estimators": 8, "verbose": -1, "n_jobs": 1, "min_data_per_group": 5}


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    made = pd.DataFrame(
        {
            "unit price": rng.normal(size=400),
            "side": pd.Categorical(rng.choice(["buy", "sell", "hold"], 400)),
            "stars": pd.Categorical(rng.integers(1, 4, 400), ordered=True),
            "open": rng.random(400) < 0.3,
        }
    )
    made.loc[::9, "unit price"] = np.nan
    return made


@pytest.fixture
def score(frame) -> np.ndarray:
    return (
        frame["unit price"].fillna(2)
        + 2 * (frame["side"] == "sell")
        + frame["stars"].astype(int)
        - frame["open"]
    )


def cube(values):
    return values**3


def quantile_labels(labels):
    def target(score):
        edges = np.quantile(score, np.arange(1, len(labels)) / len(labels))
        return np.array(labels)[np.digitize(score, edges)]

    return target


ESTIMATORS = {
    "classifier of two": (lgb.LGBMClassifier, quantile_labels(["no", "yes"])),
    "classifier of three": (lgb.LGBMClassifier, quantile_labels(["SELL", "HOLD", "BUY"])),
    "classifier of numbers": (lgb.LGBMClassifier, quantile_labels([-1, 7])),
    "classifier of booleans": (lgb.LGBMClassifier, quantile_labels([False, True])),
    "regressor": (lgb.LGBMRegressor, lambda score: score),
}


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_save_records_the_features_classes_and_policy_of_an_estimator(tmp_path, frame, score, kind):
    make, target = ESTIMATORS[kind]
    estimator = make(**QUIET).fit(frame, target(score.to_numpy()))
    made = save(estimator, tmp_path / "model.txt", sample=frame, name="m", version="1")
    assert Manifest.read(tmp_path / "model.txt.manifest.json") == made
    assert {path.name for path in tmp_path.iterdir()} == {"model.txt", "model.txt.manifest.json"}
    model = Model.load(tmp_path / "model.txt")
    assert model.info.features == ("unit price", "side", "stars", "open")
    assert model.info.categories == {"side": ("buy", "hold", "sell"), "stars": (1, 2, 3)}
    assert [feature.nullable for feature in model.features] == [True, False, False, False]
    assert made.policy.boolean == "number"
    if kind == "regressor":
        assert model.predict(frame).tolist() == estimator.predict(frame, num_threads=1).tolist()
        return
    assert model.predict_proba(frame).tolist() == estimator.predict_proba(frame, num_threads=1).tolist()
    labels, trained = model.predict_label(frame), estimator.predict(frame, num_threads=1)
    assert (labels.tolist(), labels.dtype.kind) == (trained.tolist(), trained.dtype.kind)
    row = frame.iloc[3].to_dict()
    assert model.predict_row(row).tolist() == np.atleast_2d(model.predict(frame).T).T[3].reshape(-1).tolist()


@trained_with_an_array
def test_a_booster_a_ranker_and_an_early_stopped_model_are_saved(tmp_path, frame, score):
    x = frame[["unit price"]].to_numpy()
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(x, score), 5)
    ranker = lgb.LGBMRanker(**QUIET).fit(x, np.arange(400) % 4, group=[20] * 20)
    regressor, held_out = lgb.LGBMRegressor(**{**QUIET, "n_estimators": 60}), (x[200:], score[200:])
    named = "eval_X" in inspect.signature(regressor.fit).parameters  # since LightGBM 4.7
    stopped = regressor.fit(
        x[:200],
        score[:200],
        **dict(zip(("eval_X", "eval_y"), held_out, strict=True)) if named else {"eval_set": [held_out]},
        callbacks=[lgb.early_stopping(2, verbose=False)],
    )
    assert 0 < stopped.best_iteration_ < 60
    for estimator in (booster, ranker, stopped):
        save(estimator, tmp_path / "m.txt", sample=x, name="m", version="1")
        model = Model.load(tmp_path / "m.txt")
        assert model.predict(x).tolist() == estimator.predict(x, num_threads=1).tolist()
        assert model.info.classes == ()


def test_saving_what_was_trained_with_an_array_warns_of_nothing(tmp_path, frame, score):
    x = frame[["unit price"]].to_numpy()
    estimator = lgb.LGBMRegressor(**QUIET).fit(x, score)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        save(estimator, tmp_path / "m.txt", sample=x, name="m", version="1")
    assert [str(warning.message) for warning in said] == []


@trained_with_an_array
@pytest.mark.parametrize("steps", [(), ("passthrough",)])
def test_a_pipeline_without_transformers_is_saved_as_its_estimator(steps, score, tmp_path):
    x = np.column_stack((score, score**2))
    labels = np.where(score > score.median(), "up", "down")
    pipeline = make_pipeline(*steps, lgb.LGBMClassifier(**QUIET)).fit(x, labels)
    assert save(pipeline, tmp_path / "m.txt", sample=x, name="m", version="1").classes == ("down", "up")
    model = Model.load(tmp_path / "m.txt")
    assert model.predict_label(x).tolist() == pipeline.predict(x).tolist()


def test_a_classifier_trained_on_one_class_is_refused(score, tmp_path):
    x = score.to_numpy()[:, None]
    estimator = lgb.LGBMClassifier(**QUIET).fit(x, np.full(len(x), "up"))
    with pytest.raises(Unsupported, match="one class, 'up'"):
        save(estimator, tmp_path / "m.txt", sample=x, name="m", version="1")
    assert not list(tmp_path.iterdir())


@trained_with_an_array
def test_a_failed_save_changes_no_file(tmp_path, frame, score):
    x = frame[["unit price"]].fillna(0).to_numpy()
    pipeline = make_pipeline(StandardScaler(), lgb.LGBMRegressor(**QUIET)).fit(x, score)
    with pytest.raises(Unsupported, match=r"here 'standardscaler'.*sample=pipeline\[:-1\]\.transform"):
        save(pipeline, tmp_path / "m.txt", sample=x, name="m", version="1")
    nested = make_pipeline(pipeline)
    with pytest.raises(Unsupported, match="here 'standardscaler'"):
        save(nested, tmp_path / "m.txt", sample=x, name="m", version="1")
    for other in (StandardScaler().fit(x), None, "model"):
        with pytest.raises(Unsupported, match="is no fitted estimator"):
            save(other, tmp_path / "m.txt", sample=x, name="m", version="1")
    estimator = pipeline[-1]
    answers = estimator.predict(x, num_threads=1)
    with pytest.raises(GoldenRowMismatch):
        save(estimator, tmp_path / "m.txt", sample=x, name="m", version="1", expected=answers + 1)
    assert list(tmp_path.iterdir()) == []
    scaled = pipeline[:-1].transform(x)
    save(estimator, tmp_path / "m.txt", sample=scaled, name="m", version="1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(GoldenRowMismatch):
        save(estimator, tmp_path / "m.txt", sample=x, name="m", version="2", expected=answers + 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (
        Model.load(tmp_path / "m.txt").predict(scaled).tolist() == pipeline.predict(x, num_threads=1).tolist()
    )


@trained_with_an_array
@pytest.mark.parametrize(
    ("wrapped", "advice"),
    [
        (
            lambda x, y: GridSearchCV(lgb.LGBMRegressor(**QUIET), {}, cv=2).fit(x, y),
            "save its best_estimator_",
        ),
        (lambda x, y: lgb.LGBMRegressor(**QUIET), "call its fit first"),
        (lambda x, y: make_pipeline(lgb.LGBMRegressor(**QUIET)), "call its fit first"),
        (
            lambda x, y: TransformedTargetRegressor(
                lgb.LGBMRegressor(**QUIET), func=np.cbrt, inverse_func=cube
            ).fit(x, y),
            "save the LightGBM estimator inside it",
        ),
        (
            lambda x, y: CalibratedClassifierCV(lgb.LGBMClassifier(**QUIET), cv=2).fit(x, y > y.median()),
            "save the LightGBM estimator inside it",
        ),
        (
            lambda x, y: lgb.cv(
                {"verbose": -1}, lgb.Dataset(x, y), 2, stratified=False, return_cvbooster=True
            )["cvbooster"],
            "save one of its boosters",
        ),
        (
            lambda x, y: lgb.LGBMClassifier(**QUIET).fit(
                x, np.array(["2020", "2021"], "datetime64[Y]")[(y > 0) * 1]
            ),
            "train on str",
        ),
    ],
    ids=["search", "unfitted", "unfitted pipeline", "target", "calibrated", "folds", "dates"],
)
def test_unsupported_estimators_are_refused_with_advice(wrapped, advice, frame, score, tmp_path):
    x = frame[["unit price"]].to_numpy()
    with pytest.raises(Unsupported, match=advice):
        save(wrapped(x, score), tmp_path / "m.txt", sample=x, name="m", version="1")
    assert not list(tmp_path.iterdir())


def test_an_estimator_with_prediction_early_stopping_is_not_saved(frame, score, tmp_path):
    labels = score > score.median()
    early = {"pred_early_stop": True, "pred_early_stop_margin": 0.01, "pred_early_stop_freq": 1}
    estimator = lgb.LGBMClassifier(**QUIET, **early).fit(frame, labels)
    with pytest.raises(GoldenRowMismatch, match="pred_early_stop"):
        save(estimator, tmp_path / "m.txt", sample=frame, name="m", version="1")
    assert not list(tmp_path.iterdir())


def test_a_sample_the_estimator_does_not_accept_is_refused_with_advice(frame, score, tmp_path):
    estimator = lgb.LGBMRegressor(**QUIET).fit(frame, score)
    for sample in (frame.assign(label=score), frame.astype({"side": str}), frame[:0], frame.to_numpy()):
        with pytest.raises(ManifestError, match=r"does not accept the sample .* without the label"):
            save(estimator, tmp_path / "m.txt", sample=sample, name="m", version="1")
    with pytest.raises(TypeError, match="path"):
        save(estimator, tmp_path / "m.txt", sample=frame, name="m", version="1", path=tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match="absent"):
        save(estimator, tmp_path / "absent" / "m.txt", sample=frame, name="m", version="1")
    assert not list(tmp_path.iterdir())


def test_a_nested_pipeline_is_saved_as_its_estimator(frame, score, tmp_path):
    pipeline = make_pipeline(make_pipeline(lgb.LGBMRegressor(**QUIET))).fit(frame, score)
    save(pipeline, tmp_path / "m.txt", sample=frame, name="m", version="1")
    assert Model.load(tmp_path / "m.txt").predict(frame).tolist() == pipeline.predict(frame).tolist()


@pytest.mark.parametrize("kind", ["multiclass", "forest", "dart", "linear", "categories_missing"])
def test_num_iteration_and_staged_predictions_match_lightgbm(trained, kind):
    subject = trained(kind)
    rows, whole = subject.rows, subject.load()
    for count in (1, 3, 6, 99):
        model = subject.load(num_iteration=count)
        assert model.predict(rows).tolist() == subject.truth(rows, num_iteration=min(count, 6)).tolist()
        assert model.info.n_trees == min(count, 6) * model.info.n_classes
        assert np.array_equal(model.predict_row(rows[0]), np.atleast_1d(model.predict(rows)[0]))
        assert model.leaves(rows).shape == (len(rows), model.info.n_trees)
        assert sum(splits for splits, _ in model.importances().values()) <= sum(
            splits for splits, _ in whole.importances().values()
        )
    stages = dict(whole.staged(rows, [1, 4, 6]))
    assert list(stages) == [1, 4, 6]
    for count, answers in stages.items():
        assert answers.tolist() == subject.truth(rows, num_iteration=count).tolist()
    raw = dict(whole.staged(rows, [2], raw=True))[2]
    assert raw.tolist() == subject.truth(rows, num_iteration=2, raw_score=True).tolist()
    for bad in (0, -1):
        with pytest.raises(ValueError, match="num_iteration must be at least 1"):
            subject.load(num_iteration=bad)


def test_slot_rollback_restores_the_number_of_iterations(trained):
    subject = trained("binary")
    slot = ModelSlot(subject.load(num_iteration=2))
    before = slot.current.predict(subject.rows).tolist()
    slot.swap(subject.path)
    assert slot.current.predict(subject.rows).tolist() != before
    slot.rollback()
    assert slot.current.predict(subject.rows).tolist() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_keeps_the_number_of_iterations(trained):
    subject = trained("binary")
    model = subject.load(num_iteration=2)
    expected = model.predict(subject.rows).tolist()
    results = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: results.put(model.predict(subject.rows).tolist())
    )
    child.start()
    assert results.get() == expected
    child.join()


@pytest.mark.parametrize("given", [["b", "a", "c d"], ["b", "c_d", "a"], ["x", "a", "c d"]])
def test_names_of_the_model_in_another_order_are_refused(given, tmp_path):
    """LightGBM reads a frame by position, so its own answers would not show that columns have changed places."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(200, 3)), columns=["a", "b", "c d"])
    estimator = lgb.LGBMRegressor(**QUIET).fit(frame, frame["a"] * 3 - frame["b"])
    path = tmp_path / "m.txt"
    moved = frame.set_axis(given, axis=1)
    with pytest.raises(
        ManifestError, match=r"names: '\w+' is the name of feature \d in the model file, not of"
    ):
        save(estimator, path, sample=moved, name="m", version="1", names=given)
    assert not path.exists()
    for names in (["a", "b", "c d"], ["a", "b", "c_d"], ["x", "y", "z"], ["x", "b", "z"]):
        moved = frame.set_axis(names, axis=1)
        save(estimator, path, sample=moved, name="m", version="1", names=names)
        shuffled = moved[sorted(names, reverse=True)]
        assert Model.load(path).predict(shuffled).tolist() == estimator.predict(frame, num_threads=1).tolist()


@pytest.mark.parametrize("labels", [["BUY", "HOLD", "SELL"], [0, 1, 2], [-1, 0, 1]])
def test_class_labels_of_the_estimator_in_another_order_are_refused(labels, tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 2))
    y = np.array(labels)[np.digitize(x[:, 0], [-0.5, 0.5])]
    estimator = lgb.LGBMClassifier(**QUIET).fit(pd.DataFrame(x, columns=["a", "b"]), y)
    sample, path = pd.DataFrame(x, columns=["a", "b"]), tmp_path / "m.txt"
    turned = labels[::-1]
    for wrong in (turned, np.array(turned), list(map(str, turned)), [labels[1], "x", "y"]):
        with pytest.raises(
            ManifestError, match=r"classes: .* is class \d of the estimator, not \d; its order"
        ):
            save(estimator, path, sample=sample, name="m", version="1", classes=wrong)
    assert not path.exists()
    for given, told in (
        (None, labels),
        ([], [0, 1, 2]),
        (labels, labels),
        (["low", "middle", "high"], ["low", "middle", "high"]),
    ):
        save(estimator, path, sample=sample, name="m", version="1", classes=given)
        model = Model.load(path)
        asked = [labels.index(label) for label in estimator.predict(sample, num_threads=1).tolist()]
        assert model.predict_label(sample).tolist() == [told[index] for index in asked]


FORMS = [
    "csr_matrix",
    "csr_array",
    "csc_matrix",
    "coo_matrix",
    "dok_matrix",
    "dok_array",
    "lil_array",
    "bsr_array",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["zero_as_missing", "binary_missing", "binary_categories"])
def test_sparse_rows_predict_like_lightgbm(trained, form, kind):
    subject = trained(kind)
    dense = np.where(np.random.default_rng(0).random(subject.rows.shape) < 0.5, 0.0, subject.rows)
    rows = getattr(sp, form)(dense)
    expected = subject.truth(dense).tolist()
    assert subject.truth(sp.csr_matrix(dense)).tolist() == expected
    model = subject.load()
    assert model.predict(rows).tolist() == expected
    assert np.array_equal(model.encode(rows), dense, equal_nan=True)
    few = getattr(sp, form)(dense[:3])
    assert np.array_equal(model.explain(few).contributions, model.explain(dense[:3]).contributions)
    assert np.array_equal(model.leaves(few), model.leaves(dense[:3]))
    assert model.predict_row(getattr(sp, form)(dense[:1])).tolist() == model.predict_row(dense[0]).tolist()
    assert model.predict(rows.tocsr()[:0]).shape == (0,)


def test_sparse_rows_are_checked_by_the_same_policy(strict):
    model = strict.load()
    for value, reason in ((np.nan, "is null"), (np.inf, "is infinite")):
        rows = sp.csr_matrix(np.array([[1.0, value, 0, 0, 0]]))
        with pytest.raises(SchemaError, match=f"'b': {reason}"):
            model.predict(rows)
    with pytest.raises(SchemaError, match="4 columns for 5 features"):
        model.predict(sp.csr_matrix((2, 4)))
    for cells, reason in (
        (np.array([[1, 2**53 + 1, 0, 0, 0]]), "'b': 9007199254740993 is not exact as float64"),
        (np.array([[True, True, False, False, False]]), "'a': is a boolean"),
        (np.array([[1, 2j, 0, 0, 0]]), "'a': is complex"),
        (np.array([[1, 0.5, 0, 0, 0]], dtype=np.longdouble), "'a': is longdouble"),
    ):
        for call in (model.predict, model.predict_proba, model.predict_row, model.explain):
            with pytest.raises(SchemaError, match=reason):
                call(sp.csr_matrix(cells))
    whole = np.array([[1, 2**53, 0, 3, 0]])
    assert model.predict(sp.csr_matrix(whole)).tolist() == model.predict(whole.astype(float)).tolist()
    twice = sp.csr_matrix((np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 2])), shape=(1, 5))
    with pytest.raises(SchemaError, match=r"there twice; call its sum_duplicates"):
        model.predict(twice)


def retrained(frame, score):
    """A booster that was trained further and refitted, with a leaf replaced and its trees shuffled."""
    data = lgb.Dataset(frame, score, free_raw_data=False)
    booster = lgb.train(
        {"verbose": -1, "num_threads": 1, "min_data_per_group": 5}, data, 6, keep_training_booster=True
    )
    booster.update()
    booster = booster.refit(frame, score + 1)
    booster.set_leaf_output(0, 0, 3.25)
    return booster.shuffle_models()


def unpickled(frame, score):
    return pickle.loads(
        pickle.dumps(lgb.LGBMClassifier(**QUIET).fit(frame, quantile_labels(["SELL", "HOLD", "BUY"])(score)))
    )


def reloaded(frame, score):
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(frame, score), 5)
    return lgb.Booster(model_str=booster.model_to_string())


def squared_error(truth, scores):
    return scores - truth, np.ones_like(truth, dtype=float)


UNUSUAL = {
    "retrained": retrained,
    "unpickled": unpickled,
    "reloaded": reloaded,
    "forest": lambda x, y: lgb.LGBMClassifier(
        boosting_type="rf", bagging_freq=1, bagging_fraction=0.6, **QUIET
    ).fit(x, quantile_labels(["a", "b", "c"])(y)),
    "dart": lambda x, y: lgb.LGBMRegressor(boosting_type="dart", **QUIET).fit(x, y),
    "linear": lambda x, y: lgb.LGBMRegressor(linear_tree=True, **QUIET).fit(x, y),
    "monotone": lambda x, y: lgb.LGBMRegressor(monotone_constraints=[1, 0, 0, -1], **QUIET).fit(x, y),
    "weighted": lambda x, y: lgb.LGBMClassifier(class_weight={"no": 3, "yes": 0.5}, **QUIET).fit(
        x, quantile_labels(["no", "yes"])(y)
    ),
    "custom objective": lambda x, y: lgb.LGBMRegressor(objective=squared_error, **QUIET).fit(x, y),
    "parameters of predict": lambda x, y: lgb.LGBMClassifier(
        start_iteration_predict=2, num_iteration_predict=3, predict_raw_score=True, **QUIET
    ).fit(x, quantile_labels(["no", "yes"])(y)),
    "categories by index": lambda x, y: lgb.LGBMRegressor(**QUIET).fit(
        x.assign(side=x["side"].cat.codes), y, categorical_feature=[1]
    ),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_estimators_predict_the_same_after_saving(kind, frame, score, tmp_path):
    estimator = UNUSUAL[kind](frame, score.to_numpy())
    sample = frame.assign(side=frame["side"].cat.codes) if kind == "categories by index" else frame
    save(estimator, tmp_path / "m.txt", sample=sample, name="m", version="1")
    model = Model.load(tmp_path / "m.txt")
    if hasattr(estimator, "predict_proba"):
        assert model.predict_proba(sample).tolist() == estimator.predict_proba(sample, num_threads=1).tolist()
        assert model.predict_label(sample).tolist() == estimator.predict(sample, num_threads=1).tolist()
    else:
        assert model.predict(sample).tolist() == estimator.predict(sample, num_threads=1).tolist()
