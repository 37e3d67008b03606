# ruff: noqa: E402 (Django must be configured first)
"""Input that Flask or Django REST framework refuses while a view reads or validates it frees the key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import django_project
import pytest

django_project.configure()

from django.test import Client, override_settings
from django.urls import path
from flask import Flask, abort, jsonify, request
from rest_framework import generics, routers, serializers, viewsets
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency import Policy
from idempotency.django.rest_framework import IdempotentAPIView, IdempotentMixin, protect
from idempotency.flask import Idempotency
from idempotency.stores.memory import SyncMemoryStore

PRESETS = {"default": Policy(), "at_most_once": Policy.at_most_once(), "stripe_v1": Policy.stripe_v1()}


class Charge(serializers.Serializer[Any]):
    amount = serializers.IntegerField()

    def validate_amount(self, value: int) -> int:
        if value < 0:
            raise serializers.ValidationError("not below 0")
        return value


effects: list[int] = []


def take(amount: int) -> Response:
    effects.append(amount)
    return Response({"charge": len(effects)}, status=201)


class _Creating(IdempotentMixin):
    serializer_class = Charge

    def perform_create(self, serializer: Any) -> None:
        if serializer.validated_data["amount"] == 13:
            raise ValidationError("not that one")  # raised by the application, perhaps after an effect
        effects.append(serializer.validated_data["amount"])


class Generic(_Creating, generics.CreateAPIView[Any]):
    """Validates before any code of the application runs."""


class ViewSet(_Creating, viewsets.ModelViewSet[Any]):
    queryset: Any = ()


class Own(IdempotentAPIView):
    def post(self, request: Request) -> Response:
        charge = Charge(data=request.data)
        charge.is_valid(raise_exception=True)
        return take(charge.validated_data["amount"])


class Returning(IdempotentAPIView):
    def post(self, request: Request) -> Response:
        charge = Charge(data=request.data)
        return (
            take(charge.validated_data["amount"])
            if charge.is_valid()
            else Response(charge.errors, status=400)
        )


class Plain(APIView):
    def post(self, request: Request) -> Response:
        return Own.post(self, request)  # type: ignore[arg-type]


@protect
@api_view(["POST"])
def function(request: Request) -> Response:
    charge = Charge(data=request.data)
    charge.is_valid(raise_exception=True)
    return take(charge.validated_data["amount"])


router = routers.SimpleRouter()
router.register("set", ViewSet, basename="set")
URLS = [
    path("generic", Generic.as_view()),
    path("own", Own.as_view()),
    path("returning", Returning.as_view()),
    path("wrapped", protect(Plain.as_view())),
    path("function", function),
    *router.urls,
]


@pytest.fixture(params=PRESETS)
def policy(request: pytest.FixtureRequest) -> Policy:
    return PRESETS[request.param]


@pytest.fixture
def rest(policy: Policy) -> Iterator[Callable[..., Any]]:
    """Posts to a view under *policy*."""
    django_project.set_urls(URLS)
    effects.clear()
    setting = {"STORE": SyncMemoryStore(), "POLICY": policy, "PRINCIPAL": lambda request: "alice"}
    api = {"DEFAULT_AUTHENTICATION_CLASSES": [], "DEFAULT_PERMISSION_CLASSES": []}
    with override_settings(
        IDEMPOTENCY=setting, REST_FRAMEWORK=api, MIDDLEWARE=["idempotency.django.IdempotencyMiddleware"]
    ):
        client = Client(raise_request_exception=False)

        def post(view: str, body: str, content_type: str = "application/json") -> Any:
            return client.post(f"/{view}", body, content_type=content_type, headers={"Idempotency-Key": "k"})

        yield post


REFUSED = [
    pytest.param('{"amount": "x"}', "application/json", 400, id="invalid"),
    pytest.param('{"amount": -1}', "application/json", 400, id="by_the_serializers_own_rule"),
    pytest.param("{", "application/json", 400, id="no_json"),
    pytest.param("x", "text/csv", 415, id="media_type"),
]


@pytest.mark.parametrize(("body", "content_type", "status"), REFUSED)
@pytest.mark.parametrize("view", ["generic", "set/"])
def test_a_generic_view_that_refuses_the_input_frees_the_key_under_every_policy(
    rest: Any, view: str, body: str, content_type: str, status: int
) -> None:
    assert rest(view, body, content_type).status_code == status
    corrected = rest(view, '{"amount": 5}')
    assert (corrected.status_code, effects) == (201, [5])


@pytest.mark.parametrize(("body", "content_type", "status"), REFUSED)
@pytest.mark.parametrize("view", ["own", "wrapped", "function"])
def test_a_view_that_lets_rest_framework_refuse_the_input_frees_the_key_only_under_the_default_policy(
    rest: Any, policy: Policy, view: str, body: str, content_type: str, status: int
) -> None:
    assert rest(view, body, content_type).status_code == status
    corrected = rest(view, '{"amount": 5}')
    if policy == Policy():
        assert (corrected.status_code, effects) == (201, [5])
    else:
        assert (corrected.status_code, effects) == (422, [])


def test_a_validation_error_that_the_application_raises_after_validation_is_recorded(rest: Any) -> None:
    first, again = rest("generic", '{"amount": 13}'), rest("generic", '{"amount": 13}')
    assert (first.status_code, again.status_code) == (400, 400)
    assert again.headers.get("Idempotency-Replayed", again.headers.get("Idempotent-Replayed")) == "true"


def test_a_refusal_that_a_view_returns_is_recorded(rest: Any) -> None:
    assert rest("returning", '{"amount": "x"}').status_code == 400
    assert (rest("returning", '{"amount": 5}').status_code, effects) == (422, [])


@pytest.fixture
def site(policy: Policy) -> Iterator[Any]:
    """Posts to a view of Flask's under *policy*."""
    effects.clear()
    app = Flask("site")
    once = Idempotency(app, store=SyncMemoryStore(), principal=lambda: "alice", policy=policy)

    @app.post("/json")
    @once.protect
    def json() -> Any:
        amount = request.json["amount"]
        if amount < 0:
            abort(422)
        effects.append(amount)
        return jsonify(charge=len(effects)), 201

    @app.post("/form")
    @once.protect
    def form() -> Any:
        effects.append(int(request.form["amount"]))
        return jsonify(charge=len(effects)), 201

    @app.post("/validated")
    def validated() -> Any:
        amount = request.json["amount"]
        if not isinstance(amount, int):
            abort(422)
        return take_money(amount)

    @once.protect
    def take_money(amount: int) -> Any:
        effects.append(amount)
        return jsonify(charge=len(effects)), 201

    client = app.test_client()
    return lambda view, **sent: client.post(f"/{view}", headers={"Idempotency-Key": "k"}, **sent)


