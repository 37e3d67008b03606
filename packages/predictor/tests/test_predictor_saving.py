"""An estimator becomes a served model in one call; fewer iterations, stages and sparse rows answer as LightGBM."""

from __future__ import annotations

import multiprocessing
import os

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from predictor import (
    GoldenRowMismatch,
    Manifest,
    Model,
    ModelSlot,
    SchemaError,
    Unsupported,
    save,
)

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


def of_classes(labels):
    def target(score):
        edges = np.quantile(score, np.arange(1, len(labels)) / len(labels))
        return np.array(labels)[np.digitize(score, edges)]

    return target


ESTIMATORS = {
    "classifier of two": (lgb.LGBMClassifier, of_classes(["no", "yes"])),
    "classifier of three": (lgb.LGBMClassifier, of_classes(["SELL", "HOLD", "BUY"])),
    "classifier of numbers": (lgb.LGBMClassifier, of_classes([-1, 7])),
    "classifier of booleans": (lgb.LGBMClassifier, of_classes([False, True])),
    "regressor": (lgb.LGBMRegressor, lambda score: score),
}


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_an_estimator_is_saved_with_what_it_and_its_sample_know(tmp_path, frame, score, kind):
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
    assert model.predict_label(frame).tolist() == estimator.predict(frame, num_threads=1).tolist()
    row = frame.iloc[3].to_dict()
    assert model.predict_row(row).tolist() == np.atleast_2d(model.predict(frame).T).T[3].reshape(-1).tolist()


def test_a_booster_a_ranker_and_an_early_stopped_model_are_saved(tmp_path, frame, score):
    x = frame[["unit price"]].to_numpy()
    booster = lgb.train({"verbose": -1, "num_threads": 1}, lgb.Dataset(x, score), 5)
    ranker = lgb.LGBMRanker(**QUIET).fit(x, np.arange(400) % 4, group=[20] * 20)
    stopped = lgb.LGBMRegressor(**{**QUIET, "n_estimators": 60}).fit(
        x[:200],
        score[:200],
        eval_X=x[200:],
        eval_y=score[200:],
        callbacks=[lgb.early_stopping(2, verbose=False)],
    )
    assert 0 < stopped.best_iteration_ < 60
    for estimator in (booster, ranker, stopped):
        save(estimator, tmp_path / "m.txt", sample=x, name="m", version="1")
        model = Model.load(tmp_path / "m.txt")
        assert model.predict(x).tolist() == estimator.predict(x, num_threads=1).tolist()
        assert model.info.classes == ()


@pytest.mark.parametrize("steps", [(), ("passthrough",)])
def test_a_pipeline_of_nothing_but_an_estimator_is_that_estimator(steps, score, tmp_path):
    x = np.column_stack((score, score**2))
    labels = np.where(score > score.median(), "up", "down")
    pipeline = make_pipeline(*steps, lgb.LGBMClassifier(**QUIET)).fit(x, labels)
    assert save(pipeline, tmp_path / "m.txt", sample=x, name="m", version="1").classes == ("down", "up")
    model = Model.load(tmp_path / "m.txt")
    assert model.predict_label(x).tolist() == pipeline.predict(x).tolist()


def test_a_classifier_that_saw_one_class_is_refused_by_name(score, tmp_path):
    x = score.to_numpy()[:, None]
    estimator = lgb.LGBMClassifier(**QUIET).fit(x, np.full(len(x), "up"))
    with pytest.raises(Unsupported, match="one class, 'up'"):
        save(estimator, tmp_path / "m.txt", sample=x, name="m", version="1")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path, frame, score):
    x = frame[["unit price"]].fillna(0).to_numpy()
    pipeline = make_pipeline(StandardScaler(), lgb.LGBMRegressor(**QUIET)).fit(x, score)
    with pytest.raises(Unsupported, match=r"here 'standardscaler'.*sample=pipeline\[:-1\]\.transform"):
        save(pipeline, tmp_path / "m.txt", sample=x, name="m", version="1")
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


@pytest.mark.parametrize("kind", ["multiclass", "forest", "dart", "linear", "categories_missing"])
def test_fewer_iterations_answer_as_lightgbm_does(trained, kind):
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


def test_a_slot_goes_back_to_as_many_iterations_as_it_had(trained):
    subject = trained("binary")
    slot = ModelSlot(subject.load(num_iteration=2))
    before = slot.current.predict(subject.rows).tolist()
    slot.swap(subject.path)
    assert slot.current.predict(subject.rows).tolist() != before
    slot.rollback()
    assert slot.current.predict(subject.rows).tolist() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_keeps_to_its_number_of_iterations(trained):
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


@pytest.mark.parametrize("form", ["csr_matrix", "csr_array", "csc_matrix", "coo_matrix"])
@pytest.mark.parametrize("kind", ["zero_as_missing", "binary_missing", "binary_categories"])
def test_sparse_rows_answer_as_lightgbm_does(trained, form, kind):
    subject = trained(kind)
    dense = np.where(np.random.default_rng(0).random(subject.rows.shape) < 0.5, 0.0, subject.rows)
    rows = getattr(sp, form)(dense)
    expected = subject.truth(dense).tolist()
    assert subject.truth(sp.csr_matrix(dense)).tolist() == expected
    model = subject.load()
    assert model.predict(rows).tolist() == expected
    assert np.array_equal(model.encode(rows), dense, equal_nan=True)
    assert model.predict(rows.tocsr()[:0]).shape == (0,)


def test_sparse_rows_are_held_to_the_same_policy(strict):
    model = strict.load()
    for value, reason in ((np.nan, "is null"), (np.inf, "is infinite")):
        rows = sp.csr_matrix(np.array([[1.0, value, 0, 0, 0]]))
        with pytest.raises(SchemaError, match=f"'b': {reason}"):
            model.predict(rows)
    with pytest.raises(SchemaError, match="4 columns for 5 features"):
        model.predict(sp.csr_matrix((2, 4)))
    twice = sp.csr_matrix((np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 2])), shape=(1, 5))
    with pytest.raises(SchemaError, match=r"there twice; call its sum_duplicates"):
        model.predict(twice)
