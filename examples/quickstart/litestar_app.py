r"""
Litestar: a charge that runs once per Idempotency-Key.

From the root of the repository:

    pip install ./packages/idempotency litestar uvicorn
    cd examples/quickstart
    uvicorn litestar_app:app --port 8000

The first call charges. The second is answered from the record: the same body, and `idempotency-replayed: true`.

    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-1' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'
    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-2' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'

Records are in charges.sqlite3 in the current directory, for all processes of this machine. See docs/fastapi.md.
"""

from dataclasses import dataclass
from typing import Any

from litestar import Litestar, Request, post
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult, DefineMiddleware

from idempotency.asgi import LateClaim, claim
from idempotency.stores.sqlite import SQLiteStore

store = SQLiteStore("charges.sqlite3")
charges: list[int] = []  # stands for your database
users = {"Bearer alice-1": "alice", "Bearer alice-2": "alice"}  # stands for your check of a token


class Tokens(AbstractAuthenticationMiddleware):
    async def authenticate_request(
        self, connection: ASGIConnection[Any, Any, Any, Any]
    ) -> AuthenticationResult:
        user = users.get(connection.headers.get("Authorization", ""))
        if user is None:
            raise NotAuthorizedException
        return AuthenticationResult(user=user, auth=None)


@dataclass
class Charge:
    amount: int


@post("/charges")
async def charge(data: Charge, request: Request[str, None, Any]) -> dict[str, int]:
    await claim(request.scope, request.user)  # what comes after it runs once per key
    charges.append(data.amount)
    return {"charge": len(charges)}


app = Litestar(
    [charge],
    middleware=[DefineMiddleware(Tokens), DefineMiddleware(LateClaim, store=store)],
    on_shutdown=[store.aclose],
)
