"""Tests of the WSGI middleware with clocks, hooks and threads of their own; `test_behaviours` has the others."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from threading import Barrier, Event, Thread
from typing import Any

import pytest
from greenlet import GreenletExit
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE
from wsgi_driver import Answer, call, validated

from idempotency import Policy, Response, current_claim
from idempotency.errors import InvalidKey, MissingTenant
from idempotency.events import Event as IdempotencyEvent
from idempotency.events import FailedAfterRecord, Refused, Replayed, Settled
from idempotency.stores.memory import SyncMemoryStore
from idempotency.wsgi import IdempotencyMiddleware, LateClaim, by_environ, claim

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


class Charges:
    """An application that counts its effects."""

    def __init__(self, status: str = "201 Created", headers: list[tuple[str, str]] | None = None) -> None:
        self.effects = 0
        self.closed = 0
        self.status = status
        self.headers = headers or [("Content-Type", "text/plain"), ("Set-Cookie", "session=secret")]
        self.bodies: list[bytes] = []
        self.during: Callable[[dict[str, Any]], object] = lambda environ: None  # called before the response

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.effects += 1
        self.bodies.append(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        self.during(environ)
        start_response(self.status, list(self.headers))
        return _Chunks(self, [b"charge ", str(self.effects).encode()])


class _Chunks:
    def __init__(self, app: Charges, chunks: list[bytes]) -> None:
        self._app = app
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._app.closed += 1


def protect(app: App, *, store: Any = None, **options: Any) -> App:
    options = {"tenant": by_environ("REMOTE_USER")} | options
    store = SyncMemoryStore() if store is None else store
    return validated(IdempotencyMiddleware(validated(app), store=store, **options))


@pytest.mark.parametrize("key", ["", "a, b", '"a", "b"', '"open', "k" * 256])
def test_header_that_is_not_one_key_is_refused(key: str) -> None:
    app = Charges()
    answer = call(protect(app), key=key)
    assert (answer.status, answer.values("content-type")) == (400, ["application/problem+json"])
    assert app.effects == 0


@pytest.mark.parametrize(
    "change",
    [
        {"body": b'{"other": 1}'},
        {"path": "/refunds"},
        {"query": "a=1"},
        {"method": "PATCH"},
        {"CONTENT_TYPE": "text/plain"},
    ],
)
def test_other_request_under_the_same_key_is_a_mismatch(change: dict[str, Any]) -> None:
    app = Charges()
    protected = protect(app)
    call(protected, key="k")
    assert call(protected, key="k", **change).status == 422
    assert app.effects == 1


def test_mount_path_is_part_of_the_operation() -> None:
    protected = protect(Charges())
    call(protected, key="k", path="/charges")
    assert call(protected, key="k", path="/charges", SCRIPT_NAME="/v2").status == 422


def test_app_reads_the_body_as_it_was_sent() -> None:
    app = Charges()
    call(protect(app), key="k", body=bytes(range(256)) * 500)
    assert app.bodies == [bytes(range(256)) * 500]


def test_body_of_unknown_length_is_refused_with_411_unless_the_server_ends_the_input() -> None:
    app = Charges()
    answer = call(protect(app), key="k", CONTENT_LENGTH=None, HTTP_TRANSFER_ENCODING="chunked")
    assert (answer.status, app.effects) == (411, 0)


def test_client_disconnect_before_complete_body_runs_and_claims_nothing() -> None:
    app, store = Charges(), SyncMemoryStore()
    answer = call(protect(app, store=store), key="k", body=b"half", CONTENT_LENGTH="100")
    assert (answer.status, app.effects, store.scan().records) == (400, 0, ())


@pytest.mark.parametrize("declared", ["6", None])
def test_body_over_the_limit_is_refused_and_one_at_the_limit_is_not(declared: str | None) -> None:
    app = Charges()
    protected = protect(app, policy=Policy(max_request_bytes=5))
    answer = call(
        protected, key="k", body=b"x" * 6, CONTENT_LENGTH=declared, **{"wsgi.input_terminated": True}
    )
    assert (answer.status, app.effects) == (413, 0)
    assert call(protected, key="k", body=b"x" * 5).status == 201


def test_body_that_does_not_arrive_in_time_is_refused_with_408() -> None:
    app = Charges()
    middleware = IdempotencyMiddleware(app, store=SyncMemoryStore(), tenant=by_environ("REMOTE_USER"))
    times = iter([0.0, 0.0, 31.0])
    middleware.engine.monotonic = lambda: next(times)
    assert call(middleware, key="k", body=b"x" * 100_000).status == 408
    assert app.effects == 0


@pytest.mark.rule("E4")
@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, GeneratorExit, GreenletExit])
def test_base_exception_leaves_the_claim_to_its_lease(ending: type[BaseException]) -> None:
    app, store, events = Charges(), SyncMemoryStore(), []

    def exit_worker(environ: dict[str, Any]) -> None:
        raise ending

    app.during = exit_worker
    protected = IdempotencyMiddleware(
        app, store=store, tenant=by_environ("REMOTE_USER"), hooks=[events.append]
    )
    with pytest.raises(ending):
        call(protected, key="k")
    assert [event.result for event in events if isinstance(event, Settled)] == ["abandoned"]
    assert call(protected, key="k").status == 409


def test_concurrent_duplicate_gets_409_or_waits_as_the_policy_says() -> None:
    app, inside, go_on = Charges(), Event(), Event()

    def hold(environ: dict[str, Any]) -> None:
        inside.set()
        assert go_on.wait(30)

    app.during = hold
    store = SyncMemoryStore()
    protected = protect(app, store=store)
    waiting = protect(app, store=store, policy=Policy(wait=PATIENCE))
    answers: list[Answer] = []
    threads = [Thread(target=lambda: answers.append(call(protected, key="k")))]
    threads[0].start()
    assert inside.wait(30)
    refused = call(protected, key="k")
    threads.append(Thread(target=lambda: answers.append(call(waiting, key="k"))))
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert refused.status == 409
    assert int(refused.values("retry-after")[0]) >= 1
    assert [answer.body for answer in answers] == [b"charge 1", b"charge 1"]
    assert app.effects == 1


def test_simultaneous_duplicates_have_one_effect() -> None:
    app, barrier = Charges(), Barrier(8)
    protected = protect(app)
    answers: list[Answer] = []

    def send() -> None:
        barrier.wait(30)
        answers.append(call(protected, key="k"))

    threads = [Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 8
    assert {answer.status for answer in answers} <= {201, 409}
    assert app.effects == 1


def test_response_over_the_limit_is_streamed_chunk_by_chunk_and_its_duplicate_gets_409() -> None:
    produced: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        for number in range(4):
            produced.append(number)
            yield b"12345"

    protected = protect(app, policy=Policy(max_response_bytes=7))
    begun: list[str] = []
    body = protected(
        _environ("k"), lambda status, headers, exc_info=None: begun.append(status) or (lambda _: None)
    )
    chunks = iter(body)
    assert (begun, produced) == (["200 OK"], [0, 1])
    assert b"".join(chunks) == b"12345" * 4
    body.close()  # type: ignore[attr-defined]
    assert call(protected, key="k").status == 409


@pytest.mark.rule("E2")
def test_stream_longer_than_max_hold_is_sent_and_its_duplicate_gets_409() -> None:
    now = [0.0]

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        for chunk in (b"a", b"b", b"c"):
            yield chunk
            now[0] += 4.0

    middleware = IdempotencyMiddleware(app, store=SyncMemoryStore(), tenant=by_environ("REMOTE_USER"))
    middleware.engine.monotonic = lambda: now[0]
    assert call(middleware, key="k").body == b"abc"
    assert call(middleware, key="k").status == 409


@pytest.mark.parametrize(
    "app",
    [
        lambda environ, start_response: [b"no start_response"],
        lambda environ, start_response: [],
        lambda environ, start_response: (start_response("200 OK", []), start_response("200 OK", []), [b""])[
            2
        ],
    ],
)
def test_app_that_violates_pep_3333_frees_the_key(app: App) -> None:
    store = SyncMemoryStore()
    protected = IdempotencyMiddleware(app, store=store, tenant=by_environ("REMOTE_USER"))
    with pytest.raises(AssertionError):
        call(protected, key="k")
    assert store.scan().records == ()


def test_file_wrapper_is_hidden_from_the_app_and_restored_afterwards() -> None:
    seen: list[bool] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append("wsgi.file_wrapper" in environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"file"]

    environ = _environ("k") | {"wsgi.file_wrapper": io.BytesIO}
    protected = protect(app)
    assert call(protected, environ).status == 200
    assert (seen, "wsgi.file_wrapper" in environ) == ([False], True)


def test_current_claim_is_set_in_the_handler_only() -> None:
    app, seen = Charges(), []
    app.during = lambda environ: seen.append(current_claim())
    protected = protect(app)
    call(protected, key="k")
    call(protected)
    assert seen[0] is not None
    assert (seen[0].attempt, seen[1], current_claim()) == (1, None, None)


@pytest.mark.rule("E10")
def test_two_layers_with_the_same_tenant_share_one_claim() -> None:
    app, store = Charges(), SyncMemoryStore()
    tenant = by_environ("REMOTE_USER")
    inner = IdempotencyMiddleware(app, store=store, tenant=tenant)
    outer = IdempotencyMiddleware(inner, store=store, tenant=tenant)
    assert [call(outer, key="k").body for _ in range(2)] == [b"charge 1"] * 2


def test_hooks_get_an_event_for_each_outcome_and_no_key() -> None:
    events: list[IdempotencyEvent] = []
    protected = protect(Charges(), hooks=[events.append])
    call(protected, key="secret-key")
    call(protected, key="secret-key")
    call(protected, key="secret-key", body=b"other")
    call(protected, key="a,b")
    assert [type(event).__name__ for event in events] == [
        "Claimed",
        "Settled",
        "Replayed",
        "Refused",
        "Refused",
    ]
    replayed, refused, unreadable = events[2:]
    assert isinstance(replayed, Replayed)
    assert replayed.operation == "POST /charges"
    assert isinstance(refused, Refused)
    assert refused.problem == "key-reused"
    assert isinstance(unreadable, Refused)
    assert unreadable.key_id is None
    assert "secret-key" not in repr(events)


def test_outcome_of_the_current_claim_equals_the_recorded_one() -> None:
    app, outcomes = Charges(), []

    def record(environ: dict[str, Any]) -> None:
        claim = current_claim()
        assert claim is not None
        outcomes.append(claim.outcome(Response(201, [(b"content-type", b"text/plain")], b"charge 1")))
        with pytest.raises(TypeError):
            claim.outcome("charge 1")

    app.during = record
    store = SyncMemoryStore()
    call(protect(app, store=store), key="k")
    assert outcomes == [store.scan().records[0].outcome]


def test_redaction_that_raises_makes_the_response_unreplayable() -> None:
    def redact(response: Response) -> Response:
        raise ValueError("of the body")

    protected = protect(Charges(), policy=Policy(redact=redact))
    assert call(protected, key="k").status == 201
    assert call(protected, key="k").status == 409


def test_replay_header_has_the_name_that_the_policy_gives() -> None:
    protected = protect(Charges(), policy=Policy.stripe_v1())
    call(protected, key="k")
    assert call(protected, key="k").values("idempotent-replayed") == ["true"]


def test_policy_function_may_exempt_a_path() -> None:
    app = Charges()
    protected = protect(app, policy=lambda environ: Policy() if environ["PATH_INFO"] == "/charges" else None)
    for path in ("/charges", "/other"):
        for _ in range(2):
            call(protected, key=path[1:], path=path)
    assert app.effects == 3


def test_tenant_function_that_raises_missing_tenant_gives_400() -> None:
    def tenant(environ: dict[str, Any]) -> str:
        raise MissingTenant("log in")

    assert call(protect(Charges(), tenant=tenant), key="k").status == 400


def test_tenant_that_is_not_a_str_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="must be a str"):
        call(protect(Charges(), tenant=lambda environ: 5), key="k")


@pytest.mark.parametrize(
    "wrong",
    [
        {"store": SyncMemoryStore},
        {"store": object()},
        {"tenant": "REMOTE_USER"},
        {"policy": "at_most_once"},
        {"hooks": [int]},
    ],
)
def test_constructor_refuses_options_of_the_wrong_type(wrong: dict[str, Any]) -> None:
    options: dict[str, Any] = {"store": SyncMemoryStore(), "tenant": by_environ("REMOTE_USER")} | wrong
    with pytest.raises(TypeError):
        IdempotencyMiddleware(Charges(), **options)


def test_by_environ_refuses_a_request_header() -> None:
    with pytest.raises(ValueError, match="anybody can send"):
        by_environ("HTTP_X_USER")


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 120))
def test_any_chunks_are_sent_unchanged_and_replayed_within_the_limit(chunks: list[bytes], limit: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return iter(chunks)

    protected = protect(app, policy=Policy(max_response_bytes=limit))
    whole = b"".join(chunks)
    assert call(protected, key="k").body == whole
    again = call(protected, key="k")
    assert (again.status, again.body) == (200, whole) if len(whole) <= limit else again.status == 409


@given(st.binary(min_size=1, max_size=40))
def test_any_key_header_runs_once_or_is_refused(field: bytes) -> None:
    """Field values hold no control characters but the tab (RFC 9110, 5.5); servers refuse others."""
    text = field.decode("latin-1")
    app = Charges()
    answer = call(
        IdempotencyMiddleware(app, store=SyncMemoryStore(), tenant=by_environ("REMOTE_USER")), key=text
    )
    assert (answer.status, app.effects) in {(201, 1), (InvalidKey.status, 0)}


def _environ(key: str) -> dict[str, Any]:
    from wsgi_driver import environ_of

    return environ_of(key=key)


class FailingAtClose(Charges):
    """Its response raises when it is closed, as a failing commit would."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        chunks = super().__call__(environ, start_response)

        class Answer:
            def __iter__(self) -> Iterator[bytes]:
                return iter(chunks)

            def close(self) -> None:
                raise LookupError("the commit failed")

        return Answer()


