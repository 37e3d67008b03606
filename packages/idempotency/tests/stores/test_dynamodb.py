"""The DynamoDB stores against moto's HTTP server: the store contract, and what is specific to them."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from typing import Any

import pytest
from botocore.exceptions import ClientError
from dynamodb_server import client_of

from idempotency import Acquired, Completed, Fingerprint, Owner, Running, StorageKey
from idempotency.cli.doctor import examine
from idempotency.errors import CorruptRecord, StoreError, StoreUnavailable, UnknownRecordVersion
from idempotency.store import Inspectable, Store, SyncInspectable, SyncStore
from idempotency.stores.dynamodb import DynamoDBStore, SyncDynamoDBStore
from idempotency.stores.dynamodb.calls import Calls
from idempotency.stores.url import open_store, open_sync_store
from idempotency.testing import Clock, FakeClock, StoreContract

ACQUIRE: dict[str, Any] = {"fingerprint": Fingerprint(b"f" * 32), "lease": 30.0, "retention": 60.0}
TABLE = "records"


@pytest.fixture(scope="module")
def server(dynamodb_url: str) -> str:
    SyncDynamoDBStore(client_of(dynamodb_url), table=TABLE).create_schema()
    return dynamodb_url


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    client = client_of(server)
    yield client
    client.close()


@pytest.fixture
def key() -> StorageKey:
    return StorageKey(f"k-{secrets.token_hex(8)}")


def owner() -> Owner:
    return Owner(secrets.token_bytes(16))


class _Contract(StoreContract):
    """Leases count by the callers' clocks, which the contract can move."""

    max_examples = 10
    steps = 20

    def make_clock(self) -> Clock:
        clock = FakeClock()
        clock.resolution = 1e-5  # times are kept in microseconds
        return clock

    @pytest.fixture(autouse=True)
    def _client(self, client: Any) -> None:
        self.client = client


class TestSyncDynamoDBStoreContract(_Contract):
    @contextmanager
    def open_store(self, clock: Clock) -> Iterator[SyncStore]:
        store = SyncDynamoDBStore(self.client, table=TABLE, max_clock_skew=0.0, clock=clock)
        yield store
        store.close()


class TestDynamoDBStoreContract(_Contract):
    @asynccontextmanager
    async def open_store(self, clock: Clock) -> AsyncIterator[Store]:
        store = DynamoDBStore(self.client, table=TABLE, max_clock_skew=0.0, clock=clock)
        yield store
        await store.aclose()


@pytest.mark.timeout(400)  # moto answers one request at a time
def test_eight_threads_racing_for_sixty_keys_run_each_once(client: Any) -> None:
    batch = secrets.token_hex(6)
    keys = [StorageKey(f"race-{batch}-{number}") for number in range(60)]
    store = SyncDynamoDBStore(client, table=TABLE)

    def work(_: int) -> list[StorageKey]:
        won = []
        for key in keys:
            reply = store.acquire(key, owner=owner(), **ACQUIRE)
            if isinstance(reply, Acquired):
                won.append(key)
                assert store.complete(reply.claim, b'{"n":1}', retention=60.0)
        return won

    with ThreadPoolExecutor(8) as threads:
        runs = [key for won in threads.map(work, range(8)) for key in won]
    assert sorted(runs) == sorted(keys)


# Clocks.


def test_a_lease_is_taken_over_only_after_it_lapsed_by_every_clock_within_max_clock_skew(
    client: Any, key: StorageKey
) -> None:
    first_clock, second_clock = FakeClock(1_000_000.0), FakeClock(1_000_001.5)
    first, second = (
        SyncDynamoDBStore(client, table=TABLE, max_clock_skew=2.0, clock=clock)
        for clock in (first_clock, second_clock)
    )
    granted = first.acquire(key, owner=owner(), **ACQUIRE)
    assert isinstance(granted, Acquired)
    first_clock.advance(29.9)
    second_clock.advance(29.9)  # 1.4 s after the end of the lease by the second clock
    running = second.acquire(key, owner=owner(), **ACQUIRE)
    assert isinstance(running, Running)
    assert running.lease_left == pytest.approx(0.6)
    first_clock.advance(0.7)
    second_clock.advance(0.7)
    taken = second.acquire(key, owner=owner(), **ACQUIRE)
    assert isinstance(taken, Acquired)
    assert (taken.claim.attempt, first.complete(granted.claim, b"{}", retention=60.0)) == (2, False)


