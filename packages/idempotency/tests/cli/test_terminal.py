"""The command and the log escape control characters: odd keys, paths and outcomes take one printable line each."""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
from pathlib import Path

import pytest
import redis
from asgi_driver import call
from effects import Charges, PatchedStore, guard, unavailable
from hypothesis import given
from hypothesis import strategies as st
from patience import with_long_deadline
from store_calls import claim

from idempotency._core.printable import printable
from idempotency.cli import main
from idempotency.stores.memory import MemoryStore
from idempotency.stores.sqlite import SyncSQLiteStore

ODD = ["k\x1b[2J\x1b[1;1H", "k\nrunning  forged", "k\r", "k\x07", "k\u202e1", "k\x9b31m", "k\x85x", "ключ"]


def insert_records(path: Path, names: list[bytes]) -> None:
    with sqlite3.connect(path) as connection:
        for name in names:
            connection.execute(
                "INSERT INTO idempotency_record SELECT CAST(? AS TEXT), version, fingerprint, owner, attempt, fence, "
                "boot, lease_until, retention, expires_at, completed_at, outcome FROM idempotency_record "
                "WHERE key = 'order-1'",
                (name,),
            )
    connection.close()


def test_list_prints_odd_sqlite_keys_on_one_printable_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.db"
    store = SyncSQLiteStore(path)
    claim(store)
    store.close()
    insert_records(path, [name.encode() for name in ODD] + [b"k\xff\xfe"])
    assert main(["list", "--store", f"sqlite:///{path}"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 1 + 1 + len(ODD) + 1 + 1  # the heading, order-1, the others, and the end of the last
    assert all(line.isprintable() for line in lines)
    assert main(["list", "--json", "--store", f"sqlite:///{path}"]) == 0
    listed = [json.loads(line)["key"] for line in capsys.readouterr().out.splitlines()]
    assert {"order-1", "k\udcff\udcfe", *ODD} == set(listed)
    assert main(["show", "k\udcff\udcfe", "--stored", "--store", f"sqlite:///{path}"]) == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_redis_keys_that_are_not_utf_8_can_be_listed_shown_and_released(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = f"t-{secrets.token_hex(4)}:"
    url = with_long_deadline(f"{redis_url}?prefix={prefix}")
    value = (
        '{"v":1,"state":"running","fingerprint":"66","owner":"61","attempt":1,"fence":1,"lease_until_ms":1,'
        '"retention_ms":1}'
    )
    with redis.Redis.from_url(redis_url) as client:
        for name in [b"k\xff\xfe", b"k\x1b[2J\n"]:
            client.set(prefix.encode() + name, value, ex=60)
    assert main(["list", "--store", url]) == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n"))
    assert "k\\x1b[2J\\n" in printed
    assert "k\\udcff\\udcfe" in printed
    assert main(["show", "k\udcff\udcfe", "--stored", "--store", url]) == 0
    assert main(["release", "k\udcff\udcfe", "--stored", "--store", url]) == 0
    assert main(["show", "k\udcff\udcfe", "--stored", "--store", url]) == 1


def test_show_outcome_prints_only_printable_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.db"
    store = SyncSQLiteStore(path)
    store.complete(claim(store), b'{"body":"\x1b[2J\nfree"}', retention=60.0)
    store.close()
    assert main(["show", "order-1", "--show-outcome", "--store", f"sqlite:///{path}"]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


def test_usage_error_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--limit", "\x1b[2J\n1", "--store", "memory:"]) == 64
    error = capsys.readouterr().err
    assert "\\x1b[2J\\n1" in error
    assert "\x1b" not in error


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/charges\nERROR forged", "/charges\x1b[2J", "/\u2028x", "/\x85"])
async def test_control_characters_in_a_path_are_escaped_in_the_log(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = guard(Charges(), PatchedStore(MemoryStore(), acquire=unavailable))
    with caplog.at_level(logging.DEBUG, logger="idempotency"):
        await call(app, path=path, key="k", raw_path=None)
    messages = [record.getMessage() for record in caplog.records]
    assert any("store failed" in message for message in messages)
    assert all(message.isprintable() for message in messages)


@given(st.text(), st.sampled_from(["utf-8", "ascii", "latin-1", None]))
def test_printable_gives_one_printable_line_in_the_encoding(text: str, encoding: str | None) -> None:
    shown = printable(text, encoding)
    assert shown.isprintable()
    shown.encode(encoding or "ascii")
    if text.isprintable() and text.isascii():
        assert shown == text
