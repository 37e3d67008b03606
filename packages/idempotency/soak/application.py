"""
The application under the soak: one effect per key, by each of the three promises, with a place to die at every step.

L and M write their effect to the journal; T inserts a row and records it in the same transaction (`complete_in`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from faults import RENEWAL, Fate
from journal import Journal
from psycopg_pool import AsyncConnectionPool

from idempotency import CurrentClaim, IdempotencyMiddleware, Policy, Response, current_claim
from idempotency._core.types import Acquired
from idempotency.store import Store
from idempotency.stores.url import open_store

__all__ = ["application"]

Effect: TypeAlias = Callable[[str, CurrentClaim, Response], Awaitable[bool]]
"""Makes the effect of this name; False where it was rolled back: the claim had passed on, or the file was held."""


def _policy_of(mode: str, lease: float) -> Policy:
    """The policy that makes the promise."""
    preset = Policy.at_most_once if mode == "M" else Policy.at_least_once
    return preset(lease=lease, prefer_wait=2 * lease, required=True)


class WatchedStore:
    """A store whose every call is a step to die at, and is in the journal with its answer."""

    def __init__(self, store: Store, fate: Fate, journal: Journal) -> None:
        self._store = store
        self._fate = fate
        self._journal = journal

    async def acquire(self, key: Any, **arguments: Any) -> Any:
        self._fate.at("before the claim")
        asked, owner = time.monotonic(), arguments["owner"].hex()
        self._journal.write("asked", key=key, owner=owner)
        try:
            with self._fate.during("in the claim"):
                reply = await self._store.acquire(key, **arguments)
        except BaseException:
            self._journal.write("told", owner=owner, answered=False)
            raise
        if isinstance(reply, Acquired):
            claim = reply.claim
            self._note("claimed", claim, asked, attempt=claim.attempt, fence=claim.fence)
            self._fate.at("after the claim")
        else:
            self._journal.write("told", owner=owner, answered=True)
        return reply

    async def renew(self, claim: Any, **arguments: Any) -> bool:
        self._fate.at(RENEWAL)
        asked = time.monotonic()
        held = await self._store.renew(claim, **arguments)
        self._note("renewed", claim, asked, held=held)
        return held

    async def complete(self, claim: Any, outcome: bytes, **arguments: Any) -> bool:
        self._fate.at("before the record")
        asked, held = time.monotonic(), None
        try:
            with self._fate.during("in the record"):
                held = await self._store.complete(claim, outcome, **arguments)
        finally:
            self._note("completed", claim, asked, held=held)
        self._fate.at("after the record")
        return held

    async def release(self, claim: Any) -> bool:
        asked, held = time.monotonic(), None
        try:
            held = await self._store.release(claim)
        finally:
            self._note("released", claim, asked, held=held)
        return held

    def note_refusal(self, claim: Any) -> None:
        """The store did not take an outcome into the effect's own transaction."""
        self._note("completed", claim, time.monotonic(), held=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _note(self, what: str, claim: Any, asked: float, **members: Any) -> None:
        self._journal.write(what, key=claim.key, owner=claim.owner.hex(), asked=asked, **members)


@asynccontextmanager
async def application(
    mode: str, url: str, lease: float, fate: Fate, journal: Journal
) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """The ASGI application of one worker, over a store of its own."""
    store = WatchedStore(open_store(url), fate, journal)
    async with _effects(mode, url, store, fate, journal) as effect:
        guarded = IdempotencyMiddleware(
            _Handler(effect, journal),
            store=store,
            tenant=lambda scope: dict(scope["headers"])[b"authorization"].decode(),
            policy=_policy_of(mode, lease),
        )

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            answered = None

            async def reply(message: Any) -> None:
                nonlocal answered
                if message["type"] == "http.response.start":
                    answered = message["status"]
                    if answered == 201:
                        fate.at("before the reply")
                elif answered == 201:
                    fate.at("in the reply")
                await send(message)

            await guarded(scope, receive, reply)

        yield serve
    await store.aclose()


class _Handler:
    """Takes as long as the request says, makes one effect, and answers with its name."""

    def __init__(self, effect: Effect, journal: Journal) -> None:
        self._effect = effect
        self._journal = journal
        self._numbers = itertools.count()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        order = json.loads((await receive())["body"])
        current = current_claim()
        assert current is not None
        self._journal.write("began", key=current.claim.key, owner=current.claim.owner.hex())
        await asyncio.sleep(order["seconds"])
        name = f"{os.getpid()}-{next(self._numbers)}"
        answer = _answer(order, name)
        if not await self._effect(name, current, answer):
            answer = Response(503, [(b"retry-after", b"1"), (b"content-length", b"0")], b"")
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})


def _answer(order: dict[str, Any], name: str) -> Response:
    body = json.dumps({"operation": order["operation"], "effect": name, "text": order["text"]}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"location", b"/effects/" + name.encode()),
    ]
    return Response(201, headers, body)


@asynccontextmanager
async def _effects(
    mode: str, url: str, store: WatchedStore, fate: Fate, journal: Journal
) -> AsyncIterator[Effect]:
    if mode != "T":
        yield _journalled(fate, journal)
    elif url.startswith("sqlite:"):
        yield _in_sqlite(urlsplit(url).path.removeprefix("/"), store, fate)
    else:
        async with AsyncConnectionPool(url, min_size=1, max_size=8, open=False) as pool:
            yield _in_postgres(pool, store, fate)


def _journalled(fate: Fate, journal: Journal) -> Effect:
    """An effect outside every store, as a card that is charged."""

    async def effect(name: str, current: CurrentClaim, answer: Response) -> bool:
        fate.at("before the effect")
        journal.write("effect", id=name, key=current.claim.key, owner=current.claim.owner.hex())
        fate.at("after the effect")
        return True

    return effect


def _in_sqlite(path: str, store: WatchedStore, fate: Fate) -> Effect:
    def transact(name: str, current: CurrentClaim, answer: Response) -> bool:
        with closing(sqlite3.connect(path, timeout=2.0, isolation_level=None)) as connection:
            fate.at("before the effect")
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:  # a frozen process holds the file
                return False
            connection.execute("INSERT INTO effect (id, key) VALUES (?, ?)", (name, current.claim.key))
            fate.at("after the effect")
            outcome = current.outcome(answer)
            if not store.complete_in(connection, current.claim, outcome, retention=current.retention):
                connection.execute("ROLLBACK")
                store.note_refusal(current.claim)
                return False
            fate.at("before the commit")
            with fate.during("in the commit"):
                connection.execute("COMMIT")
        fate.at("after the commit")
        return True

    async def effect(name: str, current: CurrentClaim, answer: Response) -> bool:
        return await asyncio.to_thread(transact, name, current, answer)

    return effect


def _in_postgres(pool: AsyncConnectionPool[Any], store: WatchedStore, fate: Fate) -> Effect:
    async def effect(name: str, current: CurrentClaim, answer: Response) -> bool:
        async with pool.connection() as connection:
            fate.at("before the effect")
            await connection.execute(
                "INSERT INTO effect (id, key) VALUES (%s, %s)", (name, current.claim.key)
            )
            fate.at("after the effect")
            outcome = current.outcome(answer)
            if not await store.complete_in(connection, current.claim, outcome, retention=current.retention):
                await connection.rollback()
                store.note_refusal(current.claim)
                return False
            fate.at("before the commit")
            with fate.during("in the commit"):
                await connection.commit()
        fate.at("after the commit")
        return True

    return effect
