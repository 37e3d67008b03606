"""FastAPI with `idempotency.fastapi`: a refusal before the endpoint makes no store call; a replay requires a login."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import anyio
import fastapi
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from openapi_spec_validator import validate
from patience import PATIENCE
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware

from idempotency import Policy, current_claim
from idempotency.fastapi import Idempotent, install
from idempotency.stores.memory import MemoryStore, SyncMemoryStore

pytestmark = pytest.mark.anyio

FASTAPI = tuple(int(part) for part in fastapi.__version__.split(".")[:2])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class CountingStore(MemoryStore):
    """A store that counts the calls of `acquire`."""

    acquire_calls = 0

    async def acquire(self, *args: Any, **kwargs: Any) -> Any:
        self.acquire_calls += 1
        return await super().acquire(*args, **kwargs)


class User(BaseModel):
    id: str


class Charge(BaseModel):
    amount: int


class Shop:
    """An application with tokens that change, and a count of its effects."""

    def __init__(self, **options: Any) -> None:
        self.store = CountingStore()
        self.tokens = {"Bearer a": "alice", "Bearer b": "alice", "Bearer c": "bob"}
        self.effects = 0
        self.claims: list[Any] = []
        self.app = FastAPI()
        install(self.app, store=self.store)

        async def current_user(authorization: Annotated[str | None, Header()] = None) -> User:
            if authorization not in self.tokens:
                raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
            return User(id=self.tokens[authorization])

        self.current_user = current_user
        self.once = Idempotent(principal=current_user, name=lambda user: user.id, **options)

    def effect(self) -> dict[str, int]:
        self.effects += 1
        self.claims.append(current_claim())
        return {"charge": self.effects}

    async def post(
        self, path: str = "/charges", *, key: str | None = "k", token: str | None = "Bearer a", **sent: Any
    ) -> httpx.Response:
        headers = ({} if key is None else {"Idempotency-Key": key}) | (
            {} if token is None else {"Authorization": token}
        )
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(
                sent.pop("method", "POST"), path, headers=headers, **(sent or {"json": {"amount": 5}})
            )


def replayed(answer: httpx.Response) -> bool:
    return answer.headers.get("idempotency-replayed") == "true"


def add_charges(shop: Shop, **options: Any) -> None:
    @shop.app.post("/charges", status_code=201)
    @(shop.once.protect(**options) if options else shop.once.protect)
    async def charge(body: Charge, user: Annotated[User, Depends(shop.current_user)]) -> dict[str, int]:
        return shop.effect()


@pytest.fixture
def shop() -> Shop:
    shop = Shop()
    add_charges(shop)
    return shop


async def test_a_repeated_request_gets_the_first_answer_and_runs_the_endpoint_once(shop: Shop) -> None:
    first, again = await shop.post(), await shop.post()
    assert (first.status_code, first.json(), replayed(first)) == (201, {"charge": 1}, False)
    assert (again.status_code, again.json(), replayed(again)) == (201, {"charge": 1}, True)
    assert again.headers["content-type"] == first.headers["content-type"]


async def test_a_request_without_a_key_runs_unprotected(shop: Shop) -> None:
    assert [(await shop.post(key=None)).json() for _ in range(2)] == [{"charge": 1}, {"charge": 2}]
    assert (shop.store.acquire_calls, shop.claims) == (0, [None, None])


async def test_a_refreshed_token_of_the_same_user_gets_the_replay(shop: Shop) -> None:
    await shop.post(token="Bearer a")
    assert replayed(await shop.post(token="Bearer b"))
    assert (await shop.post(token="Bearer c")).json() == {"charge": 2}


async def test_an_expired_token_never_gets_a_replay(shop: Shop) -> None:
    await shop.post(token="Bearer a")
    del shop.tokens["Bearer a"]
    answer = await shop.post(token="Bearer a")
    assert (answer.status_code, replayed(answer)) == (401, False)


@pytest.mark.parametrize("policy", [Policy(), Policy.at_most_once(), Policy.stripe_v1()])
async def test_a_request_refused_before_the_endpoint_makes_no_store_call(policy: Policy) -> None:
    shop = Shop(policy=policy)
    add_charges(shop)

    @shop.app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"mine": True}, 400)

    answers = [
        await shop.post(token=None),
        await shop.post(token="Bearer x"),
        await shop.post(json={"amount": "many"}),
        await shop.post(content=b'{"amount": '),
        await shop.post("/nowhere"),
        await shop.post(method="PATCH"),
        await shop.post("/charges/"),
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 400, 400, 404, 405, 307]
    assert (shop.store.acquire_calls, shop.effects) == (0, 0)
    assert (await shop.post()).status_code == 201


async def test_another_body_under_the_same_key_is_a_mismatch(shop: Shop) -> None:
    await shop.post()
    answer = await shop.post(json={"amount": 6})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert shop.effects == 1


async def test_an_invalid_key_is_refused_after_authentication_without_a_store_call(shop: Shop) -> None:
    assert (await shop.post(key="a, b")).status_code == 400
    assert (await shop.post(key="a, b", token=None)).status_code == 401
    assert (shop.effects, shop.store.acquire_calls) == (0, 0)


async def test_a_missing_key_is_refused_where_the_policy_requires_one() -> None:
    shop = Shop()
    add_charges(shop, policy=Policy(required=True))
    answer = await shop.post(key=None)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert shop.effects == 0


async def test_concurrent_duplicates_have_one_effect() -> None:
    shop = Shop(policy=Policy(wait=PATIENCE))

    @shop.app.post("/slow", status_code=201)
    @shop.once.protect
    async def slow(body: Charge) -> dict[str, int]:
        await anyio.wait_all_tasks_blocked()  # the duplicates wait
        return shop.effect()

    answers = await asyncio.gather(*[shop.post("/slow") for _ in range(50)])
    assert {answer.status_code for answer in answers} == {201}
    assert sum(replayed(answer) for answer in answers) == 49
    assert shop.effects == 1


async def test_a_sync_endpoint_sees_its_claim_in_a_worker_thread() -> None:
    shop, threads = Shop(), list[threading.Thread]()

    @shop.app.post("/charges", status_code=201)
    @shop.once.protect
    def charge(body: Charge) -> dict[str, int]:
        threads.append(threading.current_thread())
        return shop.effect()

    assert [replayed(await shop.post()) for _ in range(2)] == [False, True]
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
    assert shop.claims[0] is not None
    assert shop.claims[0].attempt == 1


async def test_a_route_class_protects_the_post_endpoints_of_a_router() -> None:
    shop = Shop()
    router = APIRouter(prefix="/v1", route_class=shop.once.route_class)

    @router.post("/charges", status_code=201)
    async def charge(body: Charge) -> dict[str, int]:
        return shop.effect()

    @router.get("/charges")
    async def charges() -> dict[str, int]:
        return shop.effect()

    shop.app.include_router(router, prefix="/api")
    assert [replayed(await shop.post("/api/v1/charges")) for _ in range(2)] == [False, True]
    assert (await shop.post("/api/v1/charges", token=None)).status_code == 401
    for _ in range(2):
        await shop.post("/api/v1/charges", method="GET")
    assert shop.effects == 3


async def test_an_endpoint_that_raises_frees_the_key(shop: Shop) -> None:
    @shop.app.post("/broken")
    @shop.once.protect
    async def broken(body: Charge) -> None:
        shop.effect()
        raise LookupError

    assert [(await shop.post("/broken")).status_code for _ in range(2)] == [500, 500]
    assert shop.effects == 2


async def test_at_most_once_never_repeats_an_endpoint_that_raised() -> None:
    shop = Shop(policy=Policy.at_most_once())

    @shop.app.post("/charges")
    @shop.once.protect
    async def broken(body: Charge) -> None:
        shop.effect()
        raise LookupError

    assert [(await shop.post()).status_code for _ in range(2)] == [500, 500]
    assert shop.effects == 1


async def test_an_http_exception_of_the_endpoint_is_recorded_and_replayed(shop: Shop) -> None:
    @shop.app.post("/refuse")
    @shop.once.protect
    async def refuse(body: Charge) -> None:
        shop.effect()
        raise HTTPException(409, "sold out")

    answers = [await shop.post("/refuse") for _ in range(2)]
    assert [(answer.status_code, answer.json(), replayed(answer)) for answer in answers] == [
        (409, {"detail": "sold out"}, False),
        (409, {"detail": "sold out"}, True),
    ]
    assert shop.effects == 1


async def test_a_streaming_response_is_recorded_and_replayed_whole(shop: Shop) -> None:
    @shop.app.post("/stream")
    @shop.once.protect
    async def stream(body: Charge) -> StreamingResponse:
        shop.effect()
        return StreamingResponse(iter([b"one", b"two"]))

    answers = [await shop.post("/stream") for _ in range(2)]
    assert [(answer.content, replayed(answer)) for answer in answers] == [
        (b"onetwo", False),
        (b"onetwo", True),
    ]


@pytest.mark.skipif(FASTAPI < (0, 134), reason="FastAPI has generator endpoints since 0.134")
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_generator_endpoint_claims_before_its_answer_begins(shop: Shop, kind: str) -> None:
    async def async_lines(body: Charge) -> AsyncIterator[dict[str, int]]:
        yield shop.effect()
        yield {"last": 1}

    def plain_lines(body: Charge) -> Iterator[dict[str, int]]:
        yield shop.effect()
        yield {"last": 1}

    endpoint: Any = async_lines if kind == "async" else plain_lines
    shop.app.post("/lines")(shop.once.protect(endpoint))
    answers = [await shop.post("/lines") for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert b'{"charge":1}' in answers[0].content
    assert [replayed(answer) for answer in answers] == [False, True]
    assert (await shop.post("/lines", json={"amount": 6})).status_code == 422
    assert shop.effects == 1


async def test_a_yield_dependency_sees_a_replay_as_an_http_exception(shop: Shop) -> None:
    seen: list[str] = []

    async def session() -> AsyncIterator[None]:
        try:
            yield
        except HTTPException:
            seen.append("rolled back")
            raise
        else:
            seen.append("committed")

    @shop.app.post("/commit", status_code=201)
    @shop.once.protect
    async def commit(body: Charge, _: Annotated[None, Depends(session)]) -> dict[str, int]:
        return shop.effect()

    assert [(await shop.post("/commit")).status_code for _ in range(2)] == [201, 201]
    assert seen == ["committed", "rolled back"]


async def test_record_return_does_not_record_a_commit_that_fails_in_a_dependencys_exit() -> None:
    shop, fail = Shop(policy=Policy(record="return")), [True, False]

    async def session() -> AsyncIterator[None]:
        yield
        if fail.pop(0):
            raise LookupError("the commit failed")

    @shop.app.post("/commit", status_code=201)
    @shop.once.protect
    async def commit(body: Charge, _: Annotated[None, Depends(session)]) -> dict[str, int]:
        return shop.effect()

    answers = [await shop.post("/commit") for _ in range(3)]
    assert [(answer.status_code, replayed(answer)) for answer in answers] == [
        (500, False),
        (201, False),
        (201, True),
    ]


async def test_a_dependency_override_replaces_the_principal(shop: Shop) -> None:
    shop.app.dependency_overrides[shop.current_user] = lambda: User(id="carol")
    assert (await shop.post(token=None)).status_code == 201
    shop.app.dependency_overrides.clear()
    assert not replayed(await shop.post(token="Bearer a"))


async def test_an_endpoint_that_a_middleware_runs_in_another_task_is_replayed(shop: Shop) -> None:
    async def slow_down(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    shop.app.add_middleware(BaseHTTPMiddleware, dispatch=slow_down)
    assert [replayed(await shop.post()) for _ in range(2)] == [False, True]
    assert shop.claims[0] is not None


async def test_an_exception_handler_of_the_application_cannot_change_a_replay(shop: Shop) -> None:
    @shop.app.exception_handler(HTTPException)
    async def mine(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"mine": True}, 418)

    first, again = await shop.post(), await shop.post()
    assert (again.status_code, again.json(), replayed(again)) == (201, first.json(), True)


async def test_a_body_over_the_limit_is_refused(shop: Shop) -> None:
    answer = await shop.post(json={"amount": 5, "note": "x" * 1_100_000})
    assert (answer.status_code, shop.effects, shop.store.acquire_calls) == (413, 0, 0)


async def test_a_protected_endpoint_without_install_answers_500_and_does_not_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    shop = Shop()
    shop.app = FastAPI()
    add_charges(shop)
    assert (await shop.post()).status_code == 500
    assert shop.effects == 0


async def test_calling_a_protected_endpoint_directly_raises_and_says_what_to_call() -> None:
    once = Idempotent(principal=lambda: "alice")

    @once.protect
    async def charge() -> None: ...

    with pytest.raises(RuntimeError, match="below the decorator"):
        await charge()


@pytest.mark.parametrize("wrong", [{"principal": "alice"}, {"name": "id"}, {"policy": "at_most_once"}])
def test_an_option_of_the_wrong_type_is_refused_at_once(wrong: dict[str, Any]) -> None:
    options: dict[str, Any] = {"principal": lambda: "alice"} | wrong
    with pytest.raises(TypeError):
        Idempotent(**options)


def test_a_store_of_the_wrong_kind_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="SyncMemoryStore"):
        install(FastAPI(), store=SyncMemoryStore())  # type: ignore[arg-type]


async def test_openapi_documents_the_header_and_the_problems_of_protected_endpoints(shop: Shop) -> None:
    router = APIRouter(prefix="/v1", route_class=shop.once.route_class)

    @router.post("/refunds")
    async def refund(body: Charge) -> None: ...

    @shop.app.post("/plain")
    async def plain(body: Charge) -> None: ...

    shop.app.include_router(router)
    document = shop.app.openapi()
    validate(document)
    for path in ("/charges", "/v1/refunds"):
        operation = document["paths"][path]["post"]
        names = [parameter["name"] for parameter in operation["parameters"]]
        assert names.count("Idempotency-Key") == 1
        assert "application/problem+json" in operation["responses"]["409"]["content"]
    assert "parameters" not in document["paths"]["/plain"]["post"]
    assert "idempotency_pending_claim" not in str(document)
