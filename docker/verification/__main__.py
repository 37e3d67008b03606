"""Run the parts that are named, or all, and end with a table and the count; exit 1 where a check failed."""

from __future__ import annotations

import sys
from pathlib import Path

from attacks import verify_attacks
from capacity import verify_capacity
from files import verify_files
from guide import verify_guide
from image import verify_image
from monitoring import verify_monitoring
from outages import verify_outages
from scale import verify_replicas
from sentinel import verify_sentinel
from stop import verify_stop
from tally import Part, Tally

PARTS: dict[str, Part] = {
    "files": verify_files,
    "image": verify_image,
    "attacks": verify_attacks,
    "guide": verify_guide,
    "outages": verify_outages,
    "stop": verify_stop,
    "replicas": verify_replicas,
    "sentinel": verify_sentinel,
    "monitoring": verify_monitoring,
    "capacity": verify_capacity,
}


def main(scratch: Path, set_up: float, names: list[str]) -> int:
    """Run each part; one that breaks is a failure, and the next one runs."""
    if unknown := set(names) - set(PARTS):
        print(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    tally = Tally()
    tally.set_up(set_up)
    for name in names or PARTS:
        tally.run(name, PARTS[name], scratch)
    tally.report()
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
