"""The Flask extension: a refusal before the view leaves the key free, and a replay requires a login."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, g, jsonify, request
from werkzeug.test import TestResponse

from idempotency import Policy, current_claim
from idempotency.errors import MissingTenant
from idempotency.flask import Idempotency
from idempotency.stores.memory import MemoryStore, SyncMemoryStore


class Shop:
    """An application with a login whose credentials change, and a count of its effects."""

    def __init__(self, **options: Any) -> None:
        self.app = Flask("shop")
        self.store = SyncMemoryStore()
        self.users = {"Bearer a": "alice", "Bearer b": "alice", "Bearer c": "bob"}
        self.effects = 0
        self.claims: list[Any] = []
        self.once = Idempotency(self.app, store=self.store, principal=lambda: g.user, **options)
        self.app.before_request(self.authenticate)
        self.app.post("/charges")(self.once.protect(self.charge))
        self.app.post("/unprotected")(self.unprotected)

    def authenticate(self) -> None:
        g.user = self.users.get(request.headers.get("Authorization", ""))
        if g.user is None:
            abort(401)

    def charge(self) -> Any:
        self.effects += 1
        self.claims.append(current_claim())
        if request.is_json and request.json.get("amount", 1) < 0:
            abort(422)
        return jsonify(charge=self.effects), 201

    def unprotected(self) -> Any:
        return jsonify(form=request.form.get("a"), size=len(request.get_data()))

    def post(
        self, path: str = "/charges", *, key: str | None = "k", token: str = "Bearer a", **sent: Any
    ) -> TestResponse:
        headers = {"Authorization": token} | ({} if key is None else {"Idempotency-Key": key})
        return self.app.test_client().post(path, headers=headers, **(sent or {"json": {"amount": 5}}))

    @property
    def records(self) -> int:
        return len(self.store.scan().records)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def replayed(answer: TestResponse) -> bool:
    return answer.headers.get("Idempotency-Replayed") == "true"


def test_a_repeated_request_gets_the_first_answer_and_runs_the_view_once(shop: Shop) -> None:
    first, again = shop.post(), shop.post()
    assert (first.status_code, first.json, replayed(first)) == (201, {"charge": 1}, False)
    assert (again.status_code, again.json, replayed(again)) == (201, {"charge": 1}, True)
    assert again.content_type == first.content_type


def test_a_refreshed_token_of_the_same_user_gets_the_replay(shop: Shop) -> None:
    shop.post(token="Bearer a")
    assert replayed(shop.post(token="Bearer b"))
    assert shop.effects == 1


def test_an_expired_token_never_gets_a_replay(shop: Shop) -> None:
    shop.post(token="Bearer a")
    del shop.users["Bearer a"]
    answer = shop.post(token="Bearer a")
    assert (answer.status_code, replayed(answer)) == (401, False)


def test_another_user_with_the_same_key_has_an_effect_of_its_own(shop: Shop) -> None:
    shop.post(token="Bearer a")
    assert shop.post(token="Bearer c").json == {"charge": 2}


@pytest.mark.parametrize("policy", [Policy(), Policy.at_most_once(), Policy.stripe_v1()])
def test_a_request_refused_before_the_view_leaves_no_record(policy: Policy) -> None:
    shop = Shop(policy=policy)
    refused = [
        shop.post(token="Bearer x"),
        shop.post("/nowhere"),
        shop.app.test_client().get("/charges", headers={"Authorization": "Bearer a", "Idempotency-Key": "k"}),
    ]
    assert [answer.status_code for answer in refused] == [401, 404, 405]
    assert (shop.records, shop.effects) == (0, 0)
    assert shop.post().status_code == 201


def test_an_abort_of_the_view_is_recorded(shop: Shop) -> None:
    for _ in range(2):
        assert shop.post(json={"amount": -1}).status_code == 422
    assert shop.effects == 1


def test_another_body_under_the_same_key_is_a_mismatch(shop: Shop) -> None:
    shop.post()
    answer = shop.post(json={"amount": 6})
    assert (answer.status_code, answer.content_type) == (422, "application/problem+json")
    assert shop.effects == 1


def test_a_form_can_be_read_by_the_view_and_is_part_of_the_fingerprint(shop: Shop) -> None:
    def form() -> Any:
        shop.effects += 1
        return jsonify(a=request.form["a"])

    shop.app.before_request(lambda: request.form and None)  # parses the body before the claim
    shop.app.post("/form")(shop.once.protect(form))
    assert [shop.post("/form", data={"a": "1"}).json for _ in range(2)] == [{"a": "1"}] * 2
    assert shop.post("/form", data={"a": "2"}).status_code == 422
    assert shop.effects == 1


def test_an_unprotected_view_reads_its_whole_body_and_leaves_no_record(shop: Shop) -> None:
    for _ in range(2):
        answer = shop.post("/unprotected", data={"a": "1"})
        assert (answer.json, replayed(answer)) == ({"size": 0, "form": "1"}, False)
    large = shop.post("/unprotected", data=b"x" * 2_000_000)
    assert large.json == {"size": 2_000_000, "form": None}
    assert shop.records == 0


def test_a_body_over_the_limit_is_refused(shop: Shop) -> None:
    answer = shop.post(data=b"x" * 2_000_000)
    assert (answer.status_code, shop.effects, shop.records) == (413, 0, 0)


def test_a_view_that_raises_frees_the_key(shop: Shop) -> None:
    def broken() -> Any:
        shop.effects += 1
        raise LookupError

    shop.app.post("/broken")(shop.once.protect(broken))
    assert [shop.post("/broken").status_code for _ in range(2)] == [500, 500]
    assert (shop.effects, shop.records) == (2, 0)


def test_an_exception_that_reaches_the_server_frees_the_key(shop: Shop) -> None:
    def broken() -> Any:
        raise LookupError

    shop.app.post("/broken")(shop.once.protect(broken))
    shop.app.testing = True
    with pytest.raises(LookupError):
        shop.post("/broken")
    assert shop.records == 0


def test_a_blueprint_view_may_have_its_own_policy(shop: Shop) -> None:
    payments = Blueprint("payments", "payments")

    @payments.post("/refunds")
    @shop.once.protect(policy=Policy(required=True))
    def refund() -> str:
        return "refunded"

    shop.app.register_blueprint(payments, url_prefix="/v1")
    assert shop.post("/v1/refunds", key=None).status_code == 400
    assert [replayed(shop.post("/v1/refunds")) for _ in range(2)] == [False, True]


def test_an_async_view_runs_once_and_sees_its_claim(shop: Shop) -> None:
    async def slow() -> Any:
        await asyncio.sleep(0)
        shop.effects += 1
        shop.claims.append(current_claim())
        return jsonify(charge=shop.effects)

    shop.app.post("/slow")(shop.once.protect(slow))
    assert [shop.post("/slow").json for _ in range(2)] == [{"charge": 1}] * 2
    assert shop.claims[0] is not None


def test_current_claim_is_set_only_during_a_keyed_request(shop: Shop) -> None:
    shop.post()
    shop.post(key=None)
    assert shop.claims[0].attempt == 1
    assert (shop.claims[1], current_claim()) == (None, None)


def test_a_streamed_answer_over_max_response_bytes_is_sent_and_its_retry_gets_409() -> None:
    shop = Shop(policy=Policy(max_response_bytes=10))

    def stream() -> Response:
        shop.effects += 1
        return Response(iter([b"0123456789", b"0123456789"]))

    shop.app.post("/stream")(shop.once.protect(stream))
    assert shop.post("/stream").data == b"0123456789" * 2
    assert (shop.post("/stream").status_code, shop.effects) == (409, 1)


def test_a_principal_that_raises_missing_tenant_gets_a_400_problem() -> None:
    def nobody() -> str:
        raise MissingTenant("log in")

    app = Flask("shop")
    once = Idempotency(store=SyncMemoryStore(), principal=nobody)
    once.init_app(app)
    app.post("/charges")(once.protect(lambda: "charged"))
    answer = app.test_client().post("/charges", headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")


def test_a_protected_view_without_init_app_raises_and_does_not_run() -> None:
    app, effects = Flask("shop"), []
    once = Idempotency(store=SyncMemoryStore(), principal=lambda: "alice")
    app.post("/charges")(once.protect(lambda: effects.append(1) or "charged"))
    app.testing = True
    with pytest.raises(RuntimeError, match="init_app"):
        app.test_client().post("/charges", headers={"Idempotency-Key": "k"})
    assert effects == []


def test_installing_a_second_extension_or_the_same_twice_is_refused(shop: Shop) -> None:
    """With two layers around the application, both would take a request as their own."""
    layer = shop.app.wsgi_app
    with pytest.raises(RuntimeError, match="already has an Idempotency"):
        Idempotency(shop.app, store=SyncMemoryStore(), principal=lambda: "alice")
    with pytest.raises(RuntimeError, match="already has an Idempotency"):
        shop.once.init_app(shop.app)
    assert shop.app.wsgi_app == layer
    assert [shop.post().status_code for _ in range(2)] == [201, 201]
    assert (shop.effects, shop.records) == (1, 1)


def test_a_failed_installation_leaves_the_application_free_for_another_extension() -> None:
    app = Flask("shop")
    with pytest.raises(TypeError, match="SyncStore"):
        Idempotency(app, store=MemoryStore(), principal=lambda: "alice")  # type: ignore[arg-type]
    once = Idempotency(app, store=SyncMemoryStore(), principal=lambda: "alice")
    app.post("/charges")(once.protect(lambda: "charged"))
    answers = [app.test_client().post("/charges", headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [replayed(answer) for answer in answers] == [False, True]


def test_a_view_protected_by_an_uninstalled_extension_raises_and_does_not_run(shop: Shop) -> None:
    """Its claim would be made in the installed extension's store, not in its own."""
    other = Idempotency(store=SyncMemoryStore(), principal=lambda: "alice")
    shop.app.post("/other", endpoint="other")(other.protect(shop.charge))
    shop.app.testing = True
    with pytest.raises(RuntimeError, match="one Idempotency for each application"):
        shop.post("/other")
    assert (shop.effects, shop.records) == (0, 0)


