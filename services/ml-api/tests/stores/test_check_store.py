"""The check of the store before a start: it does not delay the start, and it reports bad URLs without secrets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ml_api.__main__ import _check_store, main
from ml_api.settings import Settings


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Blocks every name lookup until the event is set."""
    answered = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        answered.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield answered
    answered.set()


def test_a_slow_name_lookup_does_not_delay_the_start(lookups: threading.Event) -> None:
    settings = Settings.model_validate(
        {
            "api_key": "the-key-of-the-tests",
            "redis_enabled": True,
            "redis_host": "cache.test",
            "store_deadline": 0.05,
        }
    )
    found: list[tuple[bool, str]] = []
    start = threading.Thread(target=lambda: found.append(_check_store(settings)))
    start.start()
    start.join(30)
    assert not lookups.is_set()
    assert [answered for answered, _ in found] == [False]


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("redis://:s3cr3t@127.0.0.1:1/0", 1),
        ("redis://user:s3cr3t@[::1]:1/0", 1),
        ("redis://:s3cr3t%40%2F@127.0.0.1:1", 1),
        ("redis://:%zzs3cr3t@127.0.0.1:1", 1),
        ("redis+sentinel://:s3cr3t@127.0.0.1:1/cache", 1),
        ("redis://user:s3c/r3t@s3cr3t@h:1", 2),
        ("redis://:s3cr3t#x@127.0.0.1:1", 2),
        ("redis://:s3cr3t@[::1", 2),
        ("redis://:s3cr3t@127.0.0.1:99999", 2),
        ("redis://:s3cr3t@127.0.0.1:abc", 2),
        ("redis://:s3cr3t@127.0.0.1:-1", 2),
        ("redis://:s3cr3t", 2),
        ("redis://:s3cr3t@127.0.0.1:1/x", 2),
        ("redis://:s3cr3t@127.0.0.1:1?password=s3cr3t", 2),
        ("redis+sentinel://:s3cr3t@127.0.0.1:1/", 2),
        ("unix:///run/redis.sock?password=s3cr3t", 2),
        ("valkey://:s3cr3t@h", 2),
        ("s3cr3t", 2),
    ],
)
def test_check_reports_a_bad_redis_url_in_one_line_without_its_password(
    url: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ML_SERVICE_API_KEY", "the-key-of-the-tests")
    monkeypatch.setenv("ML_SERVICE_REDIS_ENABLED", "true")
    monkeypatch.setenv("ML_SERVICE_REDIS_URL", url)
    monkeypatch.setenv("ML_SERVICE_STORE_DEADLINE", "0.2")
    assert main(["check"]) == code
    out, err = capsys.readouterr()
    assert SECRET not in out + err
    said = [line for line in (err or out).splitlines() if "REDIS_URL" in line or "not reachable yet" in line]
    assert len(said) == 1
