"""
No message holds a URL's credentials, whatever the URL.

The URL is given to open_store, open_sync_store and the command (list, doctor, and as a wrong argument). The password is
searched in the error and all errors in its chain, in standard output and error, and in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idempotency import StoreError
from idempotency.cli import main
from idempotency.stores.parse_url import hide_urls, parse_store_url
from idempotency.stores.url import open_store, open_sync_store, postgres_conninfo

SECRET = "hunter2"
# A password that is not percent-encoded may be parsed as part of the port, path, query, fragment or host.
URLS = [
    f"redis://user:{SECRET}@localhost:x/0",
    f"redis://user:{SECRET}@localhost:999999/0",
    f"redis://user:{SECRET}@localhost/zero",
    f"redis://user:pa/{SECRET}@localhost/0",
    f"redis://user:1/{SECRET}@localhost/0",
    f"redis://user:pa#{SECRET}@localhost/0",
    f"redis://user:1?{SECRET}@localhost/0",
    f"redis://user:1?{SECRET}=1@localhost/0",
    f"redis://user:1?prefix={SECRET}@localhost/0",
    f"redis://user:pa[{SECRET}]@localhost/0",
    f"redis://user:[{SECRET}@localhost/0",
    f"redis://user:{SECRET}\u2100@localhost/0",
    f"redis://user:{SECRET}%zz@localhost:y/0",
    f"redis://user:{SECRET}@[::1/0",
    f"redis://user:{SECRET}@localhost/0?deadline=soon",
    f"redis://user:{SECRET}@localhost/0?nope",
    f"redis+sentinel://localhost:26379/s/zero?sentinel_password={SECRET}",
    f"redis+sentinel://localhost:26379/?sentinel_password={SECRET}@1",
    f"redis+cluster://user:{SECRET}@",
    f"postgresql://user:{SECRET}@localhost/db?nope=1",
    f"postgresql://user:pa/{SECRET}@localhost/db",
    f"postgresql://user:1/{SECRET}@localhost/db",
    f"postgresql://user:1?table={SECRET}@localhost/db",
    f"postgresql://user:1?{SECRET}=x@localhost/db",
    f"postgresql://user:{SECRET}@localhost/db?table=Drop it",
    f"postgresql:///db?password={SECRET}&nope=1",
    f"postgresql://user:{SECRET}@localhost:x/db",
    f"{SECRET}:word@localhost",
    f"user:{SECRET}@localhost",
    f"user:{SECRET}@localhost:5432/db",
    f"nope://user:{SECRET}@localhost",
    f"unix:///run/redis.sock?password={SECRET}",
    f"memory://user:{SECRET}@host",
    f"memory:?max_records={SECRET}@x",
    f"sqlite://user:{SECRET}@host/x.db",
    f"sqlite:///redis://user:{SECRET}@host/x.db",
    f"sqlite:///x.db#{SECRET}",
    f" redis://user:{SECRET}@localhost:x/0",
    f"REDIS://user:{SECRET}@localhost:x/0",
]


def errors_behind(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from errors_behind(error.__cause__)
        error = error.__context__


@pytest.mark.parametrize("open_any", [open_store, open_sync_store])
@pytest.mark.parametrize("url", URLS)
def test_no_error_of_opening_a_store_shows_the_password(open_any, url: str) -> None:
    try:
        opened = open_any(url)
    except (ValueError, StoreError) as refused:
        for error in errors_behind(refused):
            assert SECRET not in f"{error!s} {error!r} {getattr(error, '__notes__', '')}"
    else:
        assert SECRET not in repr(opened)


@pytest.mark.parametrize("command", ["list", "doctor", "purge"])
@pytest.mark.parametrize("url", URLS)
def test_the_command_hides_the_password(
    url: str, command: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert main([command, "--store", url]) in {2, 3, 64}
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err + caplog.text
    assert printed.err.startswith("idempotency: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "URL"],
        ["URL"],
        ["list", "--limit", "URL"],
        ["list", "--state", "URL"],
        ["show", "k", "URL", "--store", "memory:"],
        ["list", "--stores=URL"],
    ],
)
@pytest.mark.parametrize(
    "url", [f"redis://user:{SECRET}@localhost/0", f"redis://user:a {SECRET} b@localhost/0"]
)
def test_a_url_given_as_another_argument_is_not_shown(
    arguments: list[str], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.replace("URL", url) for argument in arguments]) == 64
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert "[not shown]" in printed.err


PASSWORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]).filter(lambda sign: sign not in "\r\n\t"),
    min_size=3,
    max_size=12,
).map(lambda text: f"Zq7{text}7qZ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    PASSWORDS,
    st.sampled_from(["redis", "rediss+cluster", "redis+sentinel", "postgresql"]),
    st.sampled_from(["localhost", "localhost:6379", "a:1,b:2", "[::1]:5", "", "localhost:x"]),
    st.sampled_from(["", "/0", "/service/0", "/db", "/db?nope=1", "?table=x"]),
)
def test_no_piece_of_an_unencoded_password_is_shown(
    password: str, scheme: str, hosts: str, rest: str
) -> None:
    """No four characters of a password without percent-encoding are shown."""
    url = f"{scheme}://user:{password}@{hosts}{rest}"
    pieces = {"Zq7" + password[3], password[-4:]}
    try:
        shown = [repr(open_store(url))]
    except ValueError as refused:
        shown = [f"{error!s}" for error in errors_behind(refused)]
    assert not any(piece in text for piece in pieces for text in shown)


@given(PASSWORDS)
def test_a_percent_encoded_password_is_decoded_and_not_shown(password: str) -> None:
    parts = parse_store_url(f"redis://user:{quote(password, safe='')}@localhost:6379/0")
    assert (parts.password, parts.hosts) == (password, (("localhost", 6379),))
    assert password not in repr(parts)


def test_libpq_gets_the_password_as_this_library_parsed_it() -> None:
    parts = parse_store_url("postgresql://user:a@b:c@localhost:5433/db?sslmode=prefer&table=t")
    assert parts.password == "a@b:c"
    conninfo = postgres_conninfo(parts, without={"table"})
    assert conninfo is not None
    assert set(conninfo.split()) == {
        "user=user",
        "password=a@b:c",
        "host=localhost",
        "port=5433",
        "dbname=db",
        "sslmode=prefer",
    }


def test_libpq_gets_several_hosts_or_a_socket_directory() -> None:
    several = postgres_conninfo(parse_store_url("postgresql://u@a:1,b/db"), without=())
    assert several is not None
    assert {"host=a,b", "port=1,"} <= set(several.split())
    socket = postgres_conninfo(parse_store_url("postgresql://u:p@%2Fvar%2Frun/db"), without=())
    assert socket is not None
    assert "host=/var/run" in socket
    assert (
        postgres_conninfo(parse_store_url("postgresql:///db?host=/tmp"), without=()) == "dbname=db host=/tmp"
    )


def test_hide_urls_keeps_text_without_a_url() -> None:
    assert hide_urls("argument --limit: invalid int value: 'x'") == "argument --limit: invalid int value: 'x'"
