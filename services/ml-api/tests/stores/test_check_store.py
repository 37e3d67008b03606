"""The question to the store before a start: asked once, and the start does not hang on it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ml_api.__main__ import _check_store
from ml_api.settings import Settings


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Lookups of names that end when this is set, and not before."""
    answered = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        answered.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield answered
    answered.set()


def test_a_name_that_takes_long_to_look_up_delays_no_start(lookups: threading.Event) -> None:
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
