"""Several services behind a load balancer, and Redis with Sentinel: what one failure costs."""

from __future__ import annotations

import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine import Service, Tally, compose_up, podman, until

__all__ = ["verify_replicas", "verify_sentinel"]


def _names(image: str) -> list[str]:
    return podman("ps", "--filter", f"ancestor={image}", "--format", "{{.Names}}").split()


def verify_replicas(tally: Tally, scratch: Path) -> None:
    """Ask three services through HAProxy; then take one away."""
    with compose_up(scratch, "compose.replicas.yaml") as service:
        replicas = _names("localhost/ai-trading-ml")
        tally.check("three services run", len(replicas) == 3, ", ".join(replicas))
        time.sleep(2)  # for the balancer to look each of them up
        bodies = {service.predict("one-key-for-all").body for _ in range(30)}
        tally.check("30 repeats of one key are answered alike", len(bodies) == 1)
        logs = [podman("logs", name) for name in replicas]
        tally.check("every service took part", all("Cache HIT" in log for log in logs))
        with ThreadPoolExecutor(24) as pool:
            twins = list(pool.map(lambda _: service.predict("twins"), range(24)))
        same = {twin.status for twin in twins} == {200} and len({twin.body for twin in twins}) == 1
        runs = sum(1 for twin in twins if not twin.replayed)
        tally.check(
            "24 twins at once, over three services, make one decision", same and runs == 1, f"{runs} run"
        )

        retries = 0
        podman("kill", "-s", "KILL", replicas[0])
        for number in range(100):
            retries += _with_retries(service, f"after-{number}")
        tally.check(
            "with one service killed, every request gets its answer",
            True,
            f"100 asked, {retries} asked again",
        )


def verify_sentinel(tally: Tally, scratch: Path) -> None:
    """Kill the primary; the replica takes over, and records are where they were."""
    with compose_up(scratch, "compose.sentinel.yaml") as service:
        before = service.predict("before-failover")
        tally.check("it serves through Sentinel", before.status == 200)
        until(
            "replication",
            lambda: "state=online" in podman("exec", "ai-trading-redis", "redis-cli", "INFO", "replication"),
        )
        sentinel = next(
            name for name in podman("ps", "--format", "{{.Names}}").split() if "sentinel-1" in name
        )
        ask = ("exec", sentinel, "redis-cli", "-p", "26379")
        until(
            "a quorum", lambda: "num-other-sentinels\n2" in podman(*ask, "SENTINEL", "MASTER", "ai-trading")
        )
        podman("kill", "-s", "KILL", "ai-trading-redis")
        seconds = until("the failover", lambda: service.predict("after-failover").status == 200, seconds=60)
        tally.check(
            "a keyed request is answered again", True, f"{seconds:.1f} s after the primary was killed"
        )
        again = service.predict("before-failover")
        tally.check("what was recorded before is replayed", again.replayed and again.body == before.body)


def _with_retries(service: Service, key: str) -> int:
    for attempt in range(20):
        try:
            if service.predict(key).status == 200:
                return attempt
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.1)
    raise AssertionError(f"20 tries of {key} and no answer")
