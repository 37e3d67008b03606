"""A handler's `complete_in` writes what the middleware or the decorator would have recorded."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from asgi_driver import call
from effects import guard, respond

from idempotency import NotReplayable, Policy, Response, StorageKey, current_claim, idempotent
from idempotency.stores.encrypted import EncryptedStore, KeyRing, SyncEncryptedStore
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore

pytestmark = pytest.mark.anyio

HEADERS = [
    (b"Content-Type", b"text/plain"),
    (b"Set-Cookie", b"session=secret"),
    (b"Link", b"</a>; rel=a"),
    (b"link", b"</b>; rel=b"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Shop:
    """A database file that has charges and records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.encrypted = False
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE charge (cents INTEGER)")

    @property
    def ring(self) -> KeyRing:
        return KeyRing({"k": bytes(32)}, current="k")

    def store(self) -> Any:
        store = SQLiteStore(self.path)
        return EncryptedStore(store, keys=self.ring) if self.encrypted else store

    def sync_store(self) -> Any:
        store = SyncSQLiteStore(self.path)
        return SyncEncryptedStore(store, keys=self.ring) if self.encrypted else store

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("INSERT INTO charge VALUES (500)")
            yield connection

    @property
    def charges(self) -> int:
        with closing(sqlite3.connect(self.path)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM charge").fetchone()
            return int(count)

    def application(self, store: Any, answer: Any) -> Any:
        """Charges and records *answer* in one transaction, and sends it."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            claim = current_claim()
            assert claim is not None
            with self.transaction() as connection:
                outcome = claim.outcome(answer)
                assert store.complete_in(connection, claim.claim, outcome, retention=claim.retention)
            await respond(send, answer.body, status=answer.status, headers=answer.headers)

        return app


@pytest.fixture(params=["plain", "encrypted"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    shop = Shop(tmp_path / "shop.db")
    shop.encrypted = request.param == "encrypted"
    return shop


@pytest.mark.parametrize("length", [7, 10, 11])
async def test_complete_in_writes_the_record_that_the_middleware_would_write(length: int, shop: Shop) -> None:
    answer = Response(201, HEADERS, b"x" * length)
    limit = 10

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, answer.body, status=answer.status, headers=answer.headers)

    store = shop.store()
    joined = guard(shop.application(store, answer), store, max_response_bytes=limit)
    first, again = await call(joined, key="joined"), await call(joined, key="joined")
    assert (first.status, first.replayed, again.replayed) == (201, False, length <= limit)
    assert shop.charges == 1
    await call(guard(plain, store, max_response_bytes=limit), key="plain")
    records = [await store.get(StorageKey(key)) for key in ("joined", "plain")]
    assert records[0].outcome == records[1].outcome
    assert records[0].expires_in == pytest.approx(86_400.0, abs=60)
    await store.aclose()


async def test_complete_in_records_an_answer_over_the_limit_as_not_replayable(shop: Shop) -> None:
    store = shop.store()
    app = guard(shop.application(store, Response(201, [], b"x" * 11)), store, max_response_bytes=10)
    first, again = await call(app, key="k"), await call(app, key="k")
    assert (first.status, first.body, again.status, shop.charges) == (201, b"x" * 11, 409, 1)
    await store.aclose()


async def test_redaction_applies_to_the_record_of_complete_in(shop: Shop) -> None:
    store = shop.store()
    app = shop.application(store, Response(201, [], b"secret"))
    redacting = guard(app, store, redact=lambda response: response._replace(body=b"[redacted]"))
    assert (await call(redacting, key="k")).body == b"secret"
    assert (await call(redacting, key="k")).body == b"[redacted]"
    await store.aclose()


async def test_an_outcome_that_is_no_response_is_refused_and_the_effect_rolled_back(shop: Shop) -> None:
    store = shop.store()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        claim = current_claim()
        assert claim is not None
        with shop.transaction():
            claim.outcome({"charged": 500})

    with pytest.raises(TypeError, match=r"takes an idempotency\.Response.*not a dict"):
        await call(guard(app, store), key="k")
    assert shop.charges == 0
    await store.aclose()


async def test_complete_in_records_the_value_of_a_coroutine_function(shop: Shop) -> None:
    store = shop.store()

    @idempotent(store=store, operation="charge", key=lambda order: order, policy=Policy(retention=60.0))
    async def charge(order: str) -> dict[str, int]:
        claim = current_claim()
        assert claim is not None
        value = {"charged": 500}
        with shop.transaction() as connection:
            outcome = claim.outcome(value)
            assert store.complete_in(connection, claim.claim, outcome, retention=claim.retention)
        return value

    assert await charge("o-1") == await charge("o-1") == {"charged": 500}
    assert shop.charges == 1
    (record,) = (await store.scan()).records
    assert record.expires_in == pytest.approx(60.0, abs=30)
    await store.aclose()


def test_a_function_that_fails_after_complete_in_leaves_neither_effect_nor_record(shop: Shop) -> None:
    store, failures = shop.sync_store(), [OSError("the disk failed")]

    @idempotent(store=store, operation="charge", key=lambda order: order)
    def charge(order: str) -> int:
        claim = current_claim()
        assert claim is not None
        with shop.transaction() as connection:
            assert store.complete_in(connection, claim.claim, claim.outcome(500), retention=claim.retention)
            if failures:
                raise failures.pop()
        return 500

    with pytest.raises(OSError, match="disk"):
        charge("o-1")
    assert shop.charges == 0
    assert charge("o-1") == charge("o-1") == 500
    assert shop.charges == 1
    store.close()


def test_complete_in_records_a_value_that_the_codec_refuses_as_not_replayable(shop: Shop) -> None:
    store = shop.sync_store()

    @idempotent(store=store, operation="charge", key=lambda order: order)
    def charge(order: str) -> Any:
        claim = current_claim()
        assert claim is not None
        with shop.transaction() as connection:
            outcome = claim.outcome(float("nan"))
            assert store.complete_in(connection, claim.claim, outcome, retention=claim.retention)
        return float("nan")

    assert math.isnan(charge("o-1"))
    with pytest.raises(NotReplayable):
        charge("o-1")
    assert shop.charges == 1
    store.close()
