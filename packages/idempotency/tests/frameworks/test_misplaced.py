"""Mistakes of set-up are errors that say what to do, and no handler runs without protection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from flask import Flask

from idempotency import Policy, idempotent
from idempotency.asgi import LateClaim
from idempotency.fastapi import Idempotent, install
from idempotency.flask import Idempotency
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

KEY = {"Idempotency-Key": "k"}


def user() -> str:
    return "alice"


@pytest.fixture
def once() -> Idempotent[str]:
    return Idempotent(principal=user)


def wrapping(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator between `protect` and the route."""
    from functools import wraps

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@pytest.mark.parametrize("between", [unchanged, wrapping])
@pytest.mark.parametrize("place", ["app", "router", "mounted"])
def test_fastapi_raises_and_runs_nothing_where_protect_is_above_the_route_decorator(
    once: Idempotent[str], place: str, between: Callable[..., Any]
) -> None:
    app, router, inner, ran = FastAPI(), APIRouter(), FastAPI(), list[int]()
    install(app, store=MemoryStore())
    where: Any = {"app": app, "router": router, "mounted": inner}[place]

    @once.protect
    @between
    @where.post("/charges")
    def charge() -> int:
        ran.append(1)
        return 1

    if place == "router":
        app.include_router(router, prefix="/v1")
    app.mount("/inner", inner)
    path = {"app": "/charges", "router": "/v1/charges", "mounted": "/inner/charges"}[place]
    with pytest.raises(RuntimeError, match=f"POST {path} is not protected: .* Put protect below"):
        TestClient(app).post(path, headers=KEY)
    assert ran == []


def test_flask_raises_and_runs_nothing_where_protect_is_above_the_route_decorator() -> None:
    app, ran = Flask("shop"), list[int]()
    protection = Idempotency(app, store=SyncMemoryStore(), principal=user)

    @protection.protect
    @app.post("/charges")
    def charge() -> str:
        ran.append(1)
        return "charged"

    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"the view charge is not protected: .* Put protect below"):
            app.test_client().post("/charges", headers=KEY)
    assert ran == []


def test_an_endpoint_of_a_protecting_route_class_needs_no_protect(once: Idempotent[str]) -> None:
    """The endpoint of the route is the protected one, although the function itself is bare."""
    app, router = FastAPI(), APIRouter(route_class=once.route_class)
    install(app, store=MemoryStore())

    @router.post("/charges")
    def charge() -> int:
        return 1

    app.include_router(router)
    client = TestClient(app)
    answers = [client.post("/charges", headers=KEY) for _ in range(2)]
    assert answers[1].headers["Idempotency-Replayed"] == "true"


def test_protecting_an_endpoint_twice_is_refused(once: Idempotent[str]) -> None:
    with pytest.raises(TypeError, match=r"user is protected already"):
        once.protect(once.protect(user))


def test_a_positional_policy_is_refused(once: Idempotent[str]) -> None:
    wrong: Any = Policy()
    with pytest.raises(TypeError, match=r"protect\(policy=\.\.\.\)"):
        once.protect(wrong)
    with pytest.raises(TypeError, match=r"protect\(policy=\.\.\.\)"):
        Idempotency(store=SyncMemoryStore(), principal=user).protect(wrong)


def test_a_second_install_in_one_application_is_refused() -> None:
    """Of two layers the inner one would win, and the store given to the outer one would have no records."""
    app = FastAPI()
    install(app, store=MemoryStore())
    with pytest.raises(RuntimeError, match=r"once for each application"):
        install(app, store=MemoryStore())
    by_hand = FastAPI()
    by_hand.add_middleware(LateClaim, store=MemoryStore())
    with pytest.raises(RuntimeError, match=r"once for each application"):
        install(by_hand, store=MemoryStore())


def test_the_error_for_an_application_without_install_says_how_to_install(once: Idempotent[str]) -> None:
    app = FastAPI()
    app.post("/charges")(once.protect(lambda: 1))
    with pytest.raises(RuntimeError, match=r"install\(app, store=\.\.\.\)"):
        TestClient(app).post("/charges")


def test_an_empty_principal_is_refused_as_missing_tenant() -> None:
    """Such as an anonymous user's name: two strangers would share their keys, and get each other's answers."""
    app, ran = FastAPI(), list[int]()
    install(app, store=MemoryStore())

    def nobody() -> str:
        return ""

    @app.post("/charges")
    @Idempotent(principal=nobody).protect
    def charge() -> int:
        ran.append(1)
        return 1

    client = TestClient(app)
    answer = client.post("/charges", headers=KEY)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:problem:idempotency:missing-tenant")
    assert ran == []
    assert client.post("/charges").status_code == 200, "a request without a key needs no principal"


def order(number: str, cents: int = 0) -> str:
    return number


@pytest.mark.parametrize("name", ["key", "fingerprint", "policy"])
def test_the_error_for_an_option_function_with_wrong_parameter_names_lists_the_arguments(name: str) -> None:
    options: dict[str, Any] = {"key": lambda number, cents=0: number, name: lambda order_number: order_number}
    decorated = idempotent(store=SyncMemoryStore(), operation="order", **options)(order)
    with pytest.raises(
        TypeError, match=f"^{name}= of order does not take the arguments .*'number'.* names of the"
    ):
        decorated(number="o-1")


def test_a_call_without_a_required_argument_raises_the_usual_type_error() -> None:
    decorated: Any = idempotent(
        store=SyncMemoryStore(), operation="order", key=lambda number, cents=0: str(number)
    )(order)
    with pytest.raises(TypeError, match=r"^missing a required argument: 'number'$"):
        decorated()


def test_a_type_error_inside_a_key_function_is_not_hidden() -> None:
    decorated = idempotent(store=SyncMemoryStore(), operation="order", key=lambda number: number + 1)(
        lambda number: number
    )
    with pytest.raises(TypeError, match=r"can only concatenate"):
        decorated("o-1")
