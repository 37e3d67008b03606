"""
Records that this library did not write: a replay checks what recording checks, on every store.

| what is wrong | where |
| --- | --- |
| a status, a body, a header, a size, a number that this library does not record | in the outcome, whatever the store |
| an infinite time, a number that no store writes | in the columns or members of each store |

Each is the problem `corrupt-record`: nothing runs, nothing is sent as it is, and it is never an internal error.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from asgi_driver import Answer, call
from effects import Charges, guard
from stores import KINDS, open_store

from idempotency import (
    CorruptRecord,
    Owner,
    Policy,
    Response,
    StorageKey,
    StoreError,
    idempotent,
)
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def key() -> str:
    return f"k-{secrets.token_hex(8)}"


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    kind = request.param
    where = {"memory": lambda: "", "sqlite": lambda: str(tmp_path / "records.db")}
    where |= {
        name: lambda name=name: request.getfixturevalue(f"{name}_url") for name in ("redis", "postgres")
    }
    async with open_store(kind, where[kind]()) as opened:
        yield opened


def forged(**members: Any) -> bytes:
    response = {"format": 1, "outcome": "response", "status_code": 201, "headers": [], "body": "ok"}
    return json.dumps(response | members).encode()


MANY = "9" * 5_000
OUTCOMES = {
    "an informational status with a body": forged(status_code=100),
    "a status before 200": forged(status_code=199, body=""),
    "a status past 599": forged(status_code=600),
    "a status past 999": forged(status_code=1_000),
    "a body with 204": forged(status_code=204),
    "a body with 304": forged(status_code=304),
    "a length that is not the body's": forged(headers=[["content-length", "3"]]),
    "a length that is no number": forged(headers=[["content-length", "+2"]]),
    "two lengths": forged(headers=[["content-length", "2"], ["content-length", "2"]]),
    "a length without a body": forged(status_code=304, body="", headers=[["content-length", "2"]]),
    "a framing of its own": forged(headers=[["transfer-encoding", "chunked"]]),
    "a connection's header": forged(headers=[["connection", "close"]]),
    "a cookie": forged(headers=[["set-cookie", "session=mallory"]]),
    "a challenge": forged(headers=[["www-authenticate", "Basic"]]),
    "a mark that is ours": forged(headers=[["idempotency-replayed", "false"]]),
    "an age that is ours": forged(headers=[["idempotency-age", "1"]]),
    "a name in upper case": forged(headers=[["Set-Cookie", "session=mallory"]]),
    "a name with a blank": forged(headers=[["x y", "1"]]),
    "a name with a colon": forged(headers=[["x:", "1"]]),
    "no name": forged(headers=[["", "1"]]),
    "a value of two lines": forged(headers=[["x", "1\r\nset-cookie: a=b"]]),
    "a value with a control character": forged(headers=[["x", "\x1b[2J"]]),
    "a body larger than is recorded": forged(body="x" * 2_000),
    "a status of 5,000 digits": forged().replace(b"201", MANY.encode()),
    "a format of 5,000 digits": forged().replace(b'"format": 1', b'"format": ' + MANY.encode()),
    "a status without end": forged().replace(b"201", b"1e999"),
    "a body nested past any depth": forged().replace(b'"ok"', b"[" * 100_000 + b"]" * 100_000),
    "half a character": forged(body="\ud800"),
    "a reason that is a list": json.dumps({"format": 1, "outcome": "unreplayable", "reason": ["x"]}).encode(),
    "a reason of two lines": json.dumps({"format": 1, "outcome": "unreplayable", "reason": "a\nb"}).encode(),
    "an endless reason": json.dumps({"format": 1, "outcome": "unreplayable", "reason": "a" * 9_000}).encode(),
}
POLICY = Policy(max_response_bytes=1_000)


def is_refused_as_corrupt(answer: Answer) -> bool:
    return (
        answer.status == 500 and json.loads(answer.body)["type"] == "urn:problem:idempotency:corrupt-record"
    )


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
async def test_an_outcome_that_this_library_would_not_record_is_refused_as_corrupt(
    store: Any, key: str, outcome: bytes
) -> None:
    charges = Charges()
    app = guard(charges, store, policy=POLICY)
    await call(app, key=key)
    await overwrite(store, StorageKey(key), outcome)
    answer = await call(app, key=key)
    assert is_refused_as_corrupt(answer), answer
    assert len(charges.bodies) == 1


async def overwrite(store: Any, key: StorageKey, outcome: bytes) -> None:
    """Replace the outcome in the record of *key*."""
    record = await store.get(key)
    await store.forget(key)
    granted = await store.acquire(
        key, fingerprint=record.fingerprint, owner=Owner(secrets.token_bytes(16)), lease=30.0, retention=60.0
    )
    assert await store.complete(granted.claim, outcome, retention=60.0)


@pytest.mark.parametrize(
    "outcome",
    [
        forged(headers=[["x-a", "1"], ["x-a", "2"], ["content-length", "2"]]),
        forged(status_code=599),
        forged(status_code=204, body=""),
        forged(status_code=304, body="", headers=[["etag", '"1"']]),
        forged(headers=[["x-tab", "a\tb"], ["x-latin", "é"]]),
    ],
)
async def test_a_recordable_response_is_replayed(outcome: bytes) -> None:
    store = MemoryStore()
    app = guard(Charges(), store, policy=POLICY)
    await call(app, key="k")
    await overwrite(store, StorageKey("k"), outcome)
    answer = await call(app, key="k")
    assert (answer.status, answer.replayed) == (json.loads(outcome)["status_code"], True)


async def test_a_header_that_the_policy_drops_now_is_left_out_of_replays_of_older_records() -> None:
    store = MemoryStore()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-internal", b"1")]})
        await send({"type": "http.response.body", "body": b"ok"})

    await call(guard(app, store), key="k")
    stricter = Policy(drop_headers=Policy().drop_headers | {b"x-internal"})
    answer = await call(guard(app, store, policy=stricter), key="k")
    assert (answer.status, answer.replayed, answer.header("x-internal")) == (201, True, None)


@pytest.mark.parametrize("status", [199, 600, 999])
async def test_an_answer_with_a_status_outside_200_to_599_is_recorded_as_not_replayable(status: int) -> None:
    charges = Charges(status=status)
    app = guard(charges, MemoryStore())
    assert (await call(app, key="k")).status == status
    answer = await call(app, key="k")
    assert (answer.status, len(charges.bodies)) == (409, 1)
    assert json.loads(answer.body)["type"] == "urn:problem:idempotency:not-replayable"


@pytest.mark.parametrize("status", [204, 304])
async def test_the_body_of_a_204_or_304_answer_is_not_recorded(status: int) -> None:
    app = guard(Charges(status=status), MemoryStore())
    await call(app, key="k")
    answer = await call(app, key="k")
    assert (answer.status, answer.body, answer.replayed) == (status, b"", True)


async def test_a_redaction_that_shortens_the_body_corrects_its_content_length() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"card 424"})

    def redact(response: Response) -> Response:
        return response._replace(body=b"card")

    guarded = guard(app, MemoryStore(), redact=redact)
    await call(guarded, key="k")
    answer = await call(guarded, key="k")
    assert (answer.status, answer.body, answer.values("content-length")) == (201, b"card", [b"4"])


@pytest.mark.parametrize("version", [b"2", b'"secret \\u001b"', b"1e999", b"[1]", b"true.", b"9" * 4_000])
async def test_a_record_with_another_format_version_is_left_unchanged_and_not_quoted(version: bytes) -> None:
    store, charges = MemoryStore(), Charges()
    app = guard(charges, store)
    await call(app, key="k")
    outcome = forged().replace(b'"format": 1', b'"format": ' + version)
    await overwrite(store, StorageKey("k"), outcome)
    answer = await call(app, key="k")
    record = await store.get(StorageKey("k"))
    assert record is not None
    assert (record.outcome, len(charges.bodies)) == (outcome, 1)
    assert answer.status in {500, 503}
    assert b"secret" not in answer.body
    assert len(answer.body) < 500


def value(stored: Any) -> bytes:
    return json.dumps({"format": 1, "outcome": "value", "value": stored}).encode()


VALUES = {
    "no object": value(3),
    "neither a value nor an exception": value({}),
    "an exception that is no text": value({"raised": 3}),
    "an exception of two lines": value({"raised": "a\nb"}),
    "a number of 5,000 digits": value({"returned": 0}).replace(b"0", MANY.encode()),
    "more than is recorded": value({"returned": "x" * 2_000}),
}


@pytest.mark.parametrize("outcome", VALUES.values(), ids=VALUES)
async def test_a_value_that_this_library_would_not_record_raises_corrupt_record(outcome: bytes) -> None:
    runs: list[str] = []
    once = {"operation": "op", "key": lambda name: name, "policy": POLICY}
    store, sync_store = MemoryStore(), SyncMemoryStore()

    @idempotent(store=store, **once)  # type: ignore[call-overload, untyped-decorator]
    async def run(name: str) -> str:
        runs.append(name)
        return name

    @idempotent(store=sync_store, **once)  # type: ignore[call-overload, untyped-decorator]
    def run_sync(name: str) -> str:
        runs.append(name)
        return name

    await run("k")
    run_sync("k")
    await overwrite(store, StorageKey("op:k"), outcome)
    record = sync_store.get(StorageKey("op:k"))
    assert record is not None
    sync_store.forget(record.key)
    granted = sync_store.acquire(
        record.key, fingerprint=record.fingerprint, owner=record.owner, lease=30.0, retention=60.0
    )
    assert sync_store.complete(granted.claim, outcome, retention=60.0)  # type: ignore[union-attr]
    with pytest.raises(CorruptRecord):
        await run("k")
    with pytest.raises(CorruptRecord):
        run_sync("k")
    assert runs == ["k", "k"]


# What each store keeps beside the outcome.


@pytest.mark.parametrize(
    "change",
    [
        "expires_at = 9e999",
        "expires_at = 1e300",
        "completed_at = -9e999",
        "retention = 9e999",
        "lease_until = -9e999",
        "attempt = 0",
        "attempt = 9223372036854775807",
        "fence = -1",
        "fence = 'many'",
        "outcome = '{}'",
        "version = 1.5",
        "completed_at = NULL",
    ],
)
async def test_a_sqlite_row_with_an_invalid_column_is_corrupt(tmp_path: Path, change: str) -> None:
    charges = Charges()
    async with open_store("sqlite", str(tmp_path / "r.db")) as store:
        app = guard(charges, store)
        await call(app, key="k")
        with sqlite3.connect(tmp_path / "r.db") as connection:
            connection.execute(f"UPDATE idempotency_record SET {change}")
        connection.close()
        answer = await call(app, key="k")
        with pytest.raises(StoreError):
            await store.get(StorageKey("k"))
        assert (await store.scan()).records == ()
    assert is_refused_as_corrupt(answer) or (change.startswith("version") and answer.status == 503)
    assert len(charges.bodies) == 1


@pytest.mark.parametrize("last", ["9223372036854775807", "9e999"])
async def test_a_sqlite_fence_counter_that_cannot_increase_is_corrupt(tmp_path: Path, last: str) -> None:
    charges = Charges()
    async with open_store("sqlite", str(tmp_path / "r.db")) as store:
        app = guard(charges, store)
        await call(app, key="k")
        with sqlite3.connect(tmp_path / "r.db") as connection:
            connection.execute(f"UPDATE idempotency_record_fence SET last = {last}")
        connection.close()
        assert is_refused_as_corrupt(await call(app, key="another"))
    assert len(charges.bodies) == 1


@pytest.mark.parametrize(
    "change",
    ["expires_at = 'infinity'", "completed_at = '-infinity', expires_at = 'infinity'"],
)
async def test_a_postgresql_row_with_an_infinite_time_is_corrupt(
    postgres_url: str, key: str, change: str
) -> None:
    charges = Charges()
    async with open_store("postgres", postgres_url) as store:
        app = guard(charges, store)
        await call(app, key=key)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"UPDATE idempotency_record SET {change} WHERE key = %s", (key,))  # type: ignore[arg-type]
        answer = await call(app, key=key)
        with pytest.raises(CorruptRecord):
            await store.get(StorageKey(key))
        page = await store.scan(limit=1, cursor=key[:-1])
        assert (page.records, page.cursor) == ((), key)
        assert await store.forget(StorageKey(key))
    assert is_refused_as_corrupt(answer), answer
    assert len(charges.bodies) == 1


async def test_a_postgresql_claim_with_an_infinite_lease_is_corrupt(postgres_url: str, key: str) -> None:
    charges = Charges()
    async with open_store("postgres", postgres_url) as store:
        app = guard(charges, store)
        await call(app, key=key)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                "UPDATE idempotency_record SET outcome = NULL, completed_at = NULL, lease_until = 'infinity', "
                "expires_at = 'infinity' WHERE key = %s",
                (key,),
            )
        answer = await call(app, key=key)
    assert is_refused_as_corrupt(answer), answer
    assert len(charges.bodies) == 1


@pytest.mark.parametrize("member", ["attempt", "fence", "lease_until_ms", "retention_ms"])
@pytest.mark.parametrize("digits", [30, 5_000])
async def test_a_redis_claim_with_an_invalid_number_is_corrupt(
    redis_url: str, key: str, member: str, digits: int
) -> None:
    charges = Charges()
    async with open_store("redis", redis_url) as store:
        app = guard(charges, store)
        await call(app, key=key)
        record = await store.get(StorageKey(key))
        assert record is not None
        members = {
            "v": 1,
            "state": "running",
            "fingerprint": record.fingerprint.hex(),
            "owner": record.owner.hex(),
            "attempt": 1,
            "fence": record.fence,
            "lease_until_ms": 1,
            "retention_ms": 60_000,
        }
        text = json.dumps(members, separators=(",", ":"))
        text = text.replace(f'"{member}":{members[member]}', f'"{member}":{"9" * digits}')
        with redis.Redis.from_url(redis_url) as client:
            client.set(f"idempotency:{key}", text, ex=60)
        answer = await call(app, key=key)
    assert is_refused_as_corrupt(answer), answer
    assert len(charges.bodies) == 1


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e300])
async def test_an_invalid_time_in_the_reply_of_a_custom_store_is_corrupt(seconds: float) -> None:
    class Odd(MemoryStore):
        async def acquire(self, *args: Any, **kwargs: Any) -> Any:
            reply = await super().acquire(*args, **kwargs)
            if hasattr(reply, "expires_in"):
                return reply._replace(expires_in=seconds)
            return reply._replace(lease_left=seconds) if hasattr(reply, "lease_left") else reply

    charges = Charges()
    store = Odd()
    app = guard(charges, store)
    await call(app, key="done")
    assert is_refused_as_corrupt(await call(app, key="done"))
    await store.acquire(
        StorageKey("held"),
        fingerprint=(await store.get(StorageKey("done"))).fingerprint,  # type: ignore[union-attr]
        owner=Owner(b"o" * 16),
        lease=30.0,
        retention=60.0,
    )
    assert is_refused_as_corrupt(await call(app, key="held"))
    assert len(charges.bodies) == 1
