"""The image and one bare container: size, contents, user, rights, and how fast it starts."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine import BODY, IMAGE, Service, free_port, podman, until
from tally import Tally

__all__ = ["bare", "verify_image"]

_MEGABYTE = 1_000_000
_HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:size=64m,mode=1777"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
)
_STATE = "/var/lib/ml-api"

# What could build, fetch or raise rights; pip, where the base image brings it, is the base's.
_TOOLS = "gcc cc g++ make ld git uv curl wget sudo"


def verify_image(tally: Tally, _: Path) -> None:
    """The image: size, contents, labels; then with every right taken away, and as other users."""
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
    _contents(tally, dict(variable.split("=", 1) for variable in config["Env"]))

    refused = podman("run", "--rm", IMAGE, check=False)
    one_line = "ML_SERVICE_API_KEY" in refused and "Traceback" not in refused
    tally.check("without an API key it says so and does not start", one_line)

    _starts(tally)
    _rights(tally)
    _other_users(tally)
    _without_network(tally)


def _inside(command: str) -> str:
    return podman("run", "--rm", "--network", "none", "--entrypoint", "sh", IMAGE, "-c", command)


def _contents(tally: Tally, environment: dict[str, str]) -> None:
    names = " -o ".join(f"-name {name}" for name in ("scipy", "tests", ".env", ".git", "uv.lock", "'*.pem'"))
    # The base's own: Debian's certificates and what it keeps below /usr/lib.
    places = "-not -path '/usr/lib/*' -not -path '/etc/ssl/*' -not -path '/usr/share/*'"
    found = _inside(f"find / -xdev \\( {names} \\) {places} 2>/dev/null || true")
    tally.check("no tests, SciPy, repository, key or environment file is in it", found == "", found)
    tools = _inside(f"for tool in {_TOOLS}; do command -v $tool; done; true")
    tally.check("no compiler, fetcher or package builder is in it", tools == "", tools)
    writable = _inside(
        "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' 2>/dev/null || true"
    )
    given = {_STATE, "/tmp", "/var/tmp", "/run/lock"}
    more = {path for path in writable.split() if not path.startswith(tuple(given))}
    tally.check(
        "its user may write to temporary places and its state directory alone", more == set(), more or ""
    )
    pinned = {name: environment.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    tally.check("OpenMP and OpenBLAS are given one thread", set(pinned.values()) == {"1"})
    held = {
        name
        for name in environment
        if any(word in name for word in ("PASSWORD", "API_KEY", "SECRET", "TOKEN"))
    }
    history = podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", IMAGE)
    tally.check("no secret is in its environment or history", held == set() and "API_KEY" not in history)
    sbom = json.loads(podman("run", "--rm", "--entrypoint", "cat", IMAGE, "/opt/ml-api/sbom.cdx.json"))
    parts = {part["name"].lower(): part["version"] for part in sbom["components"]}
    real = podman(
        "run", "--rm", "--entrypoint", "python3", IMAGE, "-c", "import numpy; print(numpy.__version__)"
    )
    tally.check(
        "its bill of materials names what is installed", parts.get("numpy") == real, f"{len(parts)} parts"
    )


@contextmanager
def bare(*options: str, healthy: bool = True) -> Iterator[Service]:
    """One container called `bare`, with every right taken away and *options* added."""
    service = Service(free_port(), secrets.token_hex(32))
    given = ("-p", f"127.0.0.1:{service.port}:8000", "-e", f"ML_SERVICE_API_KEY={service.api_key}")
    podman("run", "-d", "--name", "bare", *_HARDENED, *given, *options, IMAGE)
    try:
        if healthy:
            until("health", service.healthy)
        yield service
    finally:
        podman("rm", "-f", "-t", "0", "-v", "bare")


def _starts(tally: Tally) -> None:
    walls, processor = [], []
    for _ in range(5):
        with bare():
            answered = time.time()
            started = podman("inspect", "bare", "--format", "{{.State.StartedAt.UnixMilli}}")
            ticks = podman("exec", "bare", "cat", "/proc/1/stat").rpartition(")")[2].split()[11:13]
        walls.append(answered - int(started) / 1000)
        processor.append(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))
    # Of the processor's time, since the clock's is also spent on what else the machine does.
    tally.check(
        "/health answers after less than 1 s of processor time (best of 5)",
        min(processor) < 1,
        _seconds(processor),
    )
    tally.figure("by the clock, from the start of its process", _seconds(walls))


def _seconds(values: list[float]) -> str:
    return f"{' '.join(f'{value:.2f}' for value in values)} s"


def _rights(tally: Tally) -> None:
    with bare() as service:
        lines = podman("exec", "bare", "cat", "/proc/1/status").splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        name = status["Name"].strip()
        tally.check("the server is process 1, so signals reach it", "ml-api" in name, name)
        tally.check("it runs as 10001", set(status["Uid"].split()) == {"10001"})
        tally.check("it has no capability", int(status["CapEff"], 16) == 0 == int(status["CapBnd"], 16))
        tally.check("it can gain none", status["NoNewPrivs"].strip() == "1")
        written = podman("exec", "bare", "sh", "-c", "touch /opt/ml-api/x /etc/x || true")
        tally.check("its root file system is read-only", written.count("Read-only file system") == 2)
        tally.check("its health check passes", podman("healthcheck", "run", "bare", check=False) == "")
        tally.check("without Redis it keeps its promise in a SQLite file", _promises(service))
        memory = int(status["VmHWM"].split()[0]) / 1000
        tally.figure("largest resident size until then", f"{memory:.0f} MB")


def _promises(service: Service) -> bool:
    first, second = service.predict("bare-key"), service.predict("bare-key")
    return (first.status, second.status) == (200, 200) and second.replayed and first.body == second.body


def _other_users(tally: Tally) -> None:
    with bare("--user", "1234567:0") as service:
        tally.check("any user of group 0, as OpenShift makes them, keeps records too", _promises(service))
    with bare("--user", "23456:23456", "-e", "ML_SERVICE_STORE_PATH=/tmp/records.sqlite3") as service:
        tally.check("so does any user at all, in a file where it may write", _promises(service))
    with bare("--user", "23456:23456", healthy=False):
        until("its end", lambda: "exited" in podman("inspect", "bare", "--format", "{{.State.Status}}"))
        said, code = podman("logs", "bare"), podman("inspect", "bare", "--format", "{{.State.ExitCode}}")
        clear = "Traceback" not in said and _STATE in said
        tally.check(
            "one who may not write its file is told so, with exit code 2", clear and code == "2", said[-200:]
        )


def _without_network(tally: Tally) -> None:
    given = ("-e", "ML_SERVICE_API_KEY=key-of-this-check", "--network", "none")
    podman("run", "-d", "--name", "alone", *_HARDENED, *given, IMAGE)
    try:
        until("health", lambda: podman("healthcheck", "run", "alone", check=False) == "")
        ask = (
            "import sys, urllib.request as r;"
            "q = r.Request('http://127.0.0.1:8000/predict', sys.stdin.buffer.read(),"
            " {'X-API-Key': 'key-of-this-check', 'Content-Type': 'application/json'});"
            "print(r.urlopen(q).status)"
        )
        answered = podman("exec", "-i", "alone", "python3", "-c", ask, given=BODY)
        tally.check(
            "without any network it starts and decides: it fetches nothing", answered == "200", answered
        )
    finally:
        podman("rm", "-f", "-t", "0", "-v", "alone")
