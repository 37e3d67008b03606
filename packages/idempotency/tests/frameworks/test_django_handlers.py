# ruff: noqa: E402 (models can be imported only once Django is configured)
"""Django as its servers call it: truncated, chunked and too large bodies, and clients that disconnect."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import django
import django_project
import pytest
from asgi_driver import RequestDriver, http_scope, key_header
from asgi_driver import call as call_asgi
from wsgi_driver import call

django_project.configure()

from django.contrib.auth.decorators import login_required
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency import Policy
from idempotency.django import protect as protect_view
from idempotency.django.pending import pending_of
from idempotency.django.rest_framework import IdempotentAPIView, protect
from idempotency.engine.sync_engine import SyncEngine
from idempotency.events import Claimed, Event, Settled
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Shop:
    """A view that waits until the test lets it resume."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.entered = threading.Event()
        self.resume = threading.Event()
        self.resume.set()

    def charge(self, request: HttpRequest) -> HttpResponse:
        self.entered.set()
        assert self.resume.wait(30)
        self.bodies.append(request.body)
        return HttpResponse(b"charge %d" % len(self.bodies), status=201)

    async def async_charge(self, request: HttpRequest) -> HttpResponse:
        self.entered.set()
        while not self.resume.is_set():
            await asyncio.sleep(0)
        return self.charge(request)


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    django_project.set_urls([path("charge", shop.charge), path("async-charge", shop.async_charge)])
    yield shop
    shop.resume.set()


def sync_middleware(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """A synchronous middleware of a project."""

    def middleware(request: HttpRequest) -> HttpResponse:
        return get_response(request)

    return middleware


def handler(kind: Any, *, inner: tuple[str, ...] = (), **setting: Any) -> Any:
    """Django with the middleware and the *inner* ones, for one principal."""
    changed = override_settings(
        MIDDLEWARE=["idempotency.django.IdempotencyMiddleware", *inner],
        IDEMPOTENCY={"PRINCIPAL": lambda request: "alice"} | setting,
    )
    with changed:
        return kind()


# Bodies, under WSGI.


def test_a_truncated_body_is_refused_with_400_and_runs_nothing(shop: Shop) -> None:
    store = SyncMemoryStore()
    answer = call(
        handler(WSGIHandler, STORE=store), path="/charge", key="k", body=b"amount=1", CONTENT_LENGTH="9"
    )
    assert (answer.status, shop.bodies, store.scan().records) == (400, [], ())
    assert b"incomplete-request" in answer.body


@pytest.mark.parametrize("length", [None, "+2", "-1"])
def test_a_body_without_a_valid_content_length_is_refused_with_411(shop: Shop, length: str | None) -> None:
    application = handler(WSGIHandler, STORE=SyncMemoryStore())
    coding = "chunked" if length is None else None
    answer = call(application, path="/charge", key="k", CONTENT_LENGTH=length, HTTP_TRANSFER_ENCODING=coding)
    assert (answer.status, shop.bodies) == (411, [])


def test_a_request_without_a_body_needs_no_length(shop: Shop) -> None:
    answer = call(
        handler(WSGIHandler, STORE=SyncMemoryStore()), path="/charge", key="k", body=b"", CONTENT_LENGTH=None
    )
    assert (answer.status, shop.bodies) == (201, [b""])


@pytest.mark.parametrize(("max_discard_bytes", "read"), [(1_000, 100), (60, 60)])
def test_a_body_over_the_limit_is_read_and_discarded_up_to_max_discard_bytes(
    shop: Shop, max_discard_bytes: int, read: int
) -> None:
    body = io.BytesIO(b"x" * 100)
    policy = Policy(max_request_bytes=10, max_discard_bytes=max_discard_bytes)
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=20):
        application = handler(WSGIHandler, STORE=SyncMemoryStore(), POLICY=policy)
        answer = call(application, path="/charge", key="k", CONTENT_LENGTH="100", **{"wsgi.input": body})
    assert (answer.status, shop.bodies, body.tell()) == (413, [], read)


