"""Encrypted stores: the contract holds, no outcome is readable, and a sealed outcome opens only in its own record."""

from __future__ import annotations

import json
import pickle
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE, with_long_deadline

from idempotency import (
    Acquired,
    Claim,
    Completed,
    CorruptRecord,
    Fingerprint,
    IdempotencyMiddleware,
    Inspectable,
    Owner,
    Purgeable,
    StorageKey,
    UnknownRecordVersion,
    Waitable,
    one_tenant,
)
from idempotency.stores.encrypted import EncryptedStore, KeyRing, MissingSealingKey, SyncEncryptedStore
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.stores.sqlite import SQLiteStore, SyncSQLiteStore
from idempotency.testing import Clock, OpenStore, StoreContract

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
RING = KeyRing({"old": OLD, "new": NEW}, current="new")
KEY, OTHER_KEY = StorageKey("k-1"), StorageKey("k-2")
FINGERPRINT, OTHER_FINGERPRINT = Fingerprint(b"f" * 32), Fingerprint(b"g" * 32)
OUTCOME = b'{"format":1,"outcome":"value","value":"a secret"}'


def acquire(store: Any, key: StorageKey = KEY, owner: bytes = b"o" * 16) -> Any:
    return store.acquire(key, fingerprint=FINGERPRINT, owner=Owner(owner), lease=30.0, retention=60.0)


def complete_one(store: Any, key: StorageKey = KEY) -> Claim:
    """Claim *key* and complete it."""
    claim: Claim = acquire(store, key).claim
    assert store.complete(claim, OUTCOME, retention=60.0)
    return claim


class Tampered(SyncMemoryStore):
    """A store whose completed records were tampered with."""

    def __init__(self, change: Callable[[Completed], Completed]) -> None:
        super().__init__()
        self.change = change

    def acquire(self, key: StorageKey, **given: Any) -> Any:
        reply = super().acquire(key, **given)
        return self.change(reply) if isinstance(reply, Completed) else reply


# The contract.


class TestEncryptedMemoryStore(StoreContract):
    max_examples = 25

    def open_store(self, clock: Clock) -> OpenStore:
        @contextmanager
        def opened() -> Iterator[SyncEncryptedStore]:
            yield SyncEncryptedStore(SyncMemoryStore(clock=clock), RING)

        return opened()


class TestAsyncEncryptedMemoryStore(StoreContract):
    max_examples = 25

    def open_store(self, clock: Clock) -> OpenStore:
        @asynccontextmanager
        async def opened() -> AsyncIterator[EncryptedStore]:
            yield EncryptedStore(MemoryStore(clock=clock), RING)

        return opened()


class TestEncryptedSQLiteStore(StoreContract):
    max_examples = 10

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "records.db"

    def open_store(self, clock: Clock) -> OpenStore:
        @contextmanager
        def opened() -> Iterator[SyncEncryptedStore]:
            store = SyncEncryptedStore(SyncSQLiteStore(self.path, clock=clock), RING)
            yield store
            store.close()

        return opened()


@pytest.mark.anyio
class TestAsync:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_replay_through_the_middleware_is_the_first_answer_and_is_stored_encrypted(
        self, tmp_path: Path
    ) -> None:
        runs = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal runs
            runs += 1
            await send({"type": "http.response.start", "status": 201, "headers": [(b"x-run", b"%d" % runs)]})
            await send({"type": "http.response.body", "body": b"card 4242"})

        async def post(app: Any) -> list[Any]:
            sent: list[Any] = []

            async def receive() -> Any:
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            headers = [(b"idempotency-key", b"k-1")]
            await app(
                {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers},
                receive,
                send,
            )
            return sent

        path = tmp_path / "records.db"
        store = EncryptedStore(SQLiteStore(path), RING)
        protected = IdempotencyMiddleware(app, store=store, tenant=one_tenant())
        first, again = await post(protected), await post(protected)
        await store.aclose()

        assert runs == 1
        assert (again[0]["status"], again[1]["body"]) == (201, b"card 4242")
        assert (b"idempotency-replayed", b"true") in again[0]["headers"]
        assert first[1]["body"] == again[1]["body"]
        stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert b"card 4242" not in stored
        assert b"x-run" not in stored

    async def test_every_method_of_the_protocol_reaches_the_inner_store(self) -> None:
        store = EncryptedStore(MemoryStore(), RING)
        ask = {"fingerprint": FINGERPRINT, "lease": 30.0, "retention": 60.0}
        reply = await store.acquire(KEY, owner=Owner(b"o" * 16), **ask)
        assert isinstance(reply, Acquired)
        assert await store.renew(reply.claim, lease=60.0)
        assert await store.release(reply.claim)
        reply = await store.acquire(KEY, owner=Owner(b"o" * 16), **ask)
        assert isinstance(reply, Acquired)
        assert await store.complete(Claim(*reply.claim), OUTCOME, retention=60.0)
        record = await store.get(KEY)
        assert record is not None
        assert record.outcome == OUTCOME
        assert not await store.complete(reply.claim._replace(owner=Owner(b"x" * 16)), b"{}", retention=60.0)


