"""The client's transports against a real server that loses answers: one effect, one key, one answer."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import ModuleType
from typing import Any, ClassVar, Self

import httpx
import httpx2
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from idempotency import IdempotencyMiddleware, Policy, always, one_tenant, parse_key
from idempotency.client import AsyncIdempotencyTransport, IdempotencyTransport, quote_key
from idempotency.client.retry import Retry, next_delay, parse_retry_after, worth_retrying
from idempotency.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


class Shop:
    """
    A shop behind the middleware, behind a network that does what `faults` says, one for each request.

    Faults: None; "lost" (the answer is), "half" (of it is), "stall" (it never comes), a status, or a whole answer.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.faults: deque[Any] = deque()
        self.seen: list[tuple[str, str | None, bytes]] = []
        self.charges = 0
        self.policy = Policy()
        self.answer: tuple[int, list[tuple[bytes, bytes]], bytes] = (201, [], b'{"charge": 1}')
        self.hold: threading.Event | None = None
        self._guarded = IdempotencyMiddleware(
            self._charge, store=MemoryStore(), tenant=one_tenant(), policy=lambda _: self.policy
        )

    async def _charge(self, scope: Any, receive: Any, send: Any) -> None:
        hold, self.hold = self.hold, None
        while hold is not None and not hold.is_set():
            await asyncio.sleep(0.005)
        self.charges += 1
        await self._send(send, *self.answer)

    async def _send(self, send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        chunks: list[bytes] = []
        more = True
        while more:
            message = await receive()
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(chunks)
        headers = dict(scope["headers"])
        key = headers.get(b"idempotency-key")
        self.seen.append((scope["method"], None if key is None else key.decode(), body))
        messages: list[Any] = []
        replayed = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive_again() -> Any:
            return next(replayed, None) or await receive()

        async def keep(message: Any) -> None:
            messages.append(message)

        fault = self.faults.popleft() if self.faults else None
        match fault:
            case None:
                await self._guarded(scope, receive_again, send)
            case int():
                await self._send(send, fault, [], b"no")
            case tuple():
                await self._send(send, *fault)
            case "lost" | "half":
                await self._guarded(scope, receive_again, keep)
                if fault == "half":
                    await send(messages[0])
                    await send({"type": "http.response.body", "body": b'{"ch', "more_body": True})
                    await asyncio.sleep(0.01)
                receive.__self__.transport.abort()
            case "stall":
                await self._guarded(scope, receive_again, keep)
                while (await receive())["type"] != "http.disconnect":
                    pass
            case threading.Event():  # stream: one chunk, and the rest once the event is set
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"first", "more_body": True})
                while not fault.is_set():
                    await asyncio.sleep(0.005)
                await send({"type": "http.response.body", "body": b"second"})


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Shop, str]]:
    shop = Shop()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        shop, http="h11", lifespan="off", log_config=None, access_log=False, date_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield shop, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)
    listener.close()
    assert not thread.is_alive()


@pytest.fixture
def shop(served: tuple[Shop, str]) -> Shop:
    served[0].reset()
    return served[0]


class Caller:
    """One library, sync or async, with pauses that are noted and not slept."""

    def __init__(self, library: ModuleType, kind: str, url: str) -> None:
        self.library: Any = library
        self.kind = kind
        self.url = url
        self.pauses: list[float] = []
        self.while_pausing: Callable[[], None] = lambda: None

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.while_pausing()

    async def _pause_later(self, seconds: float) -> None:
        self._pause(seconds)

    def client(self, *, retry: Retry | None = None, **options: Any) -> Any:
        settings: dict[str, Any] = {"chance": lambda: 0.5, "retry": retry or Retry()}
        if self.kind == "sync":
            transport = IdempotencyTransport(
                self.library.HTTPTransport(verify=False), sleep=self._pause, **settings
            )
            return self.library.Client(transport=transport, base_url=self.url, **options)
        later = AsyncIdempotencyTransport(
            self.library.AsyncHTTPTransport(verify=False), sleep=self._pause_later, **settings
        )
        return self.library.AsyncClient(transport=later, base_url=self.url, **options)

    async def request(
        self,
        method: str,
        path: str = "/charges",
        *,
        retry: Retry | None = None,
        options: Any = None,
        **request: Any,
    ) -> Any:
        client = self.client(retry=retry, **(options or {}))
        try:
            answer = client.request(method, path, **request)
            return await answer if inspect.isawaitable(answer) else answer
        finally:
            closing = client.aclose() if self.kind == "async" else client.close()
            if closing is not None:
                await closing

    async def post(self, path: str = "/charges", **request: Any) -> Any:
        return await self.request("POST", path, **request)


