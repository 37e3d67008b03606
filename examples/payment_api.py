r"""
A payment API in which a payment and the record of its answer are one transaction: effectively once.

A client that got no answer, or a worse one, sends the request again under the same Idempotency-Key. Wherever the
first request was killed, the money has moved once or not at all, and the answer is the first one's if there was one.
A receipt goes out by an outbox: a row of the same transaction, sent afterwards.

Whose key it is says the account, not the token: a client whose token is replaced between two attempts is still the same
payer, and its repeated request is still the same payment.

    DATABASE_URL=postgresql://localhost/payments uvicorn --factory payment_api:create_app
    psql postgresql://localhost/payments -c "INSERT INTO account VALUES ('alice', 700), ('bob', 0)" \
        -c "INSERT INTO token VALUES (sha256('alice-token'), 'alice'), (sha256('bob-token'), 'bob')"
    curl -X POST localhost:8000/payments -H 'Authorization: Bearer alice-token' -H 'Idempotency-Key: "order-1"' \
        -H 'Content-Type: application/json' -d '{"payee": "bob", "cents": 500}'
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, PositiveInt
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    SimpleUser,
)
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection

from idempotency import IdempotencyMiddleware, Policy, Response, by_user, current_claim
from idempotency.stores.postgres import PostgresStore

SCHEMA = """
CREATE TABLE IF NOT EXISTS account (
    name text PRIMARY KEY, cents bigint NOT NULL CHECK (cents >= 0));
CREATE TABLE IF NOT EXISTS token (
    digest bytea PRIMARY KEY, name text NOT NULL REFERENCES account);
CREATE TABLE IF NOT EXISTS payment (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payer text NOT NULL, payee text NOT NULL, cents bigint NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, reference text NOT NULL, message text NOT NULL);
"""


class Payment(BaseModel):
    """The amount and the receiver of a payment."""

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


class Tokens(AuthenticationBackend):
    """Who pays: the account that the request's token belongs to. One account may have several, old ones and new."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        """The account as `request.user`, and as `scope["user"]` for the middleware inside this one."""
        token = conn.headers.get("Authorization", "").removeprefix("Bearer ")
        async with self._pool.connection() as connection:
            found = await connection.execute(
                "SELECT name FROM token WHERE digest = %s", (sha256(token.encode()).digest(),)
            )
            row = await found.fetchone()
        if row is None:
            raise AuthenticationError("unknown token")
        return AuthCredentials(), SimpleUser(row[0])


def refuse(_: HTTPConnection, error: AuthenticationError) -> JSONResponse:
    """Answer a request without a known token, before any record is looked at."""
    return JSONResponse({"detail": str(error)}, 401, {"WWW-Authenticate": "Bearer"})


router = APIRouter()


@router.post("/payments", status_code=201)
async def pay(request: Request, payment: Payment) -> JSONResponse:
    """Pay, and record the answer, in one transaction: committed at the end of the block, rolled back by a raise."""
    name: str = request.user.username
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
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
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
        tenant=by_user(),
        policy=Policy(required=True, lease=lease, wait=2 * lease),
    )
    app.add_middleware(AuthenticationMiddleware, backend=Tokens(pool), on_error=refuse)  # outside the other
    return app
