"""The httpx transports against a real server that loses responses: one key, one effect, one response."""

from __future__ import annotations

import gzip
import inspect
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, ClassVar, Self

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lossy_shop import Shop, serving
from patience import PATIENCE, until_sync

from idempotency import Policy, always, parse_key
from idempotency.client import AsyncIdempotencyTransport, IdempotencyTransport, quote_key
from idempotency.client.retry import Retry, next_delay, parse_retry_after, worth_retrying

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Shop, str]]:
    shop = Shop()
    with serving(shop) as url:
        yield shop, url


@pytest.fixture
def shop(served: tuple[Shop, str]) -> Shop:
    served[0].reset()
    return served[0]


class Caller:
    """Calls through one library, sync or async; pauses are recorded, and no time passes."""

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


class TestLostResponses:
    async def test_409_of_a_running_duplicate_is_retried_after_its_retry_after(
        self, caller: Caller, shop: Shop
    ) -> None:
        shop.hold = hold = threading.Event()

        def release_at_the_second_pause() -> None:
            if len(caller.pauses) == 2:
                hold.set()
                until_sync(lambda: shop.charges)

        caller.while_pausing = release_at_the_second_pause
        answer = await caller.post(options={"timeout": 0.2})
        assert answer.json() == {"charge": 1}
        assert len(shop.seen) == 3
        assert shop.charges == 1
        assert 1.25 <= caller.pauses[1] <= 4.25  # 409, with Retry-After: 1 to 4


class TestResponses:
    async def test_response_whose_retry_after_exceeds_the_deadline_is_returned_at_once(
        self, caller: Caller, shop: Shop
    ) -> None:
        shop.faults.append((429, [(b"retry-after", b"30")], b"busy"))
        answer = await caller.post()
        assert (answer.status_code, answer.content) == (429, b"busy")
        assert caller.pauses == []

    async def test_last_response_is_returned_when_attempts_are_used_up(
        self, caller: Caller, shop: Shop
    ) -> None:
        shop.faults.extend([503, 503, 503, 500])
        assert (await caller.post()).status_code == 500
        assert len(shop.seen) == 4

    async def test_replayed_error_is_not_retried(self, caller: Caller, shop: Shop) -> None:
        shop.policy, shop.answer = Policy(keep=always), (503, [], b"recorded")
        answer = await caller.post()
        assert answer.headers["idempotency-replayed"] == "true"
        assert answer.content == b"recorded"
        assert len(shop.seen) == 2

    async def test_encoded_response_is_decoded_once(self, caller: Caller, shop: Shop) -> None:
        shop.faults.append((200, [(b"content-encoding", b"gzip")], gzip.compress(b"packed")))
        answer = await caller.post()
        assert answer.content == b"packed"
        assert answer.extensions["http_version"] == b"HTTP/1.1"

    async def test_response_of_unknown_length_is_streamed(self, caller: Caller, shop: Shop) -> None:
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


class TestRequests:
    async def test_request_of_a_response_has_the_key_that_was_sent(self, caller: Caller, shop: Shop) -> None:
        answer = await caller.post()
        ((_, sent, _),) = shop.seen
        assert sent is not None
        assert answer.request.headers["idempotency-key"] == sent

    async def test_retried_upload_keeps_its_multipart_boundary(self, caller: Caller, shop: Shop) -> None:
        shop.faults.append("lost")
        answer = await caller.post(files={"file": ("a.txt", b"content")})
        assert answer.headers["idempotency-replayed"] == "true"
        assert len({body for _, _, body in shop.seen}) == 1

    async def test_deadline_limits_an_attempt_without_a_timeout_of_its_own(
        self, caller: Caller, shop: Shop
    ) -> None:
        shop.faults.append("stall")
        began = time.monotonic()
        with pytest.raises(caller.library.ReadTimeout):
            await caller.post(retry=Retry(timeout=0.2), options={"timeout": None})
        assert time.monotonic() - began < PATIENCE

    async def test_request_of_an_unsupported_protocol_is_not_retried(self, caller: Caller) -> None:
        with pytest.raises(caller.library.UnsupportedProtocol):
            await caller.post("ftp://127.0.0.1/")
        assert caller.pauses == []

    async def test_subclass_of_the_librarys_request_is_accepted(self, caller: Caller, shop: Shop) -> None:
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
    def test_inner_transport_is_entered_and_closed_with_the_outer_one(self) -> None:
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

    def test_client_module_imports_without_httpx_and_httpx2(self) -> None:
        program = (
            "import sys; sys.modules.update(httpx=None, httpx2=None); import idempotency.client; "
            "print(idempotency.client.Retry().attempts)"
        )
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert done.stdout == "4\n"


