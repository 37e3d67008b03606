"""The faults of dependencies that this project works around still exist; a fixed one needs no workaround."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

UPSTREAM = Path(__file__).resolve().parent.parent / "docs" / "upstream"


def test_every_fault_on_the_page_is_reproduced() -> None:
    command = [sys.executable, str(UPSTREAM / "reproduce.py")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True)
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    gone = [one for one in found if not one["there"]]
    assert not gone, (
        "fixed in the locked version? Then review the workaround and remove the fault from the page"
    )
    rows = re.findall(r"^\| `(\w+)` \|", (UPSTREAM / "README.md").read_text(), re.MULTILINE)
    assert rows == [one["fault"] for one in found]
