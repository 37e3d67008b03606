"""
Runs delayed jobs, such as lease renewals, in programs without an event loop: one after another, on a daemon thread.

The thread starts with the first job, sleeps until the next job is due, and ends when no job is left.
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
    A schedule and its thread. Thread-safe; in a forked child the schedule is empty.

    Jobs run one after another, so a job that blocks delays all later ones.

    Args:
        monotonic: A clock in seconds; injected by tests.
        threaded: False: start no thread, and run jobs only in `run_due`, as tests do.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic, threaded: bool = True) -> None:
        self._monotonic = monotonic
        self._threaded = threaded
        self._numbers = itertools.count()  # jobs due at the same time run in the order they were added
        self._start_anew()
        forget_in_child(self, Scheduler._start_anew)

    def _start_anew(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[tuple[float, int, Callable[[], object]]] = []
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, job: Callable[[], object]) -> None:
        """Run *job* after *seconds*; its exceptions are logged."""
        with self._changed:
            due = self._monotonic() + seconds
            heapq.heappush(self._jobs, (due, next(self._numbers), job))
            if not self._threaded:
                return
            if self._thread is None or not self._thread.is_alive():
                self._start()
            elif self._jobs[0][0] == due:
                self._changed.notify()  # due before the job that the thread waits for

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
        self._thread = threading.Thread(target=self._run, name="idempotency-scheduler", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter is shutting down
            _log.warning("no heartbeat: %s; leases are not renewed until a thread can be started", error)

    def _run(self) -> None:
        while True:
            self.run_due()
            with self._changed:
                if not self._jobs:
                    self._thread = None  # under the lock, so that the next `after` starts a new thread
                    return
                self._changed.wait(min(self._jobs[0][0] - self._monotonic(), threading.TIMEOUT_MAX))