def test_failure_in_close_after_the_record_emits_an_event() -> None:
    events: list[IdempotencyEvent] = []
    protected = protect(FailingAtClose(), hooks=[events.append])
    with pytest.raises(LookupError):
        call(protected, key="secret-key")
    assert [(event.operation, event.error) for event in events if isinstance(event, FailedAfterRecord)] == [
        ("POST /charges", "LookupError")
    ]
    assert call(protected, key="secret-key").replayed


def test_nested_request_of_the_handler_does_not_join_its_run() -> None:
    app = Charges()
    protected = protect(app, store=SyncMemoryStore())
    inner: list[Answer] = []
    app.during = lambda environ: inner or inner.append(call(protected, key="k", path="/refunds"))
    call(protected, key="k")
    assert inner[0].status == 422


def late(app: App, **options: Any) -> App:
    return validated(LateClaim(validated(app), store=options.pop("store", SyncMemoryStore()), **options))


class Claiming(Charges):
    """Claims for the user of the request, with a policy of its own."""

    policy = Policy()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        claim(environ, lambda: environ["REMOTE_USER"], self.policy)
        return super().__call__(environ, start_response)


def test_late_claim_without_a_key_runs_unless_the_key_is_required() -> None:
    app = Claiming()
    assert [call(late(app)).body for _ in range(2)] == [b"charge 1", b"charge 2"]
    app.policy = Policy(required=True)
    assert call(late(app)).status == 400


