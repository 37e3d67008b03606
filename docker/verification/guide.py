"""The deployment guide, typed line by line: its own commands, with `docker` and `docker-compose` being podman's."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from statistics import median

from engine import DOCKER, PATIENCE, Service, call, composition, podman, run
from tally import Tally

__all__ = ["verify_guide"]

_EXAMPLE = DOCKER.parent / "services/ml-api/src/ml_api/demo/request.json"

# Each command as it is typed, with what has to be seen. `localhost:8000` is the port that is published.
_FIRST = (
    ("docker-compose up --build -d", r""),
    ("@connected", r""),
    ("docker-compose ps", r"ai-trading-redis[\s\S]*ml-service"),
    (
        "curl -s http://localhost:8000/health",
        r'"status":"healthy","model_loaded":true,"model_version":"1.0.0","schema_version":"1.0"',
    ),
    ("docker exec ai-trading-redis redis-cli ping", r"^PONG$"),
)
_REQUEST = (
    'curl -s -i -X POST http://localhost:8000/predict -H "X-API-Key: $ML_SERVICE_API_KEY" '
    '-H "Content-Type: application/json" -d @test_request.json'
)
_LOOKING = (
    # Test 4, and the log.
    ("docker exec ai-trading-redis redis-cli KEYS 'idempotency:*' | sort | xargs", r"^\S+-001 \S+-002$"),
    ("docker exec ai-trading-redis redis-cli GET idempotency:test-request-001", r"requestId"),
    ("docker exec ai-trading-redis redis-cli TTL idempotency:test-request-001", r"^(3600|35\d\d)$"),
    (
        "echo 'TTL idempotency:test-request-002' | docker exec -i ai-trading-redis redis-cli",
        r"^(3600|35\d\d)$",
    ),
    ('docker-compose logs ml-service | grep "Cache HIT" | wc -l', r"^1$"),
    ('docker-compose logs ml-service | grep "Cache MISS" | wc -l', r"^2$"),
    ('docker-compose logs ml-service | grep "Redis cache connected"', r"Redis cache connected"),
    ('docker-compose logs ml-service | grep "ERROR" | wc -l', r"^0$"),
    ("docker-compose logs ml-service | grep -i redis", r"Redis"),
    # Troubleshooting.
    ("docker ps | grep redis", r"ai-trading-redis"),
    ("docker logs ai-trading-redis", r"Ready to accept connections"),
    ("docker exec ml-service env | grep REDIS", r"ML_SERVICE_REDIS_ENABLED=true"),
    (
        "docker exec ml-service getent hosts redis",
        r"redis",
    ),  # the guide has `ping`, which no slim image brings
    ("docker exec ml-service ml-api check", r"Redis answers"),
    ("docker exec ml-service bash -c 'id -u'", r"^10001$"),
    ('docker exec ai-trading-redis redis-cli SET test-key "test-value"', r"^OK$"),
    ("docker exec ai-trading-redis redis-cli GET test-key", r"^test-value$"),
    ("docker exec ai-trading-redis redis-cli DEL test-key", r"^1$"),
    ("docker exec ai-trading-redis redis-cli INFO memory", r"maxmemory_policy:noeviction"),
    ("docker stats --no-stream ai-trading-redis", r"ai-trading-redis"),
    ("docker images | grep ai-trading-ml", r"ai-trading-ml"),
)
_FORGETTING = (
    # A record that is forgotten is decided again.
    ("docker exec ai-trading-redis redis-cli DEL idempotency:test-request-001", r"^1$"),
    (f"{_REQUEST} -H 'Idempotency-Key: test-request-001' | grep -ci idempotency-replayed", r"^0$"),
    # Down and up keeps the records, also under a new password; `-v` does not.
    ("docker-compose down", r""),
    ("sed -i 's/^ML_SERVICE_REDIS_PASSWORD=/&new/' $ENVIRONMENT", r""),
    ("docker-compose up -d", r""),
    ("@connected", r""),
    (f"{_REQUEST} -H 'Idempotency-Key: test-request-002' | grep -ci idempotency-replayed", r"^1$"),
    ("docker exec ai-trading-redis redis-cli FLUSHDB", r"^OK$"),
    (f"{_REQUEST} -H 'Idempotency-Key: test-request-002' | grep -ci idempotency-replayed", r"^0$"),
    ("docker-compose down -v", r""),
    ("docker-compose up -d", r""),
    ("@connected", r""),
    ("docker exec ai-trading-redis redis-cli DBSIZE", r"^0$"),
)


def verify_guide(tally: Tally, scratch: Path) -> None:
    """The deployment guide's commands as they are typed, its four tests and targets, and how Redis is guarded."""
    with composition(scratch) as service:
        typed = _Terminal(tally, service, scratch)
        for line, expected in _FIRST:
            typed.check(line, expected)
        for name in ("ml-service", "ai-trading-redis"):
            passes = podman("healthcheck", "run", name, check=False) == ""
            tally.check(f"the health check of {name} passes", passes)
        _idempotency(tally, typed)
        for line, expected in _LOOKING:
            typed.check(line, expected)
        _secrets(tally, service)
        _redis_is_guarded(tally, service)
        _targets(tally, service)
        for line, expected in _FORGETTING:
            typed.check(line, expected)


