"""How many requests one service answers beside its Redis, measured by wrk through the published port."""

from __future__ import annotations

import re
from pathlib import Path

from engine import BODY, compose_up, podman
from tally import Tally

__all__ = ["verify_capacity"]

_SCRIPT = """
local file = io.open("{body}", "rb")
local body = file:read("*a")
file:close()
local count, thread = 0, 0
local function headers(key)
  return {{["X-API-Key"] = "{api_key}", ["Content-Type"] = "application/json", ["Idempotency-Key"] = key}}
end
function setup(one) thread = thread + 1; one:set("id", thread) end
function request()
  count = count + 1
  local key = {key}
  return wrk.format("POST", "/predict", headers(key), body)
end
function done(summary)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  io.write(string.format("bad %d of %d\\n", bad, summary.requests))
end
"""

_KINDS = {
    "replays of one key": '"same"',
    "first runs": 'string.format("new-%d-%d", id, count)',
    "without a key": "nil",
}


def verify_capacity(tally: Tally, scratch: Path) -> None:
    """16 connections for 8 s each, by wrk: replays, first runs, requests without a key."""
    body = scratch / "body.json"
    body.write_bytes(BODY)
    with compose_up(scratch) as service:
        for number in range(50):
            service.predict(f"warm-{number}")
        service.predict("same")
        for name, key in _KINDS.items():
            script = scratch / "load.lua"
            script.write_text(_SCRIPT.format(body=body, api_key=service.api_key, key=key))
            text = podman(
                "-t2",
                "-c16",
                "-d8",
                "--latency",
                "-s",
                str(script),
                f"http://127.0.0.1:{service.port}/predict",
                binary="wrk",
            )
            rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
            slow = re.search(r"^\s+99%\s+(\S+)", text, re.MULTILINE)
            half = re.search(r"^\s+50%\s+(\S+)", text, re.MULTILINE)
            tally.check(f"{name}: no request fails", "bad 0 of" in text)
            if rate and slow and half:
                tally.figure(
                    name, f"{float(rate[1]):,.0f} requests/s, median {half[1]}, 99 % within {slow[1]}"
                )
        stats = podman("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}")
        tally.figure("memory afterwards", "; ".join(stats.splitlines()))
