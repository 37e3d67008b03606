"""A plan estimates the cost of its predictions, and what takes long releases the GIL."""

from __future__ import annotations

import lzma
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from predictor import RowPolicy
from predictor._engine import Kernel, make_kernel
from predictor._features import features_of
from predictor._model_file import ParsedModel, parse_model_text
from predictor._native import CONTRIB, NORMAL
from predictor.schema import RowSchema

_kernel = pytest.importorskip("predictor._kernel", reason="the extension is not built")


def parsed(name: str) -> ParsedModel:
    packed = Path(__file__).with_name("models") / f"{name}.txt.xz"
    return parse_model_text(lzma.decompress(packed.read_bytes()))


def kernel_of(name: str) -> Kernel:
    """The kernel of a public model, at the default level."""
    kernel = make_kernel(parsed(name))
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


def lets_other_threads_run(call: Callable[[], object]) -> bool:
    """Whether another thread runs while *call* is repeated, although no thread is asked for the GIL."""
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
            call()
        has_run_meanwhile = has_run.is_set()
    finally:
        sys.setswitchinterval(usual)
    other.join()
    return has_run_meanwhile


def test_building_a_plan_releases_the_gil(monkeypatch):
    build, arrays = _kernel.build, {}

    def recorded(**arguments):
        arrays.update(arguments)
        return build(**arguments)

    monkeypatch.setattr(_kernel, "build", recorded)
    kernel_of("NYC_taxi")
    assert lets_other_threads_run(lambda: build(**arrays))


@pytest.mark.parametrize(("rows", "released"), [(1, False), (4, False), (20_000, True)])
def test_array_predicted_in_one_call_releases_the_gil_if_it_takes_long(rows, released, trained):
    subject = trained("regression")
    model = subject.load()
    matrix = np.resize(subject.rows, (rows, 5))
    assert model._plain_matrix(matrix) is not None
    assert lets_other_threads_run(lambda: model._plain_matrix(matrix)) == released


@pytest.mark.parametrize(("rows", "released"), [(4, False), (20_000, True)])
def test_check_for_plain_cells_releases_the_gil_if_there_are_many(rows, released):
    cells = RowSchema(features_of(parsed("NYC_taxi").summary), RowPolicy()).cells
    matrix = np.ones((rows, 5))
    assert cells.plain(matrix)
    assert lets_other_threads_run(lambda: cells.plain(matrix)) == released


@pytest.mark.parametrize(("columns", "path"), [(32_000, "blend"), (32_001, "walk")])
def test_model_of_more_columns_than_a_batch_can_number_is_walked(columns, path):
    values = np.random.default_rng(0).normal(size=2 * columns)
    engine = _kernel.build(
        level=_kernel.levels()[0],
        n_features=columns,
        n_outputs=1,
        leaves=np.full(columns, 2, np.int32),
        feature=np.arange(columns, dtype=np.int32),
        threshold=np.full(columns, 0.5),
        decision=np.zeros(columns, np.uint8),
        left=np.full(columns, ~0, np.int32),
        right=np.full(columns, ~1, np.int32),
        set_start=np.zeros(columns, np.int64),
        set_size=np.zeros(columns, np.int32),
        set_words=np.zeros(0, np.uint32),
        leaf_value=values,
        split_count=None,
        leaf_count=None,
        finish=0,
        scale=1.0,
        walk_only=False,
    )
    assert engine.describe()["batch"] == path
    rows = np.random.default_rng(1).integers(0, 2, (40, columns)).astype(float)
    scores = np.empty(40)
    engine.raw(rows, scores, False)
    taken = values.reshape(columns, 2)[np.arange(columns), rows.astype(int)]
    assert (scores == taken.cumsum(axis=1)[:, -1]).all()  # in the order of the trees
