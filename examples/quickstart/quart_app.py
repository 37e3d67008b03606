r"""
Quart: a charge that runs once per Idempotency-Key.

From the root of the repository:

    pip install ./packages/idempotency quart
    cd examples/quickstart
    quart --app quart_app run --port 8000

The first call charges. The second is answered from the record: the same body, and `idempotency-replayed: true`.

    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-1' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'
    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-2' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'

Records are in charges.sqlite3 in the current directory, for all processes of this machine. See docs/fastapi.md.
"""

from quart import Quart, abort, request

from idempotency.asgi import LateClaim, claim
from idempotency.stores.sqlite import SQLiteStore

store = SQLiteStore("charges.sqlite3")
charges: list[int] = []  # stands for your database
users = {"Bearer alice-1": "alice", "Bearer alice-2": "alice"}  # stands for your check of a token
app = Quart(__name__)
app.asgi_app = LateClaim(app.asgi_app, store=store)  # type: ignore[method-assign]


@app.post("/charges")
async def charge() -> tuple[dict[str, int], int]:
    user = users.get(request.headers.get("Authorization", ""))
    if user is None:
        abort(401)
    amount = int((await request.get_json())["amount"])
    await claim(request.scope, user)  # what comes after it runs once per key
    charges.append(amount)
    return {"charge": len(charges)}, 201


@app.after_serving
async def close() -> None:
    await store.aclose()
