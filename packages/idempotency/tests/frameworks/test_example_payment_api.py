"""The example of a payment API: the payment and its record are in one transaction, also when the process is killed."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx
import psycopg
import pytest
from patience import set_long_default_deadline
from psycopg.conninfo import make_conninfo

from idempotency.stores.postgres import PostgresStore

pytestmark = [pytest.mark.real_time("a server is killed, and its leases run out"), pytest.mark.anyio]

EXAMPLE = Path(__file__).parents[4] / "examples" / "payment_api.py"

# Serves one payment and is killed at the named call of the store: before the middleware's own `complete` (the
# transaction is committed by then), or after `complete_in` (payment and record are written, nothing is committed).
KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, sys.argv[1])
import httpx, payment_api
from idempotency.stores.postgres import PostgresStore

written = PostgresStore.complete_in

async def die(*args, **kwargs):
    assert sys.argv[3] == "complete" or await written(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(PostgresStore, sys.argv[3], die)
PostgresStore.__init__.__kwdefaults__["deadline"] = 30.0  # the default of a second may pass before the first call

async def main():
    app = payment_api.create_app(sys.argv[2], lease=1.0)
    async with app.router.lifespan_context(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        await client.post("/payments", json={"payee": "bob", "cents": 500},
                          headers={"Authorization": "Bearer alice", "Idempotency-Key": "order-1"})

asyncio.run(main())
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    set_long_default_deadline(monkeypatch, PostgresStore)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("payment_api", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["payment_api"] = module  # where FastAPI looks for the names in annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def database(postgres_url: str, example: ModuleType) -> Iterator[str]:
    """A schema for one test, with two customers."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA payments")
        try:
            connection.execute("SET search_path = payments")
            connection.execute(example.SCHEMA)
            for name, cents in (("alice", 700), ("bob", 0)):
                connection.execute("INSERT INTO account VALUES (%s, %s)", (name, cents))
                for token in (name, f"{name}-renewed"):
                    digest = sha256(token.encode()).digest()
                    connection.execute("INSERT INTO token VALUES (%s, %s)", (digest, name))
            yield make_conninfo(postgres_url, options="-csearch_path=payments")
        finally:
            connection.execute("DROP SCHEMA payments CASCADE")


def rows(database: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database) as connection:
        return connection.execute(query.encode()).fetchall()


def money(database: str) -> dict[str, int]:
    return dict(rows(database, "SELECT name, cents FROM account"))


@asynccontextmanager
async def serving(example: ModuleType, database: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = example.create_app(database, **settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://test", headers={"Authorization": "Bearer alice"}, timeout=30
        ) as client,
    ):
        client.app = app  # type: ignore[attr-defined]
        yield client


async def pay(client: httpx.AsyncClient, key: str | None = "order-1", **body: Any) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post("/payments", json={"payee": "bob", "cents": 500} | body, headers=headers)


async def test_a_payment_sent_twice_moves_the_money_once(example: ModuleType, database: str) -> None:
    async with serving(example, database) as client:
        first, again = await pay(client), await pay(client)
    assert (first.status_code, first.json()) == (201, {"payment": 1})
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Expires-In" in first.headers, "the middleware knows that the answer is recorded"
    assert money(database) == {"alice": 200, "bob": 500}


async def test_a_payment_repeated_with_a_renewed_token_moves_the_money_once(
    example: ModuleType, database: str
) -> None:
    async with serving(example, database) as client:
        first = await pay(client)
        client.headers["Authorization"] = "Bearer alice-renewed"
        again = await pay(client)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert money(database) == {"alice": 200, "bob": 500}


async def test_duplicates_on_two_servers_pay_once_and_get_the_same_answer(
    example: ModuleType, database: str
) -> None:
    answers: list[httpx.Response] = []

    async def send(client: httpx.AsyncClient) -> None:
        answers.append(await pay(client))

    async with (
        serving(example, database) as one,
        serving(example, database) as two,
        anyio.create_task_group() as all_at_once,
    ):
        for client in (one, two) * 4:
            all_at_once.start_soon(send, client)
    assert {(answer.status_code, answer.content) for answer in answers} == {(201, b'{"payment":1}')}
    assert money(database) == {"alice": 200, "bob": 500}