def test_a_replay_over_redis_is_the_outcome_and_the_stored_value_is_sealed_json(redis_url: str) -> None:
    import redis

    from idempotency.stores.redis import SyncRedisStore

    with redis.Redis.from_url(redis_url) as client:
        store = SyncEncryptedStore(SyncRedisStore(client, prefix="sealed:", deadline=PATIENCE), RING)
        complete_one(store)
        reply = acquire(store, owner=b"p" * 16)
        stored = client.get("sealed:k-1")
        store.close()
        client.delete("sealed:k-1")

    assert isinstance(reply, Completed)
    assert reply.outcome == OUTCOME
    assert isinstance(stored, bytes)
    assert json.loads(stored)["sealed_by"] == "new"
    assert b"a secret" not in stored


def test_a_replay_over_postgres_is_the_outcome(postgres_url: str) -> None:
    from idempotency.stores.url import open_sync_store

    store: Any = SyncEncryptedStore(open_sync_store(with_long_deadline(postgres_url)), RING)
    key = StorageKey("sealed-k-1")
    complete_one(store, key)
    reply = acquire(store, key, owner=b"p" * 16)
    store.forget(key)
    store.close()

    assert isinstance(reply, Completed)
    assert reply.outcome == OUTCOME


def test_an_encrypted_store_has_the_capabilities_of_its_inner_store() -> None:
    plain, sealed = MemoryStore(), EncryptedStore(MemoryStore(), RING)

    for capability in (Purgeable, Inspectable, Waitable):
        assert isinstance(sealed, capability) is isinstance(plain, capability)


# What is stored.


def test_the_inner_store_holds_a_json_object_that_names_the_sealing_key_and_hides_the_outcome() -> None:
    inner = SyncMemoryStore()
    complete_one(SyncEncryptedStore(inner, RING))

    record = inner.get(KEY)
    assert record is not None
    assert record.outcome is not None
    members = json.loads(record.outcome)
    assert {name: members[name] for name in ("format", "outcome", "sealed_by")} == {
        "format": 1,
        "outcome": "sealed",
        "sealed_by": "new",
    }
    assert b"secret" not in b64decode(members["sealed"])


def test_sealing_the_same_outcome_again_gives_different_bytes() -> None:
    sealed = {RING.seal(OUTCOME, key=KEY, fingerprint=FINGERPRINT) for _ in range(100)}

    assert len(sealed) == 100


@given(outcome=st.binary(max_size=200), key=st.text(max_size=20), fingerprint=st.binary(max_size=40))
def test_an_outcome_sealed_for_a_record_is_unsealed_there_byte_for_byte(
    outcome: bytes, key: str, fingerprint: bytes
) -> None:
    place = {"key": StorageKey(key), "fingerprint": Fingerprint(fingerprint)}

    assert RING.unseal(RING.seal(outcome, **place), **place) == outcome


def test_a_scan_without_the_sealing_key_lists_records_and_shows_no_outcome() -> None:
    inner = SyncMemoryStore()
    complete_one(SyncEncryptedStore(inner, RING))
    stranger: Any = SyncEncryptedStore(inner, KeyRing({"other": bytes(32)}, current="other"))

    (record,) = stranger.scan().records
    assert record.key == KEY
    assert b"secret" not in record.outcome


# Tampering.


