"""
The behaviour that the clients for all libraries share, over real sockets.

The server loses responses, cuts them off, stalls, sends slowly, redirects, and answers 409, 425, 429 and 503.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anyio
import pytest
from http_clients import CLIENTS, HTTPClient
from lossy_shop import Shop, serving
from patience import PATIENCE, until_sync
from scripted_server import Server, redirecting, trickling

from idempotency import Policy, parse_key
from idempotency.client import Answer, Retry

pytestmark = pytest.mark.anyio


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> HTTPClient:
    return HTTPClient(request.param)


@pytest.fixture
def anyio_backend(client: HTTPClient) -> str:
    return "trio" if client.name.endswith("-trio") else "asyncio"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Shop, str]]:
    shop = Shop()
    with serving(shop) as url:
        yield shop, f"{url}/charges"


@pytest.fixture
def shop(served: tuple[Shop, str]) -> Shop:
    served[0].reset()
    return served[0]


@pytest.fixture
def url(served: tuple[Shop, str]) -> str:
    return served[1]


def keys(shop: Shop) -> set[str | None]:
    return {key for _, key, _ in shop.seen}


class TestLostResponses:
    @pytest.mark.parametrize("fault", ["lost", "half"])
    async def test_response_lost_after_the_effect_is_replayed(
        self, client: HTTPClient, shop: Shop, url: str, fault: str
    ) -> None:
        shop.faults.extend([fault, fault])
        answer = await client.call("POST", url, body=b'{"cents": 100}')
        assert (answer.status, answer.content) == (201, b'{"charge": 1}')
        assert answer.headers["idempotency-replayed"] == "true"
        assert shop.charges == 1
        assert len(keys(shop)) == 1
        assert {body for _, _, body in shop.seen} == {b'{"cents": 100}'}
        assert client.pauses == [0.125, 0.25]

    async def test_request_without_a_response_is_retried_after_its_read_timeout(
        self, client: HTTPClient, shop: Shop, url: str
    ) -> None:
        shop.faults.append("stall")
        answer = await client.call("POST", url, read_timeout=0.2)
        assert answer.content == b'{"charge": 1}'
        assert shop.charges == 1

    async def test_refused_connection_is_retried_and_then_raised(self, client: HTTPClient) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound and not listening: no other test can use the port
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
            with pytest.raises(client.connect_error) as caught:
                await client.call("POST", url, retry=Retry(attempts=3))
        assert len(client.pauses) == 2
        assert "gave up after 3 attempts" in caught.value.__notes__[0]


class TestResponses:
    async def test_transient_responses_are_retried_under_one_key(
        self, client: HTTPClient, shop: Shop, url: str
    ) -> None:
        shop.faults.extend([409, 425, 429, 503])
        answer = await client.call("POST", url, retry=Retry(attempts=5))
        assert answer.status == 201
        assert client.pauses == [0.125, 0.25, 0.5, 1.0]
        assert len(keys(shop)) == 1

    @pytest.mark.parametrize("status", [200, 400, 404, 422, 501])
    async def test_final_responses_are_not_retried(
        self, client: HTTPClient, shop: Shop, url: str, status: int
    ) -> None:
        shop.faults.append(status)
        assert (await client.call("POST", url)).status == status
        assert len(shop.seen) == 1

    async def test_retry_after_is_obeyed_as_seconds_and_as_a_date(
        self, client: HTTPClient, shop: Shop, url: str
    ) -> None:
        now = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)  # a server whose clock is wrong
        dates = [(b"date", _http_date(now)), (b"retry-after", _http_date(now + timedelta(seconds=9)))]
        shop.faults.extend([(429, [(b"retry-after", b"7")], b""), (503, dates, b"")])
        assert (await client.call("POST", url)).status == 201
        assert client.pauses == [7.125, 9.25]

    async def test_response_whose_retry_after_exceeds_max_retry_after_is_returned(
        self, client: HTTPClient, shop: Shop, url: str
    ) -> None:
        shop.faults.append((503, [(b"retry-after", b"61")], b"later"))
        answer = await client.call("POST", url, retry=Retry(timeout=3600.0))
        assert (answer.status, answer.content, client.pauses) == (503, b"later", [])
        shop.faults.append((503, [(b"retry-after", b"61")], b"later"))
        longer = Retry(timeout=3600.0, max_retry_after=100.0)
        assert (await client.call("POST", url, retry=longer)).status == 201
        assert client.pauses == [61.125]
        client.pauses.clear()
        shop.faults.append((503, [(b"retry-after", b"1" + b"0" * 20)], b"never"))
        answer = await client.call("POST", url)
        assert (answer.content, client.pauses) == (b"never", [])

    @pytest.mark.parametrize("name", [b"stripe-should-retry", b"x-should-retry"])
    async def test_should_retry_header_of_the_server_decides(
        self, client: HTTPClient, shop: Shop, url: str, name: bytes
    ) -> None:
        shop.faults.extend([(402, [(name, b"true")], b""), (503, [(name, b"false")], b"no")])
        answer = await client.call("POST", url)
        assert (answer.status, answer.content, len(shop.seen)) == (503, b"no", 2)

    async def test_retry_if_is_asked_before_the_default_rule(
        self, client: HTTPClient, shop: Shop, url: str
    ) -> None:
        seen: list[Answer | Exception] = []

        def rule(outcome: Answer | Exception) -> bool | None:
            seen.append(outcome)
            if isinstance(outcome, Answer) and outcome.status == 400:
                return b"try again" in outcome.content
            return None

        shop.faults.extend([(400, [], b"try again"), 503, "lost", (400, [], b"bad")])
        answer = await client.call("POST", url, retry=Retry(attempts=9, retry_if=rule))
        assert (answer.status, answer.content, len(shop.seen)) == (400, b"bad", 4)
        assert [getattr(outcome, "status", "error") for outcome in seen] == [400, 503, "error", 400]

    async def test_retry_if_can_end_the_call_at_an_error(
        self, client: HTTPClient, shop: Shop, url: str
    ) -> None:
        shop.faults.append("lost")
        with pytest.raises(client.request_error) as caught:
            await client.call("POST", url, retry=Retry(retry_if=lambda _: False))
        assert not hasattr(caught.value, "__notes__")
        assert len(shop.seen) == 1

    async def test_409_not_replayable_is_not_retried(self, client: HTTPClient, shop: Shop, url: str) -> None:
        shop.policy = Policy(max_response_bytes=3)
        shop.faults.append("lost")
        answer = await client.call("POST", url)
        assert answer.status == 409
        assert b"not-replayable" in answer.content
        assert (len(shop.seen), shop.charges) == (2, 1)

    @pytest.mark.parametrize("stream", [False, True])
    async def test_response_can_be_read_whole_or_in_chunks(
        self, client: HTTPClient, serve: Callable[..., Server], stream: bool
    ) -> None:
        for framing in (b"content-length: 9\r\n", b""):
            head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + framing + b"\r\n"
            server = serve(lambda connection, _, head=head: connection.sendall(head + b"123456789"))
            answer = await client.call("POST", server.url, stream=stream)
            assert answer.content == b"123456789"


def _http_date(moment: datetime) -> bytes:
    return format_datetime(moment, usegmt=True).encode()


class TestRequests:
    async def test_each_call_sends_its_own_quoted_key(self, client: HTTPClient, shop: Shop, url: str) -> None:
        for _ in range(2):
            await client.call("POST", url)
        (_, first, _), (_, second, _) = shop.seen
        assert first is not None
        assert first != second
        assert len(parse_key([first.encode()], strict=True) or "") == 36

    async def test_key_given_by_the_caller_is_sent_unchanged(
        self, client: HTTPClient, shop: Shop, url: str
    ) -> None:
        shop.faults.extend([503, 503])
        await client.call("POST", url, headers={"idempotency-key": "order-1"})
        assert [key for _, key, _ in shop.seen] == ["order-1"] * 3

    async def test_key_header_can_be_renamed(self, client: HTTPClient, serve: Callable[..., Server]) -> None:
        server = serve(_created)
        await client.call("POST", server.url, header="X-Request-Id", new_key=lambda: "k-1")
        assert b'x-request-id: "k-1"' in server.requests[0].lower()
        assert b"idempotency-key" not in server.requests[0].lower()
        with pytest.raises(ValueError, match="name of a header"):
            await client.call("POST", server.url, header="two words")

    async def test_key_can_be_sent_without_quotes(
        self, client: HTTPClient, serve: Callable[..., Server]
    ) -> None:
        server = serve(_created)
        await client.call("POST", server.url, new_key=lambda: "k-1", quoted=False)
        assert b"idempotency-key: k-1\r\n" in server.requests[0].lower() + b"\r\n"
        with pytest.raises(ValueError, match="without quotes"):
            await client.call("POST", server.url, new_key=lambda: " k", quoted=False)

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
    async def test_other_methods_get_no_key_and_no_retry(
        self, client: HTTPClient, shop: Shop, url: str, method: str
    ) -> None:
        shop.faults.extend([503, 503])
        assert (await client.call(method, url)).status == 503
        assert [(seen, key) for seen, key, _ in shop.seen] == [(method, None)]

    async def test_added_method_is_retried(self, client: HTTPClient, shop: Shop, url: str) -> None:
        shop.faults.append(503)
        assert (await client.call("PUT", url, methods=["put"])).status == 201
        assert len(shop.seen) == 2

    async def test_body_that_can_be_read_once_is_sent_whole_in_each_attempt(
        self, client: HTTPClient, shop: Shop, url: str
    ) -> None:
        async def later() -> Any:
            for chunk in (b"one,", b"two"):
                yield chunk

        shop.faults.extend(["lost", 503])
        await client.call("POST", url, body=later() if client.is_async else iter([b"one,", b"two"]))
        assert [body for _, _, body in shop.seen] == [b"one,two"] * 3

    # httpx takes no plain file in its asynchronous client.
    @pytest.mark.parametrize("client", ["httpx", "httpx2", "requests", "aiohttp"], indirect=True)
    async def test_file_is_sent_whole_in_each_attempt(self, client: HTTPClient, shop: Shop, url: str) -> None:
        shop.faults.extend(["lost", 503])
        await client.call("POST", url, body=io.BytesIO(b"content"))
        assert [body for _, _, body in shop.seen] == [b"content"] * 3


CHUNKS = b"1\r\nx\r\n" * 20 + b"0\r\n\r\n"
SLOW_PARTS = {
    "the status line": (b"", b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n"),
    "a header": (b"HTTP/1.1 201 Created\r\n", b"x-long: " + b"y" * 40 + b"\r\ncontent-length: 0\r\n\r\n"),
    "nothing": (b"HTTP/1.1 201 Created\r\ncontent-length: 9\r\n\r\nx", b""),
    "a body of known length": (b"HTTP/1.1 201 Created\r\ncontent-length: 40\r\n\r\n", b"x" * 40),
    "a long body": (b"HTTP/1.1 201 Created\r\ncontent-length: 2000000\r\n\r\n", b"x" * 60),
    "chunks": (b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n", CHUNKS),
    "a body up to the close": (b"HTTP/1.1 201 Created\r\nconnection: close\r\n\r\n", b"x" * 40),
}


async def call_until_deadline(client: HTTPClient, server: Server, **given: Any) -> list[float]:
    """
    Make calls until one has sent its request and ended at its deadline; the seconds that each call took.

    On a busy machine the short deadline may be over before anything is sent. Then the call is made again.
    """
    took, late = [], 0
    while True:
        began = time.monotonic()
        with pytest.raises(client.request_error) as ended:
            await client.call("POST", server.url, **given)
        took.append(time.monotonic() - began)
        late += isinstance(ended.value, client.timeout_error)
        if server.requests:  # perhaps that of an earlier call, which the server recorded late
            assert len(server.requests) <= late
            return took


class TestDeadlines:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("part", SLOW_PARTS)
    async def test_slow_response_ends_at_the_deadline(
        self, client: HTTPClient, part: str, stream: bool, serve: Callable[..., Server]
    ) -> None:
        at_once, slowly = SLOW_PARTS[part]
        stay = threading.Event()

        def answer(connection: socket.socket, head: bytes) -> None:
            connection.sendall(at_once)
            for byte in slowly * 4:
                if stay.wait(0.1):
                    return
                connection.sendall(bytes([byte]))
            stay.wait(20)

        server = serve(answer)
        took = await call_until_deadline(client, server, retry=Retry(timeout=0.25, attempts=2), stream=stream)
        stay.set()
        assert took[-1] < 6, "the whole response takes 8 s and more"
        assert len(server.requests) <= len(took)

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("part", ["a body of known length", "a long body", "chunks"])
    async def test_slow_response_body_is_not_read_after_the_deadline(
        self, client: HTTPClient, part: str, stream: bool, serve: Callable[..., Server]
    ) -> None:
        at_once, _ = SLOW_PARTS[part]
        ended, stay = threading.Event(), threading.Event()

        def answer(connection: socket.socket, head: bytes) -> None:
            connection.sendall(at_once)
            try:
                while not stay.wait(0.05):
                    connection.sendall(b"1\r\nx\r\n" if part == "chunks" else b"x")
            except OSError:
                ended.set()

        server = serve(answer)
        await call_until_deadline(client, server, retry=Retry(timeout=0.2, attempts=1), stream=stream)
        assert ended.wait(PATIENCE), "the connection is still open, and a thread still reads from it"
        stay.set()

    async def test_request_body_that_is_produced_too_slowly_ends_the_call(
        self, client: HTTPClient, serve: Callable[..., Server]
    ) -> None:
        def slowly() -> Iterator[bytes]:
            while True:
                now[0] += 4.0
                yield b"x"

        async def never() -> Any:
            yield b"x"
            await anyio.sleep_forever()

        now = [0.0]
        server = serve(_created)
        given: dict[str, Any] = {"body": slowly(), "monotonic": lambda: now[0], "retry": Retry(timeout=12.0)}
        if client.is_async:
            given = {"body": never(), "retry": Retry(timeout=0.1)}
        with pytest.raises(client.request_error, match=r"body was not complete within .* nothing was sent"):
            await client.call("POST", server.url, **given)
        assert (server.requests, client.pauses) == ([], [])

    async def test_slow_response_within_the_deadline_arrives_whole(
        self, client: HTTPClient, serve: Callable[..., Server]
    ) -> None:
        head = b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n"
        server = serve(trickling(head, b"1\r\nx\r\n0\r\n\r\n", 0.01))
        answer = await client.call("POST", server.url, retry=Retry(timeout=20.0))
        assert (answer.status, answer.content) == (201, b"x")

    async def test_requests_of_a_redirect_share_one_deadline(
        self, client: HTTPClient, serve: Callable[..., Server]
    ) -> None:
        def answer(connection: socket.socket, head: bytes) -> None:
            now[0] += 4.0
            steps.append(head)
            connection.sendall(
                b"HTTP/1.1 307 Moved\r\nlocation: /%d\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                % len(steps)
                if len(steps) < 3
                else b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )

        now, steps = [0.0], []
        server = serve(answer)
        reply = await client.call(
            "POST", server.url, follow=True, monotonic=lambda: now[0], retry=Retry(timeout=12.0)
        )
        assert reply.status == 503
        assert len(steps) == 3, "12 s are over: the requests share one deadline"

    async def test_event_stream_may_last_longer_than_the_deadline(
        self, client: HTTPClient, serve: Callable[..., Server]
    ) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        server = serve(trickling(head, b"data:1\n\n"))
        answer = None
        # On a busy machine the deadline may be over before the stream begins, but not each time.
        for _ in range(5):
            with contextlib.suppress(client.request_error):
                answer = await client.call("POST", server.url, retry=Retry(timeout=0.3), stream=True)
                break
        assert answer is not None
        assert answer.content == b"data:1\n\n"

    async def test_deadline_may_be_infinite(self, client: HTTPClient, serve: Callable[..., Server]) -> None:
        server = serve(trickling(b"HTTP/1.1 201 Created\r\ncontent-length: 1\r\n\r\n", b"x", 0.01))
        answer = await client.call("POST", server.url, retry=Retry(timeout=float("inf")))
        assert answer.content == b"x"

    async def test_call_leaves_no_thread(self, client: HTTPClient, shop: Shop, url: str) -> None:
        def threads() -> set[threading.Thread]:
            return {thread for thread in threading.enumerate() if thread.name == "idempotency-client"}

        before = threads()
        for stream in (False, True):
            await client.call("POST", url, stream=stream)
        until_sync(lambda: not threads() - before, "the client's thread ends")


SECRETS = {
    "X-API-Key": "secret-api-key",
    "Authorization": "Bearer secret-token",
    "Cookie": "session=secret-cookie",
}


def _created(connection: socket.socket, head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")


class TestOrigins:
    @pytest.mark.parametrize(("status", "method"), [(307, "POST"), (308, "POST"), (307, "PATCH")])
    async def test_redirect_that_keeps_the_body_is_not_followed_to_another_origin(
        self, client: HTTPClient, status: int, method: str, serve: Callable[..., Server]
    ) -> None:
        other = serve(_created)
        server = serve(redirecting(status, lambda: f"{other.url}/moved"))
        with pytest.raises(client.request_error, match="trusted_origins"):
            await client.call(method, server.url, follow=True, headers=SECRETS, body=b"secret-body")
        assert (len(server.requests), other.requests, client.pauses) == (1, [], [])

    @pytest.mark.parametrize("status", [301, 302, 303])
    async def test_redirect_to_get_at_another_origin_takes_no_key_or_credentials(
        self, client: HTTPClient, status: int, serve: Callable[..., Server]
    ) -> None:
        other = serve(_created)
        server = serve(redirecting(status, lambda: f"{other.url}/moved"))
        answer = await client.call("POST", server.url, follow=True, headers=SECRETS, body=b"secret-body")
        assert answer.content == b"ok"
        (arrived,) = other.requests
        assert arrived.startswith(b"GET /moved ")
        assert b"secret" not in arrived
        assert b"idempotency-key" not in arrived.lower()

    @pytest.mark.parametrize("own_key", [True, False])
    async def test_redirect_to_the_same_origin_keeps_key_body_and_credentials(
        self, client: HTTPClient, own_key: bool, serve: Callable[..., Server]
    ) -> None:
        server = serve(redirecting(307, lambda: "/moved"))
        headers = {**SECRETS, **({"Idempotency-Key": '"k-1"'} if own_key else {})}
        answer = await client.call("POST", f"{server.url}/first", follow=True, headers=headers, body=b"{}")
        assert answer.content == b"ok"
        lines = [
            line
            for sent in server.requests
            for line in sent.split(b"\r\n")
            if line.lower().startswith(b"idempotency")
        ]
        assert (len(server.requests), len(lines), len(set(lines))) == (2, 2, 1)
        assert b"secret-api-key" in server.requests[1]
        assert server.requests[1].endswith(b"{}")

    async def test_redirect_to_a_trusted_origin_keeps_body_and_credentials(
        self, client: HTTPClient, serve: Callable[..., Server]
    ) -> None:
        other = serve(_created)
        server = serve(redirecting(307, lambda: f"{other.url}/moved"))
        answer = await client.call(
            "POST", server.url, follow=True, headers=SECRETS, body=b"{}", trusted_origins=[other.url]
        )
        assert answer.content == b"ok"
        assert b"secret-api-key" in other.requests[0]
        assert other.requests[0].endswith(b"{}")

    async def test_later_call_to_another_origin_is_not_taken_for_a_redirect(
        self, client: HTTPClient, serve: Callable[..., Server]
    ) -> None:
        first, second = serve(_created), serve(_created)
        for server in (first, second):
            assert (await client.call("POST", server.url)).status == 201