@pytest.mark.parametrize(
    ("view", "refused", "status", "accepted"),
    [
        pytest.param(
            "json",
            {"data": b"{", "content_type": "application/json"},
            400,
            {"json": {"amount": 5}},
            id="no_json",
        ),
        pytest.param(
            "json",
            {"data": b"5", "content_type": "text/plain"},
            415,
            {"json": {"amount": 5}},
            id="media_type",
        ),
        pytest.param("form", {"data": {"count": 5}}, 400, {"data": {"amount": 5}}, id="no_field"),
    ],
)
def test_a_view_that_lets_flask_refuse_the_input_frees_the_key_only_under_the_default_policy(
    site: Any, policy: Policy, view: str, refused: Any, status: int, accepted: Any
) -> None:
    assert site(view, **refused).status_code == status
    corrected = site(view, **accepted)
    if policy == Policy():
        assert (corrected.status_code, effects) == (201, [5])
    else:
        assert (corrected.status_code, effects) == (422, [])


def test_an_abort_of_the_view_is_recorded(site: Any) -> None:
    assert site("json", json={"amount": -5}).status_code == 422
    assert site("json", json={"amount": 5}).status_code == 422
    assert effects == []


def test_a_view_may_validate_before_it_calls_the_protected_function(site: Any) -> None:
    """Under every policy, since the claim is made after the validation."""
    assert site("validated", json={"amount": "x"}).status_code == 422
    first, again = (site("validated", json={"amount": 5}) for _ in range(2))
    assert (first.status_code, again.status_code, first.json, again.json) == (
        201,
        201,
        {"charge": 1},
        {"charge": 1},
    )
    assert effects == [5]
