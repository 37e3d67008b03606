"""docs/traps.md is generated from these tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_the_page_of_traps_is_up_to_date() -> None:
    """`uv run scripts/traps` writes the page; a trap without a test, or without a reason for none, fails here too."""
    command = [sys.executable, str(ROOT / "scripts" / "traps"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert checked.returncode == 0, checked.stderr
