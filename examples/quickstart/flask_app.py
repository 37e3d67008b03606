r"""
Flask: a charge that runs once per Idempotency-Key.

From the root of the repository:

    pip install "./packages/idempotency[flask]"
    cd examples/quickstart
    flask --app flask_app run --port 8000

The first call charges. The second is answered from the record: the same body, and `idempotency-replayed: true`.

    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-1' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'
    curl -i http://127.0.0.1:8000/charges -H 'Authorization: Bearer alice-2' \
        -H 'Idempotency-Key: "order-1"' -H 'Content-Type: application/json' -d '{"amount": 500}'

Records are in charges.sqlite3 in the current directory, for all processes of this machine. See docs/flask.md.
"""

from flask import Flask, abort, g, request

from idempotency.flask import Idempotency
from idempotency.stores.sqlite import SyncSQLiteStore

charges: list[int] = []  # stands for your database
users = {"Bearer alice-1": "alice", "Bearer alice-2": "alice"}  # stands for your check of a token
app = Flask(__name__)
once = Idempotency(app, store=SyncSQLiteStore("charges.sqlite3"), principal=lambda: g.user)


@app.before_request
def authenticate() -> None:
    g.user = users.get(request.headers.get("Authorization", ""))
    if g.user is None:
        abort(401)


@app.post("/charges")
@once.protect
def charge() -> tuple[dict[str, int], int]:
    charges.append(request.json["amount"])
    return {"charge": len(charges)}, 201
