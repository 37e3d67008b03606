"""Run the parts that are named, or all, and end with the count; exit 1 where a check failed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from capacity import verify_capacity
from engine import Tally
from guide import verify_compose
from image import verify_image
from monitoring import verify_monitoring
from outages import verify_outages, verify_stop
from scale import verify_replicas, verify_sentinel

PARTS: dict[str, Callable[[Tally, Path], None]] = {
    "image": verify_image,
    "compose": verify_compose,
    "outages": verify_outages,
    "stop": verify_stop,
    "replicas": verify_replicas,
    "sentinel": verify_sentinel,
    "monitoring": verify_monitoring,
    "capacity": verify_capacity,
}


def main(scratch: Path, names: list[str]) -> int:
    """Run each part; one that breaks is a failure, and the next one runs."""
    if unknown := set(names) - set(PARTS):
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    tally = Tally()
    for name in names or PARTS:
        print(f"\n{name}", flush=True)
        try:
            PARTS[name](tally, scratch)
        except Exception as error:  # the parts after it can still be told apart
            tally.check(f"{name} runs to its end", False, f"{type(error).__name__}: {error}")
    print(f"\n{tally.passed} passed, {len(tally.failed)} failed")
    for failure in tally.failed:
        print(f"failed: {failure}")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
