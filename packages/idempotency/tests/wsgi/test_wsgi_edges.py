"""Edges of WSGI: lengths, types, files, and an answer that goes on after its record."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from threading import Event, Thread
from typing import Any

import pytest
from wsgi_driver import Answer, call, environ_of, validated

from idempotency import Policy, Response, current_claim
from idempotency._core.outcome import encode_response
from idempotency._core.types import Acquired, Fingerprint, Owner, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.events import Event as IdempotencyEvent
from idempotency.events import FailedAfterRecord
from idempotency.stores.memory import SyncMemoryStore
from idempotency.wsgi import IdempotencyMiddleware, LateClaim, by_environ, claim

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
def test_a_length_is_a_number_or_the_request_is_refused(length: str, status: int) -> None:
    """Taken for no length, it would let a request run without its body."""
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
def test_what_comes_of_a_body_that_is_too_large_is_dropped_once_the_refusal_is_sent(
    declared: str | None, most: int, read: int
) -> None:
    """Not beyond its length: not every server ends the stream there, and a read would wait for the next request."""
    stream = io.BytesIO(b"x" * 150)
    environ = environ_of(
        key="k", CONTENT_LENGTH=declared, **{"wsgi.input": stream, "wsgi.input_terminated": True}
    )
    app = Charges()
    protected = protect(app, policy=Policy(max_request_bytes=10, max_discard_bytes=most))
    begun: list[str] = []
    body = iter(protected(environ, lambda status, headers, exc_info=None: begun.append(status) or print))
    assert b"request-too-large" in next(iter(body))
    assert (begun, stream.tell() <= 11) == (["413 Request Entity Too Large"], True)
    assert list(body) == []
    assert (stream.tell(), app.effects) == (read, 0)


def test_what_comes_of_a_body_is_dropped_when_a_refusal_without_a_body_is_closed() -> None:
    stream = io.BytesIO(b"x" * 150)
    environ = environ_of(key="k", CONTENT_LENGTH="100", **{"wsgi.input": stream})
    policy = Policy(max_request_bytes=10, render=lambda problem: ("text/plain", b""))
    answer: Any = protect(Charges(), policy=policy)(environ, lambda status, headers, exc_info=None: print)
    assert list(answer) == []
    assert stream.tell() <= 11, "the headers are still to be sent"
    answer.close()
    assert stream.tell() == 100


def test_a_client_waits_as_long_as_it_prefers_within_what_the_policy_allows() -> None:
    app, inside, go_on = Charges(), Event(), Event()

    def hold() -> None:
        inside.set()
        assert go_on.wait(30)

    app.during = hold
    protected = protect(app, policy=Policy(prefer_wait=20))
    answers: list[Answer] = []
    first = Thread(target=lambda: answers.append(call(protected, key="k")))
    first.start()
    assert inside.wait(30)
    assert call(protected, key="k").status == 409, "without the preference nobody waits"
    second = Thread(target=lambda: answers.append(call(protected, key="k", HTTP_PREFER="wait=10")))
    second.start()
    go_on.set()
    first.join(30)
    second.join(30)
    assert sorted(answer.replayed for answer in answers) == [False, True]
    assert app.effects == 1


# The record.


@pytest.mark.rule("E1")
@pytest.mark.parametrize("status", ["201 Created", "503 Busy"])
def test_an_outcome_is_recorded_or_its_key_freed_before_the_answer_begins(status: str) -> None:
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


def running_elsewhere(store: SyncMemoryStore, key: StorageKey, fingerprint: Fingerprint) -> None:
    store.forget(key)
    store.acquire(key, fingerprint=fingerprint, owner=Owner(b"o" * 16), lease=30, retention=60)


def forgotten(store: SyncMemoryStore, key: StorageKey, fingerprint: Fingerprint) -> None:
    store.forget(key)


def of_another_request(store: SyncMemoryStore, key: StorageKey, fingerprint: Fingerprint) -> None:
    running_elsewhere(store, key, Fingerprint(b"f" * 32))


def unreachable(store: SyncMemoryStore, key: StorageKey, fingerprint: Fingerprint) -> None:
    def complete(*_: Any, **__: Any) -> bool:
        raise StoreUnavailable("the store is down")

    store.complete = complete  # type: ignore[method-assign]


@pytest.mark.rule("E8")
@pytest.mark.parametrize(
    ("happens", "answered"),
    [
        (completed_by_another, (200, b"another's")),
        (running_elsewhere, (409, None)),
        (forgotten, (201, b"charge 1")),
        (of_another_request, (201, b"charge 1")),
        (unreachable, (201, b"charge 1")),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_an_answer_whose_record_fails_is_what_the_record_says_or_its_own(
    happens: Callable[..., None], answered: tuple[int, bytes | None], late: bool
) -> None:
    store, app, closed = SyncMemoryStore(), Charges(), []

    def lose_the_claim() -> None:
        (record,) = store.scan().records
        happens(store, record.key, record.fingerprint)

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
    status, body = answered
    assert (answer.status, answer.body) == (status, answer.body if body is None else body)
    assert answer.begun == len(closed) == app.effects == 1
    assert (answer.values("idempotency-expires-in") != []) == (happens is completed_by_another)


# An application that breaks the protocol.


@pytest.mark.parametrize("limit", [1_000, 1])
def test_a_body_that_is_not_bytes_frees_the_key_even_where_it_is_too_long_to_be_kept(limit: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[Any]:
        start_response("200 OK", PLAIN)
        return ["text"]

    store = SyncMemoryStore()
    with pytest.raises(TypeError, match=r"PEP 3333.* sent str"):
        call(protect(app, store=store, policy=Policy(max_response_bytes=limit)), key="k")
    assert store.scan().records == ()


def test_an_error_page_may_replace_an_answer_of_which_no_byte_was_sent() -> None:
    """An empty part is not sent (PEP 3333), so that it begins no answer."""

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


def test_a_layer_inside_frees_its_key_where_the_claim_outside_has_an_answer_already() -> None:
    """What ends the application is then `Answered`, and nothing of this layer."""
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


def test_a_claim_once_the_application_has_returned_is_refused() -> None:
    """Nobody would record its answer."""
    effects: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield b""
        claim(environ, "alice")
        effects.append(1)

    store = SyncMemoryStore()
    with pytest.raises(RuntimeError, match="claim once"):
        call(LateClaim(app, store=store), key="k")
    assert (effects, store.scan().records, current_claim()) == ([], (), None)


# An answer that is not claimed.


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
def test_an_answer_without_a_claim_reaches_the_server_as_it_is(layer: str) -> None:
    file = File()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return file

    protected: App = LateClaim(app, store=SyncMemoryStore()) if layer == "late" else protect(app)
    for method, key in (("GET", "k"), ("POST", None)):
        assert protected(environ_of(method, key=key), lambda *_: print) is file
    assert file.closed == 0, "closing it is for the server"


@pytest.mark.parametrize("key", ["k", None])
def test_an_answer_without_a_claim_is_iterated_by_the_server_alone(key: str | None) -> None:
    """An iterable that begins its work in `iter()` would do it twice."""
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
def test_an_answer_under_a_claim_is_never_the_file_itself() -> None:
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


# An answer that goes on after its record.


class Streaming:
    """Its answer is too long to be kept; what it does then is told in `claims`."""

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
def test_a_handler_runs_under_its_claim_until_it_is_closed_and_its_caller_never_does() -> None:
    app = Streaming()
    protected = validated(protect(validated(app), policy=Policy(max_response_bytes=10)))
    answer = protected(environ_of(key="k"), lambda *_: print)
    claims_of_the_server = [current_claim() for _ in answer]
    answer.close()  # type: ignore[attr-defined]
    assert app.claims[0] is not None
    assert app.claims == [app.claims[0]] * 5
    assert [*claims_of_the_server, current_claim()] == [None] * 4


def test_a_stream_that_fails_after_it_was_recorded_as_done_is_told(caplog: pytest.LogCaptureFixture) -> None:
    events: list[IdempotencyEvent] = []
    protected = protect(Streaming(failing=True), policy=Policy(max_response_bytes=10), hooks=[events.append])
    with caplog.at_level(logging.ERROR), pytest.raises(LookupError):
        call(protected, key="secret-key")
    assert [event.error for event in events if isinstance(event, FailedAfterRecord)] == ["LookupError"]
    assert [record.name for record in caplog.records] == ["idempotency"]
    assert "secret-key" not in caplog.text
    assert call(protected, key="secret-key").status == 409