class TestDelays:
    @given(
        st.integers(1, 2000),
        st.floats(0, 100),
        st.floats(0, 1, exclude_max=True),
        st.none() | st.floats(0, 100),
    )
    def test_delay_is_at_least_retry_after_at_most_max_delay_and_within_the_deadline(
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

    def test_retry_error_names_every_invalid_setting(self) -> None:
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
            ("9" * 20, 1e20),
            ("9" * 400, math.inf),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
            ("Sunday, 06-Nov-94 08:50:07 GMT", 30.0),
            ("Sun Nov  6 08:50:07 1994", 30.0),
            ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
            ("Sun, 99 Nov 1994 08:00:00 GMT", None),
        ],
    )
    def test_retry_after_is_parsed_in_every_form(self, value: str | None, seconds: float | None) -> None:
        assert parse_retry_after(value, now=datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)) == seconds

    def test_replay_header_of_either_name_prevents_a_retry(self) -> None:
        for name in ("idempotency-replayed", "idempotent-replayed"):
            assert not worth_retrying(Retry(), 503, {name: "True"})
            assert worth_retrying(Retry(), 503, {name: "false"})


class TestKeys:
    @given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1).filter(str.strip))
    def test_server_reads_a_quoted_key_back_unchanged(self, key: str) -> None:
        assert parse_key([quote_key(key).encode()], max_chars=10_000, strict=True) == key

    @pytest.mark.parametrize("key", ["", "é", "a\nb", "\x7f", "a\r\nX-Evil: 1"])
    def test_key_that_is_not_printable_ascii_is_refused(self, key: str) -> None:
        with pytest.raises(ValueError, match="printable ASCII"):
            quote_key(key)


def test_invalid_trusted_origin_is_refused_at_set_up() -> None:
    for wrong in [
        "api.example",
        "https://api.example/path",
        "https://u:p@api.example",
        "https://a:x",
        "https://müller.example",
        "",
    ]:
        with pytest.raises(ValueError, match="scheme and a host") as refused:
            IdempotencyTransport(httpx.MockTransport(lambda _: httpx.Response(200)), trusted_origins=[wrong])
        assert "u:p" not in str(refused.value)
    with pytest.raises(TypeError, match="collection"):
        IdempotencyTransport(
            httpx.MockTransport(lambda _: httpx.Response(200)), trusted_origins="https://api.example"
        )


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_trusted_origin_matches_by_its_punycode_name(library: ModuleType) -> None:
    def answer(request: Any) -> Any:
        if request.url.raw_host == b"shop.example":
            return library.Response(307, headers={"location": "https://xn--mller-kva.example/charges"})
        return library.Response(201)

    for trusted in ["https://xn--mller-kva.example"], ["https://xn--strae-oqa.example"]:
        transport = IdempotencyTransport(library.MockTransport(answer), trusted_origins=trusted)
        with library.Client(transport=transport, follow_redirects=True) as client:
            if trusted == ["https://xn--mller-kva.example"]:
                assert client.post("https://shop.example/charges").status_code == 201
            else:
                with pytest.raises(library.RequestError, match="trusted_origins"):
                    client.post("https://shop.example/charges")


def test_request_object_that_is_sent_twice_keeps_its_key_and_is_no_redirect() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Idempotency-Key"])
        return httpx.Response(201)

    with httpx.Client(transport=IdempotencyTransport(httpx.MockTransport(answer))) as client:
        request = client.build_request("POST", "https://shop.example/charges")
        client.send(request)
        client.send(request)
    assert len(set(seen)) == 1
    assert len(seen) == 2
