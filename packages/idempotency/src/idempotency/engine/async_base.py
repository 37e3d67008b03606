"""The part of the async engine that runs and acquisitions use: store, single flight, background releases."""

from __future__ import annotations

from collections.abc import Callable

from idempotency._core import protocol
from idempotency._core.actions import Sleep
from idempotency._core.types import Claim
from idempotency._runtime.event_loop import running
from idempotency.engine.base import EngineBase
from idempotency.engine.single_flight import InFlight, SingleFlight
from idempotency.store import Store

__all__ = ["AsyncEngineBase"]

_MAX_LATE_RELEASES = 256  # at once, per engine; further claims stay until their leases end


class AsyncEngineBase(EngineBase[InFlight]):
    """The async engine without `begin`."""

    store: Store
    random: Callable[[], float]
    single_flight: SingleFlight
    _late_releases = 0  # running now

    async def release_late(self, claim: Claim, operation: str) -> None:
        """Perform the actions of `protocol.release_late`."""
        if self._late_releases >= _MAX_LATE_RELEASES:
            return
        self._late_releases += 1
        steps = protocol.release_late(claim)
        action = next(steps)
        try:
            while True:
                if isinstance(action, Sleep):
                    await running().sleep(action.seconds)
                    action = steps.send(None)
                else:
                    action = steps.send(await self._release(claim))
        except StopIteration as end:
            if end.value is not None:
                self.store_failed("release", "unrecorded", end.value, claim.key, operation)
        finally:
            self._late_releases -= 1

    async def _release(self, claim: Claim) -> bool | Exception:
        try:
            return await self.store.release(claim)
        except Exception as error:
            return error

    def spawn_release(self, claim: Claim, operation: str) -> None:
        """`release_late` in a new task."""
        running().spawn(lambda: self.release_late(claim, operation))
