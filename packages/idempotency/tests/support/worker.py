"""
A worker process: sends requests with one key through the middleware, and appends a byte to a ledger for each effect.

    python worker.py KIND LOCATION LEDGER KEY REQUESTS SECONDS [LEASE]

A ledger survives `kill -9`: each of its bytes is an effect that happened.
"""

from __future__ import annotations

import asyncio
import os
import sys

from asgi_driver import call
from effects import Charges, guard
from stores import open_store


async def main(
    kind: str, location: str, ledger: str, key: str, requests: str, seconds: str, lease: str = "30"
) -> None:
    """Send the requests, four at a time."""
    file = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def work(number: int) -> None:
        os.write(file, b"1")
        await asyncio.sleep(float(seconds))  # the work of one request

    async with open_store(kind, location) as store:
        app = guard(Charges(work), store, lease=float(lease))
        for _ in range(0, int(requests), 4):
            answers = await asyncio.gather(*[call(app, key=key, body=b"same") for _ in range(4)])
            assert {answer.status for answer in answers} <= {201, 409}


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
