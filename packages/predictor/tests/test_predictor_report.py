"""`predictor report` and `manifest`: correct figures, bounded memory and clear errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import lightgbm as lgb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from predictor import RowPolicy, SchemaError, manifest_path, sha256_of, write_manifest
from predictor.cli import main
from predictor.cli.evaluation import Classified, Estimated, numbers_of, positions_of, wilson
from predictor.cli.ranking import Ranked
from predictor.cli.sampling import Sample
from predictor.cli.tables import BLOCK

NAMES = list("abcde")
MEASURED = """
import resource, sys
from predictor.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""
rng = np.random.default_rng(3)


def add_in_two_blocks(counted, *columns):
    """Add the columns in two blocks, as they come from a file."""
    for part in (slice(0, 700), slice(700, None)):
        counted.add(*(column[part] for column in columns))
    return counted


def test_classifier_losses_match_their_definitions():
    p, truth = rng.dirichlet([1, 2, 3], 2_000), rng.integers(0, 3, 2_000)
    log_loss, brier = add_in_two_blocks(Classified(["x", "y", "z"]), p, truth).losses()
    share, happened = np.bincount(truth) / 2_000, np.eye(3)[truth]
    assert log_loss.model == pytest.approx(-np.log(p[range(2_000), truth]).mean())
    assert log_loss.baseline == pytest.approx(-np.log(share[truth]).mean())
    assert brier.model == pytest.approx(((p - happened) ** 2).sum(axis=1).mean())
    assert brier.baseline == pytest.approx(((share - happened) ** 2).sum(axis=1).mean())


def test_roc_area_and_average_precision_match_their_definitions():
    truth = rng.integers(0, 2, 2_000)
    p = 1 / (1 + np.exp(-rng.normal(size=2_000) - truth))
    curve = add_in_two_blocks(Classified(["no", "yes"]), p[:, None], truth).curve(1)
    above, below = p[truth == 1][:, None], p[truth == 0]
    assert curve.area == pytest.approx((above > below).mean() + (above == below).mean() / 2, abs=2e-3)
    order = np.argsort(-p)
    hits = truth[order]
    assert curve.average_precision == pytest.approx(
        (np.cumsum(hits) / np.arange(1, 2_001))[hits == 1].mean(), abs=5e-3
    )
    assert (curve.recall[-1], curve.fall_out[-1]) == (1.0, 1.0)


def test_calibration_bins_have_counts_shares_and_wilson_intervals():
    p, truth = np.array([0.0, 0.05, 0.5, 0.55, 1.0]), np.array([0, 1, 1, 1, 1])
    counted = Classified(["no", "yes"])
    counted.add(p[:, None], truth)
    said, share, low, high, rows = counted.calibration(1).T
    assert said.tolist() == pytest.approx([0.025, 0.525, 1.0])
    assert share.tolist() == [0.5, 1.0, 1.0]
    assert rows.tolist() == [2, 2, 1]
    assert ((low <= share) & (share <= high)).all()
    low, high = wilson(np.array([8.0]), np.array([10.0]))
    assert (low[0], high[0]) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # 8 of 10, by hand


@pytest.mark.parametrize(
    ("p", "begins"),
    [("right", "Better than"), ("frequency", "No better than"), ("wrong", "Worse than")],
)
def test_verdict_compares_a_classifier_with_the_class_frequencies(p, begins):
    truth = rng.integers(0, 2, 3_000)
    answers = {
        "right": 0.3 + 0.4 * truth,
        "frequency": np.full(3_000, truth.mean()),
        "wrong": 0.7 - 0.4 * truth,
    }
    assert add_in_two_blocks(Classified([0, 1]), answers[p][:, None], truth).verdict().startswith(begins)


def test_labels_of_a_single_class_are_not_judged():
    counted = add_in_two_blocks(Classified(["no", "yes"]), np.full((900, 1), 0.4), np.ones(900, dtype=int))
    assert counted.verdict().startswith("All rows are of the class yes")
    assert np.isnan(counted.curve(1).area)


def test_a_regression_is_compared_with_the_mean_label():
    truth = rng.normal(1e6, 1, 3_000)
    counted = add_in_two_blocks(Estimated(), (truth + rng.normal(0, 0.1, 3_000))[:, None], truth)
    rmse, mae = counted.losses()
    assert rmse.baseline == pytest.approx(truth.std(), rel=1e-9)
    assert mae.baseline == pytest.approx(np.abs(truth - truth.mean()).mean(), rel=1e-6)
    assert counted.verdict().startswith("Better than the mean label")
    assert (
        add_in_two_blocks(Estimated(), np.full((3_000, 1), truth.mean()), truth)
        .verdict()
        .startswith("No better")
    )


