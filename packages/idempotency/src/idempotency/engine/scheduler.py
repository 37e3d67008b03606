"""
Runs delayed work, such as renewing leases, in programs without an event loop: in order, on one daemon thread.

The thread starts with the first job, sleeps until the next one is due, and ends by itself when there are none.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from idempotency._runtime.fork import forget_in_child

__all__ = ["Scheduler"]

_log = logging.getLogger("idempotency")


class Scheduler:
    """
    A schedule and the thread that keeps it. Thread-safe; in a child of `fork` the schedule is empty again.

    Jobs run one after another, so one that blocks delays all that follow.

    Args:
        monotonic: A clock in seconds; injected by tests.
        threaded: False where nobody but the caller of `run_due` performs the jobs, as in tests.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic, threaded: bool = True) -> None:
        self._monotonic = monotonic
        self._threaded = threaded
        self._numbers = itertools.count()  # jobs due at one instant run in the order they came
        self._start_anew()
        forget_in_child(self, Scheduler._start_anew)

    def _start_anew(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[tuple[float, int, Callable[[], object]]] = []
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, job: Callable[[], object]) -> None:
        """Run *job* in *seconds*; what it raises is logged."""
        with self._changed:
            due = self._monotonic() + seconds
            heapq.heappush(self._jobs, (due, next(self._numbers), job))
            if not self._threaded:
                return
            if self._thread is None or not self._thread.is_alive():
                self._start()
            elif self._jobs[0][0] == due:
                self._changed.notify()  # sooner than what the thread sleeps towards

    def run_due(self) -> None:
        """Run every job that is due."""
        while True:
            with self._changed:
                if not self._jobs or self._jobs[0][0] > self._monotonic():
                    return
                job = heapq.heappop(self._jobs)[2]
            try:
                job()
            except Exception:
                _log.exception("background work of an idempotency engine failed")

    def __len__(self) -> int:
        return len(self._jobs)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._keep, name="idempotency-scheduler", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread to be had, or the interpreter is on its way out
            _log.warning("no heartbeat until a thread can be started: %s; leases decide", error)

    def _keep(self) -> None:
        while True:
            self.run_due()
            with self._changed:
                if not self._jobs:
                    self._thread = None  # under the lock: whoever comes next finds no thread and starts one
                    return
                self._changed.wait(self._jobs[0][0] - self._monotonic())
