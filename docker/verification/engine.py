"""What the checks are made with: podman and podman-compose, an HTTP client without retries, and a tally."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["IMAGE", "Answer", "Service", "Tally", "call", "compose_up", "free_port", "podman", "until"]

DOCKER = Path(__file__).resolve().parent.parent
BODY = (DOCKER.parent / "services/ml-api/src/ml_api/examples/request.json").read_bytes()
IMAGE = "localhost/ai-trading-ml"

# podman would have systemd run its health checks, and says so where there is none; here they are called by hand.
_NOISE = ("systemd", "syslog")


def podman(*arguments: str, check: bool = True, binary: str = "podman", timeout: float = 60) -> str:
    """Run podman and return what it printed; both streams, since a container's log is in either."""
    done = subprocess.run(
        [binary, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    text = "\n".join(line for line in done.stdout.splitlines() if not any(word in line for word in _NOISE))
    if check and done.returncode != 0:
        raise RuntimeError(f"{binary} {' '.join(arguments)} failed with {done.returncode}:\n{text}")
    return text.strip()


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


def until(what: str, condition: Callable[[], bool], *, seconds: float = 30) -> float:
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


@dataclass(slots=True)
class Tally:
    """Each check, with the figure that it measured; a check that fails does not stop the rest."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)

    def check(self, name: str, holds: bool, figure: object = "") -> None:
        if holds:
            self.passed += 1
        else:
            self.failed.append(name)
        print(f"  {'ok  ' if holds else 'FAIL'} {name}{f': {figure}' if figure != '' else ''}", flush=True)

    def figure(self, name: str, value: str) -> None:
        print(f"  ---- {name}: {value}", flush=True)


@dataclass(frozen=True, slots=True)
class Service:
    """A service under test: where it listens, and its key."""

    port: int
    api_key: str
    more: dict[str, str] = field(default_factory=dict)

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


@contextmanager
def compose_up(
    scratch: Path, *overrides: str, profile: str | None = None, **settings: str
) -> Iterator[Service]:
    """Bring compose.yaml up, with *overrides*, on ports and with secrets of its own; take everything down again."""
    service = Service(free_port(), secrets.token_hex(32))
    values = {
        "ML_SERVICE_API_KEY": service.api_key,
        "ML_SERVICE_REDIS_PASSWORD": secrets.token_hex(32),
        "ML_IMAGE": IMAGE,
        "REDIS_IMAGE": "localhost/redis",
        "HAPROXY_IMAGE": "localhost/haproxy",
        "PROMETHEUS_IMAGE": "localhost/prometheus",
        "PUBLISH_PORT": str(service.port),
        "PROMETHEUS_PORT": str(free_port()),
        **settings,
    }
    service.more.update(values)
    environment = scratch / "compose.env"
    environment.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    files = [word for name in ("compose.yaml", *overrides) for word in ("-f", str(DOCKER / name))]
    base = ["--env-file", str(environment), *(["--profile", profile] if profile else []), *files]
    # Grafana is in no package archive that this can use: of the monitoring profile, Prometheus is started.
    only = ["ml-service", "redis", "prometheus"] if profile == "monitoring" else []
    try:
        podman(*base, "up", "-d", "--no-build", *only, binary="podman-compose")
        until("health", service.healthy)
        until("the connection to Redis", service.connected)
        yield service
    except Exception:
        for name in podman("ps", "--all", "--format", "{{.Names}}").split():
            state = podman("inspect", name, "--format", "{{.State.Status}} {{.State.ExitCode}}", check=False)
            lines = podman("logs", "--tail", "5", name, check=False)
            print(f"  {name} ({state}):\n    " + lines.replace("\n", "\n    "), flush=True)
        raise
    finally:
        podman("unpause", "--all", check=False)
        podman(*base, "down", "-v", "-t", "5", binary="podman-compose", check=False)