class _Terminal:
    """A shell in which `docker` and `docker-compose` are podman and podman-compose, beside a test_request.json."""

    def __init__(self, tally: Tally, service: Service, scratch: Path) -> None:
        self._tally, self._service, self._directory = tally, service, scratch / "typed"
        self._directory.mkdir(exist_ok=True)
        shutil.copy(_EXAMPLE, self._directory / "test_request.json")
        given = scratch / "compose.env"
        self._program("docker", 'exec podman "$@"')
        self._program("docker-compose", f'exec podman-compose --env-file {given} "$@"')
        self._environment = {
            **os.environ,
            "PATH": f"{self._directory}:{os.environ['PATH']}",
            "COMPOSE_FILE": str(DOCKER / "compose.yaml"),
            "ENVIRONMENT": str(given),
            "ML_SERVICE_API_KEY": service.api_key,
        }

    def _program(self, name: str, line: str) -> None:
        file = self._directory / name
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)

    def type(self, line: str) -> str:
        """Run *line* and return what it printed, but for podman's words about systemd."""
        typed = line.replace("localhost:8000", f"localhost:{self._service.port}")
        # A build finds its layers, unless the sources changed since; then it installs everything again.
        limit = 400 if "--build" in line else PATIENCE
        _, printed = run(["bash", "-c", typed], timeout=limit, cwd=self._directory, env=self._environment)
        noise = ("systemd", "syslog")
        return "\n".join(text for text in printed.splitlines() if not any(word in text for word in noise))

    def check(self, line: str, expected: str) -> None:
        """Type *line*; what it prints has to match *expected*. `@connected` waits until the service has its Redis."""
        if line == "@connected":
            self._service.wait()
            return
        said = self.type(line)
        seen = re.search(expected, said, re.MULTILINE) is not None
        shown = line if len(line) < 90 else f"{line[:60]} ... {line[-25:]}"
        self._tally.check(f"$ {shown}", seen, "" if seen else said[-300:])


def _idempotency(tally: Tally, typed: _Terminal) -> None:
    asked = [
        typed.type(f"{_REQUEST} -H 'Idempotency-Key: test-request-{key}'") for key in ("001", "001", "002")
    ]
    asked += [typed.type(_REQUEST) for _ in range(2)]
    statuses = [answer.split(maxsplit=2)[1] for answer in asked]
    replayed = ["idempotency-replayed: true" in answer.lower() for answer in asked]
    bodies = [answer.splitlines()[-1] for answer in asked]
    tally.check("every request of the four tests is answered", statuses == ["200"] * 5, " ".join(statuses))
    tally.check("test 1: the first is decided, the second is its replay", replayed[:2] == [False, True])
    tally.check("test 1: byte for byte", bodies[0] == bodies[1])
    tally.check("test 2: another key is another decision", not replayed[2] and bodies[2] != bodies[0])
    tally.check("test 3: without a key each is decided", not any(replayed[3:]) and bodies[3] != bodies[4])


def _secrets(tally: Tally, service: Service) -> None:
    log = podman("logs", "ml-service")
    secrets = (service.api_key, service.settings["ML_SERVICE_REDIS_PASSWORD"], "test-request-00")
    tally.check(
        "no API key, password or idempotency key is in the log", not any(one in log for one in secrets)
    )


def _redis(*words: str) -> str:
    return podman("exec", "ai-trading-redis", "redis-cli", *words)


def _redis_is_guarded(tally: Tally, service: Service) -> None:
    name = "ai-trading-redis"
    unauthorised = podman("exec", "-e", "REDISCLI_AUTH=", name, "redis-cli", "ping", check=False)
    tally.check("Redis asks for its password", "NOAUTH" in unauthorised)
    processes = podman("exec", name, "cat", "/proc/1/cmdline")
    tally.check("its process list does not show it", "requirepass" not in processes)
    tally.check("its port is not published", podman("port", name, check=False) == "")
    routes = podman("exec", name, "cat", "/proc/net/route").splitlines()[1:]
    default = [line for line in routes if line.split()[1] == "00000000"]
    tally.check("it has no way out of its network", default == [])
    tally.check("it evicts nothing", _redis("CONFIG", "GET", "maxmemory-policy").split()[-1] == "noeviction")
    tally.check(
        "it writes each command to disk", _redis("CONFIG", "GET", "appendfsync").split()[-1] == "always"
    )
    tally.check("it does not run as root", podman("exec", name, "id", "-u") != "0")
    _redis("CONFIG", "SET", "maxmemory", "1")
    refused = service.predict("while-redis-is-full")
    tally.check(
        "a full Redis is a 503, not a decision without protection", refused.status == 503, refused.status
    )
    _redis("CONFIG", "SET", "maxmemory", "256mb")
    tally.check("and its end is the end of it", service.predict("while-redis-is-full").status == 200)


_FLOORS = 8
"""A hit may take this many times the time of `GET /health` beside it: on a busy machine both are slow."""


def _targets(tally: Tally, service: Service) -> None:
    # One at a time, each on a connection of its own. The best of three medians: the rest is what else the machine did.
    hits, misses, floors = [], [], []
    service.predict("timed")
    for number in range(3):
        floors.append(median(call(service.port, "GET", "/health").seconds for _ in range(40)))
        hits.append(median(service.predict("timed").seconds for _ in range(40)))
        misses.append(median(service.predict(f"timed-{number}-{again}").seconds for again in range(40)))
    hit, miss, floor = (min(times) * 1000 for times in (hits, misses, floors))
    figure = f"{hit:.1f} ms; {floor:.1f} ms for /health"
    tally.check(
        f"a hit is answered within 10 ms, or {_FLOORS} times /health", hit < max(10, _FLOORS * floor), figure
    )
    tally.check("a miss is answered within 500 ms", miss < 500, f"{miss:.1f} ms")
    body = json.loads(service.predict("timed").body)
    tally.check("and it is the decision's whole answer", {"requestId", "orders"} <= set(body), sorted(body))
