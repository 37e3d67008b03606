"""What happens when Redis dies, freezes, dawdles or changes its password, and when the service restarts."""

from __future__ import annotations

from pathlib import Path

from engine import IMAGE, Service, call, compose_up, free_port, podman, until
from tally import Tally

__all__ = ["verify_outages"]

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
    """Redis is killed, frozen, slow, absent at the start, and does not know the password; the service restarts."""
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
        kept = again.replayed and again.body == before.body
        tally.check("what was recorded before the kill is still there", kept)

        podman("pause", _REDIS)
        _while_redis_is_away(tally, service, "frozen")
        podman("unpause", _REDIS)
        seconds = until("recovery", lambda: service.predict("after-freeze").status == 200)
        tally.check("a Redis that thaws is found", True, f"{seconds:.2f} s later")

        podman("exec", _REDIS, "redis-cli", "CLIENT", "PAUSE", "500", "ALL")
        slow = service.predict("while-slow")
        waited = slow.status == 200 and slow.seconds > 0.2
        tally.check(
            "a Redis that is slow, but within the deadline, is waited for", waited, f"{slow.seconds:.2f} s"
        )

        podman("restart", "-t", "10", _SERVICE)
        service.wait()
        replay = service.predict("made-before")
        same = replay.replayed and replay.body == before.body
        tally.check("a restarted service replays, byte for byte", same)

        _wrong_password(tally, service)
        podman("stop", "-t", "5", _REDIS)
        _starts_without_redis(tally, service)
        podman("rm", "-f", "-t", "1", "-v", "beside")


def _beside(composed: Service, password: str) -> Service:
    """Start a service in a container of its own, called `beside`: podman starts what a composed one depends on."""
    service = Service(free_port(), composed.api_key)
    settings = {
        "API_KEY": service.api_key,
        "REDIS_ENABLED": "true",
        "REDIS_HOST": "redis",
        "REDIS_PASSWORD": password,
    }
    environment = [word for name, value in settings.items() for word in ("-e", f"ML_SERVICE_{name}={value}")]
    networks = ("--network", "ai-trading_edge,ai-trading_store", "--add-host", f"redis:{_ADDRESS}")
    published = ("-p", f"127.0.0.1:{service.port}:8000")
    podman("run", "-d", "--replace", "--name", "beside", *networks, *published, *environment, IMAGE)
    return service


def _wrong_password(tally: Tally, composed: Service) -> None:
    _beside(composed, "not-the-password")
    until("its end", lambda: "exited 2" in _state("beside"))
    said = podman("logs", "beside")
    clear = "Traceback" not in said and "password" in said and "not-the-password" not in said
    tally.check("a wrong Redis password ends it at once, exit code 2, in one line", clear, said)


def _state(name: str) -> str:
    return podman("inspect", name, "--format", "{{.State.Status}} {{.State.ExitCode}}")


def _starts_without_redis(tally: Tally, composed: Service) -> None:
    service = _beside(composed, composed.settings["ML_SERVICE_REDIS_PASSWORD"])
    until("health", service.healthy)
    answer = service.predict("early")
    refused = answer.status == 503
    tally.check("the service starts while Redis is not there", refused, f"503 after {answer.seconds:.2f} s")
    podman("start", _REDIS)
    until("the connection", service.connected)
    tally.check("and serves as soon as it is", service.predict("early").status == 200)


def _while_redis_is_away(tally: Tally, service: Service, how: str) -> None:
    keyed = service.predict(f"while-{how}")
    wait = keyed.headers.get("retry-after", "none")
    told = keyed.status == 503 and wait.isdigit()
    tally.check(
        f"Redis {how}: a keyed request is refused and told when to retry",
        told,
        f"{keyed.status} after {keyed.seconds:.2f} s, Retry-After {wait}",
    )
    tally.check(f"Redis {how}: one without a key is decided", service.predict().status == 200)
    until("the watch's notice", lambda: not service.connected())
    health = call(service.port, "GET", "/health")
    fast = health.status == 200 and health.seconds < 0.5  # one that asked Redis would wait for 1 s
    tally.check(f"Redis {how}: /health stays quick", fast, f"{health.seconds * 1000:.1f} ms")
    ready = service.ready()
    serves = ready["storeUp"] is False and ready["status"] == "ready"
    tally.check(f"Redis {how}: /ready says so and stays 200", serves)
