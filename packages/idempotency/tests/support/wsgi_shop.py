"""
A Flask application for gunicorn's workers: its effects are lines of files named after keys, its records are in SQLite.

    SHOP_DATA       a directory
    SHOP_LEASE      seconds
    POST /charges   201; the effect, then what the body's "then" says: nothing, "sleep" for a while, or "die"
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from flask import Flask, jsonify, request

from idempotency import Policy
from idempotency.flask import Idempotency
from idempotency.stores.sqlite import SyncSQLiteStore

__all__ = ["app"]

DATA = Path(os.environ["SHOP_DATA"])

app = Flask("shop")
once = Idempotency(
    app,
    store=SyncSQLiteStore(DATA / "records.db"),
    principal=lambda: request.headers["X-User"],  # of the tests: nothing authenticates here
    policy=Policy(lease=float(os.environ.get("SHOP_LEASE", "30")), wait=20.0),
)


@app.post("/charges")
@once.protect
def charge() -> Any:
    """One effect: a line in a file, written by one system call."""
    told: str = request.json.get("then", "") if request.json else ""
    if told == "die" and not (DATA / "died").exists():
        (DATA / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    with (DATA / request.headers["Idempotency-Key"]).open("a") as effects:
        effects.write("charged\n")
    if told == "sleep":
        time.sleep(0.3)  # long enough for the duplicates to arrive: the workers are other processes
    return jsonify(pid=os.getpid()), 201
