"""Edge cases of WSGI: lengths, types, files, and responses that continue after their record."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from wsgi_driver import call, environ_of, validated

from idempotency import Policy, Response, current_claim
from idempotency._core.actions import Refuse
from idempotency._core.errors import MissingKey
from idempotency._core.outcome import encode_response
from idempotency._core.types import Acquired, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.events import Event as IdempotencyEvent
from idempotency.events import FailedAfterRecord
from idempotency.stores.memory import SyncMemoryStore
from idempotency.wsgi import IdempotencyMiddleware, LateClaim, by_environ, claim
from idempotency.wsgi.handler import status_line

App = Callable[[dict[str, Any], Any], Iterable[bytes]]

PLAIN = [("Content-Type", "text/plain")]
PLAIN_BYTES = [(b"content-type", b"text/plain")]


def protect(app: App, *, store: Any = None, **options: Any) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(
        app, store=store or SyncMemoryStore(), tenant=by_environ("REMOTE_USER"), **options
    )


class Charges:
    def __init__(self) -> None:
        self.effects = 0
        self.during: Callable[[], object] = lambda: None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.effects += 1
        self.during()
        start_response("201 Created", PLAIN)
        return [b"charge %d" % self.effects]


# The request.


@pytest.mark.parametrize(
    ("length", "status"),
    [
        pytest.param("+2", 411, id="signed"),
        pytest.param("-1", 411, id="negative"),
        pytest.param("2, 2", 411, id="a_list"),
        pytest.param("2_0", 411, id="underscore"),
        pytest.param("\u00b2", 411, id="another_digit"),
        pytest.param("9" * 5_000, 413, id="too_long_for_int"),
        pytest.param(" 2\t", 201, id="blanks"),
        pytest.param("0" * 5_000 + "2", 201, id="leading_zeros"),
    ],
)
def test_content_length_that_is_not_a_number_is_refused(length: str, status: int) -> None:
    """If it were ignored, a request would run without its body."""
    app = Charges()
    assert call(protect(app), key="k", CONTENT_LENGTH=length).status == status
    assert app.effects == (status == 201)


@pytest.mark.parametrize(
    ("declared", "most", "read"),
    [
        pytest.param("100", 1_000, 100, id="to_its_end"),
        pytest.param("100", 60, 60, id="to_the_bound"),
        pytest.param(None, 1_000, 150, id="without_a_length"),
        pytest.param(None, 60, 71, id="without_a_length_to_the_bound"),
    ],
)
def test_oversized_body_is_drained_up_to_its_length_or_the_bound_after_the_refusal(
    declared: str | None, most: int, read: int
) -> None:
    """Not beyond its length: not every server ends the stream there, and a read would block until the next request."""
    stream = io.BytesIO(b"x" * 150)
    environ = environ_of(
        key="k", CONTENT_LENGTH=declared, **{"wsgi.input": stream, "wsgi.input_terminated": True}
    )
    app = Charges()
    protected = protect(app, policy=Policy(max_request_bytes=10, max_discard_bytes=most))
    begun: list[str] = []
    body = iter(protected(environ, lambda status, headers, exc_info=None: begun.append(status) or print))
    assert b"request-too-large" in next(iter(body))
    assert (begun, stream.tell() <= 11) == (["413 Content Too Large"], True)
    assert list(body) == []
    assert (stream.tell(), app.effects) == (read, 0)


def test_oversized_body_is_drained_when_an_empty_refusal_is_closed() -> None:
    stream = io.BytesIO(b"x" * 150)
    environ = environ_of(key="k", CONTENT_LENGTH="100", **{"wsgi.input": stream})
    policy = Policy(max_request_bytes=10, render=lambda problem: ("text/plain", b""))
    answer: Any = protect(Charges(), policy=policy)(environ, lambda status, headers, exc_info=None: print)
    assert list(answer) == []
    assert stream.tell() <= 11, "the headers are still to be sent"
    answer.close()
    assert stream.tell() == 100


@pytest.mark.parametrize(
    ("prefer_wait", "prefer", "wait"),
    [
        (0, {"HTTP_PREFER": "wait=10"}, 3),
        (0.5, {"HTTP_PREFER": "wait=10"}, 0.5),
        (5, {"HTTP_PREFER": "wait=10"}, 5),
        (5, {"HTTP_PREFER": "wait=1"}, 1),
        (5, {}, 3),
    ],
)
def test_wait_is_the_preferred_one_capped_by_prefer_wait(
    prefer_wait: float, prefer: dict[str, str], wait: float
) -> None:
    protected, asked = protect(Charges(), policy=Policy(wait=3, prefer_wait=prefer_wait)), []

    def begin(ask: Any) -> Refuse:
        asked.append(ask.wait)
        return Refuse(MissingKey())

    protected.engine.begin = begin  # type: ignore[method-assign,assignment]
    call(protected, key="k", **prefer)
    assert asked == [wait]


# The record.


@pytest.mark.rule("E1")
@pytest.mark.parametrize("status", ["201 Created", "503 Busy"])
def test_outcome_is_recorded_or_key_freed_before_start_response(status: str) -> None:
    store, seen = SyncMemoryStore(), []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response(status, PLAIN)
        write(b"one ")
        return [b"two"]

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        seen.append([record.state.value for record in store.scan().records])

    list(protect(app, store=store)(environ_of(key="k"), start_response))
    assert seen == [["completed"] if status.startswith("201") else []]


def completed_by_another(store: SyncMemoryStore, key: StorageKey, fingerprint: Fingerprint) -> None:
    store.forget(key)
    reply = store.acquire(key, fingerprint=fingerprint, owner=Owner(b"o" * 16), lease=30, retention=60)
    assert isinstance(reply, Acquired)
    store.complete(reply.claim, encode_response(Response(200, PLAIN_BYTES, b"another's")), retention=60)


def held_by_another(store: SyncMemoryStore, key: StorageKey, fingerprint: Fingerprint) -> None:
    store.forget(key)
    store.acquire(key, fingerprint=fingerprint, owner=Owner(b"o" * 16), lease=30, retention=60)


def forgotten(store: SyncMemoryStore, key: StorageKey, fingerprint: Fingerprint) -> None:
    store.forget(key)


def held_by_another_request(store: SyncMemoryStore, key: StorageKey, fingerprint: Fingerprint) -> None:
    held_by_another(store, key, Fingerprint(b"f" * 32))


def unreachable(store: SyncMemoryStore, key: StorageKey, fingerprint: Fingerprint) -> None:
    def complete(*_: Any, **__: Any) -> bool:
        raise StoreUnavailable("the store is down")

    store.complete = complete  # type: ignore[method-assign]


@pytest.mark.rule("E8")
@pytest.mark.parametrize(
    ("lose_claim", "response"),
    [
        (completed_by_another, (200, b"another's")),
        (held_by_another, (409, None)),
        (forgotten, (201, b"charge 1")),
        (held_by_another_request, (201, b"charge 1")),
        (unreachable, (201, b"charge 1")),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_response_after_a_lost_claim_is_the_successors_or_its_own(
    lose_claim: Callable[..., None], response: tuple[int, bytes | None], late: bool
) -> None:
    store, app, closed = SyncMemoryStore(), Charges(), []

    def lose_the_claim() -> None:
        (record,) = store.scan().records
        lose_claim(store, record.key, record.fingerprint)

    def claiming(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if late:
            claim(environ, "alice")
        return Closing(app(environ, start_response))

    class Closing(list[bytes]):
        def close(self) -> None:
            closed.append(True)

    app.during = lose_the_claim
    layer = LateClaim(claiming, store=store) if late else protect(claiming, store=store)
    layer.engine.sleep = lambda seconds: None  # between the attempts to record
    answer = call(validated(layer), key="k")
    status, body = response
    assert (answer.status, answer.body) == (status, answer.body if body is None else body)
    assert answer.begun == len(closed) == app.effects == 1
    assert (answer.values("idempotency-expires-in") != []) == (lose_claim is completed_by_another)


# Applications that violate PEP 3333.


@pytest.mark.parametrize("limit", [1_000, 1])
def test_response_body_that_is_not_bytes_raises_and_frees_the_key(limit: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[Any]:
        start_response("200 OK", PLAIN)
        return ["text"]

    store = SyncMemoryStore()
    with pytest.raises(TypeError, match=r"PEP 3333.* sent str"):
        call(protect(app, store=store, policy=Policy(max_response_bytes=limit)), key="k")
    assert store.scan().records == ()


def test_error_page_replaces_a_response_after_an_empty_chunk() -> None:
    """An empty chunk is not sent (PEP 3333), so the response has not begun."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b""
        try:
            raise LookupError
        except LookupError as error:
            start_response("410 Gone", PLAIN, (type(error), error, error.__traceback__))
        yield b"gone"

    protected = protect(app)
    for replayed in (False, True):
        answer = call(protected, key="k")
        assert (answer.status, answer.body, answer.replayed) == (410, b"gone", replayed)


