"""What happens when Redis dies or freezes, when the service restarts, and when it is stopped while it works."""

from __future__ import annotations

import http.client
import json
import threading
import time
from pathlib import Path

from engine import IMAGE, Service, Tally, call, compose_up, free_port, podman, until

__all__ = ["verify_outages", "verify_stop"]

_REDIS, _SERVICE = "ai-trading-redis", "ml-service"

# The DNS server of Debian 12's podman (aardvark-dns 1.4) now and then stops answering on a network when one of its
# containers comes back. Fixed addresses keep that apart from what is tested: whether the service finds Redis again.
_ADDRESS = "10.89.200.200"
_FIXED_ADDRESS = f"""
services:
  ml-service:
    extra_hosts: ["redis:{_ADDRESS}"]
  redis:
    networks:
      store: {{ipv4_address: {_ADDRESS}, mac_address: "02:00:0a:59:c8:c8"}}
networks:
  store:
    ipam:
      config: [{{subnet: 10.89.200.0/24, ip_range: 10.89.200.0/25}}]
"""


def verify_outages(tally: Tally, scratch: Path) -> None:
    """Kill Redis, freeze it, restart the service: each with a record made before."""
    override = scratch / "fixed-address.yaml"
    override.write_text(_FIXED_ADDRESS)
    with compose_up(scratch, str(override)) as service:
        before = service.predict("made-before")
        podman("kill", "-s", "KILL", _REDIS)
        _while_redis_is_away(tally, service, "killed")
        podman("start", _REDIS)
        seconds = until("recovery", lambda: service.predict("after-kill").status == 200)
        tally.check("a Redis that comes back is found", True, f"{seconds:.2f} s after its start")
        again = service.predict("made-before")
        tally.check(
            "what was recorded before the kill is still there", again.replayed and again.body == before.body
        )

        podman("pause", _REDIS)
        _while_redis_is_away(tally, service, "frozen")
        podman("unpause", _REDIS)
        seconds = until("recovery", lambda: service.predict("after-freeze").status == 200)
        tally.check("a Redis that thaws is found", True, f"{seconds:.2f} s later")

        podman("restart", "-t", "10", _SERVICE)
        until("health", service.healthy)
        replay = service.predict("made-before")
        tally.check(
            "a restarted service replays, byte for byte", replay.replayed and replay.body == before.body
        )

        podman("stop", "-t", "5", _REDIS)
        _starts_without_redis(tally, service)


def _starts_without_redis(tally: Tally, composed: Service) -> None:
    # A container of its own: podman starts what a composed one depends on.
    service = Service(free_port(), composed.api_key)
    password = composed.more["ML_SERVICE_REDIS_PASSWORD"]
    settings = {
        "API_KEY": service.api_key,
        "REDIS_ENABLED": "true",
        "REDIS_HOST": "redis",
        "REDIS_PASSWORD": password,
    }
    environment = [word for name, value in settings.items() for word in ("-e", f"ML_SERVICE_{name}={value}")]
    networks = ("--network", "ai-trading_edge,ai-trading_store", "--add-host", f"redis:{_ADDRESS}")
    podman(
        "run", "-d", "--name", "early", *networks, "-p", f"127.0.0.1:{service.port}:8000", *environment, IMAGE
    )
    try:
        until("health", service.healthy)
        answer = service.predict("early")
        tally.check(
            "the service starts while Redis is not there", answer.status == 503, f"{answer.seconds:.2f} s"
        )
        podman("start", _REDIS)
        until("the connection", service.connected)
        tally.check("and serves as soon as it is", service.predict("early").status == 200)
    finally:
        podman("rm", "-f", "-t", "1", "-v", "early")


def _while_redis_is_away(tally: Tally, service: Service, how: str) -> None:
    keyed = service.predict(f"while-{how}")
    wait = keyed.headers.get("retry-after", "none")
    tally.check(
        f"Redis {how}: a keyed request is refused and told when to retry",
        keyed.status == 503 and wait.isdigit(),
        f"503 after {keyed.seconds:.2f} s, Retry-After {wait}",
    )
    tally.check(f"Redis {how}: one without a key is decided", service.predict().status == 200)
    until("the watch's notice", lambda: not service.connected())
    health = call(service.port, "GET", "/health")
    fast = health.status == 200 and health.seconds < 0.1
    tally.check(f"Redis {how}: /health stays quick", fast, f"{health.seconds * 1000:.1f} ms")
    ready = service.ready()
    tally.check(
        f"Redis {how}: /ready says so and stays 200", ready["storeUp"] is False and ready["status"] == "ready"
    )


def verify_stop(tally: Tally, scratch: Path) -> None:
    """Stop the service under load. Whoever got an answer gets it again afterwards; nobody gets half of one."""
    with compose_up(scratch) as service:
        load = _Load(service, clients=16)
        load.start()
        time.sleep(1.5)
        begun = time.perf_counter()
        podman("stop", "-t", "40", _SERVICE)
        stopped = time.perf_counter() - begun
        load.stop()
        state = json.loads(podman("inspect", _SERVICE))[0]["State"]
        tally.check("a stop under load takes less than 5 s", stopped < 5, f"{stopped:.2f} s")
        tally.check("and ends with exit code 0, not by the kill", state["ExitCode"] == 0, state["ExitCode"])
        tally.check("requests were answered until then", len(load.answered) > 100, len(load.answered))
        tally.check("no answer broke off in the middle", load.broken == 0, load.broken)
        tally.check("no request was answered with an error", load.errors == [], load.errors[:3])
        tally.figure("requests refused while it stopped", str(load.refused))
        podman("start", _SERVICE)
        until("the connection to Redis", service.connected)
        kept = list(load.answered.items())[-300:]
        replays = [(service.predict(key), body) for key, body in kept]
        lost = sum(1 for answer, body in replays if not answer.replayed or answer.body != body)
        tally.check(
            "every answer given before the stop is replayed after it",
            lost == 0,
            f"{len(kept)} asked, {lost} lost",
        )


class _Load:
    """Clients that ask with a new key each time until told to stop, and remember what they were told."""

    def __init__(self, service: Service, *, clients: int) -> None:
        self._service, self._over = service, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        self.answered: dict[str, bytes] = {}
        self.errors: list[int] = []
        self.refused = self.broken = 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            key = f"load-{client}-{number}"
            try:
                answer = self._service.predict(key)
            except http.client.IncompleteRead:
                self.broken += 1
            except (OSError, http.client.HTTPException):  # refused, or reset before a byte of an answer
                self.refused += 1
                time.sleep(0.02)
            else:
                if answer.status == 200:
                    self.answered[key] = answer.body
                else:
                    self.errors.append(answer.status)
