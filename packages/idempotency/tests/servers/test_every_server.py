"""One application under every server: broken requests, and which two requests count as one."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from effects import Charges, guard
from gunicorn_server import WORKERS, Gunicorn, start_gunicorn
from servers import SERVERS, serve
from wire import Wire, post, request

from idempotency import Policy
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Site:
    """The application, served."""

    def __init__(self, port: int, charges: Any, store: Any) -> None:
        self.port = port
        self.charges = charges
        self.store = store

    @property
    def is_asgi(self) -> bool:
        """Whether the server speaks ASGI, not WSGI."""
        return isinstance(self.charges, Charges)

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of the requests that ran; their count is the count of effects."""
        found: list[bytes] = self.charges.bodies
        return found

    async def records(self) -> Any:
        """Every record."""
        page = self.store.scan()
        return (await page if self.is_asgi else page).records

    async def is_free(self) -> bool:
        """Whether no key was used."""
        return not await self.records()

    async def send(self, data: bytes) -> Any:
        """The answer to these bytes, on a connection of their own."""
        async with await Wire.connect(self.port) as wire:
            await wire.send(data)
            return await wire.response()


@pytest.fixture(scope="module")
def gunicorns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gunicorn]]:
    """gunicorn with either kind of worker, started when it is asked for."""
    with ExitStack() as stack:

        class Started(dict[str, Gunicorn]):
            def __missing__(self, kind: str) -> Gunicorn:
                self[kind] = stack.enter_context(start_gunicorn(kind, tmp_path_factory.mktemp(kind)))
                return self[kind]

        yield Started()