def test_a_view_protected_twice_raises_and_does_not_run(shop: Shop) -> None:
    shop.app.post("/twice", endpoint="twice")(shop.once.protect(shop.once.protect(shop.charge)))
    shop.app.testing = True
    with pytest.raises(RuntimeError, match="claim once"):
        shop.post("/twice")
    assert (shop.effects, shop.records) == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"store": MemoryStore()},
        {"principal": "alice"},
        {"policy": "at_most_once"},
        {"hooks": [int]},
    ],
)
def test_an_option_of_the_wrong_type_is_refused_at_once(wrong: dict[str, Any]) -> None:
    options: dict[str, Any] = {"store": SyncMemoryStore(), "principal": lambda: "alice"} | wrong
    with pytest.raises(TypeError):
        Idempotency(Flask("shop"), **options)


def test_each_origin_gets_its_own_cors_headers_on_replays_and_refusals() -> None:
    """CORS extensions set these headers on every answer; a browser hides an answer without them."""
    shop = Shop()

    def allow(response: Response) -> Response:
        if request.headers.get("Origin") in {"https://a", "https://b"}:
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Vary"] = "Origin"
        return response

    shop.app.after_request(allow)

    def post(origin: str, amount: int = 5) -> TestResponse:
        headers = {"Authorization": "Bearer a", "Idempotency-Key": "k", "Origin": origin}
        return shop.app.test_client().post("/charges", headers=headers, json={"amount": amount})

    post("https://a")
    again, refused, foreign = post("https://b"), post("https://b", amount=6), post("https://c")
    assert replayed(again)
    assert refused.status_code == 422
    for answer in (again, refused):
        assert answer.headers.getlist("Access-Control-Allow-Origin") == ["https://b"]
        assert answer.headers.getlist("Vary") == ["Origin"]
    assert foreign.headers["Access-Control-Allow-Origin"] == "https://a", "which its browser does not accept"
