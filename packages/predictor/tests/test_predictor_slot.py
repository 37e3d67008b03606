"""A slot changes its model without errors, mixed batches or leaks, and refuses a bad model."""

from __future__ import annotations

import gc
import json
import threading
import weakref

import numpy as np
import pytest

from predictor import (
    Batcher,
    Golden,
    GoldenRowMismatch,
    Manifest,
    ManifestError,
    ModelError,
    ModelSlot,
    manifest_path,
    sha256_of,
)


@pytest.fixture
def two_models(train_model):
    """Two models over the same features that disagree on every row."""
    a = train_model("a", {"objective": "regression"}, rounds=3)
    b = train_model("b", {"objective": "regression"}, rounds=9)
    assert (a.load().predict(a.rows) != b.load().predict(a.rows)).all()
    return a, b


def test_a_swap_serves_the_new_model(two_models):
    a, b = two_models
    slot = ModelSlot(a.load())
    info = slot.swap(b.path)
    assert (info.name, slot.current.info.name) == ("b", "b")
    assert (slot.current.predict(a.rows) == b.truth(a.rows)).all()


def test_two_hundred_swaps_under_load_cause_no_error_and_no_mixed_batch(two_models):
    a, b = two_models
    rows = a.rows[:64]
    answers = {name: subject.load().predict(rows).tobytes() for name, subject in (("a", a), ("b", b))}
    slot, stop, faults, seen = ModelSlot(a.load()), threading.Event(), [], set()

    def serve() -> None:
        while not stop.is_set():
            try:
                model = slot.current
                batch, one = model.predict(rows).tobytes(), model.predict_row(rows[0]).tobytes()
                if batch != answers[model.info.name] or one != batch[:8]:
                    faults.append(model.info.name)
                seen.add(model.info.name)
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(200):
        slot.swap((b, a)[turn % 2].path)
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert seen == {"a", "b"}


def test_the_old_model_is_freed_after_its_last_call(two_models):
    a, b = two_models
    slot = ModelSlot(a.load())
    old = weakref.ref(slot.current)
    reader = slot.current
    slot.swap(b.path)
    gc.collect()
    assert old() is reader  # a reader still uses it
    assert (reader.predict(a.rows) == a.truth(a.rows)).all()
    del reader
    gc.collect()
    assert old() is None


def test_a_corrupt_file_leaves_the_old_model_in_place(two_models):
    a, b = two_models
    slot = ModelSlot(a.load())
    served = slot.current
    good = b.path.read_bytes()
    for damaged in (
        good[:-300],
        good.replace(b"leaf_value=", b"leaf_value=1", 1),
        good.replace(b"\n", b"\r\n"),
        b"",
    ):
        b.path.write_bytes(damaged)
        with pytest.raises(ModelError):
            slot.swap(b.path)
        assert slot.current is served
    b.path.unlink()
    with pytest.raises(FileNotFoundError):
        slot.swap(b.path)
    assert slot.current is served


def test_golden_rows_passed_to_swap_are_checked(two_models):
    a, b = two_models
    slot, rows = ModelSlot(a.load()), a.rows[:3].tolist()
    right = [[score] for score in b.truth(a.rows[:3], raw_score=True)]
    with pytest.raises(GoldenRowMismatch):
        slot.swap(b.path, golden=Golden(rows=rows, raw=[[0.0]] * 3))
    assert slot.current.info.name == "a"
    for wrong in (right[:2], [[1.0], [2.0, 3.0], [4.0]], [["x"]] * 3):
        with pytest.raises(ManifestError, match="golden rows do not fit"):
            slot.swap(b.path, golden=Golden(rows=rows, raw=wrong))
    assert slot.current.info.name == "a"
    assert slot.swap(b.path, golden=Golden(rows=rows, raw=right)).name == "b"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda m: {"features": [*m["features"][1:], m["features"][0]]},
            "features: the served model has .*, the new one has",
        ),
        (lambda m: {"features": [m["features"][0] | {"name": "z"}, *m["features"][1:]]}, "'z', 'b'"),
        (lambda m: {"classes": ["yes", "no"]}, r"classes: the served model has \('no', 'yes'\)"),
        (lambda m: {"classes": []}, "classes"),
    ],
    ids=["order", "names", "classes", "no classes"],
)
def test_swap_refuses_other_features_or_classes_unless_other_signature_is_set(
    train_model, tmp_path, change, reason
):
    """Waiting rows, and rows in the old order, would be read as other rows."""
    names = ["a", "b", "c", "d", "e"]
    old = train_model("old", {"objective": "binary", "target": 2})
    slot = ModelSlot(old.load())
    members = json.loads(manifest_path(old.path).read_text())
    changed = change(members)
    text = old.path.read_text()
    if [f["name"] for f in changed.get("features", [])] == [*names[1:], names[0]]:
        text = text.replace("feature_names=a b c d e", "feature_names=b c d e a")
        changed["features"] = [f | {"reference": None} for f in changed["features"]]
    path = tmp_path / "new.txt"
    path.write_text(text)
    new = Manifest.model_validate(
        members | changed | {"sha256": sha256_of(path.read_bytes()), "golden": [], "version": "2"}
    )
    with pytest.raises(ModelError, match=reason):
        slot.swap(path, manifest=new)
    assert slot.current.info.version == "1"
    assert slot.swap(path, manifest=new, other_signature=True).version == "2"
    assert slot.rollback().version == "1"


