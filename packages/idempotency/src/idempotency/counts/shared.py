"""Writes the counts of each process into the store, minute by minute; `reader` adds them up."""

from __future__ import annotations

import atexit
import logging
import secrets
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from idempotency._core.errors import CorruptRecord, StoreError, UnknownRecordVersion
from idempotency._core.types import Acquired, Claim, Owner
from idempotency._runtime.fork import forget_in_child
from idempotency.counts.minutes import MINUTES, Series, series_of
from idempotency.counts.record import FINGERPRINT, count_key, encode_counts
from idempotency.events import Event
from idempotency.store import SyncStore

__all__ = ["StoreCounts"]

_log = logging.getLogger("idempotency")
LEASE: Final = 60.0  # s, within which a record's counts follow its claim
_KEPT: Final = (MINUTES + 5) * 60.0  # s: as long as it is shown
_SPREAD: Final = 10.0  # s after the end of a minute; each process writes at its own random time in it


class StoreCounts:
    """
    A hook that counts like `Counts` and writes its counts into the store; the dashboard adds up the counts of all
    processes: `hooks=[StoreCounts(open_sync_store(url))]`.

    Args:
        store: The store of the records, or another object for the same store, since the middleware may need an async
            one. It is called from another thread, and stays open.
        clock: Seconds since 1970, for tests; decides the minute of an event.

    Make one for each process and share it among its middlewares and decorators. A request only adds to a counter; a
    thread writes once a minute, if anything was counted: one record, which expires after 65 minutes. To find a free
    name, the thread makes one more call for each other process that counts.

    The counts are approximate: a process that ends without `close` loses up to a minute of them, a store that does not
    answer for an hour loses that hour, and each process uses its own clock. They contain no key, operation or tenant.

    >>> from idempotency.events import Replayed
    >>> from idempotency.stores.memory import SyncMemoryStore
    >>> counts = StoreCounts(SyncMemoryStore())
    >>> counts(Replayed(operation="POST /charges", key_id="0bafe22156d2", age=1.0, waited=0.0))
    >>> counts.close()
    """

    def __init__(self, store: SyncStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._start_anew()
        forget_in_child(self, StoreCounts._start_anew)
        atexit.register(_close, weakref.ref(self))

    def _start_anew(self) -> None:
        """Start with no counts and no thread; after a fork the parent writes the counts made before it."""
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._late = secrets.SystemRandom().uniform(0.0, _SPREAD)
        self._counted: dict[int, Counter[Series]] = {}
        self._unwritten: list[_Unwritten] = []
        self._closed = threading.Event()
        self._writer: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """Count *event*."""
        series = series_of(event)
        if series is None or self._closed.is_set():
            return
        minute = int(self._clock() // 60)
        with self._lock:
            if minute not in self._counted:
                self._counted[minute] = Counter()
            self._counted[minute][series] += 1
            if self._writer is None:
                self._writer = threading.Thread(
                    target=_write_on,
                    args=(weakref.ref(self), self._closed),
                    name="idempotency-counts",
                    daemon=True,
                )
                self._writer.start()

    def write(self, *, whole_minutes: bool = True) -> None:
        """
        Write the counts that are not yet in the store; a failure is logged, and the next call tries again.

        The thread calls this. It blocks during the store's calls; several threads may call it.

        Args:
            whole_minutes: Whether to leave out the current, unfinished minute.
        """
        now = int(self._clock() // 60)
        with self._writing:
            with self._lock:
                over = [minute for minute in self._counted if minute < now or not whole_minutes]
                self._unwritten += [_Unwritten(minute, self._counted.pop(minute)) for minute in over]
            self._unwritten = [part for part in self._unwritten if now - part.minute < MINUTES]
            while self._unwritten:
                try:
                    self._unwritten[0].write(self._store)
                except StoreError as error:
                    _log.warning("counts for the dashboard were not written, and will be later: %s", error)
                    return
                del self._unwritten[0]

    def close(self) -> None:
        """
        Write the remaining counts, end the thread, and stop counting.

        It is also called when the interpreter exits. A server that is ended by a signal, such as uvicorn, may not get
        that far: call it when the application shuts down.
        """
        if not self._closed.is_set():
            self._closed.set()
            self.write(whole_minutes=False)

    def _due(self) -> float:
        """Seconds until the next write."""
        return 60.0 - self._clock() % 60.0 + self._late


@dataclass
class _Unwritten:
    """The unwritten counts of one minute; `write` may be repeated after a lost answer."""

    minute: int
    counts: Counter[Series]
    place: int = 0
    owner: Owner | None = None
    claim: Claim | None = None

    def write(self, store: SyncStore) -> None:
        self.owner = self.owner or Owner(secrets.token_bytes(16))
        while self.claim is None:
            try:
                reply = store.acquire(
                    count_key(self.minute, self.place),
                    fingerprint=FINGERPRINT,
                    owner=self.owner,
                    lease=LEASE,
                    retention=_KEPT,
                    takeover=False,
                )
            except (CorruptRecord, UnknownRecordVersion):  # another program's record: leave it alone
                self.place += 1
                continue
            if isinstance(reply, Acquired):
                self.claim = reply.claim
            else:
                self.place += 1
        store.complete(self.claim, encode_counts(self.counts), retention=_KEPT)


def _write_on(counts: weakref.ref[StoreCounts], closed: threading.Event) -> None:
    """Write every minute, until *counts* is closed or garbage-collected."""
    while (alive := counts()) is not None:
        wait = alive._due()  # noqa: SLF001 - of this module
        del alive  # so that it can be garbage-collected during the wait
        if closed.wait(wait):
            return
        alive = counts()
        if alive is not None:
            try:
                alive.write()
            except Exception:
                _log.exception("counts for the dashboard were not written")


def _close(counts: weakref.ref[StoreCounts]) -> None:
    alive = counts()
    if alive is not None:
        alive.close()
