"""The image and one bare container: size, contents, user, rights, and how fast it starts."""

from __future__ import annotations

import json
import secrets
import socket
import time
from pathlib import Path
from statistics import median

from engine import BODY, IMAGE, Service, Tally, call, free_port, podman, until

__all__ = ["verify_image"]

_MEGABYTE = 1_000_000
_HARDENED = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--tmpfs",
    "/tmp:size=64m,mode=1777",
    "--cap-drop",
    "all",
)


def verify_image(tally: Tally, _: Path) -> None:
    """Look into the image, then run it with every right taken away."""
    inspected = json.loads(podman("image", "inspect", IMAGE))[0]
    config = inspected["Config"]
    size = inspected["Size"] / _MEGABYTE
    tally.check("the image is smaller than 250 MB", size < 250, f"{size:.0f} MB")
    tally.check("its user is a number and not root", config["User"] == "10001:10001", config["User"])
    tally.check("it brings its own health check", "Healthcheck" in config or "Healthcheck" in inspected)
    tally.check("it is stopped by SIGTERM", config.get("StopSignal") in {"SIGTERM", "15"})
    labels = config["Labels"]
    wanted = ("title", "description", "licenses", "version", "revision")
    tally.check("it is labelled", all(labels.get(f"org.opencontainers.image.{name}") for name in wanted))
    names = " -o ".join(f"-name {name}" for name in ("scipy", "tests", ".env", ".git"))
    find = f"find / -xdev \\( {names} \\) -not -path '/usr/lib/*' 2>/dev/null"
    found = podman("run", "--rm", "--entrypoint", "sh", IMAGE, "-c", f"{find} || true")
    tally.check("no tests, SciPy, repository or environment file are in it", found == "", found)
    sbom = json.loads(podman("run", "--rm", "--entrypoint", "cat", IMAGE, "/opt/ml-api/sbom.cdx.json"))
    parts = {part["name"].lower(): part["version"] for part in sbom["components"]}
    real = podman(
        "run", "--rm", "--entrypoint", "python3", IMAGE, "-c", "import numpy; print(numpy.__version__)"
    )
    tally.check(
        "its bill of materials names what is installed", parts.get("numpy") == real, f"{len(parts)} parts"
    )

    refused = podman("run", "--rm", IMAGE, check=False)
    one_line = "ML_SERVICE_API_KEY" in refused and "Traceback" not in refused
    tally.check("without an API key it says so and does not start", one_line)

    _starts(tally)
    _rights(tally)
    _slow_clients(tally)


def _run(*options: str) -> Service:
    service = Service(free_port(), secrets.token_hex(32))
    environment = ("-e", f"ML_SERVICE_API_KEY={service.api_key}")
    limits = ("--security-opt", "no-new-privileges", "-p", f"127.0.0.1:{service.port}:8000")
    podman("run", "-d", "--name", "bare", *_HARDENED, *limits, *environment, *options, IMAGE)
    return service


def _remove() -> None:
    podman("rm", "-f", "-t", "0", "-v", "bare")


def _starts(tally: Tally) -> None:
    whole, own = [], []
    for _ in range(5):
        begun = time.time()
        service = _run()
        until("health", service.healthy)
        answered = time.time()
        started = podman("inspect", "bare", "--format", "{{.State.StartedAt.UnixMilli}}")
        whole.append(answered - begun)
        own.append(answered - int(started) / 1000)
        _remove()
    taken = " ".join(f"{seconds:.2f}" for seconds in own)
    tally.check(
        "/health answers within 1 s of the start of its process (median of 5)", median(own) < 1, f"{taken} s"
    )
    tally.figure(
        "the same from `podman run` on, which sets up the container first", f"median {median(whole):.2f} s"
    )


def _rights(tally: Tally) -> None:
    service = _run()
    until("health", service.healthy)
    status = dict(
        line.split(":", 1)
        for line in podman("exec", "bare", "cat", "/proc/1/status").splitlines()
        if ":" in line
    )
    tally.check(
        "the server is process 1, so signals reach it", "ml-api" in status["Name"], status["Name"].strip()
    )
    tally.check("it runs as 10001", set(status["Uid"].split()) == {"10001"})
    tally.check("it has no capability", int(status["CapEff"], 16) == 0 == int(status["CapBnd"], 16))
    tally.check("it can gain none", status["NoNewPrivs"].strip() == "1")
    written = podman("exec", "bare", "sh", "-c", "touch /opt/ml-api/x /etc/x || true")
    tally.check("its root file system is read-only", written.count("Read-only file system") == 2)
    tally.check("its health check passes", podman("healthcheck", "run", "bare", check=False) == "")
    first, second = service.predict("bare-key"), service.predict("bare-key")
    same = (first.status, second.status) == (200, 200) and second.replayed and first.body == second.body
    tally.check("without Redis it keeps its promise in a SQLite file", same)
    memory = int(status["VmHWM"].split()[0]) / 1000
    tally.figure("largest resident size until then", f"{memory:.0f} MB")
    _remove()


def _slow_clients(tally: Tally) -> None:
    service = _run("-e", "ML_SERVICE_BODY_TIMEOUT=2", "-e", "ML_SERVICE_HEADER_TIMEOUT=2")
    until("health", service.healthy)
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {service.api_key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    ).encode()
    # Half of them never end their headers, half never end their bodies.
    slow = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(200)]
    for number, client in enumerate(slow):
        client.sendall(head[:40] if number % 2 else head + BODY[:100])
    answers = [call(service.port, "GET", "/health") for _ in range(50)]
    worst = max(answer.seconds for answer in answers)
    tally.check(
        "200 dawdling clients delay nobody", worst < 0.5, f"slowest of 50 /health {worst * 1000:.0f} ms"
    )
    statuses = []
    for client in slow:
        client.settimeout(10)
        statuses.append(client.recv(4096).split(b" ")[1:2])
        client.close()
    tally.check("each of them gets 408", statuses == [[b"408"]] * 200, f"{statuses.count([b'408'])} of 200")
    _remove()