async def test_a_replay_has_the_headers_of_the_first_answer(example: ModuleType, database: str) -> None:
    async with serving(example, database) as client:
        first, again = await pay(client), await pay(client)

    def own(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
        return [pair for pair in answer.headers.raw if not pair[0].lower().startswith(b"idempotency-")]

    assert own(first) == own(again)


@pytest.mark.parametrize(
    ("body", "status", "replayed"),
    [
        ({"cents": 701}, 402, "true"),
        ({"payee": "nobody"}, 404, "true"),
        (
            {"cents": 0},
            422,
            None,
        ),  # refused by the framework's validation: no handler ran, so the key stays free
    ],
)
async def test_a_refused_payment_moves_no_money_and_its_retry_gets_the_same_answer(
    example: ModuleType, database: str, body: dict[str, Any], status: int, replayed: str | None
) -> None:
    async with serving(example, database) as client:
        first, again = await pay(client, **body), await pay(client, **body)
    assert (first.status_code, again.status_code, again.content) == (status, status, first.content)
    assert again.headers.get("Idempotency-Replayed") == replayed
    assert money(database) == {"alice": 700, "bob": 0}


async def test_a_request_with_an_unknown_token_is_refused_and_leaves_no_record(
    example: ModuleType, database: str
) -> None:
    async with serving(example, database) as client:
        client.headers["Authorization"] = "Bearer mallory"
        answer = await pay(client)
        assert (await pay(client, key=None)).status_code == 401
        client.headers["Authorization"] = "Bearer alice"
        assert (await pay(client, key=None)).status_code == 400
    assert (answer.status_code, answer.json()) == (401, {"detail": "unknown token"})
    assert rows(database, "SELECT count(*) FROM idempotency_record") == [(0,)]


def serve_one_payment_and_die(database: str, *, at: str) -> None:
    command = [sys.executable, "-c", KILLED, str(EXAMPLE.parent), database, at]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL


async def test_a_kill_before_the_commit_undoes_payment_and_record_and_a_retry_pays_once(
    example: ModuleType, database: str
) -> None:
    serve_one_payment_and_die(database, at="complete_in")
    assert money(database) == {"alice": 700, "bob": 0}
    assert rows(database, "SELECT count(*) FROM payment") == [(0,)]
    async with serving(example, database) as client:
        answer = await pay(client)  # waits until the killed run's lease of one second lapses, then takes over
        again = await pay(client)
    assert (answer.status_code, "Idempotency-Replayed" in answer.headers) == (201, False)
    assert again.content == answer.content
    assert money(database) == {"alice": 200, "bob": 500}


async def test_a_kill_between_commit_and_answer_lets_a_retry_get_the_replay(
    example: ModuleType, database: str
) -> None:
    serve_one_payment_and_die(database, at="complete")
    assert money(database) == {"alice": 200, "bob": 500}
    async with serving(example, database) as client:
        again = await pay(client)
    assert (again.status_code, again.json()) == (201, {"payment": 1})
    assert again.headers["Idempotency-Replayed"] == "true"
    assert money(database) == {"alice": 200, "bob": 500}


async def test_a_request_that_lost_its_claim_rolls_back_with_503_and_a_retry_pays_once(
    example: ModuleType, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = PostgresStore.complete_in

    async def lose_the_claim(
        store: PostgresStore, connection: Any, claim: Any, *args: Any, **kwargs: Any
    ) -> bool:
        monkeypatch.setattr(PostgresStore, "complete_in", written)
        await store.forget(claim.key)  # as after a takeover, this request no longer owns the key
        return await written(store, connection, claim, *args, **kwargs)

    async with serving(example, database) as client:
        monkeypatch.setattr(PostgresStore, "complete_in", lose_the_claim)
        late = await pay(client)
        assert (late.status_code, late.headers["Retry-After"]) == (503, "1")
        assert money(database) == {"alice": 700, "bob": 0}
        assert (await pay(client)).status_code == 201
    assert money(database) == {"alice": 200, "bob": 500}


async def test_a_receipt_that_failed_is_sent_again_with_the_same_reference(
    example: ModuleType, database: str
) -> None:
    sent: list[tuple[str, str]] = []

    async def fail(reference: str, message: str) -> None:
        sent.append((reference, message))
        raise ConnectionError("the mail service is down")

    async def send(reference: str, message: str) -> None:
        sent.append((reference, message))

    async with serving(example, database) as client:
        await pay(client)
        await pay(client)
        await pay(client, key="order-2", cents=1_000_000)
        pool = client.app.state.pool  # type: ignore[attr-defined]
        with pytest.raises(ConnectionError):
            await example.send_receipts(pool, fail)
        assert await example.send_receipts(pool, send) == 1
        assert await example.send_receipts(pool, send) == 0
    assert sent[0] == sent[1], "a repeat has the same reference"
    assert sent[0][1] == "alice paid 500 cents to bob"
