"""Some seconds of the protocol fuzz, always the same connections; `scripts/fuzz_http.py` is longer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_http.py"


def test_noise_is_answered_with_http_or_not_at_all_and_hidden_requests_never_run() -> None:
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
