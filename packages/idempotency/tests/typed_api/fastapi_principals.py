"""Read by type checkers, never run: what a principal may be in FastAPI, and what its name is made of."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import assert_type

from idempotency.fastapi import Idempotent


@dataclass
class User:
    id: str


def plain() -> str:
    return "alice"


async def coroutine() -> User:
    return User("alice")


def generator() -> Iterator[User]:
    yield User("alice")


async def async_generator() -> AsyncIterator[User]:
    yield User("alice")


assert_type(Idempotent(principal=plain), Idempotent[str])
assert_type(Idempotent(principal=coroutine, name=lambda user: user.id), Idempotent[User])
assert_type(Idempotent(principal=generator, name=lambda user: user.id), Idempotent[User])
assert_type(Idempotent(principal=async_generator, name=lambda user: user.id), Idempotent[User])
Idempotent(principal=coroutine, name=lambda user: user.missing)  # type: ignore[attr-defined]


@Idempotent(principal=plain).protect
async def charge(amount: int) -> dict[str, int]:
    return {"charged": amount}


async def call() -> None:
    assert_type(await charge(5), dict[str, int])
