"""`--reference` measures drift against another manifest, and refuses one that cannot be compared with the model."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from predictor import Manifest, manifest_path, write_manifest
from predictor.cli import main

NAMES = list("abcde")


def arguments(subject, folder, reference):
    rows = folder / "rows.parquet"
    pd.DataFrame(subject.rows, columns=NAMES).to_parquet(rows)
    return [str(subject.path), str(rows), "-o", str(folder / "out.html"), "--reference", str(reference)]


def run_predict(subject, folder, reference, capsys):
    """Run `predict` with *reference*; return its exit code and stderr."""
    command = arguments(subject, folder, reference)
    command[3] = str(folder / "out.csv")
    capsys.readouterr()
    return main(["predict", *command]), capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "other", "reason"),
    [
        (
            "multiclass",
            "binary",
            "1 of the kind 'probability' where this model has 3 of the kind 'probabilities'",
        ),
        ("regression", "binary", "1 of the kind 'probability' where this model has 1 of the kind 'value'"),
        (
            "multiclass",
            "one_vs_all",
            "3 of the kind 'one_vs_all' where this model has 3 of the kind 'probabilities'",
        ),
    ],
)
def test_a_reference_of_a_model_with_other_outputs_is_refused(kind, other, reason, trained, tmp_path, capsys):
    reference = manifest_path(trained(other).path)
    status, told = run_predict(trained(kind), tmp_path, reference, capsys)
    assert (status, f"{reference.name} describes a model with other outputs: {reason}" in told) == (
        1,
        True,
    ), told
    assert main(["report", *arguments(trained(kind), tmp_path, reference)]) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "labels"), [("multiclass", ["SELL", "HOLD", "BUY"]), ("binary", ["yes"]), ("regression", [None])]
)
def test_drift_against_a_reference_without_classes_uses_the_classes_of_the_model(
    kind, labels, trained, tmp_path, capsys
):
    subject, reference = trained(kind), tmp_path / "last-month.json"
    write_manifest(subject.path, subject.rows, name="last month", version="1", path=reference)
    status, told = run_predict(subject, tmp_path, reference, capsys)
    assert status == 0
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["output"] for line in lines if "output" in line] == labels


def test_a_reference_with_the_classes_in_another_order_is_refused(trained, tmp_path, capsys):
    subject, reference = trained("multiclass"), tmp_path / "r.json"
    made = Manifest.read(manifest_path(subject.path))
    made.model_copy(update={"classes": ("BUY", "HOLD", "SELL")}).write(reference)
    status, told = run_predict(subject, tmp_path, reference, capsys)
    assert (status, "r.json has the classes BUY, HOLD, SELL where the model has SELL, HOLD, BUY" in told) == (
        1,
        True,
    )


def test_numeric_classes_match_their_text_in_the_reference(train_model, tmp_path, capsys):
    subject = train_model("numbers", {"objective": "binary", "target": 2})
    told = {"name": "x", "version": "1"}
    write_manifest(subject.path, subject.rows, classes=(0, 1), **told)
    reference = tmp_path / "r.json"
    write_manifest(subject.path, subject.rows, classes=("0", "1"), path=reference, **told)
    status, lines = run_predict(subject, tmp_path, reference, capsys)
    assert (status, json.loads(lines.splitlines()[-1])["output"]) == (0, 1)


def test_the_help_of_predict_says_that_a_reference_implies_drift(capsys):
    for command, implied in (("predict", True), ("report", False)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert ("implies --drift" in " ".join(capsys.readouterr().out.split())) == implied
