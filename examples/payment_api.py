r"""
A payment API in which a payment and the record of its answer are one transaction: effectively once.

A client that got no answer, or a worse one, sends the request again under the same Idempotency-Key. Wherever the
first request was killed, the money has moved once or not at all, and the answer is the first one's if there was one.
A receipt goes out by an outbox: a row of the same transaction, sent afterwards.

    DATABASE_URL=postgresql://localhost/payments uvicorn --factory payment_api:create_app
    psql postgresql://localhost/payments -c \
        "INSERT INTO account VALUES ('alice', sha256('alice-token'), 700), ('bob', sha256('bob-token'), 0)"
    curl -X POST localhost:8000/payments -H 'Authorization: Bearer alice-token' -H 'Idempotency-Key: "order-1"' \
        -H 'Content-Type: application/json' -d '{"payee": "bob", "cents": 500}'
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, PositiveInt

from idempotency import IdempotencyMiddleware, Policy, Response, by_header, current_claim
from idempotency.stores.postgres import PostgresStore

SCHEMA = """
CREATE TABLE IF NOT EXISTS account (
    name text PRIMARY KEY, token_digest bytea UNIQUE NOT NULL, cents bigint NOT NULL CHECK (cents >= 0));
CREATE TABLE IF NOT EXISTS payment (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payer text NOT NULL, payee text NOT NULL, cents bigint NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, reference text NOT NULL, message text NOT NULL);
"""


class Payment(BaseModel):
    """What is paid to whom."""

    payee: str
    cents: PositiveInt


async def transfer(connection: AsyncConnection[Any], payer: str, payment: Payment) -> JSONResponse:
    """Move the money inside the connection's transaction; the answer, which may be a refusal."""
    found = await connection.execute(
        # In the order of names, so that two payments in opposite directions wait for each other in turn.
        "SELECT name, cents FROM account WHERE name = ANY(%s) ORDER BY name FOR UPDATE",
        ([payer, payment.payee],),
    )
    cents = dict(await found.fetchall())
    if payment.payee not in cents:
        return JSONResponse({"error": "no such payee"}, 404)
    if cents[payer] < payment.cents:
        return JSONResponse({"error": "insufficient funds"}, 402)
    for name, change in ((payer, -payment.cents), (payment.payee, payment.cents)):
        await connection.execute("UPDATE account SET cents = cents + %s WHERE name = %s", (change, name))
    written = await connection.execute(
        "INSERT INTO payment (payer, payee, cents) VALUES (%s, %s, %s) RETURNING id",
        (payer, payment.payee, payment.cents),
    )
    row = await written.fetchone()
    assert row is not None
    return JSONResponse({"payment": row[0]}, 201)


async def send_receipts(
    pool: AsyncConnectionPool[Any], send: Callable[[str, str], Awaitable[None]], *, limit: int = 100
) -> int:
    """
    Send what waits in the outbox, for a job that runs every few seconds; how many went out.

    Each goes out at least once. *send* gets a reference that is the same every time, for the mail service to know a
    repeat by.
    """
    async with pool.connection() as connection:
        waiting = await connection.execute(
            # Rows that another relay has in hand are left to it.
            "SELECT id, reference, message FROM outbox ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED",
            (limit,),
        )
        rows = await waiting.fetchall()
        for number, reference, message in rows:
            await send(reference, message)
            await connection.execute("DELETE FROM outbox WHERE id = %s", (number,))
    return len(rows)


async def payer(request: Request, authorization: Annotated[str, Header()]) -> str:
    """Who pays: whose token the request has."""
    digest = sha256(authorization.removeprefix("Bearer ").encode()).digest()
    async with request.app.state.pool.connection() as connection:
        found = await connection.execute("SELECT name FROM account WHERE token_digest = %s", (digest,))
        row = await found.fetchone()
    if row is None:
        raise HTTPException(401, "unknown token")  # never recorded: the key stays free
    return str(row[0])


router = APIRouter()


@router.post("/payments", status_code=201)
async def pay(request: Request, payment: Payment, name: Annotated[str, Depends(payer)]) -> JSONResponse:
    """Pay, and record the answer, in one transaction: committed at the end of the block, rolled back by a raise."""
    store: PostgresStore = request.app.state.store
    claim = current_claim()
    assert claim is not None, "the policy requires a key, so every payment has a claim"
    async with request.app.state.pool.connection() as connection:
        answer = await transfer(connection, name, payment)
        if answer.status_code == 201:
            await connection.execute(
                "INSERT INTO outbox (reference, message) VALUES (%s, %s)",
                (claim.derive("receipt"), f"{name} paid {payment.cents} cents to {payment.payee}"),
            )
        # Last, because it locks the record: until the commit, the lease cannot be renewed.
        outcome = claim.outcome(Response(answer.status_code, answer.raw_headers, bytes(answer.body)))
        if not await store.complete_in(connection, claim.claim, outcome, retention=claim.retention):
            # We stalled past the lease, and the key has another owner: a retry gets that one's answer.
            raise HTTPException(503, "superseded", headers={"Retry-After": "1"})
    return answer


def create_app(database_url: str | None = None, *, lease: float = 10.0) -> FastAPI:
    """The application; *lease* is how long (seconds) a killed request keeps its key from being tried again."""
    pool = AsyncConnectionPool[AsyncConnection[Any]](database_url or os.environ["DATABASE_URL"], open=False)
    store = PostgresStore(pool)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with pool:
            async with pool.connection() as connection:
                await connection.execute(SCHEMA)
            await store.create_schema()
            app.state.pool, app.state.store = pool, store
            yield

    app = FastAPI(title="Payments", lifespan=lifespan)
    app.include_router(router)
    app.add_middleware(
        IdempotencyMiddleware,
        store=store,
        tenant=by_header("Authorization"),
        policy=Policy(required=True, lease=lease, wait=2 * lease),
    )
    return app
