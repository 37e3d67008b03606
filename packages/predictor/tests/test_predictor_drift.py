"""Drift is counted per feature against the manifest, also for rows that the policy of the model refuses."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from predictor import DriftMonitor, Feature, Manifest, ManifestError, Model, SchemaError, write_manifest
from predictor.drift import population_stability_index


@pytest.fixture
def monitor(trained, tmp_path):
    subject = trained("binary_categories")
    return DriftMonitor(
        write_manifest(
            subject.path, subject.rows, name="x", version="1", path=tmp_path / "m.json", integers=[]
        )
    )


def by_name(monitor):
    return {drift.feature: drift for drift in monitor.report()}


def test_the_sample_itself_has_not_drifted(monitor, trained):
    monitor.observe(trained("binary_categories").rows)
    for drift in monitor.report():
        assert (drift.rows, drift.nulls, drift.below, drift.above, drift.unseen) == (400, 0, 0, 0, 0)
        assert drift.psi == pytest.approx(0, abs=1e-12)


def test_nulls_ranges_and_unseen_categories_are_counted(monitor, trained):
    rows = trained("binary_categories").rows[:6].tolist()
    rows[0][0] = None
    rows[1][0] = 1e9
    rows[2][0] = -1e9
    rows[3][0] = float("inf")
    rows[4][4] = 77
    monitor.observe(rows)
    monitor.observe([dict(zip("abcd", rows[5], strict=False))])  # a missing "e" counts as null
    found = by_name(monitor)
    assert (found["a"].nulls, found["a"].below, found["a"].above) == (1, 1, 2)
    assert (found["e"].unseen, found["e"].nulls, found["e"].rows) == (1, 1, 7)
    assert (found["b"].nulls, found["b"].below, found["b"].above) == (0, 0, 0)


def test_shifted_features_have_a_high_psi_and_unchanged_features_a_low_one(monitor, trained):
    rows = trained("binary_categories").rows.copy()
    rows[:, 1] += 1.5
    rows[:, 4] = 3.0
    monitor.observe(rows)
    found = by_name(monitor)
    assert found["a"].psi < 0.01
    assert found["b"].psi > 0.25
    assert found["e"].psi > 0.25


def test_text_in_a_numeric_feature_is_refused_and_not_counted(monitor):
    with pytest.raises(SchemaError):
        monitor.observe([["x", 1, 2, 3, 4]])
    assert [drift.rows for drift in monitor.report()] == [0] * 5
    assert [drift.psi for drift in monitor.report()] == [None] * 5


def test_reset_clears_the_counts(monitor, trained):
    monitor.observe(trained("binary_categories").rows)
    monitor.reset()
    assert by_name(monitor)["a"].rows == 0


def test_concurrent_observe_calls_lose_no_counts(monitor, trained):
    rows = trained("binary_categories").rows[:10]
    threads = [threading.Thread(target=lambda: [monitor.observe(rows) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert by_name(monitor)["a"].rows == 800


def test_features_without_a_reference_have_counts_but_no_psi(trained, tmp_path):
    made = trained("regression").load().manifest
    bare = [Feature(name=f.name, model_name=f.model_name, min=0.0, max=1.0) for f in made.features]
    monitor = DriftMonitor(made.model_copy(update={"features": tuple(bare)}))
    monitor.observe([[-1.0, 0.5, 2.0, 0.0, 1.0]])
    assert [(d.below, d.above, d.psi) for d in monitor.report()][:3] == [
        (1, 0, None),
        (0, 0, None),
        (0, 1, None),
    ]


SHARES = st.lists(st.floats(0.001, 1), min_size=4, max_size=4).map(
    lambda weights: np.array(weights) / sum(weights)
)


@given(SHARES, SHARES)
def test_psi_is_symmetric_non_negative_and_zero_only_for_equal_shares(a, b):
    index = population_stability_index(a, b)
    assert index >= 0
    assert index == pytest.approx(population_stability_index(b, a))
    assert population_stability_index(a, a) == 0
    assert index > 0 or np.allclose(a, b)


def test_psi_matches_a_worked_example():
    assert population_stability_index(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == pytest.approx(
        -0.25 * np.log(0.5) + 0.25 * np.log(1.5)
    )
    with pytest.raises(ManifestError, match="bins"):
        population_stability_index(np.array([1.0]), np.array([0.5, 0.5]))


@pytest.mark.parametrize(
    ("kind", "labels"), [("binary_categories", ["yes"]), ("multiclass", None), ("regression", [None])]
)
def test_answer_drift_is_measured_against_the_sample(kind, labels, trained, tmp_path):
    subject = trained(kind)
    classes = subject.load().info.classes
    made = write_manifest(
        subject.path, subject.rows, name="x", version="1", classes=classes, path=tmp_path / "m.json"
    )
    monitor = DriftMonitor(made)
    assert {drift.psi for drift in monitor.answers()} == {None}
    answers = Model.load(subject.path, manifest=made).predict(subject.rows)
    monitor.observe(subject.rows, answers)
    same = monitor.answers()
    assert [drift.output for drift in same] == (labels or list(classes))
    assert all((drift.rows, drift.psi) == (len(answers), pytest.approx(0, abs=1e-12)) for drift in same)
    monitor.reset()
    monitor.observe(subject.rows)  # without answers, none are counted
    assert {drift.rows for drift in monitor.answers()} == {0}
    top = np.argsort(answers.reshape(len(answers), -1)[:, 0])[-50:]
    monitor.observe(subject.rows[top], answers[top])
    assert max(drift.psi for drift in monitor.answers()) > 0.25


def test_a_manifest_without_answers_has_no_answer_drift(trained):
    subject = trained("binary")
    old = subject.load().manifest.model_copy(update={"answers": ()})
    monitor = DriftMonitor(Manifest.model_validate_json(old.model_dump_json()))
    monitor.observe(subject.rows, subject.truth(subject.rows))
    assert monitor.answers() == ()
    with pytest.raises(ValidationError, match="2 distributions of answers for 1 outputs"):
        Manifest.model_validate(
            old.model_dump() | {"answers": [{"count": 1, "null_share": 0, "shares": [1.0]}] * 2}
        )


@pytest.mark.parametrize(
    ("kind", "rows", "answers", "reason"),
    [
        ("multiclass", 2, np.zeros((2, 2)), r"the shape \(2, 2\), but 2 rows of this model give \(2, 3\)"),
        ("multiclass", 3, np.zeros(3), r"the shape \(3,\), but 3 rows"),
        ("binary", 2, np.zeros((2, 2)), r"the shape \(2, 2\), but 2 rows of this model give \(2, 1\)"),
        ("binary", 2, np.zeros(3), r"the shape \(3,\), but 2 rows"),
        ("binary", 1, 0.5, r"the shape \(\), but 1 rows"),
        ("binary", 2, [[0.5], [0.5, 0.5]], "rows of the answers differ in length"),
        ("binary", 2, ["yes", "no"], "the answers are <U3, not numbers"),
        ("binary", 2, [None, 0.5], "the answers are object, not numbers"),
    ],
)
@pytest.mark.parametrize("is_old", [False, True])
def test_answers_of_the_wrong_shape_or_type_are_refused_and_not_counted(
    kind, rows, answers, reason, is_old, trained
):
    made = trained(kind).load().manifest
    monitor = DriftMonitor(made.model_copy(update={"answers": ()}) if is_old else made)
    with pytest.raises(SchemaError, match=reason):
        monitor.observe(trained(kind).rows[:rows], answers)
    assert {drift.rows for drift in (*monitor.report(), *monitor.answers())} == {0}


@pytest.mark.parametrize("kind", ["multiclass", "binary", "regression"])
def test_an_empty_batch_counts_nothing(kind, trained):
    model = trained(kind).load()
    monitor = DriftMonitor(model.manifest)
    monitor.observe([], model.predict([]))
    monitor.observe(np.empty((0, 5)), [])
    assert {drift.rows for drift in (*monitor.report(), *monitor.answers())} == {0}
    assert {drift.psi for drift in (*monitor.report(), *monitor.answers())} == {None}


def test_nan_answers_count_as_rows_of_their_output(trained):
    subject = trained("binary")
    monitor = DriftMonitor(subject.load().manifest)
    monitor.observe(subject.rows[:3], [0.5, np.nan, 1])
    monitor.observe(subject.rows[:4])
    assert ([drift.rows for drift in monitor.answers()], by_name(monitor)["a"].rows) == ([3], 7)