def test_inner_layer_frees_its_key_when_an_outer_late_claim_replays() -> None:
    """The application then ends by `Answered`, which is not an error of the inner layer."""
    inner_store, app = SyncMemoryStore(), Charges()

    def claiming(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        claim(environ, "the team of alice")
        return app(environ, start_response)

    layers = LateClaim(protect(claiming, store=inner_store), store=SyncMemoryStore())
    assert not call(layers, key="k").replayed
    for record in inner_store.scan().records:
        inner_store.forget(record.key)
    assert call(layers, key="k").replayed
    assert (app.effects, inner_store.scan().records, current_claim()) == (1, (), None)


def test_claim_after_the_app_has_returned_is_an_error() -> None:
    """Its response would not be recorded."""
    effects: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield b""
        claim(environ, "alice")
        effects.append(1)

    store = SyncMemoryStore()
    with pytest.raises(RuntimeError, match="claim once"):
        call(LateClaim(app, store=store), key="k")
    assert (effects, store.scan().records, current_claim()) == ([], (), None)


# Responses without a claim.


class File:
    """A file object that a server sends by a system call if it gets this very object."""

    def __init__(self) -> None:
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"file"])

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("layer", ["early", "late"])
@pytest.mark.rule("E6")
def test_unclaimed_response_object_is_returned_to_the_server_unwrapped(layer: str) -> None:
    file = File()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return file

    protected: App = LateClaim(app, store=SyncMemoryStore()) if layer == "late" else protect(app)
    for method, key in (("GET", "k"), ("POST", None)):
        assert protected(environ_of(method, key=key), lambda *_: print) is file
    assert file.closed == 0, "the server closes the file"


