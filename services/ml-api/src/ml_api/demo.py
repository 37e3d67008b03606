"""
The demo: a real service in a process of its own, a real request, and the same request again.

The second answer is the first one's bytes, found by its Idempotency-Key: that is all a client has to do to retry.
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
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Any

from ml_api.trading.rules import RULES
from ml_api.trading.types import ASSETS

__all__ = ["demo", "example_request"]

_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    replayed: bool
    body: bytes
    milliseconds: float


def example_request() -> bytes:
    """The example body in the package: real daily bars; `examples/README.md` says whose."""
    return (files("ml_api") / "examples" / "request.json").read_bytes()


def demo(*, body: bytes | None = None) -> int:
    """Run the demo with *body*, or the example, and print what happened: 0 if the second answer replayed the first."""
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
        port = _free_port()
        log = Path(directory) / "log"
        begun = time.perf_counter()
        with log.open("wb") as stderr:
            # In a directory of its own, so that no .env nearby changes what is shown.
            command = [sys.executable, "-m", "ml_api", "serve", "--port", str(port)]
            service = subprocess.Popen(command, env=environment, cwd=directory, stderr=stderr)  # noqa: S603
        try:
            health = _wait_for(service, port)
            if health is None:
                print(f"the service did not start:\n{log.read_text()}", file=sys.stderr)
                return 1
            print(f"service    http://127.0.0.1:{port} up after {time.perf_counter() - begun:.2f} s")
            print(f"model      {health['modelVersion']}")
            print(f"request    POST /predict, {len(request):,} bytes, Idempotency-Key: {key}")
            headers = {"X-API-Key": api_key, "Idempotency-Key": key, "Content-Type": "application/json"}
            first = _post(port, request, headers)
            second = _post(port, request, headers)
        finally:
            service.terminate()
            service.wait()
        return _show(first, second)


def _show(first: _Answer, second: _Answer) -> int:
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
    same = "the same bytes" if second.body == first.body else "OTHER BYTES"
    replayed = "replayed" if second.replayed else "NOT REPLAYED"
    print(f"\n1st answer {first.milliseconds:6.2f} ms  decided, requestId {decision['requestId']}")
    print(f"2nd answer {second.milliseconds:6.2f} ms  {replayed}, {same}")
    return 0 if second.replayed and second.body == first.body else 1


def _post(port: int, body: bytes, headers: dict[str, str]) -> _Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.connect()
        begun = time.perf_counter()
        connection.request("POST", "/predict", body, headers)
        response = connection.getresponse()
        content = response.read()
        elapsed = (time.perf_counter() - begun) * 1000
    finally:
        connection.close()
    return _Answer(response.status, response.headers["Idempotency-Replayed"] == "true", content, elapsed)


def _wait_for(service: subprocess.Popen[bytes], port: int) -> dict[str, Any] | None:
    deadline = time.monotonic() + _START_SECONDS
    while service.poll() is None and time.monotonic() < deadline:
        connection = HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/health")
            health: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, HTTPException, ValueError):
            time.sleep(0.02)
        else:
            return health
        finally:
            connection.close()
    return None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
