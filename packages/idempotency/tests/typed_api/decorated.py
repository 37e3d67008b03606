"""
Read by type checkers, never run: what a decorated function's type is.

A wrong line without its `ignore` fails, and so does a right line with one.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

from idempotency import idempotent
from idempotency.codecs import PydanticCodec
from idempotency.stores.memory import MemoryStore, SyncMemoryStore


@idempotent(store=SyncMemoryStore(), operation="charge", key=lambda order, cents=0: order)
def charge(order: str, cents: int = 100) -> dict[str, int]:
    return {order: cents}


@idempotent(
    store=MemoryStore(), operation="charge", key=lambda order, dry=False: order.hex(), codec=PydanticCodec()
)
async def charge_later(order: bytes, *, dry: bool = False) -> float:
    return 1.0


assert_type(charge("o-1"), dict[str, int])
assert_type(charge("o-1", cents=1), dict[str, int])
charge(1)  # type: ignore[arg-type]
charge()  # type: ignore[call-arg]
charge("o-1", 100, 200)  # type: ignore[call-arg]


async def call_it() -> None:
    assert_type(await charge_later(b"o-1"), float)
    assert_type(await charge_later(b"o-1", dry=True), float)
    await charge_later("o-1")  # type: ignore[arg-type]
    await charge_later(b"o-1", dry="no")  # type: ignore[arg-type]


@idempotent(store=MemoryStore(), operation="charge", key=lambda order: order)  # type: ignore[arg-type]
def plain_over_async(order: str) -> str:
    return order


idempotent(store=SyncMemoryStore(), operation="charge", key=len)  # type: ignore[arg-type]
idempotent(store=SyncMemoryStore(), key=str)  # type: ignore[call-overload]
