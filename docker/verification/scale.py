"""Several services behind a load balancer, over one Redis."""

from __future__ import annotations

import http.client
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine import IMAGE, Service, compose_up, patient, podman, until
from tally import Tally

__all__ = ["verify_replicas"]


def verify_replicas(tally: Tally, scratch: Path) -> None:
    """Three services behind HAProxy make one decision for a key; one of them is killed."""
    with compose_up(scratch, "compose.replicas.yaml", patient(scratch)) as service:
        replicas = podman("ps", "--filter", f"ancestor={IMAGE}", "--format", "{{.Names}}").split()
        tally.check("three services run", len(replicas) == 3, ", ".join(replicas))
        bodies: set[bytes] = set()

        def all_took_part() -> bool:
            bodies.update(service.predict("one-key-for-all").body for _ in range(10))
            return all("Cache HIT" in podman("logs", name) for name in replicas)

        until("every service's part in it", all_took_part)
        tally.check("repeats of one key are answered alike by all of them", len(bodies) == 1)
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: service.predict("duplicates"), range(24)))
        same = {answer.status for answer in answers} == {200} and len(
            {answer.body for answer in answers}
        ) == 1
        runs = sum(1 for answer in answers if not answer.replayed)
        tally.check(
            "24 duplicates at once, over three services, make one decision", same and runs == 1, f"{runs} run"
        )

        podman("kill", "-s", "KILL", replicas[0])
        retries = sum(_retries(service, f"after-{number}") for number in range(100))
        tally.check(
            "with one service killed, every request gets its answer",
            True,
            f"100 asked, {retries} asked again",
        )


def _retries(service: Service, key: str) -> int:
    """Ask until there is an answer; return how often it had to be asked again."""
    for attempt in itertools.count():
        try:
            if service.predict(key).status == 200:
                return attempt
        except (OSError, http.client.HTTPException):
            pass
        if attempt == 100:
            break
        time.sleep(0.1)
    raise AssertionError(f"100 tries of {key} and no answer")
