"""Concurrent callers that share keys of a store, and record the reply to each of their calls."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import anyio
from histories import ObservedCall

from idempotency._core.types import Acquired, Claim, Fingerprint, Owner, Reply, StorageKey
from idempotency.errors import StoreUnavailable
from idempotency.store import Store
from idempotency.testing import Fault, FaultyStore
from idempotency.testing._spec import Acquire, Complete, Release, Renew

__all__ = ["CALLERS", "FINGERPRINTS", "RESOLUTION", "histories", "noting_failed_tries"]

CALLERS: Final = 16
_CALLERS_A_KEY: Final = 4
RESOLUTION: Final = 0.003
"""Seconds: Redis counts in milliseconds, at both ends."""
FINGERPRINTS: Final = (Fingerprint(b"\x01" * 32), Fingerprint(b"\x01" * 32), Fingerprint(b"\x02" * 32))


def _faults(chance: random.Random) -> Iterator[Fault | float | None]:
    """Faults for a store: of a hundred calls ten are lost, half of them after they took effect, and ten are late."""
    while True:
        drawn = chance.random()
        if drawn < 0.05:
            yield Fault.FAIL_BEFORE
        elif drawn < 0.10:
            yield Fault.FAIL_AFTER
        else:
            yield chance.uniform(0.0, 0.005) if drawn < 0.20 else None


_FAILED_TRIES: ContextVar[list[tuple[float, float]]] = ContextVar(
    "tries of the current call that lost their connection"
)


@contextmanager
def noting_failed_tries() -> Iterator[None]:
    """Record a failed try as a call of its own: it may take effect before the store tries again."""
    began = time.monotonic()
    try:
        yield
    except Exception:
        _FAILED_TRIES.get().append((began, time.monotonic()))
        raise


class _Caller:
    """One of the callers of a key: it claims, pauses, and then renews, completes or releases."""

    def __init__(
        self, store: Store, key: StorageKey, chance: random.Random, history: list[ObservedCall], pace: float
    ) -> None:
        self.store = store
        self.key = key
        self.chance = chance
        self.history = history
        self.pace = pace  # all durations are multiplied by it

    async def run_turns(self, turns: int) -> None:
        for _ in range(turns):
            owner = Owner(secrets.token_bytes(16))
            reply = await self.acquire(owner)
            if reply is None and self.chance.random() < 0.5:
                # Its reply was lost: the same owner is granted the same claim (R2).
                reply = await self.acquire(owner)
            if isinstance(reply, Acquired):
                await self.run(reply.claim)
            elif reply is None:
                await self.release(Claim(self.key, owner, 0, 0))
            await self.pause(self.chance.uniform(0.0, 0.01))

    async def pause(self, seconds: float) -> None:
        await anyio.sleep(seconds * self.pace)  # leases of real servers run out in real time

    async def run(self, claim: Claim) -> None:
        await self.pause(self.chance.choice([0.0, 0.002, 0.02]))
        for _ in range(self.chance.choice([0, 1, 2, 2])):
            act = self.chance.choice([self.renew, self.renew, self.release, self.complete, self.complete])
            await act(claim)

    async def acquire(self, owner: Owner) -> Reply | None:
        chance = self.chance
        call = Acquire(
            self.key,
            chance.choice(FINGERPRINTS),
            owner,
            lease=chance.uniform(0.004, 0.02) * self.pace,
            retention=chance.uniform(0.02, 0.05) * self.pace,
            takeover=chance.random() < 0.9,
        )
        return await self.note(
            call,
            self.store.acquire(
                self.key,
                fingerprint=call.fingerprint,
                owner=owner,
                lease=call.lease,
                retention=call.retention,
                takeover=call.takeover,
            ),
        )

    async def renew(self, claim: Claim) -> None:
        lease = self.chance.uniform(0.004, 0.02) * self.pace
        await self.note(Renew(self.key, claim.owner, lease), self.store.renew(claim, lease=lease))

    async def complete(self, claim: Claim) -> None:
        outcome, retention = (
            b'{"n":%d}' % self.chance.randrange(10**9),
            self.chance.uniform(0.01, 0.05) * self.pace,
        )
        await self.note(
            Complete(self.key, claim.owner, outcome, retention),
            self.store.complete(claim, outcome, retention=retention),
        )

    async def release(self, claim: Claim) -> None:
        await self.note(Release(self.key, claim.owner), self.store.release(claim))

    async def note(self, call: Any, asked: Any) -> Any:
        failed_tries: list[tuple[float, float]] = []
        _FAILED_TRIES.set(failed_tries)
        began = time.monotonic()
        try:
            reply = await asked
        except StoreUnavailable:
            reply = None
        self.history.append(ObservedCall(call, reply, began, time.monotonic()))
        # A release that is retried may not reply as if its first try had no effect.
        if not isinstance(call, Release):
            self.history += [ObservedCall(call, None, *tried) for tried in failed_tries]
        return reply


async def histories(
    store: Store, *, seed: int, rounds: int, turns: int = 3, pace: float = 1.0
) -> list[list[ObservedCall]]:
    """The history of each key, some keys at a time."""
    chance = random.Random(seed)
    faulty = FaultyStore(store)
    for method in ("acquire", "renew", "complete", "release"):
        faulty.inject(method, _faults(chance))
    found: list[list[ObservedCall]] = []
    for _ in range(rounds):
        async with anyio.create_task_group() as tasks:
            for _ in range(CALLERS // _CALLERS_A_KEY):
                key, history = StorageKey(f"linear-{secrets.token_hex(8)}"), []
                found.append(history)
                for _ in range(_CALLERS_A_KEY):
                    tasks.start_soon(_Caller(faulty, key, chance, history, pace).run_turns, turns)
    return found
