"""Redis with a replica and three Sentinels: what the loss of the primary costs."""

from __future__ import annotations

from pathlib import Path

from engine import compose_up, podman, until
from tally import Tally

__all__ = ["verify_sentinel"]

_PRIMARY = "ai-trading-redis"
_REPLICA = "ai-trading_redis-replica_1"
_SENTINELS = [f"ai-trading_sentinel-{number}_1" for number in (1, 2, 3)]


def verify_sentinel(tally: Tally, scratch: Path) -> None:
    """The primary is killed: the replica takes over, and stays it when everything starts again."""
    with compose_up(scratch, "compose.sentinel.yaml") as service:
        before = service.predict("before-failover")
        tally.check("it serves through Sentinel", before.status == 200)
        until("replication", lambda: "state=online" in _replication(_PRIMARY))
        until("a quorum", lambda: all("num-other-sentinels\n2" in _view(name) for name in _SENTINELS))
        podman("kill", "-s", "KILL", _PRIMARY)
        seconds = until("the failover", lambda: service.predict("after-failover").status == 200)
        tally.check(
            "the primary killed: a keyed request is answered again", True, f"{seconds:.1f} s after the kill"
        )
        again = service.predict("before-failover")
        tally.check("what was recorded before is replayed", again.replayed and again.body == before.body)

        # The old primary was never told. A start of everything, as after a power cut, must not believe it.
        after = service.predict("after-failover")
        podman("stop", "-t", "5", "ml-service", *_SENTINELS, _REPLICA)
        podman("start", _PRIMARY, _REPLICA, *_SENTINELS, "ml-service")
        service.wait()
        kept = service.predict("after-failover")
        tally.check(
            "everything started again: what was recorded after the failover is replayed",
            kept.replayed and kept.body == after.body,
        )
        seconds = until("its new role", lambda: "role:slave" in _replication(_PRIMARY))
        tally.check("the old primary has become the replica", True, f"after {seconds:.1f} s")
        until("its copy", lambda: "master_link_status:up" in _replication(_PRIMARY))
        kept_too = podman("exec", _PRIMARY, "redis-cli", "EXISTS", "idempotency:after-failover")
        tally.check("and has what it missed", kept_too == "1")


def _replication(name: str) -> str:
    return podman("exec", name, "redis-cli", "INFO", "replication", check=False)


def _view(name: str) -> str:
    return podman("exec", name, "redis-cli", "-p", "26379", "SENTINEL", "MASTER", "ai-trading", check=False)