def test_the_fence_rises_although_the_next_callers_clock_is_behind(client: Any, key: StorageKey) -> None:
    clocks = [FakeClock(1_000_000.0), FakeClock(999_998.0)]
    fences = []
    for turn in range(6):
        store = SyncDynamoDBStore(client, table=TABLE, clock=clocks[turn % 2])
        reply = store.acquire(key, owner=owner(), **ACQUIRE)
        assert isinstance(reply, Acquired)
        fences.append(reply.claim.fence)
        if turn % 3:
            assert store.release(reply.claim) is True
        else:
            assert store.forget(key) is True
    assert fences == sorted(set(fences))


@pytest.mark.parametrize("seconds", [-60, 60])
def test_a_caller_with_a_wrong_clock_is_refused_a_claim(client: Any, key: StorageKey, seconds: float) -> None:
    def misdate(parsed: Any, **_: Any) -> None:
        parsed["ResponseMetadata"]["HTTPHeaders"]["date"] = formatdate(time.time() + seconds, usegmt=True)

    store = SyncDynamoDBStore(client, table=TABLE)
    client.meta.events.register("after-call.dynamodb", misdate)
    with pytest.raises(StoreUnavailable, match=r"clock is \d+ s (ahead of|behind) DynamoDB's"):
        store.acquire(key, owner=owner(), **ACQUIRE)


# Outcomes of any length.


@pytest.fixture
def long_outcomes(client: Any) -> SyncDynamoDBStore:
    """A store in a small table of its own, which a test can scan whole."""
    store = SyncDynamoDBStore(client, table="long-outcomes")
    store.create_schema()
    return store


def test_a_long_outcome_is_stored_in_parts_that_are_deleted_with_its_record(
    client: Any, key: StorageKey, long_outcomes: SyncDynamoDBStore
) -> None:
    store, outcome = long_outcomes, secrets.token_bytes(1_000_000)
    reply = store.acquire(key, owner=owner(), **ACQUIRE)
    assert store.complete(reply.claim, outcome, retention=60.0) is True
    before = _parts(client)
    assert store.complete(reply.claim, outcome[::-1], retention=60.0) is True, "a repeat"
    assert _parts(client) == before, "the parts that the repeat wrote are deleted"
    completed = store.acquire(key, owner=owner(), **ACQUIRE)
    assert isinstance(completed, Completed)
    assert completed.outcome == outcome
    assert store.forget(key) is True
    assert len(_parts(client)) == len(before) - 3


def test_an_outcome_with_a_missing_part_is_corrupt(
    client: Any, key: StorageKey, long_outcomes: SyncDynamoDBStore
) -> None:
    store = long_outcomes
    reply = store.acquire(key, owner=owner(), **ACQUIRE)
    others = _parts(client)
    store.complete(reply.claim, bytes(500_000), retention=60.0)
    client.delete_item(TableName="long-outcomes", Key={"id": {"S": (_parts(client) - others).pop()}})
    with pytest.raises(CorruptRecord, match="part of the outcome"):
        store.acquire(key, owner=owner(), **ACQUIRE)
    with pytest.raises(CorruptRecord):
        store.get(key)
    assert store.forget(key) is True
    assert isinstance(store.acquire(key, owner=owner(), **ACQUIRE), Acquired)


def _parts(client: Any) -> set[str]:
    pages = client.get_paginator("scan").paginate(TableName="long-outcomes")
    names = {item["id"]["S"] for page in pages for item in page["Items"]}
    return {name for name in names if name.startswith("part:")}


# Calls that the driver repeats, and items that others write.


