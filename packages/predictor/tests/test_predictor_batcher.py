"""Each batched row gets its own answer; a bad, cancelled or surplus row affects no other row."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor import Batcher, BatcherClosed, ModelSlot, Overloaded, SchemaError
from predictor.batching import Due, WaitingRows
from predictor.errors import EngineError

pytestmark = pytest.mark.anyio


@pytest.fixture
def slot(strict) -> ModelSlot:
    return ModelSlot(strict.load())


async def test_a_thousand_rows_get_their_own_answers_despite_cancels_and_a_bad_row(strict, slot):
    rows = np.tile(strict.rows, (3, 1))[:1000]
    expected = slot.current.predict(rows)
    batcher, rng = Batcher(slot, max_rows=32), random.Random(4)
    tasks = []
    for index, row in enumerate(rows):
        tasks.append(asyncio.ensure_future(batcher.predict(["bad", 1, 2, 3, 4] if index == 500 else row)))
        if rng.random() < 0.1:
            await asyncio.sleep(0)
        if rng.random() < 0.1:
            tasks[rng.randrange(len(tasks))].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    cancelled = sum(isinstance(answer, asyncio.CancelledError) for answer in answers)
    assert 0 < cancelled < 200
    for index, answer in enumerate(answers):
        if index == 500:
            assert isinstance(answer, SchemaError | asyncio.CancelledError)
        elif not isinstance(answer, asyncio.CancelledError):
            assert answer.values.tolist() == [expected[index]]
            assert answer.version == "1"


async def test_rows_of_one_event_loop_turn_are_batched_up_to_max_rows(slot, strict, monkeypatch):
    sizes = []
    real = type(slot.current).predict_encoded
    monkeypatch.setattr(
        type(slot.current),
        "predict_encoded",
        lambda self, m, **k: (sizes.append(len(m)), real(self, m, **k))[1],
    )
    batcher = Batcher(slot, max_rows=4)
    await asyncio.gather(*(batcher.predict(row) for row in strict.rows[:10]))
    assert sizes == [4, 4, 2]


async def test_a_cancelled_row_is_not_computed(slot, strict, monkeypatch):
    sizes = []
    real = type(slot.current).predict_encoded
    monkeypatch.setattr(
        type(slot.current),
        "predict_encoded",
        lambda self, m, **k: (sizes.append(len(m)), real(self, m, **k))[1],
    )
    batcher = Batcher(slot)
    tasks = [asyncio.ensure_future(batcher.predict(row)) for row in strict.rows[:3]]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert sizes == [2]


async def test_rows_beyond_max_queue_raise_overloaded_and_the_others_are_answered(slot, strict):
    batcher = Batcher(slot, max_rows=2, max_queue=3)
    answers = await asyncio.gather(*(batcher.predict(row) for row in strict.rows[:5]), return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Prediction"] * 3 + ["Overloaded"] * 2
    assert (await batcher.predict(strict.rows[0])).version == "1"


async def test_one_timer_of_max_wait_flushes_a_partial_batch(slot, strict, monkeypatch):
    loop, delays = asyncio.get_running_loop(), []
    real = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda delay, *a: (delays.append(delay), real(0, *a))[1])
    batcher = Batcher(slot, max_rows=3, max_wait=5.0)
    await batcher.predict(strict.rows[0])
    assert delays == [5.0]
    await asyncio.gather(*(batcher.predict(row) for row in strict.rows[:3]))
    assert delays == [5.0, 5.0]


async def test_a_full_batch_is_flushed_before_max_wait(slot, strict):
    batcher = Batcher(slot, max_rows=3, max_wait=59.0)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(batcher.predict(row) for row in strict.rows[:3]))
    assert [answer.values[0] for answer in answers] == strict.load().predict(strict.rows[:3]).tolist()


class UnreadableRow(Mapping[str, float]):
    """A row that raises when it is read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, name: str) -> float:
        raise self.error

    def __iter__(self) -> Iterator[str]:
        return iter("abcde")

    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize("error", [RuntimeError("secret"), StopIteration(), MemoryError()], ids=repr)
