"""FastAPI's routing around protected endpoints: nested routers, WebSockets, mounted applications, background tasks."""

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, WebSocket
from fastapi.testclient import TestClient
from pydantic import BaseModel

from idempotency.fastapi import Idempotent, install
from idempotency.stores.memory import MemoryStore


class CountingStore(MemoryStore):
    acquire_calls = 0

    async def acquire(self, *args: Any, **kwargs: Any) -> Any:
        self.acquire_calls += 1
        return await super().acquire(*args, **kwargs)


class Charge(BaseModel):
    amount: int


TOKENS = {"a": "alice", "b": "alice"}


def current_user(authorization: Annotated[str, Header()] = "") -> str:
    if authorization not in TOKENS:
        raise HTTPException(401)
    return TOKENS[authorization]


class Shop:
    """An application with endpoints in a router, a nested router and a mounted application, and a log of events."""

    def __init__(self) -> None:
        self.store, self.charged, self.log = CountingStore(), 0, list[str]()
        once = Idempotent(principal=current_user)
        self.app = FastAPI()
        install(self.app, store=self.store)

        async def connection() -> AsyncIterator[None]:
            self.log.append("open")
            try:
                yield
            finally:
                self.log.append("closed")

        async def account(
            _: Annotated[None, Depends(connection)], user: Annotated[str, Depends(current_user)]
        ) -> str:
            return user

        router = APIRouter(prefix="/v1", route_class=once.route_class, dependencies=[Depends(account)])

        @router.post("/charges", status_code=201)
        async def charge(body: Charge, tasks: BackgroundTasks) -> dict[str, int]:
            tasks.add_task(self.log.append, "mailed")
            return self.charge()

        @router.websocket("/rates")
        async def rates(socket: WebSocket) -> None:
            await socket.accept()
            await socket.send_text(await socket.receive_text())
            await socket.close()

        inner, mounted = APIRouter(prefix="/inner", route_class=once.route_class), FastAPI()
        for place in (inner, mounted):

            @place.post("/charges", status_code=201)
            @once.protect
            def plain_charge(body: Charge) -> dict[str, int]:
                return self.charge()

        router.include_router(inner)
        self.app.include_router(router, prefix="/api")
        self.app.mount("/mounted", mounted)

    def charge(self) -> dict[str, int]:
        self.charged += 1
        return {"charge": self.charged}


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def client(shop: Shop) -> Iterator[TestClient]:
    with TestClient(shop.app, headers={"Idempotency-Key": "k"}) as client:
        yield client


@pytest.mark.parametrize("path", ["/api/v1/charges", "/api/v1/inner/charges", "/mounted/charges"])
def test_an_endpoint_of_any_router_claims_only_after_authentication_and_validation(
    shop: Shop, client: TestClient, path: str
) -> None:
    def post(token: str, **sent: Any) -> Any:
        return client.post(path, headers={"Authorization": token}, **(sent or {"json": {"amount": 5}}))

    refused = [post("expired"), post("a", json={"amount": "many"}), post("a", content=b'{"amount": ')]
    assert [answer.status_code for answer in refused] == [401, 422, 422]
    assert (shop.store.acquire_calls, shop.charged) == (0, 0)
    first, again = post("a"), post("b")
    assert first.json() == again.json() == {"charge": 1}
    assert again.headers["idempotency-replayed"] == "true"
    assert post("expired").status_code == 401


def test_a_replay_runs_no_background_task_and_closes_what_dependencies_opened(
    shop: Shop, client: TestClient
) -> None:
    for _ in range(2):
        client.post("/api/v1/charges", headers={"Authorization": "a"}, json={"amount": 5})
    assert sorted(shop.log) == ["closed", "closed", "mailed", "open", "open"]


def test_a_websocket_of_a_protected_router_makes_no_store_call(shop: Shop, client: TestClient) -> None:
    with client.websocket_connect("/api/v1/rates", headers={"Authorization": "a"}) as socket:
        socket.send_text("EUR")
        assert socket.receive_text() == "EUR"
    assert shop.store.acquire_calls == 0


class CallableEndpoint:
    """An endpoint that is an object."""

    def __init__(self) -> None:
        self.effects = 0

    async def __call__(self) -> int:
        self.effects += 1
        return self.effects


@pytest.mark.parametrize("wrap", [lambda endpoint: endpoint, partial], ids=["object", "partial"])
def test_an_endpoint_may_be_an_object_with_an_async_call_method(wrap: Any) -> None:
    app, endpoint = FastAPI(), CallableEndpoint()
    install(app, store=MemoryStore())
    app.post("/charges")(Idempotent(principal=lambda: "alice").protect(wrap(endpoint)))
    client = TestClient(app)
    first, again = (client.post("/charges", headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.json(), again.json(), again.headers["Idempotency-Replayed"]) == (1, 1, "true")
    assert endpoint.effects == 1
