"""What a run and an acquisition need of an async engine: the store, single flight, releases in the background."""

from __future__ import annotations

from collections.abc import Callable

from idempotency._backends.base import running
from idempotency._core import delays, machine
from idempotency._core.types import Claim
from idempotency.engine.base import EngineBase
from idempotency.engine.single_flight import InFlight, SingleFlight
from idempotency.store import Store

__all__ = ["AsyncEngineBase"]

_MAX_LATE_RELEASES = 256  # per engine; past it the lease decides


class AsyncEngineBase(EngineBase[InFlight]):
    """An engine without `begin`."""

    store: Store
    chance: Callable[[], float]
    single_flight: SingleFlight
    _late_releases = 0  # at work now

    async def release_late(self, claim: Claim, operation: str) -> None:
        """Try for a while to have the store forget *claim*; then its lease decides."""
        if self._late_releases >= _MAX_LATE_RELEASES:
            return
        self._late_releases += 1
        try:
            for delay in (*delays.RELEASE_RETRIES, None):
                try:
                    released = await self.store.release(claim)
                except Exception as error:
                    if delay is None:
                        self.store_failed("release", "unrecorded", error, claim.key, operation)
                else:
                    if released or machine.is_confirmed(claim):
                        return
                if delay is not None:
                    await running().sleep(delay)
        finally:
            self._late_releases -= 1

    def spawn_release(self, claim: Claim, operation: str) -> None:
        """`release_late` in a task of its own."""
        running().spawn(lambda: self.release_late(claim, operation))