@pytest.fixture(params=[*SERVERS, *WORKERS])
def server(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> str:
    """A server for ASGI, or a kind of gunicorn's workers, which serve the same under WSGI."""
    caplog.set_level(logging.CRITICAL)  # servers log what these tests provoke
    return str(request.param)


@pytest.fixture
async def site(
    server: str, request: pytest.FixtureRequest, gunicorns: dict[str, Gunicorn]
) -> AsyncIterator[Site]:
    """The application; a parameter is the time that its requests' bodies may take."""
    if server in WORKERS:
        effects = gunicorns[server].effects
        effects.forget()
        yield Site(gunicorns[server].port, effects, effects.store)
        return
    charges, store = Charges(), MemoryStore()
    app = guard(charges, store, max_request_bytes=100_000, body_timeout=getattr(request, "param", 30.0))
    async with serve(app, server) as port:
        yield Site(port, charges, store)


async def test_a_truncated_body_runs_nothing_and_leaves_the_key_free(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        await wire.send(request("/charges", "k", b"x" * 100)[:-50])
    await asyncio.sleep(0.05)  # in which gunicorn, in another process, would run the request
    assert len(site.bodies) == 0
    assert await site.is_free()
    assert (await post(site.port, key="k")).status == 201


@pytest.mark.parametrize("site", [0.2], indirect=True)
@pytest.mark.parametrize("server", SERVERS, indirect=True)  # under WSGI the server alone can interrupt a read
async def test_a_body_slower_than_body_timeout_is_refused_with_408(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        await wire.send(request("/charges", "k", b"x" * 100)[:-50])
        answer = await wire.response()
    assert answer.status == 408
    assert answer.values("connection") == [b"close"]
    assert await site.is_free()


async def test_a_body_that_arrives_in_small_parts_is_run_whole(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        whole = request("/charges", "k", b"x" * 20)
        for start in range(0, len(whole), 40):
            await wire.send(whole[start : start + 40])
            await asyncio.sleep(0.005)  # else the parts arrive as one: gunicorn is another process
        assert (await wire.response()).status == 201
    assert site.bodies == [b"x" * 20]


async def test_a_body_over_the_limit_is_refused_by_its_content_length(site: Site) -> None:
    head = request("/charges", "k", b"").replace(b"content-length: 0", b"content-length: 67108864")
    answer = await site.send(head + b"x")  # and no further byte of the 64 MiB
    assert answer.status == 413
    if site.is_asgi:  # under WSGI only the server sets that header (PEP 3333)
        assert answer.values("connection") == [b"close"]
    assert await site.is_free()


async def test_a_refusal_without_a_body_is_sent_before_the_upload_ends(
    server: str, gunicorns: dict[str, Gunicorn]
) -> None:
    """Also by a server that sends headers with the first byte of the body, of which there is none here."""
    head = request("/silent", "k", b"").replace(b"content-length: 0", b"content-length: 67108864")

    async def answer_from(port: int) -> Any:
        async with await Wire.connect(port) as wire, asyncio.timeout(10):
            await wire.send(head + b"x")  # and no further byte before the answer
            return await wire.response()

    if server in WORKERS:
        answer = await answer_from(gunicorns[server].port)
    else:
        policy = Policy(max_request_bytes=100_000, render=lambda problem: ("text/plain", b""))
        async with serve(guard(Charges(), MemoryStore(), policy=policy), server) as port:
            answer = await answer_from(port)
    assert (answer.status, answer.body) == (413, b"")


async def test_a_chunked_body_over_the_limit_is_refused_before_it_ends(site: Site) -> None:
    head = request("/charges", "k", b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    async with await Wire.connect(site.port) as wire:
        await wire.send(head + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 100)  # and no final chunk
        async with asyncio.timeout(30):
            answer = await wire.response()
        assert answer.status == 413
    assert len(site.bodies) == 0
    assert await site.is_free()


async def test_a_body_over_the_limit_without_a_key_reaches_the_application(site: Site) -> None:
    assert (await post(site.port, body=b"x" * 200_000)).status == 201
    assert len(site.bodies[0]) == 200_000


async def test_a_body_of_exactly_the_limit_is_run_and_replayed(site: Site) -> None:
    assert (await post(site.port, key="k", body=b"x" * 100_000)).status == 201
    assert (await post(site.port, key="k", body=b"x" * 100_000)).replayed


async def test_a_chunked_retry_of_the_same_body_is_replayed(site: Site) -> None:
    assert (await post(site.port, key="k", body=b"onetwo")).status == 201
    head = request("/charges", "k", b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    again = await site.send(head + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    assert (again.status, again.replayed) == (201, True)


async def test_a_request_that_expects_100_continue_is_run(site: Site) -> None:
    head = request("/charges", "k", b"x" * 10, headers=[("expect", "100-continue")])[:-10]
    async with await Wire.connect(site.port) as wire:
        await wire.send(head)
        assert (await wire.head())[0] == 100
        await wire.send(b"x" * 10)
        assert (await wire.response()).status == 201
    assert site.bodies == [b"x" * 10]


async def test_pipelined_duplicates_have_one_effect(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        await wire.send(request("/charges", "k", b"{}") * 3)
        answers = [await wire.response() for _ in range(3)]
    assert [answer.status for answer in answers] == [201] * 3
    assert [answer.replayed for answer in answers] == [False, True, True]
    assert len(site.bodies) == 1


async def test_a_kept_alive_connection_serves_the_next_request_after_a_refusal(site: Site) -> None:
    async with await Wire.connect(site.port) as wire:
        await wire.send(request("/charges", None, b"{}", headers=[("idempotency-key", '"open')]))
        assert (await wire.response()).status == 400
        await wire.send(request("/charges", "k", b"{}"))
        assert (await wire.response()).status == 201


# httptools passes a trailer on as a header.
@pytest.mark.parametrize("server", ["uvicorn-h11", "hypercorn", "granian", *WORKERS], indirect=True)
async def test_a_key_in_a_trailer_is_ignored(site: Site) -> None:
    head = request("/charges", None, b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    for number in (1, 2):
        answer = await site.send(head + b'2\r\n{}\r\n0\r\nidempotency-key: "k"\r\n\r\n')
        assert (answer.status, answer.body) == (201, b'{"charge": %d}' % number)
    assert await site.is_free()


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(['"a"', '"b"'], id="duplicate_header"),
        pytest.param(['"a"', '"a"'], id="repeated_header"),
        pytest.param(['"a", "b"'], id="list_header"),
        pytest.param([""], id="empty_key"),
        pytest.param(['""'], id="quoted_empty_key"),
        pytest.param(['"a'], id="malformed_sf_string"),
        pytest.param(["caf\u00e9"], id="non_ascii_key"),
        pytest.param(["k" * 10_000], id="huge_key"),
    ],
)
async def test_an_invalid_key_is_refused_and_runs_nothing(lines: list[str], site: Site) -> None:
    answer = await post(site.port, headers=[("idempotency-key", line) for line in lines])
    assert answer.status in {400, 431}
    assert len(site.bodies) == 0
    assert await site.is_free()


async def test_a_quoted_and_a_bare_key_are_the_same_key(site: Site) -> None:
    assert (await post(site.port, key="k")).status == 201
    assert (await post(site.port, headers=[("Idempotency-Key", "k")])).replayed


async def test_the_name_of_the_key_header_is_case_insensitive(site: Site) -> None:
    for name, replayed in (("IDEMPOTENCY-KEY", False), ("idempotency-KEY", True)):
        assert (await post(site.port, headers=[(name, '"k"')])).replayed == replayed


async def test_characters_that_are_special_to_a_store_are_encoded_in_its_keys(site: Site) -> None:
    keys = ["a:b", "{a}", "a*", "../../a", "a;FLUSHALL", "a'--", "%61"]
    for key in keys:
        assert (await post(site.port, key=key)).status == 201
    assert len(site.bodies) == len(keys)
    for record in await site.records():
        assert not set(record.key.removeprefix("alice:")) & set("{}:*/;' ")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(b'{"a":1}', b'{"a":1.0}', id="one_and_one_point_nought"),
        pytest.param(b"9007199254740992", b"9007199254740993", id="beyond_double_precision"),
        pytest.param("\u00e9".encode(), "e\u0301".encode(), id="nfc_and_nfd"),
        pytest.param(b"0.0", b"-0.0", id="signed_zero"),
        pytest.param(b"{}", b"{ }", id="white_space"),
        pytest.param(b"{}", b"{}\n", id="line_end"),
        pytest.param(b"{}", b"\xef\xbb\xbf{}", id="byte_order_mark"),
        pytest.param(b"{}", b"", id="empty"),
    ],
)
async def test_bodies_that_differ_only_in_their_bytes_are_a_mismatch(
    one: bytes, two: bytes, site: Site
) -> None:
    assert (await post(site.port, key="k", body=one)).status == 201
    assert (await post(site.port, key="k", body=two)).status == 422
    assert (await post(site.port, key="k", body=one)).replayed


@pytest.mark.parametrize(
    ("path", "method"),
    [
        pytest.param("/refunds", "POST", id="other_route"),
        pytest.param("/charges?dry=1", "POST", id="other_query"),
        pytest.param("/charges", "PATCH", id="other_method"),
        pytest.param("/Charges", "POST", id="other_case"),
        pytest.param("/charges/", "POST", id="trailing_slash"),
        pytest.param("/charges/../charges", "POST", id="dot_segments"),
        pytest.param("/ch%61rges", "POST", id="percent_encoding"),
    ],
)
@pytest.mark.rule("E9")
async def test_the_same_key_for_another_operation_is_a_mismatch(path: str, method: str, site: Site) -> None:
    if path == "/ch%61rges" and not site.is_asgi:
        path = "/ch%61rged"  # WSGI hands the path over decoded, where that one is the same
    await post(site.port, key="k")
    assert (await post(site.port, path, key="k", method=method)).status == 422
    assert len(site.bodies) == 1


@pytest.mark.parametrize(
    ("name", "one", "two"),
    [
        pytest.param("content-encoding", "identity", "gzip", id="content_encoding"),
        pytest.param("content-type", "application/json", "text/plain", id="content_type"),
    ],
)
async def test_another_content_type_or_content_encoding_is_a_mismatch(
    name: str, one: str, two: str, site: Site
) -> None:
    await post(site.port, key="k", headers=[(name, one)])
    assert (await post(site.port, key="k", headers=[(name, two)])).status == 422
    assert (await post(site.port, key="k", headers=[(name, one)])).replayed


async def test_a_compressed_body_reaches_the_application_compressed(site: Site) -> None:
    headers = [("content-encoding", "gzip")]
    body = gzip.compress(b"{}", mtime=0)
    assert (await post(site.port, key="k", body=body, headers=headers)).status == 201
    assert (await post(site.port, key="k", body=body, headers=headers)).replayed
    assert site.bodies == [body]


async def test_accept_headers_are_not_part_of_the_fingerprint(site: Site) -> None:
    await post(site.port, key="k", headers=[("accept-encoding", "gzip"), ("accept", "application/json")])
    assert (await post(site.port, key="k", headers=[("accept-encoding", "br"), ("accept", "*/*")])).replayed


async def test_keyed_get_put_and_delete_requests_run_unprotected(site: Site) -> None:
    for method in ("GET", "PUT", "DELETE"):
        for _ in range(2):
            assert not (await post(site.port, key="k", method=method)).replayed
    assert len(site.bodies) == 6
    assert await site.is_free()
