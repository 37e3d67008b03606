"""The C reader of trees agrees with the Python reader, and leaves unusual files to it."""

from __future__ import annotations

import dataclasses
import lzma
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predictor._model_file import parse_model_text
from predictor._trees import Trees, parse_trees
from predictor._usual_trees import usual_trees
from predictor.errors import ModelTextError

pytest.importorskip("predictor._kernel", reason="the extension is not built here")

PUBLIC = sorted((Path(__file__).parent / "models").glob("*.txt.xz"))
DAMAGED = 400  # randomly damaged copies of one file


def parts(data: bytes) -> tuple[int, bytes, int]:
    """The offset of the trees, their sizes, and the number of features."""
    header = dict(line.partition(b"=")[::2] for line in data[: data.index(b"\nTree=")].split(b"\n"))
    return data.index(b"\nTree=") + 1, header[b"tree_sizes"], int(header[b"max_feature_idx"]) + 1


def in_c(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Trees | None:
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)
    start, sizes, width = parts(data)
    found = usual_trees(data, start, sizes, width=width)
    return None if found is None else Trees(**found)


def in_python(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Trees:
    monkeypatch.setenv("PREDICTOR_ENGINE", "lightgbm")
    start, sizes, width = parts(data)
    return parse_trees(data, start, sizes.decode(), width=width)[0]


def assert_equal(one: Trees, other: Trees) -> None:
    for field in dataclasses.fields(Trees):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.tobytes() == b.tobytes(), field.name
        else:
            assert a == b, field.name


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: path.name)
def test_c_and_python_readers_agree_on_public_models(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lzma.decompress(path.read_bytes())
    found = in_c(data, monkeypatch)
    assert found is not None
    assert_equal(found, in_python(data, monkeypatch))


def test_c_and_python_readers_agree_on_every_kind_of_model(
    any_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = any_model.path.read_bytes()
    found, plain = in_c(data, monkeypatch), in_python(data, monkeypatch)
    assert (found is None) == bool(plain.is_linear.any())
    if found is not None:
        assert_equal(found, plain)


def test_c_and_python_readers_agree_on_damaged_files(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are replaced, dropped and doubled; the C reader returns the same trees, or leaves them to Python."""
    good, rng = trained("categories_missing").path.read_bytes(), np.random.default_rng(5)
    first, end = good.index(b"Tree=0"), good.index(b"end of trees")
    taken = 0
    for _ in range(DAMAGED):
        at, kind = int(rng.integers(first, end)), rng.integers(3)
        byte = bytes([rng.choice(np.frombuffer(b"0123456789 -+.e=\ninf\x80", np.uint8))])
        data = good[:at] + (byte, b"", good[at : at + 1] * 2)[kind] + good[at + 1 :]
        blocks = re.split(rb"(?m)^(?=Tree=)", data[first : data.index(b"end of trees")])
        sizes = b" ".join(b"%d" % len(block) for block in blocks if block)
        data = re.sub(rb"(?m)^tree_sizes=.*$", b"tree_sizes=" + sizes, data, count=1)
        found = in_c(data, monkeypatch)
        if found is not None:
            taken += 1
            assert_equal(found, in_python(data, monkeypatch))
    assert DAMAGED // 20 < taken < DAMAGED  # some damaged files are still read in C, and most are not


@pytest.mark.parametrize(
    "pattern",
    [rb"(?m)^leaf_weight=", rb"(?m)^shrinkage=1$", rb"(?m)^left_child=", rb"(?m)^internal_count=\d"],
)
def test_damaged_lines_are_left_to_the_python_reader_and_refused(
    trained: Any, monkeypatch: pytest.MonkeyPatch, pattern: bytes
) -> None:
    good = trained("multiclass").path.read_bytes()
    found = re.search(pattern, good)
    assert found is not None
    data = good[: found.end() - 1] + b"x" + good[found.end() :]
    assert in_c(good, monkeypatch) is not None
    assert in_c(data, monkeypatch) is None
    with pytest.raises(ModelTextError, match=r"line|no 'name=value'"):
        parse_model_text(data)
