"""
One worker process of the demo: a payment API behind wsgiref, in one of the set-ups.

    python -m idempotency.cli.demo.worker SETUP_NUMBER DATABASE

It prints "listening PORT", then "received" for each request. A request may name a stop in its Demo-Stop header: there
the worker prints the name of the stop and waits for a line, or the end, of its standard input.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from idempotency._core.outcome import Response
from idempotency._core.policy import Policy
from idempotency.cli.demo.setups import (
    AFTER_COMMIT,
    BEFORE_COMMIT,
    BEGUN,
    LEDGER_SCHEMA,
    PRICE_CENTS,
    SETUPS,
    Setup,
)
from idempotency.engine.current_claim import current_claim
from idempotency.stores.sqlite import SyncSQLiteStore
from idempotency.wsgi import IdempotencyMiddleware
from idempotency.wsgi.types import Environ, StartResponse, WSGIApp

__all__: list[str] = []

_DOOMED_LEASE: Final = 0.3  # s, for a request that will be killed, so that the takeover comes soon
_BUSY_SECONDS: Final = 20.0


class Payments:
    """The application: one charge for each POST."""

    def __init__(self, setup: Setup, database: str, store: SyncSQLiteStore) -> None:
        self._setup = setup
        self._database = database
        self._store = store

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Charge, commit and answer; stop where the request asks for it."""
        order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))["order"]
        body = json.dumps({"order": order, "charged_cents": PRICE_CENTS}).encode()
        _stop(environ, BEGUN)
        with closing(sqlite3.connect(self._database, timeout=_BUSY_SECONDS, isolation_level=None)) as ledger:
            ledger.execute("BEGIN IMMEDIATE")
            # The ledger stands for a payment provider: it ignores a reference that it already has.
            ledger.execute(
                "INSERT OR IGNORE INTO charge VALUES (?, ?, ?)", (self._reference(), order, PRICE_CENTS)
            )
            _stop(environ, BEFORE_COMMIT)
            if self._setup.in_transaction and not self._recorded_in(ledger, body):
                ledger.execute("ROLLBACK")
                start_response("503 Service Unavailable", [("Retry-After", "1")])
                return [b""]
            ledger.execute("COMMIT")
        _stop(environ, AFTER_COMMIT)
        start_response("201 Created", [("Content-Type", "application/json")])
        return [body]

    def _reference(self) -> str:
        claim = current_claim()
        if self._setup.derives_key and claim is not None:
            return claim.derive("charge")
        return secrets.token_hex(16)

    def _recorded_in(self, ledger: sqlite3.Connection, body: bytes) -> bool:
        claim = current_claim()
        assert claim is not None, "the policy requires a key"
        outcome = claim.outcome(Response(201, [(b"content-type", b"application/json")], body))
        return self._store.complete_in(ledger, claim.claim, outcome, retention=claim.retention)


def _protected(application: WSGIApp, setup: Setup, store: SyncSQLiteStore) -> WSGIApp:
    if setup.policy is None:
        return application
    policy = setup.policy(required=True, wait=30.0)
    doomed = setup.policy(required=True, wait=30.0, lease=_DOOMED_LEASE)

    def policy_for(environ: Environ) -> Policy:
        return doomed if environ.get("HTTP_DEMO_STOP") in {BEFORE_COMMIT, AFTER_COMMIT} else policy

    return IdempotencyMiddleware(application, store=store, tenant=lambda _: "customer-1", policy=policy_for)


def _announcing(application: WSGIApp) -> WSGIApp:
    def announce(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        _tell("received")
        return application(environ, start_response)

    return announce


def _stop(environ: Environ, place: str) -> None:
    if environ.get("HTTP_DEMO_STOP") == place:
        _tell(place)
        sys.stdin.readline()


def _tell(text: str) -> None:
    print(text, flush=True)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which may take seconds."""
        TCPServer.server_bind(self)
        host, self.server_port = self.socket.getsockname()[:2]
        self.server_name = str(host)
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients that close the connection are part of the demo."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Print nothing on standard error."""


def main(setup_number: int, database: str) -> None:
    """Serve until killed."""
    setup = SETUPS[setup_number]
    store = SyncSQLiteStore(database, busy_timeout=_BUSY_SECONDS)
    with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as ledger:
        ledger.execute(LEDGER_SCHEMA)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.set_app(_announcing(_protected(Payments(setup, database, store), setup, store)))
    _tell(f"listening {server.server_port}")
    server.serve_forever()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2])
    except KeyboardInterrupt:  # Ctrl-C reaches the whole process group; only the demo itself reports it
        os._exit(130)
