"""Read by type checkers, never run: a policy's options, and the switches for unit tests."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

from flask import Flask
from starlette.applications import Starlette
from starlette.middleware import Middleware

from idempotency import IdempotencyMiddleware, Policy, Problem, by_user
from idempotency.asgi import LateClaim
from idempotency.flask import Idempotency
from idempotency.stores.memory import MemoryStore, SyncMemoryStore
from idempotency.testing import StoreContract, protection_off, swapped_stores


def envelope(problem: Problem) -> tuple[str, bytes]:
    assert_type(problem.retry_after, int | None)
    return "application/json", problem.slug.encode()


policy = Policy(key_headers=("webhook-id",), ignored_query=frozenset({"sent_at"}), render=envelope)
Policy(key_headers=["webhook-id"])  # type: ignore[arg-type]
Policy(render=lambda problem: problem.slug)  # type: ignore[arg-type, return-value]

Starlette(
    middleware=[Middleware(IdempotencyMiddleware, store=MemoryStore(), tenant=by_user(), policy=policy)]
)
LateClaim(Starlette(), store=MemoryStore(), key_headers=policy.key_headers)
once = Idempotency(Flask("app"), store=SyncMemoryStore(), principal=lambda: "alice", policy=policy)


@once.protect(policy=policy)
def view(order: str) -> dict[str, str]:
    return {"order": order}


assert_type(view("o-1"), dict[str, str])

with protection_off(), swapped_stores(make=MemoryStore):
    pass
swapped_stores(make=SyncMemoryStore)  # type: ignore[arg-type]


class TestMyStore(StoreContract): ...
