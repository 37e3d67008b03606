"""
Claims under load while a Redis primary fails: how many are refused, for how long, and how many are lost.

    uv run python benchmarks/failover.py              # every topology and fault, once with and once without WAIT
    uv run python benchmarks/failover.py --rounds 5
    uv run python benchmarks/failover.py --check      # exits 1 if a call took too long or a confirmed claim was lost

Starts its own servers on the loopback interface: a primary with two replicas and three Sentinels, or a cluster of three
primaries with one replica each. Sixteen callers claim new keys through four stores. A primary is killed, or frozen, or
killed 0.2 s after it lost contact with its replicas (lag), and comes back.
At the end another owner claims every granted key again; if that succeeds, the first claim was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[1] / "packages/idempotency/tests/support"))
from harness.results import Result, add_options, finish
from redis_failover import DEADLINE, Failover, Fault, cluster_url, fail_over, sentinel_url
from redis_servers import find_binary, start_cluster, start_sentinels

BEFORE, DOWN, AFTER = 1.0, 8.0, 4.0  # seconds
SLACK = 0.25  # seconds, because callers are woken one after the other


def run_failover(binary: Path, topology: str, fault: Fault, wait_replicas: int) -> Failover:
    if topology == "sentinel":
        with start_sentinels(binary, replicas=2, sentinels=3) as sentinels:
            url, victim = sentinel_url(sentinels, wait_replicas), sentinels.primary
            return asyncio.run(fail_over(url, victim, fault, before=BEFORE, down=DOWN, after=AFTER))
    with start_cluster(binary, replicas=1) as cluster:
        url, victim = cluster_url(cluster, wait_replicas), cluster.nodes[0]
        return asyncio.run(fail_over(url, victim, fault, before=BEFORE, down=DOWN, after=AFTER))


def main() -> int:
    parser = argparse.ArgumentParser(description="What a failover of Redis costs.")
    parser.add_argument("--rounds", type=int, default=1)
    add_options(parser)
    options = parser.parse_args()
    binary = find_binary()
    if binary is None:
        parser.error("no Redis server found: run `uv sync`, or put redis-server on the path")
    results = []
    for topology in ("sentinel",) if options.quick else ("sentinel", "cluster"):
        for fault in ("kill",) if options.quick else get_args(Fault):
            for wait_replicas in (1,) if options.quick else (0, 1):
                for _ in range(options.rounds):
                    seen = run_failover(binary, topology, fault, wait_replicas)
                    results += results_of(
                        f"{topology}, {fault}, wait_replicas={wait_replicas}", seen, wait_replicas
                    )
                    print(
                        f"{topology:<9}{fault:<7} wait_replicas={wait_replicas}  granted {len(seen.granted):6}  "
                        f"refused {seen.refused:5}  outage {seen.outage:5.2f} s  longest call {seen.longest:4.2f} s  "
                        f"(timers late by {seen.late:4.2f} s)  lost {seen.lost}"
                        f"{'  MISSED' * any(result.missed for result in results[-3:])}",
                        flush=True,
                    )
    return finish(options, results)


def results_of(name: str, seen: Failover, wait_replicas: int) -> list[Result]:
    """Return the three results of one failover."""
    longest, none_lost = seen.longest - seen.late, 0 if wait_replicas else None
    return [
        Result(name=name, value=seen.lost, unit="granted claims lost", goal=none_lost),
        Result(name=name, value=seen.outage, unit="s until the last refusal"),
        Result(
            name=name,
            value=longest,
            unit="s of the longest call, less what timers were late by",
            goal=DEADLINE + SLACK,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