def test_a_ranking_is_compared_with_a_random_order():
    labels = rng.integers(0, 4, 2_000).astype(float)
    queries = np.arange(2_000) // 20
    assert add_in_two_blocks(Ranked(), labels, labels, queries.tolist()).finish()[0] == pytest.approx(1.0)
    random_order = add_in_two_blocks(Ranked(), rng.normal(size=2_000), labels, queries.tolist())
    model, baseline = random_order.finish()
    assert abs(model - baseline) < 0.05
    assert random_order.verdict().startswith("No better than a random order")
    equal = add_in_two_blocks(Ranked(), np.zeros(2_000), labels, queries.tolist())
    assert equal.finish()[0] == pytest.approx(equal.finish()[1])  # equal scores are a random order


def test_labels_are_matched_by_value_then_by_text():
    assert positions_of([1.0, 0, True], [0, 1]).tolist() == [1, 0, 1]
    assert positions_of([1, "0", 1.0], ["0", "1"]).tolist() == [1, 0, 1]
    with pytest.raises(SchemaError, match=r"row 1: the label is missing"):
        positions_of(["a", float("nan")], ["a", "b"])
    with pytest.raises(
        SchemaError, match=r"row 0: label 'c' is not a class of this model; the classes are a, b"
    ):
        positions_of(["c"], ["a", "b"])
    with pytest.raises(SchemaError, match=r"row 1: label 'x' is not a number"):
        numbers_of([1, "x"])
    with pytest.raises(SchemaError, match=r"row 0: the label is missing or not finite"):
        numbers_of([None])


def test_a_sample_is_uniform_and_keeps_all_rows_if_they_fit():
    rows = [{"i": index} for index in range(10_000)]
    small, whole = Sample(500), Sample(20_000)
    for start in range(0, 10_000, 1_000):
        small.add(rows[start : start + 1_000])
        whole.add(rows[start : start + 1_000])
    assert whole.rows() == rows
    held = [row["i"] for row in small.rows()]
    assert len(held) == 500
    assert held == sorted(held)
    assert abs(np.mean(held) - 5_000) < 3 * 2_887 / 500**0.5


@pytest.mark.parametrize("kind", ["regression", "one_vs_all", "linear", "binary_categories", "cross_entropy"])
def test_report_is_written_for_every_kind_of_model(kind, trained, tmp_path):
    subject = trained(kind)
    answers = subject.truth(subject.rows)
    classes = subject.load().info.classes
    labels = answers
    if answers.ndim == 2:
        labels = [classes[index] for index in answers.argmax(axis=1)]
    elif subject.load().info.output == "probability":
        labels = [(classes or (0, 1))[int(p > 0.5)] for p in answers]
    rows, page = tmp_path / "rows.csv", tmp_path / "r.html"
    pd.DataFrame(subject.rows, columns=NAMES).assign(y=labels).to_csv(rows, index=False)
    assert main(["report", str(subject.path), str(rows), "--label", "y", "-o", str(page)]) == 0
    html = page.read_text()
    assert "Better than" in html
    assert ("no contributions for linear trees" in html) == (kind == "linear")
    assert ("SHAP contributions of" in html) == (kind != "linear")


