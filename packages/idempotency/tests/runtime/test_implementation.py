"""The speed-ups can be switched off, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from idempotency._runtime.implementation import PLAIN

PROBE = """
from idempotency import Response
from idempotency._runtime.poll_once import poll_once
from idempotency._core import outcome

async def body():
    return b"body"

written = outcome.encode_response(Response(200, [], b"x"))
done, work = poll_once(body())
if not done:
    work.close()
print(outcome._decode_quickly is not None, done, outcome.decode(written).body)
"""


def probe(implementation: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "IDEMPOTENCY_IMPL": implementation}
    command = [sys.executable, "-c", PROBE]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("implementation", "speedups"),
    [("plain", False), ("fast", True), ("", True)],
    ids=["plain", "fast", "unset"],
)
def test_the_environment_chooses_the_implementation_and_both_decode_alike(
    implementation: str, speedups: bool
) -> None:
    assert probe(implementation).stdout.split() == [str(speedups), str(speedups), "b'x'"]


def test_the_error_for_an_unknown_implementation_names_the_known_ones() -> None:
    refused = probe("quick")

    assert refused.returncode != 0
    assert "IDEMPOTENCY_IMPL is 'quick'; set it to fast (the default) or plain" in refused.stderr


def test_plain_is_true_only_where_the_environment_asks_for_it() -> None:
    assert (os.environ.get("IDEMPOTENCY_IMPL") == "plain") == PLAIN
