"""The composed services, as an operator meets them: the deployment guide's commands, and what strangers may try."""

from __future__ import annotations

import json
from pathlib import Path

from engine import Service, Tally, call, compose_up, podman

__all__ = ["verify_compose"]

_REDIS = "ai-trading-redis"


def verify_compose(tally: Tally, scratch: Path) -> None:
    """Follow the guide, then attack."""
    with compose_up(scratch) as service:
        for name in ("ml-service", _REDIS):
            tally.check(
                f"the health check of {name} passes", podman("healthcheck", "run", name, check=False) == ""
            )
        tally.check("docker exec ai-trading-redis redis-cli ping", _redis("ping") == "PONG")
        health = json.loads(call(service.port, "GET", "/health").body)
        tally.check(
            "/health says what the guide says", health["status"] == "healthy" and health["model_loaded"]
        )
        _idempotency(tally, service)
        _logs(tally, service)
        _redis_is_guarded(tally)
        _attacks(tally, service)


def _redis(*words: str) -> str:
    return podman("exec", _REDIS, "redis-cli", *words)


def _idempotency(tally: Tally, service: Service) -> None:
    first, second = service.predict("test-request-001"), service.predict("test-request-001")
    tally.check("test 1: the first request is decided", first.status == 200 and not first.replayed)
    tally.check("test 1: the second is its replay", second.replayed and second.body == first.body)
    other = service.predict("test-request-002")
    tally.check("test 2: another key is another request", other.status == 200 and not other.replayed)
    keyless = [service.predict() for _ in range(2)]
    tally.check("test 3: without a key each is decided", not any(answer.replayed for answer in keyless))
    keys = set(_redis("KEYS", "idempotency:*").split())
    expected = {"idempotency:test-request-001", "idempotency:test-request-002"}
    tally.check("test 4: KEYS idempotency:* lists them", keys == expected)
    value = json.loads(_redis("GET", "idempotency:test-request-001"))
    tally.check(
        "test 4: GET shows a readable record", json.loads(first.body)["requestId"] in json.dumps(value)
    )
    ttl = int(_redis("TTL", "idempotency:test-request-001"))
    tally.check("test 4: TTL is an hour", 3500 < ttl <= 3600, f"{ttl} s")
    tally.check("test 4: DEL forgets it", _redis("DEL", "idempotency:test-request-001") == "1")
    tally.check("test 4: after which it is decided again", not service.predict("test-request-001").replayed)


def _logs(tally: Tally, service: Service) -> None:
    log = podman("logs", "ml-service")
    for words in ("Cache HIT", "Cache MISS", "Redis cache connected"):
        count = log.count(words)
        tally.check(f'docker compose logs ml-service | grep "{words}"', count > 0, count)
    tally.check('grep "ERROR" finds nothing in a healthy service', "ERROR" not in log)
    secrets = (service.api_key, service.more["ML_SERVICE_REDIS_PASSWORD"], "test-request-00")
    tally.check(
        "no API key, password or idempotency key is in the log", not any(one in log for one in secrets)
    )
    checked = podman("exec", "ml-service", "ml-api", "check")
    tally.check("docker exec ml-service ml-api check", "Redis answers" in checked)


def _redis_is_guarded(tally: Tally) -> None:
    unauthorised = podman("exec", "-e", "REDISCLI_AUTH=", _REDIS, "redis-cli", "ping", check=False)
    tally.check("Redis asks for its password", "NOAUTH" in unauthorised)
    tally.check(
        "its process list does not show it",
        "requirepass" not in podman("exec", _REDIS, "cat", "/proc/1/cmdline"),
    )
    tally.check("its port is not published", podman("port", _REDIS, check=False) == "")
    routes = podman("exec", _REDIS, "cat", "/proc/net/route").splitlines()[1:]
    default = [line for line in routes if line.split()[1] == "00000000"]
    tally.check("it has no way out of its network", default == [])
    tally.check("it evicts nothing", _redis("CONFIG", "GET", "maxmemory-policy").split()[-1] == "noeviction")
    tally.check("it writes each command to disk", _redis("CONFIG", "GET", "appendonly").split()[-1] == "yes")
    tally.check("it does not run as root", podman("exec", _REDIS, "id", "-u") != "0")


def _attacks(tally: Tally, service: Service) -> None:
    wrong = Service(service.port, "x" * 64)
    answer = wrong.predict("test-request-002")
    tally.check(
        "a wrong API key learns nothing, not even of a replay", answer.status == 401 and not answer.replayed
    )
    missing = call(service.port, "POST", "/predict", body=b"{}", Content_Type="application/json")
    tally.check("nor does a missing one", missing.status == 401)
    tally.check("a body of 2 MiB is refused", service.predict("large", body=b"[" * 2_097_152).status == 413)
    deep = service.predict("deep", body=b"[" * 500_000)
    tally.check("a body nested 500,000 deep is refused", deep.status in {400, 422}, deep.status)
    headers = call(service.port, "GET", "/health", X_Filler="x" * 60_000)
    tally.check("headers of 60 kB are refused", headers.status == 431)
    odd = service.predict("k" * 300)
    tally.check("a key of 300 characters is refused", odd.status == 400)
    injected = service.predict('x" EX 1')
    tally.check(
        "a key full of Redis syntax is only a key or refused", injected.status in {200, 400}, injected.status
    )
    full = podman("exec", _REDIS, "redis-cli", "CONFIG", "SET", "maxmemory", "1")
    refused = service.predict("while-redis-is-full")
    tally.check(
        "a full Redis is a 503, not a decision without protection", full == "OK" and refused.status == 503
    )
    _redis("CONFIG", "SET", "maxmemory", "256mb")
    tally.check("and its end is the end of it", service.predict("while-redis-is-full").status == 200)