@pytest.mark.parametrize("call", ["acquire", "renew", "complete", "release", "forget"])
def test_a_call_that_the_driver_repeats_gets_the_answer_to_its_first_write(
    server: str, key: StorageKey, call: str
) -> None:
    """The reply to the first write is lost, and botocore sends the request again."""
    client = client_of(server, retries={"total_max_attempts": 3, "mode": "standard"})
    store = SyncDynamoDBStore(client, table=TABLE)
    lost: list[str] = []

    reply = None if call == "acquire" else store.acquire(key, owner=owner(), **ACQUIRE)
    send = client._endpoint.http_session.send

    def send_and_lose(request: Any) -> Any:
        response = send(request)
        if not lost and (b"PutItem" in _target(request) or b"UpdateItem" in _target(request)):
            from botocore.exceptions import ConnectionClosedError

            lost.append(call)
            raise ConnectionClosedError(endpoint_url=server)
        return response

    client._endpoint.http_session.send = send_and_lose
    if call == "acquire":
        mine = owner()
        granted = store.acquire(key, owner=mine, **ACQUIRE)
        assert isinstance(granted, Acquired)
        assert (granted.claim.owner, granted.claim.attempt) == (mine, 1)
    else:
        assert reply is not None
        answers = {
            "renew": lambda: store.renew(reply.claim, lease=40.0),
            "complete": lambda: store.complete(reply.claim, b"{}", retention=60.0),
            "release": lambda: store.release(reply.claim),
            "forget": lambda: store.forget(key),
        }
        assert answers[call]() is True
    assert lost == [call]
    client.close()


def _target(request: Any) -> bytes:
    target = request.headers["X-Amz-Target"]
    return target if isinstance(target, bytes) else str(target).encode()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": {"N": "2"}}, UnknownRecordVersion),
        ({"format": {"S": "1"}}, CorruptRecord),
        ({"state": {"S": "paused"}}, CorruptRecord),
        ({"fence": {"N": "-1"}}, CorruptRecord),
        ({"fence": {"N": "1E+30"}}, CorruptRecord),
        ({"owner": {"S": "text"}}, CorruptRecord),
        ({"until": {"S": "soon"}}, CorruptRecord),
        ({"retention": {"N": "0"}}, CorruptRecord),
    ],
)
def test_an_item_with_an_invalid_member_is_refused_and_left_unchanged(
    client: Any, key: StorageKey, change: dict[str, Any], error: type[StoreError]
) -> None:
    store = SyncDynamoDBStore(client, table=TABLE)
    store.acquire(key, owner=owner(), **ACQUIRE)
    name = {"id": {"S": f"record:{key}"}}
    written = client.get_item(TableName=TABLE, Key=name)["Item"] | change
    client.put_item(TableName=TABLE, Item=written)
    for call in (lambda: store.acquire(key, owner=owner(), **ACQUIRE), lambda: store.get(key)):
        with pytest.raises(error):
            call()
    assert client.get_item(TableName=TABLE, Key=name)["Item"] == written
    assert key not in [record.key for record in store.scan(limit=10_000).records]
    assert store.forget(key) is True
    assert isinstance(store.acquire(key, owner=owner(), **ACQUIRE), Acquired)


def test_an_expired_item_that_dynamodb_deletes_during_an_acquire_counts_as_absent(
    client: Any, key: StorageKey
) -> None:
    clock = FakeClock()
    store = SyncDynamoDBStore(client, table=TABLE, clock=clock)
    assert isinstance(first := store.acquire(key, owner=owner(), **ACQUIRE), Acquired)
    clock.advance(1_000)  # expired, but not deleted yet
    put, name = client.put_item, {"id": {"S": f"record:{key}"}}

    def delete_in_between(**arguments: Any) -> Any:
        if "#fence" in arguments.get("ConditionExpression", ""):
            client.delete_item(TableName=TABLE, Key=name)
        return put(**arguments)

    client.put_item = delete_in_between
    second = store.acquire(key, owner=owner(), **ACQUIRE)
    assert isinstance(second, Acquired)
    assert second.claim.fence > first.claim.fence
    assert store.renew(first.claim, lease=1.0) is False


# The table and the URL.