@given(st.integers(min_value=0, max_value=11 + 16 + len(OUTCOME)), st.integers(min_value=1, max_value=255))
def test_any_changed_byte_in_a_sealed_outcome_raises_corrupt_record(at: int, flip: int) -> None:
    members = json.loads(RING.seal(OUTCOME, key=KEY, fingerprint=FINGERPRINT))
    sealed = bytearray(b64decode(members["sealed"]))
    sealed[at] ^= flip
    altered = json.dumps(members | {"sealed": b64encode(sealed).decode()}).encode()

    with pytest.raises(CorruptRecord):
        RING.unseal(altered, key=KEY, fingerprint=FINGERPRINT)


@pytest.mark.parametrize(
    "place",
    [
        {"key": OTHER_KEY, "fingerprint": FINGERPRINT},
        {"key": KEY, "fingerprint": OTHER_FINGERPRINT},
        # The same bytes, split elsewhere between key and fingerprint.
        {"key": StorageKey("k"), "fingerprint": Fingerprint(b"-1" + FINGERPRINT)},
    ],
)
def test_an_outcome_moved_to_another_record_raises_corrupt_record(place: dict[str, Any]) -> None:
    sealed = RING.seal(OUTCOME, key=KEY, fingerprint=FINGERPRINT)

    with pytest.raises(CorruptRecord, match="moved here from another record"):
        RING.unseal(sealed, **place)


def test_a_record_whose_fingerprint_was_changed_in_the_store_raises_corrupt_record() -> None:
    store = SyncEncryptedStore(Tampered(lambda reply: reply._replace(fingerprint=OTHER_FINGERPRINT)), RING)
    complete_one(store)

    with pytest.raises(CorruptRecord):
        acquire(store, owner=b"p" * 16)


def test_a_record_relabelled_with_another_key_of_the_ring_raises_corrupt_record() -> None:
    sealed = RING.seal(OUTCOME, key=KEY, fingerprint=FINGERPRINT).replace(b'"new"', b'"old"')

    with pytest.raises(CorruptRecord):
        RING.unseal(sealed, key=KEY, fingerprint=FINGERPRINT)


@pytest.mark.parametrize(
    "outcome",
    [
        b"",
        b"[]",
        b"not json",
        b"{}",
        b'{"format":1,"outcome":"sealed"}',
        b'{"format":1,"outcome":"sealed","sealed_by":"new","sealed":1}',
        b'{"format":1,"outcome":"sealed","sealed_by":1,"sealed":""}',
        b'{"format":1,"outcome":"sealed","sealed_by":"new","sealed":""}',
        b'{"format":1,"outcome":"sealed","sealed_by":"new\\n","sealed":""}',
        b'{"format":1,"outcome":"sealed","sealed_by":"new","sealed":"%%%"}',
        "\u00e9".encode("latin-1"),
        b"[" * 100_000,
    ],
)
def test_an_outcome_that_is_not_sealed_raises_corrupt_record(outcome: bytes) -> None:
    with pytest.raises(CorruptRecord):
        RING.unseal(outcome, key=KEY, fingerprint=FINGERPRINT)


def test_a_newer_format_raises_unknown_record_version_and_not_corrupt_record() -> None:
    sealed = RING.seal(OUTCOME, key=KEY, fingerprint=FINGERPRINT).replace(b'"format":1', b'"format":2')

    with pytest.raises(UnknownRecordVersion, match="format 2"):
        RING.unseal(sealed, key=KEY, fingerprint=FINGERPRINT)


# Keys.


def test_a_rotated_key_ring_unseals_old_records_and_seals_new_ones_with_the_new_key() -> None:
    inner = SyncMemoryStore()
    complete_one(SyncEncryptedStore(inner, KeyRing({"old": OLD}, current="old")))
    rotated = SyncEncryptedStore(inner, RING)
    complete_one(rotated, OTHER_KEY)

    assert acquire(rotated, owner=b"p" * 16).outcome == OUTCOME
    record = inner.get(OTHER_KEY)
    assert record is not None
    assert b'"sealed_by":"new"' in (record.outcome or b"")


def test_a_record_sealed_with_an_unknown_key_raises_missing_sealing_key_with_its_name() -> None:
    inner = SyncMemoryStore()
    complete_one(SyncEncryptedStore(inner, RING))
    behind = SyncEncryptedStore(inner, KeyRing({"old": OLD}, current="old"))

    with pytest.raises(MissingSealingKey, match="sealed with key 'new'") as caught:
        acquire(behind, owner=b"p" * 16)
    # No StoreUnavailable, since a policy may bypass that one: here a record exists.
    assert isinstance(caught.value, UnknownRecordVersion)
    assert (caught.value.status, caught.value.sealed_by) == (503, "new")
    assert pickle.loads(pickle.dumps(caught.value)).sealed_by == "new"


