"""The `predictor` command: its output, exit codes and error messages."""

from __future__ import annotations

import codecs
import csv
import json
import re
import shutil
import subprocess
import sys
import sysconfig

import lightgbm as lgb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from predictor import Feature, RowPolicy, SchemaError, manifest_path, save, sha256_of, write_manifest
from predictor.cli import main
from predictor.cli.tables import BLOCK, TableError, read_rows

NAMES = list("abcde")


@pytest.fixture
def subject(train_model):
    return train_model("multi", {"objective": "multiclass", "num_class": 3, "target": 3}, policy=None)


@pytest.fixture
def frame(subject) -> pd.DataFrame:
    return pd.DataFrame(subject.rows, columns=NAMES)


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def rows_file(request, frame, tmp_path):
    path = tmp_path / f"rows.{request.param}"
    labelled = frame.assign(id=range(len(frame)), label=["SELL", "HOLD", "BUY", "BUY"] * (len(frame) // 4))
    match request.param:
        case "csv":
            labelled.to_csv(path, index=False)
        case "jsonl":
            labelled.to_json(path, orient="records", lines=True, double_precision=15)
        case "parquet":
            labelled.to_parquet(path)
    return path


def test_predict_writes_one_line_per_row_in_order(subject, rows_file, capsys):
    assert main(["predict", str(subject.path), str(rows_file)]) == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert list(lines[0]) == ["p_SELL", "p_HOLD", "p_BUY"]
    answers = [[float(cell) for cell in line.values()] for line in lines]
    assert answers == subject.truth(subject.rows).tolist()


def test_predict_writes_raw_scores_as_json_lines_and_drift_to_stderr(subject, rows_file, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(subject.path), str(rows_file), "--raw", "--drift", "-o", str(out)]) == 0
    answers = [list(json.loads(line).values()) for line in out.read_text().splitlines()]
    assert answers == subject.truth(subject.rows, raw_score=True).tolist()
    drift = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["feature"] for line in drift] == NAMES
    assert {line["rows"] for line in drift} == {len(subject.rows)}


def test_explain_writes_the_top_features_of_each_row_and_output(subject, rows_file, capsys):
    assert main(["explain", str(subject.path), str(rows_file), "--top", "2"]) == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(lines) == len(subject.rows) * 3 * 2
    best = subject.load().explain(subject.rows[:1]).top(1, output="SELL")[0]
    assert (lines[0]["feature"], float(lines[0]["contribution"])) == (best.feature, best.value)


def test_verify_reports_ok_or_the_reason_with_its_exit_code(subject, capsys):
    assert main(["verify", str(subject.path)]) == 0
    assert capsys.readouterr().out.startswith("ok: multi 1, 18 trees, 8 golden rows")
    subject.path.write_bytes(subject.path.read_bytes().replace(b"shrinkage=0.1", b"shrinkage=0.2", 1))
    assert main(["verify", str(subject.path)]) == 1
    assert "was changed" in capsys.readouterr().err
    subject.path.unlink()
    assert main(["verify", str(subject.path)]) == 2