def test_unclaimed_request_is_not_limited_in_size_or_recorded() -> None:
    app, store = Charges(), SyncMemoryStore()
    protected = late(app, store=store, max_request_bytes=10)
    for declared in ("100", None):
        call(protected, key="k", body=b"x" * 100, CONTENT_LENGTH=declared, **{"wsgi.input_terminated": True})
    assert app.bodies[0] == b"x" * 100
    assert store.scan().records == ()


def test_unclaimed_body_of_unknown_length_over_the_limit_reaches_the_app_whole() -> None:
    read: list[bytes] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        read.append(environ["wsgi.input"].read())
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    protected = LateClaim(app, store=SyncMemoryStore(), max_request_bytes=10)
    call(protected, key="k", body=b"x" * 100, CONTENT_LENGTH=None, **{"wsgi.input_terminated": True})
    assert read == [b"x" * 100]


def test_late_claim_twice_after_start_response_or_without_the_middleware_is_an_error() -> None:
    def claim_twice(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        claim(environ, "alice")
        claim(environ, "alice")
        raise AssertionError

    def claim_late(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        claim(environ, "alice")
        raise AssertionError

    for app in (claim_twice, claim_late):
        with pytest.raises(RuntimeError, match="claim once"):
            call(LateClaim(app, store=SyncMemoryStore()), key="k")
    with pytest.raises(RuntimeError, match="LateClaim"):
        call(claim_twice, key="k")
