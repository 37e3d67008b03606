# ruff: noqa: E402 (models can be imported only once Django is configured)
"""Edge cases of Django: signals, exceptions, headers of a response, and a body that another middleware has read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import django_project
import pytest
from asgi_driver import call as call_asgi
from wsgi_driver import Answer, call

django_project.configure()

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from idempotency import Policy
from idempotency._core.headers import HOP_BY_HOP
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

pytestmark = pytest.mark.anyio

MIDDLEWARE = "idempotency.django.IdempotencyMiddleware"
BOUNDARY = "boundary"
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="sku"\r\n\r\nbook\r\n--{BOUNDARY}--\r\n'.encode()
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def project(
    view: Callable[..., Any], *, outer: tuple[str, ...] = (), kind: Any = WSGIHandler, **setting: Any
) -> Any:
    """Django with one view, for one principal."""
    django_project.set_urls([path("charge", view)])
    store = MemoryStore() if kind is ASGIHandler else SyncMemoryStore()
    changed = override_settings(
        MIDDLEWARE=[*outer, MIDDLEWARE],
        IDEMPOTENCY={"PRINCIPAL": lambda request: "alice", "STORE": store} | setting,
    )
    with changed:
        return kind()


def send(application: Any, **request: Any) -> Answer:
    return call(application, **{"path": "/charge", "key": "k"} | request)


# Signals.


@pytest.fixture
def finished() -> Iterator[list[Any]]:
    """The senders of `request_finished`, one for each signal."""
    seen: list[Any] = []

    def receive(sender: Any, **_: Any) -> None:
        seen.append(sender)

    request_finished.connect(receive)
    yield seen
    request_finished.disconnect(receive)


def lose_the_claim(store: SyncMemoryStore) -> None:
    (record,) = store.scan().records
    store.forget(record.key)
    store.acquire(record.key, fingerprint=record.fingerprint, owner=b"o" * 16, lease=30, retention=60)  # type: ignore[arg-type]


def test_a_replaced_answer_sends_request_finished_once(finished: list[Any]) -> None:
    """At that signal Django closes its database connections, which outer middlewares may still use."""
    store, closed = SyncMemoryStore(), []

    class Chunks(list[bytes]):
        def close(self) -> None:
            closed.append(True)

    def charge(request: HttpRequest) -> StreamingHttpResponse:
        lose_the_claim(store)
        return StreamingHttpResponse(Chunks([b"charged"]), status=201)

    application = project(charge, STORE=store)
    assert [send(application).status, send(application).status] == [409, 409]
    assert (len(finished), closed) == (2, [True])


# What a view raises.


@pytest.mark.parametrize(("policy", "effects"), [(Policy(), 2), (Policy.at_most_once(), 1)])
@pytest.mark.parametrize("kind", [WSGIHandler, ASGIHandler])
async def test_an_exception_that_django_propagates_is_treated_as_the_policy_says(
    kind: Any, policy: Policy, effects: int
) -> None:
    """With `DEBUG_PROPAGATE_EXCEPTIONS`, exceptions of a view leave Django's handler."""
    seen: list[int] = []

    def charge(request: HttpRequest) -> HttpResponse:
        seen.append(1)
        raise LookupError

    application = project(charge, kind=kind, POLICY=policy)
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True):
        for number in range(2):
            if number < effects:
                with pytest.raises(LookupError):
                    await _send(application, kind)
            else:
                assert (await _send(application, kind)).replayed
    assert len(seen) == effects


async def _send(application: Any, kind: Any) -> Any:
    return await call_asgi(application, path="/charge", key="k") if kind is ASGIHandler else send(application)


# Headers.


@pytest.mark.parametrize("status", [201, 503])
def test_idempotency_headers_set_by_a_view_are_dropped(status: int) -> None:
    def charge(request: HttpRequest) -> HttpResponse:
        return HttpResponse(status=status, headers={"Idempotency-Replayed": "true", "Idempotency-Age": "5"})

    first = send(project(charge))
    assert (first.status, first.replayed, first.values("idempotency-age")) == (status, False, [])


def test_cookies_that_a_policy_keeps_are_replayed_as_separate_headers() -> None:
    def charge(request: HttpRequest) -> HttpResponse:
        response = HttpResponse(status=201)
        response.set_cookie("basket", "a,b", max_age=60, httponly=True, samesite="Lax")
        response.set_cookie("seen", "1")
        return response

    application = project(charge, POLICY=Policy(drop_headers=HOP_BY_HOP))
    first, again = send(application), send(application)
    assert again.replayed
    assert len(first.values("set-cookie")) == 2
    assert again.values("set-cookie") == first.values("set-cookie")


# A body that an outer middleware has read.


def read_the_form(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware that parses the form in the body before the library's middleware runs."""

    def middleware(request: HttpRequest) -> HttpResponse:
        assert request.POST["sku"] == "book"
        return get_response(request)

    return middleware


@pytest.mark.parametrize("protected", [True, False])
def test_a_body_read_by_an_outer_middleware_is_an_error_only_for_a_protected_view(
    protected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    effects: list[str] = []

    def charge(request: HttpRequest) -> HttpResponse:
        effects.append(request.POST["sku"])
        return HttpResponse(status=201)

    policy = Policy() if protected else lambda request: None
    application = project(charge, outer=(f"{__name__}.read_the_form",), POLICY=policy)
    answer = send(
        application,
        body=FORM,
        CONTENT_TYPE=f"multipart/form-data; boundary={BOUNDARY}",
        **{"wsgi.input": io.BytesIO(FORM)},
    )
    if protected:
        assert (answer.status, effects) == (500, [])
        assert "put IdempotencyMiddleware above it" in caplog.text
    else:
        assert (answer.status, effects) == (201, ["book"])