def test_discarding_a_body_over_the_limit_stops_after_body_timeout(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a limit, a client that sends byte by byte would hold the worker for as long as it likes."""
    now = [0.0]

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            now[0] += 20.0
            return super().read(size)

    body = Slow(b"x" * 1_000_000)
    policy = Policy(max_request_bytes=10, body_timeout=30.0)
    engine = partial(SyncEngine, monotonic=lambda: now[0])
    monkeypatch.setattr("idempotency.django.middleware.SyncEngine", engine)
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=20):
        application = handler(WSGIHandler, STORE=SyncMemoryStore(), POLICY=policy)
        answer = call(application, path="/charge", key="k", CONTENT_LENGTH="1000000", **{"wsgi.input": body})
    assert (answer.status, body.tell()) == (413, 2 * 65_536)


# A client that disconnects, under ASGI.


async def run_ready_callbacks() -> None:
    """Run callbacks that are ready, and those that become ready by them."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.rule("E5")
@pytest.mark.parametrize("view", ["charge", "async-charge"])
@pytest.mark.parametrize(
    ("inner", "store"), [((), MemoryStore), ((f"{__name__}.sync_middleware",), SyncMemoryStore)]
)
async def test_a_view_is_completed_and_recorded_after_its_client_disconnects(
    shop: Shop, view: str, inner: tuple[str, ...], store: Any
) -> None:
    """Also where a synchronous inner middleware makes Django call ours in a thread."""
    application = handler(ASGIHandler, inner=inner, STORE=store())
    await disconnect_during_view(shop, application, f"/{view}")
    again = await call_asgi(application, path=f"/{view}", key="k")
    assert (again.status, again.body, again.replayed, len(shop.bodies)) == (201, b"charge 1", True, 1)


async def disconnect_during_view(shop: Shop, application: Any, path: str) -> None:
    """Send a request, disconnect its client while the view runs, and let the view end."""
    shop.resume.clear()
    driver = RequestDriver(application, http_scope(path=path, headers=key_header("k")))
    driver.send_body(b"{}")
    request = asyncio.create_task(driver.run())
    assert await asyncio.to_thread(shop.entered.wait, 30)
    driver.disconnect()
    await run_ready_callbacks()  # in which Django sees the disconnect and cancels the view
    shop.resume.set()
    async with asyncio.timeout(30):
        await request


async def test_a_request_with_a_disconnected_client_sends_request_finished_once(shop: Shop) -> None:
    """At that signal Django closes its database connections, which other requests may use by then."""
    finished: list[Any] = []

    def receive(sender: Any, **_: Any) -> None:
        finished.append(sender)

    request_finished.connect(receive)
    try:
        await disconnect_during_view(shop, handler(ASGIHandler, STORE=MemoryStore()), "/charge")
    finally:
        request_finished.disconnect(receive)
    assert (len(finished), shop.bodies) == (1, [b"{}"])


@pytest.mark.skipif(django.VERSION < (5,), reason="Django notices a disconnect since 5.0")
async def test_an_error_after_the_client_disconnected_is_logged(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def keep(status: int) -> bool:
        raise LookupError

    application = handler(ASGIHandler, STORE=MemoryStore(), POLICY=Policy(keep=keep))
    await disconnect_during_view(shop, application, "/charge")
    (logged,) = [
        record for record in caplog.records if record.name == "idempotency" and record.levelname == "ERROR"
    ]
    assert logged.getMessage() == "POST /charge failed after its client had left"
    assert logged.exc_info is not None
    assert logged.exc_info[0] is LookupError


@pytest.mark.rule("E4")
@pytest.mark.parametrize(
    ("kind", "store"), [(WSGIHandler, SyncMemoryStore), (ASGIHandler, MemoryStore)], ids=["WSGI", "ASGI"]
)
async def test_a_keep_function_that_raises_leaves_the_claim_to_its_lease(
    shop: Shop, kind: Any, store: Any
) -> None:
    """The renewal stops too, so that a retry is not refused for ever."""

    def keep(status: int) -> bool:
        raise LookupError

    events: list[Event] = []
    application = handler(kind, STORE=store(), POLICY=Policy(keep=keep), HOOKS=[events.append])
    asynchronous = kind is ASGIHandler
    answer = (
        await call_asgi(application, path="/charge", key="k")
        if asynchronous
        else call(application, path="/charge", key="k")
    )
    assert answer.status == 500
    assert [event.result for event in events if isinstance(event, Settled)] == ["abandoned"]


@pytest.mark.skipif(django.VERSION < (5,), reason="Django notices a disconnect since 5.0")
async def test_a_view_that_claims_after_its_client_disconnected_does_not_run(shop: Shop) -> None:
    """Django has given the request up: its answer would not be recorded, nor its claim ended."""
    events: list[Event] = []

    def principal(request: HttpRequest) -> str:
        shop.entered.set()
        assert shop.resume.wait(30)
        return "alice"

    tried = threading.Event()

    def charge(request: HttpRequest) -> HttpResponse:
        try:
            return protected(request)
        finally:
            tried.set()

    protected = protect_view(shop.charge)
    charge.idempotency_claims_itself = True  # type: ignore[attr-defined]
    django_project.set_urls([path("charge", charge)])
    store = MemoryStore()
    setting = {"PRINCIPAL": principal, "STORE": store, "HOOKS": [events.append]}
    with override_settings(IDEMPOTENCY=setting):
        application = handler(ASGIHandler, **setting)
        await disconnect_during_view(shop, application, "/charge")
        assert await asyncio.to_thread(tried.wait, 30)
    assert (shop.bodies, events) == ([], [])


@pytest.mark.rule("E4")
def test_a_claim_acquired_while_the_client_disconnects_is_left_to_its_lease(shop: Shop) -> None:
    requests: list[HttpRequest] = []
    events: list[Event] = []

    def leave(event: Event) -> None:
        events.append(event)
        if isinstance(event, Claimed):
            pending_of(requests[0]).leave()

    setting = {"PRINCIPAL": lambda request: requests.append(request) or "alice", "HOOKS": [leave]}
    answer = call(handler(WSGIHandler, STORE=SyncMemoryStore(), **setting), path="/charge", key="k")
    assert (answer.status, shop.bodies) == (500, [])
    assert [event.result for event in events if isinstance(event, Settled)] == ["abandoned"]


@pytest.mark.rule("E4")
async def test_a_request_cancelled_twice_leaves_its_claim_to_the_lease(shop: Shop) -> None:
    events: list[Event] = []
    application = handler(ASGIHandler, STORE=MemoryStore(), HOOKS=[events.append])
    shop.resume.clear()
    request = application.create_request(
        http_scope(path="/async-charge", headers=key_header("k")), io.BytesIO(b"{}")
    )[0]
    answering = asyncio.create_task(application.get_response_async(request))
    assert await asyncio.to_thread(shop.entered.wait, 30)
    for _ in range(2):
        answering.cancel()
        await run_ready_callbacks()
    with pytest.raises(asyncio.CancelledError):
        await answering
    while not [event for event in events if isinstance(event, Settled)]:
        await asyncio.sleep(0)
    assert [event.result for event in events if isinstance(event, Settled)] == ["abandoned"]
    assert shop.bodies == []


# Function views of REST framework.


class Tokens:
    """Authenticates as `rest_framework.authentication` does."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        given = request.headers.get("Authorization")
        return None if given is None else (User(given), None)

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class User:
    is_authenticated = True

    def __init__(self, pk: str) -> None:
        self.pk = pk


def rest_view(effects: list[Any], policy: Policy | None = None) -> Any:
    @protect(policy=policy or Policy())
    @api_view(["POST"])
    @authentication_classes([Tokens])
    @permission_classes([IsAuthenticated])
    def charge(request: Request, number: int) -> Response:
        """Take money."""
        effects.append(request.data)
        return Response({"charge": len(effects), "number": number}, status=201)

    return charge


def test_a_function_view_is_claimed_only_after_rest_framework_accepts_the_request(shop: Shop) -> None:
    effects: list[Any] = []
    store = SyncMemoryStore()
    django_project.set_urls([path("charge/<int:number>", rest_view(effects, Policy(required=True)))])
    with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}):
        middleware = ["idempotency.django.IdempotencyMiddleware"]
        with override_settings(MIDDLEWARE=middleware, IDEMPOTENCY={"STORE": store}):
            application = WSGIHandler()
            sent: dict[str, Any] = {
                "path": "/charge/7",
                "body": b'{"amount": 5}',
                "HTTP_AUTHORIZATION": "alice",
            }
            assert call(application, **sent | {"HTTP_AUTHORIZATION": None}, key="k").status == 401
            assert call(application, **sent, method="PUT", key="k").status == 405
            assert store.scan().records == ()
            assert call(application, **sent).status == 400
            first, again = call(application, **sent, key="k"), call(application, **sent, key="k")
            other = call(application, **sent | {"HTTP_AUTHORIZATION": "bob"}, key="k")
    assert (first.status, first.body, first.replayed) == (201, b'{"charge":1,"number":7}', False)
    assert (again.status, again.body, again.replayed) == (201, first.body, True)
    assert (other.status, other.replayed, effects) == (201, False, [{"amount": 5}, {"amount": 5}])


def test_a_protected_function_view_keeps_its_name_docstring_and_csrf_exemption() -> None:
    view = rest_view([])
    assert (view.cls.__name__, view.cls.__doc__, view.csrf_exempt) == ("charge", "Take money.", True)


class Charges(APIView):
    """A class without protection of its own."""

    authentication_classes = (Tokens,)
    permission_classes = (IsAuthenticated,)
    note = "its own"

    def post(self, request: Request) -> Response:
        return Response({"data": request.data, "note": self.note}, status=201)


def test_protect_accepts_the_result_of_as_view(shop: Shop) -> None:
    view = protect(policy=Policy(required=True))(Charges.as_view(note="given"))
    django_project.set_urls([path("charge", view)])
    setting = {"STORE": SyncMemoryStore()}
    with override_settings(MIDDLEWARE=["idempotency.django.IdempotencyMiddleware"], IDEMPOTENCY=setting):
        application = WSGIHandler()
        sent: dict[str, Any] = {"path": "/charge", "body": b"5", "HTTP_AUTHORIZATION": "alice"}
        assert call(application, **sent).status == 400
        first, again = call(application, **sent, key="k"), call(application, **sent, key="k")
    assert (first.status, first.body, first.replayed) == (201, b'{"data":5,"note":"given"}', False)
    assert (again.status, again.body, again.replayed) == (201, first.body, True)


@pytest.mark.parametrize(
    "decorated",
    [
        login_required(Charges.as_view()),
        login_required(api_view(["POST"])(Shop.charge)),
        csrf_exempt(login_required(Charges.as_view())),
    ],
)
def test_protect_refuses_a_view_that_has_other_decorators(decorated: Any) -> None:
    with pytest.raises(TypeError, match="other decorators above it"):
        protect(decorated)


@pytest.mark.parametrize("protected", [rest_view([]), IdempotentAPIView.as_view()])
def test_protect_refuses_a_view_that_is_protected_already(protected: Any) -> None:
    with pytest.raises(TypeError, match="is protected already"):
        protect(protected)


@pytest.mark.parametrize("view", [Shop.charge, APIView, object()])
def test_protect_refuses_an_object_that_is_no_view_of_rest_framework(view: Any) -> None:
    with pytest.raises(TypeError, match="above @api_view"):
        protect(view)