@pytest.mark.parametrize(
    ("keys", "current", "wrong"),
    [
        ({"a": bytes(16)}, "a", "16 bytes, not 32"),
        ({"a": bytes(32)}, "b", "no key 'b'"),
        ({'a"': bytes(32)}, 'a"', "no key id"),
        ({"": bytes(32)}, "", "no key id"),
        ({}, "a", "no key 'a'"),
    ],
)
def test_a_key_ring_with_an_invalid_or_missing_key_is_refused(
    keys: dict[str, bytes], current: str, wrong: str
) -> None:
    with pytest.raises(ValueError, match=wrong):
        KeyRing(keys, current=current)


def test_a_dict_of_keys_in_place_of_a_key_ring_is_refused() -> None:
    with pytest.raises(TypeError, match="KeyRing"):
        SyncEncryptedStore(SyncMemoryStore(), {"a": bytes(32)})  # type: ignore[arg-type]


def test_a_key_ring_never_shows_its_keys() -> None:
    shown = repr(RING) + str(RING) + repr(vars(RING))

    assert repr(NEW)[2:-1] not in shown
    assert NEW.hex() not in shown


# Records from before the encryption.


def test_a_plain_outcome_is_refused_unless_accept_plain_is_set() -> None:
    inner = SyncMemoryStore()
    complete_one(inner)

    with pytest.raises(CorruptRecord, match="accept_plain=True"):
        acquire(SyncEncryptedStore(inner, RING), owner=b"p" * 16)
    accepting = SyncEncryptedStore(inner, RING, accept_plain=True)
    assert acquire(accepting, owner=b"p" * 16).outcome == OUTCOME
    complete_one(accepting, OTHER_KEY)
    assert acquire(accepting, OTHER_KEY, owner=b"p" * 16).outcome == OUTCOME


def test_accept_plain_passes_an_unsealed_outcome_on_unchanged() -> None:
    store = SyncEncryptedStore(
        Tampered(lambda reply: reply._replace(outcome=b"not json")), RING, accept_plain=True
    )
    complete_one(store)

    assert acquire(store, owner=b"p" * 16).outcome == b"not json"  # the outcome codec refuses it


# Claims.


def test_a_pickled_claim_completes() -> None:
    inner = SyncMemoryStore()
    store = SyncEncryptedStore(inner, RING)
    claim = acquire(store).claim
    carried = pickle.loads(pickle.dumps(claim))

    assert carried == claim == Claim(*claim)
    assert store.complete(carried, OUTCOME, retention=60.0)
    assert acquire(store, owner=b"p" * 16).outcome == OUTCOME


def test_a_claim_rebuilt_from_its_fields_completes() -> None:
    store = SyncEncryptedStore(SyncMemoryStore(), RING)
    claim = acquire(store).claim

    assert store.complete(Claim(*claim), OUTCOME, retention=60.0)
    assert acquire(store, owner=b"p" * 16).outcome == OUTCOME
    assert not store.complete(Claim(*claim)._replace(owner=Owner(b"x" * 16)), b"{}", retention=60.0)
    assert not store.complete(Claim(*claim)._replace(key=OTHER_KEY), b"{}", retention=60.0)


def test_a_running_record_has_no_outcome() -> None:
    store = SyncEncryptedStore(SyncMemoryStore(), RING)
    acquire(store)

    record = store.get(KEY)
    assert record is not None
    assert record.outcome is None


def test_an_outcome_of_complete_in_is_sealed_too(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "records.db"
    inner = SyncSQLiteStore(path)
    store: Any = SyncEncryptedStore(inner, RING)
    claim = acquire(store).claim
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(TypeError, match="claim that this store granted"):
            store.complete_in(connection, Claim(*claim), OUTCOME, retention=60.0)
        assert store.complete_in(connection, claim, OUTCOME, retention=60.0)
        connection.execute("COMMIT")
    finally:
        connection.close()

    record = inner.get(KEY)
    assert record is not None
    assert b'"sealed_by":"new"' in (record.outcome or b"")
    assert acquire(store, owner=b"p" * 16).outcome == OUTCOME
    store.close()
