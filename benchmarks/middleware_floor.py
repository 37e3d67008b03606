"""
The least that Python must do for one effect per key, for `middleware.py` to measure.

Straight-line code for one kind of request and response, with a dictionary as store: it reads the key and the body,
hashes the request, claims the key under a lock with a token, a lease and a fence, and registers for the heartbeat. It
runs the application under a context variable, without its seeing disconnects; then it encodes the response as JSON,
records it and sends it. It has nothing that would make it safe to use: no limits, deadlines, other stores, renewal,
expiry, waiting, errors, streams or events, and it checks no header.
"""

from __future__ import annotations

import json
import re
import threading
import time
from contextvars import ContextVar
from hashlib import sha256
from json.encoder import encode_basestring_ascii
from typing import Any

__all__ = ["Floor"]

_is_plain = re.compile(rb"[A-Za-z0-9._~-]{1,255}").fullmatch
_active: ContextVar[Any] = ContextVar("floor", default=None)


class Floor:
    """An ASGI middleware for the benchmark only."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.records: dict[str, list[Any]] = {}
        self.beating: dict[str, int] = {}
        self.lock = threading.Lock()
        self.fence = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        [value] = [value for name, value in scope["headers"] if name == b"idempotency-key"]
        if not _is_plain(value):
            raise ValueError
        key = value.decode()
        body: bytes = (await receive())["body"]
        parts = (scope["method"].encode(), scope["raw_path"], scope["query_string"], body)
        digest = sha256(b"%d %d %d %d " % tuple(map(len, parts)) + b"".join(parts)).digest()
        with self.lock:
            now = time.monotonic()
            record = self.records.get(key)
            if record is None:
                self.fence += 1
                self.records[key] = run = [digest, None, now + 30.0, now + 86_430.0, self.fence]
        if record is not None:
            return await _replay(record, digest, now, send)
        self.beating[key] = 0
        pending, start = True, {}

        async def receive_inner() -> Any:
            nonlocal pending
            if pending:
                pending = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        async def send_inner(message: Any) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            outcome = _encode(start["status"], start["headers"], message["body"])
            del self.beating[key]
            with self.lock:
                run[1], run[3] = outcome, time.monotonic() + 86_400.0
            token = _active.set(None)
            try:
                await send({**start, "headers": [*start["headers"], (b"idempotency-expires-in", b"86400")]})
                await send(message)
            finally:
                _active.reset(token)

        token = _active.set(run)
        try:
            await self.app(scope, receive_inner, send_inner)
        finally:
            _active.reset(token)
        return None


def _encode(status: int, headers: Any, body: bytes) -> bytes:
    text = encode_basestring_ascii
    lines = ",".join(
        [f"[{text(name.decode('latin-1'))},{text(value.decode('latin-1'))}]" for name, value in headers]
    )
    return f'{{"status_code":{status},"headers":[{lines}],"body":{text(body.decode())}}}'.encode()


async def _replay(record: list[Any], digest: bytes, now: float, send: Any) -> None:
    if record[0] != digest:
        raise ValueError
    outcome = json.loads(record[1])
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in outcome["headers"]]
    headers += [
        (b"idempotency-replayed", b"true"),
        (b"idempotency-age", b"%d" % (now + 86_400.0 - record[3])),
        (b"idempotency-expires-in", b"%d" % (record[3] - now)),
    ]
    await send({"type": "http.response.start", "status": outcome["status_code"], "headers": headers})
    await send({"type": "http.response.body", "body": outcome["body"].encode()})
