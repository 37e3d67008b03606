"""The store that the settings select, and the conversion of legacy records."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotency.stores.redis import RedisStore
from idempotency.stores.sqlite import SQLiteStore
from ml_api.observability.metrics import Metrics
from ml_api.settings import Settings
from ml_api.stores.backend import StoreUnusable, open_backend
from ml_api.stores.legacy import adopt

pytestmark = pytest.mark.anyio


def settings(**given_: object) -> Settings:
    return Settings.model_validate({"api_key": "the-api-key-of-the-tests"} | given_)


async def test_without_redis_the_store_is_a_sqlite_file_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "directory" / "store.sqlite3"
    backend = open_backend(settings(store_path=path), Metrics())
    assert (backend.kind, type(backend.store), backend.monitor) == ("sqlite", SQLiteStore, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await backend.store.aclose()


@pytest.mark.parametrize(
    "url", ["redis://h:1/0", "rediss://h:1/0", "redis+sentinel://h:1/service", "redis+cluster://h:1"]
)
async def test_each_redis_topology_opens_a_monitored_store_without_connecting(url: str) -> None:
    backend = open_backend(settings(redis_enabled=True, redis_url=url), Metrics())
    assert isinstance(backend.store, RedisStore)
    assert backend.monitor is not None
    await backend.store.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@h:port/0",
        "redis://:s3cret@h:1/zero",
        "redis://:s3cret@h:1/0?wrong=s3cret",
        "rediss://:s3cret@h:1/0?ssl_cert_reqs=perhaps",
        "redis+sentinel://:s3cret@h:1/service?wrong=1",
    ],
)
def test_an_unusable_redis_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreUnusable, match="REDIS_URL") as refused:
        open_backend(settings(redis_enabled=True, redis_url=url), Metrics())
    assert "s3cret" not in str(refused.value)


def test_a_legacy_record_is_converted_to_the_public_outcome_format() -> None:
    old = {
        "status_code": 200,
        "headers": {"Content-Type": "application/json", "Content-Length": "8"},
        "body": '{"a":1}',
    }
    outcome = adopt(json.dumps(old).encode())
    assert outcome is not None
    assert json.loads(outcome) == {
        "format": 1,
        "outcome": "response",
        "status_code": 200,
        "headers": [["content-type", "application/json"]],
        "body": '{"a":1}',
    }


def test_a_legacy_body_stored_as_json_is_serialized() -> None:
    outcome = adopt(b'{"status_code": 200, "headers": {}, "body": {"a": [1, "\xc3\xa4"]}}')
    assert json.loads(outcome or b"")["body"] == '{"a":[1,"ä"]}'


def test_connection_headers_and_lone_surrogates_of_a_legacy_record_are_removed() -> None:
    gone = ("Transfer-Encoding", "Connection", "Date", "Server", "Set-Cookie")
    old = {"status_code": 299, "headers": dict.fromkeys([*gone, "ETag"], "x"), "body": "ä\ud800"}
    outcome = json.loads(adopt(json.dumps(old).encode()) or b"")
    assert outcome["headers"] == [["etag", "x"]]
    assert outcome["body"] == "ä?"


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"nonsense",
        b"[]",
        b'"text"',
        b'{"status_code": 500, "headers": {}, "body": ""}',
        b'{"status_code": 199, "headers": {}, "body": ""}',
        b'{"status_code": 300, "headers": {}, "body": ""}',
        b'{"status_code": 200.0, "headers": {}, "body": ""}',
        b'{"status_code": "200", "headers": {}, "body": ""}',
        b'{"status_code": true, "headers": {}, "body": ""}',
        b'{"status_code": 200, "headers": [], "body": ""}',
        b'{"status_code": 200, "body": ""}',
        b"[" * 100_000,
    ],
)
def test_records_of_another_format_are_not_adopted(record: bytes) -> None:
    assert adopt(record) is None


@given(st.binary(max_size=200))
def test_adopting_random_bytes_never_raises(record: bytes) -> None:
    assert adopt(record) is None
