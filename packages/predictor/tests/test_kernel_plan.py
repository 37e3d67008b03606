"""Making a plan holds up no other thread, and a plan says roughly what its answers cost."""

from __future__ import annotations

import lzma
import sys
import threading
from pathlib import Path

import pytest

from predictor._engine import Kernel, make_kernel
from predictor._model_file import parse_model_text
from predictor._native import NORMAL

_kernel = pytest.importorskip("predictor._kernel", reason="the extension is not built")


def kernel_of(name: str) -> Kernel:
    """The kernel of a public model, at the level that serves here."""
    packed = Path(__file__).with_name("models") / f"{name}.txt.xz"
    kernel = make_kernel(parse_model_text(lzma.decompress(packed.read_bytes())))
    assert isinstance(kernel, Kernel), kernel
    return kernel


@pytest.fixture(autouse=True)
def _with_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)


def test_a_batch_costs_by_splits_columns_and_features_and_a_single_row_by_trees():
    few_columns, many_columns, few_splits = map(kernel_of, ("NYC_taxi", "airline", "multiclass"))
    # 100 trees of 30 splits both; 313 columns of sets against 6. 120 trees of 4 splits.
    assert few_columns.cost(NORMAL) == pytest.approx(20 + 0.0165 * 3_000 + 0.3 * 6 + 5)
    assert many_columns.cost(NORMAL) > 2 * few_columns.cost(NORMAL) > 3 * few_splits.cost(NORMAL)
    assert few_columns.row_ns == many_columns.row_ns < few_splits.row_ns


def test_making_a_plan_releases_the_gil(monkeypatch):
    build, arrays = _kernel.build, {}

    def recorded(**arguments):
        arrays.update(arguments)
        return build(**arguments)

    monkeypatch.setattr(_kernel, "build", recorded)
    kernel_of("NYC_taxi")

    gate, has_run = threading.Lock(), threading.Event()
    gate.acquire()

    def wait_and_run():
        with gate:
            has_run.set()

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1_000.0)  # so that no other thread runs unless this one lets it
    try:
        other = threading.Thread(target=wait_and_run)
        other.start()
        gate.release()
        for _ in range(500):  # it may be a while until the system wakes the other thread
            if has_run.is_set():
                break
            build(**arrays)
        was_let_in = has_run.is_set()
    finally:
        sys.setswitchinterval(usual)
    other.join()
    assert was_let_in
