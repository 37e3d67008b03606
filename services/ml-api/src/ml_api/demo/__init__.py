"""
The demo: starts the service, sends a request, sends it again, kills the service by `kill -9`, and sends it once more.

The second and third answer are the bytes of the first, because all three requests have the same Idempotency-Key.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Any

from ml_api.serving.registry import BUNDLED_MODEL
from ml_api.trading.rules import RULES
from ml_api.trading.types import ASSETS
from ml_api.training.verdict import verdict
from predictor import Manifest, manifest_path

__all__ = ["demo", "example_request"]

_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    replayed: bool
    body: bytes
    milliseconds: float


def example_request() -> bytes:
    """Return the example body in the package, with real daily bars; the `README.md` beside it names their source."""
    return (files("ml_api") / "demo" / "request.json").read_bytes()


def demo(*, body: bytes | None = None) -> int:
    """Run and print the demo with *body*, or the example; return 0 if each retry got the bytes of the first answer."""
    request = body if body is not None else example_request()
    api_key, key = secrets.token_hex(32), f"demo-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="ml-api-demo-") as directory:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ML_SERVICE_")
        }
        environment |= {
            "ML_SERVICE_API_KEY": api_key,
            "ML_SERVICE_STORE_PATH": str(Path(directory) / "idempotency.sqlite3"),
            "ML_SERVICE_LOG_FORMAT": "console",
        }
        begun = time.perf_counter()
        with ExitStack() as ending:
            service = _Service(directory, environment, ending)
            health = service.wait_until_up()
            if health is None:
                return 1
            print(f"service    http://127.0.0.1:{service.port} up after {time.perf_counter() - begun:.2f} s")
            print(f"model      {health['modelVersion']}")
            print(f"verdict    {verdict(Manifest.read(manifest_path(BUNDLED_MODEL)).metrics)}")
            print(f"bars       {_label(request)}")
            print(f"request    POST /predict, {len(request):,} bytes, Idempotency-Key: {key}")
            headers = {"X-API-Key": api_key, "Idempotency-Key": key, "Content-Type": "application/json"}
            first, second = (_ask(service.port, "POST", "/predict", request, headers) for _ in range(2))
            service.process.kill()
            service.process.wait()
            successor = _Service(directory, environment, ending)
            if successor.wait_until_up() is None:
                return 1
            third = _ask(successor.port, "POST", "/predict", request, headers)
        return _show(first, second, third)


def _label(request: bytes) -> str:
    """Return the source of a request's bars, from its `instructions`."""
    try:
        source = json.loads(request)["instructions"]
    except (ValueError, KeyError, TypeError):
        source = ""
    return source if isinstance(source, str) and source.isprintable() and source else "of an unknown source"


class _Service:
    """An `ml-api serve` process on a free port; it is stopped when *ending* closes."""

    def __init__(self, directory: str, environment: dict[str, str], ending: ExitStack) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._log = Path(directory) / f"log-{self.port}"
        with self._log.open("wb") as stderr:
            # In an empty directory, so that no .env file changes the demo.
            command = [sys.executable, "-m", "ml_api", "serve", "--port", str(self.port)]
            self.process = subprocess.Popen(command, env=environment, cwd=directory, stderr=stderr)  # noqa: S603
        ending.callback(self._end)

    def _end(self) -> None:
        self.process.terminate()
        self.process.wait()

    def wait_until_up(self) -> dict[str, Any] | None:
        """Return the answer of /health; or print the log to stderr and return None if the service does not start."""
        deadline = time.monotonic() + _START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                health: dict[str, Any] = json.loads(_ask(self.port, "GET", "/health").body)
            except (OSError, HTTPException, ValueError):
                time.sleep(0.02)
            else:
                return health
        print(f"the service did not start:\n{self._log.read_text()}", file=sys.stderr)
        return None


def _show(first: _Answer, second: _Answer, third: _Answer) -> int:
    if first.status != 200:
        print(f"\nrefused with {first.status}: {first.body.decode()}", file=sys.stderr)
        return 1
    decision: dict[str, Any] = json.loads(first.body)
    print("\ndecision")
    for order in decision["orders"]:
        print(f"  order    {order['side']} {order['quantity']} {order['assetSymbol']}")
    for index, signal in enumerate(decision["signals"]):
        if signal["fired"]:
            asset = (
                ASSETS[index // len(RULES)] if len(decision["signals"]) == len(ASSETS) * len(RULES) else ""
            )
            fact = f"{asset} {signal['feature']} = {signal['value']}".lstrip()
            print(f"  signal   {fact} ({signal['rule']}): {signal['contribution']}")
    print(f"  reason   {decision['reasoning']}")
    print(f"\n1st answer {first.milliseconds:6.2f} ms  decided, requestId {decision['requestId']}")
    print(f"2nd answer {second.milliseconds:6.2f} ms  {_compared(second, first)}")
    print("           kill -9 of the service; a new one with the same records")
    print(f"3rd answer {third.milliseconds:6.2f} ms  {_compared(third, first)}")
    return 0 if all(answer.replayed and answer.body == first.body for answer in (second, third)) else 1


def _compared(answer: _Answer, first: _Answer) -> str:
    same = "the same bytes" if answer.body == first.body else "OTHER BYTES"
    return f"{'replayed' if answer.replayed else 'NOT REPLAYED'}, {same}"


def _ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> _Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)
    try:
        connection.connect()
        begun = time.perf_counter()
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        elapsed = (time.perf_counter() - begun) * 1000
    finally:
        connection.close()
    return _Answer(response.status, response.headers["Idempotency-Replayed"] == "true", content, elapsed)
