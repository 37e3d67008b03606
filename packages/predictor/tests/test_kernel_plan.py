"""Building a plan releases the GIL, and a plan estimates the cost of its predictions."""

from __future__ import annotations

import lzma
import sys
import threading
from pathlib import Path

import pytest

from predictor._engine import Kernel, make_kernel
from predictor._model_file import parse_model_text
from predictor._native import CONTRIB, NORMAL

_kernel = pytest.importorskip("predictor._kernel", reason="the extension is not built")


def kernel_of(name: str) -> Kernel:
    """The kernel of a public model, at the default level."""
    packed = Path(__file__).with_name("models") / f"{name}.txt.xz"
    kernel = make_kernel(parse_model_text(lzma.decompress(packed.read_bytes())))
    assert isinstance(kernel, Kernel), kernel
    return kernel


@pytest.fixture(autouse=True)
def _with_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREDICTOR_ENGINE", raising=False)


def test_cost_of_a_batch_grows_with_splits_and_columns_and_of_a_row_with_trees():
    few_columns, many_columns, few_splits = map(kernel_of, ("NYC_taxi", "airline", "multiclass"))
    # The first two have 100 trees of 30 splits, with 6 and 313 columns; the third has 120 trees of 4 splits.
    assert few_columns.cost(NORMAL) == pytest.approx(20 + 0.0165 * 3_000 + 0.3 * 6 + 5)
    assert many_columns.cost(NORMAL) > 2 * few_columns.cost(NORMAL) > 3 * few_splits.cost(NORMAL)
    assert 0 < few_columns.row_ns < many_columns.row_ns < kernel_of("mtpl2").row_ns


def test_few_rows_are_estimated_by_rows_until_a_tile_costs_less():
    kernel = kernel_of("NYC_taxi")
    tile, row, batch = kernel._engine.describe()["tile_ns"], kernel.row_ns, kernel.cost(NORMAL)
    assert kernel.estimate(2, NORMAL) == pytest.approx(2 * (row + batch))
    assert 2 * row < tile < 1_000 * row
    assert kernel.estimate(1_000, NORMAL) == pytest.approx(1_000 * batch + tile)
    assert kernel.estimate(3, CONTRIB) == 3 * kernel.cost(CONTRIB)


@pytest.mark.parametrize("nanoseconds", [1_000, 45_000, 10_000_000])
@pytest.mark.parametrize("name", ["NYC_taxi", "mtpl2"])
def test_most_rows_of_a_time_take_less_than_it(name, nanoseconds):
    kernel = kernel_of(name)
    most = kernel.most_rows(nanoseconds)
    assert kernel.estimate(most, NORMAL) <= nanoseconds < kernel.estimate(most + 2, NORMAL)


def test_building_a_plan_releases_the_gil(monkeypatch):
    build, arrays = _kernel.build, {}

    def recorded(**arguments):
        arrays.update(arguments)
        return build(**arguments)

    monkeypatch.setattr(_kernel, "build", recorded)
    kernel_of("NYC_taxi")

    lock, has_run = threading.Lock(), threading.Event()
    lock.acquire()

    def wait_and_run():
        with lock:
            has_run.set()

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1_000.0)  # no other thread runs until this one releases the GIL
    try:
        other = threading.Thread(target=wait_and_run)
        other.start()
        lock.release()
        for _ in range(500):  # the system may wake the other thread late
            if has_run.is_set():
                break
            build(**arrays)
        has_run_meanwhile = has_run.is_set()
    finally:
        sys.setswitchinterval(usual)
    other.join()
    assert has_run_meanwhile
