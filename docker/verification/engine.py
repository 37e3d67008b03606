"""What the checks are made with: podman and podman-compose, and an HTTP client without retries."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "BODY",
    "DOCKER",
    "IMAGE",
    "Answer",
    "Service",
    "call",
    "compose_up",
    "composition",
    "free_port",
    "patient",
    "podman",
    "run",
    "until",
]

DOCKER = Path(__file__).resolve().parent.parent
BODY = (DOCKER.parent / "services/ml-api/src/ml_api/demo/request.json").read_bytes()
IMAGE = "localhost/ai-trading-ml"

# How long something may take to come (back) on a machine that is busy with other work. How long it took is printed.
PATIENCE = 120.0

# podman would have systemd run its health checks, and says so where there is none; here they are called by hand.
_NOISE = ("systemd", "syslog")


def podman(
    *arguments: str,
    check: bool = True,
    binary: str = "podman",
    timeout: float = PATIENCE,
    given: bytes | None = None,
) -> str:
    """Run podman and return what it printed; both streams, since a container's log is in either."""
    code, printed = run([binary, *arguments], timeout=timeout, given=given)
    lines = printed.splitlines()
    text = "\n".join(line for line in lines if not any(word in line for word in _NOISE))
    if check and code != 0:
        raise RuntimeError(f"{binary} {' '.join(arguments)} failed with {code}:\n{text}")
    return text.strip()


def run(
    command: list[str], *, timeout: float = PATIENCE, given: bytes | None = None, **options: Any
) -> tuple[int, str]:
    """
    Run *command* and return its exit code and what it printed on both streams.

    Raises:
        TimeoutError: It took longer than *timeout* seconds. It was killed with every process it had started:
            one that is left holds the pipe open, and reading that has no end.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if given is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **options,
    )
    try:
        printed, _ = process.communicate(given, timeout=timeout)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            said = printed.decode(errors="replace").strip().splitlines()[-1:]
            raise TimeoutError(f"{' '.join(command)[:100]} took longer than {timeout:g} s: {said}") from None
        raise
    return process.returncode, printed.decode(errors="replace")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody holds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; seconds to its last byte."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def replayed(self) -> bool:
        return self.headers.get("idempotency-replayed") == "true"


def call(
    port: int, method: str, path: str, *, body: bytes | None = None, timeout: float = 10, **headers: str
) -> Answer:
    """Send one request on a connection of its own. Header names are given with underscores."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    named = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, named, content, time.perf_counter() - begun)


def until(what: str, condition: Callable[[], bool], *, seconds: float = PATIENCE) -> float:
    """Ask again and again until *condition* holds; return the seconds that it took."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        try:
            if condition():
                return time.perf_counter() - begun
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds:g} s")


@dataclass(frozen=True, slots=True)
class Service:
    """A service under test: where it listens, its key, and, where it is composed, with what settings and files."""

    port: int
    api_key: str
    settings: dict[str, str] = field(default_factory=dict)
    compose_options: tuple[str, ...] = ()

    def predict(
        self, key: str | None = None, *, body: bytes = BODY, timeout: float = 40, **headers: str
    ) -> Answer:
        keyed = {"Idempotency_Key": key} if key is not None else {}
        given = {"X_API_Key": self.api_key, "Content_Type": "application/json", **keyed, **headers}
        return call(self.port, "POST", "/predict", body=body, timeout=timeout, **given)

    def healthy(self) -> bool:
        return call(self.port, "GET", "/health", timeout=2).status == 200

    def ready(self) -> dict[str, object]:
        body: dict[str, object] = json.loads(call(self.port, "GET", "/ready", timeout=2).body)
        return body

    def connected(self) -> bool:
        return self.ready()["storeUp"] is True

    def compose(self, *arguments: str, check: bool = True) -> str:
        return podman(
            *self.compose_options, *arguments, check=check, binary="podman-compose", timeout=PATIENCE
        )

    def wait(self) -> None:
        until("health", self.healthy)
        until("the connection to Redis", self.connected)


@contextmanager
def composition(
    scratch: Path, *overrides: str, profile: str | None = None, **settings: str
) -> Iterator[Service]:
    """compose.yaml with *overrides*, ports and secrets of its own, not yet up; taken down at the end."""
    port, api_key = free_port(), secrets.token_hex(32)
    values = {
        "ML_SERVICE_API_KEY": api_key,
        "ML_SERVICE_REDIS_PASSWORD": secrets.token_hex(32),
        "BASE_IMAGE": "localhost/python-base",
        "ML_IMAGE": IMAGE,
        "REDIS_IMAGE": "localhost/redis",
        "HAPROXY_IMAGE": "localhost/haproxy",
        "PROMETHEUS_IMAGE": "localhost/prometheus",
        "PUBLISH_PORT": str(port),
        "PROMETHEUS_PORT": str(free_port()),
        **settings,
    }
    environment = scratch / "compose.env"
    environment.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    files = [word for name in ("compose.yaml", *overrides) for word in ("-f", str(DOCKER / name))]
    options = ("--env-file", str(environment), *(["--profile", profile] if profile else []), *files)
    service = Service(port, api_key, values, options)
    try:
        yield service
    except Exception:
        for name in podman("ps", "--all", "--format", "{{.Names}}").split():
            state = podman("inspect", name, "--format", "{{.State.Status}} {{.State.ExitCode}}", check=False)
            lines = podman("logs", "--tail", "5", name, check=False)
            print(f"  {name} ({state}):\n    " + lines.replace("\n", "\n    "), flush=True)
        raise
    finally:
        podman("unpause", "--all", check=False)
        service.compose("down", "-v", "-t", "5", check=False)


def patient(scratch: Path) -> str:
    """An override file for a check that Redis is not the subject of: a busy machine is not a Redis that is away."""
    file = scratch / "patient.yaml"
    file.write_text('services: {ml-service: {environment: {ML_SERVICE_STORE_DEADLINE: "20"}}}\n')
    return str(file)


@contextmanager
def compose_up(scratch: Path, *overrides: str, profile: str | None = None) -> Iterator[Service]:
    """A `composition` that is up and serves."""
    with composition(scratch, *overrides, profile=profile) as service:
        # Grafana is in no package archive that this can use: of the monitoring profile, Prometheus is started.
        only = ["ml-service", "redis", "prometheus"] if profile == "monitoring" else []
        service.compose("up", "-d", "--no-build", *only)
        service.wait()
        yield service
