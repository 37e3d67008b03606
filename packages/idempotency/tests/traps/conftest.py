"""Fixtures of the traps' tests: every store, a key for one test, and an event loop."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stores import KINDS, SHARED, open_store

from idempotency.store import Store


@pytest.fixture
def anyio_backend() -> str:
    """Servers and network drivers run on asyncio."""
    return "asyncio"


@pytest.fixture
def key() -> str:
    """A key for one test, since tests share the servers."""
    return f"k-{secrets.token_hex(8)}"


@pytest.fixture
def locate(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A function from a kind of store to its location: a file for one test, or the session's server."""

    def location(kind: str) -> str:
        match kind:
            case "sqlite":
                return str(tmp_path / "records.db")
            case "redis":
                return request.getfixturevalue("redis_url")
            case "postgres":
                return request.getfixturevalue("postgres_url")
        return ""

    return location


@pytest.fixture(params=KINDS)
async def any_store(request: pytest.FixtureRequest, locate) -> AsyncIterator[Store]:  # type: ignore[no-untyped-def]
    """Each of the four stores."""
    async with open_store(request.param, locate(request.param)) as store:
        yield store


@pytest.fixture(params=SHARED)
def shared_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of store that processes can share."""
    return request.param
