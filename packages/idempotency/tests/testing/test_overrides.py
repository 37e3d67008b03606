"""Unit tests of an application, with protection off or over stores in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.http import JsonResponse
from django.test import Client, override_settings
from django.urls import path
from django_project import configure, set_urls
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask, jsonify
from litestar import Litestar, post
from litestar import Request as LitestarRequest
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient as StarletteClient

from idempotency import IdempotencyMiddleware, Policy, StoreUnavailable, idempotent, one_tenant
from idempotency.asgi import LateClaim, claim
from idempotency.fastapi import Idempotent, install
from idempotency.flask import Idempotency
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.testing import protection_off, swapped_stores

POLICY = Policy(required=True)


class DownStore(MemoryStore):
    async def acquire(self, *args: Any, **options: Any) -> Any:
        raise StoreUnavailable("this store is not for unit tests")


class SyncDownStore(SyncMemoryStore):
    def acquire(self, *args: Any, **options: Any) -> Any:
        raise StoreUnavailable("this store is not for unit tests")


class Shop:
    """A route in one framework, over a store that a unit test cannot reach; `post` returns the status."""

    def __init__(self, framework: str) -> None:
        self.runs = 0
        make = getattr(self, "_" + framework)
        self.client: Any = make()

    def run(self) -> dict[str, int]:
        self.runs += 1
        return {"run": self.runs}

    def _starlette(self) -> Any:
        async def endpoint(request: Any) -> JSONResponse:
            return JSONResponse(self.run())

        app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
        guarded = IdempotencyMiddleware(app, store=DownStore(), tenant=one_tenant(), policy=POLICY)
        return StarletteClient(guarded)

    def _fastapi(self) -> Any:
        app = FastAPI()
        install(app, store=DownStore())

        @app.post("/")
        @Idempotent(principal=lambda: "alice", policy=POLICY).protect
        async def endpoint() -> dict[str, int]:
            return self.run()

        return TestClient(app)

    def _flask(self) -> Any:
        app = Flask("shop")
        once = Idempotency(app, store=SyncDownStore(), principal=lambda: "alice", policy=POLICY)

        def view() -> Any:
            return jsonify(self.run())

        app.post("/")(once.protect(view))
        return app.test_client()

    def _litestar(self) -> Any:
        @post("/", status_code=200)
        async def endpoint(request: LitestarRequest[Any, Any, Any]) -> dict[str, int]:
            await claim(request.scope, "alice", POLICY)
            return self.run()

        return StarletteClient(
            Litestar([endpoint], middleware=[DefineMiddleware(LateClaim, store=DownStore())])
        )

    def _django(self) -> Any:
        def view(_: Any) -> JsonResponse:
            return JsonResponse(self.run())

        configure()
        set_urls([path("", view)])
        settings = {"STORE": SyncDownStore, "PRINCIPAL": lambda _: "alice", "POLICY": POLICY}
        with override_settings(MIDDLEWARE=["idempotency.django.IdempotencyMiddleware"], IDEMPOTENCY=settings):
            client = Client()
            client.handler.load_middleware()
        return client

    def post(self, key: str | None = None) -> int:
        headers = {} if key is None else {"Idempotency-Key": key}
        status: int = self.client.post("/", headers=headers).status_code
        return status


@pytest.fixture(params=["starlette", "fastapi", "litestar", "flask", "django"])
def shop(request: pytest.FixtureRequest) -> Shop:
    return Shop(request.param)


def test_protection_off_requires_no_key_and_calls_no_store(shop: Shop) -> None:
    assert (shop.post(), shop.post("k"), shop.runs) == (400, 503, 0)
    with protection_off():
        assert (shop.post(), shop.post("k"), shop.post("k"), shop.runs) == (200, 200, 200, 3)
    assert (shop.post(), shop.post("k"), shop.runs) == (400, 503, 3)


def test_swapped_stores_protect_in_memory_and_start_empty_each_time(shop: Shop) -> None:
    for runs in (1, 2):
        with swapped_stores():
            assert (shop.post("k"), shop.post("k"), shop.post()) == (200, 200, 400)
            assert shop.runs == runs
    assert shop.post("k") == 503


def test_protection_off_and_swapped_stores_apply_to_decorated_functions() -> None:
    runs: list[str] = []
    pay = idempotent(store=SyncDownStore(), operation="pay", key=lambda order: order)(runs.append)
    with protection_off():
        pay("o-1")
        pay("o-1")
    assert runs == ["o-1", "o-1"]
    with swapped_stores():
        pay("o-1")
        pay("o-1")
    assert runs == ["o-1", "o-1", "o-1"]
    with pytest.raises(StoreUnavailable):
        pay("o-1")


def test_functions_with_one_store_share_its_replacement_and_others_do_not() -> None:
    shared, own = SyncMemoryStore(), SyncMemoryStore()
    runs: list[str] = []

    def pay(store: SyncMemoryStore) -> Any:
        return idempotent(store=store, operation="pay", key=lambda order: order)(runs.append)

    first, second, third = pay(shared), pay(shared), pay(own)
    with swapped_stores():
        made_meanwhile = pay(shared)
        for each in (first, second, third, made_meanwhile):
            each("o-1")
    assert runs == ["o-1"] * 2
    assert not shared.scan().records
    made_meanwhile("o-2")
    assert len(shared.scan().records) == 1


def test_swapping_twice_is_refused_and_stores_are_restored_after_an_error() -> None:
    with swapped_stores(), pytest.raises(RuntimeError, match="already swapped"), swapped_stores():
        pass
    runs: list[str] = []
    pay = idempotent(store=SyncDownStore(), operation="pay", key=lambda order: order)(runs.append)
    with pytest.raises(LookupError), swapped_stores():
        raise LookupError
    with pytest.raises(StoreUnavailable):
        pay("o-1")


def test_a_replacement_of_the_wrong_kind_is_refused_and_no_store_is_swapped() -> None:
    runs: list[str] = []
    pay = idempotent(store=SyncDownStore(), operation="pay", key=lambda order: order)(runs.append)
    with pytest.raises(TypeError, match="cannot be replaced"), swapped_stores(make_sync=MemoryStore):  # type: ignore[arg-type]
        pass
    with pytest.raises(StoreUnavailable):
        pay("o-1")
    with swapped_stores():
        pay("o-1")
    assert runs == ["o-1"]


def test_the_fixtures_work_by_name_and_only_where_the_plugin_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["idempotency.testing.fixtures"]\n')
    (tmp_path / "test_pay.py").write_text(
        "from idempotency import idempotent\n"
        "from idempotency.stores.memory import SyncMemoryStore\n"
        "runs = []\n"
        "store = SyncMemoryStore()\n"
        "pay = idempotent(store=store, operation='pay', key=lambda order: order)(runs.append)\n"
        "def test_off(idempotency_off):\n"
        "    pay('o-1'); pay('o-1')\n"
        "    assert runs == ['o-1', 'o-1']\n"
        "def test_in_memory(idempotency_in_memory):\n"
        "    pay('o-2'); pay('o-2')\n"
        "    assert runs[2:] == ['o-2']\n"
        "    assert not store.scan().records\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    (tmp_path / "conftest.py").unlink()
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert "fixture 'idempotency_off' not found" in done.stdout
