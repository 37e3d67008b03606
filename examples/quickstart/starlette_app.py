r"""
Starlette: a charge that runs once per Idempotency-Key.

From the root of the repository:

    pip install ./packages/idempotency starlette uvicorn
    cd examples/quickstart
    uvicorn starlette_app:app --port 8000

The first call charges. The second is answered from the record: the same body, and `idempotency-replayed: true`.

    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-1' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'
    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-2' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'

Records are in charges.sqlite3 in the current directory, for all processes of this machine. See docs/fastapi.md.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from idempotency.asgi import LateClaim, claim
from idempotency.stores.sqlite import SQLiteStore

store = SQLiteStore("charges.sqlite3")
charges: list[int] = []  # stands for your database
users = {"Bearer alice-1": "alice", "Bearer alice-2": "alice"}  # stands for your check of a token


class Tokens(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        user = users.get(conn.headers.get("Authorization", ""))
        return None if user is None else (AuthCredentials(["user"]), SimpleUser(user))


@requires("user", status_code=401)
async def charge(request: Request) -> JSONResponse:
    amount = int((await request.json())["amount"])
    await claim(request.scope, request.user.username)  # what comes after it runs once per key
    charges.append(amount)
    return JSONResponse({"charge": len(charges)}, 201)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None]:
    yield
    await store.aclose()


app = Starlette(
    routes=[Route("/charges", charge, methods=["POST"])],
    middleware=[
        Middleware(AuthenticationMiddleware, backend=Tokens()),
        Middleware(LateClaim, store=store),
    ],
    lifespan=lifespan,
)
