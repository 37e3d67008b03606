r"""
FastAPI: a charge that runs once per Idempotency-Key.

From the root of the repository:

    pip install "./packages/idempotency[fastapi]" uvicorn
    cd examples/quickstart
    uvicorn fastapi_app:app --port 8000

The first call charges. The second is answered from the record: the same body, and `idempotency-replayed: true`.

    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-1' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'
    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-2' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'

Records are in charges.sqlite3 in the current directory, for all processes of this machine. See docs/fastapi.md.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

from idempotency.fastapi import Idempotent, install
from idempotency.stores.sqlite import SQLiteStore

store = SQLiteStore("charges.sqlite3")
charges: list[int] = []  # stands for your database
users = {"Bearer alice-1": "alice", "Bearer alice-2": "alice"}  # stands for your check of a token


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    yield
    await store.aclose()


app = FastAPI(lifespan=lifespan)
install(app, store=store)


async def current_user(authorization: Annotated[str | None, Header()] = None) -> str:
    user = users.get(authorization or "")
    if user is None:
        raise HTTPException(401)
    return user


once = Idempotent(principal=current_user)


class Charge(BaseModel):
    amount: int


@app.post("/charges", status_code=201)
@once.protect
async def charge(body: Charge) -> dict[str, int]:
    charges.append(body.amount)
    return {"charge": len(charges)}