def test_report_of_a_ranking_model_requires_the_query_column(tmp_path, capsys):
    x = rng.normal(size=(600, 5))
    y = np.digitize(x[:, 0], [-1, 0, 1])
    settings = {"objective": "lambdarank", "verbose": -1, "num_threads": 1}
    booster = lgb.train(settings, lgb.Dataset(x, y, group=[20] * 30, feature_name=NAMES), 5)
    path, rows, page = tmp_path / "m.txt", tmp_path / "rows.parquet", tmp_path / "r.html"
    booster.save_model(path)
    write_manifest(path, x, name="order", version="1")
    pd.DataFrame(x, columns=NAMES).assign(y=y, q=np.arange(600) // 20).to_parquet(rows)
    command = ["report", str(path), str(rows), "--label", "y", "-o", str(page)]
    assert main(command) == 2
    assert "name the column of the query with --query" in capsys.readouterr().err
    assert main([*command, "--query", "q"]) == 0
    assert "Better than a random order" in page.read_text()


@pytest.mark.parametrize(
    ("content", "label", "status", "said"),
    [
        (None, "y", 2, "No such file"),
        ("", "y", 2, "is empty"),
        ("a,b,c,d,e,y\n", "y", 1, "at least one row"),
        ("a,b,c,d,e,y\n1,2,3,4,5,no\n", "z", 2, "has no column 'z' (in every row); it has a, b, c, d, e"),
        ("a,b,c,d,e,y\n1,2,3,4,5,maybe\n", "y", 1, "row 0: label 'maybe' is not a class of this model"),
        ("a,b,c,d,e,y\n1,2,3,4,5,no\n1,2,3,4,5,\n", "y", 1, "row 1: the label is missing"),
        ("a,b,c,d,e,e\n1,2,3,4,5,no\n", "y", 2, "column name 'e' is repeated"),
        ("a,b,c,d,e,y\n1,2,3,4,5,caf\xe9\n".encode("latin-1"), "y", 2, "is not UTF-8"),
        ("a;b;c;d;e;y\n1;2;3;4;5;no\n", "y", 2, "separated by ';'"),
        ("a,b,c,d,e,y\r\n1,2,3,4,5,no\r\n1,2,3,4,5,yes\r\n", "y", 0, ""),
    ],
    ids=[
        "missing",
        "empty",
        "header-only",
        "wrong-column",
        "foreign-class",
        "nan",
        "repeated",
        "latin-1",
        "semicolons",
        "windows",
    ],
)
def test_common_mistakes_are_reported_in_one_line(content, label, status, said, trained, tmp_path, capsys):
    rows, page = tmp_path / "rows.csv", tmp_path / "r.html"
    if content is not None:
        rows.write_bytes(content if isinstance(content, bytes) else content.encode())
    command = ["report", str(trained("binary").path), str(rows), "--label", label, "-o", str(page)]
    assert main(command) == status
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == (status != 0)
    assert page.exists() == (status == 0)


def test_manifest_ranges_and_nullability_come_from_the_whole_file(trained, tmp_path, capsys):
    subject = trained("binary_missing")
    x = rng.normal(size=(3 * BLOCK, 5)).round(3)
    x[BLOCK + 7, 2], x[2 * BLOCK + 1, 0], x[5, 1] = np.nan, 1e6, -1e6
    rows, out = tmp_path / "rows.parquet", tmp_path / "m.json"
    pd.DataFrame(x, columns=NAMES).to_parquet(rows)
    made = ["--name", "m", "--version", "1", "--sample", "1000", "-o", str(out)]
    assert main(["manifest", str(subject.path), str(rows), *made]) == 0
    assert f"from all {3 * BLOCK:,} rows" in capsys.readouterr().out
    features = json.loads(out.read_text())["features"]
    assert [feature["nullable"] for feature in features] == [False, False, True, False, False]
    assert [f["min"] for f in features] == np.nanmin(x, axis=0).tolist()
    assert [f["max"] for f in features] == np.nanmax(x, axis=0).tolist()
    assert 1_000 <= features[0]["reference"]["count"] <= 1_012


def test_manifest_policy_covers_rows_beyond_the_first_block(trained, tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "m.json"
    lines = ['{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}'] * (BLOCK + 5)
    lines[BLOCK + 2] = '{"a": true, "b": 2, "c": 3, "d": Infinity, "e": 5}'
    rows.write_text("\n".join(lines))
    made = ["--name", "m", "--version", "1", "--sample", "10", "-o", str(out)]
    assert main(["manifest", str(trained("binary").path), str(rows), *made]) == 0
    assert json.loads(out.read_text())["policy"] == RowPolicy(boolean="number", infinite="allow").model_dump()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit there")
@pytest.mark.parametrize(
    ("command", "suffix"),
    [("report", ".csv"), ("manifest", ".jsonl"), ("manifest", ".parquet")],
)
def test_memory_of_report_and_manifest_does_not_grow_with_the_file(command, suffix, trained, tmp_path):
    def most(blocks: int) -> int:
        x = np.random.default_rng(1).normal(size=(blocks * BLOCK, 5)).round(6)
        rows = pa.table({name: x[:, index] for index, name in enumerate(NAMES)})
        rows = rows.append_column("y", pa.array(["no", "yes"] * (len(rows) // 2)))
        source = tmp_path / f"rows{blocks}{suffix}"
        if suffix == ".csv":
            arrow_csv.write_csv(rows, source)
        elif suffix == ".parquet":
            parquet.write_table(rows, source, row_group_size=50_000)
        else:
            source.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
        more = {"report": ["--label", "y"], "manifest": ["--name", "m", "--version", "1", "--sample", "5000"]}
        arguments = [command, str(trained("binary").path), str(source), *more[command]]
        ran = subprocess.run(
            [sys.executable, "-c", MEASURED, *arguments, "-o", str(tmp_path / "out")],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(re.findall(r"\d+", ran.stderr)[-1]) * 1024

    # Held at once, the rows alone would be more: a mapping of five numbers takes over 300 bytes.
    assert most(18) - most(2) < 0.3 * 16 * BLOCK * 300


def test_report_without_labels_or_manifest_says_what_was_not_measured(trained, tmp_path):
    subject = trained("binary")
    model, rows, page = tmp_path / "m.txt", tmp_path / "rows.parquet", tmp_path / "r.html"
    model.write_bytes(subject.path.read_bytes())
    manifest_path(model).write_text(manifest_path(subject.path).read_text())
    pd.DataFrame(subject.rows, columns=NAMES).to_parquet(rows)
    command = ["report", str(model), str(rows), "-o", str(page)]
    assert main(command) == 0
    assert "The quality of the answers was not measured" in page.read_text()
    assert "Drift was not measured" not in page.read_text()
    manifest_path(model).unlink()
    assert main([*command, "--sha256", sha256_of(model.read_bytes())]) == 0
    assert "Drift was not measured: there is no manifest to compare with" in page.read_text()


def test_chart_text_is_larger_than_nine_pixels_in_the_narrowest_column(trained, tmp_path):
    subject, page = trained("binary_categories"), tmp_path / "r.html"
    rows = tmp_path / "rows.csv"
    pd.DataFrame(subject.rows, columns=NAMES).assign(
        y=np.where(subject.truth(subject.rows) > 0.5, "yes", "no")
    ).to_csv(rows, index=False)
    assert main(["report", str(subject.path), str(rows), "--label", "y", "-o", str(page)]) == 0
    html = page.read_text()
    columns = dict(re.findall(r"\.(grid(?:\.small)?) \{[^}]*minmax\(min\(([\d.]+)rem", html))
    assert set(columns) == {"grid", "grid.small"}
    seen = set()
    for style, pictures in re.findall(r'<div class="(grid[^"]*)">(.*?)</div>', html, re.DOTALL):
        narrowest = float(columns[style.replace(" ", ".")]) * 16  # pixels
        for width, body in re.findall(r'viewBox="0 0 ([\d.]+) [\d.]+"(.*?)</svg>', pictures, re.DOTALL):
            sizes = [
                float(size) for size in re.findall(r"font-size: ([\d.]+)px; font-family: system-ui", body)
            ]
            assert min(sizes) * narrowest / float(width) > 9
            seen.add(style)
    assert seen == {"grid", "grid small"}


def test_table_captions_are_paragraphs_outside_the_tables(trained, tmp_path):
    subject, page, rows = trained("binary"), tmp_path / "r.html", tmp_path / "rows.csv"
    pd.DataFrame(subject.rows, columns=NAMES).to_csv(rows, index=False)
    assert main(["report", str(subject.path), str(rows), "-o", str(page)]) == 0
    html = page.read_text()
    assert "<caption" not in html
    tables = re.findall(
        r'<p class="caption">([^<]*)</p><div class="wide"[^>]*><table[^>]*aria-label="([^"]*)"', html
    )
    assert len(tables) == html.count("<table")
    assert all(caption == label for caption, label in tables)


def test_drift_is_measured_against_the_reference_manifest(trained, tmp_path, capsys):
    subject = trained("binary")
    moved = pd.DataFrame(subject.rows + np.array([3.0, 0, 0, 0, 0]), columns=NAMES)
    rows, page, reference = tmp_path / "rows.parquet", tmp_path / "r.html", tmp_path / "last-month.json"
    moved.to_parquet(rows)
    asked = ["report", str(subject.path), str(rows), "-o", str(page)]
    assert main(asked) == 0
    assert "1 of 5 features have another distribution than in training" in page.read_text()
    made = ["--name", "last month", "--version", "1", "-o", str(reference)]
    assert main(["manifest", str(subject.path), str(rows), *made]) == 0
    assert main([*asked, "--reference", str(reference)]) == 0
    html = page.read_text()
    assert "No feature drifted" in html
    assert "The answers have about the same distribution as in training: stability index 0." in html
    capsys.readouterr()
    assert main(["predict", str(subject.path), str(rows), "--reference", str(reference)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["feature"] for line in lines[:-1]] == NAMES
    assert (lines[-1]["output"], lines[-1]["rows"]) == ("yes", len(moved))
    assert max(line["psi"] for line in lines) == pytest.approx(0, abs=1e-12)
    other = tmp_path / "other.json"
    other.write_text(reference.read_text().replace('"name": "b"', '"name": "bb"'))
    assert main([*asked, "--reference", str(other)]) == 1
    assert "describes other features than the model: bb where the model has b" in capsys.readouterr().err
