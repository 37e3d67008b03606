"""A few seconds of `scripts/fuzz_http.py` with a fixed seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_http.py"


def test_the_http_fuzz_finds_no_fault() -> None:
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--seconds", "6", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    figures = json.loads(ran.stdout)
    assert figures["crashes"] == 0
    assert figures["connections"] > 30
