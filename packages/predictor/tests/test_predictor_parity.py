"""Predictions of batches and single rows equal LightGBM's bit for bit, and contributions to 1e-12."""

from __future__ import annotations

import itertools

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from predictor import Model, RowPolicy, Unsupported, write_manifest
from predictor.integrity import sha256_of

LENIENT = RowPolicy(null="allow", infinite="allow", unseen="allow")


def same_bits(a, b) -> bool:
    a, b = np.ascontiguousarray(a, dtype=np.float64), np.ascontiguousarray(b, dtype=np.float64)
    return a.shape == b.shape and bool((a.view(np.int64) == b.view(np.int64)).all())


def test_batches_equal_booster_predict_on_training_rows_and_on_hard_rows(any_model, hard_rows):
    model = any_model.load()
    for rows in (any_model.rows, hard_rows(any_model.booster)):
        assert same_bits(model.predict(rows), any_model.truth(rows))
        assert same_bits(model.predict(rows, raw=True), any_model.truth(rows, raw_score=True))
        assert (model.leaves(rows) == any_model.truth(rows, pred_leaf=True)).all()


def test_predict_row_equals_the_batch_in_every_form_of_row(any_model, hard_rows):
    model = any_model.load()
    rows = hard_rows(any_model.booster, count=300)
    batch = model.predict(rows).reshape(len(rows), -1)
    names = model.info.features
    for row, expected in zip(rows, batch, strict=True):
        values = row.tolist()
        assert same_bits(model.predict_row(values), expected)
        assert same_bits(model.predict_row(row), expected)
        assert same_bits(model.predict_row(dict(zip(names, values, strict=True))), expected)


def same_shares(model: Model, got, expected) -> bool:
    """Compare contributions: those of LightGBM bit for bit, those of the kernel to 1e-12 of the largest one."""
    if model.info.engine.startswith("LightGBM"):
        return same_bits(got, expected)
    return bool((np.abs(got - expected) <= 1e-12 * np.abs(expected).max()).all())


def test_contributions_equal_booster_predict(any_model, hard_rows):
    model = any_model.load()
    if model.is_linear:
        with pytest.raises(Unsupported, match="linear"):
            model.explain(any_model.rows)
        return
    rows = hard_rows(any_model.booster, count=100)
    explanation = model.explain(rows)
    joined = np.concatenate([explanation.contributions, explanation.bias[..., None]], axis=-1)
    assert same_shares(model, joined.reshape(len(rows), -1), any_model.truth(rows, pred_contrib=True))


def test_predict_encoded_accepts_any_memory_layout(trained):
    subject = trained("multiclass")
    model, rows = subject.load(), subject.rows
    wide = np.repeat(rows, 2, axis=1)
    for laid in (np.asfortranarray(rows), wide[:, ::2], rows[::-1][::-1]):
        assert same_bits(model.predict_encoded(laid), subject.truth(rows))


def test_predictions_on_several_threads_match_lightgbm_bit_for_bit(trained, monkeypatch):
    model = trained("multiclass").load(threads=4)
    model._runtime.threads = 4  # as on a machine with four processors
    model._runtime.split_above, model._plain_matrix = 1.0, None  # else so few rows are predicted in one call
    rows = np.tile(trained("multiclass").rows, (3, 1))
    assert same_bits(model.predict(rows), trained("multiclass").truth(rows))
    assert (model.leaves(rows) == trained("multiclass").truth(rows, pred_leaf=True)).all()