def test_inspect_prints_text_or_json(subject, capsys):
    assert main(["inspect", str(subject.path)]) == 0
    text = capsys.readouterr().out
    assert "SELL, HOLD, BUY" in text
    assert main(["inspect", str(subject.path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["n_trees"] == 18
    assert facts["importances"]["c"]["splits"] == subject.booster.feature_importance("split")[2]


def test_manifest_command_writes_a_manifest_that_verify_accepts(subject, rows_file, capsys):
    manifest_path(subject.path).unlink()
    assert main(["verify", str(subject.path)]) == 1
    made = ["--name", "again", "--version", "7", "--classes", "SELL, HOLD, BUY"]
    assert main(["manifest", str(subject.path), str(rows_file), *made]) == 0
    assert main(["verify", str(subject.path)]) == 0
    assert "again 7" in capsys.readouterr().out


def test_bench_prints_the_timings_of_each_kind_of_call(subject, rows_file, capsys):
    assert main(["bench", str(subject.path), str(rows_file), "--calls", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"\s{2,}", line)[0] for line in lines] == [
        "call",
        "one row",
        "batch 8",
        "batch 64",
        "batch 1024",
        "explain 1",
    ]
    assert all(float(line.split()[-1]) > 0 for line in lines[1:])


def test_report_is_one_self_contained_page(subject, rows_file, tmp_path, capsys):
    page = tmp_path / "r.html"
    assert main(["report", str(subject.path), str(rows_file), "--label", "label", "-o", str(page)]) == 0
    html = page.read_text()
    assert html.count("<figure>") == 6 + 4 + 5  # quality and influence, dependence, features
    assert not re.search(r"https?://|<script|@import|url\((?!#)", html)
    assert "Calibration" in html
    assert main(["report", str(subject.path), str(rows_file), "--label", "id", "-o", str(page)]) == 1
    assert "is not a class of this model" in capsys.readouterr().err


def test_report_escapes_the_model_name(train_model, tmp_path):
    subject = train_model("<b>x", {"objective": "regression"}, policy=None)
    rows = tmp_path / "r.csv"
    pd.DataFrame(subject.rows, columns=NAMES).assign(y=1.0).to_csv(rows, index=False)
    assert main(["report", str(subject.path), str(rows), "--label", "y", "-o", str(tmp_path / "r.html")]) == 0
    html = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;x" in html
    assert "<b>x" not in html


def test_predict_names_the_bad_row_and_leaves_no_output_file(subject, frame, tmp_path, capsys):
    path = tmp_path / "bad.csv"
    frame.astype(object).assign(b=["oops", *frame["b"][1:]]).to_csv(path, index=False)
    assert main(["predict", str(subject.path), str(path)]) == 1
    assert "row 0: feature 'b': 'oops' is not a number" in capsys.readouterr().err
    before = set(tmp_path.iterdir())
    assert main(["predict", str(subject.path), str(path), "-o", str(tmp_path / "out.csv")]) == 1
    assert set(tmp_path.iterdir()) == before  # no partial output


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_errors_number_rows_from_the_start_of_the_file(subject, tmp_path, capsys, command):
    path = tmp_path / "late.csv"
    path.write_text("a,b,c,d,e\n" + "1,2,3,4,5\n" * (BLOCK + 2) + "1,,3,4,5\n")
    assert main([command, str(subject.path), str(path), "-o", str(tmp_path / "out.csv")]) == 1
    assert f"row {BLOCK + 2}: feature 'b': is null" in capsys.readouterr().err


def test_drift_option_without_a_manifest_is_refused(subject, rows_file, capsys):
    digest = sha256_of(subject.path.read_bytes())
    manifest_path(subject.path).unlink()
    rows = [str(subject.path), str(rows_file), "--sha256", digest]
    assert main(["predict", *rows]) == 0
    assert main(["predict", *rows, "--drift"]) == 1
    assert "drift is measured against a manifest" in capsys.readouterr().err


def test_manifest_command_reports_unsuitable_classes_in_one_line(subject, rows_file, capsys):
    made = ["--name", "again", "--version", "7", "--classes", "SELL,HOLD"]
    assert main(["manifest", str(subject.path), str(rows_file), *made]) == 1
    assert re.fullmatch(r"predictor: .*2 class labels do not fit.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("r.txt", "a\n1\n", "the known suffixes are"),
        ("r.csv", "a,a\n1,2\n", "repeated"),
        ("r.csv", "a,b\n1\n", "line 2 has 1 cells, the first line names 2"),
        ("r.csv", 'a,note\n1,"never closed\n2,x\n3,y\n', "cannot be read: unexpected end of data"),
        ("r.csv", 'a,note\n1,"x\n2,"y\n3,z\n', "cannot be read: ',' expected after '\"'"),
        ("r.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("r.jsonl", '{"a": 1, "a": 2}\n', "line 1 is not a JSON object"),
        ("r.jsonl", "{\n", "line 1 is not a JSON object"),
        ("r.jsonl", "[" * 100_000, "line 1 is not a JSON object"),
        ("r.parquet", "no parquet", "cannot be read"),
    ],
)
def test_unreadable_tables_are_refused(tmp_path, name, text, reason):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TableError, match=reason):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("cell", "option"), [("inf", "--allow infinite\\b"), ("", "--allow null or --nullable b\\b")]
)
def test_policy_errors_name_the_option_that_allows_the_row(subject, frame, tmp_path, capsys, cell, option):
    path = tmp_path / "rows.csv"
    frame.astype(object).assign(b=[cell, *frame["b"][1:]]).to_csv(path, index=False)
    assert main(["predict", str(subject.path), str(path)]) == 1
    assert re.search(option, capsys.readouterr().err)


def test_a_missing_label_column_is_reported_with_the_columns_of_the_file(
    subject, rows_file, tmp_path, capsys
):
    page = tmp_path / "r.html"
    assert main(["report", str(subject.path), str(rows_file), "--label", "nope", "-o", str(page)]) == 2
    assert "it has a, b, c, d, e, id, label" in capsys.readouterr().err


def test_files_are_read_in_blocks(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("x\n" + "1.5\n" * (BLOCK + 3))
    assert [len(block) for block in read_rows(path)] == [BLOCK, 3]


def test_csv_cells_get_the_type_of_their_feature(train_model, tmp_path):
    subject = train_model(
        "cats", {"objective": "binary", "target": 2, "data": {"categories": True}}, policy=None
    )
    path = tmp_path / "rows.csv"
    path.write_text("a,b,c,d,e,note\n1,2.5,,1e3,7,hello\n")
    (row,) = next(read_rows(path, subject.load().features))
    assert row == {"a": 1, "b": 2.5, "c": None, "d": 1000.0, "e": 7, "note": "hello"}
    path.write_text("e\n7.0\n99.0\n7_0\nx\n")  # pandas writes whole numbers beside nulls as 7.0
    assert [row["e"] for row in next(read_rows(path, subject.load().features))] == [7, 99.0, "7_0", "x"]


def test_quotes_are_read_as_rfc_4180_writes_them(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,note\r\n1,"said ""x"", and\r\nleft"\r\n2,5" pipe\r\n3,""\r\n')
    rows = next(read_rows(path))
    assert [row["a"] for row in rows] == [1, 2, 3]
    assert [row["note"] for row in rows] == ['said "x", and\r\nleft', '5" pipe', None]


def test_an_empty_csv_cell_is_the_empty_label_unless_the_feature_is_nullable(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('kind,x\n,1\na,2\n"",3\n')
    kind = Feature(name="kind", model_name="kind", kind="category", categories=("", "a"), codes=(0, 1))
    assert [row["kind"] for row in next(read_rows(path, [kind]))] == ["", "a", ""]
    with pytest.raises(SchemaError, match="row 0: feature 'kind': an empty cell can be the label '' or null"):
        next(read_rows(path, [kind.model_copy(update={"nullable": True})]))


@pytest.mark.parametrize("command", ["predict", "explain", "bench", "report", "manifest"])
def test_a_repeated_feature_in_parquet_is_refused(subject, frame, tmp_path, command, capsys):
    path = tmp_path / "rows.parquet"
    table = pa.Table.from_pandas(frame)
    parquet.write_table(table.append_column("b", table["a"]), path)
    more = ["--name", "x", "--version", "1"] if command == "manifest" else []
    assert main([command, str(subject.path), str(path), *more]) == 2
    assert "the Parquet file: the column name 'b' is repeated" in capsys.readouterr().err
    parquet.write_table(table.append_column("id", table["a"]).append_column("id", table["b"]), path)
    assert main(["predict", str(subject.path), str(path)]) == 0


@pytest.mark.parametrize(
    "option",
    [
        ("bench", "--calls", "0"),
        ("explain", "--top", "0"),
        ("explain", "--top", "-1"),
        ("manifest", "--golden", "-1"),
    ],
    ids=str,
)
def test_counts_below_the_minimum_are_usage_errors(subject, rows_file, capsys, option):
    command, *words = option
    more = ["--name", "x", "--version", "1"] if command == "manifest" else []
    with pytest.raises(SystemExit) as caught:
        main([command, str(subject.path), str(rows_file), *more, *words])
    assert caught.value.code == 2
    assert "must be at least" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1_0", "\u0663", "\uff11", "0x10", "1e", "+-1", "9" * 5_000])
def test_number_syntax_other_than_plain_decimal_is_refused(subject, tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_text(f"a\n{text}\n", "utf-8")
    with pytest.raises(SchemaError, match=r"row 0: feature 'a': .* is not a number"):
        next(read_rows(path, subject.load().features))


def test_the_installed_command_verifies_a_model(subject):
    command = shutil.which("predictor", path=sysconfig.get_path("scripts"))
    assert command is not None
    child = subprocess.run(
        [command, "verify", str(subject.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (child.returncode, child.stdout[:3]) == (0, "ok:")


def test_progress_is_shown_on_a_terminal(subject, rows_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    out = tmp_path / "out.csv"
    assert main(["predict", str(subject.path), str(rows_file), "-o", str(out)]) == 0
    shown = capsys.readouterr().err
    assert f"{len(subject.rows)} rows" in shown
    assert "rows/s" in shown
    assert len(out.read_text().splitlines()) == len(subject.rows) + 1


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("pyarrow", ["predict", "rows.parquet"], "parquet"),
        ("matplotlib.figure", ["report", "rows.csv"], "report"),
    ],
)
def test_a_missing_extra_is_named_in_the_error(
    subject, frame, tmp_path, monkeypatch, capsys, module, arguments, extra
):
    command, name = arguments
    path = tmp_path / name
    frame.to_csv(path, index=False)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([command, str(subject.path), str(path)]) in (1, 2)
    assert f"lightgbm-predictor[{extra}]" in capsys.readouterr().err


def test_output_with_an_unknown_suffix_is_refused(subject, rows_file, tmp_path, capsys):
    assert main(["predict", str(subject.path), str(rows_file), "-o", str(tmp_path / "out.xml")]) == 2
    assert "out.xml: the output must be .csv, .jsonl or .parquet" in capsys.readouterr().err


PROGRAM = "import sys; from predictor.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("command", ["predict", "explain"])
def test_rows_are_read_from_standard_input(subject, frame, tmp_path, command, suffix):
    path = tmp_path / f"rows.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_json(path, orient="records", lines=True)

    def answers(rows, **given):
        line = [sys.executable, "-c", PROGRAM, command, str(subject.path), str(rows)]
        return subprocess.run(line, capture_output=True, check=True, **given).stdout

    expected = answers(path)
    assert answers("-", input=path.read_bytes()) == expected
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())  # as some Windows programs begin a file
    assert answers(path) == expected
    assert answers("-", input=path.read_bytes()) == expected


def test_a_closed_output_pipe_is_not_an_error(subject, rows_file):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "explain", str(subject.path), str(rows_file), "--top", "5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == b"row,output,rank,feature,contribution\n"
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 0


TEXT = ["01234", "1", "nan", "", "2.0", "true", "inf", "1e5", "None"]


@pytest.fixture
def labelled(tmp_path):
    """A model of text labels that look like numbers, and its training rows as CSV with its predictions."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"kind of it": rng.choice(TEXT, 600), "x": rng.normal(size=600)})
    frame["kind of it"] = pd.Categorical(frame["kind of it"], categories=TEXT)
    data = lgb.Dataset(frame, 3 * frame["kind of it"].cat.codes + frame["x"])
    settings = {"verbose": -1, "num_threads": 1, "min_data_per_group": 5, "min_data_in_leaf": 5}
    booster = lgb.train(settings, data, 10)
    path, rows = tmp_path / "m.txt", tmp_path / "rows.csv"
    booster.save_model(path)
    expected = booster.predict(frame, num_threads=1)
    frame.assign(answer=expected).to_csv(rows, index=False)
    return path, rows, expected


def test_text_labels_of_csv_stay_text_in_every_command(labelled, tmp_path, capsys):
    path, rows, expected = labelled
    made = ["--name", "m", "--version", "1", "--expected", "answer"]
    assert main(["manifest", str(path), str(rows), *made]) == 0
    assert "not compared" not in capsys.readouterr().out
    assert main(["predict", str(path), str(rows)]) == 0
    answers = [float(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert answers == expected.tolist()
    for command in (["bench", "--calls", "5"], ["explain"], ["report", "-o", str(tmp_path / "r.html")]):
        assert main([command[0], str(path), str(rows), *command[1:]]) == 0
    assert "batch 1024" in capsys.readouterr().out


def test_manifest_command_says_if_expected_answers_are_missing_or_unreadable(labelled, capsys):
    path, rows, _ = labelled
    made = ["--name", "m", "--version", "1"]
    assert main(["manifest", str(path), str(rows), *made]) == 0
    assert "not compared with the trained model; to do so, pass --expected" in capsys.readouterr().out
    assert main(["manifest", str(path), str(rows), *made, "--expected", "x"]) == 1
    assert "row 0: feature 'x': is missing" in capsys.readouterr().err  # the expected column is no feature
    assert main(["manifest", str(path), str(rows), *made, "--expected", "nope"]) == 2
    assert "row 0 has no number in 'nope'; name the columns of the predictions" in capsys.readouterr().err


def test_manifest_command_compares_every_row_with_the_expected_answers(labelled, tmp_path, capsys):
    path, rows, _ = labelled
    # As text: pandas before 3 rounds some numbers when it reads them.
    whole = pd.read_csv(rows, dtype=str, keep_default_na=False)
    whole["answer"] = whole["answer"].map(float)
    whole = pd.concat([whole] * 40, ignore_index=True)
    made = ["--name", "m", "--version", "1", "--expected", "answer", "--sample", "50"]
    for wrong in ([], [BLOCK + 7, 20_000]):
        whole.loc[wrong, "answer"] += 1e-12
        whole.to_csv(rows, index=False)
        output = tmp_path / f"{len(wrong)}.json"
        assert main(["manifest", str(path), str(rows), *made, "-o", str(output)]) == bool(wrong)
        assert output.exists() == (not wrong)
        said = capsys.readouterr()
        if wrong:
            assert f"2 of 24000 rows have another answer than expected, first row {BLOCK + 7}" in said.err
        else:
            assert "all 24,000 rows have the answer in --expected, bit for bit" in said.out


@pytest.mark.parametrize("form", ["columns.csv", "lists.jsonl", "lists.parquet"])
def test_expected_answers_of_several_outputs_may_be_columns_or_lists(form, trained, tmp_path, capsys):
    subject = trained("multiclass")
    truth = subject.truth(subject.rows)
    frame = pd.DataFrame(subject.rows, columns=list("abcde"))
    rows, told = tmp_path / form, "answers"
    if form.endswith("csv"):
        told = "p0,p1,p2"
        frame = frame.assign(**{f"p{k}": truth[:, k] for k in range(3)})
        frame.to_csv(rows, index=False)
    elif form.endswith("jsonl"):
        frame.assign(answers=truth.tolist()).to_json(rows, orient="records", lines=True, double_precision=15)
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        exact = zip(lines, frame.to_dict("records"), truth.tolist(), strict=True)
        rows.write_text("".join(json.dumps(row | {"answers": given}) + "\n" for _, row, given in exact))
    else:
        frame.assign(answers=truth.tolist()).to_parquet(rows)
    made = ["--name", "m", "--version", "1", "-o", str(tmp_path / "m.json")]  # not beside the shared model
    asked = ["manifest", str(subject.path), str(rows), *made, "--expected"]
    assert main([*asked, told]) == 0
    assert "bit for bit" in capsys.readouterr().out
    if form.endswith("csv"):
        assert main([*asked, "p0,p2,p1"]) == 1
        assert "rows have another answer" in capsys.readouterr().err
        assert main([*asked, "p0"]) == 1
        assert "pass the trained model's answers" in capsys.readouterr().err


def test_a_folder_of_row_files_is_read_as_one_file(subject, frame, tmp_path, capsys):
    folder, whole = tmp_path / "parts", tmp_path / "whole.parquet"
    folder.mkdir()
    frame.to_parquet(whole)
    step = len(frame) // 3
    for number, start in enumerate(range(0, len(frame), step)):
        frame[start : start + step].to_parquet(folder / f"part-{number:05}.parquet", index=False)
    for name in ("_SUCCESS", "notes.txt", ".hidden.parquet"):
        (folder / name).write_text("no rows")
    answers = []
    for rows in (whole, folder):
        assert main(["predict", str(subject.path), str(rows)]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    bad = frame[:1].astype({"b": object}).assign(b="x")
    bad.to_parquet(folder / "part-99999.parquet")
    assert main(["predict", str(subject.path), str(folder)]) == 1
    assert f"row {len(frame)}: feature 'b'" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(subject.path), str(tmp_path / "empty")]) == 2
    assert "the folder empty holds no file of rows" in capsys.readouterr().err


def test_csv_booleans_written_by_pandas_predict_as_in_training(tmp_path, capsys):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"open": rng.random(300) < 0.5, "x": rng.normal(size=300)})
    estimator = lgb.LGBMRegressor(n_estimators=3, verbose=-1, n_jobs=1).fit(
        frame, frame["x"] + 3 * frame["open"]
    )
    path, rows = tmp_path / "m.txt", tmp_path / "rows.csv"
    save(estimator, path, sample=frame, name="m", version="1")
    frame.to_csv(rows, index=False)
    assert main(["predict", str(path), str(rows)]) == 0
    answers = [float(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert answers == estimator.predict(frame, num_threads=1).tolist()
    save(estimator, path, sample=frame.astype(float), name="m", version="1")  # a manifest without booleans
    assert main(["predict", str(path), str(rows)]) == 1
    assert 'RowPolicy(boolean="number")' in capsys.readouterr().err


def test_unreadable_input_and_unwritable_output_are_reported_before_any_output(
    subject, rows_file, tmp_path, capsys
):
    asked = ["predict", str(subject.path)]
    for arguments, reason in (
        ([*asked, str(tmp_path / "absent.csv")], "absent.csv cannot be read: No such file"),
        ([*asked, str(rows_file), "-o", str(tmp_path / "no" / "a.csv")], "there is no folder"),
        (["report", *asked[1:], str(rows_file), "-o", str(tmp_path / "no" / "r.html")], "there is no folder"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert reason in said.err
        assert said.out == ""


def test_a_sample_that_lacks_a_feature_is_refused_with_advice_that_helps(trained, tmp_path, capsys):
    subject, rows = trained("binary"), tmp_path / "rows.csv"
    renamed = pd.DataFrame(subject.rows, columns=["v", "w", "x", "y", "z"])
    renamed.to_csv(rows, index=False)
    advice = "'a': is missing; give each sample row every feature, .* pass names="
    with pytest.raises(SchemaError, match=advice):
        write_manifest(subject.path, renamed, name="m", version="1", policy=RowPolicy(missing="null"))
    line = ["manifest", str(subject.path), str(rows), "--name", "m", "--version", "1", "--allow", "missing"]
    line += ["-o", str(tmp_path / "m.json")]
    assert main(line) == 1
    said = capsys.readouterr().err
    assert re.search(advice, said)
    assert "--allow" not in said
    write_manifest(
        subject.path, renamed, name="m", version="1", names=list(renamed), path=tmp_path / "library.json"
    )
    assert main([*line, "--names", "v,w,x,y,z"]) == 0


def test_manifest_options_set_categories_nullability_and_policy(trained, tmp_path, capsys):
    subject = trained("binary_categories")
    rows, labels = tmp_path / "rows.csv", tmp_path / "labels.json"
    frame = pd.DataFrame(subject.rows, columns=["a", "b", "c", "d", "e"]).astype({"e": int})
    names = [f"t{code:02}" for code in range(12)]
    frame.assign(e=[names[code] for code in frame["e"]], p=subject.truth(subject.rows)).to_csv(
        rows, index=False
    )
    labels.write_text(json.dumps({"e": names}))
    out = tmp_path / "m.json"
    made = ["--name", "m", "--version", "1", "-o", str(out), "--expected", "p"]
    more = ["--categories", str(labels), "--nullable", "a,b", "--allow", "unseen", "--allow", "boolean"]
    assert main(["manifest", str(subject.path), str(rows), *made, *more]) == 0
    manifest = json.loads(out.read_text())
    assert manifest["features"][4]["categories"] == names
    assert [feature["nullable"] for feature in manifest["features"]] == [True, True, False, False, False]
    assert (manifest["policy"]["unseen"], manifest["policy"]["boolean"]) == ("allow", "number")
    labels.write_text("[1]")
    assert main(["manifest", str(subject.path), str(rows), *made, *more]) == 2
    assert "must be a JSON object of lists" in capsys.readouterr().err
