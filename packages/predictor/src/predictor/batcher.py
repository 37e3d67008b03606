"""
Collects the single rows of concurrent tasks on one event loop, and predicts them in one call.

Measure before you use it: to call `Model.predict_row` directly has less overhead and is faster at most loads (README,
"When to batch").
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.batching import Due, WaitingRows
from predictor.errors import BatcherClosed, PredictorError, SchemaError
from predictor.slot import ModelSlot

__all__ = ["Batcher", "Prediction"]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One row's answer and the model that gave it."""

    values: NDArray[np.float64]  # float64 [n_classes], as `Model.predict_row`
    version: str  # `ModelInfo.version`


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    row: Any
    answer: asyncio.Future[Prediction]

    def fail(self, error: Exception) -> None:
        """Raise *error* where the answer is awaited, unless that was cancelled."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """
    Collects rows for one iteration of the event loop, or for *max_wait* seconds, and predicts them in one call.

    One model answers a whole batch, even if the slot swaps its model meanwhile. A bad row fails alone; a cancelled one
    is not computed. A batcher belongs to the event loop of its first call and predicts on that loop's thread; asyncio
    only.
    """

    def __init__(
        self, slot: ModelSlot, *, max_rows: int = 64, max_wait: float = 0.0, max_queue: int = 1_024
    ) -> None:
        """
        Args:
            slot: Gives the current model, once per batch.
            max_rows: Most rows in one batch, >= 1.
            max_wait: Seconds that the first row waits for others; 0.0: until the next iteration of the loop. A single
                client waits this long on every request.
            max_queue: Most rows that may wait; the next one raises `Overloaded`.
        """
        if not 0.0 <= max_wait < 60.0:
            raise ValueError("max_wait is in seconds: at least 0 and less than 60")
        self._slot = slot
        self._max_wait = max_wait
        self._waiting: WaitingRows[_Request] = WaitingRows(max_rows=max_rows, max_queue=max_queue)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None
        self._closed = False

    async def predict(self, row: Any) -> Prediction:
        """
        Predict one row, as `Model.predict_row` would.

        Raises:
            SchemaError: This row does not fit; others in the batch are answered.
            Overloaded: `max_queue` rows are waiting; try again later.
            BatcherClosed: `close` was called.
        """
        if self._closed:
            raise BatcherClosed("this batcher is closed; make a new one")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("a Batcher belongs to one event loop; make one per loop")
        request = _Request(row, loop.create_future())
        due = self._waiting.add(request)
        if due is Due.NOW or (due is Due.LATER and self._max_wait == 0.0):
            self._flush_at(loop, 0.0)
        elif due is Due.LATER:
            self._flush_at(loop, self._max_wait)
        return await request.answer

    def close(self) -> None:
        """Fail every waiting and every later row with `BatcherClosed`; a second call does nothing."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while batch := self._waiting.take():
            for request in batch:
                request.fail(BatcherClosed("the batcher was closed before this row's turn"))

    def _flush_at(self, loop: asyncio.AbstractEventLoop, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = (
            loop.call_later(delay, self._flush, loop) if delay else loop.call_soon(self._flush, loop)
        )

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        model = self._slot.current
        requests: list[_Request] = []
        encoded: list[tuple[float, ...]] = []
        for request in self._waiting.take():
            if request.answer.done():  # cancelled while it waited
                continue
            try:
                encoded.append(model.encode_row(request.row))
            except PredictorError as error:
                request.fail(error)
            except Exception as error:
                # Code of the row itself may raise anything; other rows must still be answered.
                unreadable = SchemaError(
                    f"the row cannot be read: it raises {type(error).__name__}",
                    remedy="send a plain mapping or list",
                )
                unreadable.__cause__ = error
                request.fail(unreadable)
            else:
                requests.append(request)
        if len(self._waiting):
            self._flush_at(loop, 0.0)
        if not requests:
            return
        try:
            answers = model.predict_encoded(np.array(encoded, dtype=np.float64)).reshape(len(requests), -1)
        except Exception as error:  # also MemoryError and the like
            # Each waiter raises its own copy: a shared one would collect all tracebacks.
            for request in requests:
                request.fail(copy.copy(error))
            return
        for request, values in zip(requests, answers, strict=True):
            if not request.answer.done():  # code of a later row may have cancelled it
                request.answer.set_result(Prediction(values.copy(), model.info.version))