def test_nan_and_infinity_take_different_branches_at_an_infinite_threshold(tmp_path):
    """A split of NaN against all numbers is stored as `threshold=inf`; some engines send +inf the way of NaN."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    x[::3, 0] = np.nan
    path = tmp_path / "m.txt"
    data = lgb.Dataset(x, 3.0 * np.isnan(x[:, 0]) + x[:, 1])
    booster = lgb.train({"verbose": -1, "num_threads": 1}, data, 3)
    booster.save_model(path)
    assert "threshold=inf " in path.read_text()
    rows = np.array([[np.nan, 0.0], [np.inf, 0.0], [1e300, 0.0]])
    write_manifest(path, x, name="m", version="1", policy=LENIENT)
    answers = Model.load(path).predict(rows)
    assert same_bits(answers, np.asarray(booster.predict(rows, num_threads=1)))
    assert answers[0] != answers[1] == answers[2]


def test_values_near_zero_are_missing_with_zero_as_missing(trained):
    subject = trained("zero_as_missing")
    rows = np.repeat(subject.rows[:1], 4, axis=0)
    rows[:, 0] = (0.0, 1e-36, np.nan, -0.0)
    answers = subject.load().predict(rows)
    assert same_bits(answers, subject.truth(rows))
    assert len(set(answers.tolist())) == 1


OBJECTIVES = st.sampled_from(
    [
        {"objective": "regression"},
        {"objective": "regression", "reg_sqrt": True},
        {"objective": "binary"},
        {"objective": "multiclass", "num_class": 3},
        {"objective": "poisson"},
        {"objective": "quantile", "alpha": 0.8},
        {"objective": "tweedie"},
        {"objective": "binary", "is_unbalance": True, "sigmoid": 0.7},
    ]
)
SHAPES = st.fixed_dictionaries(
    {
        "num_leaves": st.integers(2, 24),
        "max_bin": st.integers(3, 60),
        "use_missing": st.booleans(),
        "zero_as_missing": st.booleans(),
        "extra_trees": st.booleans(),
        "linear_tree": st.booleans(),
    }
)
CELL = st.one_of(st.floats(width=64), st.integers(-3, 20).map(float), st.just(np.nan))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    objective=OBJECTIVES,
    shape=SHAPES,
    seed=st.integers(0, 10**6),
    cells=st.lists(CELL, min_size=4, max_size=40),
)
def test_random_models_and_rows_match_lightgbm_bit_for_bit(
    tmp_path, hard_rows, objective, shape, seed, cells
):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(120, 4)).round(rng.integers(0, 4))
    x[:, 3] = rng.integers(0, 9, 120)
    x[rng.random(x.shape) < rng.choice([0.0, 0.3])] = np.nan
    y = rng.integers(0, objective.get("num_class", 2), 120)
    if shape["linear_tree"]:
        shape = shape | {"zero_as_missing": False}  # LightGBM refuses the two together
    settings_ = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 3, "seed": seed}
    booster = lgb.train(
        settings_ | objective | shape, lgb.Dataset(x, y, categorical_feature=[3]), num_boost_round=3
    )
    path = tmp_path / "any.txt"
    booster.save_model(path)
    write_manifest(path, x, name="any", version="1", policy=LENIENT)
    model = Model.load(path)
    own = lgb.Booster(model_file=path)
    drawn = np.array(list(itertools.islice(itertools.cycle(cells), 4 * len(cells)))).reshape(-1, 4)
    for rows in (drawn, hard_rows(own, seed=seed, count=60)):
        expected = np.asarray(own.predict(rows, num_threads=1))
        assert same_bits(model.predict(rows), expected)
        for row, answer in zip(rows[:5], expected[:5], strict=True):
            assert same_bits(model.predict_row(row.tolist()), np.atleast_1d(answer))


def test_a_model_file_without_objective_has_raw_output(tmp_path):
    """The file of a custom objective has no objective line: its scores must not pass for probabilities."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    y = (x[:, 0] > 0).astype(float)

    def loss(scores, dataset):
        p = 1 / (1 + np.exp(-scores))
        return p - dataset.get_label(), p * (1 - p)

    booster = lgb.train({"objective": loss, "verbose": -1, "num_threads": 1}, lgb.Dataset(x, y), 5)
    path = tmp_path / "own.txt"
    booster.save_model(path)
    model = Model.load(path, sha256=sha256_of(path.read_bytes()))
    assert model.info.output == "raw"
    assert same_bits(model.predict(x), np.asarray(booster.predict(x, num_threads=1)))
