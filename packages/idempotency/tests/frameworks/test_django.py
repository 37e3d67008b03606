# ruff: noqa: E402 (models can be imported only once Django is configured)
"""Django with its own middleware, under WSGI and ASGI: sessions, CSRF, ATOMIC_REQUESTS, REST framework."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import django_project
import pytest
from asgiref.sync import sync_to_async

django_project.configure()

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.views.decorators.http import require_POST
from rest_framework.authentication import TokenAuthentication
from rest_framework.authtoken.models import Token
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency import Policy, StorageKey, current_claim
from idempotency.django import IdempotencyMiddleware, protect
from idempotency.django.rest_framework import IdempotentAPIView
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "idempotency.django.IdempotencyMiddleware",
]

Send = Callable[..., Any]


class Shop:
    """The views of a project; counts their runs and keeps their claims and uploads."""

    def __init__(self) -> None:
        self.effects = 0
        self.claims: list[Any] = []
        self.uploads: list[bytes] = []
        shop = self

        def charge(request: HttpRequest) -> HttpResponse:
            shop.effects += 1
            shop.claims.append(current_claim())
            shop.uploads.extend(file.read() for file in request.FILES.values())
            response = JsonResponse({"charge": shop.effects, "sku": request.POST.get("sku")}, status=201)
            response.set_cookie("seen", "1")
            return response

        async def async_charge(request: HttpRequest) -> HttpResponse:
            await asyncio.sleep(0)
            return charge(request)

        def broken(request: HttpRequest) -> HttpResponse:
            shop.effects += 1
            raise LookupError

        def busy(request: HttpRequest) -> HttpResponse:
            shop.effects += 1
            return HttpResponse(status=503)

        def stream(request: HttpRequest) -> StreamingHttpResponse:
            shop.effects += 1
            return StreamingHttpResponse(iter([b"one", b"two"]))

        def rolled_back(request: HttpRequest) -> HttpResponse:
            shop.effects += 1
            User.objects.create_user(f"buyer-{shop.effects}")
            if shop.effects == 1:
                raise LookupError
            return HttpResponse("bought", status=201)

        class Api(IdempotentAPIView):
            authentication_classes = (TokenAuthentication,)
            permission_classes = (IsAuthenticated,)

            def post(self, request: Request) -> Response:
                shop.effects += 1
                shop.claims.append(current_claim())
                return Response({"charge": shop.effects, "data": request.data}, status=201)

        class AtMostOnceApi(Api):
            idempotency_policy = Policy.at_most_once(required=True)

        django_project.set_urls(
            [
                path("charge", charge),
                path("async-charge", async_charge),
                path("broken", broken),
                path("busy", busy),
                path("stream", stream),
                path("rolled-back", rolled_back),
                path("login-required", login_required(protect(charge))),
                path("post-only", require_POST(protect(policy=Policy(required=True))(charge))),
                path("async-protected", protect(async_charge)),
                path("api", Api.as_view()),
                path("api-once", AtMostOnceApi.as_view()),
            ]
        )


@pytest.fixture(scope="module", autouse=True)
def database() -> None:
    django_project.migrate()


@pytest.fixture
def shop() -> Iterator[Shop]:
    yield Shop()
    User.objects.all().delete()
    connection.close()


@pytest.fixture
def alice(shop: Shop) -> User:
    return User.objects.create_user("alice")


@pytest.fixture(params=["WSGI", "ASGI"])
def send(request: pytest.FixtureRequest, alice: User) -> Iterator[Send]:
    """A function that sends one request, as alice or without a login."""
    asynchronous = request.param == "ASGI"
    store = MemoryStore() if asynchronous else SyncMemoryStore()
    kind: Any = AsyncClient if asynchronous else Client

    def send(
        where: str,
        data: Any = None,
        *,
        key: str | None = "k",
        login: bool = True,
        csrf: bool = False,
        **extra: Any,
    ) -> Any:
        client = kind(raise_request_exception=False, enforce_csrf_checks=csrf)
        if login:
            client.force_login(alice)
        headers = ({} if key is None else {"Idempotency-Key": key}) | extra
        answer = client.post("/" + where, {"sku": "book"} if data is None else data, headers=headers)
        return loop.run_until_complete(_read(answer)) if asynchronous else answer

    async def _read(answer: Awaitable[Any]) -> Any:
        return await answer

    loop = asyncio.new_event_loop()
    with override_settings(MIDDLEWARE=MIDDLEWARE, IDEMPOTENCY={"STORE": store}):
        yield send
        connection.close()
        # Under ASGI, Django's own thread has a connection of its own, which the test client leaves open.
        loop.run_until_complete(sync_to_async(connections.close_all)())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def replayed(answer: Any) -> bool:
    return bool(answer.headers.get("Idempotency-Replayed") == "true")


@pytest.mark.parametrize("view", ["charge", "async-charge", "login-required", "async-protected"])
def test_a_repeated_request_gets_the_first_answer_and_runs_the_view_once(
    send: Send, shop: Shop, view: str
) -> None:
    first, again = send(view), send(view)
    assert (first.status_code, first.json(), replayed(first)) == (201, {"charge": 1, "sku": "book"}, False)
    assert (again.status_code, again.json(), replayed(again)) == (201, {"charge": 1, "sku": "book"}, True)
    assert ("seen" in first.cookies, "seen" in again.cookies) == (True, False)
    assert (shop.effects, shop.claims[0].attempt) == (1, 1)


def test_a_request_without_a_key_runs_unprotected(send: Send, shop: Shop) -> None:
    answers = [send("charge", key=None) for _ in range(2)]
    assert [answer.json()["charge"] for answer in answers] == [1, 2]
    assert shop.claims == [None, None]
    assert "Idempotency-Expires-In" not in answers[0].headers


def test_another_form_under_the_same_key_is_a_mismatch(send: Send, shop: Shop) -> None:
    send("charge", {"sku": "book"})
    answer = send("charge", {"sku": "pen"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert shop.effects == 1


def test_an_uploaded_file_reaches_the_view_unchanged(send: Send, shop: Shop) -> None:
    content = bytes(range(256)) * 400
    answer = send("charge", {"sku": "book", "file": io.BytesIO(content)})
    assert (answer.json(), shop.uploads) == ({"charge": 1, "sku": "book"}, [content])


def test_a_request_without_a_login_is_refused_and_gets_no_replay(send: Send, shop: Shop) -> None:
    send("charge")
    answer = send("charge", login=False)
    assert (answer.status_code, replayed(answer), shop.effects) == (400, False, 1)


def test_a_request_that_django_refuses_before_the_view_leaves_the_key_free(send: Send, shop: Shop) -> None:
    refused = [
        send("nowhere"),
        send("charge", csrf=True),
        send("login-required", login=False),
        send("charge", key="not, one key"),
    ]
    assert [answer.status_code for answer in refused] == [404, 403, 302, 400]
    assert shop.effects == 0
    assert send("login-required").status_code == 201


def test_a_view_may_have_its_own_policy(send: Send, shop: Shop) -> None:
    assert send("post-only", key=None).status_code == 400
    assert [replayed(send("post-only")) for _ in range(2)] == [False, True]


@pytest.mark.parametrize(("view", "status"), [("broken", 500), ("busy", 503)])
def test_a_view_that_raises_or_answers_503_frees_the_key(
    send: Send, shop: Shop, view: str, status: int
) -> None:
    assert [send(view).status_code for _ in range(2)] == [status, status]
    assert shop.effects == 2


def test_at_most_once_never_repeats_a_view_that_raised(shop: Shop, alice: User) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(alice)
    setting = {"STORE": SyncMemoryStore(), "POLICY": Policy.at_most_once()}
    with override_settings(MIDDLEWARE=MIDDLEWARE, IDEMPOTENCY=setting):
        answers = [client.post("/broken", headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [(answer.status_code, replayed(answer)) for answer in answers] == [(500, False), (500, True)]
    assert b"first-run-failed" in answers[1].content
    assert shop.effects == 1


def test_a_streaming_response_is_sent_and_its_retry_gets_409(shop: Shop, alice: User) -> None:
    client = Client()
    client.force_login(alice)
    with override_settings(MIDDLEWARE=MIDDLEWARE, IDEMPOTENCY={"STORE": SyncMemoryStore()}):
        first, again = [client.post("/stream", headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert b"".join(first) == b"onetwo"
    assert (again.status_code, shop.effects) == (409, 1)


def test_a_rolled_back_transaction_frees_the_key_and_a_committed_one_is_replayed(
    shop: Shop, alice: User
) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(alice)
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        with override_settings(MIDDLEWARE=MIDDLEWARE, IDEMPOTENCY={"STORE": SyncMemoryStore()}):
            answers = [client.post("/rolled-back", headers={"Idempotency-Key": "k"}) for _ in range(3)]
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    assert [(answer.status_code, replayed(answer)) for answer in answers] == [
        (500, False),
        (201, False),
        (201, True),
    ]
    assert [user.username for user in User.objects.exclude(pk=alice.pk)] == ["buyer-2"]


def test_a_refreshed_token_gets_the_replay_and_an_expired_token_gets_401(
    send: Send, shop: Shop, alice: User
) -> None:
    first_token = Token.objects.create(user=alice)
    first = send("api", login=False, Authorization=f"Token {first_token.key}")
    Token.objects.filter(user=alice).delete()
    second_token = Token.objects.create(user=alice)
    again = send("api", login=False, Authorization=f"Token {second_token.key}")
    expired = send("api", login=False, Authorization=f"Token {first_token.key}")
    assert (first.status_code, first.json(), replayed(first)) == (
        201,
        {"charge": 1, "data": {"sku": "book"}},
        False,
    )
    assert (again.status_code, again.json(), replayed(again)) == (201, first.json(), True)
    assert (expired.status_code, replayed(expired), shop.effects) == (401, False, 1)
    assert shop.claims[0] is not None


def test_a_rest_view_may_have_its_own_policy(send: Send, shop: Shop, alice: User) -> None:
    token = {"Authorization": f"Token {Token.objects.create(user=alice).key}"}
    assert send("api-once", login=False, key=None, **token).status_code == 400
    assert [replayed(send("api-once", login=False, **token)) for _ in range(2)] == [False, True]
    assert shop.effects == 1


@pytest.mark.parametrize("policy", [Policy(), Policy.at_most_once(), Policy.stripe_v1()])
def test_a_request_that_a_rest_view_refuses_leaves_no_record(shop: Shop, alice: User, policy: Policy) -> None:
    store = SyncMemoryStore()
    with override_settings(MIDDLEWARE=MIDDLEWARE, IDEMPOTENCY={"STORE": store, "POLICY": policy}):
        client = Client(headers={"Idempotency-Key": "k"})
        assert client.post("/api").status_code == 401
        assert store.scan().records == ()


def test_a_body_over_the_limit_is_refused(shop: Shop, alice: User) -> None:
    client = Client()
    client.force_login(alice)
    setting = {"STORE": SyncMemoryStore(), "POLICY": Policy(max_request_bytes=10)}
    with override_settings(MIDDLEWARE=MIDDLEWARE, IDEMPOTENCY=setting):
        answer = client.post("/charge", {"sku": "x" * 20}, headers={"Idempotency-Key": "k"})
        with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=5):
            larger = client.post("/charge", b"x" * 8, "text/plain", headers={"Idempotency-Key": "k"})
    assert (answer.status_code, larger.status_code, shop.effects) == (413, 413, 0)


def test_settings_may_be_dotted_paths_urls_and_functions(shop: Shop, alice: User) -> None:
    client = Client()
    client.force_login(alice)
    setting = {
        "STORE": "memory://",
        "PRINCIPAL": "idempotency.django.by_user",
        "POLICY": lambda request: Policy(required=True) if request.path == "/charge" else None,
        "HOOKS": [],
    }
    with override_settings(MIDDLEWARE=MIDDLEWARE, IDEMPOTENCY=setting):
        assert client.post("/charge").status_code == 400
        assert client.post("/busy", headers={"Idempotency-Key": "k"}).status_code == 503


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (None, "STORE"),
        ({}, "STORE"),
        ({"STORE": "memory://", "TENANT": str}, "TENANT"),
        ({"STORE": "memory://", "PRINCIPAL": 5}, "PRINCIPAL"),
        ({"STORE": "memory://", "POLICY": 5}, "POLICY"),
    ],
)
def test_a_wrong_setting_is_refused_at_start_up(setting: Any, message: str) -> None:
    with override_settings(IDEMPOTENCY=setting), pytest.raises(ImproperlyConfigured, match=message):
        IdempotencyMiddleware(lambda request: HttpResponse())


def test_a_store_of_the_wrong_kind_is_refused(shop: Shop, alice: User) -> None:
    client = Client()
    client.force_login(alice)
    with (
        override_settings(MIDDLEWARE=MIDDLEWARE, IDEMPOTENCY={"STORE": MemoryStore()}),
        pytest.raises(ImproperlyConfigured, match="SyncStore"),
    ):
        client.post("/charge", headers={"Idempotency-Key": "k"})


def test_a_protected_view_without_the_middleware_raises_and_does_not_run(shop: Shop, alice: User) -> None:
    client = Client()
    client.force_login(alice)
    with (
        override_settings(MIDDLEWARE=MIDDLEWARE[:-1], IDEMPOTENCY={"STORE": "memory://"}),
        pytest.raises(RuntimeError, match="IdempotencyMiddleware"),
    ):
        client.post("/login-required", headers={"Idempotency-Key": "k"})
    assert shop.effects == 0


def test_the_management_command_opens_the_store_url_of_the_settings(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from idempotency.stores.sqlite import SyncSQLiteStore

    stored = SyncSQLiteStore(tmp_path / "records.db")
    stored.acquire(StorageKey("1:k"), fingerprint=b"f", owner=b"o" * 16, lease=30, retention=60)
    stored.close()
    with override_settings(IDEMPOTENCY={"STORE": f"sqlite:///{tmp_path}/records.db"}):
        call_command("idempotency", "list")
        assert "1:k" in capsys.readouterr().out
        with pytest.raises(SystemExit) as missing:
            call_command("idempotency", "show", "no-such-key")
    assert missing.value.code == 1
    with (
        override_settings(IDEMPOTENCY={"STORE": MemoryStore()}),
        pytest.raises(CommandError, match="URL"),
    ):
        call_command("idempotency", "list")


def test_the_management_command_accepts_a_store_object_or_a_function_that_makes_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = SyncMemoryStore()
    store.acquire(StorageKey("1:k"), fingerprint=b"f", owner=b"o" * 16, lease=30, retention=60)
    for given in (store, lambda: store):
        with override_settings(IDEMPOTENCY={"STORE": given}):
            call_command("idempotency", "list")
        assert "1:k" in capsys.readouterr().out
        with override_settings(IDEMPOTENCY={"STORE": given}), pytest.raises(SystemExit):
            call_command("idempotency", "doctor")
        assert "--store URL" in capsys.readouterr().err