@pytest.fixture(params=["sync", "asyncio", "trio"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def anyio_backend(kind: str) -> str:
    return "asyncio" if kind == "sync" else kind


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def caller(request: pytest.FixtureRequest, kind: str, served: tuple[Shop, str]) -> Caller:
    return Caller(request.param, "sync" if kind == "sync" else "async", served[1])


class TestLostAnswers:
    @pytest.mark.parametrize("fault", ["lost", "half"])
    async def test_an_answer_lost_after_the_effect_is_replayed(
        self, caller: Caller, shop: Shop, fault: str
    ) -> None:
        shop.faults.extend([fault, fault])
        answer = await caller.post(json={"cents": 100})
        assert (answer.status_code, answer.json()) == (201, {"charge": 1})
        assert answer.headers["idempotency-replayed"] == "true"
        assert shop.charges == 1
        keys = {key for _, key, _ in shop.seen}
        assert len(keys) == 1
        assert len({body for _, _, body in shop.seen}) == 1
        assert caller.pauses == [0.125, 0.25]

    async def test_an_answer_that_never_comes_is_asked_for_again(self, caller: Caller, shop: Shop) -> None:
        shop.faults.append("stall")
        answer = await caller.post(options={"timeout": 0.2})
        assert answer.json() == {"charge": 1}
        assert shop.charges == 1

    async def test_a_duplicate_that_still_runs_is_waited_for(self, caller: Caller, shop: Shop) -> None:
        shop.hold = hold = threading.Event()

        def release_at_the_second_pause() -> None:
            if len(caller.pauses) == 2:
                hold.set()
                while not shop.charges:
                    time.sleep(0.005)

        caller.while_pausing = release_at_the_second_pause
        answer = await caller.post(options={"timeout": 0.2})
        assert answer.json() == {"charge": 1}
        assert len(shop.seen) == 3
        assert shop.charges == 1
        assert 1.25 <= caller.pauses[1] <= 4.25  # 409, with Retry-After: 1 to 4

    async def test_a_connection_refused_is_tried_again_and_then_told(self, caller: Caller) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(caller.library.ConnectError) as caught:
            await caller.post(f"http://127.0.0.1:{port}/", retry=Retry(attempts=3))
        assert len(caller.pauses) == 2
        assert "gave up after 3 attempts" in caught.value.__notes__[0]


class TestAnswers:
    async def test_transient_answers_are_retried_with_growing_pauses(
        self, caller: Caller, shop: Shop
    ) -> None:
        shop.faults.extend([503, 500, 502])
        answer = await caller.post()
        assert answer.status_code == 201
        assert caller.pauses == [0.125, 0.25, 0.5]
        assert len({key for _, key, _ in shop.seen}) == 1

    @pytest.mark.parametrize("status", [200, 400, 401, 404, 413, 422, 501])
    async def test_final_answers_are_not(self, caller: Caller, shop: Shop, status: int) -> None:
        shop.faults.append(status)
        assert (await caller.post()).status_code == status
        assert len(shop.seen) == 1

    async def test_the_server_says_when_to_come_back(self, caller: Caller, shop: Shop) -> None:
        now = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)  # a server whose clock is wrong
        dates = [(b"date", _http_date(now)), (b"retry-after", _http_date(now + timedelta(seconds=9)))]
        shop.faults.extend([(429, [(b"retry-after", b"7")], b""), (503, dates, b"")])
        assert (await caller.post()).status_code == 201
        assert caller.pauses == [7.125, 9.25]

    async def test_a_wait_beyond_the_deadline_is_not_begun(self, caller: Caller, shop: Shop) -> None:
        shop.faults.append((429, [(b"retry-after", b"30")], b"busy"))
        answer = await caller.post()
        assert (answer.status_code, answer.content) == (429, b"busy")
        assert caller.pauses == []

    async def test_when_attempts_are_used_up_the_last_answer_is_the_callers(
        self, caller: Caller, shop: Shop
    ) -> None:
        shop.faults.extend([503, 503, 503, 500])
        assert (await caller.post()).status_code == 500
        assert len(shop.seen) == 4

    async def test_a_replayed_error_is_final(self, caller: Caller, shop: Shop) -> None:
        shop.policy, shop.answer = Policy(keep=always), (503, [], b"recorded")
        answer = await caller.post()
        assert answer.headers["idempotency-replayed"] == "true"
        assert answer.content == b"recorded"
        assert len(shop.seen) == 2

    async def test_an_operation_that_is_done_and_whose_answer_was_not_kept_is_final(
        self, caller: Caller, shop: Shop
    ) -> None:
        shop.policy = Policy(max_response_bytes=3)
        shop.faults.append("lost")
        answer = await caller.post()
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:problem:idempotency:not-replayable")
        assert len(shop.seen) == 2
        assert shop.charges == 1

    async def test_an_encoded_answer_is_decoded_once(self, caller: Caller, shop: Shop) -> None:
        shop.faults.append((200, [(b"content-encoding", b"gzip")], gzip.compress(b"packed")))
        answer = await caller.post()
        assert answer.content == b"packed"
        assert answer.extensions["http_version"] == b"HTTP/1.1"

    async def test_an_answer_of_unknown_length_is_streamed(self, caller: Caller, shop: Shop) -> None:
        rest = threading.Event()
        shop.faults.append(rest)
        chunks = []
        if caller.kind == "sync":
            with caller.client() as client, client.stream("POST", "/charges") as answer:
                for chunk in answer.iter_bytes():
                    chunks.append(chunk)
                    rest.set()
        else:
            async with caller.client() as client, client.stream("POST", "/charges") as answer:
                async for chunk in answer.aiter_bytes():
                    chunks.append(chunk)
                    rest.set()
        assert chunks == [b"first", b"second"]


def _http_date(moment: datetime) -> bytes:
    return format_datetime(moment, usegmt=True).encode()


class TestRequests:
    async def test_each_call_has_a_key_of_its_own_in_quotes(self, caller: Caller, shop: Shop) -> None:
        answers = [await caller.post() for _ in range(2)]
        (_, first, _), (_, second, _) = shop.seen
        assert first is not None
        assert first != second
        assert first[0] == first[-1] == '"'
        assert len(parse_key([first.encode()], strict=True) or "") == 36
        assert answers[0].request.headers["idempotency-key"] == first

    async def test_the_callers_own_key_is_sent_as_it_is(self, caller: Caller, shop: Shop) -> None:
        shop.faults.extend([503, 503])
        await caller.post(headers={"idempotency-key": "order-1"})
        assert [key for _, key, _ in shop.seen] == ["order-1"] * 3

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
    async def test_other_methods_pass_untouched(self, caller: Caller, shop: Shop, method: str) -> None:
        shop.faults.extend([503, 503])
        assert (await caller.request(method)).status_code == 503
        assert shop.seen == [(method, None, b"")]

    async def test_a_streamed_body_is_read_once_and_sent_whole_each_time(
        self, caller: Caller, shop: Shop
    ) -> None:
        reads = []

        def sync_chunks() -> Iterator[bytes]:
            reads.append(1)
            yield b"one,"
            yield b"two"

        async def chunks() -> Any:
            for chunk in sync_chunks():
                yield chunk

        shop.faults.extend(["lost", 503])
        await caller.post(content=sync_chunks() if caller.kind == "sync" else chunks())
        assert [body for _, _, body in shop.seen] == [b"one,two"] * 3
        assert reads == [1]

    async def test_an_upload_keeps_its_boundary(self, caller: Caller, shop: Shop) -> None:
        shop.faults.append("lost")
        answer = await caller.post(files={"file": ("a.txt", b"content")})
        assert answer.headers["idempotency-replayed"] == "true"
        assert len({body for _, _, body in shop.seen}) == 1

    async def test_a_redirect_that_keeps_the_method_keeps_the_key(self, caller: Caller, shop: Shop) -> None:
        shop.faults.append((307, [(b"location", b"/moved")], b""))
        answer = await caller.post(json={}, options={"follow_redirects": True})
        assert answer.status_code == 201
        assert len(shop.seen) == 2
        assert len({key for _, key, _ in shop.seen}) == 1

    async def test_the_deadline_cuts_the_timeouts_of_each_attempt(self, caller: Caller, shop: Shop) -> None:
        shop.faults.append("stall")
        began = time.monotonic()
        with pytest.raises(caller.library.ReadTimeout):
            await caller.post(retry=Retry(timeout=0.2), options={"timeout": None})
        assert time.monotonic() - began < 5

    async def test_a_request_that_cannot_be_sent_is_not_retried(self, caller: Caller) -> None:
        with pytest.raises(caller.library.UnsupportedProtocol):
            await caller.post("ftp://127.0.0.1/")
        assert caller.pauses == []

    async def test_a_subclass_of_the_librarys_request_is_known(self, caller: Caller, shop: Shop) -> None:
        class OwnRequest(caller.library.Request):  # type: ignore[misc]
            pass

        shop.faults.append("lost")
        client = caller.client()
        if caller.kind == "sync":
            with client:
                answer = client.send(OwnRequest("POST", caller.url))
        else:
            async with client:
                answer = await client.send(OwnRequest("POST", caller.url))
        assert answer.status_code == 201


class TestLifetime:
    def test_the_inner_transport_is_opened_and_closed_with_it(self) -> None:
        class Inner(httpx.BaseTransport):
            states: ClassVar[list[str]] = []

            def __enter__(self) -> Self:
                self.states.append("entered")
                return self

            def __exit__(self, *_: object) -> None:
                self.states.append("left")

            def close(self) -> None:
                self.states.append("closed")

        with httpx.Client(transport=IdempotencyTransport(Inner())):
            assert Inner.states == ["entered"]
        assert Inner.states == ["entered", "left"]
        httpx.Client(transport=IdempotencyTransport(Inner())).close()
        assert Inner.states[2:] == ["closed"]

    def test_the_module_needs_neither_library(self) -> None:
        program = (
            "import sys; sys.modules.update(httpx=None, httpx2=None); import idempotency.client; "
            "print(idempotency.client.Retry().attempts)"
        )
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert done.stdout == "4\n"


class TestPace:
    @given(
        st.integers(1, 2000),
        st.floats(0, 100),
        st.floats(0, 1, exclude_max=True),
        st.none() | st.floats(0, 100),
    )
    def test_no_pause_is_shorter_than_asked_longer_than_allowed_or_past_the_deadline(
        self, attempt: int, elapsed: float, chance: float, retry_after: float | None
    ) -> None:
        retry = Retry(attempts=1000)
        delay = next_delay(retry, attempt=attempt, elapsed=elapsed, chance=chance, retry_after=retry_after)
        least = retry_after or 0.0
        if delay is None:
            assert attempt >= 1000 or elapsed + least + retry.max_delay >= retry.timeout
        else:
            assert least <= delay <= least + min(retry.max_delay, retry.first_delay * 2.0 ** (attempt - 1))
            assert attempt < 1000
            assert elapsed + delay < retry.timeout

    def test_settings_that_cannot_work_are_named_together(self) -> None:
        with pytest.raises(ValueError, match="timeout must be > 0; attempts must be at least 1; max_delay"):
            Retry(attempts=0, timeout=0.0, first_delay=1.0, max_delay=0.5)

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (None, None),
            ("0", 0.0),
            (" 5 ", 5.0),
            ("-1", None),
            ("1.5", None),
            ("9" * 20, None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
            ("Sunday, 06-Nov-94 08:50:07 GMT", 30.0),
            ("Sun Nov  6 08:50:07 1994", 30.0),
            ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
            ("Sun, 99 Nov 1994 08:00:00 GMT", None),
        ],
    )
    def test_retry_after_is_read_in_every_form_and_never_misread(
        self, value: str | None, seconds: float | None
    ) -> None:
        assert parse_retry_after(value, now=datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)) == seconds

    def test_a_replay_is_final_in_every_spelling(self) -> None:
        for name in ("idempotency-replayed", "idempotent-replayed"):
            assert not worth_retrying(Retry(), 503, {name: "True"})
            assert worth_retrying(Retry(), 503, {name: "false"})


class TestKeys:
    @given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1).filter(str.strip))
    def test_a_quoted_key_is_read_back_by_the_server(self, key: str) -> None:
        assert parse_key([quote_key(key).encode()], max_chars=10_000, strict=True) == key

    @pytest.mark.parametrize("key", ["", "é", "a\nb", "\x7f", "a\r\nX-Evil: 1"])
    def test_a_key_that_no_header_can_carry_is_refused(self, key: str) -> None:
        with pytest.raises(ValueError, match="printable ASCII"):
            quote_key(key)