async def test_a_row_that_raises_when_read_fails_without_affecting_others(slot, strict, error):
    rows = [strict.rows[0], UnreadableRow(error), strict.rows[1]]
    batcher = Batcher(slot)
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*(batcher.predict(row) for row in rows), return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Prediction", "SchemaError", "Prediction"]
    assert str(answers[1]) == (
        f"the row cannot be read: it raises {type(error).__name__}; send a plain mapping or list"
    )
    assert answers[1].__cause__ is error


class CancellingRow(UnreadableRow):
    """A row that cancels tasks when it is read."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.tasks = error, []

    def __getitem__(self, name: str) -> float:
        for task in self.tasks:
            task.cancel()
        if self.error is not None:
            raise self.error
        return 1.0


@pytest.mark.parametrize("error", [None, RuntimeError()], ids=repr)
async def test_a_row_that_cancels_tasks_when_read_does_not_keep_others_waiting(slot, strict, error):
    row, batcher = CancellingRow(error), Batcher(slot)
    rows = [strict.rows[0], row, strict.rows[1]]
    tasks = [asyncio.ensure_future(batcher.predict(row)) for row in rows]
    row.tasks = tasks[:2]
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["CancelledError", "CancelledError", "Prediction"]


@pytest.mark.parametrize("error", [EngineError("LightGBM refused: a test"), MemoryError()], ids=repr)
async def test_an_engine_error_reaches_each_caller_as_a_separate_exception(slot, strict, monkeypatch, error):
    def broken(self, matrix, **options):
        raise error

    monkeypatch.setattr(type(slot.current), "predict_encoded", broken)
    batcher = Batcher(slot)
    answers = await asyncio.gather(*(batcher.predict(row) for row in strict.rows[:2]), return_exceptions=True)
    assert [repr(answer) for answer in answers] == [repr(error)] * 2
    assert answers[0] is not answers[1]


async def test_close_fails_waiting_and_later_calls_with_batcher_closed(slot, strict):
    batcher = Batcher(slot, max_wait=30.0)
    waiting = asyncio.ensure_future(batcher.predict(strict.rows[0]))
    await asyncio.sleep(0)
    batcher.close()
    batcher.close()
    for call in (waiting, batcher.predict(strict.rows[0])):
        with pytest.raises(BatcherClosed):
            await call


def test_a_batcher_belongs_to_one_event_loop(slot, strict):
    batcher = Batcher(slot)
    asyncio.run(batcher.predict(strict.rows[0]))
    with pytest.raises(RuntimeError, match="one event loop"):
        asyncio.run(batcher.predict(strict.rows[0]))


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"max_rows": 9, "max_queue": 8}, {"max_wait": -1.0}])
def test_invalid_limits_raise_value_error(slot, options):
    with pytest.raises(ValueError, match="max_"):
        Batcher(slot, **options)


@given(
    max_rows=st.integers(1, 5),
    surplus=st.integers(0, 6),
    steps=st.lists(st.booleans(), max_size=60),
)
def test_waiting_rows_are_taken_once_in_order_and_a_flush_is_always_due(max_rows, surplus, steps):
    waiting = WaitingRows(max_rows=max_rows, max_queue=max_rows + surplus)
    accepted, taken, is_due = [], [], False
    for number, adds in enumerate(steps):
        if adds:
            try:
                due = waiting.add(number)
            except Overloaded:
                assert len(waiting) == max_rows + surplus
                continue
            accepted.append(number)
            is_due = is_due or due is not Due.SET
            assert is_due  # no row waits without a scheduled flush
        else:
            batch = waiting.take()
            assert len(batch) <= max_rows
            taken += batch
            is_due = len(waiting) > 0  # the batcher flushes again while rows remain
    while waiting:
        taken += waiting.take()
    assert accepted == taken
