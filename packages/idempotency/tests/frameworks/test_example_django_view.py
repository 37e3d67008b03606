"""The example of a Django project, run in separate processes, since Django is configured once a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real_time("a server is killed, and its leases run out")

EXAMPLE = Path(__file__).parents[4] / "examples" / "django_view"

# Sends the given requests to the ASGI application, concurrently if `at_once`, and prints the answers.
CLIENT = """
import asyncio, json, sys
import httpx
from asgi import application

async def main(requests, at_once):
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        sent = [client.post("/orders", data=data, headers=headers) for data, headers in requests]
        answers = await asyncio.gather(*sent) if at_once else [await one for one in sent]
    return [[a.status_code, a.headers.get("idempotency-replayed"), a.json()] for a in answers]

print(json.dumps(asyncio.run(main(*json.load(sys.stdin)))))
"""

KILLED_AFTER_THE_EFFECT = """
import os, signal
from idempotency.stores.sqlite import SQLiteStore

async def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

SQLiteStore.complete = die
"""

SHORT_LEASE = """
import functools, idempotency
idempotency.Policy = functools.partial(idempotency.Policy, lease=0.5)
"""


class Shop:
    """The project, migrated, with its files in a directory of its own."""

    def __init__(self, data: Path) -> None:
        self._environment = os.environ | {
            "SHOP_DATA": str(data),
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": str(EXAMPLE),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.run("-m", "django", "migrate", "--run-syncdb", "--verbosity", "0")

    def run(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            env=self._environment,
            cwd=EXAMPLE,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=check,
        )

    def post(
        self, *requests: tuple[dict[str, str], dict[str, str]], at_once: bool = False, first: str = ""
    ) -> Any:
        done = self.run("-c", first + CLIENT, stdin=json.dumps([requests, at_once]))
        return json.loads(done.stdout)

    def orders(self) -> list[str]:
        code = (
            "import django; django.setup()\n"
            "from orders.models import Order\n"
            "print(*Order.objects.order_by('pk').values_list('sku', flat=True))"
        )
        return self.run("-c", code).stdout.split()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def request(
    sku: str = "book", key: str | None = "order-1", token: str = "token-1"
) -> tuple[dict[str, str], dict[str, str]]:
    headers = {"Authorization": f"Bearer {token}"}
    return {"sku": sku}, headers if key is None else headers | {"Idempotency-Key": f'"{key}"'}


def test_an_order_sent_twice_is_placed_once_for_each_customer(shop: Shop) -> None:
    renewed, others, unknown = request(token="token-2"), request(token="token-3"), request(token="none")
    answers = shop.post(request(), renewed, request(sku="pen"), others, request(key=None), unknown)
    assert answers[:2] == [
        [201, None, {"order": 1, "sku": "book"}],
        [201, "true", {"order": 1, "sku": "book"}],
    ]
    assert [status for status, _, _ in answers] == [201, 201, 422, 201, 400, 400]
    assert shop.orders() == ["book", "book"]


def test_concurrent_duplicates_wait_and_get_the_first_answer(shop: Shop) -> None:
    answers = shop.post(*[request()] * 5, at_once=True)
    assert [answer for _, _, answer in answers] == [{"order": 1, "sku": "book"}] * 5
    assert sum(replayed is None for _, replayed, _ in answers) == 1
    assert shop.orders() == ["book"]


def test_a_retry_finds_the_order_of_a_worker_that_was_killed_before_it_was_recorded(shop: Shop) -> None:
    arguments = ("-c", SHORT_LEASE + KILLED_AFTER_THE_EFFECT + CLIENT)
    killed = shop.run(*arguments, stdin=json.dumps([[request()], False]), check=False)
    assert killed.returncode == -9
    assert shop.orders() == ["book"]
    assert shop.post(request(), first=SHORT_LEASE) == [[201, None, {"order": 1, "sku": "book"}]]
    assert shop.orders() == ["book"]