def test_operators_can_list_and_forget(server: str) -> None:
    client = client_of(server)
    store = SyncDynamoDBStore(client, table="listed")
    store.create_schema()
    store.create_schema()
    assert isinstance(store, SyncInspectable)
    assert isinstance(DynamoDBStore(client), Inspectable)
    live = client.describe_time_to_live(TableName="listed")["TimeToLiveDescription"]
    assert (live["TimeToLiveStatus"], live["AttributeName"]) == ("ENABLED", "ttl")
    keys = {StorageKey(f"k-{number}") for number in range(12)}
    for key in sorted(keys):
        reply = store.acquire(key, owner=owner(), **ACQUIRE)
        if key == "k-3":
            store.complete(reply.claim, bytes(20_000), retention=60.0)
    store.acquire(StorageKey("gone"), owner=owner(), **ACQUIRE)
    assert store.forget(StorageKey("gone")) is True
    assert store.forget(StorageKey("gone")) is False
    seen, cursor = [], None
    while True:
        page = store.scan(limit=5, cursor=cursor)
        seen += page.records
        cursor = page.cursor
        if cursor is None:
            break
    assert {record.key for record in seen} == keys
    assert [record.outcome for record in seen if record.key == "k-3"] == [bytes(20_000)]
    client.close()


def test_the_error_for_a_missing_table_names_create_schema(client: Any, key: StorageKey) -> None:
    with pytest.raises(StoreUnavailable, match="create_schema"):
        SyncDynamoDBStore(client, table="nowhere").get(key)


def test_an_unreachable_server_raises_store_unavailable(key: StorageKey) -> None:
    client = client_of("http://127.0.0.1:1", retries={"total_max_attempts": 1, "mode": "standard"})
    with pytest.raises(StoreUnavailable, match="may have taken effect"):
        SyncDynamoDBStore(client).get(key)
    client.close()


def test_a_permanent_refusal_raises_store_error_and_not_store_unavailable(client: Any) -> None:
    store = SyncDynamoDBStore(client, table=TABLE)
    with pytest.raises(StoreError, match="will not help") as caught:
        store.acquire(StorageKey("k" * 3_000), owner=owner(), **ACQUIRE)  # a key has 2048 bytes at most
    assert not isinstance(caught.value, StoreUnavailable)


def test_a_replicated_write_conflict_raises_store_unavailable() -> None:
    class Client:
        def get_item(self, **_: object) -> None:
            refusal: Any = {
                "Error": {"Code": "ReplicatedWriteConflictException"},
                "ResponseMetadata": {"HTTPStatusCode": 400},
            }
            raise ClientError(refusal, "GetItem")

    calls = Calls(Client(), TABLE, None, 1.0)
    with pytest.raises(StoreUnavailable, match="ReplicatedWriteConflictException"):
        calls("get_item")


def test_a_url_opens_the_async_and_the_sync_store(
    server: str, key: StorageKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tests")
    url = f"dynamodb://{TABLE}?region=eu-central-1&endpoint={server}&deadline=60"
    sync = open_sync_store(url)
    reply = sync.acquire(key, owner=owner(), **ACQUIRE)
    assert isinstance(reply, Acquired)
    assert sync.complete(reply.claim, b'{"n":1}', retention=60.0)
    sync.close()

    async def acquire() -> Any:
        store = open_store(url + "&max_clock_skew=1")
        try:
            await store.create_schema()
            return await store.acquire(key, owner=owner(), **ACQUIRE)
        finally:
            await store.aclose()

    replayed = asyncio.run(acquire())
    assert isinstance(replayed, Completed)
    assert replayed.outcome == b'{"n":1}'


def test_the_doctor_finds_nothing_wrong(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tests")
    url = f"dynamodb://{TABLE}?region=eu-central-1&endpoint={server}&deadline=60"
    store = open_sync_store(url)
    findings = list(examine(store, url))
    store.close()
    assert {finding.verdict for finding in findings} == {"ok", "info"}, findings
    assert "max_clock_skew" in str(findings[-1])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("dynamodb://", "name of a table"),
        ("dynamodb://user:secret@table?region=x", "name of a table"),
        ("dynamodb://table/other?region=x", "name of a table"),
        ("dynamodb://table?prefix=x", "unknown option 'prefix'"),
        ("dynamodb://table", "region"),
    ],
)
def test_an_invalid_url_is_refused_without_showing_its_password(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(ValueError, match=message) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_an_invalid_client_or_number_is_refused_by_the_constructor(client: Any) -> None:
    with pytest.raises(TypeError, match="boto3"):
        SyncDynamoDBStore(object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_clock_skew"):
        SyncDynamoDBStore(client, max_clock_skew=-1.0)
    with pytest.raises(ValueError, match="max_threads"):
        DynamoDBStore(client, max_threads=0)