def test_swap_refuses_another_kind_of_output(train_model):
    binary = train_model("binary", {"objective": "binary", "target": 2})
    value = train_model("value", {"objective": "regression"})
    three = train_model("three", {"objective": "multiclass", "num_class": 3, "target": 3})
    for first, second, reason in (
        (binary, value, "output kind"),
        (three, binary, "output"),
        (value, three, "output"),
    ):
        slot = ModelSlot(first.load())
        with pytest.raises(ModelError, match=reason):
            slot.swap(second.path)
        assert slot.current.info.name == first.path.stem


def test_swap_may_add_class_names(train_model):
    subject = train_model("named", {"objective": "binary", "target": 2})
    named = Manifest.read(manifest_path(subject.path))
    slot = ModelSlot(subject.load(manifest=named.model_copy(update={"classes": ()})))
    assert slot.swap(subject.path).classes == ("no", "yes")


def test_adopt_serves_a_model_that_is_already_loaded(two_models):
    a, b = two_models
    slot, loaded = ModelSlot(a.load()), b.load()
    assert slot.adopt(loaded) == loaded.info
    assert slot.current is loaded
    assert slot.rollback().name == "a"


def test_adopt_of_a_path_is_refused_and_the_old_model_still_serves(two_models):
    a, b = two_models
    slot = ModelSlot(a.load())
    with pytest.raises(TypeError, match=r"adopt takes a loaded Model, not .*Path; to serve a file, use swap"):
        slot.adopt(b.path)
    assert slot.current.info.name == "a"
    with pytest.raises(ModelError, match="nothing to roll back to"):
        slot.rollback()


def test_rollback_needs_no_file_and_can_be_undone(two_models):
    a, b = two_models
    slot = ModelSlot(a.load())
    with pytest.raises(ModelError, match="nothing to roll back to"):
        slot.rollback()
    slot.swap(b.path)
    a.path.unlink()
    manifest_path(a.path).unlink()
    assert slot.rollback().name == "a"
    assert (slot.current.predict(a.rows) == a.truth(a.rows)).all()
    assert slot.rollback().name == "b"


@pytest.mark.anyio
async def test_each_batch_is_answered_by_one_model_during_swaps(two_models):
    import asyncio

    a, b = two_models
    expected = {"a": a.load().predict(a.rows), "b": b.load().predict(a.rows)}
    members = {name: subject.load().manifest for name, subject in (("a", a), ("b", b))}
    manifests = {name: m.model_copy(update={"version": name}) for name, m in members.items()}
    slot = ModelSlot(a.load(manifest=manifests["a"]))
    batcher = Batcher(slot)
    seen = set()
    for turn in range(20):
        asked = [asyncio.ensure_future(batcher.predict(row)) for row in a.rows[:64]]
        await asyncio.sleep(0)  # queued, not yet flushed
        name = "ba"[turn % 2]
        slot.swap((b, a)[turn % 2].path, manifest=manifests[name])
        answers = await asyncio.gather(*asked)
        assert len({answer.version for answer in answers}) == 1
        version = answers[0].version
        seen.add(version)
        assert np.array_equal([answer.values[0] for answer in answers], expected[version][:64])
    assert seen == {"a", "b"}
