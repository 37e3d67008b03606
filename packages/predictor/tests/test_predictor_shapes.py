"""Shapes of results for one to three outputs and none to five rows; contributions and their order."""

from __future__ import annotations

import dataclasses
import gc
import pickle

import numpy as np
import pytest

from predictor import Explanation, Model, Unsupported
from predictor.integrity import sha256_of

OUTPUTS = {"regression": 1, "two_class_softmax": 2, "multiclass": 3}


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_shapes_of_results_follow_the_outputs_and_rows(trained, kind, n):
    subject, k = trained(kind), OUTPUTS[kind]
    model, rows = subject.load(), subject.rows[:n]
    shape = (n,) if k == 1 else (n, k)
    assert model.predict(rows).shape == shape
    assert model.predict(rows, raw=True).shape == shape
    assert model.leaves(rows).shape == (n, model.info.n_trees)
    assert model.leaves(rows).dtype == np.int32
    explanation = model.explain(rows)
    assert explanation.contributions.shape == (*shape, 5)
    assert explanation.bias.shape == explanation.raw.shape == shape
    for row in rows:
        assert model.predict_row(row).shape == (k,)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "categories_missing", "poisson", "forest"])
def test_contributions_add_up_to_the_raw_score_not_to_the_probability(trained, kind):
    subject = trained(kind)
    model = subject.load()
    raw = model.predict(subject.rows, raw=True)
    explained = model.explain(subject.rows)
    assert explained.raw == pytest.approx(raw, abs=1e-9 * max(1.0, np.abs(raw).max()))
    assert np.abs(explained.raw - model.predict(subject.rows)).max() > 0.01


def test_top_lists_the_largest_absolute_contributions_first(trained):
    subject = trained("multiclass")
    explained = subject.load().explain(subject.rows[:3])
    top = explained.top(2, row=1, output="BUY")
    shares = explained.contributions[1, 2]
    assert [c.feature for c in top] == [
        subject.load().info.features[i] for i in np.argsort(-np.abs(shares))[:2]
    ]
    assert [c.value for c in top] == [shares[list("abcde").index(c.feature)] for c in top]
    assert explained.top(2, row=1, output=2) == top
    assert len(explained.top(99)) == 5
    assert explained.top(0) == []
    with pytest.raises(IndexError, match="'WAIT'"):
        explained.top(1, output="WAIT")
    for position in (3, -1):
        with pytest.raises(IndexError):
            explained.top(1, output=position)


def test_top_keeps_the_feature_order_of_equal_contributions():
    names = tuple(f"f{index}" for index in range(40))
    alike = np.where(np.arange(40) % 2, 1.0, -1.0)
    explained = Explanation(alike[None], np.zeros(1), names)
    assert [share.feature for share in explained.top(40)] == list(names)


def test_two_class_softmax_has_contributions_for_each_class(trained):
    subject = trained("two_class_softmax")
    explained = subject.load().explain(subject.rows[:1])
    for position, label in enumerate(("no", "yes")):
        shares = dict(zip("abcde", explained.contributions[0, position], strict=True))
        assert {c.feature: c.value for c in explained.top(5, output=label)} == shares


def test_contributions_of_a_binary_model_belong_to_the_second_class(trained):
    """The contributions are towards "yes"; for "no" every sign would be the opposite."""
    subject = trained("binary")
    explained = subject.load().explain(subject.rows[:1])
    assert len(explained.top(3)) == 3
    assert explained.top(3) == explained.top(3, output="yes") == explained.top(3, output=0)
    for nonsense in ("no", "maybe", 1):
        with pytest.raises(IndexError, match="the outputs are 'yes'"):
            explained.top(3, output=nonsense)
    by_number = dataclasses.replace(explained, classes=(0, 1))
    assert by_number.top(3, output=1) == explained.top(3)
    with pytest.raises(IndexError, match="the outputs are 1"):
        by_number.top(3, output=0)


def test_contributions_of_a_model_without_row_counts_are_refused(trained):
    text = b"".join(
        line
        for line in trained("regression").path.read_bytes().splitlines(keepends=True)
        if not line.startswith((b"leaf_count", b"internal_count"))
    )
    body = text[text.index(b"Tree=0") : text.index(b"end of trees")]
    sizes = [len(b"Tree=" + part) for part in body.split(b"Tree=")[1:]]
    head = text[: text.index(b"tree_sizes=")]
    text = (
        head + b"tree_sizes=" + b" ".join(b"%d" % n for n in sizes) + b"\n\n" + text[text.index(b"Tree=0") :]
    )
    model = Model.from_bytes(text, sha256=sha256_of(text))
    rows = trained("regression").rows
    assert (model.predict(rows) == trained("regression").load().predict(rows)).all()
    with pytest.raises(Unsupported, match="leaf_count"):
        model.explain(rows)


def test_multiclass_probabilities_sum_to_one_and_one_vs_all_do_not(trained):
    rows = trained("multiclass").rows
    assert trained("multiclass").load().predict(rows).sum(axis=1) == pytest.approx(1, abs=1e-12)
    model = trained("one_vs_all").load()
    assert model.info.output == "one_vs_all"
    assert np.abs(model.predict(rows).sum(axis=1) - 1).max() > 1e-3


def test_a_bound_call_keeps_its_model_alive(trained):
    model = trained("binary").load()
    row = trained("binary").rows[0]
    expected = model.predict_row(row)
    bound = model.predict_row
    del model
    gc.collect()
    assert (bound(row) == expected).all()


def test_returned_arrays_are_not_overwritten_by_later_calls(trained):
    model, rows = trained("multiclass").load(), trained("multiclass").rows
    first = model.predict_row(rows[0])
    kept = first.copy()
    model.predict_row(rows[1])
    assert (first == kept).all()


def test_arguments_that_lightgbm_would_ignore_are_type_errors(trained):
    model, rows = trained("binary").load(), trained("binary").rows
    for typo in ({"num_iterations": 5}, {"pred_early_stop": True}, {"predict_disable_shape_check": True}):
        with pytest.raises(TypeError):
            model.predict(rows, **typo)


def test_a_model_is_not_pickled(trained):
    with pytest.raises(TypeError, match=r"Model\.load in the other process"):
        pickle.dumps(trained("binary").load())


def test_info_describes_the_loaded_model(trained):
    info = trained("multiclass").load().info
    assert (info.name, info.version, info.n_trees, info.output) == ("multiclass", "1", 18, "probabilities")
    assert info.engine.startswith(("LightGBM 4.", "native kernel ("))
    assert info.engine.startswith("LightGBM") == bool(info.engine_reason)
    assert repr(trained("multiclass").load()) == "<Model multiclass 1: 18 trees, 5 features>"


def test_threads_below_one_are_refused(trained):
    with pytest.raises(ValueError, match="at least 1"):
        trained("binary").load(threads=0)
