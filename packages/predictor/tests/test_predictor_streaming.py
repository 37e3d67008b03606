"""`predictor predict` and `explain` on large files: bounded memory, several processes, no partial output."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from predictor.cli import main
from predictor.cli.tables import BLOCK

COMMAND = [sys.executable, "-c", "import sys; from predictor.cli import main; sys.exit(main())"]
# The same command, which then prints its peak memory in KiB.
MEASURED = """
import resource, sys
from predictor.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def table(rows: int) -> pa.Table:
    x = np.random.default_rng(1).normal(size=(rows, 5)).round(6)
    return pa.table({name: x[:, index] for index, name in enumerate("abcde")})


def write(path: Path, rows: pa.Table) -> Path:
    if path.suffix == ".csv":
        arrow_csv.write_csv(rows, path)
    elif path.suffix == ".parquet":
        parquet.write_table(rows, path, row_group_size=50_000)
    else:
        path.write_text("".join(f"{row}\n".replace("'", '"') for row in rows.to_pylist()), "utf-8")
    return path


@pytest.fixture
def subject(trained):
    return trained("binary")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_several_jobs_write_lightgbms_answers_in_row_order(suffix, subject, tmp_path):
    rows = table(7 * BLOCK + 11)
    source, output = write(tmp_path / f"rows{suffix}", rows), tmp_path / "answers.parquet"
    assert main(["predict", str(subject.path), str(source), "--jobs", "2", "-o", str(output)]) == 0
    answers = parquet.read_table(output)
    assert answers.column_names == ["p_yes"]
    expected = subject.truth(np.stack([rows[name].to_numpy() for name in "abcde"], axis=1))
    assert np.array_equal(answers["p_yes"].to_numpy(), expected)


def test_errors_number_rows_from_the_start_of_the_file_with_one_or_two_jobs(subject, tmp_path, capsys):
    source = tmp_path / "rows.csv"
    lines = ["a,b,c,d,e", *["1,2,3,4,5"] * (7 * BLOCK), "1,2,x,4,5"]
    source.write_text("\n".join(lines) + "\n")
    for jobs in ("1", "2"):
        output = tmp_path / "answers.csv"
        assert main(["predict", str(subject.path), str(source), "--jobs", jobs, "-o", str(output)]) == 1
        assert f"row {7 * BLOCK}: feature 'c'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


def test_explain_writes_parquet(subject, tmp_path):
    source, output = write(tmp_path / "rows.parquet", table(20)), tmp_path / "why.parquet"
    assert main(["explain", str(subject.path), str(source), "--top", "2", "-o", str(output)]) == 0
    why = parquet.read_table(output)
    assert why.num_rows == 40
    assert set(why["output"].to_pylist()) == {"yes"}
    assert why["row"].to_pylist()[-1] == 19


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit there")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_memory_of_predict_does_not_grow_with_the_file(suffix, subject, tmp_path):
    def most(blocks: int) -> int:
        source = write(tmp_path / f"rows{blocks}{suffix}", table(blocks * BLOCK))
        arguments = [
            *("predict", str(subject.path), str(source)),
            *("--jobs", "1", "-o", str(tmp_path / f"out{suffix}")),
        ]
        ran = subprocess.run(
            [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True
        )
        return int(re.findall(r"\d+", ran.stderr)[-1]) * 1024

    # Held at once, the rows alone would be more: a mapping of five numbers takes over 300 bytes.
    assert most(18) - most(2) < 0.3 * 16 * BLOCK * 300


@pytest.fixture
def interruptible():
    """SIGINT as by default: background jobs of a shell script ignore it, and so would their child processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_an_interrupted_run_leaves_no_partial_output(number, status, subject, tmp_path):
    pipe, output = tmp_path / "rows.csv", tmp_path / "answers.csv"
    os.mkfifo(pipe)
    output.write_text("of an earlier run\n")
    arguments = ["predict", str(subject.path), str(pipe), "-o", str(output), "--jobs", "1"]
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.DEVNULL)
    try:
        with pipe.open("w") as rows:
            rows.write("a,b,c,d,e\n" + "1,2,3,4,5\n" * (8 * BLOCK))
            rows.flush()
            until = time.monotonic() + 60
            while not list(tmp_path.glob(".answers.csv.*.part")) and time.monotonic() < until:
                time.sleep(0.02)  # the child process gives no event when its file appears
            process.send_signal(number)
            assert process.wait(60) == status
    finally:
        process.kill()
        process.wait()
    assert output.read_text() == "of an earlier run\n"
    if number != signal.SIGKILL:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "rows.csv"]