@pytest.mark.parametrize("key", ["k", None])
def test_unclaimed_response_is_iterated_once(key: str | None) -> None:
    """An iterable that works in `iter()` would otherwise do its work twice."""
    begun: list[int] = []

    class Answer:
        def __iter__(self) -> Iterator[bytes]:
            begun.append(1)
            return iter([b"text"])

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return Answer()

    assert call(LateClaim(app, store=SyncMemoryStore()), key=key).body == b"text"
    assert len(begun) == 1


@pytest.mark.rule("E6")
def test_claimed_file_response_is_wrapped_and_closed_once() -> None:
    file = File()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return file

    protected = protect(app)
    answer = protected(environ_of(key="k"), lambda *_: print)
    assert answer is not file
    assert b"".join(answer) == b"file"
    answer.close()  # type: ignore[attr-defined]
    answer.close()  # type: ignore[attr-defined]
    assert (file.closed, call(protected, key="k").body) == (1, b"file")


# Responses that continue after their record.


class Streaming:
    """Its response is too long to be recorded; `claims` has the current claim at each of its steps."""

    def __init__(self, failing: bool = False) -> None:
        self.claims: list[Any] = []
        self.failing = failing

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        self.claims.append(current_claim())
        return self

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(3):
            self.claims.append(current_claim())
            yield b"0123456789"
        if self.failing:
            raise LookupError

    def close(self) -> None:
        self.claims.append(current_claim())


@pytest.mark.rule("E10")
def test_current_claim_is_set_until_the_response_is_closed_and_unset_in_the_server() -> None:
    app = Streaming()
    protected = validated(protect(validated(app), policy=Policy(max_response_bytes=10)))
    answer = protected(environ_of(key="k"), lambda *_: print)
    claims_in_the_server = [current_claim() for _ in answer]
    answer.close()  # type: ignore[attr-defined]
    assert app.claims[0] is not None
    assert app.claims == [app.claims[0]] * 5
    assert [*claims_in_the_server, current_claim()] == [None] * 4


def test_failure_of_an_unreplayable_stream_emits_an_event_and_logs_no_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: list[IdempotencyEvent] = []
    protected = protect(Streaming(failing=True), policy=Policy(max_response_bytes=10), hooks=[events.append])
    with caplog.at_level(logging.ERROR), pytest.raises(LookupError):
        call(protected, key="secret-key")
    assert [event.error for event in events if isinstance(event, FailedAfterRecord)] == ["LookupError"]
    assert [record.name for record in caplog.records] == ["idempotency"]
    assert "secret-key" not in caplog.text
    assert call(protected, key="secret-key").status == 409


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (413, "Content Too Large"),
        (414, "URI Too Long"),
        (416, "Range Not Satisfiable"),
        (422, "Unprocessable Content"),
    ],
)
def test_phrases_are_those_of_rfc_9110_on_every_version_of_python(status: int, phrase: str) -> None:
    assert status_line(status) == f"{status} {phrase}"
