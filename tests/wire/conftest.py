"""
`ml-api serve` over raw sockets.

Most tests share the service `wire`, whose time limits are too long to be reached. A test that needs other limits starts
a service with `start_wire`, and a file about the limits overrides `wire`. The fixture `client` is a connection to the
shared service: once a new one, and once one on which a request was answered, because every limit applies to both.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from patience import until_sync
from ports import free_port
from raw_http import PATIENCE, Answer, Client, head

API_KEY = "the-api-key-of-the-wire-tests"

SERVE = ("ml_api", "serve")

LIMITS = {
    f"ML_SERVICE_{name}": "60"
    for name in (
        "HEADER_TIMEOUT",
        "BODY_TIMEOUT",
        "KEEP_ALIVE_TIMEOUT",
        "WRITE_TIMEOUT",
        "HANDLER_TIMEOUT",
        "STORE_DEADLINE",
    )
}
"""The default time limits in seconds, too long to be reached."""


@dataclass
class Wire:
    """One running service."""

    port: int
    process: subprocess.Popen[bytes]
    log_file: Path
    body: bytes
    api_key: str = API_KEY

    def connect(self, **options: Any) -> Client:
        return Client(self.port, **options)

    def ask(self, *parts: bytes) -> Answer:
        """Send *parts* on a new connection and read one answer."""
        client = self.connect()
        try:
            return client.send(*parts).answer()
        finally:
            client.close()

    def healthy(self) -> bool:
        try:
            return self.ask(head("GET", "/health")).status == 200
        except OSError:
            return False

    def post(self, *lines: str, path: str = "/predict", key: str | None = API_KEY) -> bytes:
        """The head of a valid POST, without the headers that frame its body."""
        given = (f"X-API-Key: {key}",) if key is not None else ()
        return head("POST", path, *given, "Content-Type: application/json", *lines)

    def predict(self, *lines: str, path: str = "/predict") -> bytes:
        """A whole POST with a Content-Length."""
        return self.post(f"Content-Length: {len(self.body)}", *lines, path=path) + self.body

    def resident(self) -> int:
        """The resident memory of the process in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def metric(self, name: str) -> float:
        """The value of the sample *name* with its labels, or 0.0 if there is none."""
        for line in self.ask(head("GET", "/metrics")).body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0


@pytest.fixture(scope="session")
def start_wire(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., contextlib.AbstractContextManager[Wire]]:
    """Start a service: `with start_wire(ML_SERVICE_MAX_CONNECTIONS="8") as wire`; other limits are long."""
    pycache = tmp_path_factory.mktemp("pycache")
    example = json.dumps(json.loads(EXAMPLE.read_bytes())).encode()

    @contextlib.contextmanager
    def start(
        *, descriptors: int | None = None, command: tuple[str, ...] = SERVE, **variables: str
    ) -> Iterator[Wire]:
        directory = tmp_path_factory.mktemp("wire")
        port = free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ML_SERVICE_")}
        inherited.pop("PYTHONDONTWRITEBYTECODE", None)
        own = {
            "ML_SERVICE_API_KEY": API_KEY,
            "ML_SERVICE_STORE_PATH": str(directory / "idempotency.sqlite3"),
            "PYTHONPYCACHEPREFIX": str(pycache),
        }

        def limit_descriptors() -> None:
            if descriptors is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--port", str(port)],
                env=inherited | own | LIMITS | variables,
                cwd=directory,
                stderr=log,
                preexec_fn=limit_descriptors,  # noqa: PLW1509 - no other thread is running here
            )
        wire = Wire(port, process, directory / "log", example)
        try:
            until_sync(
                lambda: wire.healthy() or process.poll() is not None,
                f"the service starts; {wire.log_file} has its log",
                patience=PATIENCE,
            )
            assert process.poll() is None, wire.log_file.read_text()
            yield wire
            assert process.poll() is None, f"the service died:\n{wire.log_file.read_text()}"
        finally:
            process.terminate()
            process.wait(PATIENCE)
            print(wire.log_file.read_text()[-4000:])

    return start


EXAMPLE = Path(__file__).resolve().parents[2] / "services/ml-api/src/ml_api/demo/request.json"


@pytest.fixture(scope="session")
def wire(start_wire: Callable[..., contextlib.AbstractContextManager[Wire]]) -> Iterator[Wire]:
    """The service that most tests share."""
    with start_wire() as running:
        yield running


@pytest.fixture
def own_address(numbers: Iterator[int]) -> str:
    """A client address of one test alone, because addresses with many failed authentications are delayed."""
    number = next(numbers)
    return f"127.0.{1 + number // 250}.{1 + number % 250}" if sys.platform == "linux" else "127.0.0.1"


@pytest.fixture
def own_key(numbers: Iterator[int]) -> str:
    """An idempotency key of one test alone, because the shared service remembers keys."""
    return f"own-key-{next(numbers)}"


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture(params=["new connection", "kept connection"])
def client(wire: Wire, request: pytest.FixtureRequest, own_address: str) -> Iterator[Client]:
    """A connection to the shared service, new or with a request answered on it."""
    connection = wire.connect(source=own_address)
    if request.param == "kept connection":
        assert connection.send(b"GET /health HTTP/1.1\r\nHost: service\r\n\r\n").answer().status == 200
    yield connection
    connection.close()
