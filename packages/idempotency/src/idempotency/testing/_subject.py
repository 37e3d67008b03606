"""Drives the store under test, async or sync, from plain test functions, with new keys and owners."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import TypeAlias, TypeVar, cast

from idempotency._core.types import Acquired, Claim, Fingerprint, Owner, Record, Reply, StorageKey
from idempotency.store import Store, SyncStore
from idempotency.testing._clock import Clock
from idempotency.testing._spec import Span

__all__ = ["OpenStore", "Subject", "open_subject"]

T = TypeVar("T")

OpenStore: TypeAlias = AbstractAsyncContextManager[Store] | AbstractContextManager[SyncStore]
"""What `StoreContract.open_store` returns: entering it opens the store, leaving it closes what it opened."""

FINGERPRINT = Fingerprint(b"\x01" * 32)
OUTCOME = b'{"status":201,"body":"caf\xc3\xa9 \\u0000"}'


class Subject:
    """
    A store with its clock. `short` is a duration that tests let pass; `long` is longer than any test.

    It has every method of a store, without `await`; `acquire` has defaults for all that a test does not set.
    """

    def __init__(
        self, store: Store | SyncStore, clock: Clock, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self.store = store
        self.clock = clock
        self.short: float = clock.unit
        self.long: float = 3600.0 * max(clock.unit, 1.0)
        self._loop = loop
        self._prefix = secrets.token_hex(6)  # many test runs may share one server
        self._numbers = itertools.count(1)

    def key(self) -> StorageKey:
        """A new key."""
        return StorageKey(f"{self._prefix}-{next(self._numbers)}")

    def owner(self) -> Owner:
        """A new owner."""
        return Owner(secrets.token_bytes(16))

    def acquire(
        self,
        key: StorageKey,
        *,
        fingerprint: Fingerprint = FINGERPRINT,
        owner: Owner | None = None,
        lease: float | None = None,
        retention: float | None = None,
        takeover: bool = True,
    ) -> Reply:
        result = self.store.acquire(
            key,
            fingerprint=fingerprint,
            owner=self.owner() if owner is None else owner,
            lease=self.long if lease is None else lease,
            retention=self.long if retention is None else retention,
            takeover=takeover,
        )
        return cast("Reply", self._done(cast("object", result)))  # mypy joins the replies into a tuple

    def claim(self, key: StorageKey, *, lease: float | None = None, retention: float | None = None) -> Claim:
        """Acquire a key that is free or lapsed; fails if it is not granted."""
        reply = self.acquire(key, lease=lease, retention=retention)
        assert isinstance(reply, Acquired), f"a free or lapsed key was not granted: {reply}"
        return reply.claim

    def renew(self, claim: Claim, *, lease: float | None = None) -> bool:
        return self._done(self.store.renew(claim, lease=self.long if lease is None else lease))

    def complete(self, claim: Claim, outcome: bytes = OUTCOME, *, retention: float | None = None) -> bool:
        kept = self.long if retention is None else retention
        return self._done(self.store.complete(claim, outcome, retention=kept))

    def release(self, claim: Claim) -> bool:
        return self._done(self.store.release(claim))

    def get(self, key: StorageKey) -> Record | None:
        return self._done(self.store.get(key))

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def timed(self, call: Callable[[], T]) -> tuple[T, Span]:
        """The result of *call*, and the span of time in which the store may have read its clock."""
        margin = self.clock.resolution
        before = self.clock() - margin
        return call(), Span(before, self.clock() + margin)

    def race(self, contenders: Sequence[Owner], key: StorageKey) -> list[Reply]:
        """Let every contender acquire *key* at once: in threads, or as tasks of one loop."""
        if self._loop is None:
            with ThreadPoolExecutor(len(contenders)) as pool:
                return list(pool.map(lambda owner: self.acquire(key, owner=owner), contenders))
        store = cast("Store", self.store)

        async def one(owner: Owner) -> Reply:
            return await store.acquire(
                key, fingerprint=FINGERPRINT, owner=owner, lease=self.long, retention=self.long
            )

        async def every() -> list[Reply]:
            return await asyncio.gather(*map(one, contenders))

        return self._loop.run_until_complete(every())

    def _done(self, result: Awaitable[T] | T) -> T:
        if self._loop is None:
            return cast("T", result)
        return self._loop.run_until_complete(cast("Awaitable[T]", result))


@contextmanager
def open_subject(opened: OpenStore, clock: Clock) -> Iterator[Subject]:
    """Open the store, an async one in a new event loop, and close it at the end."""
    if isinstance(opened, AbstractContextManager):
        with opened as sync_store:
            yield Subject(sync_store, clock, None)
        return
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        store = loop.run_until_complete(opened.__aenter__())
        try:
            yield Subject(store, clock, loop)
        finally:
            # The store is closed in the same way after a failed test, without its exception.
            loop.run_until_complete(opened.__aexit__(None, None, None))
